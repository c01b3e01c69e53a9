//! Prefixes that lose their blocks and come back from the host's memory.

mod common;

use common::*;
use scheduler::*;

/// Ten blocks of four tokens, and a second tier.
fn two_tiers(num_host_blocks: usize) -> SchedulerConfig {
    SchedulerConfig { num_blocks: 10, num_host_blocks, max_batched_tokens: 64, ..config() }
}

/// A prompt of its own, and one token.
fn one(id: u64, len: usize) -> Sequence {
    sequence(id, (0..len as TokenId).map(|i| 100 * id as TokenId + i).collect(), 1)
}

/// The prompt of another.
fn again(id: u64, first: u64, len: usize) -> Sequence {
    sequence(id, one(first, len).tokens().to_vec(), 1)
}

fn num_copies(orders: &[Vec<BlockCopy>]) -> usize {
    orders.iter().map(Vec::len).sum()
}

fn num_loaded(engine: &Engine<Counter>) -> usize {
    let loads = engine.runner().loads.iter().flatten();
    loads.map(|load| load.copies.len()).sum()
}

/// Three prompts of 17 tokens in ten blocks, one after the other, and the first once more.
fn cached_in_turns(num_host_blocks: usize) -> (Engine<Counter>, usize) {
    let mut engine = engine(two_tiers(num_host_blocks));
    let sequences = [one(1, 17), one(2, 17), one(3, 17), again(4, 1, 17)];
    let mut events = Vec::new();
    for sequence in sequences {
        engine.add(sequence).unwrap();
        events.extend(run(&mut engine));
    }
    let cached = cached_tokens(&events, 4);
    (engine, cached)
}

#[test]
fn what_lost_its_blocks_is_found_on_the_host() {
    let (engine, cached) = cached_in_turns(0);
    assert_eq!((cached, num_copies(&engine.runner().stores), num_loaded(&engine)), (0, 0, 0));
    let (engine, cached) = cached_in_turns(20);
    // The third prompt took the first one's four blocks, and the fourth, which is the first again, those of the second.
    assert_eq!((cached, num_copies(&engine.runner().stores), num_loaded(&engine)), (16, 8, 4));
    let copied = |copies: &[BlockCopy]| copies.iter().map(|copy| copy.host).collect::<Vec<_>>();
    let runner = engine.runner();
    let stored: Vec<_> = runner.stores.iter().filter(|stores| !stores.is_empty()).collect();
    let mut first = copied(stored[0]);
    let load = runner.loads.iter().flatten().next().unwrap();
    first.reverse();
    // A table is freed from its tail, so it is stored from its tail.
    assert_eq!((load.id, copied(&load.copies)), (SequenceId(4), first));
    // A step without rows, for the copies alone, and then the token that is always computed.
    assert_eq!(runner.steps[3..], [vec![], vec![(4, 16, 17)]]);
    let occupancy = engine.occupancy();
    assert_eq!((occupancy.host_blocks_used, occupancy.host_blocks_total), (8, 20));
}

#[test]
fn a_block_that_was_loaded_is_not_stored_again() {
    let (mut engine, _) = cached_in_turns(20);
    let before = num_copies(&engine.runner().stores);
    engine.add(one(5, 33)).unwrap();
    run(&mut engine);
    // The first prompt's blocks are given away once more, and the third one's for the first time.
    assert_eq!(num_copies(&engine.runner().stores) - before, 4);
    engine.add(again(6, 1, 17)).unwrap();
    assert_eq!(cached_tokens(&run(&mut engine), 6), 16);
}

#[test]
fn a_prefix_may_be_in_both_tiers() {
    let mut engine = engine(two_tiers(20));
    engine.add(one(1, 17)).unwrap();
    run(&mut engine);
    // Takes the tail of the first one, and all that is blank.
    engine.add(one(2, 31)).unwrap();
    run(&mut engine);
    engine.add(again(3, 1, 17)).unwrap();
    let mut stats = Vec::new();
    while !engine.is_idle() {
        stats.push(step(&mut engine).stats);
    }
    let load = engine.runner().loads.iter().flatten().next().unwrap();
    assert!(load.copies.len() < 4, "some are on the device: {:?}", load.copies);
    assert_eq!((stats[0].prefix_hits, stats[0].host_hits), (16, 4 * load.copies.len()));
    assert_eq!(stats[0].loaded_blocks, load.copies.len());
}

#[test]
fn nobody_waits_for_a_load_but_its_sequence() {
    let (mut engine, _) = cached_in_turns(20);
    engine.runner_mut().load_steps = 3;
    engine.add(sequence(5, vec![7, 8], 6)).unwrap();
    step(&mut engine);
    engine.add(again(6, 2, 17)).unwrap();
    let first = engine.runner().steps.len();
    let events = run(&mut engine);
    let steps = &engine.runner().steps[first..];
    assert!(steps[..4].iter().all(|step| step.iter().all(|item| item.0 == 5)), "{steps:?}");
    assert_eq!(steps[4], [(5, 6, 7), (6, 16, 17)]);
    assert_eq!(cached_tokens(&events, 6), 16);
    assert!(engine.runner().waits_for_loads.iter().all(|waits| !waits));
}

#[test]
fn whoever_begins_with_a_prefix_that_is_being_loaded_waits_for_it() {
    let (mut engine, _) = cached_in_turns(20);
    engine.runner_mut().load_steps = 2;
    engine.add(again(5, 2, 17)).unwrap();
    engine.add(again(6, 2, 17)).unwrap();
    let before = num_loaded(&engine);
    let events = run(&mut engine);
    assert_eq!((cached_tokens(&events, 5), cached_tokens(&events, 6)), (16, 16));
    assert_eq!(num_loaded(&engine) - before, 4, "once for both");
}

#[test]
fn blocks_that_are_given_back_while_they_are_loaded_are_waited_for() {
    let (mut engine, _) = cached_in_turns(20);
    engine.runner_mut().load_steps = 5;
    engine.add(again(5, 2, 17)).unwrap();
    engine.add(sequence(6, vec![7, 8], 9)).unwrap();
    step(&mut engine);
    assert!(engine.abort(SequenceId(5)));
    let first = engine.runner().steps.len();
    run(&mut engine);
    let waits = &engine.runner().waits_for_loads[first..];
    assert!(waits[0] && waits[1..].iter().all(|waits| !waits), "{waits:?}");
    // All of it is there for the next one.
    engine.runner_mut().load_steps = 0;
    engine.add(again(7, 2, 17)).unwrap();
    assert_eq!(cached_tokens(&run(&mut engine), 7), 16);
}

#[test]
fn a_sequence_that_lost_its_place_is_not_computed_again() {
    let computed = |num_host_blocks| {
        let config = SchedulerConfig { num_blocks: 9, ..two_tiers(num_host_blocks) };
        let mut engine = engine(config);
        engine.add(sequence(1, (100..112).collect(), 20)).unwrap();
        engine.add(sequence(2, (200..212).collect(), 20)).unwrap();
        let events = run(&mut engine);
        let preemptions: usize = finished(&events).iter().map(|(_, _, preemptions)| preemptions).sum();
        assert!(preemptions > 0);
        (engine.runner().num_tokens(), num_loaded(&engine))
    };
    let (without, none) = computed(0);
    let (with, loaded) = computed(20);
    assert!(none == 0 && loaded > 0);
    assert_eq!(without - with, 4 * loaded, "tokens that were not computed again");
}

#[test]
fn what_cannot_be_trusted_is_not_found_on_the_host_either() {
    let (mut engine, _) = cached_in_turns(20);
    engine.runner_mut().fail = Some((5, 0, Failure::NonFiniteLogits));
    for (id, expected) in [(5, 16), (6, 0)] {
        engine.add(again(id, 2, 17)).unwrap();
        assert_eq!(cached_tokens(&run(&mut engine), id), expected, "sequence {id}");
    }
}

#[test]
fn what_cannot_be_trusted_is_not_found_when_it_has_been_loaded() {
    let mut engine = engine(two_tiers(20));
    for id in 1..8 {
        engine.add(one(id, 9)).unwrap();
        run(&mut engine);
    }
    engine.add(sequence(10, vec![7, 8], 12)).unwrap();
    engine.runner_mut().load_steps = 5;
    engine.runner_mut().fail = Some((11, 0, Failure::NonFiniteLogits));
    let mut events = Vec::new();
    // The second one does not wait for a worse priority: it loads the same, and its copies land when the first has failed.
    engine.add(again(11, 1, 9)).unwrap();
    (0..3).for_each(|_| events.extend(step(&mut engine).events));
    engine.add(with_priority(again(12, 1, 9), -1)).unwrap();
    events.extend(run(&mut engine));
    assert_eq!((cached_tokens(&events, 11), cached_tokens(&events, 12)), (8, 8));
    let loads = engine.runner().loads.iter().flatten();
    assert_eq!(loads.map(|load| load.id.0).collect::<Vec<_>>(), [11, 12]);
    let ends: Vec<u64> = finished(&events).iter().map(|(id, ..)| *id).collect();
    assert_eq!(ends, [11, 12, 10]);
    engine.add(again(13, 1, 9)).unwrap();
    assert_eq!(cached_tokens(&run(&mut engine), 13), 0);
}

#[test]
fn a_load_of_an_earlier_life_is_not_waited_for_in_the_next() {
    let mut engine = engine(two_tiers(40));
    for id in 1..8 {
        engine.add(one(id, 9)).unwrap();
        run(&mut engine);
    }
    engine.runner_mut().load_steps = 20;
    engine.add(sequence(10, (5000..5022).collect(), 8)).unwrap();
    step(&mut engine);
    engine.add(again(11, 1, 9)).unwrap();
    let events = run(&mut engine);
    // It lost its place to the other one before its prefix was there, and asks for it again when that one has ended.
    assert_eq!(finished(&events), [(10, FinishReason::Length, 0), (11, FinishReason::Length, 1)]);
    let runner = engine.runner();
    let loads = runner.loads.iter().flatten();
    assert_eq!(loads.map(|load| (load.id.0, load.copies.len())).collect::<Vec<_>>(), [(11, 2); 2]);
    // Steps without rows bring one load each: the first is for nobody.
    let last = &runner.steps[runner.steps.len() - 3..];
    assert_eq!(last, [vec![], vec![], vec![(11, 8, 9)]]);
    assert_eq!(runner.waits_for_loads.iter().filter(|waits| **waits).count(), 1);
}

#[test]
fn a_small_tier_keeps_what_was_used_last() {
    let (engine, cached) = cached_in_turns(3);
    // Of the first prompt's four blocks the tail was stored first and made room; the second's blocks found its places being read.
    assert_eq!((cached, num_loaded(&engine)), (12, 3));
    assert!(engine.occupancy().host_blocks_used <= 3);
}

#[test]
fn a_tier_needs_a_prefix_cache() {
    let config = SchedulerConfig { enable_prefix_caching: false, ..two_tiers(1) };
    assert_eq!(config.check().unwrap_err().field, "num_host_blocks");
    let config = SchedulerConfig { num_host_blocks: 1 << 33, ..two_tiers(0) };
    assert_eq!(config.check().unwrap_err().field, "num_host_blocks");
}
