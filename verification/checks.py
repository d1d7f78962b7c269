"""One function for each claim of the methods table: what was measured against what was promised.

Every check states its statistic, the reference, the p-value and level where chance plays a part,
and the smallest effect it detects with probability 0.95. A pass that could not have seen an effect
of the size of its margin is INCONCLUSIVE, never green.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from specbp.exact import Moments

PASS, FAIL, INCONCLUSIVE, REPORTED = "PASS", "FAIL", "INCONCLUSIVE", "REPORTED"
POWER = 0.95


@dataclass(frozen=True)
class Check:
    """Outcome of one check; `p`, `alpha`, `detectable` are None where nothing is random."""

    name: str
    claim: str
    verdict: str
    statistic: float
    reference: float
    message: str
    p: float | None = None
    alpha: float | None = None
    detectable: float | None = None
    margin: float | None = None


def worst(checks: list[Check], *, gated: bool = True) -> str:
    """Verdict of a cell: its worst check, or REPORTED for a method that is shown and not judged."""
    if not gated:
        return REPORTED
    verdicts = {check.verdict for check in checks}
    return next((v for v in (FAIL, INCONCLUSIVE, PASS) if v in verdicts), REPORTED)


def within(name: str, claim: str, error: float, limit: float, unit: str = "nats") -> Check:
    """Deterministic: |error| ≤ limit, NaN fails."""
    verdict = PASS if error <= limit else FAIL
    message = f"largest error {error:.3g} {unit}, limit {limit:.3g}"
    return Check(name, claim, verdict, error, 0.0, message, margin=limit)


def reported(name: str, claim: str, error: float, limit: float, reason: str) -> Check:
    """A documented limitation: measured, shown, not judged."""
    message = f"measured {error:.3g}, not judged: {reason}"
    return Check(name, claim, REPORTED, error, 0.0, message, margin=limit)


@dataclass(frozen=True)
class Level:
    """How a random check is judged: level, margin, and the rounding of one value in nats."""

    alpha: float
    margin: float
    rounding: float


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
    return _random("mean", claim, z, 0.0, p, detectable, level, "z; effects in sd of one value")


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
    return _random("variance", claim, ratio, 1.0, p, upper - 1, level, "ratio")


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
    return _random("se", claim, ratio, 1.0, p, sd * _shift(level.alpha), level, "ratio")


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


def _random(
    name: str,
    claim: str,
    statistic: float,
    reference: float,
    p: float,
    detectable: float,
    level: Level,
    unit: str,
) -> Check:
    p, detectable, alpha, margin = float(p), float(detectable), level.alpha, level.margin
    verdict = FAIL if not p > alpha else PASS if detectable <= margin else INCONCLUSIVE
    message = (
        f"{statistic:.4g} against {reference:g} ({unit}), p = {p:.3g}, level {alpha:.2g}; "
        f"detects {detectable:.3g} with probability {POWER}, margin {margin:g}"
    )
    return Check(name, claim, verdict, statistic, reference, message, p, alpha, detectable, margin)
