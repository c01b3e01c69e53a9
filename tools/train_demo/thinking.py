"""Short true thoughts before an answer: the facts that the answer follows from, each of which the model can read off by itself.

Counting and comparing are hard in one step. Written down first ("The circle is small. The star is large."), they become two
questions of the easy kinds and a look at one's own words.
"""

import re

from chat import NO_PICTURE, UNKNOWN
from questions import NUMBERS, _a, _place
from scenes import COLOUR_NAMES, PLACE_NAMES, SHAPE_NAMES

_PHRASE = re.compile(rf"the (?:({'|'.join(COLOUR_NAMES)}) )?(shape|{'|'.join(SHAPE_NAMES)})\b")
_SUM = re.compile(r"(\d+) ([-+x]) (\d+) =")
_SUM_THOUGHTS = {"+": "I add {a} and {b}.", "-": "I subtract {b} from {a}.", "x": "I multiply {a} by {b}."}


def about_scene(scene, kind, question, answer):
    """The thought before an answer about a picture."""
    asked = question.lower().replace("grey", "gray")
    return _THOUGHTS[kind](scene, asked)


def about_text(kind, answer):
    """The thought before an answer without a picture."""
    if answer == UNKNOWN:
        return "This is not about shapes or small sums."
    if answer == NO_PICTURE:
        return "There is no picture."
    if kind == "sum":
        a, sign, b = _SUM.match(answer).groups()
        return _SUM_THOUGHTS[sign].format(a=a, b=b)
    return "This is small talk."


def about_call(calls):
    """The thought before tools are called; calls: (tool, arguments) pairs."""
    return f"I use {calls[0][0].name}."


AFTER_RESULT = "I have the result."


def _named(scene, asked):
    """(phrase, the one thing it names) for every phrase of the question that names one."""
    found = []
    for match in _PHRASE.finditer(asked):
        colour, shape = match.groups()
        things = [t for t in scene.things if colour in (None, t.colour) and shape in ("shape", t.shape)]
        if len(things) == 1:
            found.append((match.group(), things[0]))
    return found


def _sizes(scene, asked):
    return " ".join(f"{phrase.capitalize()} is {thing.size}." for phrase, thing in _named(scene, asked))


def _places(scene, asked):
    return " ".join(f"{phrase.capitalize()} is {_place(thing.place)}." for phrase, thing in _named(scene, asked))


def _colours(scene, _):
    return f"I see {', '.join(t.colour for t in scene.things)}."


def _shapes(scene, _):
    return f"I see {', '.join(_a(t.shape) for t in scene.things)}."


def _both(scene, _):
    return f"I see {', '.join(_a(f'{t.colour} {t.shape}') for t in scene.things)}."


def _of_shape(scene, asked):
    shape = next(s for s in SHAPE_NAMES if s in asked)
    found = [t for t in scene.things if t.shape == shape]
    return f"The {shape} is {_place(found[0].place)}." if found else f"I see no {shape}."


def _of_colour(scene, asked):
    colour = next(c for c in COLOUR_NAMES if c in asked)
    found = [t for t in scene.things if t.colour == colour]
    return f"The {colour} shape is {_place(found[0].place)}." if found else f"I see no {colour} shape."


def _looking(scene, asked):
    return f"I look {_place(next(i for i, name in enumerate(PLACE_NAMES) if name in asked))}."


_THOUGHTS = {
    "count_all": _shapes, "count_colour": _colours, "count_shape": _shapes, "exists": _both,
    "colour": _of_shape, "shape": _of_colour, "size": _places, "where": _sizes, "at": _looking,
    "beside": _places, "above": _places, "bigger": _sizes, "which_bigger": _sizes,
    "ground": lambda scene, asked: "I look behind the shapes.",
    "describe": lambda scene, asked: f"I count {NUMBERS[len(scene.things)]}.",
}
