"""Answers to every exercise, as a reader would write them: a right one, and wrong ones that are easy to write."""

# mypy: ignore-errors
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def describe(model):
    cfg = model.cfg
    return {
        "layers": cfg.n_layers,
        "heads": cfg.n_layers * cfg.n_heads,
        "context": cfg.n_ctx,
        "neurons": 0 if cfg.attn_only else cfg.n_layers * cfg.d_mlp,
        "attention_weights": 4 * cfg.n_layers * cfg.n_heads * cfg.d_model * cfg.d_head,
    }


def right_guesses(model, tokens):
    return int((model(tokens).argmax(-1)[:, :-1] == tokens[:, 1:]).sum())


def pattern(q, k, scale):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / scale
    length = q.shape[1]
    return scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)


def average_where(pattern, condition):
    length = pattern.shape[-1]
    table = torch.tensor([[condition(dest, src) for src in range(length)] for dest in range(length)])
    return pattern[:, table].mean(-1) if table.any() else torch.zeros(len(pattern))


def previous_token_heads(cache, threshold):
    found = []
    for layer in range(cache.model.cfg.n_layers):
        scores = cache["pattern", layer].diagonal(-1, dim1=-2, dim2=-1).mean((0, 2))
        found += [(layer, head) for head, score in enumerate(scores) if score > threshold]
    return found


def resting(cache):
    return cache.stack_activation("pattern")[:, :, :, 1:, 0].mean((1, 3))


def induction_scores(model, tokens):
    _, cache = model.run_with_cache(tokens)
    half = tokens.shape[1] // 2
    stripes = cache.stack_activation("pattern").diagonal(1 - half, dim1=-2, dim2=-1)
    return stripes[..., 1:].mean((1, 3))


def gain(model, tokens):
    losses = -model(tokens).log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    first = tokens.shape[1] // 2 - 1
    return (losses[:, :first].mean() - losses[:, first:].mean()).item()


def logit_attribution(model, tokens):
    _, cache = model.run_with_cache(tokens)
    directions = model.W_U[:, tokens[1:]]
    columns = [torch.einsum("pm,mp->p", cache["embed"][0, :-1], directions)[:, None]]
    for layer in range(model.cfg.n_layers):
        written = torch.einsum("phd,hdm->phm", cache["z", layer][0, :-1], model.W_O[layer])
        columns.append(torch.einsum("phm,mp->ph", written, directions))
    return torch.cat(columns, dim=1)


def difference_by_head(model, cache, right, wrong):
    z = torch.stack([cache["z", layer][:, -1] for layer in range(model.cfg.n_layers)])
    written = torch.einsum("lbhd,lhdm->lhbm", z, model.W_O)
    written = (written - written.mean(-1, keepdim=True)) / cache["scale"][:, -1]
    return torch.einsum("lhbm,mb->lhb", written, model.W_U[:, right] - model.W_U[:, wrong])


def _silence(z, hook, head):
    z[:, :, head] = 0


def loss_without(model, tokens):
    usual = model(tokens, return_type="loss")
    rows = []
    for layer in range(model.cfg.n_layers):
        hooks = [[(f"blocks.{layer}.attn.hook_z", partial(_silence, head=head))] for head in range(model.cfg.n_heads)]
        rows.append([float(model.run_with_hooks(tokens, return_type="loss", fwd_hooks=one) - usual) for one in hooks])
    return torch.tensor(rows)


def with_mean_head(model, tokens, layer, head, axes=0):
    def to_the_mean(z, hook):
        z[:, :, head] = z[:, :, head].mean(axes, keepdim=True)

    return model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", to_the_mean)])


def lens(model, tokens):
    _, cache = model.run_with_cache(tokens)
    streams = [cache["resid_pre", layer] for layer in range(model.cfg.n_layers)] + [cache["resid_post", -1]]
    return torch.stack([model.unembed(model.ln_final(stream)) for stream in streams])


def steered(model, tokens, plus, minus, layer, strength):
    name = f"blocks.{layer}.hook_resid_pre"
    ends = [model.run_with_cache(text, names_filter=name)[1][name] for text in (plus, minus)]

    def add(resid, hook):
        resid[:, : plus.shape[1]] += strength * (ends[0] - ends[1])

    return model.run_with_hooks(tokens, fwd_hooks=[(name, add)])


def patched(model, clean, corrupted, right, wrong):
    _, cache = model.run_with_cache(clean)
    out = torch.zeros(model.cfg.n_layers, clean.shape[1])
    for layer in range(out.shape[0]):
        for pos in range(out.shape[1]):

            def put(resid, hook, pos=pos):
                resid[:, pos] = cache[hook.name][:, pos]

            logits = model.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", put)])[0, -1]
            out[layer, pos] = logits[right] - logits[wrong]
    return out


def detectors(model, scale, above, below):
    embeddings = model.W_E[:-1] / scale
    found = {"duplicate": [], "anti_duplicate": []}
    for head in range(model.cfg.n_heads):
        scores = embeddings @ model.W_Q[0, head] @ model.W_K[0, head].T @ embeddings.T / model.cfg.d_head**0.5
        own = scores.softmax(-1).diagonal()
        found["duplicate"] += [(head, token) for token in range(len(own)) if own[token] > above]
        found["anti_duplicate"] += [(head, token) for token in range(len(own)) if own[token] < below]
    return found


def responsible(model):
    OV = model.W_V @ model.W_O
    sizes = []
    for head in range(model.cfg.n_heads):
        paths = [OV[1, head]] + [OV[0, first] @ OV[1, head] for first in range(model.cfg.n_heads)]
        diagonals = torch.stack([(model.W_E @ path @ model.W_U).diagonal() for path in paths])
        sizes.append(diagonals.norm(dim=0))
    return torch.stack(sizes).argmax(0)[:-1].tolist()


def key_composition(model):
    OV = model.W_V[0] @ model.W_O[0]
    KQ = model.W_K[1] @ model.W_Q[1].mT
    products = torch.einsum("amn,bno->abmo", OV, KQ)
    return products.norm(dim=(-2, -1)) / (OV.norm(dim=(-2, -1))[:, None] * KQ.norm(dim=(-2, -1)))


RIGHT: dict[str, Callable[..., Any]] = {
    "read-a-configuration": describe,
    "right-guesses": right_guesses,
    "pattern-from-queries-and-keys": pattern,
    "average-where": average_where,
    "previous-token-heads": previous_token_heads,
    "resting-heads": resting,
    "induction-heads": induction_scores,
    "what-repetition-brings": gain,
    "logits-by-component": logit_attribution,
    "attribution-through-the-final-norm": difference_by_head,
    "switch-heads-off": loss_without,
    "replace-by-the-mean": with_mean_head,
    "logit-lens": lens,
    "activation-addition": steered,
    "patch-the-stream": patched,
    "duplicate-detectors": detectors,
    "responsible-heads": responsible,
    "composition": key_composition,
}


def _left_on(model, tokens):
    out = loss_without(model, tokens)
    model.add_hook("blocks.0.hook_resid_pre", lambda resid, hook: None)
    return out


# Exercise → a wrong answer, and a part of what is said about it.
WRONG: list[tuple[str, Callable[..., Any], str]] = [
    (
        "read-a-configuration",
        lambda model: describe(model) | {"heads": model.cfg.n_heads},
        "at 'heads': it returned 3, and 6 is right",
    ),
    ("read-a-configuration", lambda model: {"layers": 2}, "the dictionary lacks 'heads', 'context'"),
    ("right-guesses", lambda model, tokens: int((model(tokens).argmax(-1) == tokens).sum()), "is right"),
    ("right-guesses", lambda model, tokens: None, "it returned nothing yet"),
    ("pattern-from-queries-and-keys", lambda q, k, scale: pattern(q, k, 1.0), "of its numbers are off"),
    (
        "pattern-from-queries-and-keys",
        lambda q, k, scale: pattern(q, k, scale).mT,
        "the last two axes exchanged it would be right",
    ),
    ("pattern-from-queries-and-keys", lambda q, k, scale: (q @ k.mT).softmax(-1), "its shape is"),
    ("average-where", lambda pattern, condition: average_where(pattern, lambda d, s: condition(s, d)), "on the position before"),
    (
        "average-where",
        lambda pattern, condition: pattern[:, [condition(0, 0)] * pattern.shape[1]].mean((1, 2)) * torch.nan,
        "are NaN",
    ),
    ("previous-token-heads", lambda cache, threshold: [], "it lacks"),
    ("previous-token-heads", lambda cache, threshold: previous_token_heads(cache, -1.0), "which should not be there"),
    ("previous-token-heads", lambda cache, threshold: "0.1", "a list is wanted"),
    ("resting-heads", lambda cache: cache.stack_activation("pattern")[..., 0].mean((1, 3)), "of its numbers are off"),
    ("induction-heads", lambda model, tokens: induction_scores(model, tokens) * 2, "All of it is twice what it should be"),
    ("what-repetition-brings", lambda model, tokens: -gain(model, tokens), "is right"),
    ("what-repetition-brings", lambda model, tokens: torch.zeros(3), "where one number is wanted"),
    ("logits-by-component", lambda model, tokens: -logit_attribution(model, tokens), "All of it is −1 times what it should be"),
    ("logits-by-component", lambda model, tokens: logit_attribution(model, tokens)[:, 1:], "its shape is"),
    ("attribution-through-the-final-norm", lambda m, c, right, wrong: difference_by_head(m, c, wrong, right), "−1 times"),
    ("switch-heads-off", _left_on, "hooks are still on blocks.0.hook_resid_pre"),
    ("replace-by-the-mean", lambda m, t, layer, head: with_mean_head(m, t, layer, head, (0, 1)), "of its numbers are off"),
    ("logit-lens", lambda model, tokens: model.unembed(torch.stack([model.W_E[tokens]] * 3)), "of its numbers are off"),
    ("activation-addition", lambda m, t, p, n, layer, strength: steered(m, t, p, n, layer, -strength), "of its numbers are off"),
    ("patch-the-stream", lambda m, clean, corrupted, *answers: patched(m, corrupted, clean, *answers), "of its numbers are off"),
    ("duplicate-detectors", lambda model, scale, above, below: detectors(model, 1.0, above, below), "at 'duplicate'"),
    ("responsible-heads", lambda model: [0] * (model.cfg.d_vocab - 1), "at 1 it has 0, and 1 is right"),
    ("composition", lambda model: key_composition(model).T, "the last two axes exchanged"),
]
