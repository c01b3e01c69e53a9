//! Owned, zeroed, aligned bytes on a device. Large buffers ask for huge pages and are touched at once: what a server needs
//! it takes when it starts.

use crate::Device;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

const CACHE_LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

pub(crate) struct Buffer {
    start: NonNull<u8>,
    len: usize,
    device: Device,
}

// SAFETY: a buffer owns its bytes, like a Vec; shared access only reads.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub fn zeroed(device: &Device, len: usize) -> Self {
        let layout = layout(len);
        // SAFETY: the layout's size is never zero.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        if len >= HUGE_PAGE {
            advise_huge_pages(start, layout.size());
        }
        // SAFETY: the allocation has `layout.size()` bytes.
        unsafe { start.write_bytes(0, layout.size()) };
        device.count_allocated(len);
        Self { start, len, device: device.clone() }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_slice<T: Element>(&self) -> &[T] {
        // SAFETY: aligned to 64, initialised, long enough, and every bit pattern is an Element.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / size_of::<T>()) }
    }

    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len / size_of::<T>()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.device.count_freed(self.len);
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.start.as_ptr(), layout(self.len)) };
    }
}

/// Types for which every bit pattern is a value.
pub(crate) trait Element: Copy + Send + Sync + 'static {}
impl Element for f32 {}
impl Element for i32 {}
impl Element for u16 {}
impl Element for u8 {}

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
