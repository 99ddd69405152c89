"""Short names of published models, as TransformerLens 2.18 has them, and the repositories that they mean on the hub.

In the first table the last part of an id is a short name; in the second, a line is an id and its other names.
"""

from __future__ import annotations

_LAST_PART = """
    01-ai/Yi-34B 01-ai/Yi-34B-Chat 01-ai/Yi-6B 01-ai/Yi-6B-Chat ai-forever/mGPT ArthurConmy/redwood_attn_2l
    bigcode/santacoder bigscience/bloom-1b1 bigscience/bloom-1b7 bigscience/bloom-3b bigscience/bloom-560m
    bigscience/bloom-7b1 codellama/CodeLlama-7b-hf codellama/CodeLlama-7b-Instruct-hf codellama/CodeLlama-7b-Python-hf
    EleutherAI/gpt-j-6B EleutherAI/gpt-neo-1.3B EleutherAI/gpt-neo-125M EleutherAI/gpt-neo-2.7B EleutherAI/gpt-neox-20b
    EleutherAI/pythia-1.4b EleutherAI/pythia-1.4b-deduped EleutherAI/pythia-1.4b-deduped-v0 EleutherAI/pythia-1.4b-v0
    EleutherAI/pythia-12b EleutherAI/pythia-12b-deduped EleutherAI/pythia-12b-deduped-v0 EleutherAI/pythia-12b-v0
    EleutherAI/pythia-14m EleutherAI/pythia-160m EleutherAI/pythia-160m-deduped EleutherAI/pythia-160m-deduped-v0
    EleutherAI/pythia-160m-seed1 EleutherAI/pythia-160m-seed2 EleutherAI/pythia-160m-seed3 EleutherAI/pythia-160m-v0
    EleutherAI/pythia-1b EleutherAI/pythia-1b-deduped EleutherAI/pythia-1b-deduped-v0 EleutherAI/pythia-1b-v0
    EleutherAI/pythia-2.8b EleutherAI/pythia-2.8b-deduped EleutherAI/pythia-2.8b-deduped-v0 EleutherAI/pythia-2.8b-v0
    EleutherAI/pythia-31m EleutherAI/pythia-410m EleutherAI/pythia-410m-deduped EleutherAI/pythia-410m-deduped-v0
    EleutherAI/pythia-410m-v0 EleutherAI/pythia-6.9b EleutherAI/pythia-6.9b-deduped EleutherAI/pythia-6.9b-deduped-v0
    EleutherAI/pythia-6.9b-v0 EleutherAI/pythia-70m EleutherAI/pythia-70m-deduped EleutherAI/pythia-70m-deduped-v0
    EleutherAI/pythia-70m-v0 facebook/hubert-base-ls960 facebook/opt-1.3b facebook/opt-125m facebook/opt-13b
    facebook/opt-2.7b facebook/opt-30b facebook/opt-6.7b facebook/opt-66b facebook/wav2vec2-base facebook/wav2vec2-large
    google-bert/bert-base-cased google-bert/bert-base-uncased google-bert/bert-large-cased
    google-bert/bert-large-uncased google-t5/t5-base google-t5/t5-large google-t5/t5-small google/gemma-2-27b
    google/gemma-2-27b-it google/gemma-2-2b google/gemma-2-2b-it google/gemma-2-9b google/gemma-2-9b-it google/gemma-2b
    google/gemma-2b-it google/gemma-3-12b-it google/gemma-3-12b-pt google/gemma-3-1b-it google/gemma-3-1b-pt
    google/gemma-3-270m google/gemma-3-270m-it google/gemma-3-27b-it google/gemma-3-27b-pt google/gemma-3-4b-it
    google/gemma-3-4b-pt google/gemma-7b google/gemma-7b-it google/medgemma-27b-it google/medgemma-27b-text-it
    google/medgemma-4b-it google/medgemma-4b-pt meta-llama/Llama-2-13b-chat-hf meta-llama/Llama-2-13b-hf
    meta-llama/Llama-2-7b-chat-hf meta-llama/Llama-2-7b-hf microsoft/phi-1 microsoft/phi-1_5 microsoft/phi-2
    microsoft/phi-4 mistralai/Mistral-Nemo-Base-2407 openai/gpt-oss-20b Qwen/Qwen-14B Qwen/Qwen-14B-Chat Qwen/Qwen-7B
    Qwen/Qwen-7B-Chat Qwen/Qwen1.5-0.5B Qwen/Qwen1.5-0.5B-Chat Qwen/Qwen1.5-1.8B Qwen/Qwen1.5-1.8B-Chat Qwen/Qwen1.5-14B
    Qwen/Qwen1.5-14B-Chat Qwen/Qwen1.5-4B Qwen/Qwen1.5-4B-Chat Qwen/Qwen1.5-7B Qwen/Qwen1.5-7B-Chat Qwen/Qwen2-0.5B
    Qwen/Qwen2-0.5B-Instruct Qwen/Qwen2-1.5B Qwen/Qwen2-1.5B-Instruct Qwen/Qwen2-7B Qwen/Qwen2-7B-Instruct
    Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-0.5B-Instruct Qwen/Qwen2.5-1.5B Qwen/Qwen2.5-1.5B-Instruct Qwen/Qwen2.5-14B
    Qwen/Qwen2.5-14B-Instruct Qwen/Qwen2.5-32B Qwen/Qwen2.5-32B-Instruct Qwen/Qwen2.5-3B Qwen/Qwen2.5-3B-Instruct
    Qwen/Qwen2.5-72B Qwen/Qwen2.5-72B-Instruct Qwen/Qwen2.5-7B Qwen/Qwen2.5-7B-Instruct Qwen/Qwen3-0.6B
    Qwen/Qwen3-0.6B-Base Qwen/Qwen3-1.7B Qwen/Qwen3-14B Qwen/Qwen3-4B Qwen/Qwen3-8B stabilityai/stablelm-base-alpha-3b
    stabilityai/stablelm-base-alpha-7b stabilityai/stablelm-tuned-alpha-3b stabilityai/stablelm-tuned-alpha-7b
    stanford-crfm/alias-gpt2-small-x21 stanford-crfm/arwen-gpt2-medium-x21 stanford-crfm/battlestar-gpt2-small-x49
    stanford-crfm/beren-gpt2-medium-x49 stanford-crfm/caprica-gpt2-small-x81 stanford-crfm/celebrimbor-gpt2-medium-x81
    stanford-crfm/darkmatter-gpt2-small-x343 stanford-crfm/durin-gpt2-medium-x343 stanford-crfm/eowyn-gpt2-medium-x777
    stanford-crfm/expanse-gpt2-small-x777
"""
_OTHERS = """
    Baidicoot/Othello-GPT-Transformer-Lens othello-gpt
    codellama/CodeLlama-7b-hf CodeLlamallama-2-7b
    codellama/CodeLlama-7b-Instruct-hf CodeLlama-7b-instruct
    codellama/CodeLlama-7b-Python-hf CodeLlama-7b-python
    distilgpt2 distil-gpt2 distill-gpt2 distillgpt2 gpt2-xs
    EleutherAI/gpt-j-6B gpt-j gptj
    EleutherAI/gpt-neo-1.3B gpt-neo-medium neo-medium
    EleutherAI/gpt-neo-125M gpt-neo-small neo neo-small
    EleutherAI/gpt-neo-2.7B gpt-neo-large neo-large
    EleutherAI/gpt-neox-20b gpt-neox neox
    EleutherAI/pythia-1.4b EleutherAI/pythia-1.3b pythia-1.3b
    EleutherAI/pythia-1.4b-deduped EleutherAI/pythia-1.3b-deduped pythia-1.3b-deduped
    EleutherAI/pythia-1.4b-deduped-v0 EleutherAI/pythia-1.3b-deduped-v0 pythia-1.3b-deduped-v0
    EleutherAI/pythia-1.4b-v0 EleutherAI/pythia-1.3b-v0 pythia-1.3b-v0
    EleutherAI/pythia-12b EleutherAI/pythia-13b pythia-13b
    EleutherAI/pythia-12b-deduped EleutherAI/pythia-13b-deduped pythia-13b-deduped
    EleutherAI/pythia-12b-deduped-v0 EleutherAI/pythia-13b-deduped-v0 pythia-13b-deduped-v0
    EleutherAI/pythia-12b-v0 EleutherAI/pythia-13b-v0 pythia-13b-v0
    EleutherAI/pythia-160m EleutherAI/pythia-125m pythia-125m
    EleutherAI/pythia-160m-deduped EleutherAI/pythia-125m-deduped pythia-125m-deduped
    EleutherAI/pythia-160m-deduped-v0 EleutherAI/pythia-125m-deduped-v0 pythia-125m-deduped-v0
    EleutherAI/pythia-160m-seed1 EleutherAI/pythia-125m-seed1 pythia-125m-seed1
    EleutherAI/pythia-160m-seed2 EleutherAI/pythia-125m-seed2 pythia-125m-seed2
    EleutherAI/pythia-160m-seed3 EleutherAI/pythia-125m-seed3 pythia-125m-seed3
    EleutherAI/pythia-160m-v0 EleutherAI/pythia-125m-v0 pythia-125m-v0
    EleutherAI/pythia-1b EleutherAI/pythia-800m pythia-800m
    EleutherAI/pythia-1b-deduped EleutherAI/pythia-800m-deduped pythia-800m-deduped
    EleutherAI/pythia-1b-deduped-v0 EleutherAI/pythia-800m-deduped-v0 pythia-800m-deduped-v0
    EleutherAI/pythia-1b-v0 EleutherAI/pythia-800m-v0 pythia-800m-v0
    EleutherAI/pythia-2.8b EleutherAI/pythia-2.7b pythia-2.7b
    EleutherAI/pythia-2.8b-deduped EleutherAI/pythia-2.7b-deduped pythia-2.7b-deduped
    EleutherAI/pythia-2.8b-deduped-v0 EleutherAI/pythia-2.7b-deduped-v0 pythia-2.7b-deduped-v0
    EleutherAI/pythia-2.8b-v0 EleutherAI/pythia-2.7b-v0 pythia-2.7b-v0
    EleutherAI/pythia-410m EleutherAI/pythia-350m pythia-350m
    EleutherAI/pythia-410m-deduped EleutherAI/pythia-350m-deduped pythia-350m-deduped
    EleutherAI/pythia-410m-deduped-v0 EleutherAI/pythia-350m-deduped-v0 pythia-350m-deduped-v0
    EleutherAI/pythia-410m-v0 EleutherAI/pythia-350m-v0 pythia-350m-v0
    EleutherAI/pythia-6.9b EleutherAI/pythia-6.7b pythia-6.7b
    EleutherAI/pythia-6.9b-deduped EleutherAI/pythia-6.7b-deduped pythia-6.7b-deduped
    EleutherAI/pythia-6.9b-deduped-v0 EleutherAI/pythia-6.7b-deduped-v0 pythia-6.7b-deduped-v0
    EleutherAI/pythia-6.9b-v0 EleutherAI/pythia-6.7b-v0 pythia-6.7b-v0
    EleutherAI/pythia-70m EleutherAI/pythia-19m pythia pythia-19m
    EleutherAI/pythia-70m-deduped EleutherAI/pythia-19m-deduped pythia-19m-deduped
    EleutherAI/pythia-70m-deduped-v0 EleutherAI/pythia-19m-deduped-v0 pythia-19m-deduped-v0
    EleutherAI/pythia-70m-v0 EleutherAI/pythia-19m-v0 pythia-19m-v0 pythia-v0
    facebook/opt-1.3b opt-medium
    facebook/opt-125m opt opt-small
    facebook/opt-13b opt-xxl
    facebook/opt-2.7b opt-large
    facebook/opt-30b opt-xxxl
    facebook/opt-6.7b opt-xl
    facebook/opt-66b opt-xxxxl
    facebook/wav2vec2-base w2v2-base
    facebook/wav2vec2-large w2v2-large
    gpt2 gpt2-small
    llama-13b-hf llama-13b
    llama-30b-hf llama-30b
    llama-65b-hf llama-65b
    llama-7b-hf llama-7b
    meta-llama/Llama-2-13b-chat-hf Llama-2-13b-chat
    meta-llama/Llama-2-13b-hf Llama-2-13b
    meta-llama/Llama-2-70b-chat-hf Llama-2-70b-chat meta-llama-2-70b-chat-hf
    meta-llama/Llama-2-7b-chat-hf Llama-2-7b-chat
    meta-llama/Llama-2-7b-hf Llama-2-7b
    microsoft/Phi-3-mini-4k-instruct phi-3
    mistralai/Mistral-7B-Instruct-v0.1 mistral-7b-instruct
    mistralai/Mistral-7B-v0.1 mistral-7b
    mistralai/Mixtral-8x7B-Instruct-v0.1 mixtral-8x7b-instruct mixtral-instruct
    mistralai/Mixtral-8x7B-v0.1 mixtral mixtral-8x7b
    NeelNanda/Attn-Only-2L512W-Shortformer-6B-big-lr attn-only-2l-demo attn-only-2l-induction-demo
    NeelNanda/Attn-Only-2L512W-Shortformer-6B-big-lr attn-only-2l-shortformer-6b-big-lr attn-only-demo
    NeelNanda/Attn_Only_1L512W_C4_Code attn-only-1l attn-only-1l-c4-code attn-only-1l-new
    NeelNanda/Attn_Only_2L512W_C4_Code attn-only-2l attn-only-2l-c4-code attn-only-2l-new
    NeelNanda/Attn_Only_3L512W_C4_Code attn-only-3l attn-only-3l-c4-code attn-only-3l-new
    NeelNanda/Attn_Only_4L512W_C4_Code attn-only-4l attn-only-4l-c4-code attn-only-4l-new
    NeelNanda/GELU_1L512W_C4_Code gelu-1l gelu-1l-c4-code gelu-1l-new
    NeelNanda/GELU_2L512W_C4_Code gelu-2l gelu-2l-c4-code gelu-2l-new
    NeelNanda/GELU_3L512W_C4_Code gelu-3l gelu-3l-c4-code gelu-3l-new
    NeelNanda/GELU_4L512W_C4_Code gelu-4l gelu-4l-c4-code gelu-4l-new
    NeelNanda/SoLU_10L1280W_C4_Code solu-10l solu-10l-c4-code solu-10l-new
    NeelNanda/SoLU_10L_v22_old solu-10l-old solu-10l-pile
    NeelNanda/SoLU_12L1536W_C4_Code solu-12l solu-12l-c4-code solu-12l-new
    NeelNanda/SoLU_12L_v23_old solu-12l-old solu-12l-pile
    NeelNanda/SoLU_1L512W_C4_Code solu-1l solu-1l-c4-code solu-1l-new
    NeelNanda/SoLU_1L512W_Wiki_Finetune solu-1l-finetune solu-1l-wiki solu-1l-wiki-finetune
    NeelNanda/SoLU_1L_v9_old solu-1l-old solu-1l-pile
    NeelNanda/SoLU_2L512W_C4_Code solu-2l solu-2l-c4-code solu-2l-new
    NeelNanda/SoLU_2L_v10_old solu-2l-old solu-2l-pile
    NeelNanda/SoLU_3L512W_C4_Code solu-3l solu-3l-c4-code solu-3l-new
    NeelNanda/SoLU_4L512W_C4_Code solu-4l solu-4l-c4-code solu-4l-new
    NeelNanda/SoLU_4L512W_Wiki_Finetune solu-4l-finetune solu-4l-wiki solu-4l-wiki-finetune
    NeelNanda/SoLU_4L_v11_old solu-4l-old solu-4l-pile
    NeelNanda/SoLU_6L768W_C4_Code solu-6l solu-6l-c4-code solu-6l-new
    NeelNanda/SoLU_6L_v13_old solu-6l-old solu-6l-pile
    NeelNanda/SoLU_8L1024W_C4_Code solu-8l solu-8l-c4-code solu-8l-new
    NeelNanda/SoLU_8L_v21_old solu-8l-old solu-8l-pile
    openai/gpt-oss-20b gpt-oss
    Qwen/Qwen-1_8B qwen-1.8b
    Qwen/Qwen-1_8B-Chat qwen-1.8b-chat
    Qwen/QwQ-32B-Preview qwen-32b-preview
    roneneldan/TinyStories-1Layer-21M tiny-stories-1L-21M
    roneneldan/TinyStories-1M tiny-stories-1M
    roneneldan/TinyStories-28M tiny-stories-28M
    roneneldan/TinyStories-2Layers-33M tiny-stories-2L-33M
    roneneldan/TinyStories-33M tiny-stories-33M
    roneneldan/TinyStories-3M tiny-stories-3M
    roneneldan/TinyStories-8M tiny-stories-8M
    roneneldan/TinyStories-Instruct-1M tiny-stories-instruct-1M
    roneneldan/TinyStories-Instruct-28M tiny-stories-instruct-28M
    roneneldan/TinyStories-Instruct-2Layers-33M tiny-stories-instruct-2L-33M
    roneneldan/TinyStories-Instruct-33M tiny-stories-instruct-33M
    roneneldan/TinyStories-Instruct-3M tiny-stories-instruct-3M
    roneneldan/TinyStories-Instruct-8M tiny-stories-instruct-8M
    roneneldan/TinyStories-Instuct-1Layer-21M tiny-stories-instruct-1L-21M
    stabilityai/stablelm-base-alpha-3b stablelm-base-3b
    stabilityai/stablelm-base-alpha-7b stablelm-base-7b
    stabilityai/stablelm-tuned-alpha-3b stablelm-tuned-3b
    stabilityai/stablelm-tuned-alpha-7b stablelm-tuned-7b
    stanford-crfm/alias-gpt2-small-x21 gpt2-mistral-small-a gpt2-stanford-small-a stanford-gpt2-small-a
    stanford-crfm/arwen-gpt2-medium-x21 gpt2-medium-small-a gpt2-stanford-medium-a stanford-gpt2-medium-a
    stanford-crfm/battlestar-gpt2-small-x49 gpt2-mistral-small-b stanford-gpt2-small-b
    stanford-crfm/beren-gpt2-medium-x49 gpt2-medium-small-b gpt2-stanford-medium-b stanford-gpt2-medium-b
    stanford-crfm/caprica-gpt2-small-x81 gpt2-mistral-small-c gpt2-stanford-small-c stanford-gpt2-small-c
    stanford-crfm/celebrimbor-gpt2-medium-x81 gpt2-medium-small-c stanford-gpt2-medium-c
    stanford-crfm/darkmatter-gpt2-small-x343 gpt2-mistral-small-d stanford-gpt2-small-d
    stanford-crfm/durin-gpt2-medium-x343 gpt2-medium-small-d gpt2-stanford-medium-d stanford-gpt2-medium-d
    stanford-crfm/eowyn-gpt2-medium-x777 gpt2-medium-small-e gpt2-stanford-medium-e stanford-gpt2-medium-e
    stanford-crfm/expanse-gpt2-small-x777 gpt2-mistral-small-e stanford-gpt2-small-e
    swiss-ai/Apertus-8B-2509 apertus apertus-8b
    swiss-ai/Apertus-8B-Instruct-2509 apertus-8b-instruct apertus-instruct
"""
_ENCODERS = """
    facebook/hubert-base-ls960 facebook/wav2vec2-base facebook/wav2vec2-large google-bert/bert-base-cased
    google-bert/bert-base-uncased google-bert/bert-large-cased google-bert/bert-large-uncased google-t5/t5-base
    google-t5/t5-large google-t5/t5-small
"""


def _table() -> dict[str, str]:
    known = {name.rsplit("/", 1)[-1].lower(): name for name in _LAST_PART.split()}
    for line in _OTHERS.strip().splitlines():
        repo, *names = line.split()
        known |= dict.fromkeys(names, repo)
    return known


SHORT_NAMES = _table()
"""Short name → id on the hub."""

ENCODERS = frozenset(_ENCODERS.split())
"""Models that read text (or sound) in both directions, or encode and decode; they are no networks of ours."""

OURS_TOO = ("attn-only-2l",)
"""Short names that bundled models of ours have as well."""

LEFT_TO_THE_DIALECT: set[str] = set()
"""Those of them that mean the dialect's model now, because `cutaway.compat` is installed."""
