"""Attribution by class of answers: what components add to the answer, to repeated tokens, to tokens that did not occur.

Where roles of heads are known: what the answer's responsible head adds, by source and by what it moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.analysis import attribution
from cutaway.analysis.token_roles import FEW, Classes, Masks, TokenRoles
from cutaway.axes import Tokens
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.results import mean_of


def by_class(
    right: attribution.Attribution,
    cache: ActivationCache,
    labels: Tokens,
    occurrences: Int[Tensor, "batch pos token"],
    classes: Classes,
    sources: Masks,
    content: Sequence[int],
    vocab: Sequence[str],
    roles: TokenRoles | None,
) -> dict[str, Any]:
    """Class → component → kind of token → the mean effect on its logit; sources are those of the first examples.

    Args:
        right: the attribution to the right answers, of all examples.
        occurrences: how often each token has occurred up to each position.
    """
    here = {name: where[:FEW] for name, where in classes.items()}
    others = [token for token in range(len(vocab)) if token not in set(content)]
    times, few = occurrences[:FEW].clone(), labels[:FEW]
    times[..., others] = -1
    every = attribution.attribute_all_tokens(cache, examples=range(len(few)), vocab=vocab).values
    added = {"the answer": every.data.gather(-1, few.clamp(min=0).expand(len(every.data), *few.shape)[..., None])[..., 0]}
    for name, kind in {"repeated tokens": times > 1, "tokens that did not occur": times == 0}.items():
        added[name] = (every.data * kind).sum(-1) / kind.sum(-1)
    added |= {vocab[token]: every.data[..., token] for token in others}
    shifted = {} if roles is None else roles.by_source(few, here, sources)
    margin = {} if roles is None else roles.lead_by_source(few, here, times == 0, sources)
    found: dict[str, Any] = {}
    for name, where in here.items():
        by = {component: {kind: mean_of(data[n], where) for kind, data in added.items()}
              for n, component in enumerate(every.names("component"))}  # fmt: skip
        found[name] = {"by_component": by, "logits": {kind: sum(one[kind] for one in by.values()) for kind in added}}
        if roles is not None:
            found[name] |= {**shifted[name], "lead": margin[name], **_responsible(roles, right, labels, classes[name])}
    return found


def _responsible(
    roles: TokenRoles, right: attribution.Attribution, labels: Tokens, where: Bool[Tensor, "batch pos"]
) -> Mapping[str, float]:
    """What the answer's responsible head adds, what its layer adds, and how that head attends to the position itself."""
    found: dict[str, list[Tensor]] = {"responsible_head": [], "last_layer": [], "attention_of_responsible_to_it": []}
    last = right.values.sel(component=roles.heads[1]).data.sum(0)
    for word, head in roles.responsible.head_of.items():
        chosen = where & (labels == roles.token[word])
        looks = roles.pattern(head).diagonal(dim1=1, dim2=2)
        for part, values in zip(found.values(), (right.values.sel(component=head).data, last, looks), strict=True):
            part.append(values[chosen])
    return {name: mean_of(torch.cat(parts)) for name, parts in found.items()}
