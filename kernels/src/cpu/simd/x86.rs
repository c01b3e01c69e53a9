//! AVX2 with FMA and F16C (8 lanes) and AVX-512 (16 lanes).

use super::{Isa, Simd};
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Proof that the processor has AVX-512F, BW, DQ, VL and what `Avx2` needs.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        Self(())
    }
}

impl Avx512 {
    /// # Safety
    /// The processor has AVX-512F, BW, DQ, VL, AVX2, FMA and F16C.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        Self(())
    }
}

/// Methods that are one expression of intrinsics over values.
macro_rules! arithmetic {
    ($($name:ident($($arg:ident),*) = $e:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::V {
            // SAFETY: the token proves that the processor has the instructions.
            unsafe { $e }
        }
    )*};
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const ISA: Isa = Isa::Avx2;
    const TILE_ROWS: usize = 6;

    arithmetic! {
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        fma(a, b, c) = _mm256_fmadd_ps(a, b, c);
        max(a, b) = _mm256_max_ps(a, b);
        min(a, b) = _mm256_min_ps(a, b);
        pow2(n) = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
        select_lt(a, b, x, y) = _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe { sum8(a) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, from: *const u16) -> (Self::V, Self::V) {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = _mm256_loadu_si256(from.cast());
            let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            (_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), _mm256_castsi256_ps(odd))
        }
    }
    #[inline(always)]
    unsafe fn load_byte<const BYTE: usize>(self, from: *const u8) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe {
            let words = _mm256_loadu_si256(from.cast());
            let top = _mm256_sllv_epi32(words, _mm256_set1_epi32(24 - 8 * BYTE as i32));
            _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 24))
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles<const BYTE: usize>(self, from: *const u8) -> (Self::V, Self::V) {
        // SAFETY: the caller's promise.
        unsafe {
            let words = _mm256_loadu_si256(from.cast());
            let nibble = |shift: usize| {
                let bits = _mm256_and_si256(
                    _mm256_srlv_epi32(words, _mm256_set1_epi32(shift as i32)),
                    _mm256_set1_epi32(15),
                );
                _mm256_cvtepi32_ps(_mm256_sub_epi32(bits, _mm256_set1_epi32(8)))
            };
            (nibble(8 * BYTE), nibble(8 * BYTE + 4))
        }
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch may have any address.
        unsafe { _mm_prefetch(address.cast(), _MM_HINT_T0) }
    }
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const ISA: Isa = Isa::Avx512;
    const TILE_ROWS: usize = 12;

    arithmetic! {
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        fma(a, b, c) = _mm512_fmadd_ps(a, b, c);
        max(a, b) = _mm512_max_ps(a, b);
        min(a, b) = _mm512_min_ps(a, b);
        pow2(n) = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
        select_lt(a, b, x, y) = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let high = _mm512_castps512_ps256(_mm512_shuffle_f32x4(a, a, 0b1110));
            sum8(_mm256_add_ps(_mm512_castps512_ps256(a), high))
        }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, from: *const u16) -> (Self::V, Self::V) {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            (_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), _mm512_castsi512_ps(odd))
        }
    }
    #[inline(always)]
    unsafe fn load_byte<const BYTE: usize>(self, from: *const u8) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe {
            let words = _mm512_loadu_si512(from.cast());
            let top = _mm512_sllv_epi32(words, _mm512_set1_epi32(24 - 8 * BYTE as i32));
            _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24))
        }
    }
    // Sixteen numbers are one register: a permutation by the low four bits of each lane looks them up.
    #[inline(always)]
    unsafe fn load_nibbles<const BYTE: usize>(self, from: *const u8) -> (Self::V, Self::V) {
        // SAFETY: the caller's promise.
        unsafe {
            let levels = _mm512_setr_ps(
                -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
            );
            let words = _mm512_loadu_si512(from.cast());
            let nibble = |shift: usize| _mm512_srlv_epi32(words, _mm512_set1_epi32(shift as i32));
            let (low, high) = (nibble(8 * BYTE), nibble(8 * BYTE + 4));
            (_mm512_permutexvar_ps(low, levels), _mm512_permutexvar_ps(high, levels))
        }
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch may have any address.
        unsafe { _mm_prefetch(address.cast(), _MM_HINT_T0) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum8(a: __m256) -> f32 {
    let b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    let c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)))
}
