"""Axes are named once. Signatures, einsum letters, comments and figures use these words.

| axis | what it counts |
|---|---|
| `batch` | examples |
| `pos` | positions of a sequence; `dest` where attention looks from (query), `src` where it looks to (key) |
| `layer` | blocks |
| `head` | attention heads; `kv` where keys and values are shared by groups of heads |
| `d_model` | width of the residual stream |
| `d_head` | width of one head's queries, keys, values |
| `d_mlp` | neurons of one MLP |
| `d_vocab` | input tokens; `d_vocab_out` output logits |
| `component` | terms of the residual stream: embeddings, heads, MLPs, biases |

The aliases below are those shapes with a name. They are checked in tests and cost users nothing.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]
Mask = Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"]
Resid = Float[Tensor, "batch pos d_model"]
Heads = Float[Tensor, "batch pos head d_head"]
HeadResults = Float[Tensor, "batch pos head d_model"]
Keys = Float[Tensor, "batch key kv d_head"]  # keys or values: fewer heads, and more positions, than the queries
Pattern = Float[Tensor, "batch head dest src"]
Neurons = Float[Tensor, "batch pos d_mlp"]
Logits = Float[Tensor, "batch pos d_vocab_out"]
