"""What is trained for each algorithmic behaviour, and how: shapes of networks and recipes, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.tasks.task import Recipe

MODELS: Mapping[str, Mapping[str, Any]] = {
    "palindromes": {
        "n_layers": 2, "n_heads": 2, "d_model": 28, "d_head": 14, "attn_only": True,
        "attention_dir": "bidirectional", "normalization_type": "LN",
    },
    "sorted-list": {
        "n_layers": 1, "n_heads": 2, "d_model": 96, "d_head": 48, "attn_only": True,
        "normalization_type": "LN",
    },
    "sum-of-two": {
        "n_layers": 2, "n_heads": 3, "d_model": 48, "d_head": 16, "attn_only": False,
        "d_mlp": 192, "act_fn": "relu", "normalization_type": "LN",
    },
    "cumulative-sum": {
        "n_layers": 1, "n_heads": 1, "d_model": 24, "d_head": 24, "d_mlp": 96,
        "act_fn": "relu", "normalization_type": None,
    },
    "modular-addition": {
        "n_layers": 1, "n_heads": 4, "d_model": 128, "d_head": 32, "d_mlp": 512,
        "act_fn": "relu", "normalization_type": None,
    },
    "balanced-brackets": {
        "n_layers": 3, "n_heads": 2, "d_model": 56, "d_head": 28, "d_mlp": 56,
        "act_fn": "relu", "attention_dir": "bidirectional", "normalization_type": "LN",
    },
}  # fmt: skip
RECIPES = {
    "first-unique-char": Recipe(epochs=50, steps=400, batch_size=128, lr=3e-3),
    "palindromes": Recipe(epochs=24, steps=400, batch_size=256, lr=2e-3, weight_decay=0.01),
    "sorted-list": Recipe(epochs=15, steps=400, batch_size=256, lr=1e-3, weight_decay=0.005),
    "sum-of-two": Recipe(epochs=20, steps=400, batch_size=256, lr=2e-3, weight_decay=0.01),
    "cumulative-sum": Recipe(epochs=6, steps=400, batch_size=256, lr=3e-3, weight_decay=0.01),
    "modular-addition": Recipe(epochs=12, steps=100, batch_size=6384, lr=1e-3, weight_decay=1.0, warmup=10),
    "balanced-brackets": Recipe(epochs=16, steps=300, batch_size=256, lr=1e-3, weight_decay=0.01),
}
