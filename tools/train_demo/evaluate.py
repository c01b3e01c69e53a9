"""Measures a model in memory: greedy answers to questions about freshly drawn scenes, and to held-out questions without a picture."""

import json
from collections import Counter

import torch

import thinking
from cases import json_case, tool_case
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


def judge(asker, manner, cases):
    """manner: plain, thinking, json, tools; cases: as in the fixture. Returns (kind, right, said) of each."""
    options = [{"thinking": manner == "thinking"} | ({"tools": case["tools"]} if "tools" in case else {}) for case in cases]
    asked = [(case.get("picture"), messages(case), option) for case, option in zip(cases, options)]
    said = asker.answers(asked, limit=48 if manner == "plain" else 128)
    return [(case["kind"], right(manner, case, one), one) for case, one in zip(cases, said)]


def messages(case):
    if "messages" in case:
        return case["messages"]
    before = case.get("history")
    turns = [] if before is None else [{"role": "user", "content": before["question"]}, {"role": "assistant", "content": before["answer"]}]
    return [*turns, {"role": "user", "content": case["question"]}]


def right(manner, case, said):
    if "calls" in case:
        return said == calls_text(case["calls"])
    if manner == "json":
        return parse(said) == case["value"]
    if manner == "thinking" and THINK_END not in said:
        return False
    return normalise(said.split(THINK_END)[-1]) == normalise(case["answer"])


def parse(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def measure(model, packer, rng, pictures=64, each=4, others=64):
    """Lines about everything, on fresh scenes."""
    scenes = [random_scene(rng) for _ in range(pictures)]
    asker = Asker(model, packer, [draw(scene, rng) for scene in scenes])
    names = "picture", "kind", "question", "answer"
    plain = [dict(zip(names, (i, *ask(scene, rng)))) for i, scene in enumerate(scenes) for _ in range(each)]
    rounds = {"pictures": ("plain", plain), "thinking about pictures": ("thinking", plain[::2]),
              "text": ("plain", [dict(zip(names, (None, *small_talk(rng, wanted=True)))) for _ in range(others)]),
              "json": ("json", [json_case(rng, scenes) for _ in range(others)]), "tools": ("tools", [tool_case(rng) for _ in range(others)])}
    for name, (manner, cases) in rounds.items():
        judged = judge(asker, manner, cases)
        yield f"{name} {report([(kind, right) for kind, right, _ in judged])}"
        if manner == "thinking":
            thoughts = [(kind, normalise(said.split(THINK_END)[0]) == normalise(thinking_of(scenes, case))) for case, (kind, _, said) in zip(cases, judged)]
            yield f"their thoughts {report(thoughts)}"


def thinking_of(scenes, case):
    return thinking.about_scene(scenes[case["picture"]], case["kind"], case["question"], case["answer"])
