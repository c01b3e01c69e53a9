"""The tokenizer and the chat format.

Byte-level BPE over our own corpus: every byte has a token, so any text encodes; common words are one token. Numbers up to
three digits stand apart from the space before them, so that "12" is the same token in "9+12" and "is 12".
"""

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chat import DEFAULT_SYSTEM, small_talk, system_text
from questions import ask
from scenes import random_scene

SPECIALS = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|media_start|>",
            "<|media_content|>", "<|media_end|>", "<|media_pad|>", "[UNK]", "[PAD]"]
# No look-ahead and no class arithmetic, so that every regular expression engine splits alike.
_SPLIT = r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
# Sentences of many kinds that the model is not trained on, so that ordinary English takes fewer tokens.
_ORDINARY = """The quick brown fox jumps over the lazy dog. Please write a short answer to this question about the world. What would you
like to know about it? I think that this should be a good way to find out more about how things work. There is no reason why people could
not come and see for themselves. Could you tell me which of these is the best one, and why? Here are some words that can be used in a
request: name, number, list, time, year, day, week, work, life, hand, part, place, case, group, company, system, program, question,
government, point, home, room, area, story, fact, month, lot, right, study, book, eye, job, word, business, issue, side, kind, head, house,
service, friend, father, power, hour, game, line, end, member, law, car, city, community, president, team, minute, idea, body,
information, back, parent, face, others, level, office, door, health, person, art, war, history, party, result, change, morning, reason,
research, girl, guy, moment, air, teacher, force, education, user, assistant, image, input, output, text, message, server, request, answer."""


def corpus(rng, count=30000):
    """Lines to learn the merges from: what the model reads and writes."""
    for _ in range(count):
        _, question, answer = ask(random_scene(rng), rng) if rng.random() < 0.6 else small_talk(rng)
        yield question
        yield answer
    # Every number of the tables is one token; often enough that no word is dearer.
    yield from [f"{number} = {number}" for number in range(101)] * 100
    yield from [system_text(rng) for _ in range(500)] + ["system", "user", "assistant", "image"] * 100
    yield from [_ORDINARY] * 12


def train_tokenizer(vocab, seed):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(SPECIALS), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  min_frequency=4, show_progress=False)
    tokenizer.train_from_iterator(corpus(np.random.default_rng([seed, 0])), trainer)
    # Like Kimi's, the special tokens come after all ordinary ones.
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return tokenizer


class Words:
    """Encodes pieces of a conversation. Text is never searched for special tokens: those are put in by id."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = {text: tokenizer.token_to_id(text) for text in SPECIALS}
        self.end, self.pad_picture = self.ids["<|im_end|>"], self.ids["<|media_pad|>"]
        tokenizer.encode_special_tokens = True
        self._known = {}

    def text(self, text):
        if text not in self._known:
            if len(self._known) > 100000:
                self._known.clear()
            self._known[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self._known[text]

    def open(self, role):
        return [self.ids[f"<|im_{role}|>"], *self.text(role), self.ids["<|im_middle|>"]]

    def system(self, text=DEFAULT_SYSTEM):
        return [*self.open("system"), *self.text(text), self.end]

    def picture(self, num_tokens):
        ids = self.ids
        return [ids["<|media_start|>"], *self.text("image"), ids["<|media_content|>"], *[self.pad_picture] * num_tokens, ids["<|media_end|>"]]

    def decode(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


# The same format as a Jinja template, for everybody else.
CHAT_TEMPLATE = """\
{%- if messages and messages[0]['role'] != 'system' -%}
<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>
{%- endif -%}
{%- for message in messages -%}
<|im_{{ message['role'] }}|>{{ message['role'] }}<|im_middle|>
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ['image', 'image_url'] -%}
<|media_start|>image<|media_content|><|media_pad|><|media_end|>
{%- else -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_assistant|>assistant<|im_middle|>
{%- endif -%}
"""
