"""Whatever is read from outside is understood or refused in one sentence: no crash, no hang, no number that is not finite."""

from __future__ import annotations

import dataclasses
import gzip
import json
import struct
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from hypothesis import strategies as st
from safetensors.torch import load, save

from cutaway import HookedTransformer, notebooks, reading, records
from cutaway.analysis.steering import SteeringVector
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ChunkDamaged, ConfigError, CutawayError
from cutaway.exercises.progress import Progress
from cutaway.runs import edits, metrics, places
from cutaway.runs.answer_metrics import AnswerMetric
from cutaway.runs.sweep import Grid, heads, pairs, residual, sweep
from cutaway.sources import files
from cutaway.sources.tensor_files import safetensors
from cutaway.tokens import from_saved
from cutaway.view import attention_patterns, heat_map
from cutaway.view.figure import Figure
from tests.fuzz.mutations import ODD, cases, damaged_bytes, damaged_json, dumped
from tests.weights.families import tiny

MODEL = HookedTransformer.from_pretrained("first-unique-char", device="cpu")
SLOW = 5.0  # seconds of processor time that no refusal may take


def refused_or_right(read: Callable[[], Any], *allowed: type[BaseException]) -> Any:
    """What was read, or None where it was refused in a sentence; anything else fails the test."""
    started = time.process_time()
    try:
        return read()
    except CutawayError as error:
        said = str(error)
        assert said and "Traceback" not in said and len(said) < 3000
        return None
    except allowed:
        return None
    finally:
        assert time.process_time() - started < SLOW


# ---------------------------------------------------------------------------------------------- configurations


@cache
def families_with_weights(folder: Path) -> list[tuple[dict[str, Any], Path]]:
    """A tiny model of every family: its config, and a folder that holds its weights."""
    made = []
    for number, (config_class, model_class, fields) in enumerate(tiny.CASES.values()):
        place = folder / str(number)
        torch.manual_seed(number)
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**fields))
        model.save_pretrained(place)
        made.append((json.loads((place / "config.json").read_text()), place))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def finite_logits(model: HookedTransformer) -> None:
    with torch.no_grad():
        assert model(torch.tensor([[0, min(1, model.cfg.d_vocab - 1), 0]][:1])[:, : model.cfg.n_ctx]).isfinite().all()


def loaded(place: Path) -> None:
    model = refused_or_right(lambda: HookedTransformer.from_pretrained(str(place), fold_ln=False, device="cpu"))
    if model is not None:
        finite_logits(model)


@pytest.mark.filterwarnings("ignore::cutaway.weights.families.heads.HeadIsItsOwn")  # a head that is tied and differs is used,
@pytest.mark.filterwarnings("ignore::cutaway.weights.families.heads.HeadIsMissing")  # and said: so is one that is not there
@cases(250, 2500)
def test_config_json(data: Any, folder: Path) -> None:
    config, place = data.draw(st.sampled_from(families_with_weights(folder)))
    (place / "config.json").write_text(dumped(data.draw(damaged_json(config))))
    loaded(place)


@cases(200, 2000)
def test_config_json_of_any_bytes(data: Any, folder: Path) -> None:
    config, place = data.draw(st.sampled_from(families_with_weights(folder)))
    (place / "config.json").write_bytes(data.draw(damaged_bytes(dumped(config).encode())))
    loaded(place)


SIZES = ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"]


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("size", [2**20, 2**40, 2**70])
def test_absurd_sizes_are_refused_at_once(folder: Path, field: str, size: int) -> None:
    config, place = next(one for one in families_with_weights(folder) if one[0]["model_type"] == "llama")
    (place / "config.json").write_text(dumped(config | {field: size}))
    started = time.process_time()
    if field == "max_position_embeddings" and size == 2**20:
        return  # positions that need no weights may be many
    with pytest.raises(CutawayError):
        HookedTransformer.from_pretrained(str(place), device="cpu")
    assert time.process_time() - started < 2


ROTATING = {"n_layers": 1, "d_model": 8, "n_ctx": 12, "d_head": 4, "d_vocab": 5, "act_fn": "relu", "seed": 0, "d_mlp": 8,
            "positional_embedding_type": "rotary"}  # fmt: skip
BLENDS: list[dict[str, Any]] = [
    {}, {"use_NTK_by_parts_rope": True}, {"use_yarn_rope": True},
    {"window_size": 4, "attn_types": ["local"], "use_local_attn": True},
    {"longrope_short_factor": [1.0, 2.0], "longrope_long_factor": [2.0, 9.0], "longrope_original_max_position_embeddings": 6},
]  # fmt: skip
SIZE = ("n_ctx", "d_vocab", "d_vocab_out", "d_model", "d_head", "n_heads", "d_mlp", "d_mlp_expert")  # 2**31 may fit
DECLARED = {one.name: str(one.type) for one in dataclasses.fields(HookedTransformerConfig)}
NUMBERS = sorted(name for name, kind in DECLARED.items() if kind.startswith(("int", "float")))


@cases(200, 2500)
def test_numbers_of_a_configuration(data: Any) -> None:
    """Values of the declared types, since shape checks are slow to explain others (`test_what_a_bundle_says_of_its_model`)."""
    fields = ROTATING | data.draw(st.sampled_from(BLENDS))
    for name in data.draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=3)):
        kind = int if DECLARED[name].startswith("int") else float
        strange = st.sampled_from([one for one in ODD if type(one) is kind])
        usual = st.floats() if kind is float else st.integers(-3, 40)
        fields |= {name: data.draw(usual if name in SIZE else usual | strange)}
    model = refused_or_right(lambda: HookedTransformer(HookedTransformerConfig.from_dict(fields)))
    if model is not None:
        finite_logits(model)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"attn_scale": -3.0}, "attn_scale=-3.0 positive"),
        ({"initializer_range": 1e10}, "initializer_range=1"),
        ({"use_yarn_rope": True, "rotary_base": 1.0}, "rotary_base=1.0 must be more than 1"),
        ({"use_yarn_rope": True, "yarn_beta_fast": -1.0}, "yarn_beta_fast=-1.0 must be positive"),
        ({"use_yarn_rope": True, "yarn_original_max_position_embeddings": 0}, "=0 must be a positive whole number"),
        (
            {"use_NTK_by_parts_rope": True, "NTK_by_parts_low_freq_factor": 4.0},
            "low_freq_factor=4.0 must be below NTK_by_parts_high_freq_factor=4.0",
        ),
    ],
)
def test_numbers_that_give_nan_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        HookedTransformerConfig.from_dict(ROTATING | fields)


# -------------------------------------------------------------------------------------------------- weight files


def bundle(tmp: Path) -> tuple[Path, dict[str, Any], bytes]:
    """A file of ours: where it goes, its header, and the bytes behind."""
    data = whole_bundle()
    length = struct.unpack("<Q", data[:8])[0]
    return tmp / "bundle.safetensors", json.loads(data[8 : 8 + length]), data[8 + length :]


@cache
def whole_bundle() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "bundle.safetensors"
        files.save(path, MODEL.state_dict(), MODEL.cfg, tokenizer=MODEL.tokenizer, processed=True)
        return path.read_bytes()


def write_bundle(path: Path, header: Any, rest: bytes) -> None:
    encoded = dumped(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + rest)


@cases(200, 2200)
def test_what_a_bundle_says_of_its_model(data: Any, tmp_path: Path) -> None:
    path, header, rest = bundle(tmp_path)
    about = json.loads(header["__metadata__"][files.KEY])
    header["__metadata__"][files.KEY] = dumped(data.draw(damaged_json(about)))
    write_bundle(path, header, rest)
    loaded(path)


@cases(200, 2200)
def test_a_damaged_bundle(data: Any, tmp_path: Path) -> None:
    path, header, rest = bundle(tmp_path)
    if data.draw(st.booleans()):
        write_bundle(path, data.draw(damaged_json(header)), rest)
    else:
        path.write_bytes(data.draw(damaged_bytes(whole_bundle())))
    loaded(path)


@cases(200, 2200)
def test_safetensors_of_others(data: Any, tmp_path: Path) -> None:
    path, header, rest = bundle(tmp_path)
    if data.draw(st.booleans()):
        write_bundle(path, data.draw(damaged_json(header)), rest)
    else:
        path.write_bytes(data.draw(damaged_bytes(whole_bundle())))
    refused_or_right(lambda: {name: tensor.sum() for name, tensor in safetensors([path]).items()})


@cases(200, 2000)
def test_torch_files(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(2, 3), "b": torch.arange(4)}, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    refused_or_right(lambda: {name: tensor.sum() for name, tensor in files.load_state_dict(path).items()})


@cases(200, 2000)
def test_saved_tokenizers(data: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    saved = data.draw(
        st.sampled_from(
            [
                {"vocabulary": ["a", "b", "BOS"], "bos_token": "BOS", "eos_token": None, "pad_token": None},
                {"fast": json.loads(backend.to_str()), "bos_token": "?", "eos_token": None, "pad_token": None},
            ]
        )
    )
    damaged = data.draw(damaged_json(saved))
    if isinstance(damaged, dict):
        refused_or_right(lambda: from_saved(damaged))


# ------------------------------------------------------------------------------------------------------- records


Written = tuple[Path, dict[str, Any], dict[str, torch.Tensor]]


def experiments() -> Iterator[tuple[str, Any, Any, dict[str, Any]]]:
    """Sweeps that between them have every kind of change, of place and of metric that a record holds."""
    tokens = torch.randint(1, 10, (3, 6), generator=torch.Generator().manual_seed(0))
    _, cache = MODEL.run_with_cache(tokens.flip(0))
    vector, answers, wrong = torch.linspace(-1, 1, MODEL.cfg.d_model), torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    difference = metrics.logit_difference(answers, wrong)
    yield "a", residual(edits.patch(cache)), difference, {"baseline": 2}
    yield "b", heads(), metrics.loss(tokens), {}
    plain = [edits.add(vector, 2.0).at("resid_pre1"), edits.project_out(vector).at("resid_pre0", positions=places.own(-1))]
    yield "c", plain, metrics.normalised(difference, clean=2.0, corrupted=-1.0), {}
    one = [edits.zero().at("pattern0", heads=1, sources=[0, 2]), edits.scale(0.5).at("attn_out1", positions=[2, 3], examples=0)]
    yield "d", pairs(one), metrics.kl([2, -1]), {}
    mask = torch.tensor([[0] + [1] * 5] + [[1] * 6] * 2)
    yield "e", Grid(edits.mean(cache), "z"), metrics.rank(answers), {"mask": mask}
    yield "f", heads(edits.random(edits.replace(0.3), 4)), metrics.probability_difference([[1, 2]], [[3], [4, 5], [6]]), {}
    right = torch.eye(3, MODEL.cfg.d_vocab_out).bool()
    index = torch.full((3, 6), -1).index_fill(1, torch.tensor(5), 0)
    yield "g", Grid(edits.resample(cache, 5), "z"), AnswerMetric(right, right.roll(1, 1), index, "lead"), {}
    yield "h", [edits.zero().at("z1", heads=[0])], metrics.log_probability(answers, by_position=True, positions=[1, -1]), {}


@cache
def written_records(folder: Path) -> list[Written]:
    tokens = torch.randint(1, 10, (3, 6), generator=torch.Generator().manual_seed(0))
    found = []
    for name, cells, metric, options in experiments():
        place = records.write(folder / name, sweep(MODEL, tokens, cells, metric, audit=0, **options), "first-unique-char")
        found.append((place, json.loads((place / records.RECORD).read_text()), load((place / records.TENSORS).read_bytes())))
    records.write(folder / "kept", sweep(MODEL, tokens, heads(), metrics.loss(tokens), audit=0), "first-unique-char")
    return found


def written_record(folder: Path) -> Written:
    return written_records(folder)[0]


def replayed(place: Path) -> None:
    def both() -> None:
        record = records.read_record(place)
        done = records.replay(record, MODEL)
        assert done.summary() and done.difference == done.difference
        assert records.compare(record, records.read_record(place.parent / "kept")).summary()

    refused_or_right(both)


@cases(200, 2200)
def test_a_damaged_record(data: Any, folder: Path) -> None:
    place, about, tensors = data.draw(st.sampled_from(written_records(folder)))
    changed = data.draw(damaged_json({name: value for name, value in about.items() if name != "digest"}))
    (place / records.RECORD).write_text(dumped(changed))
    (place / records.TENSORS).write_bytes(save(tensors))
    replayed(place)


@cases(200, 2200)
def test_a_record_with_damaged_tensors(data: Any, folder: Path) -> None:
    place, about, tensors = data.draw(st.sampled_from(written_records(folder)))
    (place / records.RECORD).write_text(dumped({name: value for name, value in about.items() if name != "digest"}))
    changed = dict(tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    kind = data.draw(st.integers(0, 5))
    if kind == 0:
        del changed[name]
    elif kind == 1:
        changed[name] = changed[name].flatten()[:-1].clone() if changed[name].ndim == 0 else changed[name][:-1].clone()
    elif kind == 2:
        changed[name] = changed[name].to(data.draw(st.sampled_from([torch.int64, torch.float16, torch.bool, torch.float64])))
    elif kind == 3:
        changed[name] = torch.full_like(changed[name], data.draw(st.sampled_from([0, 1, 10**6 if name == "tokens" else 7])))
    elif kind == 4:
        changed[name] = changed[name].flatten().clone()
    else:
        changed[data.draw(st.sampled_from(["mask", "edit.t9", "more"]))] = torch.ones(2, 2).bool()
    written = save(changed)
    (place / records.TENSORS).write_bytes(written if kind else data.draw(damaged_bytes(written)))
    replayed(place)


def test_a_record_that_was_edited_is_refused(folder: Path) -> None:
    place, about, tensors = written_record(folder)
    (place / records.TENSORS).write_bytes(save(tensors))
    (place / records.RECORD).write_text(json.dumps(about))
    assert records.replay(records.read_record(place), MODEL).same_bits
    (place / records.TENSORS).write_bytes(save(tensors | {"clean": tensors["clean"] + 1}))
    with pytest.raises(CutawayError, match="was changed after it was written"):
        records.read_record(place)
    (place / records.TENSORS).write_bytes(save(tensors))
    labels = [["x"] * len(one) for one in about["cells"]["labels"]]
    (place / records.RECORD).write_text(json.dumps(about | {"cells": about["cells"] | {"labels": labels}}))
    with pytest.raises(CutawayError, match="was changed after it was written"):
        records.read_record(place)


# ------------------------------------------------------------------------------------------------------- figures


def some_figures() -> list[Figure]:
    draw = torch.Generator().manual_seed(0)
    words = ["a", "<b>", "\ud800"]
    patterns = torch.rand(2, 3, 3, generator=draw).tril()
    return [heat_map(torch.randn(4, 5, generator=draw).numpy()), attention_patterns(words, patterns)]


def looked_at(figure: Figure) -> None:
    assert str(figure) is not None and figure.html() and figure.wire() and repr(figure)


def unpacked(figure: Figure) -> tuple[dict[str, Any], bytes]:
    raw = gzip.decompress(figure.wire())
    start = 8 + int.from_bytes(raw[4:8], "little")
    return json.loads(raw[8:start].decode("utf-8", "surrogatepass")), raw[start:]


@cases(250, 2500)
def test_the_header_of_a_figure(data: Any) -> None:
    header, rest = unpacked(data.draw(st.sampled_from(some_figures())))
    head = dumped(data.draw(damaged_json(header))).encode()
    packed = gzip.compress(b"CUT1" + len(head).to_bytes(4, "little") + head + rest, 1)
    figure = refused_or_right(lambda: Figure.from_wire(packed))
    if figure is not None:
        looked_at(figure)


@cases(200, 2000)
def test_the_bytes_of_a_figure(data: Any) -> None:
    packed = data.draw(st.sampled_from(some_figures())).wire()
    whole = gzip.decompress(packed)
    damaged = data.draw(damaged_bytes(packed)) if data.draw(st.booleans()) else gzip.compress(data.draw(damaged_bytes(whole)), 1)
    figure = refused_or_right(lambda: Figure.from_wire(damaged))
    if figure is not None:
        looked_at(figure)


@cases(200, 2000)
def test_a_figure_as_json(data: Any) -> None:
    text = data.draw(st.sampled_from(some_figures())).to_json()
    if data.draw(st.booleans()):
        text = dumped(data.draw(damaged_json(json.loads(text))))
    else:
        text = data.draw(damaged_bytes(text.encode())).decode("utf-8", "replace")
    refused_or_right(lambda: Figure.from_json(text))


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(b"\0" * 2**20) for _ in range(1024)) + packer.flush()
    assert len(bomb) < 2**21
    with pytest.raises(CutawayError, match="too large: it unpacks to more than"):
        Figure.from_wire(bomb)
    entry = {"dtype": "u8", "shape": [2**20, 0, 2**20], "layout": "full", "offset": 0, "length": 0, "levels": [0.0] * 253}
    header = {"v": 1, "view": "heat_map", "title": "", "arrays": {"a": entry}}
    head = json.dumps(header).encode()
    with pytest.raises(CutawayError, match="too large: its arrays"):
        Figure.from_wire(gzip.compress(b"CUT1" + len(head).to_bytes(4, "little") + head))


# ---------------------------------------------------------------------------------------- notebooks, vectors, notes

NOTEBOOK = {
    "cells": [{"cell_type": "code", "id": "a", "metadata": {}, "source": "1", "outputs": [], "execution_count": None}],
    "metadata": {"kernelspec": {"name": "x", "display_name": "x", "language": "python"}}, "nbformat": 4, "nbformat_minor": 5,
}  # fmt: skip


def read_notebook(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    refused_or_right(lambda: nbformat.writes(notebooks.read(path, nbformat)))


@pytest.mark.filterwarnings("ignore")  # of nbformat, on what it mends
@cases(200, 2000)
def test_notebooks(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    damaged = dumped(data.draw(damaged_json(NOTEBOOK))).encode()
    path.write_bytes(data.draw(damaged_bytes(damaged)) if data.draw(st.integers(0, 2)) == 0 else damaged)
    read_notebook(path)


NO_NOTEBOOKS = ["[" * 100_000, json.dumps(NOTEBOOK | {"nbformat": 99}), json.dumps(NOTEBOOK | {"cells": 5}), "null", ""]


@pytest.mark.parametrize("content", NO_NOTEBOOKS)
def test_notebooks_that_are_none(tmp_path: Path, content: str) -> None:
    nbformat = pytest.importorskip("nbformat")
    (tmp_path / "a.ipynb").write_text(content)
    with pytest.raises(notebooks.NotebookError):
        notebooks.read(tmp_path / "a.ipynb", nbformat)


@cases(200, 2000)
def test_steering_vectors(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "vector.safetensors"
    said = {"layer": 0, "site": "resid_pre", "method": "mean", "front": False, "positive": ["a"], "negative": ["b"],
            "read_at": "-1", "model_hash": "h", "model_name": "m"}  # fmt: skip
    damaged = save({"values": torch.ones(1, 4)}, metadata={"steering_vector": dumped(data.draw(damaged_json(said)))})
    path.write_bytes(data.draw(damaged_bytes(damaged)) if data.draw(st.integers(0, 2)) == 0 else damaged)
    vector = refused_or_right(lambda: SteeringVector.load(path))
    assert vector is None or vector.norm == vector.norm


@cases(200, 2000)
def test_progress_of_exercises(data: Any, tmp_path: Path) -> None:
    noted = {"version": 1, "exercises": {"right-guesses": {"started": "t", "attempts": 2, "passed": None, "last": "no"}}}
    (tmp_path / "exercises.json").write_text(dumped(data.draw(damaged_json(noted))))
    read = refused_or_right(lambda: Progress.read(tmp_path))
    if read is not None:
        read.noted("right-guesses", passed=True, message="right")
        assert Progress.read(tmp_path).state("right-guesses") == "passed"


@cases(200, 2000)
def test_the_plan_of_a_sweep(data: Any, tmp_path: Path) -> None:
    tokens = torch.randint(1, 10, (2, 4), generator=torch.Generator().manual_seed(0))
    if not (tmp_path / "plan.json").exists():
        sweep(MODEL, tokens, heads(), metrics.loss(tokens), audit=0, resume=tmp_path)
        (tmp_path / "kept").write_bytes((tmp_path / "plan.json").read_bytes())
    plan = json.loads((tmp_path / "kept").read_bytes())
    (tmp_path / "plan.json").write_text(dumped(data.draw(damaged_json(plan))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChunkDamaged)
        found = refused_or_right(lambda: sweep(MODEL, tokens, heads(), metrics.loss(tokens), audit=0, resume=tmp_path))
    assert found is None or found.values.data.isfinite().all()


@pytest.mark.parametrize("text", ["a\udcffb", "\ud800"])
def test_text_that_is_not_utf_8(text: str) -> None:
    for model in (MODEL, HookedTransformer.from_pretrained("attn-only-2l", device="cpu")):
        with pytest.raises(CutawayError, match=r"is not UTF-8 text|not in the vocabulary"):
            model.to_tokens(text)


# -------------------------------------------------------------------------------------------------------- the reader


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 101 + "]" * 101])
def test_depth_is_limited(text: str) -> None:
    with pytest.raises(CutawayError, match="nested more than 100 deep"):
        reading.parse(text, "x")
    assert reading.parse("[" * 99 + "]" * 99, "x")


def test_limits_and_messages() -> None:
    with pytest.raises(CutawayError, match=r"x is too large: 9 bytes"):
        reading.parse(b"[1, 2, 3]", "x", largest=8)
    with pytest.raises(CutawayError, match="it holds the number inf"):
        reading.parse("[1e999]", "x")
    with pytest.raises(CutawayError, match=r"x is not understood: b\[1\]: expected int, got str"):
        reading.decode('{"b": [1, "c"]}', msgspec.defstruct("X", [("b", list[int])]), "x")
