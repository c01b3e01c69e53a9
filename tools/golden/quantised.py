"""Tiny checkpoints whose weights are quantised, one for each published form, with log-probabilities of the weights that they stand for.

The forms are written here from their published layouts, in numpy, and the model is computed in float64 by a few lines of its own:
neither shares code with what reads them.
"""


import numpy as np
import torch
from safetensors.torch import save_file

from common import MODEL_FIXTURES, Rng, write_json

VOCAB, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 64, 64, 4, 1, 16
EPS, THETA, LAYERS, EXPERTS, TOP_K = 1e-5, 10000.0, 1, 3, 2
PROMPT = [3, 17, 42, 5, 5, 60, 1, 33, 20, 9, 51]


# Layouts -----------------------------------------------------------------------------------------------------------------

def words(numbers, bits):
    """Unsigned numbers along the last axis into 32-bit words, the first in the lowest bits."""
    per_word = 32 // bits
    pad = -numbers.shape[-1] % per_word
    numbers = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, pad)]).astype(np.uint64)
    numbers = numbers.reshape(*numbers.shape[:-1], -1, per_word)
    packed = (numbers << (bits * np.arange(per_word, dtype=np.uint64))).sum(-1).astype(np.uint32)
    return torch.from_numpy(packed.view(np.int32).copy())


def f16(x):
    return torch.from_numpy(x.astype(np.float16))


def bf16(x):
    return torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16)


def as_float(x):
    return x.to(torch.float64).numpy()


def groups(w, size):
    """Rows cut into groups along K."""
    size = w.shape[1] if size is None else size
    assert w.shape[1] % size == 0
    return w.reshape(w.shape[0], -1, size)


def symmetric(w, bits, size, to):
    g = groups(w, size)
    scale = to(np.abs(g).max(-1) / (2 ** (bits - 1) - 0.5))
    step = as_float(scale)[:, :, None]
    levels = np.clip(np.rint(g / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return levels.reshape(w.shape), scale, (levels * step).reshape(w.shape)


def with_zeros(w, size, to):
    """Unsigned levels of four bits; the zero is a level."""
    g = groups(w, size)
    low, high = np.minimum(g.min(-1), 0), np.maximum(g.max(-1), 0)
    scale = to((high - low) / 15)
    step = as_float(scale)
    zero = np.clip(np.rint(-low / step), 0, 15)
    levels = np.clip(np.rint(g / step[:, :, None]) + zero[:, :, None], 0, 15)
    return levels.reshape(w.shape), scale, zero, ((levels - zero[:, :, None]) * step[:, :, None]).reshape(w.shape)


def packed(bits, size, zeros=False):
    """compressed-tensors, `pack-quantized`."""
    def form(w):
        shape = torch.tensor(w.shape)
        if zeros:
            levels, scale, zero, meant = with_zeros(w, size, bf16)
            more = {"weight_zero_point": words(zero.T, 4).T.contiguous()}
        else:
            levels, scale, meant = symmetric(w, bits, size, bf16)
            levels, more = levels + 2 ** (bits - 1), {}
        return {"weight_packed": words(levels, bits), "weight_scale": scale, "weight_shape": shape, **more}, meant

    weights = {"num_bits": bits, "type": "int", "symmetric": not zeros, "dynamic": False, "actorder": None}
    weights |= {"strategy": "channel", "group_size": None} if size is None else {"strategy": "group", "group_size": size}
    return form, {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": ["lm_head", "re:.*self_attn.*", r"re:.*block_sparse_moe\.gate$"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
    }


def bytes_of_rows():
    """compressed-tensors, `int-quantized`: a byte for each weight, a scale for each row."""
    def form(w):
        levels, scale, meant = symmetric(w, 8, None, bf16)
        return {"weight": torch.from_numpy(levels.astype(np.int8)), "weight_scale": scale}, meant

    config = packed(8, None)[1]
    return form, config | {"format": "int-quantized"}


AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def awq(size):
    def interleave(x):
        """Columns of each eight, from the lowest bits."""
        return words(x.reshape(x.shape[0], -1, 8)[:, :, AWQ_ORDER].reshape(x.shape), 4)

    def form(w):
        levels, scale, zero, meant = with_zeros(w, size, f16)
        return {"qweight": interleave(levels.T), "qzeros": interleave(zero.T), "scales": scale.T.contiguous()}, meant

    config = {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm", "zero_point": True,
              "modules_to_not_convert": None}
    return form, config


def gptq(bits, size, zeros=False, v2=False):
    def form(w):
        if zeros:
            levels, scale, zero, meant = with_zeros(w, size, f16)
        else:
            levels, scale, meant = symmetric(w, bits, size, f16)
            middle = 2 ** (bits - 1)
            levels, zero = levels + middle, np.full(scale.shape, middle)
        stored = zero if v2 else (zero - 1) % 2**bits
        if zeros and not v2:
            # A zero of 0 cannot be stored less one: such groups do not occur in these files.
            assert (zero > 0).all()
        return {
            "qweight": words(levels, bits).T.contiguous(),
            "qzeros": words(stored.T, bits),
            "scales": scale.T.contiguous(),
            "g_idx": torch.from_numpy((np.arange(w.shape[1]) // size).astype(np.int32)),
        }, meant

    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": False, "sym": not zeros,
              "checkpoint_format": "gptq_v2" if v2 else "gptq"}
    return form, config


def fp8(block):
    def form(w):
        scale = np.zeros([-(-n // block) for n in w.shape], np.float32)
        meant, values = np.zeros_like(w), torch.zeros(w.shape, dtype=torch.float8_e4m3fn)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                at = np.s_[i * block : (i + 1) * block, j * block : (j + 1) * block]
                scale[i, j] = np.abs(w[at]).max() / 448
                values[at] = torch.from_numpy((w[at] / scale[i, j]).astype(np.float32)).to(torch.float8_e4m3fn)
                meant[at] = as_float(values[at].float()) * np.float64(scale[i, j])
        return {"weight": values, "weight_scale_inv": torch.from_numpy(scale)}, meant

    return form, {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [block, block]}


# The model ---------------------------------------------------------------------------------------------------------------

def norm(x, w):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * w


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotate(x):
    angle = np.arange(x.shape[1])[:, None] * THETA ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    a, b = x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def attention(x, w, at):
    heads = lambda name, n: (x @ w[f"{at}self_attn.{name}_proj"].T).reshape(len(x), n, HEAD_DIM).transpose(1, 0, 2)
    q, k, v = rotate(heads("q", HEADS)), rotate(heads("k", KV_HEADS)), heads("v", KV_HEADS)
    k, v = np.repeat(k, HEADS // KV_HEADS, 0), np.repeat(v, HEADS // KV_HEADS, 0)
    scores = q @ k.transpose(0, 2, 1) / HEAD_DIM**0.5
    scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
    return (softmax(scores) @ v).transpose(1, 0, 2).reshape(len(x), -1) @ w[f"{at}self_attn.o_proj"].T


def expert(x, w, at, names):
    gate, up, down = (w[f"{at}{name}"] for name in names)
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def mlp(x, w, at, moe):
    if not moe:
        return expert(x, w, f"{at}mlp.", ["gate_proj", "up_proj", "down_proj"])
    at += "block_sparse_moe."
    chances = softmax(x @ w[f"{at}gate"].T)
    chosen = np.argsort(-chances, -1, kind="stable")[:, :TOP_K]
    out = np.zeros_like(x)
    for t, ids in enumerate(chosen):
        for e in ids:
            share = chances[t, e] / chances[t, ids].sum()
            out[t] += share * expert(x[t], w, f"{at}experts.{e}.", ["w1", "w3", "w2"])
    return out


def log_probs(w, moe):
    x = w["model.embed_tokens"][PROMPT]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        x = x + attention(norm(x, w[f"{at}input_layernorm"]), w, at)
        x = x + mlp(norm(x, w[f"{at}post_attention_layernorm"]), w, at, moe)
    logits = norm(x, w["model.norm"]) @ w["lm_head"].T
    return logits - logits.max(-1, keepdims=True) - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))


# Fixtures ----------------------------------------------------------------------------------------------------------------

def modules(moe, width):
    """Name, shape, kind, and whether the form is applied."""
    out = [("model.embed_tokens", [VOCAB, HIDDEN], "embed", False), ("lm_head", [VOCAB, HIDDEN], "head", False)]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        out += [(f"{at}{name}_layernorm", [HIDDEN], "norm", False) for name in ("input", "post_attention")]
        for name, shape in (("q", [HEADS * HEAD_DIM, HIDDEN]), ("k", [KV_HEADS * HEAD_DIM, HIDDEN]),
                            ("v", [KV_HEADS * HEAD_DIM, HIDDEN]), ("o", [HIDDEN, HEADS * HEAD_DIM])):
            out.append((f"{at}self_attn.{name}_proj", shape, "linear", not moe))
        up, down = [width, HIDDEN], [HIDDEN, width]
        if moe:
            out.append((f"{at}block_sparse_moe.gate", [EXPERTS, HIDDEN], "router", False))
            for e in range(EXPERTS):
                parts = zip(("w1", "w3", "w2"), (up, up, down))
                out += [(f"{at}block_sparse_moe.experts.{e}.{name}", shape, "linear", True) for name, shape in parts]
        else:
            parts = zip(("gate", "up", "down"), (up, up, down))
            out += [(f"{at}mlp.{name}_proj", shape, "linear", True) for name, shape in parts]
    return out + [("model.norm", [HIDDEN], "norm", False)]


# Name: form and configuration, experts or not, width of the MLP.
FIXTURES = {
    "compressed_int4": (packed(4, 32), True, 64),
    "compressed_int4_zeros": (packed(4, 32, zeros=True), True, 64),
    "compressed_int8": (packed(8, None), True, 40),
    "compressed_bytes": (bytes_of_rows(), True, 40),
    "awq": (awq(64), False, 128),
    "gptq": (gptq(4, 64), False, 128),
    "gptq_int8": (gptq(8, 32), False, 64),
    "gptq_zeros": (gptq(4, 32, zeros=True), False, 96),
    "gptq_v2_zeros": (gptq(4, 32, zeros=True, v2=True), False, 96),
    "fp8": (fp8(128), False, 136),
}


def generate():
    for name, ((form, quantization), moe, width) in FIXTURES.items():
        rng, tensors, meant = Rng(f"quantised_{name}"), {}, {}
        for module, shape, kind, is_quantised in modules(moe, width):
            w = rng.tensor(module, shape, kind)
            if is_quantised:
                parts, meant[module] = form(as_float(w))
                tensors |= {f"{module}.{part}": tensor.contiguous() for part, tensor in parts.items()}
            else:
                tensors[f"{module}.weight"], meant[module] = w, as_float(w)
        folder = MODEL_FIXTURES / "quantised" / name
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = {
            "architectures": ["MixtralForCausalLM" if moe else "LlamaForCausalLM"],
            "model_type": "mixtral" if moe else "llama",
            "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": width, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "hidden_act": "silu",
            "rms_norm_eps": EPS, "rope_theta": THETA, "max_position_embeddings": 512, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "quantization_config": quantization,
        }
        if moe:
            config |= {"num_local_experts": EXPERTS, "num_experts_per_tok": TOP_K, "sliding_window": None}
        write_json(folder / "config.json", config)
        write_json(folder / "golden.json", {"prompt_token_ids": PROMPT})
        expected = torch.from_numpy(log_probs(meant, moe).astype(np.float32))
        save_file({"log_probs": expected}, folder / "golden.safetensors")


if __name__ == "__main__":
    generate()
