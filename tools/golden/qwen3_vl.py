"""A tiny Qwen3-VL and a tiny Qwen3-VL-MoE: what the published image processor makes of pictures, and the answers of the published models.

Their configurations are those of models/tests/common/qwen3_vl.rs, and their weights the formula of their names (`qwen_vl.weights`), so that neither
needs a file. What is computed here is models/tests/common/qwen3_vl.json: a few numbers, rounded. The pictures are those of `kimi_vl`.
"""

import copy
import json
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from chameleon import fnv1a
from common import MODEL_FIXTURES, Rng, write_json
from qwen_vl import IMAGE_PAD, NUM_PLAIN, VISION_END, VISION_START, Answers, weights
from reference import run_case

OUT = MODEL_FIXTURES.parent / "common" / "qwen3_vl.json"
TEXT = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 124, "dtype": "float32", "eos_token_id": 125,
    "head_dim": 16, "hidden_act": "silu", "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 72,
    "max_position_embeddings": 1024, "model_type": "qwen3_vl_text", "num_attention_heads": 4, "num_hidden_layers": 3,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 5000000,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
    "use_cache": True, "vocab_size": 130,
}
EXPERTS = {
    "model_type": "qwen3_vl_moe_text", "decoder_sparse_step": 1, "mlp_only_layers": [1], "moe_intermediate_size": 20,
    "norm_topk_prob": True, "num_experts": 6, "num_experts_per_tok": 2,
}
VISION = {
    "deepstack_visual_indexes": [0, 2], "depth": 3, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 24,
    "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 20, "model_type": "qwen3_vl", "num_heads": 2,
    "num_position_embeddings": 25, "out_hidden_size": 48, "patch_size": 16, "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PREPROCESSOR = {
    "size": {"longest_edge": 40960, "shortest_edge": 8192}, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}
PICTURES = ["dot", "tall", "wide"]
TEXT_LENGTHS = (19,)
# Text before, between and after pictures.
IMAGE_CASES = {"image_wide": ((5, 9), ["wide"]), "images": ((2, 4, 1), ["dot", "tall"])}
FAMILIES = {
    "qwen3_vl": (Qwen3VLForConditionalGeneration, TEXT, VISION),
    "qwen3_vl_moe": (Qwen3VLMoeForConditionalGeneration, {**TEXT, **EXPERTS}, {**VISION, "model_type": "qwen3_vl_moe"}),
}


def with_bias(name, shape):
    return [(f"{name}.weight", shape), (f"{name}.bias", shape[:1])]


def decoder_shapes(c):
    d, i, vocab, head, body = c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["head_dim"], "model.language_model"
    q, kv = head * c["num_attention_heads"], head * c["num_key_value_heads"]
    out = [(f"{body}.embed_tokens.weight", (vocab, d)), ("lm_head.weight", (vocab, d)), (f"{body}.norm.weight", (d,))]
    for layer in range(c["num_hidden_layers"]):
        p = f"{body}.layers.{layer}"
        parts = [("self_attn.q_proj", (q, d)), ("self_attn.k_proj", (kv, d)), ("self_attn.v_proj", (kv, d)),
                 ("self_attn.o_proj", (d, q)), ("self_attn.q_norm", (head,)), ("self_attn.k_norm", (head,)),
                 ("input_layernorm", (d,)), ("post_attention_layernorm", (d,))]
        if layer in c.get("mlp_only_layers", [layer]):
            parts += [("mlp.gate_proj", (i, d)), ("mlp.up_proj", (i, d)), ("mlp.down_proj", (d, i))]
        else:
            e, w = c["num_experts"], c["moe_intermediate_size"]
            parts.append(("mlp.gate", (e, d)))
            out += [(f"{p}.mlp.experts.gate_up_proj", (e, d, 2 * w)), (f"{p}.mlp.experts.down_proj", (e, w, d))]
        out += [(f"{p}.{name}.weight", shape) for name, shape in parts]
    return out


def tower_shapes(v):
    h, w, p, m = v["hidden_size"], v["intermediate_size"], v["patch_size"], v["hidden_size"] * v["spatial_merge_size"] ** 2
    out = with_bias("model.visual.patch_embed.proj", (h, 3, v["temporal_patch_size"], p, p))
    out.append(("model.visual.pos_embed.weight", (v["num_position_embeddings"], h)))
    for block in range(v["depth"]):
        for name, shape in (("attn.qkv", (3 * h, h)), ("attn.proj", (h, h)), ("mlp.linear_fc1", (w, h)),
                            ("mlp.linear_fc2", (h, w)), ("norm1", (h,)), ("norm2", (h,))):
            out += with_bias(f"model.visual.blocks.{block}.{name}", shape)
    mergers = [("merger", h)] + [(f"deepstack_merger_list.{i}", m) for i in range(len(v["deepstack_visual_indexes"]))]
    for name, normed in mergers:
        for part, shape in (("norm", (normed,)), ("linear_fc1", (m, m)), ("linear_fc2", (v["out_hidden_size"], m))):
            out += with_bias(f"model.visual.{name}.{part}", shape)
    return out


def reference(name):
    model_class, text, vision = FAMILIES[name]
    config = {
        "architectures": [model_class.__name__], "image_token_id": IMAGE_PAD, "model_type": name, "text_config": text,
        "tie_word_embeddings": False, "video_token_id": 121, "vision_config": vision, "vision_end_token_id": VISION_END,
        "vision_start_token_id": VISION_START,
    }
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", config)
        stored = {name: weights(name, shape) for name, shape in decoder_shapes(text) + tower_shapes(vision)}
        save_file(stored, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
        model, info = model_class.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def process(stem):
    picture = Image.open(MODEL_FIXTURES / "kimi_vl" / "images" / f"{stem}.png").convert("RGB")
    out = Qwen2VLImageProcessorPil(**copy.deepcopy(PREPROCESSOR))(images=[picture], return_tensors="pt")
    return picture.size, out["pixel_values"].float(), out["image_grid_thw"]


def rounded(values, digits=5):
    return [round(float(value), digits) for value in values.flatten()]


def of_picture(model, stem, size, patches, grid):
    with torch.no_grad():
        features = model.model.get_image_features(patches, grid)
    rows = features.pooler_output[0]
    # Frames of a patch are equal: a loader may keep one.
    frames = patches.reshape(len(patches), 3, 2, -1)
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])
    one = frames[:, :, 0].contiguous().numpy()
    levels = [rows] + [level[0] for level in features.deepstack_features]
    lead = [rounded(level[[0, len(level) // 2, -1], :8]) for level in levels]
    return {"file": f"images/{stem}.png", "width": size[0], "height": size[1], "grid": grid[0, 1:].tolist(),
            "num_tokens": len(rows), "patches_fnv1a": fnv1a(one.tobytes()), "levels": lead}


def of_case(case, arrays, spans):
    name = case["name"]
    numbers = {what: rounded(arrays[f"{name}.{what}"]) for what in ("last_logprobs", "greedy_logprobs", "prompt_logprobs")}
    return {"name": name, "prompt_token_ids": case["prompt_token_ids"], "greedy_token_ids": case["greedy_token_ids"],
            "images": spans, **numbers}


def answers(name):
    rng, model = Rng(name), reference(name)
    processed = {stem: process(stem) for stem in PICTURES}
    images = [of_picture(model, stem, *parts) for stem, parts in processed.items()]
    cases, forbidden = [], range(NUM_PLAIN, TEXT["vocab_size"])
    for length in TEXT_LENGTHS:
        def draw(attempt, length=length):
            return rng.stream(f"prompt {length} {attempt}").integers(0, NUM_PLAIN, length).tolist()
        cases.append(of_case(*run_case(Answers(model), f"text_{length}", draw, forbidden), []))
    for case_name, (texts, stems) in IMAGE_CASES.items():
        spans, offset = [], 0
        for text, stem in zip(texts, stems):
            num_tokens = int(processed[stem][2].prod()) // 4
            offset += text + 1
            spans.append({"file": f"images/{stem}.png", "offset": offset})
            offset += num_tokens + 1

        def draw(attempt):
            stream, ids = rng.stream(f"{case_name} {attempt}"), []
            for index, length in enumerate(texts):
                ids += stream.integers(0, NUM_PLAIN, length).tolist()
                if index < len(stems):
                    num_tokens = int(processed[stems[index]][2].prod()) // 4
                    ids += [VISION_START] + [IMAGE_PAD] * num_tokens + [VISION_END]
            return ids

        pixels, grids = (torch.cat([processed[stem][part] for stem in stems]) for part in (1, 2))
        part = run_case(Answers(model), case_name, draw, forbidden, pixel_values=pixels, image_grid_thw=grids)
        cases.append(of_case(*part, spans))
    return {"images": images, "cases": cases}


def generate():
    families = {name: answers(name) for name in FAMILIES}
    lines = []
    for name, family in families.items():
        parts = [f'  "{kind}": [\n    ' + ",\n    ".join(json.dumps(item) for item in family[kind]) + "\n  ]"
                 for kind in ("images", "cases")]
        lines.append(f'"{name}": {{\n' + ",\n".join(parts) + "\n}")
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
