//! What the experts of several groups of families share.

use super::family::{MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH};
use crate::LoadError;
use crate::config::json::Fields;
use crate::config::{CorrectionBias, ExpertNames, MoeConfig, SharedConfig};
use kernels::ops::{GroupScore, RouterConfig, Scoring};

pub(super) fn check_top_k(
    fields: &Fields,
    key: &str,
    top_k: usize,
    available: usize,
) -> Result<(), LoadError> {
    match top_k > available {
        true => Err(fields.fail(key, format!("{top_k} is more than the {available} experts to choose from"))),
        false => Ok(()),
    }
}

/// The number of experts, under the name that most files have or the other one that the configuration class takes for it, and that newer
/// versions of it write.
pub(super) fn num_experts(
    fields: &Fields,
    [name, other]: [&str; 2],
    default: usize,
) -> Result<usize, LoadError> {
    let name = if fields.get(name).is_none() && fields.get(other).is_some() { other } else { name };
    fields.usize_or(name, default, 1..=MAX_EXPERTS)
}

/// Softmax over all experts, the best ones taken, no groups, no bias.
pub(super) fn plain_router(top_k: usize, normalize: bool) -> RouterConfig {
    RouterConfig {
        scoring: Scoring::Softmax,
        top_k,
        num_groups: 1,
        top_groups: 1,
        group_score: GroupScore::Max,
        normalize,
        scale: 1.0,
    }
}

/// What configuration classes with DeepSeek's keys take where the file does not say it.
pub(super) struct Experts {
    /// `None`: the file has to say it.
    pub num_experts: Option<usize>,
    /// That the configuration class takes for `n_routed_experts`.
    pub other_name: &'static str,
    pub intermediate_size: usize,
    pub num_shared: usize,
    pub first_dense: usize,
}

impl Experts {
    /// Sizes, groups, and which layers have experts; `None` where none has.
    pub fn read(
        self,
        fields: &Fields,
        num_layers: usize,
        router: RouterConfig,
    ) -> Result<Option<MoeConfig>, LoadError> {
        let names = ["n_routed_experts", self.other_name];
        let num_experts = match self.num_experts {
            Some(default) => num_experts(fields, names, default)?,
            None if names.iter().all(|name| fields.get(name).is_none()) => {
                return Err(fields.fail(names[0], "is missing"));
            }
            None => num_experts(fields, names, 1)?,
        };
        let RouterConfig { top_k, num_groups, top_groups, .. } = router;
        if !num_experts.is_multiple_of(num_groups) {
            let message = format!("{num_groups} does not divide n_routed_experts = {num_experts}");
            return Err(fields.fail("n_group", message));
        }
        if top_groups > num_groups {
            return Err(fields.fail("topk_group", format!("{top_groups} is above n_group = {num_groups}")));
        }
        let group_size = num_experts / num_groups;
        if router.group_score == GroupScore::SumOfTopTwo && num_groups > 1 && group_size < 2 {
            return Err(fields.fail("n_group", format!("groups of {group_size} expert have no best two")));
        }
        check_top_k(fields, "num_experts_per_tok", top_k, top_groups * group_size)?;
        let width = fields.usize_or("moe_intermediate_size", self.intermediate_size, 1..=MAX_WIDTH)?;
        // Null means none; a key that is not there means the default of the class.
        let num_shared = match fields.has("n_shared_experts") {
            true => fields.opt_usize("n_shared_experts", 0..=MAX_EXPERTS)?.unwrap_or(0),
            false => self.num_shared,
        };
        let first = fields.usize_or("first_k_dense_replace", self.first_dense, 0..=MAX_LAYERS)?;
        let step = fields.usize_or("moe_layer_freq", 1, 1..=MAX_LAYERS)?;
        let layers: Vec<bool> = (0..num_layers).map(|i| i >= first && i.is_multiple_of(step)).collect();
        Ok(layers.contains(&true).then_some(MoeConfig {
            num_experts,
            intermediate_size: width,
            shared: (num_shared > 0)
                .then_some(SharedConfig { intermediate_size: width * num_shared, is_gated: false }),
            correction_bias: (router.scoring == Scoring::Sigmoid).then_some(CorrectionBias::Gate),
            glu: None,
            router,
            names: ExpertNames::Mlp,
            layers,
        }))
    }
}

/// DeepSeek-V3's router, with what configuration classes take where the file does not say it.
pub(super) struct SigmoidRouter {
    /// `None`: the file has to say it.
    pub top_k: Option<usize>,
    /// Of how many so many are chosen from.
    pub groups: [usize; 2],
    pub normalize: bool,
    pub scale: f64,
}

impl SigmoidRouter {
    pub fn read(self, fields: &Fields) -> Result<RouterConfig, LoadError> {
        let key = "num_experts_per_tok";
        let top_k = match self.top_k {
            Some(default) => fields.usize_or(key, default, 1..=MAX_EXPERTS)?,
            None => fields.usize(key, 1..=MAX_EXPERTS)?,
        };
        // Null means no groups, and no norm; a key that is not there means the default of the class.
        let groups =
            |key, default| fields.usize_or(key, if fields.has(key) { 1 } else { default }, 1..=MAX_EXPERTS);
        let normalize = self.normalize && !fields.has("norm_topk_prob");
        Ok(RouterConfig {
            scoring: Scoring::Sigmoid,
            top_k,
            num_groups: groups("n_group", self.groups[0])?,
            top_groups: groups("topk_group", self.groups[1])?,
            group_score: GroupScore::SumOfTopTwo,
            normalize: fields.bool_or("norm_topk_prob", normalize)?,
            scale: fields.f64_in("routed_scaling_factor", Some(self.scale), 1e-6..=1e6)? as f32,
        })
    }
}
