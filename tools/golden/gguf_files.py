"""Writes models/tests/fixtures/gguf: two tiny models converted by llama.cpp's own converter, with the log-probabilities that transformers
computes of them, and blocks of every quantised type with the values that the gguf package gives them.

    git clone https://github.com/ggml-org/llama.cpp && pip install -r tools/golden/requirements.txt gguf==0.19.0
    python tools/golden/gguf_files.py --llama-cpp llama.cpp

The converter is the one of llama.cpp at 2026-11 (the package llama-cpp-python 0.3.36 brings it). These models have no tokenizer, so its
step for the vocabulary is left out.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

FIXTURES = Path(__file__).resolve().parents[2] / "models" / "tests" / "fixtures" / "gguf"
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
WIDTH = 256
LENGTHS = (1, 7, 50)
VOCAB = 64


def families():
    """As the fixtures of the same names, with fewer and smaller parts."""
    import tensors
    import text_models

    small = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    llama = text_models.llama31()
    llama.config |= small | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 0, "eos_token_id": 1}
    llama.shapes = list(tensors.dense(llama.config, 8))
    deepseek = text_models.deepseek_v3()
    deepseek.config |= small | {"n_routed_experts": 8, "num_experts_per_tok": 2, "num_nextn_predict_layers": 0}
    deepseek.shapes, deepseek.skipped_prefix = list(tensors.deepseek(deepseek.config, "router_bias_positive")), ""
    return {"llama31": llama, "deepseek_v3": deepseek}


def model(name, family, llama_cpp):
    import text_models
    from common import Rng, write_checkpoint
    from reference import log_probs

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / name
        write_checkpoint(folder, family.config, {}, text_models.build_tensors(Rng(f"gguf {name}"), family))
        reference = text_models.load_reference(folder, family)
        tokens = [(i * 37 + 11) % VOCAB for i in range(LENGTHS[-1])]
        rows = log_probs(reference, tokens).numpy()
        convert(folder, FIXTURES / f"{name}.gguf", llama_cpp)
    return {f"{name}.{length}": np.ascontiguousarray(rows[length - 1]) for length in LENGTHS}


def convert(source, target, llama_cpp):
    sys.path.insert(0, str(llama_cpp))
    from conversion import get_model_class
    from conversion.base import ModelBase

    architecture = ModelBase.load_hparams(source, False)["architectures"][0]
    model_class = get_model_class(architecture)
    model_class.set_vocab = lambda self: self.gguf_writer.add_tokenizer_model("none")
    model_class(source, gguf.LlamaFileType.MOSTLY_BF16, target).write()


def blocks():
    """Random bytes, with scales that are small numbers: a row of each type."""
    rng, expected = np.random.default_rng(7), {}
    writer = gguf.GGUFWriter(FIXTURES / "blocks.gguf", "llama")
    for name in TYPES:
        block_type = gguf.GGMLQuantizationType[name]
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[block_type]
        data = rng.integers(0, 256, (1, WIDTH // block_len, block_bytes), dtype=np.uint8)
        for at, dtype in halves(name):
            values = rng.normal(0, 0.1, data.shape[:2]).astype(dtype)
            data[:, :, at : at + values.itemsize] = values[..., None].view(np.uint8)
        if name == "BF16":
            floats = rng.normal(0, 1, (1, WIDTH)).astype(np.float32)
            data = (floats.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        data = data.reshape(1, -1)
        writer.add_tensor(name, data, raw_dtype=block_type)
        expected[name] = gguf.quants.dequantize(data, block_type).astype(np.float32).reshape(1, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def halves(name):
    """Where in a block scales are, and their type."""
    if name == "F32":
        return [(0, np.float32)]
    if name == "BF16":
        return []
    if name == "Q6_K":
        return [(208, np.float16)]
    return [(0, np.float16), (2, np.float16)] if name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else [(0, np.float16)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="its sources")
    llama_cpp = parser.parse_args().llama_cpp
    FIXTURES.mkdir(exist_ok=True)
    save_file(blocks(), FIXTURES / "blocks.safetensors")
    expected = {}
    for name, family in families().items():
        expected |= model(name, family, llama_cpp)
    save_file(expected, FIXTURES / "log_probs.safetensors")


if __name__ == "__main__":
    main()
