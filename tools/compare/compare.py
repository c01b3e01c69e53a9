"""Perilune's engine beside llama.cpp: same weights, same token ids, same threads, greedy, in turns (A B B A).

    cargo build --release --locked
    python -m venv .venv && .venv/bin/pip install -r tools/compare/requirements.txt
    .venv/bin/python tools/compare/compare.py --work target/compare

Prints, for every job, the median of the pairs' ratios with a 95 % bootstrap interval, both engines' tokens a second and CPU time a
token. A check of the numbers goes before the speed: log-probabilities of the same prompt in both. Pairs during which the machine was
not its own (measured by a fixed loop of multiplications before and after) are left out and counted. The limit is what memory, or products
from registers, measured before and after the job with the same threads, would allow (`shapes.limit`).
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

from models import write
from shapes import CONFIGS, limit
from turns import Engine, pairs, summary

JOBS = ("prefill:512", "decode:1@128", "decode:8@128", "decode:1@4096", "decode:1@8160")
MAX_LEN, SEQUENCES = 8192, 8
LOGPROBS = "logprobs:256"


def perilune(args, published, precision, threads):
    command = [args.binary, "bench-engine", str(published), "--job", "-", "--json", "--seconds", str(args.seconds)]
    command += ["--threads", str(threads), "--max-model-len", str(MAX_LEN), "--max-num-seqs", str(SEQUENCES)]
    command += ["--max-num-batched-tokens", "512", "--dtype", "bfloat16"]
    if precision != "bf16":
        command += ["--quantization", precision.split("_")[0]]
    return Engine(command)


def llama(args, gguf, threads):
    worker = str(Path(__file__).with_name("llama_worker.py"))
    command = [sys.executable, worker, str(gguf), "--threads", str(threads), "--seconds", str(args.seconds)]
    return Engine(command + ["--max-model-len", str(MAX_LEN), "--max-num-seqs", str(SEQUENCES)])


def check(ours, theirs):
    """The numbers of both before their speed: mean and largest difference of a prompt's log-probabilities."""
    a, b = ours.run(LOGPROBS), theirs.run(LOGPROBS)
    difference = np.abs(np.array(a["logprobs"]) - np.array(b["logprobs"])[: len(a["logprobs"])])
    return float(difference.mean()), float(difference.max())


def best(found):
    """The peaks of some measurements, each the best of them."""
    return {name: max((one[name] or 0 for one in found)) for name in found[0] if name != "job"}


def table_line(names, s):
    (a, b), (cpu_a, cpu_b), (low, high) = s["tokens_per_s"], s["cpu_ms_per_token"], s["ratio_95"]
    cells = [*names, f"{a:.1f}", f"{b:.1f}", f"**{s['ratio']:.2f}**", f"{low:.2f}–{high:.2f}", f"{cpu_a:.2f}", f"{cpu_b:.2f}"]
    cells.append(f"{100 * a / s['limit']:.0f} % of {s['limit']:.0f} ({s['bound_by']})")
    return "| " + " | ".join(cells) + f" | {s['pairs']} of {s['pairs'] + s['left_out']} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder for the models, 6 GB")
    parser.add_argument("--binary", default="target/release/perilune")
    parser.add_argument("--shapes", default="moe,llama")
    parser.add_argument("--precisions", default="bf16,int8,int4")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of a measurement")
    parser.add_argument("--json", help="file for all that was measured")
    args = parser.parse_args()
    everything = []
    print(f"load average {os.getloadavg()[0]:.1f} at the start")
    print("| model | weights | threads | job | Perilune tok/s | llama.cpp tok/s | ratio | 95 % | CPU-ms a token | llama.cpp's | of the limit | pairs kept |")
    print("|---|---|--:|---|--:|--:|--:|---|--:|--:|--:|--:|", flush=True)
    notes = []
    for shape in args.shapes.split(","):
        published, ggufs = write(shape, args.work)
        for precision in args.precisions.split(","):
            for threads in map(int, args.threads.split(",")):
                ours, theirs = perilune(args, published, precision, threads), llama(args, ggufs[precision], threads)
                mean, largest = check(ours, theirs)
                for job in args.jobs.split(","):
                    before = ours.run("peaks")
                    found = pairs(ours, theirs, job, args.pairs)
                    s = summary(found)
                    s["peaks"] = best([before, ours.run("peaks")])
                    s["limit"], s["bound_by"] = limit(CONFIGS[shape], precision, job, s["peaks"])
                    print(table_line((shape, precision, str(threads), job), s), flush=True)
                    everything.append({"shape": shape, "precision": precision, "threads": threads, "job": job, **s})
                memory = [found[-1][side]["peak_bytes"] / 2**30 for side in (0, 1)]
                loads = [engine.about["load_seconds"] for engine in (ours, theirs)]
                notes.append(
                    f"{shape} {precision}, {threads} threads: log-probabilities differ by {mean:.4f} on average, {largest:.4f} at most; "
                    f"peak memory {memory[0]:.2f} and {memory[1]:.2f} GiB; loaded in {loads[0]:.2f} and {loads[1]:.2f} s"
                )
                ours.close()
                theirs.close()
    print("", *notes, f"load average {os.getloadavg()[0]:.1f} at the end", sep="\n")
    if args.json:
        Path(args.json).write_text(json.dumps({"results": everything, "notes": notes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
