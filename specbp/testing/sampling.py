"""Random checks of fixed size: mean, variance, error bars and coverage against exact references.

The moments of the law are known exactly (`specbp.exact.moments`), so no test estimates the variance
it divides by, but for `t_mean`, where nothing is known. How many values a check needs is in
`specbp.testing.planning`, and what a correct interval covers in `specbp.testing.calibration`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy import stats

from specbp.exact import Moments
from specbp.testing.calibration import reference_coverage
from specbp.testing.outcome import (
    INCONCLUSIVE,
    Check,
    Level,
    broken,
    judged,
    normal_score,
    within,
)
from specbp.testing.planning import detectable_coverage, detectable_ratio, detectable_shift
from specbp.testing.pvalues import (
    Cgf,
    box_freedom,
    box_score,
    cornish_fisher,
    normal_p,
    saddlepoint_score,
)

__all__ = [
    "coverage",
    "error_bars",
    "interval_of_mean",
    "interval_of_sd",
    "mean",
    "reference_coverage",
    "t_mean",
    "variance",
]

# Above this excess kurtosis Box's χ² alarms up to some 2.5 times as often as a level of 1e-3 says.
HEAVY, HEAVY_FACTOR = 3.0, 3
# Below this size a t test of skewed values alarms many times too often.
T_SIZE = 400


def mean(
    values: np.ndarray, expected: float, law: Moments, level: Level, *, cgf: Cgf | None = None
) -> Check:
    r"""Sample mean against its exact expectation, variance known.

    .. math:: z = \frac{\bar T - \mu}{\sigma / \sqrt R}

    By saddlepoint where the cgf is known, which keeps its level for any skewness; otherwise by
    Cornish–Fisher.

    Args:
        values: Independent values, shape (R,), float64.
        expected: Their expectation.
        law: Exact moments of one value; its mean is not used.
        level: With the margin in standard deviations of one value.
        cgf: Exact cgf of one value, its deviation from the expectation.

    Example:
        >>> law, level = Moments(0.0, 1.0, 0.0, 3.0), Level(alpha=1e-3, margin=0.5)
        >>> values = np.random.default_rng(0).standard_normal(1000)
        >>> mean(values, 0.0, law, level).verdict, mean(values, 0.3, law, level).verdict
        ('PASS', 'FAIL')
    """
    R, sd = len(values), math.sqrt(law.variance)
    claim = "the expectation of the estimate is that of its contract"
    if sd <= level.rounding:
        return within("mean", claim, float(np.abs(values - expected).max()), 10 * level.rounding)
    shift = float(values.mean() - expected)
    z = shift / (sd / math.sqrt(R))
    if cgf is None:
        score = cornish_fisher(z, law.averaged(R))
    else:
        score = saddlepoint_score(cgf.law.mean + shift, cgf, R)
    return _scored(
        judged(
            "mean",
            claim,
            z,
            0.0,
            p=normal_p(score),
            detectable=detectable_shift(R, level.alpha),
            level=level,
            size=R,
            unit="z; effects in sd of one value",
        ),
        score,
    )


def t_mean(values: np.ndarray, expected: float, level: Level) -> Check:
    r"""Sample mean against its expectation where nothing else of the law is known: a t test.

    .. math:: t = \frac{\bar T - \mu}{s / \sqrt R}

    A fallback. Skewed values make it alarm far too often, the more the fewer they are, so with
    fewer than 400 it is INCONCLUSIVE, whatever its p-value would be.

    Args:
        values: Independent values, shape (R,), float64.
        expected: Their expectation.
        level: With the margin in standard deviations of one value.

    Example:
        >>> values = np.random.default_rng(0).standard_normal(1000)
        >>> t_mean(values, 0.0, Level(alpha=1e-3, margin=0.5)).verdict
        'PASS'
        >>> t_mean(values[:399], 0.0, Level(alpha=1e-3, margin=0.5)).verdict
        'INCONCLUSIVE'
    """
    R, claim = len(values), "the expectation of the estimate is that of its contract"
    if not np.isfinite(values).all():
        return broken("mean", claim, f"{int((~np.isfinite(values)).sum())} values are not finite")
    if np.ptp(values) <= level.rounding:
        return within("mean", claim, float(np.abs(values - expected).max()), 10 * level.rounding)
    t = float((values.mean() - expected) / (values.std(ddof=1) / math.sqrt(R)))
    found = judged(
        "mean",
        claim,
        t,
        0.0,
        p=float(2 * stats.t.sf(abs(t), R - 1)),
        detectable=detectable_shift(R, level.alpha),
        level=level,
        size=R,
        unit="t; effects in sd of one value",
    )
    if R >= T_SIZE:
        return found
    reason = f"a t test needs {T_SIZE} values, got {R}; take more, or the exact moments of the law"
    return replace(found, verdict=INCONCLUSIVE, message=reason, p=None, z=None, detectable=None)


def variance(
    values: np.ndarray,
    expected: float,
    law: Moments,
    level: Level,
    *,
    squares: Cgf | None = None,
) -> Check:
    r"""Mean square about the known expectation against the exact variance.

    .. math:: W = \frac1R \sum_r \frac{(T_r - \mu)^2}{\sigma^2}, \qquad \nu W \sim \chi^2_\nu,
              \quad \nu = \frac{2R}{e + 2}

    by Box's degrees of freedom, with e the exact excess kurtosis. Where e > 3 the p-value is
    tripled: the right tail of W is then heavier than that of χ².

    Args:
        values: Independent values, shape (R,), float64.
        expected: Their expectation.
        law: Exact moments of one value; its mean is not used.
        level: With the margin in W − 1.
        squares: Exact cgf of (T − μ)², as of an enumerated law; then by saddlepoint.

    Source: Box (1953), doi:10.2307/2333350.

    Example:
        >>> law, level = Moments(0.0, 1.0, 0.0, 3.0), Level(alpha=1e-3, margin=0.5)
        >>> values = np.random.default_rng(0).standard_normal(1000)
        >>> [variance(a * values, 0.0, law, level).verdict for a in (1.0, 1.2)]
        ['PASS', 'FAIL']
    """
    claim = "the variance is the closed form of the probe law"
    if math.sqrt(law.variance) <= level.rounding:
        return within("variance", claim, float(np.ptp(values)), 10 * level.rounding)
    square = float(np.mean((values - expected) ** 2))
    score = None if squares is None else saddlepoint_score(square, squares, len(values))
    ratio, R = square / law.variance, len(values)
    return _ratio("variance", claim, ratio, law.excess_kurtosis, level, size=R, score=score)


def error_bars(squared_errors: np.ndarray, law: Moments, m: int, level: Level) -> Check:
    r"""E[se²] against the variance it estimates; se² of m independent values has known variance.

    .. math:: \mathrm{Var}[se^2] / \sigma^4 = e / m + 2 / (m - 1), \qquad \sigma^2 = V_1 / m

    as a multiple of χ² with the degrees of freedom that this gives, exact for normal values.

    Args:
        squared_errors: Squares of the standard errors of independent estimates, shape (R,).
        law: Exact moments of one of the m values.
        m: Values in one estimate, at least 2.
        level: With the margin in E[se²] / σ² − 1.

    Source: Box (1953), doi:10.2307/2333350.

    Example:
        >>> law, level = Moments(0.0, 1.0, 0.0, 3.0), Level(alpha=1e-3, margin=0.5)
        >>> values = np.random.default_rng(0).standard_normal((1000, 4))
        >>> [error_bars(values.var(1, ddof=d) / 4, law, 4, level).verdict for d in (1, 0)]
        ['PASS', 'FAIL']
    """
    claim = "E[se²] is the variance of the estimate"
    if math.sqrt(law.variance) <= level.rounding:
        largest = float(np.sqrt(squared_errors.max()))
        return within("se", claim, largest, 10 * level.rounding)
    ratio, e = float(squared_errors.mean() / (law.variance / m)), law.excess_kurtosis / m
    # One se² spreads like the square of one value of this excess kurtosis.
    return _ratio("se", claim, ratio, e + 2 / (m - 1) - 2, level, size=len(squared_errors), heavy=e)


def coverage(covered: int, R: int, reference: float, level: Level, *, slack: float = 0.0) -> Check:
    """Share of the intervals that hold their target against what correct ones hold: binomial.

    Intervals of the nominal level hold it less often where the law is skewed, so the reference is
    that of `reference_coverage`, never the nominal level itself. Exact, hence a little
    conservative; the effect detected is a loss of coverage.

    Args:
        covered: Independent intervals that hold it.
        R: All of them.
        reference: Coverage of correct intervals.
        level: With the margin as a difference of coverages.
        slack: How far the reference itself may be off, such as four of its standard errors.

    Raises:
        ValueError: covered is not in 0 … R, or the reference not in (0, 1].

    Source: Clopper and Pearson (1934), doi:10.2307/2331986.

    Example:
        >>> level = Level(alpha=1e-3, margin=0.05)
        >>> [coverage(k, 1000, 0.95, level).verdict for k in (945, 920)]
        ['PASS', 'FAIL']
    """
    if not (0 <= covered <= R and R > 0 and 0 < reference <= 1):
        raise ValueError(
            "Coverage needs 0 ≤ covered ≤ R, R > 0 and a reference in (0, 1], "
            f"got {covered}, {R} and {reference}."
        )
    low, high = max(reference - slack, 0.0), min(reference + slack, 1.0)
    p = 2 * min(stats.binom.cdf(covered, R, low), stats.binom.sf(covered - 1, R, high))
    return judged(
        "coverage",
        "intervals hold their target as often as correct ones",
        covered / R,
        reference,
        p=min(float(p), 1.0),
        detectable=slack + detectable_coverage(R, low, level.alpha),
        level=level,
        size=R,
        unit="share of the intervals",
    )


def interval_of_mean(values: np.ndarray, sd: float, level: float = 0.99) -> list[float]:
    """Interval of the expectation, standard deviation of one value known.

    Example:
        >>> [round(end, 3) for end in interval_of_mean(np.zeros(100), sd=1.0, level=0.95)]
        [-0.196, 0.196]
    """
    half = float(stats.norm.isf((1 - level) / 2)) * sd / math.sqrt(len(values))
    return [float(values.mean()) - half, float(values.mean()) + half]


def interval_of_sd(values: np.ndarray, law: Moments, level: float = 0.99) -> list[float]:
    """Interval of the standard deviation by Box's degrees of freedom, about the mean of the law.

    Example:
        >>> values = np.array([-1.0, 1.0] * 50)
        >>> [round(end, 2) for end in interval_of_sd(values, Moments(0.0, 1.0, 0.0, 3.0))]
        [0.84, 1.22]
    """
    nu = box_freedom(len(values), law.excess_kurtosis)
    square = float(np.mean((values - law.mean) ** 2)) * nu
    tail = (1 - level) / 2
    return [math.sqrt(square / stats.chi2.isf(q, nu)) for q in (tail, 1 - tail)]


def _ratio(
    name: str,
    claim: str,
    ratio: float,
    excess: float,
    level: Level,
    *,
    size: int,
    heavy: float | None = None,
    score: float | None = None,
) -> Check:
    """A mean square over its expectation: Box's χ² unless a score is given."""
    factor = HEAVY_FACTOR if score is None and (excess if heavy is None else heavy) > HEAVY else 1
    if score is None:
        score = box_score(ratio, box_freedom(size, excess))
    found = judged(
        name,
        claim,
        ratio,
        1.0,
        p=min(factor * normal_p(score), 1.0),
        detectable=detectable_ratio(size, level.alpha / factor, excess) - 1,
        level=level,
        size=size,
        unit="ratio",
    )
    return _scored(found, score) if factor == 1 else found


def _scored(check: Check, score: float) -> Check:
    """The check with its score for z: near the mean of a skewed law their signs may differ."""
    size = normal_score(check.p or 0.0)
    return check if math.isnan(score) else replace(check, z=math.copysign(size, score))
