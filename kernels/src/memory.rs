//! Bytes on a device. Host memory begins as zeros, at a cache line or, where it is large, in huge pages; a page is taken when it is
//! first written, so that what a server plans for and never uses costs nothing. Packed weights may lie in a mapped file instead. On a
//! GPU a buffer is a region of the device's arena.

use crate::cuda::driver::DevicePtr;
use crate::cuda::error::CudaError;
use crate::{Device, FileMap};
use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Where every buffer begins, in memory and in a file of packed weights.
pub const CACHE_LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

pub(crate) struct Buffer {
    place: Place,
    len: usize,
    device: Device,
}

enum Place {
    Host(HostMemory),
    /// Of the host, and never written again.
    Shared(SharedBytes),
    Device(DevicePtr),
}

/// Bytes of the host that several hold and nobody writes: in memory, or in a mapped file.
#[derive(Clone)]
pub struct SharedBytes(Held);

#[derive(Clone)]
enum Held {
    Memory(Arc<HostMemory>),
    File(Arc<FileMap>, Range<usize>),
}

impl SharedBytes {
    /// A part of a mapped file that begins at a multiple of [`CACHE_LINE`].
    pub fn of_file(map: &Arc<FileMap>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= map.len(), "{range:?} of {} bytes", map.len());
        assert!(range.start.is_multiple_of(CACHE_LINE), "{range:?} begins within a cache line");
        Self(Held::File(Arc::clone(map), range))
    }

    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Held::Memory(memory) => memory.bytes(),
            Held::File(map, range) => &map[range.clone()],
        }
    }

    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Buffer {
    /// `name` says what it is, in messages.
    pub fn zeroed(device: &Device, len: usize, name: &str) -> Self {
        let buffer = Self::unwritten(device, len, name);
        if let (Device::Cuda(cuda), Place::Device(start)) = (device, &buffer.place) {
            cuda.clear(*start, len as u64);
        }
        buffer
    }

    /// Zeroed as well where the processor is the device. On a GPU: whatever was there.
    pub fn unwritten(device: &Device, len: usize, name: &str) -> Self {
        let place = match device {
            Device::Cpu(cpu) => {
                cpu.count_allocated(len);
                Place::Host(HostMemory::zeroed(len))
            }
            Device::Cuda(cuda) => Place::Device(cuda.allocate(len as u64, name)),
        };
        Self { place, len, device: device.clone() }
    }

    /// Bytes that are there already. They count as allocated on the device, which is the processor.
    pub fn shared(device: &Device, bytes: SharedBytes) -> Self {
        let Device::Cpu(cpu) = device else { panic!("a GPU cannot compute with memory of the host") };
        let len = bytes.len();
        cpu.count_allocated(len);
        Self { place: Place::Shared(bytes), len, device: device.clone() }
    }

    /// What the buffer holds, from now on unchangeable, for others to hold as well. The buffer is of the host.
    pub fn share(&mut self) -> SharedBytes {
        let shared = match std::mem::replace(&mut self.place, Place::Device(DevicePtr::NULL)) {
            Place::Host(memory) => SharedBytes(Held::Memory(Arc::new(memory))),
            Place::Shared(bytes) => bytes,
            Place::Device(_) => panic!("a buffer in device memory is not shared"),
        };
        self.place = Place::Shared(shared.clone());
        shared
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_slice<T: Element>(&self) -> &[T] {
        let bytes = match &self.place {
            Place::Host(memory) => memory.bytes(),
            Place::Shared(bytes) => bytes.as_slice(),
            Place::Device(_) => panic!("a buffer in device memory is read and written by copies"),
        };
        debug_assert!(bytes.as_ptr().cast::<T>().is_aligned());
        // SAFETY: buffers and the parts of files that become some begin at a cache line, which is aligned for every Element; the
        // bytes are initialised, long enough, and every bit pattern is an Element.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), self.len / size_of::<T>()) }
    }

    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        let bytes = match &mut self.place {
            Place::Host(memory) => memory.bytes_mut(),
            Place::Shared(_) => panic!("shared bytes are not written"),
            Place::Device(_) => panic!("a buffer in device memory is read and written by copies"),
        };
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), self.len / size_of::<T>()) }
    }

    /// The address on a GPU.
    pub fn pointer(&self) -> DevicePtr {
        match self.place {
            Place::Device(start) => start,
            Place::Host(_) | Place::Shared(_) => panic!("a buffer of the host has no address on a GPU"),
        }
    }

    /// Writes bytes, wherever the buffer is.
    pub fn write(&mut self, start: usize, bytes: &[u8]) {
        assert!(start + bytes.len() <= self.len, "{} bytes at {start} of {}", bytes.len(), self.len);
        match (&self.device, &self.place) {
            (Device::Cuda(cuda), Place::Device(at)) => cuda.upload(at.offset(start as u64), bytes),
            _ => self.as_mut_slice::<u8>()[start..start + bytes.len()].copy_from_slice(bytes),
        }
    }

    /// Reads bytes, after all work that was enqueued on the device.
    pub fn read(&self, start: usize, out: &mut [u8]) -> Result<(), CudaError> {
        assert!(start + out.len() <= self.len, "{} bytes at {start} of {}", out.len(), self.len);
        match (&self.device, &self.place) {
            (Device::Cuda(cuda), Place::Device(at)) => cuda.download(at.offset(start as u64), out),
            _ => {
                out.copy_from_slice(&self.as_slice::<u8>()[start..start + out.len()]);
                Ok(())
            }
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match (&self.device, &self.place) {
            (Device::Cuda(cuda), Place::Device(start)) => cuda.free(*start, self.len as u64),
            (Device::Cpu(cpu), _) => cpu.count_freed(self.len),
            (Device::Cuda(_), _) => unreachable!("a GPU's buffers are in its memory"),
        }
    }
}

/// Memory of the host that begins as zeros.
struct HostMemory {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
}

enum Owner {
    Heap(Layout),
    /// Held until the memory is dropped.
    Pages {
        _map: MmapMut,
    },
}

// SAFETY: it owns its bytes, like a Vec; shared access only reads.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn zeroed(len: usize) -> Self {
        if len >= HUGE_PAGE {
            return Self::pages(len);
        }
        let layout = layout(len);
        // SAFETY: the layout's size is never zero.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Self { start, len, owner: Owner::Heap(layout) }
    }

    /// Pages of the system: zeros that take no memory before they are written.
    fn pages(len: usize) -> Self {
        let Ok(mut map) = MmapMut::map_anon(len + HUGE_PAGE) else { handle_alloc_error(layout(len)) };
        // A refusal only costs speed.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let skip = map.as_ptr().align_offset(HUGE_PAGE);
        let start = NonNull::from(&mut map[skip..]).cast();
        Self { start, len, owner: Owner::Pages { _map: map } }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes from `start` on belong to this memory.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if let Owner::Heap(layout) = self.owner {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}

/// Types for which every bit pattern is a value.
pub(crate) trait Element: Copy + Send + Sync + 'static {}
impl Element for f32 {}
impl Element for i32 {}
impl Element for u32 {}
impl Element for u16 {}
impl Element for u8 {}

pub(crate) fn bytes_of_slice<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: an Element has no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

pub(crate) fn bytes_of_slice_mut<T: Element>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: an Element has no padding, and any bytes are one.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len.max(1).next_multiple_of(CACHE_LINE), CACHE_LINE)
        .expect("a buffer fits the address space")
}
