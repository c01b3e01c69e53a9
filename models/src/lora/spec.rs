//! Which modules of a model an adapter may change, their shapes and their names: all from the model's configuration.

use crate::config::{
    AttentionConfig, DecoderConfig, ExpertNames, GqaConfig, MlaConfig, ModelConfig, MoeConfig,
};
use crate::{LoadError, ModelFiles};

/// What the adapters of a model may be. Cheap to share; an adapter is read against it on any thread.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSpec {
    /// Before the number of a layer in the names of the model's tensors, such as `language_model.model.layers.`.
    pub(crate) prefix: String,
    /// The same in adapters of newer versions of the published code, where these have another name for it.
    pub(crate) newer_prefix: Option<String>,
    /// Of each layer, what may be changed in it beside its experts.
    pub(crate) layers: Vec<Vec<Module>>,
    /// Where single experts may be changed.
    pub(crate) experts: Option<ExpertModules>,
    /// The output head. It is in no layer, and counts as one of the first.
    pub(crate) head: Module,
    /// Sizes of the heads that `kv_b_proj` makes keys and values for.
    pub(crate) latent: Option<LatentHeads>,
    pub(crate) max_rank: usize,
    /// Names of what is never changed, each with what to say of it.
    pub(crate) refused: Vec<Refused>,
}

/// A linear layer of the model, `[n, k]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    pub target: Target,
    /// Within its layer, such as `self_attn.q_proj`.
    pub name: String,
    pub n: usize,
    pub k: usize,
}

/// Which linear layer of a layer, or the head. A layer has a dense MLP or an expert that every token takes: the last three are of the one it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Q,
    K,
    V,
    /// `q_a_proj`: to the query's latent.
    QDown,
    /// `q_b_proj`: from it.
    QUp,
    /// `kv_a_proj_with_mqa`: to the latent that is cached.
    KvDown,
    /// `kv_b_proj`: keys and values from it.
    KvUp,
    Out,
    Gate,
    Up,
    Down,
    /// Of the expert with this number.
    Expert(ExpertPart, u32),
    /// `lm_head`
    Head,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ExpertPart {
    Gate,
    Up,
    Down,
}

/// The experts of which a router chooses.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExpertModules {
    /// For each layer whether it has experts.
    pub layers: Vec<bool>,
    /// Before the number of an expert, such as `mlp.experts.`.
    path: &'static str,
    /// After it: gate, up and down.
    names: [&'static str; 3],
    pub count: usize,
    /// Experts of a token.
    pub top_k: usize,
    pub hidden: usize,
    pub inner: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LatentHeads {
    pub num_heads: usize,
    pub rank: usize,
    pub nope_dim: usize,
    /// With the part that is rotated.
    pub query_dim: usize,
    pub value_dim: usize,
}

/// A part of a module's path, and why a module with it is not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub part: &'static str,
    pub reason: &'static str,
}

/// How large an adapter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AdapterLimits {
    pub max_rank: usize,
    /// Whether single experts may be changed, where the model has some.
    pub experts: bool,
}

impl AdapterSpec {
    /// Of a model that is not loaded, for tools that work on files: all that can be changed. `max_rank`: the largest rank that is taken.
    pub fn of_model(files: &ModelFiles, max_rank: usize) -> Result<Self, LoadError> {
        Ok(Self::new(&ModelConfig::read(files)?.decoder, AdapterLimits { max_rank, experts: true }))
    }

    pub fn max_rank(&self) -> usize {
        self.max_rank
    }

    pub(crate) fn new(config: &DecoderConfig, limits: AdapterLimits) -> Self {
        let AdapterLimits { max_rank, experts } = limits;
        let layers = (0..config.num_layers).map(|index| modules(config, index)).collect();
        let latent = match &config.attention {
            AttentionConfig::Gqa(_) => None,
            AttentionConfig::Mla(a) => Some(LatentHeads {
                num_heads: a.num_heads,
                rank: a.kv_lora_rank,
                nope_dim: a.nope_dim,
                query_dim: a.query_dim(),
                value_dim: a.value_dim,
            }),
        };
        let prefix = format!("{}{}layers.", config.prefix, config.body);
        let newer_prefix = config.newer_prefix.map(|prefix| format!("{prefix}layers."));
        let experts = config.moe.as_ref().filter(|_| experts).and_then(|moe| experts_of(moe, config));
        let refused = refused(config, experts.is_some());
        let name = format!("{}lm_head", config.prefix);
        let head = Module { target: Target::Head, name, n: config.vocab_size, k: config.hidden_size };
        Self { prefix, newer_prefix, layers, experts, head, latent, max_rank, refused }
    }

    pub(crate) fn module(&self, layer: usize, target: Target) -> Option<Module> {
        match target {
            Target::Expert(part, index) => self.experts.as_ref()?.module(layer, part, index),
            Target::Head => (layer == 0).then(|| self.head.clone()),
            _ => self.layers.get(layer)?.iter().find(|module| module.target == target).cloned(),
        }
    }

    /// A module's path in the model.
    pub(crate) fn path(&self, layer: usize, module: &Module) -> String {
        match module.target {
            Target::Head => module.name.clone(),
            _ => format!("{}{layer}.{}", self.prefix, module.name),
        }
    }

    /// By its name within its layer.
    pub(crate) fn named(&self, layer: usize, name: &str) -> Option<Module> {
        let expert = || self.experts.as_ref()?.named(layer, name);
        self.layers.get(layer)?.iter().find(|known| known.name == name).cloned().or_else(expert)
    }

    /// Numbers of the largest adapter.
    pub(crate) fn max_parameters(&self) -> u64 {
        let own = self.layers.iter().flatten().map(|module| module.n + module.k).sum::<usize>();
        let experts = self.experts.as_ref().map_or(0, |experts| {
            let layers = experts.layers.iter().filter(|&&layer| layer).count();
            3 * layers * experts.count * (experts.hidden + experts.inner)
        });
        self.max_rank as u64 * (own + experts + self.head.n + self.head.k) as u64
    }

    /// The names of modules that are changed in some layer, for messages.
    pub(crate) fn module_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for module in self.layers.iter().flatten() {
            if !names.contains(&module.name) {
                names.push(module.name.clone());
            }
        }
        if let Some(ExpertModules { path, names: parts, .. }) = &self.experts {
            names.extend(parts.iter().map(|part| format!("{path}E.{part}")));
        }
        names
    }
}

impl ExpertModules {
    fn module(&self, layer: usize, part: ExpertPart, index: u32) -> Option<Module> {
        if !*self.layers.get(layer)? || index as usize >= self.count {
            return None;
        }
        let (name, [n, k]) = match part {
            ExpertPart::Gate => (self.names[0], [self.inner, self.hidden]),
            ExpertPart::Up => (self.names[1], [self.inner, self.hidden]),
            ExpertPart::Down => (self.names[2], [self.hidden, self.inner]),
        };
        let target = Target::Expert(part, index);
        Some(Module { target, name: format!("{}{index}.{name}", self.path), n, k })
    }

    fn named(&self, layer: usize, name: &str) -> Option<Module> {
        let (index, part) = name.strip_prefix(self.path)?.split_once('.')?;
        let part = match self.names.iter().position(|known| *known == part)? {
            0 => ExpertPart::Gate,
            1 => ExpertPart::Up,
            _ => ExpertPart::Down,
        };
        // Written as the number is: no second name for one module.
        self.module(layer, part, index.parse().ok()?).filter(|module| module.name == name)
    }
}

/// `None`: they have no modules of their own.
fn experts_of(moe: &MoeConfig, config: &DecoderConfig) -> Option<ExpertModules> {
    let (path, names) = match moe.names {
        ExpertNames::Mlp => ("mlp.experts.", ["gate_proj", "up_proj", "down_proj"]),
        ExpertNames::BlockSparse => ("block_sparse_moe.experts.", ["w1", "w3", "w2"]),
        ExpertNames::Fused => return None,
    };
    Some(ExpertModules {
        layers: (0..config.num_layers).map(|layer| config.is_moe(layer)).collect(),
        path,
        names,
        count: moe.num_experts,
        top_k: moe.router.top_k,
        hidden: config.hidden_size,
        inner: moe.intermediate_size,
    })
}

fn modules(config: &DecoderConfig, index: usize) -> Vec<Module> {
    let mut modules = match &config.attention {
        AttentionConfig::Gqa(a) => gqa(a, config.hidden_size),
        AttentionConfig::Mla(a) => mla(a, config.hidden_size),
    };
    let dense = ("mlp".to_string(), Some(config.intermediate_size));
    let (path, width) = match config.moe.as_ref().filter(|_| config.is_moe(index)) {
        None => dense,
        Some(moe) => (moe.shared_module(), moe.shared.map(|shared| shared.intermediate_size)),
    };
    let fused = config.fused_gate_up && !config.is_moe(index);
    if let Some(width) = width {
        let hidden = config.hidden_size;
        for (target, name, n, k) in [
            (Target::Gate, "gate_proj", width, hidden),
            (Target::Up, "up_proj", width, hidden),
            (Target::Down, "down_proj", hidden, width),
        ] {
            if !fused || target == Target::Down {
                modules.push(Module { target, name: format!("{path}.{name}"), n, k });
            }
        }
    }
    modules
}

fn attention(modules: &[(Target, &str, usize, usize)]) -> Vec<Module> {
    let module = |&(target, name, n, k): &(Target, &str, usize, usize)| Module {
        target,
        name: format!("self_attn.{name}"),
        n,
        k,
    };
    modules.iter().map(module).collect()
}

fn gqa(config: &GqaConfig, hidden: usize) -> Vec<Module> {
    let (width, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    attention(&[
        (Target::Q, "q_proj", width, hidden),
        (Target::K, "k_proj", kv, hidden),
        (Target::V, "v_proj", kv, hidden),
        (Target::Out, "o_proj", hidden, width),
    ])
}

fn mla(config: &MlaConfig, hidden: usize) -> Vec<Module> {
    let MlaConfig { num_heads, q_lora_rank, kv_lora_rank, nope_dim, value_dim, expand_from, .. } = *config;
    let query = num_heads * config.query_dim();
    let mut modules = match q_lora_rank {
        None => vec![(Target::Q, "q_proj", query, hidden)],
        Some(rank) => {
            vec![(Target::QDown, "q_a_proj", rank, hidden), (Target::QUp, "q_b_proj", query, rank)]
        }
    };
    modules.push((Target::KvDown, "kv_a_proj_with_mqa", config.row(), hidden));
    // The expanded form makes keys and values of the model's own matrices.
    if expand_from.is_none() {
        modules.push((Target::KvUp, "kv_b_proj", num_heads * (nope_dim + value_dim), kv_lora_rank));
    }
    modules.push((Target::Out, "o_proj", hidden, num_heads * value_dim));
    attention(&modules)
}

fn refused(config: &DecoderConfig, takes_experts: bool) -> Vec<Refused> {
    let fused =
        "experts in one parameter (target_parameters) are not supported, only a module for each expert is";
    let mut refused = vec![
        Refused { part: ".experts.lora_", reason: fused },
        Refused { part: ".experts.base_layer", reason: fused },
        Refused { part: "embed_tokens", reason: "an adapter of the embedding is not supported" },
        Refused { part: "vision_tower", reason: "an adapter of the vision tower is not supported" },
        Refused { part: "visual.", reason: "an adapter of the vision tower is not supported" },
        Refused {
            part: "multi_modal_projector",
            reason: "an adapter of the vision projector is not supported",
        },
        Refused { part: "norm", reason: "a norm has no adapter" },
        Refused { part: "gate_up_proj", reason: "an adapter of gate and up in one matrix is not supported" },
        Refused {
            part: "shared_expert_gate",
            reason: "an adapter of the shared expert's gate is not supported",
        },
        Refused { part: "mlp.gate.", reason: "an adapter of the router is not supported" },
        Refused { part: "block_sparse_moe.gate.", reason: "an adapter of the router is not supported" },
        Refused { part: "mlp.router.", reason: "an adapter of the router is not supported" },
    ];
    if !takes_experts {
        let reason = match config.moe {
            Some(MoeConfig { names: ExpertNames::Fused, .. }) => fused,
            Some(_) => "an adapter of single experts needs lora_experts, which sets memory aside for it",
            None => "the model has no experts",
        };
        refused.push(Refused { part: ".experts.", reason });
    }
    if config.expand_from().is_some() {
        let reason = "an adapter of kv_b_proj is not supported together with mla_expand_from";
        refused.push(Refused { part: "kv_b_proj", reason });
    }
    refused
}
