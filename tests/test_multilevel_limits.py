"""Limits of multilevel quadrature: hard matrices, failures of single levels, bad input."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from specbp.estimate import Status
from specbp.logdets import slq_logdet
from specbp.multilevel import (
    allocate,
    level_deviations,
    multilevel_golub_kahan_logdet,
    multilevel_logdet,
    nystrom_multilevel_logdet,
)
from tests.support import f32, f64, factor, flags, geometric, normal, signs

LEVELS = ((2, 6), (5, 3), (9, 2))
BOTH = pytest.mark.parametrize("on", ["A", "J"])


def case():
    J = factor(geometric(16, 1e3**0.5), 20)
    A = J.mT @ J
    return (A + A.mT) / 2, J, signs(16, 11, seed=50)


def estimate(on, A, J, X, levels=LEVELS):
    if on == "J":
        return multilevel_golub_kahan_logdet(J, X, levels=levels)
    return multilevel_logdet(A, X, levels=levels)


# Hard cases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", range(16))
def test_nan_in_any_product_is_nan_with_a_status(call):
    """2 + 5 + 9 products with blocks; the other item of the batch is sound."""
    A, calls = case()[0], []

    def multiply(self, X):
        calls.append(0)
        Y = A @ X
        if len(calls) == call + 1:
            Y[0, 0, 0] = math.nan
        return Y

    kind = type("Failing", (SimpleNamespace,), {"__matmul__": multiply})
    X = signs(2, 16, 11)
    operator = kind(shape=A.shape, dtype=f64, device=A.device)
    est = multilevel_logdet(operator, X, levels=LEVELS)
    assert torch.isnan(est.value).tolist() == [True, False]
    assert torch.isnan(est.standard_error).tolist() == [True, False]
    assert Status(int(est.status[0])) & Status.NONFINITE
    assert float(est.upper[0]) == math.inf


def test_an_indefinite_matrix_is_nan_although_the_first_level_does_not_see_it():
    A = torch.diag(torch.linspace(1, 2, 16, dtype=f64))
    A[3, 3] = -1.0
    est = multilevel_logdet(A, signs(16, 11), levels=LEVELS)
    assert bool(slq_logdet(A, signs(16, 11), num_steps=1).ok)
    assert math.isnan(float(est.value))
    assert math.isnan(float(est.standard_error))
    assert flags(est) & Status.NEGATIVE_RITZ


@BOTH
def test_a_singular_matrix_has_log_det_minus_infinity(on):
    A = torch.diag(torch.tensor([1.0] * 15 + [0.0], dtype=f64))
    for scale in (1.0, 0.0):
        est = estimate(on, scale * A, scale * A, signs(16, 11))
        assert float(est.value) == -math.inf
        assert flags(est) & Status.SINGULAR


def test_a_matrix_that_is_not_symmetric_is_refused():
    est = multilevel_logdet(
        case()[0] + 1e-6 * torch.triu(normal(16, 16)), signs(16, 11), levels=LEVELS
    )
    assert math.isnan(float(est.value))
    assert math.isnan(float(est.standard_error))
    assert flags(est) == Status.NONSYMMETRIC


# With a sketch ------------------------------------------------------------------------------------


def test_what_the_sketch_proves_fails_the_estimate():
    """One step on the other probes, whose quotients are positive, sees nothing of it."""
    A, X = torch.eye(16, dtype=f64), signs(16, 13)
    A[3, 3] = -1.5
    for row, flag in ((torch.eye(16)[3], Status.NEGATIVE_RITZ), (math.nan, Status.NONFINITE)):
        X[:, 0] = row
        est = nystrom_multilevel_logdet(A, X, num_sketch=1, levels=((1, 12),))
        assert math.isnan(float(est.value))
        assert math.isnan(float(est.standard_error))
        assert flags(est) == flag


def test_sketches_that_do_not_fit_are_refused():
    A, _, X = case()
    with pytest.raises(ValueError, match="m = 9 in all"):
        nystrom_multilevel_logdet(A, X, num_sketch=2, levels=LEVELS)
    with pytest.raises(ValueError, match="num_sketch must be between 1 and"):
        nystrom_multilevel_logdet(A, X, num_sketch=0, levels=LEVELS)
    with pytest.raises(ValueError, match="shift must be a positive"):
        nystrom_multilevel_logdet(A, X, num_sketch=2, levels=((2, 9),), shift=-1.0)


# Bad input ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("levels", "match"),
    [
        ((), "At least one level"),
        (((2, 6), (5, 4)), r"m = 11 in all, got \[6, 4\]: pass 10 probes"),
        (((2, 11), (5, 0)), "at least 1 probe each"),
        (((5, 6), (5, 5)), r"must ascend, got \[5, 5\]"),
        (((5, 6), (2, 5)), r"must ascend, got \[5, 2\]"),
        (((0, 6), (2, 5)), "steps of a level must be between 1 and n = 16"),
        (((2, 6), (17, 5)), "steps of a level must be between 1 and n = 16"),
    ],
)
def test_levels_that_do_not_fit_are_refused(on, levels, match):
    with pytest.raises(ValueError, match=match):
        estimate(on, *case(), levels)


def test_operators_and_probes_that_do_not_fit_are_refused():
    A, J, X = case()
    with pytest.raises(ValueError, match="square"):
        multilevel_logdet(J, X, levels=LEVELS)
    with pytest.raises(ValueError, match="fewer rows than columns"):
        multilevel_golub_kahan_logdet(J.mT, signs(20, 11), levels=LEVELS)
    for on in ("A", "J"):
        with pytest.raises(TypeError, match="float32"):
            estimate(on, A, J, X.to(f32))
        with pytest.raises(ValueError, match="n = 16"):
            estimate(on, A, J, X[1:])


@pytest.mark.parametrize(
    ("sigma", "steps", "budget", "match"),
    [
        ([1.0], (2, 5), 100, "got 1 for 2 levels"),
        ([], (), 100, "got 0 for 0 levels"),
        ([1.0, -1.0], (2, 5), 100, "not negative"),
        ([1.0, math.nan], (2, 5), 100, "finite"),
        ([1.0, 1.0], (2, 5), 13, "cost 14 products, the budget is 13"),
    ],
)
def test_allocations_that_do_not_fit_are_refused(sigma, steps, budget, match):
    with pytest.raises(ValueError, match=match):
        allocate(sigma, steps, budget)


def test_pilots_that_do_not_fit_are_refused():
    A, _, X = case()
    with pytest.raises(ValueError, match="at least 2 pilot probes"):
        level_deviations(A, X[:, :1], steps=(2, 5))
    with pytest.raises(ValueError, match="must ascend"):
        level_deviations(A, X, steps=(5, 2))
