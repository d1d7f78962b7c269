"""Checks of the assertions: exact comparisons, and means and variances of replicates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from specbp.exact import Moments
from specbp.testing import outcome, tails
from specbp.testing.evidence import Evidence
from specbp.testing.outcome import FAIL, PASS, POWER, Check, Level
from specbp.testing.pvalues import box_freedom, box_score, cornish_fisher, normal_p

MAX_REPLICATES = 20_000


def failed(name: str, claim: str, found: Evidence) -> Check:
    """Evaluations without a value are a failure, and are not left out of a mean."""
    reason = f"{found.failures} of {len(found.values)} evaluations gave no value: {found.reason}"
    return replace(outcome.broken(name, claim, reason), size=len(found.values))


def equal(
    name: str, claim: str, measured: float, expected: float, limit: float, size: int
) -> Check:
    """Deterministic: |measured − expected| ≤ limit."""
    error = abs(measured - expected)
    message = f"exact over {size} evaluations: error {error:.3g}, limit {limit:.3g}"
    verdict = PASS if error <= limit else FAIL
    return Check(
        name, claim, verdict, float(measured), float(expected), message, margin=limit, size=size
    )


def mean(
    name: str,
    claim: str,
    values: np.ndarray,
    expected: float,
    *,
    law: Moments | None,
    level: Level,
    limit: float,
) -> Check:
    """Mean of replicates: Cornish–Fisher with the exact moments of one value, else Student's t."""
    R, sd = len(values), float(values.std(ddof=1))
    if sd <= limit:
        return equal(name, claim, float(values.mean()), expected, limit, R)
    if law is None:
        z = (float(values.mean()) - expected) / sd * math.sqrt(R)
        p = float(2 * stats.t.sf(abs(z), R - 1))
    else:
        sd = math.sqrt(law.variance)
        z = (float(values.mean()) - expected) / sd * math.sqrt(R)
        p = normal_p(cornish_fisher(z, law.averaged(R)))
    # The margin allows for a documented bias too.
    check = outcome.judged(
        name,
        claim,
        float(values.mean()),
        expected,
        p=p,
        detectable=tails.shift(level.alpha) / math.sqrt(R),
        level=level,
        size=R,
        unit=f"z = {z:.3g}; effects in sd of one value, {sd:.4g}",
    )
    small = abs(check.statistic - expected) <= limit
    return replace(check, verdict=PASS) if check.verdict == FAIL and small else check


def variance(name: str, claim: str, values: np.ndarray, law: Moments, level: Level) -> Check:
    """Sample variance over the exact one, χ² with the degrees of freedom of Box (1953)."""
    R = len(values)
    ratio = float(values.var(ddof=1)) / law.variance
    freedom = box_freedom(R - 1, law.excess_kurtosis)
    return outcome.judged(
        name,
        claim,
        ratio,
        1.0,
        p=normal_p(box_score(ratio, freedom)),
        detectable=_detectable_ratio(R - 1, law, level.alpha) - 1,
        level=level,
        size=R,
        unit="ratio of variances",
    )


def ratio_of_means(
    name: str, claim: str, squares: np.ndarray, values: np.ndarray, level: Level
) -> Check:
    """E[se²] / Var of paired replicates, by the influence function of the log of the ratio."""
    R = len(values)
    deviations = (values - values.mean()) ** 2
    ratio = float(squares.mean() / values.var(ddof=1))
    influence = squares / squares.mean() - deviations / deviations.mean()
    sd = float(influence.std(ddof=1)) / math.sqrt(R)
    p = float(2 * stats.t.sf(abs(math.log(ratio)) / sd, R - 1)) if ratio > 0 else 0.0
    return outcome.judged(
        name,
        claim,
        ratio,
        1.0,
        p=p,
        detectable=math.expm1(sd * tails.shift(level.alpha)),
        level=level,
        size=R,
        unit="ratio E[se²] / Var",
    )


def replicates_for_variance(law: Moments, level: Level) -> int:
    """Fewest replicates whose detectable excess of the variance is the margin, to a factor 1.1."""
    R = 100
    while R < MAX_REPLICATES and _detectable_ratio(R - 1, law, level.alpha) - 1 > level.margin:
        R = math.ceil(1.1 * R)
    return min(R, MAX_REPLICATES)


def _detectable_ratio(R: int, law: Moments, alpha: float) -> float:
    nu = box_freedom(R, law.excess_kurtosis)
    return float(stats.chi2.isf(alpha / 2, nu) / stats.chi2.isf(POWER, nu))


def as_numpy(x: Any) -> np.ndarray:
    """An array or tensor as float64."""
    return np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x, dtype=np.float64)
