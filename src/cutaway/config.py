"""One description of any architecture, in the dialect's words.

`HookedTransformerConfig` is what the network is built from and what travels inside our checkpoints.
It is checked when it is made: a field that is unknown or contradicts another one stops right here.
Fields below the line "beyond the dialect" describe families that the dialect never had.
"""

from __future__ import annotations

import dataclasses
import pprint
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cutaway.errors import ConfigError, nearest

NORMALIZATIONS = (None, "LN", "LNPre", "RMS", "RMSPre")
POSITIONS = ("standard", "rotary", "shortformer", "alibi", "none")
ACTIVATIONS = (
    "relu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu", "solu_ln", "gelu_ln", "solu", "relu2", "xielu",
)  # fmt: skip
INITS = ("gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP")
MOST_LAYERS, MOST = 10_000, 2**31  # of layers or experts, and of any other size
SMALLEST, LARGEST = 1e-15, 1e15  # of any number that is no size
LARGEST_INIT = 1e3  # of the spread of initial weights
POSITIVE = (
    "rotary_base", "rotary_base_local", "rotary_linear_factor", "yarn_factor", "NTK_by_parts_factor", "clip_qkv",
    "NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor", "yarn_attention_factor", "yarn_beta_fast", "yarn_beta_slow",
    "longrope_attention_factor",
)  # fmt: skip
LENGTHS = ("NTK_original_ctx_len", "yarn_original_max_position_embeddings", "longrope_original_max_position_embeddings")
OF_VERSION_3 = ("yarn_", "use_yarn", "rmsnorm_uses_offset")
"""How the dialect's fields begin that came with its version 3."""
DTYPES = {
    "float32": torch.float32, "float": torch.float32, "float64": torch.float64, "double": torch.float64,
    "bfloat16": torch.bfloat16, "float16": torch.float16, "half": torch.float16,
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A precision from its name.

    Raises:
        ConfigError: there is none of this name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    name = dtype.removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is not known; there are {', '.join(DTYPES)}")
    return DTYPES[name]


@dataclass(repr=False)
class HookedTransformerConfig:
    """Everything that the network needs to know about an architecture.

    Required are `n_layers`, `d_model`, `n_ctx`, `d_head`, and `act_fn` unless `attn_only`.
    `seed`, where given, reseeds Python, NumPy and Torch globally, as existing notebooks rely on.

    Raises:
        ConfigError: a field contradicts another, or asks for something unknown.
    """

    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int
    model_name: str = "custom"
    n_heads: int = -1
    d_mlp: int | None = None
    act_fn: str | None = None
    d_vocab: int = -1
    eps: float = 1e-5
    use_attn_result: bool = False
    use_attn_scale: bool = True
    attn_scale: float = -1.0
    use_split_qkv_input: bool = False
    use_hook_mlp_in: bool = False
    use_attn_in: bool = False
    use_qk_norm: bool = False
    use_local_attn: bool = False
    ungroup_grouped_query_attention: bool = False
    original_architecture: str | None = None
    from_checkpoint: bool = False
    checkpoint_index: int | None = None
    checkpoint_label_type: str | None = None
    checkpoint_value: int | None = None
    tokenizer_name: str | None = None
    window_size: int | None = None
    attn_types: list[str] | None = None
    init_mode: str = "gpt2"
    normalization_type: str | None = "LN"
    device: str | torch.device | None = None
    n_devices: int = 1
    attention_dir: str = "causal"
    attn_only: bool = False
    seed: int | None = None
    initializer_range: float = -1.0
    init_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    positional_embedding_type: str = "standard"
    final_rms: bool = False
    d_vocab_out: int = -1
    parallel_attn_mlp: bool = False
    rotary_dim: int | None = None
    n_params: int | None = None
    use_hook_tokens: bool = False
    gated_mlp: bool = False
    default_prepend_bos: bool = True
    dtype: torch.dtype | str = torch.float32
    tokenizer_prepends_bos: bool | None = None
    n_key_value_heads: int | None = None
    post_embedding_ln: bool = False
    rotary_base: float = 10000.0
    trust_remote_code: bool = False
    rotary_adjacent_pairs: bool = False
    load_in_4bit: bool = False
    num_experts: int | None = None
    experts_per_token: int | None = None
    relative_attention_max_distance: int | None = None
    relative_attention_num_buckets: int | None = None
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_normalization_before_and_after: bool = False
    attn_scores_soft_cap: float = -1.0
    output_logits_soft_cap: float = -1.0
    use_NTK_by_parts_rope: bool = False
    NTK_by_parts_low_freq_factor: float = 1.0
    NTK_by_parts_high_freq_factor: float = 4.0
    NTK_by_parts_factor: float = 8.0
    NTK_original_ctx_len: int = 8192
    use_yarn_rope: bool = False
    yarn_factor: float = 1.0
    yarn_attention_factor: float = 1.0
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_original_max_position_embeddings: int = 4096
    rmsnorm_uses_offset: bool = False
    # --- beyond the dialect ---
    rotary_base_local: float | None = None  # a base of its own for layers of local attention (Gemma 3)
    rotary_linear_factor: float = 1.0  # rotation this many times slower (layers with a base of their own aside)
    longrope_short_factor: list[float] | None = None  # each rotation this many times slower (LongRoPE, Phi-3) in texts of at most
    longrope_long_factor: list[float] | None = None  # longrope_original_max_position_embeddings tokens; and in longer ones
    longrope_original_max_position_embeddings: int = 4096
    longrope_attention_factor: float = 1.0  # on cosines and sines of both
    rotary_layers: list[bool] | None = None  # layers that rotate; None: all (SmolLM3 leaves some out)
    post_norm_only: bool = False  # norms after attention and MLP, none before (OLMo-2)
    qk_norm_over: str = "head"  # `use_qk_norm` takes a "head" at a time, with "each" head weights of its own, or the "full" width
    qk_norm_type: str = "RMS"  # RMS or LN
    clip_qkv: float | None = None  # queries, keys and values are clamped to ±this (OLMo, MPT)
    norm_topk_prob: bool = True  # router probabilities of the chosen experts sum to one
    moe_layers: list[bool] | None = None  # layers whose MLP is a mixture of experts; None: all
    d_mlp_expert: int | None = None  # neurons of one expert; None: d_mlp
    gated_mlp_biases: bool = False  # gated MLPs add b_gate before the activation function and b_up to what it multiplies

    def __post_init__(self) -> None:
        self._check_names()
        self._fill_heads()
        self._fill_mlp()
        self._fill_rest()
        if self.seed is not None:
            self.set_seed_everywhere(self.seed)

    def _check_names(self) -> None:
        def one_of(field: str, known: tuple[Any, ...]) -> None:
            value = getattr(self, field)
            if value not in known:
                names = ", ".join(map(str, known))
                raise ConfigError(f"{field}={value!r} is not known{nearest(str(value), map(str, known))}; there are {names}")

        one_of("normalization_type", NORMALIZATIONS)
        one_of("positional_embedding_type", POSITIONS)
        one_of("attention_dir", ("causal", "bidirectional"))
        one_of("init_mode", INITS)
        one_of("qk_norm_over", ("head", "each", "full"))
        one_of("qk_norm_type", ("RMS", "LN"))
        if self.act_fn is not None:
            one_of("act_fn", ACTIVATIONS)
        self.dtype = as_dtype(self.dtype)
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Numbers that no model has would be answered by a hang, by no memory, or by NaN; so they are refused here."""
        for one in dataclasses.fields(self):
            self._check_number(one.name, getattr(self, one.name), str(one.type))
        for field in ("n_layers", "d_model", "n_ctx", "d_head"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < (field != "n_layers"):
                raise ConfigError(f"{field}={value!r} must be a positive whole number")
        optional = (
            *("d_mlp", "d_mlp_expert", "window_size", "num_experts", "experts_per_token", "n_key_value_heads", "rotary_dim"),
            *LENGTHS,
        )
        for field in optional:
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"{field}={value!r} must be a positive whole number, or None")
        for field in ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_vocab", "d_vocab_out", *optional):
            value, most = getattr(self, field), MOST_LAYERS if field in ("n_layers", "num_experts") else MOST
            if value is not None and value > most:
                raise ConfigError(f"{field}={value} is more than any model has; {most:,} is the most that is believed")
        if self.n_layers * (self.num_experts or 1) > 10 * MOST_LAYERS:
            raise ConfigError(f"{self.n_layers} layers of {self.num_experts} experts are more than any model has")
        for field in POSITIVE:
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ConfigError(f"{field}={value} must be positive")
        if self.eps <= 0 or not (self.attn_scale > 0 or self.attn_scale == -1.0):  # less would turn the mask's -inf into inf
            raise ConfigError(f"eps={self.eps} must be positive, and attn_scale={self.attn_scale} positive or -1 (√d_head)")
        if self.initializer_range > LARGEST_INIT:
            raise ConfigError(f"initializer_range={self.initializer_range} is beyond what any model has, {LARGEST_INIT:g}")

    def _check_number(self, field: str, value: Any, declared: str) -> None:
        """Beyond these bounds float32 has zero or infinity, and a whole number may be longer than any float."""
        if not declared.startswith(("int", "float")) or (value is None and declared.endswith("None")):
            return
        if declared.startswith("int"):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{field}={value!r} must be a whole number")
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise ConfigError(f"{field}={value!r} must be a finite number")
        if value and not SMALLEST <= abs(value) <= LARGEST:
            raise ConfigError(f"{field} is beyond what any model has: {SMALLEST:g} to {LARGEST:g} is believed (and zero)")
        setattr(self, field, float(value))

    def _fill_heads(self) -> None:
        if self.n_heads < 1 and self.n_heads != -1:
            raise ConfigError(f"n_heads={self.n_heads} must be a positive whole number")
        if self.n_heads == -1:
            self.n_heads = self.d_model // self.d_head
            if self.n_heads * self.d_head != self.d_model:
                raise ConfigError(f"d_model={self.d_model} is not a multiple of d_head={self.d_head}; give n_heads")
        kv = self.n_key_value_heads
        if kv is not None and (kv < 1 or self.n_heads % kv):
            raise ConfigError(f"n_heads={self.n_heads} is not a multiple of n_key_value_heads={kv}")
        if self.use_attn_scale and self.attn_scale == -1.0:
            self.attn_scale = self.d_head**0.5
        if self.use_local_attn:
            if self.window_size is None or self.attn_types is None:
                raise ConfigError("use_local_attn needs window_size and attn_types (one of 'global', 'local' per layer)")
            if len(self.attn_types) < self.n_layers or set(self.attn_types) - {"global", "local"}:
                raise ConfigError(
                    f"attn_types={self.attn_types} must name 'global' or 'local' for each of {self.n_layers} layers"
                )
        if self.positional_embedding_type == "rotary":
            self.rotary_dim = self.d_head if self.rotary_dim is None else self.rotary_dim
            if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.d_head:
                raise ConfigError(f"rotary_dim={self.rotary_dim} must be even and at most d_head={self.d_head}")
            self._check_longrope(self.rotary_dim // 2)
            self._check_blends()
        for field in ("rotary_layers", "moe_layers"):
            listed = getattr(self, field)
            if listed is not None and len(listed) < self.n_layers:
                raise ConfigError(f"{field} has {len(listed)} entries for {self.n_layers} layers")

    def _check_longrope(self, half: int) -> None:
        tables = {name: getattr(self, name) for name in ("longrope_short_factor", "longrope_long_factor")}
        if all(table is None for table in tables.values()):
            return
        for name, table in tables.items():
            if table is None or len(table) != half or not all(SMALLEST <= one <= LARGEST for one in table):
                raise ConfigError(f"{name}={table} must be {half} positive numbers, one for each pair that rotates")

    def _check_blends(self) -> None:
        """Rotations between two bounds are blended; bounds that coincide would be answered by a division by zero."""
        low, high = self.NTK_by_parts_low_freq_factor, self.NTK_by_parts_high_freq_factor
        if self.use_NTK_by_parts_rope and not low < high:
            raise ConfigError(f"NTK_by_parts_low_freq_factor={low} must be below NTK_by_parts_high_freq_factor={high}")
        if self.use_yarn_rope and not self.rotary_base > 1:
            raise ConfigError(f"rotary_base={self.rotary_base} must be more than 1: YaRN orders pairs by how fast they turn")

    def _fill_mlp(self) -> None:
        if self.attn_only:
            return
        if self.act_fn is None:
            raise ConfigError("act_fn is needed unless attn_only=True; there are " + ", ".join(ACTIVATIONS))
        self.d_mlp = 4 * self.d_model if self.d_mlp is None else self.d_mlp
        if self.num_experts is not None and self.act_fn == "xielu":
            raise ConfigError("act_fn='xielu' has weights of its own, and experts have none: leave out num_experts")
        if self.num_experts is not None and self.experts_per_token is None:
            raise ConfigError(f"num_experts={self.num_experts} needs experts_per_token")
        if self.num_experts is not None and self.experts_per_token is not None and self.experts_per_token > self.num_experts:
            raise ConfigError(f"experts_per_token={self.experts_per_token} of num_experts={self.num_experts}")

    def _fill_rest(self) -> None:
        if self.d_vocab_out == -1:
            self.d_vocab_out = self.d_vocab
        if self.initializer_range < 0:
            self.initializer_range = 0.8 / self.d_model**0.5 if self.init_mode == "gpt2" else 1.0
        if self.device is None:
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.n_params = self.n_layers * self.d_model * self.d_head * self.n_heads * 4
        if not self.attn_only:
            assert self.d_mlp is not None
            matrices = 3 if self.gated_mlp else 2
            for layer in range(self.n_layers):
                if self.is_moe(layer):
                    assert self.num_experts is not None
                    width = self.d_mlp_expert or self.d_mlp
                    self.n_params += self.d_model * (width * matrices + 1) * self.num_experts
                else:
                    self.n_params += self.d_model * self.d_mlp * matrices

    def __repr__(self) -> str:
        """The dialect's fields, one a line, as notebooks print and show them."""
        every = dataclasses.fields(self)
        beyond = [field.name for field in every].index("rotary_base_local") + 1
        later = [field for field in every[:beyond] if field.name.startswith(OF_VERSION_3)]  # shown where they say something
        hidden = {field.name for field in later if getattr(self, field.name) == field.default}
        shown = {field.name: getattr(self, field.name) for field in every[:beyond] if field.name not in hidden}
        if self.rotary_base == 10000:  # as it is given
            shown["rotary_base"] = 10000
        return f"{type(self).__name__}:\n{pprint.pformat(shown)}"

    # What the rest of the code asks.

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: fewer than `n_heads` with grouped queries."""
        return self.n_key_value_heads or self.n_heads

    @property
    def takes_longer(self) -> bool:
        """Whether the same weights can be loaded with more positions: a published model whose positions are computed."""
        computed = self.positional_embedding_type not in ("standard", "shortformer")
        return computed and self.original_architecture is not None

    @property
    def n_params_total(self) -> int:
        """All parameters: `n_params`, embeddings, positions and unembedding (norms and biases, a thousandth of them, aside)."""
        positions = self.n_ctx if self.positional_embedding_type in ("standard", "shortformer") else 0
        return (self.n_params or 0) + self.d_model * (self.d_vocab + positions + self.d_vocab_out)

    @property
    def torch_dtype(self) -> torch.dtype:
        assert isinstance(self.dtype, torch.dtype)
        return self.dtype

    @property
    def has_mlp_norm(self) -> bool:
        """Whether each MLP has a LayerNorm after its activation (SoLU and GeLU with `_ln`)."""
        return bool(self.act_fn and self.act_fn.endswith("_ln"))

    @property
    def has_resid_mid(self) -> bool:
        """Whether the stream has a state between attention and MLP: not in parallel blocks, nor without MLPs."""
        return not self.parallel_attn_mlp and not self.attn_only

    @property
    def has_post_norms(self) -> bool:
        """Whether what attention and MLP put out is normalised before it joins the residual stream."""
        return (self.use_normalization_before_and_after or self.post_norm_only) and self.normalization_type is not None

    def is_layer_norm_activation(self) -> bool:
        """The dialect's name for `has_mlp_norm`."""
        return self.has_mlp_norm

    def window(self, layer: int) -> int | None:
        """How many positions back (itself included) attention of this layer may look; None: all."""
        local = self.use_local_attn and self.attn_types is not None and self.attn_types[layer] == "local"
        return self.window_size if local else None

    def rotates(self, layer: int) -> bool:
        """Whether queries and keys of this layer are rotated."""
        if self.positional_embedding_type != "rotary":
            return False
        return self.rotary_layers is None or self.rotary_layers[layer]

    def is_moe(self, layer: int) -> bool:
        """Whether the MLP of this layer is a mixture of experts."""
        return self.num_experts is not None and (self.moe_layers is None or self.moe_layers[layer])

    # The dialect's methods.

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> HookedTransformerConfig:
        """A configuration from a dictionary; an unknown field is refused by name."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in config_dict:
            if name not in known:
                raise ConfigError(f"no configuration field called {name!r}{nearest(name, known)}")
        missing = [name for name in ("n_layers", "d_model", "n_ctx", "d_head") if name not in config_dict]
        if missing:
            raise ConfigError(f"the configuration lacks {', '.join(missing)}")
        return cls(**config_dict)

    @classmethod
    def unwrap(cls, config: dict[str, Any] | HookedTransformerConfig) -> HookedTransformerConfig:
        """A configuration from either a dictionary or a configuration."""
        return cls.from_dict(config) if isinstance(config, dict) else config

    def to_dict(self) -> dict[str, Any]:
        """All fields, as they are."""
        return dict(self.__dict__)

    def set_seed_everywhere(self, seed: int) -> None:
        """Seed Python, NumPy and Torch, globally.

        Raises:
            ConfigError: NumPy has no such seed.
        """
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed={seed} must be from 0 to 2**32 - 1")
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
