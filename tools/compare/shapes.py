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


# Bytes of a weight: bf16 in its compact form, as on a processor with AVX512-BF16, 64 bytes of header and 12 bits a weight for each 8,192; groups of 32 with their scale in half precision.
BYTES = {"bf16": 193 / 128, "int8": 34 / 32, "int4": 18 / 32}


def cost(config, precision, job):
    """What a step of a job needs at least: bytes that come from memory, operations of products by the type of their activations, and
    how many tokens it computes. Experts are those that a router without a preference chooses. Caches of keys are bfloat16."""
    kind, size = job.split(":")
    rows, context = (int(size), int(size) / 2) if kind == "prefill" else (int(n) for n in size.split("@"))
    sampled = 1 if kind == "prefill" else rows
    held = {"head": {"int8": "bf16", "int4": "int8"}, "kv_b_proj": {"int4": "int8"}}
    count, k = config.get("n_routed_experts", 0), config.get("num_experts_per_tok", 0)
    read, flop = 0.0, {"bf16": 0.0, "int8": 0.0}
    for weight in weights(config):
        if len(weight.shape) == 1 or "embed_tokens" in weight.name:
            continue
        stored = next((by.get(precision, precision) for part, by in held.items() if part in weight.name), precision)
        size = weight.shape[0] * weight.shape[1]
        share, used = 1.0, rows
        if ".experts." in weight.name:
            share, used = 1 - (1 - k / count) ** rows, rows * k / count
        elif "lm_head" in weight.name:
            used = sampled
        elif "mlp.gate." in weight.name:
            read, flop["bf16"] = read + 4 * size, flop["bf16"] + 2 * size * rows
            continue
        if "lm_head" in weight.name and stored == "bf16" and size >= 1 << 24:
            # Greedy jobs: screened by its copy in int8; the few panels that are computed in full are left out.
            stored = "int8"
        read += BYTES[stored] * size * share
        flop["bf16" if stored == "bf16" else "int8"] += 2 * size * used
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
        cached, width = rank + rope, 2 * rank + rope
    else:
        cached, width = 2 * config["num_key_value_heads"] * config["head_dim"], 2 * config["head_dim"]
    sequences = 1 if kind == "prefill" else rows
    read += 2 * cached * layers * sequences * (0 if kind == "prefill" else context)
    flop["bf16"] += 2 * heads * width * layers * rows * context
    return read, flop, rows


def limit(config, precision, job, peaks):
    """Tokens a second that the machine could compute at best, and whether memory or arithmetic says so."""
    read, flop, rows = cost(config, precision, job)
    products = {"bf16": peaks["bf16_gflop_s"] or peaks["f32_gflop_s"], "int8": peaks["int8_gop_s"] or peaks["f32_gflop_s"]}
    seconds = {"memory": read / peaks["read_gb_s"] / 1e9, "products": sum(flop[kind] / products[kind] / 1e9 for kind in flop)}
    what = max(seconds, key=seconds.get)
    return rows / seconds[what], what
