"""Pictures of one to four coloured shapes on a coloured ground, drawn with numpy.

A scene is a plain description first (`Scene`, `Thing`) and pixels second, so that questions are answered from the
description and never from the pixels.

      0        56       112
    0 +---------+---------+      One thing per quarter, anywhere inside it, or a single
      | top left| top     |      thing in the middle. Radii and places are in units of the
      |         |    right|      canvas, so the same scene can be drawn at 112x112, 448x448
   56 +---------+---------+      or 640x480.
      | bottom  | bottom  |
      |     left|    right|
  112 +---------+---------+
"""

from dataclasses import dataclass

import numpy as np

# Several tints for a name: the CSS ones, which people type, and softer ones, so that a colour is a region of RGB.
COLOURS = {
    "red": [(255, 0, 0), (215, 40, 45), (190, 20, 25)],
    "orange": [(255, 165, 0), (255, 140, 0), (240, 130, 30)],
    "yellow": [(255, 255, 0), (245, 220, 50), (255, 225, 20)],
    "green": [(0, 128, 0), (0, 255, 0), (50, 165, 70)],
    "blue": [(0, 0, 255), (40, 80, 210), (30, 100, 230)],
    "purple": [(128, 0, 128), (130, 50, 170), (150, 40, 190)],
    "pink": [(255, 192, 203), (255, 150, 190), (250, 130, 180)],
    "gray": [(128, 128, 128), (145, 145, 150), (110, 110, 112)],
    "black": [(0, 0, 0), (20, 20, 22), (12, 12, 12)],
    "white": [(255, 255, 255), (245, 245, 245), (250, 248, 244)],
}
COLOUR_NAMES = list(COLOURS)
SHAPE_NAMES = ["circle", "square", "triangle", "star"]
SIZE_NAMES = ["small", "large"]
PLACE_NAMES = ["top left", "top right", "bottom left", "bottom right", "middle"]
MIDDLE = 4

# Radius as a share of the shorter side of the canvas; the gap between the two ranges keeps "large" unambiguous.
RADIUS = {"small": (0.080, 0.108), "large": (0.155, 0.200)}

# Sizes (width, height) that the image processor leaves as they are; the first is the one trained on most. The others are
# what 4:3 and 3:4 pictures become at the limit of 64 patches, and smaller pictures, which are never enlarged.
CANVASES = [(112, 112), (130, 98), (98, 130), (112, 84), (84, 112), (98, 98), (120, 105), (140, 84)]


@dataclass(frozen=True)
class Thing:
    colour: str
    shape: str
    size: str
    place: int  # Index into PLACE_NAMES.


@dataclass(frozen=True)
class Scene:
    ground: str
    things: tuple  # Of Thing, in reading order: ascending place.


def random_scene(rng, fewest=1):
    """Up to four things; colours and shapes repeat often enough that counting them is a real question."""
    ground = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))]
    usable = [c for c in COLOUR_NAMES if c != ground]
    count = int(rng.integers(fewest, 5))
    if count == 1 and rng.random() < 0.25:
        places = [MIDDLE]
    else:
        places = sorted(rng.choice(4, size=count, replace=False).tolist())
    things = []
    for place in places:
        colour = usable[rng.integers(len(usable))]
        shape = SHAPE_NAMES[rng.integers(len(SHAPE_NAMES))]
        if things and rng.random() < 0.3:
            colour = things[rng.integers(len(things))].colour
        if things and rng.random() < 0.25:
            shape = things[rng.integers(len(things))].shape
        things.append(Thing(colour, shape, SIZE_NAMES[rng.integers(2)], place))
    return Scene(ground, tuple(things))


def draw(scene, rng, canvas=(112, 112)):
    """The scene as uint8 [height, width, 3], with random tints, places inside the quarters, small turns and edges."""
    width, height = canvas
    side = min(width, height)
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = _tint(scene.ground, rng)
    # Edge softness in pixels: hard as from a drawing program, or soft as after being shrunk from a larger picture.
    soft = 1e-3 if rng.random() < 0.4 else float(rng.uniform(0.7, 1.8))
    for thing in scene.things:
        radius = float(rng.uniform(*RADIUS[thing.size])) * side
        x, y = _centre(thing.place, radius, canvas, rng)
        _paint(picture, thing.shape, (x, y), radius, float(rng.uniform(-0.2, 0.2)), soft, _tint(thing.colour, rng))
    return (picture + 0.5).astype(np.uint8)


def _tint(name, rng):
    tints = COLOURS[name]
    # A tenth of a tint at most: grounds and things stay flat but are never the same number twice.
    return np.clip(np.float32(tints[rng.integers(len(tints))]) + rng.uniform(-10, 10, 3), 0, 255)


def _centre(place, radius, canvas, rng):
    width, height = canvas
    if place == MIDDLE:
        return width / 2 + rng.uniform(-0.04, 0.04) * width, height / 2 + rng.uniform(-0.04, 0.04) * height
    column, row = place % 2, place // 2
    slack_x, slack_y = (max(0.0, side / 4 - 1.1 * radius) for side in (width, height))
    return ((column + 0.5) * width / 2 + rng.uniform(-slack_x, slack_x),
            (row + 0.5) * height / 2 + rng.uniform(-slack_y, slack_y))


def _paint(picture, shape, centre, radius, angle, soft, tint):
    """Blends the shape into its bounding box only: the rest of the picture is not touched."""
    height, width, _ = picture.shape
    reach = radius * 1.25 + 2
    x0, x1 = max(0, int(centre[0] - reach)), min(width, int(centre[0] + reach) + 1)
    y0, y1 = max(0, int(centre[1] - reach)), min(height, int(centre[1] + reach) + 1)
    x = (np.arange(x0, x1, dtype=np.float32) + 0.5 - centre[0])[None, :]
    y = (np.arange(y0, y1, dtype=np.float32) + 0.5 - centre[1])[:, None]
    c, s = np.cos(angle), np.sin(angle)
    distance = _DISTANCE[shape](x * c + y * s, y * c - x * s, radius)
    cover = np.clip(0.5 - distance / soft, 0, 1)[..., None]
    box = picture[y0:y1, x0:x1]
    box += cover * (tint - box)


# Signed distances to the outline, negative inside, y pointing down; the four shapes have similar areas at one radius.
def _circle(x, y, r):
    return np.sqrt(x * x + y * y) - 0.95 * r


def _square(x, y, r):
    return np.maximum(np.abs(x), np.abs(y)) - 0.85 * r


def _triangle(x, y, r):
    # Three half planes; pointing up, and moved down a little so that its box is centred.
    y = y - 0.2 * r
    return np.maximum(y, 0.8660254 * np.abs(x) - 0.5 * y) - 0.58 * r


def _star(x, y, r):
    # Folded into one half ray: the outline is then a single line from the outer to the inner corner.
    outer, inner = 1.15 * r, 0.5 * r
    length = np.sqrt(x * x + y * y)
    turn = np.abs(np.mod(np.arctan2(x, -y) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5)
    px, py = length * np.sin(turn), length * np.cos(turn)
    ix, iy = inner * np.sin(np.pi / 5), inner * np.cos(np.pi / 5)
    dx, dy = ix, iy - outer
    norm = np.sqrt(dx * dx + dy * dy)
    return (-dy * px + dx * (py - outer)) / norm


_DISTANCE = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}


def cell_targets(scene, grid):
    """What each merged image token should know: (colour, shape, size, place) of the thing in its quarter, else one past
    the last index of each, and the ground. grid = (rows, columns) of merged tokens; returns int64 [rows*columns, 5]."""
    rows, columns = grid
    nothing = (len(COLOUR_NAMES), len(SHAPE_NAMES), len(SIZE_NAMES), len(PLACE_NAMES))
    ground = COLOUR_NAMES.index(scene.ground)
    by_place = {}
    for t in scene.things:
        by_place[t.place] = (COLOUR_NAMES.index(t.colour), SHAPE_NAMES.index(t.shape), SIZE_NAMES.index(t.size), t.place)
    out = np.empty((rows * columns, 5), np.int64)
    for r in range(rows):
        for c in range(columns):
            quarter = 2 * (2 * r >= rows) + (2 * c >= columns)
            out[r * columns + c] = (*by_place.get(MIDDLE, by_place.get(quarter, nothing)), ground)
    return out
