"""A process with llama.cpp in it that speaks as `perilune bench-engine --job - --json` does, so that both are driven alike."""

import argparse
import json
import sys
import time

from llama import Llama, peak_bytes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--max-num-seqs", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    llama = Llama(args.gguf, args.threads, args.max_model_len, args.max_num_seqs)
    print(json.dumps({"load_seconds": llama.load_seconds}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(llama, line.strip(), args.seconds)), flush=True)
    llama.close()


def measure(llama, job, at_least):
    llama.run(job)
    runs, start = [], time.perf_counter()
    while not runs or time.perf_counter() - start < at_least:
        runs.append(llama.run(job))
    tokens, _, _, said = runs[-1]
    seconds, cpu = sorted(r[1] for r in runs), sorted(r[2] for r in runs)
    middle = len(runs) // 2
    result = {"job": job, "tokens_per_run": tokens, "runs": len(runs), "peak_bytes": peak_bytes()}
    if job.startswith("logprobs"):
        result["logprobs"], result["ranks"] = map(list, zip(*said))
        return result
    result["tokens"] = said
    result["tokens_per_s"] = tokens / seconds[middle]
    result["cpu_ms_per_token"] = 1e3 * cpu[middle] / tokens
    return result


if __name__ == "__main__":
    main()
