//! Who gets a place, who waits for one, and when an adapter is gone, with a runner that only keeps a list.

use super::*;
use crate::engine_thread::event::SequenceEvent;
use crate::engine_thread::progress::Progress;
use crate::mailbox::{self, Departures};
use scheduler::{SamplingParams, Sequence, SequenceId};
use std::num::NonZeroU64;
use std::time::Instant;

type Runner = Vec<AdapterId>;

const HOOKS: AdapterHooks<Runner> = AdapterHooks {
    add: |runner, id, content| match content.downcast_ref::<&str>() {
        Some(problem) => Err(problem.to_string()),
        None => {
            runner.push(id);
            Ok(())
        }
    },
    remove: |runner, id| runner.retain(|other| *other != id),
};

const ROOM: AdapterRoom = AdapterRoom { places: 4, all: 4 };

fn id(number: u64) -> AdapterId {
    AdapterId(NonZeroU64::new(number).expect("not 0"))
}

fn add(adapters: &mut Adapters, number: u64, name: &str) -> oneshot::Receiver<Result<(), AddError>> {
    let (done, told) = oneshot::channel();
    let adapter = NewAdapter { id: id(number), name: name.into(), content: Box::new(()) };
    adapters.add(Adding { adapter, done });
    told
}

#[test]
fn one_that_leaves_takes_nobody_and_stays_until_its_last_sequence_ends() {
    let (mut adapters, mut runner) = (Adapters::new(ROOM), Runner::new());
    let mut added = add(&mut adapters, 1, "a");
    assert!(adapters.need_quiet() && adapters.ask(id(1)) == Asked::Gone);
    adapters.change(&mut runner, &HOOKS);
    assert_eq!((added.try_recv(), adapters.need_quiet()), (Ok(Ok(())), false));
    for _ in 0..2 {
        adapters.begin_waiting(Some(id(1)));
    }
    adapters.begin_running(Some(id(1)));
    let (done, mut gone) = oneshot::channel();
    adapters.remove(id(1), done);
    for has_run in [true, false] {
        assert!(adapters.ask(id(1)) == Asked::Gone && !adapters.need_quiet());
        adapters.change(&mut runner, &HOOKS);
        assert_eq!((runner.len(), gone.try_recv().is_err()), (1, true));
        adapters.end(Some(id(1)), has_run);
    }
    assert!(adapters.need_quiet());
    adapters.change(&mut runner, &HOOKS);
    assert_eq!((runner.len(), gone.try_recv()), (0, Ok(())));
    let (done, mut unknown) = oneshot::channel();
    adapters.remove(id(1), done);
    assert_eq!(unknown.try_recv(), Err(oneshot::error::TryRecvError::Closed));
}

#[test]
fn one_that_the_runner_refuses_is_not_held() {
    let (mut adapters, mut runner) = (Adapters::new(ROOM), Runner::new());
    let (done, mut told) = oneshot::channel();
    let adapter = NewAdapter { id: id(1), name: "a".into(), content: Box::new("rank 99") };
    adapters.add(Adding { adapter, done });
    adapters.change(&mut runner, &HOOKS);
    assert_eq!(told.try_recv(), Ok(Err(AddError::Refused("rank 99".into()))));
    assert!(adapters.ask(id(1)) == Asked::Gone && !adapters.need_quiet());
}

#[test]
fn names_of_those_that_are_used_in_order_and_once() {
    let (mut adapters, mut runner) = (Adapters::new(ROOM), Runner::new());
    for (number, name) in [(1, "b"), (2, "a"), (3, "b"), (4, "unused")] {
        add(&mut adapters, number, name);
    }
    adapters.change(&mut runner, &HOOKS);
    adapters.begin_waiting(None);
    assert_eq!(adapters.news(), None);
    for number in [1, 2, 3] {
        adapters.begin_waiting(Some(id(number)));
    }
    for number in [1, 3] {
        adapters.begin_running(Some(id(number)));
    }
    let names = |names: &[&str]| names.iter().map(|&name| Arc::from(name)).collect::<Vec<Arc<str>>>();
    let used = AdaptersInUse { waiting: names(&["a"]), running: names(&["b"]), num_parked: 0, num_moved: 0 };
    assert_eq!((adapters.news(), adapters.news()), (Some(used), None));
}

/// A request with one sequence, and its client.
fn request(number: u64) -> (Vec<Submission>, mailbox::Receiver<SequenceEvent>) {
    let params = Arc::new(SamplingParams::default());
    let mut sequence = Sequence::new(SequenceId(0), vec![1], Vec::new(), params, 9).expect("sound");
    sequence.adapter = Some(id(number));
    let (events, client) = mailbox::mailbox(4, &Departures::default());
    let (progress, submitted) = (Arc::new(Progress::default()), Instant::now());
    (vec![Submission { sequence, events, progress, submitted }], client)
}

/// Which adapters those that go on have.
fn who(ready: &[Vec<Submission>]) -> Vec<u64> {
    ready.iter().map(|group| group[0].sequence.adapter.expect("one with an adapter").0.get()).collect()
}

/// So many adapters, two of which have places: the first two at first.
fn two_places(number: u64) -> (Adapters, Runner) {
    let (mut adapters, mut runner) = (Adapters::new(AdapterRoom { places: 2, all: 9 }), Runner::new());
    for number in 1..=number {
        let mut added = add(&mut adapters, number, &number.to_string());
        assert!(adapters.change(&mut runner, &HOOKS).is_empty());
        assert_eq!(added.try_recv(), Ok(Ok(())));
    }
    assert_eq!(runner, [id(1), id(2)]);
    (adapters, runner)
}

fn begin(adapters: &mut Adapters, number: u64) {
    assert_eq!(adapters.ask(id(number)), Asked::Ready, "{number}");
    adapters.begin_waiting(Some(id(number)));
}

fn park(adapters: &mut Adapters, number: u64) -> mailbox::Receiver<SequenceEvent> {
    assert_eq!(adapters.ask(id(number)), Asked::Parked, "{number}");
    let (submissions, client) = request(number);
    adapters.park(id(number), submissions);
    client
}

#[test]
fn the_one_that_was_asked_for_longest_ago_makes_room() {
    let (mut adapters, mut runner) = two_places(4);
    for number in [2, 1] {
        begin(&mut adapters, number);
        adapters.end(Some(id(number)), false);
    }
    let _client = park(&mut adapters, 4);
    assert!(adapters.need_quiet() && adapters.unpark().is_empty());
    adapters.change(&mut runner, &HOOKS);
    assert_eq!(runner, [id(1), id(4)]);
    assert_eq!(who(&adapters.unpark()), [4]);
    adapters.begin_waiting(Some(id(4)));
    // The busy one stays, whoever was asked for later.
    begin(&mut adapters, 1);
    adapters.end(Some(id(1)), false);
    let _client = park(&mut adapters, 3);
    adapters.change(&mut runner, &HOOKS);
    assert_eq!((&runner[..], who(&adapters.unpark())), (&[id(4), id(3)][..], vec![3]));
    let used = adapters.news().expect("news");
    assert_eq!((used.num_parked, used.num_moved), (0, 2));
}

#[test]
fn who_is_parked_waits_for_those_that_run_and_not_for_those_that_come() {
    let (mut adapters, mut runner) = two_places(4);
    begin(&mut adapters, 1);
    begin(&mut adapters, 2);
    let _clients = [park(&mut adapters, 3), park(&mut adapters, 3)];
    // 1 gives way, 2 goes on.
    let _behind = park(&mut adapters, 1);
    begin(&mut adapters, 2);
    assert!(!adapters.need_quiet() && adapters.unpark().is_empty());
    let used = adapters.news().expect("news");
    assert_eq!(used.waiting, ["1", "2", "3"].map(Arc::from));
    assert_eq!(used.num_parked, 3);
    adapters.end(Some(id(1)), false);
    assert!(adapters.need_quiet());
    adapters.change(&mut runner, &HOOKS);
    assert_eq!(runner, [id(2), id(3)]);
    assert_eq!(who(&adapters.unpark()), [3, 3]);
    adapters.begin_waiting(Some(id(3)));
    // Now 1 waits, for the first that is idle.
    assert!(!adapters.need_quiet());
    adapters.end(Some(id(3)), false);
    adapters.change(&mut runner, &HOOKS);
    assert_eq!((&runner[..], who(&adapters.unpark())), (&[id(2), id(1)][..], vec![1]));
}

/// With one place everybody gives way to everybody else in turn.
#[test]
fn one_place_goes_round() {
    let (mut adapters, mut runner) = (Adapters::new(AdapterRoom { places: 1, all: 3 }), Runner::new());
    for number in 1..=3 {
        add(&mut adapters, number, "name");
        adapters.change(&mut runner, &HOOKS);
    }
    begin(&mut adapters, 1);
    let _clients = [2, 3, 1, 2, 2].map(|number| park(&mut adapters, number));
    for (ends, next, ready) in [(1, 2, vec![2]), (2, 3, vec![3]), (3, 1, vec![1]), (1, 2, vec![2, 2])] {
        assert!(adapters.unpark().is_empty() && !adapters.need_quiet());
        adapters.end(Some(id(ends)), false);
        adapters.change(&mut runner, &HOOKS);
        assert_eq!((&runner[..], who(&adapters.unpark())), (&[id(next)][..], ready));
        adapters.begin_waiting(Some(id(next)));
    }
    assert_eq!(adapters.num_parked(), 0);
}

#[test]
fn one_that_leaves_is_moved_in_for_those_that_asked_before() {
    let (mut adapters, mut runner) = two_places(3);
    begin(&mut adapters, 1);
    begin(&mut adapters, 2);
    let client = park(&mut adapters, 3);
    let (done, mut gone) = oneshot::channel();
    adapters.remove(id(3), done);
    adapters.change(&mut runner, &HOOKS);
    assert_eq!((adapters.ask(id(3)), gone.try_recv().is_err()), (Asked::Gone, true));
    adapters.end(Some(id(2)), false);
    adapters.change(&mut runner, &HOOKS);
    assert_eq!((&runner[..], who(&adapters.unpark())), (&[id(1), id(3)][..], vec![3]));
    adapters.begin_waiting(Some(id(3)));
    adapters.end(Some(id(3)), false);
    adapters.change(&mut runner, &HOOKS);
    assert_eq!((&runner[..], gone.try_recv()), (&[id(1)][..], Ok(())));
    drop(client);
    // Of those on the host nothing has to leave the runner.
    let (done, mut gone) = oneshot::channel();
    begin(&mut adapters, 1);
    let mut added = add(&mut adapters, 5, "5");
    adapters.change(&mut runner, &HOOKS);
    assert_eq!((added.try_recv(), &runner[..]), (Ok(Ok(())), &[id(1), id(5)][..]));
    let mut added = add(&mut adapters, 6, "6");
    adapters.change(&mut runner, &HOOKS);
    adapters.remove(id(6), done);
    adapters.change(&mut runner, &HOOKS);
    assert_eq!((added.try_recv(), gone.try_recv(), runner.len()), (Ok(Ok(())), Ok(()), 2));
}

#[test]
fn clients_that_go_and_adapters_that_the_runner_refuses() {
    let (mut adapters, mut runner) = two_places(2);
    let (done, _told) = oneshot::channel();
    let adapter = NewAdapter { id: id(3), name: "3".into(), content: Box::new("out of memory") };
    adapters.add(Adding { adapter, done });
    adapters.change(&mut runner, &HOOKS);
    begin(&mut adapters, 1);
    begin(&mut adapters, 2);
    let [gone, stays] = [park(&mut adapters, 3), park(&mut adapters, 3)];
    drop(gone);
    let closed = |group: &[Submission]| group.iter().all(|one| one.events.is_closed());
    assert_eq!((adapters.drop_parked(closed).len(), adapters.num_parked()), (1, 1));
    adapters.end(Some(id(1)), false);
    let refused = adapters.change(&mut runner, &HOOKS);
    assert_eq!(refused.iter().map(|(_, message)| &message[..]).collect::<Vec<_>>(), ["out of memory"]);
    // Its place is free for others.
    assert_eq!((adapters.num_parked(), &runner[..], adapters.need_quiet()), (0, &[id(2)][..], false));
    drop(stays);
}
