"""Prompts: many texts or token sequences at once, with what is known about them: answers, roles, counterparts.

Rows of unequal length are padded on the right, and `mask` says where tokens are. A position can be named by its role
("IO", "S2", "end"); "end" is always a row's own last token. Answers stand at positions: the tokens that are right there,
and, for contrasts, tokens that are wrong there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.axes import Tokens
from cutaway.errors import PromptError, ShapeError, TokenError, UnknownRole, nearest
from cutaway.tokens import Tokenizer, to_str_tokens, to_tokens

FIRST = "take the first with allow_first_token=True, in a command --allow-first-token"  # of an answer of several tokens
UNCOUNTED = -100  # a label at a position whose answer does not count
LARGEST_LINE = 2**20  # characters
Answers = tuple[Mapping[int, tuple[int, ...]], ...]  # of each row: position → tokens


@dataclass(frozen=True, eq=False)
class Prompts:
    """Sequences with a mask, and what is known about them.

    Args:
        tokens: `[batch, pos]`, rows padded on the right.
        mask: `[batch, pos]`, true where a token is and false where padding is.
        right: for each row, position → the tokens that are right after it.
        wrong: the same for tokens that answers are compared with; positions that `right` has.
        roles: role → its position in each row, `[batch]`; "end", each row's last token, is always there.
        corrupted: the counterparts, row by row and position by position, of which another answer is right.
        texts: the texts, where there are some.
        several: whether several tokens may be right at one position (a read-out by threshold, a set of years).

    Raises:
        ShapeError: parts that do not fit each other.
        PromptError: a row without a token, an answer or a role outside its row, a counterpart of another length.
    """

    tokens: Tokens
    mask: Bool[Tensor, "batch pos"]
    right: Answers = ()
    wrong: Answers = ()
    roles: Mapping[str, Int[Tensor, "batch"]] = field(default_factory=dict)
    corrupted: Prompts | None = None
    texts: tuple[str, ...] = ()
    several: bool = False

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.mask.shape != self.tokens.shape:
            raise ShapeError(f"tokens {list(self.tokens.shape)} and mask {list(self.mask.shape)} must both be [batch, pos]")
        lengths = self.mask.sum(1)
        if not len(lengths) or not bool((lengths > 0).all()):
            raise PromptError("each prompt needs at least one token, and there must be one prompt at least")
        if not torch.equal(self.mask, torch.arange(self.mask.shape[1], device=self.mask.device) < lengths[:, None]):
            raise PromptError("prompts are padded on the right only; the mask has padding elsewhere")
        object.__setattr__(self, "roles", {**self.roles, "end": lengths - 1})
        for what, rows in (("right answers", self.right), ("wrong answers", self.wrong), ("texts", self.texts)):
            if rows and len(rows) != len(lengths):
                raise ShapeError(f"there are {len(rows)} rows of {what} for {len(lengths)} prompts")
        self._check_places()
        if self.corrupted is not None:
            check_aligned(self, self.corrupted)

    def _check_places(self) -> None:
        lengths = self.lengths.tolist()
        for what, rows in (("an answer", self.right), ("a wrong answer", self.wrong)):
            for row, at in enumerate(rows):
                for position, tokens in at.items():
                    if not 0 <= position < lengths[row]:
                        raise PromptError(f"prompt {row} has {what} at position {position}, and its {lengths[row]} tokens from 0")
                    if not tokens and not self.several:
                        raise PromptError(f"prompt {row} has {what} at position {position} that names no token")
        for role, places in self.roles.items():
            outside = ((places < 0) | (places >= self.lengths)).nonzero().flatten()
            if len(outside):
                row = int(outside[0])
                raise PromptError(f"prompt {row} has the role {role!r} at {int(places[row])}, and {lengths[row]} tokens from 0")

    # What there is.

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        low, high = int(self.lengths.min()), int(self.lengths.max())
        length = f"{low}" if low == high else f"{low} to {high}"
        pairs = ", in pairs" if self.corrupted is not None else ""
        return f"Prompts({len(self)} of {length} tokens{pairs}; roles {', '.join(self.roles)})"

    def _repr_html_(self) -> str:
        """The first rows: text, answer, roles."""
        from html import escape

        head = "".join(f"<th>{escape(name)}</th>" for name in ("text", "right", "wrong", *self.roles))
        rows = []
        for row in range(min(len(self), 12)):
            text = self.texts[row] if self.texts else " ".join(map(str, self.tokens[row, : self.lengths[row]].tolist()))
            answers = [next(iter(rows_[row].values()), ()) if rows_ else () for rows_ in (self.right, self.wrong)]
            cells = [text, *(", ".join(map(str, one[:4])) for one in answers), *(str(int(at[row])) for at in self.roles.values())]
            rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
        return f"<p>{escape(repr(self))}</p><table><tr>{head}</tr>{''.join(rows)}</table>"

    @cached_property
    def lengths(self) -> Int[Tensor, "batch"]:
        """How many tokens each row has."""
        return self.mask.sum(1)

    def place(self, role: str | int) -> Int[Tensor, "batch"]:
        """The position of a role in each row; a number counts from a row's start, or from its own end where negative.

        Raises:
            UnknownRole: no such role; the message lists those there are.
            PromptError: a position outside some row.
        """
        if isinstance(role, str):
            if role not in self.roles:
                raise UnknownRole(f"no role {role!r}{nearest(role, self.roles)}; there are {', '.join(self.roles)}")
            return self.roles[role]
        places = torch.full_like(self.lengths, role) if role >= 0 else self.lengths + role
        outside = ((places < 0) | (places >= self.lengths)).nonzero().flatten()
        if len(outside):
            row = int(outside[0])
            raise PromptError(f"prompt {row} has {int(self.lengths[row])} tokens and no position {role}")
        return places

    def where(self, positions: str | int | Sequence[str | int] | None) -> Bool[Tensor, "batch pos"]:
        """A mask of positions: a role, a number, or several of them; None: every token.

        Raises:
            UnknownRole, PromptError: as `place`.
        """
        if positions is None:
            return self.mask.clone()
        found = torch.zeros_like(self.mask)
        for one in [positions] if isinstance(positions, str | int) else positions:
            found[torch.arange(len(self)), self.place(one)] = True
        return found

    @property
    def counterparts(self) -> Prompts:
        """The corrupted prompts; a role that they do not have of their own is where it is in these.

        Raises:
            PromptError: there are none.
        """
        if self.corrupted is None:
            raise PromptError("these prompts have no counterparts; give pairs (corrupted=…), or a behaviour's prompts")
        return replace(self.corrupted, roles={**self.roles, **self.corrupted.roles})

    def padded(self, side: str = "right", pad: int | None = None) -> tuple[Tokens, Int[Tensor, "batch pos"]]:
        """Tokens, and 1 where they are no padding, with the padding on one side (the left, for generation)."""
        if side == "right":
            return self.tokens, self.mask.long()
        width = self.tokens.shape[1]
        source = torch.arange(width) - (width - self.lengths)[:, None]
        mask = source >= 0
        tokens = self.tokens.gather(1, source.clamp(min=0)).masked_fill(~mask, 0 if pad is None else pad)
        return tokens, mask.long()

    @cached_property
    def answered(self) -> Bool[Tensor, "batch pos"]:
        """Where an answer counts."""
        found = torch.zeros_like(self.mask)
        places = [(row, position) for row, at in enumerate(self.right) for position in at]
        if places:
            found[tuple(torch.tensor(places, device=found.device).unbind(1))] = True
        return found

    @property
    def labels(self) -> Int[Tensor, "batch pos"]:
        """The right token at each position, `UNCOUNTED` where none counts; of several right tokens, the first."""
        return self._grid(self.right)

    @property
    def wrong_labels(self) -> Int[Tensor, "batch pos"]:
        """The token that the right one is compared with at each position, `UNCOUNTED` where there is none."""
        return self._grid(self.wrong)

    def _grid(self, rows: Answers) -> Int[Tensor, "batch pos"]:
        grid = torch.full_like(self.tokens, UNCOUNTED)
        found = [(row, position, tokens[0]) for row, at in enumerate(rows) for position, tokens in at.items() if tokens]
        if found:  # written at once: one by one, thousands of answers take a fifth of a second
            row, at, token = torch.tensor(found, device=grid.device).unbind(1)
            grid[row, at] = token
        return grid

    def allowed(self, d_vocab: int) -> Bool[Tensor, "batch pos d_vocab"]:
        """Every token that is right at each position; nothing where no answer counts."""
        grid = torch.zeros(*self.tokens.shape, d_vocab, dtype=torch.bool)
        for row, at in enumerate(self.right):
            for position, tokens in at.items():
                grid[row, position, list(tokens)] = True
        return grid

    @property
    def at(self) -> Int[Tensor, "batch"]:
        """The position of each row's only answer.

        Raises:
            PromptError: a row has none, or several.
        """
        counts = self.answered.sum(1)
        if not bool((counts == 1).all()):
            row = int((counts != 1).nonzero()[0])
            raise PromptError(f"one answer in each prompt is needed here; prompt {row} has {int(counts[row])}")
        return self.answered.long().argmax(1)

    @property
    def answers(self) -> Int[Tensor, "batch"]:
        """The only right token of each row."""
        return self.labels.gather(1, self.at[:, None])[:, 0]

    @property
    def wrong_answers(self) -> Int[Tensor, "batch"] | None:
        """The wrong token that it is compared with; None where there are none."""
        found = self.wrong_labels.gather(1, self.at[:, None])[:, 0]
        return None if bool((found == UNCOUNTED).any()) else found

    def answer_sets(self, *, wrong: bool = False) -> list[tuple[int, ...]]:
        """All right (or wrong) tokens of each row's only answer.

        Raises:
            PromptError: a row has none, or an answer at several positions.
        """
        places = self.at.tolist()
        sets = [tuple(row.get(place, ())) for row, place in zip(self.wrong if wrong else self.right, places, strict=True)]
        if len(sets) < len(places) or not all(sets):
            raise PromptError(f"prompt {sets.index(()) if () in sets else 0} has no {'wrong' if wrong else 'right'} answers")
        return sets

    # Making others of them.

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Prompts:
        """Some of the rows, with all that is known about them."""
        rows = torch.arange(len(self))[index] if not isinstance(index, list) else torch.tensor(index, dtype=torch.long)
        numbers = rows.tolist()
        width = int(self.lengths[rows].max())
        return Prompts(
            self.tokens[rows, :width],
            self.mask[rows, :width],
            right=tuple(self.right[n] for n in numbers) if self.right else (),
            wrong=tuple(self.wrong[n] for n in numbers) if self.wrong else (),
            roles={role: places[rows] for role, places in self.roles.items()},
            corrupted=None if self.corrupted is None else self.corrupted[numbers],
            texts=tuple(self.texts[n] for n in numbers) if self.texts else (),
            several=self.several,
        )

    def split(self, size: int) -> Iterator[Prompts]:
        """Batches of up to `size` rows, in order."""
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def halves(self, seed: int = 0) -> tuple[Prompts, Prompts]:
        """Two disjoint random halves."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        return self[sorted(order[: len(self) // 2])], self[sorted(order[len(self) // 2 :])]

    def without_counterparts(self) -> Prompts:
        """The same without `corrupted`."""
        return replace(self, corrupted=None)

    # From tokens, texts and files.

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[int]], pad: int = 0, **known: Any) -> Prompts:
        """Prompts of token rows of any lengths; `known` goes to the constructor."""
        width = max(map(len, rows), default=0)
        tokens = torch.full((len(rows), width), pad)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[number, : len(row)] = True
        return cls(tokens, mask, **known)

    @classmethod
    def of_texts(
        cls,
        tokenizer: Any,
        texts: Sequence[str],
        *,
        answers: str | Sequence[str] | None = None,
        wrong: str | Sequence[str] | None = None,
        corrupted: Sequence[str] | str | None = None,
        roles: Mapping[str, str | int | Sequence[str | int]] | None = None,
        prepend_bos: bool | None = None,
        allow_first_token: bool = False,
    ) -> Prompts:
        """Prompts of texts, with the word that should follow each and one that it is compared with.

        Example: `Prompts.of_texts(model, ["Mary and John went home; John thanked"], answers=" Mary", wrong=" John",
        roles={"IO": "Mary"})`

        Args:
            tokenizer: the model's, or the model itself (which also says whether texts begin with BOS).
            answers, wrong: a word for each text, or one for all.
            corrupted: the counterpart of each text, with as many tokens.
            roles: role → the word that has it, in each text or in all: its last token, where the word comes last; or a position.
            prepend_bos: whether texts begin with BOS; None: as the model says, with a tokenizer alone they do.
            allow_first_token: take the first token of a word that is several.

        Raises:
            TokenError: a word is several tokens.
            PromptError: counts or lengths do not fit, or a text lacks the word of a role.
        """
        tokenizer, prepend_bos = _reader(tokenizer, prepend_bos)
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [to_tokens(tokenizer, text, prepend_bos=prepend_bos)[0].tolist() for text in texts]
        ends = [len(row) - 1 for row in rows]

        def at_end(words: str | Sequence[str] | None, what: str) -> Answers:
            if words is None:
                return ()
            chosen = _for_each(words, len(texts), what)
            ids = [word_token(tokenizer, word, allow_first_token=allow_first_token) for word in chosen]
            return tuple({end: (token,)} for end, token in zip(ends, ids, strict=True))

        pair = None
        if corrupted is not None:
            pair = cls.of_texts(tokenizer, corrupted, prepend_bos=prepend_bos)
        known: dict[str, Any] = {"right": at_end(answers, "answers"), "wrong": at_end(wrong, "wrong answers")}
        places = {
            role: torch.tensor(
                [
                    _position_of(tokenizer, text, row, word, role, prepend_bos)
                    for text, row, word in zip(texts, rows, _for_each(words, len(texts), f"words of {role!r}"), strict=True)
                ]
            )
            for role, words in (roles or {}).items()
        }
        pad = getattr(tokenizer, "pad_token_id", None)
        return cls.of_rows(rows, 0 if pad is None else pad, corrupted=pair, roles=places, texts=tuple(texts), **known)

    @classmethod
    def read(cls, path: str | Path, tokenizer: Any = None, **options: Any) -> Prompts:
        """Prompts from a file: a text a line, or JSON lines of examples or of pairs.

        An example is `{"tokens": […] or "text": "…", "answers": {position: token or [tokens]}}`, a pair
        `{"clean": "…", "corrupted": "…", "answer": "…", "wrong": "…", "roles": {"IO": " Mary"}}`; tokens are ids or words.
        `tokenizer` may be the model, and `options` are those of `of_texts`.

        Raises:
            PromptError: a line that is neither (its number is said), or a file without any.
        """
        tokenizer, options["prepend_bos"] = _reader(tokenizer, options.get("prepend_bos"))
        made = objects_of(path)
        if isinstance(made[0][1], str):
            return cls.of_texts(tokenizer, [text for _, text in made], **options)
        kinds = {"pair" if "clean" in one else "example" for _, one in made}
        if kinds == {"pair"}:
            return _pairs(path, made, tokenizer, options)
        if kinds == {"example"}:
            return _examples(path, made, tokenizer, options)
        raise PromptError(f"{path} mixes pairs ('clean', 'corrupted') and examples ('tokens' or 'text', 'answers')")


def _reader(tokenizer: Any, prepend_bos: bool | None) -> tuple[Any, bool]:
    """The tokenizer (of a model, where one is given), and whether texts begin with BOS."""
    cfg = getattr(tokenizer, "cfg", None)
    if cfg is None:
        return tokenizer, True if prepend_bos is None else prepend_bos
    return tokenizer.tokenizer, cfg.default_prepend_bos if prepend_bos is None else prepend_bos


def _for_each(words: Any, count: int, what: str) -> list[Any]:
    chosen = [words] * count if isinstance(words, str | int) else list(words)
    if len(chosen) != count:
        for_all = f"{chosen[0]!r} for all, which is no list" if len(chosen) == 1 else "one for all"
        raise PromptError(f"{len(chosen)} {what} for {count} prompts; give one for each, or {for_all}")
    return chosen


def _position_of(tokenizer: Any, text: str, row: Sequence[int], word: str | int, role: str, prepend_bos: bool) -> int:
    """The position of a word's last token, where the word comes last in a text; a number is one, from the end where negative.

    Raises:
        PromptError: the text does not have it.
    """
    if isinstance(word, int):
        return word + len(row) if word < 0 else word
    begin = text.rfind(word) if word.strip() else -1
    if begin < 0:
        raise PromptError(f"the text {text[:60]!r} has no {word!r}, which the role {role!r} names")
    until = to_tokens(tokenizer, text[: begin + len(word)], prepend_bos=prepend_bos)[0].tolist()
    same = next((at for at, (one, other) in enumerate(zip(until, row, strict=False)) if one != other), len(until))
    return min(same, len(row) - 1) if same < len(until) else len(until) - 1


def check_aligned(clean: Prompts, corrupted: Prompts) -> None:
    """Stop where prompts and their counterparts do not have equal lengths, row by row.

    Raises:
        PromptError: they differ; says in which row and by how much.
    """
    if len(clean) != len(corrupted):
        raise PromptError(f"{len(clean)} prompts have {len(corrupted)} counterparts; each needs one")
    differ = (clean.lengths != corrupted.lengths).nonzero().flatten()
    if len(differ):
        row = int(differ[0])
        one, other = int(clean.lengths[row]), int(corrupted.lengths[row])
        pair = clean.tokens[row, :one].tolist(), corrupted.tokens[row, :other].tolist()
        at = next((n for n, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), min(one, other))
        raise PromptError(
            f"prompt {row} has {one} tokens and its counterpart {other}; the two need the same number, position by position. "
            f"They differ from position {at} on; choose words of as many tokens"
            + (f" ({len(differ)} such pairs)" if len(differ) > 1 else "")
        )


def word_token(tokenizer: Tokenizer | None, word: str, *, allow_first_token: bool | None = None) -> int:
    """The token of a word.

    Args:
        allow_first_token: take the first of several; None: whoever asks has no option that allows it.

    Raises:
        TokenError: it is several; shows them, and says how to take the first, where that can be asked for.
    """
    ids = to_tokens(tokenizer, word, prepend_bos=False)[0].tolist()
    if len(ids) == 1 or (ids and allow_first_token):
        return int(ids[0])
    parts = to_str_tokens(tokenizer, torch.tensor(ids)) if ids else []
    spaced = "" if word.startswith(" ") else f" Is a space in front missing (' {word}')?"
    todo = "give a word that is one" if allow_first_token is None else FIRST
    raise TokenError(f"{word!r} is {len(ids)} tokens, not one: {parts}; {todo}.{spaced}")


# Files.


def objects_of(path: str | Path) -> list[tuple[int, Any]]:
    """The numbered lines of a file of prompts: objects of JSON lines, whose keys are spelt right, or texts.

    Raises:
        PromptError: it cannot be read, has no prompt, or a line is broken (its number is said).
    """
    lines = _lines(Path(path))
    if not str(path).endswith((".jsonl", ".json", ".ndjson")):
        return list(lines)
    return [(number, _spelt(path, number, _object(path, number, text))) for number, text in lines]


def _lines(path: Path) -> list[tuple[int, str]]:
    """The numbered lines of a text file that are not empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise PromptError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}") from None
    found = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not found:
        raise PromptError(f"{path} holds no prompt")
    return found


def _object(path: str | Path, number: int, line: str) -> dict[str, Any]:
    if len(line) > LARGEST_LINE:
        raise PromptError(f"{path}, line {number} has {len(line)} characters; at most {LARGEST_LINE} are read")
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PromptError(f"{path}, line {number} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise PromptError(f"{path}, line {number} must be an object {{…}}, not {line[:40]}")
    return found


PAIR, EXAMPLE = ("clean", "corrupted", "answer", "wrong", "roles"), ("tokens", "text", "answers")


def _spelt(path: str | Path, number: int, one: dict[str, Any]) -> dict[str, Any]:
    """An object whose keys are spelt right; others that look like none of ours (a number, a source) are left alone.

    Raises:
        PromptError: a key that is nearly one of ours.
    """
    for key in one:
        if key not in (*PAIR, *EXAMPLE) and (near := nearest(key, [name for name in (*PAIR, *EXAMPLE) if name not in one])):
            raise PromptError(f"{path}, line {number}: the key {key!r} is not known{near}")
    return one


def _pairs(
    path: str | Path, made: list[tuple[int, dict[str, Any]]], tokenizer: Tokenizer | None, options: dict[str, Any]
) -> Prompts:
    """Prompts of `{"clean", "corrupted", "answer", "wrong"}`."""
    return join(_of_each(path, made, lambda one: _pair(one, tokenizer, options)))


def _pair(one: dict[str, Any], tokenizer: Tokenizer | None, options: dict[str, Any]) -> Prompts:
    lacking = [key for key in PAIR[:3] if not isinstance(one.get(key), str)]
    if lacking or not isinstance(one.get("wrong", ""), str):
        which = f"{lacking[0]!r} {'is no text' if lacking[0] in one else 'is missing'}" if lacking else "'wrong' is no text"
        raise PromptError(f"a pair needs texts 'clean', 'corrupted', 'answer' and, if any, 'wrong'; {which}")
    roles = one.get("roles", {})
    if not isinstance(roles, dict) or not all(type(word) in (str, int) for word in roles.values()):
        raise PromptError("'roles' must be {role: word or position}")
    given = {"answers": one["answer"], "wrong": one.get("wrong"), "corrupted": [one["corrupted"]], "roles": roles}
    return Prompts.of_texts(tokenizer, [one["clean"]], **given, **options)


def _examples(
    path: str | Path, made: list[tuple[int, dict[str, Any]]], tokenizer: Tokenizer | None, options: dict[str, Any]
) -> Prompts:
    """Prompts of `{"tokens" or "text", "answers": {position: token or tokens}}`."""
    rows, right, several = zip(*_of_each(path, made, lambda one: _example(one, tokenizer, options)), strict=True)
    return Prompts.of_rows(list(rows), right=right, several=any(several))


def _example(
    one: dict[str, Any], tokenizer: Tokenizer | None, options: dict[str, Any]
) -> tuple[list[int], dict[int, tuple[int, ...]], bool]:
    if ("tokens" in one) == ("text" in one):
        raise PromptError("an example needs 'tokens' or 'text', one of them")
    if "text" in one:
        if not isinstance(one["text"], str):
            raise PromptError("'text' must be a text")
        row = to_tokens(tokenizer, one["text"], prepend_bos=options.get("prepend_bos", True))[0].tolist()
    else:
        row = one["tokens"]
        if not isinstance(row, list) or not row or not all(type(token) is int and token >= 0 for token in row):
            raise PromptError("'tokens' must be a list of token ids (whole numbers from 0)")
    answers = one.get("answers", {})
    if not isinstance(answers, dict):
        raise PromptError("'answers' must be {position: token or [tokens]}")
    at: dict[int, tuple[int, ...]] = {}
    for position, found in answers.items():
        if not str(position).isdecimal() or int(position) >= len(row):
            raise PromptError(f"'answers' names position {str(position)[:20]!r}, and the tokens are 0 to {len(row) - 1}")
        many = found if isinstance(found, list) else [found]
        at[int(position)] = tuple(_answer(tokenizer, token, options) for token in many)
    return row, at, any(isinstance(found, list) for found in answers.values())


def _answer(tokenizer: Tokenizer | None, token: Any, options: dict[str, Any]) -> int:
    if isinstance(token, str):
        return word_token(tokenizer, token, allow_first_token=options.get("allow_first_token", False))
    if type(token) is not int or not 0 <= token < 2**31:
        raise PromptError(f"an answer must be a token id or a word, not {str(token)[:40]!r}")
    return token


def _of_each(path: str | Path, made: list[tuple[int, dict[str, Any]]], read: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """What is read of each line; an error is that of the first line that has one, and names the others."""
    found, wrong = [], []
    for number, one in made:
        try:
            found.append(read(one))
        except (PromptError, TokenError) as error:
            wrong.append((number, str(error)))
    if wrong:
        number, said = wrong[0]
        others = ", ".join(str(other) for other, _ in wrong[1:11]) + (", …" if len(wrong) > 11 else "")
        more = f" ({len(wrong) - 1} more {'lines have' if len(wrong) > 2 else 'line has'} an error: {others})" if others else ""
        raise PromptError(f"{path}, line {number}: {said}{more}")
    return found


def join(parts: Sequence[Prompts], pad: int = 0) -> Prompts:
    """Several sets of prompts in one; roles that not all of them have are left out.

    Raises:
        PromptError: there are none, or only some have counterparts.
    """
    if not parts:
        raise PromptError("there are no prompts to put together")
    if len({part.corrupted is None for part in parts}) > 1:
        raise PromptError("either all of the prompts need counterparts or none of them")
    rows = [row[:length] for part in parts for row, length in zip(part.tokens.tolist(), part.lengths.tolist(), strict=True)]
    roles = [role for role in parts[0].roles if all(role in part.roles for part in parts)]
    pairs = [part.corrupted for part in parts if part.corrupted is not None]
    return Prompts.of_rows(
        rows,
        pad,
        right=tuple(at for part in parts for at in (part.right or ({},) * len(part))) if any(p.right for p in parts) else (),
        wrong=tuple(at for part in parts for at in (part.wrong or ({},) * len(part))) if any(p.wrong for p in parts) else (),
        roles={role: torch.cat([part.roles[role] for part in parts]) for role in roles},
        corrupted=join(pairs, pad) if pairs else None,
        texts=tuple(text for part in parts for text in part.texts) if all(part.texts for part in parts) else (),
        several=any(part.several for part in parts),
    )
