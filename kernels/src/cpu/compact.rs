//! Panels of compact bf16 (compact.rs) in linear layers: three quarters of the bytes read, and, but as whole numbers (compact_integers.rs), the
//! same sums as those of plain bf16.
//!
//! ```text
//! few rows     a quad becomes four vectors in registers, for all rows at once
//! many rows    the first of them do the same, and leave a block as 16 KiB of plain bf16 in the first cache, for the others to pass by
//! outliers     are in a sorted list, so that the loop over quads runs to the next one without a look at it
//! ```
//! Every sum over rows of bf16 or floats has the order that it has beside plain bf16, by the same instructions, and so its bits.

use super::compact_blocks::blocks;
#[cfg(target_arch = "x86_64")]
use super::dot::{CACHE_LINE, LEAST_PAIRS_AHEAD, Lines, Words as Pairs, pair_tile_from};
use super::floats::Floats;
#[cfg(target_arch = "x86_64")]
use super::simd::{Bf16Dot, ask_for, compact as x86};
use super::simd::{Isa, Simd, simd_entry};
use super::tile::{Bf16, Job, K_BLOCK, PanelFormat};
#[cfg(target_arch = "x86_64")]
use super::tile::{Blocks, Sums, by_rows, starts};
#[cfg(target_arch = "x86_64")]
use super::{compact_floats, compact_integers};
use crate::ActivationType;
use crate::compact::{BLOCK_BYTES, BLOCK_K, HEADER_BYTES, Header, QUAD_BYTES, QUAD_WORDS, unpack_quad};
use crate::panel::PANEL;

/// Panels of compact bf16 times rows of bf16.
pub(crate) struct CompactPairs;

/// Panels of compact bf16 times rows of floats.
pub(crate) struct CompactFloats;

/// Panels of compact bf16 times rows of 16 bits.
pub(crate) struct CompactIntegers;

const _: () = assert!(K_BLOCK.is_multiple_of(BLOCK_K), "terms between two visits of memory are whole blocks");

fn offset(k: usize) -> usize {
    k / BLOCK_K * BLOCK_BYTES
}

impl PanelFormat for CompactPairs {
    const ROUNDED_TO: ActivationType = ActivationType::BF16;
    const GROUP_SUMS: bool = false;
    const K_BLOCK: usize = BLOCK_K;

    fn offset(k: usize) -> usize {
        offset(k)
    }

    #[inline(always)]
    fn panel<S: Simd>(_: S, job: &Job) {
        pairs_panel(job);
    }
}

impl PanelFormat for CompactFloats {
    const ROUNDED_TO: ActivationType = ActivationType::F32;
    const GROUP_SUMS: bool = false;
    const K_BLOCK: usize = BLOCK_K;

    fn offset(k: usize) -> usize {
        offset(k)
    }

    #[inline(always)]
    fn panel<S: Simd>(_: S, job: &Job) {
        #[cfg(target_arch = "x86_64")]
        if S::ISA == Isa::Avx2 {
            return compact_floats::panel(job);
        }
        floats_panel(S::ISA, job);
    }
}

impl PanelFormat for CompactIntegers {
    const ROUNDED_TO: ActivationType = ActivationType::Int16;
    const GROUP_SUMS: bool = false;
    const K_BLOCK: usize = BLOCK_K;

    fn offset(k: usize) -> usize {
        offset(k)
    }

    #[inline(always)]
    fn panel<S: Simd>(_: S, job: &Job) {
        #[cfg(target_arch = "x86_64")]
        compact_integers::panel(job);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("no processor of this kind rounds to 16 bits: {} rows", job.num_rows);
    }
}

simd_entry! {
    fn floats_panel(job: &Job) = floats_panel_body
}

#[inline(always)]
fn floats_panel_body<S: Simd>(s: S, job: &Job) {
    blocks(job, 1, |job, words| {
        // SAFETY: the promise of `blocks`: a block begins there, and its words have room.
        unsafe {
            unpack(S::ISA, job.panel, job.k.div_ceil(4), words);
            for outlier in Header::outliers(job.panel) {
                words.add(outlier.place()).write(outlier.word());
            }
        }
        // SAFETY: as above, and `words` is the same as a panel of bf16.
        let plain = unsafe {
            Job::new(job.num_rows, words.cast(), (job.x, job.numbers), job.k, job.sums).resuming(job.from)
        };
        Floats::<Bf16>::panel(s, &plain);
    });
}

/// Rows that a quad in registers serves. With more of them the products take longer than memory.
#[cfg(target_arch = "x86_64")]
const FEW_ROWS: usize = 8;

#[cfg(not(target_arch = "x86_64"))]
fn pairs_panel(_: &Job) {
    unreachable!("no processor of this kind multiplies bf16");
}

#[cfg(target_arch = "x86_64")]
fn pairs_panel(job: &Job) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn few(job: &Job) {
        // SAFETY: this function has the features.
        let d = unsafe { Bf16Dot::new() };
        // SAFETY: the promise of `Job::new`.
        by_rows!(job.num_rows, FEW_ROWS, |M| unsafe { few_rows::<M, false>(d, job, std::ptr::null_mut()) });
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn many(job: &Job) {
        // SAFETY: this function has the features.
        let d = unsafe { Bf16Dot::new() };
        let tiles = Blocks::new(job.num_rows, FEW_ROWS);
        blocks(job, 2, |job, words| {
            // The first rows unpack, beside their products, and leave what comes of it for the others.
            let mut row = tiles.len(0);
            // SAFETY: the promise of `blocks`.
            by_rows!(row, FEW_ROWS, |M| unsafe { few_rows::<M, true>(d, &job.rows(0, M), words) });
            let w = Pairs { start: words.cast(), stride: PANEL, hi: PANEL / 2, ahead: Lines::NONE };
            for tile in 1..tiles.count {
                let rows = tiles.len(tile);
                let Job { x, sums, from, .. } = job.rows(row, rows);
                let sums = (from, Sums { hi: PANEL / 2, ..sums });
                // SAFETY: the promise of `blocks`, and all its words were written.
                unsafe { pair_tile_from::<2, 0>(d, rows, (w, x), job.k.div_ceil(2), sums) };
                row += rows;
            }
        });
    }
    // SAFETY: a device rounds to bf16 only where `Isa::has_bf16_dots`.
    unsafe { if job.num_rows <= FEW_ROWS { few(job) } else { many(job) } }
}

/// The first quads of a block as plain bf16, without its outliers.
///
/// # Safety
/// They can be read, and their words written; the processor has the instruction set.
#[inline(always)]
unsafe fn unpack(isa: Isa, block: *const u8, quads: usize, words: *mut u16) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx2 | Isa::Avx512) {
        // SAFETY: the caller's promise; every processor with AVX-512 has AVX2.
        return unsafe { x86::unpack_avx2(block, quads, words) };
    }
    let _ = isa;
    // SAFETY: the caller's promise; a header begins with its bases.
    unsafe {
        let bases = &*block.cast::<[u8; PANEL]>();
        for index in 0..quads {
            let quad = &*block.add(HEADER_BYTES + index * QUAD_BYTES).cast::<[u8; QUAD_BYTES]>();
            unpack_quad(quad, bases, &mut *words.add(index * QUAD_WORDS).cast::<[u16; QUAD_WORDS]>());
        }
    }
}

/// `M` rows. `KEEP` writes the job's only block as plain bf16 to `words`.
///
/// # Safety
/// The promise of `Job::new`, the job has M rows, and `words` room for a block where they are kept.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn few_rows<const M: usize, const KEEP: bool>(d: Bf16Dot, job: &Job, words: *mut u16) {
    let s = d.simd();
    let Job { x, sums, from, .. } = *job;
    let rows = starts::<M>(x.row);
    let mut acc = [[s.zero(); 2]; M];
    // SAFETY: the caller's promise.
    unsafe {
        if !sums.fresh {
            for (start, acc) in starts::<M>(from.row).into_iter().zip(&mut acc) {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(from.start.wrapping_add(start).wrapping_add(v * PANEL / 2));
                }
            }
        }
        // A line of two vectors times the pair of terms that each row has there.
        macro_rules! multiply {
            ($pair:expr, $lo:expr, $hi:expr) => {
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = d.splat_from($pair.wrapping_add(rows[r]));
                    acc[0] = d.dot_pairs(acc[0], $lo, x);
                    acc[1] = d.dot_pairs(acc[1], $hi, x);
                }
            };
        }
        let keep = |quad: usize, vectors: [_; 4]| {
            if KEEP {
                for (v, vector) in vectors.into_iter().enumerate() {
                    x86::store(words.add(quad * QUAD_WORDS + v * PANEL), vector);
                }
            }
        };
        let (mut block, mut pair) = (job.panel, x.start.cast::<u32>());
        let mut left = job.k.div_ceil(2);
        let distance = job.ahead.addr().wrapping_sub(block.addr());
        let ask_ahead = |quad: *const u8| {
            if M >= LEAST_PAIRS_AHEAD {
                for line in 0..QUAD_BYTES / CACHE_LINE {
                    ask_for(quad.wrapping_add(distance).wrapping_add(line * CACHE_LINE));
                }
            }
        };
        while left > 0 {
            let pairs = left.min(BLOCK_K / 2);
            let quads = x86::Avx512Quads::new(d, block);
            let mut outliers = Header::outliers(block).iter();
            let mut quad = block.wrapping_add(HEADER_BYTES);
            if M >= LEAST_PAIRS_AHEAD {
                for line in (0..HEADER_BYTES).step_by(CACHE_LINE) {
                    ask_for(block.wrapping_add(distance).wrapping_add(line));
                }
            }
            let mut next = outliers.next();
            let mut done = 0;
            // The end of K may be half a quad: its other half has no activations.
            let total = pairs.div_ceil(2);
            loop {
                let until = next.map_or(pairs / 2, |outlier| (outlier.place() / QUAD_WORDS).min(pairs / 2));
                while done < until {
                    ask_ahead(quad);
                    let [a, b, c, e] = quads.load(quad);
                    keep(done, [a, b, c, e]);
                    multiply!(pair, a, b);
                    multiply!(pair.wrapping_add(1), c, e);
                    quad = quad.wrapping_add(QUAD_BYTES);
                    pair = pair.wrapping_add(2);
                    done += 1;
                }
                if done == total {
                    break;
                }
                // A quad that nobody asked for is a wait for memory when it is its turn.
                ask_ahead(quad);
                let mut vectors = quads.load(quad);
                while let Some(outlier) = next.filter(|outlier| outlier.place() / QUAD_WORDS == done) {
                    quads.put(&mut vectors, outlier.place() % QUAD_WORDS, outlier.word());
                    next = outliers.next();
                }
                keep(done, vectors);
                multiply!(pair, vectors[0], vectors[1]);
                if 2 * done + 1 < pairs {
                    multiply!(pair.wrapping_add(1), vectors[2], vectors[3]);
                }
                quad = quad.wrapping_add(QUAD_BYTES);
                pair = pair.wrapping_add(2);
                done += 1;
            }
            block = block.wrapping_add(BLOCK_BYTES);
            left -= pairs;
        }
        for (start, acc) in starts::<M>(sums.row).into_iter().zip(&acc) {
            for (v, acc) in acc.iter().enumerate() {
                s.store(sums.start.wrapping_add(start).wrapping_add(v * PANEL / 2), *acc);
            }
        }
    }
}
