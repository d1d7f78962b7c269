"""Means and variances in one line where numbers are hard: float32, huge, tiny, constant."""

from __future__ import annotations

import pytest
import torch

from specbp.testing.assertions import assert_unbiased, assert_variance
from tests.support import geometric, normal, spd

SMALL, LARGE = spd(geometric(6, 10.0)), spd(geometric(16, 10.0))


def plain(c: float):
    return lambda A, X: c * (X * (A @ X)).sum() / X.shape[-1]


@pytest.mark.parametrize("options", [{}, {"form": True}], ids=["t", "basis"])
def test_ten_percent_of_bias_are_seen_in_float32_at_n_1000(options):
    A = spd(geometric(1000, 10.0))
    options = {"form": A} if options else {}
    trace = float(A.trace())
    assert assert_unbiased(plain(1.0), A.float(), trace, **options).verdict == "PASS"
    with pytest.raises(AssertionError, match="FAIL"):
        assert_unbiased(plain(1.1), A.float(), trace, **options)


def test_float32_does_not_hide_a_variance():
    B = spd(geometric(64, 10.0))
    shifted = B.float() + 100 * torch.eye(64)
    assert assert_variance(plain(1.0), shifted, B).verdict == "PASS"
    for wrong in (plain(3.0), lambda A, X: A.trace()):
        with pytest.raises(AssertionError, match="FAIL D4 variance"):
            assert_variance(wrong, shifted, B)
    lost = B.float() + 1e4 * torch.eye(64)
    with pytest.raises(AssertionError, match=r"(?s)INCONCLUSIVE D4 variance.*use float64"):
        assert_variance(lambda A, X: A.trace(), lost, B)


def test_float32_that_hides_the_margin_of_a_mean_does_not_pass():
    B = spd(geometric(10, 10.0))
    A = B.float() + 3e4 * torch.eye(10)
    with pytest.raises(AssertionError, match=r"(?s)INCONCLUSIVE D2 mean.*use float64"):
        assert_unbiased(plain(1.0), A, float(A.double().trace()))


def test_a_tolerance_holds_for_replicates_too():
    """A bias of 0.9 tolerances is some twelve standard errors from zero, and allowed."""
    trace = float(LARGE.trace())
    options = {"tolerance": 0.05 * trace, "replicates": 4000}
    for share, passes in [(0.045, True), (0.1, False)]:

        def shifted(A, X, shift=share * trace):
            return plain(1.0)(A, X) + shift

        if passes:
            assert assert_unbiased(shifted, LARGE, trace, **options).verdict == "PASS"
        else:
            with pytest.raises(AssertionError, match="FAIL S1 mean"):
                assert_unbiased(shifted, LARGE, trace, **options)


SCALES = [1e-290, 1e-160, 1e-150, 1e100, 1e160, 1e300]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "options", [{}, {"replicates": 700}, {"replicates": 700, "form": True}], ids=str
)
def test_a_mean_is_judged_alike_at_every_scale(scale, options):
    A = scale * SMALL
    options = options | ({"form": A} if "form" in options else {})
    trace = float(A.trace())
    check = assert_unbiased(plain(1.0), A, trace, **options)
    assert "values in units of" in check.message
    with pytest.raises(AssertionError, match="FAIL"):
        assert_unbiased(plain(2.0), A, trace, **options)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("m", [1, 4])
def test_a_variance_is_judged_alike_at_every_scale(scale, m):
    A = scale * SMALL
    assert assert_variance(plain(1.0), A, A, num_probes=m).verdict == "PASS"
    for wrong in (plain(2.0), lambda A, X: 0.0):
        with pytest.raises(AssertionError, match="FAIL"):
            assert_variance(wrong, A, A, num_probes=m)


def test_values_out_of_proportion_to_the_form_fail():
    with pytest.raises(AssertionError, match="out of proportion to the form"):
        assert_variance(plain(1e200), SMALL, SMALL)


def test_two_values_of_a_law_have_their_variance():
    """n = 2: xᵀAx takes two values, and its squares about the mean are constant."""
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    assert assert_variance(plain(1.0), A, A, replicates=300).verdict == "PASS"
    with pytest.raises(AssertionError, match="FAIL S2 variance"):
        assert_variance(plain(1.2), A, A, replicates=300)


def test_a_form_without_variance_but_for_rounding_is_a_constant():
    Q = torch.linalg.qr(normal(8, 8)).Q
    noisy = 3 * Q @ Q.mT
    check = assert_variance(plain(1.0), noisy, noisy, num_probes=5, replicates=400)
    assert (check.verdict, check.p) == ("PASS", None)


@pytest.mark.parametrize("replicates", [0, 1])
def test_a_scatter_needs_two_replicates(replicates):
    with pytest.raises(ValueError, match="two of them or more"):
        assert_unbiased(plain(1.0), SMALL, 1.0, replicates=replicates)
    with pytest.raises(ValueError, match="two of them or more"):
        assert_variance(plain(1.0), SMALL, SMALL, replicates=replicates)
