"""Writes every golden fixture of the repository. `python tools/golden/generate.py [name …]`; no name means all."""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402

# One thread, so that the order of sums does not depend on the machine's load.
torch.set_num_threads(1)

sys.path.insert(0, str(Path(__file__).resolve().parent))

import chameleon  # noqa: E402
import kimi_vl  # noqa: E402
import quantised  # noqa: E402
import qwen3_vl  # noqa: E402
import qwen_vl  # noqa: E402
import resize  # noqa: E402
import templates  # noqa: E402
import text_models  # noqa: E402
import tiktoken_vocab  # noqa: E402


def jobs():
    out = {name: partial(text_models.generate, name) for name in text_models.FAMILIES}
    out["chameleon"] = chameleon.generate
    out["kimi_vl"] = kimi_vl.generate
    out["quantised"] = quantised.generate
    out["qwen2_5_vl"] = qwen_vl.generate
    out["qwen3_vl"] = qwen3_vl.generate
    out["resize"] = resize.generate
    out["tiktoken"] = tiktoken_vocab.generate
    out["templates"] = templates.generate
    return out


def main():
    table = jobs()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of {', '.join(table)}")
    names = parser.parse_args().names or list(table)
    for unknown in set(names) - set(table):
        parser.error(f"unknown fixture {unknown}")
    for name in names:
        table[name]()
        print("written", name, flush=True)


if __name__ == "__main__":
    main()
