//! What the experts of several groups of families share.

use super::family::MAX_EXPERTS;
use crate::LoadError;
use crate::config::json::Fields;
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
