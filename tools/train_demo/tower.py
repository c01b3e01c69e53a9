"""Stage one: the tower and the projector learn to see, without a decoder.

Trained through answers alone, the tower never starts to look at the picture. So each projected token is first asked
directly, through a linear probe that is thrown away in the end, what lies in its quarter and what the ground is.
"""

import torch
import torch.nn.functional as F

from pictures import scene_batch
from scenes import COLOUR_NAMES, PLACE_NAMES, SHAPE_NAMES, SIZE_NAMES

_PARTS = [len(names) + 1 for names in (COLOUR_NAMES, SHAPE_NAMES, SIZE_NAMES, PLACE_NAMES)] + [len(COLOUR_NAMES)]


def new_probe(hidden):
    return torch.nn.Linear(hidden, sum(_PARTS))


def probe_loss(probe, tokens, targets):
    """tokens [B, T, hidden], targets [B, T, 5] -> (loss, share of tokens with all five answers right)."""
    parts = probe(tokens).split(_PARTS, -1)
    losses = [F.cross_entropy(p.flatten(0, 1), targets[..., k].flatten()) for k, p in enumerate(parts)]
    with torch.no_grad():
        right = torch.stack([p.argmax(-1) == targets[..., k] for k, p in enumerate(parts)]).all(0)
    return sum(losses), right.float().mean().item()


def tower_step(model, probe, rng, recipe):
    """One batch: backpropagates and returns (loss, share right); the caller steps the optimiser."""
    _, patches, grid, targets = scene_batch(rng, recipe["batch"], fewest=recipe["fewest"])
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe["bf16"]):
        seen = model.see(patches, grid)
    loss, right = probe_loss(probe, seen.float(), targets)
    loss.backward()
    return loss.item(), right


class WordProbe(torch.nn.Module):
    """Asks each projected token for the words of its quarter, by their own embeddings: "red", "circle", "circles", "top" must
    be the nearest of their kind. Then a picture token looks to the decoder like its words laid over each other, and finding
    "the circle" in the picture is the same matching of equals as finding it in text."""

    def __init__(self, words, hidden):
        super().__init__()
        kinds = [COLOUR_NAMES, SHAPE_NAMES, [f"{s}s" for s in SHAPE_NAMES], SIZE_NAMES, ["top", "bottom", "middle"], ["left", "right", "middle"]]
        ids = [[words.text(" " + word) for word in kind] for kind in kinds]
        assert all(len(one) == 1 for kind in ids for one in kind), "a word of the scenes is not one token"
        self.ids = [torch.tensor(kind)[:, 0] for kind in ids]
        self.nothing = torch.nn.Parameter(torch.randn(len(kinds), hidden) * 0.1)

    def loss(self, table, tokens, targets):
        """table: the embedding matrix. Returns (loss, share of tokens with every word right)."""
        colour, shape, size, place = (targets[..., k] for k in range(4))
        # Places: four quarters, the middle, none -> (top, bottom, middle, none) and (left, right, middle, none).
        row, column = torch.tensor([0, 0, 1, 1, 2, 3])[place], torch.tensor([0, 1, 0, 1, 2, 3])[place]
        total, right = 0.0, torch.ones_like(colour, dtype=torch.bool)
        for k, want in enumerate((colour, shape, shape, size, row, column)):
            logits = tokens @ torch.cat([table[self.ids[k]], self.nothing[k:k + 1]]).T
            total = total + F.cross_entropy(logits.flatten(0, 1), want.flatten())
            right &= logits.detach().argmax(-1) == want
        return total, right.float().mean().item()
