"""Composition: how much of what one head writes another reads, and which heads copy, from weights alone.

The score of a pair is the Frobenius norm of the product of their circuits over the product of their norms. Two heads that
have nothing to do with each other have a score well above zero, all the more in a trained network, whose heads share a few
large directions; that baseline is drawn (`_Flips`) and shown beside every score.

Source: Elhage et al. 2021, "A mathematical framework for transformer circuits", sections on composition and copying.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.analysis.shared import head_names
from cutaway.errors import ShapeError, UnknownName
from cutaway.model.components import Component, head, norm_after, norm_before
from cutaway.model.factored_matrix import FactoredMatrix, composition_scores
from cutaway.model.foreign import part_with
from cutaway.model.frozen_norms import FINAL, frozen_norm
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options
from cutaway.runs.bars import watched
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result
from cutaway.view import Figure, Panel, bar_chart, heat_map, small_multiples

DRAWS_AT_ONCE = 32
MODES = {"Q": "queries", "K": "keys", "V": "values"}


@dataclass(frozen=True, eq=False)
class Composition(Result):
    """How much each earlier head feeds queries, keys or values of each later one, `[mode, earlier, later]`.

    Pairs that do not follow each other hold NaN. `baseline` and `spread` are mean and standard deviation of the
    score of two of its heads that have nothing to do with each other, by mode.
    """

    values: Labelled
    baseline: Labelled
    spread: Labelled

    @property
    def excess(self) -> Labelled:
        """The score above the baseline, in the baseline's standard deviations."""
        data = (self.values.data - self.baseline.data[:, None, None]) / self.spread.data[:, None, None]
        return Labelled(data, self.values.axes, self.values.labels, "score above unrelated heads", "standard deviations")

    def top(self, k: int = 10, mode: str | None = None) -> list[tuple[str, str, str, float]]:
        """The pairs with the highest scores: (mode, earlier head, later head, score)."""
        names = self.values.names("mode")
        kept = self.values.data if mode is None else self.values.data[[names.index(mode)]]
        modes = names if mode is None else (mode,)
        heads = self.values.names("earlier")
        flat = kept.nan_to_num(-1).flatten()
        count = min(k, int((flat >= 0).sum()))
        out = []
        for index in flat.topk(count).indices.tolist():
            rest, later = divmod(index, len(heads))
            kind, earlier = divmod(rest, len(heads))
            out.append((modes[kind], heads[earlier], heads[later], float(flat[index])))
        return out

    def figure(self) -> Figure:
        """Earlier × later heads, one panel for each mode; the colour is the score above the baseline."""
        above = self.values.data - self.baseline.data[:, None, None]
        names = self.values.names("earlier")
        panels = [
            Panel(f"{mode}-composition", part, names, names) for mode, part in zip(self.values.names("mode"), above, strict=True)
        ]
        return small_multiples(
            panels,
            x_name="later head",
            y_name="earlier head",
            value_name="score above unrelated heads",
            absent="the second head is not later",
            title="Composition of heads",
        )

    def summary(self) -> str:
        """The strongest pairs of each mode, beside the baseline."""
        lines = ["how much of what one head writes another reads"]
        for mode, mean, spread in zip(
            self.values.names("mode"), self.baseline.data.tolist(), self.spread.data.tolist(), strict=True
        ):
            pairs = ", ".join(f"{first} → {second} {score:.3f}" for _, first, second, score in self.top(4, mode))
            lines.append(f"{mode} ({MODES[mode]}; unrelated heads {mean:.3f} ± {spread:.3f}): {pairs}")
        return "\n".join(lines)


def checked_modes(modes: str) -> str:
    """Some of `Q`, `K`, `V`, each once.

    Raises:
        UnknownName: anything else.
    """
    if not modes or set(modes) - set(MODES) or len(set(modes)) < len(modes):
        raise UnknownName(f"composition goes by Q, K or V (or several, as 'QK'), each once, not {modes!r}")
    return modes


@with_provenance
@options(draws=2, seed=0)
def composition(model: Transformer, modes: str = "QKV", *, draws: int = 256, seed: int = 0) -> Composition:
    """Composition scores of all pairs of heads, beside those of unrelated heads.

    Args:
        modes: some of `Q`, `K`, `V`.
        draws: how many pairs the baseline is drawn from.

    Raises:
        UnknownName: a mode that is none.
        ShapeError: fewer than two layers, so that nothing composes.
    """
    checked_modes(modes)
    cfg = model.cfg
    if cfg.n_layers < 2:
        raise ShapeError(f"composition needs two layers, and this network has {cfg.n_layers}")
    W_Q, W_K, W_V, W_O = (weight.detach().flatten(0, 1).float() for weight in (model.W_Q, model.W_K, model.W_V, model.W_O))
    QK, OV = FactoredMatrix(W_Q, W_K.transpose(-2, -1)), FactoredMatrix(W_V, W_O)
    readers = {"Q": QK, "K": QK.T, "V": OV}
    layer = torch.arange(cfg.n_layers).repeat_interleave(cfg.n_heads).to(W_Q.device)
    follows = layer[:, None] < layer[None]
    heads = head_names(cfg)
    scores = [composition_scores(OV, readers[mode]).masked_fill(~follows, torch.nan) for mode in watched("composing", modes)]
    flip = _Flips(torch.cat([W_O.mT, W_Q, W_K, W_V]), seed)
    pairs = follows.nonzero()
    random = [flip.scores(OV, readers[mode], pairs, draws) for mode in watched("unrelated heads", modes)]
    middles, spreads = (torch.stack(parts).to(W_Q.device) for parts in ([x.mean() for x in random], [x.std() for x in random]))
    labels = {"mode": list(modes)}
    return Composition(
        Labelled(
            torch.stack(scores), ("mode", "earlier", "later"), labels | {"earlier": heads, "later": heads}, "composition score"
        ),
        Labelled(middles, ("mode",), labels, "score of unrelated heads"),
        Labelled(spreads, ("mode",), labels, "its standard deviation"),
    )


class _Flips:
    """Pairs of heads that have nothing to do with each other, but are otherwise the network's own.

    In the principal directions of what heads read and write, each direction of an earlier head's output gets a random sign.
    Every head keeps its size, its singular values and how much of it lies along each direction, so that what all heads
    share (a few directions that carry most of the stream) does not count as composition; what only a pair shares does.
    """

    def __init__(self, sides: Float[Tensor, "side d_model d_head"], seed: int):
        scaled = sides / sides.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-30)
        self.directions = torch.linalg.eigh(torch.einsum("smh,snh->mn", scaled, scaled)).eigenvectors
        self.generator = torch.Generator().manual_seed(seed)

    def scores(
        self, writers: FactoredMatrix, readers: FactoredMatrix, pairs: Int[Tensor, "pair two"], draws: int
    ) -> Float[Tensor, "draw"]:
        """Scores of `draws` pairs, drawn from those that follow each other."""
        chosen = pairs[torch.randint(len(pairs), (draws,), generator=self.generator).to(pairs.device)]
        signs = torch.randint(0, 2, (draws, len(self.directions)), generator=self.generator).to(self.directions) * 2 - 1
        parts = []
        for some, sign in zip(chosen.split(DRAWS_AT_ONCE), signs.split(DRAWS_AT_ONCE), strict=True):
            earlier, later = some.unbind(1)
            flipped = (writers.B[earlier] @ self.directions * sign[:, None]) @ self.directions.T
            left, right = FactoredMatrix(writers.A[earlier], flipped), FactoredMatrix(readers.A[later], readers.B[later])
            parts.append(composition_scores(left, right, broadcast_dims=False))
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Copying(Result):
    """How much each head raises the logit of what it attends to, `[head]`, from −1 to 1; `baseline` of random heads."""

    values: Labelled
    baseline: float
    spread: float
    n_heads: int

    def heads(self, threshold: float = 0.5) -> list[str]:
        """The heads that copy more than this, most first."""
        names, order = self.values.names("head"), self.values.data.argsort(descending=True).tolist()
        return [names[i] for i in order if float(self.values.data[i]) > threshold]

    def figure(self) -> Figure:
        """A bar for each head; of a network with many heads a map of layers × heads."""
        names = self.values.names("head")
        if len(names) > 40:
            grid = self.values.data.view(-1, self.n_heads)
            return heat_map(
                grid, x_name="head", y_name="layer", value_name="copying score", title="Which heads copy", range=(-1, 1)
            )
        return bar_chart(names, self.values.data, x_name="head", value_name="copying score", title="Which heads copy")

    def summary(self) -> str:
        """The heads that copy most, and most of the opposite."""
        names, order = self.values.names("head"), self.values.data.argsort(descending=True).tolist()

        def names_of(which: list[int]) -> str:
            return ", ".join(f"{names[i]} {float(self.values.data[i]):+.2f}" for i in which)

        few = max(1, min(5, len(order) // 2))  # so that no head is named twice
        return (
            f"copying scores (Σ Re λ / Σ |λ| of token → token; random heads {self.baseline:+.2f} ± {self.spread:.2f})\n"
            f"copy most: {names_of(order[:few])}\ncopy least: {names_of(order[::-1][:few])}"
        )


@with_provenance
@options(draws=2, seed=0)
@torch.no_grad()
def copying(model: Transformer, *, draws: int = 32, seed: int = 0) -> Copying:
    """The eigenvalue copying score of every head's path `embed → head → logits`.

    The eigenvalues of that vocabulary-sized matrix are those of a d_head × d_head one, so it is never built. The
    baseline replaces each head's weights by Gaussian ones between the same embedding and unembedding.

    Raises:
        ShapeError: the network's input and output vocabularies differ in size.
    """
    cfg = model.cfg
    if cfg.d_vocab != cfg.d_vocab_out:
        raise ShapeError(
            f"copying needs one vocabulary, and this network reads {cfg.d_vocab} tokens and answers {cfg.d_vocab_out}"
        )
    E = model.embed.W_E.detach()
    E = (model.embed.ln(E).detach() if cfg.post_embedding_ln else E).float()
    between = model.unembed.W_U.detach().float() @ E  # d_model × d_model: out of the logits, and in as tokens
    scores, random = [], []
    generator = torch.Generator().manual_seed(seed)
    for l in watched("copying", range(cfg.n_layers)):
        attn = part_with(model, l, "attn", "W_V", "W_O")
        W_V, W_O = attn.W_V.detach().float(), attn.W_O.detach().float()
        scores.append(_copying(model, l, between, W_V, W_O))
        if l == 0:
            shapes = (draws, *W_V.shape[1:]), (draws, *W_O.shape[1:])
            noise = [torch.randn(shape, generator=generator).to(W_V.device) for shape in shapes]
            random.append(_copying(model, l, between, *noise))
    labels = {"head": head_names(cfg)}
    baseline = torch.cat(random) if random else torch.zeros(1)
    values = Labelled(torch.cat(scores), ("head",), labels, "copying score")
    return Copying(values, float(baseline.mean()), float(baseline.std()) if len(baseline) > 1 else 0.0, cfg.n_heads)


def _copying(
    model: Transformer,
    layer: int,
    between: Float[Tensor, "d_model d_model"],
    W_V: Float[Tensor, "some d_model d_head"],
    W_O: Float[Tensor, "some d_head d_model"],
) -> Float[Tensor, "some"]:
    """Σ Re λ / Σ |λ| of embed → head → logits, for each head."""
    after, before = norm_after(model.cfg, head(layer, 0)), norm_before(model.cfg, Component("reads", layer, 0, "v"))
    written = frozen_norm(model, FINAL)(frozen_norm(model, after)(W_O))
    around = written @ frozen_norm(model, before)(between) @ W_V
    eigenvalues = torch.linalg.eigvals(around)
    return eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1)
