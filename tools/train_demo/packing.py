"""Packs many conversations about one picture behind one prefix (see model.py for the picture of it), with the loss on the
answers alone."""

from dataclasses import dataclass

import numpy as np
import torch

from chat import DEFAULT_SYSTEM, small_talk, system_text
from model import GRAIN, Block, Layout
from questions import PRACTISED, ask
from scenes import COLOUR_NAMES, PLACE_NAMES, SHAPE_NAMES, SIZE_NAMES

# Words in which an answer can be wrong; the rest of a sentence is learned in minutes and needs no weight.
_CONTENT = [*COLOUR_NAMES, *SHAPE_NAMES, *SIZE_NAMES, *" ".join(PLACE_NAMES).split(), *(s + "s" for s in SHAPE_NAMES),
            "no", "one", "two", "three", "four", "Yes", "No", "Nothing", "The", "There", "is", "are", "on", "and", ",", *map(str, range(101)), "-"]


@dataclass
class Row:
    """Tokens that continue a prefix, and for each the weight of predicting it."""
    owner: int
    tokens: list
    weights: list


@dataclass
class Packed:
    tokens: torch.Tensor      # [N]
    layout: Layout
    picture_at: torch.Tensor  # Flat places of the picture tokens, and which row of the projected tokens goes there.
    picture_from: torch.Tensor
    predict_at: torch.Tensor  # Flat places whose next token is asked for, that token, and the weight of it.
    target: torch.Tensor
    weight: torch.Tensor


class Packer:
    def __init__(self, words):
        self.words = words
        self.content = np.zeros(words.tokenizer.get_vocab_size(), np.float32)
        self.content[:] = 0.3
        for word in _CONTENT:
            for text in (word, " " + word, word.capitalize()):
                if len(ids := words.text(text)) == 1:
                    self.content[ids[0]] = 1.0

    # One turn in three shapes: as a row goes on after the opened user turn, as a later turn, and with its picture inside.

    def answer(self, row, answer):
        words = self.words
        head = [words.end, *words.open("assistant")]
        body = [*words.text(answer), words.end]
        row.tokens += head + body
        row.weights += [0.0] * len(head) + self.content[body].tolist()

    def say(self, row, text):
        row.tokens += text
        row.weights += [0.0] * len(text)

    def turn(self, row, question, answer):
        self.say(row, self.words.text(question))
        self.answer(row, answer)

    def later_turn(self, row, question, answer):
        self.say(row, self.words.open("user"))
        self.turn(row, question, answer)

    def picture_rows(self, rng, owner, scene, num_tokens, count):
        """The prefix of one picture and `count` conversations about it."""
        words = self.words
        prefix = words.system(system_text(rng)) + words.open("user")
        # Some people put their question before the picture; then nothing of the picture is shared.
        picture_first = rng.random() < 0.85
        rows = []
        for _ in range(count if picture_first else max(1, count // 2)):
            row = Row(owner, [], [])
            _, question, answer = ask(scene, rng, PRACTISED) if rng.random() < 0.96 else small_talk(rng, kind=_ASIDE[rng.integers(len(_ASIDE))])
            if picture_first:
                self.turn(row, question, answer)
            else:
                self.say(row, words.text(question) + words.picture(num_tokens))
                self.answer(row, answer)
            while rng.random() < 0.12:
                self.later_turn(row, *(ask(scene, rng, PRACTISED) if rng.random() < 0.9 else small_talk(rng, kind=_ASIDE[rng.integers(len(_ASIDE))]))[1:])
            rows.append(row)
        return prefix + (words.picture(num_tokens) if picture_first else []), rows

    def text_rows(self, rng, owner, count):
        words = self.words
        prefix, rows = words.system(system_text(rng)) + words.open("user"), []
        for _ in range(count):
            row = Row(owner, [], [])
            self.turn(row, *small_talk(rng)[1:])
            while rng.random() < 0.15:
                self.later_turn(row, *small_talk(rng)[1:])
            rows.append(row)
        return prefix, rows

    def batch(self, rng, scenes, num_tokens, rows_each, text_prefixes, text_each):
        parts = [self.picture_rows(rng, i, scene, num_tokens, rows_each) for i, scene in enumerate(scenes)]
        parts += [self.text_rows(rng, len(scenes) + i, text_each) for i in range(text_prefixes)]
        return self.pack([p for p, _ in parts], [row for _, rows in parts for row in rows], num_tokens)

    def pack(self, prefixes, rows, num_tokens, cuts=(0.3, 0.6, 0.8, 0.93, 0.98)):
        """num_tokens: projected tokens per picture; the picture of prefix i is the i-th one. cuts: where the rows, sorted by
        length, are parted into blocks; finer at the long end, where there are few and padding is dear."""
        rows = sorted(rows, key=lambda row: len(row.tokens))
        bounds = [0, *(int(len(rows) * cut) for cut in cuts), len(rows)]
        chunks = [rows[a:b] for a, b in zip(bounds, bounds[1:]) if b > a]
        flat, positions, weights, owners, start = [], [], [], [], 0

        def block(sequences, offsets, owner):
            nonlocal start
            lengths = np.zeros(up(len(sequences), 8), np.int64)
            lengths[:len(sequences)] = [len(s) for s in sequences]
            inside = np.arange(up(lengths.max(), 8))[None, :] < lengths[:, None]
            index = np.where(inside, np.cumsum(inside.ravel()).reshape(inside.shape) - 1 + start, 0)
            start += int(lengths.sum())
            for sequence, offset in zip(sequences, offsets):
                flat.extend(sequence)
                positions.extend(range(offset, offset + len(sequence)))
            owner = None if owner is None else torch.tensor(owner + [0] * (len(lengths) - len(owner)))
            return Block(torch.from_numpy(index), torch.from_numpy(inside), owner)

        prefix = block(prefixes, [0] * len(prefixes), None)
        owners.extend(i for i, p in enumerate(prefixes) for _ in p)
        weights.extend([0.0] * len(flat))
        blocks = []
        for chunk in chunks:
            blocks.append(block([r.tokens for r in chunk], [len(prefixes[r.owner]) for r in chunk], [r.owner for r in chunk]))
            owners.extend(r.owner for r in chunk for _ in r.tokens)
            weights.extend(w for r in chunk for w in r.weights)
        fill = -len(flat) % (4 * GRAIN)
        for values in (flat, positions, weights, owners):
            values.extend([0] * fill)
        tokens, weights, owners = np.array(flat), np.array(weights, np.float32), np.array(owners)
        at = np.flatnonzero(tokens == self.words.pad_picture)
        # Pictures stand whole and in order, so the n-th pad of a picture is its n-th token.
        source = owners[at] * num_tokens + np.arange(len(at)) % max(1, num_tokens)
        # A weighted token is never the first of a row, so what predicts it is its neighbour in the flat list.
        asked = np.flatnonzero(weights)
        asked = np.concatenate([asked, np.zeros(-len(asked) % GRAIN, np.int64)])  # Token 0 has no weight.
        as_tensor = torch.from_numpy
        return Packed(as_tensor(tokens), Layout(torch.tensor(positions), prefix, blocks, fill), as_tensor(at), as_tensor(source),
                      as_tensor(np.maximum(asked - 1, 0)), as_tensor(tokens[asked]), as_tensor(weights[asked]))


def up(number, multiple):
    """The next multiple, and at least one."""
    return max(1, -(-int(number) // multiple)) * multiple


_ASIDE = ["sum", "said", "unknown"]


def prompt(words, turns, num_tokens=0, system=DEFAULT_SYSTEM, picture_first=True):
    """Tokens of a conversation that waits for its next answer. turns: (question, answer) pairs, the last answer None;
    num_tokens > 0 puts a picture into the first user turn."""
    out = words.system(system)
    for i, (question, answer) in enumerate(turns):
        picture = words.picture(num_tokens) if i == 0 and num_tokens else []
        text = words.text(question)
        out += words.open("user") + (picture + text if picture_first else text + picture) + [words.end] + words.open("assistant")
        if answer is not None:
            out += words.text(answer) + [words.end]
    return out
