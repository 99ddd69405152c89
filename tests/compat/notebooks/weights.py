# %% [markdown]
# Weights, circuits, parts, rewriting, training
# %%
import torch
from transformer_lens import FactoredMatrix, HookedTransformer, HookedTransformerConfig, SVDInterpreter, evals, train
from transformer_lens.components import (
    MLP,
    Attention,
    Embed,
    LayerNorm,
    LayerNormPre,
    PosEmbed,
    RMSNorm,
    TransformerBlock,
    Unembed,
)
from transformer_lens.head_detector import detect_head
from transformer_lens.SVDInterpreter import SVDInterpreter as SameInterpreter
from transformer_lens.train import HookedTransformerTrainConfig
import transformer_lens.loading_from_pretrained as loading

assert SameInterpreter is SVDInterpreter
cfg = HookedTransformerConfig(n_layers=2, d_model=24, d_head=6, n_ctx=30, act_fn="silu", gated_mlp=True, seed=1, device="cpu")
model = HookedTransformer(cfg, tokenizer=letters)
tokens = model.to_tokens("abcabc")
# %%
assert model.W_E.shape == (11, 24) and model.W_U.shape == (24, 11) and model.b_U.shape == (11,)
assert model.W_pos.shape == (30, 24) and model.W_E_pos.shape == (41, 24)
assert model.W_Q.shape == model.W_K.shape == model.W_V.shape == (2, 4, 24, 6) and model.W_O.shape == (2, 4, 6, 24)
assert model.b_Q.shape == model.b_K.shape == model.b_V.shape == (2, 4, 6) and model.b_O.shape == (2, 24)
assert model.W_in.shape == model.W_gate.shape == (2, 24, 96) and model.W_out.shape == (2, 96, 24)
assert model.b_in.shape == (2, 96) and model.b_out.shape == (2, 24)
assert isinstance(model.QK, FactoredMatrix) and model.OV[0, 0].shape == (24, 24)
assert model.accumulated_bias(1).shape == (24,) and model.all_composition_scores("Q").shape == (2, 4, 2, 4)
assert model.all_head_labels()[:2] == ["L0H0", "L0H1"]
# %%
with torch.no_grad():
    embedded = model.embed(tokens) + model.pos_embed(tokens)
    block = model.blocks[0]
    normal = block.ln1(embedded)
    mid = embedded + block.attn(normal, normal, normal)
    post = mid + block.mlp(block.ln2(mid))
    torch.testing.assert_close(post, block(embedded))
    logits = model.unembed(model.ln_final(model.blocks[1](post)))
    torch.testing.assert_close(logits, model(tokens))
    assert model.unembed(torch.zeros(3, 2, 24)).shape == (3, 2, 11)
assert isinstance(model.embed, Embed) and isinstance(model.unembed, Unembed) and isinstance(model.pos_embed, PosEmbed)
assert isinstance(block, TransformerBlock) and isinstance(block.attn, Attention) and isinstance(block.mlp, MLP)
assert isinstance(block.ln1, LayerNorm) and LayerNormPre(cfg)(embedded).shape == RMSNorm(cfg)(embedded).shape
# %%
before = model(tokens).detach()
state = {name: value.clone() for name, value in model.state_dict().items()}
state = model.center_writing_weights(state)
state = model.center_unembed(state)
state = model.fold_layer_norm(state)
state = model.fold_value_biases(state)
folded = HookedTransformer(cfg, tokenizer=letters)
folded.load_state_dict(state, strict=False)
assert torch.equal(folded.ln_final.w, torch.ones(24)) and torch.equal(folded.ln_final.b, torch.zeros(24))
torch.testing.assert_close(folded(tokens).log_softmax(-1), before.log_softmax(-1), rtol=1e-4, atol=1e-4)
other = HookedTransformer(cfg, tokenizer=letters)
other.load_and_process_state_dict(
    model.state_dict(),
    fold_ln=True,
    center_writing_weights=True,
    center_unembed=True,
    fold_value_biases=True,
    refactor_factored_attn_matrices=True,
)
torch.testing.assert_close(other(tokens).log_softmax(-1), before.log_softmax(-1), rtol=1e-4, atol=1e-4)
other.process_weights_(fold_ln=True)
assert other.cfg.normalization_type == "LNPre" and isinstance(other.blocks[0].ln1, LayerNormPre)
# %%
scores = detect_head(
    model,
    seq="abcabc",
    detection_pattern="induction_head",
    heads=[(1, 0), (1, 1)],
    cache=None,
    exclude_bos=False,
    exclude_current_token=False,
    error_measure="mul",
)
assert scores.shape == (2, 4) and (scores[0] == -1).all() and (scores[1, :2] >= 0).all()
vectors = SVDInterpreter(model).get_singular_vectors("OV", layer_index=0, num_vectors=3, head_index=1)
assert vectors.shape == (11, 1, 3)
assert evals.induction_loss(model, batch_size=2, subseq_len=10).shape == ()
dataset = [{"tokens": row} for row in torch.randint(0, 10, (12, 8))]
trained = train.train(model, HookedTransformerTrainConfig(num_epochs=1, batch_size=4, print_every=None), dataset)
assert trained is model and loading.get_official_model_name("gpt2-small") == "gpt2"
