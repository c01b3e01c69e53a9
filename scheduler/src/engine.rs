//! One step: schedule, run, commit. The only place where scheduler and model meet. On a device that works by itself, whoever drives
//! the engine has time between `begin` and `finish`.

use crate::{Batch, Occupancy, Reject, Scheduler, SchedulerConfig, Sequence, SequenceId, Step, StepOutput};

/// Runs a batch on some device and samples one token for each row that asks for one. Defined here and implemented in `models`,
/// so that scheduler, engine and simulation build with nothing else.
pub trait ModelRunner {
    /// The device is not to be used again after one of these.
    type Error;
    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Self::Error>;

    /// Starts the work of a batch on a device that works by itself, so that its host has time for something else; `execute` of the same
    /// batch follows and waits for it. What fails here is told there. Nothing by default.
    fn begin(&mut self, _: &Batch) {}

    /// Whether `begin` does anything.
    fn works_alone(&self) -> bool {
        false
    }

    /// Of the time that the last `execute` took, the microseconds that went into encoding pictures; 0 where the runner cannot tell.
    fn encode_us(&self) -> u64 {
        0
    }
}

#[derive(Debug)]
pub struct Engine<R> {
    scheduler: Scheduler,
    runner: R,
    /// The step that was begun.
    begun: Option<Batch>,
}

impl<R: ModelRunner> Engine<R> {
    /// Panics when the configuration does not pass [`SchedulerConfig::check`].
    pub fn new(config: SchedulerConfig, runner: R) -> Self {
        Self { scheduler: Scheduler::new(config), runner, begun: None }
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

    /// A whole step.
    pub fn step(&mut self) -> Result<Step, R::Error> {
        self.begin();
        self.finish()
    }

    /// Schedules a step and starts it, unless one is begun or there is nothing to do. Sequences may be added and aborted before it is
    /// finished.
    pub fn begin(&mut self) {
        if self.begun.is_none() && !self.is_idle() {
            let batch = self.scheduler.schedule();
            self.runner.begin(&batch);
            self.begun = Some(batch);
        }
    }

    /// Waits for the step that was begun and takes its results in; nothing if none was. After an error the engine cannot go on: the
    /// caller ends all sequences and drops it.
    pub fn finish(&mut self) -> Result<Step, R::Error> {
        let Some(batch) = self.begun.take() else { return Ok(Step::default()) };
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
