//! Linear layers: rows of activations times packed panels.
//!
//! A task is some panels times some rows. It goes through K in blocks, so that a block of a panel stays in the first cache
//! while all rows of the task pass by, and the rows' blocks stay in the second while all panels do. Sums lie side by side between
//! blocks: in the result, whose rows are often whole pages apart, those of a panel would fight for a few places of the first cache.

use super::ahead::Key;
use super::by_type::by_weight_type;
use super::grouped::GroupSums;
use super::pool::Phase;
use super::processor::Cpu;
use super::rounded::{RoundRows, Rounding, round_rows};
use super::shared::{Shared, SharedMut};
use super::simd::{Isa, Simd, math, simd_entry};
use super::tile::{self, Job, MAX_ROWS, Numbers, PackedRows, PanelFormat, Partial, Rows, Sums};
use crate::operands::linear::Activation;
use crate::panel::PANEL;
use crate::{ActivationType, MatrixBatch};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Weights of one task, where there are enough.
const TASK_BYTES: usize = 96 << 10;

/// Room for the sums of a task's panels at a time, with few rows and with many; pages of a stack are touched whether they are used or not.
const FEW_SUMS: usize = 8 * tile::ONE_TILE * PANEL;
const MANY_SUMS: usize = 8 * MAX_ROWS * PANEL;

/// `out[h][t] = act(x[h][t] · w[h]ᵀ + bias)` for every member h of the weights.
#[derive(Clone, Copy)]
pub(crate) struct Gemm<'a> {
    pub x: Input<'a>,
    pub rows: usize,
    pub weights: &'a MatrixBatch,
    pub bias: Option<&'a [f32]>,
    pub act: Activation,
    pub out: SharedMut<f32>,
    pub out_stride: usize,
    /// From one member to the next in out.
    pub out_member: usize,
}

/// Rows of activations.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    Floats {
        x: Shared<'a, f32>,
        /// From one row to the next.
        row: usize,
        /// From one member to the next.
        member: usize,
    },
    /// As `rounded` made them: the rows of one member, then those of the next.
    Rounded { words: Shared<'a, u32>, rounding: Rounding, member: usize },
    /// Rows of floats of each member, laid out as `Floats`, which every task rounds for itself.
    ToRound { x: Shared<'a, f32>, row: usize, member: usize, rounding: Rounding },
}

/// Rows of a member that its tasks round for themselves however many tasks there are: where there are few, handing them out costs more.
const OWN_ROWS: usize = 8;
/// Tasks of the same rows and member that may round them each for itself.
const OWN_TASKS: usize = 2;

impl Input<'_> {
    pub fn rounded_to(&self) -> ActivationType {
        match self {
            Self::Floats { .. } => ActivationType::F32,
            Self::Rounded { rounding, .. } | Self::ToRound { rounding, .. } => rounding.rounded_to,
        }
    }
}

/// Some rows of one member.
#[derive(Clone, Copy)]
pub(crate) enum InputRows<'a> {
    Floats { x: &'a [f32], row: usize },
    Rounded { words: &'a [u32], rounding: Rounding },
}

impl<'a> InputRows<'a> {
    pub fn of(input: &Input<'a>, member: usize, first: usize) -> Self {
        match *input {
            Input::Floats { x, row, member: stride } => {
                Self::Floats { x: x.from(member * stride + first * row), row }
            }
            Input::Rounded { words, rounding, member: stride } => {
                Self::Rounded { words: words.from(member * stride + first * rounding.row()), rounding }
            }
            Input::ToRound { .. } => unreachable!("a task rounds its rows first"),
        }
    }

    /// That all terms of so many rows can be read.
    pub fn check(&self, num_rows: usize, k: usize) {
        match *self {
            Self::Floats { x, row } => {
                assert!(num_rows == 0 || (num_rows - 1) * row + k <= x.len(), "rows of x");
            }
            Self::Rounded { words, rounding } => {
                assert!(num_rows * rounding.row() <= words.len() && rounding.k() == k, "rounded rows of x");
            }
        }
    }
}

/// What a task makes of rows of floats.
pub(crate) struct Room {
    packed: PackedRows,
    x_sums: GroupSums,
}

impl Room {
    #[inline(always)]
    pub fn new() -> Self {
        Self { packed: PackedRows::new(), x_sums: GroupSums::new() }
    }

    /// Terms `k_start ..` of rows as a panel of W wants them, and what goes with their groups.
    ///
    /// # Safety
    /// `x` was checked for `num_rows`, at most `MAX_ROWS`, and `k_len` is at most `tile::k_block_of::<W>(num_rows)`.
    #[inline(always)]
    pub unsafe fn block<S: Simd, W: PanelFormat>(
        &mut self,
        s: S,
        x: InputRows<'_>,
        num_rows: usize,
        [k_start, k_len]: [usize; 2],
    ) -> (Rows, Numbers) {
        // Known when it is compiled: formats of rounded rows have no such room on the stack.
        match x {
            InputRows::Floats { x, row } if W::ROUNDED_TO == ActivationType::F32 => {
                let x = Rows { start: x[k_start..].as_ptr(), row, step: 1 };
                // SAFETY: the caller's promise.
                let x = unsafe { self.packed.pack(x, num_rows, k_len) };
                let numbers = match W::GROUP_SUMS {
                    // SAFETY: as above.
                    true => unsafe { self.x_sums.fill(s, x, num_rows, k_len) },
                    false => Numbers { start: std::ptr::null(), row: 0 },
                };
                (x, numbers)
            }
            InputRows::Rounded { words, rounding } => {
                let (start, row) = (words.as_ptr().cast::<f32>(), rounding.row());
                let [first, headers] =
                    [rounding.word_of(k_start), rounding.header_of(k_start)].map(|i| start.wrapping_add(i));
                (Rows { start: first, row, step: 1 }, Numbers { start: headers, row })
            }
            InputRows::Floats { .. } => unreachable!("rows of floats for a format of rounded ones"),
        }
    }
}

/// What one task computes: panels (counted over all members) of one member, and rows.
pub(crate) struct Part {
    pub panels: Range<usize>,
    /// At most `MAX_ROWS`.
    pub rows: Range<usize>,
}

/// Rows are rounded where the device does that beside such weights, as many at a time as its scratch holds.
pub(crate) fn run(cpu: &Cpu, job: &Gemm) {
    run_together(cpu, &[*job]);
}

/// Products of the same rows with several weights, each with the bits that it has alone: rows are rounded once, and there is one region
/// for all tasks. The weights are of one type, and as wide and as many as each other.
pub(crate) fn run_together<const N: usize>(cpu: &Cpu, jobs: &[Gemm; N]) {
    let [first, ..] = jobs.as_slice() else { return };
    let (weights, num_rows) = (first.weights, first.rows);
    for job in jobs {
        let Gemm { weights: other, rows, .. } = job;
        assert_eq!(other.stored_as(), weights.stored_as(), "weights that share rounded rows");
        assert_eq!(
            (other.k(), other.count(), *rows),
            (weights.k(), weights.count(), num_rows),
            "shared rows"
        );
    }
    let (Input::Floats { x, row, member }, Some(rounding)) = (first.x, Rounding::beside(cpu, weights)) else {
        return run_rows(cpu, jobs, &mut []);
    };
    if num_rows == 0 {
        return;
    }
    let mut words = cpu.scratch();
    let words = &mut words[..];
    if weights.count() > 1 && are_own(cpu, jobs, rounding.row(), words.len()) {
        let x = Input::ToRound { x, row, member, rounding };
        return run_rows(cpu, &jobs.map(|job| Gemm { x, ..job }), words);
    }
    let per_row = weights.count() * rounding.row();
    let at_once = words.len() / per_row;
    assert!(at_once > 0, "a row of {} terms exceeds the scratch", weights.k());
    let blocks = tile::Blocks::new(num_rows, at_once);
    let mut first = 0;
    for block in 0..blocks.count {
        let rows = blocks.len(block);
        let to = &mut words[..rows * per_row];
        let from = Floats { x: x.from(first * row), row, member };
        let round = Round::new(cpu, &rounding, &from, [weights.count(), rows], to);
        // SAFETY: products begin when all rows are rounded.
        let words = unsafe { round.to.reader() };
        let x = Input::Rounded { words, rounding, member: rows * rounding.row() };
        let parts = jobs.map(|job| Gemm { x, rows, out: job.out.from(first * job.out_stride), ..job });
        let products = Products::of(cpu, &parts);
        let mut num_blocks = round.num_blocks();
        if num_blocks == 1 {
            // Others need not come for it.
            round.block(cpu.isa, 0);
            num_blocks = 0;
        }
        cpu.pool.run_phases(&[num_blocks.into(), products.phase()], &|phase, index, _| match phase {
            0 => round.block(cpu.isa, index),
            _ => products.task(cpu.isa, index, &mut []),
        });
        first += rows;
    }
}

/// Whether tasks round their rows for themselves: if few do so with the same rows, and each worker has room for those of a task.
fn are_own<const N: usize>(cpu: &Cpu, jobs: &[Gemm; N], row: usize, num_words: usize) -> bool {
    let most = |of: fn(&Tasks, &Gemm) -> usize| jobs.iter().map(|job| of(&Tasks::of(cpu, job), job)).max();
    let num_rows = most(|tasks, job| job.rows.div_ceil(tasks.row_blocks)).unwrap_or(0);
    let num_tasks = most(|tasks, job| job.weights.panels_per_member().div_ceil(tasks.group)).unwrap_or(0);
    num_rows * row <= num_words / cpu.pool.num_workers() && (num_rows <= OWN_ROWS || num_tasks <= OWN_TASKS)
}

/// Some panels of a product with one member, given in order, each with the bits that it has in the whole; the rest of `out` stays as it is.
/// The rows fit the scratch at once.
pub(crate) fn run_panels(cpu: &Cpu, job: &Gemm, panels: &[u32]) {
    assert_eq!(job.weights.count(), 1, "run_panels: members");
    let (Input::Floats { x, row, member }, Some(rounding)) = (job.x, Rounding::beside(cpu, job.weights))
    else {
        return run_listed(cpu, job, panels);
    };
    let mut words = cpu.scratch();
    let words = &mut words[..job.rows * rounding.row()];
    let from = Floats { x: x.from(0), row, member };
    let round = Round::new(cpu, &rounding, &from, [1, job.rows], words);
    cpu.pool.run(round.num_blocks(), &|index, _| round.block(cpu.isa, index));
    let x = Input::Rounded { words: (&*words).into(), rounding, member: 0 };
    run_listed(cpu, &Gemm { x, ..*job }, panels);
}

fn run_listed(cpu: &Cpu, job: &Gemm, panels: &[u32]) {
    let blocks = tile::Blocks::new(job.rows, MAX_ROWS).count;
    let rows_each = job.rows.div_ceil(blocks);
    cpu.pool.run(panels.len() * blocks, &|index, _| {
        let (panel, block) = (panels[index / blocks] as usize, index % blocks);
        assert!(panel < job.weights.panels_per_member(), "run_panels: panel {panel}");
        let rows = (block * rows_each).min(job.rows)..((block + 1) * rows_each).min(job.rows);
        run_part(cpu.isa, job, 0, &Part { panels: panel..panel + 1, rows }, &mut []);
    });
}

struct Floats<'a> {
    x: &'a [f32],
    row: usize,
    member: usize,
}

/// Every row of every member, to be rounded.
struct Round<'a> {
    rounding: &'a Rounding,
    from: &'a Floats<'a>,
    /// Members, and rows of each.
    sizes: [usize; 2],
    /// Rows of a task.
    per_block: usize,
    to: SharedMut<u32>,
}

impl<'a> Round<'a> {
    fn new(cpu: &Cpu, rounding: &'a Rounding, from: &'a Floats, sizes: [usize; 2], to: &mut [u32]) -> Self {
        let [members, rows] = sizes;
        let end = (members - 1) * from.member + (rows - 1) * from.row + rounding.k();
        assert!(end <= from.x.len(), "rows of x");
        assert_eq!(to.len(), members * rows * rounding.row(), "rounded rows");
        let per_block = cpu.per_block(members * rows, rounding.k());
        Self { rounding, from, sizes, per_block, to: SharedMut::new(to) }
    }

    fn num_blocks(&self) -> usize {
        let [members, rows] = self.sizes;
        (members * rows).div_ceil(self.per_block)
    }

    fn block(&self, isa: Isa, block: usize) {
        let Self { rounding, from, sizes: [members, rows], per_block, to } = self;
        let (k, first) = (rounding.k(), block * per_block);
        for index in first..(members * rows).min(first + per_block) {
            let (member, row) = (index / rows, index % rows);
            let x = from.x[member * from.member + row * from.row..].as_ptr();
            let out = to.at(index * rounding.row());
            let job = RoundRows { x, x_row: 0, num_rows: 1, first: 0, terms: k, out };
            // SAFETY: a whole row of x, checked by `new`, and a rounded row that no other index has.
            unsafe { round_rows(isa, rounding, &job) };
        }
    }
}

fn run_rows<const N: usize>(cpu: &Cpu, jobs: &[Gemm; N], words: &mut [u32]) {
    let products = Products::of(cpu, jobs);
    let (each, words) = (words.len() / cpu.pool.num_workers(), SharedMut::new(words));
    cpu.pool.run_phases(&[products.phase()], &|_, index, worker| {
        // SAFETY: a worker's own.
        products.task(cpu.isa, index, unsafe { words.slice(worker * each, each) });
    });
}

/// Several products in one region.
struct Products<'a, const N: usize> {
    jobs: &'a [Gemm<'a>; N],
    tasks: [Tasks; N],
}

impl<'a, const N: usize> Products<'a, N> {
    fn of(cpu: &Cpu, jobs: &'a [Gemm<'a>; N]) -> Self {
        Self { jobs, tasks: jobs.each_ref().map(|job| Tasks::of(cpu, job)) }
    }

    fn phase(&self) -> Phase {
        let reads = self.jobs.first().map(|job| Key::of(job.weights.as_bytes()));
        Phase { num_tasks: self.tasks.iter().map(|tasks| tasks.count).sum(), reads }
    }

    /// `words` is room for the rows of a task that rounds them for itself.
    fn task(&self, isa: Isa, mut index: usize, words: &mut [u32]) {
        for (job, tasks) in self.jobs.iter().zip(&self.tasks) {
            if index < tasks.count {
                let (member, part) = tasks.part(job, index);
                return run_part(isa, job, member, &part, words);
            }
            index -= tasks.count;
        }
    }
}

/// How a job is cut.
struct Tasks {
    count: usize,
    /// Panels of a task.
    group: usize,
    row_blocks: usize,
}

impl Tasks {
    fn of(cpu: &Cpu, job: &Gemm) -> Self {
        let row_blocks = tile::Blocks::new(job.rows, MAX_ROWS).count;
        let group = panels_per_task(cpu, job);
        let groups = job.weights.panels_per_member().div_ceil(group);
        Self { count: job.weights.count() * groups * row_blocks, group, row_blocks }
    }

    /// The member of a task, and what it computes.
    fn part(&self, job: &Gemm, index: usize) -> (usize, Part) {
        let Self { group, row_blocks, .. } = *self;
        let panels = job.weights.panels_per_member();
        let per_member = panels.div_ceil(group) * row_blocks;
        let rows_each = job.rows.div_ceil(row_blocks);
        let (member, rest) = (index / per_member, index % per_member);
        // Row blocks of one group follow each other: its weights are still in the shared cache.
        let (group_index, block) = (rest / row_blocks, rest % row_blocks);
        let first = group_index * group;
        let part = Part {
            panels: member * panels + first..member * panels + panels.min(first + group),
            rows: (block * rows_each).min(job.rows)..((block + 1) * rows_each).min(job.rows),
        };
        (member, part)
    }
}

fn panels_per_task(cpu: &Cpu, job: &Gemm) -> usize {
    let (weights, each) = (job.weights, job.weights.panels_per_member());
    let shared_out = (each * weights.count()).div_ceil(4 * cpu.pool.num_workers());
    // Rows of a single member are rounded before any task reads them: short tasks cost nothing, and threads end nearly at one time.
    let is_ready = weights.count() == 1 && job.x.rounded_to() != ActivationType::F32;
    let worth = match is_ready && job.rows <= tile::ONE_TILE {
        true => panels_of_bytes(weights),
        false => panels_worth_a_task(weights, job.rows),
    };
    // As many in one task as in the other.
    each.div_ceil(each.div_ceil(worth.min(shared_out)))
}

/// Panels whose bytes make a task.
fn panels_of_bytes(weights: &MatrixBatch) -> usize {
    (TASK_BYTES / weights.panel_bytes()).max(1)
}

/// Panels that make a task: enough bytes when few rows wait for memory, enough uses of the packed rows when there are many.
pub(crate) fn panels_worth_a_task(weights: &MatrixBatch, num_rows: usize) -> usize {
    let by_size = panels_of_bytes(weights);
    if num_rows <= tile::UNPACKED_ROWS { by_size } else { by_size.max(8) }
}

/// One task; rows and panels that no other task has. `words` is room for its rows, if it rounds them for itself.
pub(crate) fn run_part(isa: Isa, job: &Gemm, member: usize, part: &Part, words: &mut [u32]) {
    let Input::ToRound { x, row, member: stride, rounding } = job.x else {
        return run_rounded(isa, job, member, part);
    };
    let (x, num_rows, k) = (x.from(member * stride + part.rows.start * row), part.rows.len(), rounding.k());
    assert!((num_rows - 1) * row + k <= x.len(), "rows of x");
    let words = &mut words[..num_rows * rounding.row()];
    let (x, out) = (x.as_ptr(), words.as_mut_ptr());
    let rows = RoundRows { x, x_row: row, num_rows, first: 0, terms: k, out };
    // SAFETY: whole rows of x, and as many rounded rows, both checked above.
    unsafe { round_rows(isa, &rounding, &rows) };
    let x = Input::Rounded { words: (&*words).into(), rounding, member: 0 };
    // These are the first rows of x, of the only member that it has.
    let out = job.out.from(member * job.out_member + part.rows.start * job.out_stride);
    let job = Gemm { x, rows: num_rows, out, out_member: 0, ..*job };
    run_rounded(isa, &job, 0, &Part { panels: part.panels.clone(), rows: 0..num_rows });
}

/// As `run_part`, for rows as the format wants them.
fn run_rounded(isa: Isa, job: &Gemm, member: usize, part: &Part) {
    match part.rows.len() {
        ..=tile::ONE_TILE => run_part_with::<FEW_SUMS>(isa, job, member, part),
        _ => run_part_with::<MANY_SUMS>(isa, job, member, part),
    }
}

/// With room for so many sums, on a stack of its own.
#[inline(never)]
fn run_part_with<const NUM_SUMS: usize>(isa: Isa, job: &Gemm, member: usize, part: &Part) {
    let sums = &mut [MaybeUninit::uninit(); NUM_SUMS];
    by_weight_type!(job.weights.stored_as(), job.x.rounded_to(), run_part_of(isa, job, member, part, sums));
}

simd_entry! {
    fn run_part_of<W: PanelFormat>(job: &Gemm<'_>, member: usize, part: &Part, sums: &mut [MaybeUninit<f32>]) = run_part_body
}

#[inline(always)]
fn run_part_body<S: Simd, W: PanelFormat>(
    s: S,
    job: &Gemm<'_>,
    member: usize,
    part: &Part,
    sums: &mut [MaybeUninit<f32>],
) {
    let k = job.weights.k();
    let num_rows = part.rows.len();
    let x = InputRows::of(&job.x, member, part.rows.start);
    x.check(num_rows, k);
    let (panels, panel_bytes) = (job.weights.as_bytes(), job.weights.panel_bytes());
    assert!(part.panels.end * panel_bytes <= panels.len(), "panels");
    // Those of one panel.
    let num_sums = num_rows * PANEL;
    assert!((1..=sums.len()).contains(&num_sums), "{num_rows} rows of sums");
    let at_once = sums.len() / num_sums;
    let mut room = Room::new();
    let k_block = tile::k_block_of::<W>(num_rows);
    for first in part.panels.clone().step_by(at_once) {
        let group = first..part.panels.end.min(first + at_once);
        for k_start in (0..k).step_by(k_block) {
            let k_len = k_block.min(k - k_start);
            // SAFETY: checked above.
            let x = unsafe { room.block::<S, W>(s, x, num_rows, [k_start, k_len]) };
            for (panel, sums) in group.clone().zip(sums.chunks_exact_mut(num_sums)) {
                let to = Destination::of(job, member, panel, part);
                let lines = panels[panel * panel_bytes + W::offset(k_start)..].as_ptr();
                let meanwhile: *mut f32 = sums.as_mut_ptr().cast();
                let is_last = k_start + k_len == k;
                let (start, row) = match is_last && to.is_whole {
                    true => (job.out.at(to.offset), job.out_stride),
                    false => (meanwhile, PANEL),
                };
                let (sums, from) = (
                    Sums { start, row, hi: 0, fresh: k_start == 0 },
                    Partial { start: meanwhile, row: PANEL },
                );
                // SAFETY: k_start + k_len is within a panel and a row, both checked above; the sums are this task's own columns of `out`, or
                // rows of a panel's columns, which the block before wrote.
                let mut part = unsafe { Job::new(num_rows, lines, x, k_len, sums).resuming(from) };
                if k > k_block {
                    // Blocks that follow each other in memory do not do so here.
                    let (panel, k) = match panel + 1 < group.end {
                        true => (panel + 1, k_start),
                        false if is_last => (group.end, 0),
                        false => (group.start, k_start + k_block),
                    };
                    part = part.before(panels.as_ptr().wrapping_add(panel * panel_bytes + W::offset(k)));
                }
                W::panel(s, &part);
            }
        }
        for (panel, sums) in group.zip(sums.chunks_exact(num_sums)) {
            let to = Destination::of(job, member, panel, part);
            if to.is_whole {
                continue;
            }
            let bias = job.bias.map(|bias| &bias[to.first_column..]);
            for (row, sums) in sums.as_chunks::<PANEL>().0.iter().enumerate() {
                // SAFETY: this task's own rows and columns.
                let out = unsafe { job.out.slice(to.offset + row * job.out_stride, to.columns) };
                // SAFETY: as many elements, which the panel's product wrote.
                let sums = unsafe { &*sums.as_ptr().cast::<[f32; PANEL]>() };
                finish(s, sums, bias, job.act, out);
            }
        }
    }
}

/// The columns of `out` that belong to a panel.
struct Destination {
    offset: usize,
    first_column: usize,
    columns: usize,
    /// Whether the panel's sums are all there is to write.
    is_whole: bool,
}

impl Destination {
    fn of(job: &Gemm, member: usize, panel: usize, part: &Part) -> Self {
        let first_column = panel % job.weights.panels_per_member() * PANEL;
        let columns = (job.weights.n() - first_column).min(PANEL);
        let offset = member * job.out_member + part.rows.start * job.out_stride + first_column;
        assert!((part.rows.len() - 1) * job.out_stride + columns <= job.out.len() - offset, "rows of out");
        let is_whole = columns == PANEL && job.bias.is_none() && job.act == Activation::None;
        Self { offset, first_column, columns, is_whole }
    }
}

/// `out = act(sums + bias)`, as many columns as `out` has.
#[inline(always)]
fn finish<S: Simd>(s: S, sums: &[f32; PANEL], bias: Option<&[f32]>, act: Activation, out: &mut [f32]) {
    for i in (0..out.len()).step_by(S::LANES) {
        let mut v = s.load_slice(&sums[i..]);
        if let Some(bias) = bias {
            v = s.add(v, s.load_slice(&bias[i..out.len()]));
        }
        s.store_slice(&mut out[i..], math::activate(s, act, v));
    }
}
