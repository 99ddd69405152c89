"""The report on first unique characters: the published model's own figures, and pages that hold for any model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from cutaway import report
from cutaway.errors import CheckpointError, ConfigError, UnknownTask, WeightsMismatch
from cutaway.model.transformer import Transformer
from cutaway.report.first_unique_char import SECTIONS, failures, questions, special
from cutaway.report.first_unique_char.study import LettersStudy, network
from cutaway.report.parts import LettersReport, Part
from cutaway.sources import files
from cutaway.tasks import FirstUniqueChar
from cutaway.tokens import CharTokenizer

SEED_DUPLICATE = {"0.0": "", "0.1": "bcdefghij", "0.2": "abg"}
SEED_ANTI = {"0.0": "abcdgi", "0.1": "a", "0.2": "cefhj"}
SEED_RESPONSIBLE = {"1.0": "ac", "1.1": "defj", "1.2": "bghi"}


@pytest.fixture(scope="module")
def quick():
    """A search that is over soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures, "CHAINS", 3)
        patch.setattr(failures, "ROUNDS", 2)
        yield


@pytest.fixture(scope="module")
def checkpoint(shared: Path) -> Path:
    return shared / "data" / "checkpoints" / "first_unique_char_model.pt"


@pytest.fixture(scope="module")
def study(checkpoint: Path) -> LettersStudy:
    return LettersStudy(*network(checkpoint), 1000, 42, "published")


@pytest.fixture(scope="module")
def published(checkpoint: Path, quick: None) -> LettersReport:
    return report.make("first-unique-char", checkpoint=checkpoint)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never learned anything, over letters and positions of its own."""
    torch.manual_seed(0)
    cfg = FirstUniqueChar.config(list("xyz"), 8, seed=None)
    cfg.d_model, cfg.d_head = 12, 4
    path = tmp_path_factory.mktemp("models") / "random.safetensors"
    files.save(path, dict(Transformer(cfg).state_dict()), cfg, tokenizer=CharTokenizer(list("xyz?"), bos_token="?"))
    return path


@pytest.fixture(scope="module")
def of_random(random_model: Path, quick: None) -> LettersReport:
    return report.make("first-unique-char", checkpoint=random_model, size=40)


def strings(part: Part) -> list[str]:
    """Every sentence of a part and of those below it."""
    texts = [part.heading, part.summary, *(block for block in part.blocks if isinstance(block, str))]
    return texts + [text for one in part.parts for text in strings(one)]


# The published model.


def test_the_published_figures(published: LettersReport):
    numbers = published.numbers()
    assert round(numbers["loss"], 3) == 0.017
    assert round(numbers["mean_correct_probability"], 3) == 0.988
    assert round(numbers["min_correct_probability"], 3) == 0.001
    assert {head: "".join(tokens) for head, tokens in numbers["detectors"]["duplicate"].items()} == SEED_DUPLICATE
    assert {head: "".join(tokens) for head, tokens in numbers["detectors"]["anti_duplicate"].items()} == SEED_ANTI
    assert {head: "".join(tokens) for head, tokens in numbers["responsible"].items()} == SEED_RESPONSIBLE
    assert numbers["responsible_by_attribution"] == numbers["responsible"]


def test_the_published_observations(published: LettersReport):
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


def test_all_promised_keys_are_there(published: LettersReport):
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


def test_ablations_are_those_of_plain_hooks(study: LettersStudy, published: LettersReport):
    found = published.numbers()["ablations"]
    clean = float(study.losses.mean())

    def loss(site: str, head: int, how: str) -> float:
        def edit(x: torch.Tensor, hook: object) -> torch.Tensor:
            x[:, :, head] = 0 if how == "zero" else x[:, :, head].mean(0, keepdim=True)
            return x

        with torch.no_grad():
            logits = study.model.run_with_hooks(study.toks, fwd_hooks=[(site, edit)])
        right = logits.log_softmax(-1).gather(-1, study.labels[..., None])
        return float(-right.mean()) - clean

    assert loss("blocks.0.attn.hook_result", 1, "zero") == pytest.approx(found["heads"]["zero"]["0.1"], rel=1e-4)
    assert loss("blocks.1.attn.hook_result", 2, "mean") == pytest.approx(found["heads"]["mean"]["1.2"], rel=1e-4)
    assert loss("blocks.1.attn.hook_k", 0, "mean") == pytest.approx(found["qkv"]["mean"]["k"]["1.0"], rel=1e-4)


def test_attribution_by_letter_is_that_of_plain_loops(study: LettersStudy, published: LettersReport):
    with torch.no_grad():
        _, cache = study.model.run_with_cache(study.toks[:200])
    small = LettersStudy(study.model, study.letters, 200, 42, "")
    assert torch.equal(small.toks, study.toks[:200])
    result = cache["blocks.1.attn.hook_result"][:, :, 1] / cache["ln_final.hook_scale"]
    total, count = 0.0, 0
    for example, tokens in enumerate(small.toks.tolist()):
        for place, token in enumerate(tokens):
            if token == 3 and token in tokens[:place]:
                total += float(result[example, place] @ study.model.W_U[:, token].detach())
                count += 1
    assert small.duplicates.sel(component="1.1", token="d").values.item() == pytest.approx(total / count, rel=1e-4)


def test_the_search_finds_what_the_model_gets_wrong(published: LettersReport, study: LettersStudy):
    found = published.numbers()["adversarial"]
    assert found["sequences"] and found["highest_loss"] > 1
    for one in found["sequences"]:
        tokens = study.encode(one["tokens"])
        assert study.vocab[int(study.answers(tokens)[0, -1])] == one["answer"]
        with torch.no_grad():
            given = int(study.model(tokens)[0, -1].argmax())
        assert study.vocab[given] == one["given"]


def test_open_questions_have_numbers(published: LettersReport):
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


def test_parts_of_layer_1_sum_to_its_input(study: LettersStudy):
    parts = questions._position_parts(study)
    bias = study.model.blocks[0].attn.b_O
    whole = parts["all of position"] + parts["all of tokens"] + bias
    from cutaway.analysis import head_decomposition

    written, labels = head_decomposition.outputs_by_component(study.few, 0)
    whole = whole + written[labels.index("constant")].sum(0)
    name = "blocks.1.hook_resid_pre"
    with torch.no_grad():
        stream = study.model.run_with_cache(study.toks, names_filter=name)[1][name]
    torch.testing.assert_close(whole, stream, rtol=1e-4, atol=1e-4)


# Any model.


def test_a_model_that_learned_nothing_gets_a_report_too(of_random: LettersReport):
    numbers = of_random.numbers()
    assert numbers["accuracy"] < 0.7
    assert numbers["letters"] == ["x", "y", "z"]
    text = "\n".join(text for part in of_random.parts for text in strings(part))
    assert "nan" not in text.lower().replace("dominan", "") and "tensor(" not in text and "{" not in text


def test_two_sequences_are_enough(random_model: Path, quick: None):
    made = report.make("first-unique-char", checkpoint=random_model, size=2)
    assert json.loads(made.json())["size"] == 2 and "2 sequences of seed" in made.html()


def test_every_section_says_what_its_numbers_show(published: LettersReport, of_random: LettersReport):
    for made in (published, of_random):
        assert len(made.parts) == len(SECTIONS) + 1
        for part in made.parts[1:]:
            for one in (part, *part.parts):
                assert re.search(r"[.!]$", one.summary), one.heading
    said = {part.heading: part.summary for part in published.parts}
    other = {part.heading: part.summary for part in of_random.parts}
    same = [heading for heading, summary in said.items() if summary and summary == other[heading]]
    assert same == ["Open questions"]  # an introduction; all other sentences come from numbers


def test_the_same_arguments_give_the_same_report(random_model: Path, quick: None, of_random: LettersReport):
    again = report.make("first-unique-char", checkpoint=random_model, size=40)
    assert again.json() == of_random.json()
    assert again.json() != report.make("first-unique-char", checkpoint=random_model, size=40, seed=7).json()


def test_the_page_fetches_nothing_and_stays_small(published: LettersReport):
    page = published.html()
    assert len(page) < 3_000_000
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)


def test_the_bundled_model_is_the_default(quick: None):
    made = report.make("first-unique-char", size=50)
    assert made.numbers()["accuracy"] > 0.98


def test_pairs():
    study = LettersStudy.__new__(LettersStudy)
    object.__setattr__(study, "letters", list("abcdef"))
    assert special.pairs_from(study, 4) == "?eeffaabbcc"


def test_kinds_of_mistakes(random_model: Path):
    study = LettersStudy(*network(random_model), 1, 0, "")
    tokens = torch.tensor([[3, 0, 0, 1, 2]])
    guesses = torch.tensor([[3, 3, 0, 0, 2]])
    kinds = [failures.KINDS[kind] for kind in failures.kinds_of(study, tokens, guesses)[0].tolist()]
    assert kinds[1:] == [failures.KINDS[0], "a repeated letter", "a repeated letter", "a later unique letter"]
    assert failures.KINDS[int(failures.kinds_of(study, tokens, torch.full((1, 5), 2))[0, 1])] == "a letter that did not occur"


def test_features_of_positions(random_model: Path):
    study = LettersStudy(*network(random_model), 1, 0, "")
    found = failures.features_of(study, torch.tensor([[3, 0, 1, 0, 2]]))
    assert found["letters that are unique"][0].tolist() == [0, 1, 2, 1, 2]
    assert found["letters that are repeated"][0].tolist() == [0, 0, 0, 1, 1]
    assert found["how long ago the answer was read"][0, 1:].tolist() == [0, 1, 1, 2]
    assert found["from the answer to the next unique letter"][0, [2, 4]].tolist() == [1, 2]
    assert found["the letter just read is a repeat"][0].tolist() == [0, 0, 0, 1, 0]


# Bad input.


def test_unknown_tasks():
    with pytest.raises(UnknownTask, match="no task called 'first-unique'; did you mean 'first-unique-char'"):
        report.make("first-unique")
    with pytest.raises(UnknownTask, match="no report on the task 'attn-only-2l'"):
        report.make("attn-only-2l")


@pytest.mark.parametrize("size", [0, -3, 10**6])
def test_sizes(size: int):
    with pytest.raises(ConfigError, match="must be between 2 and"):
        report.make("first-unique-char", size=size)


def state() -> dict[str, torch.Tensor]:
    return dict(Transformer(FirstUniqueChar.config(seed=None)).state_dict())


def test_weights_that_do_not_fit(tmp_path: Path):
    weights = state()
    del weights["embed.W_E"]
    torch.save({**weights, "extra": torch.zeros(1), "unembed.b_U": torch.zeros(3)}, tmp_path / "odd.pt")
    with pytest.raises(WeightsMismatch) as error:
        report.make("first-unique-char", checkpoint=tmp_path / "odd.pt")
    said = str(error.value)
    assert "odd.pt" in said and "1 missing (embed.W_E)" in said and "1 unexpected (extra)" in said
    assert "unembed.b_U [3] should be [11]" in said


def test_weights_that_are_no_numbers(tmp_path: Path):
    weights = state()
    torch.save({**weights, "embed.W_E": weights["embed.W_E"] * torch.nan}, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match=r"holds 462 of 462 numbers that are NaN or infinite"):
        report.make("first-unique-char", checkpoint=tmp_path / "nan.pt")


@pytest.mark.parametrize(("change", "said"), [({"n_layers": 1}, "has 1 layer,"), ({"n_layers": 3}, "has 3 layers,")])
def test_models_of_another_shape(tmp_path: Path, change: dict[str, int], said: str):
    cfg = FirstUniqueChar.config(list("xyz"), 8, seed=None)
    for name, value in change.items():
        setattr(cfg, name, value)
    path = tmp_path / "other.safetensors"
    files.save(path, dict(Transformer(cfg).state_dict()), cfg, tokenizer=CharTokenizer(list("xyz?"), bos_token="?"))
    with pytest.raises(ConfigError, match=said):
        report.make("first-unique-char", checkpoint=path)


@pytest.mark.parametrize("vocabulary", [None, "wxyz"])
def test_vocabularies_that_are_not_of_the_task(tmp_path: Path, vocabulary: str | None):
    cfg = FirstUniqueChar.config(list("xyz"), 8, seed=None)
    tokenizer = CharTokenizer(list(vocabulary)) if vocabulary else None
    path = tmp_path / "other.safetensors"
    files.save(path, dict(Transformer(cfg).state_dict()), cfg, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="its last token should be" if vocabulary else "has 4 tokens and does not say which"):
        report.make("first-unique-char", checkpoint=path)
