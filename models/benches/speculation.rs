//! What guessed tokens save and cost: the whole engine on random weights of Moonlight's widths, fewer layers and words, answering with
//! a text that is given, so that it is known how much of it can be guessed. The model computes every row; only what it says is replaced.
//!
//! `cargo bench -p models --bench speculation`. One thread, by the processor time that the thread got; drafts on and off take turns, and
//! the best of each counts.

#[path = "../../kernels/benches/ops/clock.rs"]
mod clock;

use clock::thread_clock;
use models::{DeviceRunner, LoadFormat, LoadOptions, Loaded, MemoryLimit, ModelFiles};
use scheduler::{
    Batch, Engine, ModelRunner, NgramConfig, Sampled, SamplingParams, SchedulerConfig, Sequence, SequenceId,
    StepOutput, TokenId,
};
use std::sync::Arc;

const VOCAB: usize = 16_384;
const PROMPT: usize = 128;
const ANSWER: usize = 97;
const NUM_ROUNDS: usize = 3;

/// Layers, of which so many from the first on are dense.
const SHAPES: [(&str, usize, usize); 2] = [("dense", 2, 2), ("with experts", 2, 1)];

fn load(num_layers: usize, num_dense: usize) -> Loaded {
    let config = format!(
        r#"{{"architectures": ["DeepseekV3ForCausalLM"], "vocab_size": {VOCAB}, "hidden_size": 2048,
        "intermediate_size": 11264, "moe_intermediate_size": 1408, "num_hidden_layers": {num_layers},
        "num_attention_heads": 16, "kv_lora_rank": 512, "q_lora_rank": null, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64, "num_experts_per_tok": 6,
        "n_shared_experts": 2, "first_k_dense_replace": {num_dense}, "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 2.446, "rms_norm_eps": 1e-5, "rope_theta": 50000.0,
        "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "num_nextn_predict_layers": 0}}"#
    );
    let options = LoadOptions {
        load_format: LoadFormat::Dummy,
        max_model_len: Some(PROMPT + ANSWER + 1),
        max_num_seqs: 1,
        max_num_batched_tokens: 512,
        memory: MemoryLimit::Bytes(8 << 30),
        threads: Some(1),
        seed: 1,
        ..LoadOptions::default()
    };
    let files = ModelFiles::Embedded(vec![("config.json", config.leak().as_bytes())].leak());
    models::load(&files, &options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
}

/// Says the text, whatever the model makes of it.
struct Saying<'a> {
    runner: &'a mut DeviceRunner,
    text: &'a [TokenId],
}

impl ModelRunner for Saying<'_> {
    type Error = kernels::Error;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, kernels::Error> {
        let mut output = self.runner.execute(batch)?;
        let rows =
            batch.items.iter().filter_map(|item| item.sample.as_ref()).flat_map(|sample| sample.rows());
        for (sampled, row) in output.sampled.iter_mut().zip(rows) {
            let Sampled::Token(token) = sampled else { panic!("random weights give numbers") };
            token.token = self.text[row.position()];
        }
        Ok(output)
    }
}

fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    }
}

/// A prompt of random tokens, and an answer that copies it but for one token in `edit_every`; 0 copies nothing.
fn text(edit_every: usize) -> Vec<TokenId> {
    let mut random = random(7);
    let mut text: Vec<TokenId> = (0..PROMPT).map(|_| random(VOCAB) as TokenId).collect();
    for i in 0..=ANSWER {
        let is_copied = edit_every > 0 && (i + 1) % edit_every != 0;
        text.push(if is_copied { text[i] } else { random(VOCAB) as TokenId });
    }
    text
}

/// Of the tokens after the first: steps, processor time, and tokens that were guessed and right.
#[derive(Clone, Copy)]
struct Run {
    seconds: f64,
    num_steps: usize,
    num_drafted: usize,
    num_accepted: usize,
}

fn answer(loaded: &mut Loaded, text: &[TokenId], speculation: Option<NgramConfig>) -> Run {
    let config = SchedulerConfig { enable_prefix_caching: false, ..loaded.scheduler_config };
    let mut engine = Engine::new(config, Saying { runner: &mut loaded.runner, text });
    // Random weights are as likely to say one thing as another: drawing costs what it costs.
    let params = SamplingParams { max_tokens: ANSWER, temperature: 0.0, ..Default::default() };
    let mut sequence =
        Sequence::new(SequenceId(1), text[..PROMPT].to_vec(), Vec::new(), Arc::new(params), VOCAB)
            .expect("a valid prompt");
    if let Some(config) = speculation {
        sequence = sequence.speculating(config).expect("a valid configuration");
    }
    engine.add(sequence).expect("it fits");
    engine.step().expect("the processor does not fail");
    let start = thread_clock();
    let mut run = Run { seconds: 0.0, num_steps: 0, num_drafted: 0, num_accepted: 0 };
    while !engine.is_idle() {
        let stats = engine.step().expect("the processor does not fail").stats;
        run.num_steps += 1;
        run.num_drafted += stats.draft_tokens;
        run.num_accepted += stats.num_accepted();
    }
    Run { seconds: thread_clock() - start, ..run }
}

fn main() {
    let texts = [("copied", text(usize::MAX)), ("one in 6 changed", text(6)), ("random", text(0))];
    println!("| model | answer | guesses | tokens a step | right of guessed | CPU ms a token | of without |");
    println!("|---|---|---|---|---|---|---|");
    for (shape, num_layers, num_dense) in SHAPES {
        let mut loaded = load(num_layers, num_dense);
        for (name, text) in &texts {
            let settings = [None, Some(NgramConfig::default())];
            let mut best: [Option<Run>; 2] = [None; 2];
            for _ in 0..NUM_ROUNDS {
                for (best, setting) in best.iter_mut().zip(settings) {
                    let run = answer(&mut loaded, text, setting);
                    *best = Some(best.filter(|best| best.seconds <= run.seconds).unwrap_or(run));
                }
            }
            let [off, on] = best.map(|run| run.expect("it ran"));
            for (setting, run) in [("off", off), ("on", on)] {
                let Run { seconds, num_steps, num_drafted, num_accepted } = run;
                let (tokens, ms) = (ANSWER - 1, 1e3 * seconds / (ANSWER - 1) as f64);
                println!(
                    "| {shape} | {name} | {setting} | {:.2} | {num_accepted} of {num_drafted} | {ms:.2} | {:.0} % |",
                    tokens as f64 / num_steps as f64,
                    100.0 * seconds / off.seconds
                );
            }
        }
    }
}
