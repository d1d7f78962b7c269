"""Checks of the assertions: exact comparisons, and means and variances of replicates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from specbp.exact import Moments
from specbp.testing import outcome, sampling, tails
from specbp.testing.evidence import Evidence
from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, POWER, Check, Level
from specbp.testing.pvalues import box_score, cornish_fisher, normal_p

MAX_REPLICATES = 20_000
MIN_T_REPLICATES = 400  # below, Student's t has the wrong size for skewed values
CONSTANT = "the estimate does not vary; better take a matrix on which it does"


def failed(name: str, claim: str, found: Evidence) -> Check:
    """Evaluations without a value are a failure, and are not left out of a mean."""
    reason = f"{found.failures} of {len(found.values)} evaluations gave no value: {found.reason}"
    return replace(outcome.broken(name, claim, reason), size=len(found.values))


def enough(replicates: int | None) -> None:
    """Refuse numbers of replicates that have no scatter.

    Raises:
        ValueError: Fewer than two.
    """
    if replicates is not None and replicates < 2:
        raise ValueError(
            f"The scatter of replicates needs two of them or more, got replicates = {replicates}; "
            f"Student's t needs {MIN_T_REPLICATES}, None takes as many as the margin needs."
        )


def in_units(check: Check, unit: float) -> Check:
    """The check, and the unit that its numbers were divided by."""
    if unit == 1:
        return check
    return replace(check, message=f"{check.message}; values in units of {unit:.3g}")


def equal(
    name: str,
    claim: str,
    measured: float,
    expected: float,
    *,
    limit: float,
    size: int,
    blind: float = 0.0,
    effect: float = math.inf,
) -> Check:
    """Deterministic: |measured − expected| ≤ limit, undecided where `blind` exceeds `effect`.

    `blind` is the part of the limit that is rounding, `effect` the smallest error that matters:
    rounding that hides it leaves the claim open.
    """
    error = abs(measured - expected)
    message = f"exact over {size} evaluations: error {error:.3g}, limit {limit:.3g}"
    verdict = PASS if error <= limit else FAIL
    if verdict == PASS and blind > effect:
        verdict = INCONCLUSIVE
        message += f": rounding of {blind:.3g} hides effects of {effect:.3g}; use float64"
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
    noise: float,
    tolerance: float = 0.0,
) -> Check:
    """Mean of replicates: Cornish–Fisher with the exact moments of one value, else Student's t.

    The hypothesis is |bias| ≤ tolerance + rounding. The tolerance is part of what is detected and
    of the margin; rounding beyond a tenth of the margin leaves a pass open.
    """
    R, found, scatter = len(values), float(values.mean()), float(values.std(ddof=1))
    rounding = level.rounding
    if not math.isfinite(scatter):
        return outcome.broken(name, claim, f"the standard deviation of the values is {scatter}")
    if scatter <= noise:
        check = equal(name, claim, found, expected, limit=tolerance + rounding, size=R)
        return replace(check, message=f"{check.message}; {CONSTANT}")
    if law is not None and not math.sqrt(law.variance) > noise:
        law = None
    sd = scatter if law is None else math.sqrt(law.variance)
    excess = max(abs(found - expected) - tolerance - rounding, 0.0)
    z = math.copysign(excess, found - expected) / sd * math.sqrt(R)
    if law is None:
        p, seen = float(2 * stats.t.sf(abs(z), R - 1)), t_shift(R, level.alpha)
    else:
        p = normal_p(cornish_fisher(z, law.averaged(R)))
        seen = tails.shift(level.alpha) / math.sqrt(R)
    beyond = tolerance / sd
    check = outcome.judged(
        name,
        claim,
        found,
        expected,
        p=p,
        detectable=seen + beyond,
        level=replace(level, margin=level.margin + beyond),
        size=R,
        unit=f"z = {z:.3g}; effects in sd of one value, {sd:.4g}",
    )
    reason = ""
    if rounding > level.margin * sd / 10:
        reason = f"rounding of {rounding:.3g} exceeds a tenth of the margin; use float64"
    elif law is None and R < MIN_T_REPLICATES:
        reason = f"Student's t needs {MIN_T_REPLICATES} replicates, got {R}"
    return _open(check, reason)


def t_shift(R: int, alpha: float) -> float:
    """Shift that a t test of R values detects with `POWER`, in standard deviations of one value."""
    quantiles = stats.t.isf(alpha / 2, R - 1) + stats.t.isf(1 - POWER, R - 1)
    return float(quantiles) / math.sqrt(R)


def replicates_for_mean(level: Level) -> int:
    """Fewest replicates of a t test whose detectable shift is the margin, 400 at least."""
    R = max(MIN_T_REPLICATES, math.ceil((tails.shift(level.alpha) / level.margin) ** 2))
    while t_shift(R, level.alpha) > level.margin:
        R += 1
    return R


def variance(name: str, claim: str, values: np.ndarray, law: Moments, level: Level) -> Check:
    r"""Sample variance over the exact one, χ² with degrees of freedom after Box (1953).

    .. math:: \operatorname{Var}[s^2 / \sigma^2] = \frac eR + \frac{2}{R - 1} = \frac 2\nu

    Where e > 3 the p-value is tripled, as in `specbp.testing.sampling`.
    """
    R, measured, e = len(values), float(values.var(ddof=1)), law.excess_kurtosis
    if not math.isfinite(measured):
        return outcome.broken(name, claim, f"the variance of the values is {measured}")
    ratio, u = measured / law.variance, level.rounding
    if e < LIGHT:
        p = _light_p(ratio, R, e)
    else:
        p = min(_factor(e) * normal_p(box_score(ratio, _freedom(R, e))), 1.0)
    check = outcome.judged(
        name,
        claim,
        ratio,
        1.0,
        p=p,
        detectable=_detectable_ratio(R, law, level.alpha) - 1,
        level=level,
        size=R,
        unit="ratio of variances",
    )
    limit = (2 * u * math.sqrt(law.variance) + u**2) / law.variance
    if limit <= level.margin or (check.verdict == FAIL and abs(ratio - 1) > limit):
        return check
    reason = f"rounding moves the ratio by {limit:.3g}, more than the margin; use float64"
    return replace(check, verdict=INCONCLUSIVE, message=f"{check.message}: {reason}")


def ratio_of_means(
    name: str, claim: str, squares: np.ndarray, values: np.ndarray, level: Level
) -> Check:
    """E[se²] / Var of paired replicates, by the influence function of the log of the ratio."""
    R = len(values)
    deviations = (values - values.mean()) ** 2
    if not (squares.mean() > 0 and deviations.mean() > 0):
        reason = f"E[se²] = {squares.mean():.3g} and Var = {deviations.mean():.3g} have no ratio"
        return outcome.broken(name, claim, reason)
    ratio = float(squares.mean() / values.var(ddof=1))
    influence = squares / squares.mean() - deviations / deviations.mean()
    sd = float(influence.std(ddof=1)) / math.sqrt(R)
    p = float(2 * stats.t.sf(abs(math.log(ratio)) / sd, R - 1)) if sd > 0 else float(ratio == 1)
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
    while R < MAX_REPLICATES and _detectable_ratio(R, law, level.alpha) - 1 > level.margin:
        R = math.ceil(1.1 * R)
    return min(R, MAX_REPLICATES)


LIGHT = -1.0  # excess kurtosis below which the estimated mean matters as much as the squares


def _freedom(R: int, e: float) -> float:
    return max(2 / (e / R + 2 / (R - 1)), 1.0)


def _factor(e: float) -> int:
    return sampling.HEAVY_FACTOR if e > sampling.HEAVY else 1


def _light_p(ratio: float, R: int, e: float) -> float:
    """Two-sided p of s² / σ² for values of few sizes, such as the two of n = 2 with e = −2.

    s² (R − 1) / R = W − D / R with the mean square W about the expectation, χ² after Box, and
    D ~ χ²₁ from the estimated mean. The upper tail drops D, which is never negative.
    """
    share, nu = ratio * (R - 1) / R, 2 * R / max(e + 2, 1e-12)
    steps = (np.arange(2000) + 0.5) / 2000
    # Beyond the last step of D the lower tail is counted in full.
    lost = stats.chi2.ppf(steps, 1) / R
    lower = float(stats.chi2.cdf(nu * (share + lost) * (1 + 1e-9), nu).mean())
    lower = max(lower, float(stats.chi2.sf(R * (1 - share), 1)))
    upper = float(stats.chi2.sf(nu * share * (1 - 1e-9), nu))
    return min(1.0, 2 * min(lower, upper))


def _detectable_ratio(R: int, law: Moments, alpha: float) -> float:
    e = law.excess_kurtosis
    nu = _freedom(R, e)
    return float(stats.chi2.isf(alpha / _factor(e) / 2, nu) / stats.chi2.isf(POWER, nu))


def _open(check: Check, reason: str) -> Check:
    """A pass for which there is a reason to doubt it is INCONCLUSIVE."""
    if check.verdict == FAIL or not reason:
        return check
    return replace(check, verdict=INCONCLUSIVE, message=f"{check.message}: {reason}")


def as_numpy(x: Any) -> np.ndarray:
    """An array or tensor as float64."""
    return np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x, dtype=np.float64)
