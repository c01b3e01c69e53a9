//! Weights asked for before they are read, by threads that wait for others: memory would have nothing to do meanwhile.
//!
//! What a step reads is known beforehand, but for the experts that tokens choose, and it is the same in every step: a plan is a ring.
//!
//! ```text
//! plan:     | queries, latents | keys up | values up | output | experts ? | queries, latents | …      each worker: its stretch of each
//! follower:                      ^ begun             ^ asked for so far   ^ not known before it begins
//! ```
//! Nothing is read or written: a plan whose weights are gone, or a worker that lost its place, costs time and changes no number.

use super::simd::ask_for;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that a worker asks for before the product that reads them: what is more falls out of the second cache into the last, and there
/// neighbours have a say.
const MOST_AHEAD: usize = 2 << 20;
const LINE: usize = 64;
/// What a waiting thread asks for between two looks at what it waits for, each of which is followed by a pause. A processor drops requests
/// that come faster than memory answers (docs/performance/threads.md).
const AT_ONCE: usize = 14 * LINE;

/// Weights by their address, as a region says which it begins to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(usize);

impl Key {
    /// Of all bytes of the weights.
    pub fn of(weights: &[u8]) -> Self {
        Self(weights.as_ptr().addr())
    }
}

/// Reads of one region, or those that are asked for with them.
pub(crate) struct Reads {
    pub key: Key,
    /// Addresses of runs of panels that workers share out among them.
    pub stretches: Vec<Panels>,
    /// Whether more is read that is not known before.
    pub is_choice: bool,
}

/// Panels of weights, one after the other, of which each worker reads as long a stretch.
pub(crate) struct Panels(pub Vec<(Range<usize>, usize)>);

impl Panels {
    /// Where a worker reads: address ranges, each within one of the runs of panels.
    fn of_worker(&self, worker: usize, num_workers: usize) -> impl Iterator<Item = Range<usize>> {
        let count = |(bytes, panel): &(Range<usize>, usize)| bytes.len() / panel;
        let total: usize = self.0.iter().map(count).sum();
        let [start, end] = [worker, worker + 1].map(|worker| (worker * total).div_ceil(num_workers));
        let mut before = 0;
        self.0.iter().filter_map(move |run| {
            let (first, num_panels) = (before, count(run));
            before += num_panels;
            let [from, to] = [start, end].map(|panel| panel.clamp(first, before) - first);
            let at = |panel: usize| run.0.start + panel * run.1;
            (from < to).then(|| at(from)..at(to))
        })
    }
}

/// What a step reads, in the order in which it does.
pub(crate) struct Plan {
    keys: Box<[Key]>,
    of_worker: Box<[Pieces]>,
}

struct Pieces {
    all: Box<[Piece]>,
    /// Of each step the first piece that is not of one before.
    first: Box<[usize]>,
}

struct Piece {
    step: usize,
    /// None: not known before the step has begun.
    bytes: Option<Range<usize>>,
}

impl Plan {
    pub fn new(reads: &[Reads], num_workers: usize) -> Self {
        let pieces = |worker| {
            let mut all = Vec::new();
            let mut first = Vec::new();
            for (step, Reads { stretches, is_choice, .. }) in reads.iter().enumerate() {
                first.push(all.len());
                let known = stretches.iter().flat_map(|panels| panels.of_worker(worker, num_workers));
                all.extend(known.map(|bytes| Piece { step, bytes: Some(bytes) }));
                if *is_choice {
                    all.push(Piece { step, bytes: None });
                }
            }
            let first = first.into_iter().map(|piece| if piece < all.len() { piece } else { 0 }).collect();
            Pieces { all: all.into(), first }
        };
        Self {
            keys: reads.iter().map(|reads| reads.key).collect(),
            of_worker: (0..num_workers).map(pieces).collect(),
        }
    }
}

/// The plan that a pool's workers follow, and how far each has come.
pub(crate) struct Ahead {
    plan: Mutex<Option<Arc<Plan>>>,
    /// How many plans there were.
    version: AtomicUsize,
    followers: Box<[Slot]>,
}

/// Apart from those of others, in cache lines of its own.
#[repr(align(128))]
struct Slot(Mutex<Follower>);

impl Ahead {
    pub fn new(num_workers: usize) -> Self {
        Self {
            plan: Mutex::default(),
            version: AtomicUsize::new(0),
            followers: (0..num_workers).map(|worker| Slot(Mutex::new(Follower::new(worker)))).collect(),
        }
    }

    /// In place of the plan before. A worker that waits at this moment hears of it later.
    pub fn follow(&self, plan: Arc<Plan>) {
        *lock(&self.plan) = Some(plan);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// A worker's own; nobody else asks for it.
    pub fn of(&self, worker: usize) -> MutexGuard<'_, Follower> {
        let mut follower = lock(&self.followers[worker].0);
        let version = self.version.load(Ordering::Acquire);
        if follower.version != version {
            *follower = Follower { plan: lock(&self.plan).clone(), version, ..Follower::new(worker) };
        }
        follower
    }
}

/// A panic leaves nothing behind that would be wrong: places in a plan are hints.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far a worker has come.
pub(crate) struct Follower {
    worker: usize,
    plan: Option<Arc<Plan>>,
    version: usize,
    /// The first step that has not begun.
    step: usize,
    /// The piece that is asked for next, and how many of its bytes were.
    piece: usize,
    done: usize,
    /// Bytes asked for, of steps that have not begun.
    asked: usize,
}

impl Follower {
    fn new(worker: usize) -> Self {
        Self { worker, plan: None, version: 0, step: 0, piece: 0, done: 0, asked: 0 }
    }

    /// A region begins that reads these weights: what comes after them is next.
    pub fn begin(&mut self, key: Key) {
        let Some(plan) = &self.plan else { return };
        let (count, pieces) = (plan.keys.len(), &plan.of_worker[self.worker]);
        let after = |steps: usize| (self.step + steps) % count;
        let Some(steps) = (0..count).find(|&steps| plan.keys[after(steps)] == key) else { return };
        let Some(Piece { step, .. }) = pieces.all.get(self.piece) else { return };
        let asked_steps = (step + count - self.step) % count;
        self.step = after(steps + 1);
        let first = pieces.first[self.step];
        if asked_steps <= steps {
            (self.piece, self.done, self.asked) = (first, 0, 0);
            return;
        }
        let len = |piece: &Piece| piece.bytes.as_ref().map_or(0, Range::len);
        self.asked = self.done;
        let mut piece = first;
        while piece != self.piece {
            self.asked += len(&pieces.all[piece]);
            piece = (piece + 1) % pieces.all.len();
        }
    }

    /// The next bytes of this worker; None: there are none yet, or enough were asked for.
    fn next(&mut self) -> Option<Range<usize>> {
        let pieces = &self.plan.as_ref()?.of_worker[self.worker].all;
        if self.asked >= MOST_AHEAD {
            return None;
        }
        let mut bytes = pieces.get(self.piece)?.bytes.as_ref()?;
        if self.done >= bytes.len() {
            (self.piece, self.done) = ((self.piece + 1) % pieces.len(), 0);
            bytes = pieces[self.piece].bytes.as_ref()?;
        }
        let start = bytes.start + self.done;
        let len = AT_ONCE.min(bytes.len() - self.done);
        self.done += len;
        self.asked += len;
        Some(start..start + len)
    }

    /// Asks for some lines, if there are any left to ask for.
    pub fn ask(&mut self) {
        for line in self.next().into_iter().flatten().step_by(LINE) {
            // Any address will do: nothing is read.
            ask_for(line as *const u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of panels at addresses that say which they are: run 7 is of addresses 7,000,000 and on.
    fn panels(runs: &[[usize; 3]]) -> Panels {
        let run = |&[name, count, panel]: &[usize; 3]| {
            let start = name * 1_000_000;
            (start..start + count * panel, panel)
        };
        Panels(runs.iter().map(run).collect())
    }

    fn reads(name: usize, stretches: Vec<Panels>) -> Reads {
        Reads { key: Key(name), stretches, is_choice: false }
    }

    fn follower(plan: Plan, worker: usize) -> Follower {
        Follower { plan: Some(Arc::new(plan)), ..Follower::new(worker) }
    }

    /// All that it asks for now, as runs and bytes.
    fn asked(follower: &mut Follower) -> Vec<[usize; 3]> {
        let mut asked: Vec<Range<usize>> = Vec::new();
        while let Some(bytes) = follower.next() {
            match asked.last_mut().filter(|last| last.end == bytes.start) {
                Some(last) => last.end = bytes.end,
                None => asked.push(bytes),
            }
        }
        asked.into_iter().map(|a| [a.start / 1_000_000, a.start % 1_000_000, a.end % 1_000_000]).collect()
    }

    #[test]
    fn stretches_are_whole_panels_and_all_of_them() {
        for (runs, num_workers) in [
            (&[[1, 10, 100]][..], 3),
            (&[[1, 7, 64], [2, 5, 64]], 2),
            (&[[1, 1, 64]], 2),
            (&[[1, 3, 64], [2, 1, 32], [3, 2, 8]], 7),
        ] {
            let all: Vec<Range<usize>> = (0..num_workers)
                .flat_map(|worker| panels(runs).of_worker(worker, num_workers).collect::<Vec<_>>())
                .collect();
            for run @ &[_, count, panel] in runs {
                let whole = panels(&[*run]).0[0].0.clone();
                let parts: Vec<_> = all.iter().filter(|part| whole.contains(&part.start)).collect();
                assert!(parts.iter().all(|part| part.len().is_multiple_of(panel)), "{runs:?}");
                assert_eq!(parts.iter().map(|part| part.len()).sum::<usize>(), count * panel, "{runs:?}");
                assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start), "{runs:?}");
            }
        }
        // The end of the first run and all of the second; a single panel is the first worker's.
        let second: Vec<_> = panels(&[[1, 7, 64], [2, 5, 64]]).of_worker(1, 2).collect();
        assert_eq!(second, [1_000_384..1_000_448, 2_000_000..2_000_320]);
        assert_eq!(panels(&[[1, 1, 64]]).of_worker(1, 2).count(), 0);
    }

    #[test]
    fn what_is_asked_for_follows_what_has_begun() {
        let plan = || {
            let mut choice = reads(3, vec![panels(&[[4, 2, 128]])]);
            choice.is_choice = true;
            Plan::new(
                &[
                    reads(1, vec![panels(&[[1, 4, 128]])]),
                    reads(2, vec![panels(&[[2, 1, 128]]), panels(&[[3, 4, 128]])]),
                    choice,
                    reads(5, vec![panels(&[[5, 2, 128]])]),
                ],
                2,
            )
        };
        let mut follower = follower(plan(), 1);
        // Up to the choice: the second worker's halves, and nothing of the single panel.
        assert_eq!(asked(&mut follower), [[1, 256, 512], [3, 256, 512], [4, 128, 256]]);
        follower.begin(Key(1));
        assert_eq!(asked(&mut follower), [[0; 3]; 0]);
        assert_eq!(follower.asked, 256 + 128, "of steps that have not begun");
        follower.begin(Key(9));
        follower.begin(Key(2));
        assert_eq!((asked(&mut follower), follower.asked), (vec![], 128));
        // The choice is made: on to the next step and, round the ring, up to it again.
        follower.begin(Key(3));
        assert_eq!(asked(&mut follower), [[5, 128, 256], [1, 256, 512], [3, 256, 512], [4, 128, 256]]);
        // Once round without a word of the others: what comes after is asked for anew.
        follower.begin(Key(3));
        follower.begin(Key(1));
        assert_eq!(asked(&mut follower), [[3, 256, 512], [4, 128, 256]]);
    }

    #[test]
    fn enough_is_enough() {
        let plan = Plan::new(
            &[reads(1, vec![panels(&[[1, 100, 4096]])]), reads(2, vec![panels(&[[2, 900, 1024]])])],
            1,
        );
        let mut follower = follower(plan, 0);
        asked(&mut follower);
        assert!((MOST_AHEAD..MOST_AHEAD + AT_ONCE).contains(&follower.asked), "{}", follower.asked);
        follower.begin(Key(1));
        assert_eq!(follower.next().map(|bytes| bytes.start >= 1_000_000), Some(true));
    }

    #[test]
    fn a_plan_replaces_the_one_before() {
        let ahead = Ahead::new(1);
        assert_eq!(ahead.of(0).next(), None);
        for name in [3, 5] {
            ahead.follow(Arc::new(Plan::new(&[reads(name, vec![panels(&[[name, 1, 64]])])], 1)));
            let next = ahead.of(0).next();
            assert_eq!(next, Some(name * 1_000_000..name * 1_000_000 + 64));
        }
        ahead.follow(Arc::new(Plan::new(&[], 1)));
        assert_eq!(ahead.of(0).next(), None);
        ahead.of(0).begin(Key(3));
    }
}
