//! A point in a device's work: whether it has come so far, without a wait.

use crate::cuda::driver::Event;
use crate::{Device, Error};

/// Set again and again, as the work is enqueued.
#[derive(Debug)]
pub struct Milestone {
    device: Device,
    /// A processor has none: it has done what was called.
    event: Option<Event>,
}

impl Milestone {
    pub fn new(device: &Device) -> Result<Self, Error> {
        let event = match device {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(cuda.driver.new_event()?),
        };
        Ok(Self { device: device.clone(), event })
    }

    /// Behind what the device's own queue has by now.
    pub fn set(&mut self) {
        if let (Device::Cuda(cuda), Some(event)) = (&self.device, self.event) {
            cuda.note(cuda.driver.record(event, cuda.stream()));
        }
    }

    /// Whether the device has done what was enqueued before it was set last. What failed is the device's failure, and counts as done.
    pub fn is_reached(&self) -> bool {
        let (Device::Cuda(cuda), Some(event)) = (&self.device, self.event) else { return true };
        cuda.driver.is_done(event).unwrap_or_else(|error| {
            cuda.fail(error);
            true
        })
    }
}
