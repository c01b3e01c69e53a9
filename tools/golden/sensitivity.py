"""Measures what the golden fixtures can see: plants one typical mistake at a time in the reference model and reports how far
the log-probabilities move. A mistake that moves them less than the tolerance of the tests would go unnoticed.

`python tools/golden/sensitivity.py` prints a table and fails when a mistake moves less than MIN_MOVE.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import kimi_vl
from common import MODEL_FIXTURES
from image_rule import process
from PIL import Image
from reference import log_probs

MIN_MOVE = 0.01  # ten times the tolerance of the tests
# The other way round: weights disturbed by about the rounding of float32 must stay far inside the tolerance.
ROUNDING = 2e-7
MAX_ROUNDING_MOVE = 2e-4


# -- Mistakes in weights: each returns a function of the tensors --


def edit(ending, change):
    """Changes every tensor whose name ends so; there must be one."""
    def apply(tensors):
        names = [name for name in tensors if name.endswith(ending)]
        assert names, ending
        return {**tensors, **{name: change(tensors[name]) for name in names}}
    return apply


def zero(ending):
    return edit(ending, torch.zeros_like)


def ones(ending):
    return edit(ending, torch.ones_like)


def swap(one, other):
    """Exchanges two parts of a name, for example experts.0 and experts.1."""
    def apply(tensors):
        assert any(one in name for name in tensors), one
        marked = {name.replace(one, "\0"): t for name, t in tensors.items()}
        marked = {name.replace(other, one): t for name, t in marked.items()}
        return {name.replace("\0", other): t for name, t in marked.items()}
    return apply


def halves_to_pairs(width, offset=0):
    """Reorders the rotary rows of each head as if the other rope layout had been stored."""
    def change(weight):
        order = torch.arange(width).view(2, -1).T.flatten()
        rows = weight.view(-1, offset + width, weight.shape[1]).clone()
        rows[:, offset:] = rows[:, offset:][:, order]
        return rows.reshape_as(weight)
    return change


# -- Mistakes in the config --


def config(**changes):
    return lambda c: {**c, **changes}


def rope(**changes):
    def apply(c):
        key = "rope_parameters" if "rope_parameters" in c else "rope_scaling"
        return {**c, key: {**c[key], **changes}}
    return apply


WRONG_EPS = config(rms_norm_eps=3e-6)
MISTAKES = {
    "llama": {"theta": (config(rope_theta=20000.0), None), "eps": (config(rms_norm_eps=1e-6), None),
              "rope layout of q": (None, edit("q_proj.weight", halves_to_pairs(10))),
              "gate and up": (None, swap("gate_proj", "up_proj"))},
    "llama1": {"theta": (config(rope_theta=20000.0), None), "eps": (config(rms_norm_eps=1e-5), None)},
    "llama31": {"no scaling": (config(rope_scaling=None), None), "factor": (rope(factor=8.0), None),
                "low": (rope(low_freq_factor=2.0), None), "high": (rope(high_freq_factor=8.0), None)},
    "qwen2": {"no q bias": (None, zero("q_proj.bias")), "no v bias": (None, zero("v_proj.bias")),
              "window on": (config(use_sliding_window=True, max_window_layers=0), None)},
    "qwen3": {"no q norm": (None, ones("q_norm.weight")), "no k norm": (None, ones("k_norm.weight")),
              "theta": (config(rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}), None)},
    "qwen3_moe": {"not normalised": (config(norm_topk_prob=False), None), "top k": (config(num_experts_per_tok=2), None),
                  "experts 0 and 1": (None, swap("experts.0.", "experts.1."))},
    "mixtral": {"top k": (config(num_experts_per_tok=1), None), "w1 and w3": (None, swap(".w1.", ".w3.")),
                "experts 0 and 1": (None, swap("experts.0.", "experts.1."))},
    "seed_oss": {"no q bias": (None, zero("q_proj.bias")), "no k bias": (None, zero("k_proj.bias")),
                 "no v bias": (None, zero("v_proj.bias")), "theta": (config(rope_theta=10000.0), None)},
    "moonlight": {"no correction": (None, zero("e_score_correction_bias")), "scale": (config(routed_scaling_factor=1.0), None),
                  "not normalised": (config(norm_topk_prob=False), None), "eps": (config(rms_norm_eps=1e-6), None),
                  "half rope": (config(rope_interleave=False), None), "theta": (config(rope_theta=10000.0), None),
                  "no shared expert": (None, zero("shared_experts.down_proj.weight"))},
    "deepseek_v3": {"no correction": (None, zero("e_score_correction_bias")), "no groups": (config(n_group=1, topk_group=1), None),
                    "one group": (config(topk_group=1), None), "no yarn": (config(rope_scaling=None), None),
                    "no mscale": (rope(mscale=0.0, mscale_all_dim=0.0), None), "yarn factor": (rope(factor=20), None),
                    "eps": (WRONG_EPS, None), "beta": (rope(beta_fast=4), None)},
    "deepseek_v2_lite": {"no mscale": (rope(mscale=0.0, mscale_all_dim=0.0), None), "mscale": (rope(mscale=1.0), None),
                         "eps": (WRONG_EPS, None)},
    "deepseek_v2": {"greedy": (config(topk_method="greedy"), None), "scale": (config(routed_scaling_factor=1.0), None),
                    "mscale": (rope(mscale=0.5), None), "mscale_all_dim": (rope(mscale_all_dim=1.0), None),
                    "original length": (rope(original_max_position_embeddings=4096), None), "eps": (WRONG_EPS, None)},
}
# The inner norms ignore rms_norm_eps; these put it there.
INNER_EPS = {"moonlight": 1e-5, "kimi_vl": 1e-5}
KIMI_MISTAKES = {
    "no correction": zero("e_score_correction_bias"), "no wqkv bias": zero("wqkv.bias"), "no wo bias": zero("wo.bias"),
    "no fc0 bias": zero("fc0.bias"), "no fc1 bias": zero("fc1.bias"), "no patch bias": zero("patch_embed.proj.bias"),
    "no table": zero("pos_emb.weight"), "table transposed": edit("pos_emb.weight", lambda t: t.transpose(0, 1).contiguous()),
    "patch transposed": edit("patch_embed.proj.weight", lambda t: t.transpose(2, 3).contiguous()),
    "channels reversed": edit("patch_embed.proj.weight", lambda t: t.flip(1).contiguous()),
    "no pre_norm bias": zero("pre_norm.bias"), "no linear_1 bias": zero("linear_1.bias"),
    "no linear_2 bias": zero("linear_2.bias"), "norm0 and norm1": swap(".norm0.", ".norm1."),
}


def disturb(tensors):
    noise = torch.Generator().manual_seed(7)
    return {name: t.float() * (1 + ROUNDING * torch.randn(t.shape, generator=noise)) for name, t in tensors.items()}


def load(folder, change_config, change_tensors):
    """Loads a fixture with one mistake planted, through a temporary copy."""
    raw = json.loads((folder / "config.json").read_text())
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors.update(load_file(file))
    raw = change_config(raw) if change_config else raw
    tensors = change_tensors(tensors) if change_tensors else tensors
    if raw["model_type"] == "kimi_vl":
        return kimi_vl.load_twin(raw, tensors)
    copy = Path(tempfile.mkdtemp())
    try:
        (copy / "config.json").write_text(json.dumps(raw))
        save_file(tensors, str(copy / "model.safetensors"), metadata={"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32, attn_implementation="eager").eval()
    finally:
        shutil.rmtree(copy)


def image_inputs(folder, case):
    files = [image["file"] for image in case.get("images", [])]
    if not files:
        return {}
    pictures = [process(Image.open(folder / file), kimi_vl.PREPROCESSOR) for file in files]
    return {"pixel_values": torch.cat([torch.from_numpy(p.patches) for p in pictures]),
            "image_grid_thw": torch.tensor([[1, *p.grid] for p in pictures])}


def largest_move(folder, model):
    """Largest change of the last distribution over all cases of a fixture."""
    golden = load_file(folder / "golden.safetensors")
    moves = []
    for case in json.loads((folder / "golden.json").read_text())["cases"]:
        last = log_probs(model, case["prompt_token_ids"], **image_inputs(folder, case))[-1]
        moves.append((last - golden[f"{case['name']}.last_logprobs"]).abs().max().item())
    return max(moves)


def set_inner_eps(model, eps):
    norms = [m for name, m in model.named_modules() if name.endswith(("kv_a_layernorm", "q_a_layernorm"))]
    assert norms
    for norm in norms:
        norm.variance_epsilon = eps
    return model


def set_tower_eps(model, eps):
    for module in model.model.vision_tower.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps
    return model


def main():
    torch.set_num_threads(1)
    failed = False
    table = {**MISTAKES, "kimi_vl": {name: (None, change) for name, change in KIMI_MISTAKES.items()}}
    for fixture, mistakes in table.items():
        folder = MODEL_FIXTURES / fixture
        moves = {"none": largest_move(folder, load(folder, None, None))}
        assert moves["none"] < 1e-4, (fixture, moves)
        moves["rounding"] = largest_move(folder, load(folder, None, disturb))
        assert moves["rounding"] < MAX_ROUNDING_MOVE, (fixture, moves)
        moves.update({name: largest_move(folder, load(folder, *change)) for name, change in mistakes.items()})
        if fixture in INNER_EPS:
            moves["inner eps"] = largest_move(folder, set_inner_eps(load(folder, None, None), INNER_EPS[fixture]))
        if fixture == "kimi_vl":
            moves["tower eps"] = largest_move(folder, set_tower_eps(load(folder, None, None), 1e-6))
        for name, move in moves.items():
            weak = name not in ("none", "rounding") and move < MIN_MOVE
            failed |= weak
            print(f"{fixture:18} {name:20} {move:11.6f}{'   WEAK' if weak else ''}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
