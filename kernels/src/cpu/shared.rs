//! Slices that the tasks of an op share: each task writes its own part, or reads what others wrote before.

use std::marker::PhantomData;

/// A slice that several tasks write to, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: access goes through `slice`, whose callers keep parts disjoint.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

/// What several tasks read, of a slice that others wrote, or will write to.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *const T,
    len: usize,
    borrowed: PhantomData<&'a [T]>,
}

// SAFETY: it only reads, and `SharedMut::reader` has the caller's promise.
unsafe impl<T: Sync> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Shared<'_, T> {}

impl<'a, T> From<&'a [T]> for Shared<'a, T> {
    fn from(data: &'a [T]) -> Self {
        Self { start: data.as_ptr(), len: data.len(), borrowed: PhantomData }
    }
}

impl<'a, T> Shared<'a, T> {
    /// What there is from an element on.
    pub fn from(&self, start: usize) -> &'a [T] {
        assert!(start <= self.len, "element {start} of {}", self.len);
        // SAFETY: in bounds; what `From` borrowed, or the promise of `SharedMut::reader`.
        unsafe { std::slice::from_raw_parts(self.start.add(start), self.len - start) }
    }
}

impl SharedMut<u32> {
    /// The same words as floats.
    pub fn floats(&self) -> SharedMut<f32> {
        SharedMut { start: self.start.cast(), len: self.len }
    }
}

impl<T> SharedMut<T> {
    /// To read what tasks have written.
    ///
    /// # Safety
    /// As long as a slice that the reader gave is in use, the slice borrowed by `new` is borrowed, and nobody writes to it.
    pub unsafe fn reader<'a>(self) -> Shared<'a, T> {
        Shared { start: self.start, len: self.len, borrowed: PhantomData }
    }

    /// The first elements.
    pub fn first(&self, len: usize) -> Self {
        assert!(len <= self.len, "{len} elements of {}", self.len);
        Self { start: self.start, len }
    }

    pub fn new(data: &mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len() }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// What is left from an element on.
    pub fn from(&self, start: usize) -> Self {
        Self { start: self.at(start), len: self.len - start }
    }

    /// # Safety
    /// The slice borrowed by `new` is still borrowed, and no other live part overlaps this one.
    #[allow(
        clippy::mut_from_ref,
        reason = "parts of one slice go to several threads; the caller promises that they do not overlap"
    )]
    pub unsafe fn slice<'a>(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a part of {} + {len} of {}", start, self.len);
        // SAFETY: in bounds; the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The address of an element, for kernels that write rows with a stride.
    pub fn at(&self, index: usize) -> *mut T {
        assert!(index <= self.len, "element {index} of {}", self.len);
        self.start.wrapping_add(index)
    }
}
