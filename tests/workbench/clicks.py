"""Random clicks, and the same done by hand: hooks written here, which know nothing of the workbench."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from cutaway import HookedTransformer, HookedTransformerConfig
from cutaway.workbench import state
from cutaway.workbench.session import Session

HOWS = ("zero", "mean", "resample", "patch", "scale")


def small_model(seed: int = 0) -> HookedTransformer:
    """Three layers with grouped keys, rotation and gated MLPs, no tokenizer."""
    cfg = HookedTransformerConfig(
        n_layers=3, d_model=32, d_head=8, n_heads=4, n_key_value_heads=2, d_mlp=48, n_ctx=32, d_vocab=40, act_fn="silu",
        normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=8, gated_mlp=True, seed=seed,
        model_name="small", init_weights=True, initializer_range=0.3,
    )  # fmt: skip
    return HookedTransformer(cfg)


def session_of(model: Any, length: int = 9) -> Session:
    """A session on two random prompts."""
    draw = torch.Generator().manual_seed(1)
    clean, corrupted = torch.randint(model.cfg.d_vocab, (2, length), generator=draw).tolist()
    session = Session(model, model.cfg.model_name)
    session.set({"clean": clean, "corrupted": corrupted, "right": 3, "wrong": 5})
    return session


def switch(model: Any, draw: random.Random, length: int) -> dict[str, Any]:
    """A random switch."""
    cfg = model.cfg
    kinds = ["head", "position", "edge", "look"] + ([] if cfg.attn_only else ["mlp"]) + (["steer"] if model.tokenizer else [])
    kind = draw.choice(kinds)
    layer, head = draw.randrange(cfg.n_layers), draw.randrange(cfg.n_heads)
    how = {"how": draw.choice(HOWS), "factor": round(draw.uniform(-1, 2), 2)}
    if kind == "look":
        query = draw.randrange(length)
        return {"kind": kind, "layer": layer, "head": head, "query": query, "key": draw.randrange(query + 1)}
    if kind == "steer":
        return {"kind": kind, "layer": layer, "factor": how["factor"], "plus": " one", "minus": " king"}
    if kind == "edge":
        from cutaway.circuits.graph import Graph

        graph = Graph(cfg)
        writer, reader = draw.choice(graph.mask.nonzero().tolist())
        return {"kind": kind, "writer": graph.writers[writer], "reader": graph.readers[reader], **how}
    position = draw.choice([None, draw.randrange(length)])
    if kind == "position":
        return {"kind": kind, "layer": layer, "position": draw.randrange(length), **how}
    return {"kind": kind, "layer": layer, "position": position, **how} | ({"head": head} if kind == "head" else {})


def instead(one: Any, own: Tensor, other: Tensor) -> Tensor:
    """What takes the place of an activation `[1, pos, …]`."""
    order = torch.randint(other.shape[1], (own.shape[1],), generator=torch.Generator().manual_seed(0))
    return {
        "zero": lambda: own * 0, "scale": lambda: own * one.factor, "mean": lambda: own.mean(1, keepdim=True).expand_as(own),
        "patch": lambda: other, "resample": lambda: other[:, order],
    }[one.how]()  # fmt: skip


def by_hand(model: HookedTransformer, now: state.State) -> Tensor:
    """Logits with the switches of a state on, by `run_with_hooks`."""
    own, other = (torch.tensor([getattr(now, side)]) for side in ("clean", "corrupted"))
    own, other = (own, other) if now.side == "clean" else (other, own)
    ends = ("hook_z", "hook_result", "hook_mlp_out", "hook_resid_pre", "embed")
    names = [name for name in model.hook_dict if name.endswith(ends)]
    (_, mine), (_, theirs) = (model.run_with_cache(tokens, names_filter=names) for tokens in (own, other))
    hooks = [_hook(model, one, mine, theirs) for one in now.switches]
    with torch.no_grad():
        logits: Tensor = model.run_with_hooks(own, fwd_hooks=hooks)
    return logits


def _hook(model: HookedTransformer, one: Any, mine: Any, theirs: Any) -> tuple[str, Any]:
    kind = type(one).__name__.removesuffix("Switch")
    if kind == "Look":

        def cut(x: Tensor, hook: Any) -> None:
            x[:, one.head, one.query, one.key] = 0

        return f"blocks.{one.layer}.attn.hook_pattern", cut
    if kind == "Steer":
        with torch.no_grad():
            ends = [model.run_with_cache(text)[1][f"blocks.{one.layer}.hook_resid_pre"][0, -1] for text in (one.plus, one.minus)]
        return f"blocks.{one.layer}.hook_resid_pre", lambda x, hook: x + one.factor * (ends[0] - ends[1])
    if kind == "Edge":
        return _edge(model, one, mine, theirs)
    site = {"Head": f"blocks.{one.layer}.attn.hook_z", "Mlp": f"blocks.{one.layer}.hook_mlp_out"}.get(
        kind, f"blocks.{one.layer}.hook_resid_pre"
    )

    def edit(x: Tensor, hook: Any) -> None:
        new = x * one.factor if one.how == "scale" else instead(one, mine[site], theirs[site])
        at = slice(None) if one.position is None else one.position
        if kind == "Head":
            x[:, at, one.head] = new[:, at, one.head]
        else:
            x[:, at] = new[:, at]

    return site, edit


def _edge(model: HookedTransformer, one: Any, mine: Any, theirs: Any) -> tuple[str, Any]:
    if one.writer == "embed" or one.writer == "pos_embed":
        parts = [run[f"hook_{one.writer}"] for run in (mine, theirs)]
    else:
        layer, what = one.writer.split(".")
        site = f"blocks.{layer}.hook_mlp_out" if what == "mlp" else f"blocks.{layer}.attn.hook_result"
        parts = [run[site] if what == "mlp" else run[site][:, :, int(what)] for run in (mine, theirs)]
    change = instead(one, *parts) - parts[0]
    if one.reader == "logits":
        return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", lambda x, hook: x + change
    layer, what, *which = one.reader.split(".")
    if what == "mlp":
        return f"blocks.{layer}.hook_mlp_in", lambda x, hook: x + change
    group = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads) if which[0] in "kv" else 1

    def add(x: Tensor, hook: Any) -> None:
        x[:, :, int(what) // group] += change

    return f"blocks.{layer}.hook_{which[0]}_input", add
