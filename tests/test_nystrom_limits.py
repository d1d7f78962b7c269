"""Limits of the Nyström estimator: poor sketches, hard matrices, failures, bad input."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from specbp.estimate import Status
from specbp.logdets import slq_logdet
from specbp.nystrom import nystrom_logdet, nystrom_preconditioner
from tests.support import f32, f64, flags, log_forms, naive_gauss, normal, signs, spd


def decaying(n=40, noise=0.05):
    """K + noise: K falls from 100 by a factor of 3 each."""
    return spd(100.0 / 3.0 ** torch.arange(n, dtype=f64)) + noise * torch.eye(n, dtype=f64)


def sketch_status(A, S):
    return Status(int(nystrom_preconditioner(A, S.mT)[1]))


# Hard cases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [1, 2, 5])
def test_a_sketch_of_identical_probes_is_one_of_a_single_probe(s):
    A, x, X = decaying(), signs(40, 1), signs(40, 6, seed=8)
    one = nystrom_logdet(A, torch.cat([x, X], 1), num_sketch=1, num_steps=4)
    many = nystrom_logdet(A, torch.cat([x.repeat(1, s), X], 1), num_sketch=s, num_steps=4)
    torch.testing.assert_close(many.samples, one.samples, rtol=0, atol=1e-9)
    assert flags(many) == Status.OK


def test_a_sketch_of_zero_probes_is_no_preconditioner():
    A, X = decaying(), signs(40, 6)
    X[:, :2] = 0
    est = nystrom_logdet(A, X, num_sketch=2, num_steps=4)
    torch.testing.assert_close(est.samples, naive_gauss(A, X[:, 2:], 4), rtol=0, atol=1e-9)


def test_repeated_eigenvalues_close_the_space():
    A = torch.diag(torch.tensor([5.0] + [1.0] * 11, dtype=f64))
    est = nystrom_logdet(A, signs(12, 6), num_sketch=1, num_steps=6)
    assert float(est.value) == pytest.approx(float(log_forms(A, signs(12, 6)).mean()), abs=1e-9)
    assert flags(est) == Status.INVARIANT_SUBSPACE


def indefinite(n=20):
    A = torch.diag(torch.linspace(1, 2, n, dtype=f64))
    A[3, 3] = -1.5
    return A


def test_an_indefinite_matrix_is_found_by_the_quadrature():
    est = nystrom_logdet(indefinite(), signs(20, 6), num_sketch=2, num_steps=8)
    assert math.isnan(float(est.value))
    assert flags(est) & Status.NEGATIVE_RITZ


def test_an_indefinite_matrix_is_found_by_the_sketch():
    X = signs(20, 6)
    X[:, 0] = torch.eye(20, dtype=f64)[3]
    est = nystrom_logdet(indefinite(), X, num_sketch=1, num_steps=1)
    assert math.isnan(float(est.value))
    assert flags(est) & Status.NEGATIVE_RITZ
    assert sketch_status(indefinite(), X[:, :1]) == Status.NEGATIVE_RITZ


@pytest.mark.parametrize("dtype", [f32, f64])
def test_a_singular_matrix_has_log_det_minus_infinity(dtype):
    A = torch.diag(torch.tensor([1.0] * 7 + [0.0], dtype=dtype))
    est = nystrom_logdet(A, signs(8, 6, dtype=dtype), num_sketch=2, num_steps=4)
    assert float(est.value) == -math.inf
    assert flags(est) & Status.SINGULAR
    zero = nystrom_logdet(0 * A, signs(8, 6, dtype=dtype), num_sketch=2, num_steps=4)
    assert float(zero.value) == -math.inf


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_nan_in_a_product_is_nan_with_a_status(failing):
    """In the sketch, in the first step, in the second; the other item of the batch is sound."""
    A, calls = decaying(), []

    def multiply(self, X):
        calls.append(0)
        Y = A @ X
        if len(calls) == failing + 1:
            Y[0, 0, 0] = math.nan
        return Y

    kind = type("Failing", (SimpleNamespace,), {"__matmul__": multiply})
    operator = kind(shape=A.shape, dtype=f64, device=A.device)
    X = signs(2, 40, 6)
    est = nystrom_logdet(operator, X, num_sketch=2, num_steps=3)
    assert torch.isnan(est.value).tolist() == [True, False]
    assert Status(int(est.status[0])) & Status.NONFINITE
    sound = nystrom_logdet(A, X[1], num_sketch=2, num_steps=3)
    torch.testing.assert_close(est.value[1], sound.value)


def test_nan_in_a_probe_of_the_sketch_is_nan_with_a_status():
    X = signs(40, 6)
    X[0, 0] = math.nan
    est = nystrom_logdet(decaying(), X, num_sketch=2, num_steps=3)
    assert math.isnan(float(est.value))
    assert flags(est) & Status.NONFINITE


def test_a_matrix_that_is_not_symmetric_is_refused():
    A = decaying() + 0.1 * torch.triu(normal(40, 40))
    est = nystrom_logdet(A, signs(40, 8), num_sketch=3, num_steps=3)
    assert math.isnan(float(est.value))
    assert flags(est) & Status.NONSYMMETRIC
    assert sketch_status(A, signs(40, 3)) & Status.NONSYMMETRIC


def test_rounding_amplified_by_the_preconditioner_is_no_asymmetry():
    """float32, λ_max / c = 1e5: products err by eps |A|, which is 1e-2 of the whitened matrix."""
    A, X = decaying(noise=1e-3).to(f32), signs(40, 24, dtype=f32)
    for s in (4, 8, 14):
        est = nystrom_logdet(A, X, num_sketch=s, num_steps=10, shift=1e-3)
        assert flags(est) == Status.OK


def test_an_eigenvalue_that_rounding_hides_is_zero_as_it_is_for_plain_quadrature():
    """float32: 1e-5 is below 4 eps |A|, although it is 1e-3 of the whitened matrix."""
    values = torch.tensor([100.0, 30.0] + [0.02] * 8 + [0.01] * 9 + [1e-5], dtype=f64)
    A, X = torch.diag(values).to(f32), signs(20, 12, dtype=f32)
    for est in (
        nystrom_logdet(A, X, num_sketch=4, num_steps=10),
        slq_logdet(A, X, num_steps=10),
    ):
        assert flags(est) & Status.SINGULAR
        assert float(est.value) == -math.inf


def test_one_probe_beyond_the_sketch_has_no_standard_error():
    est = nystrom_logdet(decaying(), signs(40, 4), num_sketch=3, num_steps=3)
    assert math.isnan(float(est.standard_error))
    assert math.isfinite(float(est.value))


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_sketch": 0}, "num_sketch must be between 1 and m - 1 = 5"),
        ({"num_sketch": 6}, "num_sketch must be between 1 and m - 1 = 5"),
        ({"num_steps": 0}, "num_steps must be between 1 and n = 40"),
        ({"num_steps": 41}, "num_steps must be between 1 and n = 40"),
        ({"shift": 0.0}, "shift must be a positive"),
        ({"shift": math.nan}, "shift must be a positive"),
        ({"shift": torch.ones(3)}, "shift has shape"),
        ({"lower": -1.0}, "lower must be a positive"),
    ],
)
def test_arguments_out_of_range_are_refused(change, match):
    config = {"num_sketch": 2, "num_steps": 3, **change}
    with pytest.raises(ValueError, match=match):
        nystrom_logdet(decaying(), signs(40, 6), **config)


def test_probes_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="float32"):
        nystrom_logdet(decaying(), signs(40, 6, dtype=f32), num_sketch=2, num_steps=3)
    with pytest.raises(ValueError, match="n = 40"):
        nystrom_logdet(decaying(), signs(39, 6), num_sketch=2, num_steps=3)
    with pytest.raises(ValueError, match="square"):
        nystrom_logdet(normal(5, 4), signs(4, 6), num_sketch=2, num_steps=3)
