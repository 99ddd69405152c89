"""The block as data: a straight-line program over its sites, which the forward pass, resumed runs, sweeps and costs share.

A step reads values, writes one (or three that are one product), and says how what it reads reaches what it writes: at the
same position, from keys and values to later positions, or from a query to its own. What kinds of blocks do differently
(parallel MLPs, norms after attention and MLP, attention only, gates, mixtures, rotation, norms of queries and keys) is
decided in `program` and nowhere else. A value is a site by its short name in the block, or, where no hook can be, a plain name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.model.attention import Attention
from cutaway.model.foreign import call, intact

AS_WRITTEN = Attention.forward  # which takes the stream; whoever replaces it, in the class too, knows the dialect's arguments
BEFORE = "resid"  # what comes in from the block before, not yet shown to hooks
FIRST, LAST = "hook_resid_pre", "hook_resid_post"
QUERY_INPUT, KEY_INPUT, VALUE_INPUT = INPUTS = ("attn.query_input", "attn.key_input", "attn.value_input")  # normalised
Q, K, V, Z = "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z"
SCORES, PATTERN, RESULT = "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_result"
POST, ATTN_OUT, MLP_OUT, MID = "mlp.hook_post", "hook_attn_out", "hook_mlp_out", "hook_resid_mid"
HEADS_WRITE, NEURONS_WRITE = "attn.written", "mlp.written"  # before the norms that some blocks have after attention and MLP


class Spread(Enum):
    """How a change of what a step reads reaches what it writes."""

    TOKENWISE = "the same position"
    FROM_KEYS = "every position that attends to it"
    FROM_QUERIES = "the query's own position"


TOKENWISE, FROM_KEYS, FROM_QUERIES = Spread


@dataclass(frozen=True)
class Step:
    """One step of a block.

    Args:
        writes: the value that it writes, or several that it computes together.
        reads: the values that it reads.
        run: (block, stream, *reads) → what it writes, after its hooks.
        spread: for each value that it reads, how it reaches what is written.
        adds: whether what it writes is added to the residual stream.
        passes: sites on the way, which hooks may read and change; no other step reads them.
        by_head: whether each head is computed by itself, so that some heads can be computed alone.
        weights: of a linear step from heads or neurons: block → `[head or neuron, …, d_model]`; a change of some of them
            adds its own product to what was written.
        cost: operations for each token, for each value that is written; for each pair of query and key where attention looks.
    """

    writes: tuple[str, ...]
    reads: tuple[str, ...]
    run: Callable[..., Any]
    spread: tuple[Spread, ...] = ()
    adds: bool = False
    passes: tuple[str, ...] = ()
    by_head: bool = False
    weights: Callable[[Any], Tensor] | None = None
    cost: tuple[int, ...] = (0,)

    names: frozenset[str] = frozenset()  # all that it writes or passes
    read_by: tuple[tuple[tuple[str, Spread], ...], ...] = ()  # for each value that it writes, what it depends on, and how

    def __post_init__(self) -> None:
        if not self.spread:
            object.__setattr__(self, "spread", (TOKENWISE,) * len(self.reads))
        object.__setattr__(self, "names", frozenset((*self.writes, *self.passes)))
        every = tuple(zip(self.reads, self.spread, strict=True))
        own = len(self.reads) == len(self.writes)
        object.__setattr__(self, "read_by", tuple((one,) for one in every) if own else (every,) * len(self.writes))


class BlockProgram:
    """The steps of one block in the order in which they run, and detours that run only from a site in the middle of one.

    Args:
        detours: steps that take the place of those that write the same, where what they read is given.
    """

    def __init__(self, steps: Sequence[Step], detours: Sequence[Step] = ()):
        self.steps, self.detours = tuple(steps), tuple(detours)
        self.writes = tuple(name for step in steps for name in step.writes)
        self._slices: dict[tuple[Any, ...], NumberedSteps] = {}

    def writer(self, value: str) -> Step:
        """The step that writes a value, or passes it on the way."""
        return next(step for step in self.steps if value in step.names)

    def done_after(self, step: Step) -> list[str]:
        """What a step reads and no later one does."""
        later = {name for one in self.steps[self.steps.index(step) + 1 :] for name in one.reads}
        return [name for name in step.reads if name not in later]

    def reaches(self, value: str, other: str) -> bool:
        """Whether another value of the block depends on this one."""
        reached = {value}
        for step in self.steps:
            if reached & set(step.reads):
                reached |= set(step.writes)
        return other in reached

    def to_stream(self) -> list[Step]:
        """The steps whose values are added to the residual stream."""
        return [step for step in self.steps if step.adds]

    def between(self, given: Sequence[str], wanted: Sequence[str] = (LAST,)) -> NumberedSteps:
        """The steps from some values to others, compiled. Nothing runs that the wanted values do not need."""
        key = tuple(given), tuple(wanted)
        if key not in self._slices:
            self._slices[key] = NumberedSteps(self._needed(given, wanted), *key)
        return self._slices[key]

    def _needed(self, given: Collection[str], wanted: Collection[str]) -> list[Step]:
        needed, out = set(wanted) - set(given), []
        for step in reversed(self.steps):
            if not needed & set(step.writes):
                continue
            step = next((one for one in self.detours if one.writes == step.writes and one.reads[0] in given), step)
            out.append(step)
            needed |= set(step.reads)
            needed -= {*given, *step.writes}
        if needed:
            raise KeyError(f"no step of the block writes {', '.join(sorted(needed))}")
        return out[::-1]


class NumberedSteps:
    """Steps with their values numbered, so that a run looks up nothing by name; a value is let go when nobody needs it."""

    def __init__(self, steps: Sequence[Step], given: Sequence[str], wanted: Sequence[str]):
        self.steps = tuple(steps)
        names = list(dict.fromkeys([*given, *(name for step in steps for name in step.writes)]))
        number = {name: at for at, name in enumerate(names)}
        self._room = [None] * (len(names) - len(given))
        self._wanted = tuple(number[name] for name in wanted)
        last = {number[name]: at for at, step in enumerate(steps) for name in (*step.writes, *step.reads)}
        self._code = []
        for at, step in enumerate(steps):
            reads, writes = ([number[name] for name in names] for names in (step.reads, step.writes))
            done = [one for one, when in last.items() if when == at and one not in self._wanted]
            self._code.append((step.run, reads, writes[0] if len(writes) == 1 else None, writes, done))

    def __call__(self, block: Any, stream: Any, *given: Tensor) -> Any:
        """The wanted value, or a tuple of them, from the given ones."""
        values: list[Any] = [*given, *self._room]
        for run, reads, write, writes, done in self._code:
            out = run(block, stream, *[values[at] for at in reads])
            if write is None:
                for at, one in zip(writes, out, strict=True):
                    values[at] = one
            else:
                values[write] = out
            for at in done:
                values[at] = None
        wanted = self._wanted
        return values[wanted[0]] if len(wanted) == 1 else tuple(values[at] for at in wanted)


# The program of each kind of block.


def program(cfg: HookedTransformerConfig, layer: int, *, modules: bool = False) -> BlockProgram:
    """The steps of one block of such a network.

    Args:
        modules: attention and MLP are one step each, which calls the module: for modules that somebody put in their place, or
            listens to by PyTorch's own hooks.
    """
    steps = [Step((FIRST,), (BEFORE,), _resid_pre), *_attention(cfg, layer, modules)]
    if cfg.attn_only:
        steps.append(Step((LAST,), (FIRST, ATTN_OUT), _resid_post))
    elif cfg.parallel_attn_mlp:
        steps += [*_mlp(cfg, layer, FIRST, modules), Step((LAST,), (FIRST, ATTN_OUT, MLP_OUT), _resid_post)]
    else:
        steps += [Step((MID,), (FIRST, ATTN_OUT), _resid_mid), *_mlp(cfg, layer, MID, modules)]
        steps.append(Step((LAST,), (MID, MLP_OUT), _resid_post))
    return BlockProgram(steps, _detours(cfg))


def _attention(cfg: HookedTransformerConfig, layer: int, modules: bool) -> list[Step]:
    passes = ["hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input"]
    normed = cfg.normalization_type is not None and not cfg.post_norm_only
    steps = [Step(INPUTS, (FIRST,), _inputs, passes=(*passes, *(_norm("ln1") if normed else ())), cost=(0, 0, 0))]
    if modules:
        run: Callable[..., Any] = _attn_module if cfg.has_post_norms else _attn_module_out
        steps.append(Step((HEADS_WRITE if cfg.has_post_norms else ATTN_OUT,), INPUTS, run, adds=not cfg.has_post_norms))
        return [*steps, *_after("ln1_post", HEADS_WRITE, ATTN_OUT, _attn_out_normed, cfg)]
    width, kv = 2 * cfg.d_model * cfg.d_head, cfg.n_heads if cfg.ungroup_grouped_query_attention else cfg.kv_heads
    steps.append(Step((Q, K, V), INPUTS, _project, by_head=True, cost=(width * cfg.n_heads, width * kv, width * kv)))
    q, k = Q, K
    if cfg.use_qk_norm:
        apart = cfg.qk_norm_over == "head"  # one set of weights for every head
        steps.append(Step(("attn.q_normed",), (q,), _normed_q, passes=_norm("attn.q_norm"), by_head=apart))
        steps.append(Step(("attn.k_normed",), (k,), _normed_k, passes=_norm("attn.k_norm"), by_head=apart))
        q, k = "attn.q_normed", "attn.k_normed"
    if cfg.rotates(layer):
        steps.append(Step(("attn.hook_rot_q",), (q,), _rotated_q, by_head=True))
        steps.append(Step(("attn.hook_rot_k",), (k,), _rotated_k, by_head=True))
        q, k = "attn.hook_rot_q", "attn.hook_rot_k"
    spread = (FROM_QUERIES, FROM_KEYS, FROM_KEYS)
    apart = cfg.positional_embedding_type != "alibi"
    pair = 4 * cfg.n_heads * cfg.d_head
    steps.append(Step((Z,), (q, k, V), _attend, spread, passes=(SCORES, PATTERN), by_head=apart, cost=(pair,)))
    written, cost = HEADS_WRITE if cfg.has_post_norms else ATTN_OUT, (width * cfg.n_heads,)
    run = _heads_write if cfg.has_post_norms else _attn_out
    steps.append(Step((written,), (Z,), run, adds=not cfg.has_post_norms, passes=(RESULT,), weights=_of_heads, cost=cost))
    return [*steps, *_after("ln1_post", HEADS_WRITE, ATTN_OUT, _attn_out_normed, cfg)]


def _after(norm: str, reads: str, writes: str, run: Callable[..., Any], cfg: HookedTransformerConfig) -> list[Step]:
    """The norm after attention or MLP, where there is one."""
    return [Step((writes,), (reads,), run, adds=True, passes=_norm(norm))] if cfg.has_post_norms else []


def _mlp(cfg: HookedTransformerConfig, layer: int, reads: str, modules: bool) -> list[Step]:
    normed = cfg.normalization_type is not None and not cfg.post_norm_only
    run: Callable[..., Any]
    passes, run = ("hook_mlp_in", *(_norm("ln2") if normed else ())), _mlp_input
    steps = [Step(("mlp.input",), (reads,), run, passes=passes)]
    written = NEURONS_WRITE if cfg.has_post_norms else MLP_OUT
    run = _neurons_write if cfg.has_post_norms else _mlp_out
    one = 2 * cfg.d_model * (cfg.d_mlp or 0)
    if cfg.is_moe(layer) or modules:
        run = _mlp_module if cfg.has_post_norms else _mlp_module_out
        expert = 2 * cfg.d_model * (cfg.d_mlp_expert or cfg.d_mlp or 0) * (3 if cfg.gated_mlp else 2)
        cost = 2 * cfg.d_model * (cfg.num_experts or 0) + expert * (cfg.experts_per_token or 0)
        passes = ("mlp.hook_expert_weights", "mlp.hook_expert_indices")
        steps.append(Step((written,), ("mlp.input",), run, adds=not cfg.has_post_norms, passes=passes, cost=(cost,)))
    else:
        steps.append(Step(("mlp.hook_pre",), ("mlp.input",), _pre, cost=(one,)))
        activated = ["mlp.hook_pre"]
        if cfg.gated_mlp:
            steps.append(Step(("mlp.hook_pre_linear",), ("mlp.input",), _pre_linear, cost=(one,)))
            activated.append("mlp.hook_pre_linear")
        passes = ("mlp.hook_mid", *_norm("mlp.ln")) if cfg.has_mlp_norm else ()
        steps.append(Step((POST,), tuple(activated), _post, passes=passes))
        steps.append(Step((written,), (POST,), run, adds=not cfg.has_post_norms, weights=_of_neurons, cost=(one,)))
    return [*steps, *_after("ln2_post", NEURONS_WRITE, MLP_OUT, _mlp_out_normed, cfg)]


def _detours(cfg: HookedTransformerConfig) -> list[Step]:
    """From the pattern, and from what each head writes by itself."""
    pair, written = 2 * cfg.n_heads * cfg.d_head, HEADS_WRITE if cfg.has_post_norms else ATTN_OUT
    run = _results_write if cfg.has_post_norms else _results_out
    return [
        Step((Z,), (PATTERN, V), _from_pattern, (FROM_QUERIES, FROM_KEYS), by_head=True, cost=(pair,)),
        Step((written,), (RESULT,), run, adds=not cfg.has_post_norms),
    ]


def _norm(name: str) -> tuple[str, str]:
    return f"{name}.hook_scale", f"{name}.hook_normalized"


# What each step computes.


def _resid_pre(block: Any, stream: Any, resid: Tensor) -> Any:
    return block.hook_resid_pre(resid)


def _inputs(block: Any, stream: Any, resid_pre: Tensor) -> Any:
    return block.attention_inputs(resid_pre, stream)


def _project(block: Any, stream: Any, query: Tensor, key: Tensor, value: Tensor) -> Any:
    return block.attn.project(query, key, value)


def _normed_q(block: Any, stream: Any, q: Tensor) -> Any:
    return block.attn.normed(q, block.attn.q_norm)


def _normed_k(block: Any, stream: Any, k: Tensor) -> Any:
    return block.attn.normed(k, block.attn.k_norm)


def _rotated_q(block: Any, stream: Any, q: Tensor) -> Any:
    return block.attn.hook_rot_q(block.attn.rotary.rotate(q, stream))


def _rotated_k(block: Any, stream: Any, k: Tensor) -> Any:
    return block.attn.hook_rot_k(block.attn.rotary.rotate(k, stream))


def _attend(block: Any, stream: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
    kept = None if stream.kept is None else stream.kept[block.layer]
    return block.attn.hook_z(stream.attend(block.attn, q, k, v, kept=kept))


def _from_pattern(block: Any, stream: Any, pattern: Tensor, v: Tensor) -> Any:
    return block.attn.hook_z(block.attn.mixed(pattern, v))


def _heads_write(block: Any, stream: Any, z: Tensor) -> Any:
    return block.attn.output(z)


def _attn_out(block: Any, stream: Any, z: Tensor) -> Any:
    return block.hook_attn_out(block.attn.output(z))


def _results_write(block: Any, stream: Any, result: Tensor) -> Any:
    return result.sum(-2) + block.attn.b_O


def _results_out(block: Any, stream: Any, result: Tensor) -> Any:
    return block.hook_attn_out(result.sum(-2) + block.attn.b_O)


def _attn_out_normed(block: Any, stream: Any, written: Tensor) -> Any:
    return block.hook_attn_out(block.ln1_post(written))


def _resid_mid(block: Any, stream: Any, resid_pre: Tensor, attn_out: Tensor) -> Any:
    return block.hook_resid_mid(resid_pre + attn_out)


def _mlp_input(block: Any, stream: Any, resid: Tensor) -> Any:
    return block.ln2(block.hook_mlp_in(resid))


def _pre(block: Any, stream: Any, x: Tensor) -> Any:
    return block.mlp.pre(x)


def _pre_linear(block: Any, stream: Any, x: Tensor) -> Any:
    return block.mlp.pre_linear(x)


def _post(block: Any, stream: Any, *pre: Tensor) -> Any:
    return block.mlp.post(*pre)


def _neurons_write(block: Any, stream: Any, post: Tensor) -> Any:
    return block.mlp.output(post)


def _mlp_out(block: Any, stream: Any, post: Tensor) -> Any:
    return block.hook_mlp_out(block.mlp.output(post))


def _attn_module(block: Any, stream: Any, query: Tensor, key: Tensor, value: Tensor) -> Any:
    kept = None if stream.kept is None else stream.kept[block.layer]
    if isinstance(block.attn, Attention) and intact(block.attn, AS_WRITTEN):
        return block.attn(query, key, value, past_kv_cache_entry=kept, stream=stream)
    inputs = {"query_input": query, "key_input": key, "value_input": value}
    return call(block.attn, stream, **inputs, past_kv_cache_entry=kept, attention_mask=stream.padding)


def _attn_module_out(block: Any, stream: Any, *inputs: Tensor) -> Any:
    return block.hook_attn_out(_attn_module(block, stream, *inputs))


def _mlp_module(block: Any, stream: Any, x: Tensor) -> Any:
    return block.mlp(x)


def _mlp_module_out(block: Any, stream: Any, x: Tensor) -> Any:
    return block.hook_mlp_out(block.mlp(x))


def _mlp_out_normed(block: Any, stream: Any, written: Tensor) -> Any:
    return block.hook_mlp_out(block.ln2_post(written))


def _resid_post(block: Any, stream: Any, resid: Tensor, *added: Tensor) -> Any:
    for one in added:
        resid = resid + one
    return block.hook_resid_post(resid)


def _of_heads(block: Any) -> Tensor:
    out: Tensor = block.attn.W_O
    return out


def _of_neurons(block: Any) -> Tensor:
    out: Tensor = block.mlp.W_out
    return out
