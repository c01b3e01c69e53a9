//! One step: schedule, run, commit. The only place where scheduler and model meet.

use crate::{Batch, StepOutput};

/// Runs a batch on some device and samples one token for each item that asks for one. Defined here and implemented in `models`,
/// so that scheduler, engine and simulation build with nothing else.
pub trait ModelRunner {
    /// The device is not to be used again after one of these.
    type Error;
    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Self::Error>;
}
