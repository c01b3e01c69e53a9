"""Writes the model as the published checkpoints are laid out: configuration, weights, tokenizer, image processor."""

import json

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from model import KimiVl, TextShape, VisionShape, load_published, published_state
from pictures import IN_TOKEN_LIMIT
from words import CHAT_TEMPLATE, SPECIALS, Words

CONTEXT = 2048


def export(model, tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    # Only the correction bias stays f32, as published: a choice between experts must not move by rounding.
    tensors = {name: t.detach().contiguous() if name.endswith("e_score_correction_bias") else t.detach().bfloat16().contiguous()
               for name, t in published_state(model).items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    ids = {text: tokenizer.token_to_id(text) for text in SPECIALS}
    text, vision = model.language_model.shape, model.vision_tower.shape
    files = {
        "config.json": config(text, vision, ids),
        "generation_config.json": {"bos_token_id": ids["[BOS]"], "eos_token_id": [ids["[EOS]"], ids["<|im_end|>"]],
                                   "pad_token_id": ids["[PAD]"], "do_sample": False},
        "preprocessor_config.json": {"image_processor_type": "KimiVLImageProcessor", "patch_size": vision.patch, "pad_input": True,
                                     "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "in_token_limit": IN_TOKEN_LIMIT,
                                     "merge_kernel_size": [2, 2], "num_pooled_tokens": IN_TOKEN_LIMIT // 4},
        "tokenizer_config.json": tokenizer_config(ids),
    }
    for name, value in files.items():
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    tokenizer.encode_special_tokens = False
    tokenizer.save(str(out / "tokenizer.json"))


def config(t, v, ids):
    special = {"bos_token_id": ids["[BOS]"], "eos_token_id": ids["[EOS]"], "pad_token_id": ids["[PAD]"]}
    return {
        "architectures": ["KimiVLForConditionalGeneration"], "model_type": "kimi_vl", "vocab_size": t.vocab,
        "media_placeholder_token_id": ids["<|media_pad|>"], "ignore_index": -100, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False, **special,
        "vision_config": {
            "model_type": "moonvit", "patch_size": v.patch, "num_hidden_layers": v.layers, "num_attention_heads": v.heads,
            "hidden_size": v.hidden, "intermediate_size": v.mlp, "init_pos_emb_height": v.table, "init_pos_emb_width": v.table,
            "merge_kernel_size": [2, 2], "torch_dtype": "bfloat16",
        },
        "text_config": {
            "model_type": "deepseek_v3", "vocab_size": t.vocab, "hidden_size": t.hidden, "intermediate_size": t.dense_mlp,
            "moe_intermediate_size": t.expert_mlp, "num_hidden_layers": t.layers, "num_attention_heads": t.heads,
            "num_key_value_heads": t.heads, "kv_lora_rank": t.latent, "q_lora_rank": None, "qk_nope_head_dim": t.nope,
            "qk_rope_head_dim": t.rope, "v_head_dim": t.value, "n_routed_experts": t.experts, "num_experts_per_tok": t.top_k,
            "n_shared_experts": t.shared, "moe_layer_freq": 1, "first_k_dense_replace": 1, "topk_method": "noaux_tc", "n_group": 1,
            "topk_group": 1, "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": t.routed_scale,
            "aux_loss_alpha": 0.0, "seq_aux": True, "hidden_act": "silu", "rms_norm_eps": t.eps, "rope_theta": t.theta,
            "rope_scaling": None, "max_position_embeddings": CONTEXT, "attention_bias": False, "attention_dropout": 0.0,
            "initializer_range": 0.02, "tie_word_embeddings": False, "num_nextn_predict_layers": 0, "ep_size": 1, "pretraining_tp": 1,
            "use_cache": True, "torch_dtype": "bfloat16", **special,
        },
    }


def tokenizer_config(ids):
    added = {str(i): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
             for text, i in ids.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added, "bos_token": "[BOS]", "eos_token": "<|im_end|>",
        "unk_token": "[UNK]", "pad_token": "[PAD]", "additional_special_tokens": [t for t in SPECIALS if t.startswith("<|")],
        "clean_up_tokenization_spaces": False, "model_max_length": CONTEXT, "chat_template": CHAT_TEMPLATE,
    }


def load(folder):
    """A written folder -> (model in f32 with the rounded weights, Words). Shapes come from its config.json alone."""
    c = json.loads((folder / "config.json").read_text())
    t, v = c["text_config"], c["vision_config"]
    text = TextShape(t["vocab_size"], t["hidden_size"], t["num_hidden_layers"], t["intermediate_size"], t["moe_intermediate_size"],
                     t["n_routed_experts"], t["num_experts_per_tok"], t["n_shared_experts"], t["num_attention_heads"], t["kv_lora_rank"],
                     t["qk_nope_head_dim"], t["qk_rope_head_dim"], t["v_head_dim"], t["routed_scaling_factor"], t["rms_norm_eps"], t["rope_theta"])
    vision = VisionShape(v["hidden_size"], v["num_hidden_layers"], v["num_attention_heads"], v["intermediate_size"],
                         v["init_pos_emb_height"], v["patch_size"])
    model = KimiVl(vision, text)
    load_published(model, load_file(folder / "model.safetensors"))
    return model.eval(), Words(Tokenizer.from_file(str(folder / "tokenizer.json")))


@torch.no_grad()
def num_parameters(model):
    return sum(p.numel() for p in model.parameters())
