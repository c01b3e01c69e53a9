//! What a sequence wants of its prompt: every row that is wanted is told once and in order, and nothing else changes.

mod common;

use common::*;
use scheduler::*;

const LEN: usize = 21;
const ALL: PromptOutput = PromptOutput::Logprobs { first: 1, top: 3 };
const LAST: PromptOutput = PromptOutput::Pooled(Pooling::Last);
const MEAN: PromptOutput = PromptOutput::Pooled(Pooling::Mean);

fn prompt() -> Vec<TokenId> {
    (100..100 + LEN as TokenId).collect()
}

fn wanting(id: u64, output: PromptOutput, max_tokens: usize) -> Sequence {
    sequence(id, prompt(), max_tokens).wanting(output).unwrap()
}

/// Tokens and log-probabilities told of a sequence's prompt.
fn logprobs(events: &[Event], sequence: u64) -> Vec<(TokenId, f32)> {
    let told = events.iter().filter_map(|event| match event {
        Event::PromptLogprobs { id, logprobs } if id.0 == sequence => Some(logprobs),
        _ => None,
    });
    told.flatten().map(|logprob| (logprob.token, logprob.logprob)).collect()
}

fn pooled(events: &[Event], sequence: u64) -> Vec<PooledSum> {
    let told = events.iter().filter_map(|event| match event {
        Event::Pooled { id, pooled } if id.0 == sequence => Some(pooled.clone()),
        _ => None,
    });
    told.collect()
}

fn expected_logprobs(first: usize) -> Vec<(TokenId, f32)> {
    (first..LEN).map(|position| (prompt()[position], -(position as f32 - 1.0))).collect()
}

fn alone(output: PromptOutput) -> Vec<PooledSum> {
    let mut engine = engine(SchedulerConfig { max_batched_tokens: 64, ..config() });
    engine.add(wanting(1, output, 0)).unwrap();
    pooled(&run(&mut engine), 1)
}

#[test]
fn in_chunks_of_any_size() {
    for max_batched_tokens in [1, 2, 3, 7, 16, 64] {
        for max_tokens in [0, 1, 5] {
            let config = SchedulerConfig { max_batched_tokens, max_running: 1, ..config() };
            let run_wanting = |output| {
                let mut engine = engine(config);
                engine.add(wanting(1, output, max_tokens)).unwrap();
                run(&mut engine)
            };
            for first in [1, 2, 9, LEN - 1, LEN] {
                let events = run_wanting(PromptOutput::Logprobs { first, top: 3 });
                assert_eq!(logprobs(&events, 1), expected_logprobs(first), "{max_batched_tokens} {first}");
            }
            assert_eq!(pooled(&run_wanting(MEAN), 1), alone(MEAN));
            let last = run_wanting(LAST);
            assert_eq!(pooled(&last, 1), [PooledSum { sum: RowSum(vec![3.0 + 20.0]), num_rows: 1 }]);
            assert_eq!(finished(&last), [(1, FinishReason::Length, 0)]);
        }
    }
    assert_eq!(alone(MEAN)[0].num_rows, LEN);
}

#[test]
fn without_an_answer_it_ends_with_its_prompt() {
    let mut engine = engine(config());
    engine.add(sequence(1, prompt(), 0)).unwrap();
    engine.add(sequence(2, vec![7], 0)).unwrap();
    let events = run(&mut engine);
    assert_eq!(finished(&events), [(2, FinishReason::Length, 0), (1, FinishReason::Length, 0)]);
    assert!(!events.iter().any(|event| matches!(event, Event::Token { .. })), "nothing is sampled");
    assert_eq!(engine.occupancy().blocks_used, 0);
    // Its blocks are there for others.
    engine.add(sequence(3, prompt(), 1)).unwrap();
    assert_eq!(cached_tokens(&run(&mut engine), 3), 20);
}

#[test]
fn only_rows_that_are_told_are_computed_again() {
    for (output, expected) in [
        (ALL, 0),
        (MEAN, 0),
        (LAST, 20),
        (PromptOutput::Logprobs { first: 9, top: 0 }, 8),
        (PromptOutput::Logprobs { first: 10, top: 0 }, 8),
        (PromptOutput::Logprobs { first: 13, top: 0 }, 12),
        (PromptOutput::Logprobs { first: LEN, top: 0 }, 20),
    ] {
        let mut engine = engine(config());
        engine.add(sequence(1, prompt(), 1)).unwrap();
        run(&mut engine);
        engine.add(wanting(2, output, 1)).unwrap();
        let events = run(&mut engine);
        assert_eq!(cached_tokens(&events, 2), expected, "{output:?}");
        assert_eq!(pooled(&events, 2), alone(output));
    }
}

#[test]
fn everything_is_told_before_the_first_token() {
    let mut engine = engine(config());
    engine.add(wanting(1, ALL, 3)).unwrap();
    let events = run(&mut engine);
    let first = events.iter().position(|event| matches!(event, Event::Token { .. })).unwrap();
    assert_eq!(logprobs(&events[..first], 1), expected_logprobs(1));
    assert_eq!(logprobs(&events, 1).len(), LEN - 1, "and nothing afterwards");
}

/// A long prompt loses its blocks half-way; what was told of it is not told again, and what was not is.
#[test]
fn after_a_preemption_half_way() {
    for (output, enable_prefix_caching) in
        [(ALL, true), (ALL, false), (MEAN, true), (MEAN, false), (LAST, true)]
    {
        // The first sequence grows until nothing is left for the second, whose prompt is computed token by token.
        let config = SchedulerConfig {
            num_blocks: 14,
            max_batched_tokens: 2,
            max_running: 2,
            max_model_len: 48,
            enable_prefix_caching,
            ..config()
        };
        let mut engine = engine(config);
        engine.add(sequence(1, (1..20).collect(), 29)).unwrap();
        for _ in 0..12 {
            step(&mut engine);
        }
        engine.add(wanting(2, output, 2)).unwrap();
        let events = run(&mut engine);
        assert_eq!(finished(&events).iter().map(|end| end.0).collect::<Vec<_>>(), [1, 2]);
        let rows = &engine.runner().prompt_rows;
        let preemptions = finished(&events)[1].2;
        assert!(preemptions > 0, "the test is about a preempted sequence");
        assert!(output == LAST || rows.len() > 1, "{rows:?}");
        assert!(rows.windows(2).all(|pair| pair[0].1.end == pair[1].1.start), "{rows:?}");
        match output {
            PromptOutput::Logprobs { .. } => assert_eq!(logprobs(&events, 2), expected_logprobs(1)),
            PromptOutput::Pooled(_) => assert_eq!(pooled(&events, 2), alone(output)),
        }
    }
}

#[test]
fn a_failure_ends_the_sequence_and_its_blocks_are_not_reused() {
    let mut engine = engine(config());
    engine.runner_mut().fail_prompt = Some((1, 18));
    engine.add(wanting(1, ALL, 3)).unwrap();
    let events = run(&mut engine);
    assert_eq!(finished(&events), [(1, FinishReason::Failed(Failure::NonFiniteLogits), 0)]);
    // What the chunks before told was told.
    assert_eq!(logprobs(&events, 1), expected_logprobs(1)[..16]);
    engine.add(sequence(2, prompt(), 1)).unwrap();
    assert_eq!(cached_tokens(&run(&mut engine), 2), 0);
}

#[test]
fn a_client_that_hangs_up_is_told_nothing() {
    let mut engine = engine(config());
    engine.add(wanting(1, MEAN, 0)).unwrap();
    step(&mut engine);
    assert!(engine.abort(SequenceId(1)));
    assert!(engine.is_idle());
    assert_eq!(engine.occupancy().blocks_used, 0);
}

#[test]
fn what_is_wanted_is_checked_and_events_are_bounded() {
    let check = |first, top| sequence(1, prompt(), 1).wanting(PromptOutput::Logprobs { first, top }).is_ok();
    assert_eq!([check(1, 20), check(LEN, 0)], [true; 2]);
    assert_eq!([check(0, 0), check(LEN + 1, 0), check(1, 21)], [false; 3]);
    for (output, max_tokens) in [(ALL, 0), (ALL, 4), (MEAN, 0), (LAST, 3)] {
        let sequence = wanting(1, output, max_tokens);
        let bound = sequence.num_events_max();
        // Token by token there are as many as there can be.
        let config = SchedulerConfig { max_batched_tokens: 1, max_running: 1, ..config() };
        let mut engine = engine(config);
        engine.add(sequence).unwrap();
        let events = run(&mut engine);
        assert_eq!(events.len() - 1, bound, "{output:?}, without the start");
    }
}
