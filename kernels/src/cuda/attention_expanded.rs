//! Launches of attention_expanded.cu: pass by pass, keys and values are made of cached latents, and attended to. On tensor cores where it
//! has an instance of these widths, or else by the kernels that take any, with keys and values in f32.

use super::Cuda;
use super::attention_expanded_plan::{self as plan, MANY_TOKENS, Pass, Plan, RANGE, Rule, TILE};
use super::attention_tiles::AttendShape;
use super::compile::Source;
use super::driver::{Args, DevicePtr, Grid, Param};
use super::launch::{Instance, Kernel, grid};
use super::linear::pairs_of;
use super::linear::{self, DeviceSlice, Strides};
use super::tokens::PackedResult;
use crate::index::OnDevice;
use crate::operands::attention::Ragged;
use crate::operands::latents::{ExpandedSizes, Latents};
use crate::operands::linear::Activation;
use crate::{DType, Device, MatrixBatch, Tensor, WeightType};

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "attention_expanded.cu", text: include_str!("attention_expanded.cu") },
    instances: &[
        Instance::new("gather<bf16, bf16>", 40, 0),
        Instance::new("gather<f16, f16>", 40, 0),
        Instance::new("gather<float, float>", 40, 0),
        Instance::new("gather<bf16, float>", 40, 0),
        Instance::new("gather<f16, float>", 40, 0),
        Instance::new("expand<bf16, bf16>", 136, 34816),
        Instance::new("expand<bf16, q8>", 168, 23552),
        Instance::new("expand<f16, f16>", 136, 34816),
        Instance::new("expand<f16, q8>", 168, 23552),
        Instance::new("attend_expanded<bf16, 192, 128, 64, 4, 2>", 224, 0),
        Instance::new("attend_expanded<bf16, 192, 128, 128, 8, 2>", 224, 0),
        Instance::new("attend_expanded<f16, 192, 128, 64, 4, 2>", 224, 0),
        Instance::new("attend_expanded<f16, 192, 128, 128, 8, 2>", 224, 0),
        Instance::new("attend_expanded_rows", 96, 1024),
    ],
};

const GATHER_THREADS: u32 = 128;
/// Of `attend_expanded_rows`: rows of a block, and the widest values.
const ROW_WARPS: usize = 4;
const MAX_VALUES: usize = 512;
/// Of `expand`: rows of weights of a block.
const EXPAND_COLUMNS: usize = 128;
/// Widths that tensor cores have instances for.
const NOPE: usize = 128;
const ROTATED: usize = 64;
const VALUES: usize = 128;

/// Which kernels serve a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Keys and values are rounded to the type of the cache.
    Tiles(DType),
    /// Keys and values are f32.
    Rows,
}

impl Form {
    fn of(device: &Device, sizes: &ExpandedSizes) -> Self {
        let Device::Cuda(cuda) = device else { panic!("not a GPU") };
        let ExpandedSizes { nope, rotated, value_dim, cache, .. } = *sizes;
        let fits = shared(MANY_TOKENS) <= cuda.info().shared_per_block as usize;
        match (cache, [nope, rotated, value_dim]) {
            (DType::BF16 | DType::F16, [NOPE, ROTATED, VALUES]) if fits => Self::Tiles(cache),
            _ => Self::Rows,
        }
    }

    /// Of keys and values in the workspace.
    fn dtype(self) -> DType {
        match self {
            Self::Tiles(dtype) => dtype,
            Self::Rows => DType::F32,
        }
    }
}

/// Dynamic shared memory of `attend_expanded` for blocks of so many tokens, as `Layout` in attention.cuh has it, in bytes.
fn shared(tokens: usize) -> usize {
    const STAGES: usize = 2;
    const KEYS: usize = 64;
    let (d, warps) = (NOPE + ROTATED, tokens / 16);
    let halves = tokens * d + STAGES * KEYS * (d + VALUES) + tokens * 72;
    let key_groups = warps / (tokens / 16);
    2 * halves + (key_groups + 3) * tokens * 4
}

/// What a scratch has on a GPU: the workspace is in its buffer.
#[derive(Debug)]
pub(crate) struct Workspace {
    form: Form,
    rule: Rule,
    plan: Plan,
}

/// f32 numbers of the buffer: keys `[H, rows, N + P]`, values `[H, rows, V]`, for `Form::Rows` latents `[rows, R]`, and for each row and head a
/// maximum and a sum of weights.
fn parts(form: Form, sizes: &ExpandedSizes, rows: usize) -> [usize; 4] {
    let ExpandedSizes { heads, rank, nope, rotated, value_dim, max_tokens, .. } = *sizes;
    let per_number = 4 / form.dtype().size();
    let len = |width: usize| (heads * rows * width).div_ceil(per_number).next_multiple_of(4);
    let latents = if form == Form::Rows { rows * rank } else { 0 };
    [len(nope + rotated), len(value_dim), latents.next_multiple_of(4), 2 * max_tokens * heads]
}

impl Workspace {
    /// `range`: keys of a range, `RANGE` but for tests.
    pub fn new(device: &Device, sizes: &ExpandedSizes, range: usize) -> Self {
        assert!(range > 0 && range.is_multiple_of(MANY_TOKENS), "expanded_attention: ranges of {range}");
        let form = Form::of(device, sizes);
        let rule = Rule { range, rows: range, has_many: form != Form::Rows };
        Self { form, rule, plan: Plan::new(device, sizes.max_tokens, sizes.max_context, range) }
    }

    /// What a result can be packed as for a linear layer.
    pub fn packs_as(&self) -> Option<DType> {
        match self.form {
            Form::Tiles(dtype) => Some(dtype),
            Form::Rows => None,
        }
    }

    /// Length of the buffer beside it.
    pub fn buffer_len(device: &Device, sizes: &ExpandedSizes, range: usize) -> usize {
        parts(Form::of(device, sizes), sizes, range).iter().sum()
    }

    /// What `new` allocates.
    pub fn bytes(device: &Device, sizes: &ExpandedSizes) -> u64 {
        Plan::bytes(device, sizes.max_tokens, sizes.max_context, RANGE)
    }
}

/// As in attention_expanded.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExpandShape {
    block_size: i32,
    row_len: i32,
    rank: i32,
    rotated: i32,
    segments: i32,
    num_segments: i32,
    heads: i32,
    key_row: i32,
    key_head: i32,
    n: i32,
    panels: i32,
    units: i32,
    out_row: i32,
    out_head: i32,
    pairs: i32,
}
// SAFETY: fifteen i32, as in attention_expanded.cu.
unsafe impl Param for ExpandShape {}

/// What is attended with. Checked in `ops`.
pub(crate) struct Call<'a> {
    pub q: &'a Tensor,
    pub latents: Latents<'a>,
    pub ragged: &'a Ragged<'a>,
    pub scale: f32,
    pub sizes: &'a ExpandedSizes,
    /// `Workspace::buffer_len` numbers.
    pub buffer: &'a Tensor,
    /// In the type that `Workspace::packs_as`.
    pub packed: PackedResult<'a>,
}

pub(crate) fn run(cuda: &Cuda, call: &Call, workspace: &mut Workspace, out: &mut Tensor) {
    let ExpandedSizes { value_dim, max_context, cache, .. } = *call.sizes;
    let Workspace { form, rule, plan } = workspace;
    assert_eq!([call.q.dtype(), out.dtype()], [DType::F32; 2], "expanded_attention: types");
    assert_eq!(call.latents.cache.rows.dtype(), cache, "expanded_attention: type of the cache");
    assert!(value_dim <= MAX_VALUES, "expanded_attention: values of {value_dim} exceed {MAX_VALUES}");
    call.packed.check("expanded_attention", [out.rows(), out.row_len()]);
    assert!(
        call.packed.room.is_none() || *form != Form::Rows,
        "expanded_attention: rows in f32 are not packed"
    );
    let items = super::attention::items_of(call.ragged);
    let longest = (0..call.ragged.num_items())
        .filter(|&item| items.is_selected(item))
        .map(|item| call.ragged.context_lens.as_slice()[item] as usize + call.ragged.tokens(item).len());
    assert!(longest.max().unwrap_or(0) <= max_context, "expanded_attention: longer than the scratch is for");
    plan.update(rule, &items);
    let [keys, values, latents, _] = parts(*form, call.sizes, rule.rows);
    let place = |numbers: usize| call.buffer.pointer().offset(4 * numbers as u64);
    let launch = Launch {
        cuda,
        call,
        form: *form,
        rows: rule.rows,
        plan,
        tables: &call.ragged.block_tables.on_device(out.device()),
        keys: place(0),
        values: place(keys),
        latents: place(keys + values),
        stats: place(keys + values + latents),
        out: out.pointer(),
    };
    for pass in plan.passes() {
        launch.expand(pass);
        launch.attend(pass);
    }
}

struct Launch<'a> {
    cuda: &'a Cuda,
    call: &'a Call<'a>,
    form: Form,
    /// Of the workspace.
    rows: usize,
    plan: &'a Plan,
    tables: &'a OnDevice,
    keys: DevicePtr,
    values: DevicePtr,
    latents: DevicePtr,
    stats: DevicePtr,
    out: DevicePtr,
}

impl Launch<'_> {
    fn expand(&self, pass: &Pass) {
        self.gather(pass);
        let Latents { key_up, value_up, .. } = self.call.latents;
        let ExpandedSizes { nope, rotated, value_dim, .. } = *self.call.sizes;
        for (weights, start, row) in [(key_up, self.keys, nope + rotated), (value_up, self.values, value_dim)]
        {
            let out = DeviceSlice { start, dtype: self.form.dtype() };
            match self.form {
                Form::Tiles(_) => self.expand_tiles(pass, weights, out, row),
                Form::Rows => self.expand_rows(pass, weights, out, row),
            }
        }
    }

    fn gather(&self, pass: &Pass) {
        let cache = self.call.latents.cache.rows;
        let latents = if self.form == Form::Rows { self.latents } else { DevicePtr::NULL };
        let expression = format!("gather<{}, {}>", cache.dtype().cpp(), self.form.dtype().cpp());
        let args = self.args(cache).value(self.shape(pass, None, 0)).pointer(self.keys).pointer(latents);
        // SAFETY: the lists name blocks of the tables, which `ops` checked against the cache, and rows of the workspace.
        unsafe { self.cuda.launch(&KERNEL, &expression, grid(pass.rows, GATHER_THREADS), args) };
    }

    fn expand_tiles(&self, pass: &Pass, weights: &MatrixBatch, out: DeviceSlice, row: usize) {
        let (cache, w) = (self.call.latents.cache.rows, weights.stored_as());
        assert!(
            w == WeightType::Int8 || w.float() == Some(cache.dtype()),
            "expanded_attention: weights in {w} beside a cache in {}",
            cache.dtype()
        );
        let expression = format!("expand<{}, {}>", cache.dtype().cpp(), w.cpp());
        let args = self.args(cache).pointer(weights.pointer());
        let args = args.value(self.shape(pass, Some(weights), row)).pointer(out.start);
        let blocks =
            [(weights.panels_per_member() * 32).div_ceil(EXPAND_COLUMNS), pass.rows / TILE, weights.count()];
        let grid = Grid { blocks: blocks.map(|n| n as u32), threads: [256, 1, 1], shared: 0 };
        // SAFETY: as for `gather`; the weights have `panels` panels of 32 rows and `units` units along K for each head.
        unsafe { self.cuda.launch(&KERNEL, &expression, grid, args) };
    }

    fn expand_rows(&self, pass: &Pass, weights: &MatrixBatch, out: DeviceSlice, row: usize) {
        let rank = self.call.sizes.rank;
        let job = linear::Job {
            x: DeviceSlice { start: self.latents, dtype: DType::F32 },
            packed: None,
            packed_out: None,
            heads_out: None,
            weights,
            bias: None,
            act: Activation::None,
            adds: false,
            out,
            rows: pass.rows,
            // All heads read the same latents.
            strides: Strides { x: rank, out: row, x_head: 0, out_head: self.rows * row },
        };
        linear::run(self.cuda, &job);
    }

    fn args(&self, cache: &Tensor) -> Args {
        Args::new().pointer(cache.pointer()).pointer(self.tables.pointer).pointer(self.plan.pointer())
    }

    fn shape(&self, pass: &Pass, weights: Option<&MatrixBatch>, out_row: usize) -> ExpandShape {
        let ExpandedSizes { heads, rank, nope, rotated, .. } = *self.call.sizes;
        let cache = self.call.latents.cache.rows;
        let [n, panels, units] =
            weights.map_or([0; 3], |w| [w.n(), w.panels_per_member(), w.units()]).map(int);
        ExpandShape {
            block_size: int(self.call.ragged.block_size),
            row_len: int(cache.row_len()),
            rank: int(rank),
            rotated: int(rotated),
            segments: int(self.plan.first_segment() + plan::SEGMENT * pass.segments.start),
            num_segments: int(pass.segments.len()),
            heads: int(heads),
            key_row: int(nope + rotated),
            key_head: int(self.rows * (nope + rotated)),
            n,
            panels,
            units,
            out_row: int(out_row),
            out_head: int(self.rows * out_row),
            pairs: pairs_of(cache.row_len()),
        }
    }

    fn attend(&self, pass: &Pass) {
        let heads = self.call.sizes.heads;
        for (units, tokens) in [(&pass.few, plan::FEW_TOKENS), (&pass.many, MANY_TOKENS)] {
            if units.is_empty() {
                continue;
            }
            let args = Args::new().pointer(self.call.q.pointer()).pointer(self.keys).pointer(self.values);
            let args = args.pointer(self.plan.pointer());
            let shape = self.attend_shape(units.start);
            let (expression, args, grid) = match self.form {
                Form::Tiles(dtype) => {
                    let warps = tokens / 16;
                    let expression =
                        format!("attend_expanded<{}, 192, 128, {tokens}, {warps}, 2>", dtype.cpp());
                    let grid = Grid {
                        shared: shared(tokens) as u32,
                        ..grid(units.len() * heads, warps as u32 * 32)
                    };
                    let args =
                        args.value(int(units.len())).value(shape).pointer(self.stats).pointer(self.out);
                    (expression, args.pointer(self.call.packed.pointer()), grid)
                }
                Form::Rows => {
                    let blocks = [units.len() as u32, (tokens * heads).div_ceil(ROW_WARPS) as u32, 1];
                    let grid = Grid { blocks, threads: [ROW_WARPS as u32 * 32, 1, 1], shared: 0 };
                    let args = args.value(shape).pointer(self.stats).pointer(self.out);
                    ("attend_expanded_rows".to_string(), args, grid)
                }
            };
            // SAFETY: `ops` checked q and out against the sizes; units name tokens of both, and rows of the workspace that this pass has
            // filled; the shared memory is what the instance lays out.
            unsafe { self.cuda.launch(&KERNEL, &expression, grid, args) };
        }
    }

    fn attend_shape(&self, first_unit: usize) -> AttendShape {
        let ExpandedSizes { heads, nope, rotated, value_dim, .. } = *self.call.sizes;
        let d = nope + rotated;
        AttendShape {
            q_stride: int(heads * d),
            d: int(d),
            dv: int(value_dim),
            heads: int(heads),
            rep: 1,
            block_heads: 1,
            head_blocks: 1,
            key_stride: int(d),
            value_stride: int(value_dim),
            key_head: int(self.rows * d),
            value_head: int(self.rows * value_dim),
            block_size: 0,
            list: int(first_unit),
            partials: 0,
            maxima: 0,
            window: i32::MAX,
            floats: i32::from(self.call.packed.leaves_floats()),
            scale: self.call.scale * std::f32::consts::LOG2_E,
        }
    }
}

fn int(n: usize) -> i32 {
    i32::try_from(n).expect("sizes of attention fit 31 bits")
}
