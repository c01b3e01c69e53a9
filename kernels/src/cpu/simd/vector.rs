//! What a kernel does with vectors of f32.

use super::isa::Isa;

/// Of any width there is.
pub(crate) const MAX_LANES: usize = 16;

/// One width of f32 vectors. `V` is a vector of `LANES`.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type V: Copy;
    const LANES: usize;
    const ISA: Isa;
    /// Rows of the largest tile whose sums, two vectors a row, stay in registers.
    const TILE_ROWS: usize;

    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the processor can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `2^n` for whole numbers -126 ..= 127.
    fn pow2(self, n: Self::V) -> Self::V;
    /// `a < b ? x : y`, lane by lane.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Lanes summed in a fixed tree: halves onto each other.
    fn sum(self, a: Self::V) -> f32;

    /// # Safety
    /// `LANES` elements can be read.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` elements can be written.
    unsafe fn store(self, to: *mut f32, v: Self::V);
    /// # Safety
    /// `LANES` elements can be read.
    unsafe fn load_bf16(self, from: *const u16) -> Self::V;
    /// # Safety
    /// `LANES` elements can be read.
    unsafe fn load_f16(self, from: *const u16) -> Self::V;
    /// The elements with even and with odd index.
    /// # Safety
    /// `2 * LANES` elements can be read.
    unsafe fn load_bf16_pairs(self, from: *const u16) -> (Self::V, Self::V);
    /// Byte `BYTE` of each 32-bit word, signed.
    /// # Safety
    /// `LANES` words can be read.
    unsafe fn load_byte<const BYTE: usize>(self, from: *const u8) -> Self::V;
    /// Byte `BYTE` of each 32-bit word: its low and its high half, each less 8.
    /// # Safety
    /// `LANES` words can be read.
    unsafe fn load_nibbles<const BYTE: usize>(self, from: *const u8) -> (Self::V, Self::V);
    /// Asks for a cache line. Any address will do.
    fn prefetch(self, address: *const u8);

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// The first `LANES` elements; a shorter slice is filled up with zeros.
    #[inline(always)]
    fn load_slice(self, from: &[f32]) -> Self::V {
        if from.len() >= Self::LANES {
            // SAFETY: long enough.
            return unsafe { self.load(from.as_ptr()) };
        }
        let mut padded = [0.0; MAX_LANES];
        padded[..from.len()].copy_from_slice(from);
        // SAFETY: MAX_LANES elements.
        unsafe { self.load(padded.as_ptr()) }
    }

    /// As many lanes as the slice has room for.
    #[inline(always)]
    fn store_slice(self, to: &mut [f32], v: Self::V) {
        if to.len() >= Self::LANES {
            // SAFETY: long enough.
            return unsafe { self.store(to.as_mut_ptr(), v) };
        }
        let mut padded = [0.0; MAX_LANES];
        // SAFETY: MAX_LANES elements.
        unsafe { self.store(padded.as_mut_ptr(), v) };
        to.copy_from_slice(&padded[..to.len()]);
    }
}

/// Asks for a line to be brought as near as the second cache. Any address will do.
#[inline(always)]
pub(crate) fn ask_for(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every such processor has the instruction, and it reads nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
