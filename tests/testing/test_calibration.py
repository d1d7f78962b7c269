"""Reference coverage: enumerated against ordered tuples, drawn against known laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from specbp import exact
from specbp.testing import sampling
from specbp.testing.calibration import dense_forms, reference_coverage

SEED = 20260901


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def form(n: int) -> np.ndarray:
    return rng().standard_normal((n, n))


@pytest.mark.parametrize(("n", "m"), [(3, 2), (4, 3), (3, 4)])
def test_enumerated_coverage_is_that_over_ordered_tuples(n, m):
    B, bias = form(n), 0.7
    q = [float(x @ B @ x) for x in exact.all_signs(n)]
    own = truth = 0
    for values in itertools.product(q, repeat=m):
        half = stats.t.ppf(0.975, m - 1) * np.std(values, ddof=1) / np.sqrt(m)
        own += abs(np.mean(values) - np.trace(B)) <= half + 1e-12
        truth += abs(np.mean(values) - (np.trace(B) - bias)) <= half + 1e-12
    found = reference_coverage(B, "rademacher", m, bias=bias)
    assert found == pytest.approx((own / len(q) ** m, truth / len(q) ** m, 0.0))


def test_enumerated_and_drawn_agree():
    B = form(5)
    exact_one = reference_coverage(B, "rademacher", 4)
    q = dense_forms((B + B.T) / 2, "rademacher", 400_000, rng=rng()).reshape(-1, 4)
    half = stats.t.isf(0.025, 3) * q.std(1, ddof=1) / 2
    drawn = np.mean(np.abs(q.mean(1) - np.trace(B)) <= half + 1e-12)
    # 100 000 intervals: five standard errors.
    assert abs(drawn - exact_one.expectation) < 5 * 0.5 / np.sqrt(100_000)


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
def test_drawn_forms_have_the_moments_of_their_law(law):
    B = form(7)
    B = (B + B.T) / 2
    q, expected = dense_forms(B, law, 200_000, rng=rng()), exact.moments(B, law)
    errors = np.sqrt([expected.variance, expected.fourth - expected.variance**2]) / np.sqrt(2e5)
    assert abs(q.mean() - expected.mean) < 4 * errors[0]
    assert abs(np.mean((q - expected.mean) ** 2) - expected.variance) < 4 * errors[1]


def test_drawn_forms_come_in_chunks_of_one_stream():
    B = np.diag(np.arange(1.0, 1001.0))
    q = dense_forms(B, "gaussian", 2500, rng=rng())
    assert q.shape == (2500,)
    assert len(np.unique(q)) == 2500


def test_many_equal_eigenvalues_are_nearly_normal_and_covered_as_stated():
    found = reference_coverage(np.eye(300), "gaussian", 10, rng=rng(), replicates=20_000)
    assert abs(found.expectation - 0.95) < 4 * found.standard_error + 2e-3
    assert found.standard_error == pytest.approx(np.sqrt(0.05 * 0.95 / 20_000), rel=0.05)


@pytest.mark.parametrize(("m", "expected"), [(3, 0.828), (10, 0.866), (30, 0.909)])
def test_one_spike_is_covered_less_often(m, expected):
    """Values measured elsewhere, with three digits, for this case of 64 eigenvalues."""
    spike = np.diag([1.0] + [0.01] * 63)
    found = reference_coverage(spike, "gaussian", m, rng=rng(), replicates=20_000)
    assert abs(found.expectation - expected) < 4 * found.standard_error + 5e-3


def test_the_coverage_of_the_truth_falls_with_the_bias():
    B = np.diag(np.linspace(0.0, 1.0, 40))
    shifted = [
        reference_coverage(B, "gaussian", 20, bias=b, rng=rng(), replicates=5000)
        for b in (0.0, 1.0, 5.0)
    ]
    assert shifted[0].truth == shifted[0].expectation
    assert shifted[0].truth > shifted[1].truth > shifted[2].truth
    assert {s.expectation for s in shifted} == {shifted[0].expectation}


def test_the_sign_of_the_bias_counts_for_a_skewed_law():
    """Estimate = truth + bias: the long upper tail makes intervals that reach far up, not down."""
    spike = np.diag([1.0] + [0.0] * 9)
    above, below = (
        reference_coverage(spike, "gaussian", 5, bias=b, rng=rng(), replicates=5000).truth
        for b in (0.5, -0.5)
    )
    assert above > below + 0.1


def test_reference_and_check_go_together():
    B, level = form(6), sampling.Level(alpha=1e-3, margin=0.1)
    reference = sampling.reference_coverage(B, "gaussian", 4, rng=rng(), replicates=20_000)
    q = dense_forms((B + B.T) / 2, "gaussian", 4000, rng=np.random.default_rng(1)).reshape(-1, 4)
    error, se = np.abs(q.mean(1) - np.trace(B)), q.std(1, ddof=1) / 2
    for quantile, verdict in ((stats.t.isf(0.025, 3), "PASS"), (1.96, "FAIL")):
        covered, slack = int(np.sum(error <= quantile * se)), 4 * reference.standard_error
        check = sampling.coverage(covered, 1000, reference.expectation, level, slack=slack)
        assert check.verdict == verdict


def test_refusals():
    with pytest.raises(ValueError, match="m ≥ 2 values that vary, got m = 1"):
        reference_coverage(form(3), "rademacher", 1)
    with pytest.raises(ValueError, match="compare a constant exactly"):
        reference_coverage(np.diag([1.0, 2.0]), "rademacher", 2)
    with pytest.raises(ValueError, match="cannot be enumerated: pass rng"):
        reference_coverage(form(3), "gaussian", 2)
    with pytest.raises(ValueError, match="law must be one of"):
        reference_coverage(form(3), "uniform", 2)
