//! The gated MLP: `down(silu(gate(x)) · up(x))`. Gate and up are one matrix, since they read the same input.

use super::{Linear, Loader, Names, Step, WeightSize};
use crate::LoadError;
use crate::lora::{LoraBuffers, Target};
use crate::scratch::Scratch;
use kernels::ops::{ReadPlan, SharedExpert, TokenRoom};
use kernels::{Matrix, Tensor, WeightType};

pub struct Mlp {
    gate_up: Linear,
    down: Linear,
    intermediate_size: usize,
}

#[derive(Debug, Clone, Copy)]
pub struct MlpShape {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub bias: bool,
    /// Gate and up are one matrix in the files, `gate_up_proj`.
    pub fused: bool,
}

impl Mlp {
    /// `name` is the path of the module, such as `mlp` or `mlp.shared_experts`.
    pub fn load(loader: &Loader, name: &str, shape: MlpShape) -> Result<Self, LoadError> {
        let MlpShape { hidden_size, intermediate_size, bias, fused } = shape;
        let gate_up = match fused {
            true => {
                loader.linear(&format!("{name}.gate_up_proj"), 2 * intermediate_size, hidden_size, bias)?
            }
            false => {
                let (gate, up) = (format!("{name}.gate_proj"), format!("{name}.up_proj"));
                let parts = [(gate.as_str(), intermediate_size), (up.as_str(), intermediate_size)];
                loader.stacked_linear(&parts, hidden_size, bias)?
            }
        };
        let down = loader.linear(&format!("{name}.down_proj"), hidden_size, intermediate_size, bias)?;
        Ok(Self { gate_up, down, intermediate_size })
    }

    /// `name` as in `load`.
    pub fn size(names: &Names, name: &str, shape: MlpShape) -> WeightSize {
        let MlpShape { hidden_size, intermediate_size, bias, fused } = shape;
        let gate = if fused { "gate_up_proj" } else { "gate_proj" };
        names.linear(&format!("{name}.{gate}"), 2 * intermediate_size, hidden_size, bias)
            + names.linear(&format!("{name}.down_proj"), hidden_size, intermediate_size, bias)
    }

    pub fn plan_reads(&self, plan: &mut ReadPlan) {
        self.gate_up.plan_reads(plan);
        self.down.plan_reads(plan);
    }

    /// What the first layer keeps its weights as.
    pub fn takes(&self) -> WeightType {
        self.gate_up.stored_as()
    }

    /// Gate and up, and down, as the expert that each token takes.
    pub fn weights(&self) -> [&Matrix; 2] {
        [&self.gate_up.weight, &self.down.weight]
    }

    /// Reads `normed`, as its norm left it, writes `out` [T, D].
    pub fn run(&self, step: &Step, scratch: &mut Scratch) {
        let Scratch { normed, gate_up, activated, out, tokens, lora, .. } = scratch;
        self.run_in(step, normed, [gate_up, activated, out], (tokens, lora));
    }

    /// From `x` [T, D], as its norm left it, with buffers for gate and up, their product, and what comes out.
    pub fn run_in(
        &self,
        step: &Step,
        x: &Tensor,
        [gate_up, activated, out]: [&mut Tensor; 3],
        (tokens, lora): (&mut TokenRoom, &mut Option<LoraBuffers>),
    ) {
        self.reshape(x.shape()[0], gate_up, activated);
        self.gate_up.run(&mut tokens.hold_made(x), gate_up);
        if let Some((loras, room)) = step.adapters(lora) {
            for (target, offset) in [(Target::Gate, 0), (Target::Up, self.intermediate_size)] {
                loras.add_to((step.layer, target), x, (gate_up, offset), room);
            }
        }
        self.down.run(&mut tokens.hold_silu_mul(gate_up, activated, &self.down.weight), out);
        if let Some((loras, room)) = step.adapters(lora) {
            loras.add_down(step.layer, gate_up, out, room);
        }
    }

    /// As the expert that each of T tokens takes, with its gates [T] where it has any, and its buffers: for gate and up, their product,
    /// and what comes out. It has no biases.
    pub fn as_shared_expert<'a>(
        &'a self,
        gate: Option<&'a Tensor>,
        num_tokens: usize,
        [both, inner, out]: [&'a mut Tensor; 3],
    ) -> SharedExpert<'a> {
        assert!(self.gate_up.bias.is_none() && self.down.bias.is_none(), "a shared expert with biases");
        self.reshape(num_tokens, both, inner);
        let [gate_up, down] = self.weights();
        SharedExpert { gate_up, down, gate, both, inner, out }
    }

    fn reshape(&self, num_tokens: usize, both: &mut Tensor, inner: &mut Tensor) {
        both.reshape(&[num_tokens, 2 * self.intermediate_size]);
        inner.reshape(&[num_tokens, self.intermediate_size]);
    }
}
