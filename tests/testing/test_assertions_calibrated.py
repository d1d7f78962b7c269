"""Error bars in one line: exact on small problems, by replicates elsewhere; ddof = 0 is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specbp import hutchinson_trace, orthogonal, rademacher
from specbp.testing.assertions import assert_calibrated
from tests.support import geometric, spd

SMALL, LARGE = spd(geometric(4, 10.0)), spd(geometric(16, 10.0))
ROUTES = {
    "exact": (SMALL, {"num_probes": 3}, "D2 error bars"),
    "replicates": (LARGE, {"num_probes": 4}, "S3 error bars"),
    "exact variance": (LARGE, {"num_probes": 4, "form": LARGE}, "S3 error bars"),
    "gaussian": (LARGE, {"num_probes": 4, "law": "gaussian"}, "S3 error bars"),
}


def bars(A, X, ddof=1, factor=1.0):
    samples = (X * (A @ X)).sum(0)
    return samples.mean(), factor * samples.std(correction=ddof) / len(samples) ** 0.5


@pytest.mark.parametrize("route", ROUTES)
def test_right_error_bars_pass(route):
    A, options, name = ROUTES[route]
    check = assert_calibrated(bars, A, **options)
    assert (check.verdict, check.name) == ("PASS", name)
    assert check.statistic == pytest.approx(1.0, abs=1e-9 if name[0] == "D" else 0.2)


@pytest.mark.parametrize("route", ROUTES)
def test_ddof_zero_is_caught_and_named(route):
    A, options, name = ROUTES[route]
    with pytest.raises(AssertionError, match=f"FAIL {name}") as caught:
        assert_calibrated(lambda A, X: bars(A, X, ddof=0), A, **options)
    assert "ddof = 0, want ddof = 1" in str(caught.value)
    assert "samples.std(ddof=1) / sqrt(m)" in str(caught.value)


def test_ddof_zero_is_named_exactly_even_inside_the_margin():
    with pytest.raises(AssertionError, match=r"the ratio is \(m − 1\)/m = 0.75"):
        assert_calibrated(lambda A, X: bars(A, X, ddof=0), SMALL, num_probes=4, margin=0.5)


@pytest.mark.parametrize(
    ("factor", "words"), [(2.0, "not divided by √m"), (0.5, "divided by m instead of √m")]
)
def test_other_factors_are_named(factor, words):
    with pytest.raises(AssertionError) as caught:
        assert_calibrated(lambda A, X: bars(A, X, factor=factor), SMALL, num_probes=4)
    assert words in str(caught.value)


def test_the_exact_coverage_is_reported():
    message = assert_calibrated(hutchinson_trace, SMALL, num_probes=3).message
    assert "the 95 % interval by t covers the mean with probability 0." in message


def antithetic(A, generator):
    X = rademacher(A.shape[-1], 4, generator=generator)
    return hutchinson_trace(A, torch.cat([X, -X], -1))


def block(A, generator):
    return hutchinson_trace(A, orthogonal(A.shape[-1], 8, generator=generator))


@pytest.mark.parametrize(("estimator", "ratio"), [(antithetic, 3 / 7), (block, 15 / 8)])
def test_dependent_probes_of_a_black_box_are_caught(estimator, ratio):
    """Pairs counted twice: (m/2 − 1)/(m − 1); orthogonal probes: (n − 1)/(n − m), too long."""
    with pytest.raises(AssertionError, match="FAIL S3 error bars") as caught:
        assert_calibrated(estimator, LARGE, law=None, num_probes=8)
    measured = float(str(caught.value).split("measured")[1].split()[0])
    assert measured == pytest.approx(ratio, rel=0.15)


def test_missing_error_bars_are_a_failure():
    with pytest.raises(AssertionError, match="64 of 64 have no se"):
        assert_calibrated(lambda A, X: (X * (A @ X)).sum() / 2, SMALL, num_probes=2)
    with pytest.raises(ValueError, match="two probes or more"):
        assert_calibrated(bars, SMALL, num_probes=1)


def test_too_few_replicates_are_inconclusive():
    options = {"num_probes": 4, "replicates": 50}
    with pytest.raises(AssertionError, match="INCONCLUSIVE S3"):
        assert_calibrated(bars, LARGE, **options)
    check = assert_calibrated(bars, LARGE, **options, allow_inconclusive=True)
    assert check.detectable > check.margin


def test_false_alarms_come_at_the_stated_rate():
    """300 correct estimators at level 0.05: the rate lies in 0.05 ± 0.045."""

    def draws(A, generator):
        values = torch.randn(5, generator=generator)
        return values.mean(), values.std() / 5**0.5

    def alarm(i: int) -> bool:
        try:
            assert_calibrated(
                draws, SMALL, law=None, num_probes=5, alpha=0.05, margin=9, replicates=100, key=(i,)
            )
        except AssertionError:
            return True
        return False

    assert abs(np.mean([alarm(i) for i in range(300)]) - 0.05) < 0.045


MATRICES = {
    "identity": torch.eye(4).double(),
    "zero": torch.zeros(4, 4).double(),
    "diagonal": torch.diag(torch.tensor([1.0, 0.1, 0.3, 0.7])).double(),
    "no trace": torch.diag(torch.tensor([1.0, -0.1, -0.3, -0.6])).double(),
}
SIZES = [{"num_probes": 3}, {"num_probes": 4, "replicates": 500}]


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("options", SIZES, ids=["exact", "replicates"])
def test_an_estimate_that_does_not_vary_has_error_bars_of_zero(name, options):
    A = MATRICES[name]
    check = assert_calibrated(bars, A, form=A, **options)
    assert check.verdict == "PASS"
    assert "does not vary" in check.message
    with pytest.raises(AssertionError, match="FAIL"):
        assert_calibrated(lambda A, X: (bars(A, X)[0], 0.1), A, form=A, **options)


def test_frozen_values_do_not_pass_for_a_matrix_without_scatter():
    with pytest.raises(AssertionError, match="FAIL"):
        assert_calibrated(lambda A, X: (A.trace(), 0.0), SMALL, num_probes=3, form=SMALL)


def test_error_bars_of_zero_are_a_failure():
    with pytest.raises(AssertionError, match=r"E\[se²\] = 0 .* have no ratio"):
        assert_calibrated(lambda A, X: bars(A, X, factor=0.0), LARGE)


def test_a_form_leaves_no_margin_where_the_ratio_is_exact():
    """Ratio 1.1, margin 0.2: allowed to an estimator of no known form only."""
    options = {"num_probes": 3}
    assert assert_calibrated(lambda A, X: bars(A, X, factor=1.1**0.5), SMALL, **options)
    with pytest.raises(AssertionError, match="FAIL D2"):
        assert_calibrated(lambda A, X: bars(A, X, factor=1.1**0.5), SMALL, form=SMALL, **options)
    assert assert_calibrated(bars, SMALL, form=SMALL, **options).margin < 1e-8


def test_float32_that_hides_the_scatter_does_not_pass():
    A = SMALL.float() + 3e4 * torch.eye(4)
    with pytest.raises(AssertionError, match=r"INCONCLUSIVE|FAIL"):
        assert_calibrated(bars, A, num_probes=3)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.parametrize("options", [{}, {"replicates": 1500}], ids=["exact", "replicates"])
def test_error_bars_are_judged_alike_at_every_scale(scale, options):
    A = scale * SMALL

    def scaled(A, X, factor=1.0):
        mean, error = bars(A / scale, X, factor=factor)
        return mean * scale, error * scale

    assert assert_calibrated(scaled, A, num_probes=3, form=A, **options).verdict == "PASS"
    with pytest.raises(AssertionError, match="FAIL"):
        assert_calibrated(lambda A, X: scaled(A, X, 2.0), A, num_probes=3, form=A, **options)


def test_infinite_error_bars_and_single_replicates_are_refused():
    with pytest.raises(AssertionError, match="the error bar is inf"):
        assert_calibrated(lambda A, X: (X.sum(), float("inf")), SMALL, num_probes=3)
    with pytest.raises(ValueError, match="two of them or more"):
        assert_calibrated(bars, SMALL, replicates=1)
