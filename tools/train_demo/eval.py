"""Prints the accuracy of the exported files, read back from the folder that ships, on the held-out fixture:

    python tools/train_demo/eval.py --model server/demo --fixture tests/fixtures/demo

Greedy, one question per conversation except where the line says otherwise; an answer is right when it equals the expected
one after lower-casing and without its last full stop. Weights are the shipped bf16 ones; sums are in f32.
"""

import argparse
import base64
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluate import answer_about, normalise, report
from export import load
from joint import generate
from packing import Packer, prompt


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def judge(answers, items):
    return report([(item["kind"], normalise(a) == normalise(item["answer"])) for a, item in zip(answers, items)])


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", type=Path, default=Path("server/demo"))
    args.add_argument("--fixture", type=Path, default=Path("tests/fixtures/demo"))
    args.add_argument("--wrong", action="store_true", help="also print the wrong answers")
    args = args.parse_args()
    model, words = load(args.model)
    packer, lines = Packer(words), read(args.fixture / "pictures.jsonl")
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(line["png"]))).convert("RGB")) for line in lines]

    single = [(i, q) for i, line in enumerate(lines) for q in line["questions"]]
    answers = answer_about(model, packer, pictures, [(i, [(q["question"], None)]) for i, q in single])
    print("pictures, one question:", judge(answers, [q for _, q in single]))
    if args.wrong:
        for a, (i, q) in zip(answers, single):
            if normalise(a) != normalise(q["answer"]):
                print(f"  picture {i}: {q['question']} | {q['answer']} | said: {a}")

    turns = [line["turns"] for line in lines]
    talks = [(i, [(first["question"], first["answer"]), (second["question"], None)]) for i, (first, second) in enumerate(turns)]
    print("pictures, second turn:", judge(answer_about(model, packer, pictures, talks), [second for _, second in turns]))

    large = [np.asarray(Image.fromarray(p).resize((448, 448), Image.Resampling.NEAREST)) for p in pictures]
    answers = answer_about(model, packer, large, [(i, [(q["question"], None)]) for i, q in single])
    print("pictures at 448x448:", judge(answers, [q for _, q in single]))

    text = read(args.fixture / "text.jsonl")
    with torch.no_grad():
        answers = generate(model, packer, [prompt(words, [(line["question"], None)]) for line in text])
    print("text:", judge(answers, text))
    if args.wrong:
        for a, line in zip(answers, text):
            if normalise(a) != normalise(line["answer"]):
                print(f"  {line['question']} | {line['answer']} | said: {a}")


if __name__ == "__main__":
    main()
