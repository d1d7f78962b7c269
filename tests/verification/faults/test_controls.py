"""The controls are right: against oracles per probe, by enumeration, and in their gradients."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from specbp import exact, generator_for
from verification.checks.problems import problem
from verification.faults import CONTROLS
from verification.faults.controls import LANCZOS, SCALED_CHEBYSHEV, SOLVED
from verification.faults.joint import HUTCH_PP, RESPHERED, XTRACE
from verification.faults.roulette import CONTROL, degrees_of, reached

PER_PROBE = [s for s in CONTROLS.values() if s.claims.additive and s.claims.expectation != "exact"]
TRIPLES = list(itertools.product(range(16), repeat=3))


@pytest.mark.parametrize("subject", PER_PROBE, ids=lambda s: s.name)
@pytest.mark.parametrize("spectrum", ["cond 1e2", "cond 1e6", "spike", "clusters"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_each_probe_agrees_with_the_oracle(subject, spectrum, dtype):
    view = problem(spectrum, 20, dtype).views[subject.on]
    X = subject.draw(20, 5, generator=generator_for("control", subject.name))
    found = subject.call(view, X)
    error = np.abs(found.samples.detach().numpy() - subject.oracle(view, X)).max()
    assert error <= subject.rounding(view)
    claimed = subject.claims.matvecs(20, 5, subject.configured(20))
    assert found.num_matvecs == claimed or math.isnan(claimed)


@pytest.mark.parametrize("subject", [HUTCH_PP, XTRACE], ids=lambda s: s.name)
def test_joint_estimators_are_unbiased_over_all_triples_of_sign_vectors(subject):
    view = problem("cond 1e2", 5).views["A"]
    X = torch.from_numpy(exact.all_signs(5)[np.array(TRIPLES)]).mT
    found = subject.call(view, X).value
    assert float(found.mean()) == pytest.approx(subject.expected(view), rel=1e-13)
    assert float(found.std()) > 0.01


def test_resphered_xtrace_is_unbiased_on_the_sphere():
    view = problem("cond 1e2", 12).views["A"]
    X = RESPHERED.draw(12, 4, generator=generator_for("sphere"), batch_shape=(4000,))
    found = RESPHERED.call(view, X).value
    error = float(found.std()) / 4000**0.5
    assert abs(float(found.mean()) - RESPHERED.expected(view)) < 4 * error
    assert error < 0.01


def test_trace_of_few_dimensions_is_exact():
    """With as many probes as dimensions nothing is left to the residual."""
    view = problem("cond 1e2", 5).views["A"]
    for subject in (HUTCH_PP, XTRACE, RESPHERED):
        X = subject.draw(5, 20, generator=generator_for("few"))
        found = float(subject.call(view, X).value)
        assert found == pytest.approx(subject.expected(view), rel=1e-12)


def test_all_degrees_and_signs_have_the_mean_of_the_longest_series():
    view = problem("cond 1e2", 10).views["A"]
    values, weights = CONTROL.outcomes(view)
    assert float(weights.sum()) == pytest.approx(1, rel=1e-13)
    assert float(values @ weights) == pytest.approx(CONTROL.expected(view), rel=1e-13)


def test_degrees_follow_their_law_and_ignore_the_sign():
    X = CONTROL.draw(64, 20000, generator=generator_for("degrees"))
    degrees = degrees_of(X)
    assert torch.equal(degrees, degrees_of(-X))
    for k in range(1, 13):
        share = float((degrees >= k).double().mean())
        p = float(reached(torch.tensor(float(k))))
        assert abs(share - p) <= 4 * (p * (1 - p) / 20000) ** 0.5


def gradient(subject, view, X, dA):
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = subject.bound(view)(view.operator + t * dA, X).value
    return float(torch.autograd.grad(value, t)[0])


def test_gradient_of_scaled_chebyshev_is_that_of_its_value():
    view = problem("cond 1e2", 20).views["A"]
    generator = generator_for("gradient")
    X = SCALED_CHEBYSHEV.draw(20, 3, generator=generator)
    G = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    dA, h = G + G.mT, 1e-6
    estimate = SCALED_CHEBYSHEV.bound(view)
    up, down = (estimate(view.operator + s * h * dA, X).value for s in (1, -1))
    found = gradient(SCALED_CHEBYSHEV, view, X, dA)
    assert found == pytest.approx(float(up - down) / (2 * h), rel=1e-6)


def test_gradient_by_a_solve_is_the_form_of_the_inverse():
    view = problem("cond 1e4", 20).views["A"]
    X = SOLVED.draw(20, 1, generator=generator_for("solve"))
    dA = torch.diag(torch.linspace(1, 2, 20, dtype=torch.float64))
    expected = X.mT @ torch.linalg.solve(view.operator, dA @ X)
    assert gradient(SOLVED, view, X, dA) == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize("subject", [LANCZOS, SOLVED, SCALED_CHEBYSHEV], ids=lambda s: s.name)
def test_failures_are_reported(subject):
    view = problem("cond 1e2", 10).views["A"]
    X = subject.draw(10, 2, generator=generator_for("failure"))
    indefinite = view.operator - 0.5 * torch.eye(10, dtype=torch.float64)
    for operator in (indefinite, view.operator * torch.nan):
        found = subject.bound(view)(operator, X)
        assert torch.isnan(found.value)
        assert not found.ok
