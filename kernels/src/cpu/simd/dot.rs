//! Products of whole numbers of eight bits behind one trait, and of pairs of bf16 where the processor has them.
//!
//! A word is 32 bits of one column: four bytes, neighbours along K. What comes out of a word is exact, so that every instruction
//! set computes the same sums.

use super::{Portable, Simd};

/// Vectors of as many 32-bit words as `Simd` has lanes.
pub(crate) trait Dot: Copy + Send + Sync + 'static {
    type S: Simd;
    /// A vector of words.
    type W: Copy;
    /// Added to signed bytes of weights before they are multiplied. What it adds to a sum is known from the other side alone.
    const BYTE_OFFSET: i32;
    /// Rows of the largest tile. The vectors of words of a group stay in registers, two a row; sums of floats need not, which are visited
    /// once a group.
    const TILE_ROWS: usize;

    fn simd(self) -> Self::S;
    fn splat(self, x: i32) -> Self::W;
    /// # Safety
    /// `LANES` words can be read.
    unsafe fn load(self, from: *const u8) -> Self::W;
    /// In each lane `acc` and the sum of four products: bytes of `w`, signed and with `BYTE_OFFSET` added, times those of `x`, which
    /// are -127 ..= 127.
    fn dot_bytes(self, acc: Self::W, w: Self::W, x: Self::W) -> Self::W;
    /// `dot_bytes` of two vectors.
    #[inline(always)]
    fn dot_two_bytes(self, acc: [Self::W; 2], w: [Self::W; 2], x: Self::W) -> [Self::W; 2] {
        [self.dot_bytes(acc[0], w[0], x), self.dot_bytes(acc[1], w[1], x)]
    }
    /// Where sums of nibbles of a group begin, which `nibble_sum` ends.
    #[inline(always)]
    fn no_nibbles(self, start: Self::W) -> Self::W {
        start
    }
    /// In each lane of two vectors `acc` and the sum of four products, for a group at most: bytes of `w` are 0 ..= 15, those of `x`
    /// -127 ..= 127. Here where `BYTE_OFFSET` is 0.
    #[inline(always)]
    fn dot_nibbles(self, acc: [Self::W; 2], w: [Self::W; 2], x: Self::W) -> [Self::W; 2] {
        self.dot_two_bytes(acc, w, x)
    }
    /// In each lane `start` and all products since `no_nibbles`.
    #[inline(always)]
    fn nibble_sum(self, acc: Self::W, _start: Self::W) -> Self::W {
        acc
    }
    /// The low half of each byte.
    fn low_nibbles(self, w: Self::W) -> Self::W;
    /// The high half of each byte.
    fn high_nibbles(self, w: Self::W) -> Self::W;
    fn add(self, a: Self::W, b: Self::W) -> Self::W;
    fn max(self, a: Self::W, b: Self::W) -> Self::W;
    /// Of signed words.
    fn to_floats(self, w: Self::W) -> Floats<Self>;
    /// To the nearest whole number, ties to even; anything for what is no number of 32 bits.
    fn round(self, x: Floats<Self>) -> Self::W;
    /// The bits of |x|.
    fn magnitude_bits(self, x: Floats<Self>) -> Self::W;
    fn sum(self, w: Self::W) -> i32;
    fn largest(self, w: Self::W) -> i32;
    /// The low byte of each word.
    /// # Safety
    /// `LANES` bytes can be written.
    unsafe fn store_bytes(self, to: *mut u8, w: Self::W);
}

pub(crate) type Floats<D> = <<D as Dot>::S as Simd>::V;

const N: usize = Portable::LANES;

#[inline(always)]
fn dot4(acc: [i32; N], products: impl Fn(usize, u32) -> i32) -> [i32; N] {
    std::array::from_fn(|i| acc[i] + (0..4).map(|byte| products(i, 8 * byte)).sum::<i32>())
}

#[inline(always)]
fn byte(word: i32, shift: u32) -> i32 {
    i32::from((word >> shift) as i8)
}

impl Dot for Portable {
    type S = Self;
    type W = [i32; N];
    const BYTE_OFFSET: i32 = 0;
    const TILE_ROWS: usize = 2;

    #[inline(always)]
    fn simd(self) -> Self {
        self
    }
    #[inline(always)]
    fn splat(self, x: i32) -> Self::W {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> Self::W {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[[u8; 4]; N]>().read_unaligned() }.map(i32::from_le_bytes)
    }
    #[inline(always)]
    fn dot_bytes(self, acc: Self::W, w: Self::W, x: Self::W) -> Self::W {
        dot4(acc, |i, shift| byte(w[i], shift) * byte(x[i], shift))
    }
    #[inline(always)]
    fn low_nibbles(self, w: Self::W) -> Self::W {
        w.map(|w| w & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn high_nibbles(self, w: Self::W) -> Self::W {
        w.map(|w| w >> 4 & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn add(self, a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn max(self, a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    fn to_floats(self, w: Self::W) -> [f32; N] {
        w.map(|w| w as f32)
    }
    #[inline(always)]
    fn round(self, x: [f32; N]) -> Self::W {
        x.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    fn magnitude_bits(self, x: [f32; N]) -> Self::W {
        x.map(|x| x.abs().to_bits().cast_signed())
    }
    #[inline(always)]
    fn sum(self, w: Self::W) -> i32 {
        w.iter().sum()
    }
    #[inline(always)]
    fn largest(self, w: Self::W) -> i32 {
        w.into_iter().fold(i32::MIN, i32::max)
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, w: Self::W) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u8; N]>().write_unaligned(w.map(|w| w as u8)) }
    }
}
