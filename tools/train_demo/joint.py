"""Stage two: everything together, on the answers, with the probe kept on and hints of where to look."""

import torch
import torch.nn.functional as F

from conversations import Prefix, Row
from grounding import CARRY_LAYER, COPY_LAYER, PHRASE_LAYER, WORD_LAYER, copy_loss, hint_loss
from pictures import scene_batch


def joint_step(model, probes, packer, grounding, rng, recipe):
    """One batch: backpropagates and returns what to log; the caller steps the optimiser. probes: of words and of facts."""
    of_words, of_facts = probes
    scenes, patches, grid, targets = scene_batch(rng, recipe["pictures"])
    num_tokens = grid[0] * grid[1] // 4
    packed = packer.batch(rng, scenes, num_tokens, recipe)
    # Products in bf16 are 2.5 times as fast on a processor with AVX512-BF16; weights and optimiser stay f32.
    with torch.autocast("cpu", torch.bfloat16):
        seen = model.see(patches, grid)
        x = model.embed(packed.tokens, packed.picture_at, seen.flatten(0, 1)[packed.picture_from])
        hidden = model.language_model(x, packed.layout)[packed.predict_at]
        logits = model.language_model.lm_head(hidden).float()
    extra, right = of_words(model.language_model.model.embed_tokens.weight, seen.float(), targets)
    found = grounding.hints(packed, packer.words.pad_picture, targets)
    layers = model.language_model.model.layers
    hint = sum(hint_loss(layers[n].self_attn, h) for n, h in zip((WORD_LAYER, PHRASE_LAYER, CARRY_LAYER), found))
    copying = copy_loss(layers[COPY_LAYER].self_attn, packed.copy_at, packed.copy_from)
    known, known_right = of_facts(model.language_model.kept, found[1])
    losses = F.cross_entropy(logits, packed.target, reduction="none")
    loss = (losses * packed.weight).sum() / packed.weight.sum()
    (loss + recipe["probe"] * extra + recipe["hint"] * (hint + copying) + recipe["facts"] * known).backward()
    with torch.no_grad():
        content = packed.weight == 1.0
        good = (logits.argmax(-1) == packed.target)[content].float().mean().item()
    return dict(loss=loss.item(), content=good, probe=extra.item(), seen=right, hint=hint.item(), copying=copying.item(),
                facts=known_right, tokens=float(packed.tokens.numel()))


@torch.no_grad()
def balance(model, rate):
    """Balancing without a loss: experts with less than their share become a little more attractive to the choice.
    Returns the load of the busiest expert of all layers over its fair share."""
    worst = 0.0
    for moe in model.language_model.moes():
        load = moe.load.float()
        moe.gate.e_score_correction_bias += rate * (load.mean() - load).sign()
        worst = max(worst, (load.max() / load.mean()).item())
    return worst


@torch.no_grad()
def generate(model, packer, prompts, pictures=None, limit=48):
    """Greedy answers to a batch of prompts (token lists). pictures: projected tokens [len(prompts), T, hidden], or None.
    The whole sequence is computed again for every token: slow, and with no cache that could be wrong."""
    end = packer.words.end
    rows = [list(p) for p in prompts]
    done = [False] * len(rows)
    num_tokens = 0 if pictures is None else pictures.shape[1]
    answers = [[] for _ in rows]
    for _ in range(limit):
        live = [i for i, d in enumerate(done) if not d]
        if not live:
            break
        # A prompt is a prefix with a row of one token, so that one forward pass answers for all at its last token.
        heads = [Prefix(rows[i][:-1], n) for n, i in enumerate(live)]
        tails = [Row(n, rows[i][-1:], [0.0]) for n, i in enumerate(live)]
        packed = packer.pack([(heads, tails)], num_tokens, cuts=())
        seen = None if pictures is None else pictures[live].flatten(0, 1)[packed.picture_from]
        x = model.embed(packed.tokens, None if pictures is None else packed.picture_at, seen)
        hidden = model.language_model(x, packed.layout)[packed.layout.groups[0].rows[0].index[:len(live), 0]]
        for i, token in zip(live, model.language_model.lm_head(hidden).argmax(-1).tolist()):
            done[i] = token == end
            if not done[i]:
                rows[i].append(token)
                answers[i].append(token)
    return [packer.words.decode(a) for a in answers]
