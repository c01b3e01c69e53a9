"""Chameleon's decoder in two arrangements of one set of weights: norms before and norms after the parts of a layer.

`chameleon` is a whole checkpoint without the encoder of its pictures, whose weights are a formula's: `pictures.json`. `chameleon_swin` has the configuration and the outputs of the other arrangement;
its weights are those of `chameleon`. Ids of picture tokens are out of order, so that nothing can be assumed of them.
"""

import json

import numpy as np
import torch
from PIL import Image
from transformers import ChameleonConfig, ChameleonForConditionalGeneration
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

import draw
import tensors
from common import MODEL_FIXTURES, Rng, write_arrays, write_checkpoint, write_json
from reference import run_case
from safetensors.torch import load_file

VOCAB, CODES, FIRST_CODE = 112, 16, 86
NAMES = {0: "<s>", 1: "<pad>", 2: "</s>", 102: "<eoss>", 103: "<racm3:break>", 104: "<reserved08706>", 105: "<image>"}
# An encoder of pictures as small as group norms allow. Its weights come from a formula: they would be larger than all else here.
ENCODER = {"embed_dim": 4, "num_embeddings": CODES, "latent_channels": 8, "resolution": 16, "base_channels": 32,
           "channel_multiplier": [1, 2], "num_res_blocks": 1}
SIDE = ENCODER["resolution"]
TOKENS_OF_PICTURE = (SIDE // 2) ** 2
# The entry of the codebook that is nearest to a place leads the next one by this much.
MIN_LEAD = 2e-3
# formula, width, height
DRAWN = {"smooth": "formula_rgb", "noise": "noise_rgb"}
PICTURES = (("smooth", 40, 30), ("noise", 16, 16), ("smooth", 9, 21))


def vocabulary():
    """Name to id of every token; entry c of the codebook is token FIRST_CODE + (5 c + 3) mod CODES."""
    names = {i: NAMES.get(i, f"t{i}") for i in range(VOCAB)}
    for code in range(CODES):
        letters = "".join(chr(ord("A") + int(digit)) for digit in str(code))
        names[FIRST_CODE + (5 * code + 3) % CODES] = f"IMGIMG{letters}Z"
    assert len(set(names.values())) == VOCAB
    return {name: i for i, name in names.items()}


def config(swin):
    return {
        "architectures": ["ChameleonForConditionalGeneration"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 20, "initializer_range": 0.02,
        "intermediate_size": 36, "max_position_embeddings": 4096, "mlp_bias": False, "model_parallel_size": 1,
        "model_type": "chameleon", "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1,
        "pad_token_id": 1, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000.0, "swin_norm": swin,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.44.0.dev0",
        "use_cache": True, "vocab_size": VOCAB, "vocabulary_map": vocabulary(),
    }


def shapes(c):
    hidden, heads, kv_heads = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    head_dim = hidden // heads
    yield from tensors.embeddings(c["vocab_size"], hidden)
    for index in range(c["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield from tensors.layer_norms(layer, hidden)
        yield from tensors.attention(layer, hidden, heads, kv_heads, head_dim)
        yield from tensors.swiglu(f"{layer}.mlp", hidden, c["intermediate_size"])
        for name, rows in (("q_norm", heads), ("k_norm", kv_heads)):
            yield f"{layer}.self_attn.{name}.weight", (rows, head_dim), "norm"
            yield f"{layer}.self_attn.{name}.bias", (rows, head_dim), "bias"


def reference(folder, c):
    """The decoder with the weights of the folder, and the encoder that the formula gives."""
    model = ChameleonForConditionalGeneration(ChameleonConfig(**{**c, "vq_config": ENCODER})).to(torch.float32)
    weights = {name: tensor.to(torch.float32) for name, tensor in load_file(str(folder / "model.safetensors")).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("model.vqmodel.") for name in missing), missing
    encoder = {name: formula(name, model.state_dict()[name].shape) for name in missing}
    model.load_state_dict(encoder, strict=False)
    assert model.config._attn_implementation in ("eager", "sdpa")
    return model.eval()


def fnv1a(data):
    """The 32-bit hash."""
    out = 0x811C9DC5
    for byte in data:
        out = (out ^ byte) * 0x01000193 % 2**32
    return out


def formula(name, shape):
    """In 32-bit arithmetic: n = 2654435761 i + FNV-1a(name), n = (n ^ n >> 15) 2246822519, n ^= n >> 13, u = (n >> 8) / 2^23 - 1. Convolutions
    get u sqrt(3 / inputs), norms 1 + u / 4, biases u / 10, and the codebook u."""
    seed = fnv1a(name.encode())
    n = np.arange(int(np.prod(shape)), dtype=np.uint64) * 2654435761 + seed & 0xFFFFFFFF
    n = (n ^ n >> np.uint64(15)) * 2246822519 & 0xFFFFFFFF
    n ^= n >> np.uint64(13)
    u = (n >> np.uint64(8)).astype(np.float64) / 2**23 - 1.0
    if name.endswith(".bias"):
        u = u / 10
    elif len(shape) == 1:
        u = 1.0 + u / 4
    elif len(shape) == 4:
        u = u * np.sqrt(3.0 / np.prod(shape[1:]))
    return torch.from_numpy(u.astype(np.float32).reshape(tuple(shape)))


def lead(model, pixels):
    """How much nearer the nearest entry is than the next one, at the closest decision."""
    tower = model.model.vqmodel
    with torch.no_grad():
        z = tower.quant_conv(tower.encoder(pixels.clone()))
    z = z.permute(0, 2, 3, 1).reshape(-1, ENCODER["embed_dim"]).double()
    distances = ((z[:, None] - tower.quantize.embedding.weight.double()) ** 2).sum(-1)
    two = torch.sort(distances, dim=-1).values[:, :2]
    return float((two[:, 1] - two[:, 0]).min())


def write_pictures(folder, rng, model):
    """Pictures from formulas, what they are after resizing and cropping, their entries of the codebook, and what follows a prompt with all of them."""
    processor = ChameleonImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    found, arrays = [], []
    for kind, width, height in PICTURES:
        for seed in range(1000):
            picture = Image.fromarray(getattr(draw, DRAWN[kind])(width, height, seed))
            pixels = processor(images=[picture], return_tensors="pt")["pixel_values"].float()
            if lead(model, pixels) >= MIN_LEAD:
                break
        else:
            raise RuntimeError(f"{kind} {width} x {height}: every picture has a close decision")
        with torch.no_grad():
            codes = model.model.vqmodel.encode(pixels.clone(), return_dict=True).image_tokens.tolist()
        assert len(codes) == TOKENS_OF_PICTURE and len(set(codes)) >= 6, codes
        levels = torch.round((pixels[0].permute(1, 2, 0).double() + 1) / 0.0078).to(torch.uint8).numpy()
        found.append({"formula": kind, "seed": seed, "width": width, "height": height,
                      "cropped_fnv1a": fnv1a(levels.tobytes()), "codes": codes})
        arrays.append(pixels)
    placeholder, begin, end = 105, 103, 102
    prompt, ids = rng.stream("pictures").integers(3, FIRST_CODE, 11).tolist(), []
    for text in prompt[:3]:
        ids += [text, begin] + [placeholder] * TOKENS_OF_PICTURE + [end]
    ids += prompt[3:]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), pixel_values=torch.cat(arrays), use_cache=False).logits[0, -1]
    logprobs = torch.log_softmax(logits.double(), dim=-1).float().tolist()
    settings = {"crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True, "do_convert_rgb": True,
                "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [1.0] * 3,
                "image_processor_type": "ChameleonImageProcessor", "image_std": [1.0] * 3, "resample": 1,
                "rescale_factor": 0.0078, "size": {"shortest_edge": SIDE}}
    write_json(folder / "pictures.json", {"vq_config": ENCODER, "preprocessor_config": settings, "pictures": found,
                                          "texts": prompt, "last_logprobs": logprobs})


def write_cases(folder, rng, model, lengths):
    cases, arrays = [], {}
    for length in lengths:
        def draw(attempt, length=length):
            return rng.stream(f"prompt {length} {attempt}").integers(0, VOCAB, length).tolist()
        case, part = run_case(model, f"text_{length}", draw)
        cases.append(case)
        arrays.update(part)
    write_json(folder / "golden.json", {"cases": cases})
    write_arrays(folder / "golden.safetensors", arrays)


def generate():
    rng, folder, swin = Rng("chameleon"), MODEL_FIXTURES / "chameleon", MODEL_FIXTURES / "chameleon_swin"
    c = config(False)
    weights = {name: rng.tensor(name, shape, kind) for name, shape, kind in shapes(c)}
    generation = {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
                  "transformers_version": c["transformers_version"]}
    write_checkpoint(folder, c, generation, weights)
    model = reference(folder, c)
    write_cases(folder, rng, model, (1, 6, 41))
    write_pictures(folder, rng, model)
    write_json(swin / "config.json", config(True))
    write_cases(swin, rng, reference(folder, config(True)), (1, 5))
    return json.loads((folder / "golden.json").read_text())
