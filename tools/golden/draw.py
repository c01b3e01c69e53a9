"""Small pictures from integer formulas: gradients, stripes, discs and a pseudo-random texture, so that a filter, an axis or
a channel in the wrong place shows. All arithmetic is on integers, so that any language draws the same bytes."""

import numpy as np
from PIL import Image


def formula_rgb(width, height, seed):
    """[h, w, 3] uint8, with // rounding down:  c0 = 7x + 3y + seed,  c1 = x*y // 16 + 5*seed,  c2 = x*x // 8 + 11y + seed, each
    modulo 256. Where (2x - w)^2 + (2y - h)^2 <= (2r)^2 with r = min(w, h) // 3, the channels are inverted (255 - c)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    channels = [7 * x + 3 * y + seed, x * y // 16 + 5 * seed, x * x // 8 + 11 * y + seed]
    rgb = np.stack([c % 256 for c in channels], axis=-1)
    radius = min(width, height) // 3
    inside = (2 * x - width) ** 2 + (2 * y - height) ** 2 <= (2 * radius) ** 2
    rgb[inside] = 255 - rgb[inside]
    return rgb.astype(np.uint8)


def picture(width, height, seed, mode):
    """The formula picture as a PIL image of a mode: RGB, RGBA (alpha varies and must be dropped), L or P (palette)."""
    rgb = formula_rgb(width, height, seed)
    if mode == "RGB":
        return Image.fromarray(rgb)
    if mode == "RGBA":
        return Image.fromarray(np.concatenate([rgb, rgb[..., :1] // 2 + 60], axis=-1))
    if mode == "L":
        return Image.fromarray(rgb[..., 1])
    assert mode == "P"
    image = Image.fromarray(rgb[..., 0] // 16)
    image.putpalette([(40 * i + 13 * c * i + 5) % 256 for i in range(16) for c in range(3)])
    return image


def noise_rgb(width, height, seed):
    """[h, w, 3] uint8 without any smoothness: with k = (y * w + x) * 3 + c + 1 + seed * 7919 and 32-bit wrapping products,
    n = k * 2654435761, n = (n ^ (n >> 15)) * 2246822519, the value is (n >> 24)."""
    k = np.arange(1, width * height * 3 + 1, dtype=np.uint64) + np.uint64(seed * 7919)
    n = k * np.uint64(2654435761) & np.uint64(0xFFFFFFFF)
    n = (n ^ (n >> np.uint64(15))) * np.uint64(2246822519) & np.uint64(0xFFFFFFFF)
    return (n >> np.uint64(24)).astype(np.uint8).reshape(height, width, 3)
