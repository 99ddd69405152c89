"""The report on first unique characters: the first report's numbers under its keys, the published figures, any model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import CheckpointError, ConfigError, WeightsMismatch
from cutaway.model.transformer import Transformer
from cutaway.report.first_report import FirstReport, make
from cutaway.report.questions import failures
from cutaway.report.sentences import sentence
from cutaway.sources import files
from cutaway.tasks import FirstUniqueChar, FirstUniqueCharTask
from cutaway.tasks.first_unique_checkpoints import network
from cutaway.tokens import CharTokenizer

SEED_DUPLICATE = {"0.0": "", "0.1": "bcdefghij", "0.2": "abg"}
SEED_ANTI = {"0.0": "abcdgi", "0.1": "a", "0.2": "cefhj"}
SEED_RESPONSIBLE = {"1.0": "ac", "1.1": "defj", "1.2": "bghi"}


GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that is over soon."""
    monkeypatch.setattr(failures, "CHAINS", 3)
    monkeypatch.setattr(failures, "ROUNDS", 2)


@pytest.fixture(scope="module")
def checkpoint(shared: Path) -> Path:
    return shared / "data" / "checkpoints" / "first_unique_char_model.pt"


@pytest.fixture(scope="module")
def published(checkpoint: Path) -> FirstReport:
    return make(checkpoint)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never learned anything, over letters and positions of its own."""
    torch.manual_seed(0)
    cfg = FirstUniqueChar.config(list("xyz"), 8, seed=None)
    cfg.d_model, cfg.d_head = 12, 4
    path = tmp_path_factory.mktemp("models") / "random.safetensors"
    files.save(path, dict(Transformer(cfg).state_dict()), cfg, tokenizer=CharTokenizer(list("xyz?"), bos_token="?"))
    return path


@pytest.fixture
def of_random(random_model: Path, quick: None) -> FirstReport:
    return make(random_model, size=40)


def differences(expected: Any, found: Any, at: str = "") -> list[str]:
    """Where two trees differ: keys, words, whole numbers; other numbers by more than rounding."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = [f"{at}: {key}" for key in expected.keys() ^ found.keys()]
        both = expected.keys() & found.keys()
        return keys + [one for key in both for one in differences(expected[key], found[key], f"{at}.{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [one for n, pair in enumerate(zip(expected, found, strict=True)) for one in differences(*pair, f"{at}[{n}]")]
    if isinstance(expected, float) and isinstance(found, float):
        return [] if found == pytest.approx(expected, rel=1e-4, abs=5e-5) else [f"{at}: {expected} is {found}"]
    return [] if expected == found else [f"{at}: {expected!r} is {found!r}"]


# The first report's own numbers.


def test_the_bundled_model_has_the_numbers_of_the_first_report():
    """About 15 seconds: everything that the first report measured, with its search."""
    assert differences(json.loads((GOLDENS / "bundled.json").read_text(encoding="utf-8")), json.loads(make().json())) == []


def test_the_published_model_has_the_numbers_of_the_first_report(published: FirstReport):
    assert differences(json.loads((GOLDENS / "published.json").read_text(encoding="utf-8")), json.loads(published.json())) == []


# The published model.


def test_the_published_figures(published: FirstReport):
    numbers = published.numbers()
    assert round(numbers["loss"], 3) == 0.017
    assert round(numbers["mean_correct_probability"], 3) == 0.988
    assert round(numbers["min_correct_probability"], 3) == 0.001
    assert {head: "".join(tokens) for head, tokens in numbers["detectors"]["duplicate"].items()} == SEED_DUPLICATE
    assert {head: "".join(tokens) for head, tokens in numbers["detectors"]["anti_duplicate"].items()} == SEED_ANTI
    assert {head: "".join(tokens) for head, tokens in numbers["responsible"].items()} == SEED_RESPONSIBLE
    assert numbers["responsible_by_attribution"] == numbers["responsible"]


def test_the_published_observations(published: FirstReport):
    numbers = published.numbers()
    by_position = numbers["attribution"]["by_position"]
    assert all(abs(by_position[early][10]) < 4 < by_position[late][10] for early in ("0.0", "0.2") for late in ("1.1", "1.2"))
    assert by_position["0.0"][1] > 5 and by_position["0.2"][1] > 5  # the exception of position 1
    for letter in "abcdefghij":
        heads = {head: by[letter] for head, by in numbers["attribution"]["by_duplicate"].items()}
        assert letter in SEED_RESPONSIBLE[min(heads, key=lambda head: heads[head])]
    queries, keys = (numbers["ablations"]["qkv"]["mean"][which] for which in "qk")
    assert all(queries[head] < 0.4 < keys[head] for head in SEED_RESPONSIBLE)  # layer 1 always asks the same
    assert queries["0.0"] < 1 < queries["0.2"] < queries["0.1"]
    late = numbers["ablations"]["heads_by_position"]["zero"]["0.1"]
    assert late[1] < 1 < late[5] < late[19]  # the detector of duplicates matters more and more
    assert numbers["layer_0_outputs"]["raised"]["0.1"] == []
    assert not any("c" in letters for letters in numbers["layer_0_outputs"]["raised"].values())
    assert numbers["position_1"]["right"] == 1 and numbers["position_1"]["largest"]["c"] == "1.0"


def test_all_promised_keys_are_there(published: FirstReport):
    numbers = json.loads(published.json())
    heads = {"0.0", "0.1", "0.2", "1.0", "1.1", "1.2"}
    assert {"loss", "accuracy", "mean_correct_probability", "min_correct_probability", "responsible"} <= numbers.keys()
    for norm in ("0.ln1", "1.ln1", "ln_final"):
        assert numbers["norm_scales"][norm]["mean"] > 0 and len(numbers["norm_scales"][norm]["std_by_position"]) == 20
    for how in ("zero", "mean"):
        assert numbers["ablations"]["heads"][how].keys() == heads
        assert all(numbers["ablations"]["qkv"][how][which].keys() == heads for which in "qkv")
        assert numbers["ablations"]["layers"][how].keys() == {"0", "1"}
    assert {"by_position", "by_duplicate", "by_correct"} <= numbers["attribution"].keys()
    assert numbers["attribution"]["by_correct"]["1.0"].keys() == set("abcdefghij?")


def test_ablations_are_those_of_plain_hooks(checkpoint: Path, published: FirstReport):
    found = published.numbers()["ablations"]
    model = network(checkpoint)[0]
    tokens, labels = FirstUniqueChar(1000)[:]

    def loss(site: str | None = None, head: int = 0, how: str = "") -> float:
        def edit(x: torch.Tensor, hook: object) -> torch.Tensor:
            x[:, :, head] = 0 if how == "zero" else x[:, :, head].mean(0, keepdim=True)
            return x

        with torch.no_grad():
            logits = model.run_with_hooks(tokens, fwd_hooks=[(site, edit)] if site else [])
        return float(-logits.log_softmax(-1).gather(-1, labels[..., None]).mean())

    clean = loss()
    assert loss("blocks.0.attn.hook_result", 1, "zero") - clean == pytest.approx(found["heads"]["zero"]["0.1"], rel=1e-4)
    assert loss("blocks.1.attn.hook_result", 2, "mean") - clean == pytest.approx(found["heads"]["mean"]["1.2"], rel=1e-4)
    assert loss("blocks.1.attn.hook_k", 0, "mean") - clean == pytest.approx(found["qkv"]["mean"]["k"]["1.0"], rel=1e-4)


def test_the_search_finds_what_the_model_gets_wrong(published: FirstReport, checkpoint: Path):
    found, (model, letters) = published.numbers()["adversarial"], network(checkpoint)
    task = FirstUniqueCharTask(tuple(letters))
    assert found["sequences"] and found["highest_loss"] > 1
    for one in found["sequences"]:
        tokens = torch.tensor([[task.vocabulary.index(letter) for letter in one["tokens"]]])
        assert task.vocabulary[int(task.answers(tokens)[0, -1])] == one["answer"]
        with torch.no_grad():
            assert task.vocabulary[int(model(tokens)[0, -1].argmax())] == one["given"]


def test_open_questions_have_numbers(published: FirstReport):
    found = published.numbers()["questions"]
    heads = found["first_instances_passed_over"]
    assert all(one["repeat"] > one["first"] for one in heads["attention"].values())
    assert sum(heads["by_component"]["d"].values()) == pytest.approx(heads["score_difference"]["d"], abs=1e-4)
    lead = found["new_letters"]["lead"]
    by_component = found["new_letters"]["by_component"]["1.0"]
    assert sum(by["1.0"] for by in lead.values()) == pytest.approx(
        by_component["the answer"] - by_component["letters that did not occur"], abs=0.3
    )  # not the same positions: a few have no letter that did not occur
    order = found["position"]["order_right_by_distance"]
    assert 0.6 < order["1"] < order["2"] < order["4"]
    parts = found["layer_1_positions"]
    assert 0 < parts["all of position"]["keys"] < parts["all of tokens"]["keys"]


# Any model.


def test_a_model_that_learned_nothing_gets_a_report_too(of_random: FirstReport):
    numbers = of_random.numbers()
    assert numbers["accuracy"] < 0.7 and numbers["letters"] == ["x", "y", "z"]
    said = [sentence(one) for found in of_random.findings.values() for one in found]
    assert all(one.endswith(".") and "nan" not in one and "tensor(" not in one for one in said)
    assert not any(one.claims for name, found in of_random.findings.items() for one in found if name != "performance")


def test_two_sequences_are_enough(random_model: Path, quick: None):
    made = make(random_model, size=2)
    assert json.loads(made.json())["size"] == 2 and "2 prompts with 16 answers" in made.html()


def test_the_same_arguments_give_the_same_report(random_model: Path, quick: None, of_random: FirstReport):
    again = make(random_model, size=40)
    assert again.json() == of_random.json()
    assert again.json() != make(random_model, size=40, seed=7).json()


def test_the_page_fetches_nothing_and_stays_small(published: FirstReport):
    page = published.html()
    assert len(page) < 3_000_000
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)


TASK = FirstUniqueCharTask(tuple("abc"), 5)


def test_special_prompts():
    sets = FirstUniqueCharTask(tuple("abcdef")).sets()
    texts = ["".join("abcdef?"[token] for token in row) for row in sets["five letters in pairs"].tokens.tolist()]
    assert texts[2] == "?eeffaabbcc" and len(sets["one letter"]) == 6


def test_kinds_of_mistakes():
    prompts = TASK.known(torch.tensor([[3, 0, 0, 1, 2]]))
    kinds = TASK.mistakes(prompts, torch.tensor([[3, 3, 0, 0, 2]]))
    named = {at: name for name, where in kinds.items() for at in where[0].nonzero().flatten().tolist()}
    repeated = "a repeated letter"
    assert named == {1: "? although a letter is unique", 2: repeated, 3: repeated, 4: "a later unique letter"}
    absent = TASK.mistakes(prompts, torch.full((1, 5), 2))["a letter that did not occur"]
    assert absent[0].tolist() == [True, True, True, True, False]


def test_measures_of_positions():
    found = TASK.measures(TASK.known(torch.tensor([[3, 0, 1, 0, 2]])))
    assert found["letters that are unique"][0].tolist() == [0, 1, 2, 1, 2]
    assert found["letters that are repeated"][0].tolist() == [0, 0, 0, 1, 1]
    assert found["how long ago the answer was read"][0, 1:].tolist() == [0, 1, 1, 2]
    assert found["from the answer to the next unique letter"][0, [2, 4]].tolist() == [1, 2]
    assert found["the letter just read is a repeat"][0].tolist() == [0, 0, 0, 1, 0]


# Bad input.


@pytest.mark.parametrize("size", [0, -3, 10**6])
def test_sizes(size: int):
    with pytest.raises(ConfigError, match=r"is at least 2, not|more than 20,000 sequences"):
        make(size=size)


def state() -> dict[str, torch.Tensor]:
    return dict(Transformer(FirstUniqueChar.config(seed=None)).state_dict())


def test_weights_that_do_not_fit(tmp_path: Path):
    weights = state()
    del weights["embed.W_E"]
    torch.save({**weights, "extra": torch.zeros(1), "unembed.b_U": torch.zeros(3)}, tmp_path / "odd.pt")
    with pytest.raises(WeightsMismatch) as error:
        make(tmp_path / "odd.pt")
    said = str(error.value)
    assert "odd.pt" in said and "1 missing (embed.W_E)" in said and "1 unexpected (extra)" in said
    assert "unembed.b_U [3] should be [11]" in said


def test_weights_that_are_no_numbers(tmp_path: Path):
    weights = state()
    torch.save({**weights, "embed.W_E": weights["embed.W_E"] * torch.nan}, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match=r"holds 462 of 462 numbers that are NaN or infinite"):
        make(tmp_path / "nan.pt")


@pytest.mark.parametrize(("change", "said"), [({"n_layers": 1}, "has 1 layer,"), ({"n_layers": 3}, "has 3 layers,")])
def test_models_of_another_shape(tmp_path: Path, change: dict[str, int], said: str):
    cfg = FirstUniqueChar.config(list("xyz"), 8, seed=None)
    for name, value in change.items():
        setattr(cfg, name, value)
    path = tmp_path / "other.safetensors"
    files.save(path, dict(Transformer(cfg).state_dict()), cfg, tokenizer=CharTokenizer(list("xyz?"), bos_token="?"))
    with pytest.raises(ConfigError, match=said):
        make(path)


@pytest.mark.parametrize("vocabulary", [None, "wxyz"])
def test_vocabularies_that_are_not_of_the_task(tmp_path: Path, vocabulary: str | None):
    cfg = FirstUniqueChar.config(list("xyz"), 8, seed=None)
    tokenizer = CharTokenizer(list(vocabulary)) if vocabulary else None
    path = tmp_path / "other.safetensors"
    files.save(path, dict(Transformer(cfg).state_dict()), cfg, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="its last token should be" if vocabulary else "has 4 tokens and does not say which"):
        make(path)
