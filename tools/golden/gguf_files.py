"""Writes models/tests/fixtures/gguf: some of the other fixtures, converted by llama.cpp's own converter, and blocks of every quantised
type with the values that the gguf package gives them.

    git clone https://github.com/ggml-org/llama.cpp && pip install -r tools/golden/requirements.txt gguf==0.19.0
    python tools/golden/gguf_files.py --llama-cpp llama.cpp

The converter is the one of llama.cpp at 2026-11 (the package llama-cpp-python 0.3.36 brings it). These models have no tokenizer, so its
step for the vocabulary is left out.
"""

import argparse
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

FIXTURES = Path(__file__).resolve().parents[2] / "models" / "tests" / "fixtures"
MODELS = ("llama31", "deepseek_v3")
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
ROWS, WIDTH = 3, 512


def convert(llama_cpp, name):
    sys.path.insert(0, str(llama_cpp))
    from conversion import get_model_class
    from conversion.base import ModelBase

    source = FIXTURES / name
    architecture = ModelBase.load_hparams(source, False)["architectures"][0]
    model_class = get_model_class(architecture)
    model_class.set_vocab = lambda self: self.gguf_writer.add_tokenizer_model("none")
    model_class(source, gguf.LlamaFileType.MOSTLY_BF16, FIXTURES / "gguf" / f"{name}.gguf").write()


def blocks():
    """Random bytes, with scales that are small numbers."""
    rng, expected = np.random.default_rng(7), {}
    writer = gguf.GGUFWriter(FIXTURES / "gguf" / "blocks.gguf", "llama")
    for name in TYPES:
        block_type = gguf.GGMLQuantizationType[name]
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[block_type]
        data = rng.integers(0, 256, (ROWS, WIDTH // block_len, block_bytes), dtype=np.uint8)
        for at, dtype in halves(name):
            values = rng.normal(0, 0.1, data.shape[:2]).astype(dtype)
            data[:, :, at : at + values.itemsize] = values[..., None].view(np.uint8)
        if name == "BF16":
            data = (rng.normal(0, 1, (ROWS, WIDTH)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        data = data.reshape(ROWS, -1)
        writer.add_tensor(name, data, raw_dtype=block_type)
        expected[name] = gguf.quants.dequantize(data, block_type).astype(np.float32).reshape(ROWS, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, FIXTURES / "gguf" / "blocks.safetensors")


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
    parser.add_argument("--llama-cpp", type=Path, help="its sources; without, only the blocks are written")
    llama_cpp = parser.parse_args().llama_cpp
    (FIXTURES / "gguf").mkdir(exist_ok=True)
    blocks()
    for name in MODELS if llama_cpp else ():
        convert(llama_cpp, name)


if __name__ == "__main__":
    main()
