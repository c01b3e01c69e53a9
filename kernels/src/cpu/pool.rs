//! The thread pool: one parallel region at a time, the caller works too. A region is one phase of tasks or a few; each worker has a stretch
//! of a phase's tasks, which it takes from the front, and then half of what another has left.
//!
//! Tasks that follow each other read memory that does: one worker that reads on is served better by the processor's look-ahead than
//! several that take turns (docs/performance/threads.md).
//!
//! Idle workers spin for a moment, since the next op of a step follows at once, and then sleep. Whoever waits asks for the memory that comes
//! next (`ahead`). A region is *open*
//! while it has tasks; a worker enters it by raising a count, and the caller closes it and waits for those inside only. So a
//! worker that the system has not woken yet costs nothing, which matters when other programs want the processors too.
//!
//! ```text
//! state: | epoch 32 | open 1 | entered 31 |          stretch: | end 32 | next 32 |, one for each phase and worker
//! ```

use super::affinity;
use super::ahead::{Ahead, Key, Plan};
use crate::Error;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than what one thread does between two regions of a step, such as attention of one row: waking a worker that sleeps costs as much.
const SPIN: Duration = Duration::from_micros(200);
const OPEN: u64 = 1 << 31;
const ENTERED: u64 = OPEN - 1;
const EPOCH: u64 = 1 << 32;

/// Phases of a region at most.
const MAX_PHASES: usize = 4;

type Task<'a> = dyn Fn(usize, usize, usize) + Sync + 'a;

/// Tasks that none of the next phase begins before.
#[derive(Clone, Copy)]
pub(crate) struct Phase {
    pub num_tasks: usize,
    /// The weights that they read, where they are in a plan.
    pub reads: Option<Key>,
}

impl From<usize> for Phase {
    fn from(num_tasks: usize) -> Self {
        Self { num_tasks, reads: None }
    }
}

pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One region at a time.
    caller: Mutex<()>,
}

struct Shared {
    state: AtomicU64,
    /// Of each worker.
    stretches: Box<[Stretches]>,
    phases: [Progress; MAX_PHASES],
    num_phases: AtomicUsize,
    /// Written before a region opens, read by those who entered it.
    task: UnsafeCell<Option<*const Task<'static>>>,
    panicked: AtomicBool,
    ahead: Ahead,
    quit: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

#[derive(Default)]
struct Progress {
    num_tasks: AtomicUsize,
    /// What its tasks read, as each worker hears when it comes to them.
    reads: UnsafeCell<Option<Key>>,
    /// Tasks that have ended, where another phase follows.
    done: AtomicUsize,
}

/// What a worker has left of each phase. Apart from those of others, in cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Stretches([Stretch; MAX_PHASES]);

/// Tasks `next .. end`. Only the worker whose it is fills it again, when it is empty.
#[derive(Default)]
struct Stretch(AtomicU64);

impl Stretch {
    fn fill(&self, tasks: Range<u32>) {
        self.0.store(u64::from(tasks.end) << 32 | u64::from(tasks.start), Ordering::Relaxed);
    }

    fn left(bits: u64) -> Range<u32> {
        bits as u32..(bits >> 32) as u32
    }

    /// Replaces what is left by `keep(left)` and returns what it was; `None`: it was empty.
    fn replace(&self, keep: impl Fn(Range<u32>) -> Range<u32>) -> Option<Range<u32>> {
        let update = |bits| {
            let left = Self::left(bits);
            (!left.is_empty()).then(|| {
                let kept = keep(left);
                u64::from(kept.end) << 32 | u64::from(kept.start)
            })
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).ok().map(Self::left)
    }

    fn take(&self) -> Option<u32> {
        self.replace(|left| left.start + 1..left.end).map(|left| left.start)
    }

    /// The second half of what is left, all where that is one task.
    fn split(&self) -> Option<Range<u32>> {
        let middle = |left: &Range<u32>| left.start + left.len() as u32 / 2;
        let left = self.replace(|left| left.start..middle(&left))?;
        Some(middle(&left)..left.end)
    }
}

// SAFETY: `task`, and what phases read, are written only while no worker is inside a region, and read only inside.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `task` is used only while `run`, which borrows its target, has not returned.
unsafe impl Send for Shared {}

impl Pool {
    /// Workers are pinned to `cpus`, one each, and with them the caller, which is worker 0; to none where there are none. Fails where the system
    /// starts no more threads; those that were started have ended then.
    pub fn new(num_workers: usize, cpus: &[usize]) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            stretches: (0..num_workers.max(1)).map(|_| Stretches::default()).collect(),
            phases: Default::default(),
            num_phases: AtomicUsize::new(0),
            task: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            ahead: Ahead::new(num_workers.max(1)),
            quit: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Self { threads: Vec::new(), shared, caller: Mutex::new(()) };
        let (begin, begun) = mpsc::channel::<()>();
        for worker in 1..num_workers {
            let (shared, begin) = (Arc::clone(&pool.shared), begin.clone());
            let cpu = cpus.get(worker).copied();
            let thread = std::thread::Builder::new().name(format!("kernels-{worker}")).spawn(move || {
                cpu.into_iter().for_each(affinity::pin);
                drop(begin);
                shared.work(worker);
            });
            // Dropped, the pool ends the others.
            let thread = thread.map_err(|error| Error::NoThread {
                thread: worker + 1,
                threads: num_workers,
                reason: error.to_string(),
            })?;
            pool.threads.push(thread);
        }
        drop(begin);
        // A thread allocates while it begins, and steps must not: the channel ends when all have begun.
        let _ = begun.recv();
        // Last: who is started by a pinned thread begins where it is.
        cpus.first().copied().into_iter().for_each(affinity::pin);
        Ok(pool)
    }

    /// Threads that run tasks, the caller included. Worker 0 is the caller.
    pub fn num_workers(&self) -> usize {
        self.threads.len() + 1
    }

    /// What regions will read from now on, in their order, round and round.
    pub fn follow(&self, plan: Arc<Plan>) {
        self.shared.ahead.follow(plan);
    }

    /// Calls `task(index, worker)` once for each index below `num_tasks`, on any worker, and returns when all are done.
    /// A task must not call `run`.
    pub fn run(&self, num_tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        self.run_phases(&[num_tasks.into()], &|_, index, worker| task(index, worker));
    }

    /// As `run`, for tasks of up to four phases in one region: `task(phase, index, worker)`. No task of a phase begins before every
    /// task of the one before has ended; who comes to one too early waits for those who still have one.
    pub fn run_phases(&self, phases: &[Phase], task: &Task) {
        if self.threads.is_empty() || phases.iter().map(|phase| phase.num_tasks).sum::<usize>() <= 1 {
            for (phase, &Phase { num_tasks, reads }) in phases.iter().enumerate() {
                reads.into_iter().for_each(|key| self.shared.ahead.of(0).begin(key));
                (0..num_tasks).for_each(|index| task(phase, index, 0));
            }
            return;
        }
        let _one_region = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: nobody is inside a region: the last one was closed and left before its `run` returned. The lifetime is
        // erased, but this `run` leaves only after every worker has left the region.
        unsafe {
            *shared.task.get() = Some(std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task))
        };
        // SAFETY: as above.
        unsafe { shared.hand_out(phases) };
        let epoch = (shared.state.load(Ordering::Relaxed) & !(OPEN | ENTERED)).wrapping_add(EPOCH);
        shared.state.store(epoch | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _awake = shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            shared.wake.notify_all();
        }
        let own = shared.work_through(task, 0);
        shared.close_and_wait(0);
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        match own {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => assert!(!panicked, "a task of a parallel region panicked"),
        }
    }
}

/// With more threads than processors, the one that is waited for may need this one's.
fn pause(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(256) { std::thread::yield_now() } else { std::hint::spin_loop() }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        {
            let _awake = self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.wake.notify_all();
        }
        for thread in self.threads.drain(..) {
            thread.join().expect("workers catch the panics of tasks");
        }
    }
}

impl Shared {
    /// Every worker's stretch of every phase.
    ///
    /// # Safety
    /// Nobody is inside a region.
    unsafe fn hand_out(&self, phases: &[Phase]) {
        assert!(phases.len() <= MAX_PHASES, "{} phases of a region", phases.len());
        for (index, &Phase { num_tasks, reads }) in phases.iter().enumerate() {
            assert!(num_tasks <= u32::MAX as usize, "{num_tasks} tasks of a phase");
            self.phases[index].num_tasks.store(num_tasks, Ordering::Relaxed);
            // SAFETY: the caller's promise.
            unsafe { *self.phases[index].reads.get() = reads };
            self.phases[index].done.store(0, Ordering::Relaxed);
            let start = |worker: usize| (worker * num_tasks).div_ceil(self.stretches.len()) as u32;
            for (worker, stretches) in self.stretches.iter().enumerate() {
                stretches.0[index].fill(start(worker)..start(worker + 1));
            }
        }
        self.num_phases.store(phases.len(), Ordering::Relaxed);
    }

    /// Tasks of the open region until there are none left to take. After a panic nobody needs to start what is left.
    fn work_through(&self, task: &Task, worker: usize) -> std::thread::Result<()> {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let num_phases = self.num_phases.load(Ordering::Relaxed);
            for phase in 0..num_phases {
                if phase > 0 && !self.has_ended(phase - 1, worker) {
                    return;
                }
                // SAFETY: written before the region opened.
                let reads = unsafe { *self.phases[phase].reads.get() };
                reads.into_iter().for_each(|key| self.ahead.of(worker).begin(key));
                let mut done = 0;
                while let Some(index) = self.take(phase, worker) {
                    task(phase, index, worker);
                    done += 1;
                }
                // Told when there is nothing left to take, and only where somebody waits for it: a line that another worker has written takes
                // 50 to 350 ns to write, and nothing is read meanwhile.
                if done > 0 && phase + 1 < num_phases {
                    self.phases[phase].done.fetch_add(done, Ordering::Release);
                }
            }
        }));
        if result.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        result
    }

    /// The next task of a worker's own stretch, which it fills from others'.
    fn take(&self, phase: usize, worker: usize) -> Option<usize> {
        let own = &self.stretches[worker].0[phase];
        let mut next = own.take();
        if next.is_none() {
            let count = self.stretches.len();
            let others = (1..count).map(|i| &self.stretches[(worker + i) % count].0[phase]);
            let half = others.filter_map(Stretch::split).next()?;
            own.fill(half.start + 1..half.end);
            next = Some(half.start);
        }
        next.map(|index| index as usize).filter(|_| !self.panicked.load(Ordering::Relaxed))
    }

    /// Waits for the tasks of a phase, all of which are with workers that run; false: one of them panicked.
    fn has_ended(&self, phase: usize, worker: usize) -> bool {
        let Progress { num_tasks, done, .. } = &self.phases[phase];
        let num_tasks = num_tasks.load(Ordering::Relaxed);
        let is_over = || done.load(Ordering::Acquire) >= num_tasks || self.panicked.load(Ordering::Relaxed);
        self.wait_until(is_over, worker);
        done.load(Ordering::Acquire) >= num_tasks
    }

    fn close_and_wait(&self, worker: usize) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        self.wait_until(|| self.state.load(Ordering::Acquire) & ENTERED == 0, worker);
    }

    /// Waits for what others do, and asks for what comes meanwhile.
    fn wait_until(&self, is_over: impl Fn() -> bool, worker: usize) {
        if is_over() {
            return;
        }
        let (mut follower, mut spins) = (self.ahead.of(worker), 0u32);
        while !is_over() {
            follower.ask();
            pause(&mut spins);
        }
    }

    fn work(&self, worker: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.wait_for_region(seen, worker) {
            seen = epoch;
            // SAFETY: entered: the region's task stays in place, and its target alive, until this worker leaves.
            let task = unsafe { &*(*self.task.get()).expect("an open region has a task") };
            // What a panic says was told where it happened; the caller hears that there was one.
            drop(self.work_through(task, worker));
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Enters the next open region after the one `seen`, and returns its epoch. None: the pool is being dropped.
    fn wait_for_region(&self, seen: u64, worker: usize) -> Option<u64> {
        loop {
            let start = Instant::now();
            let mut follower = self.ahead.of(worker);
            while start.elapsed() < SPIN {
                for _ in 0..64 {
                    if let Some(epoch) = self.try_enter(seen) {
                        return Some(epoch);
                    }
                    follower.ask();
                    std::hint::spin_loop();
                }
            }
            drop(follower);
            let guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            // Either this sees the region that `run` opened, or `run` sees this sleeper and, since it must take the lock,
            // notifies after the wait has begun.
            let state = self.state.load(Ordering::SeqCst);
            let quit = self.quit.load(Ordering::SeqCst);
            let is_news = state & OPEN != 0 && state >> 32 != seen >> 32;
            if !is_news && !quit {
                drop(self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner));
            } else {
                drop(guard);
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            if self.quit.load(Ordering::SeqCst) {
                return None;
            }
        }
    }

    fn try_enter(&self, seen: u64) -> Option<u64> {
        let state = self.state.load(Ordering::Acquire);
        let epoch = state & !(OPEN | ENTERED);
        if state & OPEN == 0 || epoch == seen {
            return None;
        }
        let entered = self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
        entered.is_ok().then_some(epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_however_many_workers() {
        for workers in [1, 2, 3, 7] {
            let pool = Pool::new(workers, &[]).expect("starts");
            for num_tasks in [0, 1, 2, 5, 64, 1000] {
                let counts: Vec<AtomicUsize> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(num_tasks, &|index, worker| {
                    assert!(worker < workers);
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                    "{workers} workers, {num_tasks} tasks"
                );
            }
        }
    }

    #[test]
    fn regions_follow_each_other() {
        let pool = Pool::new(3, &[]).expect("starts");
        let total = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(4, &|index, _| {
                total.fetch_add(index, Ordering::Relaxed);
            });
        }
        assert_eq!(total.load(Ordering::Relaxed), 20_000 * 6);
    }

    #[test]
    fn a_phase_begins_when_the_one_before_has_ended() {
        for workers in [1, 2, 3, 7] {
            let pool = Pool::new(workers, &[]).expect("starts");
            for phases in [&[][..], &[3], &[0, 5, 0, 7], &[40, 1, 30], &[1, 1, 1], &[0, 0, 1000, 1]] {
                let ended: Vec<AtomicUsize> = phases.iter().map(|_| AtomicUsize::new(0)).collect();
                let told: Vec<Phase> = phases.iter().map(|&num_tasks| num_tasks.into()).collect();
                pool.run_phases(&told, &|phase, index, worker| {
                    assert!(worker < workers);
                    assert!(index < phases[phase]);
                    for (before, &count) in ended.iter().zip(phases).take(phase) {
                        assert_eq!(before.load(Ordering::SeqCst), count, "{phases:?}: too early");
                    }
                    ended[phase].fetch_add(1, Ordering::SeqCst);
                });
                let ended: Vec<usize> = ended.iter().map(|count| count.load(Ordering::SeqCst)).collect();
                assert_eq!(ended, phases);
            }
        }
    }

    #[test]
    fn a_panic_of_a_phase_is_not_waited_for() {
        let pool = Pool::new(3, &[]).expect("starts");
        for _ in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run_phases(&[8.into(), 8.into()], &|phase, index, _| {
                    assert!(phase == 1 || index != 5, "planted")
                });
            }));
            assert!(caught.is_err());
        }
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2, &[]).expect("starts");
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(3, &|_, _| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4500);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3, &[]).expect("starts");
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(50, &|index, _| assert_ne!(index, 17, "planted"));
        }));
        assert!(caught.is_err());
        let total = AtomicUsize::new(0);
        pool.run(50, &|_, _| {
            total.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(total.load(Ordering::Relaxed), 50);
    }
}
