//! Panels of compact bf16 (compact.rs) in linear layers: the same sums as those of plain bf16, with three quarters of the bytes read.
//!
//! ```text
//! few rows     a quad becomes four vectors in registers, for all rows at once
//! many rows    a block becomes 16 KiB of plain bf16 in the first cache, and tiles of rows pass by that
//! outliers     are in a sorted list, so that the loop over quads runs to the next one without a look at it
//! ```
//! Every sum has the order that it has beside plain bf16, by the same instructions, and so its bits.

use super::dot::Bf16Pairs;
#[cfg(target_arch = "x86_64")]
use super::simd::Bf16Dot;
#[cfg(target_arch = "x86_64")]
use super::simd::compact as x86;
use super::simd::{Isa, Simd, simd_entry};
#[cfg(target_arch = "x86_64")]
use super::tile::by_rows;
use super::tile::{Bf16, Floats, Job, K_BLOCK, PanelFormat, Rows, Sums};
use crate::ActivationType;
use crate::compact::{
    BLOCK_BYTES, BLOCK_K, BLOCK_WORDS, HEADER_BYTES, Header, QUAD_BYTES, QUAD_WORDS, unpack_quad,
};
use crate::matrix::PANEL;
use std::mem::MaybeUninit;

/// Panels of compact bf16 times rows of bf16.
pub(crate) struct CompactPairs;

/// Panels of compact bf16 times rows of floats.
pub(crate) struct CompactFloats;

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
        floats_panel(S::ISA, job);
    }
}

simd_entry! {
    fn floats_panel(job: &Job) = floats_panel_body
}

#[inline(always)]
fn floats_panel_body<S: Simd>(s: S, job: &Job) {
    through_blocks(
        job,
        1,
        // SAFETY: the promise of `through_blocks`.
        |block, quads, words| unsafe { unpack(S::ISA, block, quads, words) },
        |job| Floats::<Bf16>::panel(s, job),
    );
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
        by_rows!(job.num_rows, FEW_ROWS, |M| unsafe { few_rows::<M>(d, job) });
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn unpack_wide(block: *const u8, quads: usize, words: *mut u16) {
        // SAFETY: this function has the features, and its caller the promise of `through_blocks`.
        unsafe { x86::Avx512Quads::new(Bf16Dot::new(), block).unpack(block, quads, words) }
    }
    if job.num_rows <= FEW_ROWS {
        // SAFETY: a device rounds to bf16 only where `Isa::has_bf16_dots`.
        return unsafe { few(job) };
    }
    through_blocks(
        job,
        2,
        // SAFETY: as above.
        |block, quads, words| unsafe { unpack_wide(block, quads, words) },
        |job| Bf16Pairs::panel(super::simd::Portable, job),
    );
}

/// Room for a block as plain bf16; on the stack, and written before it is read.
#[repr(C, align(64))]
struct Words([MaybeUninit<u16>; BLOCK_WORDS]);

/// Unpacks a job's blocks one after the other, by `unpack(block, quads, words)`, and has each multiplied by `multiply`; x has a word for
/// every `terms` terms. `unpack` writes so many quads, and may rely on the promise of `Job::new`.
#[inline(always)]
fn through_blocks(
    job: &Job,
    terms: usize,
    unpack: impl Fn(*const u8, usize, *mut u16),
    multiply: impl Fn(&Job),
) {
    let mut room = Words([MaybeUninit::uninit(); BLOCK_WORDS]);
    let words = room.0.as_mut_ptr().cast::<u16>();
    let mut block = job.panel;
    for first in (0..job.k).step_by(BLOCK_K) {
        let k = BLOCK_K.min(job.k - first);
        unpack(block, k.div_ceil(4), words);
        // SAFETY: the promise of `Job::new`: a block begins there.
        for outlier in unsafe { Header::outliers(block) } {
            // SAFETY: places are within the block, which has room.
            unsafe { words.add(outlier.place()).write(outlier.word()) };
        }
        let x = Rows { start: job.x.start.wrapping_add(first / terms), ..job.x };
        let sums = Sums { fresh: job.sums.fresh && first == 0, ..job.sums };
        // SAFETY: the promise of `Job::new`, for some of its terms: `words` holds them as a panel of bf16.
        multiply(&unsafe { Job::new(job.num_rows, words.cast(), (x, job.numbers), k, sums) });
        block = block.wrapping_add(BLOCK_BYTES);
    }
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
            let quad = &*block.add(HEADER_BYTES + index * QUAD_BYTES).cast::<[u16; QUAD_WORDS / 4 * 3]>();
            unpack_quad(quad, bases, &mut *words.add(index * QUAD_WORDS).cast::<[u16; QUAD_WORDS]>());
        }
    }
}

/// `M` rows.
///
/// # Safety
/// The promise of `Job::new`, and the job has M rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn few_rows<const M: usize>(d: Bf16Dot, job: &Job) {
    let s = d.simd();
    let Job { x, sums, .. } = *job;
    let mut rows = [0; M];
    for r in 1..M {
        rows[r] = rows[r - 1] + x.row;
    }
    let mut acc = [[s.zero(); 2]; M];
    // SAFETY: the caller's promise.
    unsafe {
        if !sums.fresh {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(sums.start.add(r * sums.row + v * PANEL / 2));
                }
            }
        }
        // A line of two vectors times the pair of terms that each row has there.
        macro_rules! multiply {
            ($pair:expr, $lo:expr, $hi:expr) => {
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = d.splat(*$pair.wrapping_add(rows[r]));
                    acc[0] = d.dot_pairs(acc[0], $lo, x);
                    acc[1] = d.dot_pairs(acc[1], $hi, x);
                }
            };
        }
        let (mut block, mut pair) = (job.panel, x.start.cast::<u32>());
        let mut left = job.k.div_ceil(2);
        while left > 0 {
            let pairs = left.min(BLOCK_K / 2);
            let quads = x86::Avx512Quads::new(d, block);
            let mut outliers = Header::outliers(block).iter();
            let mut quad = block.wrapping_add(HEADER_BYTES);
            let mut next = outliers.next();
            let mut done = 0;
            // The end of K may be half a quad: its other half has no activations.
            let total = pairs.div_ceil(2);
            loop {
                let until = next.map_or(pairs / 2, |outlier| (outlier.place() / QUAD_WORDS).min(pairs / 2));
                while done < until {
                    let [a, b, c, e] = quads.load(quad);
                    multiply!(pair, a, b);
                    multiply!(pair.wrapping_add(1), c, e);
                    quad = quad.wrapping_add(QUAD_BYTES);
                    pair = pair.wrapping_add(2);
                    done += 1;
                }
                if done == total {
                    break;
                }
                let mut words = quads.load(quad);
                while let Some(outlier) = next.filter(|outlier| outlier.place() / QUAD_WORDS == done) {
                    quads.put(&mut words, outlier.place() % QUAD_WORDS, outlier.word());
                    next = outliers.next();
                }
                multiply!(pair, words[0], words[1]);
                if 2 * done + 1 < pairs {
                    multiply!(pair.wrapping_add(1), words[2], words[3]);
                }
                quad = quad.wrapping_add(QUAD_BYTES);
                pair = pair.wrapping_add(2);
                done += 1;
            }
            block = block.wrapping_add(BLOCK_BYTES);
            left -= pairs;
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                s.store(sums.start.add(r * sums.row + v * PANEL / 2), *acc);
            }
        }
    }
}
