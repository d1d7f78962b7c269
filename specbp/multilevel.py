r"""Telescoping in the number of Krylov steps: many probes for few steps, few for many.

.. math:: \mathbb{E}\, G_{k_L} = \mathbb{E}\, G_{k_0} + \sum_{l=1}^L \mathbb{E}\,
          (G_{k_l} - G_{k_{l-1}}), \qquad G_k \text{ the Gauss rule of } k \text{ steps}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from specbp import quadrature
from specbp.estimate import Estimate, from_samples
from specbp.krylov import Bidiagonal, Tridiagonal, golub_kahan, lanczos
from specbp.nystrom import Whitened, check_sketch, nystrom_preconditioner, whitened_status
from specbp.operators import (
    CountingOperator,
    as_operator,
    check_probes,
    check_square,
    check_steps,
    check_tall,
)

Levels = Sequence[tuple[int, int]]
Krylov = Callable[[Any, Tensor, int], Tridiagonal | Bidiagonal]
Flagged = Callable[[Any, quadrature.Rule, torch.dtype], Tensor]


def multilevel_logdet(A: Any, probes: Tensor, *, levels: Levels) -> Estimate:
    r"""log det A by multilevel stochastic Lanczos quadrature.

    .. math:: \frac1{m_0} \sum_i G_{k_0}(x_i^{(0)}) + \sum_{l=1}^L \frac1{m_l} \sum_i
              \bigl[G_{k_l}(x_i^{(l)}) - G_{k_{l-1}}(x_i^{(l)})\bigr]

    Each level has its own probes, the next m_l of the block. One Lanczos run of k_l steps gives
    both rules of a level, at Σ k_l m_l products in all. The differences vary little, so that a few
    probes remove most of the truncation error of the many.

    Unbiased for E G_{k_L}, the mean of `slq_logdet` with k_L steps, for any isotropic probe law.
    The standard error is the root of Σ se_l², calibrated for independent probes; its degrees of
    freedom are `welch_dof`. `Estimate.samples` are scaled by m / m_l so that their mean is the
    value.

    Every rule over-estimates its form: `Estimate.upper` is the mean of the finest rule of each
    probe, and bounds the mean of all forms for every draw. The differences are never positive, so
    level 0 alone also lies above the value. That the value does not lie below log det A holds in
    expectation only: E G_{k_L} ≥ log det A.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device, m = Σ m_l.
        levels: ((k_0, m_0), …, (k_L, m_L)), steps ascending in 1 … n; see `allocate`. Levels of
            one probe are allowed, but leave no standard error.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices do not fit, steps do not ascend, or m ≠ Σ m_l.

    A failed probe (negative Ritz value, NaN, asymmetry) makes its estimate NaN, with a status. The
    value carries no gradient.

    Source: Giles (2008), doi:10.1287/opre.1070.0496, for the telescoping sum; Golub & Meurant
        (2010), theorem 6.4, for the sign.

    Example:
        >>> import torch
        >>> A = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
        >>> X = torch.ones(3, 4, dtype=torch.float64)
        >>> est = multilevel_logdet(A, X, levels=((1, 2), (3, 2)))
        >>> round(float(est.value), 10) == round(float(torch.logdet(A)), 10)
        True
        >>> est.num_matvecs
        8.0
    """
    A = CountingOperator(as_operator(A))
    n = check_square(A)
    rows = check_probes(A, probes)
    _check_levels(levels, n, rows.shape[-2])
    found = _telescope(lanczos, A, rows, levels, quadrature.krylov_status)
    return replace(found, num_matvecs=A.num_matvecs)


def multilevel_golub_kahan_logdet(J: Any, probes: Tensor, *, levels: Levels) -> Estimate:
    """Log det JᵀJ by `multilevel_logdet` from Golub–Kahan bidiagonalisation of J.

    Equal to `multilevel_logdet` on JᵀJ in exact arithmetic and at the same cost; the singular
    values of J are resolved to eps σ_max, as by `golub_kahan_logdet`.

    Args:
        J: Operator or tensor (..., N, n), N ≥ n, with adjoint `.mT`, float32 or float64.
        probes: (..., n, m), of J's dtype and device, m = Σ m_l.
        levels: As for `multilevel_logdet`; a step costs one product with J and one with Jᵀ.

    Raises:
        TypeError: If J has no adjoint or dtypes differ.
        ValueError: If J is wide, shapes or devices do not fit, steps do not ascend, or m ≠ Σ m_l.
    """
    J = as_operator(J)
    n = check_tall(J)
    J = CountingOperator(J)
    rows = check_probes(J, probes)
    _check_levels(levels, n, rows.shape[-2])
    found = _telescope(golub_kahan, J, rows, levels, quadrature.krylov_status)
    return replace(found, num_matvecs=J.num_gram_matvecs)


def nystrom_multilevel_logdet(
    A: Any,
    probes: Tensor,
    *,
    num_sketch: int,
    levels: Levels,
    shift: float | Tensor | None = None,
) -> Estimate:
    r"""log det A by `multilevel_logdet` of A preconditioned as in `nystrom_logdet`.

    .. math:: \log\det A = \log\det P + \operatorname{tr} \log(P^{-1/2} A P^{-1/2})

    The sketch takes the large eigenvalues, which the coarse rules of plain levels resolve badly,
    and the levels take the truncation error of the rest: of the two, one helps where the other does
    not. Costs min(s, n) + Σ k_l m_l products. `Estimate.upper` and the standard error are those of
    the levels, given the sketch.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device, m = num_sketch + Σ m_l.
        num_sketch: As for `nystrom_logdet`.
        levels: As for `multilevel_logdet`.
        shift: As for `nystrom_logdet`.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices do not fit, steps do not ascend, m ≠ num_sketch + Σ m_l, or
            num_sketch or shift is out of its range.

    Source: as for the two; their combination is ours.
    """
    A = CountingOperator(as_operator(A))
    n = check_square(A)
    rows = check_probes(A, probes)
    check_sketch(num_sketch, rows.shape[-2])
    _check_levels(levels, n, rows.shape[-2] - num_sketch)
    P, sketched = nystrom_preconditioner(A, rows[..., :num_sketch, :], shift)

    def status(T: Any, rule: quadrature.Rule, dtype: torch.dtype) -> Tensor:
        return whitened_status(T, rule, P, torch.finfo(dtype).eps) | sketched.unsqueeze(-1)

    found = _telescope(lanczos, Whitened(A, P), rows[..., num_sketch:, :], levels, status)
    return replace(
        found,
        value=found.value + P.log_det,
        upper=found.upper + P.log_det,
        samples=found.samples + P.log_det.unsqueeze(-1),
        num_matvecs=A.num_matvecs,
    )


def welch_dof(estimate: Estimate, levels: Levels) -> Tensor:
    r"""Effective degrees of freedom of the standard error, shape (...), at most Σ (m_l − 1).

    .. math:: \nu = \frac{(\sum_l \mathrm{se}_l^2)^2}{\sum_l \mathrm{se}_l^4 / (m_l - 1)}

    NaN where a level has one probe, or nothing varies.

    Args:
        estimate: Of `multilevel_logdet` or one of its variants.
        levels: The levels it was made with.

    Source: Welch (1947), doi:10.1093/biomet/34.1-2.28; Satterthwaite (1946), doi:10.2307/3002019.
    """
    counts = [m for _, m in levels]
    pieces = estimate.samples.split(counts, dim=-1)
    scales = [m / sum(counts) for m in counts]
    errors = [_error(scale * y, None) for scale, y in zip(scales, pieces, strict=True)]
    variances = torch.stack(errors, -1).square()
    dof = torch.tensor([m - 1.0 for m in counts], dtype=torch.float64, device=variances.device)
    return variances.sum(-1) ** 2 / (variances**2 / dof).sum(-1)


def level_deviations(A: Any, probes: Tensor, *, steps: Sequence[int]) -> Tensor:
    """Standard deviations of the levels from a pilot block of probes, (..., L + 1), float64.

    All probes take k_L steps, at m k_L products, and each gives every level.

    Args:
        A: As for `multilevel_logdet`.
        probes: (..., n, m), m ≥ 2.
        steps: k_0 < … < k_L, in 1 … n.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices do not fit, steps do not ascend, or m < 2.
    """
    A = as_operator(A)
    n = check_square(A)
    rows = check_probes(A, probes)
    _check_ascending(steps, n)
    if rows.shape[-2] < 2:
        raise ValueError("A standard deviation needs at least 2 pilot probes, got 1.")
    T = lanczos(A, rows, steps[-1])
    values = torch.stack([quadrature.gauss(quadrature.leading(T, k)).value for k in steps], -1)
    zero = torch.zeros_like(values[..., :1])
    return values.diff(dim=-1, prepend=zero).std(-2)


def allocate(
    deviations: Sequence[float] | Tensor, steps: Sequence[int], budget: float
) -> tuple[tuple[int, int], ...]:
    r"""Probes per level with the smallest variance within a budget of products.

    .. math:: m_l \propto \sigma_l / \sqrt{k_l}, \qquad m_l \ge 2, \quad \sum_l k_l m_l \le b

    From two probes on each level, one more at a time goes where it lowers the variance most for
    its price, as long as the budget pays for it.

    Args:
        deviations: σ_l of one probe of each level, from `level_deviations`.
        steps: k_0 < … < k_L.
        budget: Products in all.

    Raises:
        ValueError: If a deviation is negative or not finite, the numbers of levels differ, or the
            budget does not pay for two probes on each level.

    Source: Giles (2008), doi:10.1287/opre.1070.0496.

    Example:
        >>> allocate([8.0, 1.0], [4, 16], 200)
        ((4, 42), (16, 2))
    """
    sigma = [float(s) for s in deviations]
    _check_allocation(sigma, steps, budget)
    counts = [2] * len(steps)
    while True:
        left = budget - sum(k * m for k, m in zip(steps, counts, strict=True))
        gains = [
            (s**2 / (m * (m + 1) * k), level)
            for level, (s, k, m) in enumerate(zip(sigma, steps, counts, strict=True))
            if k <= left
        ]
        if not gains or max(gains)[0] == 0:
            return tuple(zip(steps, counts, strict=True))
        counts[max(gains)[1]] += 1


def _telescope(krylov: Krylov, A: Any, rows: Tensor, levels: Levels, flagged: Flagged) -> Estimate:
    """The estimate but for its cost."""
    m, coarse, start = rows.shape[-2], 0, 0
    samples, finest, flags, errors = [], [], [], []
    for steps, count in levels:
        T = krylov(A, rows[..., start : start + count, :].contiguous(), steps)
        rule = quadrature.gauss(T)
        values = (
            rule.value - quadrature.gauss(quadrature.leading(T, coarse)).value
            if coarse
            else rule.value
        )
        flags.append(flagged(T, rule, A.dtype))
        errors.append(_error(values, flags[-1]))
        samples.append(values * (m / count))
        finest.append(rule.value)
        coarse, start = steps, start + count
    found = from_samples(
        torch.cat(samples, -1),
        num_matvecs=0,
        upper=torch.cat(finest, -1),
        status=torch.cat(flags, -1),
    )
    found = replace(found, standard_error=torch.stack(errors).square().sum(0).sqrt())
    # Where there is no standard error, or it is zero, any number will do but NaN.
    return replace(found, freedom=welch_dof(found, levels).nan_to_num(nan=1.0))


def _error(values: Tensor, status: Tensor | None) -> Tensor:
    return from_samples(values, num_matvecs=0, status=status).standard_error


def _check_levels(levels: Levels, n: int, m: int) -> None:
    _check_ascending([k for k, _ in levels], n)
    counts = [count for _, count in levels]
    if min(counts) < 1 or sum(counts) != m:
        raise ValueError(
            f"Levels need at least 1 probe each and m = {m} in all, got {counts}: pass "
            f"{sum(counts)} probes, or change the levels."
        )


def _check_ascending(steps: Sequence[int], n: int) -> None:
    if not steps:
        raise ValueError("At least one level (steps, probes) is required.")
    for k in steps:
        check_steps(k, n, name="The steps of a level")
    if any(later <= k for k, later in pairwise(steps)):
        raise ValueError(f"The steps of the levels must ascend, got {list(steps)}.")


def _check_allocation(sigma: list[float], steps: Sequence[int], budget: float) -> None:
    if len(sigma) != len(steps) or not steps:
        raise ValueError(
            f"One deviation for each level is required, got {len(sigma)} for {len(steps)} levels."
        )
    if not all(0 <= s < float("inf") for s in sigma):
        raise ValueError(f"Deviations must be finite and not negative, got {sigma}.")
    if budget < 2 * sum(steps):
        raise ValueError(
            f"Two probes on each level cost {2 * sum(steps)} products, the budget is {budget:g}: "
            "raise it, or drop the level with the most steps."
        )
