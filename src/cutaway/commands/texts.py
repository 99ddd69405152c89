"""Commands about what comes next and what is looked at: next, generate, attention."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cutaway.commands import choices, console
from cutaway.commands.choices import layers_of
from cutaway.commands.prompt_options import Layers, Request, shared_options
from cutaway.commands.shaded import SHADES, shade
from cutaway.commands.shared import lines, one_token
from cutaway.errors import ConfigError, PromptError

DRAWN = 6  # prompts whose likeliest tokens a page draws as bars
WIDEST = 40  # tokens of an attention pattern that a terminal shows


@shared_options()
def next_(
    request: Request,
    word: Annotated[list[str] | None, typer.Option(help="Also say the rank of this token; may be repeated.")] = None,
    k: Annotated[
        int | None, typer.Option(min=1, help="How many of the likeliest tokens. By default 10, or of several texts one.")
    ] = None,
) -> None:
    """Say what comes after each text: the likeliest tokens, and the ranks of given words."""
    import torch

    from cutaway.analysis.shared import token_name

    network, prompts = request.network, request.given_prompts
    wanted = {one: one_token(network, one, "--word", first=request.allow_first_token) for one in word or ()}
    with torch.no_grad():
        resid = network(prompts, stop_at_layer=network.cfg.n_layers)
        last = resid[torch.arange(len(prompts)), prompts.place("end").to(resid.device)]
        chances = network.logits_of(last[:, None])[:, 0].float().softmax(-1)
    rows, numbers = [], []
    for number, chance in enumerate(chances):
        best = chance.topk(min(k or 10, len(chance)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [[token_name(network, token), value] for token, value in pairs]
        known = _answers_of(network, prompts, number)
        given: dict[str, dict[str, Any]] = {
            name: {"probability": float(chance[one]), "rank": int((chance > chance[one]).sum())}
            for name, one in (wanted | {name: token for name, (token, _) in known.items()}).items()
        }
        kinds = {name: kind for name, (_, kind) in known.items()}
        for name, kind in kinds.items():
            given[name] |= {"kind": kind}
        numbers.append({"text": prompts.texts[number] if prompts.texts else None, "top": top, "words": given})
        likeliest = top if len(chances) == 1 or k is not None else [top[0]]
        rows += [[number, repr(name), f"{value:.4f}", rank, kinds.get(name, "")] for rank, (name, value) in enumerate(likeliest)]
        rest = {name: one for name, one in given.items() if name not in dict(likeliest)}
        rows += [
            [number, repr(name), f"{one['probability']:.4f}", one["rank"], kinds.get(name, "")] for name, one in rest.items()
        ]
    single = len(chances) == 1
    last = 4 + any(row[4] for row in rows)
    shown, more = request.rows([row[single:last] for row in rows])
    text = lines(["prompt", "token", "probability", "rank", "which"][single:last], shown) + (f"\n{more}" if more else "")
    text += "" if single else _answers_text(numbers)
    figures = _next_figures(numbers) if request.html else []
    above = text if single else ""  # of several the table below has all of it
    request.show(text, {"next": numbers}, figures, f"What {request.model} expects", page_text=above)


def _answers_of(network: Any, prompts: Any, number: int) -> dict[str, tuple[int, str]]:
    """Name → token and kind ("answer" or "wrong answer") of what a prompt names."""
    from cutaway.analysis.shared import token_name

    named = {"answer": prompts.right, "wrong answer": prompts.wrong}
    return {
        token_name(network, ids[0]): (ids[0], kind)
        for kind, rows in named.items() if rows for ids in rows[number].values() if ids
    }  # fmt: skip


def _answers_text(numbers: list[dict[str, Any]]) -> str:
    """How often the answer is likeliest, and likelier than the wrong one, in a line each."""
    import statistics

    said = ""
    each = [{one["kind"]: one["rank"] for one in number["words"].values() if "kind" in one} for number in numbers]
    for kind in ("answer", "wrong answer"):
        ranks = [one[kind] for one in each if kind in one]
        if ranks:
            first = sum(rank == 0 for rank in ranks)
            said += f"\nthe {kind} is likeliest in {first} of {len(ranks)}; its median rank is {statistics.median(ranks):g}"
    both = [one["answer"] < one["wrong answer"] for one in each if len(one) == 2]
    return said + (f"\nthe answer is likelier than the wrong one in {sum(both)} of {len(both)}" if both else "")


def _next_figures(numbers: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Of several prompts a table of all, and bars of the first few."""
    from cutaway.view import bar_chart, table

    bars = [
        (one["text"] or f"prompt {at}", bar_chart([repr(name) for name, _ in one["top"]], [value for _, value in one["top"]],
         x_name="token", value_name="probability"))
        for at, one in enumerate(numbers[:DRAWN])
    ]  # fmt: skip
    if len(numbers) == 1:
        return bars
    columns = ["prompt", "likeliest", "probability", "asked about", "its probability", "its rank"]
    rows = []
    for at, one in enumerate(numbers):
        (likeliest, chance), asked = one["top"][0], one["words"] or {"": {"probability": "", "rank": ""}}
        rows += [
            [one["text"] or f"prompt {at}", repr(likeliest), chance, repr(word) if word else "", of["probability"], of["rank"]]
            for word, of in asked.items()
        ]
    heading = f"All {len(numbers)} prompts" + (f"; below, the first {DRAWN}" if len(numbers) > DRAWN else "")
    return [(heading, table(columns, rows)), *bars]


@shared_options()
def generate(
    request: Request,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to generate.")] = 40,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample among this many likeliest tokens.")] = None,
    zero: Annotated[
        list[str] | None,
        typer.Option(
            help="Without these: 0.3, 0.attn, 0.mlp, 0.mlp.17; several by commas.", callback=choices.names(choices.writer)
        ),
    ] = None,
) -> None:
    """Continue each text; with --zero without some heads, MLPs or neurons, beside what the whole model says.

    One text is printed as it is generated.
    """
    from cutaway.runs.generation import Sampling

    network, prompts = request.network, request.given_prompts
    edits = _zeros(network, zero or [])
    sampling = Sampling(temperature=temperature, top_k=top_k)
    texts = list(prompts.texts)
    streaming = len(texts) == 1 and not edits and not request.as_json
    runs = {"whole model": _continued(request, tokens, sampling, [], say=streaming)}
    if edits:
        runs[f"without {', '.join(zero or [])}"] = _continued(request, tokens, sampling, edits, say=False)
    numbers = {"texts": texts, "continuations": runs, "temperature": temperature}
    printed = "" if streaming else "\n".join(
        f"{text!r}\n" + "\n".join(f"  {name}: {found[at]!r}" for name, found in runs.items()) for at, text in enumerate(texts)
    )  # fmt: skip
    figures = _generated_figure(texts, runs) if request.html else []
    request.show(printed, numbers, figures, f"Texts of {request.model}", page_text="")  # the table holds what was printed


def _generated_figure(texts: list[str], runs: dict[str, list[str]]) -> list[tuple[str, Any]]:
    from cutaway.view import table

    rows = [[text, *(found[at] for found in runs.values())] for at, text in enumerate(texts)]
    return [("Continuations", table(["text", *runs], rows, title="Continuations"))]


def _zeros(network: Any, names: list[str]) -> list[Any]:
    from cutaway.analysis.ablation import ablation_of
    from cutaway.model.components import parse_writers

    return [edit for one in parse_writers(names, network.cfg) for edit in ablation_of(network, one)] if names else []


def _continued(request: Request, count: int, sampling: Any, edits: list[Any], *, say: bool) -> list[str]:
    """What each prompt is continued with; printed token by token where asked."""
    import torch

    from cutaway.runs.editing import edited
    from cutaway.runs.generation import stops_of, stream

    network, prompts = request.network, request.given_prompts
    pad = network.tokenizer.pad_token_id
    ids, mask = (one.to(network.W_U.device) for one in prompts.padded("left", pad))
    torch.manual_seed(request.seed)
    stops = stops_of(network)
    found: list[list[int]] = [[] for _ in range(len(prompts))]
    if say:
        console.echo(prompts.texts[0], nl=False)
    given = None if bool(mask.all()) else mask
    with edited(network, edits):
        for column in stream(network, ids, count, attention_mask=given, sampling=sampling, stop_tokens=stops):
            before = network.tokenizer.decode(found[0]) if say else ""
            for row, token in zip(found, column.tolist(), strict=True):
                row.append(token)
            if say:
                console.echo(network.tokenizer.decode(found[0])[len(before) :], nl=False)
    if say:
        console.echo("")
    return [str(network.tokenizer.decode(_until(row, stops))) for row in found]


def _until(row: list[int], stops: list[int]) -> list[int]:
    """A row without what stands behind its first stop token."""
    at = next((number for number, token in enumerate(row) if token in stops), len(row))
    return row[:at]


@shared_options()
def attention(
    request: Request,
    head: Annotated[
        list[str] | None,
        typer.Option(
            "--head",
            "--heads",
            help="layer.head, such as 3.1; several by commas. By default --layers.",
            callback=choices.names(choices.head),
        ),
    ] = None,
    layers: Layers = None,
) -> None:
    """Draw attention patterns: shaded blocks in the terminal, and with --html a page where every head can be looked at.

    The terminal shows the heads of --head, or, without, what each head of the layers attends to from the last token. Of several
    texts it is the mean attention between their roles.
    """
    import torch

    network, prompts = request.network, request.given_prompts
    columns = _columns(network, prompts)
    chosen = _heads(network, head, layers)
    sites = {f"blocks.{layer}.attn.hook_pattern": layer for layer in sorted({layer for layer, _ in chosen})}
    with torch.no_grad():
        _, store = network.run_with_cache(prompts, names_filter=list(sites), return_type=None)
    patterns = {layer: _between(store[name].float().cpu(), list(columns.values())) for name, layer in sites.items()}
    words = [word for _, word in columns]
    named = [(f"{layer}.{number}", patterns[layer][number]) for layer, number in chosen]
    elsewhere = "spread evenly" if len(prompts) == 1 else "other words"
    last, rest = request.rows([[name, *_looked_at(pattern[-1], words, elsewhere)] for name, pattern in named])
    drawn = head and not (request.html and len(words) > WIDEST)  # what is too wide for a terminal is on the page
    blocks = [shaded(pattern, words, name) for name, pattern in named] if drawn else []
    table = lines(["head", "from the last token to"], last) + (f"\n{rest}" if rest else "")
    if len(prompts) > 1:
        table += f"\nmeans over {len(prompts)} texts; what a head looks at beside these words is left out"
    numbers = {"tokens": words, "heads": {name: _rounded(pattern) for name, pattern in named}}
    figures = _attention_figures(words, named) if request.html else []
    request.show("\n\n".join([*blocks, table]), numbers, figures, f"Attention in {request.model}", page_text=table)


def _rounded(pattern: Any) -> list[list[float]]:
    return [[round(float(value), 4) for value in row] for row in pattern.tolist()]


def _heads(network: Any, names: list[str] | None, layers: str | None) -> list[tuple[int, int]]:
    from cutaway.model.components import parse_head

    if names:
        return [parse_head(one, network.cfg) for one in names]
    return [(layer, number) for layer in layers_of(layers, network.cfg.n_layers) for number in range(network.cfg.n_heads)]


def _columns(network: Any, prompts: Any) -> dict[tuple[int, str], Any]:
    """Number and word of each place that attention is drawn between → its position in each text.

    Of one text every token, of several their roles in the order of the texts, and the first token.

    Raises:
        PromptError: several texts without roles.
    """
    import torch

    from cutaway.analysis.shared import token_name

    if len(prompts) == 1:
        tokens = prompts.tokens[0].tolist()
        return {(at, token_name(network, token)): torch.tensor([at]) for at, token in enumerate(tokens)}
    if len(prompts.roles) < 2:
        raise PromptError(
            f"attention of {len(prompts)} texts is a mean between their roles, and these have none; give 'roles' in a pairs "
            "file, --behaviour, or one text alone, or ask `heads`"
        )
    places = dict(sorted(prompts.roles.items(), key=lambda one: float(one[1].float().mean())))
    if all(bool(where.any()) for where in places.values()):
        places = {"first": torch.zeros(len(prompts), dtype=torch.long), **places}
    return {(number, role): where for number, (role, where) in enumerate(places.items())}


def _between(pattern: Any, places: list[Any]) -> Any:
    """The attention `[head, place, place]` between places of each text, mean over texts, of `[text, head, dest, src]`."""
    import torch

    texts = torch.arange(len(pattern))
    rows = [torch.stack([pattern[texts, :, dest, src].mean(0) for src in places], -1) for dest in places]
    return torch.stack(rows, 1)


def _looked_at(row: Any, words: list[str], elsewhere: str) -> list[str]:
    """The tokens that one query looks at most."""
    best = row.topk(min(4, len(words)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return ["  ".join(f"{at} {words[at]!r} {value:.2f}" for at, value in pairs if value >= 0.05) or elsewhere]


def shaded(pattern: Any, words: list[str], name: str) -> str:
    """A pattern as blocks, a row for each query and a column for each key: darker is more.

    Raises:
        ConfigError: more tokens than a terminal shows.
    """
    if len(words) > WIDEST:
        raise ConfigError(f"a pattern of {len(words)} tokens is wider than a terminal; at most {WIDEST}, or give --html")
    width = max(len(repr(word)) for word in words)
    columns = "".join(f"{at % 100:>2}" if at % 2 == 0 else "  " for at in range(len(words)))
    rows = [f"{name}: each row looks at the columns; {SHADES[1]} from 0.05, {SHADES[-1]} from 0.75", " " * (width + 4) + columns]
    for at, word in enumerate(words):
        cells = "".join(2 * SHADES[shade(float(value))] for value in pattern[at])
        rows.append(f"{at:>3} {word!r:<{width}}{cells}".rstrip())
    return "\n".join(rows)


def _attention_figures(words: list[str], named: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    import torch

    from cutaway.view import attention_patterns

    patterns = torch.stack([pattern for _, pattern in named])
    return [("Attention", attention_patterns(words, patterns, [name for name, _ in named]))]


COMMANDS = {"next": next_, "generate": generate, "attention": attention}
