//! Rows of tokens in the order of experts, rounded and packed as `moe_wgmma` reads them.

use super::Cuda;
use super::driver::{Args, DevicePtr, Grid};
use super::launch::grid;
use super::moe_kernel::{KERNEL, vector_of};
use super::tokens::padded;
use crate::{DType, Experts, WeightType};

/// Tokens and columns of eight that `moe_spread` has at a time, as in moe.cu.
const SPREAD: [usize; 2] = [2048, 2];

/// How rows are packed for `moe_wgmma`: those of x behind the pairs in the buffer of rows, those between the layers in their own.
pub(super) struct Packed {
    /// Filled up, so that the last blocks read what is there.
    rows: usize,
    /// Where x begins, in bytes.
    start: usize,
}

impl Packed {
    /// `None` where mma.sync multiplies: experts have fewer rows than fill its blocks better, or there is no room.
    pub fn of(cuda: &Cuda, experts: &Experts, tiles: Option<usize>, num_pairs: usize) -> Option<Self> {
        let stored_as = experts.gate_up.stored_as();
        let is_float = stored_as.float().is_some() && stored_as != WeightType::F32;
        if !cuda.uses_wgmma() || tiles.is_some() || !is_float || num_pairs <= 128 * experts.len() {
            return None;
        }
        // A block reads 64 rows at a time.
        let [rows, width] = padded([num_pairs + 63, experts.hidden()]);
        let [_, inner_width] = padded([1, experts.inner()]);
        let start = (num_pairs * size_of::<i32>()).next_multiple_of(128);
        let room = [experts.hidden(), experts.inner()].map(|width| num_pairs * width * size_of::<f32>());
        let fits = start + 2 * rows * width <= room[0] && 2 * rows * inner_width <= room[1];
        fits.then_some(Self { rows, start })
    }

    /// The tokens of all pairs, rounded, and where they are.
    ///
    /// # Safety
    /// `order` has the pairs of the rows, and is where the buffer of rows begins; the tokens of the pairs are all there, `hidden` numbers of each.
    pub unsafe fn write(
        &self,
        cuda: &Cuda,
        from: From,
        order: DevicePtr,
        [num_pairs, top_k, hidden]: [usize; 3],
        dtype: DType,
    ) -> DevicePtr {
        let packed = order.offset(self.start as u64);
        let x = match from {
            From::Floats(x) => x,
            From::Packed(tokens) => {
                let (num_tokens, [_, width]) = (num_pairs / top_k, padded([1, hidden]));
                let args = Args::new().pointer(tokens).pointer(order).value(num_tokens as i32);
                let args = args.value(num_pairs as i32).value(top_k as i32).value((width / 8) as i32);
                let shared = num_tokens.min(SPREAD[0]) * SPREAD[1] * 16;
                let grid = Grid { shared: shared as u32, ..grid(width / 8 / SPREAD[1], 256) };
                let expression = format!("moe_spread<{}>", dtype.cpp());
                // SAFETY: the caller's promise, and the room of `of`.
                unsafe { cuda.launch(&KERNEL, &expression, grid, args.pointer(packed)) };
                return packed;
            }
        };
        let vector = vector_of(hidden);
        let args = Args::new().pointer(x).pointer(order).value(num_pairs as i32).value(top_k as i32);
        let args = args.value(hidden as i32).pointer(packed);
        let blocks = [self.rows / 8, hidden.div_ceil(256), 1].map(|n| n as u32);
        let grid = Grid { blocks, threads: [256, 1, 1], shared: 0 };
        // SAFETY: the caller's promise, and the room of `of`.
        unsafe { cuda.launch(&KERNEL, &format!("moe_pack<{}, {vector}>", dtype.cpp()), grid, args) };
        packed
    }
}

/// Where tokens are that are packed in the order of experts.
pub(super) enum From {
    Floats(DevicePtr),
    /// Rounded and packed in their own order.
    Packed(DevicePtr),
}
