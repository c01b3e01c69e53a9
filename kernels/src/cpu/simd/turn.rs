//! What attention needs of vectors beside arithmetic: blocks of keys turned round, so that keys lie along a vector, levels of 8
//! bits, and lines asked for well ahead of their use.

#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512};
use super::{MAX_LANES, Portable, Simd};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

pub(crate) trait Turn: Simd {
    /// `to[c * to_row + r] = from[r][c]` for `LANES` rows of `LANES` elements.
    ///
    /// # Safety
    /// The first `LANES` rows can be read and as many lines of `LANES` elements written.
    unsafe fn turn(self, from: &[*const f32; MAX_LANES], to: *mut f32, to_row: usize);

    /// Signed bytes.
    ///
    /// # Safety
    /// `LANES` bytes can be read.
    unsafe fn load_i8(self, from: *const u8) -> Self::V;

    /// Asks for a line to be brought as near as the second cache. Any address will do.
    fn prefetch_second(self, address: *const u8);
}

impl Turn for Portable {
    #[inline(always)]
    unsafe fn turn(self, from: &[*const f32; MAX_LANES], to: *mut f32, to_row: usize) {
        for (r, from) in from.iter().take(Self::LANES).enumerate() {
            for c in 0..Self::LANES {
                // SAFETY: the caller's promise.
                unsafe { *to.add(c * to_row + r) = *from.add(c) };
            }
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> Self::V {
        // SAFETY: the caller's promise.
        let bytes = unsafe { from.cast::<[i8; Self::LANES]>().read_unaligned() };
        bytes.map(f32::from)
    }
    #[inline(always)]
    fn prefetch_second(self, _: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
impl Turn for Avx2 {
    #[inline(always)]
    unsafe fn turn(self, from: &[*const f32; MAX_LANES], to: *mut f32, to_row: usize) {
        // SAFETY: the caller's promise; the token proves that the processor has the instructions.
        unsafe {
            // One by one: closures of `from_fn` are not always inlined, and then every row goes through memory.
            let [a, b, c, d, e, f, g, h, ..] = *from;
            let (a, b, c, d) =
                (_mm256_loadu_ps(a), _mm256_loadu_ps(b), _mm256_loadu_ps(c), _mm256_loadu_ps(d));
            let (e, f, g, h) =
                (_mm256_loadu_ps(e), _mm256_loadu_ps(f), _mm256_loadu_ps(g), _mm256_loadu_ps(h));
            let turned = turn8([a, b, c, d, e, f, g, h]);
            for (c, line) in turned.into_iter().enumerate() {
                _mm256_storeu_ps(to.add(c * to_row), line);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }
    #[inline(always)]
    fn prefetch_second(self, address: *const u8) {
        // SAFETY: a prefetch may have any address.
        unsafe { _mm_prefetch(address.cast(), _MM_HINT_T1) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Turn for Avx512 {
    #[inline(always)]
    unsafe fn turn(self, from: &[*const f32; MAX_LANES], to: *mut f32, to_row: usize) {
        // SAFETY: the caller's promise; the token proves that the processor has the instructions.
        unsafe {
            let turned = turn16(std::array::from_fn(|r| _mm512_loadu_ps(from[r])));
            for (c, line) in turned.into_iter().enumerate() {
                _mm512_storeu_ps(to.add(c * to_row), line);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    fn prefetch_second(self, address: *const u8) {
        // SAFETY: a prefetch may have any address.
        unsafe { _mm_prefetch(address.cast(), _MM_HINT_T1) }
    }
}

/// Columns of eight rows.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn turn8(rows: [__m256; 8]) -> [__m256; 8] {
    // Column 4L + c of rows 4g .. 4g + 4, in half L of quads[4g + c].
    let mut quads = rows;
    for g in [0, 4] {
        let (low, low2) =
            (_mm256_unpacklo_ps(rows[g], rows[g + 1]), _mm256_unpacklo_ps(rows[g + 2], rows[g + 3]));
        let (high, high2) =
            (_mm256_unpackhi_ps(rows[g], rows[g + 1]), _mm256_unpackhi_ps(rows[g + 2], rows[g + 3]));
        quads[g] = _mm256_shuffle_ps(low, low2, 0x44);
        quads[g + 1] = _mm256_shuffle_ps(low, low2, 0xee);
        quads[g + 2] = _mm256_shuffle_ps(high, high2, 0x44);
        quads[g + 3] = _mm256_shuffle_ps(high, high2, 0xee);
    }
    let mut columns = rows;
    for c in 0..4 {
        columns[c] = _mm256_permute2f128_ps(quads[c], quads[4 + c], 0x20);
        columns[4 + c] = _mm256_permute2f128_ps(quads[c], quads[4 + c], 0x31);
    }
    columns
}

/// Columns of sixteen rows.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn turn16(rows: [__m512; 16]) -> [__m512; 16] {
    // Column 4L + c of rows 4g .. 4g + 4, in quarter L of quads[4g + c].
    let mut quads = rows;
    for g in [0, 4, 8, 12] {
        let (low, low2) =
            (_mm512_unpacklo_ps(rows[g], rows[g + 1]), _mm512_unpacklo_ps(rows[g + 2], rows[g + 3]));
        let (high, high2) =
            (_mm512_unpackhi_ps(rows[g], rows[g + 1]), _mm512_unpackhi_ps(rows[g + 2], rows[g + 3]));
        quads[g] = _mm512_shuffle_ps(low, low2, 0x44);
        quads[g + 1] = _mm512_shuffle_ps(low, low2, 0xee);
        quads[g + 2] = _mm512_shuffle_ps(high, high2, 0x44);
        quads[g + 3] = _mm512_shuffle_ps(high, high2, 0xee);
    }
    let mut columns = rows;
    for c in 0..4 {
        let (a, b) = (
            _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0x88),
            _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0x88),
        );
        let (d, e) = (
            _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0xdd),
            _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0xdd),
        );
        columns[c] = _mm512_shuffle_f32x4(a, b, 0x88);
        columns[8 + c] = _mm512_shuffle_f32x4(a, b, 0xdd);
        columns[4 + c] = _mm512_shuffle_f32x4(d, e, 0x88);
        columns[12 + c] = _mm512_shuffle_f32x4(d, e, 0xdd);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::super::{Isa, simd_entry};
    use super::*;

    simd_entry! {
        fn turned(out: &mut Vec<f32>) = turned_body
    }

    #[inline(always)]
    fn turned_body<S: Turn>(s: S, out: &mut Vec<f32>) {
        let rows: Vec<Vec<f32>> = (0..16).map(|r| (0..32).map(|c| (r * 32 + c) as f32).collect()).collect();
        // SAFETY: rows of 32 elements, and room for as many lines as are written.
        unsafe { s.turn(&std::array::from_fn(|r| rows[r].as_ptr()), out.as_mut_ptr(), 20) };
    }

    #[test]
    fn lines_are_columns() {
        for (isa, lanes) in [(Isa::Portable, 8), (Isa::Avx2, 8), (Isa::Avx512, 16)] {
            if !isa.is_available() {
                continue;
            }
            let mut out = vec![-1.0; 16 * 20];
            turned(isa, &mut out);
            for (c, line) in out.chunks(20).enumerate() {
                for (r, &found) in line.iter().enumerate() {
                    let expected = if r < lanes && c < lanes { (r * 32 + c) as f32 } else { -1.0 };
                    assert_eq!(found, expected, "{isa}: row {r}, column {c}");
                }
            }
        }
    }
}
