//! Linear layers: rows of activations times packed panels.
//!
//! A task is some panels times some rows. It goes through K in blocks, so that a block of a panel stays in the first cache
//! while all rows of the task pass by, and the rows' blocks stay in the second while all panels do.

use super::SharedMut;
use super::grouped::GroupSums;
use super::simd::{Simd, math, simd_entry};
use super::tile::{self, MAX_ROWS, PackedRows, PanelFormat, PanelSums, Rows, Sums, by_weight_type};
use crate::MatrixBatch;
use crate::device::Cpu;
use crate::matrix::PANEL;
use crate::ops::Activation;
use std::ops::Range;

/// Weights of one task, where there are enough.
const TASK_BYTES: usize = 96 << 10;

/// `out[h][t] = act(x[h][t] · w[h]ᵀ + bias)` for every member h of the weights.
pub(crate) struct Gemm<'a> {
    pub x: &'a [f32],
    pub x_stride: usize,
    pub rows: usize,
    pub weights: &'a MatrixBatch,
    pub bias: Option<&'a [f32]>,
    pub act: Activation,
    pub out: SharedMut<f32>,
    pub out_stride: usize,
    /// From one member to the next in x and out.
    pub head_stride: [usize; 2],
}

/// What one task computes: panels (counted over all members) of one member, and rows.
pub(crate) struct Part {
    pub panels: Range<usize>,
    /// At most `MAX_ROWS`.
    pub rows: Range<usize>,
}

pub(crate) fn run(cpu: &Cpu, job: &Gemm) {
    let panels = job.weights.panels_per_member();
    let row_blocks = tile::Blocks::new(job.rows, MAX_ROWS);
    if row_blocks.count == 0 {
        return;
    }
    let group = panels_per_task(cpu, job);
    let groups = panels.div_ceil(group);
    let per_member = groups * row_blocks.count;
    let rows_each = job.rows.div_ceil(row_blocks.count);
    cpu.pool.run(job.weights.count() * per_member, &|task, _| {
        let (member, rest) = (task / per_member, task % per_member);
        // Row blocks of one group follow each other: its weights are still in the shared cache.
        let (group_index, block) = (rest / row_blocks.count, rest % row_blocks.count);
        let first = group_index * group;
        let part = Part {
            panels: member * panels + first..member * panels + panels.min(first + group),
            rows: (block * rows_each).min(job.rows)..((block + 1) * rows_each).min(job.rows),
        };
        run_part(cpu.isa, job, member, &part);
    });
}

fn panels_per_task(cpu: &Cpu, job: &Gemm) -> usize {
    let total = job.weights.panels_per_member() * job.weights.count();
    let shared_out = total.div_ceil(4 * cpu.pool.num_workers());
    panels_worth_a_task(job.weights, job.rows).min(shared_out)
}

/// Panels that make a task: enough bytes when few rows wait for memory, enough uses of the packed rows when there are many.
pub(crate) fn panels_worth_a_task(weights: &MatrixBatch, num_rows: usize) -> usize {
    let by_size = TASK_BYTES / weights.panel_bytes();
    if num_rows <= tile::UNPACKED_ROWS { by_size.max(1) } else { by_size.max(8) }
}

simd_entry! {
    /// One task; rows and panels that no other task has.
    pub(crate) fn run_part(job: &Gemm<'_>, member: usize, part: &Part) = run_part_body
}

#[inline(always)]
fn run_part_body<S: Simd>(s: S, job: &Gemm<'_>, member: usize, part: &Part) {
    by_weight_type!(job.weights.stored_as(), run_part_of::<S>(s, job, member, part));
}

#[inline(always)]
fn run_part_of<S: Simd, W: PanelFormat>(s: S, job: &Gemm<'_>, member: usize, part: &Part) {
    let k = job.weights.k();
    let num_rows = part.rows.len();
    let x_start = member * job.head_stride[0] + part.rows.start * job.x_stride;
    let x = &job.x[x_start..];
    assert!(num_rows == 0 || (num_rows - 1) * job.x_stride + k <= x.len(), "rows of x");
    let panels = job.weights.as_bytes();
    assert!(part.panels.end * job.weights.panel_bytes() <= panels.len(), "panels");
    let (mut packed, mut edge, mut x_sums) = (PackedRows::new(), PanelSums::new(), GroupSums::new());
    let k_block = tile::k_block(num_rows);
    for k_start in (0..k).step_by(k_block) {
        let k_len = k_block.min(k - k_start);
        let x = Rows { start: x[k_start..].as_ptr(), row: job.x_stride, step: 1 };
        // SAFETY: rows of x were checked above.
        let x = unsafe { packed.pack(x, num_rows, k_len) };
        let x_sums = if W::GROUP_SUMS {
            // SAFETY: as above.
            unsafe { x_sums.fill(s, x, num_rows, k_len) }
        } else {
            std::ptr::null()
        };
        for panel in part.panels.clone() {
            let to = Destination::of(job, member, panel, part);
            let (start, row) =
                if to.columns < PANEL { (edge.as_mut_ptr(), PANEL) } else { (to.start, job.out_stride) };
            let lines = panels[panel * job.weights.panel_bytes() + W::offset(k_start)..].as_ptr();
            let sums = Sums { start, row, hi: 0, fresh: k_start == 0 };
            // SAFETY: k_start + k_len is within a panel and a row, both checked above; sums are this task's own columns
            // of `out`, or `edge`.
            unsafe { W::panel(s, num_rows, lines, x, x_sums, k_len, sums) };
        }
    }
    for panel in part.panels.clone() {
        let to = Destination::of(job, member, panel, part);
        for row in 0..num_rows {
            // SAFETY: this task's own rows and columns.
            let out = unsafe { job.out.slice(to.offset + row * job.out_stride, to.columns) };
            if to.columns < PANEL {
                // SAFETY: the last panel of a member is the only one that goes here, and was written above.
                out.copy_from_slice(&unsafe { edge.row(row) }[..to.columns]);
            }
            if job.bias.is_none() && job.act == Activation::None {
                continue;
            }
            finish(s, out, job.bias.map(|bias| &bias[to.first_column..]), job.act);
        }
    }
}

/// The columns of `out` that belong to a panel.
struct Destination {
    offset: usize,
    start: *mut f32,
    first_column: usize,
    columns: usize,
}

impl Destination {
    fn of(job: &Gemm, member: usize, panel: usize, part: &Part) -> Self {
        let first_column = panel % job.weights.panels_per_member() * PANEL;
        let columns = (job.weights.n() - first_column).min(PANEL);
        let offset = member * job.head_stride[1] + part.rows.start * job.out_stride + first_column;
        assert!((part.rows.len() - 1) * job.out_stride + columns <= job.out.len() - offset, "rows of out");
        Self { offset, start: job.out.at(offset), first_column, columns }
    }
}

#[inline(always)]
fn finish<S: Simd>(s: S, out: &mut [f32], bias: Option<&[f32]>, act: Activation) {
    for i in (0..out.len()).step_by(S::LANES) {
        let mut v = s.load_slice(&out[i..]);
        if let Some(bias) = bias {
            v = s.add(v, s.load_slice(&bias[i..out.len()]));
        }
        s.store_slice(&mut out[i..], math::activate(s, act, v));
    }
}
