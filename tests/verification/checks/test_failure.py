"""D11: failures that are averaged away, floored or swallowed are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specbp import EstimationError, Status
from specbp.estimate import from_samples
from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, PASS
from verification.checks import failure
from verification.checks.failure import NaNProducts
from verification.checks.settings import Settings
from verification.subjects import from_method

QR, EIGENVALUES, SLQ, CHEBYSHEV, TAYLOR, ALGORITHM1, TRACE = (
    from_method(METHODS[name])
    for name in ("qr", "eigenvalues", "slq", "chebyshev", "taylor", "algorithm1", "hutchinson")
)


def verdicts(claim, subject):
    return [check.verdict for check in claim(subject, Settings())]


def then(change, subject):
    def estimate(*arguments, **config):
        return change(subject.estimate(*arguments, **config))

    return replace(subject, estimate=estimate)


def ignoring(found):
    """Failed probes are left out of the mean."""
    return from_samples(found.samples.nan_to_num(0.0), num_matvecs=found.num_matvecs)


def of_finite(found):
    return replace(found, value=found.samples.nanmean(-1), status=torch.zeros_like(found.status))


def unmarked(found):
    return replace(found, status=torch.zeros_like(found.status))


def as_zero(found):
    return replace(found, value=found.value.nan_to_num(nan=0.0, neginf=0.0))


def raising(error):
    def change(found):
        if not bool(found.ok.all()):
            raise error
        return found

    return change


FAULTS = {
    "NaN left out": (failure.spoiled, then(ignoring, CHEBYSHEV)),
    "NaN mean": (failure.spoiled, then(of_finite, CHEBYSHEV)),
    "NaN without a status": (failure.spoiled, then(unmarked, CHEBYSHEV)),
    "NaN as zero, exact": (failure.spoiled, then(as_zero, QR)),
    "indefinite as zero": (failure.indefinite, then(as_zero, SLQ)),
    "indefinite floored": (failure.indefinite, then(as_zero, EIGENVALUES)),
    "singular as zero": (failure.singular, then(as_zero, QR)),
    "singular without a status": (failure.singular, then(unmarked, SLQ)),
    "bias without a warning": (failure.singular, then(unmarked, ALGORITHM1)),
    "an error that names nothing": (failure.indefinite, then(raising(ValueError("oops")), SLQ)),
    "a bug": (failure.indefinite, then(raising(KeyError("definite")), SLQ)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_silent_failures_are_seen(fault):
    claim, wrong = FAULTS[fault]
    right = next(s for s in (QR, EIGENVALUES, SLQ, CHEBYSHEV, ALGORITHM1) if s.name == wrong.name)
    assert verdicts(claim, right) == [PASS]
    assert verdicts(claim, wrong) == [FAIL]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("A is not positive definite."),
        EstimationError("1 of 1 estimates failed (NEGATIVE_RITZ): A is indefinite."),
        torch.linalg.LinAlgError("the leading minor is not positive-definite"),
    ],
)
def test_an_error_that_names_the_problem_is_a_report(error):
    assert verdicts(failure.indefinite, then(raising(error), SLQ)) == [PASS]


def test_the_silent_case_is_shown():
    (check,) = failure.indefinite(FAULTS["indefinite as zero"][1], Settings())
    assert check.message == "easy: value 0"


def test_claims_that_a_method_does_not_make_are_not_judged():
    assert verdicts(failure.indefinite, QR) == []  # JᵀJ is never indefinite
    assert verdicts(failure.indefinite, TRACE) == []  # an indefinite matrix has a trace
    assert verdicts(failure.singular, TAYLOR) == []  # an upper end is all it claims
    few = replace(SLQ, config={"num_steps": 5})  # need not see the smallest eigenvalue
    assert verdicts(failure.singular, few) == []


def test_good_news_is_no_warning():
    def closed(found):
        status = torch.full_like(found.status, int(Status.INVARIANT_SUBSPACE))
        return replace(found, value=torch.zeros_like(found.value), status=status)

    assert verdicts(failure.singular, then(closed, SLQ)) == [FAIL]


def test_products_with_one_direction_only_are_nan():
    A = torch.eye(3, dtype=torch.float64)
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    X = torch.stack([x, -2 * x, x.roll(1)], -1)
    operator = NaNProducts(A, x)
    assert not bool(torch.isnan(operator @ X[:, 2:]).any())
    assert not operator.met
    assert torch.isnan(operator @ X).all(0).tolist() == [True, True, False]
    assert operator.met
