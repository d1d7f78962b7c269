"""D1–D4, D7, D10: each finds the fault that it is there for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from specbp import exact, gaussian, hutchinson_trace
from specbp.methods import METHODS, Claims
from specbp.testing.outcome import FAIL, PASS
from verification.checks import exactness
from verification.checks.settings import Settings
from verification.subjects import Subject, from_method

CHEBYSHEV, TAYLOR, SLQ, QR, ALGORITHM1 = (
    from_method(METHODS[name]) for name in ("chebyshev", "taylor", "slq", "qr", "algorithm1")
)
SMALL = Settings(probe_ns=(10,))


def verdicts(claim, subject, settings=SMALL):
    return [check.verdict for check in claim(subject, settings)]


def shifted(subject, amount):
    """Every value is off by the same number of nats."""

    def estimate(*arguments, **config):
        found = subject.estimate(*arguments, **config)
        return replace(
            found,
            value=found.value + amount,
            samples=found.samples + amount,
            lower=found.lower + amount,
            upper=found.upper + amount,
        )

    return replace(subject, estimate=estimate)


def changed(subject, **changes):
    """The estimator with other arguments than it was asked to use."""

    def estimate(*arguments, **config):
        return subject.estimate(*arguments, **config | changes)

    return replace(subject, estimate=estimate)


ONE_DEGREE_LESS = changed(CHEBYSHEV, degree=39)


@pytest.mark.parametrize(
    "claim",
    [
        exactness.probe,
        exactness.enumerated_mean,
        exactness.enumerated_sd,
        exactness.basis,
        exactness.array,
    ],
    ids=lambda claim: claim.name,
)
def test_one_degree_less_is_seen(claim):
    assert verdicts(claim, CHEBYSHEV) == [PASS]
    assert verdicts(claim, ONE_DEGREE_LESS) == [FAIL]


def test_single_precision_within_double_is_seen():
    def estimate(A, X, **config):
        return CHEBYSHEV.estimate(A.float(), X.float(), **config)

    assert verdicts(exactness.probe, replace(CHEBYSHEV, estimate=estimate)) == [FAIL]


def test_a_probe_is_named_with_its_matrix():
    (check,) = exactness.probe(shifted(CHEBYSHEV, 1e-6), SMALL)
    assert "n = 10, float" in check.message
    assert ", probe " in check.message
    assert "limit" in check.message


def test_fewer_steps_of_a_quadrature_are_seen():
    assert verdicts(exactness.probe, changed(SLQ, num_steps=9)) == [FAIL]
    assert verdicts(exactness.complete, changed(SLQ, num_steps=9)) == [FAIL]
    assert verdicts(exactness.enumerated_mean, changed(SLQ, num_steps=6)) == [FAIL]


def test_exact_values_are_compared_with_the_truth():
    assert verdicts(exactness.value, QR) == [PASS]
    assert verdicts(exactness.value, shifted(QR, 1e-9)) == [FAIL]
    assert verdicts(exactness.value, CHEBYSHEV) == []


def test_adaptive_truncation_is_bounded():
    assert verdicts(exactness.probe, ALGORITHM1) == [PASS]
    assert verdicts(exactness.probe, shifted(ALGORITHM1, 1e-6)) == [FAIL]


def test_nan_for_one_vector_of_all_fails_the_enumeration():
    def estimate(A, X, **config):
        found = CHEBYSHEV.estimate(A, X, **config)
        alternating = (X[..., 1:, :] * X[..., :-1, :] < 0).all(-2).all(-1)
        return replace(found, value=found.value.masked_fill(alternating, torch.nan))

    subject = replace(CHEBYSHEV, estimate=estimate)
    assert verdicts(exactness.enumerated_mean, subject) == [FAIL]
    assert verdicts(exactness.probe, subject) == [PASS]


def median(A, X):
    """Unbiased for one probe; of several the law is skewed, and so is this."""
    found = hutchinson_trace(A, X)
    return replace(found, value=found.samples.median(-1).values)


JOINT = Subject(
    name="joint",
    estimate=hutchinson_trace,
    on="A",
    estimand="trace",
    claims=Claims("tr A", matvecs=lambda _n, m, _c: m, additive=False),
    contract=lambda _view: np.asarray,
)


def test_joint_estimators_are_enumerated_jointly():
    assert verdicts(exactness.joint, JOINT) == [PASS]
    assert verdicts(exactness.joint, replace(JOINT, estimate=median)) == [FAIL]
    # The triples are those of independent signs: nothing is known here of other laws.
    assert verdicts(exactness.joint, replace(JOINT, sampler=gaussian, law="gaussian")) == []


def test_error_bars_that_are_too_small_are_seen():
    def estimate(*arguments, **config):
        found = CHEBYSHEV.estimate(*arguments, **config)
        m = found.samples.shape[-1]
        return replace(found, standard_error=found.standard_error * ((m - 1) / m) ** 0.5)

    assert verdicts(exactness.error_bars, CHEBYSHEV) == [PASS]
    assert verdicts(exactness.error_bars, replace(CHEBYSHEV, estimate=estimate)) == [FAIL]


def coin(total, bias=0.0):
    """All outcomes of an estimator that adds ±1 to the truth."""

    def outcomes(view):
        truth = float(exact.taylor_log(40, view.eigenvalues.max() * 1.01)(view.eigenvalues).sum())
        weights = torch.tensor([0.25, 0.75], dtype=torch.float64) * total
        return torch.tensor([truth + 3, truth - 1 + bias], dtype=torch.float64), weights

    return replace(TAYLOR, outcomes=outcomes)


def test_outcomes_of_own_draws_are_averaged():
    assert verdicts(exactness.outcomes, coin(1.0)) == [PASS]
    assert verdicts(exactness.outcomes, coin(1.0, bias=1e-6)) == [FAIL]
    assert verdicts(exactness.outcomes, coin(0.99)) == [FAIL]
    assert verdicts(exactness.probe, coin(1.0)) == []


def test_a_gauss_rule_below_the_form_is_seen():
    assert verdicts(exactness.above, SLQ) == [PASS]
    assert verdicts(exactness.above, shifted(SLQ, -1e-6)) == [FAIL]


@pytest.mark.parametrize(
    ("subject", "amount"), [(CHEBYSHEV, 1.0), (CHEBYSHEV, -1.0), (TAYLOR, -1.0)]
)
def test_a_bracket_beside_the_form_is_seen(subject, amount):
    assert verdicts(exactness.bracket, subject) == [PASS]
    # By more than the width of the bracket on the matrix where that has converged.
    assert verdicts(exactness.bracket, shifted(subject, amount)) == [FAIL]


def test_an_unknown_end_that_is_claimed_is_seen():
    def estimate(*arguments, **config):
        found = CHEBYSHEV.estimate(*arguments, **config)
        return replace(found, lower=torch.full_like(found.lower, -torch.inf))

    assert verdicts(exactness.bracket, replace(CHEBYSHEV, estimate=estimate)) == [FAIL]
