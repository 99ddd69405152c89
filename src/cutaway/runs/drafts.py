"""Drafts: what followed the same words earlier in a text, checked by one run instead of a run for each token.

A step with kept keys waits for the weights to be read, and a run over six tokens reads them once. Texts repeat themselves, and so
do models (prompt lookup decoding). A draft changes no answer: what is kept is what the likeliest token would have been at each
step, and where rounding could decide between two, a step of its own does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cutaway.axes import Tokens
from cutaway.model.hook_points import HookPoint
from cutaway.model.key_values import KeyValueCache
from cutaway.model.transformer import Transformer

LONGEST = 5  # tokens of a draft: a run over so many costs hardly more than one over two
REPEATED = (2, 8)  # tokens that must have occurred before: so many at first, one more after each draft that was wrong
WORTH = 2  # tokens of a draft that must be right for it to have cost less than steps
CLEAR = 2**12  # times the rounding of one number, relative to the largest logit: nearer than that two tokens may change places
PRECISE = (torch.float32, torch.float64)


class Drafts:
    """Drafts for one text, more sparing the more of them were wrong."""

    def __init__(self) -> None:
        self._repeated = REPEATED[0]

    def foreseen(self, model: Transformer, tokens: Tokens, kept: KeyValueCache, most: int) -> list[int]:
        """The next likeliest tokens after these, `[1, pos]`, at most one more than `most`; none where there is no draft."""
        draft = self._draft(tokens[0].tolist(), most)
        if not draft or not unnoticed(model):
            return []
        found = checked(model, tokens[:, -1:], draft, kept)
        self._repeated = REPEATED[0] if len(found) > WORTH else min(self._repeated + 1, REPEATED[1])
        return found

    def _draft(self, text: list[int], most: int) -> list[int]:
        """What followed the last tokens when they occurred last."""
        length = self._repeated
        ending = text[-length:]
        for start in range(len(text) - length - 1, -1, -1):
            if text[start : start + length] == ending:
                return text[start + length : start + length + min(LONGEST, most)]
        return []


def unnoticed(model: Transformer) -> bool:
    """Whether a run of several tokens computes what steps would, and nobody would notice that it is one run."""
    return (
        model.cfg.torch_dtype in PRECISE
        and model.cfg.attention_dir == "causal"
        and model.untouched()
        and not model.own_forward
        and not any(isinstance(point, HookPoint) and point.listening for point in model.hook_dict.values())
    )


def checked(model: Transformer, last: Tokens, draft: list[int], kept: KeyValueCache) -> list[int]:
    """The tokens that greedy steps would give after `last`, `[1, 1]`: those of the draft that are right, and the one after them.

    The next token is left out where it is not clear (see `CLEAR`), so there may be none. What is kept ends before the last found.
    """
    before = kept.length
    tokens = torch.cat([last, torch.tensor([draft]).to(last)], dim=1)
    logits = model.last_logits(tokens, None, kept, count=tokens.shape[1])[0]
    likeliest, clear = logits.argmax(-1).tolist(), _clear(logits).tolist()
    right = 0
    while right < len(draft) and clear[right] and likeliest[right] == draft[right]:
        right += 1
    found: list[int] = likeliest[: right + clear[right]]
    kept.shorten(before + len(found))
    return found


def _clear(logits: Tensor) -> Tensor:
    """Where the likeliest token is so by more than rounding, `[pos]`; NaN is not."""
    first, second = logits.topk(2).values.unbind(-1)
    return first - second > CLEAR * torch.finfo(logits.dtype).eps * logits.abs().amax(-1)
