"""Factored matrices: a product A @ B that is never multiplied out, with everything one asks of it.

A head's QK and OV circuits are d_model × d_model but pass through only d_head dimensions, so norms,
singular values and eigenvalues come from the two thin factors. In shapes, `l` is the left side, `m`
the hidden one, `r` the right one; any axes before the last two are a batch of matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cutaway.errors import BroadcastMismatch, ShapeError

HALVES = (torch.float16, torch.bfloat16)  # LAPACK has no routines for these


class FactoredMatrix:
    """The matrix A @ B, kept as its factors `A [..., l, m]` and `B [..., m, r]`; leading axes broadcast.

    Raises:
        ShapeError: the factors do not fit each other.
    """

    def __init__(self, A: Tensor, B: Tensor) -> None:  # checked by hand, for an error of our own
        if A.ndim < 2 or B.ndim < 2 or A.shape[-1] != B.shape[-2]:
            raise ShapeError(f"factors of shapes {tuple(A.shape)} and {tuple(B.shape)} have no product A @ B")
        try:
            leading = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        except RuntimeError:
            message = f"mismatch of leading axes: those of {tuple(A.shape)} and {tuple(B.shape)} do not broadcast"
            raise BroadcastMismatch(message) from None
        self.ldim, self.mdim, self.rdim = A.shape[-2], A.shape[-1], B.shape[-1]
        self.has_leading_dims = len(leading) > 0
        self.shape = torch.Size((*leading, self.ldim, self.rdim))
        self.A: Tensor = A.broadcast_to((*leading, self.ldim, self.mdim))
        self.B: Tensor = B.broadcast_to((*leading, self.mdim, self.rdim))
        self._svd: tuple[Tensor, Tensor, Tensor] | None = None

    def __repr__(self) -> str:
        return f"FactoredMatrix: Shape({self.shape}), Hidden Dim({self.mdim})"

    # What it is.

    @property
    def AB(self) -> Float[Tensor, "... l r"]:
        """The matrix itself, multiplied out: as large as `shape` says."""
        return self.A @ self.B

    @property
    def BA(self) -> Float[Tensor, "... m m"]:
        """The product the other way round, which has the same eigenvalues but for zeros; needs l = r."""
        if self.ldim != self.rdim:
            raise ShapeError(f"BA and eigenvalues need a square matrix, and this one is {self.ldim} by {self.rdim}")
        return self.B @ self.A

    @property
    def T(self) -> FactoredMatrix:
        """The transpose, factored."""
        return FactoredMatrix(self.B.transpose(-2, -1), self.A.transpose(-2, -1))

    @property
    def pair(self) -> tuple[Float[Tensor, "... l m"], Float[Tensor, "... m r"]]:
        """The two factors."""
        return self.A, self.B

    @property
    def ndim(self) -> int:
        """How many axes the matrix has, leading ones included."""
        return len(self.shape)

    # Products: the factors that come out meet in the smallest dimension at hand.

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        if not isinstance(other, Tensor):
            return NotImplemented
        if other.ndim == 0 or other.shape[-2 if other.ndim > 1 else 0] != self.rdim:
            raise ShapeError(f"{tuple(self.shape)} @ {tuple(other.shape)}: needs {self.rdim} rows on the right")
        if other.ndim == 1:
            return (self.A @ (self.B @ other.unsqueeze(-1))).squeeze(-1)
        return FactoredMatrix(self.A, self.B @ other) if self.mdim < self.rdim else FactoredMatrix(self.AB, other)

    def __rmatmul__(self, other: Any) -> Any:
        if not isinstance(other, Tensor):
            return NotImplemented
        if other.ndim == 0 or other.shape[-1] != self.ldim:
            raise ShapeError(f"{tuple(other.shape)} @ {tuple(self.shape)}: needs {self.ldim} columns on the left")
        if other.ndim == 1:
            return ((other.unsqueeze(-2) @ self.A) @ self.B).squeeze(-2)
        return FactoredMatrix(other @ self.A, self.B) if self.mdim < self.ldim else FactoredMatrix(other, self.AB)

    def __mul__(self, scalar: float | Tensor) -> FactoredMatrix:
        if isinstance(scalar, Tensor):
            if scalar.numel() != 1:
                raise ShapeError(f"* takes one number, not a tensor of shape {tuple(scalar.shape)}; for a matrix product use @")
            scalar = scalar.reshape(())
        return FactoredMatrix(self.A * scalar, self.B)

    def __rmul__(self, scalar: float | Tensor) -> FactoredMatrix:
        return self * scalar

    # Spectra.

    def svd(self) -> tuple[Float[Tensor, "... l k"], Float[Tensor, "... k"], Float[Tensor, "... r k"]]:
        """`U, S, Vh` with `U @ S.diag() @ Vh.T` the matrix; k is the smallest of l, m, r.

        As everywhere in the dialect, `Vh` has the right singular vectors as *columns*. The largest
        matrices decomposed are the factors. Kept for the next call, unless gradients are wanted.
        """
        wants_grad = torch.is_grad_enabled() and (self.A.requires_grad or self.B.requires_grad)
        if self._svd is not None and not wants_grad:
            return self._svd
        U_a, S_a, V_a = _svd(self.A)
        U_b, S_b, V_b = _svd(self.B)
        U_mid, S, V_mid = _svd(S_a[..., :, None] * V_a.transpose(-2, -1) @ U_b * S_b[..., None, :])
        U, V = U_a @ U_mid, V_b @ V_mid
        found = (U.to(self.A.dtype), S.to(self.A.dtype), V.to(self.A.dtype))
        if not wants_grad:
            self._svd = found
        return found

    @property
    def U(self) -> Float[Tensor, "... l k"]:
        """Left singular vectors, as columns."""
        return self.svd()[0]

    @property
    def S(self) -> Float[Tensor, "... k"]:
        """Singular values, largest first."""
        return self.svd()[1]

    @property
    def Vh(self) -> Float[Tensor, "... r k"]:
        """Right singular vectors, as columns (the dialect's habit, whatever the name says)."""
        return self.svd()[2]

    @property
    def eigenvalues(self) -> Complex[Tensor, "... m"]:
        """The m eigenvalues of BA: those of the matrix, but for zeros. Needs l = r."""
        return torch.linalg.eigvals(_full(self.BA))

    def norm(self) -> Float[Tensor, "..."]:
        """The Frobenius norm: the root of the sum of squared singular values."""
        left = _full(self.A)
        if self.ldim > self.mdim:  # an orthogonal factor does not change the norm
            left = torch.linalg.qr(left).R
        return torch.linalg.matrix_norm(left @ _full(self.B)).to(self.A.dtype)

    # Other factors of the same matrix.

    def make_even(self) -> FactoredMatrix:
        """The same matrix with each factor taking the root of every singular value."""
        U, S, V = self.svd()
        root = S.sqrt()
        return FactoredMatrix(U * root[..., None, :], root[..., :, None] * V.transpose(-2, -1))

    def collapse_l(self) -> Float[Tensor, "... k r"]:
        """The right side alone, without the orthogonal U: `S.diag() @ Vh.T`."""
        _, S, V = self.svd()
        return S[..., :, None] * V.transpose(-2, -1)

    def collapse_r(self) -> Float[Tensor, "... l k"]:
        """The left side alone, without the orthogonal Vh: `U @ S.diag()`."""
        U, S, _ = self.svd()
        return U * S[..., None, :]

    # Parts.

    def unsqueeze(self, k: int) -> FactoredMatrix:
        """With a new leading axis at `k`."""
        at = k if k >= 0 else self.ndim + 1 + k
        if not 0 <= at <= self.ndim - 2:
            raise ShapeError(f"unsqueeze({k}) would split the matrix axes of {tuple(self.shape)}; give 0 to {self.ndim - 2}")
        return FactoredMatrix(self.A.unsqueeze(at), self.B.unsqueeze(at))

    def get_corner(self, k: int = 3) -> Tensor:
        """The first `k` entries along every axis, multiplied out: to have a look."""
        return self[tuple(slice(k) for _ in self.shape)].AB

    def __getitem__(self, idx: Any) -> FactoredMatrix:
        """A part, as with a tensor, but rows and columns stay axes: a number there takes a slice of one."""
        index = _without_ellipsis(idx if isinstance(idx, tuple) else (idx,), self.ndim)
        leading: list[Any] = []
        matrix: list[Any] = []
        for item in index:
            if _consumed(leading) < self.ndim - 2 or (item is None and not matrix):
                leading.append(item)
            else:
                matrix.append(_keeping_axis(item))
        if _consumed(leading) > max(self.ndim - 2, 0) or len(matrix) > 2 or any(item is None for item in matrix):
            raise ShapeError(f"{idx!r} does not index a factored matrix of shape {tuple(self.shape)}")
        A, B = (self.A[tuple(leading)], self.B[tuple(leading)]) if leading else (self.A, self.B)
        rows, columns = (*matrix, slice(None), slice(None))[:2]
        return FactoredMatrix(A[..., rows, :], B[..., columns])


def _full(matrix: Tensor) -> Tensor:
    """In a precision that linear algebra has routines for."""
    return matrix.float() if matrix.dtype in HALVES else matrix


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD, with the right singular vectors as columns."""
    U, S, Vh = torch.linalg.svd(_full(matrix), full_matrices=False)
    return U, S, Vh.mH


def _consumed(index: list[Any]) -> int:
    """How many axes these items of an index use up."""
    return sum(item.ndim if isinstance(item, Tensor) and item.dtype == torch.bool else item is not None for item in index)


def _without_ellipsis(index: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """The same index with `...` written out."""
    at = [i for i, item in enumerate(index) if item is Ellipsis]
    if not at:
        return index
    rest = [item for item in index if item is not Ellipsis]
    return (*index[: at[0]], *(slice(None),) * (ndim - _consumed(rest)), *rest[at[0] :])


def _keeping_axis(item: Any) -> Any:
    """A number as a slice of one; anything else as it is."""
    if isinstance(item, int) and not isinstance(item, bool):
        return slice(item, item + 1 if item != -1 else None)
    return item


def composition_scores(left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True) -> Tensor:
    """How much of what `left` writes `right` reads: ‖left·right‖ / (‖left‖ ‖right‖), Frobenius norms.

    With `broadcast_dims`, every leading entry of `left` against every one of `right`: `[*left, *right]`.
    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits", composition.
    """
    if left.rdim != right.ldim:
        raise ShapeError(
            f"composition of {tuple(left.shape)} with {tuple(right.shape)}: {left.rdim} columns do not meet {right.ldim} rows"
        )
    first = torch.linalg.qr(_full(left.A)).R @ _full(left.B)  # orthogonal factors do not change norms
    then = _full(right.A) @ torch.linalg.qr(_full(right.B).mT).R.mT
    sizes, sizes_then = torch.linalg.matrix_norm(first), torch.linalg.matrix_norm(then)
    if not broadcast_dims:
        return (torch.linalg.matrix_norm(first @ then) / (sizes * sizes_then)).to(left.A.dtype)
    flat = then.reshape(-1, *then.shape[-2:])
    rows = [torch.linalg.matrix_norm(one @ flat) for one in first.reshape(-1, *first.shape[-2:])]
    products = torch.stack(rows).reshape([*sizes.shape, *sizes_then.shape])
    return (products / (sizes.reshape([*sizes.shape, *[1] * sizes_then.ndim]) * sizes_then)).to(left.A.dtype)


def _nothing_to_clear() -> None:
    """The dialect keeps decompositions in one store, which this would empty; here each goes with its matrix."""


setattr(FactoredMatrix.svd, "cache_clear", _nothing_to_clear)  # noqa: B010 (an attribute of a function, which types do not know)
