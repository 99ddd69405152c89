"""Commands that ask a model one question: heads, attribute, lens, predict, neurons, circuit, composition.

Each prints a table no longer than a screen, with `--json` the numbers, and with `--html FILE` writes a page that needs nothing
else.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Annotated, Any

import typer

from cutaway.commands import choices
from cutaway.commands.choices import each, layers_of, lens_rows
from cutaway.commands.progress import bar
from cutaway.commands.prompt_options import SCREEN, SHARED, Layers, Positions, Request, positions_of, shared_options
from cutaway.commands.shared import lines, one_token
from cutaway.errors import TokenError, UnknownName
from cutaway.numbers_given import one_of


@each
def known_modes(given: str) -> None:
    """What `--modes` may say."""
    from cutaway.analysis.head_composition import checked_modes

    checked_modes(given.upper())


@shared_options(text=False)
def heads(
    request: Request,
    repeats: Annotated[
        bool, typer.Option("--random-repeats", help="Random tokens that come twice (where no text is given).")
    ] = False,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="The least mean attention that makes a head one of a kind.")
    ] = 0.4,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of the random half. By default 50, or what fits.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Random sequences.")] = 32,
    layers: Layers = None,
) -> None:
    """Say which head attends to what: current, previous and first tokens, duplicates, induction."""
    from cutaway.analysis.heads import KINDS, head_scores, random_repeats

    network, note = request.network, ""
    if request.sources or request.text:
        if repeats:
            raise TokenError("give either a text or --random-repeats")
        found = head_scores(network, request.given_prompts)
        left_out = _too_short(network, found, request.given_prompts, threshold)
        kept = [kind for kind in found.values.names("kind") if kind not in left_out]
        found = replace(found, values=found.values.sel(kind=kept), baseline=found.baseline.sel(kind=kept))
    else:
        tokens = random_repeats(network, length=length, examples=examples, seed=request.seed)
        found, left_out = head_scores(network, tokens), {}
        half = tokens.shape[1] // 2
        note = f"no text was given: means over {examples} sequences of {half} random tokens that come twice (seed {request.seed})"
    if layers is not None:
        chosen = layers_of(layers, network.cfg.n_layers)
        here = [name for name in found.values.names("head") if int(name.partition(".")[0]) in chosen]
        found = replace(found, values=found.values.sel(head=here))
    report = {
        kind: {head: found.mean.sel(kind=kind, head=head).item() for head in names}
        for kind, names in found.report(threshold).items()
    }
    means = found.means()
    rows = []
    for kind, names in report.items():
        for head, score in names.items():
            low, high = (part.sel(kind=kind, head=head).item() for part in (means.low, means.high))
            interval = f"[{low:.3f}, {high:.3f}]" if low == low else ""
            rows.append([kind, head, f"{score:.3f}", interval, f"{found.baseline.sel(kind=kind).item():.3f}", KINDS[kind]])
    columns = ["kind", "head", "attention", "95%", "even", "attends to"]
    rows.sort(key=lambda row: -float(row[2]))
    turns = [itertools.count() for _ in report]
    turn = {id(row): next(turns[list(report).index(row[0])]) for row in rows}
    shown, more = request.rows(sorted(rows, key=lambda row: turn[id(row)]))  # the best of each kind, then the second, …
    shown.sort(key=lambda row: list(report).index(row[0]))
    none = f"no head's mean attention is above {threshold:g} for {', '.join(report)}"
    text = _filled(columns, shown) if rows else none
    text += f"\n{more}" if more else ""
    text += f"\n{note}" if note else ""
    text += "".join(f"\n{kind}: left out, as {why}" for kind, why in left_out.items())
    numbers = {
        "threshold": threshold,
        "random_repeats": note or None,
        "heads": report,
        "left_out": left_out,
        "scores": found.mean.as_dict(6),
        "even": found.baseline.as_dict(6),
    }
    request.show(text, numbers, [("What each head does", found.figure(threshold))], f"Heads of {request.model}", found)


def _too_short(network: Any, found: Any, prompts: Any, threshold: float) -> dict[str, str]:
    """Kind → why this text says nothing about it: attending evenly would do, or no token comes twice.

    Raises:
        TokenError: it says nothing about any kind.
    """
    from cutaway.analysis.heads import OF_TOKENS, fewest_tokens

    evenness, causal = max(threshold, 0.4), network.cfg.attention_dir == "causal"
    longest = int(prompts.lengths.max())
    count = f"{longest} token{'s' * (longest != 1)}" + (" with BOS" if network.cfg.default_prepend_bos else "")
    why: dict[str, str] = {}
    for kind, even in zip(found.values.names("kind"), found.baseline.data.tolist(), strict=True):
        if even <= evenness:
            continue
        if kind in OF_TOKENS:
            why[kind] = "it needs a token that comes twice" + ("" if even != even else ", in a longer text")
        else:
            why[kind] = f"it needs a text of {fewest_tokens(kind, evenness, causal=causal)} tokens, and this is {count}"
    if len(why) == len(found.values.names("kind")):
        least = ", ".join(f"{kind} {fewest_tokens(kind, evenness, causal=causal)}" for kind in why if kind not in OF_TOKENS)
        raise TokenError(
            f"the text is {count}: too short to tell what heads do, as attending evenly scores above {evenness:g} in it. Tokens "
            f"needed: {least}; {', '.join(OF_TOKENS)} need a token that comes twice. Give a longer text, or no text"
        )
    return why


def _filled(columns: list[str], rows: list[list[Any]]) -> str:
    """A table without the columns that say nothing."""
    kept = [i for i in range(len(columns)) if any(row[i] != "" for row in rows)]
    return lines([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


@shared_options()
def attribute(
    request: Request,
    target: Annotated[
        str | None, typer.Option(help="The token whose logit is split. By default the answer, or the next one at each position.")
    ] = None,
    minus: Annotated[str | None, typer.Option(help="Split the difference to this token's logit.")] = None,
    positions: Positions = None,
) -> None:
    """Say what each component adds to a logit, directly."""
    from cutaway.analysis import attribution

    network, prompts = request.network, request.given_prompts
    other = None if minus is None else one_token(network, minus, "--minus", first=request.allow_first_token)
    targets, whose = _targets(request, target)
    places = positions_of(positions)
    found = attribution.attribute(network, prompts, targets=targets, minus=other, positions=places)
    count, single = int(found.counted.sum()), len(prompts) == 1 and places is not None and len(places) == 1
    if not count and places is not None:
        raise TokenError(f"position {positions} has no next token; give --target")
    if not count:
        raise TokenError("the text is one token, which none follows; give a longer text or --target")
    values, logit = found.values.mean("batch", "pos"), found.logit.mean()
    words = found.words[0]
    whole = "logit difference" if found.values.what.endswith("difference") else "logit"
    whose = found.of if whose is None else whose if minus is None else f"{whose} minus {minus!r}"
    where = f"mean over {count} position{'s' * (count != 1)}" + (f" of {len(prompts)} prompts" if len(prompts) > 1 else "")
    if single:
        at = int(found.counted[0].nonzero()[0])
        whose = whose if target is not None or prompts.right else f"{whose}, {_word(network, int(found.targets[0, at]))!r}"
        where = f"at position {at}, after {words[at]!r}"
    names = values.names("component")
    order, _ = request.rows(values.data.abs().argsort(descending=True).tolist())
    left = float(found.remainder.data[found.counted].abs().max())
    rest = len(names) - len(order)
    text = f"effect on the {whole} of {whose}; {where}\n"
    text += lines(["component", "effect"], [[names[i], f"{float(values.data[i]):+.3f}"] for i in order])
    if rest:
        others = float(values.data.sum() - values.data[order].sum())
        text += f"\n{rest} other{'s' * (rest != 1)}: {others:+.3f}"
    text += f"\n{whole} {logit.item():+.3f}; left over by the sum of all components: at most {left:.1e}"
    text += " (rounding)" if left < 1e-3 * max(1.0, abs(logit.item())) else ""
    numbers = {
        "positions": places,
        "of": whose,
        "logit": logit.item(),
        "components": values.as_dict(),
        "largest_left_over": left,
    }
    request.show(text, numbers, [("Attribution", found.figure())], f"Attribution in {request.model}", found)


@shared_options()
def lens(
    request: Request,
    of: Annotated[
        str, typer.Option(help="resid, attn_out, mlp_out, heads, or names of components: '0.1,1.attn'.", callback=lens_rows)
    ] = "resid",
    target: Annotated[str | None, typer.Option(help="The token whose probability and rank are shown.")] = None,
    layers: Layers = None,
    positions: Positions = None,
) -> None:
    """Say what the model would predict if it stopped at each layer, at one position of each text (by default the end)."""
    from cutaway.analysis import logit_lens as room

    network, prompts = request.network, request.given_prompts
    chosen: Any = of if of in room.STREAMS else [name.strip() for name in of.split(",")]
    place = (positions_of(positions) or ["end"])[0]
    at = prompts.at if positions is None and prompts.right else _own_place(place, prompts)
    targets, whose = _targets(request, target)
    first = prompts[[0]]
    shown_targets = targets[:1] if getattr(targets, "ndim", 0) > 1 else targets
    found = room.lens(network, first, of=chosen, targets=shown_targets)
    which = "" if len(prompts) == 1 else f", the first of {len(prompts)} prompts"
    figures = [(f"Layer by layer{which}", found.figure()), ("How far from the end", found.curve())]
    single, read = len(prompts) == 1, found.read
    if not single:  # of many prompts only these positions are computed
        found = room.lens_at(network, prompts, at, of=chosen, targets=targets)
        figures[1] = ("How far from the end", found.curve())
        at = at * 0
    wanted = found.targets.cpu()[range(len(prompts)), at]
    counted = wanted >= 0
    rows, numbers, chosen_layers = [], [], layers_of(layers, network.cfg.n_layers)
    for index, name in enumerate(found.values.names("row")):
        if (of_layer := re.match(r"\d+", name)) is not None and int(of_layer[0]) not in chosen_layers:
            continue
        fact = _lens_row(found, index, at)
        own = None if not bool(counted.any()) else float(fact["probability"][counted].mean())
        rank = None if own is None else float(fact["rank"][counted].float().median())
        best = [[found.words[token], chance] for token, chance in zip(fact["top"][0], fact["chances"][0], strict=True)]
        likeliest = "  ".join(f"{word!r} {chance:.2f}" for word, chance in best[:3])
        same = float((fact["first"] == found.final.cpu()[range(len(prompts)), at]).float().mean())
        likeliest = likeliest if single else f"{same:.0%}"
        measures = {key: float(fact[key].mean()) for key in ("kl", "entropy")}
        columns = ["", ""] if own is None else [f"{own:.4f}", f"{rank:g}"]
        rows.append([name, likeliest, *columns, f"{measures['kl']:.3f}", f"{measures['entropy']:.2f}"])
        told_of = {"target_probability": own, "target_rank": rank, **measures}
        numbers.append({"row": name, "top": best, "same_as_end": same, **told_of})
    asked_for = None if not bool(counted.any()) else _word(network, int(wanted[0])) if single else found_name(whose)
    text = _lens_text(asked_for, whose, target, read, at, place, single=single)
    column = "likeliest" if single else "same as the end"
    shown, more = request.rows(rows, last=True)  # of a deep network the layers where the answer comes up
    text += _filled(["row", column, "target", "rank", "KL to the end", "entropy"], shown) + (f"\n{more}" if more else "")
    position = int(at[0]) if single else place
    told_all = {"position": position, "target": asked_for, "rows": numbers}
    request.show(text, told_all, figures, f"Logit lens of {request.model}", found)


def _lens_row(found: Any, index: int, at: Any) -> dict[str, Any]:
    """What a lens holds of one row, at one position of each text."""
    each = range(len(at))
    facts = {name: getattr(found, name).data[index].cpu()[each, at] for name in ("kl", "entropy", "rank")}
    top, chances = found.top[index].cpu()[each, at], found.top_probability.data[index].cpu()[each, at]
    own = found.values.data[index].cpu()[each, at]
    return {**facts, "probability": own, "top": top.tolist(), "chances": chances.tolist(), "first": top[:, 0]}


def _lens_text(asked_for: Any, whose: str | None, target: str | None, read: Any, at: Any, place: Any, *, single: bool) -> str:
    """The line above the table."""
    here = int(at[0])
    where = f"at position {here}, after {read[0][here]!r}" if single else f"at {place}, means over {len(at)} prompts"
    if asked_for is None:
        return f"{where}; no token follows: --target says the probability and rank of one, --position looks elsewhere\n"
    plain = target is not None or whose is None or not single
    named = found_name(whose) if plain else f"{whose}, {asked_for!r}"
    named = f"{named}, {asked_for!r}" if whose is None and single else named
    return f"{where}; the target is {named}\n"


def found_name(whose: str | None) -> str:
    """Whose the targets are; of prompts with answers these."""
    return "the right answer" if whose is None else whose


@shared_options()
def predict(
    request: Request,
    rows: Annotated[int | None, typer.Option(min=0, help="How many tokens to print one by one; the same as --top.")] = None,
) -> None:
    """Say token by token what the model expected, and how often it was right.

    Text longer than the context is read in windows. A model of a task is scored on the answers of its task, prompts with answers
    on these.
    """
    from cutaway import tasks
    from cutaway.analysis.predictions import predict
    from cutaway.analysis.shared import tokens_of_text

    network = request.network
    text = request.long_text
    given = text if text is not None else request.given_prompts
    tokens, _ = tokens_of_text(network, given)
    answers = None if text is None and request.given_prompts.right else tasks.answers(network, tokens)
    found = predict(network, given, targets=answers)
    several, wrong = len(found.tokens) > 1, _wrong_answers(network, given, found)
    predictions, most = [*found.rows()], request.top if rows is None else rows
    most = len(predictions) if request.all_rows else 20 if most is None else most
    table: list[list[Any]] = []
    for row in predictions[:most]:
        table.append(
            [
                row["example"] if several else "",
                row["position"],
                "" if answers is None else repr(row["token"]),
                repr(row["target"]),
                repr(row["predicted"]),
                "yes" if row["right"] else "no",
                row["rank"],
                f"{row['probability']:.3f}",
                f"{row['loss']:.2f}",
                *wrong.get((row["example"], row["position"]), ("", "") if wrong else ()),
            ]
        )
    notes = [found.summary().splitlines()[0]]
    count = int(found.counted.sum())
    notes += [f"shown: the first {len(table)} of {count}; --top says how many"] if 0 < len(table) < count else []
    notes += [found.split] if found.windows > 1 else []
    if answers is not None:
        notes.append(f"scored on its task and not on next tokens: {tasks.summaries()[network.cfg.model_name]}")
    printed = "\n".join(notes)
    if table:
        head = ["after", "token"] if answers is None else ["position", "answer"]
        which = "window" if found.windows > 1 else "prompt"
        columns = [which, head[0], "token", head[1], "expected", "right", "rank", "probability", "loss"]
        columns += ["wrong answer", "its rank"] if wrong else []
        printed = _filled(columns, table) + "\n" + printed
    figures = [("Token by token", found.figure()), ("Loss by position", found.curve())]
    numbers = found.to_json()
    for row in numbers["tokens"]:
        if (other := wrong.get((row["example"], row["position"]))) is not None:
            row |= {"wrong": other[0], "wrong_rank": other[1]}
    request.show(printed, numbers, figures, f"Predictions of {request.model}", found)


def _wrong_answers(network: Any, given: Any, found: Any) -> dict[tuple[int, int], tuple[str, int]]:
    """Example and position → the first wrong answer of prompts that have some, and its rank."""
    import torch

    from cutaway.analysis.predictions import predict

    targets = torch.full(found.targets.shape, -1)
    for row, places in enumerate(getattr(given, "wrong", None) or ()):
        for position, ids in places.items():
            targets[row, position] = ids[0]
    if not bool((targets >= 0).any()):
        return {}
    other = predict(network, given, targets=targets)
    return {(row["example"], row["position"]): (repr(row["target"]), row["rank"]) for row in other.rows()}


@shared_options(model=False)
def neurons(
    request: Request,
    words: Annotated[
        list[str], typer.Argument(help="[MODEL] and then neurons (0.mlp.17) and heads (0.1).", metavar="[MODEL] FEATURE…")
    ],
    k: Annotated[int, typer.Option(min=1, help="How many texts to show for each.")] = 5,
) -> None:
    """Show the texts and tokens that activate neurons or heads most."""
    from cutaway.analysis.neurons import max_activating_texts

    named = not re.match(r"\d+\.", words[0])
    model, features = (words[0], words[1:]) if named else (None, words)
    request.options["model"] = model
    if not features:
        after = f"neurons needs at least one feature after {request.model!r}"
        raise UnknownName(f"{after}, such as 0.mlp.17 (a neuron) or 0.1 (a head)")
    for one in features:
        choices.writer(one)
    request.own["features"] = features
    network = request.network
    texts = request.long_text if request.long_text is not None else request.given_prompts
    found = max_activating_texts(network, features, texts, k=k)
    printed = found.summary(k)
    if found.examples > 1 and isinstance(texts, str):
        windows = f"{found.examples} windows of at most {network.cfg.n_ctx} tokens"
        printed += f"\nthe text is longer than the context and was read in {windows}"
    figures = [
        ("Texts that activate most", found.figure(k)),
        *((f"Tokens of {name}", found.token_figure(name)) for name in found.most),
    ]
    request.show(printed, found.to_json(), figures, f"Features of {request.model}", found)


@shared_options(model=False, text=False)
def circuit(
    request: Request,
    words: Annotated[
        list[str], typer.Argument(help="[MODEL] and 'embed -> 0.1 -> logits', 'qk 0.1' or 'ov 0.1'.", metavar="[MODEL] PATH")
    ],
) -> None:
    """Show what weights do along a path: the largest entries, and how much inputs raise themselves.

    Norm scales are measured on texts, where some are given; without, each counts as 1.
    """
    from cutaway.analysis import weight_circuits
    from cutaway.analysis.scales import norm_scales
    from cutaway.model.frozen_norms import norms_of

    starts = re.match(r"(embed|pos|qk|ov)\b", words[0])
    model, path = (None, " ".join(words)) if starts else (words[0], " ".join(words[1:]))
    request.options["model"] = model
    if not path:
        raise UnknownName(f"circuit needs a path after {request.model!r}, such as 'embed -> 0.1 -> logits', 'qk 0.1' or 'ov 0.1'")
    kind, _, head = path.strip().partition(" ")
    if kind in ("qk", "ov") and not head.strip():
        raise UnknownName(f"{kind} needs a head: layer.head, such as '{kind} 0.1'")
    if kind in ("qk", "ov"):
        choices.head(head.strip())
        request.own["head"] = [head.strip()]
    else:
        one_of(weight_circuits.spelled(path).source, weight_circuits.SOURCES, "start of a path")
        request.own["path"] = path
    network = request.network
    measured = bool(request.sources)
    top = request.top or 15
    scales = None
    if measured and norms_of(network.cfg):
        scales = norm_scales(network, request.given_prompts)
    if kind in ("qk", "ov"):
        made = weight_circuits.qk_circuit if kind == "qk" else weight_circuits.ov_circuit
        found = made(network, head.strip(), scales=scales)
    else:
        found = weight_circuits.path_circuit(network, path, scales=scales)
    with bar("looking for the largest entries") as progress:
        found.top(top, progress=progress)
    printed = [f"{found.name}: {found.what}, {found.shape[0]} × {found.shape[1]}"]
    printed.append(
        lines(
            [found.row_name, found.column_name, "value"],
            [[repr(row), repr(column), value] for row, column, value in found.top(top)],
        )
    )
    numbers: dict[str, Any] = {"name": found.name, "top": [list(entry) for entry in found.top(top)]}
    if found.unit == "logits" and found.rows == found.columns:
        numbers["copying_score"] = found.copying_score()
        printed.append(f"copying score {numbers['copying_score']:+.2f}")
    for norm, (mean, std) in (found.spread or {}).items():
        printed.append(f"scale of {norm} taken as {mean:.3g}; it spreads by ±{std:.2g}")
    if measured and not norms_of(network.cfg):
        printed.append("this network has no norms, so the text changes nothing")
    if not found.spread and norms_of(network.cfg):
        printed.append("norm scales count as 1; give --text or --file to measure them")
    request.show("\n".join(printed), numbers, [(found.name, found.figure())], f"Circuit of {request.model}", found)


@shared_options(without=("text", *SHARED))
def composition(
    request: Request,
    modes: Annotated[
        str, typer.Option(help="Some of Q, K, V: what the later head reads the earlier one with.", callback=known_modes)
    ] = "QKV",
) -> None:
    """Say which heads read what earlier heads write, beside random heads; and which heads copy."""
    from cutaway.analysis import head_composition as room

    network = request.network
    found = room.composition(network, modes.upper(), seed=request.seed)
    pairs = found.top(request.top or SCREEN)
    rows = [
        [mode, first, second, f"{score:.3f}", f"{found.excess.sel(mode=mode, earlier=first, later=second).item():+.1f}"]
        for mode, first, second, score in pairs
    ]
    text = lines(["mode", "earlier", "later", "score", "above random (σ)"], rows)
    figures = [("Composition", found.figure())]
    numbers: dict[str, Any] = {"top": [list(pair) for pair in pairs], "random": found.baseline.as_dict(6)}
    if network.cfg.d_vocab == network.cfg.d_vocab_out:
        copies = room.copying(network, seed=request.seed)
        text += "\n" + copies.summary()
        numbers["copying"] = copies.values.as_dict(6)
        figures.append(("Which heads copy", copies.figure()))
    request.show(text, numbers, figures, f"Composition in {request.model}", found)


def _targets(request: Request, target: str | None) -> tuple[Any, str | None]:
    """The targets of `--target`, else (None) the prompts' answers, else those of the model's task, else (None) the next tokens.

    And what to call them, where the analysis does not.
    """
    from cutaway import tasks

    network, prompts = request.network, request.given_prompts
    if target is not None:
        return one_token(network, target, "--target", first=request.allow_first_token), repr(target)
    if prompts.right:
        return None, None
    answers = tasks.answers(network, prompts.tokens.to(network.W_U.device))
    return answers, "the next token" if answers is None else "the right answer of its task"


def _own_place(place: str | int, prompts: Any) -> Any:
    """A position of each prompt, counted from its start; a number may be counted from the end."""
    length = int(prompts.lengths.min())
    if isinstance(place, int) and not -length <= place < length:
        raise TokenError(
            f"there is no position {place}: the text has {length} token{'s' * (length != 1)}, the first at position 0"
        )
    return prompts.place(place)


def _word(network: Any, token: int) -> str:
    from cutaway.analysis.shared import token_name

    return token_name(network, token)


COMMANDS = (heads, attribute, lens, predict, neurons, composition)  # `circuit` is one of the group in circuits.py
