# %% [markdown]
# CircuitsVis, and what ARENA's fork adds
# %%
import circuitsvis as cv
import numpy as np
import torch
from circuitsvis.attention import attention_heads, attention_patterns
from transformer_lens import HookedTransformer

model = HookedTransformer.from_pretrained("first-unique-char", device="cpu")
tokens = torch.tensor([[10, 0, 1, 0, 2, 1], [10, 3, 3, 4, 5, 4]])
logits, cache = model.run_with_cache(tokens)
texts = [model.to_str_tokens(row) for row in tokens]
pattern, words = cache["pattern", 0][0], texts[0]
names = [f"0.{head}" for head in range(3)]
shown = []
# %%
shown.append(cv.attention.attention_patterns(tokens=words, attention=pattern, attention_head_names=names))
shown.append(attention_patterns(attention=pattern, tokens=words))
shown.append(attention_patterns(pattern, words, names))
shown.append(
    attention_heads(
        attention=pattern.tolist(),
        tokens=words,
        attention_head_names=names,
        max_value=1,
        min_value=-1,
        negative_color="red",
        positive_color="blue",
        mask_upper_tri=True,
    )
)
shown.append(cv.attention.attention_pattern(tokens=words, attention=pattern[0].detach().numpy()))
# %%
shown.append(
    cv.attention.from_cache(
        cache=cache,
        tokens=texts,
        heads=[(0, 1), (1, 2)],
        layers=None,
        batch_idx=[0, 1],
        attention_type="value-weighted",
        mode="large",
        radioitems=True,
        batch_labels=["".join(text) for text in texts],
        return_mode="html",
        title="Two texts",
        head_notation="LH",
    )
)
for attention_type in ("standard", "value-weighted", "info-weighted"):
    for mode in ("large", "small", "lines"):
        shown.append(cv.attention.from_cache(cache, texts, layers=-1, batch_idx=0, attention_type=attention_type, mode=mode))
shown.append(cv.attention.from_values(pattern, words))
# %%
acts = torch.randn(6, 2, 5)
shown.append(
    cv.activations.text_neuron_activations(
        tokens=words,
        activations=acts,
        first_dimension_name="Layer",
        second_dimension_name="Neuron",
        first_dimension_labels=["a", "b"],
        second_dimension_labels=list("vwxyz"),
    )
)
shown.append(cv.topk_tokens.topk_tokens(tokens=[words], activations=np.random.randn(1, 2, 6, 5), max_k=3))
shown.append(cv.topk_samples.topk_samples(tokens=[[[words, texts[1]]]], activations=[[[[0.0] * 6, [1.0] * 6]]]))
shown.append(
    cv.logits.token_log_probs(token_indices=tokens[0], log_probs=logits[0].log_softmax(-1), to_string=model.to_string, top_k=4)
)
shown.append(cv.tokens.colored_tokens(words, [0.1, 0.2, -0.3, 0.4, 0.5, 0.6]))
shown.append(cv.tokens.colored_tokens_multi(words, torch.randn(6, 3), labels=["x", "y", "z"]))
shown.append(cv.tokens.visualize_model_performance(tokens[:1], words, logits[:1]))
shown.append(cv.examples.hello("you"))
for figure in shown:
    assert str(figure).startswith("<iframe") and "srcdoc" in figure._repr_html_() and "<script src" not in str(figure)
