//! Products of bytes with AVX2 and with AVX512-VNNI, and of pairs of bf16 with AVX512-BF16.

use super::dot::Dot;
use super::turn::turn16;
use super::{Avx2, Avx512, MAX_LANES, Simd};
use std::arch::asm;
use std::arch::x86_64::*;

/// Proof that the processor has AVX512-VNNI and what `Avx512` needs.
#[derive(Clone, Copy)]
pub(crate) struct Vnni(Avx512);

/// Proof that the processor has AVX512-BF16 and what `Avx512` needs.
#[derive(Clone, Copy)]
pub(crate) struct Bf16Dot(Avx512);

impl Vnni {
    /// # Safety
    /// The processor has AVX512-VNNI and what `Avx512` needs.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { Avx512::new() })
    }
}

/// Methods that are one expression of intrinsics over values.
macro_rules! values {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $e:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: the token proves that the processor has the instructions.
            unsafe { $e }
        }
    )*};
}

/// Two vectors of products, bytes of `w` without a sign, and two additions of 16 bits after them. The compiler would add products of several
/// words before it adds them to `acc`, which leaves it without registers, and would put products and additions in turns, of which Zen 3
/// does fewer in a cycle (docs/performance/weights.md).
#[inline]
#[target_feature(enable = "avx2")]
fn add_products([mut acc0, mut acc1]: [__m256i; 2], [w0, w1]: [__m256i; 2], x: __m256i) -> [__m256i; 2] {
    // SAFETY: the instructions touch no memory.
    unsafe {
        asm!(
            "vpmaddubsw {product}, {w0}, {x}",
            "vpmaddubsw {x}, {w1}, {x}",
            "vpaddw {acc0}, {acc0}, {product}",
            "vpaddw {acc1}, {acc1}, {x}",
            acc0 = inout(ymm_reg) acc0,
            acc1 = inout(ymm_reg) acc1,
            product = out(ymm_reg) _,
            x = inout(ymm_reg) x => _,
            w0 = in(ymm_reg) w0,
            w1 = in(ymm_reg) w1,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [acc0, acc1]
}

/// `dot_bytes` of two vectors, each instruction for both: the compiler does one vector after the other, which Zen 3 mixes less well.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_two([mut acc0, mut acc1]: [__m256i; 2], [w0, w1]: [__m256i; 2], x: __m256i) -> [__m256i; 2] {
    // SAFETY: the instructions touch no memory.
    unsafe {
        asm!(
            "vpsignb {product}, {x}, {w0}",
            "vpsignb {x}, {x}, {w1}",
            "vpmaddubsw {product}, {magnitude0}, {product}",
            "vpmaddubsw {x}, {magnitude1}, {x}",
            "vpmaddwd {product}, {product}, {ones}",
            "vpmaddwd {x}, {x}, {ones}",
            "vpaddd {acc0}, {acc0}, {product}",
            "vpaddd {acc1}, {acc1}, {x}",
            acc0 = inout(ymm_reg) acc0,
            acc1 = inout(ymm_reg) acc1,
            product = out(ymm_reg) _,
            x = inout(ymm_reg) x => _,
            w0 = in(ymm_reg) w0,
            w1 = in(ymm_reg) w1,
            magnitude0 = in(ymm_reg) _mm256_abs_epi8(w0),
            magnitude1 = in(ymm_reg) _mm256_abs_epi8(w1),
            ones = in(ymm_reg) _mm256_set1_epi16(1),
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [acc0, acc1]
}

impl Dot for Avx2 {
    type S = Self;
    type W = __m256i;
    const BYTE_OFFSET: i32 = 0;
    const TILE_ROWS: usize = 4;

    values! {
        splat(x: i32) -> __m256i = _mm256_set1_epi32(x);
        // A pair of products is at most 2 · 128 · 127 and fits 16 bits: magnitudes on one side, signs on the other. The magnitude
        // of -128 is a byte without a sign.
        dot_bytes(acc: __m256i, w: __m256i, x: __m256i) -> __m256i = {
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        };
        dot_two_bytes(acc: [__m256i; 2], w: [__m256i; 2], x: __m256i) -> [__m256i; 2] = dot_two(acc, w, x);
        no_nibbles(_start: __m256i) -> __m256i = _mm256_setzero_si256();
        // A pair of products is at most 2 · 15 · 127, and eight of them, a group of 32 terms, at most 30480: they fit 16 bits.
        dot_nibbles(acc: [__m256i; 2], w: [__m256i; 2], x: __m256i) -> [__m256i; 2] = add_products(acc, w, x);
        nibble_sum(acc: __m256i, start: __m256i) -> __m256i =
            _mm256_add_epi32(start, _mm256_madd_epi16(acc, _mm256_set1_epi16(1)));
        low_nibbles(w: __m256i) -> __m256i = _mm256_and_si256(w, _mm256_set1_epi8(15));
        high_nibbles(w: __m256i) -> __m256i = _mm256_and_si256(_mm256_srli_epi16(w, 4), _mm256_set1_epi8(15));
        add(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
        max(a: __m256i, b: __m256i) -> __m256i = _mm256_max_epi32(a, b);
        to_floats(w: __m256i) -> __m256 = _mm256_cvtepi32_ps(w);
        round(x: __m256) -> __m256i = _mm256_cvtps_epi32(x);
        magnitude_bits(x: __m256) -> __m256i = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX));
        sum(w: __m256i) -> i32 = sum4(_mm_add_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
        largest(w: __m256i) -> i32 = largest4(_mm_max_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
    }
    #[inline(always)]
    fn simd(self) -> Self {
        self
    }
    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, w: __m256i) {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm256_and_si256(w, _mm256_set1_epi32(255));
            let words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
            _mm_storel_epi64(to.cast(), _mm_packus_epi16(words, words));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum4(w: __m128i) -> i32 {
    let w = _mm_add_epi32(w, _mm_shuffle_epi32(w, 0b1110));
    _mm_cvtsi128_si32(_mm_add_epi32(w, _mm_shuffle_epi32(w, 1)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn largest4(w: __m128i) -> i32 {
    let w = _mm_max_epi32(w, _mm_shuffle_epi32(w, 0b1110));
    _mm_cvtsi128_si32(_mm_max_epi32(w, _mm_shuffle_epi32(w, 1)))
}

impl Dot for Vnni {
    type S = Avx512;
    type W = __m512i;
    // The instruction takes bytes without a sign on one side.
    const BYTE_OFFSET: i32 = 128;
    const TILE_ROWS: usize = 8;

    values! {
        splat(x: i32) -> __m512i = _mm512_set1_epi32(x);
        dot_bytes(acc: __m512i, w: __m512i, x: __m512i) -> __m512i =
            _mm512_dpbusd_epi32(acc, _mm512_xor_si512(w, _mm512_set1_epi32(0x8080_8080_u32.cast_signed())), x);
        dot_nibbles(acc: [__m512i; 2], w: [__m512i; 2], x: __m512i) -> [__m512i; 2] =
            [_mm512_dpbusd_epi32(acc[0], w[0], x), _mm512_dpbusd_epi32(acc[1], w[1], x)];
        low_nibbles(w: __m512i) -> __m512i = _mm512_and_si512(w, _mm512_set1_epi32(0x0f0f_0f0f));
        high_nibbles(w: __m512i) -> __m512i =
            _mm512_and_si512(_mm512_srli_epi32(w, 4), _mm512_set1_epi32(0x0f0f_0f0f));
        add(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        max(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epi32(a, b);
        to_floats(w: __m512i) -> __m512 = _mm512_cvtepi32_ps(w);
        round(x: __m512) -> __m512i = _mm512_cvtps_epi32(x);
        magnitude_bits(x: __m512) -> __m512i =
            _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
        sum(w: __m512i) -> i32 = {
            let half = _mm256_add_epi32(_mm512_castsi512_si256(w), _mm512_extracti64x4_epi64(w, 1));
            sum4(_mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)))
        };
        largest(w: __m512i) -> i32 = {
            let half = _mm256_max_epi32(_mm512_castsi512_si256(w), _mm512_extracti64x4_epi64(w, 1));
            largest4(_mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)))
        };
    }
    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }
    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, w: __m512i) {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(w)) }
    }
}

/// A vector of words, a pair of bf16 each.
pub(crate) type PairWords = __m512i;

/// Indices that take in turns number i of one vector and number i of another, whose numbers count from 32 on.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn in_turns() -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        _mm512_add_epi16(
            _mm512_set1_epi32(32 << 16),
            _mm512_mullo_epi32(
                _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                _mm512_set1_epi32(0x0001_0001),
            ),
        )
    }
}

/// A word in memory, in all lanes, by `vpbroadcastd`. The compiler makes `vbroadcastss` of the intrinsic, because products of bf16 count as
/// instructions of floats; on Zen 4 that one, unlike the other, takes turns with what unpacks weights (docs/performance/compact.md).
///
/// # Safety
/// It can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn broadcast(word: *const u32) -> __m512i {
    let lanes;
    // SAFETY: the caller's promise; nothing else is read, and nothing written.
    unsafe {
        asm!(
            "vpbroadcastd {lanes}, dword ptr [{word}]",
            lanes = out(zmm_reg) lanes,
            word = in(reg) word,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    lanes
}

impl Bf16Dot {
    /// Rows of the largest tile whose sums, two vectors a row, stay in registers.
    pub const TILE_ROWS: usize = 8;

    /// # Safety
    /// The processor has AVX512-BF16 and what `Avx512` needs.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { Avx512::new() })
    }

    #[inline(always)]
    pub fn simd(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    pub fn splat(self, pair: u32) -> __m512i {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm512_set1_epi32(pair.cast_signed()) }
    }

    /// A pair in memory, in all lanes.
    ///
    /// # Safety
    /// It can be read.
    #[inline(always)]
    pub unsafe fn splat_from(self, pair: *const u32) -> __m512i {
        // SAFETY: the caller's promise; the token proves that the processor has the instruction.
        unsafe { broadcast(pair) }
    }

    /// In each lane `acc` and the sum of two products.
    #[inline(always)]
    pub fn dot_pairs(self, acc: __m512, w: __m512i, x: __m512i) -> __m512 {
        // SAFETY: the token proves that the processor has the instruction.
        unsafe { _mm512_dpbf16_ps(acc, bf16(w), bf16(x)) }
    }

    /// # Safety
    /// 64 bytes can be read.
    #[inline(always)]
    pub unsafe fn load(self, from: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    /// A word for each lane: `even`, rounded as `store_rounded` does, in its low half and `odd` in its high one.
    #[inline(always)]
    pub fn pairs(self, even: <Avx512 as Simd>::V, odd: <Avx512 as Simd>::V) -> __m512i {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            // A closure would not be inlined, and vectors would go through memory.
            let even = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(even));
            let odd = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(odd));
            let (even, odd) = (_mm512_cvtepu16_epi32(even), _mm512_cvtepu16_epi32(odd));
            _mm512_or_si512(even, _mm512_slli_epi32(odd, 16))
        }
    }

    /// 32 numbers of each of two rows as 32 words: that of `a` in the low half, that of `b`, or zero, in the high one.
    ///
    /// # Safety
    /// 64 bytes can be read of each.
    #[inline(always)]
    pub unsafe fn interleave(self, a: *const u16, b: Option<*const u16>) -> [__m512i; 2] {
        // SAFETY: the caller's promise, and the token's.
        unsafe {
            let a = _mm512_loadu_si512(a.cast());
            let b = match b {
                Some(b) => _mm512_loadu_si512(b.cast()),
                None => _mm512_setzero_si512(),
            };
            let first = in_turns();
            let second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
            [_mm512_permutex2var_epi16(a, first, b), _mm512_permutex2var_epi16(a, second, b)]
        }
    }

    /// As `interleave`, 16 numbers of each.
    ///
    /// # Safety
    /// 32 bytes can be read of each.
    #[inline(always)]
    pub unsafe fn interleave_half(self, a: *const u16, b: Option<*const u16>) -> __m512i {
        // SAFETY: the caller's promise, and the token's.
        unsafe {
            let a = _mm512_castsi256_si512(_mm256_loadu_si256(a.cast()));
            let b = match b {
                Some(b) => _mm512_castsi256_si512(_mm256_loadu_si256(b.cast())),
                None => _mm512_setzero_si512(),
            };
            _mm512_permutex2var_epi16(a, in_turns(), b)
        }
    }

    /// Sixteen words of each of sixteen rows, from byte `at` on, as columns.
    ///
    /// # Safety
    /// 64 bytes can be read of each row from there on.
    #[inline(always)]
    pub unsafe fn turn(self, rows: &[*const u8; MAX_LANES], at: usize) -> [PairWords; MAX_LANES] {
        // SAFETY: the caller's promise, and the token's; a vector of words is one of floats.
        unsafe {
            let mut lines = [_mm512_setzero_ps(); MAX_LANES];
            for (line, row) in lines.iter_mut().zip(rows) {
                *line = _mm512_loadu_ps(row.wrapping_add(at).cast());
            }
            std::mem::transmute::<[__m512; MAX_LANES], [PairWords; MAX_LANES]>(turn16(lines))
        }
    }

    /// # Safety
    /// 64 bytes can be written.
    #[inline(always)]
    pub unsafe fn store(self, to: *mut u8, words: __m512i) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), words) }
    }

    /// Sixteen floats, rounded to nearest even; numbers below the normal ones become zero.
    ///
    /// # Safety
    /// 32 bytes can be written.
    #[inline(always)]
    pub unsafe fn store_rounded(self, to: *mut u8, x: <Avx512 as Simd>::V) {
        // SAFETY: the caller's promise, and the token's.
        unsafe {
            let pairs = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
            _mm256_storeu_si256(to.cast(), pairs);
        }
    }
}

/// The same bits as pairs of bf16.
#[inline(always)]
fn bf16(words: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which any bits are a value.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(words) }
}

#[cfg(test)]
mod tests {
    use super::__m256i;
    use crate::cpu::simd::dot::Dot;
    use crate::cpu::simd::{Avx2, Isa};

    const ACTIVATIONS: [[i32; 8]; 3] =
        [[127, -127, 1, 0, -1, 126, -126, 3], [127; 8], [-127, -127, 127, 127, 127, -127, 127, -127]];

    fn token() -> Option<Avx2> {
        // SAFETY: just asked for.
        Isa::Avx2.is_available().then(|| unsafe { Avx2::new() })
    }

    fn words_of(words: __m256i) -> [i32; 8] {
        // SAFETY: both are eight words.
        unsafe { std::mem::transmute(words) }
    }

    fn word(bytes: &[i32]) -> i32 {
        i32::from_le_bytes(std::array::from_fn(|i| bytes[i] as u8))
    }

    fn products(w: &[i32], x: &[i32]) -> i32 {
        w.iter().zip(x).map(|(w, x)| w * x).sum()
    }

    #[test]
    fn products_of_bytes_are_exact() {
        let Some(d) = token() else { return };
        for x in ACTIVATIONS.as_flattened().chunks(4) {
            for w in -128..=127 {
                let w = [w, -128, 127, -w.max(-127)];
                let sums = d.dot_bytes(d.splat(1_000_003), d.splat(word(&w)), d.splat(word(x)));
                assert_eq!(words_of(sums), [1_000_003 + products(&w, x); 8], "{w:?} {x:?}");
                let two = [w, [w[3], -w[2], -128, w[0]]];
                let sums = d.dot_two_bytes(
                    two.map(|w| d.splat(w[0])),
                    two.map(|w| d.splat(word(&w))),
                    d.splat(word(x)),
                );
                assert_eq!(sums.map(words_of), two.map(|w| [w[0] + products(&w, x); 8]), "{two:?} {x:?}");
            }
        }
    }

    /// Groups of 32 terms: the largest sums are among them.
    #[test]
    fn sums_of_nibbles_fit() {
        let Some(d) = token() else { return };
        for x in ACTIVATIONS {
            for w in [[15; 8], [0, 15, 0, 15, 15, 0, 15, 0], [1, 2, 3, 4, 5, 6, 7, 8]] {
                let start = d.splat(-100_000);
                let mut acc = [d.no_nibbles(start); 2];
                for four in 0..8 {
                    let at = 4 * (four % 2);
                    let vectors = [d.splat(word(&w[at..])), d.splat(0)];
                    acc = d.dot_nibbles(acc, vectors, d.splat(word(&x[at..])));
                }
                let sums = acc.map(|acc| words_of(d.nibble_sum(acc, start)));
                assert_eq!(sums, [[4 * products(&w, &x) - 100_000; 8], [-100_000; 8]], "{w:?} {x:?}");
            }
        }
    }
}
