"""Prints the accuracy of the exported files, read back from the folder that ships, on the held-out fixture:

    python tools/train_demo/eval.py --model server/demo --fixture tests/fixtures/demo

Greedy, one question per conversation except where the line says otherwise; an answer is right when it equals the expected
one after lower-casing and without its last full stop, a call to the last character, JSON when it means the same. Weights are the
shipped bf16 ones; sums are in f32.
"""

import argparse
import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from evaluate import Asker, judge, report
from export import load
from packing import Packer


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", type=Path, default=Path("server/demo"))
    args.add_argument("--fixture", type=Path, default=Path("tests/fixtures/demo"))
    args.add_argument("--wrong", action="store_true", help="also print the wrong answers")
    args = args.parse_args()
    model, words = load(args.model)
    packer, lines = Packer(words), read(args.fixture / "pictures.jsonl")
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(line["png"]))).convert("RGB")) for line in lines]
    large = [np.asarray(Image.fromarray(p).resize((448, 448), Image.Resampling.NEAREST)) for p in pictures]
    asker, of_large = Asker(model, packer, pictures), Asker(model, packer, large)

    single = [{"picture": i, **q} for i, line in enumerate(lines) for q in line["questions"]]
    second = [{"picture": i, "history": line["turns"][0], **line["turns"][1]} for i, line in enumerate(lines)]
    rounds = [("pictures, one question", asker, "plain", single), ("pictures, second turn", asker, "plain", second),
              ("pictures at 448x448", of_large, "plain", single), ("pictures, one question, thinking", asker, "thinking", single)]
    rounds += [(name, asker, manner, read(args.fixture / f"{name}.jsonl"))
               for name, manner in [("text", "plain"), ("thinking", "thinking"), ("json", "json"), ("tools", "tools")]]
    for name, asked, manner, cases in rounds:
        judged = judge(asked, manner, cases)
        print(f"{name}: {report([(kind, right) for kind, right, _ in judged])}", flush=True)
        if args.wrong:
            for case, (_, right, said) in zip(cases, judged):
                if not right:
                    print(f"  {json.dumps({k: v for k, v in case.items() if k != 'tools'}, ensure_ascii=False)} said: {said}")


if __name__ == "__main__":
    main()
