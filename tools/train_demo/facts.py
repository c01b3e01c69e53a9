"""A probe that asks each phrase of a question for the facts about what it names: "the red star" is large, at the top left, one.

Comparing two things needs both facts at one token, and the answer alone asks for neither: "Is the star bigger than the circle?" is right
half of the time by guessing, so little pulls the decoder towards reading the sizes. The probe asks where the phrase ends, early
enough that later layers can use it: size and place after the layer in which phrases look at the picture, the number one layer later.
It is thrown away in the end.
"""

import torch
import torch.nn.functional as F

from grounding import PHRASE_LAYER
from scenes import PLACE_NAMES, SIZE_NAMES

LARGEST_NUMBER = 4
_COUNTS = [len(SIZE_NAMES), len(PLACE_NAMES), LARGEST_NUMBER]
_LAYERS = [PHRASE_LAYER, PHRASE_LAYER, PHRASE_LAYER + 1]


class FactProbe(torch.nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.asks = torch.nn.ModuleList(torch.nn.Linear(hidden, count) for count in _COUNTS)

    def forward(self, streams, phrases):
        """streams: what each layer gave, [N, hidden]; phrases: Hints with facts. Returns (loss, share of facts right)."""
        total, right = streams[0].new_zeros(()), []
        for column, (ask, layer) in enumerate(zip(self.asks, _LAYERS)):
            x = streams[layer][phrases.at].float()
            logits, want = ask(F.rms_norm(x, x.shape[-1:])), phrases.facts[:, column]
            total = total + F.cross_entropy(logits, want)
            right.append((logits.detach().argmax(-1) == want)[want >= 0].float().mean())
        return total, torch.stack(right).mean().item()
