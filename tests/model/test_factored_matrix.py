"""Factored matrices against the plain product: whatever is asked of the factors, the dense matrix answers the same."""

import pytest
import torch
from torch import Tensor

from cutaway.errors import ShapeError
from cutaway.model.factored_matrix import FactoredMatrix, composition_scores

SIZES = [(10, 4, 10), (10, 4, 8), (5, 9, 7), (6, 6, 6), (3, 8, 12), (9, 2, 3)]  # l, m, r
LEADS = [(), (3,), (2, 3)]


def factored(l: int, m: int, r: int, lead: tuple[int, ...] = (), seed: int = 0) -> FactoredMatrix:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(*lead, l, m, generator=generator, dtype=torch.float64)
    B = torch.randn(*lead, m, r, generator=generator, dtype=torch.float64)
    return FactoredMatrix(A, B)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(params=[(size, lead) for size in SIZES for lead in LEADS], ids=str)
def matrix(request: pytest.FixtureRequest) -> FactoredMatrix:
    (l, m, r), lead = request.param
    return factored(l, m, r, lead)


def test_spectra_are_those_of_the_product(matrix: FactoredMatrix) -> None:
    dense = matrix.A @ matrix.B
    k = min(matrix.ldim, matrix.mdim, matrix.rdim)
    assert matrix.U.shape == (*matrix.shape[:-2], matrix.ldim, k)
    assert matrix.Vh.shape == (*matrix.shape[:-2], matrix.rdim, k)  # columns, the dialect's habit
    torch.testing.assert_close(matrix.S, torch.linalg.svdvals(dense)[..., :k])
    torch.testing.assert_close(matrix.U * matrix.S[..., None, :] @ matrix.Vh.transpose(-2, -1), dense)
    eye = torch.eye(k, dtype=torch.float64).expand(*matrix.shape[:-2], k, k)
    torch.testing.assert_close(matrix.U.transpose(-2, -1) @ matrix.U, eye)
    torch.testing.assert_close(matrix.Vh.transpose(-2, -1) @ matrix.Vh, eye)
    torch.testing.assert_close(matrix.norm(), torch.linalg.matrix_norm(dense))


def test_other_factorings_are_the_same_matrix(matrix: FactoredMatrix) -> None:
    dense = matrix.A @ matrix.B
    torch.testing.assert_close(matrix.AB, dense)
    torch.testing.assert_close(matrix.T.AB, dense.transpose(-2, -1))
    even = matrix.make_even()
    torch.testing.assert_close(even.AB, dense)
    torch.testing.assert_close(even.A.norm(dim=-2), even.B.norm(dim=-1))
    torch.testing.assert_close(matrix.U @ matrix.collapse_l(), dense)
    torch.testing.assert_close(matrix.collapse_r() @ matrix.Vh.transpose(-2, -1), dense)
    torch.testing.assert_close((2.5 * matrix).AB, 2.5 * dense)
    torch.testing.assert_close((matrix * torch.tensor([[3.0]])).AB, 3 * dense)
    torch.testing.assert_close((torch.tensor(3.0) * matrix).AB, 3 * dense)
    torch.testing.assert_close(matrix.unsqueeze(0).AB, dense.unsqueeze(0))


def test_products_are_those_of_the_dense_matrix(matrix: FactoredMatrix) -> None:
    dense = matrix.A @ matrix.B
    right, left = random(matrix.rdim, 5), random(7, matrix.ldim)
    torch.testing.assert_close((matrix @ right).AB, dense @ right)
    torch.testing.assert_close((left @ matrix).AB, left @ dense)
    torch.testing.assert_close(matrix @ right[:, 0], dense @ right[:, 0])
    torch.testing.assert_close(left[0] @ matrix, left[0] @ dense)
    other = factored(matrix.rdim, 2, 6, seed=2)
    torch.testing.assert_close((matrix @ other).AB, dense @ other.AB)
    torch.testing.assert_close((other.T @ matrix.T).AB, (dense @ other.AB).transpose(-2, -1))


def test_products_meet_in_the_smallest_dimension() -> None:
    thin, wide = factored(10, 2, 10), factored(4, 9, 4)
    for product, hidden in [
        (thin @ random(10, 10), 2),
        (random(10, 10) @ thin, 2),
        (wide @ random(4, 10), 4),
        (random(10, 4) @ wide, 4),
        (thin @ factored(10, 3, 10), 2),
        (factored(10, 3, 10) @ thin, 2),
        (factored(10, 3, 10) @ thin @ factored(10, 1, 10), 1),
    ]:
        assert product.mdim == hidden


def test_eigenvalues_are_those_of_the_product_without_the_zeros() -> None:
    matrix = factored(10, 4, 10, (3,))
    dense = torch.linalg.eigvals(matrix.A @ matrix.B)
    largest = dense.gather(-1, dense.abs().argsort(dim=-1, descending=True)[:, :4])
    assert matrix.eigenvalues.shape == (3, 4)
    for power in (1, 2, 3, 4):  # power sums tell the sets apart whatever their order
        torch.testing.assert_close(matrix.eigenvalues.pow(power).sum(-1), largest.pow(power).sum(-1))


def test_leading_axes_broadcast() -> None:
    matrix = FactoredMatrix(random(2, 1, 5, 3), random(4, 3, 6))
    assert matrix.shape == (2, 4, 5, 6) and matrix.ndim == 4 and matrix.has_leading_dims
    assert [part.shape for part in matrix.pair] == [(2, 4, 5, 3), (2, 4, 3, 6)]
    torch.testing.assert_close((matrix @ random(4, 6, 2)).AB, matrix.AB @ random(4, 6, 2))
    assert not factored(3, 2, 3).has_leading_dims
    assert repr(factored(3, 2, 4)) == "FactoredMatrix: Shape(torch.Size([3, 4])), Hidden Dim(2)"


INDICES = [
    0,
    -1,
    slice(1, 3),
    [0, 2],
    torch.tensor([1, 0]),
    torch.tensor([True, False, True]),
    None,
    (1, 2),
    (slice(None), [0, 2]),
    (0, 1, [3, 1]),
    (0, slice(1, 3), [0, 1], slice(2)),
    ([0, 1], [1, 2], [0, 4], [1, 2]),
    (..., slice(2), slice(3)),
    (0, ..., slice(1, 2)),
    (None, 2, 1),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_a_part_of_the_matrix_is_the_part_of_the_product(index: object) -> None:
    matrix = factored(5, 2, 4, (3, 3))
    if isinstance(index, tuple) and len(index) == 4 and isinstance(index[3], list):  # rows × columns, not pairs of them
        expected = matrix.AB[index[0], index[1]][:, index[2]][..., index[3]]
    elif index == (0, slice(1, 3), [0, 1], slice(2)):
        expected = matrix.AB[0, 1:3, :2, :2]
    else:
        expected = matrix.AB[index]
    torch.testing.assert_close(matrix[index].AB, expected)


def test_rows_and_columns_stay_axes() -> None:
    matrix = factored(5, 2, 4, (3,))
    torch.testing.assert_close(matrix[1, 2].AB, matrix.AB[1, 2:3])
    torch.testing.assert_close(matrix[1, 2, 3].AB, matrix.AB[1, 2:3, 3:4])
    torch.testing.assert_close(matrix[:, -1, -2].AB, matrix.AB[:, -1:, -2:-1])
    torch.testing.assert_close(factored(5, 2, 4)[-1].AB, factored(5, 2, 4).AB[-1:])
    torch.testing.assert_close(matrix.get_corner(2), matrix.AB[:2, :2, :2])
    assert matrix.get_corner().shape == (3, 3, 3)


def test_half_precision_is_decomposed_in_full() -> None:
    full = FactoredMatrix(random(6, 2).bfloat16().float(), random(2, 6).bfloat16().float())
    half = FactoredMatrix(full.A.bfloat16(), full.B.bfloat16())
    assert half.S.dtype == torch.bfloat16 and half.norm().dtype == torch.bfloat16
    torch.testing.assert_close(half.S.float(), full.S, rtol=1e-2, atol=0)
    torch.testing.assert_close(half.norm().float(), full.norm(), rtol=1e-2, atol=0)
    assert half.eigenvalues.dtype == torch.complex64


def test_gradients_flow_even_after_a_decomposition_without_them() -> None:
    matrix = factored(6, 2, 5)
    matrix.A.requires_grad_()
    with torch.no_grad():
        before = matrix.S
    matrix.S.sum().backward()
    (dense,) = torch.autograd.grad(torch.linalg.svdvals(matrix.A @ matrix.B).sum(), matrix.A)
    torch.testing.assert_close(matrix.A.grad, dense)
    assert not before.requires_grad
    assert factored(6, 2, 5).svd()[0].grad_fn is None
    kept = factored(6, 2, 5)
    assert kept.svd()[0] is kept.svd()[0]


def test_what_does_not_fit_is_refused() -> None:
    matrix = factored(5, 2, 4)
    with pytest.raises(ShapeError, match=r"\(5, 2\) and \(3, 4\)"):
        FactoredMatrix(random(5, 2), random(3, 4))
    with pytest.raises(ShapeError, match="broadcast"):
        FactoredMatrix(random(2, 5, 2), random(3, 2, 4))
    with pytest.raises(ShapeError, match="4 rows"):
        matrix @ random(5, 5)
    with pytest.raises(ShapeError, match="4 rows"):
        matrix @ torch.tensor(2.0)
    with pytest.raises(ShapeError, match="5 columns"):
        random(4, 4) @ matrix
    with pytest.raises(ShapeError, match="square"):
        _ = matrix.eigenvalues
    with pytest.raises(ShapeError, match="use @"):
        matrix * random(5)
    with pytest.raises(ShapeError, match="does not index"):
        matrix[0, 0, 0]
    with pytest.raises(ShapeError, match="does not index"):
        matrix[0, None]
    with pytest.raises(ShapeError, match="matrix axes"):
        matrix.unsqueeze(1)
    with pytest.raises(TypeError):
        matrix @ "text"


def test_composition_scores_are_norms_of_products_over_products_of_norms() -> None:
    left, right = factored(6, 2, 5, (3, 2)), factored(5, 3, 4, (4,), seed=1)
    scores = composition_scores(left, right)
    assert scores.shape == (3, 2, 4)
    for i, j, k in [(0, 0, 0), (2, 1, 3), (1, 0, 2)]:
        a, b = left.AB[i, j], right.AB[k]
        torch.testing.assert_close(scores[i, j, k], (a @ b).norm() / (a.norm() * b.norm()))
    paired = composition_scores(left[:, 0], factored(5, 3, 4, (3,), seed=1), broadcast_dims=False)
    assert paired.shape == (3,)


def test_composition_of_two_single_matrices_is_a_number() -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = (FactoredMatrix(torch.randn(4, 2, generator=draw), torch.randn(2, 4, generator=draw)) for _ in range(2))
    expected = (left.AB @ right.AB).norm() / (left.AB.norm() * right.AB.norm())
    torch.testing.assert_close(composition_scores(left, right), expected)
