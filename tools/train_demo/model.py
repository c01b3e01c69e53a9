"""Kimi-VL in plain PyTorch: MoonViT, projector and the DeepSeek-V3 decoder with latent attention and routed experts.

Module names are the published tensor names, so `state_dict` needs no table; only the routed experts are kept stacked
([E, out, in]) while training and are split into one tensor each by `published_state`.

The decoder does not take a rectangle of tokens. It takes a `Layout`: prefixes (system text, picture) and rows that
continue them, so that one picture is computed once for many conversations about it, and no padding is multiplied:

      prefix of picture 0  ─┬─ row: question, answer           tokens of all prefixes and rows lie one after another
                            ├─ row: question, answer, ...      in one flat list [N, hidden]; only attention sees the
      prefix of picture 1  ─┬─ row                             padded view, prefix and own row as keys
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class VisionShape:
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 384
    table: int = 8  # Side of the learned position table, in patches.
    patch: int = 14


@dataclass(frozen=True)
class TextShape:
    vocab: int = 0
    hidden: int = 128
    layers: int = 4
    dense_mlp: int = 384
    expert_mlp: int = 96
    experts: int = 8
    top_k: int = 2
    shared: int = 1
    heads: int = 4
    latent: int = 64
    nope: int = 32
    rope: int = 16
    value: int = 32
    routed_scale: float = 2.446
    eps: float = 1e-5
    theta: float = 10000.0


# ---------------------------------------------------------------------------------------------------------- vision


class PatchEmbed(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.proj = nn.Conv2d(3, s.hidden, s.patch, s.patch)
        self.pos_emb = nn.Module()
        self.pos_emb.weight = nn.Parameter(torch.randn(s.table, s.table, s.hidden) * 0.1)

    def forward(self, pixels, grid):
        # pixels [B, P, 3, 14, 14]: the convolution sees each patch once, so it is a linear map.
        x = F.linear(pixels.flatten(2), self.proj.weight.flatten(1), self.proj.bias)
        table = self.pos_emb.weight
        if tuple(table.shape[:2]) != grid:
            table = F.interpolate(table.permute(2, 0, 1)[None], size=grid, mode="bicubic", align_corners=False)
            table = table[0].permute(1, 2, 0)
        return x + table.flatten(0, 1)


class VisionBlock(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.heads = s.heads
        self.norm0 = nn.LayerNorm(s.hidden, eps=1e-5)
        self.norm1 = nn.LayerNorm(s.hidden, eps=1e-5)
        self.wqkv = nn.Linear(s.hidden, 3 * s.hidden)
        self.wo = nn.Linear(s.hidden, s.hidden)
        self.mlp = nn.Module()
        self.mlp.fc0 = nn.Linear(s.hidden, s.mlp)
        self.mlp.fc1 = nn.Linear(s.mlp, s.hidden)

    def forward(self, x, angles):
        B, P, D = x.shape
        q, k, v = self.wqkv(self.norm0(x)).view(B, P, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        with torch.autocast("cpu", enabled=False):
            # Fused attention on the CPU is three times slower in bf16 than in f32.
            out = F.scaled_dot_product_attention(rotate(q.float(), angles), rotate(k.float(), angles), v.float())
        x = x + self.wo(out.transpose(1, 2).reshape(B, P, D))
        return x + self.mlp.fc1(F.gelu(self.mlp.fc0(self.norm1(x)), approximate="tanh"))


class MoonViT(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.shape = s
        self.patch_embed = PatchEmbed(s)
        self.encoder = nn.Module()
        self.encoder.blocks = nn.ModuleList(VisionBlock(s) for _ in range(s.layers))
        self.encoder.final_layernorm = nn.LayerNorm(s.hidden, eps=1e-5)

    def forward(self, pixels, grid):
        """pixels [B, P, 3, 14, 14] in row-major patches, all of one grid (rows, columns) -> [B, P/4, 4, D]."""
        x = self.patch_embed(pixels, grid)
        angles = grid_angles(grid, self.shape.hidden // self.shape.heads)
        for block in self.encoder.blocks:
            x = block(x, angles)
        x = self.encoder.final_layernorm(x)
        B, (h, w), D = x.shape[0], grid, x.shape[-1]
        x = x.view(B, h // 2, 2, w // 2, 2, D).transpose(2, 3)
        return x.reshape(B, h * w // 4, 4, D)


class Projector(nn.Module):
    def __init__(self, v, t):
        super().__init__()
        self.pre_norm = nn.LayerNorm(v.hidden, eps=1e-5)
        self.linear_1 = nn.Linear(4 * v.hidden, 4 * v.hidden)
        self.linear_2 = nn.Linear(4 * v.hidden, t.hidden)

    def forward(self, x):
        # Normalised per patch, before the four are put together; this GELU is the exact one, the tower's is not.
        return self.linear_2(F.gelu(self.linear_1(self.pre_norm(x).flatten(-2))))


def grid_angles(grid, head_dim):
    """2-D rotary angles [P, head_dim/2]: pair 2i turns with the column, pair 2i+1 with the row."""
    rows, columns = grid
    f = 10000.0 ** (-4.0 * torch.arange(head_dim // 4) / head_dim)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([x.flatten()[:, None] * f, y.flatten()[:, None] * f], -1).flatten(1)


def rotate(x, angles):
    """Turns adjacent pairs (2i, 2i+1) of the last axis; angles broadcast over [..., pairs]."""
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = angles.cos(), angles.sin()
    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)


# ---------------------------------------------------------------------------------------------------------- decoder


@dataclass
class Block:
    """A padded view of some of the flat tokens: index [R, L] into the list, real [R, L], and the prefix that each row
    continues, owner [R] into the prefix block (None for the prefix block itself)."""
    index: torch.Tensor
    real: torch.Tensor
    owner: torch.Tensor | None


@dataclass
class Group:
    """Prefixes of about one length, and the rows that continue them; they lie one after the other in the flat list."""
    prefix: Block
    rows: list  # Of Block; split by length so that little is padded.


@dataclass
class Layout:
    positions: torch.Tensor  # [N]
    groups: list  # Of Group.
    fill: int     # Tokens at the end of the flat list that belong to nothing.


# oneDNN compiles a kernel for every new shape of a bf16 product, which takes longer than the product. So whatever varies
# from batch to batch is filled up to a multiple of this, and soon every shape has been seen.
GRAIN = 128


def take(x, index):
    """x[index]; its gradient is an addition of rows, several times as fast as that of indexing."""
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])


class RmsNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.hidden, s.heads * (s.nope + s.rope), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(s.hidden, s.latent + s.rope, bias=False)
        self.kv_a_layernorm = RmsNorm(s.latent, 1e-6)  # The published code's default, not rms_norm_eps.
        self.kv_b_proj = nn.Linear(s.latent, s.heads * (s.nope + s.value), bias=False)
        self.o_proj = nn.Linear(s.heads * s.value, s.hidden, bias=False)
        self.kept = None  # Queries, keys and head 0's log-sums of the last call, for the hints of grounding.py.

    def forward(self, x, layout, angles):
        s, N = self.s, x.shape[0]
        q_nope, q_rope = self.q_proj(x).view(N, s.heads, -1).split([s.nope, s.rope], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([s.latent, s.rope], -1)
        k_nope, v = self.kv_b_proj(self.kv_a_layernorm(latent)).view(N, s.heads, -1).split([s.nope, s.value], -1)
        k_rope = rotate(k_rope, angles)[:, None].expand(N, s.heads, s.rope)
        q = torch.cat([q_nope, rotate(q_rope, angles[:, None])], -1) * (s.nope + s.rope) ** -0.5
        k = torch.cat([k_nope, k_rope], -1)
        out, totals = zip(*(self._attend(q, k, v, block, prefix) for group in layout.groups
                            for block, prefix in [(group.prefix, None), *((rows, group.prefix) for rows in group.rows)]))
        self.kept = (q, k, torch.cat(totals)) if self.training else None
        out = [*out, q.new_zeros(layout.fill, s.heads, s.value)]
        return self.o_proj(torch.cat([o.to(v.dtype) for o in out]).flatten(1))

    @staticmethod
    def _attend(q, k, v, block, prefix):
        L = block.index.shape[1]
        keys, seen = block.index, torch.tril(torch.ones(L, L, dtype=torch.bool))[None] & block.real[:, None]
        if prefix is not None:
            keys = torch.cat([prefix.index[block.owner], keys], 1)
            seen = torch.cat([prefix.real[block.owner][:, None].expand(-1, L, -1), seen], 2)
        # A padded query sees nothing; letting it see itself avoids the NaN, and its output is dropped.
        seen = seen | ~block.real[:, :, None]
        scores = take(q, block.index).transpose(1, 2) @ take(k, keys).permute(0, 2, 3, 1)
        scores = scores.masked_fill(~seen[:, None], float("-inf"))
        total, scores = scores[:, 0].float().logsumexp(-1), scores.softmax(-1)
        out = (scores.to(v.dtype) @ take(v, keys).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        places = block.real.flatten().nonzero()[:, 0]
        return out[places], total.flatten()[places]


class Mlp(nn.Module):
    def __init__(self, hidden, mlp):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, mlp, bias=False)
        self.up_proj = nn.Linear(hidden, mlp, bias=False)
        self.down_proj = nn.Linear(mlp, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """The routed experts, stacked: gate and up in one [E, 2I, H], down [E, H, I]."""

    def __init__(self, s):
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(s.experts, 2 * s.expert_mlp, s.hidden).uniform_(-1, 1) * s.hidden**-0.5)
        self.down = nn.Parameter(torch.empty(s.experts, s.hidden, s.expert_mlp).uniform_(-1, 1) * s.expert_mlp**-0.5)


class Router(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(s.experts, s.hidden) * s.hidden**-0.5)
        self.register_buffer("e_score_correction_bias", torch.zeros(s.experts))


class Moe(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.gate = Router(s)
        self.experts = Experts(s)
        self.shared_experts = Mlp(s.hidden, s.shared * s.expert_mlp)
        self.load = None  # Tokens per expert of the last call, for balancing and for reports.

    def forward(self, x):
        s = self.s
        with torch.autocast("cpu", enabled=False):
            # The choice between near equals must not depend on rounding: f32, whatever the rest runs in.
            score = F.linear(x.float(), self.gate.weight).sigmoid()
        # The bias takes part in the choice only; the weights are the plain scores of the chosen.
        chosen = (score.detach() + self.gate.e_score_correction_bias).topk(s.top_k, -1).indices
        weight = score.gather(1, chosen)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20) * s.routed_scale
        order = chosen.flatten().argsort(stable=True)
        self.load = chosen.flatten().bincount(minlength=s.experts)
        # Each expert's share is filled up to a multiple of GRAIN (with token 0, read by nobody).
        filled = (self.load + GRAIN - 1) // GRAIN * GRAIN
        shift = (filled.cumsum(0) - filled) - (self.load.cumsum(0) - self.load)
        slot = torch.arange(order.numel()) + shift.repeat_interleave(self.load)
        token_of = torch.zeros(int(filled.sum()), dtype=torch.long)
        token_of[slot] = order // s.top_k
        parts = []
        for e, part in enumerate(take(x, token_of).split(filled.tolist())):
            gate, up = F.linear(part, self.experts.gate_up[e]).chunk(2, -1)
            parts.append(F.linear(F.silu(gate) * up, self.experts.down[e]))
        # Back to token order by gathering, which is deterministic, where adding into place need not be.
        back = torch.empty_like(order)
        back[order] = slot
        routed = take(torch.cat(parts), back).view(x.shape[0], s.top_k, -1)
        return (routed * weight[..., None].to(x.dtype)).sum(1) + self.shared_experts(x)


class DecoderLayer(nn.Module):
    def __init__(self, s, dense):
        super().__init__()
        self.input_layernorm = RmsNorm(s.hidden, s.eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = RmsNorm(s.hidden, s.eps)
        self.mlp = Mlp(s.hidden, s.dense_mlp) if dense else Moe(s)

    def forward(self, x, layout, angles):
        x = x + self.self_attn(self.input_layernorm(x), layout, angles)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.shape = s
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.3)
        self.model.layers = nn.ModuleList(DecoderLayer(s, dense=i == 0) for i in range(s.layers))
        self.model.norm = RmsNorm(s.hidden, s.eps)
        self.lm_head = nn.Linear(s.hidden, s.vocab, bias=False)
        self.kept = None  # What each layer gave in the last call, for the probe of facts.py.

    def forward(self, x, layout):
        """Embedded tokens [N, hidden] -> hidden states after the last norm; the caller picks rows for lm_head."""
        s = self.shape
        f = s.theta ** (-2.0 * torch.arange(s.rope // 2) / s.rope)
        angles = layout.positions[:, None] * f
        streams = []
        for layer in self.model.layers:
            x = layer(x, layout, angles)
            streams.append(x)
        self.kept = streams if self.training else None
        return self.model.norm(x)

    def moes(self):
        return [layer.mlp for layer in self.model.layers if isinstance(layer.mlp, Moe)]


class KimiVl(nn.Module):
    def __init__(self, vision, text):
        super().__init__()
        self.vision_tower = MoonViT(vision)
        self.multi_modal_projector = Projector(vision, text)
        self.language_model = Decoder(text)

    def see(self, pixels, grid):
        return self.multi_modal_projector(self.vision_tower(pixels, grid))

    def embed(self, tokens, picture_at, pictures):
        """Token embeddings [N, hidden], with rows of `pictures` [M, hidden] laid over the places picture_at [M]."""
        x = self.language_model.model.embed_tokens(tokens)
        return x if picture_at is None else x.index_copy(0, picture_at, pictures.to(x.dtype))


# ------------------------------------------------------------------------------------------------- published names


def published_state(model):
    """The state under the published names: one tensor per routed expert and projection."""
    out = {}
    for name, value in model.state_dict().items():
        if name.endswith(".experts.gate_up"):
            stem = name.removesuffix(".gate_up")
            for e, (gate, up) in enumerate(w.chunk(2, 0) for w in value):
                out[f"{stem}.{e}.gate_proj.weight"], out[f"{stem}.{e}.up_proj.weight"] = gate, up
        elif name.endswith(".experts.down"):
            for e, w in enumerate(value):
                out[f"{name.removesuffix('.down')}.{e}.down_proj.weight"] = w
        else:
            out[name] = value
    return out


def load_published(model, tensors):
    """The inverse of `published_state`; every tensor is used exactly once."""
    state, left = {}, dict(tensors)
    for name, value in model.state_dict().items():
        stem, E = name.rpartition(".")[0], value.shape[0]
        if name.endswith(".experts.gate_up"):
            pairs = [(left.pop(f"{stem}.{e}.gate_proj.weight"), left.pop(f"{stem}.{e}.up_proj.weight")) for e in range(E)]
            state[name] = torch.stack([torch.cat(p) for p in pairs])
        elif name.endswith(".experts.down"):
            state[name] = torch.stack([left.pop(f"{stem}.{e}.down_proj.weight") for e in range(E)])
        else:
            state[name] = left.pop(name)
    assert not left, f"tensors without a place: {sorted(left)}"
    model.load_state_dict({k: v.float() for k, v in state.items()})
