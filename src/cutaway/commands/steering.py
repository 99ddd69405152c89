"""The command `cutaway steer`: makes a vector from prompts, applies it, and says what it did.

Texts come as options or as files of one text per line, where `\\n` stands for a line break.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.commands import choices
from cutaway.commands.choices import layers_of
from cutaway.commands.prompt_options import SCREEN, Request, shared_options
from cutaway.commands.shared import Record, free_file, lines, one_token
from cutaway.errors import ConfigError, ShapeError, TokenError

if TYPE_CHECKING:
    from cutaway.analysis.steering import SteeringVector
    from cutaway.analysis.steering_effects import DoseResponse, SteeredTexts

Texts = list[str] | None
STRENGTHS = (0.5, 1.0, 2.0)
MANY = 8  # layers, above which controls are run at the best one only, unless --layers names them
METHODS = ("mean", "pca", "probe", "pair")


SomeLayers = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        "--layer",
        help="Some: '0-3,7'. By default all, with controls at the best.",
        callback=choices.each(layers_of),
    ),
]
Pattern = Annotated[
    str | None,
    typer.Option(help="Count matches of this regular expression in what is generated.", callback=choices.regular_expression),
]
Method = Annotated[
    str,
    typer.Option(
        help="mean, pca or probe of sets of prompts; pair: one of each, position by position.",
        callback=choices.each(lambda one: _known_method(one)),
    ),
]
ReadAt = Annotated[
    str,
    typer.Option(
        "--positions",
        "--position",
        help="Which position of the two sets is read: a number, or mean.",
        callback=choices.each(lambda one: _position(one)),
    ),
]
Where = Annotated[
    str,
    typer.Option(
        help="Which tokens are steered while generating: all, prompt, generated.",
        callback=choices.among("cutaway.runs.places:PARTS", "part of a generation"),
    ),
]


@shared_options()
def steer(
    request: Request,
    text: Annotated[
        Texts, typer.Option("--text", "--prompt", help="A text, or a file of them, to continue and measure on; may be repeated.")
    ] = None,
    positive: Annotated[Texts, typer.Option(help="A text, or a file with one per line, to steer to; may be repeated.")] = None,
    negative: Annotated[Texts, typer.Option(help="A text or a file to steer away from; may be repeated.")] = None,
    layers: SomeLayers = None,
    strength: Annotated[list[float] | None, typer.Option(help="Times the vector; may be repeated. By default 0.5, 1, 2.")] = None,
    effect: Annotated[
        str | None, typer.Option(help="A token: its log-probability after each prompt. By default the answers, or the loss.")
    ] = None,
    minus: Annotated[str | None, typer.Option(help="Measure how much larger the logit of --effect is than this token's.")] = None,
    matches: Pattern = None,
    side: Annotated[Texts, typer.Option(help="Other text or a file, on which steering should change little.")] = None,
    method: Method = "mean",
    positions: ReadAt = "-1",
    where: Where = "all",
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to generate.")] = 30,
    temperature: Annotated[float, typer.Option(min=0, help="Of the sampling; 0 takes the likeliest token.")] = 0.7,
    random: Annotated[
        int, typer.Option("--random", "--baseline", min=0, help="How many random directions of the same norm to compare with.")
    ] = 20,
    vector: Annotated[Path | None, typer.Option(help="A saved vector, in place of --positive and --negative.")] = None,
    save: Annotated[
        Path | None,
        typer.Option(callback=free_file, help="Save the vector that the texts are generated with (.safetensors)."),
    ] = None,
    record: Record = None,
) -> None:
    """Steer a model from one set of texts to another, and measure what that did.

    Prints continuations with and without steering, and the response of a target to each strength, beside random
    directions, vectors made with shuffled labels, and the effect on other text.
    """
    from cutaway import records
    from cutaway.analysis import steering_effects as effects
    from cutaway.runs.generation import Sampling

    request.options["text"] = texts_of(text, "--text") if text else None
    others = texts_of(side, "--side") if side else []
    pattern = re.compile(matches or "(?!)")
    if record is not None:
        for names in ((), ("response", "controls")):
            records.check_free(record, names)
    request.check_sources()
    if vector is None:
        texts_of(positive, "--positive"), texts_of(negative, "--negative")
    network, prompts = request.network, request.given_prompts
    made = _vectors(request, vector, positive, negative, layers, method, positions)
    if not any(one.norm for one in made.values()):
        raise ShapeError("the two sides leave the same activations, so the vector is 0; give other texts, or --position mean")
    strengths = sorted({0.0, *(strength or STRENGTHS)})
    if len(strengths) < 2:
        raise ShapeError("strength 0 alone steers nothing; give another --strength")
    few = layers is not None or len(made) <= MANY
    measured = effects.dose_response(
        network, made, prompts, _target(request, effect, minus), strengths, side_text=others, random=random,
        controls_at="all" if few else "best", seed=request.seed, prepend_bos=request.bos,
    )  # fmt: skip
    chosen = made[int(measured.best)]
    sampling = Sampling(temperature=temperature)
    continuations = effects.steered_texts(
        network, chosen, prompts.texts, lambda text: len(pattern.findall(text)), strengths, max_new_tokens=tokens,
        positions=where, sampling=sampling, seed=request.seed, name=f"matches of {matches!r}", prepend_bos=request.bos,
    )  # fmt: skip
    if save is not None:
        chosen.save(save, replace=True)  # whether it may be replaced was asked before
    if record is not None:
        records.write(record, measured, request.model)
    what = _quantity(measured, prompts, effect, minus)
    printed = _printed(request, made, measured, continuations, prompts, what, matches)
    numbers = _numbers_of(made, chosen, measured, continuations, prompts, what)
    if matches is not None:
        numbers["matches"] = continuations.values.to_json()
    figures = _figures(network, made, prompts.texts, measured, continuations, matches) if request.html else []
    request.show(printed, numbers, figures, f"Steering {request.model}", measured)


def texts_of(given: Sequence[str] | None, option: str) -> list[str]:
    """The texts of an option that takes texts and files.

    Raises:
        TokenError: there are none, a file is missing or not text, or a text is empty.
    """
    found: list[str] = []
    for one in given or []:
        if not os.path.isfile(one):
            if one.endswith(".txt"):
                raise TokenError(f"{option}: there is no file {one}")
            found.append(one)
            continue
        try:
            written = Path(one).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise TokenError(f"{option}: {one} is not UTF-8 text") from None
        kept = [line.replace("\\n", "\n") for line in written if line.strip()]
        if not kept:
            raise TokenError(f"{option}: the file {one} has no text in it")
        found += kept
    if not found:
        raise TokenError(f"{option} is missing: give a text, or a file with one text per line")
    if not all(map(str.strip, found)):
        raise TokenError(f"{option} is an empty text")
    return found


def _known_method(given: str) -> None:
    if given not in METHODS:
        raise ConfigError(f"--method {given!r} is not known; there are {', '.join(METHODS)}")


def _vectors(
    request: Request,
    saved: Path | None,
    positive: Sequence[str] | None,
    negative: Sequence[str] | None,
    layers: Sequence[str] | None,
    method: str,
    position: str,
) -> dict[int, SteeringVector]:
    """A vector for each layer, from the prompts or from a file."""
    from cutaway.analysis import steering

    network = request.network
    if saved is not None:
        if positive or negative:
            raise ConfigError("give either --vector or --positive and --negative")
        kept = steering.SteeringVector.load(saved, network)
        return {layer: kept.at(layer) for layer in ([kept.layer] if layers is None else _numbers(network, layers))}
    sets = [texts_of(positive, "--positive"), texts_of(negative, "--negative")]
    sets = [[request.message(text) for text in one] for one in sets] if request.messages else sets
    chosen = _numbers(network, layers)
    if method == "pair":
        if len(sets[0]) != 1 or len(sets[1]) != 1:
            raise ShapeError(f"--method pair takes one text of each kind, not {len(sets[0])} and {len(sets[1])}")
        pair = sets[0][0], sets[1][0]
        return {layer: steering.activation_addition(network, *pair, layer, prepend_bos=request.bos) for layer in chosen}
    where = _position(position)
    return steering.contrast_vectors(network, sets[0], sets[1], chosen, method=method, position=where, prepend_bos=request.bos)


def _numbers(network: Any, layers: Sequence[str] | None) -> list[int]:
    return layers_of(None if layers is None else ",".join(layers), network.cfg.n_layers)


def _position(word: str) -> int | str:
    if word == "mean" or re.fullmatch(r"-?\d+", word):
        return word if word == "mean" else int(word)
    raise ConfigError(f"--position {word!r} must be a number or mean")


def _target(request: Request, effect: str | None, minus: str | None) -> Any:
    """What is measured: the token of `--effect`, the prompts' answers (None), or their loss."""
    from cutaway.analysis import steering_effects as effects

    network, first = request.network, bool(request.allow_first_token)
    if effect is None:
        if minus is not None:
            raise ConfigError("--minus needs --effect, the token that it is compared with")
        return None if request.given_prompts.right else effects.text_loss
    wrong = None if minus is None else one_token(network, minus, "--minus", first=first)
    return effects.steering_target(one_token(network, effect, "--effect", first=first), wrong)


# What is printed and drawn.


def _quantity(measured: DoseResponse, prompts: Any, effect: str | None, minus: str | None) -> str:
    """What the response is of, in words."""
    if effect is None:
        return measured.values.what if prompts.right else "loss of the prompts"
    return f"log-probability of {effect!r} (nats)" if minus is None else f"logit of {effect!r} minus logit of {minus!r}"


def _printed(
    request: Request, made: Mapping[int, SteeringVector], measured: DoseResponse, continuations: SteeredTexts, prompts: Any,
    what: str, matches: str | None,
) -> str:  # fmt: skip
    rows, more = request.rows(_rows(measured))
    table = lines(_columns(measured), rows) + (f"\n{more}" if more else "")
    blocks = [_about(made), _continued(request, prompts.texts, continuations)]
    blocks += [] if matches is None else [continuations.summary()]
    said = measured.summary()
    if measured.control_sweep is not None:
        said += f" --layers 0-{request.network.cfg.n_layers - 1} runs them at every layer."
    return "\n\n".join([*blocks, f"{what}, mean of {_counted(prompts.texts)}\n{table}", said])


def _numbers_of(
    made: Mapping[int, SteeringVector], chosen: SteeringVector, measured: DoseResponse, continuations: SteeredTexts, prompts: Any,
    what: str,
) -> dict[str, Any]:  # fmt: skip
    first = next(iter(made.values()))
    return {
        "layer": chosen.layer,
        "strengths": list(measured.strengths),
        "vectors": [{"layer": one.layer, "norm": one.norm} for one in made.values()],
        "method": first.method, "site": first.site, "read_at": first.read_at,
        "positive": list(first.positive), "negative": list(first.negative),
        "prompt_texts": list(prompts.texts), "effect": what,
        "texts": continuations.texts,
        "response": measured.to_json(),
    }  # fmt: skip


def _about(made: Mapping[int, SteeringVector]) -> str:
    first = next(iter(made.values()))
    rows = [[one.layer, one.norm, f"{one.norm / len(one.values) ** 0.5:.4g}"] for one in made.values()]
    sizes = f"{len(first.positive)} positive and {len(first.negative)} negative"
    return f"{first.method} of {sizes}, read at {first.read_at}, written to {first.site}\n" + lines(
        ["layer", "norm", "norm of one position"] if first.front else ["layer", "norm"],
        rows if first.front else [row[:2] for row in rows],
    )


def _continued(request: Request, prompts: Sequence[str], continuations: SteeredTexts) -> str:
    """Each prompt with its continuations; as many prompts as a screen shows."""
    width = max(len("unsteered"), *(len(name) for name in continuations.texts))
    most = len(prompts) if request.all_rows else max(1, (request.top or SCREEN) // (1 + len(continuations.texts)))
    blocks = []
    for index, prompt in enumerate(prompts[:most]):
        rows = [f"  {_name(name):<{width}}  {row[index]!r}" for name, row in _unsteered_first(continuations.texts)]
        blocks.append("\n".join([repr(prompt), *rows]))
    rest = len(prompts) - len(blocks)
    blocks += [f"{rest} more prompt{'s' * (rest != 1)}; --all prints them"] if rest > 0 else []
    return "\n".join(blocks)


def _counted(prompts: Sequence[str]) -> str:
    return f"{len(prompts)} prompts" if len(prompts) > 1 else "1 prompt"


def _name(strength: str) -> str:
    return "unsteered" if strength == "0" else strength


def _unsteered_first(texts: Mapping[str, list[str]]) -> list[tuple[str, list[str]]]:
    return sorted(texts.items(), key=lambda pair: pair[0] != "0")


def _columns(measured: DoseResponse) -> list[str]:
    columns = ["layer", "strength", "response", "95%"]
    columns += ["random"] if len(measured.random.data) else []
    columns += ["shuffled labels"] if len(measured.shuffled.data) else []
    return columns + (["loss of other text", "KL"] if measured.side_loss is not None else [])


def _rows(measured: DoseResponse) -> list[list[Any]]:
    """The response at each layer and strength, with its interval, controls and side effects; the best layer first."""
    means, rows = measured.means(), []
    layers = sorted(measured.values.names("layer"), key=lambda layer: layer != measured.best)
    for layer in layers:
        for word in measured.values.names("strength"):
            at = {"layer": layer, "strength": word}
            low, high = (part.sel(**at).item() for part in (means.low, means.high))
            row = [layer, word, f"{means.values.sel(**at).item():.3f}", f"[{low:.3f}, {high:.3f}]" if low == low else ""]
            for controls in (measured.random, measured.shuffled):
                if len(controls.data) and layer in controls.names("layer"):
                    found = controls.sel(**at).data
                    row.append(f"{float(found.min()):.3f} to {float(found.max()):.3f}")
                elif len(controls.data):
                    row.append("")  # controls ran at the best layer alone
            if measured.side_loss is not None and measured.side_kl is not None:
                row += [f"{measured.side_loss.sel(**at).item():+.3f}", f"{measured.side_kl.sel(**at).item():.3f}"]
            rows.append(row)
    return rows


def _figures(
    network: Any,
    made: Mapping[int, SteeringVector],
    prompts: Sequence[str],
    measured: DoseResponse,
    continuations: SteeredTexts,
    matches: str | None,
) -> list[tuple[str, Any]]:
    from cutaway.analysis import steering_effects as effects
    from cutaway.view import table

    texts = _unsteered_first(continuations.texts)
    side_by_side = table(
        ["prompt", *(_name(name) for name, _ in texts)],
        [[prompt, *(row[index] for _, row in texts)] for index, prompt in enumerate(prompts)],
        title="Continuations",
    )
    figures = [("What is said", side_by_side), ("Response to strength", measured.figure())]
    if matches is not None:
        figures.append((f"Matches of {matches}", continuations.figure()))
    first = next(iter(made.values()))
    if not first.front and len(made) > 1:
        figures.append(("How alike the layers are", effects.similarity_figure(effects.similarity(made))))
    if not first.front and min(len(first.positive), len(first.negative)) > 1:
        sets = first.positive, first.negative
        apart = effects.separability(network, *sets, list(made), site=first.site, position=first.position)
        figures += [("How far apart the sets are", apart.figure()), ("Each prompt on the direction", apart.projection_figure())]
    return figures
