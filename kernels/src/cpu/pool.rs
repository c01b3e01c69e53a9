//! The thread pool: one parallel region at a time, tasks handed out by a shared counter, the caller works too.
//!
//! Idle workers spin for a moment, since the next op of a step follows at once, and then sleep. A region is *open*
//! while it has tasks; a worker enters it by raising a count, and the caller closes it and waits for those inside only. So a
//! worker that the system has not woken yet costs nothing, which matters when other programs want the processors too.
//!
//! ```text
//! state: | epoch 32 | open 1 | entered 31 |
//! ```

use super::affinity;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than what one thread does between two regions of a step, such as attention of one row: waking a worker that sleeps costs as much.
const SPIN: Duration = Duration::from_micros(200);
const OPEN: u64 = 1 << 31;
const ENTERED: u64 = OPEN - 1;
const EPOCH: u64 = 1 << 32;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One region at a time.
    caller: Mutex<()>,
}

struct Shared {
    state: AtomicU64,
    next: AtomicUsize,
    num_tasks: AtomicUsize,
    /// Written before a region opens, read by those who entered it.
    task: UnsafeCell<Option<*const Task<'static>>>,
    panicked: AtomicBool,
    quit: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `task` is written only while no worker is inside a region, and read only inside.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `task` is used only while `run`, which borrows its target, has not returned.
unsafe impl Send for Shared {}

impl Pool {
    /// Workers are pinned to `cpus`, one each, and with them the caller, which is worker 0; to none where there are none.
    pub fn new(num_workers: usize, cpus: &[usize]) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            num_tasks: AtomicUsize::new(0),
            task: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let threads = (1..num_workers).map(|worker| {
            let shared = Arc::clone(&shared);
            let cpu = cpus.get(worker).copied();
            std::thread::Builder::new()
                .name(format!("kernels-{worker}"))
                .spawn(move || {
                    cpu.into_iter().for_each(affinity::pin);
                    shared.work(worker);
                })
                .expect("a worker thread can be started")
        });
        let threads = threads.collect();
        // Last: who is started by a pinned thread begins where it is.
        cpus.first().copied().into_iter().for_each(affinity::pin);
        Self { threads, shared, caller: Mutex::new(()) }
    }

    /// Threads that run tasks, the caller included. Worker 0 is the caller.
    pub fn num_workers(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `task(index, worker)` once for each index below `num_tasks`, on any worker, and returns when all are done.
    /// A task must not call `run`.
    pub fn run(&self, num_tasks: usize, task: &Task) {
        if self.threads.is_empty() || num_tasks <= 1 {
            return (0..num_tasks).for_each(|index| task(index, 0));
        }
        let _one_region = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: nobody is inside a region: the last one was closed and left before its `run` returned. The lifetime is
        // erased, but this `run` leaves only after every worker has left the region.
        unsafe {
            *shared.task.get() = Some(std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task))
        };
        shared.next.store(0, Ordering::Relaxed);
        shared.num_tasks.store(num_tasks, Ordering::Relaxed);
        let epoch = (shared.state.load(Ordering::Relaxed) & !(OPEN | ENTERED)).wrapping_add(EPOCH);
        shared.state.store(epoch | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _awake = shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.take_tasks(task, 0)));
        shared.close_and_wait();
        let others_panicked = shared.panicked.swap(false, Ordering::Relaxed);
        match own {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => assert!(!others_panicked, "a task of a parallel region panicked"),
        }
    }
}

impl Pool {
    /// As `run`, for tasks of several phases in one region: `task(phase, index, worker)`. No task of a phase begins before every
    /// task of the one before has ended; who comes to one too early waits for those who still have one.
    pub fn run_phases(&self, phases: &[usize], task: &(dyn Fn(usize, usize, usize) + Sync)) {
        let (done, panicked) = (AtomicUsize::new(0), AtomicBool::new(false));
        self.run(phases.iter().sum(), &|index, worker| {
            let (mut phase, mut first) = (0, 0);
            while index - first >= phases[phase] {
                first += phases[phase];
                phase += 1;
            }
            // Tasks are handed out in order: those that this one waits for are with workers that run.
            let mut spins = 0u32;
            while done.load(Ordering::Acquire) < first {
                if panicked.load(Ordering::Relaxed) {
                    return;
                }
                pause(&mut spins);
            }
            let on_panic = SetOnDrop(&panicked);
            task(phase, index - first, worker);
            std::mem::forget(on_panic);
            done.fetch_add(1, Ordering::Release);
        });
    }
}

/// Tells those who wait that nothing will come.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
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
    fn take_tasks(&self, task: &Task, worker: usize) {
        let num_tasks = self.num_tasks.load(Ordering::Relaxed);
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= num_tasks {
                return;
            }
            task(index, worker);
        }
    }

    fn close_and_wait(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while self.state.load(Ordering::Acquire) & ENTERED != 0 {
            pause(&mut spins);
        }
    }

    fn work(&self, worker: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.wait_for_region(seen) {
            seen = epoch;
            // SAFETY: entered: the region's task stays in place, and its target alive, until this worker leaves.
            let task = unsafe { &*(*self.task.get()).expect("an open region has a task") };
            if catch_unwind(AssertUnwindSafe(|| self.take_tasks(task, worker))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
                // Nobody needs to start what is left.
                self.next.store(usize::MAX / 2, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Enters the next open region after the one `seen`, and returns its epoch. None: the pool is being dropped.
    fn wait_for_region(&self, seen: u64) -> Option<u64> {
        loop {
            let start = Instant::now();
            while start.elapsed() < SPIN {
                for _ in 0..64 {
                    if let Some(epoch) = self.try_enter(seen) {
                        return Some(epoch);
                    }
                    std::hint::spin_loop();
                }
            }
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
            let pool = Pool::new(workers, &[]);
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
        let pool = Pool::new(3, &[]);
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
            let pool = Pool::new(workers, &[]);
            for phases in [&[][..], &[3], &[0, 5, 0, 0, 7], &[40, 1, 30], &[1, 1, 1]] {
                let ended: Vec<AtomicUsize> = phases.iter().map(|_| AtomicUsize::new(0)).collect();
                pool.run_phases(phases, &|phase, index, worker| {
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
        let pool = Pool::new(3, &[]);
        for _ in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run_phases(&[8, 8], &|phase, index, _| assert!(phase == 1 || index != 5, "planted"));
            }));
            assert!(caught.is_err());
        }
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2, &[]);
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
        let pool = Pool::new(3, &[]);
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
