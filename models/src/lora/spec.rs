//! Which modules of a model an adapter may change, their shapes and their names: all from the model's configuration.

use crate::config::{AttentionConfig, DecoderConfig, GqaConfig, MlaConfig, ModelConfig};
use crate::{LoadError, ModelFiles};

/// What the adapters of a model may be. Cheap to share; an adapter is read against it on any thread.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSpec {
    /// Before the number of a layer in the names of the model's tensors, such as `language_model.model.layers.`.
    pub(crate) prefix: String,
    /// Of each layer, what may be changed in it.
    pub(crate) layers: Vec<Vec<Module>>,
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

/// Which linear layer of a layer. A layer has a dense MLP or an expert that every token takes: the last three are of the one it has.
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

impl AdapterSpec {
    /// Of a model that is not loaded: for tools that work on files. `max_rank`: the largest rank that is taken.
    pub fn of_model(files: &ModelFiles, max_rank: usize) -> Result<Self, LoadError> {
        Ok(Self::new(&ModelConfig::read(files)?.decoder, max_rank))
    }

    pub fn max_rank(&self) -> usize {
        self.max_rank
    }

    pub(crate) fn new(config: &DecoderConfig, max_rank: usize) -> Self {
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
        let prefix = format!("{}model.layers.", config.prefix);
        Self { prefix, layers, latent, max_rank, refused: refused(config) }
    }

    /// Numbers of the largest adapter.
    pub(crate) fn max_parameters(&self) -> u64 {
        self.layers.iter().flatten().map(|module| (self.max_rank * (module.n + module.k)) as u64).sum()
    }

    /// The names of modules that are changed in some layer, for messages.
    pub(crate) fn module_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for module in self.layers.iter().flatten() {
            if !names.contains(&module.name.as_str()) {
                names.push(&module.name);
            }
        }
        names
    }
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
    if let Some(width) = width {
        let hidden = config.hidden_size;
        for (target, name, n, k) in [
            (Target::Gate, "gate_proj", width, hidden),
            (Target::Up, "up_proj", width, hidden),
            (Target::Down, "down_proj", hidden, width),
        ] {
            modules.push(Module { target, name: format!("{path}.{name}"), n, k });
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

fn refused(config: &DecoderConfig) -> Vec<Refused> {
    let mut refused = vec![
        Refused { part: ".experts.", reason: "adapters of single experts are not supported" },
        Refused { part: "embed_tokens", reason: "an adapter of the embedding is not supported" },
        Refused { part: "lm_head", reason: "an adapter of the output head is not supported" },
        Refused { part: "vision_tower", reason: "an adapter of the vision tower is not supported" },
        Refused {
            part: "multi_modal_projector",
            reason: "an adapter of the vision projector is not supported",
        },
        Refused { part: "norm", reason: "a norm has no adapter" },
        Refused {
            part: "shared_expert_gate",
            reason: "an adapter of the shared expert's gate is not supported",
        },
        Refused { part: "mlp.gate.", reason: "an adapter of the router is not supported" },
        Refused { part: "block_sparse_moe.gate.", reason: "an adapter of the router is not supported" },
    ];
    if config.expand_from().is_some() {
        let reason = "an adapter of kv_b_proj is not supported together with mla_expand_from";
        refused.push(Refused { part: "kv_b_proj", reason });
    }
    refused
}
