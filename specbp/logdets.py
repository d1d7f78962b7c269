r"""Log-determinant estimators, each a pure function of an operator and a block of probes.

.. math:: \log\det A = \operatorname{tr} \log A = \mathbb{E}\, x^\top \log(A) x
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specbp import bounds, polynomials, quadrature, sensitivities
from specbp.differentiable import Sensitivity, attach, inputs_of
from specbp.estimate import Estimate, Status, from_samples
from specbp.krylov import Bidiagonal, Tridiagonal, golub_kahan, lanczos
from specbp.operators import (
    CountingOperator,
    as_operator,
    check_probes,
    check_square,
    check_steps,
    check_tall,
)
from specbp.surrogate import with_gradient_of


def slq_logdet(
    A: Any, probes: Tensor, *, num_steps: int, lower: float | Tensor | None = None
) -> Estimate:
    r"""log det A by stochastic Lanczos quadrature.

    .. math:: x^\top \log(A) x \approx |x|^2 \sum_{j=1}^k (e_1^\top s_j)^2 \log \theta_j,
              \qquad T_k s_j = \theta_j s_j

    The Gauss rule over-estimates for every probe; with `lower` ≤ λ_min the Gauss–Radau rule
    under-estimates, and `Estimate.lower`, `Estimate.upper` bracket the truncation error.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device.
        num_steps: Lanczos steps k, 1 … n; k products for each probe. Exact at k = n.
        lower: A lower bound of λ_min, (...), if one is known.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes, devices or num_steps do not fit.

    A failed probe (negative Ritz value, NaN, asymmetry) makes its estimate NaN, with a status. Skew
    below √eps, or seen in a single step only, goes unnoticed. Where A is differentiable, so is the
    value: by the Fréchet derivative of log in each probe's Krylov space (see `sensitivities`).

    Source: Ubaru, Chen & Saad (2017), doi:10.1137/16M1104974; Golub & Meurant (2010).

    Example:
        >>> import torch
        >>> A = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
        >>> est = slq_logdet(A, torch.ones(3, 1, dtype=torch.float64), num_steps=3)
        >>> round(float(est.value), 10) == round(float(torch.logdet(A)), 10)
        True
    """
    A = CountingOperator(as_operator(A))
    check_steps(num_steps, check_square(A))
    rows = check_probes(A, probes)
    T = lanczos(A, rows, num_steps)
    return _bracketed(A, T, lower, rows, A.num_matvecs)


def golub_kahan_logdet(
    J: Any, probes: Tensor, *, num_steps: int, lower: float | Tensor | None = None
) -> Estimate:
    r"""log det JᵀJ by Golub–Kahan quadrature on J, without squaring its condition number.

    .. math:: x^\top \log(J^\top J) x \approx
              |x|^2 \sum_{j=1}^k (v_j^\top e_1)^2 \, 2 \log \sigma_j(B_k), \qquad J V_k = U_k B_k

    Equal to `slq_logdet` on JᵀJ in exact arithmetic and at the same cost; in float32 it stays
    accurate up to cond(JᵀJ) ≈ 1e8, where Lanczos on JᵀJ meets negative Ritz values. Where J
    is differentiable, so is the value, by the Fréchet derivative as in `slq_logdet`.

    Args:
        J: Operator or tensor (..., N, n), N ≥ n, with adjoint `.mT`, float32 or float64.
        probes: (..., n, m), of J's dtype and device.
        num_steps: Steps k, 1 … n; k products with J and k with Jᵀ for each probe. Exact at k = n.
        lower: A lower bound of λ_min(JᵀJ), (...), if one is known.

    Raises:
        TypeError: If J has no adjoint or dtypes differ.
        ValueError: If J is wide, or shapes, devices or num_steps do not fit.

    Source: Golub & Kahan (1965), doi:10.1137/0702016; Golub & Meurant (2010), chapter 3.
    """
    J = as_operator(J)
    check_steps(num_steps, check_tall(J))
    J = CountingOperator(J)
    rows = check_probes(J, probes)
    B = golub_kahan(J, rows, num_steps)
    return _bracketed(J, B, lower, rows, J.num_gram_matvecs)


def chebyshev_logdet(
    A: Any,
    probes: Tensor,
    *,
    degree: int,
    interval: tuple[float | Tensor, float | Tensor],
    series: bool = False,
) -> Estimate:
    r"""log det A by Chebyshev expansion of log on a known spectral interval [a, b].

    .. math:: x^\top p(A) x = \sum_{k=0}^d c_k \, x^\top T_k\!\Bigl(\frac{2A-(a+b)I}{b-a}\Bigr) x

    Unbiased for tr p(A); the truncation |p − log| ≤ 4 ρ^{-d} / ((d+1)(ρ−1)) (half of that for the
    series) is bracketed by `Estimate.lower` and `Estimate.upper`. The recurrence itself proves an
    interval wrong: |T_k x| ≤ |x| as long as the spectrum lies inside. A probe that grows beyond is
    reported as `OUTSIDE_INTERVAL`, not averaged in.

    Where A is differentiable, so is the value: its exact derivative, tr p'(A) dA on average, by the
    adjoint of the recurrence; its remaining d/2 − 1 products are taken in `backward`. Ends of the
    interval that require a gradient get theirs.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device.
        degree: Degree d ≥ 1; ⌈d/2⌉ products for each probe, since moments come two at a time.
        interval: (a, b) with 0 < a ≤ λ_min and λ_max ≤ b, each (...).
        series: Truncated Chebyshev series instead of the interpolant of the paper.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If degree < 1, the interval is empty or not positive, or shapes do not fit.

    Source: Han, Malioutov & Shin (2015), arXiv:1503.06394; doubling: Weiße et al. (2006),
    doi:10.1103/RevModPhys.78.275.
    """
    A = CountingOperator(as_operator(A))
    check_square(A)
    rows = check_probes(A, probes)
    a, b = bounds.interval(*interval, rows)
    values, seen = _chebyshev(A, rows, degree, a, b, series)
    status = _polynomial_status(seen, degree, A.dtype, a, b)
    ratio = (b / a).sqrt()
    rho = (ratio + 1) / (ratio - 1)
    sup = (2 if series else 4) * rho**-degree / ((degree + 1) * (rho - 1))
    slack = sup.unsqueeze(-1) * seen.moments[..., 0]
    return from_samples(
        values,
        num_matvecs=A.num_matvecs,
        lower=values - slack,
        upper=values + slack,
        status=status,
    )


def taylor_logdet(A: Any, probes: Tensor, *, degree: int, upper: float | Tensor) -> Estimate:
    r"""log det A by the Taylor series of log at an upper bound α of the spectrum.

    .. math:: x^\top p(A) x = |x|^2 \log\alpha
              - \sum_{k=1}^d \frac1k \, x^\top (I - A/\alpha)^k x \;\ge\; x^\top \log(A) x

    Truncation over-estimates for every probe and decays like (1 − λ_min/α)^d only: about 2 √κ times
    slower than Chebyshev. `Estimate.upper` is the value itself; no lower end is known.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device.
        degree: Degree d ≥ 1; ⌈d/2⌉ products for each probe.
        upper: α ≥ λ_max, (...).

    Raises:
        TypeError: If dtypes differ.
        ValueError: If degree < 1, upper is not positive, or shapes do not fit.

    Source: Boutsidis et al. (2017), arXiv:1503.00374.
    """
    A = CountingOperator(as_operator(A))
    check_square(A)
    rows = check_probes(A, probes)
    alpha = bounds.positive(upper, "upper", rows)
    values, seen = _taylor(A, rows, degree, alpha)
    status = _polynomial_status(seen, degree, A.dtype, torch.zeros_like(alpha), alpha)
    return from_samples(values, num_matvecs=A.num_matvecs, upper=values, status=status)


def algorithm1_logdet(
    A: Any,
    probes: Tensor,
    *,
    degree: int,
    lower: float | Tensor,
    power_steps: int = 10,
    polynomial: str = "chebyshev",
    safe: bool = True,
) -> Estimate:
    r"""log det A by Algorithm 1 of the paper: bound λ_max with products, then expand log.

    .. math:: b \approx \lambda_{\max}, \quad a = \delta, \qquad
              \log\det A \approx \frac1m \sum_i x_i^\top p_{[a,b]}(A) x_i

    With `safe=False` it is the paper's plain form: b is the Rayleigh quotient after `power_steps`
    products, a *lower* bound of λ_max, and whatever the polynomial returns beyond [a, b] is the
    value. With `safe=True` the same products go into Lanczos, b is its residual bound, and the
    recurrence proves b wrong if |T_k x| > |x|: then b is raised by a quarter, or to that much above
    the Rayleigh quotient found, and the expansion runs again, at most 4 times (every product is
    counted), or fails with `OUTSIDE_INTERVAL`.

    Eigenvalues below `lower` bias either form upwards, like a soft floor; the safe form says so
    (`FLOORED`) when a Ritz value proves that there is one, and fails (`OUTSIDE_INTERVAL`) when the
    vectors grow there, which cannot be told from an indefinite A.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device; the bound starts from the first of each block.
        degree: Degree d ≥ 1; ⌈d/2⌉ products for each probe.
        lower: δ > 0, the lower end of the interval, (...); the paper fixes a small constant.
        power_steps: Products spent on b, once for each block of probes.
        polynomial: "chebyshev" (interpolant on [δ, b]) or "taylor" (series at b).
        safe: As above.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is out of its range or shapes do not fit.

    Source: Ramesh & LeCun (2018), arXiv:1806.00499, section 2.2; number of power steps, safety
        factor and δ are not given there: 10, none and no default here.
    """
    if polynomial not in ("chebyshev", "taylor"):
        raise ValueError(f'polynomial is "chebyshev" or "taylor", got {polynomial!r}.')
    if power_steps < 1:
        raise ValueError(f"power_steps must be at least 1, got {power_steps}.")
    A = CountingOperator(as_operator(A))
    n = check_square(A)
    rows = check_probes(A, probes)
    a = bounds.positive(lower, "lower", rows)
    if not safe:
        with torch.no_grad():  # the interval is held fixed
            b = bounds.power_method(A, rows[..., 0, :], power_steps)
        values, _ = _expand(A, rows, degree, a, _above(a, b), polynomial)
        return from_samples(values, num_matvecs=A.num_matvecs)
    ritz, b = bounds.lanczos_interval(A, rows[..., 0, :], min(power_steps, n))
    b = _above(a, b)
    for _ in range(1 + MAX_RAISES):
        values, seen = _expand(A, rows, degree, a, b, polynomial)
        status = _polynomial_status(seen, degree, A.dtype, a, b)
        outside = (status & int(Status.OUTSIDE_INTERVAL)) != 0
        # A quotient below a speaks of the other end: no upper bound helps.
        found = seen.rayleigh.masked_fill(~outside | (seen.rayleigh < a.unsqueeze(-1)), 0).amax(-1)
        if not bool((found > 0).any()):
            break
        b = torch.where(found > 0, RAISE * torch.maximum(found, b), b)
    floored = (ritz < a).unsqueeze(-1) * int(Status.FLOORED)
    return from_samples(values, num_matvecs=A.num_matvecs, status=status | floored)


MAX_RAISES, RAISE = 4, 1.25


def _above(a: Tensor, b: Tensor) -> Tensor:
    # A bound that is NaN or not above a (δ > λ_max) still needs an interval; the status tells.
    return torch.where(b > a, b, 2 * a)


def _expand(
    A: CountingOperator, rows: Tensor, degree: int, a: Tensor, b: Tensor, polynomial: str
) -> tuple[Tensor, polynomials.Moments]:
    if polynomial == "taylor":
        return _taylor(A, rows, degree, b)
    return _chebyshev(A, rows, degree, a, b, series=False)


def _chebyshev(
    A: CountingOperator, rows: Tensor, degree: int, a: Tensor, b: Tensor, series: bool
) -> tuple[Tensor, polynomials.Moments]:
    polynomials.check_degree(degree)
    kind = polynomials.chebyshev_series if series else polynomials.chebyshev_coefficients
    coefficients = kind(degree, a, b).unsqueeze(-2)
    keep = bool(inputs_of(A))
    with torch.no_grad():
        seen = polynomials.chebyshev_moments(A, rows, degree, a, b, keep=keep)
        values = _combine(seen, coefficients)

    def derivative() -> Sensitivity:
        fixed = (t.detach() for t in (coefficients, a, b))
        return sensitivities.chebyshev(A.operator, seen.vectors, *fixed)

    values = attach(values, A, derivative)
    if coefficients.requires_grad:
        moved = polynomials.moving_interval(coefficients, a, b)
        values = values + _only_gradient(_combine(seen, moved))
    return values, seen


def _taylor(
    A: CountingOperator, rows: Tensor, degree: int, upper: Tensor
) -> tuple[Tensor, polynomials.Moments]:
    polynomials.check_degree(degree)
    coefficients = polynomials.taylor_coefficients(degree, upper).unsqueeze(-2)
    keep = bool(inputs_of(A))
    with torch.no_grad():
        seen = polynomials.taylor_moments(A, rows, degree, upper, keep=keep)
        values = _combine(seen, coefficients)

    def derivative() -> Sensitivity:
        return sensitivities.taylor(A.operator, seen.vectors, coefficients.detach(), upper.detach())

    values = attach(values, A, derivative)
    if upper.requires_grad:  # dp/dα = (1 − λ/α)^d / α
        last = seen.moments[..., -1]
        values = values + _only_gradient(last * upper.double().log().unsqueeze(-1))
    return values, seen


def _combine(seen: polynomials.Moments, coefficients: Tensor) -> Tensor:
    return (seen.moments * coefficients).sum(-1)


def _only_gradient(surrogate: Tensor) -> Tensor:
    """Zero, with a gradient."""
    return with_gradient_of(torch.zeros_like(surrogate), surrogate)


def _polynomial_status(
    seen: polynomials.Moments, degree: int, dtype: torch.dtype, a: Tensor, b: Tensor
) -> Tensor:
    """Flags per probe (..., m) of a polynomial on [a, b]."""
    amplified = ((b + a) / (b - a)).unsqueeze(-1)
    return polynomials.growth_status(seen.growth, seen.asymmetry, degree, dtype, amplified)


def _bracketed(
    operator: CountingOperator,
    T: Tridiagonal | Bidiagonal,
    lower: float | Tensor | None,
    rows: Tensor,
    num_matvecs: float,
) -> Estimate:
    rule = quadrature.gauss(T)
    status = quadrature.krylov_status(T, rule, rows.dtype)
    below = None
    if lower is not None:
        node = bounds.positive(lower, "lower", rows).unsqueeze(-1)
        # A node within rounding of a Ritz value has no rule: nothing is known of the lower end.
        below = quadrature.gauss_radau(T, node).value.nan_to_num(nan=-torch.inf)
    factor = isinstance(T, Bidiagonal)
    values = attach(rule.value, operator, lambda: sensitivities.frechet(T), factor=factor)
    return from_samples(
        values, num_matvecs=num_matvecs, lower=below, upper=rule.value, status=status
    )
