//! Quads of compact bf16 (compact.rs) as vectors of bf16: with AVX-512 in registers, with AVX2 into memory.
//!
//! High bytes are made of codes and the rows' bases, and interleaved with low bytes: ten instructions for four vectors, none of which waits
//! for the units that multiply.

use super::{Avx2, Bf16Dot};
use crate::compact::{HEADER_BYTES, QUAD_BYTES, QUAD_WORDS};
use std::arch::x86_64::*;

/// Sign and upper bits of a and b in a code, where their high bytes have them.
const OWN: u8 = 0x87;
/// The same of c and d, once their four bits are the lowest of a byte.
const FOUR: u8 = 15;
/// What these four bits are in a high byte.
const SIGN_AND_UPPER: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87];

/// The bases of eight times four rows in the places of a quad's bytes, each in two bytes.
///
/// # Safety
/// The processor has AVX2, and 32 bytes can be read.
#[inline(always)]
unsafe fn bases(block: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, high) = (_mm_loadu_si128(block.cast()), _mm_loadu_si128(block.add(16).cast()));
        // A closure would not be inlined, and vectors would go through memory.
        let first = _mm256_cvtepu8_epi16(_mm_unpacklo_epi32(low, high));
        let second = _mm256_cvtepu8_epi16(_mm_unpackhi_epi32(low, high));
        [
            _mm256_or_si256(first, _mm256_slli_epi16::<8>(first)),
            _mm256_or_si256(second, _mm256_slli_epi16::<8>(second)),
        ]
    }
}

/// What the quads of one block have in common.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Quads {
    bases: __m512i,
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
            let [low, high] = bases(block);
            Self { bases: _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high) }
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
            let of = |byte: u8| _mm512_set1_epi8(byte.cast_signed());
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(SIGN_AND_UPPER.as_ptr().cast()));
            let [ab, cd, codes] = [0, 64, 128].map(|at| _mm512_loadu_si512(quad.add(at).cast()));
            let high_ab = _mm512_add_epi8(_mm512_and_si512(codes, of(OWN)), self.bases);
            let four = _mm512_and_si512(_mm512_srli_epi16::<3>(codes), of(FOUR));
            let high_cd = _mm512_add_epi8(_mm512_shuffle_epi8(table, four), self.bases);
            [
                _mm512_unpacklo_epi8(ab, high_ab),
                _mm512_unpackhi_epi8(ab, high_ab),
                _mm512_unpacklo_epi8(cd, high_cd),
                _mm512_unpackhi_epi8(cd, high_cd),
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

/// Half of the rows of a block, eight times two: what their part of its quads has in common.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Quads {
    bases: __m256i,
}

impl Avx2Quads {
    /// Rows `8 * half ..` and `16 + 8 * half ..` of the block that begins there.
    ///
    /// # Safety
    /// A block begins there.
    #[inline(always)]
    pub unsafe fn new(_: Avx2, block: *const u8, half: usize) -> Self {
        // SAFETY: the caller's promise, and the token's.
        Self { bases: unsafe { bases(block) }[half] }
    }

    /// The first, or with `LINE` the second, two terms of each row: those of the first eight rows, and of the others. The quad's address has
    /// 32 bytes added for the second half.
    ///
    /// # Safety
    /// The quad can be read.
    #[inline(always)]
    pub unsafe fn load<const LINE: usize>(self, quad: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller's promise; whoever made this had the token.
        unsafe {
            let codes = _mm256_loadu_si256(quad.add(128).cast());
            let high = match LINE {
                0 => _mm256_and_si256(codes, _mm256_set1_epi8(OWN.cast_signed())),
                _ => {
                    let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(SIGN_AND_UPPER.as_ptr().cast()));
                    let four =
                        _mm256_and_si256(_mm256_srli_epi16::<3>(codes), _mm256_set1_epi8(FOUR.cast_signed()));
                    _mm256_shuffle_epi8(table, four)
                }
            };
            let high = _mm256_add_epi8(high, self.bases);
            let low = _mm256_loadu_si256(quad.add(64 * LINE).cast());
            [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)]
        }
    }
}

/// The first term of each pair, as a float.
#[inline(always)]
pub(crate) fn first_term(_: Avx2, pairs: __m256i) -> __m256 {
    // SAFETY: the token proves that the processor has the instructions.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)) }
}

/// The second term of each pair, as a float.
#[inline(always)]
pub(crate) fn second_term(_: Avx2, pairs: __m256i) -> __m256 {
    // SAFETY: the token proves that the processor has the instructions.
    unsafe { _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()))) }
}

/// The first quads of a block as plain bf16.
///
/// # Safety
/// They can be read, and their words written. The processor has AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn unpack_avx2(block: *const u8, quads: usize, words: *mut u16) {
    // SAFETY: the caller's promise; this function has the features.
    unsafe {
        for half in 0..2 {
            let of_half = Avx2Quads::new(Avx2::new(), block, half);
            for index in 0..quads {
                let quad = block.add(HEADER_BYTES + index * QUAD_BYTES + 32 * half);
                let out = words.add(index * QUAD_WORDS + 16 * half);
                let ([a, b], [c, d]) = (of_half.load::<0>(quad), of_half.load::<1>(quad));
                _mm256_storeu_si256(out.cast(), a);
                _mm256_storeu_si256(out.add(32).cast(), b);
                _mm256_storeu_si256(out.add(64).cast(), c);
                _mm256_storeu_si256(out.add(96).cast(), d);
            }
        }
    }
}
