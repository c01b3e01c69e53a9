"""Golden numbers of the families that the Rust tests write themselves: `python tools/golden/written.py target/tmp/written/NAME …`

The folders are checkpoints that `cargo test -p models --test golden` wrote, from the configurations in models/tests/common/written. What
transformers computes of them goes into those files.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

torch.set_num_threads(1)

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import Rng  # noqa: E402
from reference import run_case  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

STORED = Path(__file__).resolve().parents[2] / "models/tests/common/written"
PROMPT_LENGTHS = (2, 27)
# Of tokens, and of digits: numbers are compared to within a thousandth.
NUM_GREEDY = 8


def load(folder):
    """Everything is there, and what is left over is of layers that only speculate."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    layers = model.config.num_hidden_layers
    for name in info["unexpected_keys"]:
        assert name.startswith((f"model.layers.{layers}.", "model.mtp_")), f"unexpected key {name}"
    return model.eval()


def main():
    for folder in map(Path, sys.argv[1:]):
        path = STORED / f"{folder.name}.json"
        stored = json.loads(path.read_text())
        model, rng = load(folder), Rng(folder.name)
        cases = []
        for length in PROMPT_LENGTHS:
            def draw(attempt, length=length):
                return rng.stream(f"prompt {length} {attempt}").integers(0, model.config.vocab_size, length).tolist()
            case, arrays = run_case(model, f"text_{length}", draw)
            rounded = lambda what: [round(float(x), 5) for x in arrays[f"text_{length}.{what}"]]  # noqa: E731
            cases.append({
                "name": case["name"], "prompt_token_ids": case["prompt_token_ids"],
                "greedy_token_ids": case["greedy_token_ids"][:NUM_GREEDY],
                "prompt_logprobs": rounded("prompt_logprobs"), "greedy_logprobs": rounded("greedy_logprobs")[:NUM_GREEDY],
            })
        lines = [f"  {json.dumps(case)}" for case in cases]
        config = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in stored["config"].items())
        path.write_text('{\n "config": {\n' + config + '\n },\n "cases": [\n' + ",\n".join(lines) + "\n ]\n}\n")
        print("written", folder.name, flush=True)


if __name__ == "__main__":
    main()
