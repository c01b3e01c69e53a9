//! What adapters cost: steps of a decoder of Moonlight's widths with fewer layers, on random weights, with and without adapters of every module that
//! may have one, without and with single experts.
//!
//! `cargo bench -p models --bench adapters`. On one thread, by the processor time that the thread got: fair on a shared machine.

#[path = "../../kernels/benches/ops/clock.rs"]
mod clock;

use clock::{best_time, thread_clock};
use models::lora::Adapter;
use models::{LoadFormat, LoadOptions, Loaded, MemoryLimit, ModelFiles};
use safetensors::tensor::{Dtype, TensorView, serialize};
use scheduler::{AdapterId, Batch, BatchItem, BlockId, ModelRunner, Sample, SamplingParams, SequenceId};
use std::hint::black_box;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

/// One dense and one with experts.
const NUM_LAYERS: usize = 2;
const BLOCK_SIZE: usize = 16;
const CONTEXT: usize = 128;
const PROMPT: usize = 256;
const RANKS: [usize; 2] = [16, 64];

const CONFIG: &str = r#"{"architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 4096, "hidden_size": 2048,
    "intermediate_size": 11264, "moe_intermediate_size": 1408, "num_hidden_layers": 2, "num_attention_heads": 16,
    "kv_lora_rank": 512, "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1, "routed_scaling_factor": 2.446, "rms_norm_eps": 1e-5, "rope_theta": 50000.0,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "num_nextn_predict_layers": 0}"#;

/// Modules of a layer, `[n, k]`, with its experts or without.
fn modules(layer: usize, with_experts: bool) -> Vec<(String, usize, usize)> {
    let attention = [
        ("self_attn.q_proj", 3072, 2048),
        ("self_attn.kv_a_proj_with_mqa", 576, 2048),
        ("self_attn.kv_b_proj", 4096, 512),
        ("self_attn.o_proj", 2048, 2048),
    ];
    let (mlp, width) = if layer == 0 { ("mlp", 11264) } else { ("mlp.shared_experts", 2816) };
    let mut modules: Vec<_> = attention.map(|(name, n, k)| (name.to_string(), n, k)).to_vec();
    for (name, n, k) in [("gate_proj", width, 2048), ("up_proj", width, 2048), ("down_proj", 2048, width)] {
        modules.push((format!("{mlp}.{name}"), n, k));
    }
    let experts = if with_experts && layer > 0 { 0..64 } else { 0..0 };
    for expert in experts {
        for (name, n, k) in [("gate_proj", 1408, 2048), ("up_proj", 1408, 2048), ("down_proj", 2048, 1408)] {
            modules.push((format!("mlp.experts.{expert}.{name}"), n, k));
        }
    }
    modules
}

/// In bf16, of numbers that do not matter.
fn write_adapter(folder: &Path, rank: usize, with_experts: bool) {
    std::fs::create_dir_all(folder).unwrap();
    let config = format!(r#"{{"peft_type": "LORA", "r": {rank}, "lora_alpha": {rank}}}"#);
    std::fs::write(folder.join("adapter_config.json"), config).unwrap();
    let mut tensors = Vec::new();
    for layer in 0..NUM_LAYERS {
        for (name, n, k) in modules(layer, with_experts) {
            for (half, shape) in [("A", [rank, k]), ("B", [n, rank])] {
                let name = format!("base_model.model.model.layers.{layer}.{name}.lora_{half}.weight");
                // 2⁻⁷ and 2⁻⁸, with either sign.
                let data: Vec<u8> = (0..shape[0] * shape[1])
                    .flat_map(|i| {
                        (0x3b80u16 + 0x80 * (i % 3 / 2) as u16 + 0x8000 * (i * 7 % 2) as u16).to_le_bytes()
                    })
                    .collect();
                tensors.push((name, shape, data));
            }
        }
    }
    let views = tensors.iter().map(|(name, shape, data)| {
        (name.as_str(), TensorView::new(Dtype::BF16, shape.to_vec(), data).unwrap())
    });
    std::fs::write(folder.join("adapter_model.safetensors"), serialize(views, None).unwrap()).unwrap();
}

/// Tokens `from..to` of sequences, each with its adapter.
fn batch(from: usize, to: usize, adapters: &[Option<AdapterId>]) -> Batch {
    let blocks = (CONTEXT + 1).max(PROMPT).div_ceil(BLOCK_SIZE) as u32;
    let item = |(number, &adapter): (usize, &Option<AdapterId>)| {
        let first = number as u32 * blocks;
        let sample = Sample::new(Arc::new(SamplingParams { temperature: 0.0, ..Default::default() }), to, 0);
        BatchItem {
            prompt_len: to,
            adapter,
            sample: Some(sample),
            ..BatchItem::new(
                SequenceId(number as u64),
                (from..to).map(|i| (i * 7919 % 4096) as u32).collect(),
                from,
                (first..first + to.div_ceil(BLOCK_SIZE) as u32).map(BlockId).collect(),
            )
        }
    };
    Batch { items: adapters.iter().enumerate().map(item).collect(), ..Batch::default() }
}

fn main() {
    let options = LoadOptions {
        load_format: LoadFormat::Dummy,
        max_model_len: Some(512),
        max_num_seqs: 8,
        max_num_batched_tokens: 512,
        block_size: BLOCK_SIZE,
        memory: MemoryLimit::Bytes(6 << 30),
        threads: Some(1),
        seed: 1,
        max_loras: 4,
        max_lora_rank: RANKS[1],
        lora_experts: true,
        ..LoadOptions::default()
    };
    let files = ModelFiles::Embedded(vec![("config.json", CONFIG.as_bytes())].leak());
    let loaded = models::load(&files, &options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    let Loaded { mut runner, adapters: spec, plan, .. } = loaded;
    let spec = spec.expect("there is room for adapters");
    println!("\n{NUM_LAYERS} layers of Moonlight's widths in bfloat16, one thread, by processor time");
    println!("planned for 4 adapters of rank {}: {} bytes", RANKS[1], plan.memory.adapters);
    println!("| rank | experts | step | ms without | ms with | more |");
    println!("|---|---|---|---|---|---|");
    let kinds = [false, true].into_iter().flat_map(|with_experts| RANKS.map(|rank| (rank, with_experts)));
    for (number, (rank, with_experts)) in (1..).step_by(2).zip(kinds) {
        let folder = std::env::temp_dir().join(format!("perilune-bench-adapters-{}", std::process::id()));
        write_adapter(&folder, rank, with_experts);
        let [first, second] = [number, number + 1].map(|id| AdapterId(NonZeroU64::new(id).unwrap()));
        for id in [first, second] {
            let adapter = Adapter::read(&folder, &spec).unwrap_or_else(|error| panic!("{error}"));
            let (bytes, before) = (adapter.bytes(), thread_clock());
            runner.add_adapter(id, adapter).unwrap_or_else(|error| panic!("{error}"));
            println!("added: {bytes} bytes, {:.1} ms", 1e3 * (thread_clock() - before));
        }
        std::fs::remove_dir_all(&folder).expect("the folder is there");
        let decode = |adapters: &[Option<AdapterId>]| batch(CONTEXT, CONTEXT + 1, adapters);
        for (step, without, with) in [
            ("decode of 1", decode(&[None]), decode(&[Some(first)])),
            ("decode of 8, one with an adapter", decode(&[None; 8]), {
                let mut all = [None; 8];
                all[3] = Some(first);
                decode(&all)
            }),
            ("decode of 8, four with one, four with another", decode(&[None; 8]), {
                let mut all = [Some(first); 8];
                all[4..].fill(Some(second));
                decode(&all)
            }),
            ("prompt of 256", batch(0, PROMPT, &[None]), batch(0, PROMPT, &[Some(first)])),
        ] {
            let mut times = [f64::MAX; 2];
            // In turns, as neighbours come and go.
            for _ in 0..3 {
                for (time, batch) in times.iter_mut().zip([&without, &with]) {
                    let run = &mut || {
                        black_box(runner.execute(batch).expect("the processor does not fail"));
                    };
                    *time = time.min(best_time(thread_clock, run));
                }
            }
            let [without, with] = times.map(|seconds| 1e3 * seconds);
            let more = 100.0 * (with / without - 1.0);
            let experts = if with_experts { "yes" } else { "no" };
            println!("| {rank} | {experts} | {step} | {without:.2} | {with:.2} | {more:.0} % |");
        }
        for id in [first, second] {
            runner.remove_adapter(id);
        }
    }
}
