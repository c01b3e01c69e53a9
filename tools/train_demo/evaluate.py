"""Measures a model in memory: greedy answers to questions about freshly drawn scenes, and to held-out text questions."""

from collections import Counter

import torch

from chat import small_talk
from joint import generate
from packing import prompt
from pictures import prepare
from questions import ask
from scenes import draw, random_scene


def normalise(answer):
    """Case, white space and the last full stop are not what is judged."""
    return " ".join(answer.lower().split()).rstrip(".")


def report(judged):
    """judged: (kind, right) pairs -> one line: all, then each kind from worst to best."""
    total, good = Counter(k for k, _ in judged), Counter(k for k, right in judged if right)
    kinds = " ".join(f"{k} {good[k] / n:.2f}" for k, n in sorted(total.items(), key=lambda item: good[item[0]] / item[1]))
    return f"{sum(good.values())}/{len(judged)} = {sum(good.values()) / len(judged):.4f} ({kinds})"


@torch.no_grad()
def answer_about(model, packer, pictures, conversations, chunk=128):
    """pictures: uint8 arrays of one size; conversations: (index of the picture, turns). Returns the answers."""
    cut = [prepare(p) for p in pictures]
    seen = model.see(torch.stack([patches for patches, _ in cut]), cut[0][1])
    answers = []
    for start in range(0, len(conversations), chunk):
        part = conversations[start:start + chunk]
        prompts = [prompt(packer.words, turns, seen.shape[1]) for _, turns in part]
        answers += generate(model, packer, prompts, seen[[i for i, _ in part]])
    return answers


def picture_accuracy(model, packer, rng, pictures, questions):
    scenes = [random_scene(rng) for _ in range(pictures)]
    drawn = [draw(scene, rng) for scene in scenes]
    asked = [(i, *ask(scene, rng)) for i, scene in enumerate(scenes) for _ in range(questions)]
    answers = answer_about(model, packer, drawn, [(i, [(q, None)]) for i, _, q, _ in asked])
    return report([(kind, normalise(a) == normalise(want)) for a, (_, kind, _, want) in zip(answers, asked)])


def text_accuracy(model, packer, rng, questions):
    asked = [small_talk(rng, wanted=True) for _ in range(questions)]
    answers = generate(model, packer, [prompt(packer.words, [(q, None)]) for _, q, _ in asked])
    return report([(kind, normalise(a) == normalise(want)) for a, (kind, _, want) in zip(answers, asked)])
