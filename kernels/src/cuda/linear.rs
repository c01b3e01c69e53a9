//! Launches of linear.cu. The number of tokens chooses a kernel, never the order of a sum.

use super::compile::Source;
use super::driver::{Args, Clusters, DevicePtr, Grid, Param};
use super::launch::{Instance, Kernel};
use super::{Cuda, tokens};
use crate::operands::linear::Activation;
use crate::{DType, MatrixBatch, Tensor, WeightType};

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "linear.cu", text: include_str!("linear.cu") },
    instances: &[
        Instance::new("linear_few<float, bf16, 1>", 64, 4096),
        Instance::new("linear_few<float, bf16, 2>", 80, 8192),
        Instance::new("linear_few<float, bf16, 4>", 128, 16384),
        Instance::new("linear_few<float, f16, 1>", 64, 4096),
        Instance::new("linear_few<float, f16, 2>", 80, 8192),
        Instance::new("linear_few<float, f16, 4>", 128, 16384),
        Instance::new("linear_few<bf16, bf16, 1>", 64, 4096),
        Instance::new("linear_few<bf16, bf16, 2>", 80, 8192),
        Instance::new("linear_few<bf16, bf16, 4>", 128, 16384),
        Instance::new("linear_many<float, bf16, 64>", 128, 34816),
        Instance::new("linear_many<float, bf16, 128>", 255, 45056),
        Instance::new("linear_many<float, f16, 64>", 128, 34816),
        Instance::new("linear_many<float, f16, 128>", 255, 45056),
        Instance::new("linear_many<bf16, bf16, 64>", 128, 34816),
        Instance::new("linear_many<bf16, bf16, 128>", 255, 45056),
        Instance::new("linear_few<float, q8, 1>", 85, 4096),
        Instance::new("linear_few<float, q8, 2>", 85, 8192),
        Instance::new("linear_few<float, q8, 4>", 85, 16384),
        Instance::new("linear_few<float, q4, 1>", 85, 4096),
        Instance::new("linear_few<float, q4, 2>", 85, 8192),
        Instance::new("linear_few<float, q4, 4>", 85, 16384),
        Instance::new("linear_few<float, q4z, 1>", 85, 4096),
        Instance::new("linear_few<float, q4z, 2>", 85, 8192),
        Instance::new("linear_few<float, q4z, 4>", 85, 16384),
        Instance::new("linear_many<float, q8, 64>", 168, 23552),
        Instance::new("linear_many<float, q4, 64>", 168, 17408),
        Instance::new("linear_many<float, q4z, 64>", 168, 18432),
        Instance::new("linear_packed<bf16, 64>", 128, 36864),
        Instance::new("linear_packed<bf16, 128>", 255, 49152),
        Instance::new("linear_packed<f16, 64>", 128, 36864),
        Instance::new("linear_packed<f16, 128>", 255, 49152),
        Instance::new("linear_packed<q8, 64>", 168, 25600),
        Instance::new("linear_packed<q8, 128>", 255, 37888),
        Instance::new("linear_packed<q4, 64>", 168, 19456),
        Instance::new("linear_packed<q4, 128>", 255, 31744),
        Instance::new("linear_packed<q4z, 64>", 168, 20480),
        Instance::new("linear_packed<q4z, 128>", 255, 32768),
        Instance::hopper("linear_wgmma<bf16, 2>", 168, 1024),
        Instance::hopper("linear_wgmma<bf16, 4>", 168, 1024),
        Instance::hopper("linear_wgmma<f16, 2>", 168, 1024),
        Instance::hopper("linear_wgmma<f16, 4>", 168, 1024),
        Instance::new("linear_f32<float>", 64, 0),
        Instance::new("linear_f32<bf16>", 64, 0),
    ],
};

/// Tokens up to which every weight goes straight into registers.
pub(crate) const FEW: usize = 32;

/// Of a block with wgmma, as in wgmma.cuh: rows of weights, and tokens; fewer tokens are left to mma.sync.
pub(super) const WGMMA_BLOCK: [usize; 2] = [128, 192];
/// Blocks of a cluster, along each, where there are so many blocks of rows: the more share tokens, the less each fetches, if no more of them are without
/// work.
fn wgmma_cluster(row_blocks: usize) -> [usize; 2] {
    if row_blocks.next_multiple_of(4) == row_blocks.next_multiple_of(2) { [4, 2] } else { [2, 2] }
}
/// Its dynamic shared memory: five stages of 4 panels and 192 tokens, by 64 of K.
pub(super) const WGMMA_SHARED: u32 = 5 * (4 * 4096 + 192 * 128);

/// How rows of so many elements, one behind the other from an aligned place on, may be read: `pairs` of the kernels.
pub(super) fn pairs_of(k: usize) -> i32 {
    if k.is_multiple_of(8) { 8 } else { i32::from(k.is_multiple_of(2)) }
}

/// From one token and from one head to the next, in elements.
pub(crate) struct Strides {
    pub x: usize,
    pub out: usize,
    pub x_head: usize,
    pub out_head: usize,
}

/// `out[h][t] = act(x[h][t] · w[h]ᵀ + bias)` for every member h of the weights. Checked in `ops`.
pub(crate) struct Job<'a> {
    pub x: DeviceSlice,
    /// x rounded to what the weights take and packed, in rows of K: see [`takes_packed`].
    pub packed: Option<&'a Tensor>,
    /// Where what comes out is packed for another layer that takes the same type, in place of `out`; where x is.
    pub packed_out: Option<&'a Tensor>,
    /// The same of heads, whose x is not packed.
    pub heads_out: Option<PackedHeads<'a>>,
    pub weights: &'a MatrixBatch,
    pub bias: Option<&'a Tensor>,
    pub act: Activation,
    /// Whether what comes out is added to what is in `out`; where x is packed.
    pub adds: bool,
    pub out: DeviceSlice,
    /// Tokens.
    pub rows: usize,
    pub strides: Strides,
}

/// Where heads leave their results side by side, rounded and packed for a layer.
#[derive(Clone, Copy)]
pub(crate) struct PackedHeads<'a> {
    pub room: &'a Tensor,
    /// Which of the packed tokens is the first.
    pub first: usize,
    /// Numbers of a token, of all heads: a multiple of 32.
    pub width: usize,
    /// Whether `out` gets them as well.
    pub floats: bool,
}

/// A tensor from some element on.
#[derive(Clone, Copy)]
pub(crate) struct DeviceSlice {
    pub start: DevicePtr,
    pub dtype: DType,
}

impl Tensor {
    /// From an element of a row on.
    pub(crate) fn device_slice(&self, offset: usize) -> DeviceSlice {
        let start = self.pointer().offset((offset * self.dtype().size()) as u64);
        DeviceSlice { start, dtype: self.dtype() }
    }
}

/// As in linear.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct LinearShape {
    rows: i32,
    n: i32,
    k: i32,
    panels: i32,
    units: i32,
    x_stride: i32,
    out_stride: i32,
    x_head: i32,
    out_head: i32,
    act: i32,
    adds: i32,
    pairs: i32,
    first_packed: i32,
    columns_packed: i32,
    floats: i32,
}
// SAFETY: fifteen i32, as in linear.cu.
unsafe impl Param for LinearShape {}

/// As in linear.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct LinearBeside {
    n: i32,
    panels: i32,
}
// SAFETY: two i32, as in linear.cu.
unsafe impl Param for LinearBeside {}

/// Whether the kernel for so many tokens takes them as tokens.rs packs them.
pub(crate) fn takes_packed(num_tokens: usize, stored_as: WeightType) -> bool {
    num_tokens > FEW && stored_as != WeightType::F32
}

/// Whether it may leave them packed for the next layer as well.
pub(crate) fn leaves_packed(cuda: &Cuda, num_tokens: usize, stored_as: WeightType) -> bool {
    takes_packed(num_tokens, stored_as) && (stored_as.is_quantised() || !cuda.uses_wgmma())
}

pub(crate) fn run(cuda: &Cuda, job: &Job) {
    launch(cuda, job, None);
}

/// Two layers with one x, in one launch for few tokens.
pub(crate) fn run_pair(cuda: &Cuda, [first, second]: [&Job; 2]) {
    let types = [first, second].map(|job| job.weights.stored_as());
    let is_one = first.rows <= FEW && types[0] == types[1] && types[0] != WeightType::F32;
    launch(cuda, first, is_one.then_some(second));
    if !is_one {
        launch(cuda, second, None);
    }
}

/// With a layer beside it, of the same x, where the kernel for few tokens serves both: rows of its `out` lie side by side.
fn launch(cuda: &Cuda, job: &Job, beside: Option<&Job>) {
    let Job { x, packed, packed_out, heads_out, weights, bias, act, adds, out, rows, strides } = job;
    if *rows == 0 {
        return;
    }
    let outs = [out.dtype, beside.map_or(DType::F32, |job| job.out.dtype)];
    assert_eq!(outs, [DType::F32; 2], "linear: type of out");
    for bias in [*bias, beside.and_then(|job| job.bias)].into_iter().flatten() {
        assert_eq!(bias.dtype(), DType::F32, "linear: type of the bias");
    }
    let (panels, units) = (weights.panels_per_member(), weights.units());
    let shape = LinearShape {
        rows: *rows as i32,
        n: weights.n() as i32,
        k: weights.k() as i32,
        panels: panels as i32,
        units: units as i32,
        x_stride: strides.x as i32,
        out_stride: strides.out as i32,
        x_head: strides.x_head as i32,
        out_head: strides.out_head as i32,
        act: match act {
            Activation::None => 0,
            Activation::GeluTanh => 1,
            Activation::GeluErf => 2,
            Activation::QuickGelu => 3,
        },
        adds: i32::from(*adds),
        pairs: {
            let steps = [strides.x, strides.x_head];
            let (start, size) = (x.start.0 as usize, x.dtype.size());
            let starts_at = |n: usize, bytes: usize| {
                steps.iter().all(|step| step.is_multiple_of(n)) && start.is_multiple_of(bytes)
            };
            if starts_at(8, 16) { 8 } else { i32::from(starts_at(2, 2 * size)) }
        },
        first_packed: heads_out.map_or(0, |heads| heads.first as i32),
        columns_packed: heads_out.map_or(0, |heads| (heads.width / 8) as i32),
        floats: heads_out.map_or(1, |heads| i32::from(heads.floats)),
    };
    if let Some(PackedHeads { room, first, width, .. }) = *heads_out {
        let needed = tokens::packed_bytes([first + rows, width]);
        assert!(needed <= room.bytes(), "linear: no room for {rows} tokens of heads");
        assert_eq!([width, width % 32], [weights.count() * weights.n(), 0], "linear: width of packed heads");
        assert_ne!(weights.stored_as(), WeightType::F32, "linear: packed heads of f32");
    }
    let pointer_of = |bias: Option<&Tensor>| bias.map_or(DevicePtr::NULL, Tensor::pointer);
    assert!(packed.is_none() || takes_packed(*rows, weights.stored_as()), "linear: packed tokens");
    assert!(!*adds || (packed.is_some() && packed_out.is_none()), "linear: adds packed tokens to f32");
    let mut args = Args::new()
        .pointer(packed.map_or(x.start, Tensor::pointer))
        .pointer(weights.pointer())
        .pointer(pointer_of(*bias));
    args = args.value(shape).pointer(out.start);
    let (x, w) = (x.dtype.cpp(), weights.stored_as().cpp());
    let (expression, [rows_each, tokens_each], threads) = match (weights.stored_as(), *rows) {
        (WeightType::F32, _) => (format!("linear_f32<{x}>"), [4, 8], 128),
        (_, ..=8) => (format!("linear_few<{x}, {w}, 1>"), [16, 8], 256),
        (_, ..=16) => (format!("linear_few<{x}, {w}, 2>"), [16, 16], 256),
        (_, ..=FEW) => (format!("linear_few<{x}, {w}, 4>"), [16, 32], 256),
        (stored_as, _)
            if cuda.uses_wgmma()
                && packed.is_some()
                && !stored_as.is_quantised()
                && *rows > WGMMA_BLOCK[1] =>
        {
            let [rows, _] = wgmma_cluster(panels.div_ceil(4));
            (format!("linear_wgmma<{w}, {rows}>"), WGMMA_BLOCK, 384)
        }
        (stored_as, _) => {
            // Wider blocks cost less a token, if there are enough of them for the device. Rows that come as f32 have none for quantised weights.
            let wide = panels.div_ceil(4) * rows.div_ceil(128) * weights.count();
            let is_wide = *rows > 64
                && wide >= cuda.info().num_sms as usize
                && (packed.is_some() || !stored_as.is_quantised());
            let tokens = if is_wide { 128 } else { 64 };
            let expression = match packed {
                Some(_) => format!("linear_packed<{w}, {tokens}>"),
                None => format!("linear_many<{x}, {w}, {tokens}>"),
            };
            (expression, [128, tokens], 256)
        }
    };
    let heads_packed = heads_out.map_or(DevicePtr::NULL, |heads| heads.room.pointer());
    let mut all_panels = panels;
    if rows_each == 16 {
        let panels = beside.map_or(0, |job| job.weights.panels_per_member());
        let n = beside.map_or(0, |job| job.weights.n());
        let [w, bias, out] = beside
            .map_or([DevicePtr::NULL; 3], |job| [job.weights.pointer(), pointer_of(job.bias), job.out.start]);
        let shape = LinearBeside { n: n as i32, panels: panels as i32 };
        args = args.pointer(w).pointer(bias).value(shape).pointer(out);
        args = args.pointer(heads_packed);
        all_panels += panels;
    } else {
        assert!(beside.is_none(), "linear: no layer beside {expression}");
    }
    let mut all_tokens = *rows;
    if packed.is_none() && rows_each == 128 {
        args = args.pointer(heads_packed);
    } else {
        assert!(heads_out.is_none() || rows_each == 16, "linear: no packed heads of {expression}");
    }
    if packed.is_some() && threads == 256 {
        if let Some(room) = packed_out {
            assert!(
                tokens::packed_bytes([*rows, weights.n()]) <= room.bytes(),
                "linear: no room for {rows} tokens"
            );
            all_tokens = tokens::padded([*rows, 1])[0];
        }
        args = args.pointer(packed_out.map_or(DevicePtr::NULL, Tensor::pointer));
    } else {
        assert!(packed_out.is_none(), "linear: no packed tokens of {expression}");
    }
    let blocks = [(all_panels * 32).div_ceil(rows_each), all_tokens.div_ceil(tokens_each), weights.count()];
    let clusters = if threads == 384 {
        let cluster = wgmma_cluster(blocks[0]);
        let [x, y] = [0, 1].map(|i| blocks[i].next_multiple_of(cluster[i]) as u32);
        let grid = Grid { blocks: [x, y, 1], threads: [threads, 1, 1], shared: WGMMA_SHARED };
        let [x, y] = cluster.map(|n| n as u32);
        Clusters { grid, blocks: [x, y, 1] }
    } else {
        let grid = Grid { blocks: blocks.map(|n| n as u32), threads: [threads, 1, 1], shared: 0 };
        Clusters::from(grid)
    };
    // SAFETY: `ops` checked that x and out have T rows of K and N elements at these strides, and made what is packed of the same rows; the weights have `panels` panels
    // of 32 rows and `units` units along K for each head; the bias, if any, N elements. A layer beside it has the same x and K, and T rows of
    // its N elements.
    unsafe { cuda.launch_clusters(&KERNEL, &expression, clusters, args) };
}
