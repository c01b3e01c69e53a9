//! A layer of experts: a router chooses some for each token, their results are summed in the order of the choice, and the expert
//! that every token takes is added last.

use super::mlp::{Mlp, MlpShape, Out};
use super::{Loader, WeightSize};
use crate::LoadError;
use crate::config::{ExpertNames, MoeConfig};
use crate::scratch::{MoeBuffers, Scratch};
use kernels::ops::{self, Activation, RouterConfig};
use kernels::{DType, ExpertSource, Experts, Matrix, Tensor};

pub struct Moe {
    /// In f32, whatever the others are stored as: a choice must not hang on a rounding of the router.
    router: Matrix,
    correction_bias: Option<Tensor>,
    experts: Experts,
    shared: Option<Mlp>,
    config: RouterConfig,
}

impl Moe {
    pub fn load(loader: &Loader, config: &MoeConfig, hidden_size: usize) -> Result<Self, LoadError> {
        let module = match config.names {
            ExpertNames::Mlp => "mlp",
            ExpertNames::BlockSparse => "block_sparse_moe",
        };
        let router = Loader { stored_as: DType::F32, prefix: loader.prefix.clone(), ..*loader };
        let router = router.matrix(&format!("{module}.gate.weight"), config.num_experts, hidden_size)?;
        let bias = format!("{module}.gate.e_score_correction_bias");
        let correction_bias = match config.correction_bias {
            true => Some(loader.vector(&bias, config.num_experts)?),
            false => None,
        };
        let shared = match shared_shape(config, hidden_size) {
            Some(shape) => Some(Mlp::load(loader, &format!("{module}.shared_experts"), shape)?),
            None => None,
        };
        let experts = load_experts(loader, module, config, hidden_size)?;
        Ok(Self { router, correction_bias, experts, shared, config: config.router })
    }

    pub fn size(stored_as: DType, config: &MoeConfig, hidden_size: usize) -> WeightSize {
        let (e, i) = (config.num_experts, config.intermediate_size);
        let experts = WeightSize {
            parameters: (3 * e * i * hidden_size) as u64,
            bytes: Experts::packed_bytes(stored_as, [e, hidden_size, i]),
            tensors: 2,
        };
        let bias = if config.correction_bias { WeightSize::vector(e) } else { WeightSize::default() };
        let shared = shared_shape(config, hidden_size).map(|shape| Mlp::size(stored_as, shape));
        WeightSize::matrix(DType::F32, e, hidden_size) + bias + experts + shared.unwrap_or_default()
    }

    /// Reads `normed`, writes `out`.
    pub fn run(&self, scratch: &mut Scratch) {
        let num_tokens = scratch.normed.shape()[0];
        let Scratch { normed, out, moe, .. } = scratch;
        let MoeBuffers { logits, ids, weights, experts } =
            moe.as_mut().expect("made for models with experts");
        logits.set_rows(num_tokens);
        ids.set_rows(num_tokens);
        weights.set_rows(num_tokens);
        ops::linear(normed, &self.router, None, Activation::None, logits);
        ops::route(logits, self.correction_bias.as_ref(), &self.config, ids, weights);
        ops::moe(normed, &self.experts, ids, weights, experts, out);
        if let Some(shared) = &self.shared {
            shared.run(scratch, Out::Shared);
            ops::add(&mut scratch.out, &scratch.shared_out);
        }
    }
}

fn shared_shape(config: &MoeConfig, hidden_size: usize) -> Option<MlpShape> {
    config.shared_intermediate_size.map(|intermediate_size| MlpShape {
        hidden_size,
        intermediate_size,
        bias: false,
    })
}

fn load_experts(
    loader: &Loader,
    module: &str,
    config: &MoeConfig,
    hidden_size: usize,
) -> Result<Experts, LoadError> {
    let (e, i, h) = (config.num_experts, config.intermediate_size, hidden_size);
    let Loader { checkpoint, device, stored_as, .. } = loader;
    if let Some(seed) = checkpoint.dummy_seed(&loader.name(module), 3 * e * i * h * stored_as.size()) {
        return Ok(Experts::random(device, *stored_as, [e, h, i], 1.0 / (h as f32).sqrt(), seed));
    }
    let [gate, up, down] = match config.names {
        ExpertNames::Mlp => ["gate_proj", "up_proj", "down_proj"],
        ExpertNames::BlockSparse => ["w1", "w3", "w2"],
    };
    let mut taken = Vec::with_capacity(e);
    for expert in 0..e {
        let take = |part: &str, n, k| {
            checkpoint.take(&loader.name(&format!("{module}.experts.{expert}.{part}.weight")), &[n, k])
        };
        taken.push([take(gate, i, h)?, take(up, i, h)?, take(down, h, i)?]);
    }
    let sources: Vec<ExpertSource> = taken
        .iter()
        .map(|[gate, up, down]| ExpertSource { gate: gate.view(), up: up.view(), down: down.view() })
        .collect();
    Ok(Experts::pack(device, *stored_as, &sources))
}
