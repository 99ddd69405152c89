"""Directions of the embeddings: how few carry the tokens' differences, and whether they turn in circles (Fourier)."""

from __future__ import annotations

import torch

from cutaway.analysis.embedding_spectrum import frequencies, principal, spectrum
from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value, spread

MOST, DRAWS = 2000, 20


def lacks(study: Study) -> str:
    """A vocabulary that is small and has an order."""
    if study.model.cfg.d_vocab > MOST:
        return f"a vocabulary of {study.model.cfg.d_vocab:,} tokens is in no order"
    return "" if len(study.content) >= 5 else "fewer than five tokens vary"


def ask(study: Study) -> list[Finding]:
    """The share of variance in three principal components, and in the five largest frequencies of the tokens' order."""
    tokens = study.content
    W = study.model.embed.W_E.detach()[tokens].double()
    W = W - W.mean(0)
    generator = torch.Generator().manual_seed(study.seed)
    noise = [principal(torch.randn(W.shape, generator=generator, dtype=W.dtype)) for _ in range(DRAWS)]
    turned = [frequencies(W[torch.randperm(len(W), generator=generator)]) for _ in range(DRAWS)]
    on = f"{len(tokens)} tokens"
    few = min(5, (len(tokens) - 1) // 4)
    found = [
        Finding("share", "the share of the embeddings' variance in three directions", {"all": Value(principal(W))}, "share",
                spread(torch.tensor(noise)), "random embeddings", on),
    ]  # fmt: skip
    if few:
        shares = spectrum(W)
        order = shares.argsort(descending=True)[:few].tolist()
        named = ", ".join(str(one + 1) for one in order)
        what = f"the share of the embeddings' variance in {few} frequencies of the tokens' order ({named})"
        values, random = {"all": Value(frequencies(W))}, spread(torch.tensor(turned))
        found.append(Finding("share", what, values, "share", random, "tokens in random order", on))
    return found
