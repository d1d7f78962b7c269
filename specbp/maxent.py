r"""log det from the spectral density of largest entropy among those with the moments seen.

.. math:: \log\det A \approx n \int \log x \; p(x) \, dx, \qquad
          p(x) \propto x^{-\gamma} \exp\Bigl(\sum_{k=1}^K \alpha_k T_k(x)\Bigr)

The moments of all probes are averaged before the density is fitted, so the value is no mean of
values of probes: it is biased by the model and by the curvature of the fit.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specbp import bounds, polynomials
from specbp.estimate import FAILURES, Estimate, Status, from_samples
from specbp.operators import CountingOperator, as_operator, check_probes, check_square

RIDGE = 1e-7
TOLERANCE = 1e-9
MISMATCH = 1e-3
MAX_NEWTON, MAX_HALVINGS = 200, 25


def maxent_logdet(
    A: Any,
    probes: Tensor,
    *,
    num_moments: int,
    interval: tuple[float | Tensor, float | Tensor],
    base_exponent: float = 1.0,
) -> Estimate:
    r"""log det A by maximum entropy on a known spectral interval [a, b].

    .. math:: \min_\alpha \; \log \int_a^b x^{-\gamma} e^{\alpha \cdot T(x)} dx
              - \alpha \cdot \hat\mu + \tfrac{\varepsilon}{2} |\alpha|^2, \qquad
              \hat\mu_k = \frac{\sum_i x_i^\top T_k x_i}{\sum_i |x_i|^2}

    The dual is minimised by damped Newton steps for all items at once; ε = 1e-7 keeps its minimum
    finite where the moments are those of few eigenvalues and no density matches them. The residual
    E_p T_k − μ̂_k = −ε α_k is then more than rounding: beyond 1e-3, or if Newton stops short,
    the status says `UNCONVERGED`. Moments above one, which no spectrum in [a, b] has, are
    `OUTSIDE_INTERVAL`.

    `standard_error` is the Monte Carlo error to first order: by the implicit function theorem the
    value moves by n g·δμ̂, with g the regression of log x on T(x) under p. It says nothing of the
    bias of the model, which stays however many probes there are and decreases with `num_moments`
    only slowly where the condition number is large. `lower` and `upper` do bracket
    n Σ xᵢᵀ log(A) xᵢ / Σ |xᵢ|²: no measure on [a, b] with these moments lies outside, nor does
    the value.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device.
        num_moments: K ≥ 2, Chebyshev moments used; ⌈K/2⌉ products for each probe.
        interval: (a, b) with 0 < a ≤ λ_min and λ_max ≤ b, each (...).
        base_exponent: γ of the density without moments: 0 is uniform in x, as in the paper; 1, the
            default, uniform in log x, which suits spectra that span decades.

    The value carries the gradient of the fit, its interval held fixed.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If num_moments < 2, the interval is empty or not positive, or shapes do not fit.

    Source: Fitzsimons, Granziol, Cutajar, Osborne, Filippone & Roberts (2017), arXiv:1704.07223,
    there with raw powers and coordinate steps.

    Example:
        >>> import torch
        >>> A = torch.diag(torch.logspace(-2, 2, 50, dtype=torch.float64))
        >>> X = torch.ones(50, 2, dtype=torch.float64)
        >>> est = maxent_logdet(A, X, num_moments=8, interval=(0.01, 100))
        >>> bool(abs(est.value - torch.logdet(A)) < 1)
        True
    """
    if num_moments < 2:
        raise ValueError(f"num_moments must be at least 2, got {num_moments}.")
    A = CountingOperator(as_operator(A))
    n = check_square(A)
    rows = check_probes(A, probes)
    a, b = bounds.interval(*interval, rows)
    seen = polynomials.chebyshev_moments(A, rows, num_moments, a, b)
    norms, moments = seen.moments[..., :1], seen.moments[..., 1:]
    with torch.no_grad():
        mean = moments.sum(-2) / norms.sum(-2)
        # What is beyond one, or NaN, has its own status: the fit goes on with harmless numbers.
        sound = (mean.abs() <= 1 + MISMATCH).all(-1)
        target = torch.where(sound.unsqueeze(-1), mean, 0)
        fit = _fit(target, _grid(interval, num_moments, base_exponent, a.device))
        lower, upper = _bracket(target, a, b)
        amplified = ((b + a) / (b - a)).unsqueeze(-1)
        status = polynomials.growth_status(
            seen.growth, seen.asymmetry, num_moments, A.dtype, amplified
        )
        status |= (~fit.converged & sound).unsqueeze(-1) * int(Status.UNCONVERGED)
        # A density with these moments lies in the bracket by itself; one without may not.
        theta = fit.mean_log.clamp(lower, upper)
    # Σ_i of the deviations is zero: they carry the error bar, and the gradient, of the fit.
    mass = norms.mean(-2, keepdim=True)
    deviations = (moments - mean.unsqueeze(-2) * norms) / mass
    samples = n * (theta.unsqueeze(-1) + (deviations * fit.slope.unsqueeze(-2)).sum(-1))
    found = from_samples(samples, num_matvecs=A.num_matvecs, status=status)
    ok = (found.status & int(FAILURES)) == 0
    return replace(
        found,
        lower=torch.where(ok, n * lower, -torch.inf),
        upper=torch.where(ok, n * upper, torch.inf),
    )


class _Grid(NamedTuple):
    """Gauss–Legendre nodes in log x, (..., Q), and T_0 … T_2K there, (..., Q, 2 K + 1)."""

    logs: Tensor
    log_weights: Tensor
    basis: Tensor


class _Fit(NamedTuple):
    """E_p log x, its derivative by the moments (..., K), and whether p has these moments, (...)."""

    mean_log: Tensor
    slope: Tensor
    converged: Tensor


class _Density(NamedTuple):
    """The dual objective (...), probabilities on the grid (..., Q) and E_p T_0 … T_2K."""

    dual: Tensor
    weights: Tensor
    moments: Tensor


@functools.lru_cache(maxsize=16)
def _legendre(num_nodes: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return torch.from_numpy(nodes), torch.from_numpy(weights).log()


def _grid(
    interval: tuple[float | Tensor, float | Tensor],
    num_moments: int,
    base_exponent: float,
    device: torch.device,
) -> _Grid:
    # One grid for each interval given, not for each replicate.
    ends = (torch.as_tensor(end, dtype=torch.float64, device=device) for end in interval)
    a, b = (end.unsqueeze(-1) for end in torch.broadcast_tensors(*ends))
    nodes, log_weights = (x.to(device) for x in _legendre(200 + 16 * num_moments))
    logs = (b / a).log() / 2 * (1 + nodes) + a.log()
    # sin²(θ/2) = (b − x) / (b − a)
    angle = 2 * ((b - logs.exp()) / (b - a)).clamp(0, 1).sqrt().asin()
    degrees = torch.arange(2 * num_moments + 1, dtype=torch.float64, device=device)
    log_weights = log_weights + (1 - base_exponent) * logs
    return _Grid(
        logs,
        log_weights - log_weights.logsumexp(-1, keepdim=True),
        torch.cos(angle.unsqueeze(-1) * degrees),
    )


def _fit(target: Tensor, grid: _Grid) -> _Fit:
    """Minimise the dual from α = 0 by Newton steps; who has arrived, or is stuck, rests."""
    alpha, K = torch.zeros_like(target), target.shape[-1]
    now, shared = _density(alpha, target, grid), grid.basis.ndim == 2
    going = torch.ones(target.shape[:-1], dtype=torch.bool, device=target.device)
    for _ in range(MAX_NEWTON):
        going = going & (_gradient(alpha, target, now).abs().amax(-1) > TOLERANCE)
        if not bool(going.any()):
            break
        # On a grid of their own, items are not worth picking: it would have to be copied.
        some = going.clone() if shared else ...
        start = alpha[some]
        moved = _newton(start, target[some], _Density(*(x[some] for x in now)), grid)
        moved = moved if shared else torch.where(going.unsqueeze(-1), moved, start)
        going[some] = going[some] & (moved != start).any(-1)
        alpha[some] = moved
        for x, y in zip(now, _density(moved, target[some], grid), strict=True):
            x[some] = y
    mean_log = (now.weights * grid.logs).sum(-1)
    centred = now.weights * (grid.logs - mean_log.unsqueeze(-1))
    covariance = _against(centred, grid.basis[..., 1 : K + 1])
    arrived = _gradient(alpha, target, now).abs().amax(-1) <= TOLERANCE
    matched = (now.moments[..., 1 : K + 1] - target).abs().amax(-1) <= MISMATCH
    return _Fit(mean_log, _solve(now.moments, covariance), arrived & matched)


def _gradient(alpha: Tensor, target: Tensor, at: _Density) -> Tensor:
    return at.moments[..., 1 : alpha.shape[-1] + 1] - target + RIDGE * alpha


def _density(alpha: Tensor, target: Tensor, grid: _Grid) -> _Density:
    K = alpha.shape[-1]
    exponent = _against(alpha, grid.basis[..., 1 : K + 1].mT) + grid.log_weights
    log_mass = exponent.logsumexp(-1)
    weights = (exponent - log_mass.unsqueeze(-1)).exp()
    dual = log_mass - (alpha * target).sum(-1) + RIDGE / 2 * alpha.square().sum(-1)
    return _Density(dual, weights, _against(weights, grid.basis))


def _solve(moments: Tensor, right: Tensor) -> Tensor:
    """Cov_p(T) + ε I, solved; 2 T_i T_j = T_{i+j} + T_{|i−j|} needs no second pass of the grid."""
    k = torch.arange(1, right.shape[-1] + 1, device=right.device)
    means = moments[..., 1 : len(k) + 1]
    products = moments[..., k.unsqueeze(-1) + k] + moments[..., (k.unsqueeze(-1) - k).abs()]
    hessian = products / 2 - means.unsqueeze(-1) * means.unsqueeze(-2)
    hessian = hessian + RIDGE * torch.eye(len(k), dtype=hessian.dtype, device=hessian.device)
    return torch.linalg.solve(hessian, right.unsqueeze(-1)).squeeze(-1)


def _newton(alpha: Tensor, target: Tensor, at: _Density, grid: _Grid) -> Tensor:
    """α + t step with the first t = 1, ½, ¼ … that lowers the dual enough (Armijo), or α."""
    gradient = _gradient(alpha, target, at)
    step = -_solve(at.moments, gradient)
    slope, slack = (gradient * step).sum(-1), 1e-15 * (1 + alpha.abs().sum(-1))
    scale = torch.ones_like(slope)
    for _ in range(MAX_HALVINGS):
        trial = alpha + scale.unsqueeze(-1) * step
        failed = _density(trial, target, grid).dual > at.dual + 1e-4 * scale * slope + slack
        if not bool(failed.any()):
            break
        scale = torch.where(failed, scale / 2, scale)
    return torch.where(failed.unsqueeze(-1), alpha, trial)


def _bracket(moments: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of ∫ log dμ for every measure μ on [a, b] with these moments, (...) each."""
    degree, ratio = moments.shape[-1], (b / a).sqrt()
    rho = (ratio + 1) / (ratio - 1)
    slack = 2 * rho**-degree / ((degree + 1) * (rho - 1))
    series = polynomials.chebyshev_series(degree, a, b)
    value = series[..., 0] + (series[..., 1:] * moments).sum(-1)
    # log is concave: above its chord, and below its tangent at the mean.
    share = ((1 + moments[..., 0]) / 2).clamp(0, 1)
    chord, jensen = torch.lerp(a.log(), b.log(), share), torch.lerp(a, b, share).log()
    return torch.maximum(value - slack, chord), torch.minimum(value + slack, jensen)


def _against(rows: Tensor, matrix: Tensor) -> Tensor:
    """Rows (..., p) times one matrix (p, q), or a batch of them (..., p, q)."""
    if matrix.ndim == 2:
        return rows @ matrix
    return (rows.unsqueeze(-2) @ matrix).squeeze(-2)
