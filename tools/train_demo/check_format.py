"""Checks that the chat template and the training write the same conversation, token for token:

    python tools/train_demo/check_format.py --out server/tests/fixtures/demo_template.json

Jinja2 comes with torch. Writes one conversation of each kind with its rendered text: the server must render the same.
"""

import argparse
import json
from pathlib import Path

import jinja2
import numpy as np
from tokenizers import Tokenizer

from cases import tool_case
from prompt import prompt
from train import SEED, VOCAB
from words import CHAT_TEMPLATE, Words, train_tokenizer


def renderer():
    """The environment that transformers renders chat templates in, as far as the template can tell."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, separators=None: json.dumps(value, ensure_ascii=False, separators=separators)
    return environment.from_string(CHAT_TEMPLATE)


def conversations():
    user = lambda text: {"role": "user", "content": text}
    yield dict(messages=[user("What colour is the star?")])
    yield dict(messages=[{"role": "system", "content": "Answer briefly."}, user("Hello"), {"role": "assistant", "content": "◁think▷This is small talk.◁/think▷Hello!"}, user("1 + 1")],
               thinking=True)
    rng = np.random.default_rng(SEED)
    for _ in range(50):
        case = tool_case(rng)
        yield dict(messages=case["messages"], tools=case["tools"], thinking=bool(rng.random() < 0.5))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("server/tests/fixtures/demo_template.json"))
    args = args.parse_args()
    tokenizer = Tokenizer.from_str(train_tokenizer(VOCAB, SEED).to_str())
    plain = Tokenizer.from_str(tokenizer.to_str())  # Finds the special tokens in text, which Words does not.
    words, template, seen = Words(tokenizer), renderer(), set()
    cases = []
    for number, one in enumerate(conversations()):
        text = template.render(add_generation_prompt=True, **one)
        want = prompt(words, **one)
        assert plain.encode(text, add_special_tokens=False).ids == want, (text, tokenizer.decode(want, skip_special_tokens=False))
        kind = "tools" in one, len(one["messages"]), one.get("thinking", False)
        if kind not in seen:
            cases.append({"context": {"add_generation_prompt": True, **one}, "expected": text})
        seen.add(kind)
    args.out.write_text(json.dumps({"cases": cases}, ensure_ascii=False, indent=1) + "\n")
    print(f"{number + 1} conversations agree")


if __name__ == "__main__":
    main()
