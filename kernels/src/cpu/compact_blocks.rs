//! A job over panels of compact bf16 (compact.rs), cut into jobs of one block each.

use super::tile::{Job, Numbers, Partial, Rows, Sums};
use crate::compact::{BLOCK_BYTES, BLOCK_K, BLOCK_WORDS};
use crate::panel::GROUP;
use std::mem::MaybeUninit;

/// Room for a block as plain bf16; on the stack, and written before it is read.
#[repr(C, align(64))]
struct Words([MaybeUninit<u16>; BLOCK_WORDS]);

/// A job's blocks one after the other, each as a job of its own that begins with the block, and with room for it as plain bf16; x has a word
/// for every `terms` terms, and a number for each group, if it has any. The jobs have the promise of `Job::new`.
#[inline(always)]
pub(super) fn blocks(job: &Job, terms: usize, each: impl Fn(&Job, *mut u16)) {
    let mut room = Words([MaybeUninit::uninit(); BLOCK_WORDS]);
    let words = room.0.as_mut_ptr().cast::<u16>();
    let mut block = job.panel;
    for first in (0..job.k).step_by(BLOCK_K) {
        let k = BLOCK_K.min(job.k - first);
        let x = Rows { start: job.x.start.wrapping_add(first / terms), ..job.x };
        let numbers = Numbers { start: job.numbers.start.wrapping_add(first / GROUP), ..job.numbers };
        let sums = Sums { fresh: job.sums.fresh && first == 0, ..job.sums };
        // What the block before left is where sums go.
        let from = if first == 0 { job.from } else { Partial::of(&sums) };
        // SAFETY: the promise of `Job::new`, for some of its terms, and that of `resuming`.
        let part = unsafe { Job::new(job.num_rows, block, (x, numbers), k, sums).resuming(from) };
        each(&part.before(job.ahead.wrapping_add(block.addr() - job.panel.addr())), words);
        block = block.wrapping_add(BLOCK_BYTES);
    }
}
