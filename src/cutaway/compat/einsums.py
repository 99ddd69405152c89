"""`fancy_einsum`, which came with TransformerLens and which notebooks import beside it: einsum with words for axes."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import torch

from cutaway.errors import ShapeError

__all__ = ["einsum"]


def einsum(equation: str, *operands: Any) -> Any:
    """`einsum("batch pos d_model, d_model d_head -> batch pos d_head", x, W)`, for tensors or arrays.

    Raises:
        ShapeError: the equation has more axes than letters, or not one term for each operand.
    """
    left, arrow, right = equation.partition("->")
    terms = [term.split() for term in left.split(",")]
    if len(terms) != len(operands):
        raise ShapeError(f"the equation {equation!r} has {len(terms)} terms on its left, and there are {len(operands)} operands")
    terms = [_letters(term, operand) for term, operand in zip(terms, operands, strict=True)]
    ends = right.split()
    if arrow and len(ends) == 1 and ends[0] not in {name for term in terms for name in term}:
        ends = list(ends[0])  # an equation of single letters, written without spaces
    names = list(dict.fromkeys(name for term in terms for name in term if name != "..."))
    if len(names) > len(string.ascii_letters):
        raise ShapeError(f"the equation {equation!r} has {len(names)} axes, more than there are letters")
    letter = dict(zip(names, string.ascii_letters, strict=False)) | {"...": "..."}
    if unknown := [name for name in ends if name not in letter]:
        raise ShapeError(f"{unknown[0]!r} stands on the right of {equation!r}, and not on its left")
    short = ",".join("".join(letter[name] for name in term) for term in terms)
    short += "->" + "".join(letter[name] for name in ends) if arrow else ""
    return (torch if isinstance(operands[0], torch.Tensor) else np).einsum(short, *operands)


def _letters(term: list[str], operand: Any) -> list[str]:
    """A term's axes; one word is taken apart where its letters are as many as the axes, as in `ij,jk->ik`."""
    one_word = len(term) == 1 and term[0] != "..." and operand.ndim == len(term[0]) != 1
    return list(term[0]) if one_word else term
