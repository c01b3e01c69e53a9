//! Launches of attention.cu: which instance serves which widths, and what it needs.

use super::Cuda;
use super::attention_plan::{self, Counts, FEW_ROWS, Items, MANY_ROWS, Plan, RangeRule, Shape};
use super::attention_rows::{Pages, Problem, sinks_of, window_of};
use super::compile::Source;
use super::driver::{Args, DevicePtr, Grid, Param};
use super::launch::{Instance, Kernel, grid};
use crate::operands::attention::AttentionSizes;
use crate::{DType, Device, Tensor};

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "attention.cu", text: include_str!("attention.cu") },
    instances: &[
        Instance::new("attend<bf16, 576, 512, 16, 8, 2, true>", 252, 0),
        Instance::new("attend<bf16, 576, 512, 16, 8, 1, true>", 252, 0),
        Instance::new("attend<bf16, 576, 512, 64, 8, 2, true>", 255, 0),
        Instance::new("attend<bf16, 576, 512, 64, 8, 1, true>", 255, 0),
        Instance::new("attend<bf16, 128, 128, 16, 4, 2, false>", 184, 0),
        Instance::new("attend<bf16, 128, 128, 64, 4, 2, false>", 240, 0),
        Instance::new("attend<bf16, 64, 64, 16, 4, 2, false>", 144, 0),
        Instance::new("attend<bf16, 64, 64, 64, 4, 2, false>", 232, 0),
        Instance::new("attend<f16, 576, 512, 16, 8, 2, true>", 252, 0),
        Instance::new("attend<f16, 576, 512, 16, 8, 1, true>", 252, 0),
        Instance::new("attend<f16, 576, 512, 64, 8, 2, true>", 255, 0),
        Instance::new("attend<f16, 576, 512, 64, 8, 1, true>", 255, 0),
        Instance::new("attend<f16, 128, 128, 16, 4, 2, false>", 184, 0),
        Instance::new("attend<f16, 128, 128, 64, 4, 2, false>", 240, 0),
        Instance::new("attend<f16, 64, 64, 16, 4, 2, false>", 144, 0),
        Instance::new("attend<f16, 64, 64, 64, 4, 2, false>", 232, 0),
        Instance::new("attention_combine<bf16>", 64, 0),
        Instance::new("attention_combine<f16>", 64, 0),
    ],
};

/// Keys of a tile.
const KEYS: usize = 64;
/// Tiles of keys and values in shared memory, where they fit.
const MAX_STAGES: usize = 2;

/// The template arguments of one form of attention.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// What is multiplied.
    float: DType,
    /// Columns.
    d: usize,
    dv: usize,
    warps: usize,
    is_latent: bool,
}

/// One kernel of a form.
#[derive(Clone, Debug)]
struct Variant {
    expression: String,
    shared: usize,
    rows: usize,
    threads: u32,
}

impl Form {
    /// The form that serves these widths, if there is one.
    fn of(sizes: &AttentionSizes, dtype: DType, is_latent: bool) -> Option<Self> {
        let AttentionSizes { key_dim, value_dim, .. } = *sizes;
        let form = |warps| Some(Self { float: dtype, d: key_dim, dv: value_dim, warps, is_latent });
        match (dtype, is_latent, key_dim, value_dim) {
            (DType::F32, ..) => None,
            (_, true, 576, 512) => form(8),
            (_, false, 128, 128) | (_, false, 64, 64) => form(4),
            _ => None,
        }
    }

    /// The kernel for blocks of so many rows with the most stages that fit, if any does.
    fn variant(&self, rows: usize, shared_per_block: usize) -> Option<Variant> {
        let stages = (1..=MAX_STAGES).rev().find(|&stages| self.shared(rows, stages) <= shared_per_block)?;
        let Self { float, d, dv, warps, is_latent } = *self;
        let w = float.cpp();
        Some(Variant {
            expression: format!("attend<{w}, {d}, {dv}, {rows}, {warps}, {stages}, {is_latent}>"),
            shared: self.shared(rows, stages),
            rows,
            threads: warps as u32 * 32,
        })
    }

    /// As `Layout` in attention.cu has it, in bytes.
    fn shared(&self, rows: usize, stages: usize) -> usize {
        let stride = |d: usize| if d.is_multiple_of(64) || (d / 8) % 2 == 1 { d } else { d + 8 };
        let queries = match rows {
            FEW_ROWS if self.d > 512 => rows * 256,
            FEW_ROWS => 0,
            _ => rows * stride(self.d),
        };
        let values = if self.is_latent { 0 } else { KEYS * stride(self.dv) };
        let halves = queries + stages * (KEYS * stride(self.d) + values) + rows * 72;
        let key_groups = self.warps / (rows / 16);
        2 * halves + (key_groups + 3) * rows * 4
    }
}

/// As in attention.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AttendShape {
    pub q_stride: i32,
    pub d: i32,
    pub dv: i32,
    pub heads: i32,
    pub rep: i32,
    pub block_heads: i32,
    pub head_blocks: i32,
    pub key_stride: i32,
    pub value_stride: i32,
    pub key_head: i32,
    pub value_head: i32,
    pub block_size: i32,
    pub list: i32,
    pub partials: i32,
    pub maxima: i32,
    pub window: i32,
    pub floats: i32,
    pub scale: f32,
}
// SAFETY: seventeen i32 and a float, as in attention.cu.
unsafe impl Param for AttendShape {}

/// Blocks that a device holds at once.
fn num_blocks(num_sms: u32, value_dim: usize) -> usize {
    num_sms as usize * if value_dim > 128 { 1 } else { 2 }
}

/// f32 numbers of the scratch over pages: sums of earlier ranges, each block its own; partial results; their maxima and sums of weights.
fn scratch_parts(num_sms: u32, sizes: &AttentionSizes, rule: RangeRule) -> [usize; 3] {
    let AttentionSizes { heads, value_dim, max_context, .. } = *sizes;
    if max_context == 0 {
        return [0; 3];
    }
    let warps = if value_dim > 128 { 8 } else { 4 };
    let of_a_thread = MANY_ROWS / 16 * (4 + value_dim.div_ceil(16 * warps) * 8);
    let slots = attention_plan::num_slots(heads, max_context, rule) * heads;
    [num_blocks(num_sms, value_dim) * warps * 32 * of_a_thread, slots * value_dim, slots * 2]
}

pub(crate) fn scratch_len(num_sms: u32, sizes: &AttentionSizes, rule: RangeRule) -> usize {
    scratch_parts(num_sms, sizes, rule).iter().sum()
}

pub(crate) fn new_plan(device: &Device, sizes: &AttentionSizes, rule: RangeRule) -> Plan {
    Plan::new(device, sizes.max_tokens, attention_plan::num_slots(sizes.heads, sizes.max_context, rule))
}

pub(crate) fn plan_bytes(device: &Device, sizes: &AttentionSizes) -> u64 {
    let num_slots = attention_plan::num_slots(sizes.heads, sizes.max_context, RangeRule::default());
    Plan::bytes(device, sizes.max_tokens, num_slots)
}

/// What the lists of units are made for.
fn shape_of(cuda: &Cuda, sizes: &AttentionSizes, rule: RangeRule, [has_few, has_many]: [bool; 2]) -> Shape {
    Shape {
        kv_heads: sizes.kv_heads,
        rep: sizes.heads / sizes.kv_heads,
        has_few,
        has_many,
        many_rows: MANY_ROWS,
        blocks: num_blocks(cuda.info().num_sms, sizes.value_dim),
        num_slots: attention_plan::num_slots(sizes.heads, sizes.max_context, rule),
        rule,
        window: usize::MAX,
    }
}

/// Memory of a call beside its tensors.
pub(crate) struct Memory<'a> {
    pub buffer: &'a Tensor,
    pub plan: &'a mut Plan,
    pub rule: RangeRule,
}

/// The kernels for few and for many rows.
fn variants(cuda: &Cuda, form: &Form) -> [Option<Variant>; 2] {
    let limit = cuda.info().shared_per_block as usize;
    [FEW_ROWS, MANY_ROWS].map(|rows| form.variant(rows, limit))
}

/// Whether there is an instance for heads over pages of a cache of this type, which can pack its result in that type.
pub(crate) fn serves_heads(cuda: &Cuda, sizes: &AttentionSizes, dtype: DType) -> bool {
    let form = Form::of(sizes, dtype, false);
    form.is_some_and(|form| variants(cuda, &form).iter().any(Option::is_some))
}

/// False if no instance serves this problem; nothing was done then.
pub(crate) fn run(cuda: &Cuda, problem: &Problem, items: &Items, pages: &Pages, memory: Memory) -> bool {
    let Some(form) = Form::of(problem.sizes, problem.dtype, problem.is_latent) else { return false };
    let [few, many] = variants(cuda, &form);
    if few.is_none() && many.is_none() {
        return false;
    }
    let window = problem.softmax.window.unwrap_or(usize::MAX);
    let shape =
        Shape { window, ..shape_of(cuda, problem.sizes, memory.rule, [few.is_some(), many.is_some()]) };
    let counts = memory.plan.update(&shape, items);
    let launch = Launch { cuda, problem, pages, shape, buffer: memory.buffer.pointer(), plan: memory.plan };
    launch.run([few, many], &counts);
    true
}

struct Launch<'a> {
    cuda: &'a Cuda,
    problem: &'a Problem<'a>,
    pages: &'a Pages,
    shape: Shape,
    buffer: DevicePtr,
    plan: &'a Plan,
}

impl Launch<'_> {
    fn run(&self, [few, many]: [Option<Variant>; 2], counts: &Counts) {
        for (list, variant, count) in [(0, few, counts.few), (1, many, counts.many)] {
            if let Some(variant) = variant
                && count > 0
            {
                self.attend(list, &variant, count);
            }
        }
        // What a graph replays may be cut where this batch is not.
        if counts.splits > 0 || (self.cuda.is_capturing() && self.shape.num_slots > 0) {
            self.combine();
        }
    }

    fn attend(&self, list: usize, variant: &Variant, count: usize) {
        let Problem { q, keys, values, out, packed, .. } = *self.problem;
        let shape = self.attend_shape(list, variant.rows);
        let tables = self.pages.block_tables.pointer;
        let args = Args::new().pointer(q).pointer(keys.start).pointer(values.start).pointer(tables);
        let args = args.pointer(self.plan.pointer()).pointer(sinks_of(&self.problem.softmax));
        let args = args.value(shape).pointer(self.buffer).pointer(out).pointer(packed.pointer());
        let units = count * self.shape.kv_heads * shape.head_blocks as usize;
        // The number of units of a graph's batch may change from replay to replay.
        let blocks = if self.cuda.is_capturing() { self.shape.blocks } else { self.shape.blocks.min(units) };
        let grid = Grid {
            blocks: [blocks as u32, 1, 1],
            threads: [variant.threads, 1, 1],
            shared: variant.shared as u32,
        };
        // SAFETY: `ops` checked q, keys, values and out against the sizes and that every position has a slot; the lists were made
        // from the same arrays, for this scratch; the shared memory is what the instance lays out.
        unsafe { self.cuda.launch(&KERNEL, &variant.expression, grid, args) };
    }

    fn combine(&self) {
        let args = Args::new()
            .pointer(self.plan.pointer())
            .pointer(self.buffer)
            .pointer(sinks_of(&self.problem.softmax))
            .value(self.attend_shape(0, FEW_ROWS));
        let args = args.pointer(self.problem.out).pointer(self.problem.packed.pointer());
        let blocks = 4 * self.cuda.info().num_sms as usize;
        let expression = format!("attention_combine<{}>", self.problem.dtype.cpp());
        // SAFETY: the lists name slots of this scratch, which the launches before have written, and tokens of out and of what is packed.
        unsafe { self.cuda.launch(&KERNEL, &expression, grid(blocks, 128), args) };
    }

    fn attend_shape(&self, list: usize, rows: usize) -> AttendShape {
        let Problem { q_stride, keys, values, sizes, softmax, .. } = *self.problem;
        let rep = self.shape.rep;
        let [block_heads, head_blocks] = attention_plan::head_blocks(rep, rows);
        let [totals, partials, _] = scratch_parts(self.cuda.info().num_sms, sizes, self.shape.rule);
        let int = |n: usize| i32::try_from(n).expect("sizes of attention fit 31 bits");
        AttendShape {
            q_stride: int(q_stride),
            d: int(sizes.key_dim),
            dv: int(sizes.value_dim),
            heads: int(sizes.heads),
            rep: int(rep),
            block_heads: int(block_heads),
            head_blocks: int(head_blocks),
            key_stride: int(keys.slot),
            value_stride: int(values.slot),
            key_head: int(keys.head),
            value_head: int(values.head),
            block_size: int(self.pages.block_size),
            list: int(list),
            partials: int(totals),
            maxima: int(totals + partials),
            window: window_of(&softmax),
            floats: i32::from(self.problem.packed.leaves_floats()),
            scale: softmax.scale * std::f32::consts::LOG2_E,
        }
    }
}
