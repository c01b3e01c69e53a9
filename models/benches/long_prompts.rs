//! Long prompts through latent attention in its two forms: one layer with experts of the shape that tools/compare has, and of
//! Moonlight's widths, on random weights, by the processor time of one thread.
//!
//! `cargo bench -p models --bench long_prompts [-- moe|moonlight]`. Prompts are read in chunks of 512 and of 2,048 tokens. The last lines of
//! a shape are what a short question after a long prompt costs, whose keys are cached.

#[path = "../../kernels/benches/ops/clock.rs"]
mod clock;

use clock::thread_clock;
use kernels::Device;
use models::{DeviceRunner, LoadFormat, LoadOptions, MemoryLimit, ModelFiles};
use scheduler::{Batch, BatchItem, BlockId, ModelRunner, Sample, SamplingParams, SequenceId};
use std::hint::black_box;
use std::sync::Arc;

const BLOCK_SIZE: usize = 16;
const MAX_LEN: usize = 8192 + 64;
const VOCAB: usize = 1024;
const PROMPTS: [usize; 3] = [512, 4096, 8192];
const CHUNKS: [usize; 2] = [512, 2048];
/// New tokens after a cached prompt.
const QUESTION: usize = 20;

struct Shape {
    name: &'static str,
    hidden: usize,
    expert: usize,
    num_experts: usize,
    top_k: usize,
    num_shared: usize,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "moe", hidden: 1024, expert: 512, num_experts: 32, top_k: 4, num_shared: 1 },
    Shape { name: "moonlight", hidden: 2048, expert: 1408, num_experts: 64, top_k: 6, num_shared: 2 },
];

impl Shape {
    fn config(&self) -> String {
        let Self { hidden, expert, num_experts, top_k, num_shared, .. } = self;
        format!(
            r#"{{"architectures": ["DeepseekV3ForCausalLM"], "vocab_size": {VOCAB}, "hidden_size": {hidden},
            "intermediate_size": {expert}, "moe_intermediate_size": {expert}, "num_hidden_layers": 1,
            "num_attention_heads": 16, "kv_lora_rank": 512, "q_lora_rank": null, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": {num_experts},
            "num_experts_per_tok": {top_k}, "n_shared_experts": {num_shared}, "first_k_dense_replace": 0, "n_group": 1,
            "topk_group": 1, "routed_scaling_factor": 2.446, "rms_norm_eps": 1e-5, "rope_theta": 50000.0,
            "max_position_embeddings": 16384, "torch_dtype": "bfloat16", "num_nextn_predict_layers": 0}}"#
        )
    }

    fn load(&self, mla_expand_from: Option<usize>) -> DeviceRunner {
        let content: &'static [u8] = self.config().leak().as_bytes();
        let options = LoadOptions {
            load_format: LoadFormat::Dummy,
            mla_expand_from,
            max_model_len: Some(MAX_LEN),
            max_num_seqs: 1,
            max_num_batched_tokens: CHUNKS[1],
            block_size: BLOCK_SIZE,
            memory: MemoryLimit::Bytes(8 << 30),
            threads: Some(1),
            seed: 1,
            ..LoadOptions::default()
        };
        let files = ModelFiles::Embedded(vec![("config.json", content)].leak());
        models::load(&files, &options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}")).runner
    }
}

/// Tokens `from..to` of a prompt.
fn batch(from: usize, to: usize) -> Batch {
    let sample = Sample::new(Arc::new(SamplingParams { temperature: 0.0, ..Default::default() }), to, 0);
    let item = BatchItem {
        prompt_len: MAX_LEN,
        sample: Some(sample),
        ..BatchItem::new(
            SequenceId(1),
            (from..to).map(|i| (i * 7919 % VOCAB) as u32).collect(),
            from,
            (0..to.div_ceil(BLOCK_SIZE) as u32).map(BlockId).collect(),
        )
    };
    Batch { items: vec![item], ..Batch::default() }
}

/// Processor time of a prompt's tokens `from..to` in chunks.
fn seconds(runner: &mut DeviceRunner, from: usize, to: usize, chunk: usize) -> f64 {
    let start = thread_clock();
    for from in (from..to).step_by(chunk) {
        black_box(runner.execute(&batch(from, to.min(from + chunk))).expect("the processor does not fail"));
    }
    thread_clock() - start
}

fn main() {
    // Cargo passes `--bench`.
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    println!("\n{:?}, one thread, by its processor time, one layer", Device::cpu(Some(1)));
    println!("| shape | tokens | chunks of | absorbed s | expanded s | ratio |");
    println!("|---|--:|--:|--:|--:|--:|");
    for shape in SHAPES.iter().filter(|shape| wanted.as_ref().is_none_or(|name| name == shape.name)) {
        let mut runners = [None, Some(0)].map(|from| shape.load(from));
        let mut line = |what: String, from: usize, to: usize, chunk: usize| {
            // In turns, the better of two.
            let mut best = [f64::INFINITY; 2];
            for _ in 0..2 {
                for (best, runner) in best.iter_mut().zip(&mut runners) {
                    *best = best.min(seconds(runner, from, to, chunk));
                }
            }
            let [absorbed, expanded] = best;
            let name = shape.name;
            println!(
                "| {name} | {what} | {chunk} | {absorbed:.3} | {expanded:.3} | {:.2} |",
                absorbed / expanded
            );
        };
        for len in PROMPTS {
            for chunk in CHUNKS.into_iter().filter(|&chunk| chunk == CHUNKS[0] || len > CHUNKS[0]) {
                line(len.to_string(), 0, len, chunk);
            }
        }
        for context in [1024, 4096, 8192] {
            line(format!("{QUESTION} after {context}"), context, context + QUESTION, CHUNKS[1]);
        }
    }
}
