r"""Two estimators on common probes: is the second one worse, and how much could have been seen?

With errors :math:`e_b, e_h` to the truth, :math:`d = T_h - T_b` and ρ = corr(e_b, e_h), three
contrasts, in this order: equality; the mean shift E[d]; the ratios of variance and of root mean
square error. The RMSE alone never decides: a bias that opposes the noise makes it smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from specbp.testing._paired import (
    ONE,
    Array,
    Interval,
    around,
    centred,
    correlation,
    exponential,
    growth_of,
    kurtosis_of,
    log_ratio,
    mean_interval,
    pitman_morgan,
    ratio_of_means,
    require,
    sign_test,
    spread,
    square_root,
    t_test,
    text,
)
from specbp.testing.outcome import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    Check,
    broken,
    exactly,
    normal_score,
    worst,
)

TOLERANCE = 1.02  # a ratio beyond it is a regression
CALIBRATION = 1.1  # and so is E[se²]/Var, if it moves away from 1 by more than this factor
POWER = 0.9  # of the sample sizes below


@dataclass(frozen=True)
class Comparison:
    """What common probes tell of two estimators, the base and the head that is judged.

    Attributes:
        size: Replicates on which both are finite: all numbers below are about them.
        failed: Replicates without a finite value, of base and head.
        equal: All values are equal, and both fail on the same replicates.
        largest: Largest difference of two values on the same probes.
        shift: E[T_h − T_b].
        shift_p: p-value of the paired t test of no shift.
        bias: Biases of base and head, by means of the control values where there are any.
        growth: |bias of the head| − |bias of the base|.
        variance_ratio: Var T_h / Var T_b.
        rmse_ratio: Root mean square error of the head over that of the base.
        rho: Correlation of the errors.
        mse_p: Paired t test on u = e_h² − e_b²; the test to quote.
        pitman_morgan_p: Test of equal variances; alarms too often under heavy tails.
        sign_p: Sign test of |e_h| against |e_b|; exact, but about medians.
        detectable: RMSE ratio that fails on this many replicates with probability `POWER`: as much
            above the tolerance as `detectable_ratio` is above 1.
        checks: Failures, mean shift, variance ratio, RMSE ratio.
    """

    size: int
    failed: tuple[int, int]
    equal: bool
    largest: float
    shift: Interval
    shift_p: float
    bias: tuple[Interval, Interval]
    growth: Interval
    variance_ratio: Interval
    rmse_ratio: Interval
    rho: float
    mse_p: float
    pitman_morgan_p: float
    sign_p: float
    detectable: float
    checks: tuple[Check, ...] = field(repr=False)

    @property
    def verdict(self) -> str:
        """The worst of the checks."""
        return worst(self.checks)

    @property
    def improved(self) -> bool:
        """Nothing got worse, and the upper bound of the RMSE ratio is below 1."""
        return self.verdict != FAIL and self.rmse_ratio.high < 1


def compare(
    base: Array,
    head: Array,
    truth: float,
    *,
    margin: float,
    control: Array | None = None,
    tolerance: float = TOLERANCE,
    confidence: float = 0.99,
    rounding: float = 0.0,
) -> Comparison:
    r"""Compare two estimators on R replicates with common probes.

    .. math:: \bar d \pm t\,\frac{\mathrm{sd}(d)}{\sqrt R}, \qquad
              \log\frac{M_h}{M_b} \pm \frac{t}{\sqrt R}\,
              \mathrm{sd}\Bigl(\frac{e_h^2}{M_h} - \frac{e_b^2}{M_b}\Bigr), \quad
              M = \overline{e^2}

    FAIL if the lower end of the variance ratio or of the RMSE ratio exceeds the tolerance; if the
    shift exceeds the margin and is not shown to approach the truth; or if the head fails on probes
    where the base does not. PASS if the upper ends stay within tolerance and margin, INCONCLUSIVE
    in between. If nothing changed, each of the three random checks fails with a probability below
    (1 − confidence)/2, up to the normal limit.

    Args:
        base: Values (R,) of the estimator that is the reference; NaN where it failed.
        head: Values (R,) of the estimator that is judged, on the same probes.
        truth: What both estimate.
        margin: Smallest growth of |bias| that matters, in the unit of the values.
        control: Values (R,) on the same probes of something whose expectation is the truth, such
            as the mean of xᵀf(A)x: biases are then seen with few probes.
        tolerance: Largest ratio that is no regression.
        confidence: Of each two-sided interval; for K comparisons that shall hold together divide
            1 − confidence by K.
        rounding: Differences up to it count as none.

    Raises:
        ValueError: If shapes differ, R < 3, truth or control is not finite or margin not positive.

    Source: Glasserman & Yao (1992), doi:10.1287/mnsc.38.6.884 (common random numbers); Pitman
    (1939), doi:10.1093/biomet/31.1-2.9 (variances of correlated values).

    Example:
        >>> form = np.random.default_rng(0).standard_normal(200)
        >>> found = compare(form, form + 0.5, 0.0, control=form, margin=0.1)
        >>> found.verdict, round(found.shift.value, 12)
        ('FAIL', 0.5)
        >>> compare(form, 0.9 * form, 0.0, margin=0.1).improved
        True
    """
    base, head = np.asarray(base, np.float64), np.asarray(head, np.float64)
    steady = np.full(base.shape, float(truth)) if control is None else np.asarray(control)
    require(base, head, steady, margin)
    here, there = np.isfinite(base), np.isfinite(head)
    e_b, e_h, known = (v[here & there] - truth for v in (base, head, steady))
    d, alpha, size = e_h - e_b, 1 - confidence, len(e_b)
    largest = float(np.abs(d).max(initial=0.0))
    same = size > 0 and largest <= rounding
    shift, bias = mean_interval(d, alpha), mean_interval(e_b - known, alpha)
    # Two statements at once: each at half the level.
    growth = growth_of(mean_interval(e_b - known, alpha / 2), mean_interval(d, alpha / 2))
    variance_ratio = ONE if same else ratio_of_means(centred(e_b), centred(e_h), alpha)
    rmse_ratio = ONE if same else ratio_of_means(e_b**2, e_h**2, alpha).mapped(square_root)
    rho = correlation(e_b, e_h)
    seen = 1.0 if same else detectable_ratio(size, rho, kurtosis_of(e_b), alpha=alpha)
    mse_p, shift_p = t_test(e_h**2 - e_b**2), t_test(d)
    checks = (
        _failures(int((here & ~there).sum()), len(base)),
        _shift_check("mean shift", shift, growth, margin, shift_p, size),
        _ratio_check("variance ratio", variance_ratio, tolerance, tolerance * seen**2, size, None),
        _ratio_check("RMSE ratio", rmse_ratio, tolerance, tolerance * seen, size, mse_p),
    )
    return Comparison(
        size=size,
        failed=(int((~here).sum()), int((~there).sum())),
        equal=np.array_equal(base, head, equal_nan=True),
        largest=largest,
        shift=shift,
        shift_p=shift_p,
        bias=(bias, mean_interval(e_h - known, alpha)),
        growth=growth,
        variance_ratio=variance_ratio,
        rmse_ratio=rmse_ratio,
        rho=rho,
        mse_p=mse_p,
        pitman_morgan_p=pitman_morgan(e_b, e_h),
        sign_p=sign_test(np.abs(e_h) - np.abs(e_b)),
        detectable=tolerance * seen,
        checks=checks,
    )


def compare_calibration(
    base: tuple[Array, Array],
    head: tuple[Array, Array],
    *,
    tolerance: float = CALIBRATION,
    confidence: float = 0.99,
) -> tuple[Interval, Check]:
    r"""Compare c = E[se²]/Var of two estimators: the ratio c_h / c_b, and whether c left 1.

    .. math:: \log\frac{c_h}{c_b} \pm \frac{t}{\sqrt R}\,\mathrm{sd}(\varphi_h - \varphi_b),
              \quad \varphi = \frac{s^2}{\overline{s^2}} - \frac{q}{\overline q},
              \quad q = (T - \bar T)^2

    The check is that of a shift of log c, with margin log tolerance: FAIL if it exceeds that and is
    not shown to approach 0, or where the head has no standard error and the base has one.

    Args:
        base: Values and standard errors of the reference, each (R,).
        head: Those of the estimator that is judged, on the same probes.
        tolerance: Factor by which c may move away from 1.
        confidence: Of each two-sided interval.

    Raises:
        ValueError: If shapes differ or R < 3.

    Example:
        >>> X = np.random.default_rng(0).standard_normal((500, 4))
        >>> T, se = X.mean(-1), X.std(-1, ddof=1) / 2
        >>> ratio, check = compare_calibration((T, se), (T, se * 0.75**0.5))  # ddof = 0
        >>> round(ratio.value, 6), check.verdict
        (0.75, 'FAIL')
    """
    values = [np.asarray(v, np.float64) for v in (*base, *head)]
    for v in values:
        require(values[0], v, np.zeros(values[0].shape), 1.0)
    finite = np.isfinite(np.stack(values))
    both, lost = finite.all(0), int((finite[:3].all(0) & ~finite[3]).sum())
    alpha, size = 1 - confidence, int(both.sum())
    (log_b, phi_b), (log_h, phi_h) = (
        log_ratio(centred(T[both]), se[both] ** 2) for T, se in (values[:2], values[2:])
    )
    shift, d = log_h - log_b, phi_h - phi_b
    growth = growth_of(around(log_b, phi_b, alpha / 2), around(shift, d, alpha / 2))
    ratio, margin = around(shift, d, alpha), math.log(tolerance)
    check = _shift_check("calibration", ratio, growth, margin, t_test(d + shift), size)
    if lost:
        check = broken("calibration", check.claim, f"{lost} standard errors are lost in the head")
    return ratio.mapped(exponential), check


def required_replicates(
    ratio: float, rho: float, kurtosis: float = 3.0, *, alpha: float = 0.01, power: float = POWER
) -> int:
    r"""Replicates that show an RMSE ratio r of two unbiased estimators to be different from 1.

    .. math:: R = \frac{(z_{1-\alpha/2} + z_{\mathrm{power}})^2 (1-\rho^2)
              \bigl[\rho^2 + (1-\rho^2)(\kappa-1)/2\bigr]}{\log^2 r}

    Args:
        ratio: r > 0, not 1.
        rho: Correlation of the two errors, in [−1, 1].
        kurtosis: κ of the errors, 3 for normal ones; at ρ near 1 it hardly matters.
        alpha: Level, two-sided.
        power: Probability of detection.

    Raises:
        ValueError: If the ratio is 1 or not positive, or ρ is not a correlation.

    Source: the delta method, with the fourth moments of an elliptical law.

    Example:
        >>> required_replicates(1.05, 0.0), required_replicates(1.05, 0.99)
        (6251, 125)
    """
    if not (ratio > 0 and ratio != 1):
        raise ValueError(f"The ratio must be positive and not 1, got {ratio}.")
    return max(1, math.ceil(spread(rho, kurtosis, alpha, power) / math.log(ratio) ** 2))


def detectable_ratio(
    size: int, rho: float, kurtosis: float = 3.0, *, alpha: float = 0.01, power: float = POWER
) -> float:
    """The RMSE ratio above 1 for which `required_replicates` are `size`; infinite for size 0.

    Raises:
        ValueError: If ρ is not a correlation.

    Example:
        >>> round(detectable_ratio(6251, 0.0), 4)
        1.05
    """
    if size < 1 or math.isnan(rho) or math.isnan(kurtosis):
        return math.inf
    return exponential(math.sqrt(spread(rho, kurtosis, alpha, power) / size))


def _failures(lost: int, size: int) -> Check:
    claim = "the head fails only where the base does"
    return exactly(
        "failures", claim, lost == 0, f"{lost} of {size} replicates fail in the head only"
    )


def _shift_check(
    name: str, shift: Interval, growth: Interval, margin: float, p: float, size: int
) -> Check:
    moved = shift.low > margin or shift.high < -margin
    harmless = growth.high <= margin
    verdict = PASS if harmless else FAIL if moved or growth.low > margin else INCONCLUSIVE
    message = (
        f"shift {text(shift)}, of the distance to the truth {text(growth)}, margin {margin:.3g}, "
        f"{size} replicates, p = {p:.3g}"
    )
    return Check(
        name,
        "the head is no farther from the truth than the base",
        verdict,
        shift.value,
        0.0,
        message,
        p=p,
        margin=margin,
        size=size,
        z=math.copysign(normal_score(p), growth.value),
    )


def _ratio_check(
    name: str, ratio: Interval, limit: float, detectable: float, size: int, p: float | None
) -> Check:
    verdict = FAIL if ratio.low > limit else PASS if ratio.high <= limit else INCONCLUSIVE
    message = (
        f"{text(ratio)}, limit {limit:g}, {size} replicates; detects {detectable:.3g} with "
        f"probability {POWER}"
    )
    claim = f"the {name} is at most {limit:g}"
    return Check(
        name,
        claim,
        verdict,
        ratio.value,
        1.0,
        message,
        p=p,
        detectable=detectable,
        margin=limit,
        size=size,
    )
