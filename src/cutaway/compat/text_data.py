"""Texts from the hub, and texts as rows of tokens: what notebooks feed to models.

Two things here may need what is not at hand, the package `datasets` and the network; each says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from jaxtyping import Int
from torch import Tensor

from cutaway import tokens as text
from cutaway.errors import CutawayError, ShapeError, TokenError, UnknownName, nearest

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
CHUNKS = 20  # texts are tokenized in this many pieces, cut at white space


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


# Texts as rows of tokens.


class TokenRows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows of tokens: `rows["tokens"]` is all, `rows[i]["tokens"]` one, as data loaders want them."""

    def __init__(self, tokens: Int[Tensor, "row pos"]):
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Any) -> Any:
        return self.tokens if index == "tokens" else {"tokens": self.tokens[index]}


def keep_single_column(dataset: Any, col_name: str) -> Any:
    """A data set without its other columns."""
    if isinstance(dataset, dict):
        return {col_name: dataset[col_name]}
    names = dataset.column_names if getattr(dataset, "column_names", None) is not None else list(dataset.features)
    return dataset.remove_columns([name for name in names if name != col_name])


def tokenize_and_concatenate(
    dataset: Any,
    tokenizer: Any,
    streaming: bool = False,
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int | None = 10,
) -> Any:
    """Texts, joined by EOS tokens and cut into rows of `max_length` tokens, each with a BOS token in front.

    Args:
        dataset: a data set of the package `datasets`, or a dictionary with a list of texts.
        streaming: whether the data set is one that is read as it comes.
        num_proc: processes, for data sets of that package.

    Returns:
        The same kind of data set, with one column `tokens`; what does not fill a row is left out, unless it is all
        there is: then the one row is padded.
    """
    dataset = keep_single_column(dataset, column_name)
    how = {"column_name": column_name, "tokenizer": tokenizer, "max_length": max_length, "add_bos_token": add_bos_token}
    if isinstance(dataset, dict):
        return TokenRows(torch.tensor(_tokens_column(dataset, **how)["tokens"], dtype=torch.long).view(-1, max_length))
    tokenized = dataset.map(
        _tokens_column,
        batched=True,
        fn_kwargs=how,
        remove_columns=[column_name],
        **({} if streaming else {"num_proc": num_proc}),
    )
    if hasattr(tokenized, "set_format"):
        tokenized.set_format(type="torch", columns=["tokens"])
        return tokenized
    return tokenized.with_format("torch")


def _tokens_column(
    examples: Any, *, column_name: str, tokenizer: Any, max_length: int, add_bos_token: bool
) -> dict[str, list[list[int]]]:
    """What replaces a column of texts."""
    return {"tokens": rows_of_tokens(examples[column_name], tokenizer, max_length, add_bos_token)}


def rows_of_tokens(texts: Sequence[str], tokenizer: Any, max_length: int, add_bos_token: bool = True) -> list[list[int]]:
    """The rows of `tokenize_and_concatenate`."""
    if tokenizer.eos_token is None:
        raise TokenError("texts are joined by the tokenizer's EOS token, and it has none; set tokenizer.eos_token")
    length = max_length - 1 if add_bos_token else max_length
    if length < 1:
        raise ShapeError(f"max_length={max_length} leaves no room for text")
    joined = tokenizer.eos_token.join(texts)
    if not joined.strip():
        return []
    ids = [token for piece in _pieces(joined) for token in _ids(tokenizer, piece)]
    if len(ids) < length:
        pad = tokenizer.pad_token_id if tokenizer.pad_token is not None else tokenizer.eos_token_id
        ids = ids + [pad] * (length - len(ids))
    front = [tokenizer.bos_token_id] if add_bos_token else []
    return [front + ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]


def _ids(tokenizer: Any, piece: str) -> list[int]:
    """The ids of a piece as the tokenizer gives them; padding tokens in the text are dropped, as in the dialect."""
    encoded = tokenizer(piece)["input_ids"] if callable(tokenizer) else tokenizer.encode(piece)
    pad = tokenizer.pad_token_id if tokenizer.pad_token is not None else None
    return [int(token) for token in encoded if token != pad]


def _pieces(joined: str) -> list[str]:
    """The text in `CHUNKS` pieces of about one length, each cut at white space if there is some soon enough."""
    size = (len(joined) - 1) // CHUNKS + 1
    pieces: list[str] = []
    start = 0
    while start < len(joined) and len(pieces) < CHUNKS:
        end = min(start + size, len(joined))
        latest = min(end + size // 10, len(joined))
        while end < latest and not joined[end].isspace():
            end += 1
        pieces.append(joined[start:end])
        start = end
    return pieces


# The BOS token, by hand.


def get_tokenizer_with_bos(tokenizer: Any) -> Any:
    """The tokenizer, set to put a BOS token in front by itself; loaded anew where it is not."""
    if text.prepends_bos(tokenizer):
        return tokenizer
    if not hasattr(tokenizer, "init_kwargs"):
        raise TokenError(f"a {type(tokenizer).__name__} cannot be set to put a BOS token in front by itself")
    from transformers import AutoTokenizer

    options = dict(tokenizer.init_kwargs)
    name = options.pop("name_or_path", None) or tokenizer.name_or_path
    options.pop("add_bos_token", None)
    with from_the_hub(f"the tokenizer {name}"):
        return AutoTokenizer.from_pretrained(name, add_bos_token=True, **options)


def get_input_with_manually_prepended_bos(tokenizer: Any, input: str | list[str]) -> str | list[str]:
    """Text with the BOS token's text in front."""
    return tokenizer.bos_token + input if isinstance(input, str) else [tokenizer.bos_token + one for one in input]


def get_tokens_with_bos_removed(tokenizer: Any, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch rest"]:
    """Tokens without the BOS token of each row, wherever padding on the left has put it."""
    if getattr(tokenizer, "padding_side", "right") == "right":
        return tokens[..., 1:]
    if tokenizer.bos_token_id == tokenizer.pad_token_id:
        where = tokens.ne(tokenizer.pad_token_id).cumsum(-1).eq(0).sum(-1) - 1
    else:
        where = tokens.eq(tokenizer.bos_token_id).int().argmax(-1)
    keep = torch.arange(tokens.shape[-1], device=tokens.device) != where[:, None]
    return tokens[keep].view(len(tokens), -1)
