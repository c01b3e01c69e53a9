//! Weights of fixtures that have no file of them: from the integer formula of tools/golden/common.py.

use super::adapters::{Stored, write};
use super::formula::words;
use super::scratch;
use safetensors::tensor::Dtype;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

pub const FAMILIES: &[&str] = &["qwen2_moe", "mistral"];

/// A copy of a fixture with the weights that its golden numbers were computed of. It is made once in a process; others make the same.
pub fn with_weights(fixture: &Path, name: &str) -> PathBuf {
    static MADE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let folder = scratch().join("made").join(name);
    let mut made = MADE.lock().unwrap();
    if !made.contains(&folder) {
        fs::create_dir_all(&folder).unwrap();
        // Under a name of this process, so that nobody reads half a file.
        let put = |file: &str, write: &dyn Fn(&Path)| {
            let own = folder.join(format!("{file}.{}", std::process::id()));
            write(&own);
            fs::rename(&own, folder.join(file)).unwrap();
        };
        for entry in fs::read_dir(fixture).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap();
            put(file, &|own| fs::write(own, fs::read(&path).unwrap()).unwrap());
        }
        let config = serde_json::from_slice(&fs::read(fixture.join("config.json")).unwrap()).unwrap();
        put("model.safetensors", &|own| write(own, &tensors(&config)));
        made.push(folder.clone());
    }
    folder
}

/// All tensors of a decoder with heads of queries and keys, dense, or with Qwen's experts or Mixtral's.
pub fn tensors(config: &Value) -> BTreeMap<String, Stored> {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (vocab, hidden, heads) = (size("vocab_size"), size("hidden_size"), size("num_attention_heads"));
    let head_dim = config["head_dim"].as_u64().map_or(hidden / heads, |dim| dim as usize);
    let (q, kv) = (heads * head_dim, size("num_key_value_heads") * head_dim);
    let has_bias = config["model_type"].as_str().is_some_and(|name| name.starts_with("qwen2"));
    let mut all = BTreeMap::new();
    let mut put = |name: String, shape: &[usize], kind: &str| {
        let values = values(&name, shape.iter().product(), kind);
        all.insert(name, (Dtype::BF16, shape.to_vec(), values));
    };
    put("model.embed_tokens.weight".into(), &[vocab, hidden], "embed");
    put("model.norm.weight".into(), &[hidden], "norm");
    put("lm_head.weight".into(), &[vocab, hidden], "head");
    for index in 0..size("num_hidden_layers") {
        let layer = format!("model.layers.{index}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            put(format!("{layer}.{norm}.weight"), &[hidden], "norm");
        }
        for (name, n, k) in
            [("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q)]
        {
            let name = format!("{layer}.self_attn.{name}");
            put(format!("{name}.weight"), &[n, k], "linear");
            if has_bias && !name.ends_with("o_proj") {
                put(format!("{name}.bias"), &[n], "bias");
            }
        }
        if let Some(count) = config["num_local_experts"].as_u64() {
            let (width, moe) = (size("intermediate_size"), format!("{layer}.block_sparse_moe"));
            put(format!("{moe}.gate.weight"), &[count as usize, hidden], "router");
            for expert in 0..count {
                for (part, n, k) in [("w1", width, hidden), ("w3", width, hidden), ("w2", hidden, width)] {
                    put(format!("{moe}.experts.{expert}.{part}.weight"), &[n, k], "linear");
                }
            }
            continue;
        }
        let mut mlp = |name: &str, width: usize| {
            for (part, n, k) in
                [("gate_proj", width, hidden), ("up_proj", width, hidden), ("down_proj", hidden, width)]
            {
                put(format!("{layer}.{name}.{part}.weight"), &[n, k], "linear");
            }
        };
        let only_dense =
            config["mlp_only_layers"].as_array().is_some_and(|list| list.contains(&index.into()));
        let is_dense = |step: u64| only_dense || !(index as u64 + 1).is_multiple_of(step);
        if config["num_experts"].is_null() || config["decoder_sparse_step"].as_u64().is_none_or(is_dense) {
            mlp("mlp", size("intermediate_size"));
            continue;
        }
        for expert in 0..size("num_experts") {
            mlp(&format!("mlp.experts.{expert}"), size("moe_intermediate_size"));
        }
        mlp("mlp.shared_expert", size("shared_expert_intermediate_size"));
        put(format!("{layer}.mlp.gate.weight"), &[size("num_experts"), hidden], "router");
        put(format!("{layer}.mlp.shared_expert_gate.weight"), &[1, hidden], "router");
    }
    all
}

/// In bf16, which holds each of them.
pub fn values(name: &str, count: usize, kind: &str) -> Vec<u8> {
    let value = |word: u32| {
        let steps = (word >> 24) as i32 - 128;
        let value = match kind {
            "norm" => 1.0 + (steps >> 2) as f32 / 64.0,
            "embed" => steps as f32 / 4096.0,
            "linear" => steps as f32 / 512.0,
            "sink" => steps as f32 / 32.0,
            _ => steps as f32 / 256.0,
        };
        ((value.to_bits() >> 16) as u16).to_le_bytes()
    };
    words(name, count).flat_map(value).collect()
}
