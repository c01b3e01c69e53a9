//! Compact bf16: weights in 12 bits from which the 16 of bf16 come back exactly, for the processor.
//!
//! Within some hundred weights of one row nearly all exponents lie within 16 neighbours. So a weight keeps its sign, its mantissa and four
//! bits of its exponent above the lowest of these, and the few weights that lie outside are listed as they are. Every length is known from the shape.
//!
//! ```text
//! matrix   panel | panel | … | room for spilled outliers, 4 bytes each
//! panel    block of 256 k | … | last block: what is left of K
//! block    header | quad of 4 k | quad | …
//! header   32 bases, one for each row | where: u64 | count: u32 | 5 outliers
//! quad     64 low bytes of a and b | 64 low bytes of c and d | 64 codes of both, for the four vectors a b c d that a panel of bf16 has
//!          in its place (cpu/pack.rs)
//!
//!          7        6        5 4 3        2 1 0
//! code     sign     sign     upper bits   upper bits, less the row's base
//!          of a, b  of c, d  of c, d      of a, b
//! ```
//! The low byte of a bf16 is the lowest bit of its exponent and the mantissa; its high byte is the sign and the other seven bits of the
//! exponent, eight values of which a code can tell: 16 exponents, of which the lowest is even. Bytes lie as instructions that interleave the
//! halves of lanes of 128 bits take them: [`place_of`].
//!
//! An outlier is its place among the words of the block as bf16, and its 16 bits above that; in the quad the bits of its code are zero but for the sign. Where a block has
//! more than five, all of them are spilled. `where` is the distance from the header to the first, in bytes. K and N are filled up as bf16 is; what fills K up decodes to any finite
//! number, since activations are +0 there.
//! A matrix with more outliers than there is room for is not kept so: [`crate::MatrixBatch`] keeps it in plain bf16.

use crate::panel::{PANEL, k_padded};
use std::sync::Mutex;

/// K of a whole block.
pub(crate) const BLOCK_K: usize = 256;
/// Words of bf16 in a whole block.
pub(crate) const BLOCK_WORDS: usize = BLOCK_K * PANEL;
/// Bytes before the quads of a block.
pub(crate) const HEADER_BYTES: usize = 64;
/// Words of bf16 in a quad.
pub(crate) const QUAD_WORDS: usize = 4 * PANEL;
/// Bytes of a quad.
pub(crate) const QUAD_BYTES: usize = QUAD_WORDS / 4 * 3 * 2;

/// Words of a vector.
const LANES: usize = PANEL;
/// Bytes of each part of a quad: one for each word of two vectors.
const PART: usize = 2 * LANES;
/// Weights for each of which there is room for one spilled outlier.
const WEIGHTS_PER_SPILLED: usize = 256;
/// The largest that a code has above its row's base.
const SPAN: u8 = 7;
/// The highest that a base may be: sums with it stay within seven bits.
pub(crate) const HIGHEST_BASE: u8 = 127 - SPAN;

/// Bytes of a panel of K, which is filled up to `k_padded`.
pub(crate) const fn panel_bytes(k_padded: usize) -> usize {
    k_padded.div_ceil(BLOCK_K) * HEADER_BYTES + k_padded / 4 * QUAD_BYTES
}

/// Bytes of a whole block.
pub(crate) const BLOCK_BYTES: usize = panel_bytes(BLOCK_K);

/// Room for spilled outliers of some panels, in bytes.
pub(crate) const fn spill_bytes(num_panels: usize, k_padded: usize) -> usize {
    (num_panels * k_padded * PANEL / WEIGHTS_PER_SPILLED * size_of::<Outlier>()).next_multiple_of(64)
}

/// A weight as it is, and its place among the words of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Outlier(u32);

impl Outlier {
    fn new(place: usize, word: u16) -> Self {
        Self(u32::from(word) << 16 | place as u32)
    }

    #[inline(always)]
    pub fn place(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    #[inline(always)]
    pub fn word(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// What a block begins with.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Header {
    /// The lowest exponent of each row, halved.
    pub bases: [u8; PANEL],
    /// From the header to the first outlier, in bytes.
    distance: u64,
    count: u32,
    outliers: [Outlier; NUM_INLINE],
}

/// Outliers that a block has room for.
const NUM_INLINE: usize = 5;

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

impl Header {
    const INLINE: u64 = std::mem::offset_of!(Self, outliers) as u64;

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let Self { bases, distance, count, outliers } = self;
        bytes[..PANEL].copy_from_slice(&bases);
        bytes[32..40].copy_from_slice(&distance.to_ne_bytes());
        bytes[40..44].copy_from_slice(&count.to_ne_bytes());
        for (cell, outlier) in bytes[44..].chunks_exact_mut(4).zip(outliers) {
            cell.copy_from_slice(&outlier.0.to_ne_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Self {
            bases: bytes[..PANEL].try_into().expect("a byte for each row"),
            distance: u64::from_ne_bytes(bytes[32..40].try_into().expect("eight bytes")),
            count: word(40),
            outliers: std::array::from_fn(|i| Outlier(word(44 + 4 * i))),
        }
    }

    /// The outliers of the block that begins there, in the order of their places.
    ///
    /// # Safety
    /// A block of a matrix that was packed or checked begins there, and lives as long as `'a`.
    #[inline(always)]
    pub unsafe fn outliers<'a>(block: *const u8) -> &'a [Outlier] {
        // SAFETY: the caller's promise: blocks begin at cache lines, and outliers lie within the matrix, at multiples of their size.
        unsafe {
            let header = &*block.cast::<Self>();
            std::slice::from_raw_parts(block.add(header.distance as usize).cast(), header.count as usize)
        }
    }
}

/// The outliers of one block that are to be spilled.
struct Spilled {
    /// Where the block is in the matrix, in bytes.
    block: usize,
    outliers: Vec<Outlier>,
}

/// What the panels of a matrix spill, while they are packed by several threads.
pub(crate) struct Spill(Mutex<Vec<Spilled>>);

/// A matrix has more outliers than there is room for.
#[derive(Debug)]
pub(crate) struct TooManyOutliers;

impl Spill {
    pub fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Packs a block of `k` weights of each row: `words` are those of the same block as bf16, and `at` is where it is in the matrix.
    pub fn pack_block(&self, words: &[u16], k: usize, block: &mut [u8], at: usize) {
        let outliers = pack_block(words, k, block);
        if outliers.len() > NUM_INLINE {
            let mut all = self.0.lock().expect("no thread panics with the lock held");
            all.push(Spilled { block: at, outliers });
        }
    }

    /// Writes what was spilled behind the panels.
    pub fn finish(self, matrix: &mut [u8], panels: usize) -> Result<(), TooManyOutliers> {
        let mut all = self.0.into_inner().expect("no thread panics with the lock held");
        // Whoever packed which panel when: the bytes are the same.
        all.sort_by_key(|spilled| spilled.block);
        let (panels, mut room) = matrix.split_at_mut(panels);
        let mut at = panels.len();
        for Spilled { block, outliers } in all {
            let len = size_of_val(&outliers[..]);
            let (to, rest) = room.split_at_mut_checked(len).ok_or(TooManyOutliers)?;
            for (cell, outlier) in to.chunks_exact_mut(4).zip(&outliers) {
                cell.copy_from_slice(&outlier.0.to_ne_bytes());
            }
            panels[block + 32..block + 40].copy_from_slice(&((at - block) as u64).to_ne_bytes());
            at += len;
            room = rest;
        }
        Ok(())
    }
}

/// Panics unless every block names outliers that lie within the matrix, sorted by places that are within the block.
pub(crate) fn check(matrix: &[u8], num_panels: usize, k: usize) {
    let k_padded = k_padded(k);
    let panel_bytes = panel_bytes(k_padded);
    for panel in 0..num_panels {
        for (index, first) in (0..k_padded).step_by(BLOCK_K).enumerate() {
            let start = panel * panel_bytes + index * BLOCK_BYTES;
            let header = Header::from_bytes(&matrix[start..start + HEADER_BYTES]);
            let from = usize::try_from(header.distance).ok().and_then(|distance| start.checked_add(distance));
            let bytes = (header.count as usize).checked_mul(size_of::<Outlier>());
            let end = from.zip(bytes).and_then(|(from, bytes)| from.checked_add(bytes));
            let list = from.zip(end).and_then(|(from, end)| matrix.get(from..end));
            let list = list.expect("outliers of compact weights lie within them");
            assert!(
                from.is_some_and(|from| from.is_multiple_of(size_of::<Outlier>())),
                "outliers are aligned"
            );
            let places =
                list.as_chunks::<4>().0.iter().map(|&bytes| Outlier(u32::from_ne_bytes(bytes)).place());
            let words = (k_padded - first).min(BLOCK_K) * PANEL;
            assert!(places.is_sorted_by(|a, b| a < b), "outliers of compact weights are sorted");
            let last =
                list.as_chunks::<4>().0.last().map(|&bytes| Outlier(u32::from_ne_bytes(bytes)).place());
            assert!(
                last.is_none_or(|last| last < words),
                "outliers of compact weights lie within their block"
            );
        }
    }
}

/// The row of a word of the vectors a and c; b and d have the 16 that follow.
const fn row(vector: usize, lane: usize) -> usize {
    vector % 2 * (PANEL / 2) + lane / 2
}

/// The k of a word, within its quad.
const fn k_of(vector: usize, lane: usize) -> usize {
    vector / 2 * 2 + lane % 2
}

/// Where in each part of a quad a word of a vector lies: eight words of the first vector, eight of the second, and so on.
const fn place_of(vector: usize, lane: usize) -> usize {
    lane / 8 * 16 + vector % 2 * 8 + lane % 8
}

/// Writes a block without its spilled outliers. Returns all of its outliers; up to `NUM_INLINE` are in its header.
fn pack_block(words: &[u16], k: usize, block: &mut [u8]) -> Vec<Outlier> {
    let bases = bases(words, k);
    let of_lanes: [[u16; LANES]; 2] =
        [0, 1].map(|vector| std::array::from_fn(|lane| u16::from(bases[row(vector, lane)])));
    let (header, quads) = block.split_at_mut(HEADER_BYTES);
    let mut outliers = Vec::new();
    let quads = quads.as_chunks_mut::<QUAD_BYTES>().0.iter_mut().zip(words.as_chunks::<QUAD_WORDS>().0);
    for (index, (quad, words)) in quads.enumerate() {
        // The upper bits of an exponent, less the row's base. Whether there is an outlier at all is seen without a branch.
        let mut above = [0u16; QUAD_WORDS];
        let mut all_above = 0;
        let vectors = above.as_chunks_mut::<LANES>().0.iter_mut().zip(words.as_chunks::<LANES>().0);
        for (vector, (above, words)) in vectors.enumerate() {
            for lane in 0..LANES {
                above[lane] = (words[lane] >> 8 & 127).wrapping_sub(of_lanes[vector % 2][lane]);
                all_above |= above[lane];
            }
        }
        let mut words = *words;
        if all_above > u16::from(SPAN) || 4 * index + 4 > k {
            for (place, (above, word)) in above.iter_mut().zip(&mut words).enumerate() {
                if 4 * index + k_of(place / LANES, place % LANES) >= k {
                    [*above, *word] = [0, 0];
                } else if *above > u16::from(SPAN) {
                    *above = 0;
                    outliers.push(Outlier::new(index * QUAD_WORDS + place, *word));
                }
            }
        }
        pack_quad(&words, &above, quad);
    }
    let mut inline = [Outlier(0); NUM_INLINE];
    if outliers.len() <= NUM_INLINE {
        inline[..outliers.len()].copy_from_slice(&outliers);
    }
    let count = outliers.len() as u32;
    header.copy_from_slice(&Header { bases, distance: Header::INLINE, count, outliers: inline }.to_bytes());
    outliers
}

/// What a code tells of a word's exponent: all but its lowest bit.
fn upper(word: u16) -> u8 {
    (word >> 8) as u8 & 127
}

/// For each row the lowest of eight neighbouring values that the upper bits of most of its first `k` weights have. Where several are, it is the
/// first, so that the largest weights are at the upper end: as whole numbers (cpu/compact_integers.rs) they have the most bits there.
fn bases(words: &[u16], k: usize) -> [u8; PANEL] {
    let (mut low, mut high) = ([127u8; PANEL], [0u8; PANEL]);
    for pair in words.chunks_exact(2 * PANEL).take(k / 2) {
        for (row, pair) in pair.as_chunks::<2>().0.iter().enumerate() {
            for &word in pair {
                low[row] = low[row].min(upper(word));
                high[row] = high[row].max(upper(word));
            }
        }
    }
    if k % 2 == 1 {
        for row in 0..PANEL {
            let upper = upper(words[(k - 1) * PANEL + 2 * row]);
            low[row] = low[row].min(upper);
            high[row] = high[row].max(upper);
        }
    }
    std::array::from_fn(|row| match high[row] - low[row] <= SPAN {
        true => high[row].saturating_sub(SPAN),
        false => most_frequent(words, k, row),
    })
}

fn most_frequent(words: &[u16], k: usize, row: usize) -> u8 {
    let mut counts = [0u16; 128];
    for k in 0..k {
        counts[usize::from(upper(words[k / 2 * 2 * PANEL + 2 * row + k % 2]))] += 1;
    }
    let mut inside: u16 = counts[..=usize::from(SPAN)].iter().sum();
    let mut best = (inside, 0);
    for base in 1..=HIGHEST_BASE {
        inside = inside + counts[usize::from(base + SPAN)] - counts[usize::from(base - 1)];
        if inside > best.0 {
            best = (inside, base);
        }
    }
    best.1
}

/// The three parts of a quad of words, whose upper bits less their row's base are `above`.
fn pack_quad(words: &[u16; QUAD_WORDS], above: &[u16; QUAD_WORDS], quad: &mut [u8; QUAD_BYTES]) {
    let (low, codes) = quad.split_at_mut(2 * PART);
    codes.fill(0);
    for vector in 0..4 {
        let low = &mut low[vector / 2 * PART..][..PART];
        for lane in 0..LANES {
            let (word, above) = (words[vector * LANES + lane], above[vector * LANES + lane]);
            let place = place_of(vector, lane);
            low[place] = word as u8;
            codes[place] |= match vector / 2 {
                0 => (word >> 15 << 7 | above) as u8,
                _ => (word >> 15 << 6 | above << 3) as u8,
            };
        }
    }
}

/// a b c d of a quad, in plain code; `bases` of the block.
#[inline(always)]
pub(crate) fn unpack_quad(quad: &[u8; QUAD_BYTES], bases: &[u8; PANEL], out: &mut [u16; QUAD_WORDS]) {
    for vector in 0..4 {
        for lane in 0..LANES {
            let place = place_of(vector, lane);
            let code = quad[2 * PART + place];
            let code = match vector / 2 {
                0 => code & 0x87,
                _ => code << 1 & 0x80 | code >> 3 & 7,
            };
            let high = code.wrapping_add(bases[row(vector, lane)]);
            out[vector * LANES + lane] = u16::from_le_bytes([quad[vector / 2 * PART + place], high]);
        }
    }
}

/// Terms `first ..` of a panel's rows, `[32, K]`, as their bf16 are there, become what they count as in products of whole numbers
/// (cpu/compact_integers.rs); these are the terms of the block that begins at `at` in a matrix that was packed or checked.
pub(crate) fn round_to_levels(matrix: &[u8], at: usize, (values, k): (&mut [f32], usize), first: usize) {
    let header = Header::from_bytes(&matrix[at..at + HEADER_BYTES]);
    for (values, base) in values.chunks_exact_mut(k).zip(header.bases) {
        let step = f32::from_bits((2 * u32::from(base) + 3) << 23);
        for value in &mut values[first..k.min(first + BLOCK_K)] {
            let upper = (value.to_bits() >> 24 & 127) as u8;
            *value = match upper.checked_sub(base) {
                _ if base == HIGHEST_BASE => f32::NAN,
                None => 0.0,
                Some(above) if above > SPAN => *value,
                Some(_) => step * (*value / step + 0.5).floor(),
            };
        }
    }
}

/// The words of a block, as a panel of bf16 has them in its place: all weights of each row, and any finite number where K is filled up.
/// `at` is where the block begins in a matrix that was packed or checked.
pub(crate) fn unpack_block(matrix: &[u8], at: usize, words: &mut [u16]) {
    let (header, quads) = matrix[at..].split_at(HEADER_BYTES);
    let header = Header::from_bytes(header);
    for (quad, out) in quads.as_chunks::<QUAD_BYTES>().0.iter().zip(words.as_chunks_mut::<QUAD_WORDS>().0) {
        unpack_quad(quad, &header.bases, out);
    }
    let outliers = &matrix[at + header.distance as usize..][..header.count as usize * size_of::<Outlier>()];
    for &bytes in outliers.as_chunks::<4>().0 {
        let outlier = Outlier(u32::from_ne_bytes(bytes));
        words[outlier.place()] = outlier.word();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_block(k: usize, word: impl Fn(usize, usize) -> u16) -> usize {
        let k_padded = k_padded(k);
        let mut words = vec![0; k_padded * PANEL];
        for row in 0..PANEL {
            for k in 0..k {
                words[k / 2 * 2 * PANEL + 2 * row + k % 2] = word(row, k);
            }
        }
        let mut block = vec![0xaa; panel_bytes(k_padded)];
        let outliers = pack_block(&words, k, &mut block);
        // More than fit into the header lie behind the block.
        if outliers.len() > NUM_INLINE {
            let distance = block.len() as u64;
            block[32..40].copy_from_slice(&distance.to_ne_bytes());
            block.extend(outliers.iter().flat_map(|outlier| outlier.0.to_ne_bytes()));
        }
        let mut found = vec![0; k_padded * PANEL];
        unpack_block(&block, 0, &mut found);
        for row in 0..PANEL {
            for k in 0..k {
                let at = k / 2 * 2 * PANEL + 2 * row + k % 2;
                assert_eq!(found[at], words[at], "row {row}, k {k}");
            }
        }
        // What fills K up is finite.
        assert!(
            found
                .iter()
                .zip(&words)
                .all(|(found, word)| f32::from_bits(u32::from(*found) << 16).is_finite() || found == word)
        );
        outliers.len()
    }

    #[test]
    fn every_word_comes_back() {
        for k in [1, 2, 3, 16, 17, 255, 256] {
            // All 65,536 patterns: each row has all signs and mantissas of one stretch of exponents.
            for first in (0..=240).step_by(16) {
                let num = check_block(k, |row, k| {
                    let number = row * 131 + k * 29;
                    let exponent = first + number % 16;
                    (((number / 16 % 2) << 15) | (exponent << 7) | (number / 32 % 128)) as u16
                });
                assert_eq!(num, 0, "K {k}, exponents from {first}");
            }
        }
    }

    #[test]
    fn outliers_are_listed() {
        // Exponents 100 ..= 115, and 3 weights that are not.
        let strange = [(0, 0, 0x0000), (7, 100, 0x7fc1), (31, 255, 0x8001)];
        let of = |row, k| {
            let found = strange.iter().find(|(r, c, _)| (*r, *c) == (row, k));
            found.map_or((((100 + (row + k) % 16) << 7) | (k % 128)) as u16, |(_, _, word)| *word)
        };
        assert_eq!(check_block(256, of), 3);
        // Half of the weights are zero: the other half are outliers, whichever is larger is not.
        assert_eq!(check_block(64, |_, k| if k % 2 == 0 { 0 } else { 0x3f80 }), 32 * 32);
        assert_eq!(check_block(63, |_, k| if k % 2 == 0 { 0 } else { 0x3f80 }), 32 * 31);
        // Rows of zeros, of denormals, of infinities and NaN.
        for word in [0, 0x8000, 0x0001, 0x7f80, 0xff80, 0x7fc1, 0xffff] {
            assert_eq!(check_block(48, |_, _| word), 0);
        }
    }
}
