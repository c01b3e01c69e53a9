"""Deterministic random weights and the files of a checkpoint.

Every tensor is drawn from a generator seeded by its own name, so adding a tensor never changes another one. Weights are
rounded to the stored dtype before anything is computed from them: the reference sees exactly what a loader sees.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
MODEL_FIXTURES = ROOT / "models" / "tests" / "fixtures"
SERVER_FIXTURES = ROOT / "server" / "tests" / "fixtures"

# kind of tensor -> (mean, standard deviation). Large on purpose: with the usual 0.02 a wrong order, a missing bias or a
# wrong expert would disappear in the tolerance of a test. Embeddings, latents and patches are small instead, so that the epsilon of
# the norm behind them matters. `sensitivity.py` measures what each of these choices makes visible.
KINDS = {
    "embed": (0.0, 0.02),
    "tied_embed": (0.0, 0.6),
    "linear": (0.0, 0.2),
    "latent": (0.0, 0.001),
    "head": (0.0, 0.3),
    "norm": (1.0, 0.25),
    "bias": (0.0, 0.3),
    "router": (0.0, 0.3),
    "router_bias": (0.0, 0.2),
    "router_bias_positive": (0.5, 0.12),
    "position": (0.0, 0.5),
    "small_position": (0.0, 0.01),
    "small_bias": (0.0, 0.01),
    "patch": (0.0, 0.0006),
}


class Rng:
    """Random numbers of one fixture: the same name always gives the same stream."""

    def __init__(self, fixture):
        self.fixture = fixture

    def stream(self, name):
        return np.random.Generator(np.random.PCG64([zlib.crc32(self.fixture.encode()), zlib.crc32(name.encode())]))

    def tensor(self, name, shape, kind, dtype=torch.bfloat16):
        """`kind` is one of KINDS, or (kind, rows, other): the first `rows` rows of one kind, the rest of another."""
        values = self.stream(name).standard_normal(shape)
        if isinstance(kind, tuple):
            first, rows, rest = kind
            values = np.concatenate([scaled(values[:rows], first), scaled(values[rows:], rest)])
        else:
            values = scaled(values, kind)
        return torch.from_numpy(values.astype(np.float32)).to(dtype)


class Formula:
    """As Rng, from a formula of integers that models/tests/common/made.rs has as well: fixtures without a file of weights. Every value is a
    number of bfloat16."""

    def __init__(self, fixture):
        self.rng = Rng(fixture)

    def stream(self, name):
        return self.rng.stream(name)

    def tensor(self, name, shape, kind, dtype=torch.bfloat16):
        n = np.arange(np.prod(shape), dtype=np.uint32) * np.uint32(2654435761) + np.uint32(fnv1a(name.encode()))
        n = (n ^ (n >> 15)) * np.uint32(2246822519)
        steps = ((n ^ (n >> 13)) >> 24).astype(np.int64) - 128
        values = 1 + (steps >> 2) / 64 if kind == "norm" else steps / FORMULA_STEPS[kind]
        return torch.from_numpy(values.reshape(shape).astype(np.float32)).to(dtype)


# How many steps of a value are 1: the range is 128 steps to both sides.
FORMULA_STEPS = {"embed": 4096, "linear": 512, "head": 256, "bias": 256, "router": 256, "sink": 32}


def fnv1a(data):
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def scaled(values, kind):
    mean, std = KINDS[kind]
    return values * std + mean


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1, ensure_ascii=False)
    path.write_text(compact_number_lists(text) + "\n", encoding="utf-8")


def compact_number_lists(text):
    """Puts a list that holds only numbers on one line: token ids stay readable and small."""
    lines, out, i = text.split("\n"), [], 0
    while i < len(lines):
        if lines[i].endswith("["):
            j = i + 1
            while j < len(lines) and is_number(lines[j].strip().rstrip(",")):
                j += 1
            if j > i + 1 and lines[j].strip() in ("]", "],"):
                numbers = " ".join(line.strip() for line in lines[i + 1 : j])
                out.append(lines[i] + numbers + lines[j].strip())
                i = j + 1
                continue
        out.append(lines[i])
        i += 1
    return "\n".join(out)


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return not text.startswith('"')


def write_arrays(path, arrays):
    """Writes named float32 arrays as safetensors, the format that the Rust side reads anyway."""
    tensors = {name: torch.as_tensor(value).to(torch.float32).clone(memory_format=torch.contiguous_format) for name, value in arrays.items()}
    save_file(tensors, str(path), metadata={"format": "pt"})


def write_checkpoint(folder, config, generation_config, tensors, num_shards=1):
    """Writes a model folder as it lies on the hub: config, generation config, weights in one file or in shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config)
    if num_shards == 1:
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        return
    names = list(tensors)
    per_shard = -(-len(names) // num_shards)
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = names[shard * per_shard : (shard + 1) * per_shard]
        weight_map.update({name: file for name in part})
        save_file({name: tensors[name] for name in part}, str(folder / file), metadata={"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)
