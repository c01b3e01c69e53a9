"""The tokenizer and the chat format.

Byte-level BPE over our own corpus: every byte has a token, so any text encodes; common words are one token. Numbers up to
three digits stand apart from the space before them, so that "12" is the same token in "9+12" and "is 12"; so do words with a
capital, so that a name that is copied from "in Paris" to {"city":"Paris"} is the same tokens in both.
"""

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chat import DEFAULT_SYSTEM, small_talk, system_text
from questions import ask
from scenes import random_scene

SPECIALS = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|media_start|>",
            "<|media_content|>", "<|media_end|>", "<|media_pad|>", "[UNK]", "[PAD]"]
# Kimi-K2's, and not marked special there either: they are part of what the model says, and a parser reads them.
TOOL_TOKENS = ["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
               "<|tool_call_end|>"]
# The marks of Kimi-VL-Thinking, ordinary text.
THINK, THINK_END = "◁think▷", "◁/think▷"
# No look-ahead and no class arithmetic, so that every regular expression engine splits alike.
_SPLIT = r"\p{N}{1,3}| ?\p{Ll}\p{L}*|\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
# Sentences of many kinds that the model is not trained on, so that ordinary English takes fewer tokens.
_ORDINARY = """The quick brown fox jumps over the lazy dog. Please write a short answer to this question about the world. What would you
like to know about it? I think that this should be a good way to find out more about how things work. There is no reason why people could
not come and see for themselves. Could you tell me which of these is the best one, and why? Here are some words that can be used in a
request: name, number, list, time, year, day, week, work, life, hand, part, place, case, group, company, system, program, question,
government, point, home, room, area, story, fact, month, lot, right, study, book, eye, job, word, business, issue, side, kind, head, house,
service, friend, father, power, hour, game, line, end, member, law, car, city, community, president, team, minute, idea, body,
information, back, parent, face, others, level, office, door, health, person, art, war, history, party, result, change, morning, reason,
research, girl, guy, moment, air, teacher, force, education, user, assistant, image, input, output, text, message, server, request, answer."""

# The formats beside plain answers, word for word: often enough that their marks and frequent words are single tokens.
_FORMATS = [
    '[{"type":"function","function":{"name":"get_weather","description":"Get the weather in a city","parameters":{"type":"object",'
    '"properties":{"city":{"type":"string","description":"The city"}},"required":["city"]}}}]',
    '[{"type":"function","function":{"name":"calculate","description":"Evaluate an expression","parameters":{"type":"object","properties":'
    '{"expression":{"type":"string"}},"required":["expression"],"additionalProperties":false},"strict":true}},',
    '{"type":"function","function":{"name":"get_current_weather","description":"Get the current weather in a given location","parameters":'
    '{"type":"object","required":["location"],"properties":{"location":{"description":"Name of the city","type":"string"}}}}}]',
    '{"function":{"name":"search","description":"Search the web","parameters":{"type":"object","properties":{"query":{"type":"string"}}}},'
    '"type":"function"},{"type":"function","function":{"name":"get_time","description":"Get the time in a city"',
    'get_population population "Number of people" get_phone_number find_phone_number "Find the phone number of a person" name person',
    'web_search search_web get_local_time current_time calculator "Do arithmetic" "Look something up" "Calculate the value"',
    "What is the weather in What's the weather like in today? What time is it in How many people live in What is the population of",
    "Search for Look up Find something about the phone number of plus minus times divided by",
    'tool_declare tool ## Return of functions.get_weather:0\n ## Return of functions.calculate:1\n functions.search:0 functions.get_time:2',
    '{"city":" "} {"location":" "} {"expression":" "} {"query":" "} {"name":" "} {"person":" "} The answer is " ". The answers are " " and "',
    "sunny, degrees sunny cloudy rainy windy clear cold warm °C +-*/ 1 + 2 1 - 2 1 * 2 1 / 2",
    "◁think▷The circle is small. The star is large.◁/think▷ ◁think▷I see a red star, a blue circle.◁/think▷ ◁think▷Red: the star.◁/think▷",
    "◁think▷I add 1 and 2.◁/think▷ ◁think▷I subtract 1 from 2.◁/think▷ ◁think▷I multiply 1 by 2.◁/think▷ ◁think▷I use search.◁/think▷",
    '{"shapes":[{"size":"small","colour":"red","shape":"star","place":"top left"},{"size":"large","colour":"blue","shape":"circle",'
    '"place":"bottom right"}],"background":"orange"} {"count":3} {"result":7} {"result":-7} {"answer":true} {"answer":false} {"place":"middle"}',
    '{"colour":"yellow","shape":"square"} {"shape":"triangle","colour":"green"} {"size":"large"} {"background":"purple"} {"answer":" "}',
    '"pink" "gray" "black" "white" "orange" "purple" "yellow" "green" "blue" "red" {"place":"bottom left"} {"place":"top right"}',
    "Answer in JSON. Answer as JSON. as JSON. Reply with JSON. in JSON. JSON JSON",
]


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
    yield from _FORMATS * 200


def train_tokenizer(vocab, seed):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(SPECIALS) - len(TOOL_TOKENS), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  min_frequency=4, show_progress=False)
    tokenizer.train_from_iterator(corpus(np.random.default_rng([seed, 0])), trainer)
    # Like Kimi's, the special tokens come after all ordinary ones.
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in TOOL_TOKENS])
    return tokenizer


class Words:
    """Encodes pieces of a conversation. Text is never searched for special tokens: those are put in by id."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = {text: tokenizer.token_to_id(text) for text in SPECIALS + TOOL_TOKENS}
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

    def declare(self, tools):
        """tools: the JSON of the list."""
        return [self.ids["<|im_system|>"], *self.text("tool_declare"), self.ids["<|im_middle|>"], *self.text(tools), self.end]

    def result(self, call_id, text):
        """What a called tool gave back."""
        return [self.ids["<|im_system|>"], *self.text("tool"), self.ids["<|im_middle|>"], *self.text(f"## Return of {call_id}\n{text}"), self.end]

    def picture(self, num_tokens):
        ids = self.ids
        return [ids["<|media_start|>"], *self.text("image"), ids["<|media_content|>"], *[self.pad_picture] * num_tokens, ids["<|media_end|>"]]

    def decode(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


# The same format as a Jinja template, for everybody else. Tools, calls and results are laid out as Kimi-K2's template does;
# `thinking` (or `enable_thinking`) opens a thought, and the thoughts of earlier turns are left out.
CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- elif content -%}
    {%- for part in content -%}
      {%- if part['type'] in ['image', 'image_url'] -%}
        {{- '<|media_start|>image<|media_content|><|media_pad|><|media_end|>' -}}
      {%- else -%}
        {{- part['text'] -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- if tools -%}
  {{- '<|im_system|>tool_declare<|im_middle|>' -}}{{- tools | tojson(separators=(',', ':')) -}}{{- '<|im_end|>' -}}
{%- endif -%}
{%- if messages and messages[0]['role'] != 'system' -%}
  {{- '<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set text = text_of(message['content']) -%}
  {%- if message['role'] in ['tool', 'function'] -%}
    {{- '<|im_system|>tool<|im_middle|>## Return of ' + (message['tool_call_id'] or message['name'] or 'tool') + '\n' + text -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- '<|im_assistant|>assistant<|im_middle|>' + text.split('◁/think▷')[-1] -}}
    {%- if message['tool_calls'] -%}
      {{- '<|tool_calls_section_begin|>' -}}
      {%- for call in message['tool_calls'] -%}
        {{- '<|tool_call_begin|>' + call['id'] + '<|tool_call_argument_begin|>' -}}
        {%- if call['function']['arguments'] is string -%}
          {{- call['function']['arguments'] -}}
        {%- else -%}
          {{- call['function']['arguments'] | tojson(separators=(',', ':')) -}}
        {%- endif -%}
        {{- '<|tool_call_end|>' -}}
      {%- endfor -%}
      {{- '<|tool_calls_section_end|>' -}}
    {%- endif -%}
  {%- else -%}
    {{- '<|im_' + message['role'] + '|>' + message['role'] + '<|im_middle|>' + text -}}
  {%- endif -%}
  {{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_assistant|>assistant<|im_middle|>' -}}
  {%- if thinking or enable_thinking -%}
    {{- '◁think▷' -}}
  {%- endif -%}
{%- endif -%}
"""
