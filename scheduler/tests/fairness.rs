//! Who gets how much of a step: long prompts beside short ones, turns, priorities, and nobody left behind.

mod common;

use common::*;
use scheduler::*;

fn large() -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: 5000,
        num_host_blocks: 0,
        max_model_len: 20_000,
        max_running: 8,
        max_waiting: 1000,
        enable_prefix_caching: false,
        ..config()
    }
}

fn prompt(len: usize) -> Vec<TokenId> {
    (0..len as TokenId).map(|i| i % 9000).collect()
}

#[test]
fn a_long_prompt_does_not_stall_short_ones() {
    let mut engine = engine(large());
    engine.add(sequence(1, prompt(16_000), 1)).unwrap();
    step(&mut engine);
    for id in 2..200 {
        // Each short prompt needs 8 tokens: what a long prompt leaves of a step of 16.
        engine.add(sequence(id, prompt(8), 1)).unwrap();
        let step = step(&mut engine);
        assert_eq!(
            finished(&step.events),
            [(id, FinishReason::Length, 0)],
            "it is done in the step it came in"
        );
        let long = engine.runner().steps.last().unwrap()[0];
        assert_eq!((long.0, long.2 - long.1), (1, 8), "and the long one goes on with the other half");
    }
}

#[test]
fn alone_a_long_prompt_has_the_whole_step() {
    let mut engine = engine(large());
    engine.add(sequence(1, prompt(160), 1)).unwrap();
    run(&mut engine);
    assert_eq!(engine.runner().steps.len(), 10);
}

#[test]
fn long_prompts_take_turns() {
    let mut engine = engine(large());
    for id in 1..=3 {
        engine.add(sequence(id, prompt(48), 1)).unwrap();
    }
    run(&mut engine);
    let steps = &engine.runner().steps;
    let whose: Vec<_> = steps.iter().map(|step| step[0].0).collect();
    assert_eq!(whose, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
}

#[test]
fn what_one_long_prompt_leaves_the_next_one_gets() {
    let mut engine = engine(large());
    engine.add(sequence(1, prompt(20), 1)).unwrap();
    engine.add(sequence(2, prompt(40), 1)).unwrap();
    run(&mut engine);
    let expected = [vec![(1, 0, 16)], vec![(2, 0, 16)], vec![(1, 16, 20), (2, 16, 28)], vec![(2, 28, 40)]];
    assert_eq!(engine.runner().steps, expected);
}

#[test]
fn newcomers_do_not_crowd_out_who_waits_for_a_turn() {
    let mut engine = engine(large());
    engine.add(sequence(1, prompt(160), 1)).unwrap();
    let mut events = Vec::new();
    for id in 2..200 {
        if engine.occupancy().waiting == 0 {
            engine.add(sequence(id, prompt(17), 1)).unwrap();
        }
        events.extend(step(&mut engine).events);
    }
    // 10 turns, and at most 7 others run beside it.
    let steps = engine.runner().steps_of(1);
    assert!(finished(&events).iter().any(|(id, ..)| *id == 1), "it never had its turn: {steps:?}");
    assert!(*steps.last().unwrap() < 10 * 8, "{steps:?}");
}

#[test]
fn decodes_take_part_in_every_step() {
    let mut engine = engine(large());
    engine.add(sequence(1, prompt(3), 100)).unwrap();
    step(&mut engine);
    for id in 2..100 {
        engine.add(sequence(id, prompt(3 + 7 * (id as usize % 9)), 2)).unwrap();
        step(&mut engine);
    }
    assert_eq!(engine.runner().steps_of(1).len(), 99);
}

#[test]
fn short_prompts_have_their_first_token_in_order_of_arrival() {
    let mut engine = engine(large());
    let lens = [15, 3, 9, 16, 1, 1, 12, 7, 16, 2];
    for (id, len) in lens.into_iter().enumerate() {
        engine.add(sequence(id as u64, prompt(len), 1)).unwrap();
    }
    let order: Vec<_> = finished(&run(&mut engine)).iter().map(|(id, ..)| *id).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn better_priorities_are_admitted_first_and_heed_no_worse_long_prompt() {
    let mut engine = engine(large());
    engine.add(with_priority(sequence(1, prompt(100), 1), 3)).unwrap();
    step(&mut engine);
    engine.add(with_priority(sequence(2, prompt(16), 1), 3)).unwrap();
    engine.add(with_priority(sequence(3, prompt(16), 1), -2)).unwrap();
    step(&mut engine);
    assert_eq!(engine.runner().steps[1], [(3, 0, 16)], "the whole step, before who came earlier");
    step(&mut engine);
    assert_eq!(engine.runner().steps[2], [(1, 16, 24), (2, 0, 8)]);
}

#[test]
fn a_large_sequence_is_not_overtaken_until_it_fits() {
    let config = SchedulerConfig { num_blocks: 20, max_model_len: 80, ..large() };
    let mut engine = engine(config);
    engine.add(sequence(0, prompt(10), 30)).unwrap();
    step(&mut engine);
    engine.add(sequence(1, prompt(70), 1)).unwrap();
    let mut events = Vec::new();
    for id in 2..60 {
        engine.add(sequence(id, prompt(4), 1)).unwrap();
        events.extend(step(&mut engine).events);
    }
    events.extend(run(&mut engine));
    let started = |event: &Event| match event {
        Event::Started { id, .. } => Some(id.0),
        _ => None,
    };
    let order: Vec<_> = events.iter().filter_map(started).collect();
    assert_eq!(order, (1..60).collect::<Vec<_>>());
}

/// With a picture as costly as a whole step's budget, beside short prompts with pictures in every step.
#[test]
fn a_costly_picture_has_its_turn() {
    let mut engine = engine(SchedulerConfig { num_image_blocks: 8, ..large() });
    let big = ImageSpan { start: 20, image: image(1, 8, 12) };
    engine.add(sequence_with(1, prompt(60), vec![big], params(1))).unwrap();
    let mut events = Vec::new();
    for id in 2..60 {
        let small = ImageSpan { start: 0, image: image(id as u8, 4, 6) };
        engine.add(sequence_with(id, prompt(5), vec![small], params(1))).unwrap();
        events.extend(step(&mut engine).events);
    }
    let place = finished(&events).iter().position(|(id, ..)| *id == 1);
    assert!(place.is_some_and(|place| place < 20), "{place:?} of {:?}", engine.runner().encodes);
    run(&mut engine);
}

/// The room is held by a sequence of a worse priority, in the middle of its picture, and others take all tokens of every step.
#[test]
fn a_picture_does_not_wait_for_the_turn_of_a_worse_priority() {
    let mut engine = engine(large());
    let span = |start, name| ImageSpan { start, image: image(name, 8, 12) };
    let worse = sequence_with(1, prompt(40), vec![span(12, 1)], params(1));
    engine.add(with_priority(worse, 5)).unwrap();
    step(&mut engine);
    engine.add(sequence_with(2, prompt(16), vec![span(0, 2)], params(1))).unwrap();
    let mut events = Vec::new();
    for id in 3..20 {
        engine.add(sequence(id, prompt(16), 1)).unwrap();
        events.extend(step(&mut engine).events);
    }
    let place = finished(&events).iter().position(|(id, ..)| *id == 2);
    assert!(place.is_some_and(|place| place < 5), "{place:?} of {:?}", engine.runner().steps);
    // Queued in the second step, and in the third the room is made, to the end of the picture and no further.
    assert!(engine.runner().steps[2].contains(&(1, 16, 20)), "{:?}", engine.runner().steps[2]);
    run(&mut engine);
}
