//! Two pinned buffers between the host's memory and the device: one is filled while the other is copied.

use super::driver::{DevicePtr, Driver, Event, Result, Stream};
use std::ptr::NonNull;

const BYTES: usize = 4 << 20;

pub(super) struct Staging {
    halves: [Half; 2],
    next: usize,
}

struct Half {
    start: NonNull<u8>,
    /// Recorded after the last copy from this half.
    copied: Event,
}

// SAFETY: the memory belongs to the staging alone; it is used under a lock.
unsafe impl Send for Staging {}

impl Staging {
    pub fn new(driver: &dyn Driver) -> Result<Self> {
        let half = || Ok(Half { start: driver.allocate_pinned(BYTES)?, copied: driver.new_event()? });
        Ok(Self { halves: [half()?, half()?], next: 0 })
    }

    pub fn upload(
        &mut self,
        driver: &dyn Driver,
        stream: Stream,
        dst: DevicePtr,
        bytes: &[u8],
    ) -> Result<()> {
        for (i, chunk) in bytes.chunks(BYTES).enumerate() {
            let half = &self.halves[self.next];
            self.next = 1 - self.next;
            driver.finish(half.copied)?;
            // SAFETY: a half has BYTES bytes, and its last copy is done.
            unsafe { std::ptr::copy_nonoverlapping(chunk.as_ptr(), half.start.as_ptr(), chunk.len()) };
            let dst = dst.offset((i * BYTES) as u64);
            // SAFETY: pinned memory that is left alone until the event; the caller's region has room.
            unsafe { driver.upload(stream, dst, half.start.as_ptr(), chunk.len())? };
            driver.record(half.copied, stream)?;
        }
        Ok(())
    }

    pub fn download(
        &mut self,
        driver: &dyn Driver,
        stream: Stream,
        src: DevicePtr,
        out: &mut [u8],
    ) -> Result<()> {
        for (i, chunk) in out.chunks_mut(BYTES).enumerate() {
            let half = &self.halves[0];
            driver.finish(half.copied)?;
            let src = src.offset((i * BYTES) as u64);
            // SAFETY: as in `upload`, the other way round.
            unsafe { driver.download(stream, half.start.as_ptr(), src, chunk.len())? };
            driver.synchronize(stream)?;
            // SAFETY: a half has BYTES bytes, and the copy is done.
            unsafe { std::ptr::copy_nonoverlapping(half.start.as_ptr(), chunk.as_mut_ptr(), chunk.len()) };
        }
        Ok(())
    }
}
