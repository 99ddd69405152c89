"""The dialect's class: the network, with the methods that notebooks call.

Each method is a line or two: the work is done by the rooms below. A new question about a model does not
belong here but in `cutaway.analysis`, as a function.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cutaway import loading
from cutaway import tokens as text
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError
from cutaway.model.factored_matrix import FactoredMatrix, composition_scores
from cutaway.model.initial import DrawnByName
from cutaway.model.losses import next_token_loss
from cutaway.model.norm import norm_of
from cutaway.model.transformer import Transformer
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.editing import AnyEdits, edited
from cutaway.runs.generation import Sampling, generate
from cutaway.weights import canonical, processing

StateDict = dict[str, Tensor]


class HookedTransformer(DrawnByName, Transformer):
    """A transformer whose every activation can be read and changed. See `Transformer` for how it runs."""

    says: ClassVar[bool] = False
    """Whether loading, moving and stacking print what they do, and models and caches print all their parts, as notebooks
    written for the dialect show; set with the aliases."""

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: str | None = None,
    ):
        cfg = HookedTransformerConfig.unwrap(cfg)
        if tokenizer is None and cfg.tokenizer_name is not None:
            tokenizer = loading.pretrained_tokenizer(cfg.tokenizer_name)
        super().__init__(cfg, tokenizer, move_to_device, default_padding_side)

    # Where models come from.

    @classmethod
    def from_pretrained(cls, model_name: str | PathLike[str], *args: Any, **kwargs: Any) -> HookedTransformer:
        """A model by name, from a folder or from a live `transformers` model: see `loading.from_pretrained`."""
        model = loading.from_pretrained(cls, model_name, *args, **kwargs)
        if cls.says:
            print(f"Loaded pretrained model {model_name} into HookedTransformer")
        return model

    @classmethod
    def from_pretrained_no_processing(
        cls,
        model_name: str | PathLike[str],
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = False,
        **kwargs: Any,
    ) -> HookedTransformer:
        """A model with its weights as they were published."""
        return cls.from_pretrained(
            model_name,
            fold_ln,
            center_writing_weights,
            center_unembed,
            refactor_factored_attn_matrices,
            fold_value_biases=fold_value_biases,
            **kwargs,
        )

    def __repr__(self) -> str:
        if not self.says:
            return super().__repr__()
        hidden = ("(hook_tokens): HookPoint()", "_norm): None")[self.cfg.use_hook_tokens :]
        return "\n".join(line for line in nn.Module.__repr__(self).splitlines() if not line.endswith(hidden))

    # Running.

    def run_with_hooks(self, *model_args: Any, edits: AnyEdits = (), **kwargs: Any) -> Any:
        """Run once with functions attached, and `edits` made; see `HookedRootModule.run_with_hooks` and `runs.editing`."""
        with edited(self, edits):
            return super().run_with_hooks(*model_args, **kwargs)

    def run_with_cache(
        self,
        *model_args: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        edits: AnyEdits = (),
        **kwargs: Any,
    ) -> tuple[Any, ActivationCache | dict[str, Tensor]]:
        """Run once and keep activations, with `edits` made; see `HookedRootModule.run_with_cache` and `runs.editing`.

        A cache object, or a plain dictionary.
        """
        with edited(self, edits):
            out, store = super().run_with_cache(*model_args, remove_batch_dim=remove_batch_dim, **kwargs)
        return out, ActivationCache(store, self, has_batch_dim=not remove_batch_dim) if return_cache_object else store

    def loss_fn(self, logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False) -> Tensor:
        """The next-token loss (nats) of logits, as `forward` computes it: padding does not count."""
        if attention_mask is None:
            attention_mask = self.tokens_and_padding(tokens, None, None)[1]
        return next_token_loss(logits, tokens, attention_mask, per_token)

    # Tokens.

    def _text_options(self, prepend_bos: bool | None, padding_side: str | None) -> dict[str, Any]:
        return {"prepend_bos": self._bos(prepend_bos), "padding_side": padding_side or self.default_padding_side}

    def to_tokens(
        self,
        input: Any,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """Text or texts as tokens, with a BOS token in front where `prepend_bos` says so, by default `cfg.default_prepend_bos`.

        A text that begins with one gets no second.

        A list of messages (`{"role": …, "content": …}`) is rendered by the tokenizer's chat template.
        """
        device = self.device if move_to_device else None
        options = self._text_options(prepend_bos, padding_side)
        return text.to_tokens(self.tokenizer, input, truncate=truncate, n_ctx=self.cfg.n_ctx, device=device, **options)

    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None
    ) -> list[str] | list[list[str]]:
        """Text or tokens as a list of one string per token."""
        return text.to_str_tokens(self.tokenizer, input, n_ctx=self.cfg.n_ctx, **self._text_options(prepend_bos, padding_side))

    def to_string(self, tokens: Any) -> str | list[str]:
        """Tokens as text."""
        return text.to_string(self.tokenizer, tokens)

    def to_single_token(self, string: str) -> int:
        """The token of a string that is exactly one."""
        return text.to_single_token(self.tokenizer, string)

    def to_single_str_token(self, int_token: int) -> str:
        """One token as text."""
        return text.to_single_str_token(self.tokenizer, int_token)

    def get_token_position(
        self,
        single_token: str | int,
        input: str | Tensor,
        mode: str = "first",
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> int:
        """Where a token stands in a text or in tokens, the `first` or the `last` time."""
        options = self._text_options(prepend_bos, padding_side)
        return text.get_token_position(self.tokenizer, single_token, input, mode=mode, **options)

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Float[Tensor, "... d_model"]:
        """The direction of the (normalised) residual stream that each token's logit reads.

        A string, a number or a tensor of one element gives `[d_model]`; a tensor `[...]` gives `[..., d_model]`.
        """
        if isinstance(tokens, Tensor):
            return self.W_U[:, tokens.item()] if tokens.numel() == 1 else self.W_U.T[tokens.long()]  # type: ignore[index]
        return self.W_U[:, self.to_single_token(tokens) if isinstance(tokens, str) else tokens]

    # Generation.

    def generate(
        self,
        input: Any = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | list[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        return_type: str | None = "input",
        verbose: bool = True,
        edits: AnyEdits = (),
    ) -> Any:
        """The prompt and what the model says next, with `edits` made; see `runs.generation.generate` and `Sampling`."""
        with edited(self, edits):
            return generate(
                self,
                input,
                max_new_tokens,
                stop_at_eos=stop_at_eos,
                eos_token_id=eos_token_id,
                sampling=Sampling(do_sample, top_k, top_p, temperature, freq_penalty),
                use_past_kv_cache=use_past_kv_cache,
                prepend_bos=prepend_bos,
                padding_side=padding_side,
                return_type=return_type,
                verbose=verbose,
            )

    # Devices.

    def to(self, *device_or_dtype: Any, print_details: bool = True, **options: Any) -> HookedTransformer:
        """Move to a device, to a precision, or both, as `nn.Module.to`; the configuration follows."""
        device, dtype, *_ = torch._C._nn._parse_to(*device_or_dtype, **options)
        super().to(*device_or_dtype, **options)
        if self.says and print_details and (device is not None or dtype is not None):
            print(*(("Moving model to device: ", device) if device is not None else ("Changing model dtype to", dtype)))
        if device is not None:
            self.cfg.device = str(device)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> HookedTransformer:
        """Where every change of precision passes: `half()`, `bfloat16()`, `type(…)`, a model around this one."""
        super()._apply(fn, recurse)
        weight = next(self.parameters())  # (of the embedding)
        self.cfg.dtype = weight.dtype
        if torch.device(str(self.cfg.device)).type != weight.device.type:
            self.cfg.device = str(weight.device)
        return self

    def cuda(self, device: Any = None) -> HookedTransformer:
        """Move to the GPU."""
        return self.to("cuda" if device is None else f"cuda:{device}" if isinstance(device, int) else device)

    def cpu(self) -> HookedTransformer:
        """Move to the CPU."""
        return self.to("cpu")

    def mps(self) -> HookedTransformer:
        """Move to Apple's GPU."""
        return self.to("mps")

    def move_model_modules_to_device(self) -> None:
        """Move everything to the device that the configuration names."""
        self.to(self.cfg.device, print_details=False)

    # Weights.

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights in the dialect's keys; masks and what they hide scores by (`attn.mask`, `attn.IGNORE`) are taken over too.

        Raises:
            WeightsMismatch: with `strict`, when they do not fit the configuration.
        """
        return loading.fill(self, state_dict, strict=strict, assign=assign)

    def load_and_process_state_dict(
        self,
        state_dict: StateDict,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Rewrite weights exactly, then load them; norms that were folded away stay with w = 1 and b = 0."""
        processed, _ = processing.process(
            loading.as_today(state_dict, self.cfg),
            self.cfg,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
        )
        loading.fill(self, canonical.fill_norms(processed, self.cfg))

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = True,
    ) -> None:
        """Rewrite this model's weights in place, exactly; norms that were folded away lose their weights."""
        processed, cfg = processing.process(
            {name: tensor.detach() for name, tensor in self.state_dict().items()},
            self.cfg,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
        )
        if cfg.normalization_type != self.cfg.normalization_type:
            self._fold_norms(cfg)
        loading.fill(self, processed)

    def _fold_norms(self, cfg: HookedTransformerConfig) -> None:
        """Replace the norms by those without weights."""
        old, new = self.cfg, copy.copy(self.cfg)  # another model may have been built from the old one
        new.normalization_type = cfg.normalization_type
        for module in self.modules():
            if getattr(module, "cfg", None) is old:
                module.cfg = new  # type: ignore[assignment]
        self.ln_final = norm_of(self.cfg, final=True)
        for block in self.blocks:
            for name in ("ln1", "ln2"):
                if not isinstance(getattr(block, name, nn.Identity()), nn.Identity):
                    setattr(block, name, norm_of(self.cfg))
            if self.cfg.has_mlp_norm and not self.cfg.attn_only:
                block.mlp.fold_norm()
        self.setup()

    def fold_layer_norm(self, state_dict: StateDict, fold_biases: bool = True, center_weights: bool = True) -> StateDict:
        """A state dict with the norms folded into what reads them; their keys are dropped."""
        return processing.fold_layer_norm(state_dict, self.cfg, fold_biases=fold_biases, center_weights=center_weights)

    def center_writing_weights(self, state_dict: StateDict) -> StateDict:
        """A state dict whose weights write nothing along the all-ones direction."""
        return processing.center_writing_weights(state_dict, self.cfg, always=True)

    def center_unembed(self, state_dict: StateDict) -> StateDict:
        """A state dict whose logits have mean zero over the vocabulary."""
        return processing.center_unembed(state_dict, self.cfg, always=True)

    def fold_value_biases(self, state_dict: StateDict) -> StateDict:
        """A state dict with value biases folded into the output biases."""
        return processing.fold_value_biases(state_dict, self.cfg)

    def fill_missing_keys(self, state_dict: StateDict) -> StateDict:
        """The state dict, with this model's own values where it lacks some."""
        return canonical.fill_missing_keys(self, state_dict)

    def refactor_factored_attn_matrices(self, state_dict: StateDict) -> StateDict:
        """A state dict whose QK and OV factors are balanced by their singular values."""
        return processing.refactor_factored_attn_matrices(state_dict, self.cfg)

    # Flags: which sites predicates and unfiltered caches choose from.

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether unfiltered caches keep per-head results."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether queries, keys and values read inputs of their own."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether unfiltered caches keep the MLPs' inputs."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether heads read inputs of their own."""
        self.cfg.use_attn_in = use_attn_in

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Whether grouped keys and values are computed for each head."""
        if ungroup_grouped_query_attention and self.cfg.use_qk_norm and self.cfg.qk_norm_over == "full":
            raise ConfigError(
                "the norm of this model's keys spans all their heads, so they cannot be computed for each head apart"
            )
        self.cfg.ungroup_grouped_query_attention = ungroup_grouped_query_attention

    # The beginning of a run, in the dialect's steps.

    def input_to_embed(
        self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None, attention_mask: Tensor | None = None,
        past_kv_cache: Any = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        """The residual stream before the first block, the tokens, a shortformer's positions, and attention's mask."""
        tokens, padding = self.tokens_and_padding(input, prepend_bos, padding_side)
        mask = self._given_mask(attention_mask, tokens, padding, past_kv_cache)[1]
        if mask is None and self.default_padding_side == "left":  # callers of the dialect expect one there
            mask = torch.ones_like(tokens)
        resid, stream = self.embed_tokens(tokens, self.prepare(tokens, mask, past_kv_cache))
        return resid, tokens, stream.shortformer, mask

    def get_pos_offset(self, past_kv_cache: Any, batch_size: int) -> int:
        """How many positions are kept already: where the next token stands."""
        return 0 if past_kv_cache is None else past_kv_cache.length

    def get_residual(
        self, embed: Tensor, pos_offset: int, prepend_bos: bool | None = None, attention_mask: Tensor | None = None,
        tokens: Tensor | None = None, return_shortformer_pos_embed: bool = True, device: Any = None,
    ) -> Any:  # fmt: skip
        """The residual stream from token embeddings (and a shortformer's positions, where those are asked for)."""
        like = torch.zeros(embed.shape[:2], dtype=torch.long, device=embed.device)
        positions = self.pos_embed(like, pos_offset, attention_mask) if self.has_positions else None
        shortformer = positions if self.cfg.positional_embedding_type == "shortformer" else None
        resid = embed if positions is None or shortformer is not None else embed + positions
        return (resid, shortformer) if return_shortformer_pos_embed else resid

    # Texts like those that it was trained on.

    def load_sample_training_dataset(self, **kwargs: Any) -> None:
        """Fetch some 10,000 texts like those that the model was trained on, as `dataset` (package `datasets`, network).

        Raises:
            ConfigError: on what models of this architecture were trained is not known.
        """
        from cutaway.sources import sample_texts  # (takes the hub's library)

        self.dataset = sample_texts.get_dataset_of(self.cfg.original_architecture, **kwargs)

    def sample_datapoint(self, tokenize: bool = False, prepend_bos: bool | None = None, padding_side: str | None = None) -> Any:
        """One of those texts, drawn at random by NumPy's generator, or its tokens; they are fetched the first time."""
        if getattr(self, "dataset", None) is None:
            self.load_sample_training_dataset()
        text = self.dataset[int(np.random.randint(len(self.dataset)))]["text"]
        return self.to_tokens(text, prepend_bos, padding_side, truncate=True) if tokenize else text

    # Circuits.

    @property
    def QK(self) -> FactoredMatrix:
        """What each head looks for: `W_Q @ W_K.T`, `[layer, head, d_model, d_model]`."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """What each head does to what it finds: `W_V @ W_O`, `[layer, head, d_model, d_model]`."""
        return FactoredMatrix(self.W_V, self.W_O)

    def all_composition_scores(self, mode: str) -> Float[Tensor, "layer head later head"]:
        """How much each head's output feeds each later head's queries ("Q"), keys ("K") or values ("V").

        Frobenius norms of products over products of norms (Elhage et al. 2021, "A mathematical framework").
        """
        if mode not in ("Q", "K", "V"):
            raise ValueError(f"composition goes by 'Q', 'K' or 'V', not {mode!r}")
        right = {"Q": lambda: self.QK, "K": lambda: self.QK.T, "V": lambda: self.OV}[mode]()
        scores = composition_scores(self.OV, right)
        layers = torch.arange(self.cfg.n_layers, device=scores.device)
        return scores * (layers[:, None, None, None] < layers[None, None, :, None])

    def all_head_labels(self) -> list[str]:
        """`L0H0`, `L0H1`, …"""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]
