"""Writes a benchmark model twice from the same random weights, rounded to bfloat16: in the Hugging Face format and as GGUF, and the
GGUF quantised by llama.cpp. Values depend on the tensor's name only."""

import ctypes
import json
import struct
import zlib
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from shapes import CONFIGS, weights

BF16, Q8_0 = gguf.GGMLQuantizationType.BF16.value, gguf.GGMLQuantizationType.Q8_0.value

# The k-quants keep some matrices at more bits; `pure` does not, so that the sizes are those of the name.
QUANTS = {
    "int8": ("Q8_0", llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0),
    "int4": ("Q4_K", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S),
    "int4_0": ("Q4_0", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0),
}


def values(weight):
    """float32 that bfloat16 holds exactly."""
    rng = np.random.default_rng(zlib.crc32(weight.name.encode()))
    if weight.std == 0.0:
        return round_to_bf16(1.0 + 0.1 * rng.standard_normal(weight.shape, dtype=np.float32))
    return round_to_bf16(weight.std * rng.standard_normal(weight.shape, dtype=np.float32))


def round_to_bf16(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def bf16_bytes(x):
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)


def is_f32(name):
    return name.endswith("e_score_correction_bias")


def write_published(config, directory):
    """One safetensors file and config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for weight in weights(config):
        size = 4 if is_f32(weight.name) else 2
        length = size * int(np.prod(weight.shape))
        header[weight.name] = {
            "dtype": "F32" if size == 4 else "BF16",
            "shape": list(weight.shape),
            "data_offsets": [end, end + length],
        }
        end += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for weight in weights(config):
            x = values(weight)
            file.write((x if is_f32(weight.name) else bf16_bytes(x)).tobytes())


def write_gguf(config, path):
    is_moe = "kv_lora_rank" in config
    writer = gguf.GGUFWriter(path, "deepseek2" if is_moe else "llama")
    heads, h = config["num_attention_heads"], config["hidden_size"]
    writer.add_name("benchmark")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(h)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    # Token ids go in as they are.
    writer.add_tokenizer_model("none")
    if is_moe:
        add_moe_keys(writer, config)
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_rope_dimension_count(config["head_dim"])
    for name, array in gguf_tensors(config):
        if array.ndim == 1 or name.endswith("ffn_gate_inp.weight"):
            writer.add_tensor(name, array.astype(np.float32))
        else:
            shape = array.shape[:-1] + (array.shape[-1] * 2,)
            writer.add_tensor(name, bf16_bytes(array).view(np.uint8).reshape(shape), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_moe_keys(writer, config):
    rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    # In llama.cpp the latent is one key-value head that all heads share.
    writer.add_head_count_kv(1)
    writer.add_key_length(rank + rope)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_kv_lora_rank(rank)
    writer.add_q_lora_rank(0)
    writer.add_rope_dimension_count(rope)
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def gguf_tensors(config):
    by_name = {weight.name: weight for weight in weights(config)}
    get = lambda name: values(by_name[name])
    yield "token_embd.weight", get("model.embed_tokens.weight")
    yield "output_norm.weight", get("model.norm.weight")
    yield "output.weight", get("lm_head.weight")
    for layer in range(config["num_hidden_layers"]):
        at, to = f"model.layers.{layer}.", f"blk.{layer}."
        yield to + "attn_norm.weight", get(at + "input_layernorm.weight")
        yield to + "ffn_norm.weight", get(at + "post_attention_layernorm.weight")
        yield to + "attn_output.weight", get(at + "self_attn.o_proj.weight")
        if "kv_lora_rank" in config:
            yield from mla_tensors(config, get, at + "self_attn.", to)
        else:
            for part, num_heads in (("q", config["num_attention_heads"]), ("k", config["num_key_value_heads"])):
                yield f"{to}attn_{part}.weight", to_adjacent(get(f"{at}self_attn.{part}_proj.weight"), num_heads)
            yield to + "attn_v.weight", get(at + "self_attn.v_proj.weight")
        if at + "mlp.gate.weight" not in by_name:
            for part in ("gate", "up", "down"):
                yield f"{to}ffn_{part}.weight", get(f"{at}mlp.{part}_proj.weight")
            continue
        yield to + "ffn_gate_inp.weight", get(at + "mlp.gate.weight")
        yield to + "exp_probs_b.bias", get(at + "mlp.gate.e_score_correction_bias")
        for part in ("gate", "up", "down"):
            experts = [get(f"{at}mlp.experts.{e}.{part}_proj.weight") for e in range(config["n_routed_experts"])]
            yield f"{to}ffn_{part}_exps.weight", np.stack(experts)
            yield f"{to}ffn_{part}_shexp.weight", get(f"{at}mlp.shared_experts.{part}_proj.weight")


def mla_tensors(config, get, at, to):
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    yield to + "attn_q.weight", get(at + "q_proj.weight")
    yield to + "attn_kv_a_mqa.weight", get(at + "kv_a_proj_with_mqa.weight")
    yield to + "attn_kv_a_norm.weight", get(at + "kv_a_layernorm.weight")
    both = get(at + "kv_b_proj.weight").reshape(config["num_attention_heads"], nope + value, -1)
    yield to + "attn_k_b.weight", np.ascontiguousarray(both[:, :nope].transpose(0, 2, 1))
    yield to + "attn_v_b.weight", np.ascontiguousarray(both[:, nope:])


def to_adjacent(matrix, num_heads):
    """llama.cpp turns adjacent pairs, the published weights are for halves."""
    n, k = matrix.shape
    return matrix.reshape(num_heads, 2, n // num_heads // 2, k).swapaxes(1, 2).reshape(n, k)


def quantise(source, target, ftype):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = ftype, True, 2
    # The head as Perilune keeps it: bfloat16 beside int8, and int8 beside int4.
    is_int8 = ftype == llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.output_tensor_type = BF16 if is_int8 else Q8_0
    params.token_embedding_type = BF16
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama.cpp did not quantise {source}")


def write(shape, directory):
    """Returns the folder of the published format and the GGUF of each precision. What is there is not written again."""
    config, directory = CONFIGS[shape], Path(directory) / shape
    published, plain = directory / "published", directory / "bf16.gguf"
    if not (published / "model.safetensors").exists():
        write_published(config, published)
    if not plain.exists():
        write_gguf(config, plain)
    ggufs = {"bf16": plain}
    for precision, (name, ftype) in QUANTS.items():
        path = directory / f"{name}.gguf"
        if not path.exists():
            quantise(plain, path, ftype)
        ggufs[precision] = path
    return published, ggufs
