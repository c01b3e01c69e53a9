//! Pinned memory between the host's memory and the device. Large buffers carry weights, one is filled while others are copied, and the masks of a
//! step. A ring of small ones carries what a step needs, so that preparing a step, or the one behind it, does not wait for the one that runs.

use super::driver::{DevicePtr, Driver, Event, Stream};
use super::error::Result;
use std::ptr::NonNull;

const LARGE: usize = 4 << 20;
/// More than the masks of a step, which are copied behind its rows: 256 of a vocabulary of 163,840 are 5 MiB.
const NUM_LARGE: usize = 4;
/// The tokens of a large step, or the blocks of many sequences.
const SMALL: usize = 128 << 10;
/// More than the arrays of two steps.
const NUM_SMALL: usize = 64;

pub(super) struct Staging {
    large: Ring,
    small: Ring,
}

/// Buffers that take turns.
struct Ring {
    places: Vec<Place>,
    len: usize,
    next: usize,
}

struct Place {
    start: NonNull<u8>,
    /// Recorded after the last copy from here.
    copied: Event,
}

// SAFETY: the memory belongs to the staging alone; it is used under a lock.
unsafe impl Send for Staging {}

impl Ring {
    fn new(driver: &dyn Driver, count: usize, len: usize) -> Result<Self> {
        let all = driver.allocate_pinned(count * len)?;
        // SAFETY: within the block that was just allocated.
        let place = |i| Ok(Place { start: unsafe { all.add(i * len) }, copied: driver.new_event()? });
        Ok(Self { places: (0..count).map(place).collect::<Result<_>>()?, len, next: 0 })
    }

    fn upload(&mut self, driver: &dyn Driver, stream: Stream, dst: DevicePtr, bytes: &[u8]) -> Result<()> {
        for (i, chunk) in bytes.chunks(self.len).enumerate() {
            let place = &self.places[self.next];
            self.next = (self.next + 1) % self.places.len();
            driver.finish(place.copied)?;
            // SAFETY: a place has `len` bytes, and its last copy is done.
            unsafe { std::ptr::copy_nonoverlapping(chunk.as_ptr(), place.start.as_ptr(), chunk.len()) };
            let dst = dst.offset((i * self.len) as u64);
            // SAFETY: pinned memory that is left alone until the event; the caller's region has room.
            unsafe { driver.upload(stream, dst, place.start.as_ptr(), chunk.len())? };
            driver.record(place.copied, stream)?;
        }
        Ok(())
    }
}

impl Staging {
    pub fn new(driver: &dyn Driver) -> Result<Self> {
        Ok(Self { large: Ring::new(driver, NUM_LARGE, LARGE)?, small: Ring::new(driver, NUM_SMALL, SMALL)? })
    }

    pub fn upload(
        &mut self,
        driver: &dyn Driver,
        stream: Stream,
        dst: DevicePtr,
        bytes: &[u8],
    ) -> Result<()> {
        let ring = if bytes.len() <= SMALL { &mut self.small } else { &mut self.large };
        ring.upload(driver, stream, dst, bytes)
    }

    pub fn download(
        &mut self,
        driver: &dyn Driver,
        stream: Stream,
        src: DevicePtr,
        out: &mut [u8],
    ) -> Result<()> {
        for (i, chunk) in out.chunks_mut(LARGE).enumerate() {
            let place = &self.large.places[0];
            driver.finish(place.copied)?;
            let src = src.offset((i * LARGE) as u64);
            // SAFETY: as in `upload`, the other way round.
            unsafe { driver.download(stream, place.start.as_ptr(), src, chunk.len())? };
            driver.synchronize(stream)?;
            // SAFETY: a place has LARGE bytes, and the copy is done.
            unsafe { std::ptr::copy_nonoverlapping(place.start.as_ptr(), chunk.as_mut_ptr(), chunk.len()) };
        }
        Ok(())
    }
}
