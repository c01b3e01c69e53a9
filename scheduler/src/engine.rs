//! One step: schedule, run, commit. The only place where scheduler and model meet. On a device that works by itself, whoever drives
//! the engine has time between `begin` and `finish`, and the next step can be begun before this one is finished.
//!
//! ```text
//! begin: schedule, rows are enqueued ── draw: what is drawn of them is ── begin_ahead: rows of the next step ── finish: wait, commit ── …
//!         └─ where all is known that drawing needs, it follows at once
//! ```

use crate::{
    Batch, Event, Occupancy, Reject, Scheduler, SchedulerConfig, Sequence, SequenceId, Step, StepOutput,
};
use std::collections::VecDeque;

/// Runs a batch on some device and samples one token for each row that asks for one. Defined here and implemented in `models`,
/// so that scheduler, engine and simulation build with nothing else.
pub trait ModelRunner {
    /// The device is not to be used again after one of these.
    type Error;
    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Self::Error>;

    /// Starts the work of a batch on a device that works by itself, up to the logits, so that its host has time for something else; `draw` of
    /// the same batch follows, and then `execute`, which waits for it, in the order in which batches were begun. What fails here is told there.
    /// Nothing by default.
    fn begin(&mut self, _: &Batch) {}

    /// Starts what is drawn from the logits of the batch that was begun last. Its samples are complete by now; masks have as long as the device
    /// needs for the logits, and who has none then is deferred as [`Batch::choose_deferred`] says. What fails here is told by `execute`. Nothing by
    /// default.
    fn draw(&mut self, _: &Batch) {}

    /// Whether a batch may be begun behind the one that was drawn last and is not yet executed: all of that one is under way, nobody is
    /// deferred in it, and the tokens that it samples will be where the next one needs them
    /// ([`BatchItem::placeholder_for`](crate::BatchItem)).
    fn takes_ahead(&self) -> bool {
        false
    }

    /// Whether `begin` does anything.
    fn works_alone(&self) -> bool {
        false
    }

    /// Of the time that the last `execute` took, the microseconds that went into encoding pictures; 0 where the runner cannot tell.
    fn encode_us(&self) -> u64 {
        0
    }

    /// Microseconds that copies of blocks to the host took, and those from there: of copies that the last `execute` found done.
    fn copy_us(&self) -> [u64; 2] {
        [0, 0]
    }
}

#[derive(Debug)]
pub struct Engine<R> {
    scheduler: Scheduler,
    runner: R,
    /// The steps that were begun, in order: at most one, and one ahead.
    begun: VecDeque<Begun>,
}

#[derive(Debug)]
struct Begun {
    batch: Batch,
    /// What it samples is under way. Where a step is ahead of it, always.
    is_drawn: bool,
}

impl<R: ModelRunner> Engine<R> {
    /// Panics when the configuration does not pass [`SchedulerConfig::check`].
    pub fn new(config: SchedulerConfig, runner: R) -> Self {
        Self { scheduler: Scheduler::new(config), runner, begun: VecDeque::new() }
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

    /// Whether there is nothing to do: no sequence, and no step that is still to be finished.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.begun.is_empty()
    }

    pub fn has_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    pub fn occupancy(&self) -> Occupancy {
        self.scheduler.occupancy()
    }

    /// A whole step; the one ahead of it stays begun.
    pub fn step(&mut self) -> Result<Step, R::Error> {
        self.begin();
        let mut events = Vec::new();
        if !self.begin_ahead() {
            events = self.finish_accepting();
            self.draw();
            self.begin_ahead();
        }
        let mut step = self.finish()?;
        prepend(events, &mut step);
        Ok(step)
    }

    /// Schedules a step and starts it, unless one is begun or there is nothing to do; and starts what it samples, if all is known that this
    /// depends on. Sequences may be added and aborted before it is finished.
    pub fn begin(&mut self) {
        if self.begun.is_empty() && !self.scheduler.is_idle() {
            let batch = self.scheduler.schedule();
            self.start(batch);
        }
        if self.complete_samples() && self.begun[0].batch.can_be_drawn() {
            self.draw();
        }
        self.scheduler.start_accepting();
    }

    /// Starts what the step that was begun samples, where that is not under way: masks have as long as the device needs for the rows. Worth a
    /// call of its own before [`Engine::begin_ahead`]; else `finish` does it.
    pub fn draw(&mut self) {
        if self.complete_samples() {
            let begun = &mut self.begun[0];
            self.runner.draw(&begun.batch);
            begun.is_drawn = true;
        }
    }

    /// Schedules the step behind the one that was begun and starts it too, where that is possible and wanted
    /// ([`SchedulerConfig::async_scheduling`]). False: there is none.
    pub fn begin_ahead(&mut self) -> bool {
        let [flight] = &*self.begun.make_contiguous() else { return false };
        if !self.scheduler.config.async_scheduling || !flight.is_drawn || !self.runner.takes_ahead() {
            return false;
        }
        let Some(batch) = self.scheduler.schedule_ahead(&flight.batch) else { return false };
        self.start(batch);
        true
    }

    fn start(&mut self, batch: Batch) {
        self.runner.begin(&batch);
        let is_drawn = batch.can_be_drawn();
        if is_drawn {
            self.runner.draw(&batch);
        }
        self.begun.push_back(Begun { batch, is_drawn });
    }

    /// Whether what the only step samples that was begun is not under way: all is known now that this depends on.
    fn complete_samples(&mut self) -> bool {
        let [begun] = self.begun.make_contiguous() else { return false };
        if !begun.is_drawn {
            self.scheduler.complete_samples(&mut begun.batch);
        }
        !begun.is_drawn
    }

    /// Who ends with a token of the last step, as its constraint says, which may take its time over it. To be asked while a device that works
    /// alone is at work; else `finish` does it.
    pub fn finish_accepting(&mut self) -> Vec<Event> {
        self.scheduler.finish_accepting()
    }

    /// Waits for the oldest step that was begun and takes its results in; nothing if none was. After an error the engine cannot go on: the
    /// caller ends all sequences and drops it.
    pub fn finish(&mut self) -> Result<Step, R::Error> {
        let events = self.scheduler.finish_accepting();
        self.draw();
        let Some(Begun { batch, .. }) = self.begun.pop_front() else {
            return Ok(Step { events, ..Step::default() });
        };
        let output = self.runner.execute(&batch)?;
        let mut step = self.scheduler.commit(batch, output);
        // A step for one alone that ends would be for nothing, and nobody waits meanwhile. One that is begun already is waited for anyway.
        let is_alone = self.scheduler.num_running() <= 1 && self.begun.is_empty();
        if !self.runner.works_alone() || is_alone {
            step.events.extend(self.scheduler.finish_accepting());
            step.stats.occupancy = self.scheduler.occupancy();
        }
        prepend(events, &mut step);
        Ok(step)
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

fn prepend(mut events: Vec<Event>, step: &mut Step) {
    if !events.is_empty() {
        events.append(&mut step.events);
        step.events = events;
    }
}
