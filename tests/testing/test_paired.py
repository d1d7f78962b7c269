"""Paired comparisons: sizes and power by simulation, the traps, and the formula for R."""

from __future__ import annotations

import math

import numpy as np
import pytest

from specbp.testing import _paired, paired
from specbp.testing.paired import compare, compare_calibration, required_replicates


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([20260901, *key])


def errors(R: int, rho: float, ratio: float, seed: int, repeats: int):
    """Normal errors of two estimators, (repeats, R) each, with sd 1 and `ratio`."""
    x, y = rng(seed).standard_normal((2, repeats, R))
    return x, ratio * (rho * x + math.sqrt(1 - rho**2) * y)


def comparisons(*law) -> list[paired.Comparison]:
    return [compare(*pair, 0.0, margin=9.0) for pair in zip(*errors(*law), strict=True)]


def rates(*law) -> dict[str, float]:
    """How often each test rejects at 1 %."""
    found = comparisons(*law)
    return {
        "t on u": np.mean([c.mse_p < 0.01 for c in found]),
        "RMSE interval": np.mean([not c.rmse_ratio.low <= 1 <= c.rmse_ratio.high for c in found]),
        "variance interval": np.mean(
            [not c.variance_ratio.low <= 1 <= c.variance_ratio.high for c in found]
        ),
        "Pitman–Morgan": np.mean([c.pitman_morgan_p < 0.01 for c in found]),
        "sign": np.mean([c.sign_p < 0.01 for c in found]),
        "shift": np.mean([c.shift_p < 0.01 for c in found]),
    }


@pytest.mark.parametrize("rho", [0.0, 0.95])
def test_false_alarms_of_equal_estimators_come_at_their_rate(rho):
    """2000 trials at 1 %: a rate of 1 % is seen as 0.3 … 2 % with probability 0.9999."""
    found = rates(200, rho, 1.0, 1, 2000)
    for name in ("t on u", "Pitman–Morgan", "shift", "sign"):
        assert 0.003 < found[name] < 0.02, (name, found[name])
    # The delta method: up to twice its level at R = 100, by design never far below.
    for name in ("RMSE interval", "variance interval"):
        assert 0.003 < found[name] < 0.03, (name, found[name])


@pytest.mark.parametrize(("rho", "ratio"), [(0.0, 1.2), (0.95, 1.05), (0.99, 1.05), (0.999, 1.01)])
def test_the_required_replicates_have_the_stated_power(rho, ratio):
    """0.9; 600 trials show it as 0.86 … 0.94, and Student's tail at small R costs a little."""
    R = required_replicates(ratio, rho)
    assert paired.detectable_ratio(R, rho) <= ratio * (1 + 1e-12)
    power = rates(R, rho, ratio, 2, 600)
    for name in ("t on u", "RMSE interval"):
        assert 0.84 < power[name] < 0.94, (name, power[name])
    assert power["sign"] < power["t on u"]


def test_the_kurtosis_counts_without_correlation_and_not_at_high_correlation():
    assert required_replicates(1.05, 0.0, kurtosis=14.8) > 6 * required_replicates(1.05, 0.0)
    almost = required_replicates(1.05, 0.999, kurtosis=14.8) / required_replicates(1.05, 0.999)
    assert almost < 1.05


def test_the_table_of_the_formula():
    """14.88 (1 − ρ²) / log² r for normal errors."""
    for rho, ratio in [(0.0, 1.1), (0.95, 1.02), (0.99, 1.01)]:
        expected = 14.88 * (1 - rho**2) / math.log(ratio) ** 2
        assert required_replicates(ratio, rho) == pytest.approx(expected, rel=1e-3)


def test_intervals_of_ratios_and_shift_cover():
    found = comparisons(200, 0.8, 1.3, 3, 1000)
    for true, attribute in ((1.3**2, "variance_ratio"), (1.3, "rmse_ratio"), (0.0, "shift")):
        intervals = [getattr(c, attribute) for c in found]
        missed = np.mean([not interval.low <= true <= interval.high for interval in intervals])
        assert 0.001 < missed < 0.03, (attribute, missed)


def test_a_bias_that_opposes_the_noise_fails_by_the_mean_shift_and_not_by_rmse():
    """The RMSE of these errors shrinks: only the mean shift sees what happened."""
    form, noise = rng(4).standard_normal((2, 400))
    base = form + 0.01 * noise
    head = 0.95 * base + 0.15  # a tenth less variance, a bias of 0.15 standard deviations
    found = compare(base, head, 0.0, control=form, margin=0.06)
    assert found.rmse_ratio.value < 1
    assert {c.name: c.verdict for c in found.checks}["mean shift"] == "FAIL"
    assert found.verdict == "FAIL"
    assert not found.improved
    # Of unknown direction, it is no better.
    assert compare(base, head, 0.0, margin=0.06).verdict == "FAIL"


def test_a_bias_removed_is_no_failure_where_a_control_shows_the_direction():
    form, noise = rng(5).standard_normal((2, 200))
    base, head = form + 1 + 0.01 * noise, form + 0.01 * noise
    found = compare(base, head, 0.0, control=form, margin=0.06)
    assert found.verdict == "PASS"
    assert found.growth.high < 0
    assert found.improved
    assert compare(head, base, 0.0, control=form, margin=0.06).verdict == "FAIL"


def test_a_shift_through_the_truth_is_judged_by_the_distance():
    form = rng(6).standard_normal(200)
    across = compare(form - 0.5, form + 0.5, 0.0, control=form, margin=0.06)
    assert across.growth.value == pytest.approx(0.0, abs=1e-12)
    assert {c.name: c.verdict for c in across.checks}["mean shift"] == "PASS"


def test_more_variance_fails_and_less_is_an_improvement_only_when_certain():
    form = rng(7).standard_normal(200)
    assert compare(form, 1.05 * form, 0.0, margin=9.0).verdict == "FAIL"
    assert compare(1.05 * form, form, 0.0, margin=9.0).improved
    fresh = rng(8).standard_normal(200)
    unsure = compare(form, fresh, 0.0, margin=9.0)
    assert unsure.verdict == "INCONCLUSIVE"
    assert not unsure.improved
    assert unsure.detectable > 1.2


@pytest.mark.parametrize("rho", [0.0, 0.95])
def test_the_detectable_ratio_fails_with_the_stated_probability(rho):
    """0.9; 300 trials show it as 0.84 … 0.96 with probability 0.999."""
    (pilot,) = (compare(*v, 0.0, margin=9.0) for v in zip(*errors(400, rho, 1, 11, 1), strict=True))
    seen = paired.detectable_ratio(
        400, pilot.rho, _paired.kurtosis_of(errors(400, rho, 1, 11, 1)[0][0])
    )
    stated = {c.name: c.detectable for c in pilot.checks if c.detectable}
    assert stated == pytest.approx({"variance ratio": 1.02 * seen**2, "RMSE ratio": 1.02 * seen})
    for name, ratio in (
        ("variance ratio", stated["variance ratio"] ** 0.5),
        ("RMSE ratio", stated["RMSE ratio"]),
    ):
        found = comparisons(400, rho, ratio, 12, 300)
        power = np.mean([c.verdict == "FAIL" for f in found for c in f.checks if c.name == name])
        assert 0.84 < power < 0.96, (name, power)


def test_equal_values_pass_and_say_so():
    form = rng(9).standard_normal(50)
    form[3] = np.nan
    found = compare(form, form.copy(), 0.0, margin=0.1)
    assert (found.verdict, found.equal, found.largest) == ("PASS", True, 0.0)
    assert found.rmse_ratio == (1, 1, 1)
    near = compare(form, form + 1e-13, 0.0, margin=0.1, rounding=1e-12)
    assert (near.verdict, near.equal, near.rmse_ratio) == ("PASS", False, (1, 1, 1))


def test_a_failure_of_the_head_alone_fails_whatever_the_rest_says():
    form = rng(10).standard_normal(50)
    lost = form.copy()
    lost[7] = np.nan
    assert compare(form, lost, 0.0, margin=0.1).verdict == "FAIL"
    assert compare(form, lost, 0.0, margin=0.1).failed == (0, 1)
    assert compare(lost, form, 0.0, margin=0.1).verdict == "PASS"


def test_nothing_in_common_is_inconclusive_and_never_green():
    nothing, form = np.full(10, np.nan), rng(11).standard_normal(10)
    assert compare(nothing, form, 0.0, margin=0.1).verdict == "INCONCLUSIVE"
    assert compare(nothing, nothing, 0.0, margin=0.1).verdict == "INCONCLUSIVE"
    assert compare(form, nothing, 0.0, margin=0.1).verdict == "FAIL"


def test_an_exact_base_makes_any_error_a_failure():
    exact, form = np.zeros(50), rng(12).standard_normal(50)
    found = compare(exact, 1e-3 * form, 0.0, margin=1.0)
    assert found.rmse_ratio.value == math.inf
    assert found.verdict == "FAIL"
    assert compare(1e-3 * form, exact, 0.0, margin=1.0).improved


def test_standard_errors_that_shrink_fail_and_those_that_are_repaired_pass():
    X = rng(13).standard_normal((400, 4))
    T, se = X.mean(-1), X.std(-1, ddof=1) / 2
    wrong = se * 0.75**0.5  # ddof = 0
    assert compare_calibration((T, se), (T, se))[1].verdict == "PASS"
    ratio, check = compare_calibration((T, se), (T, wrong))
    assert check.verdict == "FAIL"
    assert ratio == pytest.approx((0.75,) * 3)
    # Certain of the direction: four times too small before, right now.
    assert compare_calibration((T, se / 4), (T, se))[1].verdict == "PASS"
    assert compare_calibration((T, se), (T, se * np.nan))[1].verdict == "FAIL"


def test_calibration_of_fresh_probes_has_its_size():
    X, Y = rng(14).standard_normal((2, 500, 200, 8))

    def pair(Z):
        return Z.mean(-1), Z.std(-1, ddof=1) / 8**0.5

    found = [compare_calibration(pair(x), pair(y))[0] for x, y in zip(X, Y, strict=True)]
    missed = np.mean([not interval.low <= 1 <= interval.high for interval in found])
    assert missed < 0.03


def test_growth_is_bounded_by_brute_force():
    """The corners give the extremes of |β + δ| − |β| over a fine grid of the rectangle."""
    for b0, b1, d0, d1 in rng(15).normal(size=(200, 4)):
        bias = _paired.Interval(b0, min(b0, b1), max(b0, b1))
        shift = _paired.Interval(d0, min(d0, d1), max(d0, d1))
        b, d = np.meshgrid(np.linspace(*bias[1:], 101), np.linspace(*shift[1:], 101))
        values = np.abs(b + d) - np.abs(b)
        found = _paired.growth_of(bias, shift)
        assert found.low <= values.min() + 1e-12
        assert found.high >= values.max() - 1e-12
        assert found.low == pytest.approx(values.min(), abs=0.05)
        assert found.high == pytest.approx(values.max(), abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(5), np.zeros(4), 0.0), "one value for each"),
        ((np.zeros(2), np.zeros(2), 0.0), "R >= 3"),
        ((np.zeros(5), np.zeros(5), math.nan), "finite"),
    ],
)
def test_bad_input_says_what_is_required(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(*arguments, margin=1.0)


def test_bad_settings_say_what_is_required():
    with pytest.raises(ValueError, match="margin must be positive"):
        compare(np.zeros(5), np.zeros(5), 0.0, margin=0.0)
    with pytest.raises(ValueError, match="positive and not 1"):
        required_replicates(1.0, 0.5)
    with pytest.raises(ValueError, match="correlation"):
        required_replicates(1.1, 1.5)
