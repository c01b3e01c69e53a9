"""Two engines in turns (A B B A): processes that take jobs as `perilune bench-engine --job - --json` does, ratios of pairs, and how quiet the
machine was meanwhile."""

import json
import subprocess
import time

import numpy as np

# Of the best loop of the run: below it, somebody else was at work.
QUIET = 0.85


class Engine:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[0]} ended with {self.process.wait()}")
        return json.loads(line)

    def run(self, job):
        self.process.stdin.write(job + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def calibrate():
    """Multiplications a second that this process gets of one core, in 50 ms of the clock."""
    x, runs, start = np.ones((128, 128), np.float32), 0, time.perf_counter()
    while time.perf_counter() - start < 0.05:
        np.einsum("ij,ij->i", x, x)
        runs += 1
    return runs


def pairs(ours, theirs, job, count):
    """In turns; each pair with the worst calibration around it."""
    found = []
    for i in range(count):
        order = (ours, theirs) if i % 2 == 0 else (theirs, ours)
        before = calibrate()
        results = [engine.run(job) for engine in order]
        quiet = min(before, calibrate())
        found.append((*(results if i % 2 == 0 else reversed(results)), quiet))
    return found


def summary(found):
    best = max(quiet for *_, quiet in found)
    kept = [(a, b) for a, b, quiet in found if quiet >= QUIET * best]
    ratios = np.array([a["tokens_per_s"] / b["tokens_per_s"] for a, b in kept])
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    middle = lambda side, key: float(np.median([pair[side][key] for pair in kept]))
    return {
        "pairs": len(kept),
        "left_out": len(found) - len(kept),
        "ratio": float(np.median(ratios)),
        "ratio_95": [float(q) for q in np.quantile(drawn, (0.025, 0.975))],
        "tokens_per_s": [middle(0, "tokens_per_s"), middle(1, "tokens_per_s")],
        "cpu_ms_per_token": [middle(0, "cpu_ms_per_token"), middle(1, "cpu_ms_per_token")],
    }
