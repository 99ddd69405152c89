"""What is explained: a model on the inputs of its task, and its own answers to them.

An explanation is of what the model does, not of what it should do: programs are fitted to the model's answers. The
examples' answers say at which positions it answers, and whether it does the task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.errors import ExplainError
from cutaway.prompts import Prompts

LARGEST = 5_000_000  # parameters; beyond, a report on a behaviour says more
LARGEST_VOCABULARY = 512  # tables of token × token are written out
AT_ONCE = 2**14  # tokens


def check_size(count: int, d_vocab: int) -> None:
    """Make sure that a model of so many parameters and tokens can be explained.

    Raises:
        ExplainError: it is too large.
    """
    if count > LARGEST:
        raise ExplainError(
            f"the model has {count:,} parameters, and explanations are for at most {LARGEST:,}; "
            "`cutaway report` says how larger ones do a behaviour"
        )
    if d_vocab > LARGEST_VOCABULARY:
        raise ExplainError(
            f"the model has {d_vocab:,} tokens, and explanations compare all pairs of at most {LARGEST_VOCABULARY:,}; "
            "`cutaway report` says how larger ones do a behaviour"
        )


@dataclass(frozen=True, eq=False)
class InputSet:
    """Some inputs with the model's answers.

    Args:
        prompts: the inputs and their own right answers.
        answers: `[batch, pos]`, the number of the model's answer: a token, or (read-out "above") a set of tokens.
    """

    prompts: Prompts
    answers: Int[Tensor, "batch pos"]

    @property
    def counted(self) -> Bool[Tensor, "batch pos"]:
        """Where there is something to answer."""
        return self.prompts.answered


class Subject:
    """A model, its read-out, and its answers.

    Args:
        several: whether all tokens with a logit above 0 are the answer; else the likeliest token is.

    Raises:
        ExplainError: the model is too large, or the examples have no answers.
    """

    def __init__(self, model: Any, prompts: Prompts, *, several: bool | None = None) -> None:
        self.model, self.cfg = model, model.cfg
        count = sum(parameter.numel() for parameter in model.parameters())
        check_size(count, self.cfg.d_vocab)
        if not prompts.right or not bool(prompts.answered.any()):
            raise ExplainError("the examples have no answers: each line needs 'answers': {position: token or [tokens]}")
        largest = max((token for row in prompts.right for tokens in row.values() for token in tokens), default=0)
        if largest >= self.cfg.d_vocab_out:
            raise ExplainError(f"the examples answer {largest}, and the model's answers are 0 to {self.cfg.d_vocab_out - 1}")
        self.several = prompts.several if several is None else several
        self.sets: list[tuple[int, ...]] = [] if self.several else [(token,) for token in range(self.cfg.d_vocab_out)]
        self._number: dict[tuple[int, ...], int] = {tokens: number for number, tokens in enumerate(self.sets)}
        self.bits = 32 * count

    def answered(self, prompts: Prompts) -> InputSet:
        """Inputs with the model's answers."""
        return InputSet(prompts, self.read(self.logits(prompts.tokens, prompts.mask)))

    @torch.no_grad()
    def logits(self, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None = None) -> Tensor:
        """The model's logits; padding is not seen."""
        size = max(1, AT_ONCE // tokens.shape[1])
        parts = [slice(at, at + size) for at in range(0, len(tokens), size)]
        return torch.cat([self.model(tokens[part], **self.masked(None if mask is None else mask[part])) for part in parts])

    def masked(self, mask: Bool[Tensor, "batch pos"] | None) -> dict[str, Tensor]:
        """The argument that hides padding; causal networks never see what stands on the right."""
        hidden = mask is not None and self.cfg.attention_dir != "causal" and not bool(mask.all())
        return {"attention_mask": mask.long()} if hidden and mask is not None else {}

    @torch.no_grad()
    def cached(self, prompts: Prompts, sites: tuple[str, ...]) -> Any:
        """The activations of a run at the sites whose names end so."""
        keep = lambda name: name.endswith(sites)  # noqa: E731
        return self.model.run_with_cache(prompts.tokens, names_filter=keep, **self.masked(prompts.mask))[1]

    def read(self, logits: Tensor) -> Int[Tensor, "batch pos"]:
        """The number of the answer that logits stand for."""
        if not self.several:
            return logits.argmax(-1)
        chosen, inverse = torch.unique((logits > 0).flatten(0, -2), dim=0, return_inverse=True)
        numbers = [self.number(tuple(row.nonzero().flatten().tolist())) for row in chosen]
        return torch.tensor(numbers)[inverse].view(logits.shape[:-1])

    def number(self, tokens: tuple[int, ...]) -> int:
        """The number of a set of tokens."""
        if tokens not in self._number:
            self._number[tokens] = len(self.sets)
            self.sets.append(tokens)
        return self._number[tokens]

    def set_table(self) -> Bool[Tensor, "answer token"] | None:
        """Which tokens each answer holds, where answers are sets."""
        if not self.several:
            return None
        table = torch.zeros(len(self.sets), self.cfg.d_vocab_out, dtype=torch.bool)
        for number, tokens in enumerate(self.sets):
            table[number, list(tokens)] = True
        return table

    def right(self, prompts: Prompts) -> Int[Tensor, "batch pos"]:
        """The numbers of the examples' own answers; -1 where none counts."""
        grid = torch.full_like(prompts.tokens, -1)
        for row, at in enumerate(prompts.right):
            for position, tokens in at.items():
                grid[row, position] = self.number(tuple(sorted(tokens)))
        return grid

    def accuracy(self, part: InputSet) -> float:
        """How often the model gives the examples' answers."""
        right = self.right(part.prompts)
        return float((right == part.answers)[part.counted].double().mean())
