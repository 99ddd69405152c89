"""Roles of heads, token by token, in a network of two attention-only layers: which mark repeats, which answer, by what ways.

One run and the weights (with the run's mean norm scales) are read together: detectors of the first layer, responsible heads of
the second, what keys and values between them are made of. `content` are the tokens that inputs vary in; a token is *repeated*
where it has occurred before. Methods return plain numbers by head and token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.analysis import head_decomposition as split_of
from cutaway.analysis import score_pathways, token_heads, weight_circuits
from cutaway.analysis.scales import NormScales, norm_scales
from cutaway.analysis.shared import head_names, scale_of
from cutaway.axes import Tokens
from cutaway.config import HookedTransformerConfig
from cutaway.model.frozen_norms import frozen_norm, norms_of
from cutaway.model.transformer import Transformer
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.results import mean_of

FEW = 1000  # examples that splits by source look at
QUADRANTS = ("Q=token, K=token", "Q=token, K=position", "Q=position, K=token", "Q=position, K=position")
Masks = Mapping[str, Bool[Tensor, "batch dest src"]]
Classes = Mapping[str, Bool[Tensor, "batch pos"]]
ByHead = dict[str, dict[str, Any]]


def readable(cfg: HookedTransformerConfig) -> bool:
    """Whether a network has the shape that is read here: two causal attention-only layers, positions embedded, one vocabulary."""
    shape = (cfg.n_layers, cfg.attn_only, cfg.positional_embedding_type, cfg.attention_dir, cfg.d_vocab_out == cfg.d_vocab)
    return shape == (2, True, "standard", "causal", True) and bool(norms_of(cfg))


def sites(model: Transformer) -> set[str]:
    """The sites that `TokenRoles` reads."""
    queries = {f"blocks.{layer}.attn.hook_{part}" for layer in range(model.cfg.n_layers) for part in "qkv"}
    return queries.union(*(split_of.sites(model, layer) for layer in range(model.cfg.n_layers)), norms_of(model.cfg).values())


@dataclass(frozen=True, eq=False)
class TokenRoles:
    """A run on `tokens` whose cache holds `sites(model)`; `vocab` names all tokens, `content` are those that inputs vary in."""

    cache: ActivationCache
    tokens: Tokens
    content: Sequence[int]
    vocab: Sequence[str]

    @property
    def model(self) -> Transformer:
        model: Transformer = self.cache.model
        return model

    @cached_property
    def few(self) -> ActivationCache:
        """The run on the first examples."""
        return self.cache if len(self.tokens) <= FEW else self.cache.apply_slice_to_batch_dim(slice(0, FEW))

    @cached_property
    def heads(self) -> tuple[list[str], list[str]]:
        """Of the first layer and of the second."""
        return head_names(self.model.cfg, [0]), head_names(self.model.cfg, [1])

    @cached_property
    def scales(self) -> NormScales:
        return norm_scales(self.cache)

    @cached_property
    def detectors(self) -> token_heads.DuplicateDetectors:
        return token_heads.duplicate_detectors(self.model, scales=self.scales, tokens=list(self.content), vocab=self.vocab)

    @cached_property
    def responsible(self) -> token_heads.ResponsibleHeads:
        return token_heads.responsible_heads(self.model, scales=self.scales, tokens=list(self.content), vocab=self.vocab)

    @cached_property
    def token(self) -> dict[str, int]:
        """Word → content token."""
        return {self.vocab[token]: token for token in self.content}

    @property
    def others(self) -> list[int]:
        """Tokens that are no content, such as one that says "none"."""
        return [token for token in range(len(self.vocab)) if token not in set(self.content)]

    @cached_property
    def repeated(self) -> Bool[Tensor, "batch pos"]:
        """Where the token has occurred before."""
        return (self.tokens[:, :, None] == self.tokens[:, None, :]).tril(-1).any(-1)

    def pattern(self, head: str, cache: ActivationCache | None = None) -> Float[Tensor, "batch dest src"]:
        layer, one = map(int, head.split("."))
        kept: Tensor = (cache or self.cache)["pattern", layer]
        return kept[:, one]

    def _data(self, *steps: str) -> Float[Tensor, "row column"]:
        return weight_circuits.path_circuit(self.model, " → ".join(steps), scales=self.scales, vocab=self.vocab).data

    # Scores of the first layer.

    def quadrants(self) -> tuple[ByHead, dict[str, float]]:
        """Mean size of each head's scores between tokens and positions, from weights; and how position 1 scores itself."""
        sizes, first, cut = {}, {}, len(self.vocab)
        whole = {"query": "embed+pos", "key": "embed+pos", "scales": self.scales, "vocab": self.vocab}
        for head in self.heads[0]:
            data = weight_circuits.qk_circuit(self.model, head, **whole).data.clone()  # type: ignore[arg-type]
            seen = torch.ones_like(data[cut:, cut:], dtype=torch.bool).tril()  # later positions are never seen
            quarters = (data[:cut, :cut], data[:cut, cut:], data[cut:, :cut], data[cut:, cut:][seen])
            sizes[head] = dict(zip(QUADRANTS, (mean_of(part.abs()) for part in quarters), strict=True))
            first[head] = float(data[cut + 1, cut + 1]) if len(seen) > 1 else math.nan
        return sizes, first

    def pathways(self) -> dict[str, ByHead]:
        """What the scores of a run are made of, by (query, key): shares, and sizes at each position but the first."""
        found = score_pathways.pathways(self.few, layer=0)
        share, mean = found.share(), found.values.mean("batch")
        name = {pair: pair.replace("pos_embed", "position").replace("embed", "token") for pair in mean.names("pair")}
        heads = self.heads[0]
        return {
            "share": {head: {name[pair]: share.sel(pair=pair, head=head).item() for pair in name} for head in heads},
            "by_position": {
                head: {name[pair]: [None, *mean.sel(pair=pair, head=head).data[1:].tolist()] for pair in name} for head in heads
            },
        }

    # Scores of the second layer.

    def key_scores(self) -> dict[str, ByHead | dict[str, float]]:
        """Scores of mean queries with what keys hold of tokens and of positions, directly and by way of earlier heads."""
        early, late = self.heads
        by: dict[str, dict[str, dict[str, Tensor]]] = {"embed": {}, "pos": {}}
        for start, of_head in by.items():
            for head in late:
                keys = {"direct": start, **{via: f"{start} → {via}" for via in early}}
                of_head[head] = {
                    via: weight_circuits.key_scores(self.cache, head, key=key, scales=self.scales, vocab=self.vocab).data
                    for via, key in keys.items()
                }
        own, other, shifted = {}, {}, {}
        for head, words in self.responsible.tokens_of.items():
            own_tokens = [self.token[word] for word in words]
            rest = [token for token in self.content if token not in own_tokens]
            parts = {via: data[1:] for via, data in by["embed"][head].items()}
            own[head], other[head] = mean_of(parts["direct"][:, own_tokens]), mean_of(parts["direct"][:, rest])
            ahead = [parts[via][:, self.token[word]].mean() - parts[via][:, rest].mean()
                     for word in words for via in self.detectors.heads("duplicate", word)]  # fmt: skip
            shifted[head] = mean_of(torch.tensor(ahead))
        places = {head: {via: data.tril() for via, data in parts.items()} for head, parts in by["pos"].items()}
        return {
            "responsible_letters": own, "other_letters": other, "responsible_after_duplicate_detector": shifted,
            "size_by_embedding": {h: {v: mean_of(x[1:].abs()) for v, x in parts.items()} for h, parts in by["embed"].items()},
            "size_by_position": {h: {v: mean_of(x.abs(), torch.ones_like(x, dtype=torch.bool).tril()) for v, x in parts.items()}
                                 for h, parts in places.items()},
            "slope_by_position": {h: {v: _slope(x) for v, x in parts.items()} for h, parts in places.items()},
        }  # fmt: skip

    # What is written to the logits.

    def first_outputs(self) -> dict[str, dict[str, Any]]:
        """What a head of the first layer does to the logit of the token that it looks at, and which it raises well."""
        own = {head: self._data("embed", head, "logits").diagonal()[list(self.content)] for head in self.heads[0]}
        half = max(float(values.max()) for values in own.values()) / 2
        return {
            "diagonal": {head: dict(zip(self.token, values.tolist(), strict=True)) for head, values in own.items()},
            "raised": {head: [w for w, x in zip(self.token, values.tolist(), strict=True) if x > half]
                       for head, values in own.items()},
        }  # fmt: skip

    def second_outputs(self) -> dict[str, Any]:
        """What heads of the second layer do to the logit of a token that they move, by way of its detectors or of others."""
        answer = self.responsible
        found: dict[str, list[float]] = {
            name: [] for name in ("duplicate_responsible", "anti_duplicate_responsible", "anti_duplicate_other")
        }
        for word, own in answer.head_of.items():
            for head in self.heads[1]:
                by = answer.values.sel(head=head, token=word)
                for kind in ("duplicate", "anti_duplicate"):
                    part = found.get(f"{kind}_{'responsible' if head == own else 'other'}")
                    if part is not None:
                        part += [by.sel(via=via).item() for via in self.detectors.heads(kind, word)]
        means = {name: mean_of(torch.tensor(values)) for name, values in found.items()}
        return {"strength": answer.strength.as_dict(), "diagonals": answer.values.as_dict(), "own_logit": means}

    def full_circuits(self) -> tuple[dict[str, dict[str, Any]], ByHead]:
        """Each token by way of its own detectors and heads: its own logit, other content's, that of other tokens."""
        options = {"scales": self.scales, "vocab": self.vocab}
        circuits = token_heads.full_circuits(self.model, self.detectors, self.responsible, **options)  # type: ignore[arg-type]
        facts, through, content = {}, {}, list(self.content)
        for name, circuit in circuits.items():
            kind = "duplicate" if name == "duplicate" else "anti_duplicate"
            there = [n for n, word in enumerate(self.token) if self.detectors.heads(kind, word)]
            data = circuit.data
            among = data[:, content]
            off = ~torch.eye(len(content), dtype=torch.bool)
            own = {word: float(among[n, n]) for n, word in enumerate(self.token) if n in there}
            facts[name] = {
                "own_logit": own,
                "own_logit_mean": mean_of(torch.tensor(list(own.values()))),
                "other_letters_mean": mean_of(among[there], off[there]),
                "null_mean": mean_of(data[there][:, self.others]),
            }
            through[name] = {"null": mean_of(data[:, self.others]), "other_letters": mean_of(among, off)}
        return facts, through

    # Splits of the run.

    def by_source(self, labels: Tokens, classes: Classes, masks: Masks) -> dict[str, dict[str, dict[str, float]]]:
        """For each class of positions: what the answer's responsible head adds to it, by named sources and by what it moves."""
        source: dict[str, dict[str, list[Tensor]]] = {name: {kind: [] for kind in masks} for name in classes}
        shifted: dict[str, dict[str, list[Tensor]]] = {name: {} for name in classes}
        for head, words in self.responsible.tokens_of.items():
            own_tokens = torch.isin(labels, torch.tensor([self.token[word] for word in words], dtype=labels.dtype))
            split = split_of.logits_by_source(self.few, head, labels.masked_fill(~own_tokens, -1))
            sums = {kind: split_of.summed(split, mask).data.sum(0) for kind, mask in masks.items()}
            parts = dict(zip(split.names("component"), split.data.sum(-1), strict=True))
            for name, where in classes.items():
                for kind in masks:
                    source[name][kind].append(sums[kind][where & own_tokens])
                for part, values in parts.items():
                    shifted[name].setdefault(part, []).append(values[where & own_tokens])
        first, second = ({c: {name: mean_of(torch.cat(x)) for name, x in found.items()} for c, found in by.items()}
                         for by in (source, shifted))  # fmt: skip
        return {name: {"sources": first[name], "values": second[name]} for name in classes}

    def lead_by_source(
        self, labels: Tokens, classes: Classes, absent: Bool[Tensor, "batch pos token"], masks: Masks
    ) -> dict[str, ByHead]:
        """What each head of the second layer adds to the answer's lead over the mean of some tokens, by class and source."""
        among = absent / absent.sum(-1, keepdim=True).clamp(min=1)
        weights = torch.nn.functional.one_hot(labels.clamp(min=0), len(self.vocab)) - among
        sums: dict[str, dict[str, Tensor]] = {kind: {} for kind in masks}
        for head in self.heads[1]:
            split = split_of.logits_by_source(self.few, head, weights)
            for kind, mask in masks.items():
                sums[kind][head] = split_of.summed(split, mask).data.sum(0)
        known = absent.any(-1)
        return {name: {kind: {head: mean_of(one, where & known) for head, one in by.items()} for kind, by in sums.items()}
                for name, where in classes.items()}  # fmt: skip

    def passed_over(self) -> dict[str, Any]:
        """Why responsible heads look at repeats of their tokens rather than at first instances: attention, scores, key parts."""
        tokens, again = self.tokens[:FEW], self.repeated[:FEW]
        seen = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        looks, whole, parts = {}, {}, {}
        for head, words in self.responsible.tokens_of.items():
            pattern, split = self.pattern(head, self.few), _centred(split_of.scores_by_key(self.few, head), seen)
            for word in words:
                here = (tokens == self.token[word])[:, None, :] & seen
                kinds = {"first": here & ~again[:, None, :], "repeat": here & again[:, None, :]}
                first, second = (split_of.over_pairs(split, mask).data for mask in kinds.values())
                looks[word] = {kind: mean_of(pattern, mask) for kind, mask in kinds.items()}
                parts[word] = dict(zip(split.names("component"), (second - first).tolist(), strict=True))
                whole[word] = float((second - first).sum())
        attended = {kind: dict(zip(("letter", "null"), found, strict=True)) for kind, found in self._detected().items()}
        return {"attention": looks, "score_difference": whole, "by_component": parts, "detector_attention": attended}

    def _detected(self) -> dict[str, tuple[float, float]]:
        """Attention of duplicate detectors to the token itself and to the first position: from first instances, from repeats."""
        tokens, again = self.tokens[:FEW], self.repeated[:FEW]
        same = tokens[:, :, None] == tokens[:, None, :]
        found: dict[str, list[tuple[Tensor, Tensor]]] = {"first": [], "repeat": []}
        for word, token in self.token.items():
            for head in self.detectors.heads("duplicate", word):
                pattern = self.pattern(head, self.few)
                here = (tokens == token) & (torch.arange(tokens.shape[1]) > 1)
                for kind, chosen in (("first", here & ~again), ("repeat", here & again)):
                    found[kind].append(((pattern * same).sum(-1)[chosen], pattern[..., 0][chosen]))
        nothing = [(torch.zeros(0), torch.zeros(0))]
        return {kind: tuple(mean_of(torch.cat(x)) for x in zip(*(by or nothing), strict=True)) for kind, by in found.items()}  # type: ignore[misc]

    # Positions as quantities.

    def order(self, logits: Float[Tensor, "batch token"]) -> dict[str, Any]:
        """How precisely the last position knows where a token that occurred once stands: its logit by place, and what carries it.

        The signal is the weight with which a token's anti-duplicate detectors, and then the second layer, carry its place.
        """
        content, length = list(self.content), self.tokens.shape[1]
        here = self.tokens[:, None, :] == torch.tensor(content)[None, :, None]
        once, at = here.sum(-1) == 1, here.int().argmax(-1)
        example, word = once.nonzero(as_tuple=True)
        place, logit = at[once], logits[:, content]
        known = {"position": place.float(), "logit": logit[once], "signal": self._signal()[example, word, place]}
        spread = {name: x.std() if len(x) > 2 else torch.tensor(math.nan) for name, x in known.items()}
        steep = _correlation(known["position"], known["logit"]) * spread["logit"] / spread["position"]
        apart = known["logit"] - known["logit"].mean() - steep * (known["position"] - known["position"].mean())
        both, gaps = once[:, :, None] & once[:, None, :], at[:, None, :] - at[:, :, None]
        ahead = (logit[:, :, None] > logit[:, None, :]).float()
        right = {str(gap): mean_of(ahead, both & (gaps == gap)) for gap in range(1, length - 1)}
        pairs = [("position", "logit"), ("signal", "logit"), ("position", "signal")]
        return {
            "slope": float(steep), "scatter": float(apart.std()) if len(apart) > 2 else math.nan,
            "correlation": {f"{a}_{b}": float(_correlation(known[a], known[b])) for a, b in pairs},
            **{f"{name}_by_position": [None, *(mean_of(known[name], place == n) for n in range(1, length))]
               for name in ("logit", "signal")},
            "order_right_by_distance": {gap: share for gap, share in right.items() if math.isfinite(share)},
        }  # fmt: skip

    def _signal(self) -> Float[Tensor, "batch word src"]:
        last = torch.stack([self.pattern(head)[:, -1] for head in self.heads[1]]).sum(0)
        carried = {head: torch.einsum("bm,bms->bs", last, self.pattern(head)) for head in self.heads[0]}
        nothing = torch.zeros_like(last)
        return torch.stack(
            [sum((carried[head] for head in self.detectors.heads("anti_duplicate", word)), nothing) for word in self.token], 1
        )

    def origins(self) -> dict[str, Float[Tensor, "batch pos d_model"]]:
        """Parts of the second layer's input that come from positions, directly and by way of each head, and all of tokens."""
        written, labels = split_of.outputs_by_component(self.few, 0)
        token, place = written[labels.index("embed")], written[labels.index("pos_embed")]
        return {
            "position, directly": self.few["hook_pos_embed"],
            **{f"position, through {head}": place[n] for n, head in enumerate(self.heads[0])},
            "all of position": self.few["hook_pos_embed"] + place.sum(0),
            "all of tokens": self.few["hook_embed"] + token.sum(0),
        }

    @torch.no_grad()
    def without_origins(self, labels: Int[Tensor, "batch pos"]) -> ByHead:
        """How much the loss rises when a part reaches the second layer's keys (or values) only by its mean over everything."""
        attn, tokens = self.model.blocks[1].attn, self.tokens[:FEW]

        def loss(site: str | None = None, change: Tensor | None = None) -> float:
            hooks = [] if site is None else [(site, lambda x, hook: x + change)]
            logits = self.model.run_with_hooks(tokens, fwd_hooks=hooks)
            return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:FEW].flatten()))

        still, rise = loss(), ByHead()
        for name, part in self.origins().items():
            normed = frozen_norm(self.model, "1.ln1", scale_of(self.few, "blocks.1.ln1.hook_scale"))(part)
            rise[name] = {}
            for which, weights in (("keys", attn.W_K), ("values", attn.W_V)):
                given = torch.einsum("bpm,hme->bphe", normed, weights)
                rise[name][which] = loss(f"blocks.1.attn.hook_{which[0]}", given.mean((0, 1), keepdim=True) - given) - still
        return rise


def _centred(split: split_of.Split, seen: Bool[Tensor, "dest src"]) -> split_of.Split:
    """Scores relative to the mean over the keys that each query sees."""
    mean = (split.data * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    return split_of.Split((split.data - mean) * seen, split.axes, split.labels, split.what, split.unit)


def _slope(scores: Float[Tensor, "dest src"]) -> float:
    """The mean change of a score from one visible key to the next, over queries (position 0 left out)."""
    slopes = []
    for query in range(4, min(scores.shape)):
        x = torch.arange(query, dtype=scores.dtype) - (query - 1) / 2
        slopes.append((scores[query, 1 : query + 1] * x).sum() / x.square().sum())
    return mean_of(torch.stack(slopes)) if slopes else math.nan


def _correlation(a: Float[Tensor, "n"], b: Float[Tensor, "n"]) -> Tensor:
    """Pearson's correlation; NaN where one does not vary or there are fewer than three."""
    if len(a) < 3 or float(a.std()) == 0 or float(b.std()) == 0:
        return torch.tensor(math.nan, dtype=torch.float64)
    return torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1]
