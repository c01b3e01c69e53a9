//! What quantised weights and caches cost: the distance of their distributions from those of float32, on the embedded model and on a random one of
//! Moonlight's widths. `cargo test -p models --test quality -- --nocapture` prints the tables of docs/quantization.md.

mod common;

use common::options;
use models::{
    ActivationsChoice, DTypeChoice, KvCacheDTypeChoice, LoadOptions, Loaded, MemoryLimit, ModelFiles,
    QuantizationChoice,
};
use scheduler::{Batch, BatchItem, BlockId, Sample, SamplingParams, SequenceId};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Weights, and the KV cache.
const KEPT: [(&str, QuantizationChoice, KvCacheDTypeChoice); 4] = [
    ("bfloat16", QuantizationChoice::Auto, KvCacheDTypeChoice::Auto),
    ("bfloat16, KV cache int8", QuantizationChoice::Auto, KvCacheDTypeChoice::Int8),
    ("int8", QuantizationChoice::Int8, KvCacheDTypeChoice::Auto),
    ("int4", QuantizationChoice::Int4, KvCacheDTypeChoice::Auto),
];

/// Activations as they are, and rounded as far as the machine has instructions for.
const ACTIVATIONS: [ActivationsChoice; 2] = [ActivationsChoice::F32, ActivationsChoice::Auto];

/// One sequence, token by token.
struct Reader {
    loaded: Loaded,
    num_tokens: usize,
}

impl Reader {
    fn new(files: &ModelFiles, options: &LoadOptions) -> Self {
        Self { loaded: models::load(files, options, &mut |_| {}).unwrap(), num_tokens: 0 }
    }

    /// Log-probabilities of the next token after this one.
    fn next(&mut self, token: u32) -> Vec<f32> {
        let blocks = (self.num_tokens + 1).div_ceil(self.loaded.plan.block_size) as u32;
        let sample = Sample::new(Arc::new(SamplingParams::default()), self.num_tokens + 1, 0);
        let item = BatchItem {
            prompt_len: self.num_tokens + 1,
            sample: Some(sample),
            ..BatchItem::new(SequenceId(1), vec![token], self.num_tokens, (0..blocks).map(BlockId).collect())
        };
        self.num_tokens += 1;
        let batch = Batch { items: vec![item], ..Default::default() };
        self.loaded.runner.distributions(&batch).pop().expect("one distribution")
    }
}

/// Sequences that the model itself continues, drawn at temperature 1, with the distribution at each position.
fn written(reader: &mut Reader, first: &[u32], len: usize) -> Vec<(Vec<u32>, Vec<Vec<f32>>)> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut sequences = Vec::new();
    for &token in first {
        reader.num_tokens = 0;
        let (mut tokens, mut distributions) = (vec![token], Vec::new());
        for position in 0..len {
            let distribution = reader.next(tokens[position]);
            let mut left = uniform();
            let drawn = distribution.iter().position(|logprob| {
                left -= logprob.exp();
                left < 0.0
            });
            tokens.push(drawn.unwrap_or(0) as u32);
            distributions.push(distribution);
        }
        sequences.push((tokens, distributions));
    }
    sequences
}

/// Of the distributions of quantised weights from those of float32.
#[derive(Debug, Default, Clone, Copy)]
struct Distance {
    mean_kl: f64,
    max_kl: f64,
    /// Share of positions with the same likeliest token.
    same_top: f64,
}

fn distance(reader: &mut Reader, sequences: &[(Vec<u32>, Vec<Vec<f32>>)]) -> Distance {
    let top = |values: &[f32]| (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]));
    let (mut distance, mut count) = (Distance::default(), 0.0);
    for (tokens, distributions) in sequences {
        reader.num_tokens = 0;
        for (&token, expected) in tokens.iter().zip(distributions) {
            let found = reader.next(token);
            let pairs = expected.iter().zip(&found);
            let kl: f64 = pairs.map(|(&p, &q)| f64::from(p).exp() * (f64::from(p) - f64::from(q))).sum();
            distance.mean_kl += kl;
            distance.max_kl = distance.max_kl.max(kl);
            distance.same_top += f64::from(top(expected) == top(&found));
            count += 1.0;
        }
    }
    distance.mean_kl /= count;
    distance.same_top /= count;
    distance
}

fn distances(what: &str, files: &ModelFiles, options: &LoadOptions, first: &[u32]) -> [[Distance; 4]; 2] {
    let float = LoadOptions { dtype: DTypeChoice::F32, ..options.clone() };
    let sequences = written(&mut Reader::new(files, &float), first, 48);
    println!("{what}, {} positions", 48 * first.len());
    ACTIVATIONS.map(|activations| {
        KEPT.map(|(name, quantization, kv_cache_dtype)| {
            let options = LoadOptions {
                dtype: DTypeChoice::BF16,
                quantization,
                activations,
                kv_cache_dtype,
                ..options.clone()
            };
            let mut reader = Reader::new(files, &options);
            let found = distance(&mut reader, &sequences);
            let plan = &reader.loaded.plan;
            println!(
                "  {name:<23} activations in {:<9} mean KL {:.2e}, largest {:.2e}, same first choice {:.1} %, {:.1} MiB of weights",
                plan.activations,
                found.mean_kl,
                found.max_kl,
                100.0 * found.same_top,
                plan.memory.weights as f64 / f64::from(1 << 20)
            );
            found
        })
    })
}

/// Tensors of the configuration below, by name.
fn tensors() -> Vec<(String, Vec<usize>)> {
    const H: usize = 1024;
    let mut all = vec![("model.embed_tokens.weight".to_string(), vec![2000, H])];
    let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
    for layer in 0..4 {
        let at = format!("model.layers.{layer}");
        add(format!("{at}.input_layernorm.weight"), &[H]);
        add(format!("{at}.post_attention_layernorm.weight"), &[H]);
        add(format!("{at}.self_attn.q_proj.weight"), &[4 * 192, H]);
        add(format!("{at}.self_attn.kv_a_proj_with_mqa.weight"), &[512 + 64, H]);
        add(format!("{at}.self_attn.kv_a_layernorm.weight"), &[512]);
        add(format!("{at}.self_attn.kv_b_proj.weight"), &[4 * 256, 512]);
        add(format!("{at}.self_attn.o_proj.weight"), &[H, 4 * 128]);
        let mut mlp = |name: &str, inner: usize| {
            add(format!("{at}.mlp.{name}gate_proj.weight"), &[inner, H]);
            add(format!("{at}.mlp.{name}up_proj.weight"), &[inner, H]);
            add(format!("{at}.mlp.{name}down_proj.weight"), &[H, inner]);
        };
        if layer == 0 {
            mlp("", 2048);
            continue;
        }
        (0..8).for_each(|expert| mlp(&format!("experts.{expert}."), 256));
        mlp("shared_experts.", 256);
        add(format!("{at}.mlp.gate.weight"), &[8, H]);
        add(format!("{at}.mlp.gate.e_score_correction_bias"), &[8]);
    }
    add("model.norm.weight".to_string(), &[H]);
    add("lm_head.weight".to_string(), &[2000, H]);
    all
}

/// A safetensors file in bfloat16: norms are ones, biases zeros, and matrices normally distributed to the eye.
fn random_checkpoint() -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    for (name, shape) in tensors() {
        let start = data.len();
        for _ in 0..shape.iter().product() {
            let value = match shape.len() {
                1 if name.ends_with("bias") => 0.0,
                1 => 1.0,
                // A sum of three uniform numbers has variance 1/4.
                _ => 2.0 * (uniform() + uniform() + uniform() - 1.5) / (shape[1] as f32).sqrt(),
            };
            data.extend_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
        }
        let offsets = [start, data.len()];
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": offsets}));
    }
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

#[test]
fn distance_from_float32() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/demo");
    let first: Vec<u32> = (0..8).map(|i| 100 + 97 * i).collect();
    let embedded = distances("embedded model", &ModelFiles::Directory(demo), &options(), &first);
    let config = json!({
        "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 2000, "hidden_size": 1024, "intermediate_size": 2048,
        "moe_intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
        "kv_lora_rank": 512, "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.446, "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0, "max_position_embeddings": 1024, "torch_dtype": "bfloat16", "num_nextn_predict_layers": 0
    });
    let content: &'static [u8] = config.to_string().leak().as_bytes();
    let weights: &'static [u8] = random_checkpoint().leak();
    let files = ModelFiles::Embedded(vec![("config.json", content), ("model.safetensors", weights)].leak());
    let options = LoadOptions {
        memory: MemoryLimit::Bytes(2 << 30),
        max_num_seqs: 1,
        max_num_batched_tokens: 16,
        ..options()
    };
    let random = distances("random weights", &files, &options, &first[..3]);
    // A rounding that sends a token to other experts is rare and large: means are far above what is usual.
    for (found, [kl16, kl8, kl4]) in [(embedded, [0.02, 0.06, 0.4]), (random, [0.02, 0.05, 0.3])] {
        let [[bf16, kv8, int8, int4], rounded] = found;
        assert!(kv8.mean_kl < kl8, "{kv8:?}");
        assert!(bf16.mean_kl < int8.mean_kl && int8.mean_kl < int4.mean_kl, "{bf16:?} {int8:?} {int4:?}");
        for [bf16, _, int8, int4] in [[bf16, kv8, int8, int4], rounded] {
            let kl = [bf16, int8, int4].map(|distance| distance.mean_kl);
            assert!(kl[0] < kl16 && kl[1] < kl8 && kl[2] < kl4, "{bf16:?} {int8:?} {int4:?}");
        }
    }
    for [_, _, int8, int4] in embedded {
        assert!(int8.same_top > 0.97 && int4.same_top > 0.8, "{int8:?} {int4:?}");
    }
}
