//! Launches of moe.cu: place, up, down, combine. How many rows an expert has is known on the device alone; the number of pairs for
//! each expert on average chooses a kernel, never the order of a sum. With few tokens the expert that all of them take has blocks of the same
//! launches; its sums are those of its ops one after the other, so that it may be computed here or there.

use super::Cuda;
use super::compile::Source;
use super::driver::{Args, Clusters, DevicePtr, Grid, Param};
use super::launch::{Instance, Kernel, grid};
use super::linear::{WGMMA_BLOCK, WGMMA_SHARED, pairs_of};
use super::rows::round_rows;
use super::tokens::{packed_bytes, padded};
use crate::operands::expert_rows::ExpertRows;
use crate::operands::moe::{MoeScratch, SharedExpert};
use crate::panel::PANEL;
use crate::{DType, Experts, Matrix, MatrixBatch, Tensor, WeightType};

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "moe.cu", text: include_str!("moe.cu") },
    instances: &[
        Instance::new("moe_place", 32, 128),
        Instance::new("moe_few<bf16, 1, true>", 80, 8192),
        Instance::new("moe_few<bf16, 2, true>", 96, 16384),
        Instance::new("moe_few<bf16, 4, true>", 128, 32768),
        Instance::new("moe_few<bf16, 1, false>", 80, 4096),
        Instance::new("moe_few<bf16, 2, false>", 80, 8192),
        Instance::new("moe_few<bf16, 4, false>", 85, 16384),
        Instance::new("moe_few<f16, 1, true>", 80, 8192),
        Instance::new("moe_few<f16, 2, true>", 96, 16384),
        Instance::new("moe_few<f16, 4, true>", 128, 32768),
        Instance::new("moe_few<f16, 1, false>", 80, 4096),
        Instance::new("moe_few<f16, 2, false>", 80, 8192),
        Instance::new("moe_few<f16, 4, false>", 85, 16384),
        Instance::new("moe_many<bf16, 64, true>", 128, 34816),
        Instance::new("moe_many<bf16, 128, true>", 255, 45056),
        Instance::new("moe_many<bf16, 64, false>", 128, 34816),
        Instance::new("moe_many<bf16, 128, false>", 255, 45056),
        Instance::new("moe_many<f16, 64, true>", 128, 34816),
        Instance::new("moe_many<f16, 128, true>", 255, 45056),
        Instance::new("moe_many<f16, 64, false>", 128, 34816),
        Instance::new("moe_many<f16, 128, false>", 255, 45056),
        Instance::new("moe_few<q8, 1, true>", 128, 8192),
        Instance::new("moe_few<q8, 2, true>", 128, 16384),
        Instance::new("moe_few<q8, 4, true>", 128, 32768),
        Instance::new("moe_few<q8, 1, false>", 85, 4096),
        Instance::new("moe_few<q8, 2, false>", 85, 8192),
        Instance::new("moe_few<q8, 4, false>", 128, 16384),
        Instance::new("moe_few<q4, 1, true>", 128, 8192),
        Instance::new("moe_few<q4, 2, true>", 128, 16384),
        Instance::new("moe_few<q4, 4, true>", 128, 32768),
        Instance::new("moe_few<q4, 1, false>", 85, 4096),
        Instance::new("moe_few<q4, 2, false>", 85, 8192),
        Instance::new("moe_few<q4, 4, false>", 128, 16384),
        Instance::new("moe_few<q4z, 1, true>", 128, 8192),
        Instance::new("moe_few<q4z, 2, true>", 128, 16384),
        Instance::new("moe_few<q4z, 4, true>", 128, 32768),
        Instance::new("moe_few<q4z, 1, false>", 85, 4096),
        Instance::new("moe_few<q4z, 2, false>", 85, 8192),
        Instance::new("moe_few<q4z, 4, false>", 128, 16384),
        Instance::new("moe_many<q8, 64, true>", 168, 23296),
        Instance::new("moe_many<q8, 128, true>", 255, 33536),
        Instance::new("moe_many<q8, 64, false>", 168, 23296),
        Instance::new("moe_many<q8, 128, false>", 255, 33536),
        Instance::new("moe_many<q4, 64, true>", 168, 17152),
        Instance::new("moe_many<q4, 128, true>", 255, 27392),
        Instance::new("moe_many<q4, 64, false>", 168, 17152),
        Instance::new("moe_many<q4, 128, false>", 255, 27392),
        Instance::new("moe_many<q4z, 64, true>", 168, 17920),
        Instance::new("moe_many<q4z, 128, true>", 255, 28672),
        Instance::new("moe_many<q4z, 64, false>", 168, 18432),
        Instance::new("moe_many<q4z, 128, false>", 255, 28672),
        Instance::hopper("moe_pack<bf16, 1>", 40, 0),
        Instance::hopper("moe_pack<bf16, 4>", 40, 0),
        Instance::hopper("moe_pack<f16, 1>", 40, 0),
        Instance::hopper("moe_pack<f16, 4>", 40, 0),
        Instance::hopper("moe_spread<bf16>", 40, 0),
        Instance::hopper("moe_spread<f16>", 40, 0),
        Instance::new("moe_unpack<bf16, 1>", 40, 0),
        Instance::new("moe_unpack<bf16, 4>", 40, 0),
        Instance::new("moe_unpack<f16, 1>", 40, 0),
        Instance::new("moe_unpack<f16, 4>", 40, 0),
        Instance::hopper("moe_wgmma<bf16, true, 4>", 168, 1024),
        Instance::hopper("moe_wgmma<bf16, false, 4>", 168, 1024),
        Instance::hopper("moe_wgmma<f16, true, 4>", 168, 1024),
        Instance::hopper("moe_wgmma<f16, false, 4>", 168, 1024),
        Instance::hopper("moe_wgmma<bf16, true, 8>", 168, 1024),
        Instance::hopper("moe_wgmma<bf16, false, 8>", 168, 1024),
        Instance::hopper("moe_wgmma<f16, true, 8>", 168, 1024),
        Instance::hopper("moe_wgmma<f16, false, 8>", 168, 1024),
        Instance::new("moe_enter<1>", 32, 0),
        Instance::new("moe_enter<4>", 40, 0),
        Instance::new("moe_f32<true>", 80, 0),
        Instance::new("moe_f32<false>", 64, 0),
        Instance::new("moe_combine<1>", 40, 0),
        Instance::new("moe_combine<4>", 40, 0),
        // 128 bytes; 1,024 where they are compiled beside kernels whose shared memory begins at such a multiple.
        Instance::new("moe_combine_norm<1>", 64, 1024),
        Instance::new("moe_combine_norm<4>", 64, 1024),
        Instance::new("moe_combine_pack_norm<bf16, 1>", 64, 1024),
        Instance::new("moe_combine_pack_norm<bf16, 4>", 64, 1024),
        Instance::new("moe_combine_pack_norm<f16, 1>", 64, 1024),
        Instance::new("moe_combine_pack_norm<f16, 4>", 64, 1024),
    ],
};

/// As in moe.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct MoeShape {
    experts: i32,
    top_k: i32,
    n: i32,
    k: i32,
    panels: i32,
    units: i32,
    pairs: i32,
    unsorted: i32,
    alpha: f32,
    limit: f32,
}
// SAFETY: eight i32 and two floats, as in moe.cu.
unsafe impl Param for MoeShape {}

/// As in moe.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct SharedShape {
    blocks: i32,
    tokens: i32,
    n: i32,
    k: i32,
    units: i32,
    side_panels: i32,
    pairs: i32,
}
// SAFETY: seven i32, as in moe.cu.
unsafe impl Param for SharedShape {}

/// What follows the sum: it is added to the stream, and the norm of that takes the place of x, and goes rounded into a room as well, for linear layers
/// that take it so.
pub(crate) struct Then<'a> {
    pub residual: &'a Tensor,
    pub weight: &'a Tensor,
    pub eps: f32,
    pub packed: Option<(DType, &'a Tensor)>,
}

/// What a layer of experts reads `[T, H]`.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub x: &'a Tensor,
    /// x rounded to a type and packed, where a norm left it so.
    pub packed: Option<(DType, &'a Tensor)>,
}

/// What a call left to do.
pub(crate) struct Left<'s> {
    pub shared: Option<SharedExpert<'s>>,
    /// Whether what is to follow has followed.
    pub is_normed: bool,
}

/// Shapes were checked in `ops`. Ids come from `route`: that they are below E cannot be seen from here. Where nothing is left of the sum, the
/// norm `then` takes it at once, and leaves its result in x and nothing in `out`.
pub(crate) fn run<'s>(
    cuda: &Cuda,
    Input { x, packed: made }: Input,
    experts: &Experts,
    [ids, weights]: [&Tensor; 2],
    scratch: &mut MoeScratch,
    shared: Option<SharedExpert<'s>>,
    (out, then): (&mut Tensor, Option<&Then>),
) -> Left<'s> {
    let (num_tokens, top_k, hidden) = (ids.rows(), ids.row_len(), experts.hidden());
    if num_tokens == 0 {
        return Left { shared, is_normed: false };
    }
    assert_eq!([x.dtype(), weights.dtype(), out.dtype()], [DType::F32; 3], "moe: types");
    assert_eq!(ids.dtype(), DType::I32, "moe: type of the ids");
    let MoeScratch { rows, inner, places, starts, .. } = scratch;
    let (beside, left) = match shared {
        Some(shared) if fits_beside(&shared, experts, num_tokens) => (Some(shared), None),
        shared => (None, shared),
    };
    let tiles = match &beside {
        Some(_) => Some(tiles_of(num_tokens)),
        None => few_tiles(&experts.down, ids.len()),
    };
    let sorted = (tiles != Some(1) || ids.len() > MAX_UNSORTED).then(|| {
        // The pairs of the rows are needed until `up` has read them, the rows themselves are written after that.
        let sorted = [starts.pointer(), rows.pointer(), places.pointer()];
        // SAFETY: T·k places, E + 1 starts, and rows that are longer than an index each.
        unsafe { place(cuda, ids, sorted, experts.len()) };
        sorted
    });
    let [starts, order, places] = sorted.unwrap_or([DevicePtr::NULL, ids.pointer(), DevicePtr::NULL]);
    let packed = Packed::of(cuda, experts, tiles, ids.len());
    let layer = |side: Side, weights: &MatrixBatch, n: usize, x: DevicePtr, out: DevicePtr| Layer {
        side,
        n,
        k: weights.k(),
        panels: weights.panels_per_member(),
        units: weights.units(),
        stored_as: weights.stored_as(),
        pointers: [x, weights.pointer(), starts, order, out],
        experts: experts.len(),
        top_k,
        num_pairs: ids.len(),
        is_sorted: sorted.is_some(),
        tiles,
        is_packed: packed.is_some(),
        bias: Bias::of(experts, side),
        beside: beside.as_ref().map(|shared| Beside::of(shared, side, x, num_tokens)),
    };
    let taken = match (tiles, experts.gate_up.stored_as(), &packed) {
        (Some(_), ..) | (_, WeightType::F32, _) => x.pointer(),
        (None, stored_as, Some(packed)) => {
            let dtype = stored_as.float().expect("only floats are packed");
            let made = made.filter(|made| made.0 == dtype).map(|made| made.1);
            let from = made.map_or(From::Floats(x.pointer()), |room| From::Packed(room.pointer()));
            let sizes = [ids.len(), top_k, hidden];
            // SAFETY: `order` has the pairs of the rows, whose tokens are of x, and `Packed::of` saw to the room.
            unsafe { packed.write(cuda, from, order, sizes, dtype) }
        }
        // All blocks read x: once rounded it is half of the bytes. Its place is the rows', behind the pairs.
        (None, stored_as, None) => {
            let start = (ids.len() * size_of::<i32>()).next_multiple_of(16);
            let dtype = stored_as.float().unwrap_or(DType::BF16);
            assert!(start + num_tokens * hidden * dtype.size() <= rows.bytes() as usize, "moe: scratch");
            let rounded = order.offset(start as u64);
            let sizes = [num_tokens, hidden];
            match made.filter(|made| made.0 == dtype) {
                // SAFETY: T tokens of H are packed there, and the assertion says that they have room.
                Some((_, room)) => unsafe { unpack(cuda, room.pointer(), sizes, dtype, rounded) },
                // SAFETY: x has T rows of H, and the assertion says that they have room.
                None => unsafe { round_rows(cuda, x.pointer(), sizes, dtype, rounded) },
            }
            rounded
        }
    };
    layer(Side::Up, &experts.gate_up, experts.inner(), taken, inner.pointer()).launch(cuda);
    layer(Side::Down, &experts.down, hidden, inner.pointer(), rows.pointer()).launch(cuda);

    let vector = vector_of(hidden);
    let added = beside.as_ref().map_or(DevicePtr::NULL, |shared| shared.out.pointer());
    let args = Args::new().pointer(rows.pointer()).pointer(places).pointer(weights.pointer());
    let gates = beside.as_ref().and_then(|shared| shared.gate);
    assert!(gates.is_none_or(|gates| gates.dtype() == DType::F32), "moe: type of the gates");
    let args = args.value(top_k as i32).value(hidden as i32).pointer(added);
    let args = args.pointer(gates.map_or(DevicePtr::NULL, Tensor::pointer));
    let then = then.filter(|_| left.is_none());
    let (expression, blocks, args) = match then {
        None => (format!("moe_combine<{vector}>"), num_tokens, args.pointer(out.pointer())),
        Some(Then { residual, weight, eps, packed }) => {
            let types = [residual.dtype(), weight.dtype()];
            assert_eq!(types, [DType::F32; 2], "moe: types of the stream and of its norm");
            let args = args.pointer(residual.pointer()).pointer(weight.pointer()).value(*eps);
            let args = args.pointer(x.pointer());
            match packed {
                None => (format!("moe_combine_norm<{vector}>"), num_tokens, args),
                Some((dtype, room)) => {
                    let fits = packed_bytes([num_tokens, hidden]) <= room.bytes();
                    assert!(fits, "moe: no room for {num_tokens} tokens");
                    let expression = format!("moe_combine_pack_norm<{}, {vector}>", dtype.cpp());
                    let args = args.value(num_tokens as i32).pointer(room.pointer());
                    (expression, padded([num_tokens, hidden])[0], args)
                }
            }
        }
    };
    // SAFETY: every pair has its row; out, x, the stream, and what the shared expert made, have T rows of H, the norm H weights, and there are T gates or none. Nobody reads x
    // any more.
    unsafe { cuda.launch(&KERNEL, &expression, grid(blocks, 256), args) };
    Left { shared: left, is_normed: then.is_some() }
}

/// Gives the pairs rows: starts, order, places.
///
/// # Safety
/// There is room for E + 1 starts, and for an index of each pair in the others.
unsafe fn place(cuda: &Cuda, ids: &Tensor, [starts, order, places]: [DevicePtr; 3], experts: usize) {
    let args = Args::new().pointer(ids.pointer()).value(ids.len() as i32);
    let args = args.pointer(starts).pointer(places).pointer(order);
    // SAFETY: the caller's promise.
    unsafe { cuda.launch(&KERNEL, "moe_place", grid(experts, 256), args) };
}

/// Rows of packed tokens.
///
/// # Safety
/// There are so many tokens and numbers of each, and room for them.
unsafe fn unpack(cuda: &Cuda, packed: DevicePtr, [tokens, width]: [usize; 2], dtype: DType, rows: DevicePtr) {
    let args = Args::new().pointer(packed).value(tokens as i32).value(width as i32).pointer(rows);
    let blocks = [tokens.div_ceil(8), width.div_ceil(256), 1].map(|n| n as u32);
    let grid = Grid { blocks, threads: [256, 1, 1], shared: 0 };
    let expression = format!("moe_unpack<{}, {}>", dtype.cpp(), vector_of(width));
    // SAFETY: the caller's promise.
    unsafe { cuda.launch(&KERNEL, &expression, grid, args) };
}

/// Elements that rows of this width are moved by.
fn vector_of(width: usize) -> usize {
    if width.is_multiple_of(4) { 4 } else { 1 }
}

/// The pairs of `ids` get rows of `rows`. Shapes were checked in `ops`, here and below.
pub(crate) fn sort_by_expert(cuda: &Cuda, ids: &Tensor, rows: &ExpertRows, experts: usize) {
    if ids.is_empty() {
        return;
    }
    let sorted = [&rows.starts, &rows.order, &rows.places].map(Tensor::pointer);
    // SAFETY: they were made for so many experts, and for more pairs.
    unsafe { place(cuda, ids, sorted, experts) };
}

pub(crate) fn enter(cuda: &Cuda, x: &Tensor, rows: &ExpertRows, top_k: usize, out: &mut Tensor) {
    assert_eq!([x.dtype(), out.dtype()], [DType::F32; 2], "enter_experts: types");
    let (num_rows, width) = (out.rows(), out.row_len());
    if num_rows == 0 {
        return;
    }
    let args = Args::new().pointer(x.pointer()).pointer(rows.order.pointer()).value(top_k as i32);
    let args = args.value(width as i32).pointer(out.pointer());
    // SAFETY: `sort_by_expert` wrote the pairs of all rows, whose tokens x has.
    unsafe { cuda.launch(&KERNEL, &format!("moe_enter<{}>", vector_of(width)), grid(num_rows, 256), args) };
}

/// Rows are read as they are.
pub(crate) fn expert_linear(
    cuda: &Cuda,
    x: &Tensor,
    weights: &MatrixBatch,
    rows: &mut ExpertRows,
    out: &mut Tensor,
) {
    assert_eq!([x.dtype(), out.dtype()], [DType::F32; 2], "expert_linear: types");
    let (num_rows, k, stored_as) = (x.rows(), weights.k(), weights.stored_as());
    let tiles = few_tiles(weights, num_rows);
    let taken = match (tiles, stored_as) {
        (Some(_), _) | (_, WeightType::F32) => x.pointer(),
        (None, _) => {
            let (dtype, rounded) = (stored_as.float().unwrap_or(DType::BF16), rows.rounded.pointer());
            assert!(num_rows * k * dtype.size() <= rows.rounded.bytes() as usize, "expert_linear: scratch");
            // SAFETY: x has so many rows of K, and the assertion says that they have room.
            unsafe { round_rows(cuda, x.pointer(), [num_rows, k], dtype, rounded) };
            rounded
        }
    };
    let [starts, order] = [&rows.starts, &rows.order].map(Tensor::pointer);
    let layer = Layer {
        side: Side::Down,
        n: weights.n(),
        k,
        panels: weights.panels_per_member(),
        units: weights.units(),
        stored_as,
        pointers: [taken, weights.pointer(), starts, order, out.pointer()],
        experts: weights.count(),
        top_k: 1,
        num_pairs: num_rows,
        is_sorted: true,
        tiles,
        is_packed: false,
        bias: Bias::NONE,
        beside: None,
    };
    layer.launch(cuda);
}

pub(crate) fn combine(
    cuda: &Cuda,
    made: &Tensor,
    places: &Tensor,
    (weights, top_k): (&Tensor, usize),
    out: &mut Tensor,
) {
    assert_eq!([made, weights, &*out].map(Tensor::dtype), [DType::F32; 3], "combine_experts: types");
    let (num_tokens, width) = (out.rows(), out.row_len());
    if num_tokens == 0 {
        return;
    }
    let args = Args::new().pointer(made.pointer()).pointer(places.pointer()).pointer(weights.pointer());
    // Of no expert that every token takes, and of no gate of it.
    let args = args.value(top_k as i32).value(width as i32).pointer(DevicePtr::NULL).pointer(DevicePtr::NULL);
    let args = args.pointer(out.pointer());
    let name = format!("moe_combine<{}>", vector_of(width));
    // SAFETY: every pair has its row of that width, and its weight.
    unsafe { cuda.launch(&KERNEL, &name, grid(num_tokens, 256), args) };
}

/// Pairs up to which a warp finds those of an expert by itself, one for each lane, where a block has eight rows.
const MAX_UNSORTED: usize = 32;

/// Tokens up to which the shared expert is computed beside the others, by blocks that have all of them: its weights are read once.
const FEW_TOKENS: usize = 32;

/// Tiles of eight rows of `moe_few` that have so many, up to `FEW_TOKENS`.
fn tiles_of(num_tokens: usize) -> usize {
    num_tokens.div_ceil(8).next_power_of_two()
}

/// Tiles of `moe_few` for rows of experts on average; `None` where there are more than few.
fn few_tiles(weights: &MatrixBatch, num_pairs: usize) -> Option<usize> {
    match (weights.stored_as(), num_pairs.div_ceil(weights.count())) {
        (WeightType::F32, _) | (_, 17..) => None,
        (_, rows) => Some(tiles_of(2 * rows)),
    }
}

/// Blocks of a cluster of `moe_wgmma`, along the panels: the more share tokens, the less each fetches, where no more blocks are without work.
fn wgmma_cluster(blocks: usize) -> usize {
    if blocks.next_multiple_of(8) == blocks.next_multiple_of(4) { 8 } else { 4 }
}

/// Tokens and columns of eight that `moe_spread` has at a time, as in moe.cu.
const SPREAD: [usize; 2] = [2048, 2];

/// The weights must be of the type of the others, and each panel of gate or of up.
fn fits_beside(shared: &SharedExpert, experts: &Experts, num_tokens: usize) -> bool {
    let types = [&experts.gate_up, &experts.down].map(MatrixBatch::stored_as);
    num_tokens <= FEW_TOKENS
        && types[0] != WeightType::F32
        && [shared.gate_up, shared.down].map(Matrix::stored_as) == types
        && shared.down.k().is_multiple_of(PANEL)
}

/// How rows are packed for `moe_wgmma`: those of x behind the pairs in the buffer of rows, those between the layers in their own.
struct Packed {
    /// Filled up, so that the last blocks read what is there.
    rows: usize,
    /// Where x begins, in bytes.
    start: usize,
}

impl Packed {
    /// `None` where mma.sync multiplies: experts have fewer rows than fill its blocks better, or there is no room.
    fn of(cuda: &Cuda, experts: &Experts, tiles: Option<usize>, num_pairs: usize) -> Option<Self> {
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
    unsafe fn write(
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
enum From {
    Floats(DevicePtr),
    /// Rounded and packed in their own order.
    Packed(DevicePtr),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Up,
    Down,
}

/// One of the two products.
struct Layer {
    side: Side,
    n: usize,
    k: usize,
    panels: usize,
    units: usize,
    stored_as: WeightType,
    /// x, weights, starts, order, out
    pointers: [DevicePtr; 5],
    experts: usize,
    top_k: usize,
    num_pairs: usize,
    is_sorted: bool,
    /// Of `moe_few`, if that is the kernel.
    tiles: Option<usize>,
    /// For `moe_wgmma`.
    is_packed: bool,
    bias: Bias,
    beside: Option<Beside>,
}

/// What is added to a product, and of gate and up the numbers of what is made of them. Null: nothing, and silu.
struct Bias {
    pointer: DevicePtr,
    alpha: f32,
    limit: f32,
}

impl Bias {
    const NONE: Self = Self { pointer: DevicePtr::NULL, alpha: 0.0, limit: 0.0 };

    fn of(experts: &Experts, side: Side) -> Self {
        let Some(glu) = &experts.glu else { return Self::NONE };
        assert!(experts.stored_as() != WeightType::Int4Zero, "moe: biases beside levels with zeros");
        let bias = if side == Side::Up { &glu.gate_up_bias } else { &glu.down_bias };
        Self { pointer: bias.pointer(), alpha: glu.alpha, limit: glu.limit }
    }
}

/// The shared expert's part of a product.
struct Beside {
    /// All but `blocks`, which is for the launch to say.
    shape: SharedShape,
    /// x, weights, out
    pointers: [DevicePtr; 3],
}

impl Beside {
    /// No blocks.
    const NONE: Self = Self {
        shape: SharedShape { blocks: 0, tokens: 0, n: 0, k: 0, units: 0, side_panels: 0, pairs: 0 },
        pointers: [DevicePtr::NULL; 3],
    };

    fn of(shared: &SharedExpert, side: Side, x: DevicePtr, num_tokens: usize) -> Self {
        let (weights, n, [x, out]) = match side {
            Side::Up => (shared.gate_up, shared.down.k(), [x, shared.inner.pointer()]),
            Side::Down => (shared.down, shared.down.n(), [shared.inner.pointer(), shared.out.pointer()]),
        };
        let shape = SharedShape {
            blocks: 0,
            tokens: num_tokens as i32,
            n: n as i32,
            k: weights.k() as i32,
            units: weights.as_batch().units() as i32,
            side_panels: (n / PANEL) as i32,
            pairs: pairs_of(weights.k()),
        };
        Self { shape, pointers: [x, weights.as_batch().pointer(), out] }
    }

    /// On a grid that is so wide, with the blocks that its outputs need.
    fn on(self, width: usize) -> Self {
        let blocks = 2 * (self.shape.n as usize).div_ceil(PANEL);
        Self { shape: SharedShape { blocks: blocks.div_ceil(width) as i32, ..self.shape }, ..self }
    }
}

impl Layer {
    fn launch(self, cuda: &Cuda) {
        let Self { side, n, k, panels, units, stored_as, pointers, experts, top_k, num_pairs, .. } = self;
        let Self { is_sorted, tiles, is_packed, bias, beside, .. } = self;
        let shape = MoeShape {
            experts: experts as i32,
            top_k: top_k as i32,
            n: n as i32,
            k: k as i32,
            panels: panels as i32,
            units: units as i32,
            pairs: pairs_of(k),
            unsorted: if is_sorted { 0 } else { num_pairs as i32 },
            alpha: bias.alpha,
            limit: bias.limit,
        };
        let up = side == Side::Up;
        let (expression, blocks, rows_each, threads) = match (stored_as, tiles) {
            (WeightType::F32, _) => (format!("moe_f32<{up}>"), n.div_ceil(4), 8, 128),
            (w, Some(tiles)) => {
                let halves = if up { panels } else { 2 * panels };
                (format!("moe_few<{}, {tiles}, {up}>", w.cpp()), halves, 8 * tiles, 256)
            }
            (w, None) if is_packed => {
                let (blocks, w) = (panels.div_ceil(4), w.cpp());
                let expression = format!("moe_wgmma<{w}, {up}, {}>", wgmma_cluster(blocks));
                (expression, blocks, WGMMA_BLOCK[1], 384)
            }
            (w, None) => {
                // Wider blocks cost less a row, if they are full.
                let rows_each = if num_pairs > 64 * experts { 128 } else { 64 };
                let expression = format!("moe_many<{}, {rows_each}, {up}>", w.cpp());
                (expression, panels.div_ceil(4), rows_each, 256)
            }
        };
        // Each expert that has rows has at most one block that is not full. Not sorted, each pair has a block, which may have no work.
        let mut row_blocks =
            if is_sorted { num_pairs / rows_each + experts.min(num_pairs) } else { num_pairs };
        let [x, weights, starts, order, out] = pointers;
        if is_packed {
            let cluster = wgmma_cluster(blocks);
            let blocks = [blocks.next_multiple_of(cluster) as u32, row_blocks as u32, 1];
            let grid = Grid { blocks, threads: [threads, 1, 1], shared: WGMMA_SHARED };
            let clusters = Clusters { grid, blocks: [cluster as u32, 1, 1] };
            let args = Args::new().pointer(x).pointer(weights).pointer(starts).pointer(bias.pointer);
            let args = args.value(shape).pointer(out);
            // SAFETY: `moe_place` wrote `starts` before, and `moe_pack` or `moe_spread` and the first product rows of K in the order of tokens.cuh; weights and out as below.
            unsafe { cuda.launch_clusters(&KERNEL, &expression, clusters, args) };
            return;
        }
        let mut args = Args::new().pointer(x).pointer(weights).pointer(starts).pointer(order);
        args = args.pointer(bias.pointer).value(shape).pointer(out);
        if stored_as != WeightType::F32 && tiles.is_some() {
            let Beside { shape, pointers: [x, weights, out] } = beside.unwrap_or(Beside::NONE).on(blocks);
            row_blocks += shape.blocks as usize;
            args = args.pointer(x).pointer(weights).value(shape).pointer(out);
        }
        let grid =
            Grid { blocks: [blocks as u32, row_blocks as u32, 1], threads: [threads, 1, 1], shared: 0 };
        // SAFETY: `moe_place` wrote `starts` and `order` before, or `order` is the ids of up to 32 pairs; the weights have `panels` panels of `units` units for each
        // expert, x rows of K and out T·k rows of N elements; so have the shared expert's of its own, for T rows.
        unsafe { cuda.launch(&KERNEL, &expression, grid, args) };
    }
}
