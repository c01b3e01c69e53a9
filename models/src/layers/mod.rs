//! The parts of the decoder. Each knows its weights' names and shapes, how many bytes they take, and how to run on the buffers
//! of a step.

pub mod gqa;
pub mod mla;
pub mod mlp;
pub mod moe;
pub mod rope;

use crate::LoadError;
use crate::input::StepInput;
use crate::lora::{LoraBuffers, Loras, Target};
use crate::parts::Part;
use crate::storage::Storage;
use crate::weights::Checkpoint;
use kernels::ops::{
    Activation, LinearPart, Ragged, ReadPlan, Readers, RopeLayout, RopeSections, RopeTable, Tokens,
};
use kernels::{DType, Device, Matrix, Tensor, WeightType};

/// What the layers need of a step beside its activations.
pub struct Step<'a> {
    pub input: &'a StepInput,
    pub ragged: Ragged<'a>,
    pub rope: &'a RopeTable,
    pub layout: RopeLayout,
    /// Where a token has three positions.
    pub sections: Option<RopeSections>,
    /// Where some rows have adapters.
    pub loras: Option<&'a Loras>,
    /// The number of the layer that runs.
    pub layer: usize,
}

impl<'a> Step<'a> {
    /// Adapters of the step, and where their part is computed.
    pub fn adapters<'b>(
        &self,
        buffers: &'b mut Option<LoraBuffers>,
    ) -> Option<(&'a Loras, &'b mut LoraBuffers)> {
        self.loras.zip(buffers.as_mut())
    }

    /// Whether an adapter of the step changes one of these in the layer that runs.
    pub fn changes(&self, targets: &[Target]) -> bool {
        self.loras.is_some_and(|loras| loras.changes(self.layer, targets))
    }

    pub fn num_tokens(&self) -> usize {
        self.input.num_tokens()
    }
}

/// Where a layer's weights are by name, and what they are kept as. All that sizes depend on beside the configuration.
#[derive(Clone)]
pub struct Names<'a> {
    pub storage: &'a Storage,
    /// Of matrices that are not asked for as something else.
    pub part: Part,
    /// Before every name, such as `model.layers.3.`.
    pub prefix: String,
}

impl Names<'_> {
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The same place, for matrices of another part.
    pub fn of_part(&self, part: Part) -> Self {
        Self { part, ..self.clone() }
    }

    /// What the weight of a module is kept as.
    pub fn stored_as(&self, module: &str) -> WeightType {
        self.storage.of(self.part, &self.name(module))
    }

    pub fn matrix(&self, module: &str, n: usize, k: usize) -> WeightSize {
        WeightSize::matrix(self.stored_as(module), n, k)
    }

    pub fn linear(&self, module: &str, n: usize, k: usize, bias: bool) -> WeightSize {
        self.matrix(module, n, k) + if bias { WeightSize::vector(n) } else { WeightSize::default() }
    }
}

/// Where a layer's tensors come from and go to.
pub struct Loader<'a> {
    pub checkpoint: &'a Checkpoint,
    pub device: &'a Device,
    pub names: Names<'a>,
}

impl Loader<'_> {
    pub fn name(&self, name: &str) -> String {
        self.names.name(name)
    }

    pub fn vector(&self, name: &str, len: usize) -> Result<Tensor, LoadError> {
        self.checkpoint.vector(self.device, &self.name(name), len)
    }

    /// A table that is used in f32: a vector for each head.
    pub fn rows(&self, name: &str, shape: [usize; 2]) -> Result<Tensor, LoadError> {
        let name = self.name(name);
        self.checkpoint.kept(self.device, &name, (DType::F32, shape.to_vec()), || {
            let values = self.checkpoint.take(&name, &shape)?.to_f32();
            Ok(Tensor::from_f32(self.device, &shape, &values))
        })
    }

    /// The weight of a module.
    pub fn matrix(&self, module: &str, n: usize, k: usize) -> Result<Matrix, LoadError> {
        self.stacked(&[(module, n)], k)
    }

    /// Weights of modules with one input, stacked along their outputs.
    pub fn stacked(&self, modules: &[(&str, usize)], k: usize) -> Result<Matrix, LoadError> {
        let names: Vec<(String, usize)> = modules.iter().map(|(name, n)| (self.name(name), *n)).collect();
        let modules: Vec<(&str, usize)> = names.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        let Names { storage, part, .. } = self.names;
        self.checkpoint.matrix(self.device, storage, part, &modules, k)
    }

    /// A linear layer `name.weight`, and `name.bias` where the family has one.
    pub fn linear(&self, name: &str, n: usize, k: usize, bias: bool) -> Result<Linear, LoadError> {
        self.stacked_linear(&[(name, n)], k, bias)
    }

    pub fn stacked_linear(&self, parts: &[(&str, usize)], k: usize, bias: bool) -> Result<Linear, LoadError> {
        let weight = self.stacked(parts, k)?;
        let bias = match bias {
            false => None,
            true => {
                let name = |part: &str| self.name(&format!("{part}.bias"));
                let form = (DType::F32, vec![parts.iter().map(|(_, n)| n).sum()]);
                Some(self.checkpoint.kept(self.device, &name(parts[0].0), form, || {
                    let mut values = Vec::new();
                    for (part, n) in parts {
                        values.extend(self.checkpoint.take(&name(part), &[*n])?.to_f32());
                    }
                    Ok(Tensor::from_f32(self.device, &[values.len()], &values))
                })?)
            }
        };
        Ok(Linear { weight, bias })
    }
}

/// `out = x · weightᵀ + bias`
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// `x` [T, K], `out` [T, N].
    pub fn run(&self, x: &mut Tokens, out: &mut Tensor) {
        x.linear(&self.weight, self.bias.as_ref(), Activation::None, out);
    }

    /// This layer as the reader of its tokens, beside others that read f32 or not.
    pub fn reader(&self, floats: bool) -> Readers<'_> {
        Readers { layer: &self.weight, floats }
    }

    /// What its weights are kept as.
    pub fn stored_as(&self) -> WeightType {
        self.weight.stored_as()
    }

    pub fn plan_reads(&self, plan: &mut ReadPlan) {
        plan.linear(&self.weight);
    }

    /// As `run_pair` reads them.
    pub fn plan_pair([first, second]: [&Self; 2], plan: &mut ReadPlan) {
        plan.linear_pair([&first.weight, &second.weight]);
    }

    /// With another layer of the same `x`; each has its own output.
    pub fn run_pair(layers: [&Self; 2], x: &mut Tokens, outs: [&mut Tensor; 2]) {
        let [first, second] = layers;
        let [first_out, second_out] = outs;
        let [(weight, bias), (second_weight, second_bias)] =
            [first, second].map(|l| (&l.weight, l.bias.as_ref()));
        let first = LinearPart { weight, bias, out: first_out };
        let second = LinearPart { weight: second_weight, bias: second_bias, out: second_out };
        x.linear_pair([first, second]);
    }
}

/// Sizes of weights, in numbers and in bytes on the device. The sums are closed formulas of the configuration: they are what
/// the plan prints, and what loading allocates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightSize {
    pub parameters: u64,
    pub bytes: u64,
    /// Tensors and matrices: each has its own place on the device.
    pub tensors: u64,
}

impl WeightSize {
    pub fn vector(len: usize) -> Self {
        Self { parameters: len as u64, bytes: 4 * len as u64, tensors: 1 }
    }

    pub fn matrix(stored_as: WeightType, n: usize, k: usize) -> Self {
        Self { parameters: (n * k) as u64, bytes: Matrix::packed_bytes(stored_as, n, k), tensors: 1 }
    }

    /// Of what is kept a second time, in another order.
    pub fn again(self) -> Self {
        Self { parameters: 0, ..self }
    }

    pub fn times(self, count: usize) -> Self {
        let Self { parameters, bytes, tensors } = self;
        let count = count as u64;
        Self { parameters: parameters * count, bytes: bytes * count, tensors: tensors * count }
    }
}

impl std::ops::Add for WeightSize {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            parameters: self.parameters + other.parameters,
            bytes: self.bytes + other.bytes,
            tensors: self.tensors + other.tensors,
        }
    }
}

impl std::iter::Sum for WeightSize {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::default(), |sum, size| sum + size)
    }
}
