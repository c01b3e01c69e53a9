//! A runner with a watch.

use scheduler::{Batch, ModelRunner, StepOutput};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Times the runner: the scheduler knows no clock. A device does one step after the other, so a step takes from when it was begun, or from the
/// end of the one before if that is later, to its end.
pub(super) struct Timed<R> {
    pub runner: R,
    /// When the steps were begun that are not executed, in order.
    begun: VecDeque<Instant>,
    /// When the last step started, and when it ended.
    pub start: Instant,
    end: Instant,
}

impl<R> Timed<R> {
    pub fn new(runner: R) -> Self {
        let now = Instant::now();
        Self { runner, begun: VecDeque::new(), start: now, end: now }
    }

    /// Of the last step.
    pub fn elapsed(&self) -> Duration {
        self.end - self.start
    }
}

impl<R: ModelRunner> ModelRunner for Timed<R> {
    type Error = R::Error;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, R::Error> {
        let begun = self.begun.pop_front().unwrap_or_else(Instant::now);
        self.start = begun.max(self.end);
        let output = self.runner.execute(batch);
        self.end = Instant::now();
        output
    }

    fn begin(&mut self, batch: &Batch) {
        if self.runner.works_alone() {
            self.begun.push_back(Instant::now());
            self.runner.begin(batch);
        }
    }

    fn draw(&mut self, batch: &Batch) {
        self.runner.draw(batch);
    }

    fn takes_ahead(&self) -> bool {
        self.runner.takes_ahead()
    }

    fn works_alone(&self) -> bool {
        self.runner.works_alone()
    }
}
