//! Results on their way to the host: a copy is enqueued behind the work that writes them, and waited for by itself, while the device goes
//! on with later work.

use super::Cuda;
use super::driver::Event;
use super::error::Result;
use crate::{Device, Tensor};
use std::ptr::NonNull;
use std::sync::Arc;

/// Some places in pinned memory, which take turns. At most as many copies are under way as there are places.
#[derive(Debug)]
pub(crate) struct Readback {
    device: Device,
    places: Vec<Place>,
    next: usize,
}

#[derive(Debug)]
struct Place {
    start: NonNull<u8>,
    capacity: usize,
    /// Recorded after the copy.
    copied: Event,
    is_under_way: bool,
}

/// A copy under way.
#[derive(Debug)]
#[must_use]
pub(crate) struct Reading {
    place: usize,
    len: usize,
}

// SAFETY: the memory belongs to the readback alone, and is touched through `&mut` only.
unsafe impl Send for Readback {}

impl Readback {
    /// Places of `capacity` bytes each.
    pub fn new(cuda: &Arc<Cuda>, count: usize, capacity: usize) -> Result<Self> {
        let all = cuda.driver.allocate_pinned(count * capacity)?;
        let place = |i| {
            // SAFETY: within the block that was just allocated.
            let start = unsafe { all.add(i * capacity) };
            Ok(Place { start, capacity, copied: cuda.driver.new_event()?, is_under_way: false })
        };
        let places = (0..count).map(place).collect::<Result<_>>()?;
        Ok(Self { device: Device::Cuda(cuda.clone()), places, next: 0 })
    }

    /// Enqueues a copy of the elements in sight.
    pub fn begin(&mut self, source: &Tensor) -> Reading {
        let cuda = cuda(&self.device);
        let index = self.next;
        self.next = (index + 1) % self.places.len();
        let place = &mut self.places[index];
        assert!(!place.is_under_way, "more copies under way than there are places");
        place.is_under_way = true;
        let len = source.len() * source.dtype().size();
        assert!(len <= place.capacity, "{len} bytes for a place of {}", place.capacity);
        if !cuda.has_failed() {
            if len > 0 {
                // SAFETY: a place has `len` bytes and is left alone until the copy is waited for; the tensor has as many.
                cuda.note(unsafe {
                    cuda.driver.download(cuda.stream(), place.start.as_ptr(), source.pointer(), len)
                });
            }
            cuda.note(cuda.driver.record(place.copied, cuda.stream()));
        }
        Reading { place: index, len }
    }

    /// Waits for a copy and all that was enqueued before it: the bytes, or the first failure of the device.
    pub fn finish(&mut self, Reading { place, len }: Reading) -> Result<Vec<u8>> {
        let place = &mut self.places[place];
        place.is_under_way = false;
        cuda(&self.device).finish(place.copied)?;
        let mut bytes = vec![0; len];
        // SAFETY: a place has `len` bytes, and the copy is done.
        unsafe { std::ptr::copy_nonoverlapping(place.start.as_ptr(), bytes.as_mut_ptr(), len) };
        Ok(bytes)
    }
}

fn cuda(device: &Device) -> &Cuda {
    match device {
        Device::Cuda(cuda) => cuda,
        Device::Cpu(_) => unreachable!("made for a GPU"),
    }
}
