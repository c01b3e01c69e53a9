"""The text-only checkpoints: published configs in miniature, weights, reference outputs.

Each entry of FAMILIES says what is special about it. Keys and their spelling (old `rope_theta` / `rope_scaling`, new
`rope_parameters`) follow a published config of the family; only sizes are small.
"""

import json
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM

import tensors
from common import MODEL_FIXTURES, Formula, Rng, write_arrays, write_checkpoint, write_json
from reference import run_case

PROMPT_LENGTHS = (1, 5, 17, 70)
# Where there is no file of weights, there is little else either: no distribution but the last.
FORMULA_PROMPT_LENGTHS = (5, 29)


@dataclass
class Family:
    config: dict
    shapes: list
    dtype: torch.dtype = torch.bfloat16
    num_shards: int = 1
    # Stored tensors that a loader must skip: (name, tensor). MTP layers are in `shapes` and named by `skipped_prefix`.
    leftovers: dict = field(default_factory=dict)
    skipped_prefix: str = ""
    # Tensor name endings kept in float32, as in the published files.
    float32_endings: tuple = ()
    generation: dict = field(default_factory=dict)
    # Weights that the tests make themselves (common.Formula): their file is not kept.
    by_formula: bool = False


def llama2():
    config = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 40, "initializer_range": 0.02, "intermediate_size": 104,
        "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.32.0", "use_cache": True, "vocab_size": 128,
    }
    return Family(config, list(tensors.dense(config, 10)))


def llama1():
    """No rope_theta, no num_key_value_heads; float16 weights; one row more than a round vocabulary, as in Alpaca;
    rotary_emb.inv_freq leftovers that must be ignored (they are wrong on purpose)."""
    config = {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 88, "max_position_embeddings": 2048,
        "max_sequence_length": 2048, "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2,
        "pad_token_id": 0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.28.0.dev0", "use_cache": True, "vocab_size": 97,
    }
    leftovers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.full((4,), 0.5) for i in range(2)}
    return Family(config, list(tensors.dense(config, 8)), dtype=torch.float16, leftovers=leftovers)


def llama31():
    """Grouped queries, llama3 rope scaling with all three frequency bands, tied head, three end tokens."""
    config = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 120,
        "eos_token_id": [121, 122, 123], "head_dim": 16, "hidden_act": "silu", "hidden_size": 48,
        "initializer_range": 0.02, "intermediate_size": 112, "max_position_embeddings": 512, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": 3, "num_hidden_layers": 3, "num_key_value_heads": 1,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 64, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128,
    }
    generation = {"bos_token_id": 120, "do_sample": True, "eos_token_id": [121, 122, 123], "temperature": 0.6,
                  "top_p": 0.9, "transformers_version": "4.45.0.dev0"}
    return Family(config, list(tensors.dense(config, 16)), generation=generation)


def qwen2():
    """Bias on q, k and v, tied head, sliding window keys that are switched off."""
    config = {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 125, "eos_token_id": 126,
        "hidden_act": "silu", "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 120,
        "max_position_embeddings": 32768, "max_window_layers": 2, "model_type": "qwen2", "num_attention_heads": 6,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "sliding_window": 16, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False, "vocab_size": 130,
    }
    generation = {"bos_token_id": 125, "pad_token_id": 125, "do_sample": True, "eos_token_id": [126, 125],
                  "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
                  "transformers_version": "4.37.0"}
    return Family(config, list(tensors.dense(config, 8, qkv_bias=True)), generation=generation)


def qwen3():
    """RMS norm of q and k, explicit head_dim (q is wider than hidden), new-style rope_parameters."""
    config = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 125,
        "dtype": "bfloat16", "eos_token_id": 126, "head_dim": 16, "hidden_act": "silu", "hidden_size": 40,
        "initializer_range": 0.02, "intermediate_size": 96,
        "layer_types": ["full_attention", "full_attention"], "max_position_embeddings": 40960, "max_window_layers": 2,
        "model_type": "qwen3", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_window": None, "tie_word_embeddings": False, "transformers_version": "5.0.0", "use_cache": True,
        "use_sliding_window": False, "vocab_size": 128,
    }
    return Family(config, list(tensors.dense(config, 16, qk_norm=True)))


def qwen3_moe():
    """Softmax router, renormalised top 3 of 8; layer 1 is dense by mlp_only_layers."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 125, "decoder_sparse_step": 1, "eos_token_id": 126, "head_dim": 12, "hidden_act": "silu",
        "hidden_size": 40, "initializer_range": 0.02, "intermediate_size": 72, "max_position_embeddings": 40960,
        "max_window_layers": 3, "mlp_only_layers": [1], "model_type": "qwen3_moe", "moe_intermediate_size": 20,
        "norm_topk_prob": True, "num_attention_heads": 4, "num_experts": 8, "num_experts_per_tok": 3,
        "num_hidden_layers": 3, "num_key_value_heads": 2, "output_router_logits": False, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
        "use_sliding_window": False, "vocab_size": 128,
    }
    return Family(config, list(tensors.qwen3_moe(config)))


def qwen2_moe():
    """Softmax router, top 3 of 6 that are not renormalised, an expert for all tokens behind a gate; of six layers three are
    dense by decoder_sparse_step and one by mlp_only_layers. Weights by formula."""
    config = {
        "architectures": ["Qwen2MoeForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 125,
        "decoder_sparse_step": 2, "eos_token_id": 126, "hidden_act": "silu", "hidden_size": 40,
        "initializer_range": 0.02, "intermediate_size": 72, "max_position_embeddings": 8192, "max_window_layers": 6,
        "mlp_only_layers": [1], "model_type": "qwen2_moe", "moe_intermediate_size": 20, "norm_topk_prob": False,
        "num_attention_heads": 4, "num_experts": 6, "num_experts_per_tok": 3, "num_hidden_layers": 6,
        "num_key_value_heads": 2, "output_router_logits": False, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 64, "sliding_window": 32768,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.39.0.dev0",
        "use_cache": True, "use_sliding_window": False, "vocab_size": 128,
    }
    return Family(config, list(tensors.qwen2_moe(config)), by_formula=True)


def mistral():
    """As LLaMA, with a head_dim of its own and a window, within which the prompts stay. Weights by formula."""
    config = {
        "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "head_dim": 16, "hidden_act": "silu", "hidden_size": 40, "initializer_range": 0.02, "intermediate_size": 56,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 300,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0",
        "use_cache": True, "vocab_size": 128,
    }
    return Family(config, list(tensors.dense(config, 16)), by_formula=True)


def mixtral():
    """block_sparse_moe names, w1 / w3 / w2 experts, two shards with an index."""
    config = {
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 40, "initializer_range": 0.02, "intermediate_size": 36,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 4,
        "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_local_experts": 6,
        "output_router_logits": False, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
        "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.36.0.dev0", "use_cache": True, "vocab_size": 128,
    }
    return Family(config, list(tensors.mixtral(config)), num_shards=2)


def seed_oss():
    """Bias on q, k and v but not on o; q is wider than hidden; rope_scaling of type default."""
    config = {
        "architectures": ["SeedOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.1,
        "attention_out_bias": False, "bos_token_id": 0, "eos_token_id": 2, "head_dim": 14, "hidden_act": "silu",
        "hidden_size": 40, "initializer_range": 0.02, "intermediate_size": 100, "max_position_embeddings": 524288,
        "mlp_bias": False, "model_type": "seed_oss", "num_attention_heads": 6, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "pad_token_id": 1, "residual_dropout": 0.1, "rms_norm_eps": 1e-6,
        "rope_scaling": {"rope_type": "default"}, "rope_theta": 10000000.0, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.55.0", "use_cache": True, "vocab_size": 128,
    }
    generation = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "temperature": 1.1, "top_p": 0.95,
                  "transformers_version": "4.55.0"}
    return Family(config, list(tensors.dense(config, 14, qkv_bias=True)), generation=generation)


def deepseek_common():
    return {
        "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "bos_token_id": 0,
        "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 40,
        "initializer_range": 0.02, "intermediate_size": 72, "kv_lora_rank": 16, "max_position_embeddings": 8192,
        "moe_intermediate_size": 20, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 8, "n_shared_experts": 2,
        "norm_topk_prob": True, "num_attention_heads": 4, "num_experts_per_tok": 3, "num_hidden_layers": 3,
        "num_key_value_heads": 4, "num_nextn_predict_layers": 0, "pretraining_tp": 1, "q_lora_rank": None,
        "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "rms_norm_eps": 1e-5, "rope_scaling": None,
        "rope_theta": 50000.0, "routed_scaling_factor": 2.446, "scoring_func": "sigmoid", "seq_aux": True,
        "tie_word_embeddings": False, "topk_group": 1, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3", "use_cache": True, "v_head_dim": 10, "vocab_size": 128,
    }


def moonlight():
    """Sigmoid router with a correction bias (stored in bfloat16 here), no q_lora, no rope scaling. rms_norm_eps is 1e-5
    but kv_a_layernorm uses 1e-6. inv_freq leftovers."""
    config = {"architectures": ["DeepseekV3ForCausalLM"], **deepseek_common(), "model_type": "deepseek_v3"}
    leftovers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.full((4,), 0.5) for i in range(3)}
    return Family(config, list(tensors.deepseek(config, "router_bias")), leftovers=leftovers)


def deepseek_v3():
    """q_lora, expert groups, YaRN whose mscale enters the softmax scale, an MTP layer that must be skipped."""
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], **deepseek_common(), "model_type": "deepseek_v3",
        "max_position_embeddings": 163840, "n_group": 4, "topk_group": 2, "n_routed_experts": 16,
        "moe_intermediate_size": 12, "n_shared_experts": 1, "num_experts_per_tok": 4, "num_nextn_predict_layers": 1,
        "q_lora_rank": 14, "rms_norm_eps": 1e-6, "rope_theta": 10000, "routed_scaling_factor": 2.5,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                         "original_max_position_embeddings": 4096, "type": "yarn"},
    }
    generation = {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": True,
                  "temperature": 0.6, "top_p": 0.95, "transformers_version": "4.46.3"}
    # Positive biases: where a masked group could win with a negative score, published codes disagree.
    shapes = list(tensors.deepseek(config, "router_bias_positive"))
    return Family(config, shapes, skipped_prefix="model.layers.3.", generation=generation,
                  float32_endings=("e_score_correction_bias",))


def deepseek_v2_lite():
    """Softmax router, greedy, not normalised; YaRN with mscale 0.707 twice, in new-style rope_parameters."""
    config = {
        "architectures": ["DeepseekV2ForCausalLM"], **deepseek_common(), "model_type": "deepseek_v2",
        "max_position_embeddings": 163840, "norm_topk_prob": False, "rms_norm_eps": 1e-6,
        "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_method": "greedy",
        "rope_parameters": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                            "original_max_position_embeddings": 4096, "rope_theta": 10000.0, "rope_type": "yarn"},
    }
    for key in ("rope_theta", "rope_scaling", "num_nextn_predict_layers"):
        del config[key]
    return Family(config, list(tensors.deepseek(config)))


def deepseek_v2():
    """q_lora, softmax router limited to groups by their best expert, scale 16. Unlike the published config the two mscale
    values differ and the original length is short, so that the factor on cos and sin is not 1 and every band matters."""
    config = {
        "architectures": ["DeepseekV2ForCausalLM"], **deepseek_common(), "model_type": "deepseek_v2",
        "max_position_embeddings": 163840, "moe_intermediate_size": 12, "n_group": 4, "topk_group": 2,
        "n_routed_experts": 12, "norm_topk_prob": False, "q_lora_rank": 14, "rms_norm_eps": 1e-6,
        "rope_theta": 10000, "routed_scaling_factor": 16.0, "scoring_func": "softmax",
        "topk_method": "group_limited_greedy",
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.5,
                         "original_max_position_embeddings": 64, "type": "yarn"},
    }
    del config["num_nextn_predict_layers"]
    return Family(config, list(tensors.deepseek(config)))


FAMILIES = {
    f.__name__: f
    for f in (llama1, llama31, qwen2, qwen3, qwen3_moe, mixtral, seed_oss, moonlight, deepseek_v3, deepseek_v2_lite, deepseek_v2,
              qwen2_moe, mistral)
}
FAMILIES["llama"] = llama2


def build_tensors(rng, family):
    out = {}
    for name, shape, kind in family.shapes:
        dtype = torch.float32 if name.endswith(family.float32_endings or ("\0",)) else family.dtype
        out[name] = rng.tensor(name, shape, kind, dtype)
    return {**out, **family.leftovers}


def load_reference(folder, family):
    """Loads the folder with transformers and checks that nothing is missing or left over except what is meant to be."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["mismatched_keys"], info["mismatched_keys"]
    for name in info["unexpected_keys"]:
        meant = name in family.leftovers or (family.skipped_prefix and name.startswith(family.skipped_prefix))
        assert meant, f"unexpected key {name}"
    return model.eval()


def generate(name):
    family = FAMILIES[name]()
    rng, folder = (Formula if family.by_formula else Rng)(name), MODEL_FIXTURES / name
    config = family.config
    default = {"_from_model_config": True, "bos_token_id": config["bos_token_id"],
               "eos_token_id": config["eos_token_id"], "transformers_version": config["transformers_version"]}
    write_checkpoint(folder, config, family.generation or default, build_tensors(rng, family), family.num_shards)
    model = load_reference(folder, family)
    cases, arrays = [], {}
    if family.by_formula:
        (folder / "model.safetensors").unlink()
    for length in FORMULA_PROMPT_LENGTHS if family.by_formula else PROMPT_LENGTHS:
        def draw(attempt, length=length):
            return rng.stream(f"prompt {length} {attempt}").integers(0, config["vocab_size"], length).tolist()
        case, part = run_case(model, f"text_{length}", draw)
        if family.by_formula:
            case["has_full_logprobs"] = False
            part.pop(f"text_{length}.logprobs", None)
        cases.append(case)
        arrays.update(part)
    write_json(folder / "golden.json", {"cases": cases})
    write_arrays(folder / "golden.safetensors", arrays)
    return json.loads((folder / "golden.json").read_text())
