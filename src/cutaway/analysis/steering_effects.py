"""What steering did: the response of a target to strength and layer, beside controls and side effects.

A direction is only interesting if it does more than any other of its length: every response is shown beside
random directions of the same norm and beside vectors made from the same prompts with shuffled labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway import tokens as text
from cutaway.analysis.steering import Steer, SteeringVector, activations, directions, steer, texts_of
from cutaway.errors import NotFinite, ShapeError, TokenError, UnknownName
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import indices, options
from cutaway.prompts import Prompts
from cutaway.runs import metrics
from cutaway.runs.bars import watched
from cutaway.runs.generation import Sampling, generate
from cutaway.runs.intervals import interval_of_mean
from cutaway.runs.metrics import settled
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Means, Result
from cutaway.runs.sweep import Cells, SweepResult, sweep
from cutaway.view import Figure, heat_map, line_chart, small_multiples, steering_response

MakeMetric = Callable[[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]], metrics.Metric]
CONTROLS_AT = ("all", "best")
Vectors = SteeringVector | Mapping[int, SteeringVector]


@dataclass(frozen=True, eq=False)
class DoseResponse(Result):
    """The target at each layer and strength, with the controls.

    Args:
        values: `[layer, strength, batch]`, one number per prompt.
        clean: `[batch]`, without steering.
        random: `[control, layer, strength]`, means over prompts, of random directions of the same norm.
        shuffled: the same, of vectors made with shuffled labels (none for vectors of a single pair).
        strengths: as numbers.
        side_loss, side_kl: `[layer, strength]`, the change of the loss of other text and the KL divergence there (nats).
        sweep: the sweep that all of this was read from, for `records.write`.
        control_sweep: that of the controls, where they were run at the best layer only; then this is the one layer they have.
    """

    values: Labelled
    clean: Labelled
    random: Labelled
    shuffled: Labelled
    strengths: tuple[float, ...]
    side_loss: Labelled | None = None
    side_kl: Labelled | None = None
    sweep: SweepResult | None = field(default=None, repr=False)
    control_sweep: SweepResult | None = field(default=None, repr=False)

    @property
    def sweeps(self) -> dict[str, SweepResult]:
        """Both sweeps by name, where there are two, for `records.write`."""
        two = self.sweep is not None and self.control_sweep is not None
        return {"response": self.sweep, "controls": self.control_sweep} if two else {}  # type: ignore[dict-item]

    def means(self) -> Means:
        """Means over prompts, with intervals."""
        return self.values.means("batch")

    @property
    def best(self) -> str:
        """The layer whose response spans most between the lowest and the highest strength, up or down."""
        return self.values.names("layer")[int(self._span(self.values.mean("batch").data).argmax())]

    def monotone(self, layer: str | None = None) -> bool:
        """Whether the mean response rises with every step of strength at a layer (the best one), or falls with every step."""
        return bool(self._direction(layer or self.best))

    def _direction(self, layer: str) -> str:
        steps = self._by_strength(self.values.sel(layer=layer).mean("batch").data).diff()
        return "rises" if bool((steps > 0).all()) else "falls" if bool((steps < 0).all()) else ""

    def _by_strength(self, data: Tensor) -> Tensor:
        """The last axis, strengths, from the lowest to the highest, in whatever order they were asked for."""
        return data[..., torch.tensor(self.strengths).argsort()]

    def _span(self, data: Tensor) -> Tensor:
        ordered = self._by_strength(data)
        return (ordered[..., -1] - ordered[..., 0]).abs()

    def beaten(self, layer: str | None = None, controls: str = "random") -> tuple[int, int]:
        """How many of the controls ("random" or "shuffled") span less than the vector at a layer, and how many there are."""
        at = layer or self.best
        own = self.values.sel(layer=at).mean("batch").data
        others = (self.random if controls == "random" else self.shuffled).sel(layer=at).data
        span = self._span(others)
        return int((span < self._span(own)).sum()), len(span)

    def summary(self) -> str:
        at, unit = self.best, f" {self.values.unit}" if self.values.unit else ""
        curve = self.values.sel(layer=at).mean("batch").data
        beaten = [
            f"{self.beaten(at, kind)[0]} of {len(controls.data)} {words}"
            for kind, controls, words in (
                ("random", self.random, "random directions of the same norm"),
                ("shuffled", self.shuffled, "vectors of shuffled labels"),
            )
            if len(controls.data)
        ]
        way = self._direction(at)
        rises = f"{way} at every step" if way else "neither rises nor falls at every step"
        lines = [
            f"{self.values.what}: {float(self.clean.data.mean()):.3g}{unit} unsteered. Layer {at} responds most: "
            + ", ".join(f"{value:.3g} at {strength:g}" for strength, value in zip(self.strengths, curve.tolist(), strict=True)),
            f"The response {rises}" + (f", and spans more than {' and '.join(beaten)}." if beaten else "."),
        ]
        if self.side_loss is not None and self.side_kl is not None:
            loss, kl = (one.sel(layer=at).data for one in (self.side_loss, self.side_kl))
            lines.append(
                f"On other text, strength {self.strengths[-1]:g} changes the loss by {loss[-1]:+.3g} nats (KL {kl[-1]:.3g})."
            )
        if self.control_sweep is not None:
            lines.append(f"Random directions and shuffled labels were run at layer {at} only.")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Response curves of each layer, with intervals; the best layer's controls in grey words beside them."""
        low, high = interval_of_mean(self.values.data.movedim(-1, 0))
        names = [f"layer {name}" for name in self.values.names("layer")]
        mean = self.values.mean("batch").data
        series: dict[str, Any] = dict(zip(names, mean, strict=True))
        bounds: dict[str, Any] = {name: torch.stack([low[i], high[i]]) for i, name in enumerate(names)}
        for label, controls in (("random directions", self.random), ("shuffled labels", self.shuffled)):
            if controls.data.shape[0]:
                data = controls.sel(layer=self.best).data
                name = f"{label}, layer {self.best}"
                series[name] = data.mean(0)
                bounds[name] = torch.stack([data.amin(0), data.amax(0)])
        quantity = f"{self.values.what} ({self.values.unit})" if self.values.unit else self.values.what
        return steering_response(
            list(self.strengths), series, intervals=bounds, x_name="strength", y_name=quantity,
            references={"unsteered": float(self.clean.data.mean())}, title=f"{quantity} against strength",
        )  # fmt: skip


def steering_target(answers: Any, wrong: Any = None) -> MakeMetric:
    """The log-probability of an answer after each prompt, or its logit difference to a wrong one: for `response`."""

    def make(tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]) -> metrics.Metric:
        last = mask.sum(1) - 1
        if wrong is None:
            return metrics.log_probability(answers, last)
        return metrics.logit_difference(answers, wrong, last)

    return make


def text_loss(tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]) -> metrics.Metric:
    """The next-token loss of the prompts themselves (nats): for `response`."""
    return metrics.loss(tokens, mask=mask.bool())


@with_provenance
@options(random=0, shuffled=0, seed=0)
def dose_response(
    model: Transformer,
    vectors: Vectors,
    prompts: Sequence[str] | Prompts,
    metric: Any,
    strengths: Sequence[float | int],
    *,
    side_text: Sequence[str] = (),
    random: int = 20,
    shuffled: int = 5,
    controls_at: str = "all",
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> DoseResponse:
    """The response of a target to a vector, or to one per layer, at each strength, with controls and side effects.

    Args:
        prompts: texts, or `Prompts`.
        metric: makes the metric for the prompts' tokens and mask: `steering_target(…)`, `text_loss`, or your own; or a metric,
            such as `metrics.logit_difference(" Mary", " John")`; None: what `Prompts` say themselves.
        side_text: other texts, on which steering should change little.
        random: how many random directions of the same norm.
        shuffled: how many vectors made with shuffled labels, where the vector comes from sets of prompts.
        controls_at: the layers at which controls are run: "all", or "best": that which responds most. They are most of the work.

    Raises:
        TokenError: there are no prompts.
        UnknownName: `controls_at` is something else.
        NotFinite: a strength makes the metric NaN; names the largest.
    """
    chosen = {vectors.layer: vectors} if isinstance(vectors, SteeringVector) else dict(vectors)
    if not chosen or not strengths:
        raise ShapeError("a response needs at least one vector and one strength")
    for vector in chosen.values():
        vector.check(model)
    strengths = [float(one) for one in strengths]
    tokens, mask = _encoded(model, prompts, prepend_bos)
    if controls_at not in CONTROLS_AT:
        raise UnknownName(f"controls_at={controls_at!r} is not known; there are {' and '.join(CONTROLS_AT)}")
    controls = [*_random(chosen, random, seed), *_shuffled(model, chosen, shuffled, seed)]
    measure = settled(metric(tokens, mask) if _makes(metric) else metric, model, prompts)

    def swept(families: Sequence[Mapping[int, SteeringVector]]) -> SweepResult:
        try:
            return sweep(model, tokens, _cells(families, strengths, tokens.shape[1]), measure, mask=mask)
        except NotFinite as error:
            raise NotFinite(f"a strength of {max(strengths, key=abs):g} is too much: {error}") from error

    result = swept([chosen] if controls_at == "best" else [chosen, *controls])
    values = result.values
    words = [f"{one:g}" for one in strengths]
    labels = {"layer": [str(layer) for layer in chosen], "strength": words}
    examples = Labelled(values.data[0], ("layer", "strength", "batch"), labels, values.what, values.unit)
    sides = _side_effects(model, chosen, side_text, strengths, labels, prepend_bos) if side_text else (None, None)
    nothing = Labelled(values.data[:0].mean(-1), ("control", "layer", "strength"), labels, values.what, values.unit)
    measured = DoseResponse(examples, result.clean, nothing, nothing, tuple(strengths), sides[0], sides[1], result)
    means, control_sweep = values.data[1:].mean(-1), None
    if controls_at == "best" and controls:
        labels = {"layer": [measured.best], "strength": words}
        control_sweep = swept([{int(measured.best): one[int(measured.best)]} for one in controls])
        means = control_sweep.values.data.mean(-1)
    kinds = [replace(nothing, data=data, labels=labels) for data in (means[:random], means[random:])]
    return replace(measured, random=kinds[0], shuffled=kinds[1], control_sweep=control_sweep)


def _makes(metric: Any) -> bool:
    """Whether this makes a metric, rather than being one."""
    made = metrics.Metric | metrics.InWords | metrics.OfNextTokens | metrics.CustomMetric
    return metric is not None and not isinstance(metric, made)


def _encoded(model: Transformer, prompts: Sequence[str] | Prompts, prepend_bos: bool | None) -> tuple[Tensor, Tensor]:
    if not len(prompts):
        raise TokenError("there are no prompts; give at least one")
    if isinstance(prompts, Prompts):
        return tuple(one.to(model.W_E.device) for one in prompts.padded())  # type: ignore[return-value]
    bos = model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
    found = text.encode(model.tokenizer, list(prompts), prepend_bos=bos, truncate=False, device=model.W_E.device)
    text.check_length(found[0].shape[1], model.cfg.n_ctx, reload=model.cfg.takes_longer)
    return found


def _cells(families: Sequence[Mapping[int, SteeringVector]], strengths: Sequence[float], length: int) -> Cells:
    """Every family of vectors at every layer and strength, as cells of a sweep over texts of that length.

    Of a vector for the first positions, a shorter text gets the part that it has positions for.
    """
    layers = list(families[0])
    fitting = [
        {layer: replace(one, values=one.values[:length]) if one.front else one for layer, one in family.items()}
        for family in families
    ]
    every = [(family[layer].edit(strength),) for family in fitting for layer in layers for strength in strengths]
    labels = [[str(i) for i in range(len(families))], [str(layer) for layer in layers], [f"{one:g}" for one in strengths]]
    return Cells(tuple(every), ("control", "layer", "strength"), (len(families), len(layers), len(strengths)), labels)


def _random(chosen: Mapping[int, SteeringVector], count: int, seed: int) -> list[dict[int, SteeringVector]]:
    """Random directions; each place keeps the norm that the vector has there."""
    draw = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        family = {}
        for layer, vector in chosen.items():
            noise = torch.randn(vector.values.shape, generator=draw).to(vector.values)
            noise = noise / noise.norm(dim=-1, keepdim=True) * vector.values.norm(dim=-1, keepdim=True)
            family[layer] = replace(vector, values=noise, method="random")
        out.append(family)
    return out


def _shuffled(model: Transformer, chosen: Mapping[int, SteeringVector], count: int, seed: int) -> list[dict[int, SteeringVector]]:
    """Vectors made from the same prompts by the same method, after mixing which are positive.

    They keep their own lengths: scaled up, a small difference in the mixture would become the whole contrast.
    """
    first = next(iter(chosen.values()))
    if first.front or not count:
        return []
    layers = list(chosen)
    pooled = activations(model, [*first.positive, *first.negative], layers, site=first.site, position=first.position)
    draw = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        order = torch.randperm(pooled.shape[1], generator=draw)
        plus, minus = pooled[:, order[: len(first.positive)]], pooled[:, order[len(first.positive) :]]
        found = directions(plus, minus, first.method)
        family = {}
        for index, (layer, vector) in enumerate(chosen.items()):
            family[layer] = replace(vector, values=found[index][None], method="shuffled")
        out.append(family)
    return out


def _side_effects(
    model: Transformer,
    chosen: Mapping[int, SteeringVector],
    texts: Sequence[str],
    strengths: Sequence[float],
    labels: Mapping[str, Sequence[str]],
    prepend_bos: bool | None,
) -> tuple[Labelled, Labelled]:
    """The change of loss, and the KL divergence from the unsteered run, on other text."""
    tokens, mask = _encoded(model, texts, prepend_bos)
    cells = _cells([chosen], strengths, tokens.shape[1])
    loss = sweep(model, tokens, cells, metrics.loss(tokens, mask=mask.bool()), mask=mask, audit=0)
    kl = sweep(model, tokens, cells, metrics.kl(mask.bool()), mask=mask, audit=0)
    axes = ("layer", "strength")
    return (
        Labelled(loss.effects.data[0].mean(-1), axes, labels, "change of loss on other text", "nats"),
        Labelled(kl.values.data[0].mean(-1), axes, labels, "KL divergence on other text", "nats"),
    )


# Effects on what is said.


@dataclass(frozen=True, eq=False)
class SteeredTexts(Result):
    """What was generated at each strength, and how it scored.

    Args:
        values: `[strength, batch]`, the score of each continuation.
        texts: strength → continuation of each prompt.
    """

    values: Labelled
    strengths: tuple[float, ...]
    texts: dict[str, list[str]]

    def summary(self) -> str:
        means = self.values.mean("batch").data.tolist()
        pairs = ", ".join(f"{mean:.3g} at {strength:g}" for strength, mean in zip(self.strengths, means, strict=True))
        return f"{self.values.what} of what is generated: {pairs}"

    def figure(self) -> Figure:
        """The mean score against strength, with intervals over prompts."""
        mean, bounds = self.values.mean("batch").data, interval_of_mean(self.values.data.T)
        return steering_response(
            list(self.strengths), {self.values.what: mean}, intervals={self.values.what: bounds}, x_name="strength",
            y_name=self.values.what,
        )  # fmt: skip


@with_provenance
@options(max_new_tokens=1, seed=0)
def steered_texts(
    model: Transformer,
    vector: SteeringVector,
    prompts: Sequence[str] | Prompts,
    score: Callable[[str], float],
    strengths: Sequence[float | int],
    *,
    max_new_tokens: int = 40,
    positions: Any = "all",
    sampling: Sampling | None = None,
    seed: int = 0,
    name: str = "score",
    prepend_bos: bool | None = None,
) -> SteeredTexts:
    """Generate from each prompt at each strength (with the same seed), and score what is said."""
    texts: dict[str, list[str]] = {}
    prompts = texts_of(model, prompts)
    for strength in watched("generating", strengths):
        torch.manual_seed(seed)
        with steer(model, Steer(vector, float(strength), positions)):
            out = generate(
                model, list(prompts), max_new_tokens, stop_at_eos=False, sampling=sampling or Sampling(), verbose=False,
                prepend_bos=prepend_bos,
            )  # fmt: skip
        texts[f"{strength:g}"] = [new[len(old) :] if new.startswith(old) else new for old, new in zip(prompts, out, strict=True)]
    scores = torch.tensor([[float(score(one)) for one in row] for row in texts.values()])
    return SteeredTexts(
        Labelled(scores, ("strength", "batch"), {"strength": list(texts)}, name), tuple(map(float, strengths)), texts
    )


# How far apart two sets of prompts are.


@dataclass(frozen=True, eq=False)
class Separability(Result):
    """How well each layer tells two sets of prompts apart.

    Args:
        values: `[layer]`, accuracy on prompts that the direction was not made from (half is chance for equal sets).
        projections: `[layer, batch]`, on the difference of means, 0 halfway between the sets; positive prompts first.
        plane: `[layer, batch, component]`, the two principal components.
        positive: how many of the prompts are positive.
    """

    values: Labelled
    projections: Labelled
    plane: Labelled
    positive: int

    def summary(self) -> str:
        pairs = ", ".join(
            f"layer {n}: {v:.2f}" for n, v in zip(self.values.names("layer"), self.values.data.tolist(), strict=True)
        )
        return f"held-out accuracy of telling the two sets apart: {pairs}"

    def figure(self) -> Figure:
        """Accuracy by layer."""
        return line_chart(
            {"held-out accuracy": self.values.data}, list(self.values.names("layer")), x_name="layer", y_name="accuracy",
            references={"chance": 0.5}, title="How well each layer tells the two sets apart",
        )  # fmt: skip

    def projection_figure(self) -> Figure:
        """The projection of each prompt at each layer."""
        panels = {"positive": self.projections.data[:, : self.positive], "negative": self.projections.data[:, self.positive :]}
        return small_multiples(
            panels, y_labels=list(self.values.names("layer")), x_name="prompt", y_name="layer", value_name="projection"
        )


@with_provenance
@options(folds=2, seed=0)
def separability(
    model: Transformer,
    positive: Sequence[str] | Prompts,
    negative: Sequence[str] | Prompts | None = None,
    layers: Sequence[int] | None = None,
    *,
    site: str = "resid_pre",
    position: Any = -1,
    folds: int = 5,
    seed: int = 0,
) -> Separability:
    """How well the difference of means tells two sets of prompts apart at each layer, on held-out prompts.

    Raises:
        ShapeError: fewer than two prompts in a set.
    """
    if negative is None:
        if not isinstance(positive, Prompts):
            raise TokenError("the negative prompts are missing: give them, or Prompts in pairs")
        negative = positive.counterparts
    if min(len(positive), len(negative)) < 2:
        raise ShapeError("separability needs at least two prompts in each set, so that some can be held out")
    chosen = list(range(model.cfg.n_layers)) if layers is None else indices(layers, model.cfg.n_layers, "layer")
    plus, minus = (activations(model, prompts, chosen, site=site, position=position) for prompts in (positive, negative))
    accuracy = held_out_accuracy(plus, minus, folds=folds, seed=seed)
    centre = (plus.mean(1) + minus.mean(1)) / 2
    unit = directions(plus, minus)
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    both = torch.cat([plus, minus], 1)
    projected = torch.einsum("lpd,ld->lp", both - centre[:, None], unit)
    centred = both - both.mean(1, keepdim=True)
    plane = centred @ torch.linalg.svd(centred.double(), full_matrices=False).Vh[:, :2].mT.to(centred)
    names = {"layer": [str(layer) for layer in chosen]}
    return Separability(
        Labelled(accuracy, ("layer",), names, "held-out accuracy"),
        Labelled(projected, ("layer", "batch"), names, "projection"),
        Labelled(plane, ("layer", "batch", "component"), names, "principal component"),
        len(positive),
    )


def held_out_accuracy(
    plus: Float[Tensor, "layer positive d_model"],
    minus: Float[Tensor, "layer negative d_model"],
    *,
    folds: int = 5,
    seed: int = 0,
) -> Float[Tensor, "layer"]:
    """How often held-out activations fall on their side of the midpoint along the other folds' difference of means."""
    draw = torch.Generator().manual_seed(seed)
    folds = min(folds, plus.shape[1], minus.shape[1])
    sizes = (plus.shape[1], minus.shape[1])
    groups = [torch.randperm(n, generator=draw) % folds for n in sizes]
    if sizes[0] == sizes[1]:  # pairs are held out together; else one half of a pair is judged by the other
        groups[1] = groups[0]
    right = torch.zeros(plus.shape[0], device=plus.device)
    for fold in range(folds):
        kept = [x[:, group.to(x.device) != fold].mean(1) for x, group in zip((plus, minus), groups, strict=True)]
        direction, middle = kept[0] - kept[1], (kept[0] + kept[1]) / 2
        for x, group, sign in ((plus, groups[0], 1), (minus, groups[1], -1)):
            tested = x[:, group.to(x.device) == fold] - middle[:, None]
            right += ((tested * direction[:, None]).sum(-1) * sign > 0).sum(1)
    return right / (plus.shape[1] + minus.shape[1])


def similarity(vectors: Mapping[int, SteeringVector]) -> Labelled:
    """Cosine similarity between the vectors of each two layers, `[layer, other]`."""
    stacked = torch.stack([vector.values.flatten() for vector in vectors.values()])
    unit = stacked / stacked.norm(dim=-1, keepdim=True)
    names = [str(layer) for layer in vectors]
    return Labelled(unit @ unit.T, ("layer", "other"), {"layer": names, "other": names}, "cosine similarity")


def similarity_figure(similar: Labelled) -> Figure:
    """The cosine similarities as a heat map."""
    names = list(similar.names("layer"))
    return heat_map(
        similar.data, names, names, x_name="layer", y_name="layer", value_name="cosine similarity", range=(-1, 1),
        title="Steering vectors of different layers",
    )  # fmt: skip
