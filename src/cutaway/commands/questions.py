"""Commands that ask a model one question: heads, attribute, lens, predict, neurons, circuit, composition.

Each prints a table, with `--json` the numbers, and with `--html FILE` writes a page that needs nothing else.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from cutaway.commands.shared import DEFAULT, Device, File, Html, Json, Model, Text, given_text, lines, load, show
from cutaway.errors import TokenError, UnknownName


def heads(
    model: Model = DEFAULT,
    text: Text = None,
    file: File = None,
    random_repeats: Annotated[
        bool, typer.Option("--random-repeats", help="Random tokens that come twice (where no text is given).")
    ] = False,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="The least mean attention that makes a head one of a kind.")
    ] = 0.4,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of the random half. By default 50, or what fits.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Random sequences.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens.")] = 0,
    device: Device = "cpu",
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Say which head attends to what: current, previous and first tokens, duplicates, induction."""
    from cutaway.analysis.heads import KINDS, on_random_repeats, scores

    network = load(model, device)
    if text is not None or file is not None:
        if random_repeats:
            raise TokenError("give either a text or --random-repeats")
        found = scores(network, given_text(text, file))
    else:
        found = on_random_repeats(network, length=length, examples=examples, seed=seed)
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
    said = lines(["kind", "head", "attention", "95%", "even", "attends to"], rows) if rows else found.summary(threshold)
    numbers = {
        "model": model,
        "threshold": threshold,
        "heads": report,
        "scores": found.mean.as_dict(6),
        "even": found.baseline.as_dict(6),
    }
    show(said, numbers, [("What each head does", found.figure(threshold))], as_json=as_json, html=html, title=f"Heads of {model}")


def attribute(
    model: Model = DEFAULT,
    text: Text = None,
    file: File = None,
    target: Annotated[
        str | None, typer.Option(help="The token whose logit is split. By default the next one at each position.")
    ] = None,
    minus: Annotated[str | None, typer.Option(help="Split the difference to this token's logit.")] = None,
    position: Annotated[int | None, typer.Option(help="One position; by default the mean over all.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many components to print.")] = 15,
    device: Device = "cpu",
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Say what each component adds to a logit, directly."""
    from cutaway.analysis import attribution

    network = load(model, device)
    tokens = _tokens(network, given_text(text, file, "attribute"))
    at = None if position is None else _place(position, tokens)
    found = attribution.attribute(network, tokens, targets=target, minus=minus)
    values, logit = (found.values.mean("batch", "pos"), found.logit.mean()) if at is None else (
        found.values.sel(batch=0, pos=at), found.logit.sel(batch=0, pos=at)
    )  # fmt: skip
    if logit.item() != logit.item():
        raise TokenError(f"position {position} has no next token; give --target")
    order = values.data.abs().argsort(descending=True)[:top].tolist()
    names = values.names("component")
    left = float(found.remainder.data[found.counted].abs().max())
    said = lines(["component", "logit"], [[names[i], f"{float(values.data[i]):+.3f}"] for i in order])
    said += f"\nlogit {logit.item():+.3f}; the components sum to it but for {left:.1e}"
    words = [_word(network, token) for token in tokens[0].tolist()]
    numbers = {
        "model": model,
        "position": position,
        "logit": logit.item(),
        "components": values.as_dict(),
        "largest_left_over": left,
    }
    show(said, numbers, [("Attribution", found.figure(0, words))], as_json=as_json, html=html, title=f"Attribution in {model}")


def lens(
    model: Model = DEFAULT,
    text: Text = None,
    file: File = None,
    of: Annotated[str, typer.Option(help="resid, attn_out, mlp_out, heads, or names of components: '0.1,1.attn'.")] = "resid",
    target: Annotated[str | None, typer.Option(help="The token whose probability and rank are shown.")] = None,
    position: Annotated[int, typer.Option(help="Which position to print.")] = -1,
    device: Device = "cpu",
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Say what the model would predict if it stopped at each layer."""
    from cutaway.analysis import lens as room

    network = load(model, device)
    tokens = _tokens(network, given_text(text, file, "lens"))
    chosen: Any = of if of in room.STREAMS else [name.strip() for name in of.split(",")]
    found = room.lens(network, tokens, of=chosen, targets=target)
    at = _place(position, tokens)
    rows, numbers = [], []
    for index, name in enumerate(found.values.names("row")):
        ids, chances = found.top[index, 0, at].tolist(), found.top_probability.data[index, 0, at].tolist()
        best = [(found.words[token], chance) for token, chance in zip(ids, chances, strict=True)]
        facts = {key: float(getattr(found, key).data[index, 0, at]) for key in ("kl", "entropy")}
        own = float(found.values.data[index, 0, at])
        rank = int(found.rank.data[index, 0, at])
        shown = ["-", "-"] if own != own else [f"{own:.4f}", rank]
        rows.append(
            [
                name,
                "  ".join(f"{word!r} {chance:.2f}" for word, chance in best[:3]),
                *shown,
                f"{facts['kl']:.3f}",
                f"{facts['entropy']:.2f}",
            ]
        )
        numbers.append(
            {"row": name, "top": best, "target_probability": None if own != own else own, "target_rank": rank, **facts}
        )
    said = lines(["row", "likeliest", "target", "rank", "KL to the end", "entropy"], rows)
    words = [_word(network, token) for token in tokens[0].tolist()]
    figures = [("Layer by layer", found.figure(0, words)), ("How far from the end", found.curve())]
    show(
        said,
        {"model": model, "position": at, "rows": numbers},
        figures,
        as_json=as_json,
        html=html,
        title=f"Logit lens of {model}",
    )


def predict(
    model: Model = DEFAULT,
    text: Text = None,
    file: File = None,
    rows: Annotated[int, typer.Option(min=0, help="How many tokens to print one by one.")] = 30,
    device: Device = "cpu",
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Say token by token what the model expected, and how often it was right."""
    from cutaway.analysis.predictions import read

    found = read(load(model, device), given_text(text, file, "predict"))
    table: list[list[Any]] = []
    for row in found.rows():
        if len(table) == rows:
            break
        table.append(
            [
                row["position"],
                repr(row["target"]),
                repr(row["predicted"]),
                "yes" if row["right"] else "",
                row["rank"],
                f"{row['probability']:.3f}",
                f"{row['loss']:.2f}",
            ]
        )
    said = found.summary().splitlines()[0]
    if table:
        said = lines(["after", "token", "expected", "right", "rank", "probability", "loss"], table) + "\n" + said
    figures = [("Token by token", found.figure()), ("Loss by position", found.curve())]
    show(said, {"model": model, **found.to_json()}, figures, as_json=as_json, html=html, title=f"Predictions of {model}")


def neurons(
    words: Annotated[
        list[str], typer.Argument(help="[MODEL] and then neurons (0.mlp.17) and heads (0.1).", metavar="[MODEL] FEATURE…")
    ],
    text: Text = None,
    file: File = None,
    k: Annotated[int, typer.Option(min=1, help="How many texts to show for each.")] = 5,
    device: Device = "cpu",
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Show the texts and tokens that activate neurons or heads most."""
    from cutaway.analysis.neurons import activating

    named = not re.match(r"\d+\.", words[0])
    model, features = (words[0], words[1:]) if named else (DEFAULT, words)
    if not features:
        raise UnknownName(f"neurons needs at least one feature after {model!r}, such as 0.mlp.17 (a neuron) or 0.1 (a head)")
    found = activating(load(model, device), features, given_text(text, file, "neurons"), k=k)
    figures = [
        ("Texts that activate most", found.figure(k)),
        *((f"Tokens of {name}", found.token_figure(name)) for name in found.most),
    ]
    show(found.summary(k), {"model": model, **found.to_json()}, figures, as_json=as_json, html=html, title=f"Features of {model}")


def circuit(
    words: Annotated[
        list[str], typer.Argument(help="[MODEL] and 'embed -> 0.1 -> logits', 'qk 0.1' or 'ov 0.1'.", metavar="[MODEL] PATH")
    ],
    text: Annotated[str | None, typer.Option(help="Text to measure norm scales on; without, each counts as 1.")] = None,
    file: File = None,
    top: Annotated[int, typer.Option(min=1, help="How many entries to print.")] = 15,
    device: Device = "cpu",
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Show what weights do along a path: the largest entries, and how much inputs raise themselves."""
    from cutaway.analysis import circuits
    from cutaway.analysis.scales import norm_scales, norms_of

    starts = re.match(r"(embed|pos|qk|ov)\b", words[0])
    model, path = (DEFAULT, " ".join(words)) if starts else (words[0], " ".join(words[1:]))
    if not path:
        raise UnknownName(f"circuit needs a path after {model!r}, such as 'embed -> 0.1 -> logits', 'qk 0.1' or 'ov 0.1'")
    network = load(model, device)
    measured = text is not None or file is not None
    scales = norm_scales(network, given_text(text, file)) if measured and norms_of(network.cfg) else None
    kind, _, head = path.strip().partition(" ")
    if kind in ("qk", "ov"):
        made = circuits.qk if kind == "qk" else circuits.ov
        found = made(network, head.strip(), scales=scales)
    else:
        found = circuits.path(network, path, scales=scales)
    said = [f"{found.name}: {found.what}, {found.shape[0]} × {found.shape[1]}"]
    said.append(
        lines(
            [found.row_name, found.column_name, "value"],
            [[repr(row), repr(column), value] for row, column, value in found.top(top)],
        )
    )
    numbers: dict[str, Any] = {"model": model, "name": found.name, "top": [list(entry) for entry in found.top(top)]}
    if found.unit == "logits" and found.rows == found.columns:
        numbers["copying_score"] = found.copying_score()
        said.append(f"copying score {numbers['copying_score']:+.2f}")
    for norm, (mean, std) in (found.spread or {}).items():
        said.append(f"scale of {norm} taken as {mean:.3g}; it spreads by ±{std:.2g}")
    if not found.spread and norms_of(network.cfg):
        said.append("norm scales count as 1; give --text or --file to measure them")
    show("\n".join(said), numbers, [(found.name, found.figure())], as_json=as_json, html=html, title=f"Circuit of {model}")


def composition(
    model: Model = DEFAULT,
    modes: Annotated[str, typer.Option(help="Some of Q, K, V: what the later head reads the earlier one with.")] = "QKV",
    top: Annotated[int, typer.Option(min=1, help="How many pairs to print.")] = 12,
    device: Device = "cpu",
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Say which heads read what earlier heads write, beside random heads; and which heads copy."""
    from cutaway.analysis import composition as room

    network = load(model, device)
    found = room.composition(network, modes)
    pairs = found.top(top)
    rows = [
        [mode, first, second, f"{score:.3f}", f"{found.excess.sel(mode=mode, earlier=first, later=second).item():+.1f}"]
        for mode, first, second, score in pairs
    ]
    said = lines(["mode", "earlier", "later", "score", "above random (σ)"], rows)
    figures = [("Composition", found.figure())]
    numbers: dict[str, Any] = {"model": model, "top": [list(pair) for pair in pairs], "random": found.baseline.as_dict(6)}
    if network.cfg.d_vocab == network.cfg.d_vocab_out:
        copies = room.copying(network)
        said += "\n" + copies.summary()
        numbers["copying"] = copies.values.as_dict(6)
        figures.append(("Which heads copy", copies.figure()))
    show(said, numbers, figures, as_json=as_json, html=html, title=f"Composition in {model}")


def _tokens(network: Any, text: str) -> Any:
    from cutaway.analysis.asking import as_tokens

    return as_tokens(network, text)


def _place(position: int, tokens: Any) -> int:
    """A position counted from the start; one of `--position` may be counted from the end."""
    length = int(tokens.shape[1])
    if not -length <= position < length:
        raise TokenError(f"there is no position {position}: the text has {length} tokens")
    return position % length


def _word(network: Any, token: int) -> str:
    from cutaway.analysis.asking import token_name

    return token_name(network, token)


COMMANDS = (heads, attribute, lens, predict, neurons, circuit, composition)
