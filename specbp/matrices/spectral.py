"""Operators with a prescribed spectrum and known eigenvectors or singular vectors."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from specbp.matrices.bases import Householder
from specbp.operators import check_probes

Basis: TypeAlias = Tensor | Householder


class SpectralFactor:
    r"""The matrix J = U diag(σ) Vᵀ of shape (..., N, n), with its singular values prescribed.

    With N ≠ n the larger basis contributes its first min(N, n) columns. Blocks are (..., n, m) of
    the same dtype and device; leading dimensions broadcast, and a product is the transposed view of
    contiguous rows.

    Args:
        singular_values: σ (..., min(N, n)), positive, float32 or float64, in any order.
        left: U (..., N, N), orthogonal; of a dense one only the column norms are checked.
        right: V (..., n, n), likewise.

    Raises:
        TypeError: If a basis is neither a tensor nor `Householder`, or dtypes differ.
        ValueError: If values are not positive and finite, or shapes or devices do not fit.
    """

    def __init__(self, singular_values: Tensor, left: Basis, right: Basis):
        _check_values("singular_values", singular_values)
        for name, basis in (("left", left), ("right", right)):
            _check_basis(name, basis, "singular_values", singular_values)
        N, n = left.shape[-1], right.shape[-1]
        _check_length("singular_values", singular_values, min(N, n))
        batches = (singular_values.shape[:-1], left.shape[:-2], right.shape[:-2])
        self.shape = torch.Size((*torch.broadcast_shapes(*batches), N, n))
        self.dtype, self.device = singular_values.dtype, singular_values.device
        self.singular_values, self.left, self.right = singular_values, left, right
        self._adjoint: SpectralFactor | None = None

    @property
    def mT(self) -> SpectralFactor:
        """The adjoint V diag(σ) Uᵀ."""
        if self._adjoint is None:
            self._adjoint = SpectralFactor(self.singular_values, self.right, self.left)
            self._adjoint._adjoint = self
        return self._adjoint

    def __matmul__(self, X: Tensor) -> Tensor:
        values = self.singular_values.unsqueeze(-2)
        rows, p = _rotate(self.right, check_probes(self, X), transpose=True), values.shape[-1]
        rows = rows.mul_(values) if p == self.shape[-1] else rows[..., :p] * values
        if p < self.shape[-2]:
            rows = torch.nn.functional.pad(rows, (0, self.shape[-2] - p))
        return _rotate(self.left, rows, overwrite=True).mT

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> SpectralFactor:
        """The factor with rounded or moved singular values and bases."""
        dtype = dtype or self.dtype
        values = self.singular_values.to(dtype=dtype, device=device)
        left, right = (basis.to(dtype=dtype, device=device) for basis in (self.left, self.right))
        return SpectralFactor(values, left, right)

    def dense(self) -> Tensor:
        """J in float64, from the stored values and bases."""
        U, V = _dense(self.left), _dense(self.right)
        p = self.singular_values.shape[-1]
        return (U[..., :p] * self.singular_values.double().unsqueeze(-2)) @ V[..., :p].mT


class SpectralMatrix:
    r"""The symmetric positive definite A = Q diag(λ) Qᵀ of shape (..., n, n).

    Blocks as for `SpectralFactor`. A dense Q costs two dense products for each one with A: multiply
    by `.dense()` where only speed matters.

    Args:
        eigenvalues: λ (..., n), positive, float32 or float64, in any order.
        basis: Q (..., n, n), orthogonal; its columns are the eigenvectors.

    Raises:
        TypeError: If the basis is neither a tensor nor `Householder`, or dtypes differ.
        ValueError: If values are not positive and finite, or shapes or devices do not fit.
    """

    def __init__(self, eigenvalues: Tensor, basis: Basis):
        _check_values("eigenvalues", eigenvalues)
        _check_basis("basis", basis, "eigenvalues", eigenvalues)
        _check_length("eigenvalues", eigenvalues, basis.shape[-1])
        self._factor = SpectralFactor(eigenvalues, basis, basis)
        self.eigenvalues, self.basis, self.shape = eigenvalues, basis, self._factor.shape
        self.dtype, self.device = eigenvalues.dtype, eigenvalues.device

    def __matmul__(self, X: Tensor) -> Tensor:
        return self._factor @ X

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> SpectralMatrix:
        """The matrix with rounded or moved eigenvalues and basis."""
        factor = self._factor.to(dtype, device)
        return SpectralMatrix(factor.singular_values, factor.left)

    def dense(self) -> Tensor:
        """A in float64, exactly symmetric, from the stored eigenvalues and basis."""
        A = self._factor.dense()
        return (A + A.mT) / 2


def _rotate(
    basis: Basis, rows: Tensor, *, transpose: bool = False, overwrite: bool = False
) -> Tensor:
    """Rows times Qᵀ, i.e. Q applied to each of them, or Qᵀ if `transpose`."""
    if isinstance(basis, Householder):
        return basis.reflect_rows(rows, transpose=transpose, overwrite=overwrite)
    return rows @ (basis if transpose else basis.mT)


def _dense(basis: Basis) -> Tensor:
    return basis.dense() if isinstance(basis, Householder) else basis.double()


def _check_values(name: str, values: Tensor) -> None:
    if values.dtype not in (torch.float32, torch.float64):
        msg = f"{name} are float32 or float64, got {values.dtype}: convert them."
        raise TypeError(msg)
    if values.ndim < 1 or 0 in values.shape:
        msg = f"{name} have shape (..., n), n ≥ 1, got {tuple(values.shape)}."
        raise ValueError(msg)
    if not bool((values.isfinite() & (values > 0)).all()):
        worst = values.nan_to_num(nan=-torch.inf).min().item()
        msg = f"{name} must be positive and finite in {values.dtype}, the smallest is {worst:.3g}."
        raise ValueError(msg)


def _check_length(name: str, values: Tensor, length: int) -> None:
    if values.shape[-1] != length:
        msg = f"The basis needs {length} {name}, got {values.shape[-1]} of them."
        raise ValueError(msg)


def _check_basis(name: str, basis: Basis, values_name: str, values: Tensor) -> None:
    if not isinstance(basis, Tensor | Householder):
        msg = f"{name} must be a torch.Tensor or Householder, got {type(basis).__name__}."
        raise TypeError(msg)
    if len(basis.shape) < 2 or basis.shape[-1] != basis.shape[-2]:
        msg = f"{name} must be square, (..., n, n), got shape {tuple(basis.shape)}."
        raise ValueError(msg)
    if basis.dtype != values.dtype:
        msg = f"{values_name} are {values.dtype}, {name} is {basis.dtype}: convert one with .to()."
        raise TypeError(msg)
    if basis.device != values.device:
        msg = f"{values_name} are on {values.device}, {name} is on {basis.device}: move one."
        raise ValueError(msg)
    if isinstance(basis, Tensor):
        _check_unit_columns(name, basis)


def _check_unit_columns(name: str, basis: Tensor) -> None:
    # All of QᵀQ = I would cost as much as a product of matrices; this is one pass over Q.
    error = (basis.double().square().sum(-2) - 1).abs().max().item()
    limit = 8 * basis.shape[-1] * torch.finfo(basis.dtype).eps
    if not error <= limit:
        msg = f"{name} is not orthogonal: a squared column norm is off 1 by {error:.3g}."
        raise ValueError(msg)
