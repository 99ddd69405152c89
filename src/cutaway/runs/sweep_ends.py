"""The two ends of a cell's way, where less than a whole layer has to be computed.

In the layer of a stream edit only the changed positions have new queries, keys and values; all others are the clean run's.
In the last layer a few queries want to know what they see of many tokens: instead of projecting every token to keys and
values, the query is taken to the stream and what it has seen is projected, `(q W_Kᵀ) x` and `(Σ p x) W_V`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from cutaway.model.attention import Attention, project
from cutaway.model.positions import offset_positions
from cutaway.model.steps import FIRST, LAST, Z
from cutaway.model.transformer import Transformer
from cutaway.runs.sweep_clean import Clean, Group, Packed, past_of, rows_of
from cutaway.runs.sweep_join import Part, as_slice

Who = TypeVar("Who")


def few(model: Transformer, clean: Clean, part: Part) -> bool:
    """Whether a change of the stream leaves most positions' queries, keys and values as they are."""
    start = int(part.places[0]) if model.cfg.attention_dir == "causal" else 0
    return 2 * len(part.places) <= clean.length - start


def through_attention(
    model: Transformer, clean: Clean, layer: int, entering: list[tuple[Who, Part]], asked: Tensor | None
) -> list[tuple[Who, Part]]:
    """From a changed stream before a layer to the middle of it (attention done), all cells in one product.

    Args:
        asked: in the last layer, the positions that go on; None: all.
    """
    if not entering:
        return []
    block = model.blocks[layer]
    changed = torch.cat([part.value.flatten(0, 1) for _, part in entering])[None]
    stream = _tokens_of(model, clean, [part for _, part in entering])
    q, k, v = block.attn.queries_keys_values(*block.attention_inputs(changed, stream), stream)
    counts = [part.value.shape[0] * part.value.shape[1] for _, part in entering]
    seen, resids, parts = [], [], []
    for (who, part), *own in zip(entering, *(x[0].split(counts) for x in (q, k, v)), strict=True):
        first = int(part.places[0]) if model.cfg.attention_dir == "causal" else 0
        dest = torch.arange(first, clean.length, device=part.places.device)
        if asked is not None:
            dest = asked[asked >= first]
            if not len(dest):
                continue
        new_q, new_k, new_v = (x.unflatten(0, part.value.shape[:2]) for x in own)
        keys, values = (_replaced(x, part, new) for x, new in zip(clean.read[layer][1:], (new_k, new_v), strict=True))
        queries = _replaced(clean.read[layer][0], part, new_q)[:, as_slice(dest)]
        to_the_end = len(dest) == clean.length - first
        rows = rows_of(clean, part.examples, start=first, at=None if to_the_end else dest)
        seen.append(block.attn.attend(queries, keys, values, rows).flatten(0, 1))
        resids.append(_replaced(clean.resid[layer], part, part.value)[:, as_slice(dest)])
        parts.append((who, Part(part.examples, dest, resids[-1])))
    if not parts:
        return []
    out = block.ln1_post(block.attn.output(torch.cat(seen)[None]))[0]
    pieces = out.split([resid.shape[0] * resid.shape[1] for resid in resids])
    return [
        (who, part.with_value(resid + piece.view_as(resid)))
        for (who, part), resid, piece in zip(parts, resids, pieces, strict=True)
    ]


def _replaced(x: Tensor, part: Part, new: Tensor) -> Tensor:
    """A clean activation of the part's examples at all positions, with the part's own in place."""
    out = x.clone() if part.examples is None else x[part.examples]
    out[:, as_slice(part.places)] = new
    return out


def _tokens_of(model: Transformer, clean: Clean, parts: list[Part]) -> Packed:
    """A stream that knows where the tokens of these parts stand."""
    positions = shortformer = None
    if model.cfg.positional_embedding_type == "rotary":
        padding = clean.stream.padding
        every = None if padding is None else offset_positions(padding)
        positions = torch.cat([
            part.places.repeat(len(part.value)) if every is None else part.of(every).flatten() for part in parts
        ])[None]  # fmt: skip
    if clean.stream.shortformer is not None:
        shortformer = torch.cat([part.of(clean.stream.shortformer).flatten(0, 1) for part in parts])[None]
    return Packed(shortformer=shortformer, token_positions=positions, length=clean.length)


# The last layer.


def absorbs(model: Transformer, layer: int, asked: int, length: int) -> bool:
    """Whether this layer's keys and values can be taken to the query's side, and whether that is less work."""
    attention, cfg = model.blocks[layer].attn, model.cfg
    plain = attention.rotary is None and not cfg.use_qk_norm and cfg.clip_qkv is None and cfg.attn_scores_soft_cap <= 0
    return plain and not attention.grouped and cfg.torch_dtype in (torch.float32, torch.float64) and 4 * asked <= length


def last_layer(model: Transformer, packed: Packed, tokens: Tensor, layer: int) -> Tensor:
    """The last layer of a packed run, at the asked positions: `[token, d_model]` in, asked tokens out."""
    block = model.blocks[layer]
    attention = block.attn
    query_input, key_input, value_input = (x[0] for x in block.attention_inputs(tokens[None], packed))
    asked = slice(None) if packed.token_asked is None else packed.token_asked
    q = project(query_input[None, asked], attention.W_Q, attention.b_Q)[0] / attention.attn_scale
    seen, at = [], 0
    for group in packed.groups:
        mine = q[at : at + group.rows * group.kept].unflatten(0, (group.rows, group.kept))
        at += group.rows * group.kept
        own = slice(group.begin, group.begin + group.rows * group.length)
        shape = (group.rows, group.length)
        seen.append(
            _seen(attention, packed.clean, group, mine, key_input[own].unflatten(0, shape), value_input[own].unflatten(0, shape))
        )
    z = torch.cat(seen)[None]
    queries = replace(packed, token_asked=None)  # the stream has been cut to them already
    return block.compute(LAST, {FIRST: tokens[None, asked], Z: z}, queries)[0]


def _seen(attention: Attention, clean: Clean, group: Group, q: Tensor, keys_of: Tensor, values_of: Tensor) -> Tensor:
    """What each head of one group's queries `[row, query, head, d_head]` has seen, `[row * query, head, d_head]`."""
    layer = attention.layer_id or 0
    W_K, b_K, W_V, b_V = attention.W_K, attention.b_K, attention.W_V, attention.b_V
    reach = torch.einsum("rqhd,hmd->rhqm", q, W_K).flatten(1, 2)  # head and query side by side
    new = (reach @ keys_of.transpose(1, 2)).unflatten(1, (q.shape[2], q.shape[1]))
    new = new + torch.einsum("rqhd,hd->rhq", q, b_K)[..., None]
    scores = new
    past_values = None
    if group.start:
        _, past_keys, past_values = (past_of(x, group) for x in clean.read[layer])
        scores = torch.cat([torch.einsum("rqhd,rkhd->rhqk", q, past_keys), new], -1)
    visible = group.stream.visible(
        q.shape[1], scores.shape[-1], causal=attention.cfg.attention_dir == "causal", window=attention.window, device=q.device
    )
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    pattern = scores.softmax(-1)
    if visible is not None and visible.shape[0] > 1:
        pattern = pattern.masked_fill(pattern.isnan(), 0)
    own = pattern[..., group.start :]
    mixed = (own.flatten(1, 2) @ values_of).unflatten(1, (q.shape[2], q.shape[1]))
    z = torch.einsum("rhqm,hmd->rqhd", mixed, W_V) + own.sum(-1).transpose(1, 2)[..., None] * b_V
    if past_values is not None:
        z = z + torch.einsum("rhqk,rkhd->rqhd", pattern[..., : group.start], past_values)
    return z.flatten(0, 1)
