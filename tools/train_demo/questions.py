"""Questions about a scene, with the one right answer to each. Only what the description decides beyond doubt is asked:
"the circle" when there is one circle, "bigger" when one is small and one is large, "left of" across the two columns."""

from scenes import COLOUR_NAMES, MIDDLE, PLACE_NAMES, SHAPE_NAMES

NUMBERS = ["no", "one", "two", "three", "four"]


def ask(scene, rng, shares=None):
    """A random question about the scene: (kind, question, answer). shares: ASKED unless told otherwise."""
    while True:
        kind = _NAMES[rng.choice(len(_NAMES), p=ASKED if shares is None else shares)]
        pair = _KINDS[kind][2](scene, rng)
        if pair is not None:
            return kind, vary(pair[0], rng), pair[1]


def vary(question, rng):
    """Small differences in how people type."""
    draw = rng.random()
    if draw < 0.10:
        question = question[0].lower() + question[1:]
    elif draw < 0.16:
        question = question.rstrip("?.")
    elif draw < 0.20:
        question = question.lower().rstrip("?.")
    elif draw < 0.24:
        question = "Please tell me: " + question[0].lower() + question[1:]
    if rng.random() < 0.25:
        question = question.replace("colour", "color").replace("gray", "grey")
    return question


def _pick(rng, items):
    return items[rng.integers(len(items))]


def _place(place):
    return "in the middle" if place == MIDDLE else f"at the {PLACE_NAMES[place]}"


def _a(phrase):
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _full(thing):
    return f"{thing.size} {thing.colour} {thing.shape}"


def _references(scene, thing):
    """The phrases that name this thing and no other of the scene."""
    others = [t for t in scene.things if t is not thing]
    found = []
    if all(t.shape != thing.shape for t in others):
        found.append(f"the {thing.shape}")
    if all(t.colour != thing.colour for t in others):
        found.append(f"the {thing.colour} shape")
    if all((t.colour, t.shape) != (thing.colour, thing.shape) for t in others):
        found.append(f"the {thing.colour} {thing.shape}")
    return found


def _named_pair(scene, rng, wanted):
    """Two things that satisfy `wanted`, each with a phrase that names it alone, or None."""
    pairs = [(a, b) for a in scene.things for b in scene.things if a is not b and wanted(a, b)]
    if not pairs:
        return None
    a, b = _pick(rng, pairs)
    names = _references(scene, a), _references(scene, b)
    if not all(names):
        return None
    return a, b, _pick(rng, names[0]), _pick(rng, names[1])


def _there_are(count, singular, plural):
    return f"There is one {singular}." if count == 1 else f"There are {NUMBERS[count]} {plural}."


def _count_all(scene, rng):
    question = _pick(rng, ["How many shapes are there?", "How many shapes do you see?", "How many shapes are in the picture?",
                           "Count the shapes.", "What is the number of shapes?", "How many objects are there?",
                           "How many things are in the image?"])
    return question, _there_are(len(scene.things), "shape", "shapes")


def _count_colour(scene, rng):
    colour = _pick(rng, scene.things).colour if rng.random() < 0.8 else _pick(rng, COLOUR_NAMES)
    question = _pick(rng, [f"How many {colour} shapes are there?", f"How many shapes are {colour}?", f"Count the {colour} shapes.",
                           f"How many {colour} shapes do you see?", f"How many {colour} things are in the picture?"])
    return question, _there_are(sum(t.colour == colour for t in scene.things), f"{colour} shape", f"{colour} shapes")


def _count_shape(scene, rng):
    shape = _pick(rng, scene.things).shape if rng.random() < 0.8 else _pick(rng, SHAPE_NAMES)
    question = _pick(rng, [f"How many {shape}s are there?", f"How many {shape}s do you see?", f"Count the {shape}s.",
                           f"How many {shape}s are in the picture?", f"What is the number of {shape}s?"])
    return question, _there_are(sum(t.shape == shape for t in scene.things), shape, f"{shape}s")


def _ground(scene, rng):
    question = _pick(rng, ["What colour is the background?", "What is the background colour?", "Which colour is the background?",
                           "What is the colour of the background?", "What colour is behind the shapes?",
                           "On what colour are the shapes?"])
    return question, f"The background is {scene.ground}."


def _colour(scene, rng):
    shape = _pick(rng, scene.things).shape if rng.random() < 0.9 else _pick(rng, SHAPE_NAMES)
    found = [t for t in scene.things if t.shape == shape]
    if len(found) > 1:
        return None
    question = _pick(rng, [f"What colour is the {shape}?", f"Which colour is the {shape}?", f"What is the colour of the {shape}?",
                           f"Tell me the colour of the {shape}.", f"The {shape} is what colour?"])
    return question, f"The {shape} is {found[0].colour}." if found else f"There is no {shape}."


def _shape(scene, rng):
    colour = _pick(rng, scene.things).colour if rng.random() < 0.9 else _pick(rng, COLOUR_NAMES)
    found = [t for t in scene.things if t.colour == colour]
    if len(found) > 1 or (not found and colour == scene.ground):
        return None
    question = _pick(rng, [f"What shape is the {colour} one?", f"What shape is {colour}?", f"Which shape is {colour}?",
                           f"What is the shape of the {colour} one?", f"What is the {colour} shape?", f"What is the {colour} thing?"])
    return question, f"The {colour} shape is a {found[0].shape}." if found else f"There is no {colour} shape."


def _size(scene, rng):
    thing = _pick(rng, scene.things)
    names = _references(scene, thing)
    if not names:
        return None
    name = _pick(rng, names)
    question = _pick(rng, [f"Is {name} small or large?", f"Is {name} large or small?", f"How big is {name}?",
                           f"What size is {name}?", f"What is the size of {name}?"])
    return question, f"{name[0].upper()}{name[1:]} is {thing.size}."


def _at(scene, rng):
    place = int(rng.integers(4)) if len(scene.things) > 1 and rng.random() < 0.4 else _pick(rng, scene.things).place
    where = _place(place)
    found = [t for t in scene.things if t.place == place]
    question = _pick(rng, [f"What is {where}?", f"What do you see {where}?", f"Which shape is {where}?",
                           f"What is {where} of the picture?", f"Describe the shape {where}."])
    if where.startswith("at") and rng.random() < 0.3:
        where = f"in the {PLACE_NAMES[place]} corner" if rng.random() < 0.6 else PLACE_NAMES[place]
        question = _pick(rng, [f"What is {where}?", f"What do you see {where}?"])
    return question, f"A {_full(found[0])}." if found else "Nothing."


def _where(scene, rng):
    thing = _pick(rng, scene.things)
    names = _references(scene, thing)
    if not names:
        return None
    name = _pick(rng, names)
    question = _pick(rng, [f"Where is {name}?", f"Where do you see {name}?", f"Where can I find {name}?",
                           f"What is the position of {name}?", f"In which place is {name}?"])
    return question, f"{name[0].upper()}{name[1:]} is {_place(thing.place)}."


def _exists(scene, rng):
    a, b = _pick(rng, scene.things), _pick(rng, scene.things)
    # Half of the noes mix the colour of one thing with the shape of another, so that both must be found together.
    colour, shape = a.colour, a.shape
    if rng.random() < 0.55:
        shape = b.shape if rng.random() < 0.5 else _pick(rng, SHAPE_NAMES)
        colour = a.colour if rng.random() < 0.6 else _pick(rng, COLOUR_NAMES)
    name = _a(f"{colour} {shape}")
    question = _pick(rng, [f"Is there {name}?", f"Do you see {name}?", f"Is there {name} in the picture?", f"Can you see {name}?",
                           f"Does the picture show {name}?"])
    return question, "Yes." if any((t.colour, t.shape) == (colour, shape) for t in scene.things) else "No."


def _beside(scene, rng):
    pair = _named_pair(scene, rng, lambda a, b: a.place % 2 != b.place % 2)
    if pair is None:
        return None
    a, b, left, right = pair
    side = _pick(rng, ["left", "right"])
    question = _pick(rng, [f"Is {left} {side} of {right}?", f"Is {left} to the {side} of {right}?", f"Is {left} on the {side} of {right}?"])
    return question, "Yes." if (a.place % 2 < b.place % 2) == (side == "left") else "No."


def _above(scene, rng):
    pair = _named_pair(scene, rng, lambda a, b: a.place // 2 != b.place // 2)
    if pair is None:
        return None
    a, b, upper, lower = pair
    side = _pick(rng, ["above", "below"])
    question = _pick(rng, [f"Is {upper} {side} {lower}?", f"Is {upper} placed {side} {lower}?"])
    return question, "Yes." if (a.place // 2 < b.place // 2) == (side == "above") else "No."


def _bigger(scene, rng):
    pair = _named_pair(scene, rng, lambda a, b: a.size != b.size)
    if pair is None:
        return None
    a, b, first, second = pair
    side = _pick(rng, ["bigger", "larger", "smaller"])
    question = f"Is {first} {side} than {second}?"
    return question, "Yes." if (a.size == "large") == (side != "smaller") else "No."


def _which_bigger(scene, rng):
    pair = _named_pair(scene, rng, lambda a, b: a.size != b.size)
    if pair is None:
        return None
    a, b, first, second = pair
    side = _pick(rng, ["bigger", "larger", "smaller"])
    answer = first if (a.size == "large") == (side != "smaller") else second
    return f"Which is {side}, {first} or {second}?", f"{answer[0].upper()}{answer[1:]}."


def _describe(scene, rng):
    question = _pick(rng, ["Describe the picture.", "Describe the image.", "What do you see?", "What is in the picture?",
                           "What is in this image?", "What does the picture show?", "What's in this image?", "Describe this picture.",
                           "Tell me what you see."])
    parts = [f"a {_full(t)} {_place(t.place)}" for t in scene.things]
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return question, f"{text[0].upper()}{text[1:]}, on {_a(scene.ground)} background."


# Each kind with its share of the questions asked, how many times as often it is trained on, and its maker.
_KINDS = {
    "count_all": (2.0, 1.0, _count_all),
    "count_colour": (3.0, 2.0, _count_colour),
    "count_shape": (3.0, 1.7, _count_shape),
    "ground": (1.5, 1.0, _ground),
    "colour": (3.0, 1.0, _colour),
    "shape": (3.0, 1.0, _shape),
    "size": (2.5, 1.0, _size),
    "at": (3.0, 1.0, _at),
    "where": (3.0, 1.0, _where),
    "exists": (3.0, 1.0, _exists),
    "beside": (3.0, 3.0, _beside),
    "above": (3.0, 1.5, _above),
    "bigger": (2.5, 2.5, _bigger),
    "which_bigger": (2.0, 3.0, _which_bigger),
    "describe": (2.5, 1.0, _describe),
}
_NAMES = list(_KINDS)


def _shares(weights):
    return [w / sum(weights) for w in weights]


ASKED = _shares([asked for asked, _, _ in _KINDS.values()])
# Comparing two things and counting some of them come last and slowly; practised more often than asked.
PRACTISED = _shares([asked * more for asked, more, _ in _KINDS.values()])
