"""CircuitsVis' functions: every figure holds the tokens, names and values that it was given, and is HTML by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutaway import HookedTransformer
from cutaway.compat import forked, visuals
from cutaway.compat.rendered import Rendered, RenderedPage
from cutaway.errors import CutawayError, MissingActivation, ShapeError
from cutaway.view import Figure

WORDS = ["?", "</script>", "<s>", "c"]
PATTERN = (
    torch.tensor([[[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0], [0.1, 0.2, 0.3, 0.4]]] * 3)
    * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
)


def values(figure: Any, name: str = "patterns") -> Any:
    assert isinstance(figure, Rendered)
    return figure.arrays[name]


# ----------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize(
    "call",
    [
        lambda: visuals.attention_patterns(WORDS, PATTERN, ["a", "b", "c"]),
        lambda: visuals.attention_patterns(PATTERN, WORDS, ["a", "b", "c"]),
        lambda: visuals.attention_patterns(
            tokens=WORDS, attention=PATTERN.tolist(), attention_head_names=["a", "b", "c", "d", "e"]
        ),
        lambda: visuals.attention_heads(PATTERN.numpy(), WORDS, ["a", "b", "c"]),
        lambda: visuals.attention_heads(attention=PATTERN[None], tokens=WORDS, attention_head_names=["a", "b", "c"]),
    ],
)
def test_attention_in_every_form(call: Any) -> None:
    figure = call()
    assert figure.view == "attention" and figure.tokens == tuple(WORDS) and figure.meta["heads"] == ["a", "b", "c"]
    np.testing.assert_allclose(values(figure), PATTERN.numpy())
    assert figure.meta["scale"] == "sequential"


def test_heads_without_names_are_counted() -> None:
    assert visuals.attention_heads(PATTERN, WORDS).meta["heads"] == ["Head 0", "Head 1", "Head 2"]
    assert visuals.attention_patterns(WORDS, PATTERN, ["x"]).meta["heads"] == ["x", "Head 1", "Head 2"]


def test_colour_scales_follow_the_arguments() -> None:
    ranged = visuals.attention_heads(PATTERN, WORDS, max_value=2, min_value=0)
    assert ranged.meta["range"] == [0, 2] and ranged.meta["scale"] == "sequential"
    signed = visuals.attention_heads(PATTERN - 0.5, WORDS, max_value=3)
    assert signed.meta["range"] == [-3, 3] and signed.meta["scale"] == "diverging"
    full = torch.ones(1, 4, 4)
    assert values(visuals.attention_heads(full, WORDS)).sum() == 16
    np.testing.assert_array_equal(values(visuals.attention_heads(full, WORDS, mask_upper_tri=True))[0], np.tri(4))
    assert visuals.attention_pattern(WORDS, PATTERN[0], show_axis_labels=False, min_value=0.0, max_value=1.0).meta["range"] == [
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: visuals.attention_pattern(WORDS, PATTERN), "use attention_heads"),
        (lambda: visuals.attention_heads(PATTERN.repeat(2, 1, 1, 1), WORDS), "a batch of 2 texts"),
        (lambda: visuals.attention_heads(PATTERN, WORDS[:3]), "tokens has 3 labels"),
        (lambda: visuals.attention_heads(PATTERN, "?abc"), "is one string"),
        (lambda: visuals.colored_tokens_multi(WORDS, torch.zeros(3, 4)), "values has 3 rows"),
        (lambda: visuals.visualize_model_performance(torch.zeros(2, 4), WORDS, torch.zeros(4, 9)), "tokens are of one text"),
        (lambda: visuals.visualize_model_performance(torch.zeros(4), WORDS, torch.zeros(3, 9)), "3 rows of logits"),
        (lambda: visuals.topk_tokens([WORDS], []), "1 texts, but 0 arrays"),
    ],
)
def test_what_does_not_fit_is_said(call: Any, part: str) -> None:
    with pytest.raises(ShapeError) as caught:
        call()
    assert part in str(caught.value)


def test_a_result_is_a_figure_whose_text_is_html(tmp_path: Path) -> None:
    figure = visuals.attention_patterns(WORDS, PATTERN)
    html = str(figure)
    assert isinstance(figure, Figure) and html.startswith("<iframe") and html.count("<iframe") == 1
    assert html == figure.show_code() == figure.data == figure.local_src == figure.cdn_src == figure.__html__()
    assert "</script>&quot;" not in html and "https://" not in html
    bundle = figure._repr_mimebundle_()
    assert "3 heads, 4 × 4 tokens" in bundle["text/plain"] and bundle["text/html"].startswith("<iframe")
    assert figure.save(tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")


# --------------------------------------------------------------------------------------------------- tokens and neurons


def test_coloured_tokens() -> None:
    one = visuals.colored_tokens(WORDS, [0.1, -0.2, 0.3, 0.4], min_value=-1, max_value=1)
    assert one.meta["texts"] == [WORDS] and one.meta["range"] == [-1, 1]
    np.testing.assert_allclose(values(one, "v0"), [[0.1, -0.2, 0.3, 0.4]], rtol=1e-6)
    many = visuals.colored_tokens_multi(WORDS, torch.arange(8.0).reshape(4, 2), labels=["x", "y"])
    assert many.meta["menus"][0]["options"] == ["x", "y"] and values(many, "v0")[1].tolist() == [1, 3, 5, 7]


def test_model_performance_is_of_the_right_tokens() -> None:
    logits, tokens = torch.randn(1, 4, 9), torch.tensor([[3, 1, 4, 5]])
    figure = visuals.visualize_model_performance(tokens, WORDS, logits)
    assert figure.meta["texts"] == [WORDS[1:]] and figure.meta["menus"][0]["options"] == ["logits", "log_probs", "probs"]
    np.testing.assert_allclose(values(figure, "v0")[2], logits[0, [0, 1, 2]].softmax(-1)[[0, 1, 2], [1, 4, 5]], rtol=1e-5)


def test_log_probs_name_only_the_tokens_that_are_shown() -> None:
    asked = []

    def to_string(token: int) -> str:
        asked.append(token)
        return f"w{token}"

    log_probs = torch.randn(1, 4, 500).log_softmax(-1)
    figure = visuals.token_log_probs(torch.tensor([[1, 2, 3, 4]]), log_probs, to_string, top_k=2)
    assert figure.tokens == ("w1", "w2", "w3", "w4") and len(asked) <= 4 + 6
    np.testing.assert_allclose(values(figure, "own")[1:], log_probs[0, [0, 1, 2], [2, 3, 4]], rtol=1e-5)


def test_neurons_of_one_text_and_of_several() -> None:
    activations = torch.arange(24.0).reshape(4, 2, 3)
    one = visuals.text_neuron_activations(WORDS, activations, "Block", "Unit", ["p", "q"], ["r", "s", "t"])
    assert [menu["name"] for menu in one.meta["menus"]] == ["Block", "Unit"] and one.meta["menus"][1]["options"] == [
        "r",
        "s",
        "t",
    ]
    assert values(one, "v0")[5].tolist() == activations[:, 1, 2].tolist()
    two = visuals.text_neuron_activations([WORDS, WORDS[:2]], [activations, activations[:2]])
    assert len(two.meta["texts"]) == 2


def test_top_tokens_of_each_text() -> None:
    activations = np.arange(24.0).reshape(2, 4, 3)  # layer, token, neuron
    one = visuals.topk_tokens([WORDS], [activations], max_k=2, first_dimension_labels=["p", "q"])
    assert isinstance(one, Rendered) and one.meta["layers"] == ["p", "q"] and values(one, "value")[0, 0].tolist() == [9, 6]
    page = visuals.topk_tokens([WORDS, WORDS], [activations, -activations], sample_labels=["first", "second"])
    assert isinstance(page, RenderedPage) and len(page.figures) == 2 and "second" in page.html()
    assert str(page).startswith("<iframe") and page._repr_html_() == str(page) and "2 figures" in repr(page)


def test_top_samples_belong_to_their_neurons() -> None:
    tokens = [[[["a", "b"], ["c", "d"]], [["e", "f"], ["a", "b"]]]]  # one layer, two neurons, two samples each
    acts = [[[[0, 1], [0, 3]], [[5, 0], [0, 0]]]]
    figure = visuals.topk_samples(tokens, acts, "L", "N", ["zero"], ["p", "q"])
    assert figure.meta["menus"][0] == {"name": "L · N", "options": ["zero · p", "zero · q"]}
    shown = [[figure.meta["texts"][index] for index in row] for row in figure.meta["order"]]
    assert shown == [[["c", "d"], ["a", "b"]], [["e", "f"], ["a", "b"]]]
    assert "you" in visuals.hello("you").html()


# --------------------------------------------------------------------------------------------------------------- the fork


@pytest.fixture(scope="module")
def run() -> tuple[Any, Any, list[list[str]]]:
    model = HookedTransformer.from_pretrained("first-unique-char", device="cpu").requires_grad_(False)
    tokens = torch.tensor([[10, 0, 1, 0], [10, 2, 2, 3]])
    _, cache = model.run_with_cache(tokens)
    return model, cache, [model.to_str_tokens(row) for row in tokens]


def test_attention_from_a_cache(run: Any) -> None:
    model, cache, texts = run
    one = forked.from_cache(cache, texts, layers=-1, batch_idx=1, title="Last layer")
    assert one.tokens == tuple(texts[1]) and one.meta["heads"] == ["1.0", "1.1", "1.2"] and one.title == "Last layer"
    np.testing.assert_allclose(values(one), cache["pattern", 1][1], rtol=1e-6)
    some = forked.from_cache(cache, texts, heads=[(0, 2), (1, 0)], batch_idx=0, head_notation="LH", mode="large")
    assert some.meta["heads"] == ["L0H2", "L1H0"]
    np.testing.assert_allclose(values(some)[1], cache["pattern", 1][0, 0], rtol=1e-6)
    page = forked.from_cache(
        cache, texts, heads=(0, 1), batch_labels=lambda text: "<b>" + "".join(text) + "</b>", radioitems=True
    )
    assert len(page.figures) == 2 and "?aba" in page.html() and "&lt;b&gt;" not in page.html()
    by_index = forked.from_cache(cache, texts, heads=(0, 1), batch_labels=lambda index, text: f"text number {index}")
    assert "text number 1" in by_index.html()
    short = forked.from_cache(cache, [texts[0], texts[1][:2]], heads=(0, 1))
    assert values(short.figures[1]).shape == (1, 2, 2)
    _, alone = model.run_with_cache(torch.tensor([[10, 0, 1]]), remove_batch_dim=True)
    assert values(forked.from_cache(alone, list("?ab"))).shape == (6, 3, 3)


def test_attention_weighted_by_what_is_moved(run: Any) -> None:
    model, cache, texts = run
    plain = cache["pattern", 0][0, 1]
    v = cache["v", 0][0, :, 1]
    for kind, moved in (("value-weighted", v), ("info-weighted", v @ model.W_O[0, 1])):
        figure = forked.from_cache(cache, texts, heads=(0, 1), batch_idx=0, attention_type=kind)
        length = moved.norm(dim=-1)
        np.testing.assert_allclose(values(figure)[0], plain * (length / length.max()), rtol=1e-5)
    whole = forked.get_weighted_attention(cache["pattern", 0], model, "info-weighted", 0, cache["v", 0].transpose(1, 2))
    np.testing.assert_allclose(whole[0, 1], values(figure)[0], rtol=1e-5)
    assert torch.equal(cache["pattern", 0][0, 1], plain), "the cache is left alone"


def test_attention_from_values(run: Any) -> None:
    _, _, texts = run
    assert forked.from_values(PATTERN[0], WORDS).meta["heads"] == ["Head 1"]
    assert values(forked.from_values(PATTERN.numpy(), [WORDS])).shape == (3, 4, 4)
    batch = forked.from_values(PATTERN[None].repeat(2, 1, 1, 1), texts, attention_head_names=["x", "y", "z"], mode="large")
    assert len(batch.figures) == 2 and batch.figures[0].meta["heads"] == ["x", "y", "z"]
    assert len(forked.from_values(PATTERN[:2], texts).figures) == 2


def test_where_a_result_goes(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, cache, texts = run
    seen: list[Any] = []
    monkeypatch.setattr(forked, "display", seen.append)
    monkeypatch.setattr("webbrowser.open", seen.append)
    monkeypatch.chdir(tmp_path)
    assert forked.from_cache(cache, texts, batch_idx=0, return_mode="view") is None and isinstance(seen[0], Rendered)
    assert forked.from_cache(cache, texts, return_mode="browser") is None
    assert seen[1] == (tmp_path / "attention_0.html").as_uri() and (tmp_path / "attention_0.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"attention_type": "value-weigted"}, "did you mean 'value-weighted'"),
        ({"mode": "huge"}, "there are large, small, lines"),
        ({"return_mode": "screen"}, "there are html, browser, view"),
        ({"head_notation": "H"}, "there are dot, LH"),
        ({"heads": (0, 0), "layers": 1}, "not both"),
        ({"heads": [(2, 0)]}, "there is no head 2.0"),
        ({"tokens": list("?aba")}, "must be a list of texts"),
    ],
)
def test_wrong_questions_to_a_cache(run: Any, arguments: dict[str, Any], part: str) -> None:
    _, cache, texts = run
    with pytest.raises(CutawayError) as caught:
        forked.from_cache(cache, **{"tokens": texts, **arguments})
    assert part in str(caught.value)


def test_other_wrong_questions(run: Any) -> None:
    model, cache, texts = run
    _, patterns = model.run_with_cache(torch.tensor([[10, 0]]), names_filter=lambda name: name.endswith("pattern"))
    with pytest.raises(MissingActivation, match="hook_v"):
        forked.from_cache(patterns, ["?", "a"], attention_type="value-weighted")
    with pytest.raises(ShapeError, match="does not fit 2 texts"):
        forked.from_values(torch.zeros(3, 1, 4, 4), texts)
    with pytest.raises(ShapeError, match="2 names, and attention has 3 heads"):
        forked.from_values(PATTERN, WORDS, attention_head_names=["a", "b"])
    with pytest.raises(ShapeError, match="needs the value vectors"):
        forked.get_weighted_attention(cache["pattern", 0], model, "value-weighted")


def test_markup_in_tokens_becomes_text() -> None:
    assert forked.plain("<span style='color:red'>5</span> - ") == "5 - "
    assert forked.plain("<s>") == "<s>" and forked.plain("<|endoftext|>") == "<|endoftext|>" and forked.plain("<bos>") == "<bos>"
