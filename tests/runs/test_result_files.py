"""Results outside a run: saved and loaded, compared, shown in a notebook, drawn as images and by Plotly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file

import cutaway
from cutaway import view
from cutaway.errors import AlreadyThere, ConfigError, NotReadable, ShapeError
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts
from cutaway.runs.bars import DelayedBar
from cutaway.runs.edits import zero
from cutaway.runs.results import Labelled, Result, layers_by_heads
from cutaway.view import images

TEXTS = ["the king said to the queen", "a king and a queen of the"]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return cutaway.HookedTransformer.from_pretrained("attn-only-2l", device="cpu")


@pytest.fixture(scope="module")
def results(model: Transformer) -> dict[str, Result]:
    prompts = Prompts.of_texts(model, TEXTS[:1], answers=" the", wrong=" a", corrupted=["the queen said to the king"])
    return {
        "attribute": cutaway.attribute(model, TEXTS),
        "lens": cutaway.lens(model, TEXTS),
        "predict": cutaway.predict(model, TEXTS),
        "heads": cutaway.head_scores(model, TEXTS),
        "ablate_heads": cutaway.ablate_heads(model, TEXTS, kinds=["zero"], sites=["z"], baseline=2),
        "ablate": cutaway.ablate(model, TEXTS),
        "patch": cutaway.patch(model, prompts, kinds=["resid_pre", "z"]),
        "paths": cutaway.path_patch(model, prompts),
        "edges": cutaway.edge_attribution(model, prompts, steps=1),
        "neurons": cutaway.max_activating_texts(model, ["0.1"], TEXTS),
        "sweep": cutaway.sweep(model, prompts, zero().at(("z", 0))),
    }


NAMES = ["attribute", "lens", "predict", "heads", "ablate_heads", "ablate", "patch", "paths", "edges", "neurons", "sweep"]


@pytest.mark.parametrize("name", NAMES)
def test_a_result_comes_back_from_its_file(results: dict[str, Result], name: str, tmp_path: Path) -> None:
    found = results[name]
    again = cutaway.load(found.save(tmp_path / "x.cutaway"))
    assert type(again) is type(found) and again.summary() == found.summary()
    torch.testing.assert_close(again.values.data, found.values.data.cpu(), equal_nan=True)
    assert again.values.labels == found.values.labels and again.to_frame().equals(found.to_frame())
    if name != "sweep":  # one number has no figure
        assert again.figure().text == found.figure().text


@pytest.mark.parametrize("name", ["attribute", "sweep"])
def test_a_file_in_which_a_bit_has_changed_is_refused(results: dict[str, Result], name: str, tmp_path: Path) -> None:
    """Wherever it is: in a number, a label, a name."""
    path = results[name].save(tmp_path / "x.cutaway")
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for at in torch.randint(8, len(data), (150,), generator=generator).tolist():
        changed = bytearray(data)
        changed[at] ^= 1 << int(torch.randint(8, (), generator=generator))
        path.write_bytes(bytes(changed))
        try:
            found = cutaway.load(path)
        except NotReadable:
            continue
        assert found.to_json() == results[name].to_json(), at  # a blank between two words of the header


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_short_in_a_terminal_and_drawn_in_a_notebook(results: dict[str, Result], name: str) -> None:
    found = results[name]
    assert len(repr(found)) < 300 and type(found).__name__ in repr(found)
    html = found._repr_html_()
    assert html.startswith("<pre") and ("<iframe" in html or name == "sweep")


def test_models_caches_edits_and_prompts_are_short_too(model: Transformer) -> None:
    _, cache = model.run_with_cache(TEXTS[0])
    prompts = Prompts.of_texts(model, TEXTS, answers=" the", roles={"K": " king"})
    for thing in (model, cache, zero().at(("z", 0), heads=1), prompts, cutaway.contrast_vectors(model, TEXTS[:1], TEXTS[1:])[0]):
        assert len(repr(thing)) < 300 and "tensor(" not in repr(thing)
    for shown in (cache._repr_html_(), prompts._repr_html_()):
        assert "<table>" in shown
    assert "&lt;b&gt;" in Prompts.of_rows([[1]], texts=("<b>",))._repr_html_()


def test_a_difference_is_what_one_has_more(results: dict[str, Result], model: Transformer) -> None:
    other = cutaway.attribute(model, TEXTS[:1])
    found = cutaway.difference(results["attribute"], other)
    expected = results["attribute"].values.mean("batch", "pos").data - other.values.mean("batch", "pos").data
    torch.testing.assert_close(found.values.data, expected)
    assert "difference of effect on the logit" in found.summary() and found.figure() and found.overlay()
    nothing = cutaway.difference(other, other)
    assert float(nothing.values.data.abs().max()) == 0
    with pytest.raises(ShapeError, match="do not have the same axes and labels"):
        cutaway.difference(other, results["lens"])


def test_heads_are_a_map_of_layers_and_heads(results: dict[str, Result]) -> None:
    figure = results["ablate_heads"].figure()
    assert figure.view == "grid" and figure.arrays["p0"].shape == (2, 8)
    assert results["paths"].figure().arrays["p0"].shape == (2, 8)
    assert layers_by_heads(Labelled(torch.zeros(3), ("x",), {"x": ["0.0", "0.1", "bias"]})) is None


@pytest.mark.parametrize("damage", ["other", "cut", "class", "field", "none"])
def test_what_is_no_result_is_refused(results: dict[str, Result], damage: str, tmp_path: Path) -> None:
    path = results["lens"].save(tmp_path / "x.cutaway")
    data = path.read_bytes()
    if damage == "other":
        save_file({"a": torch.zeros(2)}, path)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "class":
        path.write_bytes(data.replace(b"cutaway.analysis.logit_lens:Lens", b"cutaway.analysis.logit_lens:Path"))
    elif damage == "field":
        path.write_bytes(data.replace(b"entropy", b"entropi"))
    else:
        path.unlink()
    with pytest.raises(NotReadable):
        cutaway.load(path)


def test_nothing_outside_results_is_made(tmp_path: Path) -> None:
    said = {"class": "os:system", "fields": {"command": "true"}}
    meta = {"format": "cutaway result 1", "result": json.dumps(said)}
    save_file({"a": torch.zeros(1)}, tmp_path / "x.cutaway", metadata=meta)
    with pytest.raises(NotReadable, match="is no class of results"):
        cutaway.load(tmp_path / "x.cutaway")


def test_a_figure_is_drawn_by_plotly(results: dict[str, Result]) -> None:
    pytest.importorskip("plotly")
    grid = results["ablate_heads"].plotly()
    assert [list(row) for row in grid.data[0].z] == results["ablate_heads"].figure().arrays["p0"].tolist()
    assert len(results["ablate"].plotly().data) == 2
    lines = view.line_chart({"a": [1.0, 2.0]}).plotly()
    assert list(lines.data[0].y) == [1.0, 2.0]
    with pytest.raises(ConfigError, match="has no counterpart in Plotly"):
        view.attention_patterns(["a"], torch.ones(1, 1, 1)).plotly()


@pytest.mark.skipif(not any(map(shutil.which, images.BROWSERS)), reason="no browser draws here")
def test_a_figure_is_saved_as_an_image(results: dict[str, Result], tmp_path: Path) -> None:
    path = results["ablate_heads"].figure().save(tmp_path / "x.png")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 5_000


@pytest.mark.skipif(not any(map(shutil.which, images.BROWSERS)), reason="no browser draws here")
def test_a_figure_is_saved_as_svg_and_hostile_words_stay_words(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    word = "</script><b>ü&"
    path = view.bar_chart([word, "b"], [1.0, -2.0], title="Bars").save(tmp_path / "x.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert word in {"".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")}


def test_a_bar_comes_late_and_only_where_somebody_looks(capsys: Any) -> None:
    quiet, early, late = DelayedBar("x", False), DelayedBar("x", True), DelayedBar("x", True)
    late.begun -= 10
    for bar in (quiet, early, late):
        bar(1, 2)
    assert quiet._shown is None and early._shown is None and late._shown is not None
    late(2, 2)
    assert late._shown is None


def test_a_name_without_an_ending_gets_one_and_is_found(results: dict[str, Result], tmp_path: Path) -> None:
    found = results["lens"]
    assert found.save(tmp_path / "kept") == tmp_path / "kept.cutaway"
    (tmp_path / "kept").mkdir()  # a folder of that name is no file
    assert cutaway.load(tmp_path / "kept").summary() == found.summary()
    assert found.page().save(tmp_path / "page").name == "page.html" and found.figure().save(tmp_path / "one").name == "one.html"
    with pytest.raises(AlreadyThere, match=r"kept\.cutaway"):
        found.save(tmp_path / "kept")
