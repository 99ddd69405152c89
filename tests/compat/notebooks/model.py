# %% [markdown]
# Loading, running, hooks, tokens, generation
# %%
import torch
from torch import Tensor, nn

import transformer_lens
import transformer_lens.utils as utils
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.HookedTransformer import HookedTransformer as SameModel
from transformer_lens.HookedTransformerConfig import HookedTransformerConfig as SameConfig
from transformer_lens.config import HookedTransformerConfig as NewConfig
from transformer_lens.hook_points import HookedRootModule, HookPoint
from transformer_lens.HookedRootModule import HookedRootModule as SameRoot

assert SameModel is HookedTransformer is transformer_lens.HookedTransformer
assert SameConfig is HookedTransformerConfig is NewConfig
assert SameRoot is HookedRootModule
torch.set_grad_enabled(False)
# %%
cfg = HookedTransformerConfig(
    n_layers=3,
    d_model=32,
    n_heads=4,
    d_head=8,
    n_ctx=24,
    d_mlp=48,
    act_fn="gelu",
    seed=0,
    device="cpu",
    use_attn_result=True,
    default_prepend_bos=True,
)
model = HookedTransformer(cfg, tokenizer=letters, move_to_device=True, default_padding_side="right")
again = HookedTransformer(HookedTransformerConfig.from_dict({**cfg.to_dict()}), tokenizer=letters)
assert HookedTransformerConfig.unwrap(cfg) is cfg
cfg.set_seed_everywhere(0)
small = HookedTransformer(
    {"n_layers": 1, "d_model": 8, "d_head": 4, "n_ctx": 5, "d_vocab": 7, "attn_only": True, "device": "cpu"}
)
# %%
trained = HookedTransformer.from_pretrained(
    model_name="first-unique-char",
    fold_ln=True,
    center_writing_weights=True,
    center_unembed=True,
    refactor_factored_attn_matrices=False,
    checkpoint_index=None,
    checkpoint_value=None,
    checkpoint_label=None,
    hf_model=None,
    device="cpu",
    n_devices=1,
    tokenizer=None,
    move_to_device=True,
    fold_value_biases=True,
    default_prepend_bos=None,
    default_padding_side=None,
    dtype="float32",
    first_n_layers=None,
    n_ctx=None,
)
raw = HookedTransformer.from_pretrained_no_processing("first-unique-char", device="cpu")
toks = torch.tensor([[10, 0, 1, 0, 2]])
torch.testing.assert_close(trained(toks).log_softmax(-1), raw(toks).log_softmax(-1), rtol=1e-3, atol=1e-3)
# %%
tokens = model.to_tokens("abcabc")
logits = model(tokens)
loss = model(tokens, return_type="loss")
each = model(tokens, return_type="loss", loss_per_token=True)
both = model.forward(tokens, return_type="both", prepend_bos=None, padding_side=None)
assert logits.shape == (1, 7, model.cfg.d_vocab) and each.shape == (1, 6)
torch.testing.assert_close(both.loss, loss)
resid = model(tokens, stop_at_layer=2)
torch.testing.assert_close(model(resid, start_at_layer=2, tokens=tokens, shortformer_pos_embed=None), logits)
torch.testing.assert_close(model(tokens, attention_mask=torch.ones_like(tokens)), logits)
kept = transformer_lens.HookedTransformerKeyValueCache.init_cache(model.cfg, "cpu", 1)
model(tokens[:, :4], past_kv_cache=kept)
torch.testing.assert_close(model(tokens[:, 4:], past_kv_cache=kept), logits[:, 4:], rtol=1e-4, atol=1e-5)
# %%
out, cache = model.run_with_cache(
    tokens,
    return_cache_object=True,
    remove_batch_dim=False,
    names_filter=None,
    device=None,
    incl_bwd=False,
    reset_hooks_end=True,
    clear_contexts=False,
    pos_slice=None,
)
_, plain = model.run_with_cache(tokens, return_cache_object=False, names_filter=["hook_embed"])
assert list(plain) == ["hook_embed"] and isinstance(cache, transformer_lens.ActivationCache)
# %%
seen = []


def look(value: Tensor, hook: HookPoint) -> None:
    seen.append((hook.name, hook.layer()))
    hook.ctx["shape"] = value.shape


def silence(value: Tensor, hook: HookPoint) -> Tensor:
    value[:, :, 0] = 0
    return value


edited = model.run_with_hooks(
    tokens,
    fwd_hooks=[(utils.get_act_name("z", 0), silence), (lambda name: name.endswith("hook_pattern"), look)],
    bwd_hooks=[],
    reset_hooks_end=True,
    clear_contexts=False,
)
assert [layer for _, layer in seen] == [0, 1, 2] and not torch.equal(edited, logits)
with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", silence)], bwd_hooks=[], reset_hooks_end=True, clear_contexts=False) as same:
    torch.testing.assert_close(same(tokens), edited)
model.add_hook("blocks.0.attn.hook_z", silence, dir="fwd", is_permanent=False, level=None, prepend=False)
assert list(model.list_hooks()) == ["blocks.0.attn.hook_z"]
model.reset_hooks(clear_contexts=True, direction="both", including_permanent=False, level=None)
model.add_perma_hook("blocks.1.attn.hook_z", silence, dir="fwd")
model.reset_hooks()
assert len(model.hook_dict["blocks.1.attn.hook_z"].fwd_hooks) == 1
model.reset_hooks(including_permanent=True)
store = model.add_caching_hooks(lambda name: name == "hook_embed")
model(tokens)
assert list(store) == ["hook_embed"]
model.reset_hooks()
found, forward, backward = model.get_caching_hooks(names_filter="hook_embed")
model.check_hooks_to_add(model.hook_dict["hook_embed"], "hook_embed", look)
assert "blocks.0.attn" in model.mod_dict and len(list(model.hook_points())) == len(model.hook_dict)
# %%
point = model.blocks[0].hook_resid_pre
point.add_hook(look)
point.add_perma_hook(look)
assert len(point.fwd_hooks) == 2 and point.bwd_hooks == []
model(tokens)
assert point.ctx["shape"] == (1, 7, 32) and point.layer() == 0
point.remove_hooks("both", including_permanent=True)
point.clear_context()
assert point.ctx == {}
# %%
with torch.enable_grad():
    grads = {}
    model.add_hook("blocks.0.hook_resid_pre", lambda grad, hook: grads.update(resid=grad.detach()), "bwd")
    model(tokens, return_type="loss").backward()
    model.reset_hooks()
    model.zero_grad()
    _, with_grads = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    torch.testing.assert_close(grads["resid"], with_grads["blocks.0.hook_resid_pre_grad"])
    model.zero_grad()
# %%
assert model.to_str_tokens("ab") == ["?", "a", "b"] and model.to_str_tokens(["a", "b"]) == [["?", "a"], ["?", "b"]]
assert model.to_tokens(["a", "abc"], prepend_bos=False, padding_side="left", move_to_device=True, truncate=True).shape == (2, 3)
assert model.to_string(torch.tensor([0, 1])) == "ab" and model.to_single_token("c") == 2 and model.to_single_str_token(2) == "c"
assert model.get_token_position(single_token="b", input="abcab", mode="last", prepend_bos=True, padding_side=None) == 5
assert model.tokens_to_residual_directions("a").shape == (32,)
assert model.tokens_to_residual_directions(3).shape == (32,) and model.tokens_to_residual_directions(tokens).shape == (1, 7, 32)
model.set_tokenizer(letters)
assert model.tokenizer is letters
# %%
said = model.generate(
    "abc",
    max_new_tokens=3,
    stop_at_eos=False,
    eos_token_id=None,
    do_sample=False,
    top_k=None,
    top_p=None,
    temperature=1.0,
    freq_penalty=0.0,
    use_past_kv_cache=True,
    prepend_bos=None,
    padding_side=None,
    return_type="input",
    verbose=False,
)
same = model.generate(tokens[:, :4], max_new_tokens=3, stop_at_eos=False, temperature=0.0, verbose=False)
assert said == model.to_string(same[0, 1:])
# %%
for flag in ("attn_result", "split_qkv_input", "attn_in", "hook_mlp_in"):
    getattr(model, f"set_use_{flag}")(False)
model.set_use_attn_result(True)
model.set_use_split_qkv_input(True)
model.set_use_attn_in(False)
model.set_use_hook_mlp_in(True)
model.set_ungroup_grouped_query_attention(False)
_, everything = model.run_with_cache(tokens)
assert everything["q_input", 0].shape == everything["k_input", 0].shape == everything["v_input", 0].shape == (1, 7, 4, 32)
assert everything["mlp_in", 0].shape == (1, 7, 32) and everything["result", 0].shape == (1, 7, 4, 32)
model.set_use_split_qkv_input(False)
assert model.to("cpu") is model.cpu() and callable(model.cuda)


# %%
class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.hook_square = HookPoint()

    def forward(self, x):
        return self.hook_square(x * x) + 3


class Twice(HookedRootModule):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = Squares(), Squares()
        self.hook_in = HookPoint()
        self.setup()

    def forward(self, x):
        return self.layer2(self.layer1(self.hook_in(x)))


toy = Twice()
value, kept_toy = toy.run_with_cache(torch.tensor(5.0))
assert value == 787 and list(kept_toy) == ["hook_in", "layer1.hook_square", "layer2.hook_square"]
assert toy.run_with_hooks(torch.tensor(5.0), fwd_hooks=[("layer1.hook_square", lambda x, hook: torch.tensor(0.0))]) == 12
