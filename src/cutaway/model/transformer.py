"""The network: tokens in, logits out, with a site at every step. It can start and stop at any layer.

It computes, and knows nothing of loading, caches or analyses. `forward` is made of steps that generation and
sweeps call on their own: `prepare`, `embed_tokens`, `run_blocks`, `logits_of`.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cutaway import tokens as text
from cutaway.axes import Resid, Tokens
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, ShapeError, nearest
from cutaway.model import sites
from cutaway.model.attention import Attention
from cutaway.model.block import AS_WRITTEN, TransformerBlock
from cutaway.model.foreign import call, intact, untouched, watch
from cutaway.model.hook_points import HookPoint, listening
from cutaway.model.hooked_root import HookedRootModule, RunState
from cutaway.model.initial import initialise
from cutaway.model.key_values import KeyValueCache
from cutaway.model.listeners import quiet
from cutaway.model.losses import next_token_loss
from cutaway.model.mlp import MLP, MoE
from cutaway.model.norm import LayerNorm, norm_of
from cutaway.model.origins import Kept, Origin, Passed, WeightsState, check_column
from cutaway.model.positions import PosEmbed, Stream, rotaries
from cutaway.model.products import empty_weights, linear
from cutaway.model.stacked import StackedWeights
from cutaway.model.steps import BlockProgram, program
from cutaway.model.streaming import StreamedBlocks
from cutaway.numbers_given import whole
from cutaway.prompts import Prompts

_FIELDS = """
    n_layers d_model d_head n_heads n_key_value_heads d_mlp d_vocab d_vocab_out act_fn eps attn_only attn_scale use_attn_scale
    scale_attn_by_inverse_layer_idx use_local_attn window_size attn_types gated_mlp normalization_type final_rms
    post_embedding_ln use_normalization_before_and_after post_norm_only parallel_attn_mlp positional_embedding_type rotary_dim
    rotary_base rotary_base_local rotary_layers rotary_adjacent_pairs use_qk_norm qk_norm_over qk_norm_type num_experts
    moe_layers d_mlp_expert
"""
BUILT_IN = tuple(_FIELDS.split())
"""Fields of a configuration that a network is built from: changing them afterwards would do nothing, or half of it."""

ARCHITECTURE = attrgetter(*BUILT_IN)
RETURN_TYPES = ("logits", "loss", "both", None)


class Output(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Tensor
    loss: Tensor


def with_padding_side(tokenizer: Any, side: str) -> Any:
    """A tokenizer that says it pads on this side: the same one, or a copy, since a tokenizer may have other owners."""
    if getattr(tokenizer, "padding_side", side) == side:
        return tokenizer
    copied = copy.copy(tokenizer)
    copied.padding_side = side
    return copied


class Embed(nn.Module):
    """Tokens to vectors."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]):
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        self.W_E = nn.Parameter(torch.empty(self.cfg.d_vocab, self.cfg.d_model, dtype=self.cfg.torch_dtype))
        if self.cfg.post_embedding_ln:
            self.ln = LayerNorm(self.cfg)

    def forward(self, tokens: Int[Tensor, "..."]) -> Float[Tensor, "... d_model"]:
        """The embedding of each token."""
        embedded = F.embedding(tokens, self.W_E)
        return self.ln(embedded) if self.cfg.post_embedding_ln else embedded


class Unembed(nn.Module):
    """The residual stream to logits; takes any leading axes."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]):
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        d_model, d_vocab, dtype = self.cfg.d_model, self.cfg.d_vocab_out, self.cfg.torch_dtype
        self.W_U = nn.Parameter(empty_weights(d_model, d_vocab, dtype))
        self.b_U = nn.Parameter(torch.zeros(d_vocab, dtype=dtype))

    def forward(self, residual: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab_out"]:
        """The logits of each vector."""
        return linear(residual, self.W_U, self.b_U)


class TransformerState(RunState):
    """Where a thread's runs of one network stand."""

    def __init__(self) -> None:
        super().__init__()
        self.covered: tuple[int, int] | None = None  # the layers of the last run
        self.current = Stream()
        self.prompt_columns: int | None = None
        self.real: Tensor | None = None  # which tokens of the run under way are no padding, on whichever side; None: all,
        self.ran: Tensor | None = None  # or it is to be found in these
        # Of the last run, where it began with tokens: them, the padding that attention knew, and which are real.
        self.passed: tuple[Tensor, Tensor | None, Tensor | None] | None = None


class Transformer(HookedRootModule, StackedWeights):
    """A transformer of any configuration, on the device that the configuration names.

    Args:
        cfg: a configuration, or a dictionary of its fields.
        tokenizer: for text as input; without one, tokens still work.
        default_padding_side: where texts of different lengths are padded, `right` or `left`.

    Raises:
        ConfigError: the configuration has no vocabulary size and there is no tokenizer to tell it.
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: str | None = None,
    ):
        super().__init__()
        self.cfg = cfg = HookedTransformerConfig.unwrap(cfg)
        self.tokenizer: Any = None
        self.end_tokens: list[int] | None = None  # what ends a generation, where more than the tokenizer's EOS token does
        self._padding_side = default_padding_side or "right"
        self.found_by: tuple[str, int | None, tuple[tuple[str, Any], ...]] | None = None  # name, stream=, options: for workers
        self.provenance: dict[str, Any] = {}  # where the weights came from, and which fields of their config were ignored
        if tokenizer is not None:
            self.set_tokenizer(tokenizer)
        if cfg.d_vocab < 1:
            raise ConfigError("d_vocab is not set: give it in the configuration, or give a tokenizer")
        if cfg.d_vocab_out < 1:
            cfg.d_vocab_out = cfg.d_vocab
        rotary_of = rotaries(cfg)
        self.embed = Embed(cfg)
        self.hook_tokens, self.hook_embed = HookPoint(), HookPoint()
        self.has_positions = cfg.positional_embedding_type in ("standard", "shortformer")
        if self.has_positions:
            self.pos_embed = PosEmbed(cfg)
            self.hook_pos_embed = HookPoint()
        self.blocks = nn.ModuleList(TransformerBlock(cfg, layer, rotary_of) for layer in range(cfg.n_layers))
        self.ln_final = norm_of(cfg, final=True)
        self.unembed = Unembed(cfg)
        if cfg.init_weights and self.embed.W_E.device.type != "meta":
            self.init_weights()
        self.setup()
        if move_to_device and self.embed.W_E.device.type != "meta":
            nn.Module.to(self, cfg.device)

    def __repr__(self) -> str:
        cfg = self.cfg
        count = sum(one.numel() for one in self.parameters())
        widths = f"{cfg.n_layers} layers of {cfg.n_heads} heads, d_model {cfg.d_model}, d_mlp {cfg.d_mlp}, d_vocab {cfg.d_vocab}"
        about = f"{count / 1e6:.1f}M parameters, {str(cfg.torch_dtype).removeprefix('torch.')} on {self.device}"
        return f"{type(self).__name__}({cfg.model_name}: {widths}; {about}; .cfg, .sites)"

    def init_weights(self) -> None:
        """Draw the weights anew, as `cfg.init_mode` says; `cfg.seed` decides the draw where it is set."""
        initialise(self, self.cfg)

    def setup(self) -> None:
        """Name all modules; hook points are listed in the order in which a run passes them."""
        super().setup()
        found, table = self.hook_dict, sites.table(self.cfg)
        for name, point in found.items():
            point.axes = table.get(name)
        self.hook_dict = {name: found[name] for name in table if name in found} | found
        self._built = ARCHITECTURE(self.cfg)
        passing = set(self.blocks.modules()) if isinstance(self.blocks, StreamedBlocks) else set()
        self._holders = [module for module in self.modules() if module._parameters and module not in passing]
        self._state = WeightsState()
        self._watched = watch(self._foreign(table), self.__dict__.get("_watched", []))

    def _foreign(self, table: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
        """Modules of somebody else's, where a hook point, a block, its attention or its MLP would be."""
        for name in table:
            if name in self.mod_dict and name not in self.hook_dict:
                yield name, self.mod_dict[name]
        for layer, block in enumerate(self.blocks._modules.values()):  # (streamed ones are not read for this)
            if not isinstance(block, TransformerBlock):
                yield f"blocks.{layer}", block
                continue
            for part, ours in (("attn", Attention), ("mlp", (MLP, MoE))):
                if not isinstance(module := getattr(block, part, ours), ours) and isinstance(module, nn.Module):
                    yield f"blocks.{layer}.{part}", module

    def _new_state(self) -> TransformerState:
        return TransformerState()

    @property
    def current(self) -> Stream:
        """Where this thread's run stands that is under way; hooks may read it."""
        return self._here.current

    @property
    def real(self) -> Tensor | None:
        """Which tokens `[batch, column]` of this thread's run are no padding, on whichever side; None: all."""
        here = self._here
        if here.real is None and here.ran is not None:
            real = self.tokens_and_padding(here.ran, None, None)[1]
            here.ran, here.real = None, None if real is None else real.bool()
        return here.real

    @property
    def prompt_columns(self) -> int | None:
        """In a run of a generation: how many columns are its prompt."""
        return self._here.prompt_columns

    @prompt_columns.setter
    def prompt_columns(self, columns: int | None) -> None:
        self._here.prompt_columns = columns

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run this network, or parts of it, from inside a hook: no listener hears it, and the run under way stays as it is."""
        here = self._here
        before = here.current, here.covered, here.real, here.ran
        try:
            with quiet():
                yield
        finally:
            here.current, here.covered, here.real, here.ran = before

    @property
    def device(self) -> torch.device:
        """Where tokens go: the device of the embedding, which may be inside somebody else's module."""
        made = "_modules" in self.__dict__  # a subclass of somebody's may have a tokenizer and no network
        return next(self.parameters()).device if made else torch.device(str(self.cfg.device))

    # Sites: what a network knows about them.

    @property
    def sites(self) -> list[str]:
        """The full names of all sites, in the order in which a run passes them."""
        return list(self.hook_dict)

    def is_enabled(self, name: str) -> bool:
        """Whether predicates and unfiltered caches choose this site (some need a flag of the configuration)."""
        return sites.enabled(self.cfg, name)

    def position_axis(self, name: str) -> int | None:
        """Which axis is the position (of the destination, for patterns)."""
        words = self.hook_dict[name].axes if name in self.hook_dict else sites.axes(name, self.cfg)
        if words is None:  # a point that somebody added: [batch, pos, …], as nearly all are
            return 1
        return next((index for index, word in enumerate(words) if word in ("pos", "dest")), None)

    def program_of(self, layer: int) -> BlockProgram:
        """The steps of a block; asking for the block itself would read the weights of one that is streamed."""
        block = self.blocks.get_submodule(str(layer))
        return block.program if isinstance(block, TransformerBlock) else program(self.cfg, layer)

    def _left_out(self, name: str) -> str | None:
        """What of the last run's beginning or end left this site out; None: nothing did."""
        n = self.cfg.n_layers
        first, last = self._here.covered or (0, n + 1)
        parts = name.split(".")
        if parts[0] == "blocks" and not first <= int(parts[1]) < last:
            return f"the run covered layers {first} to {min(last, n) - 1}" if first < last else "the run covered no layer"
        if first > 0 and parts[0] in ("hook_tokens", "hook_embed", "hook_pos_embed", "embed"):
            return f"the run started at layer {first}, after the embedding"
        if last <= n and parts[0] == "ln_final":
            return f"the run stopped at layer {last}, before the final norm"
        return None

    def why_silent(self, name: str) -> str:
        """Why the last run did not pass this site."""
        return self._left_out(name) or "the run did not pass it"

    def left_out(self, name: str) -> bool:
        """Whether the caller started or stopped the last run so that it could not pass this site."""
        return self._left_out(name) is not None

    def check_built(self) -> None:
        """Make sure that the configuration is the one that the network was built from.

        Raises:
            ConfigError: it was changed.
        """
        if ARCHITECTURE(self.cfg) == self._built:
            return
        pairs = zip(BUILT_IN, self._built, ARCHITECTURE(self.cfg), strict=True)
        changes = ", ".join(f"{name} from {old!r} to {new!r}" for name, old, new in pairs if old != new)
        raise ConfigError(
            f"the configuration was changed after the model was built ({changes}), which cannot change it; build a new model"
        )

    def weights_state(self, look: bool = True) -> int:
        """A number that is another one when weights were rewritten or replaced (see `WeightsState`)."""
        weights = [weight for module in self._holders for weight in module._parameters.values() if weight is not None]
        return self._state.number(weights, tuple(map(id, vars(self.blocks).get("_modules", {}).values())), look=look)

    def untouched(self) -> bool:
        """Whether a run computes what its weights say and no more: nobody's hooks, no module or `forward` of somebody else's."""
        listened = self._forward_hooks or self._forward_pre_hooks
        return not listened and all(module is self or untouched(module) for module in self.modules())

    @property
    def own_forward(self) -> bool:
        """Whether a subclass, or somebody on this instance, replaced `forward` itself."""
        return type(self).forward is not Transformer.forward or "forward" in self.__dict__

    # Tokens.

    def set_tokenizer(self, tokenizer: Any, default_padding_side: str | None = None) -> None:
        """Use this tokenizer for text; sets `d_vocab` where the configuration left it open."""
        self._padding_side = default_padding_side or self.default_padding_side
        self.tokenizer = with_padding_side(text.with_special_tokens(tokenizer), self._padding_side)
        self.cfg.tokenizer_prepends_bos = text.prepends_bos(self.tokenizer)
        if self.cfg.d_vocab < 1:
            self.cfg.d_vocab = text.vocabulary_size(self.tokenizer)
        if self.cfg.d_vocab_out < 1:
            self.cfg.d_vocab_out = self.cfg.d_vocab

    @property
    def default_padding_side(self) -> str:
        """Where texts of different lengths are padded, `right` or `left`: what the tokenizer says, which can be set there too."""
        side: str = getattr(getattr(self, "tokenizer", None), "padding_side", vars(self).get("_padding_side", "right"))
        return side

    @default_padding_side.setter
    def default_padding_side(self, side: str) -> None:
        self._padding_side = side
        if hasattr(self.tokenizer, "padding_side"):
            self.tokenizer.padding_side = side

    def _bos(self, prepend_bos: bool | None) -> bool:
        return self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos

    def tokens_and_mask(self, input: Any, prepend_bos: bool | None, padding_side: str | None) -> tuple[Tokens, Tokens | None]:
        """Checked tokens `[batch, pos]` on the model's device, and the padding mask where attention needs one.

        Takes text, texts, `Prompts`, a conversation (a list of messages), what a tokenizer gave (`BatchEncoding`), or tokens.
        """
        tokens, padding = self.tokens_and_padding(input, prepend_bos, padding_side)
        return tokens, padding if padding is not None and self.needs_mask(padding) else None

    def tokens_and_padding(self, input: Any, prepend_bos: bool | None, padding_side: str | None) -> tuple[Tokens, Tokens | None]:
        """Checked tokens `[batch, pos]`, and which of them are real, wherever some are padding."""
        side = padding_side or self.default_padding_side
        prepend_bos = self._bos(prepend_bos)
        device = self.device if self.cfg.n_devices == 1 else torch.device("cpu")  # from where they index tensors of any device
        if isinstance(input, Prompts):
            pad = None if self.tokenizer is None else self.tokenizer.pad_token_id
            tokens, mask = (one.to(device) for one in input.padded(padding_side or "right", pad))
        elif not isinstance(input, Tensor):
            options: dict[str, Any] = {"prepend_bos": prepend_bos, "padding_side": side, "truncate": False}
            tokens, mask = text.encode(self.tokenizer, input, n_ctx=self.cfg.n_ctx, device=device, **options)
        else:
            tokens = (input if input.ndim > 1 else input[None]).to(device)
            mask = text.attention_mask(self.tokenizer, tokens, prepend_bos=prepend_bos, padding_side=side)
            if len(tokens) == 1 and side == "right" and self.cfg.attention_dir != "bidirectional":
                mask = torch.ones_like(mask)
        if tokens.ndim != 2:
            raise ShapeError(f"tokens are [batch, pos] or [pos], not {tuple(tokens.shape)}")
        text.check_tokens(tokens, self.cfg.d_vocab)
        tokens = tokens if tokens.dtype in (torch.int64, torch.int32) else tokens.long()
        return tokens, None if bool(mask.all()) else mask

    def needs_mask(self, padding: Tokens) -> bool:
        """Whether attention needs this mask: causal attention never sees padding that comes after the tokens."""
        return self.cfg.attention_dir == "bidirectional" or bool((padding[:, 1:] > padding[:, :-1]).any())

    # The steps of a run.

    def run_with_cache(self, *model_args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Run once and keep activations; see `HookedRootModule.run_with_cache`. The store knows which run it is of (`Kept`)."""
        runs, here = self.runs, self._here
        whole = kwargs.get("pos_slice") is None
        plain = whole and self.untouched()
        here.passed = None
        out, store = super().run_with_cache(*model_args, **kwargs)
        origin, passed = None, None
        if whole and here.passed is not None and self.runs == runs + 1:  # a run inside a hook would have left its own
            tokens, padding, real = here.passed
            weights = self.weights_state()
            passed = Passed(weakref.ref(self), weights, real)
            origin = Origin.of(self, tokens, padding, weights) if plain else None
        elif here.passed is not None:
            check_column(kwargs["pos_slice"] if not whole else None, here.passed[2])
        here.passed = None
        return out, Kept(store, origin, passed=passed)

    def prepare(self, tokens: Tokens, attention_mask: Tokens | None = None, kept: KeyValueCache | None = None) -> Stream:
        """Where these tokens stand: after which kept positions, and what is padding.

        Raises:
            ContextTooLong: they do not fit into the positions that the model has.
        """
        self.check_built()
        start = 0 if kept is None else kept.length_for(self)
        text.check_length(tokens.shape[1], self.cfg.n_ctx, past=start, reload=self.cfg.takes_longer)
        padding = attention_mask
        if padding is not None and padding.shape != tokens.shape:
            raise ShapeError(f"attention_mask {tuple(padding.shape)} must have the shape of the tokens, {tuple(tokens.shape)}")
        if kept is not None:
            new = torch.ones_like(tokens) if padding is None else padding
            padding = kept.append_attention_mask(new)
            if bool(padding.all()):
                padding = None
        current = self._here.current = Stream(start, None if padding is None else padding.bool().to(tokens.device))
        self._here.ran, self._here.real = tokens if start == 0 else None, current.padding
        return Stream(start, current.padding, kept)

    def embed_tokens(self, tokens: Tokens, stream: Stream) -> tuple[Resid, Stream]:
        """The residual stream before the first block, and the stream with shortformer's positions, where it has them."""
        embedded = self.hook_embed(self.embed(self.hook_tokens(tokens.to(self.device))))
        if not self.has_positions:
            return embedded, stream
        positions = self._positions(tokens, stream)
        if self.cfg.positional_embedding_type == "shortformer":
            return embedded, Stream(stream.start, stream.padding, stream.kept, positions)
        return embedded + positions, stream

    def _positions(self, tokens: Tokens, stream: Stream) -> Resid:
        embedded = self.pos_embed(tokens, stream.start, stream.padding)
        if not listening(self.hook_pos_embed):
            return embedded
        return self.hook_pos_embed(embedded.clone(memory_format=torch.contiguous_format))  # what is kept is no parameter

    def run_blocks(
        self, resid: Resid, stream: Stream, start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "rows asked d_model"]:
        """The residual stream before block `stop`, from that before block `start`."""
        for layer, block in enumerate(self.blocks[start:stop], start):
            resid = self.placed(resid, layer)
            if isinstance(block, TransformerBlock) and intact(block, AS_WRITTEN):
                resid = block(resid, stream=stream)
            else:
                kept = None if stream.kept is None else stream.kept[layer]
                mask = {"attention_mask": stream.padding, "shortformer_pos_embed": stream.shortformer}
                resid = call(block, stream, resid, past_kv_cache_entry=kept, **mask)
        return resid

    def placed(self, resid: Tensor, layer: int) -> Tensor:
        """The stream where block `layer` lies, or, after the last, the unembedding."""
        part = self.blocks[layer] if self.cfg.n_devices > 1 and layer < self.cfg.n_layers else self.unembed
        return resid if self.cfg.n_devices == 1 else resid.to(next(part.parameters()).device)

    def logits_of(
        self, resid: Float[Tensor, "... d_model"], columns: Int[Tensor, "column"] | None = None
    ) -> Float[Tensor, "... out"]:
        """Logits, by way of the final norm, the unembedding and the soft cap; of some tokens only, with `columns`."""
        resid = self.ln_final(self.placed(resid, self.cfg.n_layers))
        if columns is None or type(self.unembed) is not Unembed or not intact(self.unembed):
            logits = self.unembed(resid) if columns is None else self.unembed(resid)[..., columns]
        else:
            columns = columns.to(self.unembed.W_U.device)
            logits = linear(resid, self.unembed.W_U[:, columns], self.unembed.b_U[columns])
        cap = self.cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def last_logits(
        self, tokens: Tokens, attention_mask: Tokens | None = None, kept: KeyValueCache | None = None, count: int = 1
    ) -> Float[Tensor, "batch count d_vocab_out"]:
        """The logits after the last `count` of these tokens; those before them only if somebody listens."""
        self._here.runs += 1
        text.check_tokens(tokens, self.cfg.d_vocab)
        resid = self.run_blocks(*self.embed_tokens(tokens, self.prepare(tokens, attention_mask, kept)))
        self._here.covered = None
        heard = any(point.listening for point in self.ln_final.modules() if isinstance(point, HookPoint))
        return self.logits_of(resid if heard else resid[:, -count:])[:, -count:]

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        start_at_layer: int | None = None,
        tokens: Tensor | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: KeyValueCache | None = None,
    ) -> Any:
        """Run the network.

        Args:
            input: text, texts, messages, what a tokenizer gave, tokens `[batch, pos]` or `[pos]`; with `start_at_layer`, a
                residual stream.
            return_type: "logits" `[batch, pos, d_vocab_out]`, "loss" (mean next-token loss, nats), "both", or None.
            loss_per_token: the loss of each position, `[batch, pos - 1]`, instead of the mean.
            prepend_bos: whether text gets a BOS token; the configuration's default where None.
            padding_side: of texts that differ in length.
            start_at_layer: `input` is the residual stream before this block; may be negative.
            tokens: the tokens, where `input` is a residual stream and a loss or a padding mask needs them.
            shortformer_pos_embed: with `start_at_layer`, the position embeddings of a shortformer model.
            attention_mask: `[batch, pos]`, 1 for tokens and 0 for padding; found in the tokens where None.
            stop_at_layer: return the residual stream before this block; may be negative.
            past_kv_cache: keys and values of earlier tokens; those of these tokens are added to it.

        Raises:
            TokenError: tokens outside the vocabulary, or none at all.
            ContextTooLong: more tokens than the model has positions.
        """
        if return_type not in RETURN_TYPES:
            names = [name for name in RETURN_TYPES if name]
            raise ValueError(
                f"return_type={return_type!r} is not known{nearest(str(return_type), names)}; there are {names} and None"
            )
        start, stop = self._layers(start_at_layer, stop_at_layer)
        if stop_at_layer is not None and return_type in ("loss", "both"):
            raise ValueError(f"stop_at_layer gives the residual stream, so there is no {return_type}; leave return_type out")
        if start_at_layer is None:
            tokens, padding = self.tokens_and_padding(input, prepend_bos, padding_side)
            padding, mask = self._given_mask(attention_mask, tokens, padding, past_kv_cache)
            stream = self.prepare(tokens, mask, past_kv_cache)
            self._note_real(stream, padding)
            resid, stream = self.embed_tokens(tokens, stream)
        else:
            padding = None if tokens is None else self.tokens_and_padding(tokens, prepend_bos, padding_side)[1]
            padding, mask = self._given_mask(attention_mask, input, padding, past_kv_cache)
            resid, stream = self._resumed(input, shortformer_pos_embed, mask, past_kv_cache)
            self._note_real(stream, padding)
        self._here.covered = (start, self.cfg.n_layers + 1 if stop is None else stop)
        resid = self.run_blocks(resid, stream, start, stop)
        whole = start_at_layer is None and past_kv_cache is None and tokens is not None
        self._here.passed = (tokens, stream.padding, self._here.real) if whole else None
        if stop_at_layer is not None:
            return resid
        return self._finished(resid, return_type, tokens, padding, loss_per_token)

    def _note_real(self, stream: Stream, padding: Tensor | None) -> None:
        """Note which tokens are real where attention needs no mask, since padding comes after them."""
        here = self._here
        here.ran = None
        if stream.padding is None and padding is not None and not bool(padding.all()):
            here.real = padding.bool()

    def _given_mask(
        self, given: Tensor | None, like: Tensor, padding: Tensor | None, kept: KeyValueCache | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What is padding, and the mask that attention needs: the caller's, checked, or as the tokens say."""
        if given is None:  # (kept padding stands before later tokens, on whichever side it was)
            return padding, padding if padding is not None and (kept is not None or self.needs_mask(padding)) else None
        given = given.to(like.device)
        if like.ndim > 1:
            text.check_mask(given, like[..., 0] if like.ndim == 3 else like, past=kept is not None)
        return given.long(), given.long()

    def _layers(self, start: int | None, stop: int | None) -> tuple[int, int | None]:
        n = self.cfg.n_layers
        for name, layer in (("start_at_layer", start), ("stop_at_layer", stop)):
            if layer is not None and not -n <= whole(layer, name) <= n:
                raise ValueError(f"{name}={layer} is outside the {n} layers of the model")
        first = 0 if start is None else start % n if start < 0 else start
        last = None if stop is None else stop % n if stop < 0 else stop
        if last is not None and first > last:
            raise ValueError(f"start_at_layer={start} comes after stop_at_layer={stop}")
        return first, last

    def _resumed(
        self, resid: Any, shortformer: Tensor | None, mask: Tensor | None, kept: KeyValueCache | None
    ) -> tuple[Resid, Stream]:
        """The residual stream that a run resumes from, and where it stands."""
        if not isinstance(resid, Tensor) or resid.ndim != 3 or resid.shape[-1] != self.cfg.d_model:
            got = tuple(resid.shape) if isinstance(resid, Tensor) else type(resid).__name__
            raise ShapeError(f"with start_at_layer the input is a residual stream [batch, pos, {self.cfg.d_model}], not {got}")
        like = torch.empty(resid.shape[:2], dtype=torch.long, device=resid.device)
        stream = self.prepare(like, mask, kept)
        if self.cfg.positional_embedding_type == "shortformer":
            shortformer = self._positions(like, stream) if shortformer is None else shortformer
            stream = Stream(stream.start, stream.padding, stream.kept, shortformer)
        return resid, stream

    def _finished(
        self, resid: Resid, return_type: str | None, tokens: Tensor | None, mask: Tensor | None, loss_per_token: bool
    ) -> Any:
        if return_type is None:
            if any(point.listening for point in self.ln_final.modules() if isinstance(point, HookPoint)):
                self.ln_final(resid)
            return None
        logits = self.logits_of(resid)
        if return_type == "logits":
            return logits
        if tokens is None:
            raise ValueError("a loss needs tokens: pass tokens= beside the residual stream")
        loss = next_token_loss(logits, tokens if tokens.ndim > 1 else tokens[None], mask, loss_per_token)
        return loss if return_type == "loss" else Output(logits, loss)
