//! What a sequence with a constraint goes through: one mask before each token, each token taken in once, its own end, and steps that go
//! on without it while its mask is not there.

mod common;

use common::*;
use scheduler::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
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

/// A mask that is there when its gate is open. To ask for it is to wait until it is.
#[derive(Debug, Clone)]
struct Gated(Arc<Gate>);

#[derive(Debug, Default)]
struct Gate {
    is_open: AtomicBool,
    num_waits: AtomicUsize,
}

impl TokenMask for Gated {
    fn allowed(&self) -> Option<&[u32]> {
        if !self.0.is_open.swap(true, Relaxed) {
            self.0.num_waits.fetch_add(1, Relaxed);
        }
        Some(&[u32::MAX])
    }

    fn is_ready(&self) -> bool {
        self.0.is_open.load(Relaxed)
    }
}

impl Constraint for Gated {
    fn next_mask(&mut self) -> Option<Arc<dyn TokenMask>> {
        Some(Arc::new(self.clone()))
    }

    fn accept(&mut self, _: TokenId) -> Accepted {
        self.0.is_open.store(false, Relaxed);
        Accepted::Open
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// A prompt of five tokens: one block and one token more.
fn gated(id: u64, max_tokens: usize) -> (Sequence, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let first = 100 * id as TokenId;
    let mut sequence = sequence(id, (first..first + 5).collect(), max_tokens);
    sequence.constraint = Some(Box::new(Gated(gate.clone())));
    (sequence, gate)
}

/// Who said something in a step.
fn said(step: &Step) -> Vec<u64> {
    let token = |event: &Event| matches!(event, Event::Token { .. }).then_some(event.id().0);
    step.events.iter().filter_map(token).collect()
}

#[test]
fn a_late_mask_delays_nobody_else() {
    let mut engine = engine(config());
    let (held, gate) = gated(1, 3);
    engine.add(held).unwrap();
    engine.add(sequence(2, vec![7; 5], 9)).unwrap();
    for step_number in 0..4 {
        let step = step(&mut engine);
        assert_eq!(said(&step), [2]);
        let (prefill, decode) = if step_number == 0 { (9, 0) } else { (0, 1) };
        let counted = (step.stats.prefill_tokens, step.stats.decode_tokens, step.stats.deferred_tokens);
        assert_eq!(counted, (prefill, decode, 1), "step {step_number}");
    }
    gate.is_open.store(true, Relaxed);
    let after = step(&mut engine);
    assert_eq!(said(&after), [1, 2]);
    assert_eq!((after.stats.prefill_tokens, after.stats.decode_tokens), (1, 1), "the end of its prompt");
    // The last token runs again until there is a next one.
    let items = |step: &Vec<(u64, usize, usize)>| step.iter().find(|item| item.0 == 1).copied();
    let of_held: Vec<_> = engine.runner().steps.iter().filter_map(items).collect();
    assert_eq!(of_held, [(1, 0, 5), (1, 4, 5), (1, 4, 5), (1, 4, 5), (1, 4, 5)]);
    // From here on it is late until it is alone.
    let events = run(&mut engine);
    assert_eq!(finished(&events), [(2, FinishReason::Length, 0), (1, FinishReason::Length, 0)]);
    assert_eq!(engine.occupancy().blocks_used, 0);
}

#[test]
fn nobody_is_deferred_for_ever() {
    let mut engine = engine(config());
    let (held, gate) = gated(1, 2);
    engine.add(held).unwrap();
    engine.add(sequence(2, vec![7; 5], 40)).unwrap();
    for _ in 0..2 {
        for _ in 0..MAX_DEFERRALS {
            assert_eq!(said(&step(&mut engine)), [2]);
        }
        assert_eq!(said(&step(&mut engine)), [1, 2]);
    }
    assert_eq!(gate.num_waits.load(Relaxed), 2);
}

#[test]
fn a_mask_is_waited_for_where_nobody_would_go_on() {
    let mut engine = engine(config());
    let (first, first_gate) = gated(1, 3);
    let (second, second_gate) = gated(2, 3);
    engine.add(first).unwrap();
    assert_eq!(said(&step(&mut engine)), [1]);
    engine.add(second).unwrap();
    // Of two that are late the first is waited for, and goes on alone.
    assert_eq!(said(&step(&mut engine)), [1]);
    assert_eq!((first_gate.num_waits.load(Relaxed), second_gate.num_waits.load(Relaxed)), (2, 0));
    second_gate.is_open.store(true, Relaxed);
    assert_eq!(said(&step(&mut engine)), [2]);
}

#[test]
fn a_chunk_of_a_prompt_goes_on_too() {
    let mut engine = engine(SchedulerConfig { max_batched_tokens: 6, ..config() });
    let (held, _) = gated(1, 2);
    engine.add(held).unwrap();
    assert_eq!(said(&step(&mut engine)), [1]);
    engine.add(sequence(2, vec![7; 12], 1)).unwrap();
    for _ in 0..2 {
        assert_eq!(step(&mut engine).stats.deferred_tokens, 1);
    }
}

#[test]
fn what_was_told_of_the_prompt_is_told_once() {
    let mut engine = engine(config());
    let (held, gate) = gated(1, 1);
    let wanting = held.wanting(PromptOutput::Pooled(Pooling::Mean)).unwrap();
    engine.add(wanting).unwrap();
    engine.add(sequence(2, vec![7; 5], 9)).unwrap();
    let pooled = |step: &Step| step.events.iter().filter(|e| matches!(e, Event::Pooled { .. })).count();
    assert_eq!(pooled(&step(&mut engine)), 1);
    assert_eq!(pooled(&step(&mut engine)), 0);
    gate.is_open.store(true, Relaxed);
    assert_eq!(said(&step(&mut engine)), [1, 2]);
}
