//! Constraints that take their time to take a token in: when they are asked, and what becomes of who ends by what they say.

mod common;

use common::*;
use scheduler::*;
use std::sync::{Arc, Mutex};

/// Which of them were asked of which token, in that order.
type Asked = Arc<Mutex<Vec<(u64, TokenId)>>>;

/// Says nothing before it is asked, allows anything, and ends with `last` as told.
#[derive(Debug, Clone)]
struct Slow {
    id: u64,
    asked: Asked,
    last: TokenId,
    end: Accepted,
    token: Option<TokenId>,
    is_started: bool,
}

#[derive(Debug)]
struct Any;

impl TokenMask for Any {
    fn allowed(&self) -> Option<&[u32]> {
        Some(&[u32::MAX])
    }
}

impl Constraint for Slow {
    fn next_mask(&mut self) -> Option<Arc<dyn TokenMask>> {
        Some(Arc::new(Any))
    }

    fn accept(&mut self, _: TokenId) -> Accepted {
        panic!("the scheduler begins and finishes")
    }

    fn begin_accept(&mut self, token: TokenId) -> Option<Accepted> {
        assert_eq!(self.token.replace(token), None, "it was not asked of the token before");
        None
    }

    fn start_accept(&mut self) {
        assert!(self.token.is_some() && !self.is_started, "once for each token");
        self.is_started = true;
    }

    fn finish_accept(&mut self) -> Accepted {
        let token = self.token.take().expect("there is a token");
        // An end that is sure is asked for at once.
        let is_started = std::mem::take(&mut self.is_started);
        assert!(is_started || token == self.last, "other threads were not asked first");
        self.asked.lock().unwrap().push((self.id, token));
        if token == self.last { self.end } else { Accepted::Open }
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// Its prompt is one block and one token more; it says 1, 2, 3, …
fn held(id: u64, params: SamplingParams, last: TokenId, end: Accepted) -> (Sequence, Asked) {
    let asked = Asked::default();
    let first = 100 * id as TokenId;
    let mut sequence = sequence_with(id, (first..first + 5).collect(), Vec::new(), params);
    sequence.constraint =
        Some(Box::new(Slow { id, asked: asked.clone(), last, end, token: None, is_started: false }));
    (sequence, asked)
}

fn engine_that_works_alone() -> Engine<Counter> {
    engine_of(config(), true)
}

fn engine_of(config: SchedulerConfig, works_alone: bool) -> Engine<Counter> {
    let mut engine = engine(config);
    engine.runner_mut().works_alone = works_alone;
    engine
}

fn said(events: &[Event]) -> Vec<(u64, TokenId)> {
    let token = |event: &Event| match event {
        Event::Token { id, token } => Some((id.0, token.token)),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

#[test]
fn where_the_host_computes_nothing_runs_for_nothing() {
    let mut engine = engine(config());
    engine.add(held(1, params(9), 2, Accepted::Complete).0).unwrap();
    engine.add(sequence(2, vec![7; 5], 4)).unwrap();
    step(&mut engine);
    let last = step(&mut engine);
    assert_eq!(said(&last.events), [(1, 2), (2, 2)]);
    assert_eq!(finished(&last.events), [(1, FinishReason::Complete, 0)]);
    assert_eq!(last.stats.occupancy.running, 1, "after its end");
    let rest = run(&mut engine);
    assert_eq!(said(&rest), [(2, 3), (2, 4)]);
    assert_eq!(engine.runner().steps_of(1), [0, 1]);
}

#[test]
fn beside_a_device_who_ends_has_a_row_for_nothing_and_holds_nothing() {
    let mut engine = engine_that_works_alone();
    engine.add(held(1, params(9), 2, Accepted::Complete).0).unwrap();
    engine.add(sequence(2, vec![7; 5], 4)).unwrap();
    step(&mut engine);
    let last = step(&mut engine);
    assert_eq!((said(&last.events), finished(&last.events)), (vec![(1, 2), (2, 2)], vec![]));
    engine.begin();
    let used = engine.occupancy().blocks_used;
    assert_eq!(finished(&engine.finish_accepting()), [(1, FinishReason::Complete, 0)]);
    engine.scheduler().check();
    assert_eq!((used, engine.occupancy().blocks_used), (4, 2));
    assert_eq!(engine.finish_accepting(), [], "everybody is asked once");
    let Ok(beyond) = engine.finish();
    assert_eq!(said(&beyond.events), [(2, 3)]);
    assert_eq!((beyond.stats.decode_tokens, beyond.stats.dropped_tokens), (1, 1));
    assert_eq!(engine.runner().steps_of(1), [0, 1, 2]);
    assert_eq!(said(&run(&mut engine)), [(2, 4)]);
    assert_eq!(engine.runner().steps_of(1), [0, 1, 2]);
}

#[test]
fn nobody_is_found_in_what_ran_for_nothing() {
    let mut engine = engine_that_works_alone();
    // Its block becomes full with the token that runs for nothing.
    let (ending, _) = held(1, params(9), 3, Accepted::Complete);
    engine.add(ending).unwrap();
    engine.add(sequence(2, vec![7; 5], 9)).unwrap();
    (0..3).for_each(|_| drop(step(&mut engine)));
    let ends = step(&mut engine);
    assert_eq!(
        (finished(&ends.events), ends.stats.dropped_tokens),
        (vec![(1, FinishReason::Complete, 0)], 1)
    );
    let all: Vec<TokenId> = (100..105).chain(1..4).chain([9]).collect();
    engine.add(sequence(3, all, 1)).unwrap();
    assert_eq!(cached_tokens(&run(&mut engine), 3), 4);
}

#[test]
fn who_is_alone_is_asked_at_once() {
    let mut engine = engine_that_works_alone();
    engine.add(held(1, params(9), 2, Accepted::Complete).0).unwrap();
    step(&mut engine);
    assert_eq!(finished(&step(&mut engine).events), [(1, FinishReason::Complete, 0)]);
    assert_eq!(engine.runner().steps_of(1), [0, 1]);
    assert!(engine.is_idle());
}

#[test]
fn everybody_is_asked_once_a_token_and_the_last_first() {
    let asked = Asked::default();
    let mut engine = engine_that_works_alone();
    for id in 1..=3 {
        let (mut sequence, _) = held(id, params(9), 2, Accepted::Complete);
        let slow = Slow {
            id,
            asked: asked.clone(),
            last: 2,
            end: Accepted::Complete,
            token: None,
            is_started: false,
        };
        sequence.constraint = Some(Box::new(slow));
        engine.add(sequence).unwrap();
    }
    engine.add(sequence(4, vec![7; 1], 4)).unwrap();
    let ends = finished(&run(&mut engine));
    let complete = |id| (id, FinishReason::Complete, 0);
    assert_eq!(ends, [complete(1), complete(2), complete(3), (4, FinishReason::Length, 0)]);
    assert_eq!(*asked.lock().unwrap(), [(3, 1), (2, 1), (1, 1), (3, 2), (2, 2), (1, 2)]);
}

#[test]
fn an_end_that_is_sure_is_told_with_its_token() {
    let stop = |token| SamplingParams { stop_token_ids: vec![token], ..params(9) };
    for (params, end, expected, is_asked) in [
        (params(3), Accepted::Open, FinishReason::Length, true),
        (params(3), Accepted::Complete, FinishReason::Complete, true),
        (params(3), Accepted::Failed, FinishReason::Length, true),
        // A stop token is no part of the answer, whatever the constraint would say of it.
        (stop(3), Accepted::Failed, FinishReason::Stop, false),
    ] {
        let mut engine = engine_that_works_alone();
        let (sequence, asked) = held(1, params, 3, end);
        engine.add(sequence).unwrap();
        engine.add(common::sequence(2, vec![7; 5], 9)).unwrap();
        (0..2).for_each(|_| assert_eq!(finished(&step(&mut engine).events), []));
        assert_eq!(finished(&step(&mut engine).events), [(1, expected, 0)], "{end:?}");
        assert_eq!(asked.lock().unwrap().last(), Some(&(1, if is_asked { 3 } else { 2 })));
        run(&mut engine);
        assert_eq!(engine.runner().steps_of(1).len(), 3);
    }
}

#[test]
fn a_token_that_the_constraint_does_not_take_fails_its_sequence_alone() {
    for works_alone in [false, true] {
        let mut engine = engine_of(config(), works_alone);
        engine.add(held(1, params(9), 2, Accepted::Failed).0).unwrap();
        engine.add(sequence(2, vec![7; 5], 5)).unwrap();
        let events = run(&mut engine);
        let failed = FinishReason::Failed(Failure::Constraint);
        assert_eq!(finished(&events), [(1, failed, 0), (2, FinishReason::Length, 0)]);
        let of_failed: Vec<_> = said(&events).into_iter().filter(|(id, _)| *id == 1).collect();
        assert_eq!(of_failed, [(1, 1), (1, 2)]);
    }
}

#[test]
fn who_went_while_its_token_was_taken_in_is_not_asked() {
    let mut engine = engine_that_works_alone();
    let (sequence, asked) = held(1, params(9), 1, Accepted::Complete);
    engine.add(sequence).unwrap();
    engine.add(common::sequence(2, vec![7; 5], 3)).unwrap();
    step(&mut engine);
    engine.begin();
    assert!(engine.abort(SequenceId(1)));
    assert_eq!(engine.finish_accepting(), []);
    assert!(asked.lock().unwrap().is_empty());
    assert_eq!(finished(&run(&mut engine)), [(2, FinishReason::Length, 0)]);
    assert_eq!(engine.occupancy().blocks_used, 0);
}

#[test]
fn who_lost_its_place_meanwhile_ends_all_the_same() {
    // Two of 5 + 12 tokens need eight blocks and there are six: the second gives way, in a step that is made before it is asked.
    let ends_with = |last| {
        let config = SchedulerConfig { num_blocks: 6, max_model_len: 24, ..config() };
        let mut engine = engine_of(config, true);
        engine.add(sequence(1, vec![7; 5], 12)).unwrap();
        engine.add(held(2, params(12), last, Accepted::Complete).0).unwrap();
        engine
    };
    let mut engine = ends_with(0);
    let mut num_tokens = 0;
    while engine.occupancy().waiting == 0 || num_tokens == 0 {
        let step = step(&mut engine);
        num_tokens += said(&step.events).iter().filter(|(id, _)| *id == 2).count();
        assert!(num_tokens < 12, "the test is about a preempted sequence");
    }
    let mut engine = ends_with(num_tokens as TokenId);
    (0..num_tokens).for_each(|_| assert_eq!(finished(&step(&mut engine).events), []));
    engine.begin();
    assert_eq!((engine.occupancy().running, engine.occupancy().waiting), (1, 1));
    assert_eq!(finished(&engine.finish_accepting()), [(2, FinishReason::Complete, 1)]);
    assert_eq!((engine.occupancy().running, engine.occupancy().waiting), (1, 0));
    assert_eq!(finished(&run(&mut engine)), [(1, FinishReason::Length, 0)]);
    assert_eq!(engine.occupancy().blocks_used, 0);
}
