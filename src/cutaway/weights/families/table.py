"""The form of a family: which config fields it reads, and where each canonical tensor is found.

A family is data. Every field of its config is listed with the value it has when left out, and with what
becomes of it; a checkpoint with any other field that is switched on is refused, naming the field. Every
canonical tensor is listed with the name it has in the family's checkpoints and the reshapings on the way.
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

    def refuse(self, name: str, why: str) -> UnsupportedArchitecture:
        """The error that says which field is not understood, and its value."""
        return UnsupportedArchitecture(f"{name}={self.get(name)!r} in the config of this {self.family} model: {why}")


def ignored(names: str) -> dict[str, Field]:
    """Several fields that change nothing, by their names."""
    return dict.fromkeys(names.split(), IGNORED)


BASE: dict[str, Field] = ignored(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _num_labels architectures attn_implementation
    auto_map bad_words_ids begin_suppress_tokens bos_token_id custom_pipelines decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id experts_implementation
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id generation_config
    gradient_checkpointing id2label initializer_range label2id length_penalty max_length min_length model_type name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states
    output_past output_scores pad_token_id prefix pretraining_tp problem_type remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version transformers_weights typical_p unsloth_fixed
    unsloth_version use_bfloat16 use_cache
    """
) | {
    "add_cross_attention": only(False),
    "chunk_size_feed_forward": only(0),
    "cross_attention_hidden_size": only(None),
    "is_decoder": only(False, True),
    "is_encoder_decoder": only(False),
    "pruned_heads": only({}, None),
    "tie_encoder_decoder": only(False),
    "tie_word_embeddings": into("tie_word_embeddings", False),
}
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


Step = Callable[[Tensor, Place], Tensor]
Condition = Callable[[Fields], bool]


@dataclass(frozen=True)
class Found:
    """A tensor of a checkpoint and how it becomes a canonical one.

    `name` may hold `{l}` (layer), `{e}` (expert) and `{h}` (one tensor for each of several heads, stacked).
    `when` says for which configs it is there; a bias that no config field switches on is zero.
    """

    name: str
    steps: tuple[Step, ...] = ()
    when: Condition | None = None


def found(name: str, *steps: Step, when: str | Condition | None = None) -> Found:
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
