"""Muon for the matrices and AdamW for the rest, as Moonlight was trained: Muon's update is scaled to the RMS of an
AdamW update, so both share one learning rate and one schedule."""

import torch

# Rows of these are looked up one by one or are few; orthogonalising them makes no sense.
_NOT_MATRICES = ("embed_tokens", "lm_head", "pos_emb", "gate.weight", "patch_embed.proj")


class Optimiser:
    def __init__(self, named, lr, slow=(), slowness=1.0, decay=0.01):
        """named: (name, parameter) pairs; those whose name starts with one of `slow` learn at `slowness` times the rate."""
        self.lr, self.decay, self.beta = lr, decay, 0.95
        groups, rest = {}, {}
        for name, p in named:
            speed = slowness if name.startswith(tuple(slow)) else 1.0
            if p.ndim >= 2 and p.shape[-1] > 1 and not any(n in name for n in _NOT_MATRICES):
                groups.setdefault((speed, p.shape[-2:]), []).append(p)
            else:
                rest.setdefault(speed, []).append(p)
        # Matrices of one shape are stacked and orthogonalised together: few large products instead of many small.
        self.groups = [(speed, ps, [torch.zeros_like(p) for p in ps]) for (speed, _), ps in groups.items()]
        self.adam = torch.optim.AdamW([{"params": ps, "speed": speed} for speed, ps in rest.items()], lr=lr, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=True)
        self.params = [p for ps in rest.values() for p in ps] + [p for _, ps, _ in self.groups for p in ps]

    @torch.no_grad()
    def step(self, share):
        """One step at `share` of the learning rate; clears the gradients."""
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        lr = self.lr * share
        for g in self.adam.param_groups:
            g["lr"] = lr * g["speed"]
        self.adam.step()
        for speed, params, momenta in self.groups:
            updates = []
            live = [(p, m) for p, m in zip(params, momenta) if p.grad is not None]
            if not live:
                continue
            for p, m in live:
                m.lerp_(p.grad, 1 - self.beta)
                updates.append(p.grad.lerp(m, self.beta).view(-1, *p.shape[-2:]))
            turned = orthogonalise(torch.cat(updates)).split([u.shape[0] for u in updates])
            scale = 0.2 * max(params[0].shape[-2:]) ** 0.5
            for (p, _), u in zip(live, turned):
                p.mul_(1 - lr * speed * self.decay).add_(u.view_as(p), alpha=-lr * speed * scale)
        for p in self.params:
            p.grad = None

    def state(self):
        return {"adam": self.adam.state_dict(), "momenta": [m for *_, m in self.groups]}

    def load(self, state):
        self.adam.load_state_dict(state["adam"])
        for (*_, mine), saved in zip(self.groups, state["momenta"]):
            for m, s in zip(mine, saved):
                m.copy_(s)


def orthogonalise(g):
    """Newton-Schulz: moves all singular values of each [A, B] matrix of the stack towards one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    # In bf16: the iteration is its own error correction, and the product is three times as fast.
    x = (g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).to(g.dtype)
