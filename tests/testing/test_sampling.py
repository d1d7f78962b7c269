"""The checks have the size they state and the power they claim, and cannot go green blind."""

from __future__ import annotations

import numpy as np
import pytest

from specbp import exact
from specbp.testing import outcome, sampling
from specbp.testing.outcome import Check, Level

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
    assert outcome.within("probe", "", float("nan"), 1.0).verdict == "FAIL"


def test_the_skewed_law_needs_its_correction():
    """Plain z of one spike with Gaussian probes alarms several times too often."""
    law = exact.moments(np.diag([1.0] + [0.0] * 15), "gaussian")
    rng = np.random.default_rng(RNG_SEED)
    values = rng.standard_normal((20000, 20)) ** 2
    z = (values.mean(-1) - law.mean) / np.sqrt(law.variance / 20)
    plain = np.mean([sampling.normal_p(v) < 1e-2 for v in z])
    scores = [sampling.cornish_fisher(float(v), law.averaged(20)) for v in z]
    corrected = np.mean([sampling.normal_p(s) < 1e-2 for s in scores])
    assert plain > 0.0135
    assert corrected < plain


def test_the_worst_check_decides():
    def check(verdict: str) -> Check:
        return Check("x", "", verdict, 0.0, 0.0, "")

    order = ["PASS", "REPORTED", "INCONCLUSIVE", "FAIL"]
    assert outcome.worst([check(v) for v in order]) == "FAIL"
    assert outcome.worst([check(v) for v in order[:3]]) == "INCONCLUSIVE"
    assert outcome.worst([check(v) for v in order[:2]]) == "PASS"
    assert outcome.worst([check("FAIL")], gated=False) == "REPORTED"
