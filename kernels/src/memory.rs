//! Owned, zeroed, aligned bytes on a device. Large host buffers ask for huge pages and are touched at once: what a server needs
//! it takes when it starts. On a GPU a buffer is a region of the device's arena.

use crate::Device;
use crate::cuda::driver::{CudaError, DevicePtr};
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

const CACHE_LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

pub(crate) struct Buffer {
    place: Place,
    len: usize,
    device: Device,
}

#[derive(Clone, Copy)]
enum Place {
    Host(NonNull<u8>),
    Device(DevicePtr),
}

// SAFETY: a buffer owns its bytes, like a Vec; shared access only reads.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `name` says what it is, in messages.
    pub fn zeroed(device: &Device, len: usize, name: &str) -> Self {
        let buffer = Self::unwritten(device, len, name);
        if let (Device::Cuda(cuda), Place::Device(start)) = (device, buffer.place) {
            cuda.clear(start, len as u64);
        }
        buffer
    }

    /// Zeroed as well where the processor is the device. On a GPU: whatever was there.
    pub fn unwritten(device: &Device, len: usize, name: &str) -> Self {
        let place = match device {
            Device::Cpu(cpu) => {
                cpu.count_allocated(len);
                Place::Host(host_memory(len))
            }
            Device::Cuda(cuda) => Place::Device(cuda.allocate(len as u64, name)),
        };
        Self { place, len, device: device.clone() }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_slice<T: Element>(&self) -> &[T] {
        // SAFETY: aligned to 64, initialised, long enough, and every bit pattern is an Element.
        unsafe { std::slice::from_raw_parts(self.host().as_ptr().cast(), self.len / size_of::<T>()) }
    }

    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.host().as_ptr().cast(), self.len / size_of::<T>()) }
    }

    /// The address on a GPU.
    pub fn pointer(&self) -> DevicePtr {
        match self.place {
            Place::Device(start) => start,
            Place::Host(_) => panic!("a buffer of the host has no address on a GPU"),
        }
    }

    /// Writes bytes, wherever the buffer is.
    pub fn write(&mut self, start: usize, bytes: &[u8]) {
        assert!(start + bytes.len() <= self.len, "{} bytes at {start} of {}", bytes.len(), self.len);
        match (&self.device, self.place) {
            (Device::Cuda(cuda), Place::Device(at)) => cuda.upload(at.offset(start as u64), bytes),
            _ => self.as_mut_slice::<u8>()[start..start + bytes.len()].copy_from_slice(bytes),
        }
    }

    /// Reads bytes, after all work that was enqueued on the device.
    pub fn read(&self, start: usize, out: &mut [u8]) -> Result<(), CudaError> {
        assert!(start + out.len() <= self.len, "{} bytes at {start} of {}", out.len(), self.len);
        match (&self.device, self.place) {
            (Device::Cuda(cuda), Place::Device(at)) => cuda.download(at.offset(start as u64), out),
            _ => {
                out.copy_from_slice(&self.as_slice::<u8>()[start..start + out.len()]);
                Ok(())
            }
        }
    }

    fn host(&self) -> NonNull<u8> {
        match self.place {
            Place::Host(start) => start,
            Place::Device(_) => panic!("a buffer in device memory is read and written by copies"),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match (&self.device, self.place) {
            (Device::Cuda(cuda), Place::Device(start)) => cuda.free(start, self.len as u64),
            (device, Place::Host(start)) => {
                if let Device::Cpu(cpu) = device {
                    cpu.count_freed(self.len);
                }
                // SAFETY: allocated in `host_memory` with this layout.
                unsafe { dealloc(start.as_ptr(), layout(self.len)) };
            }
            (Device::Cpu(_), Place::Device(_)) => unreachable!("the processor has no device memory"),
        }
    }
}

/// Zeroed.
fn host_memory(len: usize) -> NonNull<u8> {
    let layout = layout(len);
    // SAFETY: the layout's size is never zero.
    let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
    if len >= HUGE_PAGE {
        advise_huge_pages(start, layout.size());
    }
    // SAFETY: the allocation has `layout.size()` bytes.
    unsafe { start.write_bytes(0, layout.size()) };
    start
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
    let align = if len >= HUGE_PAGE { HUGE_PAGE } else { CACHE_LINE };
    Layout::from_size_align(len.max(1).next_multiple_of(CACHE_LINE), align)
        .expect("a buffer fits the address space")
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(start: NonNull<u8>, len: usize) {
    // SAFETY: the range is our own allocation; the advice changes no content, and a refusal only costs speed.
    unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: NonNull<u8>, _: usize) {}
