"""A stand-in for the course's model: the published architecture, by the arguments that its notebooks give."""

from typing import Any

from cutaway import HookedTransformer, HookedTransformerConfig


def create_model(vocab: list[str], seq_len: int, d_mlp: int | None = None, **fields: Any) -> HookedTransformer:
    """A network for sequences of these letters; without `d_mlp` it has attention only."""
    size = len(vocab) + 1
    attention = {"attn_only": d_mlp is None, "use_attn_result": True, "use_split_qkv_input": True}
    return HookedTransformer(
        HookedTransformerConfig(n_ctx=seq_len, d_vocab=size, d_vocab_out=size, d_mlp=d_mlp, act_fn="relu", **attention, **fields)
    )
