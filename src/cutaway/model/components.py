"""Components: what writes to the residual stream and what reads from it. One label each, one parser.

| label | writes to the stream | reads from it |
|---|---|---|
| `embed`, `pos_embed` | the embeddings | |
| `0.3` | head 3 of layer 0 | |
| `0.3.q`, `0.3.k`, `0.3.v` | | its queries, keys, values |
| `0.bias` | the output bias of attention of layer 0 | |
| `0.attn` | attention of layer 0: all its heads and the bias | |
| `0.mlp` | the MLP of layer 0, its bias included | the same |
| `0.mlp.17` | neuron 17 of it | the same, by its own weights |
| `0.mlp.bias` | the output bias of that MLP | |
| `bias` | the output biases of attention of all layers | |
| `logits` | | the final norm and the unembedding |

`writers` lists the parts that sum to the stream at a reader. Which sites hold what a component writes is `sites`, and
`runs/decompose.py` makes it of a run. Position embeddings of a shortformer write nothing to the stream: they are added
to what queries and keys read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ShapeError, UnknownName
from cutaway.model.frozen_norms import FINAL, norms_of

LABEL = re.compile(
    r"(?P<whole>embed|pos_embed|bias|logits)"
    r"|(?P<head_layer>\d+)\.(?P<head>\d+)(?:\.(?P<reads>[qkv]))?"
    r"|(?P<mlp_layer>\d+)\.mlp\.(?P<neuron>\d+|bias)"
    r"|(?P<layer>\d+)\.(?P<part>attn|bias|mlp)",
    re.ASCII,
)
FOREIGN = {  # other people's spellings → ours, for the error that suggests it
    r"mlp_?(\d+)": r"\1.mlp", r"attn_?(\d+)": r"\1.attn", r"(\d+)_(mlp|attn)_out": r"\1.\2", r"[Ll](\d+)[.]?[Hh](\d+)": r"\1.\2",
    r"[Aa](\d+)\.[Hh]?(\d+)": r"\1.\2", r"[Mm](\d+)": r"\1.mlp", r"L(\d+)N(\d+)": r"\1.mlp.\2", r"pos": "pos_embed",
    r"input": "embed",
}  # fmt: skip
WRITES = ("embed", "pos_embed", "head", "attn", "bias", "mlp", "neuron", "mlp bias", "biases")
OF_MLP = ("mlp", "neuron")  # those that read what the MLP reads
READS = ("reads", "mlp", "neuron", "logits")


@dataclass(frozen=True, order=True)
class Component:
    """A writer or reader of the residual stream; `str` of it is its label.

    Args:
        kind: one of `WRITES` or `READS`.
        layer: None for embeddings, all biases together, and logits.
        index: the head, or the neuron.
        reads: "q", "k" or "v" of a head that reads.
    """

    kind: str
    layer: int | None = None
    index: int | None = None
    reads: str | None = None

    def __str__(self) -> str:
        within = {
            "head": f"{self.layer}.{self.index}",
            "reads": f"{self.layer}.{self.index}.{self.reads}",
            "neuron": f"{self.layer}.mlp.{self.index}",
            "mlp bias": f"{self.layer}.mlp.bias",
            "attn": f"{self.layer}.attn",
            "mlp": f"{self.layer}.mlp",
            "bias": f"{self.layer}.bias",
            "biases": "bias",
        }
        return within.get(self.kind, self.kind)

    @property
    def dialect(self) -> str:
        """The label that caches of the dialect use: `L0H3`, `0_mlp_out`, `L0N17`."""
        dialect = {
            "head": f"L{self.layer}H{self.index}", "neuron": f"L{self.layer}N{self.index}",
            "attn": f"{self.layer}_attn_out", "mlp": f"{self.layer}_mlp_out",
        }  # fmt: skip
        return dialect.get(self.kind, str(self))

    @property
    def writes(self) -> bool:
        """Whether it writes to the stream."""
        return self.kind in WRITES

    @property
    def constant(self) -> bool:
        """Whether it writes the same whatever the input."""
        return self.kind in ("bias", "mlp bias", "biases")


LOGITS, EMBED, POS_EMBED, BIASES = Component("logits"), Component("embed"), Component("pos_embed"), Component("biases")


def head(layer: int, index: int) -> Component:
    """A head, as a writer."""
    return Component("head", layer, index)


def heads(cfg: HookedTransformerConfig, layers: Iterable[int] | None = None) -> list[Component]:
    """All heads, layer by layer."""
    return [head(layer, index) for layer in (range(cfg.n_layers) if layers is None else layers) for index in range(cfg.n_heads)]


# Order. The stream has a state before attention and one before the MLP of each layer; parallel blocks have only the first.


def written_at(component: Component) -> int:
    """The first state of the stream that holds what a component writes."""
    if component.layer is None:
        return 0
    return 2 * component.layer + (2 if component.kind.startswith(("mlp", "neuron")) else 1)


def _read_at(cfg: HookedTransformerConfig, reader: Component) -> int:
    """The state of the stream that a reader reads."""
    if reader.layer is None:
        return 2 * cfg.n_layers
    return 2 * reader.layer + (reader.kind in OF_MLP and not cfg.parallel_attn_mlp)


def reaches(cfg: HookedTransformerConfig, writer: Component, reader: Component) -> bool:
    """Whether a reader reads the stream after a writer has written to it."""
    return written_at(writer) <= _read_at(cfg, reader)


def reach_mask(
    cfg: HookedTransformerConfig, writers: Iterable[Component], readers: Iterable[Component]
) -> Bool[Tensor, "writer reader"]:
    """`reaches` of every writer and reader."""
    written, read = [written_at(one) for one in writers], [_read_at(cfg, one) for one in readers]
    return torch.tensor(written)[:, None] <= torch.tensor(read)[None]


def writers(
    cfg: HookedTransformerConfig,
    reader: Component = LOGITS,
    *,
    by_head: bool = True,
    neurons: Collection[int] = (),
) -> list[Component]:
    """What has been written to the stream where `reader` reads it, in order; these sum to the stream there.

    Args:
        by_head: heads and the bias of each attention layer; or whole attention layers.
        neurons: the layers whose MLP is split into neurons and its bias.
    """
    return [one for one in _writers(cfg, by_head, neurons) if reaches(cfg, one, reader)]


def _writers(cfg: HookedTransformerConfig, by_head: bool, neurons: Collection[int]) -> Iterator[Component]:
    yield EMBED
    if cfg.positional_embedding_type == "standard":
        yield POS_EMBED
    for layer in range(cfg.n_layers):
        if by_head:
            yield from heads(cfg, [layer])
            yield Component("bias", layer)
        else:
            yield Component("attn", layer)
        if not cfg.attn_only and layer not in neurons:
            yield Component("mlp", layer)
        elif not cfg.attn_only:
            yield from (Component("neuron", layer, neuron) for neuron in range(cfg.d_mlp or 0))
            yield Component("mlp bias", layer)


def readers(cfg: HookedTransformerConfig) -> list[Component]:
    """What reads from the stream, in order: queries, keys and values of heads, and the MLP, of each layer; the logits."""
    found = []
    for layer in range(cfg.n_layers):
        found += [Component("reads", layer, index, reads) for reads in "qkv" for index in range(cfg.n_heads)]
        found += [] if cfg.attn_only else [Component("mlp", layer)]
    return [*found, LOGITS]


def group_size(cfg: HookedTransformerConfig) -> int:
    """How many heads share keys and values."""
    return 1 if cfg.ungroup_grouped_query_attention else cfg.n_heads // cfg.kv_heads


def gathered(components: Iterable[Component]) -> list[Component]:
    """The same with the biases of all attention layers as one, `bias`, at the end."""
    given = list(components)
    return [one for one in given if one.kind != "bias"] + ([BIASES] if any(one.kind == "bias" for one in given) else [])


# Sites and norms.


def norm_after(cfg: HookedTransformerConfig, component: Component) -> str | None:
    """The norm between a component and the stream, where blocks normalise what they write."""
    name = f"{component.layer}.{'ln2_post' if component.kind.startswith(('mlp', 'neuron')) else 'ln1_post'}"
    return name if name in norms_of(cfg) else None


def norm_before(cfg: HookedTransformerConfig, reader: Component) -> str | None:
    """The norm that a reader reads through."""
    name = FINAL if reader.layer is None else f"{reader.layer}.{'ln2' if reader.kind in OF_MLP else 'ln1'}"
    return name if name in norms_of(cfg) else None


def sites(cfg: HookedTransformerConfig, components: Iterable[Component]) -> list[str]:
    """The sites of a run that hold what these components write."""
    whole = {"embed": "hook_embed", "pos_embed": "hook_pos_embed", "attn": "hook_attn_out", "mlp": "hook_mlp_out"}
    inside = {"head": "attn.hook_z", "neuron": "mlp.hook_post"}
    names: dict[str, None] = {}
    for one in components:
        for each in [Component("bias", layer) for layer in range(cfg.n_layers)] if one == BIASES else [one]:
            block = "" if each.layer is None else f"blocks.{each.layer}."
            if each.kind in whole | inside:
                names[block + (whole | inside)[each.kind]] = None
            if each.kind not in whole and (after := norm_after(cfg, each)) is not None:
                names[norms_of(cfg)[after]] = None
    return list(names)


def stream_site(cfg: HookedTransformerConfig, reader: Component) -> str:
    """The site of the stream that a reader reads, before any norm."""
    if reader.layer is None:
        return f"blocks.{cfg.n_layers - 1}.hook_resid_post" if cfg.n_layers else "hook_embed"
    return f"blocks.{reader.layer}.{'hook_mlp_in' if reader.kind in OF_MLP else 'hook_resid_pre'}"


# Labels.


def spelled(label: Any, cfg: HookedTransformerConfig | None = None) -> Component:
    """The component that a label means in a network that has it.

    Args:
        cfg: of the network, where it is known: the error suggests only what it has.

    Raises:
        UnknownName: it is no label; says how labels are written.
    """
    found = LABEL.fullmatch(label) if isinstance(label, str) else None
    if found is None:
        raise UnknownName(f"no component is called {label!r}{_near_spelling(label)}; write {_spellings(cfg)}")
    return _component(found)


def parse(label: Any, cfg: HookedTransformerConfig) -> Component:
    """The component that a label (or a component) means.

    Raises:
        UnknownName: it is no label, or this network has no such component; says how labels are written.
    """
    made = label if isinstance(label, Component) else spelled(label, cfg)
    if why := _lacking(made, cfg):
        raise UnknownName(f"no component {label!r} in this network: {why}")
    return made


def parse_writers(labels: Iterable[str | Component], cfg: HookedTransformerConfig) -> list[Component]:
    """Labels of components that write to the stream.

    Raises:
        UnknownName: a label is none, or of a component that only reads.
        ShapeError: one comes twice, or there are none.
    """
    return [check_writer(one) for one in _each_once(labels, cfg)]


def parse_readers(labels: Iterable[str | Component], cfg: HookedTransformerConfig) -> list[Component]:
    """Labels of components that read from the stream.

    Raises:
        UnknownName: a label is none, or of a component that only writes.
        ShapeError: one comes twice, or there are none.
    """
    return [check_reader(one) for one in _each_once(labels, cfg)]


def check_writer(one: Component) -> Component:
    """The component, which writes to the stream.

    Raises:
        UnknownName: it only reads.
    """
    if not one.writes:
        other = "" if one == LOGITS else f"; the head itself is '{one.layer}.{one.index}'"
        raise UnknownName(f"{str(one)!r} reads from the residual stream and writes nothing to it{other}")
    return one


def check_reader(one: Component) -> Component:
    """The component, which reads from the stream.

    Raises:
        UnknownName: it only writes.
    """
    if one.kind not in READS:
        which = f"; a head reads with '{one}.q', '{one}.k' or '{one}.v'" if one.kind == "head" else ""
        raise UnknownName(f"{str(one)!r} writes to the residual stream and reads nothing by that name{which}")
    return one


def _each_once(labels: Iterable[str | Component], cfg: HookedTransformerConfig) -> list[Component]:
    """The components of some labels; a single label stands for itself alone."""
    found = [parse(label, cfg) for label in ([labels] if isinstance(labels, str | Component) else labels)]
    if not found:
        raise ShapeError(f"an empty list of components means nothing; write {_spellings(cfg)}")
    if twice := [str(one) for number, one in enumerate(found) if one in found[:number]]:
        raise ShapeError(f"component {twice[0]} is given twice; give each once")
    return found


def parse_head(label: str | Component, cfg: HookedTransformerConfig) -> tuple[int, int]:
    """Layer and index of a head.

    Raises:
        UnknownName: the label is none of a head of this network.
    """
    try:
        found = parse(label, cfg)
    except UnknownName as error:
        raise UnknownName(f"{label!r} is no head: {error}") from None
    return check_head(found, cfg)


def check_head(one: Component, cfg: HookedTransformerConfig | None = None) -> tuple[int, int]:
    """Layer and index of a component, which is a head.

    Raises:
        UnknownName: it is none.
    """
    if one.kind != "head" or one.layer is None or one.index is None:
        there = "" if cfg is None else f" ({_shape(cfg)})"
        raise UnknownName(f"{str(one)!r} is no head; write layer.head, as in '0.1'{there}")
    return one.layer, one.index


def _component(found: re.Match[str]) -> Component:
    if found["whole"]:
        return {"embed": EMBED, "pos_embed": POS_EMBED, "bias": BIASES, "logits": LOGITS}[found["whole"]]
    if found["head"]:
        reads = found["reads"]
        return Component("reads" if reads else "head", int(found["head_layer"]), int(found["head"]), reads)
    if found["neuron"] == "bias":
        return Component("mlp bias", int(found["mlp_layer"]))
    if found["neuron"]:
        return Component("neuron", int(found["mlp_layer"]), int(found["neuron"]))
    return Component(found["part"], int(found["layer"]))


def _lacking(one: Component, cfg: HookedTransformerConfig) -> str:
    """Why a network has no such component; empty where it has."""
    if one == POS_EMBED and cfg.positional_embedding_type not in ("standard", "shortformer"):
        return f"its positions are {cfg.positional_embedding_type}, which write nothing"
    if one.layer is not None and one.layer >= cfg.n_layers:
        return f"it has {_shape(cfg)}"
    if one.kind in ("head", "reads") and (one.index or 0) >= cfg.n_heads:
        return f"it has {_shape(cfg)}"
    if one.kind in ("mlp", "neuron", "mlp bias") and cfg.attn_only:
        return "it is attention only, without MLPs"
    if one.kind in ("neuron", "mlp bias") and cfg.is_moe(one.layer or 0):
        return f"layer {one.layer} is a mixture of experts, whose neurons are not kept; take '{one.layer}.mlp'"
    if one.kind == "neuron" and (one.index or 0) >= (cfg.d_mlp or 0):
        return f"its MLPs have {cfg.d_mlp} neurons, 0 to {(cfg.d_mlp or 0) - 1}"
    return ""


def _shape(cfg: HookedTransformerConfig) -> str:
    last = f" (0.0 to {cfg.n_layers - 1}.{cfg.n_heads - 1})" if cfg.n_layers and cfg.n_heads else ""
    return f"{cfg.n_layers} layer{'s' * (cfg.n_layers != 1)} of {cfg.n_heads} head{'s' * (cfg.n_heads != 1)}{last}"


def _near_spelling(label: object) -> str:
    """` (did you mean '1.mlp'?)` for the spellings of others."""
    for pattern, ours in FOREIGN.items():
        if isinstance(label, str) and (found := re.fullmatch(pattern, label)):
            return f" (did you mean {found.expand(ours)!r}?)"
    return ""


def _spellings(cfg: HookedTransformerConfig | None) -> str:
    mlps = "" if cfg is not None and cfg.attn_only else ", an MLP as '0.mlp', a neuron as '0.mlp.17'"
    return f"a head as '0.3', its keys as '0.3.k'{mlps}, an attention layer as '0.attn', or 'embed', 'bias', 'logits'"
