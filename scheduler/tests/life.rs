//! Small days in the life of a scheduler: chunks, shared prefixes, preemption, ends, refusals.

mod common;

use common::*;
use scheduler::*;
use std::num::NonZeroU64;

#[test]
fn a_prompt_is_computed_in_chunks_and_then_token_by_token() {
    let mut engine = engine(config());
    engine.add(sequence(7, (100..137).collect(), 3)).unwrap();
    let events = run(&mut engine);
    let steps = &engine.runner().steps;
    assert_eq!(steps.concat(), [(7, 0, 16), (7, 16, 32), (7, 32, 37), (7, 37, 38), (7, 38, 39)]);
    assert_eq!(events[0], Event::Started { id: SequenceId(7), cached_tokens: 0 });
    let said = |event: &Event| matches!(event, Event::Token { .. });
    assert_eq!(events.iter().filter(|event| said(event)).count(), 3);
    assert_eq!(finished(&events), [(7, FinishReason::Length, 0)]);
}

#[test]
fn an_idle_step_asks_nothing_of_the_model() {
    let mut engine = engine(config());
    let step = step(&mut engine);
    assert!(step.events.is_empty() && engine.runner().steps.is_empty());
    assert_eq!(step.stats, StepStats::default());
}

#[test]
fn a_step_is_begun_once_and_others_come_and_go_before_it_ends() {
    let mut engine = engine(config());
    let Ok(nothing) = engine.finish();
    assert_eq!(nothing.stats, StepStats::default());
    engine.add(sequence(1, vec![100, 101], 2)).unwrap();
    engine.add(sequence(2, vec![200, 201], 2)).unwrap();
    engine.begin();
    engine.begin();
    engine.add(sequence(3, vec![300], 1)).unwrap();
    assert!(engine.abort(SequenceId(2)));
    let Ok(step) = engine.finish();
    engine.scheduler().check();
    // Who came later was not in the step, who left has no events.
    assert_eq!(engine.runner().steps, [[(1, 0, 2), (2, 0, 2)]]);
    assert!(step.events.iter().all(|event| event.id() == SequenceId(1)), "{:?}", step.events);
    let events = run(&mut engine);
    assert_eq!(engine.runner().steps[1], [(1, 2, 3), (3, 0, 1)]);
    assert_eq!(finished(&events).len(), 2);
}

#[test]
fn the_last_token_is_computed_even_on_a_full_hit() {
    let mut engine = engine(config());
    for (id, len) in [(1, 8), (2, 8), (3, 9), (4, 7)] {
        engine.add(sequence(id, (100..100 + len).collect(), 1)).unwrap();
        let events = run(&mut engine);
        // Of 8 tokens the second block would hold the last one, of 9 it does not.
        let expected = [0, 4, 8, 4][id as usize - 1];
        assert_eq!(cached_tokens(&events, id), expected, "sequence {id}");
    }
}

#[test]
fn nothing_is_found_when_caching_is_off() {
    let mut engine = engine(SchedulerConfig { enable_prefix_caching: false, ..config() });
    for id in [1, 2] {
        engine.add(sequence(id, (100..109).collect(), 1)).unwrap();
        assert_eq!(cached_tokens(&run(&mut engine), id), 0);
    }
}

#[test]
fn answers_to_one_prompt_compute_it_once() {
    let mut engine = engine(config());
    for id in 1..=4 {
        engine.add(sequence(id, (100..111).collect(), 2)).unwrap();
    }
    let events = run(&mut engine);
    // Prompt of 11: the first computes all, the others, one step later, the 3 tokens after the two full blocks; then a decode each.
    assert_eq!(engine.runner().num_tokens(), 11 + 3 * 3 + 4);
    assert_eq!(engine.runner().steps[0], [(1, 0, 11)]);
    assert_eq!((2..=4).map(|id| cached_tokens(&events, id)).collect::<Vec<_>>(), [8, 8, 8]);
}

#[test]
fn who_waits_for_blocks_is_passed_over() {
    let mut engine = engine(SchedulerConfig { max_batched_tokens: 24, ..config() });
    engine.add(sequence(1, (100..111).collect(), 1)).unwrap();
    engine.add(sequence(2, (100..111).collect(), 1)).unwrap();
    engine.add(sequence(3, (200..205).collect(), 1)).unwrap();
    run(&mut engine);
    assert_eq!(engine.runner().steps, [vec![(1, 0, 11), (3, 0, 5)], vec![(2, 8, 11)]]);
}

#[test]
fn a_better_priority_does_not_wait_for_a_worse_one() {
    let mut engine = engine(SchedulerConfig { max_batched_tokens: 8, ..config() });
    engine.add(with_priority(sequence(1, (100..117).collect(), 1), 1)).unwrap();
    step(&mut engine);
    engine.add(sequence(2, (100..117).collect(), 1)).unwrap();
    step(&mut engine);
    // It takes what is there, computes the rest itself, and leaves the worse one nothing of this step.
    assert_eq!(engine.runner().steps[1], [(2, 8, 16)]);
}

#[test]
fn tenants_share_nothing() {
    let mut engine = engine(config());
    for (id, salt, expected) in [(1, 0, 0), (2, 1, 0), (3, 0, 8), (4, 1, 8)] {
        let mut sequence = sequence(id, (100..111).collect(), 1);
        sequence.salt = Digest([salt; 32]);
        engine.add(sequence).unwrap();
        assert_eq!(cached_tokens(&run(&mut engine), id), expected, "sequence {id}");
    }
}

#[test]
fn adapters_share_nothing() {
    let mut engine = engine(config());
    for (id, adapter, expected) in [(1, 0, 0), (2, 1, 0), (3, 2, 0), (4, 0, 8), (5, 2, 8), (6, 1, 8)] {
        let mut sequence = sequence(id, (100..111).collect(), 1);
        sequence.adapter = NonZeroU64::new(adapter).map(AdapterId);
        engine.add(sequence).unwrap();
        assert_eq!(cached_tokens(&run(&mut engine), id), expected, "sequence {id}");
    }
}

#[test]
fn what_decode_wrote_is_shared_only_where_that_is_exact() {
    // Of 17 positions 10 are a prompt's, and two more may be shared where those below 14 may: in whole blocks of 4.
    for (share_decoded_below, expected) in [(usize::MAX, 16), (14, 12), (0, 8), (10, 8)] {
        let mut engine = engine(SchedulerConfig { share_decoded_below, ..config() });
        engine.add(sequence(1, (100..110).collect(), 8)).unwrap();
        run(&mut engine);
        // The next turn: the prompt of 10, the answer 1, 2, …, 8 and more. 17 were computed.
        let next = (100..110).chain(1..=8).chain(200..205).collect();
        engine.add(sequence(2, next, 1)).unwrap();
        assert_eq!(cached_tokens(&run(&mut engine), 2), expected);
    }
}

#[test]
fn a_generated_tail_takes_no_prompt_blocks_where_that_is_not_exact() {
    // 1 generates what 2 has in its prompt; preempted for 2's growth, it must not take 2's blocks for its own tail.
    let config = SchedulerConfig { share_decoded_below: 0, num_blocks: 8, ..config() };
    let mut engine = engine(config);
    engine.add(sequence(5, (100..104).collect(), 20)).unwrap();
    (0..9).for_each(|_| drop(step(&mut engine)));
    engine.add(sequence(2, (100..104).chain(1..=8).collect(), 20)).unwrap();
    let events = run(&mut engine);
    assert_eq!(finished(&events), [(2, FinishReason::Length, 0), (5, FinishReason::Length, 1)]);
    let mut restart =
        engine.runner().steps.iter().flatten().filter(|item| item.0 == 5 && item.2 - item.1 > 1);
    assert_eq!(restart.next_back().unwrap().1, 4, "only its prompt is found again");
}

#[test]
fn memory_is_taken_from_the_newest() {
    let mut engine = engine(SchedulerConfig { num_blocks: 9, ..config() });
    for id in 1..=3 {
        engine.add(sequence(id, (id as TokenId * 100..id as TokenId * 100 + 5).collect(), 13)).unwrap();
    }
    let mut preempted = Vec::new();
    let mut events = Vec::new();
    while !engine.is_idle() {
        let step = step(&mut engine);
        preempted.extend(step.stats.preempted);
        events.extend(step.events);
    }
    assert!(!preempted.contains(&SequenceId(1)), "{preempted:?}");
    assert_eq!(preempted[0], SequenceId(3));
    let order: Vec<_> = finished(&events).iter().map(|(id, ..)| *id).collect();
    assert_eq!(order, [1, 2, 3]);
    let told = finished(&events).iter().map(|(.., preemptions)| preemptions).sum::<usize>();
    assert_eq!(told, preempted.len());
}

#[test]
fn memory_is_taken_from_the_lowest_priority_first() {
    let mut engine = engine(SchedulerConfig { num_blocks: 9, ..config() });
    for (id, priority) in [(1, 5), (2, -1), (3, 0)] {
        let prompt = (id as TokenId * 100..id as TokenId * 100 + 5).collect();
        engine.add(with_priority(sequence(id, prompt, 13), priority)).unwrap();
    }
    let events = run(&mut engine);
    let order: Vec<_> = finished(&events).iter().map(|(id, ..)| *id).collect();
    assert_eq!(order, [2, 3, 1]);
    assert_eq!(finished(&events)[2].2, 1, "the lowest priority was preempted, though it came first");
}

#[test]
fn a_blocked_sequence_leaves_the_cache_alone() {
    let mut engine = engine(SchedulerConfig { num_blocks: 10, ..config() });
    engine.add(sequence(1, (100..109).collect(), 1)).unwrap();
    run(&mut engine);
    // 2 holds 6 blocks; 3 needs all that are left and so has to wait, which must not cost the blocks that 1 left behind.
    engine.add(sequence(2, (200..221).collect(), 12)).unwrap();
    step(&mut engine);
    engine.add(sequence(3, (300..315).collect(), 1)).unwrap();
    step(&mut engine);
    step(&mut engine);
    assert_eq!(engine.occupancy().waiting, 1);
    assert!(engine.abort(SequenceId(3)));
    engine.add(sequence(4, (100..109).collect(), 1)).unwrap();
    let mut events = Vec::new();
    while finished(&events).is_empty() {
        events.extend(step(&mut engine).events);
    }
    assert_eq!(cached_tokens(&events, 4), 8);
    run(&mut engine);
}

#[test]
fn stop_tokens_end_a_sequence_after_min_tokens() {
    for (min_tokens, stop_token_ids, expected) in [
        (0, vec![3], (3, FinishReason::Stop)),
        (2, vec![3], (3, FinishReason::Stop)),
        (3, vec![3], (6, FinishReason::Length)),
        (3, vec![1, 3, 5, 9], (5, FinishReason::Stop)),
        (0, vec![7], (6, FinishReason::Length)),
        (0, vec![6], (6, FinishReason::Stop)),
    ] {
        let params = SamplingParams { min_tokens, stop_token_ids: stop_token_ids.clone(), ..params(6) };
        let mut engine = engine(config());
        engine.add(sequence_with(1, vec![100], Vec::new(), params)).unwrap();
        let events = run(&mut engine);
        let num_said = events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
        let actual = (num_said, finished(&events)[0].1);
        assert_eq!(actual, expected, "after {min_tokens}, {stop_token_ids:?}");
    }
}

#[test]
fn a_failed_row_ends_its_sequence_alone() {
    // After a NaN nothing of it can be found again; after a dead end of the sampler its memory is as good as any.
    for (failure, cached) in [(Failure::NonFiniteLogits, 0), (Failure::NothingToSample, 8)] {
        let mut engine = engine(config());
        engine.runner_mut().fail = Some((1, 2, failure));
        engine.add(sequence(1, (100..110).collect(), 9)).unwrap();
        engine.add(sequence(2, (200..203).collect(), 9)).unwrap();
        let events = run(&mut engine);
        let failed = (1, FinishReason::Failed(failure), 0);
        assert_eq!(finished(&events), [failed, (2, FinishReason::Length, 0)]);
        assert_eq!(engine.occupancy().blocks_used, 0);
        engine.add(sequence(3, (100..110).collect(), 1)).unwrap();
        assert_eq!(cached_tokens(&run(&mut engine), 3), cached);
    }
}

#[test]
fn what_a_failed_step_computed_is_not_found() {
    let mut engine = engine(config());
    engine.runner_mut().fail = Some((1, 0, Failure::NothingToSample));
    engine.add(sequence(1, (100..120).collect(), 9)).unwrap();
    run(&mut engine);
    engine.add(sequence(2, (100..121).collect(), 1)).unwrap();
    // The first chunk of 16 sampled nothing and is good; the one that failed is not.
    assert_eq!(cached_tokens(&run(&mut engine), 2), 16);
}

#[test]
fn hanging_up_while_a_step_runs_is_harmless() {
    let mut scheduler = Scheduler::new(config());
    let mut runner = Counter::default();
    scheduler.add(sequence(1, (100..103).collect(), 2)).unwrap();
    scheduler.add(sequence(2, (200..203).collect(), 2)).unwrap();
    let batch = scheduler.schedule();
    let Ok(output) = runner.execute(&batch);
    assert!(scheduler.abort(SequenceId(1)));
    assert_eq!(scheduler.occupancy().blocks_used, 1, "its memory is free at once");
    scheduler.check();
    let step = scheduler.commit(batch, output);
    assert!(step.events.iter().all(|event| event.id() == SequenceId(2)), "{:?}", step.events);
    assert_eq!(step.events.len(), 2);
    assert!(!scheduler.abort(SequenceId(1)), "it is not known any more");
    assert!(scheduler.abort(SequenceId(2)));
    assert!(scheduler.is_idle());
}

#[test]
fn a_waiting_sequence_can_hang_up() {
    let mut engine = engine(SchedulerConfig { max_running: 1, ..config() });
    engine.add(sequence(1, vec![100], 2)).unwrap();
    engine.add(sequence(2, vec![100], 2)).unwrap();
    step(&mut engine);
    assert!(engine.abort(SequenceId(2)));
    assert!(!engine.abort(SequenceId(2)));
    assert!(!engine.abort(SequenceId(77)));
    assert_eq!(finished(&run(&mut engine)), [(1, FinishReason::Length, 0)]);
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    let config = SchedulerConfig { num_blocks: 10, max_waiting: 1, ..config() };
    let mut engine = engine(config);
    let long = sequence(1, (100..160).collect(), 16);
    let expected = Reject::TooLong { prompt_tokens: 60, max_tokens: 16, limit: 75 };
    assert_eq!(engine.add(long), Err(expected));
    let large = sequence(2, (100..130).collect(), 11);
    assert_eq!(engine.add(large), Err(Reject::NeverFits { tokens: 41, capacity: 40 }));
    let with = |id, image: std::sync::Arc<ImageInput>| {
        let prompt = vec![0; image.num_tokens];
        sequence_with(id, prompt, vec![ImageSpan { start: 0, image }], params(1))
    };
    assert_eq!(engine.add(with(3, image(1, 9, 1))), Err(Reject::ImageTooLarge { tokens: 9, capacity: 8 }));
    assert_eq!(engine.add(with(4, image(1, 8, 13))), Err(Reject::ImageTooCostly { patches: 13, limit: 12 }));
    engine.add(sequence(5, (100..130).collect(), 10)).unwrap();
    assert_eq!(engine.add(sequence(6, vec![100], 1)), Err(Reject::QueueFull { waiting: 1 }));
    assert_eq!(finished(&run(&mut engine)), [(5, FinishReason::Length, 0)]);
    engine.add(with(7, image(1, 8, 12))).unwrap();
    assert_eq!(finished(&run(&mut engine)), [(7, FinishReason::Length, 0)]);
}

#[test]
fn numbers_that_overflow_are_too_long() {
    let mut engine = engine(config());
    let result = engine.add(sequence(1, vec![100], usize::MAX));
    assert!(matches!(result, Err(Reject::TooLong { .. })), "{result:?}");
}

#[test]
fn history_goes_only_where_it_is_needed() {
    let mut engine = engine(config());
    let params = SamplingParams { presence_penalty: 0.5, ..params(2) };
    engine.add(sequence_with(1, vec![100, 101], Vec::new(), params)).unwrap();
    engine.add(sequence(2, vec![200], 2)).unwrap();
    run(&mut engine);
    let expected = [Some(vec![100, 101]), None, Some(vec![100, 101, 1]), None];
    assert_eq!(engine.runner().histories, expected);
}

#[test]
fn a_lost_device_leaves_an_engine_that_can_be_dropped() {
    struct Lost;
    impl ModelRunner for Lost {
        type Error = &'static str;
        fn execute(&mut self, _: &Batch) -> Result<StepOutput, Self::Error> {
            Err("device lost")
        }
    }
    let mut engine = Engine::new(config(), Lost);
    engine.add(sequence(1, (100..140).collect(), 3)).unwrap();
    assert_eq!(engine.step().unwrap_err(), "device lost");
    assert!(!engine.is_idle());
    drop(engine);
}

#[test]
fn a_configuration_that_cannot_be_kept_is_refused_by_name() {
    let field = |config: SchedulerConfig| config.check().unwrap_err().field;
    assert_eq!(field(SchedulerConfig { block_size: 0, ..config() }), "block_size");
    assert_eq!(field(SchedulerConfig { max_waiting: 0, ..config() }), "max_waiting");
    assert_eq!(field(SchedulerConfig { num_blocks: 1 << 33, ..config() }), "num_blocks");
    let small = SchedulerConfig { max_batched_tokens: 3, ..config() };
    assert_eq!(
        small.check().unwrap_err().to_string(),
        "max_batched_tokens: 3 is below max_running = 4: not every sequence could take part in a step"
    );
    config().check().unwrap();
}
