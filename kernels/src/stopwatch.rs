//! How long a stretch of a device's work takes, measured where it is done: a GPU runs behind its host.

use crate::cuda::driver::Event;
use crate::{Device, Error};
use std::time::Instant;

/// Starts and stops in the order of the device's work.
#[derive(Debug)]
pub struct Stopwatch {
    device: Device,
    span: Span,
}

#[derive(Debug)]
enum Span {
    Host { start: Instant, micros: u64 },
    Device { start: Event, end: Event, is_set: bool },
}

impl Stopwatch {
    pub fn new(device: &Device) -> Result<Self, Error> {
        let span = match device {
            Device::Cpu(_) => Span::Host { start: Instant::now(), micros: 0 },
            Device::Cuda(cuda) => {
                Span::Device { start: cuda.driver.new_event()?, end: cuda.driver.new_event()?, is_set: false }
            }
        };
        Ok(Self { device: device.clone(), span })
    }

    pub fn start(&mut self) {
        match (&mut self.span, &self.device) {
            (Span::Host { start, .. }, _) => *start = Instant::now(),
            (Span::Device { start, .. }, Device::Cuda(cuda)) => {
                cuda.note(cuda.driver.record(*start, cuda.stream()));
            }
            (Span::Device { .. }, Device::Cpu(_)) => unreachable!("made for another device"),
        }
    }

    pub fn stop(&mut self) {
        match (&mut self.span, &self.device) {
            (Span::Host { start, micros }, _) => {
                *micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
            }
            (Span::Device { end, is_set, .. }, Device::Cuda(cuda)) => {
                cuda.note(cuda.driver.record(*end, cuda.stream()));
                *is_set = true;
            }
            (Span::Device { .. }, Device::Cpu(_)) => unreachable!("made for another device"),
        }
    }

    /// Between the last start and the last stop, whose work the caller has waited for; 0 before the first.
    pub fn micros(&self) -> Result<u64, Error> {
        match (&self.span, &self.device) {
            (Span::Host { micros, .. }, _) => Ok(*micros),
            (Span::Device { start, end, is_set: true }, Device::Cuda(cuda)) => {
                cuda.driver.finish(*end)?;
                Ok((cuda.driver.elapsed_ms(*start, *end)? * 1e3) as u64)
            }
            _ => Ok(0),
        }
    }
}
