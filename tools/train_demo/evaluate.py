"""Measures a model in memory: greedy answers to questions about freshly drawn scenes, and to held-out questions without a picture."""

import json
from collections import Counter

import torch

from cases import json_case, thinking_case, tool_case
from chat import small_talk
from joint import generate
from pictures import prepare
from prompt import calls_text, prompt
from questions import ask
from scenes import draw, random_scene
from words import THINK_END


def normalise(answer):
    """Case, white space and the last full stop are not what is judged."""
    return " ".join(answer.lower().split()).rstrip(".")


def report(judged):
    """judged: (kind, right) pairs -> one line: all, then each kind from worst to best."""
    total, good = Counter(k for k, _ in judged), Counter(k for k, right in judged if right)
    kinds = " ".join(f"{k} {good[k] / n:.2f}" for k, n in sorted(total.items(), key=lambda item: good[item[0]] / item[1]))
    return f"{sum(good.values())}/{len(judged)} = {sum(good.values()) / len(judged):.4f} ({kinds})"


class Asker:
    """Answers conversations greedily; pictures: uint8 arrays of one size, which conversations name by number."""

    def __init__(self, model, packer, pictures, chunk=96):
        self.model, self.packer, self.chunk = model, packer, chunk
        cut = [prepare(p) for p in pictures]
        with torch.no_grad():
            self.seen = model.see(torch.stack([patches for patches, _ in cut]), cut[0][1]) if cut else None

    @torch.no_grad()
    def answers(self, conversations, limit=48):
        """conversations: (number of the picture or None, messages, options of `prompt`). Returns what was said, in order."""
        out = [None] * len(conversations)
        for with_picture in (True, False):
            at = [i for i, (picture, _, _) in enumerate(conversations) if (picture is not None) == with_picture]
            for part in (at[start:start + self.chunk] for start in range(0, len(at), self.chunk)):
                tokens = self.seen.shape[1] if with_picture else 0
                prompts = [prompt(self.packer.words, conversations[i][1], tokens, **conversations[i][2]) for i in part]
                seen = self.seen[[conversations[i][0] for i in part]] if with_picture else None
                for i, said in zip(part, generate(self.model, self.packer, prompts, seen, limit)):
                    out[i] = said
        return out


def user(text):
    return [{"role": "user", "content": text}]


def judge_plain(asker, cases):
    """cases: (picture or None, kind, question, answer)."""
    said = asker.answers([(picture, user(question), {}) for picture, _, question, _ in cases])
    return [(kind, normalise(one) == normalise(answer)) for one, (_, kind, _, answer) in zip(said, cases)]


def judge_thinking(asker, cases):
    """Answers after a thought, and thoughts: two lists of (kind, right)."""
    said = asker.answers([(c["picture"], user(c["question"]), {"thinking": True}) for c in cases], limit=96)
    parted = [(one.split(THINK_END)[0], one.split(THINK_END)[-1] if THINK_END in one else "") for one in said]
    return ([(c["kind"], normalise(answer) == normalise(c["answer"])) for (_, answer), c in zip(parted, cases)],
            [(c["kind"], normalise(thought) == normalise(c["thought"])) for (thought, _), c in zip(parted, cases)])


def judge_json(asker, cases):
    """Right when it is JSON and means the same."""
    said = asker.answers([(c["picture"], user(c["question"]), {}) for c in cases], limit=128)
    return [(c["kind"], parse(one) == c["value"]) for one, c in zip(said, cases)]


def judge_tools(asker, cases):
    """A call is right to the last character."""
    said = asker.answers([(None, c["messages"], {"tools": c["tools"]}) for c in cases], limit=96)
    return [(c["kind"], one == calls_text(c["calls"]) if "calls" in c else normalise(one) == normalise(c["answer"]))
            for one, c in zip(said, cases)]


def parse(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def measure(model, packer, rng, pictures=64, each=4, others=64):
    """Lines about everything, on fresh scenes."""
    scenes = [random_scene(rng) for _ in range(pictures)]
    asker = Asker(model, packer, [draw(scene, rng) for scene in scenes])
    plain = [(i, *ask(scene, rng)) for i, scene in enumerate(scenes) for _ in range(each)]
    text = [(None, *small_talk(rng, wanted=True)) for _ in range(others)]
    answers, thoughts = judge_thinking(asker, [thinking_case(rng, scenes) for _ in range(2 * others)])
    yield f"pictures {report(judge_plain(asker, plain))}"
    yield f"\n  text {report(judge_plain(asker, text))}"
    yield f"\n  thinking {report(answers)}\n  thoughts {report(thoughts)}"
    yield f"\n  json {report(judge_json(asker, [json_case(rng, scenes) for _ in range(others)]))}"
    yield f"\n  tools {report(judge_tools(asker, [tool_case(rng) for _ in range(others)]))}"
