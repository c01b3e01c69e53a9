//! The keys of experts, where the rest of a model is heads of queries and keys.

use super::Gguf;
use super::keys::Keys;
use crate::LoadError;
use serde_json::{Value, json};

/// Whether `experts` knows the architecture.
pub fn is_one(architecture: &str) -> bool {
    matches!(architecture, "glm4moe" | "dots1" | "minimax-m2" | "olmoe" | "ernie4_5-moe")
}

/// What config.json would say of the experts, and of what goes with them.
pub fn experts(keys: &Keys, gguf: &Gguf, set: &mut dyn FnMut(&str, Value)) -> Result<(), LoadError> {
    match keys.architecture.as_str() {
        "glm4moe" | "dots1" => {
            needs_gating(keys, SIGMOID)?;
            grouped_experts(keys, set)?;
            set("use_qk_norm", json!(gguf.has_tensor("blk.0.attn_q_norm.weight")));
        }
        "minimax-m2" => {
            needs_gating(keys, SIGMOID)?;
            plain_experts(keys, set)?;
        }
        "olmoe" => {
            needs_gating(keys, SOFTMAX)?;
            plain_experts(keys, set)?;
            set("norm_topk_prob", json!(false));
        }
        _ => {
            needs_gating(keys, SOFTMAX)?;
            set("moe_num_experts", keys.int("expert_count")?);
            set("moe_k", keys.int("expert_used_count")?);
            set("moe_intermediate_size", keys.int("expert_feed_forward_length")?);
            set("moe_num_shared_experts", json!(keys.opt_int("expert_shared_count")?.unwrap_or(0)));
            set("moe_layer_start_index", json!(keys.opt_int("leading_dense_block_count")?.unwrap_or(0)));
            set("moe_layer_interval", json!(keys.opt_int("interleave_moe_layer_step")?.unwrap_or(1)));
        }
    }
    Ok(())
}

/// All layers have experts, of the width that is also said of dense ones.
fn plain_experts(keys: &Keys, set: &mut dyn FnMut(&str, Value)) -> Result<(), LoadError> {
    set("num_experts", keys.int("expert_count")?);
    set("num_local_experts", keys.int("expert_count")?);
    set("num_experts_per_tok", keys.int("expert_used_count")?);
    set("intermediate_size", keys.int_or("expert_feed_forward_length", "feed_forward_length")?);
    Ok(())
}

/// With the keys of DeepSeek; the number of groups.
pub fn grouped_experts(keys: &Keys, set: &mut dyn FnMut(&str, Value)) -> Result<u64, LoadError> {
    set("n_routed_experts", keys.int("expert_count")?);
    set("num_experts_per_tok", keys.int("expert_used_count")?);
    set("n_shared_experts", json!(keys.opt_int("expert_shared_count")?.unwrap_or(0)));
    set("moe_intermediate_size", keys.int("expert_feed_forward_length")?);
    set("first_k_dense_replace", json!(keys.opt_int("leading_dense_block_count")?.unwrap_or(0)));
    set("routed_scaling_factor", json!(keys.opt_float("expert_weights_scale")?.unwrap_or(1.0)));
    set("norm_topk_prob", json!(keys.opt_bool("expert_weights_norm")?.unwrap_or(false)));
    let groups = keys.opt_int("expert_group_count")?.unwrap_or(1).max(1);
    set("n_group", json!(groups));
    set("topk_group", json!(keys.opt_int("expert_group_used_count")?.unwrap_or(1).max(1)));
    Ok(groups)
}

const SOFTMAX: u64 = 1;
const SIGMOID: u64 = 2;

/// A file need not say it, and 0 says nothing.
fn needs_gating(keys: &Keys, expected: u64) -> Result<(), LoadError> {
    match keys.opt_int("expert_gating_func")? {
        None | Some(0) => Ok(()),
        Some(found) if found == expected => Ok(()),
        Some(found) => {
            let message = format!("{found} is not supported for this architecture, only {expected} is");
            Err(keys.fail("expert_gating_func", message))
        }
    }
}
