r"""Sensitivities of quadratures and polynomials: the G with d(xᵀ f(A) x) = tr(G dA), per probe.

.. math:: d\,(x^\top f(A)\, x) = x^\top L_f(A, dA)\, x
          = \sum_{a,b} f[\lambda_a, \lambda_b]\; x_a x_b \; v_a^\top dA\, v_b

in eigenvectors v of A, with f[λ, μ] the divided difference (Daleckii & Krein). Both kinds know f(A)
x in a Krylov space, where the sum becomes one over a few vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specbp import quadrature
from specbp.differentiable import Sensitivity, compressed, rounding
from specbp.krylov import Bidiagonal, Tridiagonal
from specbp.operators import LinearOperator, product


def frechet(T: Tridiagonal | Bidiagonal) -> Sensitivity:
    r"""Fréchet derivative of log in the Krylov space of each probe.

    .. math:: G = |x|^2 \sum_{a,b} e_a e_b \log[\theta_a, \theta_b]\; (Q s_a)(Q s_b)^\top,
              \qquad T = S \Theta S^\top, \quad e = S^\top e_1

    k steps find the derivative of every polynomial of degree k, while the value is that of degree
    2k − 1: G is the derivative of xᵀ log(A) x up to its own truncation, not that of the truncated
    value. It is exact at k = n.

    Source: Daleckii & Krein (1965); Kandolf, Koskela, Relton & Schweitzer (2021),
    doi:10.1137/20M1316202, for Fréchet derivatives in Krylov spaces.
    """
    nodes, S = quadrature.ritz(T)
    first = S[..., 0, :]
    core = first.unsqueeze(-1) * first.unsqueeze(-2) * log_differences(nodes)
    inside = in_eigenbasis(T.norm_squared[..., None, None] * core, nodes, S, T.basis.dtype)
    vectors = inside.vectors @ T.basis.movedim(0, -2)
    return Sensitivity(inside.weights, vectors, width=T.diagonal.shape[-2])


def in_eigenbasis(core: Tensor, nodes: Tensor, vectors: Tensor, dtype: torch.dtype) -> Sensitivity:
    r"""Few vectors for S C Sᵀ, C given in eigenvectors S of T with eigenvalues θ > 0.

    .. math:: \Theta^{1/2} C \, \Theta^{1/2} = U \Omega U^\top, \qquad
              S C S^\top = \sum_r \omega_r y_r y_r^\top, \quad y_r = S\, \Theta^{-1/2} u_r

    Measured so, as the change of log T relative to T, nothing that matters along large eigenvalues
    is lost beside what the small ones have.
    """
    scale = nodes.clamp_min(0).sqrt()
    relative = scale.unsqueeze(-1) * core * scale.unsqueeze(-2)
    finite = torch.isfinite(relative).all(-1).all(-1)[..., None]
    weights, U = torch.linalg.eigh(torch.where(finite.unsqueeze(-1), relative, 0))
    kept = compressed(weights.masked_fill(~finite, torch.nan), U.mT, rounding(dtype))
    coordinates = torch.where(scale > 0, 1 / scale, 0).unsqueeze(-2) * kept.vectors
    return Sensitivity(kept.weights, (coordinates @ vectors.mT).to(dtype))


def log_differences(nodes: Tensor) -> Tensor:
    r"""Divided differences of log at all pairs of positive nodes, (..., k) -> (..., k, k).

    .. math:: \log[\lambda, \mu] = \frac{\log \lambda - \log \mu}{\lambda - \mu},
              \qquad \log[\lambda, \lambda] = 1 / \lambda
    """
    x, y = nodes.unsqueeze(-1), nodes.unsqueeze(-2)
    large, small = torch.maximum(x, y), torch.minimum(x, y)
    gap = (large - small) / large  # in [0, 1): −log(1 − gap) / gap, where log1p cancels nothing
    ratio = torch.where(gap == 0, 1.0, -torch.log1p(-gap) / gap)
    # Far apart the gap is 1 to rounding, and the quotient says it better.
    return torch.where(gap < 0.5, ratio, (large / small).log() / gap) / large


def chebyshev(
    A: LinearOperator,
    known: Sequence[Tensor],
    coefficients: Tensor,
    lower: Tensor,
    upper: Tensor,
) -> Sensitivity:
    r"""Derivative of xᵀ p(A) x, p = Σ c_k T_k on [a, b], the interval held fixed: all of it.

    .. math:: G = \frac{2}{b-a} \sum_{i+j < d} \epsilon_i \epsilon_j
              \Bigl(\sum_{k > i+j,\; k \not\equiv i+j \,(2)} c_k\Bigr) w_i w_j^\top, \qquad
              w_i = T_i(M)\, x, \quad \epsilon_i = 2 - [i = 0]

    The adjoint of the recurrence in closed form: its vectors are combinations of those of the
    recurrence itself, so that d − 1 products for each probe give all of them, less those that are
    known, and no backward sweep is needed.

    Args:
        A: Symmetric operator (..., n, n).
        known: The first vectors w_0, w_1 …, each (..., m, n); w_0 are the probes.
        coefficients: c, (..., m, d + 1), or (..., 1, d + 1) if all probes share them; float64.
        lower: a, shape (...).
        upper: b > a, shape (...).

    Derived from T_k[x, y] = Σ ε_i ε_j T_i(x) T_j(y) over i + j < k of the other parity.
    """
    scalars = (2 / (upper - lower), (upper + lower) / (upper - lower))
    slope, offset = (t.to(known[0])[..., None, None] for t in scalars)
    degree = coefficients.shape[-1] - 1
    vectors = list(known[:degree])
    for k in range(len(vectors), degree):
        w = slope * product(A, vectors[-1]) - offset * vectors[-1]
        vectors.append(w if k == 1 else 2 * w - vectors[-2])
    twice = torch.full((degree,), 2.0, dtype=torch.float64, device=coefficients.device)
    twice[0] = 1
    core = torch.outer(twice, twice) * _hankel(_tails(coefficients))
    # Along large eigenvalues G is smaller by the condition number, and matters as much. It is the
    # derivative of the value itself: less is left out than differentiating it would round.
    rtol = torch.finfo(known[0].dtype).eps ** 0.85 * (lower / upper).double()[..., None, None]
    return _in_span(core * (2 / (upper - lower)).double()[..., None, None, None], vectors, rtol)


def taylor(
    A: LinearOperator, known: Sequence[Tensor], coefficients: Tensor, upper: Tensor
) -> Sensitivity:
    r"""Derivative of xᵀ p(A) x, p = Σ c_k (1 − λ/α)^k, α held fixed; arguments as in `chebyshev`.

    .. math:: G = -\frac1\alpha \sum_{i+j < d} c_{i+j+1}\, w_i w_j^\top,
              \qquad w_i = (I - A/\alpha)^i\, x
    """
    inverse = (1 / upper).to(known[0])[..., None, None]
    degree = coefficients.shape[-1] - 1
    vectors = list(known[:degree])
    for _ in range(len(vectors), degree):
        vectors.append(vectors[-1] - inverse * product(A, vectors[-1]))
    core = _hankel(coefficients[..., 1:])
    return _in_span(core * (-1 / upper).double()[..., None, None, None], vectors, 0.0)


def _tails(coefficients: Tensor) -> Tensor:
    """Σ c_k over k = s + 1, s + 3, …, for s = 0 … d − 1."""
    c = coefficients[..., 1:]
    sums = torch.zeros_like(c)
    for parity in (0, 1):
        part = c[..., parity::2]
        sums[..., parity::2] = part.flip(-1).cumsum(-1).flip(-1)
    return sums


def _hankel(anti: Tensor) -> Tensor:
    """The matrix h_{i+j}, zero beyond: (..., d) -> (..., d, d)."""
    d = anti.shape[-1]
    i = torch.arange(d, device=anti.device)
    total = i.unsqueeze(-1) + i
    return torch.where(total < d, anti[..., total.clamp_max(d - 1)], 0)


def _in_span(core: Tensor, vectors: list[Tensor], rtol: float | Tensor) -> Sensitivity:
    """Σ core_ij w_i w_jᵀ in as few vectors as it takes."""
    W = torch.stack(vectors, -1).double()  # (..., m, n, d)
    finite = torch.isfinite(W).all(-1).all(-1)[..., None]
    Q, R = torch.linalg.qr(torch.where(finite.unsqueeze(-1), W, 0))
    inner = R @ core @ R.mT
    weights, U = torch.linalg.eigh((inner + inner.mT) / 2)
    weights = weights.masked_fill(~finite, torch.nan)
    found = compressed(weights, (Q @ U).mT.to(vectors[0].dtype), rtol)
    return found._replace(width=vectors[0].shape[-2])
