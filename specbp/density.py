r"""Spectral density of A from probes: Lanczos and Golub–Kahan quadrature, kernel polynomials.

.. math:: \Phi(x) = \tfrac1n \#\{j : \lambda_j \le x\} = \mathbb{E} \, \tfrac1n x^\top 1[A \le x] x
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from specbp.density_estimate import DiscreteDensity
from specbp.density_kernel import KernelDensity
from specbp.estimate import FAILURES, Status
from specbp.krylov import Bidiagonal, Tridiagonal, golub_kahan, lanczos
from specbp.operators import (
    CountingOperator,
    RectangularOperator,
    as_operator,
    check_probes,
    check_square,
    check_steps,
)
from specbp.polynomials import Moments, chebyshev_moments, growth_status

Damping = Literal["jackson", "lorentz", "none"]


def slq_density(A: Any, probes: Tensor, *, num_steps: int) -> DiscreteDensity:
    r"""Spectral density of a symmetric A by stochastic Lanczos quadrature.

    .. math:: \tfrac1n x^\top 1[A \le t] x \approx
              \tfrac1n |x|^2 \sum_{\theta_j \le t} (e_1^\top s_j)^2,
              \qquad T_k s_j = \theta_j s_j

    A need not be definite. Ritz values within rounding of zero, relative to the largest, are zero,
    so that `cdf(0)` counts the kernel of A. n · expectation(log) is `slq_logdet` of these probes.

    Args:
        A: Symmetric operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device.
        num_steps: Lanczos steps k, 1 … n; k products for each probe.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes, devices or num_steps do not fit.

    Nodes and weights are float64 and carry no gradient. A probe fails with `NONSYMMETRIC` or
    `NONFINITE`. The Wasserstein distance to Φ falls like 1/k at worst, for any spectrum.

    Source: Lin, Saad & Yang (2016), doi:10.1137/130934283; Chen, Trogdon & Ubaru (2021),
    arXiv:2105.06595.

    Example:
        >>> import torch
        >>> A = torch.diag(torch.tensor([-1.0, 0.0, 2.0, 2.0], dtype=torch.float64))
        >>> density = slq_density(A, torch.ones(4, 1, dtype=torch.float64), num_steps=3)
        >>> [round(float(density.count(a, b).value), 6) for a, b in ((-2, -0.5), (1, 3))]
        [1.0, 2.0]
    """
    A = CountingOperator(as_operator(A))
    n = check_square(A)
    check_steps(num_steps, n)
    rows = check_probes(A, probes)
    T = lanczos(A, rows, num_steps)
    eps = torch.finfo(A.dtype).eps
    asymmetric = (T.asymmetry > eps**0.5) * int(Status.NONSYMMETRIC)
    nodes, first, finite = _eigenpairs(T)
    return _discrete(T, nodes, first, finite, 4 * eps, asymmetric, n, A.num_matvecs)


def golub_kahan_density(
    J: Any, probes: Tensor, *, num_steps: int, singular_values: bool = False
) -> DiscreteDensity:
    r"""Spectral density of JᵀJ, or of the singular values of J, by Golub–Kahan quadrature on J.

    .. math:: \tfrac1n x^\top 1[J^\top J \le t] x \approx
              \tfrac1n |x|^2 \sum_{\sigma_j^2 \le t} (v_j^\top e_1)^2, \qquad J V_k = U_k B_k

    Equal to `slq_density` of JᵀJ in exact arithmetic and at the same cost; in floating point it
    resolves singular values down to eps σ_max, where Lanczos on JᵀJ stops at √eps σ_max. J may be
    wide: its kernel is counted at zero.

    Args:
        J: Operator or tensor (..., N, n) with adjoint `.mT`, float32 or float64.
        probes: (..., n, m), of J's dtype and device.
        num_steps: Steps k, 1 … n; k products with J and k with Jᵀ for each probe.
        singular_values: Nodes are singular values σ of J instead of σ².

    Raises:
        TypeError: If J has no adjoint or dtypes differ.
        ValueError: If shapes, devices or num_steps do not fit.

    Source: Golub & Kahan (1965), doi:10.1137/0702016; Golub & Meurant (2010), chapter 3.
    """
    J = as_operator(J)
    if not isinstance(J, RectangularOperator):
        raise TypeError(f"{type(J).__name__} has no adjoint `.mT`, which products with JᵀJ need.")
    n = J.shape[-1]
    check_steps(num_steps, n)
    J = CountingOperator(J)
    rows = check_probes(J, probes)
    B = golub_kahan(J, rows, num_steps)
    sigma, first, finite = _singular_pairs(B)
    rounding, nodes = 4 * torch.finfo(J.dtype).eps, sigma
    if not singular_values:
        rounding, nodes = rounding**2, sigma**2
    sound = torch.zeros_like(finite, dtype=torch.int64)
    return _discrete(B, nodes, first, finite, rounding, sound, n, J.num_gram_matvecs)


def kpm_density(
    A: Any,
    probes: Tensor,
    *,
    degree: int,
    interval: tuple[float | Tensor, float | Tensor],
    damping: Damping = "jackson",
) -> KernelDensity:
    r"""Spectral density of a symmetric A by the kernel polynomial method on an interval [a, b].

    .. math:: \rho(t) = \frac{1}{\pi \sqrt{1 - t^2}} \Bigl[\mu_0
              + 2 \sum_{k=1}^d g_k \mu_k T_k(t)\Bigr], \qquad
              \mu_k = \tfrac1n x^\top T_k\!\Bigl(\frac{2A - (a+b) I}{b - a}\Bigr) x

    Unbiased for the density smeared by the kernel. "jackson" and "lorentz" are positive kernels,
    hence a monotone cdf; "none" is the truncated series, which rings, and whose n · expectation(f)
    is the Chebyshev estimate of tr f(A).

    Args:
        A: Symmetric operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device.
        degree: d ≥ 1; ⌈d/2⌉ products for each probe, since moments come two at a time.
        interval: (a, b) with a ≤ λ_min and λ_max ≤ b, each (...).
        damping: Factors g_k: "jackson", "lorentz" (λ = 4) or "none" (all 1).

    Raises:
        TypeError: If dtypes differ.
        ValueError: If degree < 1, damping is unknown, the interval is empty, or shapes do not fit.

    A probe that grows beyond |T_k x| ≤ |x| proves the interval wrong and fails with
    `OUTSIDE_INTERVAL`.

    Source: Weiße, Wellein, Alvermann & Fehske (2006), doi:10.1103/RevModPhys.78.275.

    Example:
        >>> import torch
        >>> x = torch.ones(8, 1, dtype=torch.float64)
        >>> A = torch.diag(torch.linspace(0, 1, 8, dtype=torch.float64))
        >>> density = kpm_density(A, x, degree=20, interval=(0.0, 1.0))
        >>> float(density.cdf(0.5).value.round(decimals=10))
        0.5
    """
    A = CountingOperator(as_operator(A))
    n = check_square(A)
    rows = check_probes(A, probes)
    if degree < 1:
        raise ValueError(f"The degree of the kernel must be at least 1, got {degree}.")
    factors = damping_factors(degree, damping).to(rows.device)
    a, b = (_end(bound, rows) for bound in interval)
    if not bool(((a < b) & torch.isfinite(a) & torch.isfinite(b)).all()):
        raise ValueError("An interval needs -inf < lower < upper < inf for every item.")
    seen = chebyshev_moments(A, rows, degree, a, b)
    status = _moment_status(seen, degree, A.dtype, a, b)
    moments = (factors * seen.moments / n).masked_fill(_failed(status), torch.nan)
    return KernelDensity(n, A.num_matvecs, status, moments, a, b, positive=damping != "none")


def damping_factors(degree: int, damping: Damping) -> Tensor:
    r"""Factors g_0 … g_d of a kernel, (d + 1,), float64, with g_0 = 1.

    .. math:: g_k^J = \frac{(N - k + 1) \cos\frac{\pi k}{N + 1}
              + \sin\frac{\pi k}{N + 1} \cot\frac{\pi}{N + 1}}{N + 1}, \qquad
              g_k^L = \frac{\sinh 4 (1 - k/N)}{\sinh 4}, \qquad N = d + 1

    Jackson's kernel is the positive one of least width, π (b − a) / (2 N) in the middle.

    Raises:
        ValueError: If damping is not "jackson", "lorentz" or "none".

    Source: Weiße et al. (2006), doi:10.1103/RevModPhys.78.275, II.C.
    """
    N = degree + 1
    k = torch.arange(N, dtype=torch.float64)
    if damping == "jackson":
        step = math.pi / (N + 1)
        wave = torch.sin(step * k) / math.tan(step)
        return ((N - k + 1) * torch.cos(step * k) + wave) / (N + 1)
    if damping == "lorentz":
        wave = torch.sinh(4 * (1 - k / N))
        return wave / wave[0]
    if damping == "none":
        return torch.ones_like(k)
    raise ValueError(f'damping is "jackson", "lorentz" or "none", got {damping!r}.')


def _eigenpairs(T: Tridiagonal) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values (..., m, k), first components of their vectors, and where T was finite."""
    matrix = torch.diag_embed(T.diagonal) + torch.diag_embed(T.off_diagonal[..., :-1], offset=1)
    matrix, finite = _without_nan(matrix)
    nodes, vectors = torch.linalg.eigh(matrix, UPLO="U")
    return nodes, vectors[..., 0, :], finite


def _singular_pairs(B: Bidiagonal) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values (..., m, k), ascending, first components of right vectors, where finite."""
    matrix = torch.diag_embed(B.diagonal) + torch.diag_embed(B.off_diagonal[..., :-1], offset=1)
    matrix, finite = _without_nan(matrix)
    _, sigma, right = torch.linalg.svd(matrix)
    return sigma.flip(-1), right[..., :, 0].flip(-1), finite


def _without_nan(matrix: Tensor) -> tuple[Tensor, Tensor]:
    # LAPACK raises on NaN: such probes get zero here and NaN in `_discrete`.
    finite = torch.isfinite(matrix.sum((-2, -1)))
    return torch.where(finite[..., None, None], matrix, 0), finite


def _discrete(
    T: Tridiagonal | Bidiagonal,
    nodes: Tensor,
    first: Tensor,
    finite: Tensor,
    rounding: float,
    status: Tensor,
    n: int,
    num_matvecs: float,
) -> DiscreteDensity:
    status = status | T.closed * int(Status.INVARIANT_SUBSPACE)
    status = status | ~finite * int(Status.NONFINITE)
    largest = nodes.abs().amax(-1, keepdim=True)
    nodes = torch.where(nodes.abs() <= rounding * largest, 0, nodes)
    weights = (T.norm_squared / n).unsqueeze(-1) * first.square()
    bad = _failed(status)
    nodes, weights = (part.masked_fill(bad, torch.nan) for part in (nodes, weights))
    return DiscreteDensity(n, num_matvecs, status, nodes, weights)


def _failed(status: Tensor) -> Tensor:
    return ((status & int(FAILURES)) != 0).unsqueeze(-1)


def _end(bound: float | Tensor, rows: Tensor) -> Tensor:
    end, batch = torch.as_tensor(bound, dtype=torch.float64, device=rows.device), rows.shape[:-2]
    try:
        return end.expand(batch)
    except RuntimeError as error:
        raise ValueError(
            f"An end of the interval has shape {tuple(end.shape)}, which does not fit the batch "
            f"{tuple(batch)} of operator and probes."
        ) from error


def _moment_status(seen: Moments, degree: int, dtype: torch.dtype, a: Tensor, b: Tensor) -> Tensor:
    """Flags per probe (..., m): growth proves the interval wrong, as in `chebyshev_logdet`."""
    amplified = (2 * torch.maximum(a.abs(), b.abs()) / (b - a)).unsqueeze(-1)
    status = growth_status(seen.growth, seen.asymmetry, degree, dtype, amplified)
    outside = (status & int(Status.OUTSIDE_INTERVAL)) != 0
    infinite = ~torch.isfinite(seen.moments.sum(-1)) & ~outside
    return status | infinite * int(Status.NONFINITE)
