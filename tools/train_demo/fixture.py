"""Draws the held-out questions that the finished model is judged by:

    python tools/train_demo/fixture.py --out tests/fixtures/demo

pictures.jsonl: 200 lines, each a picture as base64 PNG (112x112) with three questions and their answers, and one
                conversation of two turns, of which the second answer is judged.
text.jsonl:     200 lines, each a question without a picture and its answer.
thinking.jsonl, json.jsonl, tools.jsonl: 100 lines each, as cases.py draws them; `picture` is a line of pictures.jsonl, from zero.
"""

import argparse
import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from cases import json_case, thinking_case, tool_case
from chat import small_talk
from questions import ask
from scenes import draw, random_scene

HELD_OUT_SEED = 7_000_001  # Never trained on. Which states were measured on it: server/demo/MODEL_CARD.md.
PICTURES, QUESTIONS, TEXTS, OTHERS = 200, 3, 200, 100


def png(picture):
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def picture_line(rng, scenes):
    scene = random_scene(rng)
    scenes.append(scene)
    names = ("kind", "question", "answer")
    picture = png(draw(scene, rng))
    return {"png": picture, "questions": [dict(zip(names, ask(scene, rng))) for _ in range(QUESTIONS)],
            "turns": [dict(zip(names, ask(scene, rng))) for _ in range(2)]}


def text_line(rng, _):
    kind, question, answer = small_talk(rng, wanted=True)
    return {"kind": kind, "question": question, "answer": answer}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--seed", type=int, default=HELD_OUT_SEED, help="another one for questions that nobody has looked at")
    args = args.parse_args()
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    scenes = []
    files = [("pictures", PICTURES, picture_line), ("text", TEXTS, text_line), ("thinking", OTHERS, thinking_case), ("json", OTHERS, json_case),
             ("tools", OTHERS, lambda rng, _: tool_case(rng))]
    for number, (name, count, line) in enumerate(files):
        rng = np.random.default_rng([args.seed, number])
        lines = [json.dumps(line(rng, scenes), ensure_ascii=False) + "\n" for _ in range(count)]
        (out / f"{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
