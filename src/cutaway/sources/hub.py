"""The Hugging Face hub: ids and the short names that people use, cached files first, revisions of a training run.

What is in the cache is used as it is, and the network is not asked. Only what is missing is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cutaway.errors import CheckpointError, ConfigError, TokenError, UnknownModel, UnsupportedArchitecture, nearest
from cutaway.sources import folders, gguf, packages, toys
from cutaway.sources.foreign import ForeignCheckpoint
from cutaway.sources.short_names import ENCODERS, SHORT_NAMES
from cutaway.sources.tensor_files import sharded

# Names.

_PYTHIA = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
_SAME = """
    distilgpt2 gpt2 gpt2-medium gpt2-large gpt2-xl
    EleutherAI/gpt-neo-125M EleutherAI/gpt-neo-1.3B EleutherAI/gpt-neo-2.7B EleutherAI/gpt-j-6B EleutherAI/gpt-neox-20b
    facebook/opt-125m facebook/opt-1.3b facebook/opt-2.7b facebook/opt-6.7b facebook/opt-13b facebook/opt-30b facebook/opt-66b
    bigscience/bloom-560m bigscience/bloom-1b1 bigscience/bloom-1b7 bigscience/bloom-3b bigscience/bloom-7b1
    tiiuae/falcon-7b tiiuae/falcon-40b mosaicml/mpt-7b bigcode/starcoder2-3b bigcode/starcoder2-7b
    mistralai/Mistral-7B-v0.1 mistralai/Mistral-7B-Instruct-v0.1 mistralai/Mixtral-8x7B-v0.1 mistralai/Mixtral-8x7B-Instruct-v0.1
    meta-llama/Llama-2-7b-hf meta-llama/Llama-2-13b-hf meta-llama/Llama-3.1-8B meta-llama/Llama-3.2-1B meta-llama/Llama-3.2-3B
    Qwen/Qwen1.5-0.5B Qwen/Qwen1.5-1.8B Qwen/Qwen2-0.5B Qwen/Qwen2-1.5B Qwen/Qwen2-7B Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-1.5B
    Qwen/Qwen2.5-3B Qwen/Qwen2.5-7B Qwen/Qwen3-0.6B Qwen/Qwen3-1.7B Qwen/Qwen3-4B Qwen/Qwen3-8B Qwen/Qwen3-30B-A3B
    google/gemma-2b google/gemma-7b google/gemma-2b-it google/gemma-7b-it google/gemma-2-2b google/gemma-2-2b-it
    google/gemma-2-9b google/gemma-2-9b-it google/gemma-2-27b google/gemma-3-270m google/gemma-3-1b-pt google/gemma-3-1b-it
    google/gemma-3-4b-pt microsoft/phi-1 microsoft/phi-1_5 microsoft/phi-2 microsoft/Phi-3-mini-4k-instruct
    stabilityai/stablelm-2-1_6b stabilityai/stablelm-3b-4e1t allenai/OLMo-1B-hf allenai/OLMo-7B-hf allenai/OLMo-2-0425-1B
    HuggingFaceTB/SmolLM2-135M HuggingFaceTB/SmolLM2-135M-Instruct HuggingFaceTB/SmolLM2-360M HuggingFaceTB/SmolLM2-360M-Instruct
    HuggingFaceTB/SmolLM2-1.7B HuggingFaceTB/SmolLM2-1.7B-Instruct HuggingFaceTB/SmolLM3-3B
    ibm-granite/granite-3.1-2b-base CohereLabs/c4ai-command-r-v01
    roneneldan/TinyStories-1M roneneldan/TinyStories-3M roneneldan/TinyStories-8M roneneldan/TinyStories-28M
    roneneldan/TinyStories-33M roneneldan/TinyStories-Instruct-33M
"""
_OWN = {
    **{f"gelu-{n}l": f"NeelNanda/GELU_{n}L512W_C4_Code" for n in (1, 2, 3, 4)},
    **{f"solu-{n}l": f"NeelNanda/SoLU_{n}L512W_C4_Code" for n in (1, 2, 3, 4)},
    **{f"solu-{n}l": f"NeelNanda/SoLU_{n}L{128 * n}W_C4_Code" for n in (6, 8, 10, 12)},
    **{f"attn-only-{n}l": f"NeelNanda/Attn_Only_{n}L512W_C4_Code" for n in (1, 2, 3, 4)},
    **{f"solu-{n}l-pile": f"NeelNanda/SoLU_{n}L_v{v}_old" for n, v in ((1, 9), (2, 10), (4, 11), (6, 13), (8, 21), (10, 22))},
    "solu-12l-pile": "NeelNanda/SoLU_12L_v23_old",
    "attn-only-2l-demo": "NeelNanda/Attn-Only-2L512W-Shortformer-6B-big-lr",
}
_STANFORD = {
    "small": ("alias-gpt2-small-x21", "battlestar-gpt2-small-x49", "caprica-gpt2-small-x81", "darkmatter-gpt2-small-x343",
              "expanse-gpt2-small-x777"),
    "medium": ("arwen-gpt2-medium-x21", "beren-gpt2-medium-x49", "celebrimbor-gpt2-medium-x81", "durin-gpt2-medium-x343",
               "eowyn-gpt2-medium-x777"),
}  # fmt: skip


def _aliases() -> dict[str, str]:
    known: dict[str, str] = {}
    for name in _SAME.split():  # the last part of an id is a name of its own
        known[name.rsplit("/", 1)[-1].lower()] = name
    for size in _PYTHIA:
        for kind in ("", "-deduped", "-v0", "-deduped-v0"):
            if size not in ("14m", "31m") or not kind:
                known[f"pythia-{size}{kind}"] = f"EleutherAI/pythia-{size}{kind}"
    for size, names in _STANFORD.items():
        for letter, name in zip("abcde", names, strict=True):
            known[f"stanford-gpt2-{size}-{letter}"] = f"stanford-crfm/{name}"
    short = {
        "gpt2-small": "gpt2", "gpt2-xs": "distilgpt2", "gpt-j": "EleutherAI/gpt-j-6B", "gpt-neox": "EleutherAI/gpt-neox-20b",
        "gpt-neo-small": "EleutherAI/gpt-neo-125M", "opt-small": "facebook/opt-125m", "pythia": "EleutherAI/pythia-70m",
        "mistral-7b": "mistralai/Mistral-7B-v0.1", "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.1",
        "mixtral": "mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
        "llama-2-7b": "meta-llama/Llama-2-7b-hf", "llama-2-13b": "meta-llama/Llama-2-13b-hf",
        "command-r": "CohereLabs/c4ai-command-r-v01",
    }  # fmt: skip
    tiny = {f"tiny-stories-{size.lower()}": f"roneneldan/TinyStories-{size}" for size in ("1M", "3M", "8M", "28M", "33M")}
    return SHORT_NAMES | known | short | tiny | _OWN


ALIASES = _aliases()
"""Short name → id on the hub."""


USUAL_LENGTHS = {"roneneldan/TinyStories": 512}
"""Repositories whose models have more positions than they were trained on, by how their names begin; and how many those are."""


def usual_length(name: str) -> int | None:
    """How many positions a model is loaded with where nobody says, if fewer than it has."""
    repo = official(name)
    return next((length for start, length in USUAL_LENGTHS.items() if repo.startswith(start)), None)


def official(name: str) -> str:
    """The id behind a name; a name that is no alias is an id already."""
    return ALIASES.get(name) or ALIASES.get(name.lower()) or name


ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""The files of an adapter, its config first."""

# Checkpoints of a training run.

PYTHIA_STEPS = (0, *(2**power for power in range(10)), *range(1000, 144000, 1000))
STANFORD_STEPS = (*range(0, 100, 10), *range(100, 2000, 50), *range(2000, 20000, 100), *range(20000, 401000, 1000))


def checkpoint_steps(repo: str) -> tuple[int, ...]:
    """The training steps at which a model was published; empty where it was published once."""
    if repo.startswith("EleutherAI/pythia"):
        return PYTHIA_STEPS[11:] if repo.endswith("-v0") else PYTHIA_STEPS
    return STANFORD_STEPS if repo.startswith("stanford-crfm/") else ()


def checkpoint_revision(repo: str, *, index: int | None = None, value: int | None = None) -> tuple[str, int, int]:
    """The revision, the index and the step of one checkpoint of a training run.

    Raises:
        ConfigError: the model has no checkpoints, or not this one.
    """
    steps = checkpoint_steps(repo)
    if not steps:
        raise ConfigError(f"{repo} was published without checkpoints of its training; leave checkpoint_index and _value out")
    if index is not None and value is not None:
        raise ConfigError("give checkpoint_index or checkpoint_value, not both")
    if value is not None:
        if value not in steps:
            near = sorted(steps, key=lambda step: abs(step - value))[:2]
            raise ConfigError(f"no checkpoint of {repo} at step {value}; the nearest are at {near[0]} and {near[1]}")
        index = steps.index(value)
    assert index is not None
    if not -len(steps) <= index < len(steps):
        raise ConfigError(f"checkpoint_index={index} of {repo}, which has {len(steps)} checkpoints")
    step = steps[index]
    return f"{'step' if repo.startswith('EleutherAI') else 'checkpoint-'}{step}", index % len(steps), step


# Files.


@dataclass(frozen=True)
class Access:
    """How the hub and its cache are used: the options of that name of `transformers`."""

    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    force_download: bool = False

    def of(self, revision: str | None) -> Access:
        """The same for another revision."""
        return replace(self, revision=revision)

    @property
    def place(self) -> dict[str, Any]:
        """What `huggingface_hub` is told about where; what is left out it takes from the environment."""
        given = {"cache_dir": self.cache_dir, "token": self.token}
        return {"revision": self.revision, **{name: value for name, value in given.items() if value is not None}}


def read(
    name: str,
    *,
    revision: str | None = None,
    tokenizer: Any = None,
    with_tokenizer: bool = True,
    access: Access | None = None,
    folder: Path | None = None,
) -> ForeignCheckpoint:
    """The model of an id or a short name.

    Args:
        folder: where its files are, where they are fetched already.

    Raises:
        UnknownModel: the hub has no such model; says near names.
        UnsupportedArchitecture: it is an encoder.
        CheckpointError: it is not in the cache and cannot be fetched, or its files are damaged.
    """
    repo = official(name)
    if repo in ENCODERS:
        raise UnsupportedArchitecture(
            f"{name!r} is {repo}, an encoder (or one with a decoder), and the networks here are decoders; "
            "transformers loads it with AutoModel"
        )
    access = access or Access(revision)
    folder = folder or fetch(repo, access)
    found = folders.read(folder, tokenizer=tokenizer, with_tokenizer=with_tokenizer, name=repo)
    if tokenizer is None and found.tokenizer is not None:
        found.tokenizer.name_or_path = repo  # rather than the folder of the cache
    config = found.config
    if repo.endswith("_old"):  # the first of the dialect's own models, whose configs do not say so themselves
        config = {"architecture": "neel-solu-old", **config}
    where = {"repository": repo, "revision": access.revision or "main"}
    return replace(found, config=config, provenance={**found.provenance, **where})


def fetch(repo: str, access: Access | None = None) -> Path:
    """The folder with a model's config, weights and tokenizer: from the cache, or fetched into it.

    That of an adapter has its config, its weights and a tokenizer, where it brings one.
    """
    access = access or Access()
    cached = None if access.force_download else _cached(repo, access)
    if cached is not None and _complete(cached):
        return cached
    if access.local_files_only:
        raise CheckpointError(f"{repo!r} is no folder and not in the cache, and local_files_only=True; fetch it once without")
    names = _listing(repo, access)
    if ADAPTER[0] in names:
        return _download(repo, access, [name for name in (*ADAPTER, *folders.TOKENIZER_PARTS) if name in names])
    if folders.CONFIG not in names and not any(name.endswith(".gguf") for name in names):
        raise CheckpointError(f"{repo} on the hub has no {folders.CONFIG}: it is no model as we know them")
    weights = folders.weight_files(names)
    files = [name for name in names if name.endswith(".gguf")]
    if weights is None and files:
        raise CheckpointError(f"{repo} on the hub holds GGUF files; download one and give its path: {', '.join(files[:4])}")
    if weights is None:
        raise CheckpointError(
            f"{repo} on the hub has no weights that we read: it should hold one of {', '.join(folders.WEIGHTS)}"
        )
    wanted = [folders.CONFIG, *(name for name in folders.TOKENIZER_PARTS if name in names), weights]
    folder = _download(repo, access, wanted)
    if weights.endswith(".index.json"):
        folder = _download(repo, access, [*wanted, *(file.name for file in sharded(folder / weights))])
    return folder


def read_tokenizer(name: str) -> Any:
    """The tokenizer of an id, a short name, a folder or a GGUF file.

    Raises:
        UnknownModel: the hub has no such model.
        TokenError: there is no tokenizer.
        CheckpointError: it is not in the cache and cannot be fetched.
    """
    place = Path(name)
    if not place.exists():
        repo = official(name)
        cached = _cached(repo, Access())
        place = cached if cached is not None and _has_tokenizer(cached) else _tokenizer_only(repo)
    tokenizer = gguf.read_tokenizer(place) if place.is_file() else folders.read_tokenizer(place)
    if tokenizer is None:
        raise TokenError(f"{name} has no tokenizer that can be read; pass one with tokenizer=…")
    return tokenizer


def _tokenizer_only(repo: str) -> Path:
    names = _listing(repo, Access())
    wanted = [name for name in (folders.CONFIG, *folders.TOKENIZER_PARTS) if name in names]
    return _download(repo, Access(), wanted)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in folders.TOKENIZER)


def _complete(folder: Path) -> bool:
    """Whether config and all weights are there."""
    names = [file.name for file in folder.iterdir()]
    if ADAPTER[0] in names:
        return any(name in names for name in ADAPTER[1:])
    weights = folders.weight_files(names)
    if folders.CONFIG not in names or weights is None:
        return False
    files = sharded(folder / weights) if weights.endswith(".index.json") else [folder / weights]
    return all(file.is_file() for file in files)


def _cached(repo: str, access: Access) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, **access.place, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UnknownModel(f"no folder and no model called {repo!r}{_near(repo)}") from error


def _listing(repo: str, access: Access) -> list[str]:
    """The files of a repository, from the network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        where = {name: value for name, value in access.place.items() if name != "cache_dir"}
        about = HfApi().model_info(repo, **where, timeout=20)  # (a listing of files retries for half a minute)
    except GatedRepoError as error:
        raise _gated(repo) from error
    except RepositoryNotFoundError as error:
        hint = _near(repo) or "; if it is private, set HF_TOKEN"
        raise UnknownModel(f"no model called {repo!r} on the Hugging Face hub, and no folder of this name{hint}") from error
    except RevisionNotFoundError as error:
        raise UnknownModel(f"{repo} has no revision {access.revision!r}") from error
    except _network_errors() as error:
        raise _unreachable(repo) from error
    return [file.rfilename for file in about.siblings or ()]


def _download(repo: str, access: Access, names: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    options: dict[str, Any] = access.place | ({"force_download": True} if access.force_download else {})
    try:
        return Path(snapshot_download(repo, **options, allow_patterns=list(names)))
    except GatedRepoError as error:
        raise _gated(repo) from error
    except _network_errors() as error:
        raise _unreachable(repo) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises when the network fails: it has changed its HTTP library more than once."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *(base for base in HfHubHTTPError.__bases__ if base.__name__ == "HTTPError"))


def _gated(repo: str) -> CheckpointError:
    return CheckpointError(
        f"{repo} is open only to those who accepted its terms: do so at https://huggingface.co/{repo}, then set HF_TOKEN"
    )


def _unreachable(repo: str) -> CheckpointError:
    off = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the Hugging Face hub cannot be reached"
    short = repo.rsplit("/", 1)[-1]
    known = [one["name"] for one in local_models()]
    here = [name for name in known if name.rsplit("/", 1)[-1].lower().startswith(short.lower())]
    near = _near(repo) if "/" not in repo and repo not in ALIASES.values() and not here else ""
    package = packages.hint(short)
    others = f" (models on this machine: {', '.join(known[:4])})" if known else ""
    fetch = f"; give a folder, or fetch it once{others}"
    try_this = f"; on this machine there is {' and '.join(here)}" if here else near or fetch
    return CheckpointError(f"{repo!r} is no folder and not in the cache, and {off}{try_this}{package}")


def local_models() -> list[dict[str, str]]:
    """The models that load without the network, beside the bundled: name, and where it is (`package X`, `cache of the hub`)."""
    packed = [{"name": name, "where": f"package {packages.PACKAGES[name].replace('_', '-')}"} for name in packages.installed()]
    return packed + [{"name": repo, "where": "cache of the hub"} for repo in _cached_models()]


def _cached_models() -> list[str]:
    """The ids whose config and weights are in the cache; one with damaged files is left out."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = []
    for place in sorted(Path(HF_HUB_CACHE).glob("models--*")):
        repo = place.name.removeprefix("models--").replace("--", "/")
        try:
            folder = _cached(repo, Access())
            if folder is not None and _complete(folder):
                found.append(repo)
        except (CheckpointError, UnknownModel):
            continue
    return found


def _near(repo: str) -> str:
    return nearest(repo, [*toys.names(), *ALIASES, *ALIASES.values()])
