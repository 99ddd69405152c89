"""Names and small behaviours that published notebooks and libraries rely on: the lists are kept here."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest
import torch

from cutaway import CharTokenizer, compat
from cutaway.compat import utils
from cutaway.compat.components import CanBeUsedAsMLP, GatedMLP4Bit
from cutaway.compat.evals import IOIDataset
from cutaway.compat.factories import XIELU, xielu
from cutaway.config import HookedTransformerConfig, as_dtype
from cutaway.errors import ConfigError, ShapeError, TokenError, UnknownName, WeightsMismatch
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model.attention import Attention
from cutaway.model.factored_matrix import FactoredMatrix
from cutaway.model.key_values import KeyValueCache, KeyValues
from cutaway.model.norm import LayerNorm
from cutaway.sources import hub
from tests.architectures import network, some_tokens

MODULES = {
    "transformer_lens": "ActivationCache EasyTransformer FactoredMatrix HookedTransformer HookedTransformerConfig evals "
    "utils patching "
    "head_detector hook_points components train loading_from_pretrained torchtyping_helper SVDInterpreter",
    "transformer_lens.HookedTransformer": "HookedRootModule Loss HookPoint HookedTransformerConfig HookedTransformer Output "
    "ActivationCache FactoredMatrix HookedTransformerKeyValueCache DTYPE_FROM_STRING loading utils devices LayerNorm Embed "
    "TransformerBlock USE_DEFAULT_VALUE init_xavier_normal_ NON_HF_HOSTED_MODEL_NAMES",
    "transformer_lens.ActivationCache": "ActivationCache Slice SliceInput utils",
    "transformer_lens.patching": "generic_activation_patch ActivationCache HookedTransformer utils make_df_from_ranges "
    "layer_pos_patch_setter get_act_patch_block_every get_act_patch_attn_head_all_pos_every get_act_patch_attn_head_by_pos_every",
    "transformer_lens.utilities.addmm": "vanilla_addmm batch_addmm",
    "transformer_lens.HookedTransformerConfig": "HookedTransformerConfig",
    "transformer_lens.config.HookedTransformerConfig": "HookedTransformerConfig",
    "transformer_lens.config.TransformerLensConfig": "TransformerLensConfig",
    "transformer_lens.cache.key_value_cache": "TransformerLensKeyValueCache",
    "transformer_lens.cache.key_value_cache_entry": "TransformerLensKeyValueCacheEntry",
    "transformer_lens.HookedRootModule": "HookedRootModule",
    "transformer_lens.SVDInterpreter": "SVDInterpreter VECTOR_TYPES OUTPUT_EMBEDDING",
    "transformer_lens.hook_points": "HookPoint HookedRootModule HookFunction LensHandle NamesFilter Slice SliceInput",
    "transformer_lens.components": "Embed Unembed PosEmbed LayerNorm LayerNormPre RMSNorm RMSNormPre Attention "
    "AbstractAttention "
    "GroupedQueryAttention MLP GatedMLP MoE TransformerBlock",
    "transformer_lens.components.mlps.can_be_used_as_mlp": "CanBeUsedAsMLP",
    "transformer_lens.components.mlps.gated_mlp_4bit": "GatedMLP4Bit",
    "transformer_lens.factories.mlp_factory": "MLPFactory",
    "transformer_lens.factories.activation_function_factory": "ActivationFunctionFactory",
    "transformer_lens.utilities.activation_functions": "SUPPORTED_ACTIVATIONS ActivationFunction XIELU xielu solu gelu_new",
    "transformer_lens.utilities.devices": "get_device_for_block_index get_best_available_device move_to_and_update_config",
    "transformer_lens.utilities.attention": "simple_attn_linear complex_attn_linear",
    "transformer_lens.utils": "get_act_name to_numpy test_prompt Slice lm_cross_entropy_loss lm_accuracy sample_logits "
    "gelu_new "
    "gelu_fast solu get_corner remove_batch_dim composition_scores transpose is_square is_lower_triangular check_structure "
    "get_device "
    "tokenize_and_concatenate get_dataset keep_single_column get_attention_mask get_offset_position_ids print_gpu_mem "
    "download_file_from_hf clear_huggingface_cache USE_DEFAULT_VALUE get_tokens_with_bos_removed",
    "transformer_lens.loading_from_pretrained": "get_basic_config get_pretrained_model_config get_official_model_name "
    "OFFICIAL_MODEL_NAMES MODEL_ALIASES DEFAULT_MODEL_ALIASES make_model_alias_map get_checkpoint_labels fill_missing_keys "
    "Config get_pretrained_state_dict get_num_params_of_pretrained PYTHIA_V0_CHECKPOINTS STANFORD_CRFM_CHECKPOINTS "
    "convert_gpt2_weights convert_neox_weights convert_llama_weights",
    "transformer_lens.head_detector": "detect_head ErrorMeasure LayerHeadTuple LayerToHead INVALID_HEAD_NAME_ERR SEQ_LEN_ERR "
    "DET_PAT_NOT_SQUARE_ERR HEAD_NAMES HeadName is_square is_lower_triangular compute_head_attention_similarity_score "
    "get_previous_token_head_detection_pattern get_duplicate_token_head_detection_pattern get_induction_head_detection_pattern",
    "transformer_lens.evals": "IOIDataset ioi_eval sanity_check evaluate induction_loss evaluate_on_dataset "
    "make_pile_data_loader make_owt_data_loader make_wiki_data_loader make_code_data_loader DATASET_NAMES DATASET_LOADERS",
    "transformer_lens.past_key_value_caching": "HookedTransformerKeyValueCache HookedTransformerKeyValueCacheEntry",
    "transformer_lens.torchtyping_helper": "T",
    "circuitsvis.utils.render": "RenderedHTML render render_cdn render_local",
    "transformers.models.gpt2.tokenization_gpt2_fast": "GPT2TokenizerFast",
    "transformers.models.llama.tokenization_llama_fast": "LlamaTokenizerFast",
    "transformers.generation_utils": "GenerationMixin",
}
ON_A_MODEL = (
    "input_to_embed get_residual get_pos_offset check_and_add_hook sample_datapoint load_sample_training_dataset hook_dict "
    "mod_dict "
    "add_caching_hooks get_caching_hooks check_hooks_to_add to_single_token to_single_str_token get_token_position "
    "accumulated_bias "
    "all_composition_scores all_head_labels center_writing_weights center_unembed fold_layer_norm fold_value_biases "
    "process_weights_ "
    "load_and_process_state_dict fill_missing_keys move_model_modules_to_device "
    "set_use_attn_result set_use_split_qkv_input set_use_attn_in set_use_hook_mlp_in QK OV W_E "
    "W_U b_U W_pos W_E_pos W_Q W_K W_V W_O W_in W_out b_Q b_K b_V b_O b_in b_out add_perma_hook remove_all_hook_fns reset_hooks "
    "tokens_to_residual_directions set_ungroup_grouped_query_attention refactor_factored_attn_matrices"
)
ON_A_CACHE = (
    "compute_head_results stack_head_results stack_neuron_results stack_activation get_neuron_results decompose_resid "
    "accumulated_resid apply_ln_to_stack logit_attrs get_full_resid_decomposition apply_slice_to_batch_dim remove_batch_dim "
    "toggle_autodiff to items keys values cache_dict has_batch_dim has_embed has_pos_embed"
)
ON_A_FACTORED_MATRIX = (
    "A B AB BA T U S Vh svd eigenvalues norm collapse_l collapse_r make_even get_corner pair ndim rdim ldim mdim shape unsqueeze "
    "has_leading_dims"
)
ON_ATTENTION = (
    "mask IGNORE QK OV apply_rotary apply_causal_mask calculate_sin_cos_rotary "
    "calculate_qkv_matrices calculate_attention_scores calculate_z_scores "
    "W_Q W_K W_V "
    "W_O b_Q b_K b_V b_O hook_q hook_k hook_v hook_z hook_pattern hook_attn_scores hook_result"
)


@pytest.fixture(autouse=True)
def aliases() -> object:
    compat.install()
    yield
    compat.uninstall()


@pytest.mark.parametrize("module", MODULES)
def test_names_that_published_sources_import(module: str) -> None:
    lacking = [name for name in MODULES[module].split() if not hasattr(import_module(module), name)]
    assert lacking == []


def test_attributes_that_published_sources_use() -> None:
    model = network("gpt2")
    assert [name for name in ON_A_MODEL.split() if not hasattr(model, name)] == []
    assert [name for name in ON_ATTENTION.split() if not hasattr(model.blocks[0].attn, name)] == []
    cache = model.run_with_cache(some_tokens())[1]
    assert [name for name in ON_A_CACHE.split() if not hasattr(cache, name)] == []
    assert [name for name in ON_A_FACTORED_MATRIX.split() if not hasattr(model.QK, name)] == []
    everything = sum(parameter.numel() for name, parameter in model.named_parameters() if ".W_" in name)
    assert model.cfg.n_params_total == everything


def test_parameters_come_in_the_order_of_the_dialect() -> None:
    """TransformerLens 2.18 of the same configuration; a seed draws weights in this order."""
    block = [name.removeprefix("blocks.0.") for name, _ in network("gpt2").named_parameters() if name.startswith("blocks.0.")]
    attention = [f"attn.{name}" for name in ("W_Q", "W_O", "b_Q", "b_O", "W_K", "W_V", "b_K", "b_V")]
    assert block[:12] == ["ln1.w", "ln1.b", "ln2.w", "ln2.b", *attention]
    assert block[12:] == ["mlp.W_in", "mlp.b_in", "mlp.W_out", "mlp.b_out"]
    gated = [name.removeprefix("blocks.0.") for name, _ in network("llama").named_parameters() if name.startswith("blocks.0.mlp")]
    assert gated == ["mlp.W_in", "mlp.W_out", "mlp.W_gate", "mlp.b_in", "mlp.b_out"]


@torch.no_grad()
def test_kept_keys_and_values_may_be_built_by_hand() -> None:
    model, tokens = network("gpt2"), some_tokens()
    _, cache = model.run_with_cache(tokens[:, :5])
    entries = [KeyValues(past_keys=cache["k", layer], past_values=cache["v", layer]) for layer in (0, 1)]
    kept = KeyValueCache(entries=entries, previous_attention_mask=torch.ones(3, 5, dtype=torch.long))
    torch.testing.assert_close(model(tokens[:, 5:], past_kv_cache=kept), model(tokens)[:, 5:])
    assert KeyValues.init_cache_entry(model.cfg, "cpu", 3).past_keys.shape == (3, 0, 4, 6)
    with pytest.raises(ShapeError, match="equally many positions"):
        KeyValueCache(entries=entries[:1], previous_attention_mask=torch.ones(3, 4, dtype=torch.long))


@pytest.mark.parametrize("error", [ConfigError, ShapeError, TokenError])
def test_where_the_dialect_asserts_our_errors_are_assertion_errors_too(error: type[Exception]) -> None:
    assert issubclass(error, AssertionError) and issubclass(error, ValueError)
    assert issubclass(WeightsMismatch, RuntimeError)  # as PyTorch's own
    assert issubclass(UnknownName, ValueError)  # names of models, subjects and detectors


def test_one_row_is_decoded_token_by_token_while_the_aliases_stand() -> None:
    code = (
        "import torch, transformers, cutaway.compat as c\n"
        "from tokenizers import Tokenizer, models\n"
        "words = Tokenizer(models.WordLevel({'a': 0, 'b': 1, 'u': 2}, unk_token='u'))\n"
        "tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)\n"
        "plain = tokenizer.batch_decode([0, 1])\n"
        "c.install()\n"
        "assert tokenizer.batch_decode(torch.tensor([0, 1])) == tokenizer.batch_decode([0, 1]) == ['a', 'b']\n"
        "assert tokenizer.batch_decode(torch.tensor([[0, 1]])) == ['a b'] and tokenizer.batch_decode([[0], [1]]) == ['a', "
        "'b']\n"
        "c.uninstall()\n"
        "assert tokenizer.batch_decode([0, 1]) == plain\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_sentences_are_those_of_the_dialect_unless_a_seed_is_given() -> None:
    samples = IOIDataset(None, num_samples=4).samples
    assert all(sample == samples[0] for sample in samples)
    seeded = [IOIDataset(None, num_samples=40, seed=seed).samples for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2] and len({sample["text"] for sample in seeded[0]}) > 5


@pytest.mark.parametrize(("name", "length"), [("tiny-stories-33M", 512), ("roneneldan/TinyStories-1M", 512), ("gpt2", None)])
def test_models_are_as_long_as_they_are_there(name: str, length: int | None) -> None:
    assert hub.usual_length(name) == length


def test_figures_by_the_names_of_components() -> None:
    from cutaway.compat.visuals import render, render_cdn

    attention = torch.full((2, 3, 3), 0.5)
    figure = render("AttentionPatterns", tokens=["a", "b", "c"], attention=attention, attentionHeadNames=["x", "y"])
    assert "x" in str(figure) and render_cdn("Hello", name="you").startswith("<")


def letters() -> CharTokenizer:
    return CharTokenizer("abcdefghij?_", bos_token="?", eos_token="?", pad_token="_")


def test_a_model_pads_on_the_side_that_its_tokenizer_says() -> None:
    theirs = letters()
    model = network("gpt2")
    model.set_tokenizer(theirs, default_padding_side="left")
    assert model.tokenizer.padding_side == "left" and theirs.padding_side == "right"
    texts = ["ab", "abcd"]
    for side, column in (("left", 0), ("right", -1)):
        model.tokenizer.padding_side = side
        tokens = model.to_tokens(texts)
        assert tokens[0, column] == theirs.pad_token_id and model.default_padding_side == side
        mask = utils.get_attention_mask(model.tokenizer, tokens, True).bool()
        torch.testing.assert_close(model(texts)[0][mask[0]], model("ab")[0])
    with utils.LocallyOverridenDefaults(model, padding_side="left"):
        assert model.tokenizer.padding_side == "left"
    assert model.tokenizer.padding_side == "right" == theirs.padding_side


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-j", "llama", "gemma", "bloom"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_before_kept_tokens_is_hidden_on_either_side(architecture: str, side: str) -> None:
    model = network(architecture)
    model.set_tokenizer(letters())
    first, then = ["abc", "abcdef"], ["gh", "ij"]
    kept = KeyValueCache.init_cache(model.cfg, "cpu", 2)
    model(model.to_tokens(first, padding_side=side), past_kv_cache=kept, padding_side=side)
    after = model(model.to_tokens(then, prepend_bos=False), past_kv_cache=kept, prepend_bos=False)
    for row, whole in enumerate(one + two for one, two in zip(first, then, strict=True)):
        torch.testing.assert_close(after[row], model(whole)[0, -2:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt-j"])
def test_rotary_tables_rotate_as_the_network_does(architecture: str) -> None:
    attention, x = network(architecture).blocks[1].attn, torch.randn(2, 5, 4, 6)
    turned, dim = attention.apply_rotary(x, 3), attention.cfg.rotary_dim
    sin, cos = (table[None, 3:8, None] for table in (attention.rotary_sin, attention.rotary_cos))
    by_table = x[..., :dim] * cos + attention.rotate_every_two(x[..., :dim]) * sin
    torch.testing.assert_close(turned, torch.cat([by_table, x[..., dim:]], -1))
    assert set(attention.state_dict()) >= {"mask", "IGNORE", "rotary_sin", "rotary_cos"}
    assert not hasattr(network("gpt2").blocks[0].attn, "rotary_sin")
    sin, cos = attention.calculate_sin_cos_rotary(dim, attention.cfg.n_ctx)
    torch.testing.assert_close(sin, attention.rotary_sin)
    torch.testing.assert_close(cos, attention.rotary_cos)


def test_a_block_applies_its_mlp() -> None:
    for architecture in ("gpt2", "gemma"):
        block = network(architecture).blocks[0]
        x, seen = torch.randn(2, 3, 24), []
        block.hook_mlp_out.add_hook(lambda out, hook: seen.append(out))  # noqa: B023
        out = block.apply_mlp(x)
        assert seen and torch.equal(out, seen[0])
    weight, bias = torch.randn(3, 4), torch.randn(4)
    rows = torch.randn(2, 5, 3)
    addmm = import_module("transformer_lens.utilities.addmm")
    torch.testing.assert_close(addmm.batch_addmm(bias, weight, rows), rows @ weight + bias)


def test_missing_keys_are_filled_and_the_configuration_shows_itself() -> None:
    model = network("gpt2")
    filled = model.fill_missing_keys({"embed.W_E": torch.zeros(13, 24)})
    assert set(filled) == set(model.state_dict()) and not filled["embed.W_E"].any()
    assert repr(model.cfg) == str(model.cfg) and "\n 'n_layers': 2,\n" in repr(model.cfg)
    assert as_dtype("bf16") is torch.bfloat16


def test_what_is_done_is_said_while_the_aliases_stand(capsys: pytest.CaptureFixture[str]) -> None:
    model = HookedTransformer.from_pretrained("cutaway-attn-only-2l")
    model.to("cpu").to(torch.float32)
    model.to("cpu", print_details=False)
    _, cache = model.run_with_cache(torch.arange(4)[None])
    cache.stack_head_results(1, pos_slice=-1)
    cache.stack_head_results(1)
    assert capsys.readouterr().out.splitlines() == [
        "Loaded pretrained model cutaway-attn-only-2l into HookedTransformer",
        "Moving model to device:  cpu",
        "Changing model dtype to torch.float32",
        "Tried to stack head results when they weren't cached. Computing head results now",
    ]
    compat.uninstall()
    model.to("cpu")
    assert capsys.readouterr().out == "" and "\n" not in repr(model)


def test_models_and_caches_show_all_their_parts_while_the_aliases_stand() -> None:
    model = network("gpt2")
    shown = [line.strip().partition(":")[0] for line in repr(model).splitlines()]
    attention = ["hook_k", "hook_q", "hook_v", "hook_z", "hook_attn_scores", "hook_pattern", "hook_result"]
    assert shown[1:4] == ["(embed)", "(hook_embed)", "(pos_embed)"] and "(q_norm)" not in shown
    start = shown.index("(attn)") + 1
    assert shown[start : start + 7] == [f"({name})" for name in attention]
    _, cache = model.run_with_cache(some_tokens())
    assert repr(cache) == f"ActivationCache with keys {list(cache.keys())}"


def test_masks_that_a_state_dict_lacks_are_among_what_is_missing() -> None:
    model = network("gpt2")
    every, W_E = list(model.state_dict()), model.W_E.detach()
    missing, unexpected = model.load_state_dict({"embed.W_E": W_E, "other": W_E}, strict=False)
    assert missing == [name for name in every if name != "embed.W_E"] and "blocks.1.attn.IGNORE" in missing
    assert unexpected == ["other"] and model.load_state_dict(model.state_dict(), strict=False).missing_keys == []


def test_refactored_heads_have_the_signs_of_the_dialect() -> None:
    model = network("gpt2")
    even = model.refactor_factored_attn_matrices(model.state_dict())
    U, _, V = FactoredMatrix(model.W_V[1], model.W_O[1]).svd()
    assert bool(((U * even["blocks.1.attn.W_V"]).sum(-2) > 0).all())
    assert bool(((V.mT * even["blocks.1.attn.W_O"]).sum(-1) > 0).all())


def test_the_configuration_of_no_device_is_that_of_the_dialect() -> None:
    cfg = HookedTransformerConfig(1, 8, 4, 4, act_fn="relu", d_vocab=3)
    assert cfg.device == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert "'rotary_base': 10000,\n" in repr(cfg) and "'rotary_base_local': None" in repr(cfg) and "yarn" not in repr(cfg)
    assert "'yarn_factor': 2.0" in repr(HookedTransformerConfig(1, 8, 4, 4, act_fn="relu", d_vocab=3, yarn_factor=2.0))


def test_going_through_a_cache_after_heads_were_stacked_finds_their_results() -> None:
    model, tokens = network("gpt2"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    before = list(cache.keys())
    cache.stack_head_results(1, pos_slice=-1)
    results = [f"blocks.{layer}.attn.hook_result" for layer in (0, 1)]
    one = cache.apply_slice_to_batch_dim(0)
    assert list(cache) == [*before, *results] == list(one) and len(cache) == len(before) + 2
    expected = torch.einsum("bphd,hdm->bphm", cache["z", 1], model.W_O[1])
    torch.testing.assert_close(dict(cache.items())[results[1]], expected)
    torch.testing.assert_close(one["result", 1], expected[0])


def test_alibi_by_the_names_of_the_dialect() -> None:
    bias = Attention.create_alibi_bias(6, 5)
    slopes = Attention.create_alibi_multipliers(6)
    torch.testing.assert_close(bias, slopes[:, None, None] * Attention.create_alibi_slope(5))
    assert Attention.create_alibi_slope(3).tolist() == [[0, 0, 0], [-1, 0, 0], [-2, -1, 0]]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_layer_takes_its_own_state_dict(architecture: str) -> None:
    old, new = network(architecture).blocks[0].attn, network(architecture, seed=7).blocks[0].attn
    old.IGNORE = -1e5
    old.mask = old.mask & (torch.arange(len(old.mask)) != 2)
    missing, unexpected = new.load_state_dict(old.state_dict())
    assert not missing and not unexpected and torch.equal(new.W_Q, old.W_Q)
    assert new.IGNORE == -1e5 and torch.equal(new.mask, old.mask)


def test_a_handle_takes_its_hook_off() -> None:
    model, seen = network("gpt2"), []
    model.add_hook("hook_embed", lambda x, hook: seen.append(1))
    model.add_hook("hook_embed", lambda x, hook: seen.append(2))
    first, second = model.hook_embed.fwd_hooks
    assert first.hook.id != second.hook.id
    first.hook.remove()
    model(some_tokens())
    assert seen == [2] and model.hook_embed.fwd_hooks == [second]
    model.reset_hooks()


def test_small_behaviours_that_sources_rely_on() -> None:
    theirs = letters()
    cfg = {"n_layers": 1, "d_model": 8, "n_ctx": 16, "d_head": 4, "act_fn": "relu", "d_vocab": 0, "device": "cpu"}
    from_tokenizer = import_module("transformer_lens").HookedTransformer(cfg, theirs)
    assert from_tokenizer.cfg.d_vocab == from_tokenizer.W_U.shape[1] == 12
    assert utils.get_act_name("z", torch.tensor(3)) == "blocks.3.attn.hook_z"
    model, tokens = network("gpt2"), some_tokens()
    streams = model.run_with_cache(tokens, names_filter=lambda name: "resid" in name)[0]
    assert torch.equal(streams, model(tokens))  # a cache that leaves attention on its path moves no bit


def test_hooks_attached_by_the_underscored_names_go_with_their_level() -> None:
    model, seen = network("gpt2"), []

    def note(x: torch.Tensor, hook: Any) -> None:
        seen.append(hook.name)

    with model.hooks():
        model._enable_hook("hook_embed", note, "fwd")
        model._enable_hook(lambda name: name.endswith("hook_z"), note, "fwd")
        model._enable_hooks_for_points(model.hook_dict.items(), lambda name: name == "ln_final.hook_scale", note, "fwd")
        model(some_tokens())
    assert seen == ["hook_embed", "blocks.0.attn.hook_z", "blocks.1.attn.hook_z", "ln_final.hook_scale"]
    model(some_tokens())
    assert len(seen) == 4


@pytest.mark.parametrize("family, module", [("gpt2", "loading_from_pretrained"), ("llama", "pretrained.weight_conversions")])
def test_live_models_are_converted_by_the_names_of_families(family: str, module: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=13, n_positions=9, n_embd=12, n_layer=2, n_head=3)
        theirs = transformers.GPT2LMHeadModel(config)
    else:
        sizes = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.LlamaConfig(vocab_size=13, max_position_embeddings=9, **sizes)
        theirs = transformers.LlamaForCausalLM(config)
    convert = getattr(import_module(f"transformer_lens.{module}"), f"convert_{family}_weights")
    cfg = HookedTransformer.from_pretrained("", hf_model=theirs.eval(), device="cpu", fold_ln=False).cfg
    model = HookedTransformer(cfg)
    model.load_state_dict(convert(theirs, cfg))
    tokens = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["gpt2", "xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform"])
def test_weights_are_drawn_by_the_name_of_a_mode_as_by_the_configuration(mode: str) -> None:
    by_name, by_cfg = network("gpt2"), network("gpt2", init_mode=mode, seed=0)
    kind, _, dist_type = mode.partition("_")
    torch.manual_seed(0)
    getattr(by_name, f"_init_weights_{kind}")(*([dist_type] if dist_type else []))
    by_cfg.cfg.seed, by_cfg.cfg.initializer_range = 0, by_name.cfg.initializer_range
    by_cfg.init_weights()
    assert torch.equal(by_name.blocks[1].attn.W_Q, by_cfg.blocks[1].attn.W_Q)


def test_what_subclasses_and_loops_of_others_ask_of_parts() -> None:
    block = network("gpt2").blocks[0]
    assert block.normalization_type == "LN" and block.attn.q_norm is None and block.attn.k_norm is None
    assert network("gemma").blocks[0].attn.q_norm is not None
    FactoredMatrix.svd.cache_clear()  # type: ignore[attr-defined]


def test_xielu_is_that_of_transformers() -> None:
    theirs = pytest.importorskip("transformers.activations").XIELUActivation(0.9, 0.7, 0.25, dtype=torch.float32)
    ours, x = XIELU(0.9, 0.7, 0.25), torch.linspace(-4, 4, 81)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(xielu(x), XIELU()(x))


def test_a_subclass_may_have_a_tokenizer_and_no_network() -> None:
    """Tests of tokenizers do so: only what tokens need is set, and `__init__` is never run."""
    whole = HookedTransformer({"n_layers": 1, "d_model": 8, "n_ctx": 16, "d_head": 4, "attn_only": True}, letters())

    class Tokens(HookedTransformer):
        def __init__(self, cfg: Any, tokenizer: Any) -> None:
            self.cfg = cfg
            self.set_tokenizer(tokenizer)

    bare, texts = Tokens(whole.cfg, letters()), ["abc", "a"]
    for options in ({}, {"padding_side": "left"}, {"prepend_bos": False}):
        assert torch.equal(bare.to_tokens(texts, **options), whole.to_tokens(texts, **options))
    assert bare.to_str_tokens("abc") == whole.to_str_tokens("abc")


def test_weights_of_mup_are_drawn_as_the_dialect_draws_them() -> None:
    """TransformerLens 2.18: normal, 1 for whatever is called an embedding, the root of what is read for the rest."""
    cfg = {"n_layers": 1, "d_model": 256, "n_ctx": 64, "d_head": 64, "act_fn": "relu", "d_vocab": 200, "device": "cpu"}
    model = import_module("transformer_lens").HookedTransformer(cfg | {"init_mode": "muP", "seed": 3})
    for weight, std in ((model.W_E, 1.0), (model.W_U, 1.0), (model.W_pos, 1.0), (model.W_in, 1 / 16), (model.W_out, 1 / 32)):
        assert weight.std().item() == pytest.approx(std, rel=0.02) and weight.abs().max() > 3.5 * std


def test_what_can_be_used_as_an_mlp() -> None:
    cfg = network("gpt2").cfg
    x = torch.randn(2, 3, cfg.d_model)
    assert torch.equal(CanBeUsedAsMLP(cfg)(x), x)
    for architecture in ("gpt2", "llama", "mixture"):
        assert isinstance(network(architecture).blocks[0].mlp, CanBeUsedAsMLP)
    normed = CanBeUsedAsMLP({"n_layers": 1, "d_model": 8, "n_ctx": 4, "d_head": 4, "act_fn": "solu_ln"})
    normed.select_activation_function()
    assert normed.act_fn is utils.solu and isinstance(normed.ln, LayerNorm)
    lacking = copy.copy(cfg)
    lacking.d_mlp = None
    with pytest.raises(ConfigError, match="needs d_mlp"):
        CanBeUsedAsMLP(lacking)
    with pytest.raises(ConfigError, match="4 bits"):
        GatedMLP4Bit(cfg)


def test_tokens_to_look_in_may_be_floats() -> None:
    model = network("gpt2")
    assert model.get_token_position(2, torch.tensor([[5.0, 2, 4, 2]]), mode="last") == 3
    with pytest.raises(TokenError, match="whole numbers"):
        model.get_token_position(2, torch.tensor([0.5, 2]))
