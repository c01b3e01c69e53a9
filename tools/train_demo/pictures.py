"""What lies between a picture and the tower: the published resize rule, padding, normalisation and patches, and batches
of scenes with their targets."""

import numpy as np
import torch
from PIL import Image

from scenes import CANVASES, cell_targets, draw, random_scene

PATCH = 14
IN_TOKEN_LIMIT = 64  # Patches; small, so that any larger picture comes down to the scale of training.


def prepare(picture, limit=IN_TOKEN_LIMIT):
    """uint8 [H, W, 3] of any size -> (float patches [P, 3, 14, 14], grid), by the rule of Kimi-VL's image processor."""
    height, width, _ = picture.shape
    patches = (width // PATCH) * (height // PATCH)
    if patches > limit:
        scale = (limit / patches) ** 0.5
        size = (int(width * scale), int(height * scale))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    return patchify(picture)


def patchify(picture):
    """Pads right and bottom with black to multiples of 28, normalises to -1..1 and cuts row-major patches."""
    height, width, _ = picture.shape
    picture = np.pad(picture, ((0, -height % (2 * PATCH)), (0, -width % (2 * PATCH)), (0, 0)))
    grid = (picture.shape[0] // PATCH, picture.shape[1] // PATCH)
    cut = picture.reshape(grid[0], PATCH, grid[1], PATCH, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, PATCH, PATCH)
    return torch.from_numpy(cut.astype(np.float32) / 127.5 - 1.0), grid


def scene_batch(rng, count, square=0.8, fewest=1):
    """`count` scenes on one canvas, the square one with the given probability, so that a batch has one grid.
    Returns (scenes, patches [B, P, 3, 14, 14], grid, targets [B, P/4, 5])."""
    canvas = CANVASES[0] if rng.random() < square else CANVASES[rng.integers(1, len(CANVASES))]
    scenes = [random_scene(rng, fewest) for _ in range(count)]
    cut = [patchify(draw(scene, rng, canvas)) for scene in scenes]
    grid = cut[0][1]
    # On canvases with padding the border between quarters is off by part of a token; the tower copes.
    targets = [cell_targets(scene, (grid[0] // 2, grid[1] // 2)) for scene in scenes]
    return scenes, torch.stack([patches for patches, _ in cut]), grid, torch.from_numpy(np.stack(targets))
