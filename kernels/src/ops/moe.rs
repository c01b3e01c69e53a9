//! moe: out[t, :] = Σ_j weights[t, j] · down_e (silu(gate_e x[t]) * up_e x[t]),  e = ids[t, j], summed in the order of j
//!      + down (silu(gate x[t]) * up x[t]) of the expert that every token takes, where there is one; times sigmoid(g[t]), where it is gated
//! or, of experts with a `BiasedGlu`: its function of gate and up, and down of that + the bias of down; such have no expert that every token takes
//! x, out [T, H] f32 · ids [T, k] i32 · weights [T, k] f32 · 6·T·k·H·I FLOP; moves the weights of the distinct experts chosen

use super::add_gated;
use crate::cpu::moe::{self, Then, Tokens};
use crate::cpu::shared::SharedMut;
use crate::cuda::moe as cuda_moe;
use crate::operands::linear::Activation;
use crate::operands::moe::{AddNorm, MoeScratch, SharedExpert};
use crate::operands::tokens::{NormFor, TokenRoom};
use crate::{Device, Experts, Tensor};

impl SharedExpert<'_> {
    fn check(&self, t: usize, h: usize) {
        let i = self.down.k();
        assert_eq!([self.gate_up.n(), self.gate_up.k(), self.down.n()], [2 * i, h, h], "moe: shared expert");
        for (tensor, width) in [(&*self.both, 2 * i), (&*self.inner, i), (&*self.out, h)] {
            assert_eq!(tensor.len(), t * width, "moe: buffer of the shared expert");
        }
        assert!(self.gate.is_none_or(|gate| gate.len() == t), "moe: gate of the shared expert");
    }

    /// One op after the other. `tokens`: room for T tokens of the wider of H and I.
    fn add_to(self, x: &Tensor, out: &mut Tensor, tokens: &mut TokenRoom) {
        tokens.hold_made(x).linear(self.gate_up, None, Activation::None, self.both);
        let mut inner = tokens.hold_silu_mul(self.both, self.inner, self.down);
        match self.gate {
            None => inner.add_linear(self.down, None, out, self.out),
            Some(gate) => {
                inner.linear(self.down, None, Activation::None, self.out);
                add_gated(out, self.out, gate);
            }
        }
    }
}

pub fn moe(
    x: &Tensor,
    experts: &Experts,
    ids: &Tensor,
    weights: &Tensor,
    scratch: &mut MoeScratch,
    out: &mut Tensor,
) {
    moe_and_shared(x, experts, [ids, weights], scratch, None, out);
}

/// As `moe`, with the expert that every token takes: the same bits as its ops one after the other, and added last.
pub fn moe_and_shared(
    x: &Tensor,
    experts: &Experts,
    [ids, weights]: [&Tensor; 2],
    scratch: &mut MoeScratch,
    shared: Option<(SharedExpert, &mut TokenRoom)>,
    out: &mut Tensor,
) {
    let (shared, tokens) = shared.unzip();
    check(x, experts, [ids, weights], scratch, shared.as_ref(), out);
    let left = match &out.device().clone() {
        Device::Cpu(cpu) => {
            check_ids(experts, ids);
            let tokens = Tokens { x: x.as_f32().into(), count: x.rows() };
            // SAFETY: x is borrowed, and nothing is written but `out`.
            unsafe { moe::run(cpu, tokens, experts, [ids, weights], scratch, shared, (out, None)) }
        }
        Device::Cuda(cuda) => {
            let input = cuda_moe::Input { x, packed: tokens.as_ref().and_then(|tokens| tokens.made_of(x)) };
            cuda_moe::run(cuda, input, experts, [ids, weights], scratch, shared, (out, None)).shared
        }
    };
    if let (Some(shared), Some(tokens)) = (left, tokens) {
        shared.add_to(x, out, tokens);
    }
}

/// As `moe_and_shared`, then `add_rms_norm` into x: its bits. `out` is room for the sum, of which nothing may be left there.
pub fn moe_and_norm(
    x: &mut Tensor,
    experts: &Experts,
    [ids, weights]: [&Tensor; 2],
    scratch: &mut MoeScratch,
    shared: Option<SharedExpert>,
    out: &mut Tensor,
    then: AddNorm,
) {
    check(x, experts, [ids, weights], scratch, shared.as_ref(), out);
    let AddNorm { residual, norm, tokens } = then;
    assert_eq!(residual.shape(), x.shape(), "moe: stream");
    assert_eq!(norm.weight.shape(), [experts.hidden()], "moe: norm");
    let (left, is_normed) = match &out.device().clone() {
        Device::Cpu(cpu) => {
            check_ids(experts, ids);
            let (count, normed) = (x.rows(), SharedMut::new(x.as_f32_mut()));
            let residual = SharedMut::new(residual.as_f32_mut());
            let going_on = Then { residual, weight: norm.weight.as_f32(), eps: norm.eps, normed };
            // SAFETY: both are borrowed here alone, and rows of x are read before they are written.
            let left = unsafe {
                let tokens = Tokens { x: normed.reader(), count };
                let to = (&mut *out, Some(going_on));
                moe::run(cpu, tokens, experts, [ids, weights], scratch, shared, to)
            };
            let is_normed = left.is_none() && !ids.is_empty();
            (left, is_normed)
        }
        Device::Cuda(cuda) => {
            let packed = tokens.packs(norm.next, x.rows());
            let NormFor { weight, eps, .. } = norm;
            let then = cuda_moe::Then { residual, weight, eps, packed };
            let (input, to) = (cuda_moe::Input { x, packed: tokens.made_of(x) }, (&mut *out, Some(&then)));
            let left = cuda_moe::run(cuda, input, experts, [ids, weights], scratch, shared, to);
            let made = packed.map(|(dtype, _)| dtype);
            if left.is_normed {
                tokens.was_made(x, made);
            }
            (left.shared, left.is_normed)
        }
    };
    if let Some(shared) = left {
        shared.add_to(x, out, tokens);
    }
    if !is_normed {
        tokens.add_rms_norm(residual, out, norm, x);
    }
}

fn check_ids(experts: &Experts, ids: &Tensor) {
    let count = experts.len() as i32;
    assert!(ids.as_i32().iter().all(|id| (0..count).contains(id)), "moe: an id is not below {count}");
}

fn check(
    x: &Tensor,
    experts: &Experts,
    [ids, weights]: [&Tensor; 2],
    scratch: &MoeScratch,
    shared: Option<&SharedExpert>,
    out: &Tensor,
) {
    let (t, h, k) = (x.rows(), experts.hidden(), ids.row_len());
    assert_eq!(x.row_len(), h, "moe: width of x");
    assert_eq!((out.rows(), out.row_len()), (t, h), "moe: out");
    assert_eq!(ids.rows(), t, "moe: ids");
    assert_eq!((weights.rows(), weights.row_len()), (t, k), "moe: weights");
    assert!(t <= scratch.max_tokens, "moe: {t} tokens exceed the scratch");
    assert!(k <= scratch.top_k, "moe: top {k} exceeds the scratch");
    assert_eq!([experts.len(), h, experts.inner()], scratch.sizes, "moe: scratch");
    if let Some(shared) = shared {
        assert!(experts.glu.is_none(), "moe: a shared expert beside those with biases");
        shared.check(t, h);
    }
}
