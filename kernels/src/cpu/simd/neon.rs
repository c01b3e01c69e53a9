//! NEON, which every 64-bit ARM processor has: eight lanes in two registers, so that panels are those of AVX2.

use super::dot::Dot;
use super::{Isa, MAX_LANES, Simd, Turn};
use std::arch::aarch64::*;
use std::arch::asm;

#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// Lanes 0 to 3, and 4 to 7.
type Floats = [float32x4_t; 2];
type Words = [int32x4_t; 2];

#[inline(always)]
fn each<A: Copy, B>(a: [A; 2], f: impl Fn(A) -> B) -> [B; 2] {
    [f(a[0]), f(a[1])]
}

#[inline(always)]
fn both<A: Copy, B: Copy, C>(a: [A; 2], b: [B; 2], f: impl Fn(A, B) -> C) -> [C; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

/// Methods that do one thing to each register. Every processor that this is compiled for has the instructions.
macro_rules! lanewise {
    ($($name:ident($a:ident, $b:ident) = $e:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the instructions are there.
            both(a, b, |$a, $b| unsafe { $e })
        }
    )*};
}

impl Simd for Neon {
    type V = Floats;
    const LANES: usize = 8;
    const ISA: Isa = Isa::Neon;
    // 24 registers of sums, and eight for the rest.
    const TILE_ROWS: usize = 6;

    lanewise! {
        add(a, b) = vaddq_f32(a, b);
        sub(a, b) = vsubq_f32(a, b);
        mul(a, b) = vmulq_f32(a, b);
        div(a, b) = vdivq_f32(a, b);
        max(a, b) = vbslq_f32(vcgtq_f32(a, b), a, b);
        min(a, b) = vbslq_f32(vcltq_f32(a, b), a, b);
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Floats {
        // SAFETY: the instruction is there.
        unsafe { [vdupq_n_f32(x); 2] }
    }
    #[inline(always)]
    fn fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        // SAFETY: the instruction is there.
        std::array::from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    fn pow2(self, n: Floats) -> Floats {
        // SAFETY: the instructions are there.
        each(n, |n| unsafe {
            let exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        })
    }
    #[inline(always)]
    fn select_lt(self, a: Floats, b: Floats, x: Floats, y: Floats) -> Floats {
        // SAFETY: the instructions are there.
        std::array::from_fn(|i| unsafe { vbslq_f32(vcltq_f32(a[i], b[i]), x[i], y[i]) })
    }
    #[inline(always)]
    fn sum(self, [low, high]: Floats) -> f32 {
        // SAFETY: the instructions are there.
        unsafe {
            let four = vaddq_f32(low, high);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Floats {
        // SAFETY: the caller's promise.
        unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, [low, high]: Floats) {
        // SAFETY: the caller's promise.
        unsafe {
            vst1q_f32(to, low);
            vst1q_f32(to.add(4), high);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Floats {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = vld1q_u16(from);
            [low_half(vmovl_u16(vget_low_u16(bits))), low_half(vmovl_high_u16(bits))]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Floats {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = vld1q_u16(from);
            each([vmovl_u16(vget_low_u16(bits)), vmovl_high_u16(bits)], from_f16)
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, from: *const u16) -> (Floats, Floats) {
        // SAFETY: the caller's promise.
        let pairs = unsafe { [vld1q_u32(from.cast()), vld1q_u32(from.cast::<u32>().add(4))] };
        (each(pairs, low_half), each(pairs, high_half))
    }
    #[inline(always)]
    unsafe fn load_byte<const BYTE: usize>(self, from: *const u8) -> Floats {
        // SAFETY: the caller's promise.
        each(unsafe { words(from) }, |words| unsafe {
            let top = vshlq_s32(words, vdupq_n_s32(24 - 8 * BYTE as i32));
            vcvtq_f32_s32(vshrq_n_s32::<24>(top))
        })
    }
    #[inline(always)]
    unsafe fn load_nibbles<const BYTE: usize>(self, from: *const u8) -> (Floats, Floats) {
        // SAFETY: the caller's promise.
        let words = unsafe { words(from) };
        let nibble = |shift: usize| {
            // SAFETY: the instructions are there. A shift to the left by less than nothing is one to the right.
            each(words, |words| unsafe {
                let bits = vandq_s32(vshlq_s32(words, vdupq_n_s32(-(shift as i32))), vdupq_n_s32(15));
                vcvtq_f32_s32(vsubq_s32(bits, vdupq_n_s32(8)))
            })
        };
        (nibble(8 * BYTE), nibble(8 * BYTE + 4))
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch may have any address.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly)) }
    }
}

/// Words that hold an f16 each. (`vcvt_f32_f16` is stable only in compilers that are newer than ours must be.)
#[inline(always)]
fn from_f16(bits: uint32x4_t) -> float32x4_t {
    // SAFETY: the instructions are there.
    unsafe {
        let magnitude = vandq_u32(bits, vdupq_n_u32(0x7fff));
        // The exponent's bias is 15 there and 127 here. Numbers below the normal ones of f16 are such in f32 for a moment, too.
        let scaled = vmulq_f32(
            vreinterpretq_f32_u32(vshlq_n_u32::<13>(magnitude)),
            vdupq_n_f32(f32::from_bits((127 + 112) << 23)),
        );
        let not_finite =
            vandq_u32(vcgeq_u32(magnitude, vdupq_n_u32(0x7c00)), vdupq_n_u32(f32::INFINITY.to_bits()));
        let sign = vshlq_n_u32::<16>(vandq_u32(bits, vdupq_n_u32(0x8000)));
        vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(vreinterpretq_u32_f32(scaled), not_finite), sign))
    }
}

/// The low halves of words as bf16.
#[inline(always)]
fn low_half(pairs: uint32x4_t) -> float32x4_t {
    // SAFETY: the instructions are there.
    unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)) }
}

#[inline(always)]
fn high_half(pairs: uint32x4_t) -> float32x4_t {
    // SAFETY: the instructions are there.
    unsafe { vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff_0000))) }
}

/// # Safety
/// Eight words can be read.
#[inline(always)]
unsafe fn words(from: *const u8) -> Words {
    // SAFETY: the caller's promise. Bytes may begin anywhere, and words are little-endian as the processor is.
    unsafe { [vreinterpretq_s32_u8(vld1q_u8(from)), vreinterpretq_s32_u8(vld1q_u8(from.add(16)))] }
}

/// Columns of four rows.
#[inline(always)]
fn turn4([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: the instructions are there.
    unsafe {
        let (ab, cd) = ([vtrn1q_f32(a, b), vtrn2q_f32(a, b)], [vtrn1q_f32(c, d), vtrn2q_f32(c, d)]);
        let [even, odd] = [0, 1].map(|i| {
            let (ab, cd) = (vreinterpretq_f64_f32(ab[i]), vreinterpretq_f64_f32(cd[i]));
            [vtrn1q_f64(ab, cd), vtrn2q_f64(ab, cd)].map(|v| vreinterpretq_f32_f64(v))
        });
        [even[0], odd[0], even[1], odd[1]]
    }
}

/// Columns of eight rows of eight elements of 32 bits.
///
/// # Safety
/// The rows can be read.
#[inline(always)]
unsafe fn turn8(from: impl Fn(usize) -> *const f32) -> [Floats; 8] {
    // SAFETY: the caller's promise.
    let quarter = |row: usize, column: usize| {
        // SAFETY: as above.
        turn4(std::array::from_fn(|r| unsafe { vld1q_f32(from(row + r).add(column)) }))
    };
    let quarters = [0, 4].map(|column| [quarter(0, column), quarter(4, column)]);
    std::array::from_fn(|c| each(quarters[c / 4], |rows| rows[c % 4]))
}

impl Turn for Neon {
    #[inline(always)]
    unsafe fn turn(self, from: &[*const f32; MAX_LANES], to: *mut f32, to_row: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            for (c, line) in turn8(|r| from[r]).into_iter().enumerate() {
                self.store(to.add(c * to_row), line);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> Floats {
        // SAFETY: the caller's promise.
        unsafe {
            let halves = vmovl_s8(vld1_s8(from.cast()));
            each([vmovl_s16(vget_low_s16(halves)), vmovl_high_s16(halves)], |v| vcvtq_f32_s32(v))
        }
    }
    #[inline(always)]
    fn prefetch_second(self, address: *const u8) {
        // SAFETY: a prefetch may have any address.
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly)) }
    }
}

/// Products of bytes: by the instruction for them where `SDOT`, else by products of 16 bits.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<const SDOT: bool>(());

impl Bytes<false> {
    pub const WIDENING: Self = Self(());
}

impl Bytes<true> {
    pub fn is_available() -> bool {
        std::arch::is_aarch64_feature_detected!("dotprod")
    }

    /// # Safety
    /// `is_available`.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        Self(())
    }
}

impl<const SDOT: bool> Dot for Bytes<SDOT> {
    type S = Neon;
    type W = Words;
    const BYTE_OFFSET: i32 = 0;
    const TILE_ROWS: usize = 3;

    #[inline(always)]
    fn simd(self) -> Neon {
        Neon
    }
    #[inline(always)]
    fn splat(self, x: i32) -> Words {
        // SAFETY: the instruction is there.
        unsafe { [vdupq_n_s32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> Words {
        // SAFETY: the caller's promise.
        unsafe { words(from) }
    }
    #[inline(always)]
    fn dot_bytes(self, acc: Words, w: Words, x: Words) -> Words {
        std::array::from_fn(|i| match SDOT {
            // SAFETY: the token proves that the processor has the instruction.
            true => unsafe { sdot(acc[i], w[i], x[i]) },
            false => widening(acc[i], w[i], x[i]),
        })
    }
    #[inline(always)]
    fn low_nibbles(self, w: Words) -> Words {
        // SAFETY: the instructions are there.
        each(w, |w| unsafe { vandq_s32(w, vdupq_n_s32(0x0f0f_0f0f)) })
    }
    #[inline(always)]
    fn high_nibbles(self, w: Words) -> Words {
        // SAFETY: the instructions are there.
        each(w, |w| unsafe { vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(w))) })
    }
    #[inline(always)]
    fn add(self, a: Words, b: Words) -> Words {
        // SAFETY: the instruction is there.
        both(a, b, |a, b| unsafe { vaddq_s32(a, b) })
    }
    #[inline(always)]
    fn max(self, a: Words, b: Words) -> Words {
        // SAFETY: the instruction is there.
        both(a, b, |a, b| unsafe { vmaxq_s32(a, b) })
    }
    #[inline(always)]
    fn to_floats(self, w: Words) -> Floats {
        // SAFETY: the instruction is there.
        each(w, |w| unsafe { vcvtq_f32_s32(w) })
    }
    #[inline(always)]
    fn round(self, x: Floats) -> Words {
        // SAFETY: the instruction is there.
        each(x, |x| unsafe { vcvtnq_s32_f32(x) })
    }
    #[inline(always)]
    fn magnitude_bits(self, x: Floats) -> Words {
        // SAFETY: the instruction is there.
        each(x, |x| unsafe { vreinterpretq_s32_f32(vabsq_f32(x)) })
    }
    #[inline(always)]
    fn sum(self, [low, high]: Words) -> i32 {
        // SAFETY: the instructions are there.
        unsafe { vaddvq_s32(vaddq_s32(low, high)) }
    }
    #[inline(always)]
    fn largest(self, [low, high]: Words) -> i32 {
        // SAFETY: the instructions are there.
        unsafe { vmaxvq_s32(vmaxq_s32(low, high)) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, w: Words) {
        // SAFETY: the caller's promise.
        unsafe {
            let [low, high] = each(w, |w| vmovn_u32(vreinterpretq_u32_s32(w)));
            vst1_u8(to, vmovn_u16(vcombine_u16(low, high)));
        }
    }
}

/// # Safety
/// The processor has the instruction. (`vdotq_s32` is not stable.)
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

#[inline(always)]
fn widening(acc: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    // SAFETY: the instructions are there.
    unsafe {
        let (w, x) = (vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
        // Neighbours are added before they are widened: a pair of products is at most 2 · 128 · 127 and fits 16 bits.
        let (low, high) = (vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x));
        vpadalq_s16(acc, vpaddq_s16(low, high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::Portable;

    #[test]
    fn all_f16() {
        for first in (0..=u16::MAX).step_by(8) {
            let bits: [u16; 8] = std::array::from_fn(|i| first + i as u16);
            let mut floats = [0.0f32; 8];
            // SAFETY: eight of each.
            unsafe { Neon.store(floats.as_mut_ptr(), Neon.load_f16(bits.as_ptr())) };
            for (bits, float) in bits.into_iter().zip(floats) {
                let expected = half::f16::from_bits(bits).to_f32();
                assert!(
                    expected.to_bits() == float.to_bits() || (expected.is_nan() && float.is_nan()),
                    "{bits:#x}: {float} for {expected}"
                );
            }
        }
    }

    /// Every weight beside every other activation, 32 at a time.
    #[test]
    fn products_of_bytes_are_exact() {
        for w in i8::MIN..=i8::MAX {
            let w = [w.wrapping_sub(3), w, w.wrapping_add(1), w].map(i8::cast_unsigned).repeat(8);
            for x in (-127..=127i8).step_by(2) {
                let x = [x, x, -x, x.saturating_add(1)].map(i8::cast_unsigned).repeat(8);
                let plain = dot(Portable, &w, &x);
                assert_eq!(words_of(dot(Bytes::WIDENING, &w, &x)), plain, "{w:?} {x:?}");
                if Bytes::is_available() {
                    // SAFETY: just asked for.
                    let token = unsafe { Bytes::<true>::new() };
                    assert_eq!(words_of(dot(token, &w, &x)), plain, "{w:?} {x:?}");
                }
            }
        }
    }

    fn dot<D: Dot>(d: D, w: &[u8], x: &[u8]) -> D::W {
        assert_eq!((w.len(), x.len()), (32, 32));
        // SAFETY: eight words each.
        unsafe { d.dot_bytes(d.splat(1_000_003), d.load(w.as_ptr()), d.load(x.as_ptr())) }
    }

    fn words_of(words: Words) -> [i32; 8] {
        // SAFETY: both are eight words.
        unsafe { std::mem::transmute(words) }
    }
}
