//! Folders of adapters and models, made up as they are needed.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use super::{fixture, scratch};
use scheduler::AdapterId;

/// What may have an adapter, by the end of its name.
pub const TARGETS: &[&str] = &[
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.q_a_proj",
    "self_attn.q_b_proj",
    "self_attn.kv_a_proj_with_mqa",
    "self_attn.kv_b_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "shared_expert.gate_proj",
    "shared_expert.up_proj",
    "shared_expert.down_proj",
    "shared_experts.gate_proj",
    "shared_experts.up_proj",
    "shared_experts.down_proj",
];

/// Where it is not the embedding.
pub const HEAD: &str = "lm_head";

/// As `TARGETS`: a star stands for the number of an expert.
pub const EXPERT_TARGETS: &[&str] = &[
    "mlp.experts.*.gate_proj",
    "mlp.experts.*.up_proj",
    "mlp.experts.*.down_proj",
    "block_sparse_moe.experts.*.w1",
    "block_sparse_moe.experts.*.w3",
    "block_sparse_moe.experts.*.w2",
];

/// Whether a module ends as a target says.
pub fn is_of(module: &str, target: &str) -> bool {
    match target.split_once('*') {
        None => module.ends_with(target),
        Some((path, name)) => {
            let number = module.split_once(path).and_then(|(_, rest)| rest.strip_suffix(name));
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        }
    }
}

/// Whether single experts of a fixture may have an adapter.
pub fn has_experts(family: &str) -> bool {
    modules(family).keys().any(|module| module.contains(".experts."))
}

pub fn id(number: u64) -> AdapterId {
    AdapterId(NonZeroU64::new(number).unwrap())
}

/// An empty folder of this name.
pub fn folder(name: &str) -> PathBuf {
    let folder = scratch().join(format!("lora-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// A tensor: type, shape and bytes.
pub type Stored = (Dtype, Vec<usize>, Vec<u8>);

pub fn floats(shape: &[usize], values: &[f32]) -> Stored {
    (Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

pub fn write(path: &Path, tensors: &BTreeMap<String, Stored>) {
    let view = |(name, (dtype, shape, data)): (&String, &'_ Stored)| {
        (name.clone(), *dtype, shape.clone(), data.clone())
    };
    let owned: Vec<_> = tensors.iter().map(view).collect();
    let views = owned.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// A fixture's tensors, of one file or of several.
fn stored(family: &str) -> BTreeMap<String, Stored> {
    let mut tensors = BTreeMap::new();
    for file in fs::read_dir(fixture(family)).unwrap().map(|file| file.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("model") || !name.ends_with(".safetensors") {
            continue;
        }
        let bytes = fs::read(&file).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            tensors.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    tensors
}

/// Names and shapes of a fixture's modules that may have an adapter.
pub fn modules(family: &str) -> BTreeMap<String, [usize; 2]> {
    let mut modules = BTreeMap::new();
    for (name, (_, shape, _)) in stored(family) {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        if module.ends_with(HEAD) {
            modules.insert(module.to_string(), shape[..].try_into().unwrap());
        }
        let is_layer = module.contains("model.layers.");
        let is_target = TARGETS.iter().chain(EXPERT_TARGETS).any(|target| is_of(module, target));
        if is_layer && is_target {
            modules.insert(module.to_string(), shape[..].try_into().unwrap());
        }
    }
    let config: Value =
        serde_json::from_slice(&fs::read(fixture(family).join("config.json")).unwrap()).unwrap();
    let text = config.get("text_config").unwrap_or(&config);
    let num_layers = text["num_hidden_layers"].as_u64().unwrap();
    // Layers that only speculate are not among those that run.
    modules.retain(|name, _| {
        let layer = name.split_once("model.layers.").map(|(_, rest)| rest.split('.').next().unwrap());
        layer.is_none_or(|layer| layer.parse::<u64>().unwrap() < num_layers)
    });
    modules
}

/// Numbers in -1 .. 1.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// An adapter of these modules: random matrices of a rank, B times a factor.
#[derive(Clone, Copy)]
pub struct Random {
    pub seed: u64,
    pub rank: usize,
    pub b: f32,
}

pub fn tensors(modules: &BTreeMap<String, [usize; 2]>, random: Random) -> BTreeMap<String, Stored> {
    let Random { seed, rank, b } = random;
    let mut tensors = BTreeMap::new();
    for (index, (name, [n, k])) in modules.iter().enumerate() {
        let seed = seed * 1000 + 2 * index as u64;
        let down: Vec<f32> = numbers(seed + 1, rank * k).iter().map(|v| v / (*k as f32).sqrt()).collect();
        let up: Vec<f32> = numbers(seed + 2, n * rank).iter().map(|v| b * v).collect();
        let name = |half: &str| format!("base_model.model.{name}.lora_{half}.weight");
        tensors.insert(name("A"), floats(&[rank, *k], &down));
        tensors.insert(name("B"), floats(&[*n, rank], &up));
    }
    tensors
}

pub fn write_adapter(folder: &Path, rank: usize, tensors: &BTreeMap<String, Stored>) {
    let config =
        json!({"peft_type": "LORA", "r": rank, "lora_alpha": 1.5 * rank as f64, "target_modules": []});
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    write(&folder.join("adapter_model.safetensors"), tensors);
}

/// A fixture whose weights are all f32, so that what is merged into them is not rounded.
pub fn in_f32(family: &str, folder: &Path) {
    for file in fs::read_dir(fixture(family)).unwrap().map(|file| file.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_string();
        if file.is_file() && !name.starts_with("model") && !name.starts_with("golden") {
            fs::copy(&file, folder.join(name)).unwrap();
        }
    }
    let widen = |dtype: Dtype, data: &[u8]| -> Vec<u8> {
        let bf16 = |bytes: &[u8; 2]| (u32::from(u16::from_le_bytes(*bytes)) << 16).to_le_bytes();
        match dtype {
            Dtype::F32 => data.to_vec(),
            Dtype::BF16 => data.as_chunks::<2>().0.iter().flat_map(bf16).collect(),
            other => panic!("a fixture in {other:?}"),
        }
    };
    let tensors = stored(family).into_iter();
    let tensors = tensors
        .map(|(name, (dtype, shape, data))| (name, (Dtype::F32, shape, widen(dtype, &data))))
        .collect();
    write(&folder.join("model.safetensors"), &tensors);
}
