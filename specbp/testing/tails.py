r"""Null distributions of sums over probes: exact where a closed form is known, else by moments.

Rademacher sums are binomial, Gaussian ones normal; sums over sphere probes get an Edgeworth
correction from their exact moments.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from specbp.exact import Moments
from specbp.testing.outcome import POWER
from specbp.testing.pvalues import cornish_fisher, normal_p


def shift(alpha: float) -> float:
    """Shift in standard errors that a two-sided test of level alpha detects with `POWER`.

    Example:
        >>> round(shift(1e-3), 3)
        4.935
    """
    return float(stats.norm.isf(alpha / 2) + stats.norm.isf(1 - POWER))


def mixed_moment(n: int, order: int, law: str) -> float:
    r"""E[x₁² x₂² …] of `order` distinct coordinates.

    .. math:: n^r / (n (n+2) \cdots (n+2r-2)) \text{ on the sphere, 1 where they are independent}

    Example:
        >>> mixed_moment(4, 2, "sphere"), mixed_moment(4, 2, "gaussian")
        (0.6666666666666666, 1.0)
    """
    return n**order / _rising(n, order) if law == "sphere" else 1.0


def coordinate(n: int, law: str) -> Moments:
    """One entry x₁; on the sphere also any Σ xⱼ / √n, by rotation."""
    fourth = {"rademacher": 1.0, "gaussian": 3.0, "sphere": 3 * n / (n + 2)}[law]
    return Moments(0.0, 1.0, 0.0, fourth)


def product(n: int, law: str) -> Moments:
    """The product x₁ x₂ of two entries."""
    fourth = {"rademacher": 1.0, "gaussian": 9.0, "sphere": 9 * n**4 / _rising(n, 4)}[law]
    return Moments(0.0, mixed_moment(n, 2, law), 0.0, fourth)


def fourth_powers(n: int, law: str) -> Moments:
    r"""Σⱼ xⱼ⁴ of one probe.

    A Gaussian probe is g = |g| x / √n with |g| independent of x on the sphere, so that
    E (Σ gⱼ⁴)ʳ = E|g|⁴ʳ / n²ʳ · E (Σ xⱼ⁴)ʳ; the left side follows from the cumulants of g⁴.

    Example:
        >>> fourth_powers(2, "sphere").mean, fourth_powers(2, "gaussian").mean
        (3.0, 6.0)
    """
    # Moments of g⁴ are the double factorials 3, 105, 10395 and 2027025.
    k1, k2, k3, k4 = (n * c for c in (3.0, 96.0, 9504.0, 1880064.0))
    if law == "gaussian":
        return Moments(k1, k2, k3, k4 + 3 * k2**2)
    raw = [
        k1,
        k2 + k1**2,
        k3 + 3 * k2 * k1 + k1**3,
        k4 + 4 * k3 * k1 + 3 * k2**2 + 6 * k2 * k1**2 + k1**4,
    ]
    m1, m2, m3, m4 = (m * n ** (2 * r) / _rising(n, 2 * r) for r, m in enumerate(raw, 1))
    return Moments(
        m1,
        m2 - m1**2,
        m3 - 3 * m1 * m2 + 2 * m1**3,
        m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4,
    )


def sum_of_entries(total: float, count: int, law: str, one: Moments, terms: int) -> float:
    """Two-sided p of a sum of `count` uncorrelated entries, or products of entries, of mean zero.

    Signs and products of signs are signs: their sum is binomial, exactly. Elsewhere `one` are the
    moments of one of the `terms` independent and equally distributed parts of the sum, up to scale.

    Example:
        >>> sum_of_entries(3.0, 3, "rademacher", coordinate(8, "rademacher"), 3)
        0.25
    """
    if law == "rademacher" and abs(total - round(total)) < 1e-6:
        ups = (count + abs(round(total))) // 2
        return float(min(1.0, 2 * stats.binom.sf(ups - 1, count, 0.5)))
    return normal_p(cornish_fisher(total / math.sqrt(count * one.variance), one.averaged(terms)))


def pearson(z: float, skewness: float) -> float:
    """Two-sided p of a standardised statistic from its first three moments (Pearson type III).

    Example:
        >>> round(pearson(1.959964, 0.0), 6)
        0.05
    """
    if not math.isfinite(z):
        return 0.0
    if abs(skewness) < 1e-6:
        return normal_p(z)
    law = stats.pearson3(skewness)
    return float(min(1.0, 2 * min(law.cdf(z), law.sf(z))))


def _rising(n: int, terms: int) -> float:
    """n (n + 2) (n + 4) …, the moments of |g|²."""
    return float(np.prod([float(n + 2 * i) for i in range(terms)]))
