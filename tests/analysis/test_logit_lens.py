"""The logit lens: every figure from the plain distributions; the last row is the model; components are their logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cutaway.analysis import logit_lens as room
from cutaway.analysis.attribution import attribute
from cutaway.analysis.logit_lens import lens
from cutaway.errors import MissingActivation, UnknownName
from cutaway.tokens import CharTokenizer
from tests.architectures import ALL, network, some_tokens


def plain_facts(logits: torch.Tensor, final: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """The slow way, for `[pos, vocab]` logits."""
    row, end = logits.softmax(-1), final.softmax(-1)
    own = row.gather(1, targets[:, None])
    return {
        "values": own[:, 0],
        "rank": (row > own).sum(1),
        "kl": (end * (end.log() - row.log())).sum(1),
        "entropy": -(row * row.log()).sum(1),
        "top": row.argsort(descending=True)[:, :3],
    }


@pytest.mark.parametrize("name", ALL)
def test_every_row_is_the_distribution_of_its_stream(name: str) -> None:
    model, tokens = network(name), some_tokens()
    _, cache = model.run_with_cache(tokens)
    found = lens(cache, tokens, k=3)
    assert found.values.names("row") == ("0_pre", "1_pre", "final")
    for index, stream in enumerate([cache["resid_pre", 0], cache["resid_pre", 1], cache["resid_post", 1]]):
        with torch.no_grad():
            logits, final = model.logits_of(stream), model.logits_of(cache["resid_post", 1])
        for example in range(3):
            facts = plain_facts(logits[example, :-1], final[example, :-1], tokens[example, 1:])
            for key in ("values", "rank", "kl", "entropy"):
                got = getattr(found, key).data[index, example, :-1]
                assert torch.allclose(got.float(), facts[key].float(), atol=1e-5), key
            assert torch.equal(found.top[index, example, :-1], facts["top"])
    assert bool(found.values.data[..., -1].isnan().all()) and bool((found.rank.data[..., -1] == -1).all())
    assert float(found.kl.data[-1].abs().max()) == 0


@pytest.mark.parametrize("name", ["attention only", "gpt2", "llama", "final rms"])
def test_components_are_their_part_of_the_logits(name: str) -> None:
    model, tokens = network(name, dtype="float64"), some_tokens()
    found = lens(model, tokens, of=["embed", "0.1", "1.attn"], targets=4)
    _, cache = model.run_with_cache(tokens)
    shares = attribute(cache, targets=4).values
    for component in ("embed", "0.1"):
        logits = torch.stack([attribute(cache, targets=t).values.sel(component=component).data for t in range(13)], -1)
        expected = logits.log_softmax(-1)[..., 4].exp()
        got = found.values.sel(row=component).data
        assert torch.allclose(got.double(), expected, atol=1e-5)
    assert shares.names("component")[0] == "embed"


def test_groups_of_components() -> None:
    model, tokens = network("gpt2"), some_tokens()
    assert lens(model, tokens, of="heads").values.names("row")[-1] == "1.3"
    assert lens(model, tokens, of="attn_out").values.names("row") == ("0.attn", "1.attn")
    assert lens(model, tokens, of="mlp_out").values.names("row") == ("0.mlp", "1.mlp")
    assert lens(model, tokens, middle=True).values.names("row") == ("0_pre", "0_mid", "1_pre", "1_mid", "final")
    with pytest.raises(UnknownName, match="no mlp_out"):
        lens(network("attention only"), tokens, of="mlp_out")
    with pytest.raises(UnknownName, match=r"no component '7.9'"):
        lens(model, tokens, of=["7.9"])


def test_pieces_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = network("gpt2"), some_tokens()
    whole = lens(model, tokens)
    monkeypatch.setattr(room, "ENTRIES", 13 * 4)
    pieces = lens(model, tokens)
    assert torch.allclose(whole.values.data, pieces.values.data, atol=1e-6, equal_nan=True)
    assert torch.equal(whole.top, pieces.top) and torch.equal(whole.final, pieces.final)


def test_means_and_pictures() -> None:
    model, tokens = network("gpt2"), some_tokens()
    found = lens(model, tokens)
    assert torch.allclose(found.by_row().values.data, found.values.data[..., :-1].mean((1, 2)), atol=1e-6)
    assert torch.allclose(found.kl_by_row().values.data, found.kl.data.mean((1, 2)), atol=1e-6)
    words = [str(token) for token in tokens[1].tolist()]
    assert found.figure(1, words).meta["panels"][0]["text"] == found.tops(1)
    assert found.curve().view == "lines"
    assert "final: " in found.summary() and "100%" in found.summary().splitlines()[-1]


def test_padding_counts_nowhere() -> None:
    model = network("gpt2")
    model.set_tokenizer(CharTokenizer(list("abcdefghijk?_"), bos_token="?", pad_token="_"))
    texts = ["abcdefgh", "kab"]
    both, alone = lens(model, texts), [lens(model, text) for text in texts]
    assert int(both.kl.data[0].isnan().sum()) == int(both.entropy.data[0].isnan().sum()) == 5
    lengths = [one.kl.shape[2] for one in alone]
    for index in range(3):
        together = torch.cat([one.kl.data[index, 0] for one in alone])
        assert torch.allclose(both.kl_by_row().values.data[index], together.mean(), atol=1e-5)
        shares = [float((one.top[index, 0, :, 0] == one.final[0]).sum()) for one in alone]
        assert both.summary().splitlines()[1 + index].endswith(f"{sum(shares) / sum(lengths):.0%}")


def test_without_targets_there_is_still_a_lens() -> None:
    model, tokens = network("gpt2"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    found = lens(cache)
    assert bool(found.values.data.isnan().all()) and not bool(found.kl.data.isnan().any())
    assert "target" not in found.summary() and found.summary().count("\n") == 3


def test_missing_streams_are_named() -> None:
    model, tokens = network("gpt2"), some_tokens()
    cache: Any = model.run_with_cache(tokens, names_filter="blocks.0.hook_resid_pre")[1]
    with pytest.raises(MissingActivation, match=r"lens needs 'blocks.1.hook_resid_pre', 'blocks.1.hook_resid_post'"):
        lens(cache, tokens)
