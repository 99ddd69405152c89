"""What a collection is asked, as data; with the model's hash it decides every byte of every shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, ShapeError, UnknownName, nearest
from cutaway.model.sites import resolve, table
from cutaway.numbers_given import at_least

PACKINGS = ("documents", "packed")
POSITIONS = ("all", "last", "tokens")
DTYPES = ("float32", "bfloat16", "float16", "int8")


@dataclass(frozen=True)
class Options:
    """What a collection is asked.

    Args:
        sites: full names, in the order of the forward pass.
        packing: "documents", a row for each (long ones in several), or "packed", full rows of documents joined by EOS.
        length: the most tokens of a row, BOS included.
        positions: which of a row's positions are stored: "all"; "last", the last of each document; or "tokens", where one of
            `tokens` stands.
        dtype: how activations are stored; int8 has a float32 scale for each row.
        prepend_bos: whether each row begins with a BOS token.
        chunk: characters of a chunk at most; one shard each.
        batch: tokens that run together at most, with padding.
    """

    sites: tuple[str, ...]
    packing: str = "documents"
    length: int = 128
    positions: str = "all"
    tokens: tuple[int, ...] = ()
    dtype: str = "float32"
    prepend_bos: bool = True
    chunk: int = 2**17
    batch: int = 2**11

    def __post_init__(self) -> None:
        for what, choice, known in (("packing", self.packing, PACKINGS), ("positions", self.positions, POSITIONS),
                                  ("dtype", self.dtype, DTYPES)):  # fmt: skip
            if choice not in known:
                raise UnknownName(f"{what}={choice!r} is not known{nearest(choice, known)}; there are {', '.join(known)}")
        if self.packing == "packed" and self.positions == "last":
            raise ConfigError("positions='last' is the last token of each document; packed rows hold parts of several")
        if (self.positions == "tokens") != bool(self.tokens):
            raise ConfigError("positions='tokens' goes with the tokens that are meant, and no other positions do")
        at_least(self.length, 1 + self.prepend_bos, "length")

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def sites_for(cfg: HookedTransformerConfig, requested: Sequence[str | tuple[Any, ...]]) -> tuple[str, ...]:
    """The full names of sites that can be stored, in the order of the forward pass.

    Raises:
        UnknownSite: the network has no such site; says near names.
        ShapeError: a site has no row for each position: attention patterns and scores.
    """
    known = table(cfg)
    if not requested:
        raise ConfigError("no sites are named; give some, such as 'resid_post5' or 'blocks.5.hook_resid_post'")
    names = {resolve(one, known, cfg.n_layers) for one in requested}
    for name in names:
        if "src" in known[name]:
            raise ShapeError(f"{name} has a row for each pair of positions, and a collection one for each position")
    return tuple(name for name in known if name in names)
