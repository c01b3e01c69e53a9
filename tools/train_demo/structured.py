"""Answers as JSON: one small object for each kind of question, compact, always the same keys in the same order when the
question asks for JSON; in any order when a grammar is to give the keys (`shuffled`)."""

import re

from questions import NUMBERS
from scenes import COLOUR_NAMES, PLACE_NAMES, SHAPE_NAMES, SIZE_NAMES
from tools import to_json

KEYS = ["shapes", "background", "size", "colour", "shape", "place", "count", "result", "answer"]
SYSTEM = "Answer in JSON."
_SUFFIXES = ["Answer in JSON.", "Answer in JSON.", "Answer as JSON.", "Reply with JSON.", "Reply in JSON.", "Give me JSON.", "JSON only.", "as JSON", "in JSON"]
_PLAIN = dict(zip(("colour", "shape", "size", "place"), (COLOUR_NAMES, SHAPE_NAMES, SIZE_NAMES, PLACE_NAMES)))


def asking(rng, question):
    """The question with the wish for JSON."""
    suffix = _SUFFIXES[rng.integers(len(_SUFFIXES))]
    if question.endswith(".") and rng.random() < 0.5:
        return question[:-1] + (" as JSON." if rng.random() < 0.7 else " in JSON.")
    return f"{question} {suffix}"


def about_scene(scene, kind, answer):
    """The object that says what the sentence `answer` says."""
    words = re.findall(r"\w+", answer.lower())
    if kind.startswith("count"):
        return {"count": NUMBERS.index(words[2])}
    if kind == "ground":
        return {"background": scene.ground}
    if kind == "describe":
        return {"shapes": [_thing(t) | {"place": PLACE_NAMES[t.place]} for t in scene.things], "background": scene.ground}
    if kind == "at":
        return {"shape": None} if words == ["nothing"] else {k: next(w for w in words if w in _PLAIN[k]) for k in ("size", "colour", "shape")}
    if kind in ("colour", "shape"):
        return {kind: None if words[0] == "there" else words[-1]}
    if kind == "size":
        return {"size": words[-1]}
    if kind == "where":
        return {"place": next(p for p in PLACE_NAMES if p in answer)}
    if words in (["yes"], ["no"]):
        return {"answer": words == ["yes"]}
    return {"answer": answer.rstrip(".").lower()}


def _thing(thing):
    return {"size": thing.size, "colour": thing.colour, "shape": thing.shape}


def about_text(kind, answer):
    if kind == "sum" and "=" in answer:
        return {"result": int(answer.rstrip(".").split()[-1])}
    return {"answer": answer}


def shuffled(rng, value, order=None):
    """The same facts with the keys in another order, and some of several left out, as somebody's schema may have them."""
    if isinstance(value, list):
        order = [KEYS[i] for i in rng.permutation(len(KEYS))][:int(rng.integers(4, len(KEYS) + 1))]
        return [shuffled(rng, item, order) for item in value]
    if not isinstance(value, dict) or len(value) == 1:
        return value
    keys = [k for k in (order or [KEYS[i] for i in rng.permutation(len(KEYS))]) if k in value] or list(value)
    return {k: shuffled(rng, value[k]) for k in keys}


def text(value):
    return to_json(value)
