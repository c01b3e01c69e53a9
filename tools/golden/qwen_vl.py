"""A tiny Qwen2.5-VL: its configuration, what the published image processor makes of pictures, and the answers of the published model.

Its weights are a formula of their names (`weights`), so that they need no file: a test writes them anew. The pictures are those of `kimi_vl`.
"""

import copy
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from chameleon import fnv1a, formula
from common import MODEL_FIXTURES, Rng, write_arrays, write_json
from reference import run_case

IMAGE_PAD, NUM_PLAIN = 120, 110
VISION_START, VISION_END = 118, 119
# As published files of before 2026 have it: the decoder's settings at the top.
CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 124,
    "eos_token_id": 125, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END,
    "vision_token_id": 117, "image_token_id": IMAGE_PAD, "video_token_id": 121, "hidden_act": "silu", "hidden_size": 48,
    "initializer_range": 0.02, "intermediate_size": 72, "max_position_embeddings": 1024, "max_window_layers": 2,
    "model_type": "qwen2_5_vl", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 16, "tie_word_embeddings": False,
    "torch_dtype": "float32", "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False,
    "vision_config": {
        "depth": 3, "hidden_act": "silu", "hidden_size": 24, "intermediate_size": 20, "num_heads": 2, "in_chans": 3,
        "out_hidden_size": 48, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 84,
        "fullatt_block_indexes": [1], "tokens_per_second": 2, "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 3, 2]}, "vocab_size": 130,
}
PREPROCESSOR = {
    "min_pixels": 9408, "max_pixels": 31360, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
}
PICTURES = ["dot", "small", "table", "tall", "wide", "large"]
TEXT_LENGTHS = (1, 19, 41)
# Text before, between and after pictures.
IMAGE_CASES = {"image_wide": ((5, 9), ["wide"]), "images": ((2, 4, 1), ["table", "tall"]), "image_first": ((0, 4), ["small"])}


def shapes(c):
    v, d, i, vocab = c["vision_config"], c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    kv = d // c["num_attention_heads"] * c["num_key_value_heads"]
    out = [("model.embed_tokens.weight", (vocab, d)), ("lm_head.weight", (vocab, d)), ("model.norm.weight", (d,))]
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}"
        for name, rows in (("q_proj", d), ("k_proj", kv), ("v_proj", kv)):
            out += [(f"{p}.self_attn.{name}.weight", (rows, d)), (f"{p}.self_attn.{name}.bias", (rows,))]
        out += [(f"{p}.self_attn.o_proj.weight", (d, d)), (f"{p}.mlp.gate_proj.weight", (i, d)),
                (f"{p}.mlp.up_proj.weight", (i, d)), (f"{p}.mlp.down_proj.weight", (d, i)),
                (f"{p}.input_layernorm.weight", (d,)), (f"{p}.post_attention_layernorm.weight", (d,))]
    h, w, p = v["hidden_size"], v["intermediate_size"], v["patch_size"]
    out.append(("visual.patch_embed.proj.weight", (h, 3, v["temporal_patch_size"], p, p)))
    for block in range(v["depth"]):
        b = f"visual.blocks.{block}"
        for name, rows, columns in (("attn.qkv", 3 * h, h), ("attn.proj", h, h), ("mlp.gate_proj", w, h),
                                    ("mlp.up_proj", w, h), ("mlp.down_proj", h, w)):
            out += [(f"{b}.{name}.weight", (rows, columns)), (f"{b}.{name}.bias", (rows,))]
        out += [(f"{b}.norm1.weight", (h,)), (f"{b}.norm2.weight", (h,))]
    m = h * v["spatial_merge_size"] ** 2
    out.append(("visual.merger.ln_q.weight", (h,)))
    for name, rows in (("mlp.0", m), ("mlp.2", v["out_hidden_size"])):
        out += [(f"visual.merger.{name}.weight", (rows, m)), (f"visual.merger.{name}.bias", (rows,))]
    return out


def weights(name, shape):
    """The formula of `chameleon`, with matrices and convolutions in 3-D scaled like its convolutions; embeddings and biases are a quarter of u, and
    position tables u. Experts are matrices each."""
    if name.endswith("embed_tokens.weight"):
        return formula(name, shape) / 4
    if name.endswith(".bias"):
        return formula(name, shape) * 2.5
    if len(shape) == 1 or name.endswith("pos_embed.weight"):
        return formula(name, shape)
    scale = 2 * np.sqrt(3.0 / (shape[1] if ".experts." in name else np.prod(shape[1:])))
    return torch.from_numpy((formula(name, (int(np.prod(shape)), 1)).double().numpy() * scale).astype(np.float32).reshape(shape))


class Answers:
    """The model, told which tokens are pictures' whatever the length of the text."""

    def __init__(self, model):
        self.model = model

    def modules(self):
        return self.model.modules()

    def __repr__(self):
        return repr(self.model)

    def __call__(self, input_ids, **inputs):
        if "pixel_values" in inputs:
            inputs["mm_token_type_ids"] = (input_ids == IMAGE_PAD).int()
        return self.model(input_ids=input_ids, **inputs)


def reference():
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", CONFIG)
        stored = {name: weights(name, shape) for name, shape in shapes(CONFIG)}
        save_file(stored, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def process(stem):
    path = MODEL_FIXTURES / "kimi_vl" / "images" / f"{stem}.png"
    settings = {k: v for k, v in PREPROCESSOR.items() if not k.endswith(("_type", "_class"))}
    picture = Image.open(path).convert("RGB")
    out = Qwen2VLImageProcessorPil(**copy.deepcopy(settings))(images=[picture], return_tensors="pt")
    return picture.size, out["pixel_values"].float(), out["image_grid_thw"]


def generate():
    folder, rng = MODEL_FIXTURES / "qwen2_5_vl", Rng("qwen2_5_vl")
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    model = reference()
    images, cases, arrays, processed = [], [], {}, {}
    for stem in PICTURES:
        size, patches, grid = process(stem)
        processed[stem] = (patches, grid)
        with torch.no_grad():
            rows = model.model.get_image_features(patches, grid).pooler_output[0]
        # Frames of a patch are equal: a loader may keep one.
        frames = patches.reshape(len(patches), 3, 2, -1)
        assert torch.equal(frames[:, :, 0], frames[:, :, 1])
        one = frames[:, :, 0].contiguous().numpy()
        images.append({"file": f"images/{stem}.png", "width": size[0], "height": size[1],
                       "grid": grid[0, 1:].tolist(), "num_tokens": len(rows), "patches_fnv1a": fnv1a(one.tobytes())})
        arrays[f"{stem}.rows"] = rows[[0, len(rows) // 2, -1], :8]
    answers = Answers(model)
    forbidden = range(NUM_PLAIN, CONFIG["vocab_size"])
    for length in TEXT_LENGTHS:
        def draw(attempt, length=length):
            return rng.stream(f"prompt {length} {attempt}").integers(0, NUM_PLAIN, length).tolist()
        case, part = run_case(answers, f"text_{length}", draw, forbidden)
        cases.append({**case, "images": []})
        arrays.update(part)
    for name, (texts, files) in IMAGE_CASES.items():
        spans, offset = [], 0
        for text, file in zip(texts, files):
            num_tokens = int(processed[file][1].prod()) // 4
            offset += text + 1
            spans.append({"file": f"images/{file}.png", "offset": offset, "num_tokens": num_tokens})
            offset += num_tokens + 1

        def draw(attempt):
            stream, ids = rng.stream(f"{name} {attempt}"), []
            for index, length in enumerate(texts):
                ids += stream.integers(0, NUM_PLAIN, length).tolist()
                if index < len(spans):
                    ids += [VISION_START] + [IMAGE_PAD] * spans[index]["num_tokens"] + [VISION_END]
            return ids

        pixels, grids = (torch.cat([processed[f][part] for f in files]) for part in (0, 1))
        case, part = run_case(answers, name, draw, forbidden, pixel_values=pixels, image_grid_thw=grids)
        cases.append({**case, "images": spans})
        arrays.update(part)
    for name in list(arrays):
        if name.endswith(".logprobs"):
            del arrays[name]
    write_json(folder / "golden.json", {"images": images, "cases": cases})
    write_arrays(folder / "golden.safetensors", arrays)
