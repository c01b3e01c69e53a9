//! Steps that are made while the one before runs: who goes on with a token that nobody knows, when no such step is made, and what becomes of
//! rows that ran for nothing. The model says 1, 2, 3, … whatever it is given.

mod common;

use common::*;
use scheduler::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

fn ahead() -> SchedulerConfig {
    SchedulerConfig { async_scheduling: true, ..config() }
}

fn scheduler_of(config: SchedulerConfig, sequences: impl IntoIterator<Item = Sequence>) -> Scheduler {
    let mut scheduler = Scheduler::new(config);
    sequences.into_iter().for_each(|sequence| scheduler.add(sequence).unwrap());
    scheduler
}

fn commit(scheduler: &mut Scheduler, counter: &mut Counter, batch: Batch) -> Step {
    let Ok(output) = counter.execute(&batch);
    let step = scheduler.commit(batch, output);
    scheduler.check();
    step
}

/// Sequence, tokens, what is a placeholder, and where the item begins.
fn items(batch: &Batch) -> Vec<(u64, Vec<TokenId>, Option<usize>, usize)> {
    let item = |item: &BatchItem| (item.id.0, item.tokens.to_vec(), item.placeholder_for, item.context_len);
    batch.items.iter().map(item).collect()
}

fn said(events: &[Event], sequence: u64) -> Vec<TokenId> {
    let said = events.iter().filter_map(|event| match event {
        Event::Token { id, token } if id.0 == sequence => Some(token.token),
        _ => None,
    });
    said.collect()
}

#[test]
fn who_samples_goes_on_with_a_placeholder() {
    let prompts = [(1, 100..106), (2, 200..215), (3, 300..305)];
    let sequences = prompts.map(|(id, prompt)| sequence(id, prompt.collect(), 9));
    let mut scheduler = scheduler_of(ahead(), sequences);
    let counter = &mut Counter::default();
    let first = scheduler.schedule();
    assert_eq!(items(&first), [(1, (100..106).collect(), None, 0), (2, (200..210).collect(), None, 0)]);
    // 2 has no token to wait for, and 3 is admitted. Rows are counted among those that sample.
    let second = scheduler.schedule_ahead(&first).unwrap();
    scheduler.check();
    let expected =
        [(1, vec![0], Some(0), 6), (2, (210..215).collect(), None, 10), (3, (300..305).collect(), None, 0)];
    assert_eq!(items(&second), expected);
    let sample = second.items[0].sample.as_ref().unwrap();
    assert_eq!((sample.position, sample.num_generated), (7, 1));
    let step = commit(&mut scheduler, counter, first);
    assert_eq!((said(&step.events, 1), step.stats.is_ahead), (vec![1], false));
    let third = scheduler.schedule_ahead(&second).unwrap();
    let expected = [(1, vec![0], Some(0), 7), (2, vec![0], Some(1), 15), (3, vec![0], Some(2), 5)];
    assert_eq!(items(&third), expected);
    let step = commit(&mut scheduler, counter, second);
    assert!(step.stats.is_ahead);
    assert_eq!((step.stats.decode_tokens, step.stats.prefill_tokens, step.stats.dropped_tokens), (1, 10, 0));
    assert!(step.events.contains(&Event::Started { id: SequenceId(3), cached_tokens: 0 }));
    commit(&mut scheduler, counter, third);
    // All is known again.
    assert_eq!(items(&scheduler.schedule())[0], (1, vec![3], None, 8));
}

#[test]
fn who_ends_with_its_token_for_sure_does_not_go_on() {
    let [one, none, two] =
        [(1, 1), (2, 0), (3, 2)].map(|(id, max_tokens)| sequence(id, vec![9; 4], max_tokens));
    let mut scheduler =
        scheduler_of(SchedulerConfig { enable_prefix_caching: false, ..ahead() }, [one, none, two]);
    let counter = &mut Counter::default();
    let first = scheduler.schedule();
    let second = scheduler.schedule_ahead(&first).unwrap();
    assert_eq!(items(&second), [(3, vec![0], Some(1), 4)]);
    assert_eq!(finished(&commit(&mut scheduler, counter, first).events).len(), 2);
    assert!(scheduler.schedule_ahead(&second).is_none(), "nobody goes on");
    assert_eq!(finished(&commit(&mut scheduler, counter, second).events), [(3, FinishReason::Length, 0)]);
    assert!(scheduler.is_idle());
}

#[test]
fn nobody_goes_on_behind_who_guesses_or_is_told_of() {
    let prompt = |len: TokenId| (0..len).collect::<Vec<_>>();
    let told = PromptOutput::Logprobs { first: 1, top: 0 };
    for special in [
        sequence(2, prompt(4), 5).speculating(NgramConfig::default()).unwrap(),
        sequence(2, prompt(4), 5).wanting(told).unwrap(),
        sequence(2, prompt(4), 0).wanting(PromptOutput::Pooled(Pooling::Mean)).unwrap(),
    ] {
        let config = SchedulerConfig { max_batched_tokens: 4, enable_prefix_caching: false, ..ahead() };
        let mut scheduler = scheduler_of(config, [sequence(1, prompt(4), 9), special]);
        let counter = &mut Counter::default();
        let first = scheduler.schedule();
        // It may take part in a step that is made ahead, if that is its first.
        let second = scheduler.schedule_ahead(&first).unwrap();
        assert_eq!(items(&second)[0].2, Some(0));
        assert_eq!(items(&second)[1], (2, vec![0, 1, 2], None, 0));
        commit(&mut scheduler, counter, first);
        let is_told = second.items[1].prompt.is_some();
        let third = scheduler.schedule_ahead(&second);
        assert_eq!(third.is_none(), is_told, "what is told of a prompt goes on with its next chunk");
        commit(&mut scheduler, counter, second);
        let third = third.unwrap_or_else(|| scheduler.schedule());
        assert_eq!(items(&third)[1], (2, vec![3], None, 3));
        // Unless all is told by now.
        let goes_on = is_told && third.items[1].prompt.is_none();
        let fourth = scheduler.schedule_ahead(&third);
        assert_eq!(fourth.is_some(), goes_on);
        commit(&mut scheduler, counter, third);
        let fourth = fourth.unwrap_or_else(|| scheduler.schedule());
        let is_placeholder = |item: &BatchItem| item.placeholder_for.is_some() && *item.tokens == [0];
        assert!(fourth.items.iter().all(|item| is_placeholder(item) == goes_on));
        commit(&mut scheduler, counter, fourth);
    }
}

/// Masks are of what was said, and there when their gate is open.
#[derive(Debug, Clone, Default)]
struct Gated {
    said: Vec<TokenId>,
    is_closed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct GatedMask(Vec<u32>, Arc<AtomicBool>);

impl Constraint for Gated {
    fn next_mask(&mut self) -> Option<Arc<dyn TokenMask>> {
        Some(Arc::new(GatedMask(self.said.clone(), self.is_closed.clone())))
    }

    fn accept(&mut self, token: TokenId) -> Accepted {
        self.said.push(token);
        Accepted::Open
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

impl TokenMask for GatedMask {
    fn allowed(&self) -> Option<&[u32]> {
        Some(&self.0)
    }

    fn is_ready(&self) -> bool {
        !self.1.load(Relaxed)
    }
}

/// With a constraint, which is late while the gate is closed, and penalties.
fn held(id: u64, params: SamplingParams) -> (Sequence, Arc<AtomicBool>) {
    let params = SamplingParams { presence_penalty: 0.1, ..params };
    let mut sequence = sequence_with(id, vec![70, 71], Vec::new(), params);
    let constraint = Gated::default();
    let gate = constraint.is_closed.clone();
    sequence.constraint = Some(Box::new(constraint));
    (sequence, gate)
}

/// The tokens before it, and what its mask says that was said.
fn drawn_from(item: &BatchItem) -> (Vec<TokenId>, Vec<TokenId>) {
    let sample = item.sample.as_ref().unwrap();
    assert!(!sample.is_incomplete && item.tokens.len() == 1);
    let (history, _) = sample.row(0).history().expect("it has penalties");
    (history.to_vec(), sample.mask.as_ref().unwrap().allowed().unwrap().to_vec())
}

#[test]
fn who_needs_the_last_token_to_be_drawn_is_computed_before_it_is_known() {
    let mut scheduler = scheduler_of(ahead(), [held(1, params(9)).0, sequence(2, vec![5; 3], 9)]);
    let counter = &mut Counter::default();
    let first = scheduler.schedule();
    let mut second = scheduler.schedule_ahead(&first).unwrap();
    assert_eq!(items(&second), [(1, vec![0], Some(0), 2), (2, vec![0], Some(1), 3)]);
    let sample = second.items[0].sample.as_ref().unwrap();
    assert!(sample.is_incomplete && sample.history.is_none() && sample.mask.is_none());
    assert!(!second.items[1].sample.as_ref().unwrap().is_incomplete && !second.can_be_drawn());
    commit(&mut scheduler, counter, first);
    scheduler.complete_samples(&mut second);
    assert!(second.can_be_drawn());
    assert_eq!(drawn_from(&second.items[0]), (vec![70, 71, 1], vec![1]));
    // Once more changes nothing.
    scheduler.complete_samples(&mut second);
    let mut third = scheduler.schedule_ahead(&second).unwrap();
    commit(&mut scheduler, counter, second);
    scheduler.complete_samples(&mut third);
    assert_eq!(drawn_from(&third.items[0]), (vec![70, 71, 1, 2], vec![1, 2]));
    commit(&mut scheduler, counter, third);
}

#[test]
fn what_is_drawn_for_one_that_has_gone_depends_on_nothing() {
    let stop = SamplingParams { stop_token_ids: vec![1], ..params(9) };
    for (params, is_aborted) in [(stop, false), (params(9), true)] {
        let (held, gate) = held(1, params);
        let mut scheduler = scheduler_of(ahead(), [held, sequence(2, vec![5; 3], 9)]);
        let counter = &mut Counter::default();
        let first = scheduler.schedule();
        let mut second = scheduler.schedule_ahead(&first).unwrap();
        let step = commit(&mut scheduler, counter, first);
        assert_eq!(finished(&step.events).is_empty(), is_aborted);
        if is_aborted {
            // Its mask is asked for, and late when its client has gone.
            gate.store(true, Relaxed);
            scheduler.complete_samples(&mut second);
            assert!(scheduler.abort(SequenceId(1)));
        }
        scheduler.complete_samples(&mut second);
        let sample = second.items[0].sample.as_ref().unwrap();
        let (history, _) = sample.row(0).history().expect("a sampler that has penalties looks at it");
        assert_eq!((history.len(), sample.mask.is_some()), if is_aborted { (3, true) } else { (0, false) });
        let third = scheduler.schedule_ahead(&second).unwrap();
        assert_eq!(items(&third), [(2, vec![0], Some(1), 4)]);
        let step = commit(&mut scheduler, counter, second);
        let StepStats { decode_tokens, deferred_tokens, dropped_tokens, .. } = step.stats;
        assert_eq!((decode_tokens, deferred_tokens, dropped_tokens), (1, 0, 1), "aborted: {is_aborted}");
        commit(&mut scheduler, counter, third);
    }
}

#[test]
fn steps_are_drawn_when_all_is_known_and_not_before() {
    use Call::{Begin, Draw, Execute};
    let engine_with = |sequences: Vec<Sequence>| {
        let mut engine = engine(ahead());
        engine.runner_mut().takes_ahead = true;
        sequences.into_iter().for_each(|sequence| engine.add(sequence).unwrap());
        engine
    };
    let calls = |engine: &mut Engine<Counter>| std::mem::take(&mut engine.runner_mut().calls);
    let mut free = engine_with(vec![sequence(1, vec![7; 5], 9)]);
    step(&mut free);
    assert_eq!(calls(&mut free), [Begin, Draw, Begin, Draw, Execute]);
    step(&mut free);
    assert_eq!(calls(&mut free), [Begin, Draw, Execute]);

    let (sequence_held, gate) = held(1, params(30));
    let mut engine = engine_with(vec![sequence_held, sequence(2, vec![7; 5], 30)]);
    step(&mut engine);
    assert_eq!(calls(&mut engine), [Begin, Draw, Begin, Execute]);
    for _ in 0..3 {
        let step = step(&mut engine);
        assert!(step.stats.is_ahead);
        assert_eq!(calls(&mut engine), [Draw, Begin, Execute], "one runs, and the next one is begun");
    }
    // A mask that is late when the others are drawn: its row is deferred in a step that was begun ahead, and nobody goes on behind that one.
    gate.store(true, Relaxed);
    let deferred = step(&mut engine);
    assert_eq!((deferred.stats.is_ahead, deferred.stats.deferred_tokens), (true, 1));
    assert_eq!((said(&deferred.events, 1), said(&deferred.events, 2)), (vec![], vec![5]));
    assert_eq!(calls(&mut engine), [Draw, Execute]);
    gate.store(false, Relaxed);
    let after = step(&mut engine);
    assert_eq!((said(&after.events, 1), said(&after.events, 2)), (vec![5], vec![6]));
    assert!(!after.stats.is_ahead);
    assert_eq!(calls(&mut engine), [Begin, Draw, Begin, Execute]);
    let rest = run(&mut engine);
    assert_eq!(said(&rest, 1), (6..=30).collect::<Vec<_>>());
    let histories: Vec<_> = engine.runner().histories.iter().flatten().collect();
    let expected = (0..30).map(|said| [70, 71].into_iter().chain(1..=said).collect::<Vec<_>>());
    assert!(histories.into_iter().eq(&expected.collect::<Vec<_>>()));
}

#[test]
fn no_step_is_made_while_it_is_asked_who_ends() {
    #[derive(Debug, Clone)]
    struct Slow(Option<TokenId>);
    impl Constraint for Slow {
        fn next_mask(&mut self) -> Option<Arc<dyn TokenMask>> {
            None
        }
        fn accept(&mut self, _: TokenId) -> Accepted {
            unreachable!("begun and finished")
        }
        fn begin_accept(&mut self, token: TokenId) -> Option<Accepted> {
            self.0 = Some(token);
            None
        }
        fn finish_accept(&mut self) -> Accepted {
            if self.0.take() == Some(3) { Accepted::Complete } else { Accepted::Open }
        }
        fn boxed_clone(&self) -> Box<dyn Constraint> {
            Box::new(self.clone())
        }
    }
    let mut engine = engine(ahead());
    (engine.runner_mut().takes_ahead, engine.runner_mut().works_alone) = (true, true);
    let mut slow = sequence(1, vec![7; 5], 9);
    slow.constraint = Some(Box::new(Slow(None)));
    engine.add(slow).unwrap();
    engine.add(sequence(2, vec![8; 5], 9)).unwrap();
    for said_before in 0..3 {
        engine.begin();
        // Who ends is known of the prompts, of which nothing was said.
        assert_eq!(engine.begin_ahead(), said_before == 0);
        assert_eq!(engine.finish_accepting(), []);
        engine.draw();
        assert_eq!(engine.begin_ahead(), said_before > 0);
        let Ok(step) = engine.finish();
        assert_eq!(said(&step.events, 1), [said_before + 1]);
        assert_eq!((step.stats.is_ahead, step.stats.dropped_tokens), (said_before > 0, 0));
    }
    engine.begin();
    assert_eq!(finished(&engine.finish_accepting()), [(1, FinishReason::Complete, 0)]);
    engine.draw();
    assert!(engine.begin_ahead());
    let Ok(step) = engine.finish();
    engine.scheduler().check();
    assert_eq!((step.stats.decode_tokens, step.stats.dropped_tokens), (1, 1));
    assert_eq!(said(&run(&mut engine), 2), (5..=9).collect::<Vec<_>>());
    assert_eq!(engine.runner().steps_of(1), [0, 1, 2, 3]);
}

#[test]
fn a_row_for_nothing_leaves_nothing() {
    // With blocks of 4, the stop token would fill the second one.
    let params = SamplingParams { stop_token_ids: vec![2], ..params(9) };
    let stopped = sequence_with(1, (100..106).collect(), Vec::new(), params);
    let mut engine = engine(ahead());
    engine.runner_mut().takes_ahead = true;
    engine.add(stopped).unwrap();
    let steps = [(); 3].map(|()| step(&mut engine));
    assert_eq!([0, 1, 2].map(|i| said(&steps[i].events, 1)), [vec![1], vec![2], vec![]]);
    assert_eq!(finished(&steps[1].events), [(1, FinishReason::Stop, 0)]);
    let counts = |stats: &StepStats| (stats.is_ahead, stats.decode_tokens, stats.dropped_tokens);
    assert_eq!(steps.each_ref().map(|step| counts(&step.stats)), [(false, 0, 0), (true, 1, 0), (true, 0, 1)]);
    assert_eq!(steps[2].stats.num_useful_tokens(), 0);
    assert!(engine.is_idle());
    assert_eq!(engine.runner().steps, [[(1, 0, 6)], [(1, 6, 7)], [(1, 7, 8)]]);
    assert_eq!(engine.occupancy().blocks_used, 0);
    // Its last block was written to the end, and is not found.
    engine.add(sequence(2, (100..106).chain([1, 2, 3]).collect(), 1)).unwrap();
    assert_eq!(cached_tokens(&run(&mut engine), 2), 4);
}

#[test]
fn blocks_of_one_that_has_gone_are_given_away_behind_its_last_row() {
    let mut engine =
        engine(SchedulerConfig { num_blocks: 4, max_running: 2, enable_prefix_caching: false, ..ahead() });
    engine.runner_mut().takes_ahead = true;
    engine.add(sequence(1, (0..7).collect(), 9)).unwrap();
    step(&mut engine);
    assert!(engine.has_begun());
    assert!(engine.abort(SequenceId(1)));
    assert!(!engine.is_idle(), "a step runs for nobody");
    engine.add(sequence(2, (50..63).collect(), 2)).unwrap();
    // Nothing is sure to run behind that one.
    let aborted = step(&mut engine);
    assert_eq!((aborted.events.len(), aborted.stats.dropped_tokens), (0, 1));
    assert_eq!(finished(&run(&mut engine)), [(2, FinishReason::Length, 0)]);
    assert_eq!(engine.runner().steps, [[(1, 0, 7)], [(1, 7, 8)], [(2, 0, 13)], [(2, 13, 14)]]);
}

#[test]
fn a_failure_drops_the_row_behind_it() {
    let mut engine = engine(ahead());
    engine.runner_mut().takes_ahead = true;
    engine.runner_mut().fail = Some((1, 1, Failure::NonFiniteLogits));
    engine.add(sequence(1, (0..7).collect(), 9)).unwrap();
    engine.add(sequence(2, (50..57).collect(), 9)).unwrap();
    let events = run(&mut engine);
    assert_eq!(said(&events, 1), [1]);
    assert_eq!(said(&events, 2), (1..10).collect::<Vec<_>>());
    let failed = FinishReason::Failed(Failure::NonFiniteLogits);
    assert_eq!(finished(&events), [(1, failed, 0), (2, FinishReason::Length, 0)]);
    // Once for nothing.
    assert_eq!(engine.runner().steps_of(1), [0, 1, 2]);
}

#[test]
fn no_step_is_made_where_somebody_would_be_preempted() {
    // Two sequences have three blocks each and want a fourth at the same time: one sits out, and is preempted when the other wants a fifth.
    let mut engine = engine(SchedulerConfig { num_blocks: 7, enable_prefix_caching: false, ..ahead() });
    engine.runner_mut().takes_ahead = true;
    for id in [1, 2] {
        engine.add(sequence(id, (0..6).collect(), 14)).unwrap();
    }
    let (mut is_ahead, mut preempted, mut events) = (Vec::new(), Vec::new(), Vec::new());
    while !engine.is_idle() {
        let step = step(&mut engine);
        assert!(!step.stats.is_ahead || step.stats.preempted.is_empty());
        is_ahead.push(step.stats.is_ahead);
        preempted.push(step.stats.preempted.len());
        events.extend(step.events);
    }
    assert_eq!((1..=2).map(|id| said(&events, id)).collect::<Vec<_>>(), vec![(1..15).collect::<Vec<_>>(); 2]);
    let at = preempted.iter().position(|&num| num > 0).expect("one is preempted");
    assert!(at > 2 && !is_ahead[at] && is_ahead[1..at].iter().all(|&is_ahead| is_ahead), "{is_ahead:?}");
    assert!(is_ahead[at + 1], "{is_ahead:?}");
}

/// What is computed anew of one that was preempted are chunks without guesses: those of the step behind would be taken for the chunk's.
#[test]
fn nobody_guesses_behind_a_chunk_that_runs() {
    let guess = NgramConfig { prompt_lookup_max: 3, prompt_lookup_min: 2, ..NgramConfig::default() };
    // After 4 and 5 its prompt goes on with 77; it is preempted where it has just said these, and has 17 tokens.
    let prompt = vec![50, 51, 52, 53, 54, 55, 4, 5, 77, 78, 56, 57];
    let config = SchedulerConfig { num_blocks: 6, enable_prefix_caching: false, ..ahead() };
    for is_ahead in [true, false] {
        let guessing = sequence(2, prompt.clone(), 9).speculating(guess).unwrap();
        let mut scheduler = scheduler_of(config, [sequence(1, (100..104).collect(), 9), guessing]);
        let counter = &mut Counter::default();
        loop {
            let batch = scheduler.schedule();
            if !commit(&mut scheduler, counter, batch).stats.preempted.is_empty() {
                break;
            }
        }
        assert!(scheduler.abort(SequenceId(1)));
        let chunk = scheduler.schedule();
        assert_eq!((chunk.items[0].id, chunk.items[0].tokens.len()), (SequenceId(2), 16));
        let behind = if is_ahead {
            let behind = scheduler.schedule_ahead(&chunk).unwrap();
            assert_eq!(items(&behind), [(2, vec![5], None, 16)]);
            commit(&mut scheduler, counter, chunk);
            behind
        } else {
            commit(&mut scheduler, counter, chunk);
            let behind = scheduler.schedule();
            assert_eq!(
                behind.items[0].tokens[..2],
                [5, 77],
                "where it does not run, it guesses in the same place"
            );
            behind
        };
        assert_eq!(said(&commit(&mut scheduler, counter, behind).events, 2), [6]);
    }
}

#[test]
fn what_runs_is_found_a_step_later() {
    let mut scheduler = scheduler_of(ahead(), (1..=2).map(|id| sequence(id, (100..111).collect(), 3)));
    let counter = &mut Counter::default();
    let first = scheduler.schedule();
    let second = scheduler.schedule_ahead(&first).unwrap();
    // The other one would compute what is being computed.
    assert_eq!(items(&second), [(1, vec![0], Some(0), 11)]);
    commit(&mut scheduler, counter, first);
    let third = scheduler.schedule_ahead(&second).unwrap();
    assert_eq!(items(&third)[1], (2, (108..111).collect(), None, 8));
    commit(&mut scheduler, counter, second);
    commit(&mut scheduler, counter, third);
}

#[test]
fn nobody_is_begun_ahead_unasked() {
    for (async_scheduling, takes_ahead) in [(false, true), (true, false)] {
        let mut engine = engine(SchedulerConfig { async_scheduling, ..config() });
        engine.runner_mut().takes_ahead = takes_ahead;
        engine.add(sequence(1, (0..7).collect(), 9)).unwrap();
        engine.begin();
        assert!(!engine.begin_ahead());
    }
    let mut engine = engine(ahead());
    engine.runner_mut().takes_ahead = true;
    assert!(!engine.begin_ahead(), "nothing was begun");
    engine.add(sequence(1, (0..7).collect(), 9)).unwrap();
    engine.begin();
    assert!(engine.begin_ahead());
    assert!(!engine.begin_ahead(), "one step ahead, not two");
    engine.begin();
    let Ok(step) = engine.finish();
    assert_eq!(said(&step.events, 1), [1]);
}
