"""The dialect's utils, detectors, measures and training: laws, and what they say when something is missing."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from cutaway import CharTokenizer, FactoredMatrix, HookedTransformer, HookedTransformerConfig
from cutaway.compat import evals, head_detector, loading, mmlu, text_data, train, utils
from cutaway.compat.defaults import LocallyOverridenDefaults
from cutaway.compat.svd_interpreter import SVDInterpreter
from cutaway.compat.text_data import Unreachable
from cutaway.errors import ConfigError, CutawayError, ShapeError, TokenError, UnknownModel, UnknownName
from tests.architectures import network

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,:'?0123456789[]/\n"


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    """A network that reads characters."""
    tokenizer = CharTokenizer(LETTERS + "#", bos_token="#", eos_token="#", pad_token="#")
    cfg = HookedTransformerConfig(n_layers=2, d_model=24, n_heads=3, d_head=8, n_ctx=400, act_fn="gelu", seed=1, device="cpu")
    return HookedTransformer(cfg, tokenizer=tokenizer).requires_grad_(False)


# -------------------------------------------------------------------------------------------------------------- arrays


def test_arrays() -> None:
    assert utils.to_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
    assert utils.to_numpy([torch.tensor(1.0), 2.0]).tolist() == [1.0, 2.0] and utils.to_numpy(3).shape == ()
    with pytest.raises(ShapeError, match="not a dict"):
        utils.to_numpy({})
    matrix = FactoredMatrix(torch.randn(5, 2), torch.randn(2, 5))
    torch.testing.assert_close(utils.get_corner(matrix, 2), matrix.AB[:2, :2])
    assert utils.remove_batch_dim(torch.zeros(2, 3)).shape == (2, 3)
    assert utils.get_cumsum_along_dim(torch.tensor([1, 2, 3]), 0, reverse=True).tolist() == [6, 5, 3]
    assert utils.repeat_along_head_dimension(torch.zeros(1, 2, 3), 4, clone_tensor=False).shape == (1, 2, 4, 3)
    assert not utils.is_square(torch.zeros(2, 3)) and not utils.is_lower_triangular(torch.ones(2, 2))


def test_structure_is_compared_in_both_directions(capsys: pytest.CaptureFixture[str]) -> None:
    rising = torch.arange(9.0).reshape(3, 3)
    utils.check_structure(rising, rising * 2)
    utils.check_structure(rising, rising.flip(1), verbose=True)
    utils.check_structure(rising, rising.flip(0))
    said = capsys.readouterr().out
    assert said.startswith("PASSED\n") and "column mismatch: [0, 1]" in said and "row mismatch: [0, 1]" in said
    with pytest.raises(ShapeError, match="two matrices of one shape"):
        utils.check_structure(rising[0], rising[0])


def test_initial_weights_have_the_scale_that_they_promise() -> None:
    torch.manual_seed(0)
    heads = torch.empty(8, 60, 40)
    assert utils.calc_fan_in_and_fan_out(heads) == (60, 320)
    assert utils.calc_fan_in_and_fan_out(torch.empty(7)) == (1, 7)
    for name, variance in (("xavier", 2 / 380), ("kaiming", 2 / 60)):
        for shape in ("normal", "uniform"):
            filled = getattr(utils, f"init_{name}_{shape}_")(heads)
            assert float(filled.var()) == pytest.approx(variance, rel=0.05)
    with pytest.raises(ShapeError, match="1 to 3 axes"):
        utils.calc_fan_in_and_fan_out(torch.empty(1, 1, 1, 1))


# ------------------------------------------------------------------------------------------------------- what models say


def test_losses_and_accuracy_are_those_of_the_model(model: HookedTransformer) -> None:
    tokens = model.to_tokens(["abcabc", "bcabca"])
    logits = model(tokens)
    torch.testing.assert_close(utils.lm_cross_entropy_loss(logits, tokens), model(tokens, return_type="loss"))
    torch.testing.assert_close(
        utils.lm_cross_entropy_loss(logits[0], tokens[0], per_token=True),
        utils.lm_cross_entropy_loss(logits, tokens, per_token=True)[0],
    )
    mask = torch.ones_like(tokens)
    mask[:, 3:] = 0
    torch.testing.assert_close(
        utils.lm_cross_entropy_loss(logits, tokens, mask), utils.lm_cross_entropy_loss(logits[:, :3], tokens[:, :3])
    )
    sure = torch.nn.functional.one_hot(tokens.roll(-1, 1), model.cfg.d_vocab) * 9.0
    assert utils.lm_accuracy(sure, tokens) == 1 and utils.lm_accuracy(-sure, tokens) == 0


def test_a_prompt_is_tested_token_by_token(model: HookedTransformer, capsys: pytest.CaptureFixture[str]) -> None:
    logits = model(model.to_tokens("abc"))[0, -1]
    best = model.to_string([int(logits.argmax())])
    utils.test_prompt("abc", best, model, prepend_space_to_answer=False, top_k=2)
    said = capsys.readouterr().out
    assert "Tokenized prompt: ['#', 'a', 'b', 'c']" in said and f"Ranks of the answer tokens: [({best!r}, 0)]" in said
    assert f"Top 0th token. Logit: {float(logits.max()):5.2f}" in said and "Top 2th" not in said
    utils.test_prompt("abc", ["x", "y"], model, print_details=False)
    assert capsys.readouterr().out.count("' '") == 2, "a space is put in front, and only the first token of each is compared"
    utils.test_prompt("a[b]", "[/b]", model, prepend_bos=False, prepend_space_to_answer=False, top_k=0)
    assert "Token: |[|" in capsys.readouterr().out, "what looks like markup is text"


# ------------------------------------------------------------------------------------------------------------ detectors


@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("name", head_detector.HEAD_NAMES)
def test_a_head_that_does_just_that_scores_one(model: HookedTransformer, name: str, measure: str) -> None:
    tokens = model.to_tokens("abcabc")
    wanted = head_detector._PATTERNS[name](tokens)
    silent = wanted.sum(-1) == 0
    patterns = wanted / wanted.sum(-1, keepdim=True).clamp(min=1)
    cache = {("pattern", layer): patterns.repeat(3, 1, 1) for layer in range(2)}
    before = patterns.clone()
    scores = head_detector.detect_head(
        model, "abcabc", name, cache=cache, exclude_bos=True, exclude_current_token=True, error_measure=measure
    )
    assert silent.any() and torch.allclose(scores, torch.ones(2, 3)) and torch.equal(patterns, before)


def test_detectors_by_hand(model: HookedTransformer) -> None:
    tokens = model.to_tokens("abca")
    assert head_detector.get_induction_head_detection_pattern(tokens).nonzero().tolist() == [[4, 2]]
    assert head_detector.get_duplicate_token_head_detection_pattern(tokens).nonzero().tolist() == [[4, 1]]
    assert head_detector.get_previous_token_head_detection_pattern(tokens).nonzero().tolist() == [[1, 0], [2, 1], [3, 2], [4, 3]]
    _, cache = model.run_with_cache(tokens)
    scores = head_detector.detect_head(model, "abca", "previous_token_head", heads={1: [2]})
    diagonal = cache["pattern", 1][0, 2].diagonal(-1).sum() / 5
    assert float(scores[1, 2]) == pytest.approx(float(diagonal), rel=1e-4) and (scores[0] == -1).all()
    both = [head_detector.detect_head(model, text, "previous_token_head") for text in ("abca", "bbb")]
    torch.testing.assert_close(
        head_detector.detect_head(model, ["abca", "bbb"], "previous_token_head"), torch.stack(both).mean(0)
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"detection_pattern": "inductin_head"}, "a Tensor or one of head names: ('previous_token_head', "),
        ({"detection_pattern": torch.ones(4, 4)}, "must be a lower triangular matrix of shape"),
        ({"detection_pattern": torch.eye(3)}, "sequence_length=4; got detection patern of shape torch.Size([3, 3])"),
        ({"detection_pattern": "induction_head", "error_measure": "square"}, "there are abs, mul"),
        ({"detection_pattern": "induction_head", "seq": ""}, "must be non-empty and must fit"),
        ({"detection_pattern": "induction_head", "seq": ["a"], "cache": {}}, "a cache is of one text"),
    ],
)
def test_wrong_questions_about_heads(model: HookedTransformer, arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(CutawayError) as caught:
        head_detector.detect_head(model, **{"seq": "abc", **arguments})
    assert part in str(caught.value)


def test_singular_vectors_rebuild_what_a_head_writes() -> None:
    model = network("gpt2")
    found = SVDInterpreter(model).get_singular_vectors("OV", layer_index=1, head_index=2, num_vectors=3)
    _, _, Vh = torch.linalg.svd(model.W_V[1, 2] @ model.W_O[1, 2])
    torch.testing.assert_close(found[:, 0].abs(), (Vh[:3] @ model.W_U).T.abs(), rtol=1e-3, atol=1e-4)
    for kind, weight in (("w_in", model.W_in[0].T * model.blocks[0].ln2.w), ("w_out", model.W_out[0])):
        _, _, Vh = torch.linalg.svd(weight)
        found = SVDInterpreter(model).get_singular_vectors(kind, layer_index=0, num_vectors=2)
        torch.testing.assert_close(found[:, 0].abs(), (Vh[:2] @ model.W_U).T.abs(), rtol=1e-3, atol=1e-4)
    for wrong, part in (
        ({"vector_type": "w_inn", "layer_index": 0}, "did you mean 'w_in'"),
        ({"vector_type": "OV", "layer_index": 0}, "give head_index"),
        ({"vector_type": "OV", "layer_index": 2, "head_index": 0}, "between 0 and 1 but got 2"),
        ({"vector_type": "w_in", "layer_index": 0, "num_vectors": 99}, "num_vectors=99: there are 24 singular vectors"),
    ):
        with pytest.raises((UnknownName, ShapeError), match=part):
            SVDInterpreter(model).get_singular_vectors(**wrong)
    with pytest.raises(ShapeError, match="this network has none"):
        SVDInterpreter(network("attention only")).get_singular_vectors("w_in", 0)


# ------------------------------------------------------------------------------------------------------------- measures


def test_measures_of_language(model: HookedTransformer) -> None:
    assert 3 < float(evals.sanity_check(model)) < 6
    torch.manual_seed(0)
    loss = evals.induction_loss(model, batch_size=2, subseq_len=10)
    torch.manual_seed(0)
    tokens = torch.randint(model.cfg.d_vocab - 1, model.cfg.d_vocab, (2, 10)).repeat(1, 2)
    tokens[:, 0] = model.tokenizer.bos_token_id
    wanted = model(tokens, return_type="loss", loss_per_token=True)[:, 11:].mean()
    assert float(loss) == pytest.approx(float(wanted), rel=1e-4)
    batches = [{"tokens": torch.randint(0, 20, (2, 9))} for _ in range(5)]
    losses = [float(model(batch["tokens"], return_type="loss")) for batch in batches]
    assert evals.evaluate_on_dataset(model, batches) == pytest.approx(sum(losses) / 5)
    assert evals.evaluate_on_dataset(model, batches, truncate=1) == pytest.approx(sum(losses[:2]) / 2)
    with pytest.raises(ShapeError, match="no batches"):
        evals.evaluate_on_dataset(model, [])


def test_indirect_objects(model: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "seed", None)  # the global generator is left alone
    data = evals.IOIDataset(model.tokenizer, num_samples=4, symmetric=True)
    assert len(data) == 4 and data.samples[0]["IO"] == data.samples[1]["S"]
    assert model.tokenizer.decode(data[0]["prompt"][1:]).endswith(data.samples[0]["IO"].strip())
    found = evals.ioi_eval(model, data, batch_size=3)
    differences = []
    for sample in data.samples:
        tokens = model.to_tokens(sample["text"])
        names = [model.to_tokens(sample[who], prepend_bos=False)[0] for who in ("IO", "S")]
        scores = model(tokens)[0, tokens.shape[1] - len(names[0])]
        differences.append(float(scores[names[0][1]] - scores[names[1][1]]))
    assert found["Logit Difference"] == pytest.approx(sum(differences) / 4, abs=1e-4)
    assert found["Accuracy"] == sum(one > 0 for one in differences) / 4
    with pytest.raises(ShapeError, match="do not differ"):
        evals.ioi_eval(model, evals.IOIDataset(model.tokenizer, names=["Ann", "Ann"], num_samples=1))


def test_questions_with_four_answers(model: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [{"question": f"{n} and {n}?", "choices": list("wxyz"), "answer": n % 4} for n in range(5)]
    monkeypatch.setattr(mmlu, "load_dataset", lambda *where, split: asked)
    found = evals.make_mmlu_data_loader(["anatomy", "virology"], num_samples=3)
    assert len(found) == 6 and {one["subject"] for one in found} == {"anatomy", "virology"} and len(evals.MMLU_SUBJECTS) == 57
    with pytest.raises(UnknownName, match="did you mean 'astronomy'"):
        evals.make_mmlu_data_loader("astronmy")


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("options", [{}, {"optimizer_name": "SGD", "momentum": 0.9}, {"weight_decay": 0.1, "warmup_steps": 3}])
def test_training_learns_and_can_be_repeated(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [{"tokens": torch.arange(start, start + 8) % 9} for start in range(40)]
    ends = []
    for _ in range(2):
        model = network("attention only", spread=0.05)
        before = float(evals.evaluate_on_dataset(model, [{"tokens": data[0]["tokens"][None]}]))
        config = train.HookedTransformerTrainConfig(
            num_epochs=3, batch_size=8, lr=2e-2, print_every=4, save_every=2, save_dir=str(tmp_path), max_steps=9,
            max_grad_norm=1.0, device="cpu", **options,
        )  # fmt: skip
        assert train.train(model, config, data) is model
        ends.append(model.W_U.detach().clone())
        assert float(evals.evaluate_on_dataset(model, [{"tokens": data[0]["tokens"][None]}])) < before
    assert torch.equal(*ends) and (tmp_path / "model_2.pt").is_file()
    assert capsys.readouterr().out.startswith("Epoch 1 Samples 8 Step 0 Loss ")


def test_training_refuses_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = network("attention only"), [{"tokens": torch.arange(5)}]
    config = train.HookedTransformerTrainConfig(num_epochs=1, batch_size=1, optimizer_name="Lion")
    with pytest.raises(ConfigError, match="Adam, AdamW and SGD"):
        train.train(model, config, data)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="wandb"):
        train.train(model, train.HookedTransformerTrainConfig(num_epochs=1, batch_size=1, wandb=True), data)


# ----------------------------------------------------------------------------------------------------------------- texts


def test_texts_become_rows_of_tokens(model: HookedTransformer) -> None:
    texts = ["the quick brown fox jumps over the lazy dog " * 4, "", "and then it slept"]
    rows = utils.tokenize_and_concatenate({"text": texts, "other": [1, 2, 3]}, model.tokenizer, max_length=16)
    bos = model.tokenizer.bos_token_id
    assert (
        rows["tokens"].shape[1] == 16
        and (rows["tokens"][:, 0] == bos).all()
        and torch.equal(rows[1]["tokens"], rows["tokens"][1])
    )
    said = model.to_string(rows["tokens"][:, 1:].flatten())
    assert "".join(texts).startswith(said[: len(texts[0])]), "padding tokens, here also the separator, are dropped"
    without = utils.tokenize_and_concatenate({"text": texts}, model.tokenizer, max_length=16, add_bos_token=False)
    assert without["tokens"].shape == ((len(texts[0]) + len(texts[2])) // 16, 16)
    short = utils.tokenize_and_concatenate({"text": ["ab"]}, model.tokenizer, max_length=6)
    assert short["tokens"].tolist() == [[bos, 0, 1, bos, bos, bos]] and len(short) == 1
    nothing = utils.tokenize_and_concatenate(
        {"text": ["", ""]}, CharTokenizer(" ", eos_token=" "), max_length=4, add_bos_token=False
    )
    assert nothing["tokens"].shape == (0, 4)
    with pytest.raises(TokenError, match="has none"):
        utils.tokenize_and_concatenate({"text": ["a"]}, CharTokenizer("a"), max_length=4)


def test_pieces_are_cut_at_white_space() -> None:
    text = "some words of several lengths, " * 60
    pieces = text_data._pieces(text)
    assert "".join(pieces) == text and len(pieces) <= text_data.CHUNKS
    assert all(piece[0].isspace() for piece in pieces[1:])


def test_tokens_without_their_bos(model: HookedTransformer) -> None:
    class Left:
        padding_side, bos_token_id, pad_token_id = "left", 9, 9

    tokens = torch.tensor([[9, 9, 1, 2], [9, 3, 4, 5]])
    assert utils.get_tokens_with_bos_removed(Left(), tokens).tolist() == [[9, 1, 2], [3, 4, 5]]
    assert utils.get_tokens_with_bos_removed(model.tokenizer, tokens).tolist() == [[9, 1, 2], [3, 4, 5]]
    assert utils.get_input_with_manually_prepended_bos(model.tokenizer, ["a"]) == ["#a"]
    with pytest.raises(TokenError, match="CharTokenizer"):
        utils.get_tokenizer_with_bos(model.tokenizer)


def test_what_needs_a_package_or_the_network_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'c4"):
        utils.get_dataset("c44")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="datasets"):
        utils.get_dataset("pile")
    fake = ModuleType("datasets")

    def refuses(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub")

    fake.load_dataset = refuses  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(Unreachable, match=r"the data set NeelNanda/pile-10k is not in the cache, and .*no route"):
        utils.get_dataset("pile")
    with pytest.raises(Unreachable, match="no route"):
        evals.make_wiki_data_loader(None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unreachable, match=r"config.json of no/where is not in the cache"):
        utils.download_file_from_hf("no/where", "config.json", cache_dir=str(tmp_path))


def test_files_of_the_hub_by_their_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"x": 1}))
    (tmp_path / "b.txt").write_text("words")
    torch.save({"w": torch.ones(2)}, tmp_path / "c.pth")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, **_: str(tmp_path / name))
    assert utils.download_file_from_hf("r", "a.json") == {"x": 1}
    assert utils.download_file_from_hf("r", "b.txt", revision="main", nonsense=1) == str(tmp_path / "b.txt")
    assert (
        torch.equal(utils.download_file_from_hf("r", "c.pth")["w"], torch.ones(2))
        and "not supported: txt" in capsys.readouterr().out
    )


# ---------------------------------------------------------------------------------------------------- names and defaults


def test_names_of_published_models(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.get_official_model_name("GPT2-small") == "gpt2" and "gpt2-small" in loading.MODEL_ALIASES["gpt2"]
    assert set(loading.make_model_alias_map().values()) == set(loading.OFFICIAL_MODEL_NAMES)
    assert loading.get_checkpoint_labels("pythia-70m") == (loading.PYTHIA_CHECKPOINTS, "step")
    with pytest.raises(UnknownModel, match="did you mean 'gpt2-small'"):
        loading.get_official_model_name("gpt2-smal")
    with pytest.raises(ConfigError, match="without checkpoints"):
        loading.get_checkpoint_labels("gpt2")
    cfg = loading.get_pretrained_model_config("first-unique-char", default_prepend_bos=False, device="cpu")
    assert cfg.n_layers == 2 and not cfg.default_prepend_bos
    model = network("attention only")
    state = loading.fill_missing_keys(model, {"unembed.b_U": torch.zeros(13)})
    assert set(state) == set(model.state_dict()) and not state["unembed.b_U"].any()


def test_defaults_for_a_scope(model: HookedTransformer) -> None:
    with LocallyOverridenDefaults(model, prepend_bos=False, padding_side="left"):
        assert model.to_tokens("a").shape == (1, 1) and model.default_padding_side == "left"
    assert model.to_tokens("a").shape == (1, 2) and model.default_padding_side == "right"
    with LocallyOverridenDefaults(model, prepend_bos=None):
        assert model.cfg.default_prepend_bos
    with pytest.raises(UnknownName, match="did you mean 'prepend_bos'"):
        LocallyOverridenDefaults(model, prepend_bo=True)
    with pytest.raises(ValueError, match="left, right"):
        LocallyOverridenDefaults(model, padding_side="top")
    assert utils.override_or_use_default_value(True, False) is False and utils.override_or_use_default_value(True) is True
    assert utils.is_library_available("torch") and not utils.is_library_available("no_such_thing")
    assert utils.select_compatible_kwargs({"a": 1, "b": 2}, lambda a: a) == {"a": 1}
