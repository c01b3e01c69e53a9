//! Eight lanes in plain Rust: what any processor runs, and what the compiler vectorises as far as it can.

use super::{Isa, Simd};
use half::f16;

const N: usize = 8;

#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; N];
    const LANES: usize = N;
    const ISA: Isa = Isa::Portable;
    const TILE_ROWS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; N]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    // Rounded twice: without the instruction, a fused multiply-add is a slow call into the C library.
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        let b = [a[0] + a[4], a[1] + a[5], a[2] + a[6], a[3] + a[7]];
        (b[0] + b[2]) + (b[1] + b[3])
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::V {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; N]>().read_unaligned() };
        bits.map(|b| f32::from_bits(u32::from(b) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::V {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; N]>().read_unaligned() };
        bits.map(|b| f16::from_bits(b).to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, from: *const u16) -> (Self::V, Self::V) {
        // SAFETY: the caller's promise.
        let pairs = unsafe { from.cast::<[[u16; 2]; N]>().read_unaligned() };
        let widen = |b: u16| f32::from_bits(u32::from(b) << 16);
        (pairs.map(|p| widen(p[0])), pairs.map(|p| widen(p[1])))
    }
    #[inline(always)]
    unsafe fn load_byte<const BYTE: usize>(self, from: *const u8) -> Self::V {
        // SAFETY: the caller's promise.
        let words = unsafe { from.cast::<[[i8; 4]; N]>().read_unaligned() };
        words.map(|bytes| f32::from(bytes[BYTE]))
    }
    #[inline(always)]
    unsafe fn load_nibbles<const BYTE: usize>(self, from: *const u8) -> (Self::V, Self::V) {
        // SAFETY: the caller's promise.
        let words = unsafe { from.cast::<[[u8; 4]; N]>().read_unaligned() };
        let level = |nibble: u8| f32::from(nibble.cast_signed() - 8);
        (words.map(|bytes| level(bytes[BYTE] & 15)), words.map(|bytes| level(bytes[BYTE] >> 4)))
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
