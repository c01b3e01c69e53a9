//! One step: schedule, run, commit. The only place where scheduler and model meet.

use crate::{Batch, Occupancy, Reject, Scheduler, SchedulerConfig, Sequence, SequenceId, Step, StepOutput};

/// Runs a batch on some device and samples one token for each item that asks for one. Defined here and implemented in `models`,
/// so that scheduler, engine and simulation build with nothing else.
pub trait ModelRunner {
    /// The device is not to be used again after one of these.
    type Error;
    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Self::Error>;

    /// Of the time that the last `execute` took, the microseconds that went into encoding pictures; 0 where the runner cannot tell.
    fn encode_us(&self) -> u64 {
        0
    }
}

#[derive(Debug)]
pub struct Engine<R> {
    scheduler: Scheduler,
    runner: R,
}

impl<R: ModelRunner> Engine<R> {
    /// Panics when the configuration does not pass [`SchedulerConfig::check`].
    pub fn new(config: SchedulerConfig, runner: R) -> Self {
        Self { scheduler: Scheduler::new(config), runner }
    }

    /// What is accepted is certain to finish, unless it is aborted.
    pub fn add(&mut self, sequence: Sequence) -> Result<(), Reject> {
        self.scheduler.add(sequence)
    }

    /// Forgets a sequence and frees its memory at once; it has no further events. False when it is not known: it may have just
    /// finished.
    pub fn abort(&mut self, id: SequenceId) -> bool {
        self.scheduler.abort(id)
    }

    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    pub fn occupancy(&self) -> Occupancy {
        self.scheduler.occupancy()
    }

    /// Does nothing when idle. After an error the engine cannot go on: the caller ends all sequences and drops it.
    pub fn step(&mut self) -> Result<Step, R::Error> {
        if self.is_idle() {
            return Ok(Step::default());
        }
        let batch = self.scheduler.schedule();
        let output = self.runner.execute(&batch)?;
        Ok(self.scheduler.commit(batch, output))
    }

    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    pub fn runner(&self) -> &R {
        &self.runner
    }

    pub fn runner_mut(&mut self) -> &mut R {
        &mut self.runner
    }
}
