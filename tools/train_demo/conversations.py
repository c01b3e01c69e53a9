"""What is said: the prefixes and the rows that continue them, as tokens, with the loss on the answers alone.

One turn comes in several manners: plainly, after a thought, as JSON, by calling tools and repeating what they gave. All is laid out
as the chat template lays it out; the parts are encoded one by one, as the server encodes what it is given between the marks of turns.
"""

from dataclasses import dataclass, field

import numpy as np

import structured
import thinking
from chat import small_talk, system_text
from questions import PRACTISED, ask
from scenes import COLOUR_NAMES, PLACE_NAMES, SHAPE_NAMES, SIZE_NAMES
from tools import answer_with, call_id, call_question, draw_result, draw_tools, made_up, to_json
from words import THINK, THINK_END

# Words in which an answer can be wrong; the rest of a sentence is learned in minutes and needs no weight.
_CONTENT = [*COLOUR_NAMES, *SHAPE_NAMES, *SIZE_NAMES, *" ".join(PLACE_NAMES).split(), *(s + "s" for s in SHAPE_NAMES),
            "no", "one", "two", "three", "four", "Yes", "No", "Nothing", "The", "There", "is", "are", "on", "and", ",", *map(str, range(101)), "-",
            "true", "false", "null", "<|tool_calls_section_begin|>"]
_ASIDE = ["sum", "said", "unknown"]


@dataclass
class Prefix:
    tokens: list
    picture: int | None = None  # Which picture of the batch stands here, or in the rows that continue this.


@dataclass
class Row:
    """Tokens that continue a prefix, and for each the weight of predicting it."""
    owner: int
    tokens: list
    weights: list
    # Where a token is copied: (place of the token that predicts it, place copied from, whether that is in the prefix).
    copies: list = field(default_factory=list)


class Writer:
    def __init__(self, words):
        self.words = words
        self.content = np.full(words.tokenizer.get_vocab_size(), 0.3, np.float32)
        for word in _CONTENT:
            for text in (word, " " + word, word.capitalize()):
                if len(ids := words.text(text)) == 1:
                    self.content[ids[0]] = 1.0
        self.keys = {words.text(key)[0] for key in structured.KEYS}

    # ------------------------------------------------------------------------------------------------- parts of turns

    def say(self, row, tokens):
        row.tokens += tokens
        row.weights += [0.0] * len(tokens)

    def begin_answer(self, row):
        self.say(row, [self.words.end, *self.words.open("assistant")])

    def write(self, row, text):
        tokens = self.words.text(text)
        row.tokens += tokens
        row.weights += self.content[tokens].tolist()

    def think(self, row, thought):
        """The opening mark is part of the prompt."""
        self.say(row, self.words.text(THINK))
        self.write(row, thought)
        self.write(row, THINK_END)

    def end(self, row):
        row.tokens.append(self.words.end)
        row.weights.append(float(self.content[self.words.end]))

    def write_copy(self, row, text, copied, source, in_prefix=False):
        """Writes `text`, in which the tokens of each string of `copied` are found in `source` (tokens), if they are."""
        start = len(row.tokens)
        self.write(row, text)
        for part in copied:
            tokens = self.words.text(part)
            to, origin = find(row.tokens[start:], tokens), find(source, tokens)
            if to is None or origin is None:
                continue
            for i in range(len(tokens)):
                row.weights[start + to + i] = 1.0
                row.copies.append((start + to + i - 1, origin + i, in_prefix))

    # ----------------------------------------------------------------------------------------------- manners of a turn

    def answer(self, row, answer):
        self.begin_answer(row)
        self.write(row, answer)
        self.end(row)

    def answer_json(self, row, value, given=False):
        """given: a grammar writes the keys, so only the values are learned."""
        self.begin_answer(row)
        start = len(row.tokens)
        self.write(row, structured.text(value))
        if given:
            row.weights[start] = 0.0
            for i in range(start, len(row.tokens)):
                if row.tokens[i] in self.keys:
                    row.weights[i] = 0.0
        self.end(row)

    def answer_thinking(self, row, thought, answer):
        self.begin_answer(row)
        self.think(row, thought)
        self.write(row, answer)
        self.end(row)

    def about_picture(self, row, rng, scene, manner, lead, as_json=False):
        """One question about a scene, said after the opened turn, with `lead` between (the picture, where it comes last)."""
        kind, question, answer = ask(scene, rng, PRACTISED)
        said = structured.asking(rng, question) if manner == "json" and not as_json else question
        self.say(row, self.words.text(said) + lead)
        if as_json or manner == "json":
            self.answer_json(row, structured.about_scene(scene, kind, answer))
        elif manner == "given":
            self.answer_json(row, structured.shuffled(rng, structured.about_scene(scene, kind, answer)), given=True)
        elif manner == "think":
            self.answer_thinking(row, thinking.about_scene(scene, kind, question, answer), answer)
        else:
            self.answer(row, answer)

    def about_nothing(self, row, rng, manner, kind=None, lead=(), as_json=False):
        """One question without a picture."""
        kind, question, answer = small_talk(rng, kind=kind)
        said = structured.asking(rng, question) if manner == "json" and not as_json else question
        self.say(row, self.words.text(said) + list(lead))
        if as_json or manner in ("json", "given"):
            self.answer_json(row, structured.about_text(kind, answer), given=manner == "given")
        elif manner == "think":
            self.answer_thinking(row, thinking.about_text(kind, answer), answer)
        else:
            self.answer(row, answer)

    # ------------------------------------------------------------------------------------------------------ prefixes

    def system(self, rng):
        """(tokens, whether it asks for JSON)."""
        as_json = rng.random() < 0.02
        return self.words.system(structured.SYSTEM if as_json else system_text(rng)), as_json

    def picture_rows(self, rng, owner, scene, num_tokens, manners):
        """The prefix of one picture, and one conversation about it for each of the manners."""
        words = self.words
        prefix, as_json = self.system(rng)
        prefix += words.open("user")
        # Some people put their question before the picture; then nothing of the picture is shared.
        picture_first = rng.random() < 0.85
        lead = [] if picture_first else words.picture(num_tokens)
        rows = []
        for manner in manners if picture_first else manners[::2]:
            row = Row(owner, [], [])
            if rng.random() < 0.96:
                self.about_picture(row, rng, scene, manner, lead, as_json)
            else:
                self.about_nothing(row, rng, manner, _pick(rng, _ASIDE), lead, as_json)
            # What was thought is not seen by later turns.
            while manner != "think" and rng.random() < 0.12:
                self.say(row, words.open("user"))
                if rng.random() < 0.9:
                    self.about_picture(row, rng, scene, "plain", [], as_json)
                else:
                    self.about_nothing(row, rng, "plain", _pick(rng, _ASIDE), as_json=as_json)
            rows.append(row)
        return Prefix(prefix + (words.picture(num_tokens) if picture_first else []), owner), rows

    def text_rows(self, rng, owner, count):
        words, rows = self.words, []
        prefix, as_json = self.system(rng)
        for _ in range(count):
            row = Row(owner, [], [])
            manner = str(rng.choice(["plain", "think", "json", "given"], p=[0.7, 0.12, 0.13, 0.05]))
            self.about_nothing(row, rng, manner, as_json=as_json)
            while manner != "think" and rng.random() < 0.15:
                self.say(row, words.open("user"))
                self.about_nothing(row, rng, "plain", as_json=as_json)
            rows.append(row)
        return Prefix(prefix + words.open("user")), rows

    def tool_rows(self, rng, owner, count, scene, picture, num_tokens):
        """A prefix that declares tools; sometimes with a picture of the batch, and some of the questions about it."""
        words, tools = self.words, draw_tools(rng)
        with_picture = rng.random() < 0.2
        prefix = words.declare(to_json([t.declared for t in tools])) + words.system(system_text(rng)) + words.open("user")
        prefix += words.picture(num_tokens) if with_picture else []
        rows = []
        for _ in range(count):
            row = Row(owner, [], [])
            number, draw, thinks = 0, rng.random(), rng.random() < 0.12
            if draw < (0.65 if with_picture else 0.25):
                if with_picture and rng.random() < 0.8:
                    self.about_picture(row, rng, scene, "think" if thinks else "plain", [])
                else:
                    self.unfit(row, rng, tools, "think" if thinks else "plain", with_picture)
                if thinks or rng.random() < 0.8:
                    rows.append(row)
                    continue
                self.say(row, words.open("user"))
            number = self.call(row, rng, tools, prefix, number, thinks)
            while number and not thinks and rng.random() < 0.1:
                self.say(row, words.open("user"))
                number = self.call(row, rng, tools, prefix, number, False)
            rows.append(row)
        return Prefix(prefix, picture if with_picture else None), rows

    def unfit(self, row, rng, tools, manner, with_picture):
        """A question that no declared tool answers, answered as if there were none."""
        kinds = {t.kind for t in tools}
        while True:
            # Is it about the weather of a place, and is that what a tool is for? Then it is no such question.
            if rng.random() < 0.35:
                other = draw_tools(rng)
                other = [t for t in other if t.kind not in kinds and t.kind not in ("calculate", "other")]
                if "search" in kinds or not other:
                    continue
                question, kind, answer = call_question(rng, other)[0], "unknown", thinking.UNKNOWN
            else:
                kind, question, answer = small_talk(rng, kind=_pick(rng, _ASIDE) if with_picture else None)
                if (kind == "sum" and "calculate" in kinds) or (kind == "unknown" and any(w in question for w in _FITTING)):
                    continue
            break
        self.say(row, self.words.text(question))
        if manner == "think":
            self.answer_thinking(row, thinking.about_text(kind, answer), answer)
        else:
            self.answer(row, answer)

    def call(self, row, rng, tools, prefix, number, thinks):
        """A question that calls for a tool, the call, mostly what it gave, and the answer. Returns the number of the next call."""
        words = self.words
        asked = call_question(rng, tools)
        if asked is None:
            self.unfit(row, rng, tools, "plain", with_picture=True)
            return number
        question, calls = asked
        start = len(row.tokens)
        self.say(row, words.text(question))
        source = [-1] * start + row.tokens[start:]
        # Some servers name the calls themselves; then the call is history and only its result is answered.
        foreign = not thinks and rng.random() < 0.15
        # Of two thoughts in a row, the template keeps neither: the thought is before the call or after the result.
        thinks_first = thinks and rng.random() < 0.6
        self.begin_answer(row)
        if thinks_first:
            self.think(row, thinking.about_call(calls))
        self.write(row, "<|tool_calls_section_begin|>")
        results, ids = [], []
        for tool, arguments in calls:
            ids.append(f"call_{made_up(rng)}{rng.integers(1000)}" if foreign else call_id(tool.name, number))
            self.write(row, "<|tool_call_begin|>")
            at = self.declared_at(prefix, tool)
            self.write_copy(row, ids[-1], [tool.name], [-1] * at + prefix[at:], True)
            self.write(row, "<|tool_call_argument_begin|>")
            value = arguments[tool.parameter]
            self.write_copy(row, to_json(arguments), value.split(" ") if tool.kind == "calculate" else [value], source)
            self.guide_parameter(row, tool.parameter, prefix, at)
            self.write(row, "<|tool_call_end|>")
            results.append(draw_result(rng, tool.kind))
            number += 1
        self.write(row, "<|tool_calls_section_end|>")
        self.end(row)
        if foreign:
            row.weights[start:] = [0.0] * (len(row.weights) - start)
            row.copies = [copy for copy in row.copies if copy[0] < start]
        elif thinks_first or rng.random() < 0.25:
            return number
        start = len(row.tokens)
        for name, result in zip(ids, results):
            self.say(row, words.result(name, result))
        source = [-1] * start + row.tokens[start:]
        self.say(row, words.open("assistant"))
        if thinks:
            self.think(row, thinking.AFTER_RESULT)
        for part in answer_with(results):
            self.write_copy(row, part, [part] if part in results else [], source)
        self.end(row)
        return number

    def guide_parameter(self, row, parameter, prefix, at):
        """Marks the name of the parameter in the arguments just written as copied from the declaration, which begins at `at`."""
        name = self.words.text(parameter)
        opening = self.words.text('properties":{"')
        origin = find(prefix[at:], opening + name)
        to = next(i for i in range(len(row.tokens) - len(name), -1, -1) if row.tokens[i:i + len(name)] == name and
                  row.tokens[i - 1] == self.words.text('{"')[0])
        for i in range(len(name)):
            row.weights[to + i] = 1.0
            row.copies.append((to + i - 1, at + origin + len(opening) + i, True))

    def declared_at(self, prefix, tool):
        """Where this tool's declaration begins in the prefix."""
        return find(prefix, self.words.text(f'name":"{tool.name}"')[:-1]) or 0


# Topics of small talk that a tool could be for.
_FITTING = ["weather", "time", "people live", "population", "Search", "search", "rain"]


def find(tokens, part):
    """Where `part` first occurs in `tokens`, or None."""
    n = len(part)
    return next((i for i in range(len(tokens) - n + 1) if tokens[i:i + n] == part), None) if n else None


def _pick(rng, items):
    return items[rng.integers(len(items))]
