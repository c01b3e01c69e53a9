"""A hint that makes words find their things: where a question names a colour or a shape, one head is asked to look at the
picture tokens that have it.

Without the hint the decoder learns to read the picture by place ("what is at the top left", descriptions, how many in all)
and stays there for a long time: for "the red circle" it must match a word with a picture token and then use what it found, and
neither half pays without the other. One head of layer 0 gets single words ("red", "circles"), one of layer 1 whole phrases
("red circle") at their last word, and one of the last layer keeps to the thing of the last phrase at every token after it, the
answer's included. The share is taken of all that the head sees: asked only for its shares among the picture's own
tokens, it learned where to look and went on looking elsewhere.

The layer between has no such work, and there one head learns to copy: where an answer repeats a name, an argument or a result, it is
asked to look at the very token that comes next.
"""

from dataclasses import dataclass

import numpy as np
import torch

from scenes import COLOUR_NAMES, SHAPE_NAMES

WORD_LAYER, PHRASE_LAYER, COPY_LAYER, CARRY_LAYER, HEAD = 0, 1, 2, 3, 0
# Columns of the targets, and how many values each has.
SIZE, PLACE = 2, 3
_ANY = ["shape", "shapes", "one", "thing", "things"]


@dataclass
class Hints:
    """For M tokens: their flat place, the flat place of the first token of their picture, and which of its tokens are meant."""
    at: torch.Tensor
    picture: torch.Tensor
    meant: torch.Tensor  # [M, T] bool, at least one in each row.
    facts: torch.Tensor | None  # [M, 3] of phrases: size, place, number less one; -100 where it is not the same for all meant.


class Grounding:
    def __init__(self, words):
        # For each token id: the column of the targets it speaks of, and the value there; column -1 is no noun, -2 any thing.
        size = words.tokenizer.get_vocab_size()
        self.column, self.value = np.full(size, -1), np.zeros(size, np.int64)
        named = [(w, 0, i) for i, w in enumerate(COLOUR_NAMES)] + [(w + s, 1, i) for i, w in enumerate(SHAPE_NAMES) for s in ("", "s")]
        for word, column, value in named + [("grey", 0, COLOUR_NAMES.index("gray"))] + [(w, -2, 0) for w in _ANY]:
            ids = words.text(" " + word)
            if len(ids) == 1:
                self.column[ids[0]], self.value[ids[0]] = column, value

    def hints(self, packed, pad, targets):
        """(words, phrases, carried) of a packed batch whose pictures have the given targets [B, T, 5]."""
        tokens, targets = packed.tokens.numpy(), targets.numpy()
        num_tokens = targets.shape[1]
        found = [], [], []
        for group, pictures in zip(packed.layout.groups, packed.pictures):
            at = {}
            for b, (places, real) in enumerate(zip(group.prefix.index.numpy(), group.prefix.real.numpy())):
                pads = places[real][tokens[places[real]] == pad]
                if len(pads):
                    at[b] = int(pads[0])
            for block in group.rows:
                for owner, places, real in zip(block.owner.tolist(), block.index.numpy(), block.real.numpy()):
                    if owner in at:
                        self._row(tokens, places[real], targets[pictures[owner]], at[owner], found)
        return [_hints(f, num_tokens) for f in found]

    def _row(self, tokens, places, targets, picture, found):
        words, phrases, carried = found
        meant, named, carry = None, False, None
        for place in places.tolist() + [None]:
            column = -1 if place is None else self.column[tokens[place]]
            if column == -1:
                if named:
                    carry = meant if meant.any() else None
                    if carry is not None:
                        phrases.append((last, picture, meant, facts(targets, meant)))
                if carry is not None and place is not None:
                    carried.append((place, picture, carry, None))
                meant, named = None, False
                continue
            last = place
            if column >= 0:
                matches = targets[:, column] == self.value[tokens[place]]
                if matches.any():
                    words.append((place, picture, matches, None))
                meant, named = (matches if meant is None else meant & matches), True


def facts(targets, meant):
    """What is true of the things meant: their size and place where all have the same, and how many there are, less one."""
    sizes, places = np.unique(targets[meant, SIZE]), np.unique(targets[meant, PLACE])
    return [sizes[0] if len(sizes) == 1 else -100, places[0] if len(places) == 1 else -100, len(places) - 1]


def _hints(found, num_tokens):
    at, picture, meant, known = zip(*found) if found else ((), (), np.zeros((0, num_tokens), bool), ())
    known = None if not known or known[0] is None else torch.from_numpy(np.array(known))
    return Hints(torch.tensor(at, dtype=torch.long), torch.tensor(picture, dtype=torch.long), torch.from_numpy(np.array(meant)), known)


def hint_loss(attention, hints):
    """Minus the logarithm of the share of head 0's attention that falls on the picture tokens that are meant."""
    q, k, total = attention.kept
    reach = torch.arange(hints.meant.shape[1])
    scores = (k[hints.picture[:, None] + reach, HEAD] @ q[hints.at, HEAD][:, :, None])[..., 0].float()
    return (total[hints.at] - scores.masked_fill(~hints.meant, float("-inf")).logsumexp(-1)).mean()


def copy_loss(attention, at, source):
    """The same for tokens that are copied: head 0 at the places `at` is asked to look at the places `source`."""
    q, k, total = attention.kept
    return (total[at] - (q[at, HEAD] * k[source, HEAD]).sum(-1).float()).sum() / max(1, len(at))  # Some batches copy nothing.
