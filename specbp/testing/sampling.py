"""Random checks of fixed size: mean, variance and error bars against exact references.

The moments of the law are known exactly (`specbp.exact.moments`), so no test estimates the variance
it divides by; p-values are corrected for skewness and kurtosis.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from specbp.exact import Moments
from specbp.testing.outcome import POWER, Check, Level, judged, within


def mean(values: np.ndarray, expected: float, law: Moments, level: Level) -> Check:
    """Sample mean against its exact expectation, variance known, Cornish–Fisher corrected.

    `law` are the exact moments of one value; the margin is in standard deviations of one value.
    """
    R, sd = len(values), math.sqrt(law.variance)
    claim = "the expectation of the estimate is that of its contract"
    if sd <= level.rounding:
        return within("mean", claim, float(np.abs(values - expected).max()), 10 * level.rounding)
    z = float((values.mean() - expected) / (sd / math.sqrt(R)))
    p = normal_p(cornish_fisher(z, law.averaged(R)))
    detectable = _shift(level.alpha) / math.sqrt(R)
    return judged(
        "mean",
        claim,
        z,
        0.0,
        p=p,
        detectable=detectable,
        level=level,
        size=R,
        unit="z; effects in sd of one value",
    )


def variance(values: np.ndarray, expected: float, law: Moments, level: Level) -> Check:
    """Mean square about the known expectation against the exact variance: Box's corrected χ².

    With excess kurtosis e the statistic has about ν = 2R/(e + 2) degrees of freedom (Box 1953,
    doi:10.2307/2333350). Margin: ratio − 1.
    """
    R = len(values)
    claim = "the variance is the closed form of the probe law"
    if math.sqrt(law.variance) <= level.rounding:
        return within("variance", claim, float(np.ptp(values)), 10 * level.rounding)
    ratio = float(np.mean((values - expected) ** 2) / law.variance)
    nu = _freedom(R, law)
    p = 2 * min(stats.chi2.cdf(nu * ratio, nu), stats.chi2.sf(nu * ratio, nu))
    upper = stats.chi2.isf(level.alpha / 2, nu) / stats.chi2.isf(POWER, nu)
    return judged(
        "variance",
        claim,
        ratio,
        1.0,
        p=p,
        detectable=upper - 1,
        level=level,
        size=R,
        unit="ratio",
    )


def error_bars(squared_errors: np.ndarray, law: Moments, m: int, level: Level) -> Check:
    """E[se²] against the variance it estimates; se² of m independent values has known variance.

    .. math:: Var[se²] / σ⁴ = (e/m + 2/(m−1)), σ² = V₁/m
    """
    R = len(squared_errors)
    claim = "E[se²] is the variance of the estimate"
    if math.sqrt(law.variance) <= level.rounding:
        largest = float(np.sqrt(squared_errors.max()))
        return within("se", claim, largest, 10 * level.rounding)
    ratio = float(squared_errors.mean() / (law.variance / m))
    sd = math.sqrt(max(law.excess_kurtosis / m + 2 / (m - 1), 1e-12) / R)
    p = normal_p((ratio - 1) / sd)
    return judged(
        "se",
        claim,
        ratio,
        1.0,
        p=p,
        detectable=sd * _shift(level.alpha),
        level=level,
        size=R,
        unit="ratio",
    )


def _freedom(R: int, law: Moments) -> float:
    """Box's degrees of freedom of the mean square of R values."""
    # A two-point law (n = 2) has e = −2: its mean square is a constant.
    return max(2 * R / max(law.excess_kurtosis + 2, 1e-6), 1.0)


def _shift(alpha: float) -> float:
    """Shift in standard errors that a two-sided test of level alpha detects with POWER."""
    return float(stats.norm.isf(alpha / 2) + stats.norm.isf(1 - POWER))


def cornish_fisher(z: float, law: Moments) -> float:
    """Normal score of z after the Edgeworth correction for skewness and kurtosis of the mean."""
    s, k = law.skewness, law.excess_kurtosis
    w = z - s * (z**2 - 1) / 6 - k * (z**3 - 3 * z) / 24 + s**2 * (4 * z**3 - 7 * z) / 36
    # Far out the expansion turns back: a score is never pulled below half of the raw one.
    return math.copysign(max(abs(w), abs(z) / 2), z)


def normal_p(z: float) -> float:
    """Two-sided normal p-value; NaN counts as 0."""
    return float(2 * stats.norm.sf(abs(z))) if math.isfinite(z) else 0.0


def interval_of_mean(values: np.ndarray, sd: float, level: float = 0.99) -> list[float]:
    """Interval of the expectation, standard deviation of one value known."""
    half = float(stats.norm.isf((1 - level) / 2)) * sd / math.sqrt(len(values))
    return [float(values.mean()) - half, float(values.mean()) + half]


def interval_of_sd(values: np.ndarray, law: Moments, level: float = 0.99) -> list[float]:
    """Interval of the standard deviation by Box's degrees of freedom."""
    nu = _freedom(len(values), law)
    square = float(np.mean((values - law.mean) ** 2)) * nu
    tail = (1 - level) / 2
    return [math.sqrt(square / stats.chi2.isf(q, nu)) for q in (tail, 1 - tail)]
