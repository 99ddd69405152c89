# %% [markdown]
# utils, one after another
# %%
import numpy as np
import torch
from transformer_lens import FactoredMatrix, HookedTransformer, HookedTransformerConfig, utils
from transformer_lens.utils import *

model = HookedTransformer(
    HookedTransformerConfig(n_layers=1, d_model=16, d_head=4, n_ctx=20, act_fn="gelu_new", seed=1, device="cpu"),
    tokenizer=letters,
)
torch.set_grad_enabled(False)
tokens = model.to_tokens("abcab")
logits = model(tokens)
# %%
assert utils.get_act_name("resid_pre", 0) == get_act_name("resid_pre0") == "blocks.0.hook_resid_pre"
assert isinstance(utils.to_numpy(logits), np.ndarray) and utils.to_numpy([1, 2]).tolist() == [1, 2]
utils.test_prompt("abc", "a", model, prepend_space_to_answer=False, top_k=3)
torch.testing.assert_close(utils.lm_cross_entropy_loss(logits, tokens), model(tokens, return_type="loss"))
assert utils.lm_cross_entropy_loss(logits, tokens, per_token=True).shape == (1, 5)
assert utils.lm_accuracy(logits, tokens, per_token=True).shape == (1, 5) and 0 <= utils.lm_accuracy(logits, tokens) <= 1
assert utils.sample_logits(logits[:, -1], top_k=1).item() == logits[0, -1].argmax()
assert utils.gelu_new(torch.zeros(1)) == utils.gelu_fast(torch.zeros(1)) == utils.solu(torch.zeros(1)) == 0
assert utils.get_corner(torch.zeros(9, 9), 2).shape == (2, 2) and utils.remove_batch_dim(logits).ndim == 2
assert utils.composition_scores(FactoredMatrix(torch.eye(3), torch.eye(3)), FactoredMatrix(torch.eye(3), torch.eye(3))) > 0
assert utils.transpose(torch.zeros(2, 3)).shape == (3, 2)
assert utils.is_square(torch.eye(3)) and utils.is_lower_triangular(torch.eye(3))
utils.check_structure(torch.eye(3), torch.eye(3))
assert isinstance(utils.get_device(), torch.device)
assert utils.Slice((0, 2)).apply(torch.arange(5)).tolist() == [0, 1]
rows = utils.tokenize_and_concatenate({"text": ["abc", "cab"] * 20}, letters, max_length=8)
assert rows["tokens"].shape[1] == 8
assert list(utils.keep_single_column({"text": [], "more": []}, "text")) == ["text"]
assert utils.get_attention_mask(letters, tokens, True).shape == tokens.shape
assert utils.get_offset_position_ids(0, torch.tensor([[0, 1, 1]])).tolist() == [[0, 0, 1]]
for name, arguments in (("get_dataset", ("c4",)), ("download_file_from_hf", ("nobody/nothing", "file.json"))):
    try:
        getattr(utils, name)(*arguments)
    except (ImportError, OSError) as error:
        print(name, "says:", error)
if torch.cuda.is_available():
    utils.print_gpu_mem("after all this")
assert callable(utils.print_gpu_mem)
