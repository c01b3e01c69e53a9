//! Where the tensors of the published checkpoints are in a GGUF file: under other names, with the rows of some in another order,
//! the experts of a layer in one tensor, and the latent's two halves apart.

/// Where the rows of a published matrix or vector are.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub tensor: String,
    pub rows: RowOrder,
    /// Of the tensors that hold all experts.
    pub expert: Option<usize>,
}

impl Place {
    /// The tensor of the one expert, as the first files of Mixtral have it.
    pub fn of_one_expert(&self) -> Option<String> {
        let (path, kind) = self.tensor.split_once("_exps.")?;
        Some(format!("{path}.{}.{kind}", self.expert?))
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowOrder {
    Same,
    /// LLaMA's query and key heads: the file has rotated pairs side by side, the published checkpoint in two halves.
    Adjacent,
}

/// `architecture` as GGUF names it, `name` as the published checkpoint does; `None` for a name that no GGUF file has.
pub fn place(architecture: &str, name: &str) -> Option<Place> {
    let same = |tensor: String| Some(Place { tensor, rows: RowOrder::Same, expert: None });
    match name {
        "model.embed_tokens.weight" => return same("token_embd.weight".into()),
        "model.norm.weight" => return same("output_norm.weight".into()),
        "lm_head.weight" => return same("output.weight".into()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    if let Some((expert, matrix)) = expert_part(part) {
        let tensor = format!("blk.{layer}.ffn_{matrix}_exps.weight");
        return Some(Place { tensor, rows: RowOrder::Same, expert: Some(expert) });
    }
    let (module, kind) = part.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" if matches!(architecture, "seed_oss" | "glm4moe") => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        "post_self_attn_layernorm" => "post_attention_norm",
        "post_mlp_layernorm" => "post_ffw_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.q_a_proj" => "attn_q_a",
        "self_attn.q_a_layernorm" => "attn_q_a_norm",
        "self_attn.q_b_proj" => "attn_q_b",
        "self_attn.kv_a_proj_with_mqa" => "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm" => "attn_kv_a_norm",
        "self_attn.kv_b_proj" => "attn_kv_b",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.shared_experts.gate_proj" | "mlp.shared_expert.gate_proj" => "ffn_gate_shexp",
        "mlp.shared_experts.up_proj" | "mlp.shared_expert.up_proj" => "ffn_up_shexp",
        "mlp.shared_experts.down_proj" | "mlp.shared_expert.down_proj" => "ffn_down_shexp",
        "mlp.shared_expert_gate" => "ffn_gate_inp_shexp",
        "mlp.gate" | "block_sparse_moe" | "mlp.moe_statics" if kind == "e_score_correction_bias" => {
            return same(format!("blk.{layer}.exp_probs_b.bias"));
        }
        "mlp.gate" | "block_sparse_moe.gate" => "ffn_gate_inp",
        _ => return None,
    };
    let rows = match (architecture, module) {
        ("llama", "attn_q" | "attn_k") => RowOrder::Adjacent,
        _ => RowOrder::Same,
    };
    Some(Place { tensor: format!("blk.{layer}.{module}.{kind}"), rows, expert: None })
}

/// Expert and matrix of `mlp.experts.N.gate_proj.weight` and of Mixtral's `block_sparse_moe.experts.N.w1.weight`.
fn expert_part(part: &str) -> Option<(usize, &'static str)> {
    let rest =
        part.strip_prefix("mlp.experts.").or_else(|| part.strip_prefix("block_sparse_moe.experts."))?;
    let (expert, matrix) = rest.strip_suffix(".weight")?.split_once('.')?;
    let matrix = match matrix {
        "gate_proj" | "w1" => "gate",
        "up_proj" | "w3" => "up",
        "down_proj" | "w2" => "down",
        _ => return None,
    };
    Some((expert.parse().ok()?, matrix))
}

impl RowOrder {
    /// The file's row of a published row; heads have `head_dim` rows.
    pub fn row(self, row: usize, head_dim: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Adjacent => {
                let (head, at) = (row / head_dim, row % head_dim);
                let (half, pair) = (at / (head_dim / 2), at % (head_dim / 2));
                head * head_dim + 2 * pair + half
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_tensors() {
        let tensor = |architecture, name| place(architecture, name).map(|place| (place.tensor, place.expert));
        let some = |tensor: &str, expert| Some((tensor.to_string(), expert));
        let mixtral = "model.layers.1.block_sparse_moe.experts.2.w3.weight";
        assert_eq!(tensor("llama", mixtral), some("blk.1.ffn_up_exps.weight", Some(2)));
        let alone = place("llama", mixtral).unwrap().of_one_expert();
        assert_eq!(alone.as_deref(), Some("blk.1.ffn_up.2.weight"));
        let shared = "model.layers.1.mlp.shared_expert";
        let up = format!("{shared}.up_proj.weight");
        assert_eq!(tensor("qwen2moe", &up), some("blk.1.ffn_up_shexp.weight", None));
        let gate = format!("{shared}_gate.weight");
        assert_eq!(tensor("qwen2moe", &gate), some("blk.1.ffn_gate_inp_shexp.weight", None));
        assert_eq!(place("qwen2moe", &gate).unwrap().of_one_expert(), None);
        let norm = "model.layers.10.post_attention_layernorm.weight";
        assert_eq!(tensor("seed_oss", norm), some("blk.10.post_attention_norm.weight", None));
        assert_eq!(tensor("qwen2", norm), some("blk.10.ffn_norm.weight", None));
        let bias = "model.layers.3.mlp.gate.e_score_correction_bias";
        assert_eq!(tensor("deepseek2", bias), some("blk.3.exp_probs_b.bias", None));
        let bias = "model.layers.3.mlp.moe_statics.e_score_correction_bias";
        assert_eq!(tensor("ernie4_5-moe", bias), some("blk.3.exp_probs_b.bias", None));
        assert_eq!(tensor("glm4moe", norm), some("blk.10.post_attention_norm.weight", None));
        assert_eq!(tensor("glm4", norm), some("blk.10.ffn_norm.weight", None));
        let gate_up = "model.layers.0.mlp.gate_up_proj.weight";
        assert_eq!(tensor("glm4", gate_up), some("blk.0.ffn_up.weight", None));
        assert_eq!(tensor("llama", "model.layers.3.mlp.fifth.weight"), None);
        assert_eq!(tensor("llama", "vision_tower.weight"), None);
    }

    #[test]
    fn rotated_pairs_change_places() {
        let order = RowOrder::Adjacent;
        let rows: Vec<usize> = (0..12).map(|row| order.row(row, 6)).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
