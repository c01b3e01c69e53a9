//! Launches of attention_segments.cu: queries, keys and values of packed segments are rounded once, turned where they are to turn, and then
//! attended to on tensor cores.

use super::Cuda;
use super::attention_plan::{Items, Plan, RangeRule, Shape};
use super::compile::Source;
use super::driver::{Args, DevicePtr, Grid, Param};
use super::launch::{Instance, Kernel, grid};
use super::tokens;
use crate::index::OnDevice;
use crate::operands::attention::AttentionSizes;
use crate::operands::rope::RopeTable;
use crate::{DType, Tensor};

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "attention_segments.cu", text: include_str!("attention_segments.cu") },
    instances: &[
        Instance::new("attend_segments<bf16, 72, 2>", 255, 45056),
        Instance::new("attend_segments<bf16, 80, 1>", 184, 45056),
        Instance::new("attend_segments<f16, 72, 2>", 255, 45056),
        Instance::new("attend_segments<f16, 80, 1>", 184, 45056),
        Instance::new("round_heads<bf16>", 40, 0),
        Instance::new("round_heads<f16>", 40, 0),
    ],
};

const THREADS: u32 = 128;
/// What there are kernels for: columns of values, and sixteens of rows that a warp has.
const FORMS: [[usize; 2]; 2] = [[72, 2], [WIDTH, 1]];
/// Of a rounded head, with zeros that fill it up.
const WIDTH: usize = 80;

/// Whether tensor cores take segments of these sizes, multiplied as this type.
pub(crate) fn serves(sizes: &AttentionSizes, multiply_as: DType) -> bool {
    multiply_as != DType::F32 && has_room(sizes)
}

fn has_room(sizes: &AttentionSizes) -> bool {
    sizes.max_context == 0 && sizes.key_dim <= WIDTH && sizes.key_dim.is_multiple_of(2)
}

/// f32 numbers of the scratch: queries, keys and values of two bytes.
pub(crate) fn scratch_len(sizes: &AttentionSizes) -> usize {
    if has_room(sizes) { 3 * sizes.max_tokens * sizes.heads * WIDTH / 2 } else { 0 }
}

/// As in attention_segments.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct SegmentShape {
    tokens: i32,
    heads: i32,
    d: i32,
    half: i32,
    scale: f32,
}
// SAFETY: four i32 and a float, as in attention_segments.cu.
unsafe impl Param for SegmentShape {}

/// `qkv` `[T, 3, H, D]` f32, checked in `ops`.
pub(crate) struct Call<'a> {
    pub qkv: &'a Tensor,
    /// Where segments begin and end.
    pub offsets: &'a [u32],
    /// By which angles neighbours of queries and keys turn, if they do.
    pub rotation: Option<(&'a RopeTable, OnDevice)>,
    pub scale: f32,
    /// A type of 16 bits.
    pub multiply_as: DType,
    pub out: &'a Tensor,
    /// Where the result is rounded to `multiply_as` and packed for a linear layer, in place of `out`.
    pub packed: Option<&'a Tensor>,
}

/// Memory of a call beside its tensors.
pub(crate) struct Memory<'a> {
    pub buffer: &'a Tensor,
    pub plan: &'a mut Plan,
    pub sizes: &'a AttentionSizes,
}

pub(crate) fn run(cuda: &Cuda, call: &Call, memory: Memory) {
    let Call { qkv, offsets, rotation, scale, multiply_as, out, packed } = call;
    let AttentionSizes { heads, key_dim, .. } = *memory.sizes;
    let (num_tokens, width) = (qkv.rows(), heads * key_dim);
    let bytes = (3 * 2 * num_tokens * heads * WIDTH) as u64;
    assert!(bytes <= memory.buffer.bytes(), "packed_attention: {num_tokens} tokens exceed the scratch");
    assert_eq!([qkv.dtype(), out.dtype()], [DType::F32; 2], "packed_attention: types");
    if num_tokens == 0 {
        return;
    }
    let mut all_tokens = num_tokens;
    if let Some(room) = packed {
        let needed = tokens::packed_bytes([num_tokens, width]);
        assert!(needed <= room.bytes(), "packed_attention: no room for {num_tokens} tokens");
        all_tokens = tokens::padded([num_tokens, 1])[0];
    }
    let packed = packed.map_or(DevicePtr::NULL, Tensor::pointer);
    let half = rotation.as_ref().map_or(0, |(table, _)| table.cos.row_len());
    let shape = SegmentShape {
        tokens: num_tokens as i32,
        heads: heads as i32,
        d: key_dim as i32,
        half: half as i32,
        scale: scale * std::f32::consts::LOG2_E,
    };
    let angles = match rotation {
        Some((table, positions)) => [table.cos.pointer(), table.sin.pointer(), positions.pointer],
        None => [DevicePtr::NULL; 3],
    };
    let args = Args::new().pointer(qkv.pointer());
    let args = angles.into_iter().fold(args, Args::pointer);
    let args = args.value(shape).pointer(memory.buffer.pointer()).pointer(packed);
    let w = multiply_as.cpp();
    // SAFETY: qkv has T rows of queries, keys and values of all heads; `ops` checked positions and the width of the table, which is null where
    // nothing turns; the buffer and what is packed have room, as was asserted.
    unsafe { cuda.launch(&KERNEL, &format!("round_heads<{w}>"), grid(all_tokens, 256), args) };

    let form = FORMS.into_iter().find(|[columns, _]| key_dim <= *columns);
    let [columns, groups] = form.expect("heads that are served");
    let plan_shape = Shape {
        kv_heads: heads,
        rep: 1,
        has_few: false,
        has_many: true,
        many_rows: groups * 16 * THREADS as usize / 32,
        blocks: 2 * cuda.info().num_sms as usize,
        num_slots: 0,
        rule: RangeRule::default(),
        window: usize::MAX,
    };
    let items = Items { cu_seqlens: offsets, context_lens: None, tables: offsets, selected: None };
    let counts = memory.plan.update(&plan_shape, &items);
    let args = Args::new().pointer(memory.buffer.pointer()).pointer(memory.plan.pointer()).value(shape);
    let args = args.pointer(out.pointer()).pointer(packed);
    let blocks = (counts.many * heads).min(plan_shape.blocks);
    let grid = Grid { blocks: [blocks as u32, 1, 1], threads: [THREADS, 1, 1], shared: 0 };
    // SAFETY: the lists were made of these segments, whose rows are in the buffer; out has T rows of all heads.
    unsafe { cuda.launch(&KERNEL, &format!("attend_segments<{w}, {columns}, {groups}>"), grid, args) };
}
