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

from evaluate import measure
from export import export
from facts import FactProbe
from grounding import Grounding
from joint import balance, joint_step
from model import KimiVl, TextShape, VisionShape
from optim import Optimiser
from packing import Packer
from tower import WordProbe, tower_step
from words import Words, train_tokenizer

SEED = 2026
VOCAB = 1280
TOWER = dict(steps=3000, batch=32, lr=8e-3, fewest=3)
# The learning rate is flat, then falls linearly to zero over the last `fall` steps; the tower's is `eyes` times that.
# Behind each of the `pictures` stand `rows` plain conversations and `more_rows` in other manners (thought, JSON, JSON whose keys are
# given); then come prefixes of plain text and prefixes that declare tools, with their rows.
JOINT = dict(steps=2400, fall=1400, lr=1.5e-3, eyes=0.5,
             pictures=12, rows=8, more_rows=2, manners=(0.5, 0.3, 0.2), text_prefixes=3, text_rows=8, tool_prefixes=2, tool_rows=6,
             probe=0.5, hint=0.3, facts=0.2, balance=1e-3, average=0.99)
SAVE_EVERY, MEASURE_EVERY = 100, 1000


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


def train_tower(path, model, probe):
    """Pictures that are mostly full, so that more is seen in each."""
    if path.exists():
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        probe.load_state_dict(saved["probe"])
        return
    eyes = [(n, p) for n, p in model.named_parameters() if not n.startswith("language_model.")]
    optimiser = Optimiser(eyes + [(f"lm_head.{n}", p) for n, p in probe.named_parameters()], TOWER["lr"])
    rng, log = np.random.default_rng([SEED, 1]), Log(every=50)
    for step in range(TOWER["steps"]):
        loss, right = tower_step(model, probe, rng, TOWER)
        optimiser.step(warm_then_cosine(step, TOWER["steps"]))
        log.add(step, loss=loss, right=right)
    torch.save({"model": model.state_dict(), "probe": probe.state_dict()}, path)


def train_joint(path, model, word_probe, packer):
    """Returns the running average of the weights, which is what ships: it is steadier than the last step."""
    mean = copy.deepcopy(model).eval()
    torch.manual_seed(SEED)
    probes, grounding = torch.nn.ModuleList([word_probe, FactProbe(TextShape().hidden)]), Grounding(packer.words)
    modules = model, mean, probes
    named = [*model.named_parameters(), *((f"lm_head.{n}", p) for n, p in probes.named_parameters())]
    optimiser = Optimiser(named, JOINT["lr"], slow=("vision_tower.", "multi_modal_projector."), slowness=JOINT["eyes"])
    first = resume(path, modules, optimiser) if path.exists() else 0
    log = Log(every=50)
    for step in range(first, JOINT["steps"]):
        logged = joint_step(model, probes, packer, grounding, np.random.default_rng([SEED, 2, step]), JOINT)
        share = warm_flat_fall(step, JOINT["steps"], JOINT["fall"])
        optimiser.step(share)
        average(mean, model, min(JOINT["average"], (step + 1) / (step + 20)))
        log.add(step, **logged, busiest=balance(model, JOINT["balance"] * share))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == JOINT["steps"]:
            state = dict(zip(("model", "mean", "probes"), (m.state_dict() for m in modules)))
            torch.save(state | {"optimiser": optimiser.state(), "step": step + 1}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
        if (step + 1) % MEASURE_EVERY == 0:
            # A seed of training: the held-out pictures are not looked at before the end.
            rng = np.random.default_rng([SEED, 3])
            print("measured:", *measure(mean, packer, rng), sep="\n  ", flush=True)
    return mean


def resume(path, modules, optimiser):
    """Loads a checkpoint; returns the step to go on from."""
    saved = torch.load(path)
    for module, name in zip(modules, ("model", "mean", "probes")):
        module.load_state_dict(saved[name])
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
    words, model = Words(tokenizer), new_model()
    probe = WordProbe(words, TextShape().hidden)
    train_tower(args.work / "tower.pt", model, probe)
    mean = train_joint(args.work / "joint.pt", model, probe, Packer(words))
    export(mean, tokenizer, args.out)


if __name__ == "__main__":
    main()
