"""The form of a family: which config fields it reads, and where each canonical tensor is found.

A family is data. Every field of its config that `transformers` reads is listed with the value it has when left
out, and with what becomes of it; a value that we do not handle stops the load, naming the field. A field that is
not listed is one that `transformers` never reads: it cannot change the model, and is ignored. Every canonical
tensor is listed with the name it has in the family's checkpoints and the reshapings on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cutaway.config import ACTIVATIONS, HookedTransformerConfig
from cutaway.errors import UnsupportedArchitecture

# Fields of a config.


@dataclass(frozen=True)
class Field:
    """What becomes of one field: it is copied (`into`), read by the table's code (`read`), must be left alone
    (`only`), or changes nothing that a forward pass computes (`IGNORED`)."""

    default: Any = None
    ours: str | None = None
    via: Callable[[Any], Any] | None = None
    accepted: tuple[Any, ...] | None = None


IGNORED = Field()
"""A field that changes nothing a forward pass computes: dropout, initialisation, ids of special tokens."""


def into(ours: str, default: Any, via: Callable[[Any], Any] | None = None) -> Field:
    """A field that becomes `ours`, as it is or through `via`."""
    return Field(default, ours, via)


def read(default: Any = None) -> Field:
    """A field that the table reads by itself."""
    return Field(default)


def only(*accepted: Any) -> Field:
    """A field that must have one of these values, the first where it is left out."""
    return Field(accepted[0], accepted=accepted)


class Fields(dict[str, Any]):
    """A config with its left-out fields filled in, for the code of a table to read."""

    def __init__(self, family: str, values: Mapping[str, Any]):
        super().__init__(values)
        self.family = family

    ignored: Mapping[str, Any] = {}
    """The fields that the config has and `transformers` never reads, with their values."""

    def refuse(self, name: str, why: str) -> UnsupportedArchitecture:
        """The error that says which field is not understood, and its value."""
        return UnsupportedArchitecture(f"{name}={self.get(name)!r} in the config of this {self.family} model: {why}")


def ignored(*names: str) -> dict[str, Field]:
    """Fields that change nothing, by their names, several in a string."""
    return dict.fromkeys(" ".join(names).split(), IGNORED)


SHARED: dict[str, Field] = ignored(
    # of rotary positions and heads, which base classes check where a config has them
    """
    embed_dim head_dim max_position_embeddings num_heads num_key_value_heads original_max_position_embeddings
    partial_rotary_factor rope_parameters rope_scaling rope_theta
    """,
    # which keys caches keep in generation
    "attention_chunk_size cache_implementation kv_sharing_modes layer_types number_of_conv_states qk_head_dim sliding_window",
    # further heads that predict several tokens ahead, which are not loaded
    "first_k_dense_replace mlp_layer_types mtp_layer_types mtp_mlp_layer_types mtp_per_layer_config num_mtp_layers",
    # encoders
    "encoder is_decoder",
)
"""Fields that shared code of `transformers` reads of any model, and that change nothing in a family without them.

A family whose own code reads one has it in its table.
"""

BASE: dict[str, Field] = (
    SHARED
    | ignored(
        # what a checkpoint says of itself
        """
        _name_or_path architectures dtype id2label label2id model_type name_or_path num_labels prefix
        pretraining_tp problem_type task_specific_params tokenizer_class torch_dtype transformers_version
        """,
        # how `transformers` computes, trains and starts training
        """
        _attn_implementation _attn_implementation_internal _experts_implementation _experts_implementation_internal
        _heterogeneity_spec _is_quantized _output_attentions _post_init_done allow_global_per_layer_attribute_access
        attention_dropout attn_implementation chunk_size_feed_forward classifier_dropout distributed_config
        experts_implementation fusion_config gradient_checkpointing hidden_dropout init_std initializer_factor
        initializer_range output_attentions output_hidden_states return_dict serialize_explicit_per_layer_config
        tie_last_hidden_states use_cache
        """,
        # defaults of generation and ids of special tokens, which the tokenizer and `generation_config.json` say as well
        """
        bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id diversity_penalty do_sample early_stopping
        encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
        length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
        output_scores pad_token_id repetition_penalty return_dict_in_generate sep_token_id suppress_tokens temperature top_k
        top_p typical_p
        """,
    )
    | {
        "is_causal": only(True),
        "is_encoder_decoder": only(False),
        "per_layer_config": only(None, {}),
        "quantization_config": read(),
        "tie_word_embeddings": into("tie_word_embeddings", False),
        "transformers_weights": only(None),  # another file to take the weights from
    }
)
"""Fields that any config of `transformers` may have."""


def activation(name: str) -> str:
    """Our name of an activation function of `transformers`."""
    ours = {"swish": "silu", "gelu_python": "gelu"}.get(name, name)
    if ours not in ACTIVATIONS:
        known = ", ".join(name for name in ACTIVATIONS if not name.endswith("_ln"))
        raise UnsupportedArchitecture(f"the activation function {name!r} is not one we have; there are {known}")
    return ours


# Tensors of a checkpoint.


@dataclass(frozen=True)
class Place:
    """Where a tensor goes: what a reshaping may ask about the model and the layer."""

    cfg: HookedTransformerConfig
    hf: Fields
    layer: int = 0
    expert: int = 0


Rewrite = Callable[[Tensor, Place], Tensor]
Condition = Callable[[Fields], bool]


@dataclass(frozen=True)
class Found:
    """A tensor of a checkpoint and how it becomes a canonical one.

    `name` may hold `{l}` (layer), `{e}` (expert) and `{h}` (one tensor for each of several heads, stacked).
    `when` says for which configs it is there; a bias that no config field switches on is zero.
    """

    name: str
    steps: tuple[Rewrite, ...] = ()
    when: Condition | None = None


def found(name: str, *steps: Rewrite, when: str | Condition | None = None) -> Found:
    """See `Found`; `when` may name a config field that has to be true."""
    if isinstance(when, str):
        switch = when
        return Found(name, steps, lambda hf: bool(hf[switch]))
    return Found(name, steps, when)


Tensors = dict[str, "Found | tuple[Found, ...]"]


@dataclass(frozen=True)
class Family:
    """One architecture of `transformers`.

    Attributes:
        name: what people call it.
        model_type: `model_type` of its configs.
        architectures: class names that its configs may carry.
        fields: each config field and what becomes of it (besides `BASE`).
        always: fields of ours that are the same for every model of the family.
        rest: fields of ours that follow from several of theirs.
        tensors: canonical name → where it is found; of several places, the first that is there.
        prefixes: what may stand before the names in `tensors`.
        unused: regular expressions of tensors that are no weights (masks, tables of angles).
        examples: ids on the Hugging Face hub, for listings.
    """

    name: str
    model_type: str
    architectures: tuple[str, ...]
    fields: Mapping[str, Field]
    always: Mapping[str, Any]
    tensors: Tensors
    rest: Callable[[Fields], dict[str, Any]] = field(default=lambda hf: {})
    prefixes: tuple[str, ...] = ("model.", "")
    unused: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
