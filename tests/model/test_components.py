"""Components: what is listed for a reader sums to the stream there; labels are read back as they are printed."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import UnknownName
from cutaway.model import components
from cutaway.model.components import Component, parse
from cutaway.model.frozen_norms import FINAL, frozen_norm, norm_module, norms_of
from cutaway.runs.decompose import along, written
from tests.architectures import ALL, CAUSAL, network, some_tokens


def every_component(cfg: object) -> list[Component]:
    """All writers and readers, neurons and whole attention layers too."""
    neurons = [] if cfg.attn_only else [layer for layer in range(cfg.n_layers) if not cfg.is_moe(layer)]
    found = [*components.writers(cfg), *components.writers(cfg, by_head=False, neurons=neurons), *components.readers(cfg)]
    return list(dict.fromkeys([*found, components.BIASES]))


@pytest.mark.parametrize("how", ["heads", "layers", "neurons"])
@pytest.mark.parametrize("name", ALL)
def test_components_sum_to_the_stream_at_every_reader(name: str, how: str) -> None:
    model = network(name).double()
    cfg = model.cfg
    layers = [layer for layer in range(cfg.n_layers) if not cfg.is_moe(layer)] if how == "neurons" and not cfg.attn_only else []
    with torch.no_grad():
        _, cache = model.run_with_cache(some_tokens())
        for reader in components.readers(cfg):
            parts = components.writers(cfg, reader, by_head=how != "layers", neurons=layers)
            site = components.stream_site(cfg, reader)
            if site not in cache:  # `hook_mlp_in` is kept only where a flag says so
                site = site.replace("hook_mlp_in", "hook_resid_pre" if cfg.parallel_attn_mlp else "hook_resid_mid")
            stack = written(model, cache.cache_dict, parts)
            torch.testing.assert_close(stack.sum(0), cache[site], atol=1e-9, rtol=0)
            direction = torch.linspace(-1, 1, cfg.d_model, dtype=torch.double).expand_as(cache[site])
            read = along(model, cache.cache_dict, parts, direction)
            torch.testing.assert_close(read, (stack * direction).sum(-1), atol=1e-9, rtol=0)
        gathered = components.gathered(components.writers(cfg, neurons=layers))
        resid = cache[components.stream_site(cfg, components.LOGITS)]
        torch.testing.assert_close(written(model, cache.cache_dict, gathered).sum(0), resid, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_the_sites_that_are_named_are_enough(name: str) -> None:
    model = network(name)
    for one in every_component(model.cfg):
        if one.writes:
            sites = components.sites(model.cfg, [one])
            _, cache = model.run_with_cache(some_tokens(), names_filter=sites or ["hook_embed"])
            assert written(model, cache.cache_dict, [one], (3, 9)).shape == (1, 3, 9, model.cfg.d_model)


@pytest.mark.parametrize("name", ALL)
def test_labels_are_read_as_they_are_printed(name: str) -> None:
    cfg = network(name).cfg
    every = every_component(cfg)
    assert len(set(map(str, every))) == len(every), "two components have one label"
    assert [parse(str(one), cfg) for one in every] == every
    assert [parse(one, cfg) for one in every] == every


def test_order_says_who_reads_what() -> None:
    cfg, side_by_side = network("gpt2").cfg, network("gpt-j").cfg

    def reads(cfg: object, writer: str, reader: str) -> bool:
        return components.reaches(cfg, parse(writer, cfg), parse(reader, cfg))

    for writer, reader, expected in (
        ("embed", "0.0.q", True), ("0.1", "0.2.k", False), ("0.1", "1.2.k", True), ("0.mlp", "0.mlp", False),
        ("0.mlp.3", "1.0.v", True), ("1.mlp", "logits", True), ("bias", "logits", True),
    ):  # fmt: skip
        assert reads(cfg, writer, reader) == reads(side_by_side, writer, reader) == expected
    assert reads(cfg, "0.1", "0.mlp") and not reads(side_by_side, "0.1", "0.mlp")  # parallel blocks read one stream
    assert components.readers(network("llama").cfg)[4:6] == [Component("reads", 0, 0, "k"), Component("reads", 0, 1, "k")]


def test_the_spellings_of_others_are_named() -> None:
    cfg = network("gpt2").cfg
    for wrong, right in (
        ("mlp1", "1.mlp"), ("1_mlp_out", "1.mlp"), ("L1H2", "1.2"), ("a1.h2", None), ("A1.2", "1.2"), ("L1N4", "1.mlp.4"),
        ("m0", "0.mlp"), ("pos", "pos_embed"),
    ):  # fmt: skip
        with pytest.raises(UnknownName, match=r"write a head as '0.3'") as caught:
            parse(wrong, cfg)
        assert right is None or f"did you mean '{right}'?" in str(caught.value)
    for wrong, why in (("2.0", "2 layers of 4 heads"), ("0.4", "of 4 heads"), ("0.mlp.30", "30 neurons"), ("5.mlp", "2 layers")):
        with pytest.raises(UnknownName, match=why):
            parse(wrong, cfg)
    for name, wrong, why in (
        ("attention only", "0.mlp", "attention only"), ("mixture", "1.mlp.3", "mixture of experts"),
        ("llama", "pos_embed", "rotary"),
    ):  # fmt: skip
        with pytest.raises(UnknownName, match=why):
            parse(wrong, network(name).cfg)
    for wrong in (3, None, True, "", "0.", "0.1.x", "٣.1", " 0.1", "0.1 "):
        with pytest.raises(UnknownName, match="no component is called"):
            parse(wrong, cfg)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_frozen_norm_is_the_norm_less_its_bias(name: str) -> None:
    model = network(name).double()
    for norm, site in norms_of(model.cfg).items():
        with torch.no_grad():
            x = torch.randn(2, 3, model.cfg.d_model, dtype=torch.double, generator=torch.Generator().manual_seed(1))
            module, seen = norm_module(model, norm), {}
            handle = module.hook_scale.register_forward_hook(lambda _, __, out, seen=seen: seen.update(scale=out))
            out = module(x)
            handle.remove()
            frozen = frozen_norm(model, norm, seen["scale"])
            whole = frozen(x) if frozen.bias is None else frozen(x) + frozen.bias
            torch.testing.assert_close(whole, out, atol=1e-9, rtol=0)
            parts = torch.stack([x * 0.3, x * 0.7])
            torch.testing.assert_close(frozen(parts).sum(0), frozen(x), atol=1e-9, rtol=0)
            direction = torch.randn_like(x)
            read = (x * frozen.transposed(direction)).sum(-1)
            torch.testing.assert_close(read, (frozen(x) * direction).sum(-1), atol=1e-9, rtol=0)
            assert site.endswith("hook_scale")
    assert frozen_norm(network("no norm, shortformer"), FINAL)(torch.ones(3)).tolist() == [1, 1, 1]
