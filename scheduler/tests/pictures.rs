//! Pictures: encoded once, within the budget, while there is room, and never in each other's way.

mod common;

use common::*;
use scheduler::*;
use std::sync::Arc;

/// A prompt of `text` tokens, then the pictures with a token of text after each.
fn album(id: u64, text: usize, images: &[Arc<ImageInput>]) -> Sequence {
    let mut prompt: Vec<TokenId> = (0..text as TokenId).map(|i| id as TokenId * 100 + i).collect();
    let mut spans = Vec::new();
    for image in images {
        spans.push(ImageSpan { start: prompt.len(), image: image.clone() });
        prompt.extend(std::iter::repeat_n(0, image.num_tokens));
        prompt.push(99);
    }
    sequence_with(id, prompt, spans, params(2))
}

#[test]
fn a_picture_is_encoded_once_for_all() {
    let mut engine = engine(config());
    let (cat, dog) = (image(1, 3, 6), image(2, 3, 6));
    engine.add(album(1, 1, &[cat.clone(), dog.clone(), cat.clone()])).unwrap();
    engine.add(album(2, 1, &[dog, cat])).unwrap();
    let mut stats = Vec::new();
    while !engine.is_idle() {
        stats.push(step(&mut engine).stats);
    }
    assert_eq!(engine.runner().encodes.concat(), [1, 2]);
    let sum = |count: fn(&StepStats) -> usize| stats.iter().map(count).sum::<usize>();
    assert_eq!((sum(|s| s.image_queries), sum(|s| s.image_hits)), (5, 3));
    assert_eq!((sum(|s| s.encoded_images), sum(|s| s.encoded_patches)), (2, 12));
    let shares = stats.iter().flat_map(|s| &s.shares);
    assert_eq!(shares.filter(|share| share.id.0 == 1).map(|share| share.encoded_patches).sum::<usize>(), 12);
}

#[test]
fn a_chunk_ends_before_a_picture_that_the_budget_does_not_cover() {
    let mut engine = engine(SchedulerConfig { max_batched_tokens: 50, ..config() });
    engine.add(album(1, 2, &[image(1, 3, 8), image(2, 3, 8)])).unwrap();
    run(&mut engine);
    assert_eq!(engine.runner().steps[..2], [[(1, 0, 6)], [(1, 6, 10)]]);
    assert_eq!(engine.runner().encodes[..2], [[1], [2]]);
}

#[test]
fn a_chunk_may_end_inside_a_picture() {
    let mut engine = engine(SchedulerConfig { max_batched_tokens: 4, ..config() });
    engine.add(album(1, 2, &[image(1, 7, 8)])).unwrap();
    run(&mut engine);
    let rows = |images: &[ImageRows]| -> Vec<_> {
        images.iter().map(|rows| (rows.first_token, rows.first_row, rows.len, rows.rows.len())).collect()
    };
    let shown: Vec<_> = engine.runner().images.iter().map(|images| rows(images)).collect();
    assert_eq!(shown[..3], [vec![(2, 0, 2, 4)], vec![(0, 2, 4, 4)], vec![(0, 6, 1, 4)]]);
    assert_eq!(engine.runner().encodes.concat(), [1]);
}

/// Every picture takes more than half of the cache, so no two are there at once, and chunks of 4 end inside them.
#[test]
fn large_pictures_do_not_wait_for_each_other_for_ever() {
    let mut engine = engine(SchedulerConfig { max_batched_tokens: 4, num_blocks: 60, ..config() });
    for id in 1..=4 {
        let name = id as u8 * 10;
        engine
            .add(album(id, 1, &[image(name, 6, 12), image(name + 1, 7, 12), image(name + 2, 5, 1)]))
            .unwrap();
    }
    let mut num_steps = 0;
    let mut events = Vec::new();
    while !engine.is_idle() {
        events.extend(step(&mut engine).events);
        num_steps += 1;
        assert!(num_steps < 100, "deadlock");
    }
    assert_eq!(finished(&events).len(), 4);
    assert_eq!(engine.runner().encodes.concat().len(), 12);
}

/// Those who waited for a picture go on in their order where the step has not enough tokens for all.
#[test]
fn who_came_first_goes_on_first() {
    let mut engine = engine(SchedulerConfig { max_batched_tokens: 8, ..config() });
    // The first one's picture takes all that a step may encode; those of the others come together in the next.
    for (id, patches) in [(1, 12), (2, 4), (3, 4)] {
        engine.add(album(id, 1, &[image(id as u8, 3, patches)])).unwrap();
    }
    run(&mut engine);
    let runner = engine.runner();
    assert_eq!(runner.encodes[..2], [vec![1], vec![2, 3]]);
    assert_eq!(runner.steps[0], [(1, 0, 5), (2, 0, 1), (3, 0, 1)]);
    assert_eq!(runner.steps[1], [(1, 5, 6), (2, 1, 5), (3, 1, 4)]);
}

#[test]
fn the_least_recently_used_picture_makes_room() {
    let mut engine = engine(SchedulerConfig { enable_prefix_caching: false, ..config() });
    let pictures: Vec<_> = (0..4).map(|name| image(name, 4, 1)).collect();
    for (id, name) in [0, 1, 0, 2, 0, 1, 3].into_iter().enumerate() {
        engine.add(album(id as u64, 1, &[pictures[name].clone()])).unwrap();
        run(&mut engine);
    }
    let encoded: Vec<_> = engine.runner().encodes.concat();
    // There is room for two: 2 drops 1, 1 drops 2, 3 drops 0.
    assert_eq!(encoded, [0, 1, 2, 1, 3]);
}

#[test]
fn what_is_found_in_memory_needs_no_picture() {
    let mut engine = engine(config());
    let prompt = |id, len| {
        let span = ImageSpan { start: 1, image: image(1, 6, 6) };
        sequence_with(id, vec![7; len], vec![span], params(1))
    };
    engine.add(prompt(1, 9)).unwrap();
    run(&mut engine);
    // Pushes the picture out of the cache: it needs all of the room.
    engine.add(album(2, 1, &[image(2, 8, 6)])).unwrap();
    run(&mut engine);
    // Of 8 tokens only one block is found, which ends inside the picture; of 9 two, and the picture is read no more.
    for (id, len, cached) in [(3, 9, 8), (4, 8, 4)] {
        engine.add(prompt(id, len)).unwrap();
        assert_eq!(cached_tokens(&run(&mut engine), id), cached);
    }
    assert_eq!(engine.runner().encodes.concat(), [1, 2, 1]);
    let last = engine.runner().images.iter().rev().find(|images| !images.is_empty()).unwrap();
    assert_eq!((last[0].first_token, last[0].first_row, last[0].len), (0, 3, 3));
}

#[test]
fn equal_tokens_of_different_pictures_are_different_content() {
    let mut engine = engine(config());
    for (id, name, expected) in [(1, 1, 0), (2, 2, 0), (3, 1, 8), (4, 2, 8)] {
        let span = ImageSpan { start: 1, image: image(name, 7, 6) };
        engine.add(sequence_with(id, vec![7; 11], vec![span], params(1))).unwrap();
        assert_eq!(cached_tokens(&run(&mut engine), id), expected, "sequence {id}");
    }
}

#[test]
fn a_picture_behind_a_nan_is_encoded_again() {
    let mut engine = engine(config());
    engine.runner_mut().fail = Some((1, 0, Failure::NonFiniteLogits));
    for id in [1, 2] {
        engine.add(album(id, 1, &[image(1, 3, 6)])).unwrap();
        run(&mut engine);
    }
    assert_eq!(engine.runner().encodes.concat(), [1, 1]);
}

fn ahead() -> SchedulerConfig {
    SchedulerConfig { encode_ahead: true, max_batched_tokens: 50, ..config() }
}

#[test]
fn who_generates_does_not_wait_for_a_picture() {
    let mut engine = engine(ahead());
    engine.add(sequence(1, vec![1, 2], 8)).unwrap();
    step(&mut engine);
    engine.runner_mut().encode_steps = 3;
    engine.add(album(2, 2, &[image(1, 3, 8)])).unwrap();
    run(&mut engine);
    let runner = engine.runner();
    assert_eq!(runner.encodes[1], [1]);
    // The text before the picture at once, the picture and what follows it when it is there; the other one in every step.
    assert_eq!(runner.steps[1], [(1, 2, 3), (2, 0, 2)]);
    assert_eq!(runner.steps_of(2)[..2], [1, 5]);
    assert_eq!(runner.steps[5][1], (2, 2, 6));
    assert_eq!(runner.steps_of(1), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn where_nothing_else_is_to_be_done_a_step_waits_for_a_picture() {
    let mut engine = engine(ahead());
    engine.runner_mut().encode_steps = 100;
    engine.add(album(1, 0, &[image(1, 3, 6), image(2, 3, 6)])).unwrap();
    run(&mut engine);
    let runner = engine.runner();
    // Both are begun at once: the budget has room for them.
    assert_eq!(runner.encodes[0], [1, 2]);
    assert_eq!(runner.steps[..4], [vec![], vec![(1, 0, 4)], vec![], vec![(1, 4, 8)]]);
}

#[test]
fn what_is_under_way_is_in_the_budget_and_stays_when_its_client_goes() {
    let mut engine = engine(ahead());
    engine.runner_mut().encode_steps = 4;
    engine.add(sequence(1, vec![1, 2], 20)).unwrap();
    engine.add(album(2, 1, &[image(1, 3, 8)])).unwrap();
    step(&mut engine);
    assert!(engine.abort(SequenceId(2)));
    engine.scheduler().check();
    // Twelve patches at a time: the second picture has to wait, another one of the first has not.
    engine.add(album(3, 1, &[image(2, 3, 8)])).unwrap();
    engine.add(album(4, 1, &[image(1, 3, 8)])).unwrap();
    run(&mut engine);
    let runner = engine.runner();
    assert_eq!(runner.encodes.concat(), [1, 2]);
    assert_eq!(runner.encodes[5], [2], "as soon as the first is there");
}
