"""Log-determinants without probes: from n products with J and QR, or from an explicit matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specbp.differentiable import Sensitivity, attach
from specbp.estimate import Estimate, Status, without_probes
from specbp.jacobian import Jacobian
from specbp.operators import Dense, as_operator, check_square, check_symmetric, check_tall


def qr_logdet(J: Any, *, max_bytes: int | None = None) -> Estimate:
    r"""log det JᵀJ from all n columns of J, by batched JVPs and QR of J.

    .. math:: \log\det J^\top J = 2 \sum_i \log |r_{ii}|, \qquad J = Q R

    Never forms JᵀJ, whose condition number is squared. The first choice wherever n products with J
    and one QR are affordable.

    Args:
        J: Operator or tensor (..., N, n), N ≥ n, float32 or float64.
        max_bytes: Limit of the memory of one chunk of columns, for operators that form them by
            JVPs.

    Raises:
        TypeError: If J is not an operator with an adjoint.
        ValueError: If J has fewer rows than columns.

    Where J is differentiable, so is the value: its gradient is exact, tr((JᵀJ)⁻¹ d(JᵀJ)) from n
    products with J that record a graph, a block of columns at a time.

    A numerically rank-deficient J (1 / |R⁻¹| within rounding of zero, relative to the largest
    column) gives −inf with status `SINGULAR`.

    Example:
        >>> import torch
        >>> print(qr_logdet(torch.tensor([[3.0], [4.0]])))
        3.2189 ± 0.0000
    """
    J = as_operator(J)
    n = check_tall(J)
    columns = explicit(J, max_bytes).detach()
    finite = torch.isfinite(columns).all((-2, -1))
    columns = columns.masked_fill(~finite[..., None, None], 1)
    # The columns carry the rounding of their dtype; QR in float64 adds none of its own.
    R = torch.linalg.qr(columns.double(), mode="r").R
    pivots = R.diagonal(dim1=-2, dim2=-1).abs()
    # Without column exchanges a small pivot need not show that J is singular; R⁻¹ does.
    floor = _rounding(J.dtype, n) * torch.linalg.vector_norm(R, dim=-2).amax(-1)
    singular = ~(_inverse_norm(R, upper=True) * floor < 1) & finite
    value = (2 * pivots.log().sum(-1)).masked_fill(singular, -torch.inf)
    status = singular * int(Status.SINGULAR) | ~finite * int(Status.NONFINITE)

    def inverse() -> Sensitivity:
        # (JᵀJ)⁻¹ = R⁻¹ R⁻ᵀ, and J R⁻¹ = Q: nothing is squared.
        return _columns(_inverse(R, upper=True).mT, J.dtype)

    value = with_inverse(value, J, inverse, factor=True)
    return without_probes(value, num_matvecs=n / 2, status=status)


def cholesky_logdet(A: Tensor) -> Estimate:
    r"""log det A of an explicit matrix by Cholesky.

    .. math:: \log\det A = 2 \sum_i \log l_{ii}, \qquad A = L L^\top

    Args:
        A: Symmetric positive definite tensor (..., n, n), float32 or float64.

    Raises:
        TypeError: If A is not an explicit tensor.
        ValueError: If A is not square, not symmetric or not finite.

    An indefinite A gives NaN with status `NEGATIVE_RITZ`, a singular one −inf with `SINGULAR` (or
    either, since rounding decides the sign of its last pivot).
    """
    _check_explicit(A)
    # The entries carry the rounding of their dtype; Cholesky in float64 adds none of its own.
    L, info = torch.linalg.cholesky_ex(A.detach().double())
    pivots = L.diagonal(dim1=-2, dim2=-1)
    largest = A.detach().diagonal(dim1=-2, dim2=-1).amax(-1).double()
    floor = _rounding(A.dtype, A.shape[-1]) * largest
    singular = ~(_inverse_norm(L, upper=False) ** 2 * floor < 1) & (info == 0)
    value = (2 * pivots.log().sum(-1)).masked_fill(singular, -torch.inf)
    status = singular * int(Status.SINGULAR) | (info != 0) * int(Status.NEGATIVE_RITZ)

    def inverse() -> Sensitivity:
        return _columns(_inverse(L, upper=False), A.dtype)

    value = with_inverse(value, as_operator(A), inverse)
    return without_probes(value, num_matvecs=0, status=status)


def eigenvalue_logdet(A: Tensor) -> Estimate:
    r"""log det A of an explicit matrix from all its eigenvalues.

    .. math:: \log\det A = \sum_i \log \lambda_i

    Args:
        A: Symmetric positive definite tensor (..., n, n), float32 or float64.

    Raises:
        TypeError: If A is not an explicit tensor.
        ValueError: If A is not square, not symmetric or not finite.

    An indefinite A gives NaN with status `NEGATIVE_RITZ`, a singular one −inf with `SINGULAR`.
    """
    _check_explicit(A)
    eigenvalues = torch.linalg.eigvalsh(A.detach()).double()
    floor = A.shape[-1] * torch.finfo(A.dtype).eps * eigenvalues.abs().amax(-1)
    smallest = eigenvalues[..., 0]
    singular, negative = smallest.abs() <= floor, smallest < -floor
    value = eigenvalues.log().sum(-1).masked_fill(singular, -torch.inf)
    status = singular * int(Status.SINGULAR) | negative * int(Status.NEGATIVE_RITZ)
    value = with_inverse(value, as_operator(A), lambda: inverse_of(A.detach()))
    return without_probes(value, num_matvecs=0, status=status)


def explicit(J: Any, max_bytes: int | None = None) -> Tensor:
    """All columns of J, (..., N, n): by batched JVPs within `max_bytes`, or products with I."""
    if isinstance(J, Dense):
        return J.matrix
    if isinstance(J, Jacobian):
        return J.dense(max_bytes=max_bytes)
    return J @ torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)


def _inverse(T: Tensor, *, upper: bool) -> Tensor:
    identity = torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)
    return torch.linalg.solve_triangular(T, identity, upper=upper)


def _inverse_norm(T: Tensor, *, upper: bool) -> Tensor:
    """Frobenius norm of the inverse of a triangular matrix: at least 1 / σ_min, or not finite."""
    return torch.linalg.matrix_norm(_inverse(T, upper=upper))


def inverse_of(A: Tensor) -> Sensitivity:
    """A⁻¹ from the eigenpairs of an explicit matrix (..., n, n)."""
    nodes, vectors = torch.linalg.eigh(A)
    return Sensitivity(1 / nodes.double().unsqueeze(-2), vectors.mT.unsqueeze(-3))


def _columns(rows: Tensor, dtype: torch.dtype) -> Sensitivity:
    """G = Σ_r y_r y_rᵀ for the rows y of (..., n, n)."""
    return Sensitivity(torch.ones_like(rows[..., None, :, 0]), rows.unsqueeze(-3).to(dtype))


def with_inverse(
    value: Tensor, operator: Any, inverse: Callable[[], Sensitivity], *, factor: bool = False
) -> Tensor:
    """The value (...) with the exact gradient, G = A⁻¹."""
    return attach(value.unsqueeze(-1), operator, inverse, factor=factor).squeeze(-1)


def _rounding(dtype: torch.dtype, n: int) -> float:
    """Relative size of a pivot that may be all rounding: of the entries, or of float64 algebra."""
    return max(4 * torch.finfo(dtype).eps, n * torch.finfo(torch.float64).eps)


def _check_explicit(A: Tensor) -> None:
    if not isinstance(A, Tensor):
        raise TypeError(f"An explicit torch.Tensor is required, got {type(A).__name__}.")
    check_square(as_operator(A))
    check_symmetric(A)
