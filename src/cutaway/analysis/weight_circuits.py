"""Circuits: what weights do from any input to any output, as factors that are multiplied only when looked at.

A path is written as it runs: `embed → 0.1 → 1.2 → logits`. It starts at `embed` (a row for each token), `pos` (a
row for each position), `embed+pos` (both, one below the other) or vectors of your own; passes the OV circuits of
heads, layer after layer (`0.0+0.2` is the sum of two, `0.*` of all); and ends at `logits`, at the queries, keys
or values of a head (`1.2.q`), or at `resid`. A QK circuit is two such sides that meet.

LayerNorm is not linear. A circuit divides by the mean of each norm's measured scale, and says how far the scale
spreads; without measured scales it divides by 1. Biases are left out unless asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.analysis.largest import ORDERS, STEP, largest_entries
from cutaway.analysis.scales import NormScales, divisor
from cutaway.analysis.shared import ARROW, Subject, kept, network, run_for, vocabulary
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, ShapeError, UnknownName
from cutaway.model.components import parse_head
from cutaway.model.factored_matrix import FactoredMatrix
from cutaway.model.foreign import part_with
from cutaway.model.frozen_norms import FINAL, frozen_norm, norms_of
from cutaway.model.positions import Stream
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import indices, whole
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result
from cutaway.view import Figure, Panel, small_multiples
from cutaway.view import circuit as draw

SOURCES = ("embed", "pos", "embed+pos")
ENDS = ("logits", "resid")
WHOLE = 2**25  # entries of the largest circuit that is multiplied out


@dataclass(frozen=True)
class Path:
    """A path through the weights: where it starts, which heads of which layers it passes, where it ends."""

    source: str
    steps: tuple[tuple[int, tuple[int, ...]], ...] = ()
    end: str = "resid"

    def __str__(self) -> str:
        steps = ["+".join(f"{layer}.{head}" for head in heads) for layer, heads in self.steps]
        return ARROW.join([self.source, *steps] + ([] if self.end == "resid" else [self.end]))


def parse(text: str | Path, cfg: HookedTransformerConfig) -> Path:
    """The path that a text means, checked against a network.

    Raises:
        UnknownName: a step that is none, or a layer or head that the network does not have.
        ShapeError: a step that does not follow the one before it.
    """
    if isinstance(text, Path):
        return text
    path = spelled(text, cfg.n_heads)
    _check(path, cfg)
    return path


def spelled(text: str, n_heads: int = 1) -> Path:
    """The path that a text means in a network that has it.

    Args:
        n_heads: how many heads `*` stands for.

    Raises:
        UnknownName: a step that is none.
        ShapeError: a step that adds heads of several layers.
    """
    parts = [part.strip() for part in re.split(r"→|->|>", text)]
    source, *rest = parts
    if not source or any(not part for part in rest):
        raise UnknownName(f"the path {text!r} has an empty step; write it as in 'embed → 0.1 → logits'")
    end = "resid"
    if rest and (rest[-1] in ENDS or re.fullmatch(r"\d+\.\d+\.[qkv]", rest[-1])):
        end = rest.pop()
    steps = []
    for part in rest:
        if not re.fullmatch(r"\d+\.(\*|\d+(\+\d+\.\d+)*)", part):
            raise UnknownName(
                f"{part!r} is no step of a path; write heads as '0.1', '0.0+0.2' or '0.*', the start as one of "
                f"{', '.join(SOURCES)}, and the end as 'logits', '1.2.q', '1.2.k', '1.2.v' or 'resid'"
            )
        pairs = [tuple(one.split(".")) for one in part.split("+")]
        layers = {int(layer) for layer, _ in pairs}
        if len(layers) > 1:
            raise ShapeError(f"{part!r} adds heads of different layers; a step adds heads of one layer only")
        heads = range(n_heads) if pairs[0][1] == "*" else [int(head) for _, head in pairs]
        steps.append((layers.pop(), tuple(heads)))
    return Path(source, tuple(steps), end)


def _check(path: Path, cfg: HookedTransformerConfig) -> None:
    before = -1
    passed = [*path.steps]
    if path.end not in ENDS:
        last, head, _ = path.end.split(".")
        passed.append((int(last), (int(head),)))
    for layer, heads in passed:
        if layer >= cfg.n_layers or max(heads) >= cfg.n_heads:
            raise UnknownName(f"{path} passes {layer}.{max(heads)}; the network has {cfg.n_layers} layers of {cfg.n_heads} heads")
        if layer <= before:
            raise ShapeError(f"{path} goes from layer {before} to layer {layer}, which does not follow; layers must rise")
        before = layer


@dataclass(frozen=True, eq=False)
class WeightCircuit(Result):
    """A matrix of rows (inputs, or queries) by columns (outputs, or keys), kept as the factors that it is a product of.

    `spread` says for each norm on the way which scale was put in its place, and the scale's standard deviation.
    """

    name: str
    factors: tuple[Tensor, ...]
    scale: float
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_name: str = "from"
    column_name: str = "to"
    what: str = "circuit"
    unit: str = ""
    spread: Mapping[str, tuple[float, float]] | None = None
    splits: Mapping[str, Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.shape != (len(self.rows), len(self.columns)):
            raise ShapeError(f"{self.name} is {self.shape}, but has {len(self.rows)} and {len(self.columns)} labels")
        whole_ones = (one if one.T.is_contiguous() else one.contiguous() for one in self.factors)  # as files keep them: products
        object.__setattr__(self, "factors", tuple(whole_ones))  # round by how their factors lie in memory

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.factors[0].shape[0], self.factors[-1].shape[1]

    @cached_property
    def matrix(self) -> FactoredMatrix:
        """The product as two factors, which meet in the narrowest place."""
        if len(self.factors) == 1:
            one = self.factors[0]
            return FactoredMatrix(one * self.scale, torch.eye(one.shape[1], dtype=one.dtype, device=one.device))
        widths = [factor.shape[1] for factor in self.factors[:-1]]
        cut = widths.index(min(widths)) + 1
        return FactoredMatrix(_product(self.factors[:cut]) * self.scale, _product(self.factors[cut:]))

    @property
    def data(self) -> Float[Tensor, "row column"]:
        """The matrix multiplied out.

        Raises:
            ShapeError: it would have more than 33 million entries.
        """
        if self.shape[0] * self.shape[1] > WHOLE:
            raise ShapeError(
                f"{self.name} is {self.shape[0]} × {self.shape[1]}, too large to multiply out; ask for .part(rows, columns), "
                ".diagonal() or .top(k), which do not"
            )
        return self.factors[0] * self.scale if len(self.factors) == 1 else self.matrix.AB

    @property
    def values(self) -> Labelled:  # type: ignore[override]
        """The matrix multiplied out, with its labels."""
        labels = {self.row_name: self.rows, self.column_name: self.columns}
        return Labelled(self.data, (self.row_name, self.column_name), labels, self.what, self.unit)

    def part(self, rows: Any = None, columns: Any = None) -> WeightCircuit:
        """Some rows and columns (labels, numbers, or lists of them), as a circuit of their own; all where None."""
        row_ids, column_ids = label_ids(rows, self.rows, "row"), label_ids(columns, self.columns, "column")
        first, last = self.factors[0], self.factors[-1]
        factors = (
            (first[row_ids][:, column_ids],)
            if len(self.factors) == 1
            else (first[row_ids], *self.factors[1:-1], last[:, column_ids])
        )
        return replace(
            self, factors=factors, rows=tuple(self.rows[i] for i in row_ids), columns=tuple(self.columns[i] for i in column_ids),
            splits=None,
        )  # fmt: skip

    def diagonal(self) -> Labelled:
        """What each input does to the output of the same number: a token to its own logit, a query to its own key."""
        count = min(self.shape)
        A, B = self.matrix.pair
        data = torch.einsum("ik,ki->i", A[:count], B[:, :count])
        return Labelled(data, (self.row_name,), {self.row_name: self.rows[:count]}, f"diagonal of {self.what}", self.unit)

    def chunks(self, entries: int = STEP) -> Any:
        """Pairs of row numbers and those rows multiplied out, a few at a time."""
        A, B = self.matrix.pair
        step = max(1, entries // max(1, B.shape[1]))
        for at in range(0, len(A), step):
            yield torch.arange(at, min(at + step, len(A)), device=A.device), A[at : at + step] @ B

    def self_attention(self) -> Labelled:
        """The diagonal after a softmax over each row: how much a token would attend to itself among all tokens."""
        parts = []
        for numbers, rows in self.chunks():
            own = rows.gather(1, numbers[:, None].clamp(max=self.shape[1] - 1))[:, 0]
            parts.append((own - rows.logsumexp(1)).exp())
        return Labelled(torch.cat(parts), (self.row_name,), {self.row_name: self.rows}, "attention to itself", "probability")

    def top(
        self, k: int = 10, *, by: str = "size", progress: Callable[[float, float], None] | None = None
    ) -> list[tuple[str, str, float]]:
        """The `k` largest entries as (row, column, value), by `size`, `largest` or `smallest`.

        Rows and columns whose norms show that none of their entries can be among them are not multiplied out.

        Args:
            progress: called with how many rows are done, and of how many.
        """
        if by not in ORDERS:
            raise UnknownName(f"top goes by 'size', 'largest' or 'smallest', not {by!r}")
        kept = self._kept.get(by)
        if kept is None or kept[0] < k:
            most = max(k, 400)  # a table, a summary and a figure ask in turn
            kept = self._kept[by] = (most, largest_entries(*self.matrix.pair, most, by, progress))
        return [(self.rows[row], self.columns[column], value) for row, column, value in kept[1][:k]]

    @cached_property
    def _kept(self) -> dict[str, tuple[int, list[tuple[int, int, float]]]]:
        """Order → how many entries were asked for, and the largest entries."""
        return {}

    def norm(self) -> float:
        """The Frobenius norm."""
        return float(self.matrix.norm())

    def eigenvalues(self) -> Tensor:
        """The eigenvalues, but for zeros, of a circuit that is square."""
        return self.matrix.eigenvalues

    def copying_score(self) -> float:
        """Σ Re λ / Σ |λ| over the eigenvalues λ: 1 where inputs raise themselves, −1 where they lower themselves.

        Source: Elhage et al. 2021, "A mathematical framework for transformer circuits", summarising OV matrices.
        """
        found = self.eigenvalues()
        return float(found.real.sum() / found.abs().sum())

    def readings(self, count: int = 3, k: int = 8) -> list[dict[str, Any]]:
        """The largest singular directions: which inputs they read most, and what those do to outputs.

        Each has `value` (singular value), `share` (of the squared norm), and `rows` and `columns`: the `k` entries of
        each singular vector that are largest in size, as (label, weight). The two signs belong together.
        """
        U, S, V = self.matrix.svd()
        share = S.square() / S.square().sum()

        def largest(vector: Tensor, labels: Sequence[str]) -> list[tuple[str, float]]:
            at = vector.abs().topk(min(k, len(vector))).indices.tolist()
            return [(labels[i], float(vector[i])) for i in at]

        return [
            {
                "value": float(S[i]),
                "share": float(share[i]),
                "rows": largest(U[:, i], self.rows),
                "columns": largest(V[:, i], self.columns),
            }
            for i in range(min(count, len(S)))
        ]

    def to_frame(self) -> Any:
        """All entries, one per row; of a circuit too large for that, the 10,000 largest in size."""
        if self.shape[0] * self.shape[1] <= WHOLE:
            return self.values.to_frame()
        import pandas as pd

        return pd.DataFrame(self.top(10_000), columns=[self.row_name, self.column_name, "value"])

    def to_json(self) -> dict[str, Any]:
        """Name, labels and entries; of a circuit of more than 100,000 entries the 1,000 largest in size."""
        fields: dict[str, Any] = {"name": self.name, "what": self.what, "unit": self.unit, "shape": list(self.shape)}
        fields["norm_scales"] = {norm: {"mean": mean, "std": std} for norm, (mean, std) in (self.spread or {}).items()}
        if self.shape[0] * self.shape[1] > 100_000:
            return fields | {"top": [list(entry) for entry in self.top(1000)]}
        return fields | {"rows": list(self.rows), "columns": list(self.columns), "values": self.data.tolist()}

    def figure(self, title: str = "") -> Figure:
        """The matrix as a heat map; a large one by the rows and columns of its largest entries."""
        shown = self
        if max(self.shape) > 512:
            entries = self.top(400)
            rows = list(dict.fromkeys(row for row, _, _ in entries))[:64]
            columns = list(dict.fromkeys(column for row, column, _ in entries))[:64]
            shown = self.part(rows, columns)
        return draw(
            shown.data, shown.columns, shown.rows, x_name=self.column_name, y_name=self.row_name,
            value_name=self.unit or self.what, title=title or self.name, splits=shown.splits,
        )  # fmt: skip

    def summary(self) -> str:
        """Its largest entries, and how far the norm scales spread that it takes for constants."""
        lines = [f"{self.name}: {self.what}{f' ({self.unit})' if self.unit else ''}, {self.shape[0]} × {self.shape[1]}"]
        lines += [f"{row!r} → {column!r}: {value:.3g}" for row, column, value in self.top(6)]
        for norm, (mean, std) in (self.spread or {}).items():
            lines.append(f"scale of {norm} taken as {mean:.3g}; it spreads by ±{std:.2g}")
        return "\n".join(lines)


def _product(factors: Sequence[Tensor]) -> Tensor:
    """The product of matrices, in the cheapest order."""
    factors = [factor.float() if factor.dtype in (torch.float16, torch.bfloat16) else factor for factor in factors]
    return factors[0] if len(factors) == 1 else torch.linalg.multi_dot(list(factors))


def label_ids(which: Any, labels: Sequence[str], kind: str) -> list[int]:
    """The numbers of some labels, given as labels or numbers, one or several; of all where None.

    Raises:
        UnknownName: there is no such label.
        ShapeError: a number is outside, or one comes twice.
    """
    if which is None:
        return list(range(len(labels)))
    if isinstance(which, Tensor):
        which = which.tolist()
    many = [which] if isinstance(which, str | int | float) else list(which)
    numbers = (
        {label: number for number, label in reversed(list(enumerate(labels)))}
        if any(isinstance(one, str) for one in many)
        else {}
    )
    missing = [one for one in many if isinstance(one, str) and one not in numbers]
    if missing:
        raise UnknownName(f"there is no {kind} {missing[0]!r}; there are {len(labels)}, such as {', '.join(labels[:5])}")
    return indices([numbers[one] if isinstance(one, str) else one for one in many], len(labels), kind)


# Where paths start.


def source(
    model: Transformer, name: str, *, vocab: Sequence[str] | None = None
) -> tuple[Float[Tensor, "row d_model"], list[str], list[int]]:
    """The vectors that a path starts from, their labels, and where tokens end and positions begin.

    Raises:
        UnknownName: no such start.
        ConfigError: the network has no position embeddings.
    """
    if name not in SOURCES:
        raise UnknownName(f"a path cannot start at {name!r}; there are {', '.join(SOURCES)}, or pass vectors of your own")
    parts, labels, splits = [], [], []
    if "embed" in name:
        table = model.embed.W_E.detach()
        parts.append(model.embed.ln(table).detach() if model.cfg.post_embedding_ln else table)
        labels += vocabulary(model, vocab)
    if "pos" in name:
        if not model.has_positions:
            raise ConfigError(
                f"this network has no position embeddings ({model.cfg.positional_embedding_type}), so no path starts there"
            )
        splits = [len(labels)] if labels else []
        parts.append(model.W_pos.detach())
        labels += [f"[{position}]" for position in range(model.cfg.n_ctx)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)), labels, splits


class Weights:
    """Collects the factors of a path, and the scales on the way."""

    def __init__(self, model: Transformer, scales: NormScales | None) -> None:
        self.model, self.scales = model, scales
        self.factors: list[Tensor] = []
        self.scale = 1.0
        self.spread: dict[str, tuple[float, float]] = {}

    def through(self, norm: str) -> None:
        """Pass a norm, its scale taken as a constant."""
        if norm not in norms_of(self.model.cfg):
            return
        self.factors[-1] = frozen_norm(self.model, norm)(self.factors[-1]).detach()
        mean = divisor(self.model, self.scales, norm)
        self.scale /= mean
        if self.scales is not None:
            self.spread[norm] = (mean, self.scales.spread_of(norm))

    def head(self, layer: int, heads: Sequence[int]) -> None:
        """Pass the OV circuit of some heads of a layer, added up."""
        attn = part_with(self.model, layer, "attn", "W_V", "W_O")
        self.through(f"{layer}.ln1")
        index = list(heads)
        values, output = attn.W_V.detach()[index], attn.W_O.detach()[index]
        self.factors += [values.transpose(0, 1).flatten(1), output.flatten(0, 1)]
        self.through(f"{layer}.ln1_post")

    def read(self, layer: int, head: int, which: str, *, normed: bool = True) -> None:
        """End at the queries, keys or values of a head."""
        name = f"W_{which.upper()}"
        weights: Tensor = getattr(part_with(self.model, layer, "attn", name), name)
        if normed:
            self.through(f"{layer}.ln1")
        self.factors.append(weights.detach()[head])


@with_provenance
def path_circuit(
    model: Transformer,
    route: str | Path,
    *,
    scales: NormScales | None = None,
    vectors: Float[Tensor, "row d_model"] | None = None,
    labels: Sequence[str] | None = None,
    vocab: Sequence[str] | None = None,
) -> WeightCircuit:
    """The circuit of one path: `embed → 0.1 → 1.2 → logits`, `pos → 0.0+0.2 → 1.1.k`, …

    Args:
        route: the path, as the head of this file says.
        scales: measured norm scales, from `norm_scales`; 1 without.
        vectors: where the path starts instead of the source that it names, `[row, d_model]`, called `labels`.
        vocab: what the tokens are called, where the network has no tokenizer.

    Raises:
        UnknownName, ShapeError: the path is none, or not one of this network.
    """
    route = parse(route, model.cfg)
    if vectors is None:
        start, rows, splits = source(model, route.source, vocab=vocab)
    else:
        start, splits = vectors.detach(), []
        rows = list(labels) if labels is not None else [f"{route.source} {row}" for row in range(len(start))]
    so_far = Weights(model, scales)
    so_far.factors.append(start)
    shortformer = model.cfg.positional_embedding_type == "shortformer" and vectors is None and "pos" in route.source
    if shortformer and (route.source != "pos" or route.steps or not route.end.endswith((".q", ".k"))):
        raise ConfigError("positions of the shortformer kind reach queries and keys only: write 'pos → 0.1.q' or 'pos → 0.1.k'")
    for layer, heads in route.steps:
        so_far.head(layer, heads)
    if route.end == "logits":
        so_far.through(FINAL)
        so_far.factors.append(model.unembed.W_U.detach())
        columns, unit = vocabulary(model, vocab, model.cfg.d_vocab_out), "logits"
    elif route.end == "resid":
        columns, unit = [f"d{i}" for i in range(model.cfg.d_model)], ""
    else:
        last, head, which = route.end.split(".")
        so_far.read(int(last), int(head), which, normed=not shortformer)
        columns, unit = [f"{which}{i}" for i in range(model.cfg.d_head)], ""
    kind = {"embed": "input token", "pos": "position", "embed+pos": "input"}.get(route.source, "input")
    return WeightCircuit(
        str(route), tuple(so_far.factors), so_far.scale, tuple(rows), tuple(columns), kind,
        "output logit" if route.end == "logits" else "direction", "effect on logits" if unit else "effect on the stream",
        unit, so_far.spread, {"y": splits} if splits else None,
    )  # fmt: skip


@with_provenance
def ov_circuit(
    model: Transformer, head: str, *, start: str = "embed", scales: NormScales | None = None, vocab: Sequence[str] | None = None
) -> WeightCircuit:
    """What a head does to the logits when it attends to a token (or a position): `start → head → logits`."""
    return path_circuit(model, f"{start}{ARROW}{head}{ARROW}logits", scales=scales, vocab=vocab)


@with_provenance
def qk_circuit(
    model: Transformer,
    head: str,
    *,
    query: str = "embed",
    key: str = "embed",
    queries: Float[Tensor, "row d_head"] | None = None,
    query_labels: Sequence[str] | None = None,
    scales: NormScales | None = None,
    biases: bool = False,
    distance: int = 0,
    vocab: Sequence[str] | None = None,
) -> WeightCircuit:
    """Attention scores of a head, rows queries and columns keys, divided by the attention scale as the network does.

    Args:
        head: `1.2`.
        query, key: where each side starts, and the heads that it passes: `embed`, `pos`, `embed+pos`, `embed → 0.1`.
        queries: given queries `[row, d_head]`, such as `mean_queries`, instead of the side `query`.
        biases: add the biases of queries and keys (those of keys change no pattern).
        distance: with rotary positions, how far the key is behind the query.

    Raises:
        ConfigError: the network normalises its queries and keys, so that no product of weights gives scores.
    """
    layer, one = parse_head(head, model.cfg)
    attn = part_with(model, layer, "attn", "W_Q", "W_K", "b_Q", "b_K", "attn_scale", "rotary")
    if model.cfg.use_qk_norm:
        raise ConfigError(
            "this network normalises queries and keys, so scores are no product of weights; measure patterns instead"
        )
    key_side = path_circuit(model, f"{key}{ARROW}{head}.k", scales=scales, vocab=vocab)
    spread = dict(key_side.spread or {})
    scale = key_side.scale / attn.attn_scale
    if queries is None:
        query_side = path_circuit(model, f"{query}{ARROW}{head}.q", scales=scales, vocab=vocab)
        left, rows, row_name, splits = query_side.factors, query_side.rows, query_side.row_name, query_side.splits
        scale *= query_side.scale
        spread |= query_side.spread or {}
    else:
        if queries.ndim != 2 or queries.shape[1] != model.cfg.d_head:
            raise ShapeError(
                f"queries are [row, {model.cfg.d_head}], not {tuple(queries.shape)}; mean_queries(cache, {head!r}) gives some"
            )
        names = query_labels if query_labels is not None else [str(row) for row in range(len(queries))]
        left, rows, row_name, splits = (queries.detach(),), tuple(names), "position", None
    right = key_side.factors
    if biases:
        own = key_side.scale
        right = (_product(right) * own + attn.b_K.detach()[one],)
        scale /= own
        if queries is None:
            left = (_product(left) * query_side.scale + attn.b_Q.detach()[one],)
            scale /= query_side.scale
    rotations = (_rotation(model, layer, whole(distance, "distance")),) if attn.rotary is not None else ()
    factors = (*left, *rotations, *(factor.T for factor in reversed(right)))
    both = {axis: part for axis, part in {"y": (splits or {}).get("y"), "x": (key_side.splits or {}).get("y")}.items() if part}
    return WeightCircuit(
        f"QK {head}: {'given queries' if queries is not None else query} × {key}", factors, scale, rows, key_side.rows,
        f"query {row_name}", f"key {key_side.row_name}", "attention score", "", spread, both or None,
    )  # fmt: skip


def _rotation(model: Transformer, layer: int, distance: int) -> Float[Tensor, "d_head d_head"]:
    """The matrix between a query and a key that stands `distance` positions before it."""
    attn = part_with(model, layer, "attn", "rotary", "W_Q")
    rotary, like = attn.rotary, attn.W_Q
    basis = torch.eye(model.cfg.d_head, dtype=like.dtype, device=like.device)[None, None]
    far, near = (rotary.rotate(basis, Stream(at))[0, 0] for at in (abs(distance), 0))
    rotation: Tensor = far @ near.T
    return rotation if distance >= 0 else rotation.T


def mean_queries(subject: Subject, head: str, tokens: Any = None) -> Float[Tensor, "pos d_head"]:
    """The mean query of a head at each position over the examples, before any rotation."""
    model = network(subject)
    layer, one = parse_head(head, model.cfg)
    site = f"blocks.{layer}.attn.hook_q"
    cache = run_for(subject, tokens, [site], "mean_queries")
    return kept(cache, site)[:, :, one].mean(0)


def key_scores(
    subject: Subject,
    head: str,
    *,
    key: str = "embed",
    tokens: Any = None,
    scales: NormScales | None = None,
    vocab: Sequence[str] | None = None,
) -> WeightCircuit:
    """Scores of a head's mean queries (rows: positions) with what each key component gives its keys (columns).

    Args:
        key: `embed`, `pos`, or those by way of earlier heads: `embed → 0.1`.
    """
    queries = mean_queries(subject, head, tokens)
    found = qk_circuit(network(subject), head, key=key, queries=queries, scales=scales, vocab=vocab)
    return replace(found, name=f"QK {head}: mean queries × {key}")


def circuit_by_row(
    model: Transformer, routes: Mapping[str, str | Path], *, scales: NormScales | None = None, vocab: Sequence[str] | None = None
) -> WeightCircuit:
    """A circuit whose every row (token) takes a path of its own: token → path. All paths have the same start and end.

    A token whose path is empty (`""`) has a row of zeros.
    """
    if not any(routes.values()):
        raise ShapeError("by_row needs a path for at least one token")
    parts: dict[str, WeightCircuit] = {}
    for route in {str(route) for route in routes.values() if route}:
        parts[route] = path_circuit(model, route, scales=scales, vocab=vocab)
    like = next(iter(parts.values()))
    zeros = like.factors[0].new_zeros(like.shape[1])
    data = torch.stack([parts[str(route)].part(token).data[0] if route else zeros for token, route in routes.items()])
    spread = {norm: found for part in parts.values() for norm, found in (part.spread or {}).items()}
    return replace(like, name="a path for each token", factors=(data,), scale=1.0, rows=tuple(routes), spread=spread, splits=None)


def panels(circuits: Mapping[str, WeightCircuit], title: str = "", *, range: Sequence[float] | None = None) -> Figure:
    """Several circuits side by side, in one colour scale."""
    first = next(iter(circuits.values()))
    made = [Panel(name, one.data, one.columns, one.rows) for name, one in circuits.items()]
    return small_multiples(
        made, x_name=first.column_name, y_name=first.row_name, value_name=first.unit or first.what, title=title, range=range,
    )  # fmt: skip
