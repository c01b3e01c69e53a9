"""The Kimi-VL checkpoint. transformers has no kimi_vl, but its kimi_k25 is the same network for single pictures: a twin of the
folder with other projector names and another config.json loads into Kimi_K25ForConditionalGeneration and is the
reference. `kimi_vl_plain.py` computes vision tower and projector a second time, from the published names alone."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Kimi_K25ForConditionalGeneration

import kimi_vl_plain
import tensors
from common import MODEL_FIXTURES, Rng, write_arrays, write_checkpoint, write_json
from draw import picture
from image_rule import process
from reference import run_case

MEDIA_PAD = 125
NUM_PLAIN_IDS = 116  # ids below are ordinary text; the rest plays the special tokens
TEXT_LENGTHS = (1, 5, 17, 70)

# file -> width, height, seed, mode of the stored PNG
IMAGES = {
    "small.png": (61, 45, 3, "RGB"),
    "table.png": (84, 84, 5, "RGB"),  # grid equals the position table: no interpolation
    "tall.png": (27, 97, 7, "RGBA"),
    "wide.png": (113, 40, 11, "L"),
    "dot.png": (1, 1, 40, "RGB"),
    "large.png": (200, 150, 13, "RGB"),  # beyond in_token_limit
    "narrow.png": (290, 45, 17, "P"),  # just within the limit by the floor product, then padded beyond it
}
# case -> tokens of text around the pictures, and the pictures between them
IMAGE_CASES = {
    "one_image": ([3, 7], ["small.png"]),
    "three_images": ([4, 3, 2, 9], ["table.png", "tall.png", "wide.png"]),
    "adjacent_images": ([0, 0, 5], ["dot.png", "small.png"]),
    "image_beyond_limit": ([5, 30], ["large.png"]),
    "padded_beyond_limit": ([2, 1], ["narrow.png"]),
}

PREPROCESSOR = {
    "auto_map": {"AutoImageProcessor": "image_processing_kimi_vl.KimiVLImageProcessor",
                 "AutoProcessor": "processing_kimi_vl.KimiVLProcessor"},
    "in_token_limit": 64, "patch_size": 14, "num_pooled_tokens": 1024, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5], "pad_input": True, "merge_kernel_size": [2, 2],
    "image_processor_type": "KimiVLImageProcessor",
}


def config():
    text = {
        "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "bos_token_id": 116,
        "eos_token_id": 117, "ep_size": 1, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 40,
        "initializer_range": 0.02, "intermediate_size": 72, "kv_lora_rank": 16, "max_position_embeddings": 131072,
        "model_type": "deepseek_v3", "moe_intermediate_size": 20, "moe_layer_freq": 1, "n_group": 1,
        "n_routed_experts": 8, "n_shared_experts": 2, "norm_topk_prob": True, "num_attention_heads": 4,
        "num_experts_per_tok": 3, "num_hidden_layers": 3, "num_key_value_heads": 4, "num_nextn_predict_layers": 0,
        "pad_token_id": 127, "pretraining_tp": 1, "q_lora_rank": None, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8,
        "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 800000.0, "routed_scaling_factor": 2.446,
        "scoring_func": "sigmoid", "seq_aux": True, "tie_word_embeddings": False, "topk_group": 1,
        "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 10, "vocab_size": 128,
    }
    vision = {
        "hidden_size": 36, "init_pos_emb_height": 6, "init_pos_emb_width": 6, "intermediate_size": 70,
        "merge_kernel_size": [2, 2], "model_type": "moonvit", "num_attention_heads": 3, "num_hidden_layers": 2,
        "patch_size": 14, "torch_dtype": "bfloat16",
    }
    return {
        "architectures": ["KimiVLForConditionalGeneration"],
        "auto_map": {"AutoConfig": "configuration_kimi_vl.KimiVLConfig",
                     "AutoModel": "modeling_kimi_vl.KimiVLForConditionalGeneration",
                     "AutoModelForCausalLM": "modeling_kimi_vl.KimiVLForConditionalGeneration"},
        "ignore_index": -100, "media_placeholder_token_id": MEDIA_PAD, "model_type": "kimi_vl", "text_config": text,
        "torch_dtype": "bfloat16", "transformers_version": "4.50.3", "vision_config": vision, "vocab_size": 128,
    }


def build_tensors(rng, c):
    shapes = list(tensors.moonvit(c)) + list(tensors.deepseek(c["text_config"], "router_bias", "language_model."))
    kept = "e_score_correction_bias"
    return {n: rng.tensor(n, s, k, torch.float32 if n.endswith(kept) else torch.bfloat16) for n, s, k in shapes}


def twin_name(name):
    for old, new in (("multi_modal_projector.linear_1", "mm_projector.proj.0"),
                     ("multi_modal_projector.linear_2", "mm_projector.proj.2"),
                     ("multi_modal_projector.pre_norm", "mm_projector.pre_norm")):
        name = name.replace(old, new)
    return name


def twin_config(c):
    v = c["vision_config"]
    vision = {
        "model_type": "kimi_k25_vision", "patch_size": v["patch_size"], "hidden_size": v["hidden_size"],
        "pos_emb_height": v["init_pos_emb_height"], "pos_emb_width": v["init_pos_emb_width"],
        "num_attention_heads": v["num_attention_heads"], "num_hidden_layers": v["num_hidden_layers"],
        "intermediate_size": v["intermediate_size"], "merge_kernel_size": v["merge_kernel_size"],
    }
    return {
        "architectures": ["Kimi_K25ForConditionalGeneration"], "model_type": "kimi_k25",
        "text_config": c["text_config"], "vision_config": vision, "projection_hidden_size": v["hidden_size"],
        "image_token_id": MEDIA_PAD, "video_token_id": 10**6, "tie_word_embeddings": False,
    }


def load_twin(c, weights):
    folder = Path(tempfile.mkdtemp())
    try:
        write_json(folder / "config.json", twin_config(c))
        save_file({twin_name(n): t for n, t in weights.items()}, str(folder / "model.safetensors"), metadata={"format": "pt"})
        model, info = Kimi_K25ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", output_loading_info=True)
    finally:
        shutil.rmtree(folder)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], (kind, info[kind])
    return model.eval()


def vision_outputs(model, processed):
    """Vision tower [rows * cols, D] in raster order, and projector [num_tokens, hidden], for one picture alone."""
    grid = torch.tensor([[1, *processed.grid]])
    with torch.no_grad():
        out = model.model.get_image_features(torch.from_numpy(processed.patches), grid, return_dict=True)
    return out.last_hidden_state, torch.cat(out.pooler_output)


def write_images(folder):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    out = {}
    for file, (width, height, seed, mode) in IMAGES.items():
        picture(width, height, seed, mode).save(folder / "images" / file, optimize=True)
        out[file] = process(Image.open(folder / "images" / file), PREPROCESSOR)
    return out


def describe_image(folder, file, processed):
    """JSON part of one picture; a resized one is stored beside it as PNG."""
    width, height, _, mode = IMAGES[file]
    entry = {
        "file": f"images/{file}", "mode": mode, "width": width, "height": height,
        "resized_width": processed.resized.shape[1], "resized_height": processed.resized.shape[0],
        "grid": list(processed.grid), "num_tokens": processed.num_tokens,
        "padded_rgb_sha256": hashlib.sha256(processed.padded.tobytes()).hexdigest(),
    }
    if (width, height) != (entry["resized_width"], entry["resized_height"]):
        entry["resized_file"] = f"images/{Path(file).stem}.resized.png"
        Image.fromarray(processed.resized).save(folder / entry["resized_file"], optimize=True)
    return entry


def image_case(model, rng, name, processed):
    texts, files = IMAGE_CASES[name]

    def draw(attempt):
        stream, ids = rng.stream(f"{name} {attempt}"), []
        for index, length in enumerate(texts):
            ids += stream.integers(0, NUM_PLAIN_IDS, length).tolist()
            if index < len(files):
                ids += [MEDIA_PAD] * processed[files[index]].num_tokens
        return ids

    pixels = torch.cat([torch.from_numpy(processed[f].patches) for f in files])
    grids = torch.tensor([[1, *processed[f].grid] for f in files])
    forbidden = range(NUM_PLAIN_IDS, 128)
    case, arrays = run_case(model, name, draw, forbidden, pixel_values=pixels, image_grid_thw=grids)
    offset, spans = 0, []
    for index, file in enumerate(files):
        offset += texts[index]
        spans.append({"file": f"images/{file}", "offset": offset, "num_tokens": processed[file].num_tokens})
        offset += processed[file].num_tokens
    case["images"] = spans
    return case, arrays


def generate():
    folder, rng, c = MODEL_FIXTURES / "kimi_vl", Rng("kimi_vl"), config()
    weights = build_tensors(rng, c)
    generation = {"eos_token_id": [117], "pad_token_id": 127, "transformers_version": "4.50.3"}
    write_checkpoint(folder, c, generation, weights)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    processed = write_images(folder)
    model = load_twin(c, weights)
    images, cases, arrays = [], [], {}
    for file, p in processed.items():
        images.append(describe_image(folder, file, p))
        stem, (tower, projected) = Path(file).stem, vision_outputs(model, p)
        kimi_vl_plain.check(c, weights, p, tower, projected)
        arrays[f"{stem}.first_last_patch"] = torch.from_numpy(p.patches[[0, -1]].reshape(2, -1))
        arrays[f"{stem}.vision_tower"] = tower
        arrays[f"{stem}.projected"] = projected
    for length in TEXT_LENGTHS:
        def draw(attempt, length=length):
            return rng.stream(f"prompt {length} {attempt}").integers(0, NUM_PLAIN_IDS, length).tolist()
        case, part = run_case(model, f"text_{length}", draw, range(NUM_PLAIN_IDS, 128))
        cases.append({**case, "images": []})
        arrays.update(part)
    for name in IMAGE_CASES:
        case, part = image_case(model, rng, name, processed)
        cases.append(case)
        arrays.update(part)
    write_json(folder / "golden.json", {"images": images, "cases": cases})
    write_arrays(folder / "golden.safetensors", arrays)
