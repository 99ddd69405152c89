"""A run as what each writer adds to the stream; and a run in which each reader reads a mixture of two such runs.

Where blocks normalise what they write, a head's part goes through that norm with the scale of the whole, so that parts still
sum to what is added. The output bias of attention belongs to no writer (through such a norm: a share of it to each head).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.axes import Resid
from cutaway.circuits.graph import READS, Edges, Graph
from cutaway.errors import ConfigError, ShapeError
from cutaway.model.attention import project
from cutaway.model.foreign import ours
from cutaway.model.key_values import KeyValueCache
from cutaway.model.norm import LayerNorm, post_norm
from cutaway.model.positions import Stream
from cutaway.model.products import linear_by_head
from cutaway.model.transformer import Transformer

PARTS = ("attn", "mlp")
Parts = Float[Tensor, "writer batch pos d_model"]


@dataclass(frozen=True, eq=False)
class Written:
    """What a run adds to the stream.

    Args:
        parts: by writer.
        rest: by layer, what attention adds beside its heads, `[d_model]`: the same in every run.
        run: whether these are one run's own numbers (and not means or zeros): a node that reads them alone writes them again.
    """

    graph: Graph
    parts: Parts
    rest: tuple[Tensor, ...]
    run: bool = True

    def stream(self, layer: int, *, mlp: bool = False) -> Resid:
        """The stream that a layer's heads, or its MLP, read; of layer `n_layers`, the last."""
        return self.streams[2 * layer + mlp]

    @cached_property
    def streams(self) -> list[Resid]:
        """All of these: before the heads and before the MLP of each layer (parallel blocks: the same), and the last."""
        graph = self.graph
        total, found = self.parts[: graph.embeddings].sum(0), []
        for layer, rest in enumerate(self.rest):
            before, total = total, total + self.parts[graph.heads(layer)].sum(0) + rest
            found += [before, total if graph.cfg.has_resid_mid or graph.cfg.attn_only else before]
            if not graph.cfg.attn_only:
                total = total + self.parts[graph.mlp(layer)]
        return [*found, total]


def check(model: Transformer) -> None:
    """Refuse what has no parts.

    Raises:
        ShapeError: keys are normalised over their full width, which heads of a group share.
        ConfigError: the model lies on several devices, or a block, its attention or its MLP is somebody else's module, whose
            edges nobody knows.
    """
    cfg = model.cfg
    if cfg.n_devices > 1:
        raise ConfigError("edges are computed on one device, and this model lies on several; load it with device= instead")
    for layer, block in enumerate(model.blocks.children()):
        for name, part in ((f"blocks.{layer}", block), *((f"blocks.{layer}.{one}", getattr(block, one, None)) for one in PARTS)):
            if part is not None and not ours(part):
                raise ConfigError(
                    f"{name} is a {type(part).__name__}, not this network's own, so its edges are not known; "
                    "find circuits in the network without it"
                )
    if cfg.use_qk_norm and cfg.qk_norm_over == "full" and cfg.kv_heads != cfg.n_heads:
        raise ShapeError("edges need keys that belong to heads; this network normalises the keys of all groups of heads together")


def project_by_head(
    block: Any, which: str, x: Tensor, heads: Sequence[int] | None = None
) -> Float[Tensor, "batch pos head d_head"]:
    """Queries, keys or values of each head (or of some), from its normalised input; heads of a group have copies of their own.

    `x` is `[batch, pos, d_model]`, or has an entry per head.
    """
    attn = block.attn
    if x.ndim == 3 and heads is None:
        weight, bias = attn._weights()["qkv".index(which)]  # the groups' own: shared work is done once
        out = project(x, weight, bias).repeat_interleave(attn.cfg.n_heads // len(weight), dim=2)
    else:
        letter = which.upper()
        weight, bias = getattr(attn, f"W_{letter}"), getattr(attn, f"b_{letter}")
        out = project(x, weight, bias) if heads is None else project(x, weight[list(heads)], bias[list(heads)])
    clip = attn.cfg.clip_qkv
    return out if clip is None else out.clamp(-clip, clip)


def read_by(block: Any, which: str, resid: Tensor, stream: Stream) -> Tensor:
    """The normalised input of queries, keys or values, from the stream; with a head axis where that has one."""
    x: Tensor = block.ln1(resid)
    if stream.shortformer is None or which == "v":
        return x
    return x + (stream.shortformer if x.ndim == 3 else stream.shortformer.unsqueeze(2))


def attended(
    block: Any, projected: Sequence[Tensor], stream: Stream, heads: Sequence[int] | None = None
) -> Float[Tensor, "batch pos head d_head"]:
    """What heads (or some) have seen, from their projections."""
    attn, (q, k, v) = block.attn, projected
    k = attn.as_read(k, "k", stream)
    if stream.kept is not None:
        past, count = stream.kept[block.layer], attn.cfg.n_heads
        shared = [one.repeat_interleave(count // one.shape[2], dim=2) for one in (past.past_keys, past.past_values)]
        shared = shared if heads is None else [one[:, :, list(heads)] for one in shared]
        k, v = (torch.cat([old, new], 1) for old, new in zip(shared, (k, v), strict=True))
    z: Tensor = stream.attend(attn, attn.as_read(q, "q", stream), k, v)
    return z


def through_norm(norm: Any, whole: Tensor, parts: Tensor) -> Tensor:
    """Parts `[batch, pos, part, d_model]` through a norm whose scale is that of the whole; without the norm's bias."""
    if isinstance(norm, nn.Identity):
        return parts
    if isinstance(norm, LayerNorm):
        whole, parts = whole - whole.mean(-1, keepdim=True), parts - parts.mean(-1, keepdim=True)
    scale = (whole.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    parts = parts / scale.unsqueeze(-2)
    return parts if norm.w is None else parts * norm.w


def heads_write(block: Any, z: Tensor) -> Float[Tensor, "batch pos head d_model"]:
    """What each head adds to the stream; through a norm after attention also its share of the output bias."""
    return results_write(block, block.attn.results(z))


def results_write(block: Any, results: Float[Tensor, "batch pos head d_model"]) -> Float[Tensor, "batch pos head d_model"]:
    """The same, from the heads' results."""
    if isinstance(post_norm(block, "ln1_post"), nn.Identity):
        return results
    results = results + block.attn.b_O / results.shape[-2]
    return through_norm(post_norm(block, "ln1_post"), results.sum(-2), results)


def beside_heads(block: Any) -> Float[Tensor, "d_model"]:
    """What attention adds to the stream whatever the heads do."""
    if isinstance(post_norm(block, "ln1_post"), nn.Identity):
        return block.attn.b_O
    bias = getattr(post_norm(block, "ln1_post"), "b", None)
    return torch.zeros_like(block.attn.b_O) if bias is None else bias


def rests(model: Transformer) -> tuple[Tensor, ...]:
    """The same of each layer."""
    return tuple(map(beside_heads, model.blocks))


def mlp_writes(block: Any, resid: Tensor) -> Tensor:
    """What the MLP adds to the stream, from the stream that it reads."""
    out: Tensor = post_norm(block, "ln2_post")(block.mlp(block.ln2(resid)))
    return out


@torch.no_grad()
def kept_of(model: Transformer, tokens: Tensor) -> KeyValueCache | None:
    """The keys and values of a beginning that runs share; None: it is empty."""
    if not tokens.shape[1]:
        return None
    kept = KeyValueCache.init_cache(model.cfg, tokens.device, len(tokens))
    with model.aside():
        model.run_blocks(*model.embed_tokens(tokens, model.prepare(tokens, None, kept)))
    kept.freeze()
    return kept


def embedded(model: Transformer, tokens: Tensor, kept: KeyValueCache | None = None) -> tuple[list[Tensor], Stream]:
    """What the embeddings add to the stream, and where it stands."""
    mask = model.tokens_and_mask(tokens, None, None)[1] if kept is None else None  # padding on the left is seen in the tokens
    stream = model.prepare(tokens, mask, kept)
    whole, stream = model.embed_tokens(tokens, stream)
    if model.cfg.positional_embedding_type != "standard":
        return [whole], stream
    positions = model.pos_embed(tokens, stream.start, stream.padding)
    return [whole - positions, positions.expand_as(whole)], stream


@torch.no_grad()
def written(model: Transformer, tokens: Tensor, kept: KeyValueCache | None = None) -> Written:
    """What every writer adds in a run, which goes on after `kept` keys and values."""
    parts, stream = embedded(model, tokens, kept)
    resid = sum(parts[1:], parts[0])
    for block in model.blocks:
        projected = [project_by_head(block, which, read_by(block, which, resid, stream)) for which in READS]
        heads = heads_write(block, attended(block, projected, stream))
        parts += list(heads.unbind(2))
        before, resid = resid, resid + heads.sum(2) + beside_heads(block)
        if not model.cfg.attn_only:
            parts.append(mlp_writes(block, resid if model.cfg.has_resid_mid else before))
            resid = resid + parts[-1]
    return Written(Graph(model.cfg), torch.stack(parts), rests(model))


def by_head_alone(model: Transformer) -> bool:
    """Whether some heads can be computed without the others."""
    cfg = model.cfg
    return cfg.positional_embedding_type != "alibi" and not (cfg.use_qk_norm and cfg.qk_norm_over in ("full", "each"))


@torch.no_grad()
def run_mixed(model: Transformer, tokens: Tensor, circuit: Edges, base: Written, kept: KeyValueCache | None = None) -> Resid:
    """The stream after the last layer, where a circuit's edges carry what is written now, and all others what `base` says.

    Nodes that no edge of the circuit leaves are not computed, nor those that no edge reaches where `base` is a run. `kept` keys
    and values are those of positions before, where both runs are the same.
    """
    graph = base.graph
    wanted = (circuit.cpu() & graph.mask).to(base.parts)
    parts, stream = embedded(model, tokens, kept)
    now = {number: part - base.parts[number] for number, part in enumerate(parts)}  # now minus base, as far as the run has come

    def carried(columns: Tensor | int, done: int) -> Tensor:
        """What the circuit's edges into these readers add to the ablated run's stream, from the first `done` writers."""
        chosen = wanted[:done, columns]
        rows = [row for row in chosen.reshape(done, -1).any(1).nonzero()[:, 0].tolist() if row in now]
        change = torch.stack([now[row] for row in rows]) if rows else base.parts[:0]
        return torch.einsum("w...,wbpm->...bpm", chosen[rows], change)

    for layer, block in enumerate(model.blocks):
        done, heads = graph.before(layer), graph.heads(layer)
        columns = {which: graph.reading(layer, which) for which in READS}
        reached = torch.stack([wanted[:, one].any(0) for one in columns.values()]).any(0)
        # A head that no edge reaches reads the other run alone, and writes what it wrote there. Where the base is means or
        # zeros, it is no run: such a head reads means and writes something that nobody has computed yet.
        computed = wanted[heads].any(1) & (reached if base.run else True)
        if bool(computed.any()):
            some = computed.nonzero()[:, 0].tolist()
            # Beside a norm over all heads, each needs the others, whether the circuit has them or not.
            alone = by_head_alone(model) and isinstance(post_norm(block, "ln1_post"), nn.Identity)
            chosen = some if alone else list(range(model.cfg.n_heads))
            projected = []
            for which, where in columns.items():
                index = torch.arange(where.start, where.stop)[chosen]  # one stream for each head and each of its inputs
                x = base.stream(layer)[:, :, None] + carried(index, done).movedim(0, 2)
                projected.append(project_by_head(block, which, read_by(block, which, x, stream), chosen))
            z = attended(block, projected, stream, chosen)
            results = linear_by_head(z, block.attn.W_O[chosen]) if alone else heads_write(block, z)
            now |= {heads.start + head: results[:, :, at] - base.parts[heads.start + head] for at, head in enumerate(chosen)}
        if not model.cfg.attn_only:
            number = graph.mlp(layer)
            if bool(wanted[number].any()) and (not base.run or bool(wanted[:, graph.mlp_reading(layer)].any())):
                resid = base.stream(layer, mlp=True) + carried(graph.mlp_reading(layer), graph.before(layer, mlp=True))
                now[number] = mlp_writes(block, resid) - base.parts[number]
    return base.stream(model.cfg.n_layers) + carried(len(graph.readers) - 1, len(graph.writers))
