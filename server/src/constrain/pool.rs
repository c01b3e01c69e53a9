//! The threads that compute masks while the model runs. A mask is computed by whoever comes first: a thread of the pool, or the sampler
//! that needs it, so that a full queue makes nobody wait for nothing.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

const NUM_THREADS_MAX: usize = 8;

/// Work that may be done by anyone, any number of times.
pub trait Job: Send + Sync {
    fn run(&self);
}

pub struct MaskPool {
    jobs: Sender<Arc<dyn Job>>,
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
        let (jobs, queue) = channel::<Arc<dyn Job>>();
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..num_threads.max(1) {
            let queue = queue.clone();
            let work = move || {
                loop {
                    // The lock is held while waiting: the others wait for the lock instead.
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    match job {
                        // Whoever else holds it wants the result; a sequence that ended does not.
                        Ok(job) if Arc::strong_count(&job) > 1 => job.run(),
                        Ok(_) => {}
                        Err(_) => return,
                    }
                }
            };
            // Without a thread the samplers compute the masks themselves.
            if let Err(error) = std::thread::Builder::new().name(format!("masks-{index}")).spawn(work) {
                tracing::warn!(%error, "failed to start a thread for masks");
            }
        }
        Self { jobs }
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

    pub fn start(&self, job: Arc<dyn Job>) {
        // Nobody listens only where no thread could be started.
        let _ = self.jobs.send(job);
    }
}
