//! Launches of moe.cu: place, up, down, combine. How many rows an expert has is known on the device alone; the number of pairs for
//! each expert on average chooses a kernel, never the order of a sum. With few tokens the expert that all of them take has blocks of the same
//! launches; its sums are those of its ops one after the other, so that it may be computed here or there.

use super::Cuda;
use super::driver::{Args, DevicePtr, Grid};
use super::launch::grid;
use super::moe_kernel::{KERNEL, vector_of};
use super::moe_layer::{Beside, Bias, Layer, Side};
use super::moe_packed::{From, Packed};
use super::rows::round_rows;
use super::tokens::{packed_bytes, padded};
use crate::operands::expert_rows::ExpertRows;
use crate::operands::moe::{MoeScratch, SharedExpert};
use crate::panel::PANEL;
use crate::{DType, Experts, Matrix, MatrixBatch, Tensor, WeightType};

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

/// The weights must be of the type of the others, and each panel of gate or of up.
fn fits_beside(shared: &SharedExpert, experts: &Experts, num_tokens: usize) -> bool {
    let types = [&experts.gate_up, &experts.down].map(MatrixBatch::stored_as);
    num_tokens <= FEW_TOKENS
        && types[0] != WeightType::F32
        && [shared.gate_up, shared.down].map(Matrix::stored_as) == types
        && shared.down.k().is_multiple_of(PANEL)
}
