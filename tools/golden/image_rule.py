"""Kimi-VL's image preprocessing, written with PIL and numpy: the rule that the Rust image processor must reproduce.

  limit   with w, h in pixels: when (w // 14) * (h // 14) > in_token_limit, shrink both sides by
          sqrt(in_token_limit / that product), truncated to whole pixels, with PIL's bicubic filter; never enlarge
  pad     right and bottom with black to multiples of patch_size * merge
  values  (x / 255 - mean) / std, so padding becomes -1
  patches row by row; a patch is channel-major, then rows, then columns: [N, 3, 14, 14]
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass
class Processed:
    resized: np.ndarray  # [h, w, 3] uint8, before padding
    padded: np.ndarray  # [H, W, 3] uint8
    patches: np.ndarray  # [N, 3, 14, 14] float32
    grid: tuple  # patches (rows, columns)
    num_tokens: int


def process(image, config):
    patch, merge = config["patch_size"], config["merge_kernel_size"]
    image = image.convert("RGB")
    width, height = image.size
    num_patches = (width // patch) * (height // patch)
    if num_patches > config["in_token_limit"]:
        scale = math.sqrt(config["in_token_limit"] / num_patches)
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    resized = np.asarray(image)
    padded = pad(resized, patch * merge[0], patch * merge[1])
    grid = (padded.shape[0] // patch, padded.shape[1] // patch)
    assert max(grid) < 512, "exceeds the position table"
    mean, std = np.float32(config["image_mean"]), np.float32(config["image_std"])
    values = (padded.astype(np.float32) / np.float32(255) - mean) / std
    patches = values.reshape(grid[0], patch, grid[1], patch, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, patch, patch)
    num_tokens = (grid[0] // merge[0]) * (grid[1] // merge[1])
    return Processed(resized, padded, np.ascontiguousarray(patches), grid, num_tokens)


def pad(array, unit_h, unit_w):
    height, width, _ = array.shape
    out = np.zeros((-(-height // unit_h) * unit_h, -(-width // unit_w) * unit_w, 3), np.uint8)
    out[:height, :width] = array
    return out
