//! The adapters that requests may name, which of them the runner holds, and who uses them. What the runner holds changes only when no step has
//! begun. One that is unloaded goes when the last sequence of it has ended, however long that takes.
//!
//! ```text
//!   on the host ──somebody asks for it──▶ in the runner ──▶ its sequences run        places: --max-loras
//!        ▲                                      │
//!        └──── idle, and asked for longest ago ─┘            who asks for one without a place is parked meanwhile
//! ```
//! As many as are waited for, those that were asked for longest ago, take no new sequences until somebody has got a place: whoever is parked waits
//! no longer than for those that run.

use super::event::AddError;
use super::submission::Submission;
use scheduler::AdapterId;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::oneshot;

/// What a model's loader made of an adapter's files: between it and the runner.
pub type AdapterContent = Box<dyn Any + Send>;

/// How a runner takes adapters in and lets go of them.
pub struct AdapterHooks<R> {
    pub add: fn(&mut R, AdapterId, &AdapterContent) -> Result<(), String>,
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
    /// Sequences whose adapter has no place.
    pub num_parked: usize,
    /// Adapters that were moved in for them, since this was last told.
    pub num_moved: u64,
}

/// How many adapters there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterRoom {
    /// In the runner.
    pub places: usize,
    /// With those on the host; as many: none is moved.
    pub all: usize,
}

pub(super) struct Adapters {
    room: AdapterRoom,
    held: BTreeMap<AdapterId, Held>,
    adding: Vec<Adding>,
    parked: VecDeque<Parked>,
    /// Counts requests, as a clock for who was asked for last.
    num_asked: u64,
    num_moved: u64,
    /// Since it was last asked.
    has_changed: bool,
}

/// A request whose adapter has no place.
struct Parked {
    id: AdapterId,
    submissions: Vec<Submission>,
}

/// What becomes of a request for an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// It is not served, or not any more.
    Gone,
    Ready,
    /// It has no place, or gives way to one that has none.
    Parked,
}

struct Held {
    name: Arc<str>,
    /// Kept where it may be moved in again.
    content: Option<AdapterContent>,
    in_runner: bool,
    asked_at: u64,
    num_parked: usize,
    /// Sequences that have not been in a step, and those that have.
    num_waiting: usize,
    num_running: usize,
    /// Takes no more sequences; whom to tell when it is gone.
    leaving: Option<oneshot::Sender<()>>,
}

impl Held {
    fn new(name: Arc<str>, content: Option<AdapterContent>, in_runner: bool) -> Self {
        let (num_waiting, num_running, num_parked) = (0, 0, 0);
        Self { name, content, in_runner, asked_at: 0, num_parked, num_waiting, num_running, leaving: None }
    }

    /// By sequences that the engine has.
    fn is_busy(&self) -> bool {
        self.num_waiting + self.num_running > 0
    }

    fn is_used(&self) -> bool {
        self.is_busy() || self.num_parked > 0
    }
}

impl Adapters {
    pub fn new(room: AdapterRoom) -> Self {
        Self {
            room,
            held: BTreeMap::new(),
            adding: Vec::new(),
            parked: VecDeque::new(),
            num_asked: 0,
            num_moved: 0,
            has_changed: false,
        }
    }

    pub fn add(&mut self, adding: Adding) {
        self.adding.push(adding);
    }

    /// `done` is dropped where it is not known.
    pub fn remove(&mut self, id: AdapterId, done: oneshot::Sender<()>) {
        if let Some(held) = self.held.get_mut(&id) {
            held.leaving = Some(done);
        }
    }

    /// A request asks for it.
    pub fn ask(&mut self, id: AdapterId) -> Asked {
        match self.held.get(&id) {
            Some(held) if held.leaving.is_none() => {
                if !held.in_runner || !self.parked.is_empty() && self.gives_way(id, self.wanted().len()) {
                    return Asked::Parked;
                }
                self.note_asked(id);
                Asked::Ready
            }
            _ => Asked::Gone,
        }
    }

    fn note_asked(&mut self, id: AdapterId) {
        self.num_asked += 1;
        self.held.get_mut(&id).expect("it is held").asked_at = self.num_asked;
    }

    /// Keeps a request until its adapter has a place. It asked for one that is not gone.
    pub fn park(&mut self, id: AdapterId, submissions: Vec<Submission>) {
        self.held.get_mut(&id).expect("it was asked for").num_parked += submissions.len();
        self.parked.push_back(Parked { id, submissions });
        self.has_changed = true;
    }

    pub fn num_parked(&self) -> usize {
        self.parked.iter().map(|parked| parked.submissions.len()).sum()
    }

    /// Those that are waited for and have no place, who waits longest first.
    fn wanted(&self) -> Vec<AdapterId> {
        let mut wanted = Vec::new();
        for Parked { id, .. } in &self.parked {
            if !self.held[id].in_runner && !wanted.contains(id) {
                wanted.push(*id);
            }
        }
        wanted
    }

    /// Whether it is among as many as so many others need, those that were asked for longest ago.
    fn gives_way(&self, id: AdapterId, num_wanted: usize) -> bool {
        let num_free = self.room.places.saturating_sub(self.num_in_runner());
        let asked_at = self.held[&id].asked_at;
        let earlier = self.held.values().filter(|held| held.in_runner && held.asked_at < asked_at);
        earlier.count() < num_wanted.saturating_sub(num_free)
    }

    fn num_in_runner(&self) -> usize {
        self.held.values().filter(|held| held.in_runner).count()
    }

    /// Of those in the runner that nobody uses there, the one that was asked for longest ago.
    fn idle(&self, but: &[AdapterId]) -> Option<AdapterId> {
        let idle =
            self.held.iter().filter(|(id, held)| held.in_runner && !held.is_busy() && !but.contains(id));
        idle.min_by_key(|(_, held)| held.asked_at).map(|(&id, _)| id)
    }

    /// Requests whose adapter has a place now, and need not give way to others before them, in their order.
    pub fn unpark(&mut self) -> Vec<Vec<Submission>> {
        let mut ready = Vec::new();
        if self.parked.is_empty() {
            return ready;
        }
        let mut wanted = Vec::new();
        for Parked { id, submissions } in std::mem::take(&mut self.parked) {
            let in_runner = self.held[&id].in_runner;
            if in_runner && !self.gives_way(id, wanted.len()) {
                self.leave_parked(id, submissions.len());
                self.note_asked(id);
                ready.push(submissions);
                continue;
            }
            if !in_runner && !wanted.contains(&id) {
                wanted.push(id);
            }
            self.parked.push_back(Parked { id, submissions });
        }
        ready
    }

    /// Takes out requests that nobody waits for any more, or all of them.
    pub fn drop_parked(&mut self, is_gone: impl Fn(&[Submission]) -> bool) -> Vec<Submission> {
        let mut gone = Vec::new();
        if self.parked.is_empty() {
            return gone;
        }
        for Parked { id, submissions } in std::mem::take(&mut self.parked) {
            if is_gone(&submissions) {
                self.leave_parked(id, submissions.len());
                gone.extend(submissions);
            } else {
                self.parked.push_back(Parked { id, submissions });
            }
        }
        gone
    }

    fn leave_parked(&mut self, id: AdapterId, num_sequences: usize) {
        self.held.get_mut(&id).expect("an adapter stays as long as its sequences").num_parked -=
            num_sequences;
        self.has_changed = true;
    }

    /// Whether something is to be done as soon as no step has begun.
    pub fn need_quiet(&self) -> bool {
        let is_leaving = |held: &Held| held.leaving.is_some() && !held.is_used();
        !self.adding.is_empty() || self.held.values().any(is_leaving) || self.can_move()
    }

    /// Whether one that is waited for would find a place.
    fn can_move(&self) -> bool {
        let has_place = || self.num_in_runner() < self.room.places || self.idle(&[]).is_some();
        self.parked.iter().any(|parked| !self.held[&parked.id].in_runner) && has_place()
    }

    /// Does what was asked for, and gives back requests whose adapter the runner refused, each with its words. No step has begun.
    pub fn change<R>(&mut self, runner: &mut R, hooks: &AdapterHooks<R>) -> Vec<(Submission, String)> {
        let gone = |held: &Held| held.leaving.is_some() && !held.is_used();
        let ids: Vec<AdapterId> =
            self.held.iter().filter(|(_, held)| gone(held)).map(|(&id, _)| id).collect();
        for id in ids {
            let held = self.held.remove(&id).expect("was just there");
            if held.in_runner {
                (hooks.remove)(runner, id);
            }
            if let Some(done) = held.leaving {
                let _ = done.send(());
            }
        }
        for Adding { adapter: NewAdapter { id, name, content }, done } in self.adding.drain(..) {
            let has_place = self.held.values().filter(|held| held.in_runner).count() < self.room.places;
            // Without a place it stays on the host until somebody asks for it.
            let added = if has_place { (hooks.add)(runner, id, &content) } else { Ok(()) };
            if added.is_ok() {
                let kept = self.room.all > self.room.places;
                assert!(kept || has_place, "more adapters than places");
                self.held.insert(id, Held::new(name, kept.then_some(content), has_place));
            }
            let _ = done.send(added.map_err(AddError::Refused));
        }
        if self.parked.is_empty() { Vec::new() } else { self.move_in(runner, hooks) }
    }

    /// Gives places to those that are waited for.
    fn move_in<R>(&mut self, runner: &mut R, hooks: &AdapterHooks<R>) -> Vec<(Submission, String)> {
        let (mut moved, mut refused) = (Vec::new(), Vec::new());
        for id in self.wanted() {
            if self.num_in_runner() >= self.room.places {
                let Some(idle) = self.idle(&moved) else { break };
                (hooks.remove)(runner, idle);
                self.held.get_mut(&idle).expect("it is held").in_runner = false;
            }
            let held = self.held.get_mut(&id).expect("it is waited for");
            match (hooks.add)(runner, id, held.content.as_ref().expect("it is kept")) {
                Ok(()) => {
                    held.in_runner = true;
                    self.num_moved += 1;
                    self.note_asked(id);
                    moved.push(id);
                }
                Err(message) => {
                    tracing::error!(adapter = &*held.name, error = message, "failed to move an adapter in");
                    let own = |submissions: &[Submission]| {
                        submissions.iter().any(|submission| submission.sequence.adapter == Some(id))
                    };
                    refused.extend(self.drop_parked(own).into_iter().map(|one| (one, message.clone())));
                }
            }
        }
        refused
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
            waiting: names(|held| held.num_waiting + held.num_parked > 0),
            running: names(|held| held.num_running > 0),
            num_parked: self.num_parked(),
            num_moved: std::mem::take(&mut self.num_moved),
        })
    }
}

#[cfg(test)]
mod tests;
