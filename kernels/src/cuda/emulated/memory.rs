//! The emulated device's memory: bytes, one shadow byte for each (written or not), and regions with names. Pinned host memory.

use super::super::driver::DevicePtr;
use super::super::error::{CudaError, Result};
use super::meter::TensorTraffic;
use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const ALIGN: usize = 1024;

#[derive(Default)]
pub(super) struct Memory {
    arena: Vec<u8>,
    shadow: Vec<u8>,
    start: u64,
    regions: BTreeMap<u64, Arc<Region>>,
    pinned: Vec<Box<[u8]>>,
}

/// As `emu::Region` in emulator/api.h; `name` is owned beside it.
#[repr(C)]
pub(super) struct RawRegion {
    start: *mut u8,
    len: u64,
    shadow: *mut u8,
    name: *const c_char,
    /// Bytes that threads read and wrote since they were last taken.
    pub read: AtomicU64,
    pub written: AtomicU64,
}

pub(super) struct Region {
    pub raw: RawRegion,
    name: CString,
}

impl Region {
    /// What was read and written since the last call.
    pub fn take_traffic(&self) -> TensorTraffic {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        let RawRegion { len: bytes, ref read, ref written, .. } = self.raw;
        let name = self.name.to_string_lossy().into_owned();
        TensorTraffic { name, bytes, read: take(read), written: take(written) }
    }
}

// SAFETY: the pointers lead into the emulator's memory, which lives as long as it and is used under its lock.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Memory {
    pub fn allocate(&mut self, bytes: u64) -> Result<DevicePtr> {
        let wrong = |reason: &str| CudaError::Call { call: "allocate", reason: reason.to_string() };
        if !self.arena.is_empty() {
            return Err(wrong("the emulator has one arena"));
        }
        let len = usize::try_from(bytes).map_err(|_| wrong("more bytes than addresses"))?;
        // Zeroed memory is not touched before it is used.
        self.arena = vec![0; len + ALIGN];
        self.shadow = vec![0; len];
        self.start = (self.arena.as_ptr() as u64).next_multiple_of(ALIGN as u64);
        Ok(DevicePtr(self.start))
    }

    pub fn allocate_pinned(&mut self, bytes: usize) -> NonNull<u8> {
        let mut block = vec![0; bytes.max(1)].into_boxed_slice();
        let start = NonNull::new(block.as_mut_ptr()).expect("a box is not null");
        self.pinned.push(block);
        start
    }

    pub fn name_region(&mut self, start: DevicePtr, bytes: u64, name: &str) {
        let offset = (start.0 - self.start) as usize;
        let shadow = &mut self.shadow[offset..offset + bytes as usize];
        shadow.fill(0);
        let name = CString::new(name.replace('\0', " ")).expect("no zero byte is left");
        let raw = RawRegion {
            start: start.0 as *mut u8,
            len: bytes,
            shadow: shadow.as_mut_ptr(),
            name: name.as_ptr(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        };
        self.regions.insert(start.0, Arc::new(Region { raw, name }));
    }

    pub fn forget_region(&mut self, start: DevicePtr) {
        self.regions.remove(&start.0);
    }

    /// What an address points into. The end of a region counts: a row after the last has no element, but an address.
    pub fn region_of(&self, at: DevicePtr) -> Option<&Arc<Region>> {
        let (_, region) = self.regions.range(..=at.0).next_back()?;
        (at.0 - region.raw.start as u64 <= region.raw.len).then_some(region)
    }

    /// The bytes and their shadow, if they are in one region.
    fn range(&mut self, call: &'static str, at: DevicePtr, bytes: u64) -> Result<(&mut [u8], &mut [u8])> {
        let region = self.region_of(at).filter(|region| {
            let offset = at.0 - region.raw.start as u64;
            bytes <= region.raw.len - offset
        });
        if region.is_none() {
            let near = self.region_of(at).map_or("none".to_string(), |region| format!("{:?}", region.name));
            let reason = format!("{bytes} bytes are not inside one region; the nearest is {near}");
            return Err(lost(call, reason));
        }
        let offset = (at.0 - self.start) as usize;
        let skip = (self.start - self.arena.as_ptr() as u64) as usize;
        let data = &mut self.arena[skip + offset..skip + offset + bytes as usize];
        Ok((data, &mut self.shadow[offset..offset + bytes as usize]))
    }

    fn check_pinned(&self, call: &'static str, at: usize, bytes: usize) -> Result<()> {
        let inside = |block: &[u8]| {
            let start = block.as_ptr() as usize;
            at >= start && at + bytes <= start + block.len()
        };
        if bytes == 0 || self.pinned.iter().any(|block| inside(block)) {
            return Ok(());
        }
        Err(lost(call, "host memory that is not pinned".to_string()))
    }

    pub fn upload(&mut self, dst: DevicePtr, src: usize, bytes: usize) -> Result<()> {
        self.check_pinned("upload", src, bytes)?;
        let (data, shadow) = self.range("upload", dst, bytes as u64)?;
        // SAFETY: pinned memory of this length, checked above, which the caller leaves alone until the copy is done.
        data.copy_from_slice(unsafe { std::slice::from_raw_parts(src as *const u8, bytes) });
        shadow.fill(1);
        Ok(())
    }

    pub fn download(&mut self, dst: usize, src: DevicePtr, bytes: usize) -> Result<()> {
        self.check_pinned("download", dst, bytes)?;
        let (data, shadow) = self.range("download", src, bytes as u64)?;
        if let Some(at) = shadow.iter().position(|&written| written == 0) {
            return Err(lost("download", format!("byte {at} of {bytes} was never written")));
        }
        // SAFETY: as in `upload`.
        unsafe { std::slice::from_raw_parts_mut(dst as *mut u8, bytes) }.copy_from_slice(data);
        Ok(())
    }

    pub fn copy(&mut self, dst: DevicePtr, src: DevicePtr, bytes: u64) -> Result<()> {
        let (data, shadow) = self.range("copy", src, bytes)?;
        let (data, shadow) = (data.to_vec(), shadow.to_vec());
        let (to, to_shadow) = self.range("copy", dst, bytes)?;
        to.copy_from_slice(&data);
        to_shadow.copy_from_slice(&shadow);
        Ok(())
    }

    pub fn fill(&mut self, dst: DevicePtr, value: u8, bytes: u64) -> Result<()> {
        let (data, shadow) = self.range("fill", dst, bytes)?;
        data.fill(value);
        shadow.fill(1);
        Ok(())
    }
}

pub(super) fn lost(call: &str, reason: String) -> CudaError {
    CudaError::Lost { call: call.to_string(), reason }
}
