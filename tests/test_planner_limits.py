"""logdet to an asked error where operators or arguments are not what they should be."""

from __future__ import annotations

import math

import pytest
import torch

from specbp.estimate import Status
from specbp.planner import logdet
from tests.planner_support import Implicit, ImplicitFactor, ask, well
from tests.support import f64, flags, geometric, normal, spd

NOISE = torch.Generator().manual_seed(3)


def test_an_identity_needs_no_luck():
    found = ask(Implicit(torch.eye(200, dtype=f64)), rtol=0.01, max_bytes=10**5)
    assert abs(float(found.value)) < 1e-8
    assert found.plan.met


def test_repeated_eigenvalues_close_the_space_early():
    values = torch.cat([torch.full((150,), 2.0), torch.full((150,), 0.5)]).to(f64)
    found = ask(Implicit(spd(values)), atol=40.0, max_bytes=10**5)
    assert found.plan.met
    assert abs(float(found.value)) <= 40.0


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(
    ("worst", "status"), [(-1.0, Status.NEGATIVE_RITZ), (0.0, Status.SINGULAR)]
)
def test_indefinite_and_singular_operators_are_statuses(dense, worst, status):
    values = geometric(60, 10.0)
    values[-1] = worst
    A = torch.diag(values)
    found = ask(A if dense else Implicit(A), atol=1e-3)
    # Rounding decides the sign of the last pivot of a singular matrix.
    assert flags(found) & (status | Status.NEGATIVE_RITZ)
    assert not found.plan.met
    assert not math.isfinite(float(found.value))


def test_a_rank_deficient_factor_is_singular():
    J = normal(40, 10)
    J[:, 3] = J[:, 4]
    found = ask(J, rtol=0.1)
    assert float(found.value) == -math.inf
    assert flags(found) & Status.SINGULAR
    assert not found.plan.met


@pytest.mark.parametrize("budget", [60, None])
def test_a_product_of_nan_is_never_a_number(budget):
    A = well(300)
    A[5, 5] = math.nan
    found = ask(Implicit(A), rtol=0.1, budget=budget, max_bytes=10**5)
    assert math.isnan(float(found.value))
    assert flags(found) & Status.NONFINITE
    assert not found.plan.met


def test_a_random_operator_is_told():
    class Random(Implicit):
        def __matmul__(self, X):
            return self.matrix @ X + 0.1 * torch.randn(X.shape, generator=NOISE, dtype=X.dtype)

    found = ask(Random(well(300)), rtol=0.1, budget=100)
    assert flags(found) & (Status.NONSYMMETRIC | Status.NEGATIVE_RITZ)
    assert not found.plan.met


@pytest.mark.parametrize("budget", [None, 60])
def test_a_wide_factor_is_refused(budget):
    with pytest.raises(ValueError, match="fewer rows than columns"):
        ask(ImplicitFactor(normal(5, 8)), rtol=0.1, budget=budget)


@pytest.mark.parametrize("options", [{"atol": -1.0}, {"atol": 1.0, "rtol": 0.1}])
def test_one_error_is_asked(options):
    with pytest.raises(ValueError, match="Ask for one error"):
        ask(well(5), **options)


def test_confidence_is_checked():
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        ask(well(5), confidence=95)


def test_a_generator_is_required():
    with pytest.raises(TypeError, match="generator"):
        logdet(well(5))
