"""Commands that ask a model one question: heads, attribute, lens, predict, neurons, circuit, composition.

Each prints a table, with `--json` the numbers, and with `--html FILE` writes a page that needs nothing else.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any

import typer

from cutaway.commands.shared import (
    DEFAULT,
    Device,
    File,
    Html,
    Json,
    Model,
    Text,
    given_text,
    lines,
    load,
    one_token,
    read_tokens,
    show,
)
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
    from cutaway.analysis.heads import KINDS, head_scores, on_random_repeats

    network = load(model, device)
    given = text is not None or file is not None
    if given:
        if random_repeats:
            raise TokenError("give either a text or --random-repeats")
        tokens = read_tokens(network, given_text(text, file, "heads"))
        found = head_scores(network, tokens)
        left_out = _too_short(network, found, tokens, threshold)
        kept = [kind for kind in found.values.names("kind") if kind not in left_out]
        found = replace(found, values=found.values.sel(kind=kept), baseline=found.baseline.sel(kind=kept))
    else:
        found = on_random_repeats(network, length=length, examples=examples, seed=seed)
        left_out = {}
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
    said = _filled(columns, rows) if rows else f"no head's mean attention is above {threshold:g} for {', '.join(report)}"
    said += "".join(f"\n{kind}: left out, as {why}" for kind, why in left_out.items())
    numbers = {
        "model": model,
        "threshold": threshold,
        "heads": report,
        "left_out": left_out,
        "scores": found.mean.as_dict(6),
        "even": found.baseline.as_dict(6),
    }
    show(said, numbers, [("What each head does", found.figure(threshold))], as_json=as_json, html=html, title=f"Heads of {model}")


def _too_short(network: Any, found: Any, tokens: Any, threshold: float) -> dict[str, str]:
    """Kind → why this text says nothing about it: attending evenly would do, or no token comes twice.

    Raises:
        TokenError: it says nothing about any kind.
    """
    from cutaway.analysis.heads import OF_TOKENS, fewest_tokens

    evenness, causal = max(threshold, 0.4), network.cfg.attention_dir == "causal"
    count = f"{tokens.shape[1]} token{'s' * (tokens.shape[1] != 1)}" + (" with BOS" if network.cfg.default_prepend_bos else "")
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
    tokens = read_tokens(network, given_text(text, file, "attribute"))
    at = None if position is None else _place(position, tokens)
    other = None if minus is None else one_token(network, minus, "--minus")
    targets, whose = _targets(network, tokens, target)
    found = attribution.attribute(network, tokens, targets=targets, minus=other)
    count = int(found.counted.sum())
    if not count:
        raise TokenError("the text is one token, which none follows; give a longer text or --target")
    if at is not None and not bool(found.counted[0, at]):
        raise TokenError(f"position {position} has no next token; give --target")
    values, logit = (found.values.mean("batch", "pos"), found.logit.mean()) if at is None else (
        found.values.sel(batch=0, pos=at), found.logit.sel(batch=0, pos=at)
    )  # fmt: skip
    words = [_word(network, token) for token in tokens[0].tolist()]
    whole = "logit" if minus is None else "logit difference"
    whose = whose if minus is None else f"{whose} minus {minus!r}"
    where = f"mean over {count} position{'s' * (count != 1)}"
    if at is not None:
        whose = whose if target is not None else f"{whose}, {_word(network, int(found.targets[0, at]))!r}"
        where = f"at position {at}, after {words[at]!r}"
    order = values.data.abs().argsort(descending=True)[:top].tolist()
    names = values.names("component")
    left = float(found.remainder.data[found.counted].abs().max())
    rest = len(names) - len(order)
    said = f"effect on the {whole} of {whose}; {where}\n"
    said += lines(["component", "effect"], [[names[i], f"{float(values.data[i]):+.3f}"] for i in order])
    if rest:
        others = float(values.data.sum() - values.data[order].sum())
        said += f"\n{rest} other{'s' * (rest != 1)}: {others:+.3f}"
    said += f"\n{whole} {logit.item():+.3f}; left over by the sum of all components: at most {left:.1e}"
    said += " (rounding)" if left < 1e-3 * max(1.0, abs(logit.item())) else ""
    numbers = {
        "model": model,
        "position": position,
        "of": whose,
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
    from cutaway.analysis import logit_lens as room

    network = load(model, device)
    tokens = read_tokens(network, given_text(text, file, "lens"))
    chosen: Any = of if of in room.STREAMS else [name.strip() for name in of.split(",")]
    at = _place(position, tokens)
    targets, whose = _targets(network, tokens, target)
    found = room.lens(network, tokens, of=chosen, targets=targets)
    words = [_word(network, token) for token in tokens[0].tolist()]
    wanted = int(found.targets[0, at])
    asked = None if wanted < 0 else _word(network, wanted)
    rows, numbers = [], []
    for index, name in enumerate(found.values.names("row")):
        ids, chances = found.top[index, 0, at].tolist(), found.top_probability.data[index, 0, at].tolist()
        best = [(found.words[token], chance) for token, chance in zip(ids, chances, strict=True)]
        facts = {key: float(getattr(found, key).data[index, 0, at]) for key in ("kl", "entropy")}
        own = None if asked is None else float(found.values.data[index, 0, at])
        rank = int(found.rank.data[index, 0, at])
        rows.append(
            [
                name,
                "  ".join(f"{word!r} {chance:.2f}" for word, chance in best[:3]),
                *(["", ""] if own is None else [f"{own:.4f}", rank]),
                f"{facts['kl']:.3f}",
                f"{facts['entropy']:.2f}",
            ]
        )
        numbers.append({"row": name, "top": best, "target_probability": own, "target_rank": rank, **facts})
    said = f"at position {at}, after {words[at]!r}; "
    if asked is None:
        said += "no token follows: --target says the probability and rank of one, --position looks elsewhere\n"
    else:
        said += f"the target is {whose if target is not None else f'{whose}, {asked!r}'}\n"
    said += _filled(["row", "likeliest", "target", "rank", "KL to the end", "entropy"], rows)
    figures = [("Layer by layer", found.figure(0, words)), ("How far from the end", found.curve())]
    show(
        said,
        {"model": model, "position": at, "target": asked, "rows": numbers},
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
    """Say token by token what the model expected, and how often it was right.

    Text longer than the context is read in windows. A model of a task is scored on the answers of its task.
    """
    from cutaway import tasks
    from cutaway.analysis.predictions import predict
    from cutaway.analysis.shared import tokens_of_text

    network = load(model, device)
    words = given_text(text, file, "predict")
    tokens, _ = tokens_of_text(network, words)
    answers = tasks.answers(network, tokens)
    found = predict(network, words, targets=answers)
    several = found.windows > 1
    table: list[list[Any]] = []
    for row in found.rows():
        if len(table) == rows:
            break
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
            ]
        )
    notes = [found.summary().splitlines()[0]]
    count = int(found.counted.sum())
    notes += [f"shown: the first {len(table)} of {count}; --rows says how many"] if 0 < len(table) < count else []
    notes += [found.split] if several else []
    if answers is not None:
        notes.append(f"scored on its task and not on next tokens: {tasks.summaries()[network.cfg.model_name]}")
    said = "\n".join(notes)
    if table:
        asked = ["after", "token"] if answers is None else ["position", "answer"]
        columns = ["window", asked[0], "token", asked[1], "expected", "right", "rank", "probability", "loss"]
        said = _filled(columns, table) + "\n" + said
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
    from cutaway.analysis.neurons import max_activating_texts

    named = not re.match(r"\d+\.", words[0])
    model, features = (words[0], words[1:]) if named else (DEFAULT, words)
    if not features:
        raise UnknownName(f"neurons needs at least one feature after {model!r}, such as 0.mlp.17 (a neuron) or 0.1 (a head)")
    network = load(model, device)
    found = max_activating_texts(network, features, given_text(text, file, "neurons"), k=k)
    said = found.summary(k)
    if found.examples > 1:
        windows = f"{found.examples} windows of at most {network.cfg.n_ctx} tokens"
        said += f"\nthe text is longer than the context and was read in {windows}"
    figures = [
        ("Texts that activate most", found.figure(k)),
        *((f"Tokens of {name}", found.token_figure(name)) for name in found.most),
    ]
    show(said, {"model": model, **found.to_json()}, figures, as_json=as_json, html=html, title=f"Features of {model}")


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
    from cutaway.analysis import weight_circuits
    from cutaway.analysis.scales import norm_scales
    from cutaway.model.frozen_norms import norms_of

    starts = re.match(r"(embed|pos|qk|ov)\b", words[0])
    model, path = (DEFAULT, " ".join(words)) if starts else (words[0], " ".join(words[1:]))
    if not path:
        raise UnknownName(f"circuit needs a path after {model!r}, such as 'embed -> 0.1 -> logits', 'qk 0.1' or 'ov 0.1'")
    network = load(model, device)
    measured = text is not None or file is not None
    scales = None
    if measured and norms_of(network.cfg):
        scales = norm_scales(network, read_tokens(network, given_text(text, file, "circuit")))
    kind, _, head = path.strip().partition(" ")
    if kind in ("qk", "ov"):
        if not head.strip():
            raise UnknownName(f"{kind} needs a head: layer.head, such as '{kind} 0.1'")
        made = weight_circuits.qk_circuit if kind == "qk" else weight_circuits.ov_circuit
        found = made(network, head.strip(), scales=scales)
    else:
        found = weight_circuits.path_circuit(network, path, scales=scales)
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
    if measured and not norms_of(network.cfg):
        said.append("this network has no norms, so the text changes nothing")
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
    from cutaway.analysis import head_composition as room

    network = load(model, device)
    found = room.composition(network, modes.upper())
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


def _targets(network: Any, tokens: Any, target: str | None) -> tuple[Any, str]:
    """The targets of `--target`, else the answers of the model's task, else (None) the next tokens; and what to call them."""
    from cutaway import tasks

    if target is not None:
        return one_token(network, target, "--target"), repr(target)
    answers = tasks.answers(network, tokens)
    return answers, "the next token" if answers is None else "the right answer of its task"


def _place(position: int, tokens: Any) -> int:
    """A position counted from the start; one of `--position` may be counted from the end."""
    length = int(tokens.shape[1])
    if not -length <= position < length:
        raise TokenError(
            f"there is no position {position}: the text has {length} token{'s' * (length != 1)}, the first at position 0"
        )
    return position % length


def _word(network: Any, token: int) -> str:
    from cutaway.analysis.shared import token_name

    return token_name(network, token)


COMMANDS = (heads, attribute, lens, predict, neurons, composition)  # `circuit` is one of the group in circuits.py
