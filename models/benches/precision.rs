//! What rounded activations save: a mixture of experts of the shape that tools/compare uses, on random weights, in every type of weights,
//! with activations as they are and rounded as the processor multiplies, in turns.
//!
//! `cargo bench -p models --bench precision [-- --threads=N] [--weights=NAME] [--rounded] [--screening]`. One thread, by the processor time that it got, or
//! several by the clock; of each the best of some rounds. `--weights` takes one type of weights, `--rounded` leaves float32 activations out, `--screening` adds the same with the whole head for every token.

#[path = "../../kernels/benches/ops/clock.rs"]
mod clock;

use clock::{thread_clock, wall_clock};
use models::{
    ActivationsChoice, DeviceRunner, HeadScreeningChoice, LoadFormat, LoadOptions, MemoryLimit, ModelFiles,
    QuantizationChoice,
};
use scheduler::{Batch, BatchItem, BlockId, ModelRunner, Sample, SamplingParams, SequenceId};
use std::hint::black_box;
use std::sync::Arc;

const CONFIG: &str = r#"{"architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 32768, "hidden_size": 1024,
    "intermediate_size": 4096, "moe_intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 16,
    "kv_lora_rank": 512, "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 32, "num_experts_per_tok": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1, "routed_scaling_factor": 2.446, "rms_norm_eps": 1e-5, "rope_theta": 50000.0,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "num_nextn_predict_layers": 0}"#;
const VOCAB: usize = 32_768;
const BLOCK_SIZE: usize = 16;
const CONTEXT: usize = 128;
const PROMPT: usize = 512;
const BLOCKS_EACH: usize = PROMPT / BLOCK_SIZE + 1;
const ROUNDS: usize = 4;

/// What was typed.
struct Options {
    threads: usize,
    weights: Option<String>,
    rounded: bool,
    screening: bool,
}

impl Options {
    fn read(args: impl Iterator<Item = String>) -> Self {
        let mut options = Self { threads: 1, weights: None, rounded: false, screening: false };
        for arg in args {
            match arg.split_once('=').unwrap_or((&arg, "")) {
                ("--threads", n) => options.threads = n.parse().expect("--threads is a number"),
                ("--weights", name) => options.weights = Some(name.to_string()),
                ("--rounded", _) => options.rounded = true,
                ("--screening", _) => options.screening = true,
                // Cargo passes `--bench`.
                _ => {}
            }
        }
        options
    }
}

fn load(
    quantization: QuantizationChoice,
    (activations, head_screening): (ActivationsChoice, HeadScreeningChoice),
    threads: usize,
) -> (DeviceRunner, &'static str) {
    let options = LoadOptions {
        load_format: LoadFormat::Dummy,
        quantization,
        activations,
        head_screening,
        max_model_len: Some(1024),
        max_num_seqs: 8,
        max_num_batched_tokens: PROMPT,
        block_size: BLOCK_SIZE,
        memory: MemoryLimit::Bytes(2 << 30),
        threads: Some(threads),
        seed: 1,
        ..LoadOptions::default()
    };
    let files = ModelFiles::Embedded(vec![("config.json", CONFIG.as_bytes())].leak());
    let loaded = models::load(&files, &options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    (loaded.runner, loaded.info.activations)
}

/// Tokens `from..to` of some sequences, greedy.
fn batch(sequences: usize, from: usize, to: usize) -> Batch {
    let item = |sequence: usize| BatchItem {
        prompt_len: to,
        sample: Some(Sample::new(Arc::new(SamplingParams { temperature: 0.0, ..Default::default() }), to, 0)),
        ..BatchItem::new(
            SequenceId(sequence as u64),
            (from..to).map(|i| ((i + 1000 * sequence) * 7919 % VOCAB) as u32).collect(),
            from,
            (0..to.div_ceil(BLOCK_SIZE)).map(|i| BlockId((sequence * BLOCKS_EACH + i) as u32)).collect(),
        )
    };
    Batch { items: (0..sequences).map(item).collect(), ..Batch::default() }
}

fn time(runner: &mut DeviceRunner, batch: &Batch, runs: usize, clock: fn() -> f64) -> f64 {
    let from = clock();
    for _ in 0..runs {
        black_box(runner.execute(batch).expect("the processor does not fail"));
    }
    (clock() - from) / runs as f64
}

fn main() {
    let options = Options::read(std::env::args().skip(1));
    let clock: fn() -> f64 = if options.threads == 1 { thread_clock } else { wall_clock };
    let unit = if options.threads == 1 { "CPU-ms" } else { "ms" };
    println!(
        "{} threads\n| weights | activations | job | {unit} a token |\n|---|---|---|--:|",
        options.threads
    );
    for (weights, quantization) in [
        ("bfloat16", QuantizationChoice::Auto),
        ("int8", QuantizationChoice::Int8),
        ("int4", QuantizationChoice::Int4),
    ] {
        if options.weights.as_ref().is_some_and(|wanted| wanted != weights) {
            continue;
        }
        let both = [ActivationsChoice::F32, ActivationsChoice::Auto];
        let screenings = [HeadScreeningChoice::Auto, HeadScreeningChoice::Off];
        let screenings = &screenings[..1 + usize::from(options.screening)];
        let choices = both[usize::from(options.rounded)..]
            .iter()
            .flat_map(|&activations| screenings.iter().map(move |&screening| (activations, screening)));
        let choices: Vec<_> = choices.collect();
        let mut runners: Vec<_> =
            choices.iter().map(|&choice| load(quantization, choice, options.threads)).collect();
        for (job, batch, tokens, runs) in [
            ("prefill of 512", batch(1, 0, PROMPT), PROMPT, 1),
            ("decode of 1", batch(1, CONTEXT, CONTEXT + 1), 1, 10),
            ("decode of 4", batch(4, CONTEXT, CONTEXT + 1), 4, 5),
            ("decode of 8", batch(8, CONTEXT, CONTEXT + 1), 8, 5),
        ] {
            let mut best = vec![f64::MAX; runners.len()];
            for _ in 0..ROUNDS {
                for ((runner, _), best) in runners.iter_mut().zip(&mut best) {
                    *best = best.min(time(runner, &batch, runs, clock));
                }
            }
            for (((runner, activations), (_, screening)), best) in runners.iter().zip(&choices).zip(best) {
                let each = 1e3 * best / tokens as f64;
                let counts = match screening {
                    HeadScreeningChoice::Off => " whole head |".to_string(),
                    _ => format!(" {:?} |", runner.screen_counts()),
                };
                let counts = if options.screening { counts } else { String::new() };
                println!("| {weights} | {activations} | {job} | {each:.2} |{counts}");
            }
        }
    }
}
