"""Stage one: the tower and the projector learn to see, without a decoder.

Trained through answers alone, the tower never starts to look at the picture. So each projected token is first asked
directly what lies in its quarter and what the ground is, by a probe that is thrown away in the end.
"""

import torch
import torch.nn.functional as F

from pictures import scene_batch
from scenes import COLOUR_NAMES, SHAPE_NAMES, SIZE_NAMES

_KINDS = [COLOUR_NAMES, SHAPE_NAMES, [f"{s}s" for s in SHAPE_NAMES], SIZE_NAMES, ["top", "bottom", "middle"], ["left", "right", "middle"]]


class WordProbe(torch.nn.Module):
    """Asks each projected token for the words of its quarter, by their own embeddings: "red", "circle", "circles", "top" must
    be the nearest of their kind. Then a picture token looks to the decoder like its words laid over each other, and finding
    "the circle" in the picture is the same matching of equals as finding it in text. The ground has a linear map."""

    def __init__(self, words, hidden):
        super().__init__()
        ids = [[words.text(" " + word) for word in kind] for kind in _KINDS]
        assert all(len(one) == 1 for kind in ids for one in kind), "a word of the scenes is not one token"
        self.ids = [torch.tensor(kind)[:, 0] for kind in ids]
        self.nothing = torch.nn.Parameter(torch.randn(len(_KINDS), hidden) * 0.1)
        self.ground = torch.nn.Linear(hidden, len(COLOUR_NAMES))

    def forward(self, table, tokens, targets):
        """table: the embedding matrix; tokens [B, T, hidden], targets [B, T, 5]. Returns (loss, share of tokens with every
        word right)."""
        colour, shape, size, place, ground = targets.unbind(-1)
        # Places: four quarters, the middle, none -> (top, bottom, middle, none) and (left, right, middle, none).
        row, column = torch.tensor([0, 0, 1, 1, 2, 3])[place], torch.tensor([0, 1, 0, 1, 2, 3])[place]
        total = F.cross_entropy(self.ground(tokens).flatten(0, 1), ground.flatten())
        right = torch.ones_like(colour, dtype=torch.bool)
        for k, want in enumerate((colour, shape, shape, size, row, column)):
            logits = tokens @ torch.cat([table[self.ids[k]], self.nothing[k:k + 1]]).T
            total = total + F.cross_entropy(logits.flatten(0, 1), want.flatten())
            right &= logits.detach().argmax(-1) == want
        return total, right.float().mean().item()


def tower_step(model, probe, rng, recipe):
    """One batch: backpropagates and returns (loss, share right); the caller steps the optimiser."""
    _, patches, grid, targets = scene_batch(rng, recipe["batch"], fewest=recipe["fewest"])
    with torch.autocast("cpu", torch.bfloat16):
        seen = model.see(patches, grid)
    # The words stay where they are in this stage: only the picture moves.
    loss, right = probe(model.language_model.model.embed_tokens.weight.detach(), seen.float(), targets)
    loss.backward()
    return loss.item(), right
