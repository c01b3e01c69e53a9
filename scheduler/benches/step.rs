//! What a step costs beside the model: `cargo bench -p scheduler`. Plain clocks and medians, because the crate depends on nothing.

use scheduler::*;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

const BLOCK_SIZE: usize = 16;

/// Answers at once.
struct Instantly;

impl ModelRunner for Instantly {
    type Error = std::convert::Infallible;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Self::Error> {
        let sampled = || Sampled::Token(SampledToken { token: 7, logprob: None, top: Vec::new() });
        let sampled = (0..batch.num_samples()).map(|_| sampled()).collect();
        Ok(StepOutput { sampled, ..StepOutput::default() })
    }
}

fn engine(max_running: usize) -> Engine<Instantly> {
    let config = SchedulerConfig {
        block_size: BLOCK_SIZE,
        num_blocks: 40_000,
        num_host_blocks: 0,
        max_model_len: 131_072,
        max_batched_tokens: 8192,
        max_running,
        max_waiting: 20_000,
        image_rows_per_block: 64,
        num_image_blocks: 0,
        max_encode_patches: 0,
        encode_ahead: false,
        async_scheduling: false,
        enable_prefix_caching: true,
        share_decoded_below: usize::MAX,
    };
    Engine::new(config, Instantly)
}

fn sequence(id: u64, prompt_len: usize, first: TokenId, max_tokens: usize) -> Sequence {
    let params = Arc::new(SamplingParams { max_tokens, ..SamplingParams::default() });
    let mut prompt: Vec<TokenId> = (0..prompt_len as TokenId).collect();
    prompt[0] = first;
    Sequence::new(SequenceId(id), prompt, Vec::new(), params, 1 << 20).expect("a valid prompt")
}

fn step(engine: &mut Engine<Instantly>) -> Step {
    let Ok(step) = engine.step();
    step
}

/// Median of the times of `num` calls, in microseconds.
fn median_us(num: usize, mut call: impl FnMut()) -> f64 {
    let mut times: Vec<_> = (0..num)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[num / 2].as_nanos() as f64 / 1000.0
}

fn decode(num_running: usize, context: usize) {
    let mut engine = engine(num_running);
    for id in 0..num_running as u64 {
        engine.add(sequence(id, context, id as TokenId, 10_000)).expect("fits");
    }
    while engine.occupancy().waiting > 0 || step(&mut engine).stats.prefill_tokens > 0 {
        step(&mut engine);
    }
    let us = median_us(500, || drop(black_box(step(&mut engine))));
    let ns = us * 1000.0 / num_running as f64;
    println!("decode, {num_running} running, {context} tokens each: {us:.1} us a step, {ns:.0} ns a token");
}

fn long_hit(len: usize) {
    let mut engine = engine(8);
    engine.add(sequence(0, len, 0, 1)).expect("fits");
    while !engine.is_idle() {
        step(&mut engine);
    }
    let mut id = 0;
    let us = median_us(50, || {
        id += 1;
        engine.add(sequence(id, len, 0, 1)).expect("fits");
        assert!(step(&mut engine).stats.prefix_hits >= len - BLOCK_SIZE);
    });
    println!("prompt of {len} found in memory: {us:.0} us from add to its token");
}

fn pool(num_tokens: TokenId) {
    let tokens: Vec<_> = (0..num_tokens).collect();
    let mut chain = ContentChain::new(Digest::default(), None);
    let hash_us = median_us(50, || {
        chain = ContentChain::new(Digest::default(), None);
        chain.extend(&tokens, &[], BLOCK_SIZE);
    });
    let num_blocks = chain.digests().len();
    let mut pool = BlockPool::new(2 * num_blocks, BLOCK_SIZE);
    let mut table = BlockTable::default();
    assert!(pool.grow(&mut table, tokens.len()));
    pool.publish(table.blocks(), chain.digests());
    pool.release(table);
    let share_us = median_us(50, || {
        let table = pool.share_prefix(chain.digests());
        pool.release(table);
    });
    let ns = |us: f64| us * 1000.0 / num_blocks as f64;
    println!("a block: {:.0} ns to hash, {:.0} ns to find, take and give back", ns(hash_us), ns(share_us));
}

fn blocked_head(len: usize) {
    let mut engine = engine(256);
    engine.add(sequence(0, len, 0, 1)).expect("fits");
    while !engine.is_idle() {
        step(&mut engine);
    }
    // These leave too few blocks for the tail of the next one.
    for id in 1..6 {
        engine.add(sequence(id, 120_000, id as TokenId, 3000)).expect("fits");
    }
    while step(&mut engine).stats.prefill_tokens > 0 {}
    engine.add(sequence(6, len + 60_000, 0, 1)).expect("fits");
    for id in 7..10_000 {
        engine.add(sequence(id, 20, id as TokenId, 1)).expect("fits");
    }
    let us = median_us(300, || drop(black_box(step(&mut engine))));
    assert_eq!(engine.occupancy().waiting, 9994);
    println!(
        "5 decodes, 9994 waiting behind a prompt of {} that finds no blocks: {us:.1} us a step",
        len + 60_000
    );
}

fn main() {
    decode(1, 1000);
    decode(256, 1000);
    decode(32, 16_000);
    pool(65_536);
    long_hit(65_536);
    blocked_head(32_768);
}
