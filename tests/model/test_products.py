"""Products of activations with weights: the right numbers, and the usual way wherever somebody looks into them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from cutaway.model import kernels, products
from cutaway.model.products import SMALLEST, linear, linear_by_head

needs_onednn = pytest.mark.skipif(not kernels.has_onednn(), reason="this Torch has no kernel of oneDNN that we use")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of inputs that went to oneDNN, as if it were the fastest everywhere."""
    seen: list[torch.Size] = []
    found = kernels.KERNELS["onednn"]

    def product(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        seen.append(x.shape)
        return found(x, W, b)

    def always(x: torch.Tensor, W: torch.Tensor, *, gradient: bool) -> str:
        return "onednn" if "onednn" in kernels.candidates(kernels.class_of(x, W, gradient=gradient)) else "linear"

    monkeypatch.setitem(kernels.KERNELS, "onednn", product)
    monkeypatch.setattr(products, "kernel_for", always)
    return seen


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=2),
    st.sampled_from([(1, 3), (64, 300), (301, 1000)]),
    st.booleans(),
    st.booleans(),
)
def test_it_is_x_times_W_plus_b(rest: list[int], sizes: tuple[int, int], bias: bool, turned: bool):
    x, W = drawn(*rest, sizes[0]), drawn(*sizes)
    W = W.T.contiguous().T if turned else W
    b = drawn(sizes[1]) if bias else None
    with torch.no_grad():
        out = linear(x, W, b)
    wanted = (x.double() @ W.double() + (0 if b is None else b.double())).float()
    torch.testing.assert_close(out, wanted, atol=2e-5, rtol=2e-5)


@given(st.lists(st.integers(1, 5), max_size=3), st.sampled_from([(1, 2, 3), (3, 80, 800), (2, 301, 1000)]), st.booleans())
def test_each_head_has_its_own_W(rest: list[int], sizes: tuple[int, int, int], turned: bool):
    x, W = drawn(*rest, *sizes[:2]), drawn(*sizes)
    W = W.transpose(0, 1).contiguous().transpose(0, 1) if turned else W
    with torch.no_grad():
        out = linear_by_head(x, W)
    wanted = torch.stack([x[..., head, :].double() @ W[head].double() for head in range(len(W))], -2)
    torch.testing.assert_close(out, wanted.float(), atol=2e-5, rtol=2e-5)


@needs_onednn
def test_products_by_head_go_to_onednn_where_each_is_large(called: list[torch.Size]):
    x, W = drawn(2, 40, 3, 64), drawn(3, 64, 128)
    with torch.no_grad():
        linear_by_head(x, W)
        assert called == [(2, 40, 64)] * 3
        linear_by_head(x[:, :4], W)
        linear_by_head(x.double(), W.double())
    assert len(called) == 3


def test_gradients_of_products_by_head():
    x, W = drawn(2, 40, 3, 64).requires_grad_(), drawn(3, 64, 128).requires_grad_()
    found = torch.autograd.grad(linear_by_head(x, W).square().sum(), (x, W))
    wanted = torch.autograd.grad(torch.einsum("bphi,hio->bpho", x, W).square().sum(), (x, W))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


@needs_onednn
def test_large_products_go_to_onednn_and_parts_of_tensors_too(called: list[torch.Size]):
    x, W = drawn(9, 40, 130), drawn(130, 200)
    with torch.no_grad():
        out = linear(x[2:7, ::3, 1:129], W[:128])
    assert called == [(5, 14, 128)]
    torch.testing.assert_close(out, x[2:7, ::3, 1:129] @ W[:128])


@needs_onednn
@pytest.mark.parametrize("turned", [False, True])
def test_onednn_is_given_weights_without_gaps(monkeypatch: pytest.MonkeyPatch, called: list[torch.Size], turned: bool):
    seen: list[torch.Tensor] = []
    found = torch.ops.mkldnn._linear_pointwise

    def kernel(x: torch.Tensor, Wt: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(Wt)
        out: torch.Tensor = found(x, Wt, *rest)
        return out

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", kernel)
    x, heads = drawn(64, 128), drawn(128, 512)
    cut = drawn(512, 128)[128:256].T if turned else heads[:, 128:256]
    with torch.no_grad():
        torch.testing.assert_close(linear(x, cut), x @ cut, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(linear(x, heads.T.contiguous()[::4].T), x @ heads[:, ::4], rtol=1e-4, atol=1e-4)
    assert len(called) == len(seen) == 2 and all(Wt.is_contiguous() or Wt.T.is_contiguous() for Wt in seen)


@needs_onednn
def test_small_products_and_other_precisions_go_the_usual_way(called: list[torch.Size]):
    with torch.no_grad():
        linear(drawn(4, 8), drawn(8, SMALLEST // 32 - 1))
        for dtype in (torch.float64, torch.bfloat16):
            linear(drawn(64, 128).to(dtype), drawn(128, 128).to(dtype))
    assert called == []


@needs_onednn
@pytest.mark.parametrize("wanted", ["xWb", "x", "W", "b", "xb"])
def test_gradients_are_those_of_the_plain_product(called: list[torch.Size], wanted: str):
    given = dict(zip("xWb", (drawn(4, 16, 128), drawn(128, 130), drawn(130)), strict=True))
    some = [given[name].requires_grad_() for name in wanted]
    found = torch.autograd.grad(linear(*given.values()).square().sum(), some)
    assert called
    x, W, b = given.values()
    for one, other in zip(found, torch.autograd.grad(F.linear(x, W.T, b).square().sum(), some), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


@needs_onednn
def test_gradients_have_gradients():
    x, W = drawn(64, 128).requires_grad_(), drawn(128, 128).requires_grad_()

    def twice(out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, W))

    for one, other in zip(twice(linear(x, W)), twice(F.linear(x, W.T)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1)


def test_transforms_of_torch_go_through():
    x, W = drawn(3, 64, 128), drawn(128, 128)
    assert torch.equal(torch.func.vmap(lambda one: linear(one, W))(x), x @ W)
    one = torch.func.grad(lambda y: linear(y, W).square().sum())(x)
    torch.testing.assert_close(one, 2 * (x @ W) @ W.T, rtol=1e-4, atol=1e-2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # Torch's own, on its way there
def test_derivatives_forward_are_not_lost():
    x, W = drawn(64, 128), drawn(128, 128)
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(linear(forward_ad.make_dual(x, x), W)).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, x @ W)
    torch.testing.assert_close(torch.func.jvp(lambda y: linear(y, W), (x,), (x,))[1], x @ W)


def test_operations_are_counted():
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        linear(drawn(64, 128), drawn(128, 128))
    assert counter.get_total_flops() == 2 * 64 * 128 * 128


@needs_onednn
def test_it_is_off_under_autocast_and_where_torch_has_it_off(called: list[torch.Size]):
    x, W = drawn(64, 128), drawn(128, 128)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x, W).dtype is torch.bfloat16
    torch._C._set_mkldnn_enabled(False)
    try:
        with torch.no_grad():
            linear(x, W)
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert called == []
    with torch.no_grad():
        linear(x, W)
    assert len(called) == 1


@needs_onednn
def test_compiled_functions_hold_the_plain_product(called: list[torch.Size]):
    x, W, b = drawn(64, 128), drawn(128, 128), drawn(128)
    found = torch.export.export(_Affine(), (x, W, b)).module()(x, W, b)
    torch.testing.assert_close(found, x @ W + b)
    assert called == []


class _Affine(torch.nn.Module):
    def forward(self, x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return linear(x, W, b)


def test_a_bias_of_zeros_is_not_added_and_counts_where_it_has_a_gradient():
    x, W, b = drawn(4, 16, 128), drawn(128, 130), torch.zeros(130)
    with torch.no_grad():
        assert torch.equal(linear(x, W, b), linear(x, W))
        assert linear(x, W, b.clone().fill_(torch.nan)).isnan().all()
        assert torch.equal(linear(x, W, b.clone().index_fill_(0, torch.tensor([7]), 1.0))[..., 7], linear(x, W)[..., 7] + 1)
    b.requires_grad_()
    assert torch.equal(torch.autograd.grad(linear(x, W, b).sum(), b)[0], torch.full((130,), 64.0))


HALVES = st.sampled_from(kernels.HALVES)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=2), HALVES, st.booleans(), st.booleans())
def test_widened_products_are_rounded_once(rest: list[int], dtype: torch.dtype, bias: bool, turned: bool):
    x, W = drawn(*rest, 300).to(dtype), drawn(300, 400).to(dtype)
    W = W.T.contiguous().T if turned else W
    b = drawn(400).to(dtype) if bias else None
    found = kernels.KERNELS["widened"](x, W, b)
    wanted = x.double() @ W.double() + (0 if b is None else b.double())
    last_place = torch.finfo(dtype).eps / 2
    assert found.dtype is dtype and found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, rtol=1.01 * last_place, atol=1e-4)


@pytest.mark.parametrize("dtype", kernels.HALVES)
def test_widening_piece_by_piece_changes_nothing(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    x, W, b = drawn(5, 300).to(dtype), drawn(300, 400).to(dtype), drawn(400).to(dtype)
    whole = kernels.KERNELS["widened"](x, W, b)
    monkeypatch.setattr(kernels, "PIECE", 300 * 64)
    torch.testing.assert_close(kernels.KERNELS["widened"](x, W, b), whole, rtol=torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("dtype", kernels.HALVES)
def test_gradients_of_widened_products(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    monkeypatch.setattr(products, "kernel_for", lambda *_, **__: "widened")
    x, W, b = (t.to(dtype).requires_grad_() for t in (drawn(4, 16, 128), drawn(128, 130), drawn(130)))
    found = torch.autograd.grad(linear(x, W, b).sum(), (x, W, b))
    wide = [t.detach().double().requires_grad_() for t in (x, W, b)]
    wanted = torch.autograd.grad((wide[0] @ wide[1] + wide[2]).sum(), wide)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=4 * torch.finfo(dtype).eps, atol=0.1)
