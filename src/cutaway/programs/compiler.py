"""A program as the weights of a network that computes it, with the edges that it uses.

    compiled = compile_program(programs.find("induction"), HookedTransformer)
    compiled.model(tokens).argmax(-1)        # what the program answers
    compiled.edges                           # {("embed", "0.0.q"), …}: all that one part reads of another

Each material has dimensions of the stream of its own. Hard selection is a softmax of scores that lie far apart; tables are ReLU
neurons that fire for one joint value. Norms are kept harmless: every vector that is written sums to zero, and two dimensions
hold a constant, written by the positions, so large that nothing else changes the scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ProgramError
from cutaway.model.transformer import Transformer
from cutaway.programs.language import Program
from cutaway.programs.placing import Head, Joint, Material, Placed, Reading, Scored, StepFunction, place, weighed

NORMS = (None, "LN", "RMS")
CONSTANT = 500.0  # at this size, what the norm's scale varies and what float32 rounds are about the same, 1e-5
Network = TypeVar("Network", bound=Transformer)


@dataclass(frozen=True, eq=False)
class Compiled(Generic[Network]):
    """A network that computes a program.

    Args:
        model: the network; tokens in, the program's logits out.
        places: line → the node that computes it (`0.1` a head, `0.mlp`); lines that take no room are read by others.
        edges: (writer, reader) of everything that one node reads of another: `("0.1", "1.0.k")`.
    """

    program: Program
    model: Network
    places: dict[str, str]
    edges: frozenset[tuple[str, str]]


def compile_program(program: Program, kind: type[Any] = Transformer, *, norm: str | None = None) -> Compiled[Any]:
    """The network of the fewest layers that computes the program in this way.

    Args:
        kind: the class to make, `Transformer` or `HookedTransformer`.
        norm: None, "LN" or "RMS".

    Raises:
        ProgramError: a line that weights do not compute exactly (which, and why), or an unknown norm.
    """
    if norm not in NORMS:
        raise ProgramError(f"norm={norm!r} is not known; there are None, 'LN' and 'RMS'")
    return _Compiler(place(program), norm).compiled(kind)


class _Compiler:
    """Where each material stands in the stream, and what each part of the network is."""

    def __init__(self, placed: Placed, norm: str | None):
        self.placed, self.program, self.norm = placed, placed.program, norm
        self.logits = weighed(placed, self.program.read_out.terms, self.program.read_out.bias)
        used = self._used()
        self.materials = {name: one for name, one in placed.materials.items() if name in used or name == "tokens"}
        self.rows: dict[str, slice] = {}
        width = 0
        for name, material in self.materials.items():
            self.rows[name] = slice(width, width + material.size)
            width += material.size + (norm is not None)  # the one after it makes its sum zero
        self.d_model = width + (2 if norm else 0)
        layers = range(placed.layers)
        self.heads = [[one for one in self.materials.values() if one.stage == 2 * layer + 1] for layer in layers]
        self.mlps = [[one for one in self.materials.values() if one.stage == 2 * layer + 2] for layer in layers]
        self.edges: set[tuple[str, str]] = set()

    def _used(self) -> set[str]:
        used = set(self.logits.parts)
        for material in reversed(list(self.placed.materials.values())):
            if material.name in used:
                used |= set(_read(material))
        return used

    def compiled(self, kind: type[Any]) -> Compiled[Any]:
        """The network, its weights set."""
        joints = [[one.made for one in mlps if isinstance(one.made, Joint)] for mlps in self.mlps]
        mlp = any(joints)
        cfg = HookedTransformerConfig(
            n_layers=len(self.heads), d_model=self.d_model, n_ctx=self.program.n_ctx, d_head=self._d_head(),
            n_heads=max(1, *map(len, self.heads)), d_vocab=len(self.program.vocabulary), d_vocab_out=len(self.program.answers),
            d_mlp=max(sum(one.neurons for one in layer) for layer in joints) if mlp else None, act_fn="relu" if mlp else None,
            attn_only=not mlp, attention_dir="causal" if self.program.causal else "bidirectional", normalization_type=self.norm,
            use_attn_scale=False, init_weights=False, model_name=self.program.name, device="cpu", default_prepend_bos=False,
        )  # fmt: skip
        model = kind(cfg)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            self._embed(model)
            for layer, block in enumerate(model.blocks):
                for head, material in enumerate(self.heads[layer]):
                    self._head(block.attn, f"{layer}.{head}", head, material)
                if mlp:
                    self._mlp(block.mlp, layer)
            model.unembed.W_U += self._matrix(self.logits, "logits")
            model.unembed.b_U += torch.tensor(self.logits.bias)
            self._norms(model)
        if self.norm is not None:
            self.edges |= {("pos_embed", reader) for _, reader in self.edges}  # the constant that keeps a norm's scale
        return Compiled(self.program, model.eval(), self._places(), frozenset(self.edges))

    def _places(self) -> dict[str, str]:
        """Where each line is computed: of counting, where it ends."""
        return {one.line: self._writer(one) for one in self.materials.values() if one.made is not None}

    def _writer(self, material: Material) -> str:
        if material.made is None:
            return "pos_embed" if material.name == "positions" else "embed"
        layer = (material.stage - 1) // 2
        return f"{layer}.{self.heads[layer].index(material)}" if isinstance(material.made, Head) else f"{layer}.mlp"

    # The stream.

    def _matrix(self, reading: Reading, reader: str) -> Tensor:
        """What a reader multiplies the stream by, `[d_model, number]`; notes the edges."""
        out = torch.zeros(self.d_model, len(reading.bias))
        for name, rows in reading.parts.items():
            out[self.rows[name]] = torch.tensor(rows)
            if bool(out[self.rows[name]].any()):
                self.edges.add((self._writer(self.materials[name]), reader))
        return out

    def _writing(self, name: str) -> Tensor:
        """From a material's own dimensions to the stream, `[size, d_model]`."""
        rows = self.rows[name]
        out = torch.zeros(rows.stop - rows.start, self.d_model)
        out[:, rows] = torch.eye(len(out))
        if self.norm is not None:
            out[:, rows.stop] = -1.0
        return out

    def _embed(self, model: Transformer) -> None:
        model.embed.W_E += self._writing("tokens")
        if self.norm is not None:
            model.pos_embed.W_pos[:, -2], model.pos_embed.W_pos[:, -1] = CONSTANT, -CONSTANT
        if "positions" in self.rows:
            model.pos_embed.W_pos += self._writing("positions")

    def _norms(self, model: Transformer) -> None:
        """Norms give back what they get, but for rounding: their weight is the scale that the constant brings about."""
        if self.norm is None:
            return
        scale = ((2 * CONSTANT**2 + 2 * len(self.materials)) / self.d_model) ** 0.5
        for norm in [
            model.ln_final,
            *(getattr(block, name) for block in model.blocks for name in ("ln1", "ln2") if hasattr(block, name)),
        ]:
            norm.w.fill_(scale)

    # Attention.

    def _d_head(self) -> int:
        heads = [one.made for layer in self.heads for one in layer if isinstance(one.made, Head)]
        return max([1, *(max(sum(len(_factors(one)[0]) for one in head.scores), len(head.of.bias)) for head in heads)])

    def _head(self, attn: Any, label: str, head: int, material: Material) -> None:
        made = material.made
        assert isinstance(made, Head)
        at = 0
        for one in made.scores:
            queries, keys = _factors(one)
            here = slice(at, at + len(keys))
            attn.W_K[head, :, here] += self._matrix(Reading({one.key: keys.T.tolist()}, [0.0] * len(keys)), f"{label}.k")
            if one.query is None:
                attn.b_Q[head, here] = queries[:, 0]
            else:
                attn.W_Q[head, :, here] += self._matrix(Reading({one.query: queries.T.tolist()}, [0.0] * len(keys)), f"{label}.q")
            at = here.stop
        width = len(made.of.bias)
        attn.W_V[head, :, :width] = self._matrix(made.of, f"{label}.v")
        attn.b_V[head, :width] = torch.tensor(made.of.bias)
        attn.W_O[head, :width] = self._writing(material.name)

    # MLPs.

    def _mlp(self, mlp: Any, layer: int) -> None:
        at = 0
        for material in self.mlps[layer]:
            made = material.made
            assert isinstance(made, Joint)
            values = self._writing(material.name)
            for weights, bias, written in self._neurons(made, values, f"{layer}.mlp"):
                mlp.W_in[:, at], mlp.b_in[at], mlp.W_out[at] = weights, bias, written
                at += 1

    def _neurons(self, made: Joint, values: Tensor, reader: str) -> Iterator[tuple[Tensor, float, Tensor]]:
        """Weights in, bias, and what is written, of each neuron: per joint value of the codes one for the number below all
        edges, and two for each edge, whose difference rises from 0 to 1 there."""
        width = len(made.number.edges) + 1 if made.number else 1
        number = self._matrix(made.number.of, reader)[:, 0] if made.number else None
        for row_number, codes in enumerate(itertools.product(*map(range, made.sizes))):
            weights = torch.zeros(self.d_model)
            for name, value in zip(made.codes, codes, strict=True):
                weights[self.rows[name].start + value] += 1.0
                self.edges.add((self._writer(self.materials[name]), reader))
            row = [values[value] for value in made.table[row_number * width : (row_number + 1) * width]]
            yield weights, 1.0 - len(codes), row[0]
            if made.number is not None and number is not None:
                yield from _steps(made.number, number, weights, len(codes), row)


def _steps(
    step: StepFunction, number: Tensor, weights: Tensor, codes: int, row: list[Tensor]
) -> Iterator[tuple[Tensor, float, Tensor]]:
    """The two neurons of each edge; silent unless all codes are there."""
    largest = float(number.abs().sum()) + abs(step.of.bias[0])
    for (edge, gap), before, after in zip(step.edges, row[:-1], row[1:], strict=True):
        slope = 1 / gap
        silence = slope * (largest + abs(edge)) + 1
        for shift, sign in ((0.5, 1.0), (-0.5, -1.0)):
            bias = slope * (step.of.bias[0] - edge) + shift - silence * codes
            yield slope * number + silence * weights, bias, sign * (after - before)


def _factors(scored: Scored) -> tuple[Tensor, Tensor]:
    """Queries and keys `[dim, value]` whose products are the table; as few dimensions as distinct rows or columns."""
    table = torch.tensor(scored.table, dtype=torch.float64)
    rows, row_of = torch.unique(table, dim=0, return_inverse=True)
    columns, column_of = torch.unique(table, dim=1, return_inverse=True)
    if len(rows) <= columns.shape[1]:
        queries, keys = torch.nn.functional.one_hot(row_of, len(rows)).T.double(), rows
    else:
        queries, keys = columns.T, torch.nn.functional.one_hot(column_of, columns.shape[1]).T.double()
    used = (queries != 0).any(1) & (keys != 0).any(1)
    size = float(table.abs().max()) ** 0.5  # shared by both sides, so that neither is large
    larger_keys = len(rows) <= columns.shape[1]
    queries, keys = queries[used], keys[used]
    return (queries * size, keys / size) if larger_keys else (queries / size, keys * size)


def _read(material: Material) -> Iterator[str]:
    """The materials that one is made from."""
    if isinstance(material.made, Head):
        yield from material.made.of.parts
        for one in material.made.scores:
            yield one.key
            if one.query:
                yield one.query
    elif isinstance(material.made, Joint):
        yield from material.made.codes
        if material.made.number is not None:
            yield from material.made.number.of.parts
