"""The table of aliases: which name of `transformer_lens` and `circuitsvis` is which object of cutaway.

A target is `module:attribute`, or `module`; `*` stands for every name in a module's `__all__`.
"""

from __future__ import annotations

ROOTS = ("transformer_lens", "circuitsvis")
IMPORTED_WHOLE = ("utils",)  # modules that most modules of `transformer_lens` have as a name of theirs
IF_ABSENT = ("fancy_einsum",)  # aliased where the original is not installed

TRANSFORMER = "cutaway.hooked_transformer:HookedTransformer"
CONFIG = "cutaway.config:HookedTransformerConfig"
CACHE = "cutaway.runs.activation_cache:ActivationCache"
FACTORED = "cutaway.model.factored_matrix:FactoredMatrix"
POINT = "cutaway.model.hook_points:HookPoint"
ROOT_MODULE = "cutaway.model.hooked_root:HookedRootModule"
SVD = "cutaway.compat.svd_interpreter:SVDInterpreter"
KEPT = "cutaway.model.key_values:KeyValueCache"
KEPT_ENTRY = "cutaway.model.key_values:KeyValues"

UTILS = {"*": "cutaway.compat.utils"}
COMPONENTS = {"*": "cutaway.compat.components"}
# Every family of decoders is converted by the one function, since the model says its family.
_DECODERS = "apertus bloom coder gemma gpt2 gpt_oss gptj llama mistral mixtral neo neox openai opt phi phi3 qwen qwen2 qwen3"
_FAMILIES = tuple(_DECODERS.split())
CONVERSIONS = {f"convert_{family}_weights": "cutaway.compat.loading:converted" for family in _FAMILIES}
LOADING = {"*": "cutaway.compat.loading"} | CONVERSIONS
CONFIGS = {"HookedTransformerConfig": CONFIG, "TransformerLensConfig": CONFIG}
# Names of TransformerLens 3, where they are not those of 2.
KEPT_LATER = {"TransformerLensKeyValueCache": KEPT, "TransformerLensKeyValueCacheEntry": KEPT_ENTRY}

_SVD_NAMES = ("OUTPUT_EMBEDDING", "VECTOR_TYPES")
_PARTS: dict[str, dict[str, str]] = {
    "ActivationCache": {"ActivationCache": CACHE},
    "FactoredMatrix": {"FactoredMatrix": FACTORED},
    "HookedRootModule": {"HookedRootModule": ROOT_MODULE},
    "HookedTransformer": {
        "HookedTransformer": TRANSFORMER,
        "Output": "cutaway.model.transformer:Output",
        "HookedRootModule": ROOT_MODULE,
        "HookedTransformerConfig": CONFIG,
        "HookPoint": POINT,
        "ActivationCache": CACHE,
        "FactoredMatrix": FACTORED,
        "HookedTransformerKeyValueCache": KEPT,
        "DTYPE_FROM_STRING": "cutaway.config:DTYPES",
        "Loss": "torch:Tensor",
        "devices": "transformer_lens.utilities.devices",
        "loading": "transformer_lens.loading_from_pretrained",
    },
    "HookedTransformerConfig": {"HookedTransformerConfig": CONFIG},
    "SVDInterpreter": {"SVDInterpreter": SVD, **{name: f"cutaway.compat.svd_interpreter:{name}" for name in _SVD_NAMES}},
    "cache": {part: f"transformer_lens.cache.{part}" for part in ("key_value_cache", "key_value_cache_entry")},
    "cache.key_value_cache": KEPT_LATER,
    "cache.key_value_cache_entry": KEPT_LATER,
    "components": COMPONENTS,
    "config": CONFIGS | {"hooked_transformer_config": "transformer_lens.config.hooked_transformer_config"},
    "config.HookedTransformerConfig": CONFIGS,
    "config.TransformerLensConfig": CONFIGS,
    "config.hooked_transformer_config": CONFIGS,
    "evals": {"*": "cutaway.compat.evals"},
    "head_detector": {"*": "cutaway.compat.head_detector"},
    "hook_points": {
        "HookPoint": POINT,
        "HookedRootModule": ROOT_MODULE,
        "HookFunction": "cutaway.model.hook_points:HookFunction",
        "LensHandle": "cutaway.model.listeners:Listener",
        "NamesFilter": "cutaway.model.hook_points:NamesFilter",
    },
    "loading": LOADING,
    "loading_from_pretrained": LOADING,
    "past_key_value_caching": {
        "HookedTransformerKeyValueCache": KEPT,
        "HookedTransformerKeyValueCacheEntry": KEPT_ENTRY,
    },
    "patching": {"*": "cutaway.analysis.patching"},
    "pretrained": {"weight_conversions": "transformer_lens.pretrained.weight_conversions"},
    "pretrained.weight_conversions": CONVERSIONS
    | {family: f"transformer_lens.pretrained.weight_conversions.{family}" for family in _FAMILIES},
    **{f"pretrained.weight_conversions.{family}": CONVERSIONS for family in _FAMILIES},
    "torchtyping_helper": {"T": "cutaway.compat.utils:T"},
    "train": {"*": "cutaway.compat.train"},
    "utilities": UTILS,
    "utils": UTILS,
}
# Files that the originals split these modules into; each answers with all names of the whole.
_SPLIT = {
    "components": (
        "abstract_attention attention embed grouped_query_attention layer_norm layer_norm_pre mlps mlps.gated_mlp "
        "mlps.gated_mlp_4bit mlps.mlp "
        "mlps.can_be_used_as_mlp mlps.moe pos_embed rms_norm rms_norm_pre transformer_block unembed"
    ),
    "utilities": (
        "activation_functions addmm attention attribute_utils components_utils defaults_utils devices exploratory_utils "
        "gpu_utils hf_utils initialization_utils library_utils lm_utils logits_utils slice tensors tensor_utils tokenize_utils"
    ),
}
_PARTS |= {f"{whole}.{part}": _PARTS[whole] for whole, parts in _SPLIT.items() for part in parts.split()}
for _whole, _parts in _SPLIT.items():
    _PARTS[_whole] = _PARTS[_whole] | {part: f"transformer_lens.{_whole}.{part}" for part in _parts.split() if "." not in part}

_DEVICES = (
    "AvailableDeviceMemory calculate_available_device_cuda_memory determine_available_memory_for_available_devices "
    "get_best_available_cuda_device get_best_available_device get_device_for_block_index move_to_and_update_config "
    "sort_devices_based_on_available_memory"
)
_FACTORIES = {name: f"cutaway.compat.factories:{name}" for name in ("ActivationFunctionFactory", "MLPFactory")}
_PARTS |= {
    "factories": {"*": "cutaway.compat.factories"},
    "factories.activation_function_factory": _FACTORIES,
    "factories.mlp_factory": _FACTORIES,
    "utilities.devices": UTILS | {name: f"cutaway.compat.devices:{name}" for name in _DEVICES.split()},
    "utilities.activation_functions": UTILS
    | {name: f"cutaway.compat.factories:{name}" for name in ("SUPPORTED_ACTIVATIONS", "ActivationFunction", "XIELU", "xielu")},
}

_ROOT = {
    "ActivationCache": CACHE,
    "EasyTransformer": TRANSFORMER,
    "EasyTransformerConfig": CONFIG,
    "EasyTransformerKeyValueCache": KEPT,
    "EasyTransformerKeyValueCacheEntry": KEPT_ENTRY,
    "FactoredMatrix": FACTORED,
    "HookedRootModule": ROOT_MODULE,
    "HookedTransformer": TRANSFORMER,
    "HookedTransformerConfig": CONFIG,
    "HookedTransformerKeyValueCache": KEPT,
    "HookedTransformerKeyValueCacheEntry": KEPT_ENTRY,
    "SVDInterpreter": SVD,
    **KEPT_LATER,
    "__version__": "cutaway:__version__",
}
_ROOT |= {part: f"transformer_lens.{part}" for part in _PARTS if "." not in part and part not in _ROOT}

_VISUALS = {
    "activations": ("text_neuron_activations",),
    "attention": ("attention_heads", "attention_pattern", "attention_patterns"),
    "examples": ("hello",),
    "logits": ("token_log_probs",),
    "tokens": ("colored_tokens", "colored_tokens_multi", "visualize_model_performance"),
    "topk_samples": ("topk_samples",),
    "topk_tokens": ("topk_tokens",),
}
_FORKED = ("from_cache", "from_values", "get_weighted_attention")

MODULES: dict[str, dict[str, str]] = {
    "transformer_lens": _ROOT,
    **{f"transformer_lens.{part}": names for part, names in _PARTS.items()},
    "circuitsvis": {part: f"circuitsvis.{part}" for part in (*_VISUALS, "utils")} | {"__version__": "cutaway:__version__"},
    **{f"circuitsvis.{part}": {name: f"cutaway.compat.visuals:{name}" for name in names} for part, names in _VISUALS.items()},
    "circuitsvis.utils": {"render": "circuitsvis.utils.render"},
    "circuitsvis.utils.render": {
        "RenderedHTML": "cutaway.compat.rendered:Rendered",
        **{name: f"cutaway.compat.visuals:{name}" for name in ("render", "render_cdn", "render_local")},
    },
}
MODULES["fancy_einsum"] = {"einsum": "cutaway.compat.einsums:einsum"}
MODULES["circuitsvis.attention"] |= {name: f"cutaway.compat.forked:{name}" for name in _FORKED}
"""Full module name → its names → where each is."""

_ENCODERS = "cutaway is about decoders, and loads no encoders"
_ENCODERS_PARTS = (
    "BertBlock BertEmbed BertMLMHead BertNSPHead BertPooler TokenTypeEmbed T5Attention T5Block bert_block bert_embed "
    "bert_mlm_head bert_nsp_head bert_pooler t5_attention t5_block token_typed_embed"
)
_BRIDGE = "HookedTransformer.from_pretrained loads the same models, and transformers' own live ones with hf_model="
_TABLES = "from_pretrained(name, hf_model=...) converts live models, and from_pretrained(folder) files; other layouts, by hand"
ELSEWHERE = {
    "BertNextSentencePrediction": _ENCODERS,
    "HookedAudioEncoder": _ENCODERS,
    "HookedEncoder": _ENCODERS,
    "HookedEncoderDecoder": _ENCODERS,
    **dict.fromkeys(_ENCODERS_PARTS.split(), _ENCODERS),
    "TransformerBridge": _BRIDGE,
    "model_bridge": _BRIDGE,
    "HookedSAE": "sparse autoencoders live in packages of their own; their weights are plain tensors in a hook",
    "HookedSAETransformer": "sparse autoencoders live in packages of their own; their weights are plain tensors in a hook",
    **{f"convert_{family}_weights": _TABLES for family in ("mingpt", "nanogpt", "neel_solu_old")},
    **{f"convert_{family}_weights": _ENCODERS for family in ("bert", "hubert", "t5")},
    "lit": "LIT is not supported; figures come from cutaway.view",
    "attribution": "see cutaway.analysis.attribution, which takes a model or a cache",
}
"""Names of the originals that have no counterpart, and what to do instead."""
