"""Small data sets of texts on the hub, and which of them a model of the dialect was trained on.

Two things here may need what is not at hand, the package `datasets` and the network; each says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from cutaway.errors import ConfigError, CutawayError, UnknownName, nearest

CACHE_DIR = constants.HF_HUB_CACHE
DATASETS = {
    "openwebtext": "stas/openwebtext-10k",
    "owt": "stas/openwebtext-10k",
    "pile": "NeelNanda/pile-10k",
    "c4": "NeelNanda/c4-10k",
    "code": "NeelNanda/code-10k",
    "python": "NeelNanda/code-10k",
    "c4_code": "NeelNanda/c4-code-20k",
    "c4-code": "NeelNanda/c4-code-20k",
    "wiki": "NeelNanda/wiki-10k",
}

TRAINED_ON = {
    "neel": "c4_code",
    "neel-solu-old": "pile",
    "GPT2LMHeadModel": "openwebtext",
    "GPTNeoForCausalLM": "pile",
    "GPTNeoXForCausalLM": "pile",
    "GPTJForCausalLM": "pile",
    "OPTForCausalLM": "pile",
}
"""Architecture → the data set that is most like what such models were trained on."""


class Unreachable(CutawayError, ConnectionError):
    """Something that is not on this machine, and the network did not give it."""


# From the hub.


@contextmanager
def from_the_hub(what: str) -> Iterator[None]:
    """Turn failures of the network into one sentence about what was asked for."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    failures: tuple[type[BaseException], ...] = (
        OSError,
        *(base for base in HfHubHTTPError.__bases__ if base.__name__ == "HTTPError"),
    )
    try:
        yield
    except HFValidationError as error:
        raise UnknownName(f"{what}: {error}") from error
    except failures as error:
        first = str(error).strip().split("\n")[0]
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hugging Face hub did not give it"
        raise Unreachable(f"{what} is not in the cache, and {offline} ({first}); fetch it once with a network") from error


def download_file_from_hf(
    repo_name: str,
    file_name: str,
    subfolder: str = ".",
    cache_dir: str | None = CACHE_DIR,
    force_is_torch: bool = False,
    **kwargs: Any,
) -> Any:
    """A file of a repository on the hub: its content where that is JSON or tensors (`.pth`), otherwise its path.

    Raises:
        Unreachable: it is not in the cache and cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    folder = None if subfolder in (".", "") else subfolder
    known = {
        name: kwargs[name] for name in ("revision", "token", "repo_type", "force_download", "local_files_only") if name in kwargs
    }
    with from_the_hub(f"{file_name} of {repo_name}"):
        path = hf_hub_download(repo_name, file_name, subfolder=folder, cache_dir=cache_dir, **known)
    if path.endswith(".pth") or force_is_torch:
        return torch.load(path, map_location="cpu", weights_only=True)
    if path.endswith(".json"):
        return json.loads(Path(path).read_text(encoding="utf-8"))
    print("File type not supported:", path.split(".")[-1])
    return path


def load_dataset(*args: Any, **kwargs: Any) -> Any:
    """What `datasets.load_dataset` gives.

    Raises:
        ModuleNotFoundError: the package `datasets` is not installed.
        Unreachable: the data are not in the cache and cannot be fetched.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ModuleNotFoundError(f"{args[0]} needs the package datasets: pip install datasets", name="datasets") from None
    with from_the_hub(f"the data set {args[0]}"):
        return datasets.load_dataset(*args, **kwargs)


def get_dataset(dataset_name: str, **kwargs: Any) -> Any:
    """One of the small data sets that notebooks use: about 10,000 texts, in a column `text`.

    Raises:
        UnknownName: there is none of this name.
        ModuleNotFoundError, Unreachable: as `load_dataset`.
    """
    if dataset_name not in DATASETS:
        raise UnknownName(
            f"no data set called {dataset_name!r}{nearest(dataset_name, DATASETS)}; there are {', '.join(DATASETS)}"
        )
    return load_dataset(DATASETS[dataset_name], split="train", **kwargs)


def get_dataset_of(architecture: str | None, **kwargs: Any) -> Any:
    """Texts like those that a model of this architecture was trained on.

    Raises:
        ConfigError: nobody says on what such models were trained; says for which that is known.
    """
    if architecture not in TRAINED_ON:
        raise ConfigError(f"no sample of the training data of {architecture}; there are those of {', '.join(TRAINED_ON)}")
    return get_dataset(TRAINED_ON[architecture], **kwargs)
