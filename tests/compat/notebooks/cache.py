# %% [markdown]
# Activations, the residual stream, factored matrices
# %%
import torch
from transformer_lens import ActivationCache, FactoredMatrix, HookedTransformer, HookedTransformerConfig, utils
from transformer_lens.ActivationCache import ActivationCache as SameCache
from transformer_lens.FactoredMatrix import FactoredMatrix as SameMatrix

assert SameCache is ActivationCache and SameMatrix is FactoredMatrix
torch.set_grad_enabled(False)
model = HookedTransformer(
    HookedTransformerConfig(n_layers=2, d_model=24, d_head=6, n_ctx=12, act_fn="relu", seed=1, device="cpu"), tokenizer=letters
)
tokens = model.to_tokens(["abcab", "bcabc"])
logits, cache = model.run_with_cache(tokens)
# %%
full = cache["blocks.0.attn.hook_pattern"]
assert all(
    torch.equal(cache[key], full) for key in (("pattern", 0), "pattern0", ("attn", 0), ("pattern", 0, "attn"), ("pattern", -2))
)
assert torch.equal(cache["q1"], cache[utils.get_act_name("q", 1)]) and torch.equal(cache["q1"], cache["query", 1])
assert cache["scale", 0, "ln1"].shape == cache["scale"].shape == (2, 6, 1)
assert torch.equal(cache["scale"], cache["ln_final.hook_scale"])
assert len(cache) == len(cache.keys()) == len(list(cache.values())) == len(dict(cache.items())) == len(list(iter(cache)))
assert cache.has_batch_dim and cache.model is model and isinstance(cache.cache_dict, dict) and cache.to("cpu") is cache
one = model.run_with_cache(tokens[:1])[1].remove_batch_dim()
assert one["pattern", 0].shape == (4, 6, 6) and not one.has_batch_dim
assert cache.apply_slice_to_batch_dim(0)["pattern", 0].shape == (4, 6, 6)
cache.toggle_autodiff(mode=False)
# %%
streams, labels = cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, return_labels=True)
assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"] and streams.shape == (5, 2, 24)
parts, names = cache.decompose_resid(layer=-1, return_labels=True)
assert names == ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
torch.testing.assert_close(parts.sum(0), cache["resid_post", -1])
heads, head_names = cache.stack_head_results(layer=-1, incl_remainder=True, return_labels=True, pos_slice=-1)
assert head_names[:2] == ["L0H0", "L0H1"] and head_names[-1] == "remainder"
torch.testing.assert_close(heads.sum(0), cache["resid_post", -1][:, -1])
cache.compute_head_results()
assert cache["result", 1].shape == (2, 6, 4, 24) and cache.stack_activation("pattern").shape == (2, 2, 4, 6, 6)
assert cache.get_neuron_results(0, neuron_slice=(0, 5), pos_slice=-1).shape == (2, 5, 24)
neurons, neuron_names = cache.stack_neuron_results(layer=-1, pos_slice=-1, return_labels=True, neuron_slice=(0, 3))
assert neuron_names[:2] == ["L0N0", "L0N1"] and neurons.shape == (6, 2, 24)
whole, whole_names = cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=-1, return_labels=True)
torch.testing.assert_close(whole.sum(0), cache["resid_post", -1][:, -1])
# %%
answers = torch.tensor([0, 1])
directions = model.tokens_to_residual_directions(answers)
scaled = cache.apply_ln_to_stack(parts[:, :, -1], layer=-1, pos_slice=-1)
assert scaled.shape == (6, 2, 24)
attributed = cache.logit_attrs(parts[:, :, -1], tokens=answers, pos_slice=-1)
bias = (model.ln_final.b * directions).sum(-1) + model.b_U[answers]
torch.testing.assert_close(attributed.sum(0) + bias, logits[torch.arange(2), -1, answers], rtol=1e-4, atol=1e-5)
# %%
A, B = torch.randn(2, 5, 3), torch.randn(2, 3, 5)
matrix = FactoredMatrix(A, B)
torch.testing.assert_close(matrix.AB, A @ B)
torch.testing.assert_close(matrix.BA, B @ A)
U, S, Vh = matrix.svd()
torch.testing.assert_close(matrix.U @ matrix.S.diag_embed() @ matrix.Vh.mT, A @ B)
torch.testing.assert_close(matrix.T.AB, (A @ B).mT)
torch.testing.assert_close(matrix.norm(), (A @ B).norm(dim=(-2, -1)))
assert matrix.eigenvalues.shape == (2, 3) and matrix.shape == (2, 5, 5) and matrix.ndim == 3 and len(matrix.pair) == 2
torch.testing.assert_close((matrix @ matrix).AB, A @ B @ A @ B)
torch.testing.assert_close((matrix * 2.0).AB, 2 * A @ B)
torch.testing.assert_close(matrix[0].AB, A[0] @ B[0])
torch.testing.assert_close(matrix.make_even().AB, A @ B)
assert matrix.collapse_l().shape == (2, 3, 5) and matrix.collapse_r().shape == (2, 5, 3)
assert matrix.get_corner(2).shape == (2, 2, 2) and matrix.unsqueeze(0).shape == (1, 2, 5, 5)
