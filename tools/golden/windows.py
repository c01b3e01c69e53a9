"""Reference numbers of models/tests/windows.rs: prompts that are longer than the model's window, of weights by formula.

    python tools/golden/windows.py

prints for each case log-probabilities of four tokens after three positions, in float32, by transformers.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import tensors
from common import Formula

PROMPT = 90
POSITIONS = (20, 60, 89)
TOKENS = (0, 31, 64, 127)

SIZES = {
    "bos_token_id": 1, "eos_token_id": 2, "head_dim": 16, "hidden_act": "silu", "hidden_size": 40, "intermediate_size": 56,
    "max_position_embeddings": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "sliding_window": 13, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 128,
}
KINDS = ["full_attention", "sliding_attention"]
CASES = {
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_hidden_layers": 2},
    "ministral": {
        "architectures": ["MinistralForCausalLM"], "model_type": "ministral", "num_hidden_layers": 3,
        "layer_types": [KINDS[1], KINDS[0], KINDS[1]],
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 3, "use_sliding_window": True,
        "max_window_layers": 1, "head_dim": None, "hidden_size": 64,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}


def prompt(vocab_size):
    return [(7 * i * i + 3 * i + 11) % vocab_size for i in range(PROMPT)]


def shapes(config):
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if config["model_type"] == "mixtral":
        return mixtral(config, head_dim)
    return tensors.dense(config, head_dim, qkv_bias=config["model_type"] == "qwen2")


def mixtral(config, head_dim):
    hidden, width = config["hidden_size"], config["intermediate_size"]
    yield from tensors.embeddings(config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield from tensors.layer_norms(layer, hidden)
        yield from tensors.attention(layer, hidden, config["num_attention_heads"], config["num_key_value_heads"], head_dim)
        moe = f"{layer}.block_sparse_moe"
        yield f"{moe}.gate.weight", (config["num_local_experts"], hidden), "router"
        for expert in range(config["num_local_experts"]):
            yield from tensors.swiglu(f"{moe}.experts.{expert}", hidden, width, ("w1", "w3", "w2"))


def numbers(config, state):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        save_file(state, str(Path(folder, "model.safetensors")), metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            logits = model(torch.tensor([prompt(config["vocab_size"])])).logits[0]
    found = torch.log_softmax(logits.double(), -1)
    return [[round(found[position, token].item(), 5) for token in TOKENS] for position in POSITIONS]


def main():
    rng = Formula("windows")
    for name, changes in CASES.items():
        config = {key: value for key, value in (SIZES | changes).items() if value is not None}
        state = {name: rng.tensor(name, shape, kind) for name, shape, kind in shapes(config)}
        print(name, numbers(config, state))


if __name__ == "__main__":
    main()
