r"""Gauss and Gauss–Radau quadrature of xᵀ log(A) x from (bi)diagonal matrices: certified brackets.

All even derivatives of log are negative, all odd ones positive. Hence, in exact arithmetic, for
every probe and every number of steps (Golub & Meurant 2010, theorems 6.4 and 6.6)

.. math:: \text{Radau with a node at } a \le \lambda_{\min}
          \;\le\; x^\top \log(A) x \;\le\; \text{Gauss}.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specbp.estimate import Status
from specbp.krylov import Bidiagonal, Tridiagonal


class Rule(NamedTuple):
    """Value of a quadrature of log and its extreme nodes, each (..., m)."""

    value: Tensor
    smallest: Tensor
    largest: Tensor


def gauss(T: Tridiagonal | Bidiagonal) -> Rule:
    r"""k-point Gauss rule: |x|² Σ_j s_j² log θ_j, exact for polynomials of degree 2k − 1.

    θ are the eigenvalues of T, or squared singular values of B; s the first components of their
    (right) vectors.
    """
    return _rule(T.diagonal, T.off_diagonal[..., :-1], T.norm_squared, isinstance(T, Bidiagonal))


def gauss_radau(T: Tridiagonal | Bidiagonal, node: Tensor) -> Rule:
    """(k+1)-point Gauss–Radau rule with one node prescribed at `node` ≤ λ_min, (...,) or (..., m).

    T is extended by the one row that makes `node` an eigenvalue: the last pivot of the Cholesky
    factorisation of T − node·I is made zero. For B the pivots come from the differential stationary
    qd transform, which never forms BᵀB (Fernando & Parlett 1994, doi:10.1007/s002110050024).

    Where a pivot is not positive, `node` exceeds the smallest Ritz value, hence λ_min: NaN.
    """
    if isinstance(T, Bidiagonal):
        last = (-_shifted_qd(T, node)).clamp(min=0).sqrt()
    else:
        last = node + T.off_diagonal[..., -1] ** 2 / _last_pivot(T, node)
    # A closed space has β_k = 0: the extra row is decoupled and its weight is zero.
    last = torch.where(T.off_diagonal[..., -1] == 0, T.diagonal[..., 0].abs(), last)
    diagonal = torch.cat([T.diagonal, last.unsqueeze(-1)], -1)
    return _rule(diagonal, T.off_diagonal, T.norm_squared, isinstance(T, Bidiagonal))


def leading(T: Tridiagonal | Bidiagonal, k: int) -> Tridiagonal | Bidiagonal:
    """The coefficients after the first k steps of the same Krylov process."""
    return T._replace(diagonal=T.diagonal[..., :k], off_diagonal=T.off_diagonal[..., :k])


def krylov_status(T: Tridiagonal | Bidiagonal, rule: Rule, dtype: torch.dtype) -> Tensor:
    """Flags per probe (..., m); a node within rounding of zero, relative to the largest, is zero.

    Rounding of a Ritz value is a few eps λ_max; of a squared singular value, a few eps² λ_max.
    """
    eps = torch.finfo(dtype).eps
    floor = ((4 * eps) ** 2 if isinstance(T, Bidiagonal) else 4 * eps) * rule.largest
    return (
        T.closed * int(Status.INVARIANT_SUBSPACE)
        | (rule.smallest < -floor) * int(Status.NEGATIVE_RITZ)
        | (rule.smallest.abs() <= floor) * int(Status.SINGULAR)
        | (T.asymmetry > eps**0.5) * int(Status.NONSYMMETRIC)
    )


def _last_pivot(T: Tridiagonal, node: Tensor) -> Tensor:
    a, b = T.diagonal.unbind(-1), T.off_diagonal.unbind(-1)
    pivot = _positive(a[0] - node)
    for alpha, beta in zip(a[1:], b[:-1], strict=True):
        pivot = _positive(alpha - node - beta**2 / pivot)
    return pivot


def _shifted_qd(B: Bidiagonal, node: Tensor) -> Tensor:
    s = -node
    for alpha, beta in zip(B.diagonal.unbind(-1), B.off_diagonal.unbind(-1), strict=True):
        s = beta**2 * (s / _positive(alpha**2 + s)) - node
    return s


def _positive(pivot: Tensor) -> Tensor:
    return torch.where(pivot > 0, pivot, torch.nan)


def ritz(T: Tridiagonal | Bidiagonal) -> tuple[Tensor, Tensor]:
    """Ritz values (..., m, k) and the vectors of T, or the right ones of B, (..., m, k, k).

    NaN where T is not finite: LAPACK would raise.
    """
    matrix = torch.diag_embed(T.diagonal) + torch.diag_embed(T.off_diagonal[..., :-1], offset=1)
    return _ritz(matrix, isinstance(T, Bidiagonal))[:2]


def _ritz(matrix: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, vectors and logarithms of the nodes, from the upper triangle."""
    finite = torch.isfinite(matrix.sum((-2, -1)))[..., None]
    whole = bool(finite.all())
    if not whole:
        matrix = torch.where(finite[..., None], matrix, torch.eye(matrix.shape[-1]).to(matrix))
    if squared:
        _, sigma, right = torch.linalg.svd(matrix)
        nodes, vectors, logs = sigma**2, right.mT, 2 * sigma.log()
    else:
        nodes, vectors = torch.linalg.eigh(matrix, UPLO="U")
        logs = nodes.log()
    if not whole:
        nodes, logs = (t.masked_fill(~finite, torch.nan) for t in (nodes, logs))
    return nodes, vectors, logs


def _rule(diagonal: Tensor, off: Tensor, norm_squared: Tensor, squared: bool) -> Rule:
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(off, offset=1)
    nodes, vectors, logs = _ritz(matrix, squared)
    weights = vectors[..., 0, :] ** 2
    # Filler nodes of a closed space weigh nothing: 0 · log must not become NaN.
    terms = torch.where((weights == 0) & ~torch.isnan(nodes), 0, weights * logs)
    return Rule(norm_squared * terms.sum(-1), nodes.amin(-1), nodes.amax(-1))
