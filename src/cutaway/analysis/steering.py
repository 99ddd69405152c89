"""Steering: a direction of the residual stream that stands for a contrast, written into runs.

A `SteeringVector` is made from activations (`activation_addition`, `contrast`), knows what it was made from, and is
refused by any other model. A `Steer` says how to apply one: strength, positions, added or projected out or clamped.
Positions count a row's own tokens, so padding on the left shifts nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor

from cutaway import reading
from cutaway import tokens as text
from cutaway.errors import CheckpointError, NotFinite, ShapeError, TokenError, WeightsMismatch
from cutaway.model import sites
from cutaway.model.hook_points import HookPoint
from cutaway.model.placement import stacked
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import each_once, index, indices, whole
from cutaway.prompts import Prompts
from cutaway.runs import edits
from cutaway.runs.editing import hooks_of
from cutaway.runs.hashes import model_hash
from cutaway.runs.places import Places
from cutaway.weights.canonical import weights_hash, without_buffers
from cutaway.writing import check_new, found_as, named, write

Vector = Float[Tensor, "place d_model"]
HOW = ("add", "project_out", "clamp")
METHODS = ("mean", "pca", "probe")
OLD_HASH = 64  # vectors saved by version 0.1 keep the SHA-256 of the weights alone
Positions = str | tuple[int, int] | Sequence[int]


class _Provenance(msgspec.Struct):
    """What a file says about its vector."""

    layer: Annotated[int, Meta(ge=0, le=10_000)]
    site: str
    method: str
    front: bool
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    read_at: str
    model_hash: str
    model_name: str = "custom"


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction of the residual stream, and where it comes from.

    Args:
        values: `[place, d_model]`: one vector for any position, or one for each of the first positions (`front`).
        layer: the layer that it was read at and is written to.
        site: short name of the site, such as "resid_pre".
        method: "pair", "mean", "pca" or "probe".
        front: whether row *i* belongs to position *i* of a text.
        positive, negative: the prompts.
        read_at: at which positions the prompts were read, in words.
        model_hash: of the model that it was made with.
    """

    values: Vector
    layer: int
    site: str
    method: str
    front: bool
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    read_at: str
    model_hash: str
    model_name: str = "custom"

    def __repr__(self) -> str:
        sets = f"{len(self.positive)} positive and {len(self.negative)} negative prompts"
        return f"<SteeringVector {self.method} of {sets}, {self.full_site}, norm {self.norm:.3g}>"

    @property
    def norm(self) -> float:
        """The root of the summed squares, over all places."""
        return float(self.values.norm())

    @property
    def full_site(self) -> str:
        """The full name of the site that it is written to."""
        return sites.get_act_name(self.site, self.layer)

    @property
    def position(self) -> int | str | tuple[int, ...]:
        """At which position of each prompt it was read: a number, "mean", "each" for a pair; of a role, one for each prompt."""
        if self.front:
            return "each"
        if self.read_at.startswith("the role"):
            return tuple(map(int, self.read_at.rpartition(" at ")[2].split(",")))
        return "mean" if self.read_at.startswith("the mean") else int(self.read_at.split()[1])

    def scaled(self, factor: float) -> SteeringVector:
        """The same vector, longer or shorter."""
        return replace(self, values=self.values * factor)

    def at(self, layer: int) -> SteeringVector:
        """The same vector, written at another layer."""
        return replace(self, layer=layer)

    def check(self, model: Transformer) -> None:
        """Stop with `WeightsMismatch` where this is not the model that the vector was made with."""
        if self.values.shape[-1] != model.cfg.d_model:
            raise ShapeError(f"the vector has width {self.values.shape[-1]}, and the model's residual stream {model.cfg.d_model}")
        own = weights_hash(without_buffers(model.state_dict())) if len(self.model_hash) == OLD_HASH else remembered_hash(model)
        if own != self.model_hash:
            raise WeightsMismatch(
                f"the vector was made with another model ({self.model_name}, {self.model_hash[:12]}) than this one "
                f"({model.cfg.model_name}, {own[:12]}); make it anew with this model"
            )

    def edit(
        self,
        strength: float = 1.0,
        positions: Any = None,
        layer: int | None = None,
        *,
        how: str = "add",
    ) -> edits.Edit:
        """Adding this vector (or projecting it out, or clamping), as an edit for sweeps and records.

        Positions are those of a row's own tokens, whatever its padding.
        """
        _check_how(how, strength, self.front)
        site = (self.site, self.layer if layer is None else layer)
        if positions is not None:
            positions = Places(tuple(each_once(positions, "position")))
        if not self.front:
            if how == "add":
                return edits.add(self.values[0], strength).at(site, positions=positions)
            goal = strength * self.norm if how == "clamp" else 0.0
            return edits.project_out(self.values[0], goal).at(site, positions=positions)
        if positions is not None:
            raise ShapeError(f"this vector belongs to the first {len(self.values)} positions; it takes no others")
        return edits.add(self.values, strength).at(site, positions=Places(tuple(range(len(self.values))), strict=False))

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write values and provenance to a safetensors file, whole or not at all; a name without an ending gets `.safetensors`.

        Raises:
            AlreadyThere: the file exists, and `replace` is off.
        """
        from safetensors.torch import save

        fields = {key: value for key, value in asdict(self).items() if key != "values"}
        write(
            check_new(named(path, ".safetensors"), replace=replace),
            save({"values": self.values.contiguous()}, metadata={"steering_vector": json.dumps(fields)}),
        )

    @classmethod
    def load(cls, path: str | Path, model: Transformer | None = None) -> SteeringVector:
        """Read a saved vector; with `model`, refuse it where it was made with another one.

        Raises:
            CheckpointError: there is no such file, or it holds no steering vector.
            WeightsMismatch: it was made with another model.
        """
        from safetensors import SafetensorError, safe_open

        path = found_as(path, ".safetensors")
        try:
            with safe_open(str(path), framework="pt") as file:
                fields = (file.metadata() or {}).get("steering_vector")
                if fields is None:
                    raise CheckpointError(f"{path} holds no steering vector; SteeringVector.save writes one")
                values = file.get_tensor("values")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"no steering vector can be read from {path}: {error}") from error
        known = reading.decode(fields, _Provenance, f"the steering vector in {path}")
        if values.ndim != 2 or not values.is_floating_point() or not bool(values.isfinite().all()) or not values.numel():
            raise CheckpointError(f"the steering vector in {path} is damaged: it should be finite numbers, [place, d_model]")
        vector = cls(values=values, **msgspec.structs.asdict(known))
        if model is not None:
            vector.check(model)
        return vector


def remembered_hash(model: Transformer) -> str:
    """`model_hash`, computed anew only when the configuration changed or a weight was written to.

    Hashing takes about a second for each gigabyte of weights, and every use of a vector asks for it.
    """
    state = (str(model.cfg.to_dict()), model.weights_state())
    known: tuple[Any, str] | None = model.__dict__.get("_remembered_hash")
    if known is None or known[0] != state:
        known = state, model_hash(model)
        model.__dict__["_remembered_hash"] = known
    return known[1]


# Making vectors.


@torch.no_grad()
def activations(
    model: Transformer,
    prompts: Sequence[str] | Prompts,
    layers: Sequence[int],
    *,
    site: str = "resid_pre",
    position: int | str | Sequence[int] = -1,
    prepend_bos: bool | None = None,
    batch: int = 16,
) -> Float[Tensor, "layer prompt d_model"]:
    """The activation of each prompt at one of its own positions, or its mean over them (`position="mean"`).

    Of `Prompts` the position may be a role; a tuple has one for each prompt.

    Raises:
        TokenError: there are no prompts, or one is shorter than `position`.
        ContextTooLong: a prompt is longer than the model's context.
    """
    if not len(prompts):
        raise TokenError("there are no prompts; give at least one")
    names = [sites.resolve((site, layer), model.sites, model.cfg.n_layers) for layer in layers]
    rows = []
    for start in range(0, len(prompts), batch):
        bos = model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
        some = prompts[start : start + batch]
        if isinstance(some, Prompts):
            tokens, mask = (one.to(model.W_E.device) for one in some.padded())
        else:
            options: dict[str, Any] = {"prepend_bos": bos, "truncate": False, "device": model.W_E.device}
            tokens, mask = text.encode(model.tokenizer, list(some), **options)
        text.check_length(tokens.shape[1], model.cfg.n_ctx, reload=model.cfg.takes_longer)
        _, store = Transformer.run_with_cache(
            model, tokens, names_filter=names, attention_mask=mask, return_type=None, stop_at_layer=_stop(model, names)
        )
        kept = stacked(store[name] for name in names).to(mask.device)
        if kept.ndim != 4 or kept.shape[-1] != model.cfg.d_model:
            raise ShapeError(
                f"steering reads and writes sites as wide as the residual stream, such as resid_pre; {site!r} is not"
            )
        if position == "mean":
            rows.append((kept * mask[..., None]).sum(2) / mask.sum(1)[:, None])
            continue
        at: Tensor | None = None
        if isinstance(position, tuple):
            at = torch.tensor(position[start : start + batch])
        elif isinstance(some, Prompts) and isinstance(position, str):
            at = some.place(position)
        if at is not None:
            rows.append(kept[:, torch.arange(len(some)), at.to(kept.device)])
            continue
        position = -1 if position == "end" else whole(position, "position, if not 'mean' or a role of Prompts,")
        lengths = mask.sum(1)
        where = position + lengths if position < 0 else torch.full_like(lengths, position)
        if bool((where < 0).any() | (where >= lengths).any()):
            short = int(((where < 0) | (where >= lengths)).nonzero()[0])
            reason = f"it has {int(lengths[short])} tokens"
            raise TokenError(f"the prompt {text_of(some, short)!r} has no position {position}; {reason}")
        rows.append(kept[:, torch.arange(len(some)), where])
    return torch.cat(rows, 1)


def _stop(model: Transformer, names: Sequence[str]) -> int | None:
    """The first layer that need not run."""
    last = 1 + max(int(name.split(".")[1]) for name in names)
    return last if last < model.cfg.n_layers else None


@torch.no_grad()
def activation_addition(
    model: Transformer, positive: str, negative: str, layer: int, *, site: str = "resid_pre", prepend_bos: bool | None = None
) -> SteeringVector:
    """The difference of two prompts, position by position, for the front of other texts.

    The shorter prompt is padded with spaces on the right until both have as many tokens. Source: Turner et al. 2023,
    "Activation addition" (https://arxiv.org/abs/2308.10248), section 3.
    """
    bos = model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
    encoded = [
        text.to_tokens(model.tokenizer, prompt, prepend_bos=bos, device=model.W_E.device) for prompt in (positive, negative)
    ]
    longest = max(tokens.shape[1] for tokens in encoded)
    text.check_length(longest, model.cfg.n_ctx, reload=model.cfg.takes_longer)
    apart = encoded[0].shape != encoded[1].shape
    pad = _space(model) if apart else 0
    name = sites.resolve((site, layer_of(model, layer)), model.sites, model.cfg.n_layers)
    passed = []
    for tokens in encoded:  # each alone, so that swapping the prompts only swaps the sign
        padded = torch.nn.functional.pad(tokens, (0, longest - tokens.shape[1]), value=pad)
        options: dict[str, Any] = {"attention_mask": torch.ones_like(padded), "stop_at_layer": _stop(model, [name])}
        passed.append(Transformer.run_with_cache(model, padded, names_filter=[name], return_type=None, **options)[1][name][0])
    difference = passed[0] - passed[1]
    _check_apart(passed[:1], passed[1:2], [layer_of(model, layer)])
    aligned = f"each of the first {longest} positions" + (
        f", the shorter prompt padded with {model.tokenizer.decode([pad])!r}" if apart else ""
    )
    return SteeringVector(
        difference, layer_of(model, layer), site, "pair", True, (positive,), (negative,), aligned,
        remembered_hash(model), model.cfg.model_name,
    )  # fmt: skip


def _space(model: Transformer) -> int:
    """The token that fills up the shorter prompt: a space where that is one token."""
    try:
        return text.to_single_token(model.tokenizer, " ")
    except TokenError:
        pass  # a vocabulary without it
    pad = model.tokenizer.pad_token_id if model.tokenizer.pad_token_id is not None else model.tokenizer.eos_token_id
    if pad is None:
        raise TokenError("the prompts differ in length, and the tokenizer has neither a space nor a padding token to align them")
    return int(pad)


def layer_of(model: Transformer, layer: int) -> int:
    """The number of a layer, counted from 0.

    Raises:
        ShapeError: the model has no such layer.
    """
    return index(layer, model.cfg.n_layers, "layer")


def contrast_vectors(
    model: Transformer,
    positive: Sequence[str] | Prompts,
    negative: Sequence[str] | Prompts | None = None,
    layers: int | Sequence[int] | None = None,
    *,
    method: str = "mean",
    site: str = "resid_pre",
    position: int | str = -1,
    prepend_bos: bool | None = None,
) -> dict[int, SteeringVector]:
    """The direction from one set of prompts to another, at each layer.

    Args:
        positive, negative: texts, or `Prompts`; without `negative`, the counterparts of the `Prompts`.
        layers: which layers; None: all.
        method: "mean", the difference of means (Rimsky et al. 2023, https://arxiv.org/abs/2312.06681); "pca", the first
            principal component of the differences of pairs (Zou et al. 2023, https://arxiv.org/abs/2310.01405);
            "probe", the weights of a logistic regression. All have the length of the difference of means.
        position: the position of each prompt that is read (of `Prompts`, a role too), or "mean".

    Raises:
        TokenError: a set of prompts is empty.
        ShapeError: a layer is out of range, or "pca" is given sets of different sizes.
    """
    if method not in METHODS:
        raise ShapeError(f"method={method!r} is not known; there are {', '.join(METHODS)}")
    count = model.cfg.n_layers
    numbers = list(range(count)) if layers is None else indices(layers, count, "layer")
    if negative is None:
        if not isinstance(positive, Prompts):
            raise TokenError("the negative prompts are missing: give them, or Prompts in pairs")
        negative = positive.counterparts
    options: dict[str, Any] = {"site": site, "position": position, "prepend_bos": prepend_bos}
    plus, minus = (activations(model, prompts, numbers, **options) for prompts in (positive, negative))
    values = directions(plus, minus, method)
    _check_apart([one.mean(0) for one in plus], [one.mean(0) for one in minus], numbers)
    own = remembered_hash(model)
    sets, name = (texts_of(model, positive), texts_of(model, negative)), model.cfg.model_name
    read = "the mean over positions" if position == "mean" else f"position {position} of each prompt"
    if isinstance(position, str) and isinstance(positive, Prompts) and isinstance(negative, Prompts) and position != "mean":
        places = [*positive.place(position).tolist(), *negative.place(position).tolist()]
        read = f"the role {position} of each prompt, at {','.join(map(str, places))}"
    return {
        layer: SteeringVector(values[index][None], layer, site, method, False, *sets, read, own, name)
        for index, layer in enumerate(numbers)
    }


def _check_apart(plus: Sequence[Tensor], minus: Sequence[Tensor], layers: Sequence[int]) -> None:
    """Make sure that two sets of prompts differ where they are read, in some layer (the first may read the same token).

    Raises:
        ShapeError: they do not, so that their difference points nowhere.
    """
    if all(
        float((one - other).norm()) <= 1e-6 * float(one.norm() + other.norm()) for one, other in zip(plus, minus, strict=True)
    ):
        where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
        raise ShapeError(
            f"the positive and the negative prompts have the same activations in {where} where they are read, so the vector is "
            "0 and points nowhere; read another position or layer, or choose prompts that differ before it"
        )


def texts_of(model: Transformer, prompts: Sequence[str] | Prompts) -> tuple[str, ...]:
    """Prompts as texts."""
    if not isinstance(prompts, Prompts):
        return tuple(prompts)
    if prompts.texts:
        return prompts.texts
    rows = zip(prompts.tokens.tolist(), prompts.lengths.tolist(), strict=True)
    return tuple(str(row[:size]) if model.tokenizer is None else str(model.tokenizer.decode(row[:size])) for row, size in rows)


def text_of(prompts: Sequence[str] | Prompts, row: int) -> str:
    """One of them, for an error."""
    return (prompts.texts[row] if prompts.texts else f"number {row}") if isinstance(prompts, Prompts) else prompts[row]


def directions(
    plus: Float[Tensor, "layer positive d_model"], minus: Float[Tensor, "layer negative d_model"], method: str = "mean"
) -> Float[Tensor, "layer d_model"]:
    """The direction from one set of activations to another, by one of the methods of `contrast`."""
    difference = plus.mean(1) - minus.mean(1)
    if method == "mean":
        return difference
    if method == "pca":
        if plus.shape[1] != minus.shape[1] or plus.shape[1] < 2:
            raise ShapeError(f"'pca' needs pairs of prompts, at least two: {plus.shape[1]} and {minus.shape[1]} were given")
        pairs = (plus - minus).double()
        found = torch.linalg.svd(torch.cat([pairs, -pairs], 1), full_matrices=False).Vh[:, 0]
    else:
        found = torch.stack([probe(a, b) for a, b in zip(plus, minus, strict=True)])
    sign = (found * difference).sum(-1, keepdim=True).sign()
    length = difference.norm(dim=-1, keepdim=True)
    return (found / found.norm(dim=-1, keepdim=True) * sign * length).to(difference.dtype)


@torch.enable_grad()
def probe(
    plus: Float[Tensor, "positive d_model"], minus: Float[Tensor, "negative d_model"], penalty: float = 1.0
) -> Float[Tensor, "d_model"]:
    """Weights of a logistic regression that tells the two sets apart, with an L2 penalty on standardised inputs."""
    x = torch.cat([plus, minus]).double()
    y = torch.cat([torch.ones(len(plus)), torch.zeros(len(minus))]).to(x)
    spread = x.std(0, unbiased=False).mean().clamp(min=1e-12)
    x = (x - x.mean(0)) / spread
    weights = torch.zeros(x.shape[1] + 1, dtype=x.dtype, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = x @ weights[:-1] + weights[-1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        loss = loss + penalty * weights[:-1].square().sum() / 2
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights[:-1].detach()


# Applying them.


def _check_how(how: str, strength: float, front: bool) -> None:
    if how not in HOW:
        raise ShapeError(f"how={how!r} is not known; there are {', '.join(HOW)}")
    if not math.isfinite(strength):
        raise ShapeError(f"strength={strength} is not a number that can be used")
    if front and how != "add":
        raise ShapeError("a vector of front positions can only be added")


def _own_positions(given: Any) -> tuple[int | None, ...] | list[int]:
    """A range as a pair, or numbers as a list.

    Raises:
        ShapeError: neither; one comes twice, or there are none.
    """
    if isinstance(given, tuple) and len(given) == 2:
        return tuple(None if one is None else whole(one, "an end of a range of positions") for one in given)
    return each_once(given, "position")


@dataclass(frozen=True, eq=False)
class Steer:
    """How a vector is written into a run.

    Args:
        strength: times the vector; for "clamp", times its length is what the component along it becomes.
        positions: "all", "prompt", "generated", a range `(start, stop)`, or a list; of each row's own tokens. A vector
            of front positions keeps to those. In a run that is no generation everything is prompt.
        how: "add", "project_out" (the component along it is removed) or "clamp" (it is set).
        layers: where, other than the vector's own layer.
    """

    vector: SteeringVector
    strength: float = 1.0
    positions: Positions = "all"
    how: str = "add"
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        _check_how(self.how, self.strength, self.vector.front)
        if isinstance(self.positions, str) and self.positions not in ("all", "prompt", "generated"):
            raise ShapeError(f"positions={self.positions!r} is not known; there are 'all', 'prompt', 'generated', or numbers")
        if not isinstance(self.positions, str):
            object.__setattr__(self, "positions", _own_positions(self.positions))

    def edits_for(self, model: Transformer) -> list[edits.Edit]:
        """The same as edits, which any run takes: `run(model, tokens, edits=[Steer(vector, 4.0)])`.

        Raises:
            WeightsMismatch: the vector was made with another model.
        """
        self.vector.check(model)
        layers = [self.vector.layer] if self.layers is None else indices(self.layers, model.cfg.n_layers, "layer")
        return [self._change().at((self.vector.site, layer), positions=self._places()) for layer in layers]

    def hooks(self, model: Transformer) -> list[tuple[str, Any]]:
        """Pairs of site and function for `model.hooks(…)`, which also make sure that numbers stay finite."""
        layers = [self.vector.layer] if self.layers is None else indices(self.layers, model.cfg.n_layers, "layer")
        change, places = self._change(), self._places()
        own = [change.at((self.vector.site, layer), positions=places) for layer in layers]
        return [pair for site, make in hooks_of(model, own) for pair in ((site, make), (site, self._finite))]

    def _change(self) -> edits.Change:
        values = self.vector.values
        if self.vector.front or self.how == "add":
            return edits.add(values if self.vector.front else values[0], self.strength)
        return edits.project_out(values[0], self.strength * float(values[0].norm()) if self.how == "clamp" else 0.0)

    def _places(self) -> Places:
        """The row's own tokens that are steered; of a vector of front positions, those that it has."""
        first = range(len(self.vector.values)) if self.vector.front else None
        if isinstance(self.positions, str):
            return Places(None if first is None else tuple(first), part=self.positions, strict=False)
        if isinstance(self.positions, tuple) and len(self.positions) == 2:
            return Places(None if first is None else tuple(first), *self.positions, strict=False)
        return Places(tuple(one for one in self.positions if first is None or one in first), strict=False)

    def _finite(self, x: Tensor, hook: HookPoint) -> None:
        if not bool(torch.isfinite(x).all()):
            raise NotFinite(
                f"steering with strength {self.strength} at layer {self.vector.layer} leaves numbers that are not finite"
            )


@contextmanager
def steer(model: Transformer, *steers: Steer, check: bool = True) -> Iterator[Transformer]:
    """Apply one or several vectors to everything that the model runs inside: `with steer(model, Steer(v, 4.0)): …`

    Raises:
        WeightsMismatch: a vector was made with another model.
    """
    if check:
        for vector in {id(one.vector): one.vector for one in steers}.values():
            vector.check(model)
    with model.hooks([pair for one in steers for pair in one.hooks(model)]):
        yield model
