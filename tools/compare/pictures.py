"""MoonViT at Kimi-VL's widths: Perilune's engine beside transformers, random weights, same sizes of pictures, same threads, in turns.

    cargo build --release --locked
    python -m venv .venv && .venv/bin/pip install -r tools/compare/requirements-pictures.txt
    .venv/bin/python tools/compare/pictures.py --work target/compare

A picture is encoded from its patches to the projector's rows. Prints, for every size, the median of the pairs' ratios with a 95 % bootstrap
interval, pictures a second and CPU time a picture of both. That both compute the same is what models/tests/vision.rs checks.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from turns import Engine, pairs, summary

VISION = {
    "model_type": "moonvit",
    "patch_size": 14,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "init_pos_emb_height": 64,
    "init_pos_emb_width": 64,
    "merge_kernel_size": [2, 2],
    "torch_dtype": "bfloat16",
}
# The decoder is not measured: its width counts for the projector, the rest is small.
TEXT = {
    "model_type": "deepseek_v3",
    "vocab_size": 256,
    "hidden_size": 2048,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "rope_scaling": None,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
CONFIG = {
    "architectures": ["KimiVLForConditionalGeneration"],
    "model_type": "kimi_vl",
    "media_placeholder_token_id": 255,
    "vocab_size": 256,
    "text_config": TEXT,
    "vision_config": VISION,
    "torch_dtype": "bfloat16",
}
PREPROCESSOR = {
    "image_processor_type": "KimiVLImageProcessor",
    "in_token_limit": 4096,
    "patch_size": 14,
    "num_pooled_tokens": 1024,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "pad_input": True,
    "merge_kernel_size": [2, 2],
}


def write(directory):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=1) + "\n")
    return directory


def perilune(args, folder, threads):
    command = [args.binary, "bench-engine", str(folder), "--load-format", "dummy", "--job", "-", "--json"]
    command += ["--seconds", str(args.seconds), "--threads", str(threads), "--max-model-len", "2048", "--max-num-seqs", "1"]
    return Engine(command + ["--dtype", "bfloat16", "--device", "cpu"])


def transformers(args, dtype, threads):
    worker = str(Path(__file__).with_name("torch_worker.py"))
    return Engine([sys.executable, worker, "--dtype", dtype, "--threads", str(threads), "--seconds", str(args.seconds)])


def line(names, s, tokens):
    a, b = (rate / tokens for rate in s["tokens_per_s"])
    cpu_a, cpu_b = (1e-3 * ms * tokens for ms in s["cpu_ms_per_token"])
    low, high = s["ratio_95"]
    cells = [*names, f"{a:.3f}", f"{b:.3f}", f"**{s['ratio']:.2f}**", f"{low:.2f}–{high:.2f}", f"{cpu_a:.2f}", f"{cpu_b:.2f}"]
    return "| " + " | ".join(cells) + f" | {s['pairs']} of {s['pairs'] + s['left_out']} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder for config.json")
    parser.add_argument("--binary", default="target/release/perilune")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--dtypes", default="bfloat16,float32", help="of transformers; ours is bfloat16 weights and f32 sums")
    parser.add_argument("--sides", default="224,448,896", help="of square pictures, multiples of 28")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of a measurement")
    parser.add_argument("--json", help="file for all that was measured")
    args = parser.parse_args()
    folder, everything = write(Path(args.work) / "moonvit"), []
    print(f"load average {os.getloadavg()[0]:.1f} at the start")
    print("| picture | threads | transformers in | Perilune pictures/s | transformers | ratio | 95 % | CPU-s a picture | transformers' | pairs kept |")
    print("|---|--:|---|--:|--:|--:|---|--:|--:|--:|", flush=True)
    for threads in map(int, args.threads.split(",")):
        ours = perilune(args, folder, threads)
        for dtype in args.dtypes.split(","):
            theirs = transformers(args, dtype, threads)
            for side in map(int, args.sides.split(",")):
                s = summary(pairs(ours, theirs, f"encode:{side}", args.pairs))
                print(line((f"{side} × {side}", str(threads), dtype), s, (side // 28) ** 2), flush=True)
                everything.append({"side": side, "threads": threads, "dtype": dtype, **s})
            theirs.close()
        ours.close()
    print(f"\nload average {os.getloadavg()[0]:.1f} at the end")
    if args.json:
        Path(args.json).write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
