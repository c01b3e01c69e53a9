//! The decoder of Moonlight's real widths with fewer layers, on random weights: decode of one sequence against the bandwidth of
//! memory, prefill against the multiply-adds that the processor can do, both measured in the same run.
//!
//! `cargo bench -p models --bench moonlight`. Each is measured twice: on one thread by the processor time that the thread got (fair
//! on a shared machine), and on all threads by the clock.

#[path = "../../kernels/benches/ops/clock.rs"]
mod clock;
#[path = "../../kernels/benches/ops/peak.rs"]
mod peak;

use clock::{best_time, thread_clock, wall_clock};
use kernels::Device;
use models::{DeviceRunner, LoadFormat, LoadOptions, Loaded, MemoryLimit, ModelFiles};
use peak::Peak;
use scheduler::{Batch, BatchItem, BlockId, ModelRunner, Sample, SamplingParams, SequenceId};
use std::hint::black_box;
use std::sync::Arc;

/// One dense and two with experts; Moonlight has 27. More layers would only make the head's share smaller.
const NUM_LAYERS: usize = 3;
const BLOCK_SIZE: usize = 16;
const MAX_LEN: usize = 1024;
const PROMPTS: [usize; 3] = [64, 256, 512];
const CONTEXTS: [usize; 2] = [64, 512];

const VOCAB: usize = 163_840;
const HIDDEN: usize = 2048;
const HEADS: usize = 16;
const NOPE: usize = 128;
const ROPE: usize = 64;
const VALUE: usize = 128;
const RANK: usize = 512;
const DENSE: usize = 11_264;
const EXPERT: usize = 1408;
const NUM_EXPERTS: usize = 64;
const TOP_K: usize = 6;
const NUM_SHARED: usize = 2;

fn config() -> String {
    format!(
        r#"{{"architectures": ["DeepseekV3ForCausalLM"], "vocab_size": {VOCAB}, "hidden_size": {HIDDEN},
        "intermediate_size": {DENSE}, "moe_intermediate_size": {EXPERT}, "num_hidden_layers": {NUM_LAYERS},
        "num_attention_heads": {HEADS}, "kv_lora_rank": {RANK}, "q_lora_rank": null, "qk_nope_head_dim": {NOPE},
        "qk_rope_head_dim": {ROPE}, "v_head_dim": {VALUE}, "n_routed_experts": {NUM_EXPERTS},
        "num_experts_per_tok": {TOP_K}, "n_shared_experts": {NUM_SHARED}, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1, "routed_scaling_factor": 2.446, "rms_norm_eps": 1e-5, "rope_theta": 50000.0,
        "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "num_nextn_predict_layers": 0}}"#
    )
}

/// Matrix weights that a token meets in the layers, without the routers.
fn active_weights() -> usize {
    let attention = HIDDEN * HEADS * (NOPE + ROPE)
        + HIDDEN * (RANK + ROPE)
        + RANK * HEADS * (NOPE + VALUE)
        + HEADS * VALUE * HIDDEN;
    let experts = 3 * HIDDEN * EXPERT * (TOP_K + NUM_SHARED);
    NUM_LAYERS * attention + 3 * HIDDEN * DENSE + (NUM_LAYERS - 1) * experts
}

fn routers() -> usize {
    (NUM_LAYERS - 1) * NUM_EXPERTS * HIDDEN
}

/// Bytes read to decode a token: weights in bf16, 12 bits each and a header for 8,192 of them where they are compact, routers in f32, the head,
/// and the cached rows before it.
fn decode_bytes(context: usize, weight_layout: &str) -> f64 {
    let weight = if weight_layout == "compact" { 193.0 / 128.0 } else { 2.0 };
    let cached = NUM_LAYERS * context * (RANK + ROPE);
    weight * (active_weights() + VOCAB * HIDDEN) as f64 + (2 * cached + 4 * routers()) as f64
}

/// Multiplications and additions of a prompt; its last row meets the head.
fn prefill_flop(len: usize) -> f64 {
    let pairs = len * (len + 1) / 2;
    let attention = NUM_LAYERS * pairs * HEADS * (RANK + ROPE + RANK);
    2.0 * (len * (active_weights() + routers()) + attention + VOCAB * HIDDEN) as f64
}

fn load(threads: usize) -> Loaded {
    let content: &'static [u8] = config().leak().as_bytes();
    let options = LoadOptions {
        load_format: LoadFormat::Dummy,
        max_model_len: Some(MAX_LEN),
        max_num_seqs: 1,
        max_num_batched_tokens: 512,
        block_size: BLOCK_SIZE,
        memory: MemoryLimit::Bytes(8 << 30),
        threads: Some(threads),
        seed: 1,
        ..LoadOptions::default()
    };
    let files = ModelFiles::Embedded(vec![("config.json", content)].leak());
    models::load(&files, &options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
}

/// Tokens `from..to` of one sequence, greedy.
fn batch(from: usize, to: usize) -> Batch {
    let sample = Sample::new(Arc::new(SamplingParams { temperature: 0.0, ..Default::default() }), to, 0);
    let item = BatchItem {
        prompt_len: to,
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

fn run(runner: &mut DeviceRunner, batch: &Batch) {
    let output = runner.execute(batch).expect("the processor does not fail");
    black_box(output);
}

fn main() {
    println!("\n{}, {NUM_LAYERS} layers of Moonlight's widths, bfloat16", peak::processor());
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let clocks = [(1, thread_clock as fn() -> f64, "processor time"), (all, wall_clock, "clock")];
    for (threads, clock, name) in clocks {
        let isa = Device::cpu(Some(1)).isa();
        let before = Peak::measure(isa, threads, clock);
        let Loaded { mut runner, info, .. } = load(threads);
        let mut rows = Vec::new();
        for len in PROMPTS {
            let batch = batch(0, len);
            let seconds = best_time(clock, &mut || run(&mut runner, &batch));
            rows.push(("prefill", len, len as f64 / seconds, prefill_flop(len) / seconds / 1e9));
        }
        for context in CONTEXTS {
            run(&mut runner, &batch(0, context));
            let batch = batch(context, context + 1);
            let seconds = best_time(clock, &mut || run(&mut runner, &batch));
            rows.push((
                "decode",
                context,
                1.0 / seconds,
                decode_bytes(context, info.weight_layout) / seconds / 1e9,
            ));
        }
        // Others may use the machine: the best of two peaks is the one to compare with.
        let after = Peak::measure(isa, threads, clock);
        let fma = before.fma_gflop_s.max(after.fma_gflop_s);
        let read = before.read_gb_s.max(after.read_gb_s);
        let layout = info.weight_layout;
        println!(
            "\n{threads} threads, by {name}, {layout} weights: peak {fma:.1} GFLOP/s of f32 FMA, {read:.1} GB/s read"
        );
        println!("| step | tokens before or in it | tokens/s | GFLOP/s or GB/s | share of peak |");
        println!("|---|---|---|---|---|");
        for (step, len, tokens, rate) in rows {
            let share = 100.0 * rate / if step == "prefill" { fma } else { read };
            println!("| {step} | {len} | {tokens:.1} | {rate:.1} | {share:.0} % |");
        }
    }
}
