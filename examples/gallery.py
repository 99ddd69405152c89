"""The gallery: every view with the code that makes it, as one page and as docs/gallery.md.

    python examples/gallery.py [--out out/gallery.html]     # the page (make gallery)
    python examples/gallery.py --docs                        # docs/gallery.md and its pictures (needs Node and Chromium)

The arrays are made up, from a fixed seed: what matters here is how figures look and what they are given.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cutaway import view

ROOT = Path(__file__).resolve().parents[1]
TEXT = ["<s>", "When", " Mary", " and", " John", " went", " to", " the", " store", ",", " John", " gave", " a", " drink", " to"]
rng = np.random.default_rng(0)


def patterns(*heads: int, tokens: list[str]) -> np.ndarray:
    """Made-up attention: heads that look at themselves, one back, at the start, and at earlier copies."""
    n = len(tokens)
    back = np.subtract.outer(np.arange(n), np.arange(n))
    copies = np.array([[tokens[max(d - 1, 0)] == tokens[max(s - 1, 0)] for s in range(n)] for d in range(n)])
    shapes = [-0.5 * back, -3.0 * abs(back - 1), 4.0 * (np.arange(n) == 0) - 0 * back, 6.0 * (copies & (back > 0)) - 0.1 * back]
    kinds = rng.permutation(np.resize(np.arange(4), int(np.prod(heads)))).reshape(heads)
    scores = np.stack(shapes)[kinds] + rng.normal(0, 0.7, (*heads, n, n))
    weights = np.where(np.tri(n, dtype=bool), np.exp(scores), 0)
    return weights / weights.sum(-1, keepdims=True)


def attention_patterns() -> view.Figure:
    """Thumbnails of all heads, the chosen one large, and the text coloured by what it looks at."""
    return view.attention_patterns(TEXT, patterns(8, tokens=TEXT), title="Attention in layer 5")


def head_gallery() -> view.Figure:
    """Every head of a model, a row for each layer."""
    return view.head_gallery(TEXT, patterns(4, 8, tokens=TEXT))


def head_types() -> view.Figure:
    """Which kind of head is where: a letter and a colour for each kind that passes the threshold."""
    kinds = ["previous token", "induction", "duplicate token", "first token"]
    scores = {kind: rng.beta(0.4, 1.6, (6, 12)) for kind in kinds}
    return view.head_types(scores, threshold=0.5)


def circuit_layers() -> view.Figure:
    """A circuit: layers up, components across. A click on an edge shows the attention patterns behind it."""
    edges = [
        ("embed", "0.4.v"), ("embed", "0.mlp"), ("0.mlp", "1.5.v"), ("0.4", "1.5.k"), ("0.4", "1.7.k"), ("0.4", "1.0.k"),
        ("1.5", "logits"), ("1.0", "logits"), ("1.7", "2.1.q"), ("2.1", "logits"), ("1.5", "2.mlp"), ("2.mlp", "logits"),
    ]  # fmt: skip
    heads = ["0.4", "1.0", "1.5", "1.7", "2.1"]
    behind = dict(zip(heads, patterns(len(heads), tokens=TEXT), strict=True))
    return view.circuit_layers(edges, rng.normal(size=len(edges)), patterns=behind, tokens=TEXT, patterns_of="One prompt.")


def colored_tokens() -> view.Figure:
    """A text coloured by one value of several."""
    values = rng.normal(size=(3, len(TEXT)))
    return view.colored_tokens(TEXT, values, ["towards Mary", "towards John", "difference"], title="Projection on a direction")


def token_log_probs() -> view.Figure:
    """How well each token was predicted, and what was expected in its place."""
    vocabulary = sorted({*TEXT, " store", " park", " school", " ball", " kiss", " Mary", " gave", " took", "."})
    ids = [vocabulary.index(token) for token in TEXT]
    logits = rng.normal(0, 2, (len(TEXT), len(vocabulary)))
    logits[np.arange(len(TEXT) - 1), ids[1:]] += 3
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return view.token_log_probs(TEXT, log_probs, vocabulary, ids, k=6)


def text_neuron_activations() -> view.Figure:
    """Texts coloured by one neuron, chosen by layer and number."""
    texts = [TEXT, TEXT[:9]]
    activations = [np.maximum(0, rng.normal(size=(len(text), 2, 16))) for text in texts]
    return view.text_neuron_activations(texts, activations, scale="sequential")


def topk_tokens() -> view.Figure:
    """For each neuron, the tokens that activate it most and least."""
    return view.topk_tokens(TEXT, rng.normal(size=(len(TEXT), 2, 16)), k=6)


def top_samples() -> view.Figure:
    """For each neuron, the texts that activate it most."""
    texts = [list(rng.permutation(TEXT)) for _ in range(12)]
    return view.top_samples(texts, [rng.normal(size=(4, len(text))) for text in texts], k=4)


def lens_grid() -> view.Figure:
    """The logit lens: what each layer would predict at each position, and how surely."""
    sure = np.linspace(0.02, 0.9, 6)[:, None] * rng.uniform(0.6, 1, (6, len(TEXT)))
    predicted = [
        [TEXT[min(p + 1, len(TEXT) - 1)] if rng.random() < layer / 5 else rng.choice(TEXT) for p in range(len(TEXT))]
        for layer in range(6)
    ]
    return view.lens_grid(TEXT, sure, predicted)


def attribution() -> view.Figure:
    """What each component adds to each answer; the sum, and what is left over."""
    components = [
        "embed",
        "pos_embed",
        *(f"L{layer}H{head}" for layer in range(2) for head in range(4)),
        "mlp 0",
        "mlp 1",
        "bias",
    ]
    answers = list("abcdef")
    values = rng.normal(0, 0.6, (len(components), 9, len(answers)))
    correct = rng.integers(0, len(answers), 9)
    values[5, np.arange(9), correct] += 3
    total = values.sum(0) + rng.normal(0, 0.01, (9, len(answers)))
    return view.attribution(values, components, list("?adbcafe?"), answers, total=total, correct=correct)


def attribution_of_one_answer() -> view.Figure:
    """The same for a single number, for example a difference of two logits: component × position."""
    components = ["embed", *(f"L{layer} attn" for layer in range(6)), *(f"L{layer} mlp" for layer in range(6))]
    values = rng.normal(0, 0.4, (len(components), len(TEXT)))
    return view.attribution(values, components, TEXT, total=values.sum(0), answer_name="logit difference")


def sweep_grid() -> view.Figure:
    """A sweep of patches: how much of the right answer each layer and position brings back."""
    values = np.zeros((3, 12, len(TEXT)))
    values[0, :7, 10], values[0, 7:, -1] = 1, 1
    values += rng.normal(0, 0.04, values.shape)
    values[1, 6:9, -1] += 0.5
    return view.sweep_grid(values, None, TEXT, kinds=["resid_pre", "attn_out", "mlp_out"], title="Patching from the clean run")


def heat_map() -> view.Figure:
    """Any matrix: here with a mark, a value that is missing and one that is infinite."""
    values = rng.normal(size=(6, 18))
    values[2, 3], values[4, 9] = np.nan, np.inf
    return view.heat_map(
        values,
        x_name="position",
        y_name="layer",
        value_name="score",
        title="A matrix",
        marks=[(1, 5, "the largest before training")],
    )


def small_multiples() -> view.Figure:
    """Several matrices with one colour scale and one selection."""
    letters = list("abcdefgh")
    heads = {f"head {head}": rng.normal(size=(8, 8)) + 3 * np.eye(8) * (head % 2) for head in range(6)}
    return view.small_multiples(heads, letters, letters, x_name="to (key)", y_name="from (query)", title="QK circuits")


def circuit() -> view.Figure:
    """A circuit matrix with quadrants: tokens and positions."""
    labels = [*"abcdefghij", *(f"pos {i}" for i in range(8))]
    values = rng.normal(0, 0.5, (18, 18)) + 2 * np.eye(18)
    return view.circuit(values, labels, labels, splits={"x": [10], "y": [10]}, title="Full QK circuit")


def vocabulary_circuit() -> view.Figure:
    """A circuit over a vocabulary, from its two factors: tokens are searched, the matrix is never kept."""
    words = [
        f"{space}{word}{end}"
        for space in ("", " ")
        for word in ("red", "blue", "dog", "cat", "one", "two")
        for end in ("", "s", "ly")
    ]
    left = rng.normal(size=(len(words), 8))
    return view.vocabulary_circuit(left, left.T + rng.normal(0, 0.3, (8, len(words))), words, title="OV circuit of one head")


def line_chart() -> view.Figure:
    """Lines with intervals and a reference."""
    step = np.arange(0, 2000, 50)
    rise = 1 / (1 + np.exp(-(step - 900) / 120))
    noisy = rise + rng.normal(0, 0.02, len(step))
    return view.line_chart(
        {"trained": noisy, "shuffled labels": rng.normal(0.1, 0.02, len(step))},
        step,
        intervals={"trained": [noisy - 0.06, noisy + 0.06]},
        x_name="step",
        y_name="accuracy",
        title="An ability appears",
        references={"chance": 0.1},
    )


def bar_chart() -> view.Figure:
    """Bars with intervals."""
    heads = [f"L{layer}H{head}" for layer in range(2) for head in range(8)]
    values = rng.normal(0, 0.3, 16) + 2.5 * (np.arange(16) == 11)
    return view.bar_chart(
        heads,
        values,
        intervals=[values - 0.2, values + 0.2],
        x_name="head",
        value_name="logits lost when ablated",
        title="Ablation",
    )


def steering_response() -> view.Figure:
    """How answers change with the strength of a steering vector, beside random directions."""
    strength = np.linspace(-4, 4, 17)
    curves = {"direction": np.tanh(strength), "random": 0.1 * np.sin(strength)}
    return view.steering_response(strength, curves, intervals={"random": [curves["random"] - 0.2, curves["random"] + 0.2]})


def table() -> view.Figure:
    """A table that can be sorted."""
    rows = [["L5H5", "induction", 0.93], ["L4H11", "previous token", 0.99], ["L0H1", "duplicate token", 0.71], ["L3H0", "", 0.02]]
    return view.table(["head", "kind", "score"], rows, title="Heads by kind")


VIEWS: list[Callable[[], view.Figure]] = [
    attention_patterns,
    head_gallery,
    head_types,
    colored_tokens,
    token_log_probs,
    text_neuron_activations,
    topk_tokens,
    top_samples,
    lens_grid,
    attribution,
    attribution_of_one_answer,
    sweep_grid,
    heat_map,
    small_multiples,
    circuit,
    vocabulary_circuit,
    line_chart,
    bar_chart,
    steering_response,
    table,
    circuit_layers,
]


def figures() -> dict[str, view.Figure]:
    """Every view's example by name, always the same."""
    global rng
    made = {}
    for example in VIEWS:
        rng = np.random.default_rng(len(made) + 1)
        made[example.__name__] = example()
    return made


def code(example: Callable[..., Any]) -> str:
    """The lines of an example, without its frame."""
    lines = inspect.getsource(example).splitlines()
    start = next(number for number, line in enumerate(lines) if '"""' in line) + 1
    return "\n".join(line.removeprefix("    ") for line in lines[start:]).replace("return ", "figure = ", 1)


def heading(example: Callable[..., Any]) -> str:
    """`head_types` → Head types."""
    return example.__name__.replace("_", " ").capitalize()


def page() -> view.Page:
    """The gallery as one page."""
    made = figures()
    sections = [
        view.Section(heading(example), [str(example.__doc__), made[example.__name__], view.Code(code(example))])
        for example in VIEWS
    ]
    return view.page("Figures", sections, subtitle="Every view, with the code that makes it. The arrays are made up.")


def markdown() -> str:
    """docs/gallery.md."""
    parts = [
        "# Gallery\n\nEvery view of `cutaway.view`, with the code that makes it. The arrays are made up: `rng` is a NumPy "
        "generator, `TEXT` a list of\ntokens and `patterns` a function that invents attention (`examples/gallery.py` has them). "
        "`make gallery` writes the same as\none page, alive; signatures are in [design/figures.md](design/figures.md).\n"
    ]
    for example in VIEWS:
        parts.append(f"## {heading(example)}\n\n{example.__doc__}\n\n```python\n{code(example)}\n```\n")
        parts.append(f"![{heading(example)}](gallery/{example.__name__}.png)\n")
    return "\n".join(parts)


def write_docs() -> None:
    """docs/gallery.md, and a picture of each view drawn by Chromium."""
    (ROOT / "docs" / "gallery.md").write_text(markdown(), encoding="utf-8")
    pictures = ROOT / "docs" / "gallery"
    pictures.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for name, figure in figures().items():
            file = figure.save(Path(folder) / f"{name}.html", replace=True)
            commands.append({"command": "open", "file": str(file), "width": 860, "height": 700})
            commands.append({"command": "picture", "path": str(pictures / f"{name}.png"), "selector": ".cutaway"})
        lines = "".join(json.dumps(command) + "\n" for command in commands)
        subprocess.run(["node", "browser.mjs"], input=lines, text=True, cwd=ROOT / "ui", check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gallery.html"))
    parser.add_argument("--docs", action="store_true", help="write docs/gallery.md and its pictures")
    options = parser.parse_args()
    if options.docs:
        write_docs()
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        print(page().save(options.out, replace=True))
