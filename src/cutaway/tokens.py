"""Tokens and padding: text in, token ids out, and back, with any Hugging Face tokenizer or with `CharTokenizer`.

The rule of BOS: text gets one BOS token in front where `prepend_bos` says so, whether or not the tokenizer
adds it by itself; tensors of tokens are taken as they are. Padding is ours: a tokenizer is only asked to
encode and to decode, and its settings are never changed behind its owner's back (`with_special_tokens` fills
what is missing, once, where a tokenizer is handed to a model).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast, runtime_checkable

import msgspec
import numpy as np
import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor

from cutaway import reading
from cutaway.axes import Tokens
from cutaway.errors import ContextTooLong, NotReadable, ShapeError, TokenError
from cutaway.writing import SURROGATES

SIDES = ("left", "right")


@runtime_checkable
class Tokenizer(Protocol):
    """What we ask of a tokenizer; every tokenizer of `transformers` offers it, and so does `CharTokenizer`."""

    if TYPE_CHECKING:  # tokenizers of `transformers` make these when they are asked for, where Python 3.12 does not look

        @property
        def bos_token_id(self) -> int | None: ...

        @property
        def eos_token_id(self) -> int | None: ...

        @property
        def pad_token_id(self) -> int | None: ...

    def encode(self, text: str, **options: Any) -> list[int]: ...

    def decode(self, token_ids: Any, **options: Any) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...


class CharTokenizer:
    """Each entry of a short vocabulary is one token, and its id is its place in the list.

    Entries are usually single characters; longer ones (`"END"`) are found first. What a toy has no word for
    is refused, never replaced.

    Args:
        vocabulary: the tokens, in the order of their ids.
        bos_token, eos_token, pad_token: entries with a role; each may be absent.

    Raises:
        TokenError: an entry is empty or there twice, or a token with a role is not an entry.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
    ) -> None:
        self.vocabulary = list(vocabulary)
        self._ids = {token: id for id, token in enumerate(self.vocabulary)}
        if len(self._ids) != len(self.vocabulary) or "" in self._ids:
            raise TokenError(f"the entries of a vocabulary must differ and not be empty: {self.vocabulary}")
        for role, token in (("bos_token", bos_token), ("eos_token", eos_token), ("pad_token", pad_token)):
            if token is not None and token not in self._ids:
                raise TokenError(f"{role}={token!r} is not in the vocabulary {_listing(self.vocabulary)}")
        self.bos_token, self.eos_token, self.pad_token = bos_token, eos_token, pad_token
        self.padding_side = "right"
        longest_first = sorted(self.vocabulary, key=len, reverse=True)
        self._entry = re.compile("|".join(map(re.escape, longest_first)), re.DOTALL)

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._ids[token]

    @property
    def bos_token_id(self) -> int | None:
        return self._id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return self._id(self.eos_token)

    @property
    def pad_token_id(self) -> int | None:
        return self._id(self.pad_token)

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __repr__(self) -> str:
        return f"CharTokenizer({_listing(self.vocabulary)}, bos_token={self.bos_token!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharTokenizer) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(tuple(self.vocabulary))

    def get_vocab(self) -> dict[str, int]:
        """Token → id."""
        return dict(self._ids)

    def encode(self, text: str, **options: Any) -> list[int]:
        """Ids of a text; nothing is added to it. A character that no entry covers stops with `TokenError`."""
        ids: list[int] = []
        unknown: list[str] = []
        place = 0
        while place < len(text):
            match = self._entry.match(text, place)
            if match is None:
                unknown.append(text[place])
                place += 1
            else:
                ids.append(self._ids[match.group()])
                place = match.end()
        if unknown:
            names = ", ".join(map(repr, dict.fromkeys(unknown)))
            raise TokenError(f"{names} in {_short(repr(text))} is not in the vocabulary {_listing(self.vocabulary)}")
        return ids

    def decode(self, token_ids: Any, **options: Any) -> str:
        """The text of one id or of several, put together; without BOS, EOS and padding if `skip_special_tokens`."""
        ids = np.atleast_1d(_as_array(token_ids)).tolist()
        for id in ids:
            if not 0 <= id < len(self.vocabulary):
                raise TokenError(f"there is no token {id}; the vocabulary has {len(self.vocabulary)}")
        special = {self.bos_token_id, self.eos_token_id, self.pad_token_id} if options.get("skip_special_tokens") else set()
        return "".join(self.vocabulary[id] for id in ids if id not in special)

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """The text of each sequence."""
        return [self.decode(sequence) for sequence in sequences]

    def __call__(self, text: str | Sequence[str], **options: Any) -> dict[str, Any]:
        """`{"input_ids": …}` for one text or several, as tokenizers of `transformers` have it (without padding)."""
        return {"input_ids": self.encode(text) if isinstance(text, str) else [self.encode(one) for one in text]}

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes an equal tokenizer of; plain JSON."""
        roles = {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        return {"vocabulary": list(self.vocabulary), **roles}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> CharTokenizer:
        """The tokenizer that `to_dict` wrote down."""
        return cls(saved["vocabulary"], **{role: saved.get(role) for role in ("bos_token", "eos_token", "pad_token")})


class _Saved(msgspec.Struct):
    """What `to_saved` writes: a vocabulary of ours, or the JSON of a fast tokenizer."""

    vocabulary: Annotated[list[str], Meta(min_length=1)] | None = None
    fast: dict[str, Any] | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None


def to_saved(tokenizer: Any) -> dict[str, Any]:
    """A tokenizer as plain JSON, to be kept beside weights: `CharTokenizer`, or a fast one of `transformers`.

    Raises:
        TokenError: it is of another kind.
    """
    if isinstance(tokenizer, CharTokenizer):
        return tokenizer.to_dict()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenError(f"a {type(tokenizer).__name__} cannot be kept with weights; a CharTokenizer or a fast tokenizer can")
    roles = {role: getattr(tokenizer, role) for role in ("bos_token", "eos_token", "pad_token")}
    return {"fast": json.loads(backend.to_str()), **roles}


def from_saved(saved: Mapping[str, Any]) -> Any:
    """The tokenizer that `to_saved` wrote down.

    Raises:
        TokenError: it is not understood.
    """
    try:
        known = reading.convert(dict(saved), _Saved, "the saved tokenizer")
    except NotReadable as error:
        raise TokenError(f"{error}; save it again") from error
    if known.vocabulary is not None:
        return CharTokenizer.from_dict(saved)
    if known.fast is None or not {"model", "pre_tokenizer", "decoder"} <= set(known.fast):
        raise TokenError("the saved tokenizer is not understood; save it again")
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    roles = {role: saved.get(role) for role in ("bos_token", "eos_token", "pad_token")}
    try:
        backend = Backend.from_str(json.dumps(known.fast))
    except Exception as error:  # the library raises `Exception` itself
        if type(error) is Exception:
            raise TokenError(f"the saved tokenizer is not understood: {str(error)[:200]}") from error
        raise
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


# What a tokenizer is like.


def with_special_tokens(tokenizer: Any) -> Any:
    """The same tokenizer, with the roles that it leaves open filled in as the dialect does.

    No EOS: `<|endoftext|>`, where the vocabulary has it; no padding token or no BOS: the EOS token.
    """
    if isinstance(tokenizer, CharTokenizer):
        return tokenizer
    if tokenizer.eos_token is None and "<|endoftext|>" in tokenizer.get_vocab():
        tokenizer.eos_token = "<|endoftext|>"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


def prepends_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a BOS token in front by itself."""
    added = tokenizer.encode("")
    return len(added) > 0 and added[0] == tokenizer.bos_token_id


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id that the tokenizer can give."""
    return max(tokenizer.get_vocab().values()) + 1


# Text to tokens.


def encode(
    tokenizer: Tokenizer | None,
    input: Any,
    *,
    prepend_bos: bool = True,
    padding_side: str = "right",
    truncate: bool = True,
    n_ctx: int | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tokens, Tokens]:
    """Tokens of one text or several, and the mask that is 1 where a token is real and 0 where it is padding.

    Args:
        input: text, texts, a conversation or several (rendered by the tokenizer's chat template), or what a tokenizer gave.
        truncate: keep only the first `n_ctx` tokens of a text; otherwise a longer one stops with `ContextTooLong`.

    Raises:
        TokenError: no tokenizer, no BOS or padding token where one is needed, or characters it does not know.
    """
    if isinstance(input, Mapping):
        return _of_encoding(tokenizer, input, padding_side=padding_side, device=device)
    tokenizer = _needed(tokenizer)
    rows = _rows(tokenizer, input, prepend_bos)
    longest = max(map(len, rows))
    if n_ctx is not None and longest > n_ctx:
        if not truncate:
            check_length(longest, n_ctx)
        rows = [row[:n_ctx] for row in rows]
    return _padded(tokenizer, rows, padding_side, device)


def _rows(tokenizer: Tokenizer, input: Any, prepend_bos: bool) -> list[list[int]]:
    """The tokens of each text or conversation; the template of a conversation decides about BOS itself."""
    if is_conversation(input) or (isinstance(input, list | tuple) and input and all(is_conversation(one) for one in input)):
        return [_rendered(tokenizer, one) for one in ([input] if is_conversation(input) else input)]
    texts = [input] if isinstance(input, str) else list(input)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TokenError(f"text must be a string or a list of strings, not {_short(repr(input))}")
    return _with_bos(tokenizer, _encode_all(tokenizer, texts), prepend_bos)


def encode_each(tokenizer: Tokenizer | None, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, of its own length and without a BOS token."""
    return _with_bos(_needed(tokenizer), _encode_all(_needed(tokenizer), list(texts)), wanted=False)


def is_conversation(input: Any) -> bool:
    """Whether this is a list of messages, `{"role": …, "content": …}`."""
    return isinstance(input, list | tuple) and bool(input) and all(isinstance(one, Mapping) and "role" in one for one in input)


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """A conversation by the tokenizer's chat template, ready for the answer where the last word is not the model's."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise TokenError("messages need a tokenizer with a chat template, and this one has none; give text")
    answered = messages[-1]["role"] == "assistant"
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=not answered)
    return [int(id) for id in tokenizer.encode(text, add_special_tokens=False)]


def _of_encoding(
    tokenizer: Tokenizer | None, encoding: Mapping[str, Any], *, padding_side: str, device: Any
) -> tuple[Tokens, Tokens]:
    """Tokens and mask of what a tokenizer gave (`BatchEncoding`, or a dictionary); rows of lists may differ in length."""
    if "input_ids" not in encoding:
        raise TokenError(f"a dictionary of tokens needs 'input_ids', and this one has {_short(', '.join(map(str, encoding)))}")
    ids, mask = encoding["input_ids"], encoding.get("attention_mask")
    if isinstance(ids, list | tuple) and ids and isinstance(ids[0], list | tuple) and len({len(row) for row in ids}) > 1:
        tokens, padding = _padded(_needed(tokenizer), [list(row) for row in ids], padding_side, device)
        if mask is not None:
            padding[padding.bool()] = torch.tensor([int(one) for row in mask for one in row], device=padding.device)
        return tokens, padding
    tokens = torch.as_tensor(ids, device=device)
    tokens = tokens if tokens.ndim > 1 else tokens[None]
    if mask is None:
        return tokens, attention_mask(tokenizer, tokens, padding_side=padding_side)
    mask = torch.as_tensor(mask, device=device)
    return tokens, check_mask(mask if mask.ndim > 1 else mask[None], tokens)


def _padded(tokenizer: Tokenizer, rows: list[list[int]], padding_side: str, device: Any) -> tuple[Tokens, Tokens]:
    """Rows of different lengths as one tensor, and the mask of what is real."""
    if padding_side not in SIDES:
        raise TokenError(f"padding_side={padding_side!r} is not known; there are 'left' and 'right'")
    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if pad is None and any(len(row) != longest for row in rows):
        raise TokenError("texts of different lengths need padding, and the tokenizer has no pad_token; set one")
    tokens = torch.full((len(rows), longest), 0 if pad is None else pad, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for index, row in enumerate(rows):
        where = slice(0, len(row)) if padding_side == "right" else slice(longest - len(row), longest)
        tokens[index, where] = torch.tensor(row, dtype=torch.long)
        mask[index, where] = 1
    return tokens.to(device), mask.to(device)


def to_tokens(
    tokenizer: Tokenizer | None,
    input: Any,
    *,
    prepend_bos: bool = True,
    padding_side: str = "right",
    truncate: bool = True,
    n_ctx: int | None = None,
    device: torch.device | str | None = None,
) -> Tokens:
    """Tokens of one text or several, of messages, or of what a tokenizer gave, `[batch, pos]`; see `encode`.

    Without `truncate`, a text may be longer than the model's positions: only a run checks that.
    """
    options: dict[str, Any] = {"n_ctx": n_ctx if truncate else None, "device": device}  # only a run checks the length
    return encode(tokenizer, input, prepend_bos=prepend_bos, padding_side=padding_side, **options)[0]


def to_single_token(tokenizer: Tokenizer | None, string: str) -> int:
    """The id of a string that is one token; any other string stops with `TokenError`, which shows its tokens."""
    ids = to_tokens(tokenizer, string, prepend_bos=False)[0]
    if len(ids) != 1:
        parts = to_str_tokens(tokenizer, ids)
        raise TokenError(f"{string!r} is {len(ids)} tokens, not one: {parts}; to_tokens gives them all")
    return int(ids[0])


# Tokens to text.


def to_string(tokenizer: Tokenizer | None, tokens: Any) -> str | list[str]:
    """The text of one sequence of tokens, or the texts of a batch of them. Takes tensors, arrays and lists."""
    tokenizer = _needed(tokenizer)
    if isinstance(tokens, list | tuple) and any(np.ndim(row) == 1 for row in tokens):  # rows may differ in length
        return [_decode(tokenizer, _as_array(row)) for row in tokens]
    ids = _as_array(tokens)
    if ids.ndim > 2:
        raise TokenError(f"tokens of shape {list(ids.shape)} are no text; give [pos] or [batch, pos]")
    return [_decode(tokenizer, row) for row in ids] if ids.ndim == 2 else _decode(tokenizer, np.atleast_1d(ids))


def to_str_tokens(
    tokenizer: Tokenizer | None,
    input: Any,
    *,
    prepend_bos: bool = True,
    padding_side: str = "right",
    truncate: bool = True,
    n_ctx: int | None = None,
) -> list[str] | list[list[str]]:
    """Each token as text, of a string or of tokens `[pos]` or `[1, pos]`; a list gives a list of such lists.

    A batch given as one tensor is refused: rows are sequences of their own, so give `list(tokens)`.
    """
    tokenizer = _needed(tokenizer)
    options: dict[str, Any] = {
        "prepend_bos": prepend_bos,
        "padding_side": padding_side,
        "truncate": truncate,
        "n_ctx": n_ctx,
    }
    if isinstance(input, Mapping):
        given, mask = (x.cpu() for x in encode(tokenizer, input, padding_side=padding_side))
        real = [row[one.bool()].numpy().reshape(-1, 1) for row, one in zip(given, mask, strict=True)]
        rows = [[_decode(tokenizer, token) for token in row] for row in real]
        return rows[0] if len(rows) == 1 else rows
    conversation = is_conversation(input)
    if isinstance(input, list | tuple) and not conversation and not all(isinstance(one, int | np.integer) for one in input):
        return cast("list[list[str]]", [to_str_tokens(tokenizer, one, **options) for one in input])
    if isinstance(input, str) or conversation:
        ids = to_tokens(tokenizer, input, **options)[0].numpy()
    else:
        ids = _as_array(input)
        if ids.ndim > 2 or (ids.ndim == 2 and ids.shape[0] != 1):
            raise TokenError(f"tokens of shape {list(ids.shape)} are not one sequence; give [pos], [1, pos] or a list of rows")
    return [_decode(tokenizer, ids_of_one) for ids_of_one in ids.reshape(-1, 1)]


def to_single_str_token(tokenizer: Tokenizer | None, int_token: int) -> str:
    """One token as text."""
    return _decode(_needed(tokenizer), np.atleast_1d(_as_array(int_token)))


def get_token_position(
    tokenizer: Tokenizer | None,
    single_token: str | int | Int[Tensor, "..."],
    input: str | Int[Tensor, "..."] | Float[Tensor, "..."] | Int[np.ndarray, "..."] | Float[np.ndarray, "..."],
    *,
    mode: str = "first",
    prepend_bos: bool = True,
    padding_side: str = "right",
    n_ctx: int | None = None,
) -> int:
    """Where a token is in a text or in tokens `[pos]` or `[1, pos]`; `mode` says which of several: first or last.

    Raises:
        TokenError: it is not there.
    """
    if mode not in ("first", "last"):
        raise TokenError(f"mode={mode!r} is not known; there are 'first' and 'last'")
    if isinstance(input, str):
        ids = to_tokens(tokenizer, input, prepend_bos=prepend_bos, padding_side=padding_side, n_ctx=n_ctx).numpy()
    else:
        ids = _as_array(input, whole=True)
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise TokenError(f"tokens of shape {list(ids.shape)} are not one sequence; give [pos] or [1, pos]")
    wanted = to_single_token(tokenizer, single_token) if isinstance(single_token, str) else int(single_token)
    places = np.flatnonzero(ids == wanted)
    if not len(places):
        text = repr(input) if isinstance(input, str) else str(ids.tolist())
        raise TokenError(f"the token {single_token!r} is not in {_short(text)}")
    return int(places[0 if mode == "first" else -1])


# What a model asks of tokens.


def attention_mask(
    tokenizer: Tokenizer | None,
    tokens: Tokens,
    *,
    prepend_bos: bool = True,
    padding_side: str = "right",
) -> Tokens:
    """Which tokens are real (1) and which are padding (0), for tokens that came without a mask.

    Padding is the run of padding tokens at the padded end of a row, and nothing else. Where BOS is the padding
    token too (GPT-2), the last of a run on the left is the BOS and counts as real, as does the first of a row of
    nothing else on the right. Where EOS is the padding token and every row ends with some, as many as they have in
    common are real: nobody pads the longest row.
    """
    mask = torch.ones_like(tokens)
    pad = None if tokenizer is None else tokenizer.pad_token_id
    if tokenizer is None or pad is None or not tokens.numel():
        return mask
    real = tokens.ne(pad).long()
    left = padding_side == "left"
    mask[(real if left else real.flip(-1)).cumsum(-1).flip(() if left else (-1,)) == 0] = 0
    if prepend_bos and tokenizer.bos_token_id == pad:
        if left:  # the last of the leading run, if there is one
            run = (mask == 0).sum(-1)
            rows = torch.nonzero(run).flatten()
            mask[rows, run[rows] - 1] = 1
        else:
            mask[:, 0] = 1
    if not left and pad in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        length = mask.sum(-1, keepdim=True)
        common = (tokens.shape[1] - length).min()
        places = torch.arange(tokens.shape[1], device=tokens.device)
        mask[(places >= length) & (places < length + common)] = 1
    return mask


def check_mask(mask: Tensor, tokens: Tensor, *, past: bool = False) -> Tensor:
    """A given attention mask, 1 for tokens and 0 for padding, once it is clear that it is one.

    Raises:
        ShapeError: it has another shape than the tokens.
        TokenError: it holds other numbers (an additive mask would be read upside down), or leaves a row without a token.
    """
    if mask.shape != tokens.shape:
        raise ShapeError(f"attention_mask {tuple(mask.shape)} must have the shape of the tokens, {tuple(tokens.shape)}")
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        low, high = (float(end) for end in torch.aminmax(mask))
        raise TokenError(
            "attention_mask is 1 where a position is a token and 0 where it is padding, and this one goes from "
            f"{low:g} to {high:g}; of an additive mask, pass (mask == 0)"
        )
    if not past and not bool(mask.any(-1).all()):
        raise TokenError(
            f"attention_mask leaves row {int((~mask.bool().any(-1)).nonzero()[0])} without a token; "
            "an additive mask of zeros is no mask: leave it out"
        )
    return mask


def check_tokens(tokens: Tensor, d_vocab: int) -> None:
    """Stop with `TokenError` where tokens are not ids of a vocabulary of `d_vocab`, or where there are none."""
    if tokens.dtype.is_floating_point or tokens.dtype.is_complex or tokens.dtype == torch.bool:
        raise TokenError(f"tokens must be whole numbers, not {tokens.dtype}")
    if not tokens.numel():
        raise TokenError("there are no tokens: the text is empty and no BOS token is put in front of it")
    low, high = (int(end) for end in torch.aminmax(tokens))
    if low < 0 or high >= d_vocab:
        raise TokenError(f"there is no token {low if low < 0 else high}; the model's vocabulary has {d_vocab}, from 0")


def check_length(length: int, n_ctx: int, *, past: int = 0, reload: bool = False) -> None:
    """Stop with `ContextTooLong` where `length` more tokens after `past` exceed `n_ctx`; `reload`: the model can have more."""
    if past + length > n_ctx:
        after, more = f" after {past}" * bool(past), f", or in Python load the model with n_ctx={past + length} or more" * reload
        raise ContextTooLong(f"{length} tokens{after} are more than the {n_ctx} positions of the model; shorten the text{more}")


# Inside.


def _needed(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise TokenError("this model has no tokenizer: give tokens instead of text, or set one with set_tokenizer")
    return tokenizer


def _encode_all(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of each text as the tokenizer gives them; tokenizers of `transformers` take all at once."""
    for text in texts:
        if lone := SURROGATES.search(text):
            raise TokenError(
                f"{_short(repr(text))} is not UTF-8 text: it holds {lone[0]!r} at {lone.start()}, a byte that means nothing; "
                "save the text as UTF-8"
            )
    if isinstance(tokenizer, CharTokenizer) or not callable(tokenizer):
        return [list(tokenizer.encode(text)) for text in texts]
    return [list(row) for row in tokenizer(texts, verbose=False)["input_ids"]]


def _with_bos(tokenizer: Tokenizer, rows: list[list[int]], wanted: bool) -> list[list[int]]:
    """The rows with one BOS in front (the tokenizer's own, ours, or the text's where it begins with one), or as they are."""
    if prepends_bos(tokenizer):
        rows = [row[1:] for row in rows]
    if not wanted:
        return rows
    bos = tokenizer.bos_token_id
    if bos is None:
        raise TokenError("the tokenizer has no BOS token to put in front; say prepend_bos=False")
    return [row if row[:1] == [bos] else [bos, *row] for row in rows]


def _decode(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    return tokenizer.decode([int(id) for id in ids], clean_up_tokenization_spaces=False)


def _as_array(tokens: Any, *, whole: bool = False) -> np.ndarray:
    """Tokens of any kind as an integer array; with `whole`, floats that are whole numbers count."""
    array = tokens.detach().cpu().numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
    if array.size and array.dtype.kind not in "iu" and not (whole and array.dtype.kind == "f" and (array == array.round()).all()):
        raise TokenError(f"tokens must be whole numbers, not {_short(repr(tokens))}")
    return array.astype(np.int64)


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _listing(vocabulary: list[str], most: int = 40) -> str:
    shown = " ".join(vocabulary[:most])
    return shown if len(vocabulary) <= most else f"{shown} … ({len(vocabulary)})"
