//! Thousands of random days: the real scheduler against a model made of hashes, in virtual time, each from a seed.
//!
//! ```text
//! cargo test -p scheduler --test simulation             all seeds
//! SEED=17 cargo test -p scheduler --test simulation     that day alone, told step by step
//! SEEDS=100000 cargo test -p scheduler --test simulation     more of them
//! ```
//! The oracles, all judged from outside: memory holds what each read expects (`shadow.rs`); answers equal those of the sequence
//! run alone, each ends exactly once or was aborted, budgets, order, no starvation (`oracle.rs`); references and free blocks
//! agree (`Scheduler::check`, after every call); the same seed is the same day; totals are a line in `totals.txt`.

mod day;
mod oracle;
mod rng;
mod shadow;
mod truth;
mod workload;

use day::{Day, Report, Told, tell};
use rng::Rng;
use scheduler::SchedulerConfig;
use std::panic::catch_unwind;

const NUM_THREADS: u64 = 2;

/// Days beyond the ordinary ones that showed a bug once.
const BAD_ONCE: [u64; 1] = [5017];

fn day(seed: u64) -> Report {
    Day::new(seed, Told::No).run(num_requests(seed))
}

fn num_requests(seed: u64) -> usize {
    Rng(!seed).range(1, 30)
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

/// Runs days `first`, `first + NUM_THREADS`, … and stops at the first bad one.
fn days(first: u64, end: u64) -> Result<Report, u64> {
    let mut total = Report::default();
    for seed in (first..end).step_by(NUM_THREADS as usize) {
        total += &catch_unwind(|| day(seed)).map_err(|_| seed)?;
    }
    Ok(total)
}

fn all_days(end: u64) -> Report {
    let threads = (0..NUM_THREADS).map(|first| std::thread::spawn(move || days(first, end)));
    let results: Vec<_> = threads
        .collect::<Vec<_>>()
        .into_iter()
        .map(|thread| thread.join().expect("days are caught"))
        .collect();
    if let Some(seed) = results.iter().filter_map(|result| result.as_ref().err()).min() {
        panic!("a bad day: replay it with SEED={seed} cargo test -p scheduler --test simulation");
    }
    let mut total = Report::default();
    results.iter().flatten().for_each(|report| total += report);
    total
}

#[test]
fn thousands_of_random_days() {
    if let Some(seed) = number_from("SEED") {
        let report = Day::new(seed, Told::StepByStep).run(num_requests(seed));
        tell(&format!("{report:?}"));
        return;
    }
    for seed in BAD_ONCE {
        day(seed);
    }
    let total = all_days(number_from("SEEDS").unwrap_or(4000));
    println!("{total:?}");
    // A day on which nothing happens proves nothing.
    assert!(total.preemptions > 0 && total.cached > 0 && total.encodes > 0 && total.failed > 0);
    assert!(total.stored > 1000 && total.loaded > 200 && total.lost > 500 && total.stray > 5);
    assert!(total.told > 0 && total.deferred > 0 && total.completed > 50);
    assert!(total.ahead > total.steps / 8 && total.dropped > 500, "few steps were made ahead");
    assert!(total.accepted > 1000 && total.drafted > total.accepted + 1000, "few guesses, right and wrong");
    assert!(total.aborted > 0 && total.rejected > 0 && total.finished > 5 * total.failed);
}

/// A change of policy shows here as a change of numbers: look at them, then write them down.
#[test]
fn what_the_policy_costs() {
    let total = all_days(300);
    let Report { steps, tokens, cached, preemptions, encodes, told, finished, .. } = total;
    let Report { stored, lost, loaded, host_hits, .. } = total;
    let Report { deferred, drafted, accepted, ahead, dropped, .. } = total;
    let first_token_us = total.first_token_us / total.first_tokens as u64;
    let line = format!(
        "{steps} steps, {ahead} of them ahead with {dropped} tokens for nothing, {tokens} tokens computed, {cached} found, {host_hits} of them on the host, {stored} blocks stored there and {loaded} loaded, {lost} lost, {preemptions} preemptions, {encodes} pictures encoded, {told} prompt rows told, \
         {deferred} deferred, {accepted} of {drafted} guesses right, \
         {finished} finished, {first_token_us} us to the first token, {} ms",
        total.now_us / 1000
    );
    assert_eq!(line, include_str!("totals.txt").trim());
}

#[test]
fn a_seed_is_a_day() {
    for seed in 0..100 {
        assert_eq!(day(seed), day(seed), "seed {seed}");
    }
}

#[test]
fn ten_thousand_requests_with_aborts_leak_nothing() {
    let report = day_of_hang_ups(false);
    assert!(report.aborted > 1000 && report.preemptions > 20 && report.encodes > 1000, "a quiet day");
    let report = day_of_hang_ups(true);
    assert!(report.aborted > 1000 && report.ahead > 1000 && report.dropped > 1000, "few steps ahead");
}

fn day_of_hang_ups(async_scheduling: bool) -> Report {
    let config = SchedulerConfig {
        block_size: 4,
        num_blocks: 61,
        num_host_blocks: if async_scheduling { 50 } else { 0 },
        max_model_len: 600,
        max_batched_tokens: 50,
        max_running: 16,
        max_waiting: 200,
        image_rows_per_block: 4,
        num_image_blocks: 7,
        encode_ahead: false,
        async_scheduling,
        max_encode_patches: 40,
        enable_prefix_caching: true,
        share_decoded_below: usize::MAX,
    };
    // The day itself asserts that nothing is held at its end, and after every step that what is held has a holder.
    let report = Day::of_hang_ups(4, config).run(10_000);
    println!("{report:?}");
    assert!(report.finished + report.failed + report.aborted >= 10_000, "few were taken in");
    report
}
