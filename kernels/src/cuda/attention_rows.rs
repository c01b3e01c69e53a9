//! Launches of attention_rows.cu: one warp for each row, a token and a head.

use super::Cuda;
use super::compile::Source;
use super::driver::{Args, DevicePtr, Param};
use super::launch::{Instance, Kernel, grid};
use super::tokens::PackedResult;
use crate::DType;
use crate::index::OnDevice;
use crate::operands::attention::{AttentionSizes, Softmax};

const WARPS: usize = 4;
/// Widest values, as in attention_rows.cu.
const MAX_VALUES: usize = 512;

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "attention_rows.cu", text: include_str!("attention_rows.cu") },
    instances: &[
        Instance::new("attend_rows<float>", 96, 1024),
        Instance::new("attend_rows<bf16>", 96, 1024),
        Instance::new("attend_rows<f16>", 96, 1024),
    ],
};

/// Keys or values in device memory, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Strided {
    pub start: DevicePtr,
    /// From one slot to the next.
    pub slot: usize,
    /// From one key head to the next.
    pub head: usize,
}

/// What all forms of attention have in common. Checked in `ops`.
pub(crate) struct Problem<'a> {
    pub q: DevicePtr,
    /// From one token to the next in `q`, in elements.
    pub q_stride: usize,
    pub keys: Strided,
    pub values: Strided,
    /// Values are the first columns of keys.
    pub is_latent: bool,
    /// Of keys and values.
    pub dtype: DType,
    pub sizes: &'a AttentionSizes,
    pub num_tokens: usize,
    pub num_items: usize,
    pub softmax: Softmax<'a>,
    pub out: DevicePtr,
    /// In the type of keys and values.
    pub packed: PackedResult<'a>,
}

/// Where items and their keys are, on the device; `None`: packed segments.
pub(crate) struct Pages {
    pub context_lens: OnDevice,
    pub block_tables: OnDevice,
    pub cu_blocks: OnDevice,
    pub block_size: usize,
    /// Whether each item takes part; `None`: all do.
    pub selected: Option<OnDevice>,
}

/// As in attention_rows.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct RowsShape {
    tokens: i32,
    items: i32,
    heads: i32,
    rep: i32,
    d: i32,
    dv: i32,
    q_stride: i32,
    key_stride: i32,
    value_stride: i32,
    key_head: i32,
    value_head: i32,
    block_size: i32,
    window: i32,
    scale: f32,
}
// SAFETY: thirteen i32 and a float, as in attention_rows.cu.
unsafe impl Param for RowsShape {}

/// As kernels take it.
pub(super) fn window_of(softmax: &Softmax) -> i32 {
    softmax.window.map_or(i32::MAX, |window| i32::try_from(window).unwrap_or(i32::MAX))
}

/// Null: there are none.
pub(super) fn sinks_of(softmax: &Softmax) -> DevicePtr {
    softmax.sinks.map_or(DevicePtr::NULL, |sinks| {
        assert_eq!(sinks.dtype(), DType::F32, "attention: sinks");
        sinks.pointer()
    })
}

pub(crate) fn run(cuda: &Cuda, problem: &Problem, cu_seqlens: &OnDevice, pages: Option<&Pages>) {
    let Problem { q, q_stride, keys, values, dtype, sizes, num_tokens, num_items, softmax, out, .. } =
        *problem;
    assert!(sizes.value_dim <= MAX_VALUES, "attention: values of {} exceed {MAX_VALUES}", sizes.value_dim);
    if num_tokens == 0 {
        return;
    }
    let shape = RowsShape {
        tokens: num_tokens as i32,
        items: num_items as i32,
        heads: sizes.heads as i32,
        rep: (sizes.heads / sizes.kv_heads) as i32,
        d: sizes.key_dim as i32,
        dv: sizes.value_dim as i32,
        q_stride: q_stride as i32,
        key_stride: keys.slot as i32,
        value_stride: values.slot as i32,
        key_head: keys.head as i32,
        value_head: values.head as i32,
        block_size: pages.map_or(0, |pages| pages.block_size as i32),
        window: window_of(&softmax),
        scale: softmax.scale * std::f32::consts::LOG2_E,
    };
    let args = Args::new().pointer(q).pointer(keys.start).pointer(values.start).pointer(cu_seqlens.pointer);
    let args = match pages {
        Some(Pages { context_lens, block_tables, cu_blocks, selected, .. }) => args
            .pointer(context_lens.pointer)
            .pointer(block_tables.pointer)
            .pointer(cu_blocks.pointer)
            .pointer(selected.as_ref().map_or(DevicePtr::NULL, |selected| selected.pointer)),
        None => (0..4).fold(args, |args, _| args.pointer(DevicePtr::NULL)),
    };
    let args = args.pointer(sinks_of(&softmax));
    let blocks = (num_tokens * sizes.heads).div_ceil(WARPS);
    let grid = grid(blocks, WARPS as u32 * 32);
    // SAFETY: `ops` checked q, keys, values and out against the sizes, and on the host's copy that every position of every
    // item has a slot; the arrays of items have their lengths.
    unsafe {
        cuda.launch(&KERNEL, &format!("attend_rows<{}>", dtype.cpp()), grid, args.value(shape).pointer(out))
    };
}
