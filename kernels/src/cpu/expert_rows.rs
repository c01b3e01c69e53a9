//! Products of rows that were sorted by expert, each with the weights of its own expert, and what is before and behind them: the layer of experts
//! in steps (moe.rs has it as one).

use super::ahead::Key;
use super::by_expert::{Groups, Terms, linear_part, weighted_sum};
use super::gemm::Input;
use super::pool::Phase;
use super::processor::Cpu;
use super::rounded::{RoundRows, Rounding, round_rows};
use super::shared::SharedMut;
use crate::MatrixBatch;

/// `out[places[pair]] = x[pair / k]`, rows of `width`.
pub(crate) fn enter(cpu: &Cpu, x: &[f32], places: &[i32], [k, width]: [usize; 2], out: &mut [f32]) {
    let out = SharedMut::new(out);
    cpu.for_each(places.len(), width, |pair| {
        // SAFETY: a place is one pair's.
        let row = unsafe { out.slice(places[pair] as usize * width, width) };
        row.copy_from_slice(&x[pair / k * width..][..width]);
    });
}

/// `out[r] = x[r] · weights of the row's expert`; `rounded` is room for all rows as products take them.
pub(crate) fn linear(
    cpu: &Cpu,
    x: &[f32],
    weights: &MatrixBatch,
    groups: &Groups,
    rounded: &mut [u32],
    out: &mut [f32],
) {
    let k = weights.k();
    let num_rows = x.len() / k;
    let input = match Rounding::beside(cpu, weights) {
        None => Input::Floats { x: x.into(), row: k, member: 0 },
        Some(rounding) => {
            let words = SharedMut::new(&mut rounded[..num_rows * rounding.row()]);
            cpu.for_each(num_rows, k, |row| {
                let x = x[row * k..][..k].as_ptr();
                // SAFETY: each row has its own words.
                let out = unsafe { words.slice(row * rounding.row(), rounding.row()) }.as_mut_ptr();
                let job = RoundRows { x, x_row: 0, num_rows: 1, first: 0, terms: k, out };
                // SAFETY: a whole row of x, and of what it becomes.
                unsafe { round_rows(cpu.isa, &rounding, &job) };
            });
            // SAFETY: all rows are written, and nobody writes them any more.
            Input::Rounded { words: unsafe { words.reader() }, rounding, member: 0 }
        }
    };
    let (tasks, out) = (groups.tasks(weights, 1), SharedMut::new(out));
    let phase = Phase { num_tasks: tasks.count(), reads: Some(Key::of(weights.as_bytes())) };
    cpu.pool.run_phases(&[phase], &|_, index, _| {
        if let Some(part) = tasks.part(groups, index) {
            linear_part(cpu.isa, input, weights, &part, out);
        }
    });
}

/// `out[t] = Σ_j weights[t, j] · rows[places[t, j]]`, in the order of j.
pub(crate) fn combine(
    cpu: &Cpu,
    rows: &[f32],
    places: &[i32],
    (weights, k): (&[f32], usize),
    (out, width): (&mut [f32], usize),
) {
    cpu.for_rows(out, width, |first, block| {
        for (token, out) in (first..).zip(block.chunks_exact_mut(width)) {
            let pairs = token * k..(token + 1) * k;
            let terms = Terms {
                rows,
                places: &places[pairs.clone()],
                weights: &weights[pairs],
                bias: None,
                shared: None,
                gate: None,
            };
            weighted_sum(cpu.isa, &terms, out);
        }
    });
}
