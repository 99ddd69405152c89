"""Texts from the hub, and texts as rows of tokens: what notebooks feed to models.

Two things here may need what is not at hand, the package `datasets` and the network; each says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway import tokens as text
from cutaway.errors import ShapeError, TokenError
from cutaway.sources.sample_texts import (
    CACHE_DIR,
    DATASETS,
    Unreachable,
    download_file_from_hf,
    from_the_hub,
    get_dataset,
    load_dataset,
)  # fmt: skip

__all__ = [
    "CACHE_DIR", "DATASETS", "TokenRows", "Unreachable", "clear_huggingface_cache", "download_file_from_hf", "from_the_hub",
    "get_dataset", "get_input_with_manually_prepended_bos", "get_tokenizer_with_bos", "get_tokens_with_bos_removed",
    "keep_single_column", "load_dataset", "tokenize_and_concatenate",
]  # fmt: skip

CHUNKS = 20  # texts are tokenized in this many pieces, cut at white space


def clear_huggingface_cache() -> None:
    """Delete all that was ever fetched from the hub, of every library: that is what the dialect does under this name."""
    print(f"Deleting Hugging Face cache directory and all its contents: {CACHE_DIR}")
    shutil.rmtree(CACHE_DIR, ignore_errors=True)


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
