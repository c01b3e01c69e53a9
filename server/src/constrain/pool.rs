//! The threads that take tokens in and compute masks while the model runs. A job is done by whoever comes first: a thread of the pool, or who
//! needs the result, so that a full queue makes nobody wait for nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

const NUM_THREADS_MAX: usize = 8;

/// Work that may be done by anyone, any number of times.
pub trait Job: Send + Sync {
    fn run(&self);
}

pub struct MaskPool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is work for one more thread, or for none ever again.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Arc<dyn Job>>,
    /// Threads that wait, but for one that was called.
    num_waiting: usize,
    /// One was called and has not yet come.
    is_calling: bool,
    is_closed: bool,
}

/// What the host's processors do while a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    ComputesSteps,
    WaitsForDevice,
}

impl MaskPool {
    /// Its threads end with the last handle to it.
    pub fn new(num_threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        for index in 0..num_threads.max(1) {
            let shared = shared.clone();
            let work = move || {
                while let Some(job) = shared.next() {
                    // Whoever else holds it wants the result; a sequence that ended does not.
                    if Arc::strong_count(&job) > 1 {
                        job.run();
                    }
                }
            };
            // Without a thread whoever needs the results computes them.
            if let Err(error) = std::thread::Builder::new().name(format!("masks-{index}")).spawn(work) {
                tracing::warn!(%error, "failed to start a thread for masks");
            }
        }
        Self { shared }
    }

    /// Where the host computes the steps most of it is left to them; else it is free for masks while a step runs, but for the one processor on
    /// which the engine's thread goes on when the step is over: threads for all of them were seen to hold it up by 2 ms.
    pub fn for_this_machine(host: Host) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let num_threads = match host {
            Host::ComputesSteps => cores / 4,
            Host::WaitsForDevice => cores - 1,
        };
        Self::new(num_threads.clamp(1, NUM_THREADS_MAX))
    }

    /// One thread is called for all jobs that are started before it comes, and calls the next one itself: a call costs the engine's thread as
    /// much as all else of a job.
    pub fn start(&self, job: Arc<dyn Job>) {
        let mut state = self.shared.lock();
        state.jobs.push_back(job);
        let is_called = state.call();
        drop(state);
        if is_called {
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for MaskPool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        // Nobody is left who wants them.
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        drop(jobs);
        self.shared.changed.notify_all();
    }
}

impl State {
    /// Whether one more thread is to be woken.
    fn call(&mut self) -> bool {
        let calls = !self.jobs.is_empty() && !self.is_calling && self.num_waiting > 0;
        if calls {
            self.is_calling = true;
            self.num_waiting -= 1;
        }
        calls
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest job, waited for; `None` when there are none any more.
    fn next(&self) -> Option<Arc<dyn Job>> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                let is_called = state.call();
                drop(state);
                if is_called {
                    self.changed.notify_one();
                }
                return Some(job);
            }
            if state.is_closed {
                return None;
            }
            state.num_waiting += 1;
            let is_not_called = |state: &mut State| !state.is_calling && !state.is_closed;
            let called = self.changed.wait_while(state, is_not_called);
            state = called.unwrap_or_else(PoisonError::into_inner);
            // At the end nobody counts.
            state.is_calling = false;
        }
    }
}
