//! Bounds of a product from a coarse copy of its weights: how far a row of activations is from what either side multiplies, and the
//! largest numbers that each panel surely reaches and that it can reach.

use super::rounded::LARGEST_INT16;
use super::shared::{Shared, SharedMut};
use super::simd::{Simd, simd_entry};
use crate::ActivationType;
use crate::panel::{GROUP, PANEL};
use crate::quantize::nearest;
use half::bf16;
use std::ops::Range;

/// Squares of a row's lengths.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Squares {
    /// ‖xₑ‖², of the row as the exact product takes it.
    pub exact: f64,
    /// ‖xₑ - x_c‖², x_c as the coarse product takes it.
    pub apart: f64,
}

simd_entry! {
    /// Of a row that `rounded` says how both sides round: the exact one to bf16, to 16 bits or not at all, the coarse one to int8 or not at all.
    /// NaN where a value is not finite.
    pub(crate) fn squares(x: &[f32], rounded: [ActivationType; 2], out: &mut Squares) = squares_body
}

#[inline(always)]
fn squares_body<S: Simd>(_: S, x: &[f32], [exact, coarse]: [ActivationType; 2], out: &mut Squares) {
    let (mut squares, mut apart) = ([0.0f64; 8], [0.0f64; 8]);
    let mut of_group = |group: &[f32; GROUP]| {
        let mut taken = *group;
        match exact {
            ActivationType::BF16 => {
                for taken in &mut taken {
                    *taken = bf16::from_f32(*taken).to_f32();
                }
            }
            ActivationType::Int16 => taken = to_levels(group, LARGEST_INT16),
            _ => {}
        }
        let mut meant = *group;
        if coarse == ActivationType::Int8 {
            meant = to_levels(group, 127.0);
        }
        for i in 0..GROUP {
            let (x, off) = (f64::from(taken[i]), f64::from(taken[i]) - f64::from(meant[i]));
            squares[i % 8] += x * x;
            apart[i % 8] += off * off;
        }
    };
    let (groups, rest) = x.as_chunks::<GROUP>();
    for group in groups {
        of_group(group);
    }
    if !rest.is_empty() {
        let mut padded = [0.0; GROUP];
        padded[..rest.len()].copy_from_slice(rest);
        of_group(&padded);
    }
    *out = Squares { exact: squares.iter().sum(), apart: apart.iter().sum() };
}

/// As `rounded` does it: what its levels stand for, the largest being `most`. Half a step is as far from the one as from the other, whichever a
/// processor takes.
#[inline(always)]
fn to_levels(x: &[f32; GROUP], most: f32) -> [f32; GROUP] {
    let mut largest = 0.0f32;
    for x in x {
        let x = x.abs();
        largest = if x <= largest { largest } else { x };
    }
    if !largest.is_finite() {
        return [f32::NAN; GROUP];
    }
    if largest < super::rounded::SMALLEST {
        return [0.0; GROUP];
    }
    let (scale, by) = (largest * (1.0 / most), most / largest);
    let mut out = *x;
    for x in &mut out {
        // A product of at most 13 and 24 bits is rounded to 24 once more: far less than `screened_linear` allows for.
        *x = scale * nearest(*x * by, -most, most);
    }
    out
}

/// What a row's bounds are made of: the exact number is within `off · ‖w - ŵ‖ + meant · ‖ŵ‖ + tiny` of the coarse one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reach {
    pub off: f32,
    pub meant: f32,
    pub tiny: f32,
}

/// Coarse numbers `[R, N]`, and where their bounds go: `[R, panels]` each.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub coarse: Shared<'a, f32>,
    pub n: usize,
    pub reach: &'a [Reach],
    /// ‖w - ŵ‖ and ‖ŵ‖ of each row of the weights.
    pub norms: (&'a [f32], &'a [f32]),
    pub surely: SharedMut<f32>,
    pub at_most: SharedMut<f32>,
}

simd_entry! {
    /// Of some panels that no other call has. Coarse numbers and norms are finite.
    pub(crate) fn bounds(job: &Bounds<'_>, panels: &Range<usize>) = bounds_body
}

#[inline(always)]
fn bounds_body<S: Simd>(s: S, job: &Bounds<'_>, panels: &Range<usize>) {
    let num_panels = job.n.div_ceil(PANEL);
    for (row, reach) in job.reach.iter().enumerate() {
        let coarse = &job.coarse.from(row * job.n)[..job.n];
        let [off, meant, tiny] = [reach.off, reach.meant, reach.tiny].map(|x| s.splat(x));
        for panel in panels.clone() {
            let columns = panel * PANEL..job.n.min((panel + 1) * PANEL);
            // The end of N is filled up with what no maximum sees.
            let mut edge = [[f32::NEG_INFINITY; PANEL], [0.0; PANEL], [0.0; PANEL]];
            let [c, e, h] = match columns.len() {
                PANEL => [&coarse[columns.clone()], &job.norms.0[columns.clone()], &job.norms.1[columns]],
                len => {
                    edge[0][..len].copy_from_slice(&coarse[columns.clone()]);
                    edge[1][..len].copy_from_slice(&job.norms.0[columns.clone()]);
                    edge[2][..len].copy_from_slice(&job.norms.1[columns]);
                    [&edge[0][..], &edge[1][..], &edge[2][..]]
                }
            };
            let (mut surely, mut at_most) = (s.splat(f32::NEG_INFINITY), s.splat(f32::NEG_INFINITY));
            for i in (0..PANEL).step_by(S::LANES) {
                let [c, e, h] = [&c[i..], &e[i..], &h[i..]].map(|from| s.load_slice(from));
                let error = s.fma(off, e, s.fma(meant, h, tiny));
                surely = s.max(surely, s.sub(c, error));
                at_most = s.max(at_most, s.add(c, error));
            }
            // SAFETY: this call's own panels.
            unsafe {
                job.surely.slice(row * num_panels + panel, 1)[0] = largest(s, surely);
                job.at_most.slice(row * num_panels + panel, 1)[0] = largest(s, at_most);
            }
        }
    }
}

#[inline(always)]
fn largest<S: Simd>(s: S, v: S::V) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; super::simd::MAX_LANES];
    s.store_slice(&mut lanes, v);
    // Halves onto each other: a maximum after the other would wait for it.
    let mut width = lanes.len() / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i] > lanes[i + width] { lanes[i] } else { lanes[i + width] };
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::Isa;

    #[test]
    fn lengths_are_those_of_rounded_rows() {
        let x: Vec<f32> = (0..77).map(|i| ((i * 37 % 101) as f32 - 43.0) * 0.0131).collect();
        let bf16s: Vec<f64> = x.iter().map(|&x| bf16::from_f32(x).to_f64()).collect();
        let mut row = crate::GroupedRow::new(77);
        let meant: Vec<f64> = (x.chunks(GROUP))
            .flat_map(|group| {
                let largest = group.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                group
                    .iter()
                    .map(move |x| f64::from((x * 127.0 / largest).round()) * f64::from(largest) / 127.0)
            })
            .collect();
        row.quantize(crate::WeightType::Int8, &x);
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let fine: Vec<f64> = (x.chunks(GROUP))
            .flat_map(|group| {
                let largest = group.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                let level = move |x: &f32| f64::from((x * 8191.0 / largest).round());
                group.iter().map(move |x| level(x) * f64::from(largest) / 8191.0)
            })
            .collect();
        use ActivationType::{BF16, F32, Int8, Int16};
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for (rounded, taken, coarse) in [
                ([F32, F32], &exact, &exact),
                ([F32, Int8], &exact, &meant),
                ([BF16, F32], &bf16s, &exact),
                ([BF16, Int8], &bf16s, &meant),
                ([Int16, Int8], &fine, &meant),
            ] {
                let mut found = Squares::default();
                squares(isa, &x, rounded, &mut found);
                let expected = square(&mut taken.iter().copied());
                // Halves between levels may be rounded either way.
                let tolerance = if rounded[0] == Int16 { 1e-6 } else { 1e-9 };
                assert!((found.exact - expected).abs() <= tolerance * expected, "{rounded:?}");
                let expected = square(&mut taken.iter().zip(coarse).map(|(a, b)| a - b));
                assert!(
                    (found.apart - expected).abs() <= 1e-3 * expected,
                    "{rounded:?} {found:?} {expected}"
                );
            }
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut found = Squares::default();
                squares(isa, &[1.0, bad, 2.0], [BF16, Int8], &mut found);
                assert!(!found.exact.is_finite() && !found.apart.is_finite());
            }
        }
    }
}
