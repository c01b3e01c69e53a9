//! The adapters that the runner holds, and who uses them. One comes and goes only when no step has begun: it goes when the last sequence
//! of it has ended, however long that takes.

use super::event::AddError;
use scheduler::AdapterId;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What a model's loader made of an adapter's files: between it and the runner.
pub type AdapterContent = Box<dyn Any + Send>;

/// How a runner takes adapters in and lets go of them.
pub struct AdapterHooks<R> {
    pub add: fn(&mut R, AdapterId, AdapterContent) -> Result<(), String>,
    /// No sequence of it is running.
    pub remove: fn(&mut R, AdapterId),
}

/// An adapter on its way to the runner.
pub struct NewAdapter {
    pub id: AdapterId,
    pub name: Arc<str>,
    pub content: AdapterContent,
}

pub(super) struct Adding {
    pub adapter: NewAdapter,
    pub done: oneshot::Sender<Result<(), AddError>>,
}

/// Those that are used, as the metrics tell them: names, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AdaptersInUse {
    pub waiting: Vec<Arc<str>>,
    pub running: Vec<Arc<str>>,
}

#[derive(Default)]
pub(super) struct Adapters {
    held: BTreeMap<AdapterId, Held>,
    adding: Vec<Adding>,
    /// Since it was last asked.
    has_changed: bool,
}

struct Held {
    name: Arc<str>,
    /// Sequences that have not been in a step, and those that have.
    num_waiting: usize,
    num_running: usize,
    /// Takes no more sequences; whom to tell when it is gone.
    leaving: Option<oneshot::Sender<()>>,
}

impl Held {
    fn is_used(&self) -> bool {
        self.num_waiting + self.num_running > 0
    }
}

impl Adapters {
    pub fn add(&mut self, adding: Adding) {
        self.adding.push(adding);
    }

    /// `done` is dropped where it is not known.
    pub fn remove(&mut self, id: AdapterId, done: oneshot::Sender<()>) {
        if let Some(held) = self.held.get_mut(&id) {
            held.leaving = Some(done);
        }
    }

    /// Whether sequences of it are taken.
    pub fn takes(&self, id: AdapterId) -> bool {
        self.held.get(&id).is_some_and(|held| held.leaving.is_none())
    }

    /// Whether something is to be done as soon as no step has begun.
    pub fn need_quiet(&self) -> bool {
        !self.adding.is_empty() || self.held.values().any(|held| held.leaving.is_some() && !held.is_used())
    }

    /// Does what was asked for. No step has begun.
    pub fn change<R>(&mut self, runner: &mut R, hooks: &AdapterHooks<R>) {
        let gone = |held: &Held| held.leaving.is_some() && !held.is_used();
        let ids: Vec<AdapterId> =
            self.held.iter().filter(|(_, held)| gone(held)).map(|(&id, _)| id).collect();
        for id in ids {
            (hooks.remove)(runner, id);
            let held = self.held.remove(&id).expect("was just there");
            if let Some(done) = held.leaving {
                let _ = done.send(());
            }
        }
        for Adding { adapter: NewAdapter { id, name, content }, done } in self.adding.drain(..) {
            let added = (hooks.add)(runner, id, content);
            if added.is_ok() {
                self.held.insert(id, Held { name, num_waiting: 0, num_running: 0, leaving: None });
            }
            let _ = done.send(added.map_err(AddError::Refused));
        }
    }

    pub fn begin_waiting(&mut self, id: Option<AdapterId>) {
        self.note(id, |held| held.num_waiting += 1);
    }

    pub fn begin_running(&mut self, id: Option<AdapterId>) {
        self.note(id, |held| {
            held.num_waiting -= 1;
            held.num_running += 1;
        });
    }

    pub fn end(&mut self, id: Option<AdapterId>, has_run: bool) {
        self.note(id, |held| match has_run {
            true => held.num_running -= 1,
            false => held.num_waiting -= 1,
        });
    }

    fn note(&mut self, id: Option<AdapterId>, note: impl FnOnce(&mut Held)) {
        let Some(id) = id else { return };
        note(self.held.get_mut(&id).expect("an adapter stays as long as its sequences"));
        self.has_changed = true;
    }

    /// Who is used, where that may have changed since the last call.
    pub fn news(&mut self) -> Option<AdaptersInUse> {
        if !std::mem::take(&mut self.has_changed) {
            return None;
        }
        let names = |is_named: fn(&Held) -> bool| {
            let mut names: Vec<Arc<str>> =
                self.held.values().filter(|held| is_named(held)).map(|held| held.name.clone()).collect();
            names.sort_unstable();
            // A name that was loaded again, while the old adapter's sequences run.
            names.dedup();
            names
        };
        Some(AdaptersInUse {
            waiting: names(|held| held.num_waiting > 0),
            running: names(|held| held.num_running > 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU64;

    type Runner = Vec<AdapterId>;

    const HOOKS: AdapterHooks<Runner> = AdapterHooks {
        add: |runner, id, content| match content.downcast::<&str>() {
            Ok(problem) => Err(problem.to_string()),
            Err(_) => {
                runner.push(id);
                Ok(())
            }
        },
        remove: |runner, id| runner.retain(|other| *other != id),
    };

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
        let (mut adapters, mut runner) = (Adapters::default(), Runner::new());
        let mut added = add(&mut adapters, 1, "a");
        assert!(adapters.need_quiet() && !adapters.takes(id(1)));
        adapters.change(&mut runner, &HOOKS);
        assert_eq!((added.try_recv(), adapters.need_quiet()), (Ok(Ok(())), false));
        for _ in 0..2 {
            adapters.begin_waiting(Some(id(1)));
        }
        adapters.begin_running(Some(id(1)));
        let (done, mut gone) = oneshot::channel();
        adapters.remove(id(1), done);
        for has_run in [true, false] {
            assert!(!adapters.takes(id(1)) && !adapters.need_quiet());
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
        let (mut adapters, mut runner) = (Adapters::default(), Runner::new());
        let (done, mut told) = oneshot::channel();
        let adapter = NewAdapter { id: id(1), name: "a".into(), content: Box::new("rank 99") };
        adapters.add(Adding { adapter, done });
        adapters.change(&mut runner, &HOOKS);
        assert_eq!(told.try_recv(), Ok(Err(AddError::Refused("rank 99".into()))));
        assert!(!adapters.takes(id(1)) && !adapters.need_quiet());
    }

    #[test]
    fn names_of_those_that_are_used_in_order_and_once() {
        let (mut adapters, mut runner) = (Adapters::default(), Runner::new());
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
        let used = AdaptersInUse { waiting: names(&["a"]), running: names(&["b"]) };
        assert_eq!((adapters.news(), adapters.news()), (Some(used), None));
    }
}
