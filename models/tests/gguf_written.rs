//! Fixtures written as GGUF files here, in forms of which there is no converter at hand: single experts as in the first files of Mixtral,
//! Qwen2-MoE, and the families that tests write themselves. They compute the bits of what they were made from.

mod common;

use common::adapters::{folder, write};
use common::made::tensors as tensors_of;
use common::{fixture, options};
use models::gguf::Gguf;
use models::{Loaded, ModelFiles};
use safetensors::{Dtype, SafeTensors};
use scheduler::{Batch, BatchItem, BlockId, Sample, SamplingParams, SequenceId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Shape, outermost first, and values in bf16.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

enum Meta {
    Text(&'static str),
    Int(u64),
    Float(f64),
    Bool(bool),
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Version 3: metadata, then where each tensor is, then the tensors, each at a multiple of 32 bytes.
fn gguf(metadata: &[(String, Meta)], tensors: &Tensors) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        match value {
            Meta::Int(n) => out.extend([4u32.to_le_bytes(), (*n as u32).to_le_bytes()].concat()),
            Meta::Float(x) => out.extend([6u32.to_le_bytes(), (*x as f32).to_le_bytes()].concat()),
            Meta::Bool(value) => {
                out.extend(7u32.to_le_bytes());
                out.push((*value).into());
            }
            Meta::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, value);
            }
        }
    }
    let mut data = Vec::new();
    for (name, (shape, bytes)) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        const BF16: u32 = 30;
        out.extend(BF16.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

/// Rows of heads from two halves, as published, to pairs side by side, as the files of LLaMA's family have them.
fn adjacent(bytes: &[u8], rows: usize, head_dim: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows;
    let row = |row: usize| {
        let (head, at) = (row / head_dim, row % head_dim);
        let from = head * head_dim + at % 2 * (head_dim / 2) + at / 2;
        &bytes[from * row_bytes..][..row_bytes]
    };
    (0..rows).flat_map(row).copied().collect()
}

/// The names of a layer's tensors; of an expert its number with it.
fn place(architecture: &str, part: &str) -> (String, Option<usize>) {
    let module = part.strip_prefix("mlp.").or_else(|| part.strip_prefix("block_sparse_moe."));
    let expert = module.and_then(|module| module.strip_prefix("experts.")).map(|rest| {
        let (number, matrix) = rest.split_once('.').unwrap();
        let matrix = match matrix {
            "gate_proj" | "w1" => "gate",
            "up_proj" | "w3" => "up",
            "down_proj" | "w2" => "down",
            other => panic!("{other}"),
        };
        (format!("ffn_{matrix}"), Some(number.parse().unwrap()))
    });
    let plain = |name: &str| (name.to_string(), None);
    expert.unwrap_or_else(|| match part {
        "input_layernorm" => plain("attn_norm"),
        "post_attention_layernorm" if architecture == "glm4moe" => plain("post_attention_norm"),
        "post_attention_layernorm" => plain("ffn_norm"),
        "post_self_attn_layernorm" => plain("post_attention_norm"),
        "post_mlp_layernorm" => plain("post_ffw_norm"),
        "self_attn.q_norm" => plain("attn_q_norm"),
        "self_attn.k_norm" => plain("attn_k_norm"),
        "self_attn.q_proj" => plain("attn_q"),
        "self_attn.k_proj" => plain("attn_k"),
        "self_attn.v_proj" => plain("attn_v"),
        "self_attn.o_proj" => plain("attn_output"),
        "mlp.gate_proj" => plain("ffn_gate"),
        "mlp.up_proj" | "mlp.gate_up_proj" => plain("ffn_up"),
        "mlp.down_proj" => plain("ffn_down"),
        "mlp.gate" | "block_sparse_moe.gate" => plain("ffn_gate_inp"),
        "mlp.shared_expert.gate_proj" | "mlp.shared_experts.gate_proj" => plain("ffn_gate_shexp"),
        "mlp.shared_expert.up_proj" | "mlp.shared_experts.up_proj" => plain("ffn_up_shexp"),
        "mlp.shared_expert.down_proj" | "mlp.shared_experts.down_proj" => plain("ffn_down_shexp"),
        "mlp.shared_expert_gate" => plain("ffn_gate_inp_shexp"),
        "eh_proj" => plain("nextn.eh_proj"),
        other => panic!("{other}"),
    })
}

/// What the files of a fixture hold, under names of GGUF; experts each by itself or all in one tensor.
fn tensors(folder: &Path, architecture: &str, head_dim: Option<usize>, alone: bool) -> Tensors {
    let mut all = Tensors::new();
    let mut experts: BTreeMap<(String, usize), (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("model") || !name.ends_with(".safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            assert_eq!(view.dtype(), Dtype::BF16, "{name}");
            let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
            let outer = match name.as_str() {
                "model.embed_tokens.weight" => Some("token_embd.weight"),
                "model.norm.weight" => Some("output_norm.weight"),
                "lm_head.weight" => Some("output.weight"),
                _ => None,
            };
            if let Some(outer) = outer {
                all.insert(outer.into(), (shape, data));
                continue;
            }
            // What only speculates outside of layers is left out by the converter.
            let Some(name) = name.strip_prefix("model.layers.") else { continue };
            let (layer, rest) = name.split_once('.').unwrap();
            let (part, kind) = rest.rsplit_once('.').unwrap();
            if kind == "e_score_correction_bias" {
                all.insert(format!("blk.{layer}.exp_probs_b.bias"), (vec![*shape.last().unwrap()], data));
                continue;
            }
            let (place, expert) = place(architecture, part);
            if let (Some(dim), "attn_q" | "attn_k") = (head_dim, place.as_str()) {
                data = adjacent(&data, shape[0], dim);
            }
            if place == "ffn_gate_inp_shexp" {
                shape.remove(0);
            }
            match expert {
                Some(expert) if alone => {
                    all.insert(format!("blk.{layer}.{place}.{expert}.{kind}"), (shape, data));
                }
                Some(expert) => {
                    experts.insert((format!("blk.{layer}.{place}_exps.{kind}"), expert), (shape, data));
                }
                None => _ = all.insert(format!("blk.{layer}.{place}.{kind}"), (shape, data)),
            }
        }
    }
    for ((name, _), (shape, data)) in experts {
        let (all_shape, all_data) =
            all.entry(name).or_insert_with(|| ([&[0], shape.as_slice()].concat(), Vec::new()));
        all_shape[0] += 1;
        all_data.extend(data);
    }
    all
}

struct Written {
    /// A checkpoint of safetensors.
    source: PathBuf,
    name: &'static str,
    architecture: &'static str,
    /// Where pairs of heads are side by side.
    turned: bool,
    alone: bool,
    more: fn(&Value) -> Vec<(&'static str, Meta)>,
}

impl Written {
    fn open(&self) -> Result<ModelFiles, String> {
        let config = config(&self.source);
        let int = |key: &str| config[key].as_u64().unwrap();
        let share = || int("hidden_size") / int("num_attention_heads");
        let head_dim = config["head_dim"].as_u64().unwrap_or_else(share) as usize;
        let key = |key: &str| format!("{}.{key}", self.architecture);
        let mut metadata = vec![
            ("general.architecture".to_string(), Meta::Text(self.architecture)),
            (key("attention.layer_norm_rms_epsilon"), Meta::Float(config["rms_norm_eps"].as_f64().unwrap())),
            (key("rope.freq_base"), Meta::Float(config["rope_theta"].as_f64().unwrap())),
        ];
        let more = (self.more)(&config);
        if more.iter().all(|(name, _)| *name != "rope.dimension_count") {
            metadata.push((key("rope.dimension_count"), Meta::Int(head_dim as u64)));
        }
        for (name, of) in [
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
        ] {
            metadata.push((key(name), Meta::Int(int(of))));
        }
        if more.iter().all(|(name, _)| *name != "block_count") {
            metadata.push((key("block_count"), Meta::Int(int("num_hidden_layers"))));
        }
        metadata.extend(more.into_iter().map(|(name, value)| (key(name), value)));
        let tensors = tensors(&self.source, self.architecture, self.turned.then_some(head_dim), self.alone);
        let file = folder(&format!("gguf-{}", self.name)).join("model.gguf");
        std::fs::write(&file, gguf(&metadata, &tensors)).unwrap();
        let gguf = Gguf::open(&file).map_err(|error| error.to_string())?;
        ModelFiles::gguf(gguf, Vec::new()).map_err(|error| error.to_string())
    }
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

fn distribution(loaded: &mut Loaded) -> Vec<f32> {
    let tokens: Vec<u32> = (0..23).map(|i| (i * 37 + 11) % 64).collect();
    let blocks = (0..tokens.len().div_ceil(loaded.plan.block_size) as u32).map(BlockId).collect();
    let item = BatchItem {
        sample: Some(Sample::new(Arc::new(SamplingParams::default()), tokens.len(), 0)),
        ..BatchItem::new(SequenceId(1), tokens, 0, blocks)
    };
    let batch = Batch { items: vec![item], ..Default::default() };
    loaded.runner.distributions(&batch).pop().expect("one distribution")
}

fn check(written: &Written) {
    let what = written.name;
    let files = written.open().unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut found =
        models::load(&files, &options(), &mut |_| {}).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(found.plan.memory.total, found.runner.allocated_bytes(), "{what}");
    let source = ModelFiles::Directory(written.source.clone());
    let mut expected = models::load(&source, &options(), &mut |_| {}).unwrap();
    assert_eq!(distribution(&mut found), distribution(&mut expected), "{what}");
}

#[test]
fn experts_of_mixtral_may_be_tensors_of_their_own() {
    for (name, alone) in [("mixtral-alone", true), ("mixtral", false)] {
        let more = |config: &Value| {
            let int = |key: &str| config[key].as_u64().unwrap();
            vec![
                ("expert_count", Meta::Int(int("num_local_experts"))),
                ("expert_used_count", Meta::Int(int("num_experts_per_tok"))),
            ]
        };
        let source = fixture("mixtral");
        check(&Written { source, name, architecture: "llama", turned: true, alone, more });
    }
}

/// Such files are of the architecture llama; where they name the window, it is that of the published files.
#[test]
fn mistral() {
    let more = |config: &Value| {
        let int = |key: &str| config[key].as_u64().unwrap();
        vec![
            ("attention.key_length", Meta::Int(int("head_dim"))),
            ("attention.value_length", Meta::Int(int("head_dim"))),
            ("attention.sliding_window", Meta::Int(int("sliding_window"))),
        ]
    };
    let (name, source) = ("mistral", fixture("mistral"));
    check(&Written { source, name, architecture: "llama", turned: true, alone: false, more });
}

/// Every layer has experts in such files.
#[test]
fn qwen2_moe() {
    let source = folder("gguf-source");
    let mut changed = config(&fixture("qwen2_moe"));
    (changed["mlp_only_layers"], changed["decoder_sparse_step"]) = (json!([]), json!(1));
    std::fs::write(source.join("config.json"), changed.to_string()).unwrap();
    write(&source.join("model.safetensors"), &tensors_of(&changed));
    let more = |config: &Value| {
        let int = |key: &str| config[key].as_u64().unwrap();
        vec![
            ("expert_count", Meta::Int(int("num_experts"))),
            ("expert_used_count", Meta::Int(int("num_experts_per_tok"))),
            ("expert_feed_forward_length", Meta::Int(int("moe_intermediate_size"))),
            ("expert_shared_feed_forward_length", Meta::Int(int("shared_expert_intermediate_size"))),
        ]
    };
    let (name, architecture) = ("qwen2_moe", "qwen2moe");
    check(&Written { source, name, architecture, turned: false, alone: false, more });
}

/// Everything that the converter writes of them.
#[test]
fn families_that_tests_write() {
    type More = fn(&Value) -> Vec<(&'static str, Meta)>;
    fn int(config: &Value, key: &str) -> Meta {
        Meta::Int(config[key].as_u64().unwrap_or_else(|| panic!("{key}")))
    }
    fn half_rotated(config: &Value) -> Vec<(&'static str, Meta)> {
        let length = || int(config, "head_dim");
        let rotated = Meta::Int(config["head_dim"].as_u64().unwrap() / 2);
        vec![
            ("attention.key_length", length()),
            ("attention.value_length", length()),
            ("rope.dimension_count", rotated),
        ]
    }
    fn grouped(config: &Value) -> Vec<(&'static str, Meta)> {
        vec![
            ("expert_count", int(config, "n_routed_experts")),
            ("expert_used_count", int(config, "num_experts_per_tok")),
            ("expert_feed_forward_length", int(config, "moe_intermediate_size")),
            ("expert_shared_count", int(config, "n_shared_experts")),
            ("leading_dense_block_count", int(config, "first_k_dense_replace")),
            ("expert_weights_scale", Meta::Float(config["routed_scaling_factor"].as_f64().unwrap())),
            ("expert_weights_norm", Meta::Bool(config["norm_topk_prob"] == true)),
        ]
    }
    let families: [(&str, &str, More); 7] = [
        ("glm4", "glm4", half_rotated),
        ("glm4_moe", "glm4moe", |config| {
            // The layer that speculates is counted.
            let mut more = vec![
                ("block_count", Meta::Int(config["num_hidden_layers"].as_u64().unwrap() + 1)),
                ("nextn_predict_layers", Meta::Int(1)),
                ("expert_gating_func", Meta::Int(2)),
            ];
            more.extend(half_rotated(config).into_iter().chain(grouped(config)));
            more
        }),
        ("minimax_m2", "minimax-m2", |config| {
            let mut more = vec![
                ("expert_count", int(config, "num_local_experts")),
                ("expert_used_count", int(config, "num_experts_per_tok")),
                ("expert_feed_forward_length", int(config, "intermediate_size")),
                ("expert_gating_func", Meta::Int(2)),
            ];
            more.extend(half_rotated(config));
            more
        }),
        ("olmoe", "olmoe", |config| {
            vec![
                ("expert_count", int(config, "num_experts")),
                ("expert_used_count", int(config, "num_experts_per_tok")),
            ]
        }),
        ("ernie4_5", "ernie4_5", |config| vec![("attention.key_length", int(config, "head_dim"))]),
        ("ernie4_5_moe", "ernie4_5-moe", |config| {
            vec![
                ("expert_count", int(config, "moe_num_experts")),
                ("expert_used_count", int(config, "moe_k")),
                ("expert_feed_forward_length", int(config, "moe_intermediate_size")),
                ("expert_shared_count", int(config, "moe_num_shared_experts")),
                ("leading_dense_block_count", int(config, "moe_layer_start_index")),
                ("interleave_moe_layer_step", int(config, "moe_layer_interval")),
            ]
        }),
        ("dots1", "dots1", |config| {
            let mut more = grouped(config);
            more.push(("attention.key_length", int(config, "head_dim")));
            more.push(("expert_group_count", int(config, "n_group")));
            more.push(("expert_group_used_count", int(config, "topk_group")));
            more
        }),
    ];
    for (name, architecture, more) in families {
        check(&Written { source: fixture(name), name, architecture, turned: false, alone: false, more });
    }
}
