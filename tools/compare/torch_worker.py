"""A process with transformers' MoonViT in it that speaks as `perilune bench-engine --job - --json` does: jobs `encode:SIDE`. transformers has no
kimi_vl, but its kimi_k25 is the same network for single pictures (tools/golden/kimi_vl.py)."""

import argparse
import json
import resource
import sys
import time

import torch
from transformers import Kimi_K25Config, Kimi_K25ForConditionalGeneration

from pictures import TEXT, VISION

PATCH, MERGE = 14, 2


def build(dtype):
    vision = {
        "model_type": "kimi_k25_vision",
        "patch_size": PATCH,
        "hidden_size": VISION["hidden_size"],
        "pos_emb_height": VISION["init_pos_emb_height"],
        "pos_emb_width": VISION["init_pos_emb_width"],
        "num_attention_heads": VISION["num_attention_heads"],
        "num_hidden_layers": VISION["num_hidden_layers"],
        "intermediate_size": VISION["intermediate_size"],
        "merge_kernel_size": VISION["merge_kernel_size"],
    }
    config = Kimi_K25Config(
        text_config=TEXT,
        vision_config=vision,
        projection_hidden_size=VISION["hidden_size"],
        image_token_id=255,
        video_token_id=10**6,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return Kimi_K25ForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def encode(model, patches, grid):
    with torch.inference_mode():
        return model.model.get_image_features(patches, grid, return_dict=True)


def measure(model, dtype, side, at_least):
    rows = side // PATCH
    patches = torch.rand(rows * rows, 3, PATCH, PATCH).mul_(2).sub_(1).to(dtype)
    grid = torch.tensor([[1, rows, rows]])
    num_tokens = (rows // MERGE) ** 2
    assert torch.cat(list(encode(model, patches, grid).pooler_output)).shape == (num_tokens, TEXT["hidden_size"])
    runs, start = [], time.perf_counter()
    while not runs or time.perf_counter() - start < at_least:
        before, cpu = time.perf_counter(), time.process_time()
        encode(model, patches, grid)
        runs.append((time.perf_counter() - before, time.process_time() - cpu))
    middle = lambda i: sorted(run[i] for run in runs)[len(runs) // 2]
    return {
        "tokens_per_run": num_tokens,
        "tokens_per_s": num_tokens / middle(0),
        "cpu_ms_per_token": 1e3 * middle(1) / num_tokens,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype, start = getattr(torch, args.dtype), time.perf_counter()
    model = build(dtype)
    print(json.dumps({"engine": f"torch {torch.__version__}", "load_seconds": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        kind, side = line.strip().split(":")
        assert kind == "encode", line
        print(json.dumps(measure(model, dtype, int(side), args.seconds)), flush=True)


if __name__ == "__main__":
    main()
