"""Trains Perilune's demonstration model from nothing and writes it in the published Kimi-VL format:

    OMP_NUM_THREADS=1 python tools/train_demo/train.py --out server/demo

Seeded from the first picture to the last step. Checkpoints go to --work, and a run that was stopped goes on from there
exactly as if it had not been: every step draws from a generator of its own.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from evaluate import picture_accuracy, text_accuracy
from export import export
from joint import balance, joint_step
from model import KimiVl, TextShape, VisionShape
from optim import Optimiser
from packing import Packer
from tower import new_probe, tower_step
from words import Words, train_tokenizer

SEED = 2026
VOCAB = 1280
# Two rounds: after the first, colours and places were known and shapes were not; the second, with fuller pictures and a
# fresh learning rate, is for those.
TOWER = [dict(steps=1500, batch=32, lr=8e-3, fewest=1, bf16=False), dict(steps=2000, batch=32, lr=8e-3, fewest=3, bf16=True)]
# The learning rate is flat, then falls linearly to zero over the last `fall` steps. In the second round the tower learns
# slower than the decoder: at full rate, flat, it forgot some of the shapes again.
_BATCH = dict(pictures=16, rows=8, text_prefixes=3, text_rows=8, probe=1.0, balance=1e-3, average=0.998)
JOINT = [dict(steps=700, fall=1, lr=5e-3, eyes=1.0, **_BATCH), dict(steps=2900, fall=1700, lr=5e-3, eyes=0.2, **_BATCH)]
SAVE_EVERY, MEASURE_EVERY = 100, 500


def new_model():
    torch.manual_seed(SEED)
    return KimiVl(VisionShape(), TextShape(vocab=VOCAB))


def warm_then_cosine(step, steps, warmup=50):
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def warm_flat_fall(step, steps, fall, warmup=100):
    return min(1.0, (step + 1) / warmup, (steps - step) / fall)


class Log:
    """Averages since the last line; a line every `every` steps."""

    def __init__(self, every):
        self.every, self.sums, self.count, self.start = every, {}, 0, time.time()

    def add(self, step, **values):
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if (step + 1) % self.every == 0:
            text = " ".join(f"{name} {value / self.count:.4f}" for name, value in self.sums.items())
            print(f"step {step + 1} at {time.time() - self.start:.0f} s: {text}", flush=True)
            self.sums, self.count = {}, 0


def tokenizer_for(work):
    path = work / "tokenizer.json"
    if not path.exists():
        train_tokenizer(VOCAB, SEED).save(str(path))
    return Tokenizer.from_file(str(path))


def train_tower(work):
    model, probe = new_model(), new_probe(TextShape().hidden)
    for number, recipe in enumerate(TOWER, start=1):
        path = work / f"tower{number}.pt"
        if path.exists():
            saved = torch.load(path)
            model.load_state_dict(saved["model"])
            probe.load_state_dict(saved["probe"])
            continue
        eyes = [(n, p) for n, p in model.named_parameters() if not n.startswith("language_model.")]
        optimiser = Optimiser(eyes + [(f"lm_head.{n}", p) for n, p in probe.named_parameters()], recipe["lr"])
        rng, log = np.random.default_rng([SEED, 1] if number == 1 else [SEED, 1, number]), Log(every=50)
        for step in range(recipe["steps"]):
            loss, right = tower_step(model, probe, rng, recipe)
            optimiser.step(warm_then_cosine(step, recipe["steps"]))
            log.add(step, loss=loss, right=right)
        torch.save({"model": model.state_dict(), "probe": probe.state_dict()}, path)
    return model, probe


def train_joint(work, model, probe, packer):
    """Returns the running average of the weights, which is what ships: it is steadier than the last step."""
    mean = copy.deepcopy(model)
    for number, recipe in enumerate(JOINT, start=1):
        joint_round(work / f"joint{number}.pt", number, recipe, (model, mean, probe), packer)
    return mean


def joint_round(path, number, recipe, modules, packer):
    model, mean, probe = modules
    named = [*model.named_parameters(), *((f"lm_head.{n}", p) for n, p in probe.named_parameters())]
    optimiser = Optimiser(named, recipe["lr"], slow=("vision_tower.", "multi_modal_projector."), slowness=recipe["eyes"])
    first = resume(path, modules, optimiser, recipe["steps"]) if path.exists() else 0
    log = Log(every=50)
    for step in range(first, recipe["steps"]):
        seed = [SEED, 2, step] if number == 1 else [SEED, 2, number, step]
        logged = joint_step(model, probe, packer, np.random.default_rng(seed), recipe)
        share = warm_flat_fall(step, recipe["steps"], recipe["fall"])
        optimiser.step(share)
        average(mean, model, recipe["average"] if number > 1 else min(recipe["average"], (step + 1) / (step + 20)))
        log.add(step, **logged, busiest=balance(model, recipe["balance"] * share))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == recipe["steps"]:
            state = dict(zip(("model", "mean", "probe"), (m.state_dict() for m in modules)))
            torch.save(state | {"optimiser": optimiser.state(), "step": step + 1}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
        if (step + 1) % MEASURE_EVERY == 0:
            # A seed of training: the held-out pictures are not looked at before the end.
            rng = np.random.default_rng([SEED, 3])
            print("measured:", picture_accuracy(mean, packer, rng, 64, 4), text_accuracy(mean, packer, rng, 128), flush=True)


def resume(path, modules, optimiser, steps):
    """Loads a checkpoint; returns the step to go on from. A finished round's optimiser is not needed any more."""
    saved = torch.load(path)
    for module, name in zip(modules, ("model", "mean", "probe")):
        module.load_state_dict(saved[name])
    if saved["step"] < steps:
        optimiser.load(saved["optimiser"])
    return saved["step"]


@torch.no_grad()
def average(mean, model, keep):
    for m, p in zip(mean.parameters(), model.parameters()):
        m.lerp_(p, 1 - keep)
    for m, b in zip(mean.buffers(), model.buffers()):
        m.copy_(b)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    args.add_argument("--work", type=Path, default=Path("target/train_demo"), help="folder for checkpoints")
    args = args.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_for(args.work)
    model, probe = train_tower(args.work)
    mean = train_joint(args.work, model, probe, Packer(Words(tokenizer)))
    export(mean, tokenizer, args.out)


if __name__ == "__main__":
    main()
