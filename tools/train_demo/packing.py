"""Packs many conversations about one picture behind one prefix (see model.py for the picture of it)."""

from dataclasses import dataclass

import numpy as np
import torch

from conversations import Writer
from model import GRAIN, Block, Group, Layout


@dataclass
class Packed:
    tokens: torch.Tensor      # [N]
    layout: Layout
    pictures: list            # For each group, for each of its prefixes: which picture it or its rows hold, or None.
    picture_at: torch.Tensor  # Flat places of the picture tokens, and which row of the projected tokens goes there.
    picture_from: torch.Tensor
    predict_at: torch.Tensor  # Flat places whose next token is asked for, that token, and the weight of it.
    target: torch.Tensor
    weight: torch.Tensor
    copy_at: torch.Tensor     # Flat places whose next token is a copy, and where it is copied from.
    copy_from: torch.Tensor


# Where the rows, sorted by length, are parted into blocks; finer at the long end, where there are few and padding is dear.
CUTS = (0.25, 0.5, 0.7, 0.85, 0.94, 0.98)


class Packer:
    def __init__(self, words):
        self.words, self.writer = words, Writer(words)

    def batch(self, rng, scenes, num_tokens, recipe):
        """Pictures and plain text in one group, whose prefixes are short; declared tools, whose are long, in another."""
        writer = self.writer
        parts = []
        for i, scene in enumerate(scenes):
            manners = ["plain"] * recipe["rows"] + [str(rng.choice(["think", "json", "given"], p=recipe["manners"])) for _ in range(recipe["more_rows"])]
            parts.append(writer.picture_rows(rng, i, scene, num_tokens, manners))
        parts += [writer.text_rows(rng, len(scenes) + i, recipe["text_rows"]) for i in range(recipe["text_prefixes"])]
        tools = []
        for i in range(recipe["tool_prefixes"]):
            picture = int(rng.integers(len(scenes)))
            tools.append(writer.tool_rows(rng, i, recipe["tool_rows"], scenes[picture], picture, num_tokens))
        return self.pack([_together(parts), _together(tools)], num_tokens)

    def pack(self, groups, num_tokens, cuts=CUTS):
        """groups: (prefixes, rows) pairs, each row with its prefix within the group as owner. num_tokens: projected tokens per
        picture."""
        flat, positions, weights, pictures, laid = [], [], [], [], []
        copy_at, copy_from = [], []

        def block(sequences, offsets, owner):
            """The padded view, and where in the flat list each sequence begins."""
            begins = np.cumsum([len(flat), *(len(s) for s in sequences)])[:-1].tolist()
            lengths = np.zeros(up(len(sequences), 8), np.int64)
            lengths[:len(sequences)] = [len(s) for s in sequences]
            inside = np.arange(up(lengths.max(), 8))[None, :] < lengths[:, None]
            index = np.where(inside, np.cumsum(inside.ravel()).reshape(inside.shape) - 1 + len(flat), 0)
            for sequence, offset in zip(sequences, offsets):
                flat.extend(sequence)
                positions.extend(range(offset, offset + len(sequence)))
            owner = None if owner is None else torch.tensor(owner + [0] * (len(lengths) - len(owner)))
            return Block(torch.from_numpy(index), torch.from_numpy(inside), owner), begins

        for prefixes, rows in groups:
            prefix, heads = block([p.tokens for p in prefixes], [0] * len(prefixes), None)
            weights.extend([0.0] * (len(flat) - len(weights)))
            pictures.extend(p.picture for p in prefixes for _ in p.tokens)
            rows = sorted(rows, key=lambda row: len(row.tokens))
            bounds = [0, *(int(len(rows) * cut) for cut in cuts), len(rows)]
            blocks = []
            for chunk in (rows[a:b] for a, b in zip(bounds, bounds[1:]) if b > a):
                one, begins = block([r.tokens for r in chunk], [len(prefixes[r.owner].tokens) for r in chunk], [r.owner for r in chunk])
                blocks.append(one)
                weights.extend(w for r in chunk for w in r.weights)
                pictures.extend(prefixes[r.owner].picture for r in chunk for _ in r.tokens)
                for row, begin in zip(chunk, begins):
                    copy_at.extend(begin + at for at, _, _ in row.copies)
                    copy_from.extend((heads[row.owner] if in_prefix else begin) + origin for _, origin, in_prefix in row.copies)
            laid.append(Group(prefix, blocks))
        fill = -len(flat) % (4 * GRAIN)
        for values in (flat, positions, weights):
            values.extend([0] * fill)
        pictures.extend([None] * fill)
        tokens, weights = np.array(flat), np.array(weights, np.float32)
        at = np.flatnonzero(tokens == self.words.pad_picture)
        # Pictures stand whole, so the n-th pad of a picture is its n-th token.
        source = np.array([pictures[i] for i in at], np.int64) * num_tokens + np.arange(len(at)) % max(1, num_tokens)
        # A weighted token is never the first of a row, so what predicts it is its neighbour in the flat list.
        asked = np.flatnonzero(weights)
        asked = np.concatenate([asked, np.zeros(-len(asked) % GRAIN, np.int64)])  # Token 0 has no weight.
        as_tensor = torch.from_numpy
        held = [[p.picture for p in prefixes] for prefixes, _ in groups]
        return Packed(as_tensor(tokens), Layout(torch.tensor(positions), laid, fill), held, as_tensor(at), as_tensor(source),
                      as_tensor(np.maximum(asked - 1, 0)), as_tensor(tokens[asked]), as_tensor(weights[asked]),
                      torch.tensor(copy_at, dtype=torch.long), torch.tensor(copy_from, dtype=torch.long))


def _together(parts):
    return [p for p, _ in parts], [row for _, rows in parts for row in rows]


def up(number, multiple):
    """The next multiple, and at least one."""
    return max(1, -(-int(number) // multiple)) * multiple
