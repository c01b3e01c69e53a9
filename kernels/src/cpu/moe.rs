//! Experts of each token, one stage after the other.

use super::gemm::panel_row;
use super::rows;
use crate::device::Cpu;
use crate::matrix::PANEL;
use crate::ops::MoeScratch;
use crate::{Experts, Tensor};

pub(crate) fn run(
    cpu: &Cpu,
    x: &Tensor,
    experts: &Experts,
    ids: &Tensor,
    weights: &Tensor,
    scratch: &mut MoeScratch,
    out: &mut Tensor,
) {
    let (h, i, k) = (experts.hidden(), experts.inner(), ids.row_len());
    let (panels, down_panels) = (experts.gate_up.panels_per_member(), experts.down.panels_per_member());
    let (x, ids, weights) = (x.as_f32(), ids.as_i32(), weights.as_f32());
    cpu.for_blocks(&mut scratch.inner.as_f32_mut()[..ids.len() * i], i, |pair, inner| {
        let x = &x[pair / k * h..][..h];
        for (panel, out) in inner.chunks_mut(PANEL).enumerate() {
            let first = ids[pair] as usize * panels + 2 * panel;
            let gate = panel_row(&experts.gate_up, first, x);
            let up = panel_row(&experts.gate_up, first + 1, x);
            rows::silu_mul(cpu.isa, &gate[..out.len()], &up[..out.len()], out);
        }
    });
    let inner = scratch.inner.as_f32();
    cpu.for_blocks(out.as_f32_mut(), h, |token, out| {
        out.fill(0.0);
        for pair in token * k..(token + 1) * k {
            for (panel, out) in out.chunks_mut(PANEL).enumerate() {
                let first = ids[pair] as usize * down_panels + panel;
                let down = panel_row(&experts.down, first, &inner[pair * i..][..i]);
                out.iter_mut().zip(down).for_each(|(out, down)| *out += weights[pair] * down);
            }
        }
    });
}
