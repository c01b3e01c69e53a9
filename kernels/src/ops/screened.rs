//! screened_linear: out[r, n] = Σ_k x[r, k] · w[n, k] wherever that can be among the largest of row r, and a smaller number elsewhere
//! x [R, K] f32 · w [N, K] floats, with its `Screen` · out [R, N] f32
//! moves 1.0625·N·K bytes of the coarse copy and the panels of w that are computed
//!
//! ```text
//! coarse numbers ─▶ bounds of each ─▶ τ: so much the largest surely reach ─▶ panels with a number that can reach τ ─▶ exact numbers
//! ```
//! With wₙ the exact row and ŵₙ the coarse one, and with xₑ and x_c what the exact and the coarse product round x to,
//!
//! ```text
//! xₑ·wₙ - x_c·ŵₙ = xₑ·(wₙ - ŵₙ) + (xₑ - x_c)·ŵₙ          at most ‖xₑ‖·‖wₙ - ŵₙ‖ + ‖xₑ - x_c‖·‖ŵₙ‖   (Cauchy and Schwarz)
//! ```
//! and each of the two sums in f32 is within `γ·‖x‖·‖w‖` of its own, γ = n·2⁻²⁴ / (1 - n·2⁻²⁴) for n roundings on the way of a term
//! (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), n at most K + 64 here. `SLOP` counts twice as many: what is left over covers the roundings of
//! the bounds themselves, which are a handful. `tiny` is for what instructions flush to zero.
//!
//! So a number is exactly computed unless `coarse + error < τ`, where at least `top` numbers of the row have `coarse - error >= τ`:
//! the exact number is then below the `top`-th largest, and so is the coarse one that stays in its place. **The `top` largest of a row, their
//! values and places, and which others are equal to them, are those of `linear`, bit for bit.** Which panels are computed
//! depends on all rows of x; the largest of a row do not.
//!
//! τ is the `top`-th largest of the panels' largest: no more than that of all numbers, and found sooner.

use super::linear;
use super::linear::{check, cpu_job};
use crate::cpu::gemm;
use crate::cpu::processor::Cpu;
use crate::cpu::screen::{Bounds, Reach, Squares, bounds, squares};
use crate::cpu::shared::SharedMut;
use crate::operands::linear::Activation;
use crate::panel::PANEL;
use crate::screen::{ScreenRoom, above};
use crate::{Device, Matrix, Screen, Tensor};

/// What became of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screened {
    /// So many panels of 32 rows of the weights were computed exactly, of all.
    Panels { computed: usize, of: usize },
    /// All of it is exact, after the coarse product had shown too little.
    Whole,
    /// All of it is exact, and the coarse product was not tried: too many rows, or numbers without bounds.
    Untried,
}

/// Of the panels, the part up to which they are computed one by one.
const MOST_PANELS: usize = 4;
/// From here up numbers may be too large for f32 on the way.
const TOO_LARGE: f32 = 1e36;
/// Roundings on the way of a term, beside those of its sum.
const ROUNDINGS: usize = 64;
/// Longer sums have too little left over for the roundings of the bounds.
const LONGEST_K: usize = 1 << 18;

/// `tops`: how many of the largest each row of x is for, at least one.
pub fn screened_linear(
    x: &Tensor,
    exact: &Matrix,
    screen: &Screen,
    tops: &[usize],
    out: &mut Tensor,
) -> Screened {
    screened(x, exact, screen, Asked { tops, trust: 1.0 }, out)
}

#[derive(Clone, Copy)]
struct Asked<'a> {
    tops: &'a [usize],
    /// What bounds are multiplied by: 1. Less is wrong, and a test shows that it is.
    trust: f32,
}

fn screened(x: &Tensor, exact: &Matrix, screen: &Screen, asked: Asked, out: &mut Tensor) -> Screened {
    let coarse = screen.coarse();
    let rows = check(x, exact, None, out);
    assert_eq!([coarse.n(), coarse.k()], [exact.n(), exact.k()], "screened_linear: the coarse copy");
    assert_eq!(asked.tops.len(), rows, "screened_linear: tops");
    let Device::Cpu(cpu) = &out.device().clone() else { panic!("screened_linear: a processor's") };
    let num_panels = exact.n().div_ceil(PANEL);
    let too_many = asked.tops.iter().any(|&top| top == 0 || MOST_PANELS * top > num_panels);
    let mut reach = [Reach::default(); Screen::MAX_ROWS];
    if rows == 0
        || rows > Screen::MAX_ROWS
        || too_many
        || !reaches(cpu, x, [exact, coarse], screen, &mut reach)
    {
        linear(x, exact, None, Activation::None, out);
        return Screened::Untried;
    }
    let reach = &mut reach[..rows];
    for Reach { off, meant, tiny } in &mut *reach {
        for part in [off, meant, tiny] {
            *part *= asked.trust;
        }
    }
    linear(x, coarse, None, Activation::None, out);
    let ScreenRoom { bounds: room, panels, sorted } = &mut *screen.room();
    let (surely, at_most) = room.as_f32_mut().split_at_mut(Screen::MAX_ROWS * num_panels);
    let job = Bounds {
        coarse: out.as_f32().into(),
        n: exact.n(),
        reach,
        norms: screen.norms(),
        surely: SharedMut::new(surely),
        at_most: SharedMut::new(at_most),
    };
    // Two loads and some additions for each number.
    let block = (BLOCK_NUMBERS / (PANEL * rows)).max(1);
    cpu.pool.run(num_panels.div_ceil(block), &|index, _| {
        bounds(cpu.isa, &job, &(index * block..num_panels.min((index + 1) * block)));
    });
    let mut reached = [0.0f32; Screen::MAX_ROWS];
    for ((reached, surely), &top) in reached.iter_mut().zip(surely.chunks(num_panels)).zip(asked.tops) {
        *reached = largest(surely, top, sorted);
    }
    panels.clear();
    for panel in 0..num_panels as u32 {
        let can = |row: usize| {
            let is_below = at_most[row * num_panels + panel as usize] < reached[row];
            !is_below
        };
        if (0..rows).any(can) {
            panels.push(panel);
        }
    }
    if MOST_PANELS * panels.len() > num_panels {
        linear(x, exact, None, Activation::None, out);
        return Screened::Whole;
    }
    gemm::run_panels(cpu, &cpu_job(x, exact, None, Activation::None, out), panels);
    Screened::Panels { computed: panels.len(), of: num_panels }
}

/// Numbers of a task.
const BLOCK_NUMBERS: usize = 16 << 10;

/// The `top`-th largest.
fn largest(values: &[f32], top: usize, room: &mut Vec<f32>) -> f32 {
    if top == 1 {
        return values.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    }
    room.clear();
    room.extend_from_slice(values);
    *room.select_nth_unstable_by(top - 1, |a, b| b.total_cmp(a)).1
}

/// What the bounds of each row of x are made of. `false`: a row has none, or its numbers may be too large.
fn reaches(cpu: &Cpu, x: &Tensor, sides: [&Matrix; 2], screen: &Screen, out: &mut [Reach]) -> bool {
    let (k, longest) = (screen.coarse().k(), screen.longest());
    // What is not a number is not below it either.
    let has_bounds = longest < TOO_LARGE;
    if k > LONGEST_K || !has_bounds {
        return false;
    }
    let rounded = sides.map(|side| cpu.rounds.beside(side.stored_as()));
    let rows = x.as_f32().chunks_exact(k);
    let mut lengths = [Squares::default(); Screen::MAX_ROWS];
    let to = SharedMut::new(&mut lengths);
    let of_row = |row: usize| {
        // SAFETY: each row once.
        let out = unsafe { to.slice(row, 1) };
        squares(cpu.isa, &x.as_f32()[row * k..][..k], rounded, &mut out[0]);
    };
    cpu.for_each(rows.len(), k, of_row);
    let slop = (k + ROUNDINGS) as f32 * f32::EPSILON;
    out.iter_mut().zip(&lengths).take(rows.len()).all(|(out, squares)| {
        let (length, apart) = (above(squares.exact.sqrt()), above(squares.apart.sqrt()));
        // 2⁻¹²⁰: sixty-four times the smallest number that is not flushed.
        let tiny = k as f32 * 2f32.powi(-120) * (1.0 + length + longest);
        *out = Reach { off: length * (1.0 + slop), meant: apart * (1.0 + slop) + 2.0 * slop * length, tiny };
        (length + apart) * longest.max(1.0) < TOO_LARGE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ActivationChoice, CpuOptions, DType, HostTensor};

    /// Rows whose rounding to int8 goes all in one direction, along x: as far from the coarse number as there can be. The largest coarse number is
    /// B's, and A's exact one is larger.
    fn against_the_bound(n: usize, k: usize, [a, b]: [usize; 2]) -> Vec<f32> {
        const STEP: f32 = 1.0 / 128.0;
        let mut weights = vec![0.0; n * k];
        for (row, side) in [(a, 0.49), (b, -0.49)] {
            for (i, w) in weights[row * k..][..k].iter_mut().enumerate() {
                let group = i / 32;
                // In fifteen groups of sixteen B is one step above A.
                let level = if row == b && group % 16 != 0 { 41.0 } else { 40.0 };
                *w = STEP * if i % 32 == 0 { 127.0 } else { level + side };
            }
        }
        weights
    }

    #[test]
    fn half_of_the_bound_is_too_little() {
        let options =
            CpuOptions { threads: Some(1), activations: ActivationChoice::F32, ..CpuOptions::default() };
        let device = Device::cpu_with(options).unwrap();
        let (n, k) = (1000, 1024);
        let weights = against_the_bound(n, k, [700, 13]);
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let exact =
            Matrix::pack(&device, DType::F32, &[HostTensor::new(DType::F32, &[n, k], &bytes).unwrap()]);
        let screen = Screen::of(&exact);
        let x = Tensor::from_f32(&device, &[1, k], &vec![1.0; k]);
        let mut out = Tensor::zeros(&device, DType::F32, &[1, n]);
        let largest = |out: &Tensor| {
            let values = out.as_f32();
            (0..n).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap()
        };
        linear(&x, screen.coarse(), None, Activation::None, &mut out);
        assert_eq!(largest(&out), 13);
        linear(&x, &exact, None, Activation::None, &mut out);
        let expected = out.as_f32().to_vec();
        assert_eq!(largest(&out), 700);
        for (trust, panels, found) in [(1.0, 2, 700), (0.9, 1, 13), (0.5, 1, 13)] {
            let screened = screened(&x, &exact, &screen, Asked { tops: &[1], trust }, &mut out);
            assert_eq!(screened, Screened::Panels { computed: panels, of: 32 }, "{trust}");
            assert_eq!(largest(&out), found, "{trust}");
            assert_eq!(out.as_f32()[13], expected[13], "{trust}");
        }
    }
}
