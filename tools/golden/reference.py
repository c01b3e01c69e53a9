"""Reference outputs of a loaded model: log-probabilities of prompts and greedy continuations.

No KV cache is used: every step computes the whole text again, so an error in a cache cannot hide in the reference.
Prompts are drawn until no decision is close: each greedy token leads clearly, and no expert choice changes when the
router's input is disturbed a little. A correct implementation that sums in another order then takes the same decisions.
"""

from contextlib import contextmanager

import torch

NUM_GREEDY = 16
MIN_GREEDY_MARGIN = 0.02
ROUTER_NOISE = 2e-5
NUM_NOISE_TRIALS = 12
FULL_LOGPROBS_MAX = 17


class Unstable(Exception):
    """A decision of this prompt is too close to be a fair test."""


@contextmanager
def router_watch(model):
    """Checks at every call of a router that its choice survives a relative disturbance of its input."""
    routers = [m for m in model.modules() if type(m).__name__.lower().endswith("topkrouter")]
    assert routers or "MoE" not in repr(model) and "Moe" not in repr(model), "no router found in a model with experts"
    noise = torch.Generator().manual_seed(1)

    def chosen(router, hidden, rest):
        indices = router.forward(hidden, *rest)[2]
        return torch.sort(indices, dim=-1).values

    def check(router, args, _output):
        hidden = args[0]
        expected = chosen(router, hidden, args[1:])
        for _ in range(NUM_NOISE_TRIALS):
            scale = ROUTER_NOISE * hidden.abs().max()
            disturbed = hidden + scale * torch.randn(hidden.shape, generator=noise)
            if not torch.equal(chosen(router, disturbed, args[1:]), expected):
                raise Unstable("router")

    hooks = [router.register_forward_hook(check) for router in routers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def log_probs(model, token_ids, **inputs):
    """[T, V] float32 log-softmax of every position."""
    ids = torch.tensor([token_ids], dtype=torch.long)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, **inputs).logits[0]
    assert logits.dtype == torch.float32
    return torch.log_softmax(logits.double(), dim=-1).float()


def greedy(model, prompt, forbidden, **inputs):
    """NUM_GREEDY tokens after the prompt with their log-probabilities; end tokens do not stop it."""
    tokens, values = list(prompt), []
    for _ in range(NUM_GREEDY):
        last = log_probs(model, tokens, **inputs)[-1]
        top = torch.topk(last, 2)
        token = int(top.indices[0])
        if float(top.values[0] - top.values[1]) < MIN_GREEDY_MARGIN:
            raise Unstable("greedy")
        if token in forbidden:
            raise Unstable("forbidden token")
        tokens.append(token)
        values.append(float(top.values[0]))
    return tokens[len(prompt) :], values


def run_case(model, name, draw_prompt, forbidden=(), **inputs):
    """One case: JSON part and arrays. `draw_prompt(attempt)` gives the token ids of an attempt."""
    with router_watch(model):
        for attempt in range(200):
            prompt = draw_prompt(attempt)
            try:
                full = log_probs(model, prompt, **inputs)
                tokens, values = greedy(model, prompt, forbidden, **inputs)
            except Unstable:
                continue
            break
        else:
            raise RuntimeError(f"{name}: no prompt without a close decision found")
    arrays = {f"{name}.last_logprobs": full[-1], f"{name}.greedy_logprobs": torch.tensor(values)}
    if len(prompt) > 1:
        following = torch.tensor(prompt[1:])
        arrays[f"{name}.prompt_logprobs"] = full[:-1].gather(1, following[:, None])[:, 0]
    has_full = len(prompt) <= FULL_LOGPROBS_MAX
    if has_full:
        arrays[f"{name}.logprobs"] = full
    case = {"name": name, "prompt_token_ids": prompt, "has_full_logprobs": has_full, "greedy_token_ids": tokens}
    return case, arrays
