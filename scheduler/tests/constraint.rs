//! What a sequence with a constraint goes through: one mask before each token, each token taken in once, and its own end.

mod common;

use common::*;
use scheduler::*;
use std::sync::{Arc, Mutex};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Call {
    Mask,
    Accept(TokenId),
}

/// Allows anything, notes what it is asked, and ends with `last` as told.
#[derive(Debug, Clone)]
struct Noting {
    calls: Arc<Mutex<Vec<Call>>>,
    last: TokenId,
    end: Accepted,
}

#[derive(Debug)]
struct Any;

impl TokenMask for Any {
    fn allowed(&self) -> Option<&[u32]> {
        Some(&[u32::MAX])
    }
}

impl Constraint for Noting {
    fn next_mask(&mut self) -> Option<Arc<dyn TokenMask>> {
        self.calls.lock().unwrap().push(Call::Mask);
        Some(Arc::new(Any))
    }

    fn accept(&mut self, token: TokenId) -> Accepted {
        self.calls.lock().unwrap().push(Call::Accept(token));
        if token == self.last { self.end } else { Accepted::Open }
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// A prompt of 21 tokens, in two chunks, then tokens 1, 2, 3, …
fn constrained(
    id: u64,
    params: SamplingParams,
    last: TokenId,
    end: Accepted,
) -> (Sequence, Arc<Mutex<Vec<Call>>>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let mut sequence = sequence_with(id, (100..121).collect(), Vec::new(), params);
    sequence.constraint = Some(Box::new(Noting { calls: calls.clone(), last, end }));
    (sequence, calls)
}

fn calls_for(tokens: TokenId) -> Vec<Call> {
    (1..=tokens).flat_map(|token| [Call::Mask, Call::Accept(token)]).collect()
}

#[test]
fn a_mask_is_asked_for_before_each_token_and_each_token_is_taken_in() {
    let mut engine = engine(config());
    let (sequence, calls) = constrained(1, params(5), 0, Accepted::Open);
    engine.add(sequence).unwrap();
    assert_eq!(finished(&run(&mut engine)), [(1, FinishReason::Length, 0)]);
    assert_eq!(*calls.lock().unwrap(), calls_for(5));
}

#[test]
fn the_constraint_can_end_a_sequence() {
    let stop = |token| SamplingParams { stop_token_ids: vec![token], ..params(5) };
    for (params, end, expected) in [
        (params(5), Accepted::Complete, FinishReason::Complete),
        (params(5), Accepted::Failed, FinishReason::Failed(Failure::Constraint)),
        // A stop token is no part of the answer, whatever the constraint says of it.
        (stop(3), Accepted::Complete, FinishReason::Stop),
        (stop(3), Accepted::Failed, FinishReason::Stop),
        // Complete and at the limit is complete; what cannot go on and need not is as long as it may be.
        (params(3), Accepted::Complete, FinishReason::Complete),
        (params(3), Accepted::Failed, FinishReason::Length),
    ] {
        let mut engine = engine(config());
        let (sequence, calls) = constrained(1, params.clone(), 3, end);
        engine.add(sequence).unwrap();
        assert_eq!(finished(&run(&mut engine)), [(1, expected, 0)], "{params:?} {end:?}");
        assert_eq!(*calls.lock().unwrap(), calls_for(3));
        assert_eq!(engine.occupancy().blocks_used, 0);
    }
}

#[test]
fn a_preempted_sequence_keeps_its_state() {
    // Two sequences of 21 + 40 tokens need 32 blocks and there are 20, so the later one has to give way and to start over.
    let mut engine = engine(config());
    let (first, _) = constrained(1, params(40), 0, Accepted::Open);
    let (mut second, calls) = constrained(2, params(40), 0, Accepted::Open);
    second.salt = Digest([1; 32]);
    engine.add(first).unwrap();
    engine.add(second).unwrap();
    let ends = finished(&run(&mut engine));
    let (_, reason, preemptions) = ends[1];
    assert_eq!(reason, FinishReason::Length);
    assert!(preemptions > 0, "the test is about a preempted sequence");
    assert_eq!(*calls.lock().unwrap(), calls_for(40));
}
