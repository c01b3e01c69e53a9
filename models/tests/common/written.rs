//! Families without fixtures: here are their configurations and golden numbers (`written/NAME.json`, of tools/golden/written.py), and their
//! weights are the integer formula of made.rs, under the published names.

use super::adapters::{Stored, write};
use super::made::values;
use super::{Case, Golden, scratch};
use safetensors::tensor::Dtype;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

macro_rules! stored {
    ($($name:literal),* $(,)?) => {
        const STORED: &[(&str, &str)] = &[$(($name, include_str!(concat!("written/", $name, ".json")))),*];
    };
}

stored!(
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "solar_open",
    "minimax_m2",
    "olmoe",
    "ernie4_5",
    "ernie4_5_moe",
    "dots1",
);

pub fn is_one(name: &str) -> bool {
    STORED.iter().any(|(known, _)| *known == name)
}

fn json(name: &str) -> Value {
    let (_, text) = STORED.iter().find(|(known, _)| *known == name).unwrap();
    serde_json::from_str(text).unwrap()
}

/// A folder with config.json and model.safetensors. It is made once in a process; others make the same.
pub fn folder(name: &str) -> PathBuf {
    static MADE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let folder = scratch().join("written").join(name);
    let mut made = MADE.lock().unwrap();
    if !made.contains(&folder) {
        fs::create_dir_all(&folder).unwrap();
        let config = json(name)["config"].clone();
        // Under a name of this process, so that nobody reads half a file.
        let put = |file: &str, write: &dyn Fn(&Path)| {
            let own = folder.join(format!("{file}.{}", std::process::id()));
            write(&own);
            fs::rename(&own, folder.join(file)).unwrap();
        };
        put("config.json", &|own| fs::write(own, format!("{config:#}\n")).unwrap());
        put("model.safetensors", &|own| write(own, &tensors(&config)));
        made.push(folder.clone());
    }
    folder
}

/// Prompts, what follows them, and log-probabilities: of each token of a prompt, and of each that follows.
pub fn golden(name: &str) -> Golden {
    let json = json(name);
    let mut arrays = BTreeMap::new();
    let cases: Vec<Case> = json["cases"].as_array().unwrap().iter().map(Case::read).collect();
    for (case, json) in cases.iter().zip(json["cases"].as_array().unwrap()) {
        for what in ["prompt_logprobs", "greedy_logprobs"] {
            let list = json[what].as_array().unwrap();
            let numbers = list.iter().map(|number| number.as_f64().unwrap() as f32).collect();
            arrays.insert(format!("{}.{what}", case.name), numbers);
        }
    }
    Golden { images: Vec::new(), cases, arrays }
}

/// The names by which families differ.
struct Names {
    qkv_bias: bool,
    /// Whether heads are normed: one weight for each value of a head, or of all heads.
    norms: Option<PerHead>,
    /// Norms of what a layer's parts made.
    sandwich: bool,
    fused_gate_up: bool,
    experts: Option<Experts>,
}

#[derive(Clone, Copy)]
struct PerHead(bool);

#[derive(Clone, Copy)]
struct Experts {
    module: &'static str,
    parts: [&'static str; 3],
    count: &'static str,
    width: &'static str,
    /// Where the bias of the choice is, and its shape before the number of experts.
    bias: Option<(&'static str, &'static [usize])>,
    shared: Option<&'static str>,
    /// The first layer that has them.
    first: Option<&'static str>,
}

const DEEPSEEK: Experts = Experts {
    module: "mlp",
    parts: ["gate_proj", "up_proj", "down_proj"],
    count: "n_routed_experts",
    width: "moe_intermediate_size",
    bias: Some(("gate.e_score_correction_bias", &[])),
    shared: Some("n_shared_experts"),
    first: Some("first_k_dense_replace"),
};

fn names(config: &Value) -> Names {
    let plain = Names { qkv_bias: false, norms: None, sandwich: false, fused_gate_up: false, experts: None };
    let qkv_bias = config["attention_bias"] == true;
    let norms = Some(PerHead(true));
    match config["model_type"].as_str().unwrap() {
        "glm" => Names { qkv_bias, fused_gate_up: true, ..plain },
        "glm4" => Names { qkv_bias, fused_gate_up: true, sandwich: true, ..plain },
        "glm4_moe" => Names { qkv_bias, norms, experts: Some(DEEPSEEK), ..plain },
        "glm4_moe_lite" | "solar_open" => Names { experts: Some(DEEPSEEK), ..plain },
        "dots1" => Names { norms, experts: Some(DEEPSEEK), ..plain },
        "minimax_m2" => Names {
            norms: Some(PerHead(false)),
            experts: Some(Experts {
                module: "block_sparse_moe",
                parts: ["w1", "w3", "w2"],
                count: "num_local_experts",
                width: "intermediate_size",
                bias: Some(("e_score_correction_bias", &[])),
                shared: None,
                first: None,
            }),
            ..plain
        },
        "olmoe" => Names {
            norms: Some(PerHead(false)),
            experts: Some(Experts {
                count: "num_experts",
                width: "intermediate_size",
                bias: None,
                shared: None,
                first: None,
                ..DEEPSEEK
            }),
            ..plain
        },
        "ernie4_5" => plain,
        "ernie4_5_moe" => Names {
            experts: Some(Experts {
                count: "moe_num_experts",
                bias: Some(("moe_statics.e_score_correction_bias", &[1])),
                shared: Some("moe_num_shared_experts"),
                first: Some("moe_layer_start_index"),
                ..DEEPSEEK
            }),
            ..plain
        },
        other => panic!("{other}"),
    }
}

/// All tensors, and some of a layer that only speculates where the configuration has one.
pub fn tensors(config: &Value) -> BTreeMap<String, Stored> {
    let size = |key: &str| config[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize;
    let number = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
    let names = names(config);
    let (vocab, hidden, num_layers) = (size("vocab_size"), size("hidden_size"), size("num_hidden_layers"));
    let mut all = BTreeMap::new();
    let mut put = |name: String, shape: &[usize], kind: &str| {
        let values = values(&name, shape.iter().product(), kind);
        all.insert(name, (Dtype::BF16, shape.to_vec(), values));
    };
    put("model.embed_tokens.weight".into(), &[vocab, hidden], "embed");
    put("model.norm.weight".into(), &[hidden], "norm");
    if config["tie_word_embeddings"] == false {
        put("lm_head.weight".into(), &[vocab, hidden], "head");
    }
    for index in 0..num_layers {
        let layer = format!("model.layers.{index}");
        let outer = ["input_layernorm", "post_attention_layernorm"];
        let inner = ["post_self_attn_layernorm", "post_mlp_layernorm"];
        for norm in outer.into_iter().chain(inner.into_iter().filter(|_| names.sandwich)) {
            put(format!("{layer}.{norm}.weight"), &[hidden], "norm");
        }
        attention(config, &names, &mut |name, shape, kind| {
            put(format!("{layer}.self_attn.{name}"), shape, kind)
        });
        let mut mlp = |name: &str, parts: [&str; 3], width: usize| {
            for (part, [n, k]) in parts.into_iter().zip([[width, hidden], [width, hidden], [hidden, width]]) {
                put(format!("{layer}.{name}.{part}.weight"), &[n, k], "linear");
            }
        };
        let experts = names.experts.filter(|experts| index >= experts.first.map_or(0, number));
        let Some(experts) = experts else {
            let width = size("intermediate_size");
            if names.fused_gate_up {
                put(format!("{layer}.mlp.gate_up_proj.weight"), &[2 * width, hidden], "linear");
                put(format!("{layer}.mlp.down_proj.weight"), &[hidden, width], "linear");
            } else {
                mlp("mlp", DEEPSEEK.parts, width);
            }
            continue;
        };
        let (count, width, module) = (size(experts.count), size(experts.width), experts.module);
        for expert in 0..count {
            mlp(&format!("{module}.experts.{expert}"), experts.parts, width);
        }
        if let Some(shared) = experts.shared.map(size).filter(|&shared| shared > 0) {
            mlp(&format!("{module}.shared_experts"), experts.parts, shared * width);
        }
        put(format!("{layer}.{module}.gate.weight"), &[count, hidden], "router");
        if let Some((bias, before)) = experts.bias {
            put(format!("{layer}.{module}.{bias}"), &[before, &[count]].concat(), "bias");
        }
    }
    if ["num_nextn_predict_layers", "num_mtp_modules"].iter().any(|key| number(key) > 0) {
        let name = match config["model_type"] == "ernie4_5_moe" {
            true => "model.mtp_linear_proj.0.weight".to_string(),
            false => format!("model.layers.{num_layers}.eh_proj.weight"),
        };
        put(name, &[hidden, 2 * hidden], "linear");
    }
    all
}

fn attention(config: &Value, names: &Names, put: &mut dyn FnMut(&str, &[usize], &str)) {
    let size = |key: &str| config[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize;
    let (hidden, heads) = (size("hidden_size"), size("num_attention_heads"));
    if config.get("kv_lora_rank").is_some() {
        let (rank, q_rank, nope) = (size("kv_lora_rank"), size("q_lora_rank"), size("qk_nope_head_dim"));
        let (rope, value) = (size("qk_rope_head_dim"), size("v_head_dim"));
        put("q_a_layernorm.weight", &[q_rank], "norm");
        put("kv_a_layernorm.weight", &[rank], "norm");
        for (name, n, k) in [
            ("q_a_proj", q_rank, hidden),
            ("q_b_proj", heads * (nope + rope), q_rank),
            ("kv_a_proj_with_mqa", rank + rope, hidden),
            ("kv_b_proj", heads * (nope + value), rank),
            ("o_proj", hidden, heads * value),
        ] {
            put(&format!("{name}.weight"), &[n, k], "linear");
        }
        return;
    }
    let head_dim = config["head_dim"].as_u64().map_or(hidden / heads, |dim| dim as usize);
    let (q, kv) = (heads * head_dim, size("num_key_value_heads") * head_dim);
    for (name, n, k) in
        [("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q)]
    {
        put(&format!("{name}.weight"), &[n, k], "linear");
        if names.qkv_bias && name != "o_proj" {
            put(&format!("{name}.bias"), &[n], "bias");
        }
    }
    if let Some(PerHead(is_per_head)) = names.norms {
        for (name, width) in [("q_norm", q), ("k_norm", kv)] {
            put(&format!("{name}.weight"), &[if is_per_head { head_dim } else { width }], "norm");
        }
    }
}
