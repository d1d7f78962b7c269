r"""Null distributions of sums over probes: exact where a closed form is known, else by moments.

Rademacher sums are binomial, Gaussian ones normal; sums over sphere probes get an Edgeworth
correction from their exact moments, sums with a long tail a lognormal one.
"""

from __future__ import annotations

import math
from typing import Any

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
    """P(Z ≥ z) of a standardised statistic from its first three moments (Pearson type III).

    Example:
        >>> round(pearson(1.644854, 0.0), 6)
        0.05
    """
    if not math.isfinite(z):
        return 0.0
    return float(_pearson(skewness).sf(z))


def pearson_both(z: float, skewness: float) -> float:
    """Two-sided p, for a skewness that leaves the lower end of the law out of sight."""
    return min(1.0, 2 * pearson(z, skewness), 2 * float(_pearson(skewness).cdf(z)))


def correlation_seen(P: int, pairs: int, v: float, skewness: float, alpha: float) -> float:
    r"""Root mean square correlation r that an upper-tailed test of U rejects with `POWER`.

    With K pairs whose products have the variance v, and z the normal quantile of `POWER`,

    .. math:: (P - 1) K r^2 v^2 = q_\alpha s_0 + z \sqrt{s_0^2 + 4 (P-1)^2 K r^2 v^3 / P},
              \qquad s_0^2 = 2 K v^2 (P - 1) / P

    where q is the quantile of the null (`pearson`) and the last term the part of the variance that
    grows with the correlations, for a direction of no particular kind.

    Example:
        >>> round(correlation_seen(500, 28, 1.0, 0.54, 1e-3 / 4), 4)
        0.0668
    """
    null = math.sqrt(2 * pairs * v**2 * (P - 1) / P)
    far, z = float(_pearson(skewness).isf(alpha)) * null, float(stats.norm.isf(1 - POWER))
    # The larger root of a² u² − 2 b u + c = 0 in u = K r² v².
    a, b = P - 1, (P - 1) * far + 2 * z**2 * v * (P - 1) ** 2 / P
    u = (b + math.sqrt(max(b**2 - a**2 * (far**2 - (z * null) ** 2), 0.0))) / a**2
    return math.sqrt(u / pairs) / v


def lognormal_score(z: float, skewness: float) -> float:
    r"""Normal score of a standardised statistic with a long upper tail, from three moments.

    .. math:: z = \frac{e^{\sigma N} - \sqrt w}{\sqrt{w (w - 1)}}, \quad w = e^{\sigma^2},
              \quad (w + 2) \sqrt{w - 1} = \text{skewness}

    Fourth powers of a few Gaussian entries have tails beyond Edgeworth's correction and Pearson's
    type III; this one keeps the level from two entries on.

    Args:
        z: The statistic, of mean 0 and variance 1.
        skewness: Positive.

    Source: Johnson (1949), doi:10.2307/2332539, the family S_L.

    Example:
        >>> round(lognormal_score(3.0, 1.0), 3), round(lognormal_value(2.3091, 1.0), 2)
        (2.309, 3.0)
    """
    w = _width(skewness)
    y = math.sqrt(w) + z * math.sqrt(w * (w - 1))
    return math.log(y) / math.sqrt(math.log(w)) if y > 0 else -math.inf


def lognormal_value(score: float, skewness: float) -> float:
    """The z of a score, the inverse of `lognormal_score`."""
    w = _width(skewness)
    return (math.exp(math.sqrt(math.log(w)) * score) - math.sqrt(w)) / math.sqrt(w * (w - 1))


def _width(skewness: float) -> float:
    """The root w > 1 of (w + 2)² (w − 1) = skewness²."""
    s = skewness**2
    edge = (2 + s + math.sqrt(s * (s + 4))) / 2
    return math.cbrt(edge) + math.cbrt(1 / edge) - 1


def _pearson(skewness: float) -> Any:
    return stats.pearson3(skewness) if abs(skewness) >= 1e-6 else stats.norm


def _rising(n: int, terms: int) -> float:
    """n (n + 2) (n + 4) …, the moments of |g|²."""
    return float(np.prod([float(n + 2 * i) for i in range(terms)]))
