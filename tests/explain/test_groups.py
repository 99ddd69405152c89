"""Products by representations: planted frequencies come out, and tables learnt by heart do not pass for traces."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway import HookedTransformer, programs
from cutaway.explain.fitting import fit, setting_of
from cutaway.explain.groups import group_of
from cutaway.explain.spectrum import product_of, traces
from cutaway.explain.subject import Subject
from cutaway.programs import as_python
from cutaway.prompts import Prompts


def permutations(n: int) -> Tensor:
    every = list(itertools.permutations(range(n)))
    number = {one: at for at, one in enumerate(every)}
    return torch.tensor([[number[tuple(a[b[x]] for x in range(n))] for b in every] for a in every])


def linear(n: int, a: int = 1, b: int = 1, c: int = 0) -> Tensor:
    return (a * torch.arange(n)[:, None] + b * torch.arange(n) + c) % n


TABLES = {
    "S3": permutations(3), "S4": permutations(4), "sums": linear(12), "differences": linear(12, 1, -1),
    "2a + 3b + 1": linear(13, 2, 3, 1), "bits": torch.arange(8)[:, None] ^ torch.arange(8),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_group_and_its_representations(name: str):
    found = group_of(TABLES[name])
    assert found is not None
    group, left, right = found
    assert torch.equal(group.products[left][:, right], TABLES[name])
    whole = torch.full((group.size, group.size), 1 / group.size, dtype=torch.float64)
    for one in group.representations:
        together = torch.einsum("xij,yjk->xyik", one.matrices, one.matrices)
        assert torch.allclose(together, one.matrices[group.products], atol=1e-9)
        whole = whole + group.projector(one)
    assert torch.allclose(whole, torch.eye(group.size, dtype=torch.float64), atol=1e-7)
    if name == "S4":
        assert [one.name for one in group.representations] == ["1a", "2a", "3a", "3b"]


def test_tables_that_are_no_products_of_a_group():
    random = torch.randint(5, (5, 5), generator=torch.Generator().manual_seed(0))
    near = permutations(3).clone()
    near[0, 0], near[0, 1] = 1, 0
    loop = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]])  # not associative
    assert all(group_of(one) is None for one in (random, near, loop))


class Planted(Subject):
    """A network that adds modulo `n` by these frequencies of its embedding, or by heart."""

    def __init__(self, n: int, weights: dict[int, float], *, by_heart: bool = False) -> None:
        at = torch.arange(n, dtype=torch.float64)
        waves = {k: torch.stack([(2 * math.pi * k * at / n).cos(), (2 * math.pi * k * at / n).sin()], 1) for k in weights}
        noise = 0.01 * torch.rand(n + 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        W_E = torch.cat([*(torch.cat([one, one[:1]]) * (1 + k / 99) for k, one in waves.items()), noise], 1)
        self.model: Any = SimpleNamespace(embed=SimpleNamespace(W_E=W_E))
        self.cfg: Any = SimpleNamespace(d_vocab=n + 1, d_vocab_out=n + 1, n_ctx=3, attention_dir="causal")
        self.n, self.waves, self.weights, self.by_heart = n, waves, weights, by_heart
        self.several, self.sets = False, [(token,) for token in range(n + 1)]
        self._number = {tokens: at for at, tokens in enumerate(self.sets)}

    def logits(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.by_heart:
            return 9.0 * torch.nn.functional.one_hot((tokens[:, :1] + tokens[:, 1:2]) % self.n, self.n + 1).expand(-1, 3, -1)
        out = torch.zeros(len(tokens), self.n + 1, dtype=torch.float64)
        for number, (k, weight) in enumerate(self.weights.items()):
            a, b = (self.model.embed.W_E[tokens[:, place], 2 * number : 2 * number + 2] for place in (0, 1))
            cos, sin = a[:, 0] * b[:, 0] - a[:, 1] * b[:, 1], a[:, 0] * b[:, 1] + a[:, 1] * b[:, 0]
            out[:, : self.n] += weight * torch.stack([cos, sin], 1) @ self.waves[k].T
        return out[:, None].expand(-1, 3, -1)


def sums(n: int, count: int) -> Prompts:
    dice = torch.Generator().manual_seed(1)
    rows = torch.cat([torch.randint(n, (count, 2), generator=dice), torch.full((count, 1), n)], 1).tolist()
    return Prompts.of_rows(rows, right=tuple({2: ((a + b) % n,)} for a, b, _ in rows))


def test_planted_frequencies_come_out_with_the_identity_as_the_program(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cutaway.explain.fitting.node_proposals", lambda *_: [])  # there are no nodes to read
    subject, prompts = Planted(23, {3: 2.0}), sums(23, 300)
    fitted = fit(subject, subject.answered(prompts))
    found = fitted.spectrum
    assert found is not None and found.names == ("3",) and found.largest and found.identity > 0.99
    assert found.removed < 0.2 and found.kept >= 0.99
    alone: dict[str, Any] = {}
    exec(as_python(fitted.program), alone)  # our own file
    assert "math.cos(2 * math.pi * 3 * t / 23)" in as_python(fitted.program)
    for a, b in itertools.product(range(23), repeat=2):
        assert alone["predict"]([a, b, 23]) == {2: (a + b) % 23} == programs.predict(fitted.program, [a, b, 23])


def test_sums_learnt_by_heart_are_a_table_and_no_waves():
    subject, prompts = Planted(23, {3: 1.0}, by_heart=True), sums(23, 300)
    part = subject.answered(prompts)
    product = product_of(subject, part)
    assert product is not None
    assert traces(subject, product, setting_of(subject, part)) is None


def test_the_published_sum_is_carried_by_the_two_largest_frequencies_of_its_embedding(shared: Path):
    folder = shared / "data" / "subjects" / "modular_addition_113"
    model = HookedTransformer.from_pretrained(str(folder), center_unembed=False)
    prompts = Prompts.read(folder / "train.jsonl", model.tokenizer)[:800]
    subject = Subject(model, prompts)
    part = subject.answered(prompts)
    product = product_of(subject, part)
    assert product is not None
    found = traces(subject, product, setting_of(subject, part))
    assert found is not None and found[1].names == ("36", "52") and found[1].largest and found[1].identity > 0.9
