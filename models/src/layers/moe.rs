//! A layer of experts: a router chooses some for each token, their results are summed in the order of the choice, and the expert
//! that every token takes is added last, in some families times the sigmoid of a gate.

use super::mlp::{Mlp, MlpShape};
use super::{Loader, Names, Step, WeightSize};
use crate::LoadError;
use crate::config::{CorrectionBias, ExpertNames, GluConfig, MoeConfig};
use crate::lora::{ExpertJob, Loras, Target};
use crate::parts::Part;
use crate::scratch::{MoeBuffers, Scratch};
use crate::weights::WeightTensor;
use kernels::ops::{self, Activation, AddNorm, Choice, NormFor, ReadPlan, Router, RouterConfig};
use kernels::{BiasedGlu, DType, Experts, Matrix, Tensor, WeightType};

pub struct Moe {
    /// In f32, whatever the others are stored as: a choice must not hang on a rounding of the router.
    router: Matrix,
    logit_bias: Option<Tensor>,
    correction_bias: Option<Tensor>,
    experts: Experts,
    shared: Option<Mlp>,
    /// `[1, H]`, of the shared expert; in f32 as the router is.
    shared_gate: Option<Matrix>,
    config: RouterConfig,
}

impl Moe {
    pub fn load(loader: &Loader, config: &MoeConfig, hidden_size: usize) -> Result<Self, LoadError> {
        let routing = Loader { names: loader.names.of_part(Part::Router), ..*loader };
        let router = routing.matrix(&config.router_module(), config.num_experts, hidden_size)?;
        let logit_bias = match config.glu {
            Some(_) => Some(loader.vector(&format!("{}.bias", config.router_module()), config.num_experts)?),
            None => None,
        };
        let correction_bias = match config.correction_bias {
            Some(place) => Some(correction_bias(loader, config, place)?),
            None => None,
        };
        let shared = match shared_shape(config, hidden_size) {
            Some(shape) => Some(Mlp::load(loader, &config.shared_module(), shape)?),
            None => None,
        };
        let shared_gate = match has_gate(config) {
            true => Some(routing.matrix(&shared_gate(config), 1, hidden_size)?),
            false => None,
        };
        let experts = match config.names {
            ExpertNames::Fused => load_fused(loader, config, hidden_size)?,
            ExpertNames::Mlp | ExpertNames::BlockSparse => load_experts(loader, config, hidden_size)?,
        };
        let experts = match config.glu {
            Some(glu) => experts.with_glu(load_glu(loader, config, hidden_size, glu)?),
            None => experts,
        };
        Ok(Self { router, logit_bias, correction_bias, experts, shared, shared_gate, config: config.router })
    }

    pub fn size(names: &Names, config: &MoeConfig, hidden_size: usize) -> WeightSize {
        let (e, i) = (config.num_experts, config.intermediate_size);
        let stored_as = match config.names {
            ExpertNames::Fused => names.stored_as(FUSED),
            ExpertNames::Mlp | ExpertNames::BlockSparse => names.stored_as(&expert(config, 0, 0)),
        };
        let experts = WeightSize {
            parameters: (3 * e * i * hidden_size) as u64,
            bytes: Experts::packed_bytes(stored_as, [e, hidden_size, i]),
            tensors: 2,
        };
        let bias = config.correction_bias.map_or(WeightSize::default(), |_| WeightSize::vector(e));
        let shared =
            shared_shape(config, hidden_size).map(|shape| Mlp::size(names, &config.shared_module(), shape));
        let routing = names.of_part(Part::Router);
        let mut router = routing.matrix(&config.router_module(), e, hidden_size);
        if config.glu.is_some() {
            let parameters = (e * (2 * i + hidden_size)) as u64;
            let bytes = BiasedGlu::bytes([e, hidden_size, i]);
            router = router + WeightSize::vector(e) + WeightSize { parameters, bytes, tensors: 2 };
        }
        if has_gate(config) {
            router = router + routing.matrix(&shared_gate(config), 1, hidden_size);
        }
        router + bias + experts + shared.unwrap_or_default()
    }

    /// What the layer of all tokens that reads the norm before it keeps its weights as, or the experts, where there is none.
    pub fn takes(&self) -> WeightType {
        self.shared.as_ref().map_or(self.experts.stored_as(), Mlp::takes)
    }

    /// What is read before it is known which experts are chosen.
    pub fn router(&self) -> &Matrix {
        &self.router
    }

    pub fn plan_reads(&self, plan: &mut ReadPlan) {
        self.shared_gate.iter().for_each(|gate| plan.linear(gate));
        plan.experts(&self.experts, self.shared.as_ref().map(Mlp::weights));
    }

    /// Adds `out` to the stream, and to that what the experts make of its first norm; leaves the second in `normed`. `out` may hold anything
    /// then.
    pub fn run(&self, step: &Step, [norm, next_norm]: [NormFor; 2], scratch: &mut Scratch) {
        let num_tokens = scratch.normed.shape()[0];
        let Scratch { residual, normed, out, moe, gate_up, activated, shared_out, tokens, lora, .. } =
            scratch;
        let MoeBuffers { logits, ids, weights, shared_gates, experts } =
            moe.as_mut().expect("made for models with experts");
        logits.set_rows(num_tokens);
        ids.set_rows(num_tokens);
        weights.set_rows(num_tokens);
        let add = AddNorm { residual: &mut *residual, norm, tokens: &mut *tokens };
        let router = Router {
            weight: &self.router,
            logit_bias: self.logit_bias.as_ref(),
            bias: self.correction_bias.as_ref(),
            config: &self.config,
        };
        let choice = Choice { logits, ids: &mut *ids, weights: &mut *weights };
        ops::norm_and_route(out, add, normed, router, choice);
        let gates = shared_gates.as_mut().zip(self.shared_gate.as_ref()).map(|(gates, gate)| {
            gates.set_rows(num_tokens);
            ops::linear(normed, gate, None, Activation::None, gates);
            &*gates
        });
        let shared = self.shared.as_ref();
        let targets = [Target::Gate, Target::Up, Target::Down];
        let changes = |loras: &&Loras| {
            loras.changes_experts(step.layer) || shared.is_some() && loras.changes(step.layer, &targets)
        };
        if let Some(loras) = step.loras.filter(changes) {
            // The ops that are one below, apart: the same bits, and room for adapters between them.
            match lora {
                Some(lora) if loras.changes_experts(step.layer) => {
                    let job = ExpertJob { x: normed, experts: &self.experts, ids, weights, scratch: experts };
                    loras.run_experts(step.layer, job, out, lora);
                }
                _ => ops::moe(normed, &self.experts, ids, weights, experts, out),
            }
            if let Some(mlp) = shared {
                mlp.run_in(step, normed, [gate_up, activated, shared_out], (tokens, lora));
                match gates {
                    None => ops::add(out, shared_out),
                    Some(gates) => ops::add_gated(out, shared_out, gates),
                }
            }
            return tokens.add_rms_norm(residual, out, next_norm, normed);
        }
        let buffers = [gate_up, activated, shared_out];
        let shared = shared.map(|mlp| mlp.as_shared_expert(gates, num_tokens, buffers));
        let then = AddNorm { residual, norm: next_norm, tokens };
        ops::moe_and_norm(normed, &self.experts, [ids, weights], experts, shared, out, then);
    }
}

fn shared_shape(config: &MoeConfig, hidden_size: usize) -> Option<MlpShape> {
    let width = config.shared?.intermediate_size;
    Some(MlpShape { hidden_size, intermediate_size: width, bias: false, fused: false })
}

/// What is added to the scores of experts for the choice, `[E]`.
fn correction_bias(loader: &Loader, config: &MoeConfig, place: CorrectionBias) -> Result<Tensor, LoadError> {
    let (module, count) = (config.module(), config.num_experts);
    let own = "e_score_correction_bias";
    match place {
        CorrectionBias::Gate => loader.vector(&format!("{module}.gate.{own}"), count),
        CorrectionBias::Module => loader.vector(&format!("{module}.{own}"), count),
        CorrectionBias::Statics => {
            let mut row = loader.rows(&format!("{module}.moe_statics.{own}"), [1, count])?;
            row.reshape(&[count]);
            Ok(row)
        }
    }
}

fn has_gate(config: &MoeConfig) -> bool {
    config.shared.is_some_and(|shared| shared.is_gated)
}

/// The module of the shared expert's gate.
fn shared_gate(config: &MoeConfig) -> String {
    format!("{}_gate", config.shared_module())
}

/// The module of an expert's gate, up or down.
fn expert(config: &MoeConfig, expert: usize, part: usize) -> String {
    let parts = match config.names {
        ExpertNames::Mlp => ["gate_proj", "up_proj", "down_proj"],
        ExpertNames::BlockSparse => ["w1", "w3", "w2"],
        ExpertNames::Fused => unreachable!("its experts have no modules of their own"),
    };
    format!("{}.experts.{expert}.{}", config.module(), parts[part])
}

fn load_experts(loader: &Loader, config: &MoeConfig, hidden_size: usize) -> Result<Experts, LoadError> {
    let (e, i, h) = (config.num_experts, config.intermediate_size, hidden_size);
    let Loader { checkpoint, device, names } = loader;
    let modules: Vec<[String; 3]> =
        (0..e).map(|index| [0, 1, 2].map(|part| names.name(&expert(config, index, part)))).collect();
    let stored_as = names.storage.of_all(names.part, modules.as_flattened().iter().map(String::as_str))?;
    let bytes = Experts::packed_bytes(stored_as, [e, h, i]);
    if let Some(seed) = checkpoint.dummy_seed(&names.name(config.module()), bytes) {
        return Ok(Experts::random(device, stored_as, [e, h, i], 1.0 / (h as f32).sqrt(), seed));
    }
    let together = names.name(&format!("{}.experts", config.module()));
    checkpoint.kept(device, &modules[0][0], (stored_as, [e, h, i]), || {
        if checkpoint.has_experts_together(&together) {
            let taken = checkpoint.experts_together(&together, [e, i, h])?;
            return Ok(Experts::pack_rows(device, stored_as, &taken));
        }
        let mut taken = Vec::with_capacity(e);
        for [gate, up, down] in &modules {
            let take = |module: &String, n, k| {
                checkpoint.weight(module, names.storage.scheme(names.part, module), [n, k])
            };
            taken.push([take(gate, i, h)?, take(up, i, h)?, take(down, h, i)?]);
        }
        Ok(Experts::pack_rows(device, stored_as, &taken))
    })
}

/// The module of all experts of a layer, where they are in two tensors.
const FUSED: &str = "mlp.experts";

fn load_fused(loader: &Loader, config: &MoeConfig, hidden_size: usize) -> Result<Experts, LoadError> {
    let (e, i, h) = (config.num_experts, config.intermediate_size, hidden_size);
    let Loader { checkpoint, device, names } = loader;
    let module = names.name(FUSED);
    let stored_as = names.stored_as(FUSED);
    let bytes = Experts::packed_bytes(stored_as, [e, h, i]);
    if let Some(seed) = checkpoint.dummy_seed(&module, bytes) {
        return Ok(Experts::random(device, stored_as, [e, h, i], 1.0 / (h as f32).sqrt(), seed));
    }
    let [gate_up, down] = ["gate_up_proj", "down_proj"].map(|part| format!("{module}.{part}"));
    checkpoint.kept(device, &gate_up, (stored_as, [e, h, i]), || {
        let scheme = names.storage.scheme(names.part, &module);
        let both = checkpoint.fused(&gate_up, scheme, ([e, 2 * i, h], 2))?;
        let down = checkpoint.fused(&down, scheme, ([e, h, i], 1))?;
        let one = |(both, down): (Vec<_>, Vec<_>)| {
            let parts: Vec<_> = both.into_iter().chain(down).collect();
            parts.try_into().unwrap_or_else(|_| unreachable!("gate, up and down"))
        };
        let taken: Vec<[WeightTensor; 3]> = both.into_iter().zip(down).map(one).collect();
        Ok(Experts::pack_rows(device, stored_as, &taken))
    })
}

/// Biases of gate and up take turns in the files, one of each.
fn load_glu(
    loader: &Loader,
    config: &MoeConfig,
    hidden_size: usize,
    GluConfig { alpha, limit }: GluConfig,
) -> Result<BiasedGlu, LoadError> {
    let (e, i) = (config.num_experts, config.intermediate_size);
    let Loader { checkpoint, device, names } = loader;
    let name = names.name(&format!("{FUSED}.gate_up_proj_bias"));
    let width = BiasedGlu::width(i);
    let gate_up = checkpoint.kept(device, &name, (DType::F32, vec![e, width]), || {
        let both = checkpoint.take(&name, &[e, 2 * i])?.to_f32();
        let of = |side: usize| both.iter().skip(side).step_by(2).copied().collect::<Vec<f32>>();
        let turns = BiasedGlu::in_turns([e, i], [&of(0), &of(1)]);
        Ok(Tensor::from_f32(device, &[e, width], &turns))
    })?;
    let down = loader.rows(&format!("{FUSED}.down_proj_bias"), [e, hidden_size])?;
    Ok(BiasedGlu::new([alpha, limit], [gate_up, down]))
}
