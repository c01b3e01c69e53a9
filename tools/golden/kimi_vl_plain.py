"""MoonViT and the projector a second time, in plain torch from the published tensor names: it shares no code with the
reference model and uses the adjacent-pair form of the rotation, so agreement is not built in."""

import torch
import torch.nn.functional as F

MAX_DIFFERENCE = 5e-5


def rotate(x, grid):
    """Rotates adjacent pairs of [T, heads, head_dim]: pair 2i by column * f_i, pair 2i+1 by row * f_i, f_i = 10000^(-4i / d)."""
    rows, cols = grid
    head_dim = x.shape[-1]
    freqs = 10000.0 ** (-4.0 * torch.arange(head_dim // 4, dtype=torch.float64) / head_dim)
    col = torch.arange(cols).repeat(rows)[:, None] * freqs
    row = torch.arange(rows).repeat_interleave(cols)[:, None] * freqs
    angles = torch.stack([col, row], dim=-1).flatten(1)
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2))
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(-2).float()


def vision_tower(config, w, processed):
    v, grid = config["vision_config"], processed.grid
    heads = v["num_attention_heads"]

    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    pixels = torch.from_numpy(processed.patches).flatten(1)
    weight = w["vision_tower.patch_embed.proj.weight"].flatten(1)
    x = F.linear(pixels, weight, w["vision_tower.patch_embed.proj.bias"])
    table = w["vision_tower.patch_embed.pos_emb.weight"].permute(2, 0, 1)[None]
    x = x + F.interpolate(table, size=grid, mode="bicubic", align_corners=False)[0].flatten(1).T
    for index in range(v["num_hidden_layers"]):
        block = f"vision_tower.encoder.blocks.{index}"
        qkv = linear(f"{block}.wqkv", norm(f"{block}.norm0", x)).reshape(len(x), 3, heads, -1)
        q, k, value = rotate(qkv[:, 0], grid), rotate(qkv[:, 1], grid), qkv[:, 2]
        scores = torch.einsum("thd,shd->hts", q, k) * q.shape[-1] ** -0.5
        mixed = torch.einsum("hts,shd->thd", scores.softmax(-1), value)
        x = x + linear(f"{block}.wo", mixed.flatten(1))
        hidden = F.gelu(linear(f"{block}.mlp.fc0", norm(f"{block}.norm1", x)), approximate="tanh")
        x = x + linear(f"{block}.mlp.fc1", hidden)
    return norm("vision_tower.encoder.final_layernorm", x)


def projector(config, w, x, grid):
    rows, cols = grid
    name = "multi_modal_projector"
    x = F.layer_norm(x, x.shape[-1:], w[f"{name}.pre_norm.weight"], w[f"{name}.pre_norm.bias"], 1e-5)
    merged = []
    for row in range(0, rows, 2):
        for col in range(0, cols, 2):
            places = [(row + i) * cols + col + j for i in (0, 1) for j in (0, 1)]
            merged.append(torch.cat([x[p] for p in places]))
    hidden = F.gelu(F.linear(torch.stack(merged), w[f"{name}.linear_1.weight"], w[f"{name}.linear_1.bias"]))
    return F.linear(hidden, w[f"{name}.linear_2.weight"], w[f"{name}.linear_2.bias"])


def check(config, weights, processed, tower, projected):
    """Asserts that the reference model's outputs for one picture agree with the plain computation."""
    w = {name: tensor.float() for name, tensor in weights.items()}
    plain = vision_tower(config, w, processed)
    for what, got, expected in (("tower", plain, tower), ("projector", projector(config, w, plain, processed.grid), projected)):
        difference = (got - expected).abs().max().item()
        print(f"  {what} {processed.grid}: plain differs by {difference:.1e}, scale {expected.abs().max().item():.1f}")
        assert difference < MAX_DIFFERENCE * max(1.0, expected.abs().max().item()), what
