"""What a result was computed by: every analysis keeps it, a page and a file say it."""

from __future__ import annotations

import gc
import inspect
import typing
from pathlib import Path
from typing import Any

import pytest

import cutaway
from cutaway.prompts import Prompts
from cutaway.runs.hashes import model_hash
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Result

TEXTS = ["the king said to the queen", "a king and a queen of the"]


def analyses() -> dict[str, Any]:
    """Every public function that returns a result."""
    found = {}
    for name in cutaway._HOME:
        thing = getattr(cutaway, name)
        if inspect.isfunction(thing):
            kind = typing.get_type_hints(thing).get("return")
            if isinstance(kind, type) and issubclass(kind, Result) and kind is not Result:
                found[name] = thing
    return found


def test_every_analysis_keeps_where_its_result_came_from() -> None:
    found = analyses()
    made_elsewhere = {"difference"}  # of two results, each with its own
    assert len(found) > 20
    lacking = {name for name, one in found.items() if not hasattr(one, "keeps_provenance")} - made_elsewhere
    assert not lacking, f"give these @with_provenance: {lacking}"


@pytest.fixture(scope="module")
def model() -> Any:
    return cutaway.HookedTransformer.from_pretrained("attn-only-2l", device="cpu")


def test_the_call_the_model_and_the_prompts_are_said(model: Any, tmp_path: Path) -> None:
    prompts = Prompts.of_texts(model, TEXTS[:1], answers=" the", wrong=" a", corrupted=["the queen said to the king"])
    found = cutaway.patch(model, prompts, kinds=["z"], positions=["end"], baseline=2)
    assert found.provenance is not None
    assert found.provenance.call == "patch(model, prompts, kinds=['z'], positions=['end'], baseline=2)"
    told = found.provenance.to_json()
    assert told["hash"] == model_hash(model)
    assert told["prompts"]["said"] == "1 prompt of 7 tokens in pairs"
    assert told["prompts"]["columns"] == ["clean", "corrupted", "answer", "wrong"]
    assert told["prompts"]["rows"] == [[TEXTS[0], "the queen said to the king", "' the'", "' a'"]]
    page = found.save(tmp_path / "patch.html").read_text(encoding="utf-8")
    for said in (model_hash(model), "metric", "logit difference", "audit", "baseline", "largest shares", "text/cutaway"):
        assert said in page
    again = cutaway.load(found.save(tmp_path / "patch.cutaway"))
    assert again.provenance is not None and again.provenance.to_json() == told
    assert again.page().html().count(told["hash"]) == 1


def test_a_result_keeps_no_model_alive() -> None:
    small = cutaway.HookedTransformer.from_pretrained("first-unique-char", device="cpu")
    found = cutaway.copying(small, draws=2)
    assert found.provenance is not None and found.provenance.model() is small
    del small
    gc.collect()
    assert found.provenance.model() is None and "hash" not in found.provenance.to_json()
    assert found.page().html()


def test_a_failure_of_an_analysis_is_its_own() -> None:
    @with_provenance
    def fails(x: int) -> int:
        raise KeyError(x)

    with pytest.raises(KeyError):
        fails(1)
    with pytest.raises(TypeError, match="missing 1 required"):
        fails()  # type: ignore[call-arg]
