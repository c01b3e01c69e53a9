"""Goldens of the two interpolations: PIL's bicubic filter on bytes, and torch's bicubic on the position table."""

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from common import MODEL_FIXTURES, Rng, write_arrays, write_json
from draw import formula_rgb, noise_rgb

# formula, seed, (width, height) in, (width, height) out: odd sizes, one axis only, both directions at once, single pixels
CASES = [
    ("smooth", 3, (61, 45), (40, 30)),
    ("smooth", 5, (200, 150), (135, 101)),
    ("smooth", 7, (17, 23), (33, 41)),
    ("smooth", 9, (97, 31), (13, 62)),
    ("smooth", 11, (40, 30), (40, 17)),
    ("smooth", 13, (40, 30), (23, 30)),
    ("smooth", 15, (33, 21), (33, 21)),
    ("smooth", 17, (300, 3), (11, 2)),
    ("noise", 19, (64, 48), (37, 29)),
    ("noise", 21, (19, 14), (47, 40)),
    ("noise", 23, (5, 5), (1, 1)),
    ("noise", 25, (1, 1), (5, 4)),
    ("noise", 27, (2, 255), (3, 7)),
    ("noise", 29, (51, 37), (50, 36)),
]
FORMULAS = {"smooth": formula_rgb, "noise": noise_rgb}

# table rows, columns -> wanted rows, columns
TABLES = {(6, 6): [(3, 5), (9, 7), (6, 6), (1, 1), (2, 13), (6, 12)], (5, 7): [(6, 6), (5, 7), (10, 3)]}


def generate():
    folder = MODEL_FIXTURES / "resize"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bicubic.json", {"cases": [resize_case(folder, *case) for case in CASES]})
    write_arrays(folder / "position_table.safetensors", position_tables())


def resize_case(folder, formula, seed, size_in, size_out):
    rgb = FORMULAS[formula](*size_in, seed)
    out = Image.fromarray(rgb).resize(size_out, Image.Resampling.BICUBIC)
    file = f"{formula}_{size_in[0]}x{size_in[1]}_to_{size_out[0]}x{size_out[1]}.png"
    out.save(folder / file, optimize=True)
    return {
        "formula": formula, "seed": seed, "width": size_in[0], "height": size_in[1],
        "input_sha256": hashlib.sha256(rgb.tobytes()).hexdigest(), "resized_width": size_out[0],
        "resized_height": size_out[1], "resized_file": file,
        "resized_sha256": hashlib.sha256(np.asarray(out).tobytes()).hexdigest(),
    }


def position_tables():
    rng, arrays = Rng("position_table"), {}
    for (rows, cols), targets in TABLES.items():
        table = rng.tensor(f"{rows}x{cols}", (rows, cols, 4), "position", torch.float32)
        arrays[f"table_{rows}x{cols}"] = table
        for target in targets:
            out = F.interpolate(table.permute(2, 0, 1)[None], size=target, mode="bicubic", align_corners=False)
            arrays[f"table_{rows}x{cols}.to_{target[0]}x{target[1]}"] = out[0].permute(1, 2, 0)
    return arrays
