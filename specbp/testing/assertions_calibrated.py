"""Are the error bars of an estimator what its values scatter by?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from specbp.exact import moments
from specbp.testing import evidence, judgements, outcome, sampling, tails
from specbp.testing.outcome import FAIL, INCONCLUSIVE, Check, Level
from specbp.testing.verdicts import causes_of_ratio, settle

MIN_REPLICATES = 400


def assert_calibrated(
    estimator: Callable[..., Any],
    A: Any,
    *,
    law: str | None = "rademacher",
    num_probes: int = 4,
    form: Any = None,
    alpha: float = 1e-3,
    margin: float = 0.2,
    key: Sequence[object] = ("assert_calibrated",),
    replicates: int | None = None,
    allow_inconclusive: bool = False,
) -> Check:
    r"""Assert E[se²] = Var: error bars are as long as the scatter that they announce.

    .. math:: \mathbb{E}\,\mathrm{se}^2 / \operatorname{Var} T = 1

    The ratio is more sensitive than coverage, and has the same target for every matrix: a nominal
    95 % of a correct estimator covers 83 to 95 % according to skewness. Both moments are exact
    where the outcomes of m probes are few (2 probes of n ≤ 7, 3 of n ≤ 5, 4 of n ≤ 4); elsewhere
    replicates, against the exact variance if `form` is given. Where the estimate does not vary, as
    on a diagonal matrix and signs, the error bars have to be 0 to rounding.

    Args:
        estimator: `(A, probes) -> Estimate` or `(value, standard error)`, or a black box for law
            None; see `assert_unbiased`.
        A: Tensor or operator (n, n).
        law: "rademacher", "gaussian", "sphere", "orthogonal", or None.
        num_probes: m ≥ 2. An error bar of ddof 0 has the ratio (m − 1)/m: from m = 1 / margin on,
            it needs a smaller margin to be seen.
        form: B (n, n), if T is the mean of xᵢᵀBxᵢ over independent probes.
        alpha: False-alarm rate, of replicates only.
        margin: Error of the ratio that matters: what replicates see with probability 0.95. Where
            the ratio is exact and there is no `form`, what is allowed to estimators other than
            means of independent values; with `form` only rounding is.
        key: Key of the seeds.
        replicates: R; by default as many as the margin needs.
        allow_inconclusive: Return a check without the power to see the margin.

    Raises:
        AssertionError: The error bars are too short or too long, missing, or power is too small.
        ValueError: m < 2, or replicates < 2.

    Source: Cochran (1977), Sampling Techniques, chapter 2; the ratio of replicates by its influence
    function: Hampel (1974), doi:10.1080/01621459.1974.10482962.

    Example:
        >>> import torch
        >>> from specbp import hutchinson_trace
        >>> A = torch.diag(torch.arange(1.0, 5.0)).double() + 0.1
        >>> check = assert_calibrated(hutchinson_trace, A, num_probes=3)
        >>> print(check.name, round(check.statistic, 9))
        D2 error bars 1.0
    """
    m, claim = num_probes, "E[se²] is the variance of the estimate"
    if m < 2:
        raise ValueError(f"An error bar needs two probes or more, got num_probes = {m}.")
    judgements.enough(replicates)
    design = evidence.exact_law(estimator, A, law, m) if replicates is None else None
    B = None if form is None or law is None else judgements.as_numpy(form)
    if design is not None:
        found, code = evidence.over(estimator, A, design.probes), "D2"
    else:
        R = replicates or max(MIN_REPLICATES, math.ceil(_needed(alpha, margin, m, B is None)))
        found, code = evidence.replicates(estimator, A, R, law, m, key), "S3"
    name, missing = f"{code} error bars", int(np.isnan(found.errors).sum())
    if found.failures or missing:
        check = judgements.failed(name, claim, found)
        if not found.failures:
            check = outcome.broken(name, claim, f"{missing} of {len(found.errors)} have no se")
        return settle(check, remedy="return an Estimate or a pair (value, standard error)")
    unit = evidence.unit(found.values, found.errors, () if B is None else B)
    found = replace(found, values=found.values / unit, errors=found.errors / unit)
    B = None if B is None else B / unit
    known = None if B is None or law is None else moments(B, law)
    noise, rounding = (f(A, found.values, B) for f in (evidence.noise, evidence.rounding))
    level, squares = Level(alpha, margin, rounding), found.errors**2
    deviation = math.sqrt(0.0 if known is None else known.variance / m)
    if float(found.values.std()) <= noise and deviation <= noise:
        check = _constant(name, claim, found, rounding)
    elif design is not None:
        check = _exact(
            name, claim, design, found, m, level, known_sd=None if known is None else deviation
        )
    elif known is not None:
        check = replace(sampling.error_bars(squares, known, m, Level(alpha, margin)), name=name)
    else:
        check = judgements.ratio_of_means(name, claim, squares, found.values, level)
    check = judgements.in_units(check, unit)
    slack = 1e-6 if design is not None else 3 * (check.detectable or 0) / tails.shift(alpha)
    failed = check.verdict == FAIL
    return settle(
        check,
        likely=causes_of_ratio(check.statistic, m, slack) if failed else (),
        remedy=_remedy(check),
        allow_inconclusive=allow_inconclusive,
    )


def _constant(name: str, claim: str, found: evidence.Evidence, limit: float) -> Check:
    largest = float(found.errors.max())
    message = f"largest se {largest:.3g}, limit {limit:.3g}: {judgements.CONSTANT}"
    verdict = outcome.PASS if largest <= limit else FAIL
    size = len(found.values)
    return Check(name, claim, verdict, largest, 0.0, message, margin=limit, size=size)


def _exact(
    name: str,
    claim: str,
    design: Any,
    found: evidence.Evidence,
    m: int,
    level: Level,
    *,
    known_sd: float | None,
) -> Check:
    variance, square = design.variance(found.values), design.mean(found.errors**2)
    ratio = square / variance if variance > 0 else math.nan
    # Rounding u of values and errors moves either square by 2 u sd + u², and sums by less.
    sd = max(math.sqrt(variance), known_sd or 0.0)
    share = level.rounding / sd if sd > 0 else math.inf
    rounding = 1e-9 + 2 * (2 * share + share**2)
    allowed = max(level.margin, rounding) if known_sd is None else rounding
    near = abs(ratio - 1) <= allowed and abs(ratio - (m - 1) / m) > min(rounding, 1 / (2 * m))
    t = stats.t.isf(0.025, m - 1)
    mean = design.mean(found.values)
    covered = design.mean((np.abs(found.values - mean) <= t * found.errors).astype(float))
    message = (
        f"E[se²] = {square:.6g}, Var = {variance:.6g}, exact over {len(found.values)} outcomes; "
        f"the 95 % interval by t covers the mean with probability {covered:.4g}"
    )
    verdict = outcome.PASS if near else FAIL
    if near and rounding > level.margin:
        verdict = INCONCLUSIVE
        message += f"; rounding of {rounding:.3g} hides the margin, use float64"
    return Check(
        name,
        claim,
        verdict,
        ratio,
        1.0,
        message,
        margin=allowed,
        size=len(found.values),
    )


def _needed(alpha: float, margin: float, m: int, variance_unknown: bool) -> float:
    """Replicates for a relative error of the ratio, with a reserve for the tails of the values."""
    terms = 2 / (m - 1) + 2 * variance_unknown
    return 1.5 * (tails.shift(alpha) / math.log1p(margin)) ** 2 * terms


def _remedy(check: Check) -> str:
    if check.verdict == INCONCLUSIVE:
        return "raise `replicates`, or `margin` if so small an error does not matter"
    return (
        "se = samples.std(ddof=1) / sqrt(m) for independent values (specbp.estimate.from_samples); "
        "for dependent ones, repeat the estimate over independent blocks"
    )
