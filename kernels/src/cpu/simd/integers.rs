//! Whole numbers of 16 bits with AVX2: weights of compact bf16 (compact.rs) and activations as such, and sums of their products.

use super::{Avx2, Simd};
use crate::compact::HIGHEST_BASE;
use crate::panel::GROUP;
use std::arch::asm;
use std::arch::x86_64::*;

/// What a weight's level is its significand times, by the four bits of its code: a sign, and upper bits of the exponent above the row's base.
/// Low bytes, then high ones.
const FACTORS: [[i8; 16]; 2] = {
    let mut bytes = [[0; 16]; 2];
    let mut code = 0;
    while code < 16 {
        let magnitude = 1i16 << (2 * (code % 8));
        let [low, high] = (if code < 8 { magnitude } else { -magnitude }).to_le_bytes();
        (bytes[0][code], bytes[1][code]) = (low.cast_signed(), high.cast_signed());
        code += 1;
    }
    bytes
};

/// A table of 16 bytes, twice.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn table(bytes: &[i8; 16]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
}

/// The first, or with `LINE` the second, two terms of half of the rows as levels: those of eight rows, and of the eight rows 16 further. The quad's
/// address has 32 bytes added for the second half.
///
/// # Safety
/// The quad can be read.
#[inline(always)]
pub(crate) unsafe fn levels<const LINE: usize>(_: Avx2, quad: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller's promise, and the token's.
    unsafe {
        let codes = _mm256_loadu_si256(quad.add(128).cast());
        let four = match LINE {
            0 => _mm256_or_si256(
                _mm256_and_si256(codes, _mm256_set1_epi8(7)),
                _mm256_and_si256(_mm256_srli_epi16::<4>(codes), _mm256_set1_epi8(8)),
            ),
            _ => _mm256_and_si256(_mm256_srli_epi16::<3>(codes), _mm256_set1_epi8(15)),
        };
        let low_factors = _mm256_shuffle_epi8(table(&FACTORS[0]), four);
        let high_factors = _mm256_shuffle_epi8(table(&FACTORS[1]), four);
        // 128 + mantissa, twice that where the lowest bit of the exponent says so; times 32.
        let low = _mm256_loadu_si256(quad.add(64 * LINE).cast());
        let other = _mm256_max_epu8(low, _mm256_set1_epi8(i8::MIN));
        let each = _mm256_set1_epi8(32);
        let first = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(low, other), each);
        let second = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(low, other), each);
        [
            _mm256_mulhrs_epi16(first, _mm256_unpacklo_epi8(low_factors, high_factors)),
            _mm256_mulhrs_epi16(second, _mm256_unpackhi_epi8(low_factors, high_factors)),
        ]
    }
}

/// What levels of eight rows with these bases count: 2^(2 base - 124). NaN beside the highest one, since weights that are not finite have it.
///
/// # Safety
/// Eight bases can be read.
#[inline(always)]
pub(crate) unsafe fn steps(_: Avx2, bases: *const u8) -> __m256 {
    // SAFETY: the caller's promise, and the token's.
    unsafe {
        let bases = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bases.cast()));
        let bits = _mm256_add_epi32(_mm256_slli_epi32::<24>(bases), _mm256_set1_epi32(3 << 23));
        let highest = _mm256_cmpeq_epi32(bases, _mm256_set1_epi32(i32::from(HIGHEST_BASE)));
        _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_and_si256(highest, _mm256_set1_epi32(0x7fc0_0000))))
    }
}

/// Two vectors of weights: in each lane `acc` and the sum of its two products with a pair of activations.
#[inline(always)]
pub(crate) fn dot_pair(_: Avx2, acc: [__m256i; 2], w: [__m256i; 2], pair: i32) -> [__m256i; 2] {
    // SAFETY: the token proves that the processor has the instructions.
    unsafe {
        let x = _mm256_set1_epi32(pair);
        [
            _mm256_add_epi32(acc[0], _mm256_madd_epi16(w[0], x)),
            _mm256_add_epi32(acc[1], _mm256_madd_epi16(w[1], x)),
        ]
    }
}

/// The same with a pair in memory, `AT` bytes further. Its instructions stay as they are: of several terms the compiler would have weights in registers that sums need.
///
/// # Safety
/// The pair can be read.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn dot_pair_from<const AT: usize>(
    _: Avx2,
    [mut acc0, mut acc1]: [__m256i; 2],
    [w0, w1]: [__m256i; 2],
    pair: *const i32,
) -> [__m256i; 2] {
    // SAFETY: the caller's promise; nothing else is read, and nothing written.
    unsafe {
        asm!(
            "vpbroadcastd {x}, dword ptr [{pair} + {at}]",
            "vpmaddwd {product}, {x}, {w0}",
            "vpmaddwd {x}, {x}, {w1}",
            "vpaddd {acc0}, {acc0}, {product}",
            "vpaddd {acc1}, {acc1}, {x}",
            acc0 = inout(ymm_reg) acc0,
            acc1 = inout(ymm_reg) acc1,
            w0 = in(ymm_reg) w0,
            w1 = in(ymm_reg) w1,
            product = out(ymm_reg) _,
            x = out(ymm_reg) _,
            pair = in(reg) pair,
            at = const AT,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    [acc0, acc1]
}

/// The first of a sum's products.
///
/// # Safety
/// The pair can be read.
#[inline(always)]
pub(crate) unsafe fn first_pair_from(_: Avx2, w: [__m256i; 2], pair: *const i32) -> [__m256i; 2] {
    // SAFETY: the caller's promise, and the token's.
    unsafe {
        let x = _mm256_set1_epi32(pair.read());
        [_mm256_madd_epi16(w[0], x), _mm256_madd_epi16(w[1], x)]
    }
}

/// Adds two vectors of parts, times a scale in memory, to sums in memory, where the compiler would keep sums in registers that parts need.
///
/// # Safety
/// The scale can be read.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn add_scaled(
    _: Avx2,
    [part0, part1]: [__m256i; 2],
    scale: *const f32,
    sums: &mut [f32; 16],
) {
    // SAFETY: the caller's promise; nothing but the sums is written.
    unsafe {
        asm!(
            "vbroadcastss {scale}, dword ptr [{from}]",
            "vcvtdq2ps {part0}, {part0}",
            "vcvtdq2ps {part1}, {part1}",
            "vfmadd213ps {part0}, {scale}, ymmword ptr [{sums}]",
            "vfmadd213ps {part1}, {scale}, ymmword ptr [{sums} + 32]",
            "vmovups ymmword ptr [{sums}], {part0}",
            "vmovups ymmword ptr [{sums} + 32], {part1}",
            scale = out(ymm_reg) _,
            part0 = inout(ymm_reg) part0 => _,
            part1 = inout(ymm_reg) part1 => _,
            from = in(reg) scale,
            sums = in(reg) sums.as_mut_ptr(),
            options(nostack, preserves_flags)
        );
    }
}

#[inline(always)]
pub(crate) fn zero(_: Avx2) -> __m256i {
    // SAFETY: the token proves that the processor has the instruction.
    unsafe { _mm256_setzero_si256() }
}

#[inline(always)]
pub(crate) fn to_floats(_: Avx2, sums: __m256i) -> __m256 {
    // SAFETY: the token proves that the processor has the instruction.
    unsafe { _mm256_cvtepi32_ps(sums) }
}

/// # Safety
/// 32 bytes can be read.
#[inline(always)]
pub(crate) unsafe fn load(_: Avx2, from: *const i16) -> __m256i {
    // SAFETY: the caller's promise, and the token's.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

/// # Safety
/// 32 bytes can be written.
#[inline(always)]
pub(crate) unsafe fn store(_: Avx2, to: *mut i16, words: __m256i) {
    // SAFETY: the caller's promise, and the token's.
    unsafe { _mm256_storeu_si256(to.cast(), words) }
}

/// Writes a group's levels, the largest of which has the magnitude `most`; all are zero where magnitudes are below `smallest`. Returns what a
/// level counts: NaN if a value is not finite.
///
/// # Safety
/// The levels can be written.
#[inline(always)]
pub(crate) unsafe fn round_group(s: Avx2, x: &[f32; GROUP], [most, smallest]: [f32; 2], to: *mut i16) -> f32 {
    // SAFETY: the caller's promise, and the token's.
    unsafe {
        let mut values = [s.zero(); GROUP / 8];
        let mut largest = _mm256_setzero_si256();
        for (i, value) in values.iter_mut().enumerate() {
            *value = s.load(x.as_ptr().add(8 * i));
            // Bits of magnitudes are in the order of these, and what is not finite is above them.
            let bits = _mm256_and_si256(_mm256_castps_si256(*value), _mm256_set1_epi32(i32::MAX));
            largest = _mm256_max_epi32(largest, bits);
        }
        let half = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
        let half = _mm_max_epi32(half, _mm_shuffle_epi32::<0b1110>(half));
        let half = _mm_max_epi32(half, _mm_shuffle_epi32::<1>(half));
        let largest = f32::from_bits(_mm_cvtsi128_si32(half).cast_unsigned());
        let (scale, by) = match largest {
            _ if !largest.is_finite() => (f32::NAN, 0.0),
            _ if largest < smallest => (0.0, 0.0),
            _ => (largest * (1.0 / most), most / largest),
        };
        let by = s.splat(by);
        for (i, two) in values.as_chunks::<2>().0.iter().enumerate() {
            // What is not finite becomes any level, and the scale says so.
            let first = _mm256_cvtps_epi32(s.mul(two[0], by));
            let second = _mm256_cvtps_epi32(s.mul(two[1], by));
            let packed = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_packs_epi32(first, second));
            store(s, to.add(16 * i), packed);
        }
        scale
    }
}
