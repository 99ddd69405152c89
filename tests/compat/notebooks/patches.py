# %% [markdown]
# Activation patching
# %%
import torch
import transformer_lens.patching as patching
from transformer_lens import HookedTransformer, HookedTransformerConfig

torch.set_grad_enabled(False)
model = HookedTransformer(
    HookedTransformerConfig(n_layers=2, d_model=16, d_head=8, n_ctx=8, d_vocab=9, act_fn="relu", seed=1, device="cpu")
)
clean, corrupted = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 5, 3, 4]])
_, cache = model.run_with_cache(clean)


def metric(logits):
    return logits[0, -1, 2] - logits[0, -1, 5]


# %%
for name in ("resid_pre", "resid_mid", "attn_out", "mlp_out"):
    assert getattr(patching, f"get_act_patch_{name}")(model, corrupted, cache, metric).shape == (2, 4)
for name in ("out", "q", "k", "v"):
    assert getattr(patching, f"get_act_patch_attn_head_{name}_by_pos")(model, corrupted, cache, metric).shape == (2, 4, 2)
    assert getattr(patching, f"get_act_patch_attn_head_{name}_all_pos")(model, corrupted, cache, metric).shape == (2, 2)
assert patching.get_act_patch_attn_head_pattern_all_pos(model, corrupted, cache, metric).shape == (2, 2)
assert patching.get_act_patch_attn_head_pattern_by_pos(model, corrupted, cache, metric).shape == (2, 2, 4)
assert patching.get_act_patch_attn_head_pattern_dest_src_pos(model, corrupted, cache, metric).shape == (2, 2, 4, 4)
assert patching.get_act_patch_attn_head_all_pos_every(model, corrupted, cache, metric).shape == (5, 2, 2)
assert patching.get_act_patch_attn_head_by_pos_every(model, corrupted, cache, metric).shape == (5, 2, 4, 2)
assert patching.get_act_patch_block_every(model, corrupted, cache, metric).shape == (3, 2, 4)
# %%


def setter(corrupted_activation, index, clean_activation):
    pos = index[1]
    corrupted_activation[:, pos] = clean_activation[:, pos]
    return corrupted_activation


grid = patching.generic_activation_patch(
    model=model,
    corrupted_tokens=corrupted,
    clean_cache=cache,
    patching_metric=metric,
    patch_setter=setter,
    activation_name="resid_pre",
    index_axis_names=("layer", "pos"),
)
torch.testing.assert_close(grid, patching.get_act_patch_resid_pre(model, corrupted, cache, metric), rtol=1e-4, atol=1e-5)
