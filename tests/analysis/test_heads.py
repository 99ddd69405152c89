"""Heads: averages over masks equal the loops; kinds; the standard measurement; bad input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cutaway import ActivationCache, CharTokenizer
from cutaway.analysis.heads import KINDS, average_over, fewest_tokens, head_scores, kind_mask, on_random_repeats, random_repeats
from cutaway.errors import MissingActivation, ShapeError, TokenError, UnknownName
from tests.architectures import ALL, network, some_tokens


def loop_average(pattern: torch.Tensor, condition: Callable[[int, int], bool]) -> torch.Tensor:
    """The pairs of one pattern [head, dest, src] one by one."""
    n_head, n_query, n_key = pattern.shape
    chosen = [(q, k) for q in range(n_query) for k in range(n_key) if condition(q, k)]
    return torch.stack([sum((pattern[h, q, k] for q, k in chosen), torch.zeros(())) / len(chosen) for h in range(n_head)])


def loop_occurrence(tokens: list[int], ahead: int) -> Callable[[int, int], bool]:
    """Whether the key is the last earlier occurrence of the query's token, or `ahead` of it."""
    last: dict[int, int] = {}
    repeats: dict[int, int] = {}
    for position, token in enumerate(tokens):
        if token in last:
            repeats[position] = last[token]
        last[token] = position
    return lambda q, k: q in repeats and repeats[q] + ahead == k


def conditions(tokens: list[int]) -> dict[str, Callable[[int, int], bool]]:
    return {
        "current": lambda q, k: q == k,
        "previous": lambda q, k: q == k + 1,
        "first": lambda q, k: k == 0,
        "duplicate": lambda q, k: k < q and tokens[q] == tokens[k],
        "last_occurrence": loop_occurrence(tokens, 0),
        "induction": loop_occurrence(tokens, 1),
    }


def test_kinds_equal_the_loops() -> None:
    model, tokens = network("gpt2"), some_tokens(length=16)
    _, cache = model.run_with_cache(tokens)
    found = head_scores(cache, tokens)
    assert found.values.names("kind") == tuple(KINDS)
    for example, row in enumerate(tokens.tolist()):
        for kind, condition in conditions(row).items():
            for layer in range(2):
                expected = loop_average(cache["pattern", layer][example], condition)
                heads = [f"{layer}.{head}" for head in range(4)]
                got = found.values.sel(kind=kind, head=heads, batch=example).data
                assert torch.allclose(got, expected, atol=1e-6), (kind, layer, example)


@pytest.mark.parametrize("name", ALL)
def test_a_model_and_its_cache_agree(name: str) -> None:
    model, tokens = network(name), some_tokens(batch=5, length=12)
    _, cache = model.run_with_cache(tokens)
    streamed = head_scores(model, tokens, batch_size=2).values.data
    assert torch.allclose(streamed, head_scores(cache, tokens).values.data, atol=1e-6, equal_nan=True)
    assert not any(point.fwd_hooks for point in model.hook_points())


@pytest.mark.parametrize("share", [0.02, 0.6])
@pytest.mark.parametrize("batch", [1, 3])
def test_sparse_and_dense_masks_equal_indexing(share: float, batch: int) -> None:
    pattern = torch.rand(3, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(batch, 12, 12, generator=torch.Generator().manual_seed(1)) < share
    found = average_over(pattern, mask)
    for example in range(3):
        expected = pattern[example][:, mask[example % batch if batch > 1 else 0]].mean(-1)
        assert torch.allclose(found[example], expected, equal_nan=True)


def test_conditions_may_be_functions_of_tensors_or_of_numbers() -> None:
    pattern = torch.rand(4, 9, 9)
    repeats = {3: 1, 7: 2}
    by_number = average_over(pattern, lambda q, k: q in repeats and repeats[q] == k)
    assert torch.allclose(by_number, (pattern[:, 3, 1] + pattern[:, 7, 2]) / 2)
    assert torch.allclose(average_over(pattern, lambda q, k: (q > 2) & (k == 0)), pattern[:, 3:, 0].mean(-1))
    assert torch.allclose(average_over(pattern[None], lambda q, k: q == k)[0], pattern.diagonal(0, 1, 2).mean(-1))


def test_a_condition_of_ones_own_on_a_model() -> None:
    model, tokens = network("attention only"), some_tokens()
    found = average_over(model, lambda q, k: k + 2 == q, tokens)
    _, cache = model.run_with_cache(tokens)
    expected = torch.cat([cache["pattern", layer].diagonal(-2, 2, 3).mean(-1) for layer in range(2)], 1).T
    assert torch.allclose(found.data, expected, atol=1e-6)


def test_even_attention_is_the_baseline() -> None:
    tokens = torch.tensor([[0, 1, 2, 1]])
    model = network("attention only")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_()
            block.attn.b_Q.zero_()
    found = head_scores(model, tokens)
    even = found.baseline.data[:, None].expand(-1, 8)
    assert torch.allclose(found.mean.data, even, atol=1e-6)
    assert torch.allclose(found.baseline.data, torch.tensor([25 / 48, (1 / 2 + 1 / 3 + 1 / 4) / 3, 25 / 48, 1 / 4, 1 / 4, 1 / 4]))


def test_the_fewest_tokens_are_those_from_which_on_even_attention_is_low() -> None:
    model = network("gpt2")
    for kind in ("current", "previous", "first"):
        fewest = fewest_tokens(kind, 0.4)
        even = [head_scores(model, torch.arange(length)[None], kinds=[kind]).baseline.item() for length in (fewest - 1, fewest)]
        assert even[1] <= 0.4 < even[0]
    assert fewest_tokens("current", 0.25, causal=False) == 4
    with pytest.raises(ShapeError, match="compares tokens"):
        fewest_tokens("induction", 0.4)
    with pytest.raises(ShapeError, match="above 0"):
        fewest_tokens("current", 0.0)


def test_one_example_is_one_example() -> None:
    model = network("gpt2")
    assert head_scores(model, some_tokens(1)).summary().splitlines()[0].endswith("over 1 example")
    assert head_scores(model, some_tokens(2)).summary().splitlines()[0].endswith("over 2 examples")


def test_planted_heads_are_reported() -> None:
    pattern = torch.zeros(2, 4, 12, 12)
    tokens = some_tokens(batch=2, length=6).repeat(1, 2)
    pattern[:, 0] = torch.eye(12)
    pattern[:, 1, 1:] = torch.eye(12)[:-1]
    pattern[:, 2] = kind_mask("induction", tokens, 12).float()
    pattern[:, 3, :, 0] = 1
    cache = ActivationCache({f"blocks.{l}.attn.hook_pattern": pattern for l in range(2)}, network("attention only"))
    found = head_scores(cache, tokens)
    report = found.report(threshold=0.9)
    assert report["current"] == ["0.0", "1.0"] and report["previous"] == ["0.1", "1.1"]
    assert report["induction"] == ["0.2", "1.2"] and report["first"] == ["0.3", "1.3"]
    assert "induction (the token after the last earlier occurrence): 0.2 1.00, 1.2 1.00" in found.summary(0.9)
    assert found.figure().meta["kinds"] == list(KINDS)
    assert found.grid("first").shape == (2, 4)


def test_padding_does_not_count() -> None:
    model = network("gpt2", d_vocab=5)
    model.set_tokenizer(CharTokenizer(list("abc?_"), bos_token="?", pad_token="_"))
    for side in ("left", "right"):
        model.default_padding_side = side
        together = head_scores(model, ["abcabc", "ab"])
        for index, text in enumerate(["abcabc", "ab"]):
            alone = head_scores(model, [text]).values.data[..., 0]
            assert torch.allclose(together.values.data[..., index], alone, atol=1e-5, equal_nan=True), (side, text)


def test_random_repeats_come_twice() -> None:
    model = network("attention only", d_vocab=30)
    tokens = random_repeats(model, length=7, examples=4)
    assert torch.equal(tokens[:, :7], tokens[:, 7:])
    assert all(len(set(row)) == 7 for row in tokens[:, :7].tolist())
    assert torch.equal(tokens, random_repeats(model, length=7, examples=4))
    assert not torch.equal(tokens, random_repeats(model, length=7, examples=4, seed=1))
    assert on_random_repeats(model, examples=2).values.shape == (6, 8, 2)
    model.set_tokenizer(CharTokenizer([chr(97 + i) for i in range(29)] + ["?"], bos_token="?"))
    with_bos = random_repeats(model, length=5)
    assert bool((with_bos[:, 0] == 29).all()) and not bool((with_bos[:, 1:] == 29).any())
    with pytest.raises(ShapeError, match="give 1 to 9"):
        random_repeats(model, length=10)


def test_what_cannot_be_scored_is_said() -> None:
    model, tokens = network("attention only"), torch.arange(8)[None]
    with pytest.raises(TokenError, match=r"no token of this text is repeated.*induction"):
        head_scores(model, tokens, kinds=["induction"])
    assert "induction: no pair of positions" in head_scores(model, tokens).summary()
    with pytest.raises(UnknownName, match="did you mean 'induction'"):
        head_scores(model, tokens, kinds=["inducton"])
    with pytest.raises(ShapeError, match="pass tokens"):
        head_scores(model)
    _, cache = model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_pattern")
    cache = cache if isinstance(cache, ActivationCache) else ActivationCache(cache, model)
    with pytest.raises(MissingActivation, match=r"'blocks.1.attn.hook_pattern', which this run did not keep"):
        head_scores(cache, tokens)
    _, cache = model.run_with_cache(tokens)
    assert head_scores(cache).values.names("kind") == ("current", "previous", "first")
    with pytest.raises(ShapeError, match="'induction' compares tokens"):
        head_scores(cache, kinds=["induction"])
    with pytest.raises(ShapeError, match="6 positions, but the patterns 8 keys"):
        head_scores(cache, tokens[:, :6])


def test_masks_must_be_masks() -> None:
    pattern = torch.rand(4, 9, 9)
    with pytest.raises(ShapeError, match="boolean mask"):
        average_over(pattern, torch.ones(9, 9))
    with pytest.raises(ShapeError, match="9 queries × 9 keys"):
        average_over(pattern, torch.ones(8, 9, dtype=torch.bool))
