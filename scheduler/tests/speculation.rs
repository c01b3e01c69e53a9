//! Guesses that are verified: what they may cost others, what they must not change, and what is left of wrong ones. The model says
//! 1, 2, 3, …, so a prompt that holds the same numbers is a text to copy from.

mod common;

use common::*;
use scheduler::*;

const ONE_TOKEN: NgramConfig =
    NgramConfig { num_speculative_tokens: 4, prompt_lookup_max: 3, prompt_lookup_min: 1 };

fn speculating(sequence: Sequence) -> Sequence {
    sequence.speculating(ONE_TOKEN).unwrap()
}

fn said(events: &[Event], sequence: u64) -> Vec<TokenId> {
    let said = events.iter().filter_map(|event| match event {
        Event::Token { id, token } if id.0 == sequence => Some(token.token),
        _ => None,
    });
    said.collect()
}

/// Of all steps, those that drafted.
fn drafts(engine: &Engine<Counter>) -> Vec<Vec<TokenId>> {
    engine.runner().drafts.iter().filter(|drafts| !drafts.is_empty()).cloned().collect()
}

#[test]
fn a_copy_comes_several_tokens_at_a_time() {
    let mut engine = engine(config());
    engine.add(speculating(sequence(1, (0..12).collect(), 14))).unwrap();
    let mut stats = Vec::new();
    let mut events = Vec::new();
    while !engine.is_idle() {
        let step = step(&mut engine);
        stats.push(step.stats);
        events.extend(step.events);
    }
    assert_eq!(said(&events, 1), (1..15).collect::<Vec<_>>());
    assert_eq!(finished(&events), [(1, FinishReason::Length, 0)]);
    // After 11 the prompt has nothing but the answer's first token, which is a wrong guess; after that nothing is known.
    let expected: [&[TokenId]; 3] = [&[2, 3, 4, 5], &[7, 8, 9, 10], &[1, 2]];
    assert_eq!(drafts(&engine), expected);
    assert_eq!(engine.runner().steps.concat()[..4], [(1, 0, 12), (1, 12, 17), (1, 17, 22), (1, 22, 25)]);
    let verdicts: Vec<_> =
        stats.iter().flat_map(|stats| &stats.drafts).map(|d| (d.num_drafted, d.num_accepted)).collect();
    assert_eq!(verdicts, [(4, 4), (4, 4), (2, 0)]);
    for stats in &stats {
        let rows: usize = stats.shares.iter().map(|share| share.num_tokens).sum();
        assert_eq!(rows, stats.prefill_tokens + stats.decode_tokens + stats.draft_tokens);
        assert_eq!(stats.draft_tokens, stats.drafts.iter().map(|draft| draft.num_drafted).sum::<usize>());
    }
    let useful: usize = stats.iter().map(StepStats::num_useful_tokens).sum();
    assert_eq!(useful, 12 + 13, "the prompt, and each token but the last once");
}

#[test]
fn nobody_drafts_unasked_or_under_a_constraint() {
    #[derive(Debug, Clone)]
    struct Anything;
    impl Constraint for Anything {
        fn next_mask(&mut self) -> Option<std::sync::Arc<dyn TokenMask>> {
            None
        }
        fn accept(&mut self, _: TokenId) -> Accepted {
            Accepted::Open
        }
        fn boxed_clone(&self) -> Box<dyn Constraint> {
            Box::new(self.clone())
        }
    }
    let mut engine = engine(config());
    engine.add(sequence(1, (0..12).collect(), 12)).unwrap();
    let mut constrained = speculating(sequence(2, (0..12).collect(), 12));
    constrained.constraint = Some(Box::new(Anything));
    engine.add(constrained).unwrap();
    let events = run(&mut engine);
    assert_eq!(finished(&events).len(), 2);
    assert_eq!(drafts(&engine), Vec::<Vec<TokenId>>::new());
}

#[test]
fn an_answer_ends_where_it_would_alone() {
    // The text goes on behind the end: tokens that end an answer and what follows them are not guessed.
    for (max_tokens, stop, expected) in [
        (7, vec![], (7, FinishReason::Length)),
        (2, vec![], (2, FinishReason::Length)),
        (1, vec![], (1, FinishReason::Length)),
        (12, vec![5], (5, FinishReason::Stop)),
        (12, vec![6], (6, FinishReason::Stop)),
        (12, vec![2], (2, FinishReason::Stop)),
    ] {
        let mut engine = engine(config());
        let params = SamplingParams { stop_token_ids: stop.clone(), ..params(max_tokens) };
        engine.add(speculating(sequence_with(1, (0..12).collect(), Vec::new(), params))).unwrap();
        let events = run(&mut engine);
        let (num_said, reason) = expected;
        assert_eq!(said(&events, 1), (1..=num_said).collect::<Vec<_>>(), "{max_tokens} {stop:?}");
        assert_eq!(finished(&events), [(1, reason, 0)], "{max_tokens} {stop:?}");
        for drafts in drafts(&engine) {
            assert!(drafts.iter().all(|&token| token < num_said), "{drafts:?} for {num_said}");
        }
        assert_eq!(engine.occupancy().blocks_used, 0);
    }
}

#[test]
fn a_failure_inside_a_draft_comes_after_the_tokens_before_it() {
    for (failure, cached) in [(Failure::NonFiniteLogits, 0), (Failure::NothingToSample, 12)] {
        let mut engine = engine(config());
        engine.runner_mut().fail = Some((1, 4, failure));
        engine.add(speculating(sequence(1, (0..12).collect(), 12))).unwrap();
        let events = run(&mut engine);
        assert_eq!(said(&events, 1), [1, 2, 3, 4]);
        assert_eq!(finished(&events), [(1, FinishReason::Failed(failure), 0)]);
        assert_eq!(engine.runner().steps.len(), 2, "in the step of the first draft");
        // Rows before the failure are as good as if each had had a step: 12 of the prompt, 1, 2 and 3.
        engine.runner_mut().fail = None;
        let follow_up = (0..12).chain(1..8).collect();
        engine.add(sequence(2, follow_up, 1)).unwrap();
        assert_eq!(cached_tokens(&run(&mut engine), 2), cached);
    }
}

#[test]
fn guesses_get_what_others_leave_of_a_step() {
    let mut engine = engine(config());
    engine.add(speculating(sequence(1, (0..12).collect(), 30))).unwrap();
    step(&mut engine);
    // 16 tokens a step: one is for the answer and 13 are the new prompt.
    engine.add(sequence(2, (100..113).collect(), 5)).unwrap();
    step(&mut engine);
    assert_eq!(engine.runner().steps[1], [(1, 12, 15), (2, 0, 13)]);
    engine.add(sequence(3, (200..240).collect(), 5)).unwrap();
    step(&mut engine);
    assert_eq!(engine.runner().steps[2], [(1, 15, 16), (2, 13, 14), (3, 0, 14)]);
}

#[test]
fn nobody_is_preempted_for_a_guess() {
    let day = |speculates: bool| {
        let mut engine = engine(SchedulerConfig { num_blocks: 12, ..config() });
        for id in 1..4 {
            let mut sequence = sequence(id, (0..12).collect(), 24);
            sequence.salt = Digest([id as u8; 32]);
            engine.add(if speculates { speculating(sequence) } else { sequence }).unwrap();
        }
        let (mut events, mut drafted_in_full) = (Vec::new(), 0);
        while !engine.is_idle() {
            let before = engine.occupancy();
            let step = step(&mut engine);
            let needed = step.stats.preempted.len();
            assert!(needed == 0 || before.blocks_used > 0);
            drafted_in_full += step.stats.draft_tokens;
            events.extend(step.events);
        }
        let preemptions: usize = finished(&events).iter().map(|&(_, _, preemptions)| preemptions).sum();
        for id in 1..4 {
            assert_eq!(said(&events, id), (1..25).collect::<Vec<_>>());
        }
        (preemptions, drafted_in_full)
    };
    let ((without, none), (with, some)) = (day(false), day(true));
    assert!(without > 0, "memory is short");
    assert_eq!(none, 0);
    assert!(some > 10);
    assert!(with <= without, "{with} preemptions with drafts, {without} without");
}

#[test]
fn a_guess_makes_do_with_the_blocks_that_are_left() {
    // Five blocks of four: four for the copy, one for the other, none for a guess.
    let mut engine = engine(SchedulerConfig { num_blocks: 5, ..config() });
    engine.add(speculating(sequence(1, (0..12).collect(), 8))).unwrap();
    engine.add(sequence(2, vec![100, 101, 102], 5)).unwrap();
    step(&mut engine);
    let second = step(&mut engine);
    assert_eq!(engine.runner().steps[1], [(1, 12, 16), (2, 3, 4)]);
    assert!(second.stats.preempted.is_empty());
    assert_eq!(said(&second.events, 1), [2, 3, 4, 5]);
    assert_eq!(said(&run(&mut engine), 1), [6, 7, 8]);
}

#[test]
fn whoever_leaves_while_its_guesses_are_verified_leaves_nothing() {
    let mut engine = engine(config());
    engine.add(speculating(sequence(1, (0..12).collect(), 30))).unwrap();
    engine.add(speculating(sequence(2, (0..12).collect(), 30))).unwrap();
    step(&mut engine);
    engine.begin();
    engine.scheduler().check();
    assert!(engine.abort(SequenceId(1)));
    engine.scheduler().check();
    let Ok(step) = engine.finish();
    engine.scheduler().check();
    assert!(step.stats.drafts.iter().all(|draft| draft.id == SequenceId(2)));
    assert!(engine.abort(SequenceId(2)));
    assert_eq!(engine.occupancy().blocks_used, 0);
}

#[test]
fn penalties_see_the_guesses_before_a_row_and_no_others() {
    let mut engine = engine(config());
    let params = SamplingParams { presence_penalty: 0.5, ..params(9) };
    engine.add(speculating(sequence_with(1, (0..12).collect(), Vec::new(), params))).unwrap();
    run(&mut engine);
    assert!(drafts(&engine).len() > 1);
    for (num_said, history) in engine.runner().histories.iter().enumerate() {
        let history = history.as_ref().expect("every row has its history");
        assert_eq!(history[12..], (1..=num_said as TokenId).collect::<Vec<_>>());
    }
}

#[test]
fn a_configuration_is_checked() {
    let wrong = NgramConfig { num_speculative_tokens: 0, ..NgramConfig::default() };
    let error = sequence(1, vec![1], 1).speculating(wrong).unwrap_err();
    assert_eq!(error.param, "num_speculative_tokens");
}
