"""The checks have the size they state and the power they claim, and cannot go green blind."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
import pytest
from scipy import stats

from specbp import exact
from specbp.testing import outcome, sampling
from specbp.testing.outcome import Check, Level
from specbp.testing.planning import detectable_coverage
from specbp.testing.pvalues import cornish_fisher, enumerated_cgf, gaussian_cgf, normal_p

RNG_SEED = 20260901
LAW = exact.Moments(mean=1.0, variance=4.0, third=0.0, fourth=48.0)  # a normal law


def normal(R: int, repeats: int, shift: float = 0.0, scale: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(RNG_SEED)
    return 1 + shift + scale * rng.standard_normal((repeats, R))


@pytest.mark.parametrize("check", [sampling.mean, sampling.variance])
def test_false_alarms_come_at_the_stated_rate(check):
    level = Level(alpha=0.05, margin=10.0, rounding=1e-12)
    rejected = [check(v, 1.0, LAW, level).verdict == "FAIL" for v in normal(50, 2000)]
    # 2000 trials: the rate lies within 0.05 ± 0.02 with probability 1 - 4e-5.
    assert abs(np.mean(rejected) - 0.05) < 0.02


def test_error_bars_have_the_stated_rate():
    level = Level(alpha=0.05, margin=10.0, rounding=1e-12)
    values = normal(50 * 16, 1000).reshape(1000, 50, 16)
    squares = values.var(-1, ddof=1) / 16
    rejected = [sampling.error_bars(s, LAW, 16, level).verdict == "FAIL" for s in squares]
    assert abs(np.mean(rejected) - 0.05) < 0.03


def test_the_detectable_shift_is_detected_with_the_stated_power():
    level = Level(alpha=1e-3, margin=10.0, rounding=1e-12)
    shift = sampling.mean(normal(100, 1)[0], 1.0, LAW, level).detectable
    found = [
        sampling.mean(v, 1.0, LAW, level).verdict == "FAIL"
        for v in normal(100, 1000, shift=2.0 * shift)
    ]
    assert abs(np.mean(found) - outcome.POWER) < 0.03


def test_the_detectable_variance_ratio_is_detected_with_the_stated_power():
    level = Level(alpha=1e-3, margin=10.0, rounding=1e-12)
    excess = sampling.variance(normal(200, 1)[0], 1.0, LAW, level).detectable
    scaled = normal(200, 1000, scale=2.0 * (1 + excess) ** 0.5)
    found = [sampling.variance(v, 1.0, LAW, level).verdict == "FAIL" for v in scaled]
    assert abs(np.mean(found) - outcome.POWER) < 0.03


def test_ddof_zero_is_caught():
    level = Level(alpha=1e-3, margin=10.0, rounding=1e-12)
    squares = normal(1000 * 4, 1).reshape(1000, 4).var(-1, ddof=0) / 4
    assert sampling.error_bars(squares, LAW, 4, level).verdict == "FAIL"


def test_a_pass_that_could_not_see_the_margin_is_inconclusive():
    blind = Level(alpha=1e-3, margin=0.1, rounding=1e-12)
    seeing = Level(alpha=1e-3, margin=1.0, rounding=1e-12)
    values = normal(100, 1)[0]
    assert sampling.mean(values, 1.0, LAW, blind).verdict == "INCONCLUSIVE"
    assert sampling.mean(values, 1.0, LAW, seeing).verdict == "PASS"


def test_a_law_without_variance_is_compared_exactly():
    constant = exact.Moments(mean=3.0, variance=0.0, third=0.0, fourth=0.0)
    level = Level(alpha=1e-3, margin=1.0, rounding=1e-12)
    assert sampling.mean(np.full(10, 3.0), 3.0, constant, level).verdict == "PASS"
    assert sampling.mean(np.full(10, 3.0 + 1e-9), 3.0, constant, level).verdict == "FAIL"
    assert sampling.variance(np.full(10, 3.0), 3.0, constant, level).verdict == "PASS"


def test_nan_never_passes():
    level = Level(alpha=1e-3, margin=10.0, rounding=1e-12)
    values = normal(100, 1)[0]
    values[3] = np.nan
    assert sampling.mean(values, 1.0, LAW, level).verdict == "FAIL"
    assert sampling.mean(values, 1.0, LAW, level, cgf=gaussian_cgf([1.0])).verdict == "FAIL"
    assert sampling.variance(values, 1.0, LAW, level).verdict == "FAIL"
    assert sampling.error_bars(values**2, LAW, 4, level).verdict == "FAIL"
    assert sampling.t_mean(values, 1.0, level).verdict == "FAIL"
    assert outcome.within("probe", "", float("nan"), 1.0).verdict == "FAIL"


# Skewed and heavy-tailed laws ---------------------------------------------------------------------

SPIKE = exact.moments(np.diag([1.0] + [0.0] * 15), "gaussian")  # χ² with one degree of freedom


def spikes(repeats: int, R: int) -> np.ndarray:
    return np.random.default_rng(RNG_SEED).standard_normal((repeats, R)) ** 2


def rate(checks: list[Check]) -> float:
    return float(np.mean([check.verdict == "FAIL" for check in checks]))


def test_the_skewed_law_needs_its_correction():
    """Plain z of one spike with Gaussian probes alarms several times too often."""
    values = spikes(20000, 20)
    z = (values.mean(-1) - SPIKE.mean) / np.sqrt(SPIKE.variance / 20)
    plain = np.mean([normal_p(v) < 1e-2 for v in z])
    scores = [cornish_fisher(float(v), SPIKE.averaged(20)) for v in z]
    corrected = np.mean([normal_p(s) < 1e-2 for s in scores])
    assert plain > 0.0135
    assert corrected < plain


def test_mean_by_saddlepoint_has_the_stated_rate_and_counts_both_sides_alike():
    level, cgf = Level(alpha=0.05, margin=10.0), gaussian_cgf([1.0])
    checks = [sampling.mean(v, 1.0, SPIKE, level, cgf=cgf) for v in spikes(1500, 10)]
    # 1500 trials: 0.05 ± 0.023 and 0.025 ± 0.016 with probability 1 - 1e-4.
    assert abs(rate(checks) - 0.05) < 0.023
    above = np.mean([c.verdict == "FAIL" and c.statistic > 0 for c in checks])
    assert abs(above - 0.025) < 0.016
    scores = np.array([c.z for c in checks])
    assert abs(scores.mean()) < 4 / math.sqrt(1500)
    assert abs(scores.std() - 1) < 0.08


def test_mean_by_saddlepoint_is_that_of_the_exact_law():
    values = spikes(1, 20)[0] * 1.7
    check = sampling.mean(values, 1.0, SPIKE, Level(1e-3, 10.0), cgf=gaussian_cgf([1.0]))
    total = values.sum()
    expected = 2 * min(stats.chi2.sf(total, 20), stats.chi2.cdf(total, 20))
    assert check.p == pytest.approx(expected, rel=3e-3)


def test_z_is_the_score_where_its_sign_differs_from_that_of_the_deviation():
    """A mean a little below the expectation of a law skewed upwards lies above its median."""
    level, values = Level(1e-3, 10.0), np.full(20, 0.99)
    for cgf in (None, gaussian_cgf([1.0])):
        check = sampling.mean(values, 1.0, SPIKE, level, cgf=cgf)
        assert check.statistic < 0 < check.z < 0.2
    squares = np.full(20, np.sqrt(0.99 * SPIKE.variance))
    normal_law = exact.Moments(0.0, SPIKE.variance, 0.0, 3 * SPIKE.variance**2)
    check = sampling.variance(squares, 0.0, normal_law, level)
    assert check.statistic < 1
    assert check.z > 0


def test_mean_by_saddlepoint_is_about_the_expectation_that_is_given():
    """Not that of the law: a contract with the same form and a constant is tested alike."""
    values, level, cgf = spikes(1, 20)[0], Level(1e-3, 10.0), gaussian_cgf([1.0])
    one = sampling.mean(values, 1.0, SPIKE, level, cgf=cgf)
    other = sampling.mean(values + 5, 6.0, SPIKE, level, cgf=cgf)
    assert other.p == pytest.approx(one.p, rel=1e-9)


@pytest.mark.parametrize("R", [100, 400])
def test_variance_of_a_heavy_law_stays_near_its_level(R):
    """Excess kurtosis 12 at level 1e-3: Box's χ² alone alarms about twice as often."""
    ratio = ((spikes(20000, R) - 1) ** 2).mean(1) / SPIKE.variance
    nu = 2 * R / (SPIKE.excess_kurtosis + 2)
    p = 2 * np.minimum(stats.chi2.cdf(nu * ratio, nu), stats.chi2.sf(nu * ratio, nu))
    # 20000 trials: the error of a rate 1e-3 is 2.2e-4.
    assert np.mean(p <= 1e-3) > 1.3e-3
    assert np.mean(3 * p <= 1e-3) < 1.9e-3
    values, level = spikes(1, R)[0], Level(1e-3, 10.0)
    assert sampling.variance(values, 1.0, SPIKE, level).p == pytest.approx(min(3 * p[0], 1))


def test_variance_by_saddlepoint_of_the_squares():
    """Enumerated law of one spike and ten signs: the rate at 40 values, above and below."""
    u = np.array([1.0, -2.0, 0.5, 1.5, 0.3, 0.7, -1.1, 0.2, 0.9, -0.4])
    q, mean = (exact.all_signs(10) @ u) ** 2, float(u @ u)
    law, squares = exact.moments(np.outer(u, u), "rademacher"), enumerated_cgf((q - mean) ** 2)
    draws = np.random.default_rng(RNG_SEED).choice(q, (20000, 40))
    W, level = np.mean((draws - mean) ** 2, 1) / law.variance, Level(alpha=0.02, margin=10.0)
    order = np.argsort(W)

    def check(rank: int) -> Check:
        return sampling.variance(draws[order[rank]], mean, law, level, squares=squares)

    # Verdicts follow W: the first rank that passes and the first that fails again, by bisection.
    low = bisect_left(range(10000), True, key=lambda r: check(r).verdict == "PASS")
    high = 10000 + bisect_left(range(10000), True, key=lambda r: check(10000 + r).verdict == "FAIL")
    # 20000 trials: 0.01 ± 0.0027 with probability 1 - 1e-4.
    assert abs(low / 20000 - 0.01) < 0.0027
    assert abs((20000 - high) / 20000 - 0.01) < 0.0027


def test_error_bars_of_few_values_are_chi_square():
    """One normal estimate of four values: se² is a multiple of χ²₃, whose tails are known."""
    level = Level(alpha=1e-3, margin=10.0)
    for tail in (1e-2, 1e-4):
        se2 = np.array([stats.chi2.isf(tail, 3) / 3])
        law = exact.Moments(0.0, 4.0, 0.0, 48.0)
        assert sampling.error_bars(se2, law, 4, level).p == pytest.approx(2 * tail, rel=1e-6)


# Where nothing is known ---------------------------------------------------------------------------


def test_t_has_the_stated_rate_on_normal_values():
    level = Level(alpha=0.05, margin=10.0)
    checks = [sampling.t_mean(v, 1.0, level) for v in normal(400, 1000)]
    # 1000 trials: 0.05 ± 0.027 with probability 1 - 1e-4.
    assert abs(rate(checks) - 0.05) < 0.027
    assert checks[0].p == pytest.approx(stats.ttest_1samp(normal(400, 1)[0], 1.0).pvalue)


def test_t_of_few_values_decides_nothing():
    level = Level(alpha=1e-3, margin=10.0)
    check = sampling.t_mean(normal(399, 1, shift=50.0)[0], 1.0, level)
    assert check.verdict == "INCONCLUSIVE"
    assert check.p is check.z is None
    assert "needs 400 values, got 399; take more" in check.message
    assert sampling.t_mean(normal(400, 1, shift=50.0)[0], 1.0, level).verdict == "FAIL"


def test_t_of_a_constant_is_an_exact_comparison():
    level = Level(alpha=1e-3, margin=1.0, rounding=1e-12)
    assert sampling.t_mean(np.full(10, 3.0), 3.0, level).verdict == "PASS"
    assert sampling.t_mean(np.full(10, 3.0), 3.0 + 1e-9, level).verdict == "FAIL"


# Coverage -----------------------------------------------------------------------------------------


def test_coverage_has_at_most_the_stated_rate():
    """By summing the binomial law over what is rejected."""
    level = Level(alpha=0.01, margin=1.0)
    for R, reference in ((100, 0.95), (400, 0.83), (30, 0.5)):
        rejected = [k for k in range(R + 1) if not accepted(k, R, reference, level)]
        size = stats.binom.pmf(rejected, R, reference).sum()
        assert 0.001 < size <= 0.01


def accepted(covered: int, R: int, reference: float, level: Level) -> bool:
    return sampling.coverage(covered, R, reference, level).verdict != "FAIL"


def test_the_detectable_loss_of_coverage_is_detected_with_the_stated_power():
    level, R, reference = Level(alpha=1e-3, margin=1.0), 500, 0.95
    loss = sampling.coverage(475, R, reference, level).detectable
    assert loss == pytest.approx(detectable_coverage(R, reference, 1e-3))
    failing = [k for k in range(475) if not accepted(k, R, reference, level)]
    power = stats.binom.pmf(failing, R, reference - loss).sum()
    assert power == pytest.approx(outcome.POWER, abs=1e-6)


def test_coverage_is_judged_against_the_reference_not_against_the_nominal_level():
    level = Level(alpha=1e-3, margin=0.1)
    assert sampling.coverage(830, 1000, 0.83, level).verdict == "PASS"
    assert sampling.coverage(830, 1000, 0.95, level).verdict == "FAIL"
    assert sampling.coverage(995, 1000, 0.83, level).verdict == "FAIL"


def test_slack_of_the_reference_is_added_to_the_null_hypothesis():
    level = Level(alpha=1e-3, margin=0.1)
    sharp, slack = (sampling.coverage(915, 1000, 0.95, level, slack=s) for s in (0.0, 0.01))
    assert (sharp.verdict, slack.verdict) == ("FAIL", "PASS")
    assert slack.p == pytest.approx(2 * stats.binom.cdf(915, 1000, 0.94))
    above = sampling.coverage(980, 1000, 0.95, level, slack=0.01)
    assert above.p == pytest.approx(2 * stats.binom.sf(979, 1000, 0.96))
    assert slack.detectable > sharp.detectable


def test_coverage_of_few_intervals_is_inconclusive():
    check = sampling.coverage(2, 2, 0.95, Level(alpha=1e-3, margin=0.1))
    assert check.verdict == "INCONCLUSIVE"
    assert check.detectable == math.inf
    assert check.p == 1.0


@pytest.mark.parametrize(
    ("covered", "R", "reference"), [(-1, 5, 0.9), (6, 5, 0.9), (0, 0, 0.9), (1, 5, 0.0)]
)
def test_coverage_refuses(covered, R, reference):
    with pytest.raises(ValueError, match="0 ≤ covered ≤ R"):
        sampling.coverage(covered, R, reference, Level(1e-3, 0.1))


# The records --------------------------------------------------------------------------------------


def test_the_worst_check_decides():
    def check(verdict: str) -> Check:
        return Check("x", "", verdict, 0.0, 0.0, "")

    order = ["PASS", "REPORTED", "INCONCLUSIVE", "FAIL"]
    assert outcome.worst([check(v) for v in order]) == "FAIL"
    assert outcome.worst([check(v) for v in order[:3]]) == "INCONCLUSIVE"
    assert outcome.worst([check(v) for v in order[:2]]) == "PASS"
    assert outcome.worst([check("FAIL")], gated=False) == "REPORTED"
