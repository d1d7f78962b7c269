"""Aggregation (mean, standard error, flags) against plain Python; no failure is averaged away."""

from __future__ import annotations

import dataclasses
import math
import statistics
from functools import reduce
from operator import or_

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.estimate import (
    FAILURES,
    REMEDIES,
    Estimate,
    EstimationError,
    Status,
    any_flag,
    from_samples,
    union,
    without_probes,
)
from tests.support import f32, f64, normal

EACH_FAILURE = [flag for flag in Status if flag & FAILURES]
HARMLESS = [Status.INVARIANT_SUBSPACE, Status.FLOORED]
numbers = st.integers(-(10**6), 10**6).map(lambda i: i / 1000)  # no squares that underflow
flag_values = st.sampled_from([0, *(int(flag) for flag in Status)])


def estimate(values, *, status=None, **kwargs) -> Estimate:
    status = None if status is None else torch.tensor(status)
    return from_samples(torch.tensor(values, dtype=f64), num_matvecs=1.0, status=status, **kwargs)


@given(st.lists(numbers, min_size=2, max_size=20))
def test_value_is_mean_and_standard_error_uses_m_minus_one(values):
    est = estimate(values)
    m, scale = len(values), max(map(abs, values))
    # m additions and one square root of their squares, each rounded.
    assert float(est.value) == pytest.approx(statistics.fmean(values), abs=2 * m * 2e-16 * scale)
    expected = statistics.stdev(values) / math.sqrt(m)
    assert float(est.standard_error) == pytest.approx(expected, rel=1e-9, abs=1e-13 * scale)
    assert int(est.status) == 0
    assert bool(est.ok)


def test_standard_error_of_one_probe_is_nan_not_zero():
    est = estimate([3.0])
    assert float(est.value) == 3.0
    assert math.isnan(float(est.standard_error))


def test_float32_samples_are_averaged_in_float64():
    # The spacing of float32 at 1e8 is 8: a float32 mean of these would be 1e8.
    samples = torch.tensor([1e8, 1e8 + 8], dtype=f32)
    est = from_samples(samples, num_matvecs=1.0)
    assert est.value.dtype == est.samples.dtype == est.standard_error.dtype == f64
    assert float(est.value) == 1e8 + 4


def test_leading_dimensions_are_items_of_a_batch():
    samples = normal(3, 2, 5)
    est = from_samples(samples, num_matvecs=5.0, lower=samples - 1, upper=samples + 2)
    for i in range(3):
        for j in range(2):
            one = from_samples(samples[i, j], num_matvecs=5.0)
            assert float(est.value[i, j]) == pytest.approx(float(one.value), abs=1e-15)
            assert float(est.standard_error[i, j]) == pytest.approx(float(one.standard_error))
    torch.testing.assert_close(est.lower, est.value - 1, rtol=0, atol=1e-14)
    torch.testing.assert_close(est.upper, est.value + 2, rtol=0, atol=1e-14)
    assert est.status.shape == (3, 2)
    assert est.samples.shape == (3, 2, 5)


def test_unknown_bounds_are_infinite():
    est = estimate([1.0, 2.0])
    assert (float(est.lower), float(est.upper)) == (-math.inf, math.inf)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_nonfinite_probe_among_many_fails_its_estimate_only(bad):
    samples = normal(2, 100)
    samples[1, 37] = bad
    est = from_samples(samples, num_matvecs=1.0)
    assert math.isnan(float(est.value[1]))
    assert math.isnan(float(est.standard_error[1]))
    assert est.status.tolist() == [0, int(Status.NONFINITE)]
    assert est.ok.tolist() == [True, False]
    assert float(est.value[0]) == pytest.approx(float(samples[0].mean()), abs=1e-14)


@pytest.mark.parametrize("flag", EACH_FAILURE)
def test_one_failed_probe_makes_the_value_nan_however_plausible_its_number(flag):
    est = estimate([1.0, 1.1, 0.9], status=[0, int(flag), 0])
    assert math.isnan(float(est.value))
    assert Status(int(est.status)) == flag
    assert not bool(est.ok)
    assert math.isnan(float(est.samples[1]))
    assert est.samples[[0, 2]].tolist() == [1.0, 0.9]


def test_singular_probe_makes_the_value_minus_infinity():
    for number in (1.0, math.nan, -math.inf):
        est = estimate([1.0, number], status=[0, int(Status.SINGULAR)])
        assert float(est.value) == -math.inf
        assert Status(int(est.status)) == Status.SINGULAR  # NaN is explained: not NONFINITE as well
        assert not bool(est.ok)


def test_failure_outranks_singular():
    est = estimate([1.0, 1.0], status=[int(Status.SINGULAR), int(Status.NEGATIVE_RITZ)])
    assert math.isnan(float(est.value))
    assert Status(int(est.status)) == Status.SINGULAR | Status.NEGATIVE_RITZ


@pytest.mark.parametrize("flag", HARMLESS)
def test_good_news_and_warnings_change_no_value(flag):
    est = estimate([1.0, 3.0], status=[int(flag), 0])
    assert float(est.value) == 2.0
    assert bool(est.ok)
    assert Status(int(est.status)) == flag


@given(st.lists(st.lists(flag_values, min_size=3, max_size=3), min_size=1, max_size=4))
def test_union_of_flags_is_bitwise_or(rows):
    status = torch.tensor(rows)
    assert union(status).tolist() == [reduce(or_, row) for row in rows]
    assert any_flag(status.flatten()) == Status(reduce(or_, sum(rows, [])))


def test_every_flag_has_a_remedy_and_every_remedy_a_flag():
    assert set(REMEDIES) == set(Status) - {Status.OK}
    assert all(text.endswith(".") and flag.remedy == text for flag, text in REMEDIES.items())
    assert Status.OK.remedy == "Nothing to do."
    both = Status.SINGULAR | Status.NONFINITE
    assert REMEDIES[Status.SINGULAR] in both.remedy
    assert REMEDIES[Status.NONFINITE] in both.remedy


def test_flags_are_distinct_bits():
    values = [int(flag) for flag in Status if flag]
    assert sum(values) == reduce(or_, values)
    assert len(set(values)) == len(REMEDIES)


def test_str_shows_value_error_and_failure():
    assert str(estimate([1.0, 3.0])) == "2.0000 ± 1.0000"
    assert str(estimate([3.0])) == "3.0000"
    text = str(estimate([1.0, 3.0], status=[0, int(Status.NEGATIVE_RITZ)]))
    assert text.startswith("nan")
    assert "NEGATIVE_RITZ" in text
    assert str(estimate([1.0, 1.0], status=[0, int(Status.SINGULAR)])).startswith("-inf")
    # Good news is not shouted.
    assert str(estimate([1.0, 3.0], status=[1, 0])) == "2.0000 ± 1.0000"


def test_str_of_batch_shows_shape_and_cost():
    est = from_samples(normal(2, 3, 4), num_matvecs=8.0)
    assert str(est) == "Estimate of shape (2, 3), 8 products each"


def test_raise_for_status_returns_a_good_estimate_itself():
    est = estimate([1.0, 3.0], status=[int(Status.INVARIANT_SUBSPACE), int(Status.FLOORED)])
    assert est.raise_for_status() is est


@pytest.mark.parametrize("flag", [*EACH_FAILURE, Status.SINGULAR])
def test_raise_for_status_counts_names_and_advises(flag):
    status = torch.zeros(3, 4, dtype=torch.int64)
    status[1, 2] = int(flag)
    est = from_samples(normal(3, 4), num_matvecs=1.0, status=status)
    with pytest.raises(EstimationError, match=f"1 of 3 .*{flag.name}") as caught:
        est.raise_for_status()
    assert REMEDIES[flag] in str(caught.value)
    assert isinstance(caught.value, ArithmeticError)


def test_result_without_probes_has_no_error_and_no_truncation():
    est = without_probes(torch.tensor([1.0, 2.0]), num_matvecs=3.0, status=torch.tensor([0, 8]))
    assert est.value.dtype == f64
    assert est.standard_error.tolist()[0] == 0
    assert est.samples.shape == (2, 0)
    assert est.num_matvecs == 3.0
    assert float(est.lower[0]) == float(est.value[0]) == float(est.upper[0]) == 1.0
    assert math.isnan(float(est.value[1]))
    assert est.ok.tolist() == [True, False]


def test_estimate_is_frozen():
    est = estimate([1.0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        est.value = torch.zeros(())
