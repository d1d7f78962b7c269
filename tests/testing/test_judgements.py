"""What the assertions judge by: rounding hides nothing, and tests keep their level and units."""

from __future__ import annotations

import numpy as np
import pytest

from specbp.exact import Moments, moments
from specbp.testing import evidence, judgements, tails
from specbp.testing.outcome import Level

NORMAL = Moments(0.0, 1.0, 0.0, 3.0)
VALUES = np.random.default_rng(20260911).standard_normal(1000)
VALUES -= VALUES.mean()


def mean(values, expected, *, law=NORMAL, margin=0.2, rounding=0.0, tolerance=0.0):
    level = Level(1e-3, margin, rounding)
    return judgements.mean(
        "mean", "", values, expected, law=law, level=level, noise=1e-12, tolerance=tolerance
    )


@pytest.mark.parametrize("law", [NORMAL, None])
def test_a_tolerance_is_taken_off_the_bias_and_added_to_what_is_detected(law):
    assert mean(VALUES + 0.3, 0.0, law=law, tolerance=0.3).p > 0.9
    assert mean(VALUES + 0.3, 0.0, law=law, tolerance=0.3).verdict == "PASS"
    assert mean(VALUES - 0.5, 0.0, law=law, tolerance=0.3).verdict == "FAIL"
    plain, tolerant = (mean(VALUES, 0.0, law=law, tolerance=t) for t in (0.0, 0.3))
    sd = 1.0 if law else VALUES.std(ddof=1)
    assert tolerant.detectable == pytest.approx(plain.detectable + 0.3 / sd)
    assert tolerant.margin == pytest.approx(0.2 + 0.3 / sd)


@pytest.mark.parametrize("law", [NORMAL, None])
def test_rounding_that_hides_the_margin_passes_nothing(law):
    assert mean(VALUES, 0.0, law=law, rounding=0.019).verdict == "PASS"
    hidden = mean(VALUES + 0.5, 0.0, law=law, rounding=1.0)
    assert hidden.verdict == "INCONCLUSIVE"
    assert "rounding of 1 exceeds" in hidden.message
    assert mean(VALUES + 1.5, 0.0, law=law, rounding=1.0).verdict == "FAIL"
    assert mean(VALUES + 0.3, 0.0, law=law, rounding=0.019).verdict == "FAIL"


def test_student_needs_400_replicates_to_pass_but_not_to_fail():
    few = mean(VALUES[:399], float(VALUES[:399].mean()), law=None, margin=9.0)
    assert few.verdict == "INCONCLUSIVE"
    assert "needs 400 replicates, got 399" in few.message
    assert mean(VALUES[:399] + 1, 0.0, law=None).verdict == "FAIL"
    assert mean(VALUES[:400], float(VALUES[:400].mean()), law=None, margin=9.0).verdict == "PASS"
    assert mean(VALUES[:100], 0.0, margin=0.5).verdict == "PASS"  # moments known


def test_what_a_t_test_detects_is_by_t():
    normal = tails.shift(1e-3)
    assert judgements.t_shift(4, 1e-3) * 2 > 3 * normal
    assert judgements.t_shift(10**6, 1e-3) * 1000 == pytest.approx(normal, rel=1e-4)
    R = judgements.replicates_for_mean(Level(1e-3, 0.2))
    assert judgements.t_shift(R, 1e-3) <= 0.2 < judgements.t_shift(R - 1, 1e-3)


def test_numbers_beyond_the_range_are_broken_and_not_compared():
    with np.errstate(over="ignore", invalid="ignore"):
        huge = 1e200 * VALUES
        assert mean(huge, 0.0).verdict == "FAIL"
        assert "standard deviation of the values is inf" in mean(huge, 0.0).message
        check = judgements.variance("", "", huge, NORMAL, Level(1e-3, 0.2))
    assert (check.verdict, check.message) == ("FAIL", "the variance of the values is inf")


def forms(n: int, R: int, count: int) -> tuple[np.ndarray, Moments]:
    X = np.random.default_rng([20260912, n]).choice([-1.0, 1.0], size=(count, R, n))
    return X.sum(-1) ** 2, moments(np.ones((n, n)), "rademacher")


@pytest.mark.parametrize(("n", "R"), [(2, 20), (2, 200), (3, 200), (8, 200)])
def test_false_alarms_of_the_variance_are_no_more_than_stated(n, R):
    """1000 samples at level 0.01: at most 0.02; at n = 2 the squares themselves are constant."""
    values, law = forms(n, R, 1000)
    level = Level(0.01, 0.25)
    p = [judgements.variance("", "", row, law, level).p for row in values]
    assert np.mean(np.array(p) <= 0.01) <= 0.02


@pytest.mark.parametrize("n", [2, 3, 8])
def test_effects_of_the_stated_size_are_seen(n):
    values, law = forms(n, 400, 300)
    level = Level(1e-3, 0.25)
    seen = judgements.variance("", "", values[0], law, level).detectable
    checks = [judgements.variance("", "", (1 + seen) ** 0.5 * row, law, level) for row in values]
    assert np.mean([check.verdict == "FAIL" for check in checks]) > 0.9


def test_heavy_tails_triple_the_p_value():
    light, heavy = (Moments(0.0, 1.0, 0.0, 3 + e) for e in (3.0, 3.0 + 1e-9))
    level = Level(1e-3, 0.25)
    values = 1.2 * VALUES
    first, second = (judgements.variance("", "", values, law, level) for law in (light, heavy))
    assert second.p == pytest.approx(3 * first.p)
    assert second.detectable > first.detectable


def test_rounding_hides_a_variance():
    for factor, rounding, verdict in [
        (1.0, 0.01, "PASS"),
        (1.0, 1.0, "INCONCLUSIVE"),
        (1.5, 1.0, "INCONCLUSIVE"),
        (3.0, 1.0, "FAIL"),
    ]:
        check = judgements.variance("", "", factor * VALUES, NORMAL, Level(1e-3, 0.5, rounding))
        assert check.verdict == verdict


def test_ratios_of_nothing_are_broken():
    zero, level = np.zeros(1000), Level(1e-3, 0.25)
    for squares, values in [(zero, VALUES), (zero, zero), (VALUES**2, zero)]:
        check = judgements.ratio_of_means("", "", squares, values, level)
        assert check.verdict == "FAIL"
        assert "have no ratio" in check.message


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_units_are_powers_of_two_that_bring_sizes_to_one(size):
    unit = evidence.unit([size, -size / 3], size / 2)
    assert np.frexp(unit)[0] == 0.5
    assert 1 <= size / unit < 2
    assert evidence.unit([1e-20], 1e20, ()) == evidence.unit([0.0]) == 1.0
