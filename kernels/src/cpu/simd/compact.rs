//! Quads of compact bf16 (compact.rs) as vectors of bf16: with AVX-512 in registers, with AVX2 into memory.
//!
//! Three instructions a vector: a b c are masked and have the row's exponent added, d is put together of shifts of all three.

use super::Bf16Dot;
use crate::compact::{HEADER_BYTES, QUAD_BYTES, QUAD_WORDS};
use std::arch::x86_64::*;

/// Sign, exponent's four bits and mantissa of a, b and c.
const OWN: u16 = 0x87ff;
/// Where d has its exponent's four bits, and its mantissa's upper four.
const EXPONENT: u16 = 0x0780;
const MANTISSA: u16 = 0x0078;
/// Where d has its sign and its mantissa's lower three bits.
const ENDS: u16 = 0x8007;

/// The exponents of 16 rows, each in both halves of a word of 32 bits.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn both_halves(exponents: __m128i) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let wide = _mm512_cvtepu8_epi32(exponents);
        _mm512_or_si512(_mm512_slli_epi32::<7>(wide), _mm512_slli_epi32::<23>(wide))
    }
}

/// What the quads of one block have in common.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Quads {
    /// The lowest exponents of the first 16 rows and of the others, twice each.
    bases: [__m512i; 2],
}

impl Avx512Quads {
    /// Of the block that begins there. The token says that the processor has AVX512-BF16, and with it AVX-512BW.
    ///
    /// # Safety
    /// A block begins there.
    #[inline(always)]
    pub unsafe fn new(_: Bf16Dot, block: *const u8) -> Self {
        // SAFETY: the caller's promise, and the token's.
        unsafe {
            let [low, high] = [_mm_loadu_si128(block.cast()), _mm_loadu_si128(block.add(16).cast())];
            Self { bases: [both_halves(low), both_halves(high)] }
        }
    }

    /// The four vectors of a quad.
    ///
    /// # Safety
    /// It can be read.
    #[inline(always)]
    pub unsafe fn load(self, quad: *const u8) -> [__m512i; 4] {
        // SAFETY: the caller's promise; whoever made this had the token.
        unsafe {
            let [low, high] = self.bases;
            let own = _mm512_set1_epi16(OWN.cast_signed());
            let exponent = _mm512_set1_epi16(EXPONENT.cast_signed());
            let ends = _mm512_set1_epi16(ENDS.cast_signed());
            let a = _mm512_loadu_si512(quad.cast());
            let b = _mm512_loadu_si512(quad.add(64).cast());
            let c = _mm512_loadu_si512(quad.add(128).cast());
            // Where the mask has a bit the second, elsewhere the third.
            let d = _mm512_ternarylogic_epi32::<0xca>(
                exponent,
                _mm512_srli_epi16::<4>(a),
                _mm512_srli_epi16::<8>(b),
            );
            let d = _mm512_ternarylogic_epi32::<0xca>(ends, _mm512_rol_epi32::<4>(c), d);
            [
                _mm512_add_epi16(_mm512_and_si512(a, own), low),
                _mm512_add_epi16(_mm512_and_si512(b, own), high),
                _mm512_add_epi16(_mm512_and_si512(c, own), low),
                _mm512_add_epi16(d, high),
            ]
        }
    }

    /// Puts a word in its place among the four vectors of a quad.
    #[inline(always)]
    pub fn put(self, vectors: &mut [__m512i; 4], place: usize, word: u16) {
        for (v, vector) in vectors.iter_mut().enumerate() {
            let mask = if place / 32 == v { 1 << (place % 32) } else { 0 };
            // SAFETY: whoever made this had the token.
            *vector = unsafe { _mm512_mask_set1_epi16(*vector, mask, word.cast_signed()) };
        }
    }
}

/// Writes one of a quad's vectors.
///
/// # Safety
/// 32 words can be written; the processor has AVX-512.
#[inline(always)]
pub(crate) unsafe fn store(words: *mut u16, vector: __m512i) {
    // SAFETY: the caller's promise.
    unsafe { _mm512_storeu_si512(words.cast(), vector) }
}

/// The first quads of a block as plain bf16.
///
/// # Safety
/// They can be read, and their words written. The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn unpack_avx2(block: *const u8, quads: usize, words: *mut u16) {
    let of = |bits: u16| _mm256_set1_epi16(bits.cast_signed());
    let (own, exponent, mantissa, ends) = (of(OWN), of(EXPONENT), of(MANTISSA), of(ENDS));
    // SAFETY: the caller's promise.
    let bases = unsafe {
        [0, 8, 16, 24].map(|at| {
            let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(block.add(at).cast()));
            _mm256_or_si256(_mm256_slli_epi32::<7>(wide), _mm256_slli_epi32::<23>(wide))
        })
    };
    for index in 0..quads {
        for half in 0..2 {
            let (low, high) = (bases[half], bases[2 + half]);
            // SAFETY: the caller's promise.
            unsafe {
                let quad = block.add(HEADER_BYTES + index * QUAD_BYTES + 32 * half);
                let out = words.add(index * QUAD_WORDS + 16 * half);
                let [a, b, c] = [0, 64, 128].map(|at| _mm256_loadu_si256(quad.add(at).cast()));
                let turned = _mm256_or_si256(_mm256_slli_epi32::<4>(c), _mm256_srli_epi32::<28>(c));
                let d = _mm256_or_si256(
                    _mm256_and_si256(_mm256_srli_epi16::<4>(a), exponent),
                    _mm256_and_si256(_mm256_srli_epi16::<8>(b), mantissa),
                );
                let d = _mm256_or_si256(d, _mm256_and_si256(turned, ends));
                let vectors = [
                    _mm256_add_epi16(_mm256_and_si256(a, own), low),
                    _mm256_add_epi16(_mm256_and_si256(b, own), high),
                    _mm256_add_epi16(_mm256_and_si256(c, own), low),
                    _mm256_add_epi16(d, high),
                ];
                for (v, vector) in vectors.into_iter().enumerate() {
                    _mm256_storeu_si256(out.add(32 * v).cast(), vector);
                }
            }
        }
    }
}
