"""Reference numbers of models/tests/gpt_oss.rs: a gpt-oss in miniature, its experts in bfloat16 and in MXFP4, of weights by formula.

    python tools/golden/gpt_oss.py

prints for both log-probabilities of four tokens after three positions, in float32, by transformers; MXFP4 is dequantised here.
"""

import numpy as np
import torch

import windows
from common import Formula, fnv1a

CONFIG = {
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "eos_token_id": 2, "experts_per_token": 2, "head_dim": 64,
    "hidden_act": "silu", "hidden_size": 64, "initial_context_length": 32, "intermediate_size": 96,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "max_position_embeddings": 256,
    "model_type": "gpt_oss", "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 3, "num_key_value_heads": 2,
    "num_local_experts": 5, "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0, "original_max_position_embeddings": 32, "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000, "sliding_window": 13, "swiglu_limit": 0.5, "tie_word_embeddings": False, "vocab_size": 128,
}
VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
LEAST_SCALE = 118  # of 2 ** (code - 127)


def shapes(c):
    hidden, width, experts, vocab = c["hidden_size"], c["intermediate_size"], c["num_local_experts"], c["vocab_size"]
    heads, kv, dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    yield "model.embed_tokens.weight", (vocab, hidden), "embed"
    yield "model.norm.weight", (hidden,), "norm"
    yield "lm_head.weight", (vocab, hidden), "head"
    for index in range(c["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{norm}.weight", (hidden,), "norm"
        for name, n, k in (("q", heads * dim, hidden), ("k", kv * dim, hidden), ("v", kv * dim, hidden), ("o", hidden, heads * dim)):
            yield f"{layer}.self_attn.{name}_proj.weight", (n, k), "linear"
            yield f"{layer}.self_attn.{name}_proj.bias", (n,), "bias"
        # Logits like those of keys, so that they take a part of the weight.
        yield f"{layer}.self_attn.sinks", (heads,), "sink"
        yield f"{layer}.mlp.router.weight", (experts, hidden), "router"
        yield f"{layer}.mlp.router.bias", (experts,), "bias"
        yield f"{layer}.mlp.experts.gate_up_proj_bias", (experts, 2 * width), "bias"
        yield f"{layer}.mlp.experts.down_proj_bias", (experts, hidden), "bias"
        yield f"{layer}.mlp.experts.gate_up_proj", (experts, hidden, 2 * width), "linear"
        yield f"{layer}.mlp.experts.down_proj", (experts, width, hidden), "linear"


def formula_bytes(name, shape):
    n = np.arange(np.prod(shape), dtype=np.uint32) * np.uint32(2654435761) + np.uint32(fnv1a(name.encode()))
    n = (n ^ (n >> 15)) * np.uint32(2246822519)
    return ((n ^ (n >> 13)) >> 24).astype(np.int64).reshape(shape)


def mxfp4(name, shape):
    """The experts [E, K, N] that blocks and scales stand for, which lie in files as [E, N, K / 32, 16] and [E, N, K / 32]."""
    experts, k, n = shape
    blocks = formula_bytes(f"{name}_blocks", (experts, n, k // 32, 16))
    scales = LEAST_SCALE + formula_bytes(f"{name}_scales", (experts, n, k // 32)) % 6
    table = np.array(VALUES + [-value for value in VALUES])
    both = np.stack([table[blocks & 15], table[blocks >> 4]], axis=-1).reshape(experts, n, k // 32, 32)
    values = both * 2.0 ** (scales[..., None] - 127)
    return torch.from_numpy(values.reshape(experts, n, k).transpose(0, 2, 1).astype(np.float32)).contiguous()


def main():
    rng = Formula("gpt_oss")
    state = {name: rng.tensor(name, shape, kind) for name, shape, kind in shapes(CONFIG)}
    print("bf16", windows.numbers(CONFIG, state))
    for name, shape, _ in shapes(CONFIG):
        if name.endswith(("gate_up_proj", "experts.down_proj")):
            state[name] = mxfp4(name, shape).to(torch.bfloat16)
    print("mxfp4", windows.numbers(CONFIG, state))


if __name__ == "__main__":
    main()
