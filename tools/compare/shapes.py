"""The two benchmark models: a mixture of experts in DeepSeek-V3's shape and a LLaMA of about the same number of weights."""

from dataclasses import dataclass

MOE = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 32768,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 32,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "topk_method": "noaux_tc",
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.446,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "rope_scaling": None,
    "max_position_embeddings": 16384,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0,
    "torch_dtype": "bfloat16",
}

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32768,
    "hidden_size": 1280,
    "intermediate_size": 4096,
    "num_hidden_layers": 21,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "rope_scaling": None,
    "max_position_embeddings": 16384,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

CONFIGS = {"moe": MOE, "llama": LLAMA}


@dataclass(frozen=True)
class Weight:
    """A tensor by its name in the published checkpoint. `std` 0: a norm, near one."""

    name: str
    shape: tuple
    std: float


def weights(config):
    h, v = config["hidden_size"], config["vocab_size"]
    yield Weight("model.embed_tokens.weight", (v, h), 1.0)
    for layer in range(config["num_hidden_layers"]):
        yield from layer_weights(config, layer)
    yield Weight("model.norm.weight", (h,), 0.0)
    yield matrix("lm_head.weight", v, h)


def matrix(name, n, k):
    """Rows that keep the size of what they read."""
    return Weight(name, (n, k), k**-0.5)


def layer_weights(config, layer):
    h, at = config["hidden_size"], f"model.layers.{layer}."
    yield Weight(at + "input_layernorm.weight", (h,), 0.0)
    yield Weight(at + "post_attention_layernorm.weight", (h,), 0.0)
    if "kv_lora_rank" not in config:
        heads, kv, d = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        for part, n in (("q", heads * d), ("k", kv * d), ("v", kv * d)):
            yield matrix(f"{at}self_attn.{part}_proj.weight", n, h)
        yield matrix(at + "self_attn.o_proj.weight", h, heads * d)
        yield from mlp(at + "mlp.", config["intermediate_size"], h)
        return
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    yield matrix(at + "self_attn.q_proj.weight", heads * (nope + rope), h)
    yield matrix(at + "self_attn.kv_a_proj_with_mqa.weight", rank + rope, h)
    yield Weight(at + "self_attn.kv_a_layernorm.weight", (rank,), 0.0)
    yield matrix(at + "self_attn.kv_b_proj.weight", heads * (nope + value), rank)
    yield matrix(at + "self_attn.o_proj.weight", h, heads * value)
    if layer < config["first_k_dense_replace"]:
        yield from mlp(at + "mlp.", config["intermediate_size"], h)
        return
    inner = config["moe_intermediate_size"]
    yield matrix(at + "mlp.gate.weight", config["n_routed_experts"], h)
    yield Weight(at + "mlp.gate.e_score_correction_bias", (config["n_routed_experts"],), 0.01)
    for expert in range(config["n_routed_experts"]):
        yield from mlp(f"{at}mlp.experts.{expert}.", inner, h)
    yield from mlp(at + "mlp.shared_experts.", inner * config["n_shared_experts"], h)


def mlp(at, inner, hidden):
    yield matrix(at + "gate_proj.weight", inner, hidden)
    yield matrix(at + "up_proj.weight", inner, hidden)
    yield matrix(at + "down_proj.weight", hidden, inner)
