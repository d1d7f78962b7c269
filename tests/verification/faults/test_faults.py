"""Every fault is wrong by a visible amount, seen by direct computation on a small matrix."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from specbp import exact, generator_for
from specbp.operators import CountingOperator
from verification.checks.problems import multiple_of_identity, problem
from verification.faults import CONTROLS, FAULTS

N = 20
TRIPLES = list(itertools.product(range(16), repeat=3))


def pair(id, spectrum="cond 1e2", n=N):
    fault = FAULTS[id]
    view = problem(spectrum, n).views[fault.subject.on]
    return fault.subject, CONTROLS[fault.control], view


def probes(control, n=N, m=6):
    return control.draw(n, m, generator=generator_for("faults", control.name))


def both(id, **place):
    """What the fault and its control make of the same probes."""
    wrong, right, view = pair(id, **place)
    X = probes(right, n=view.operator.shape[-1])
    return wrong.call(view, X), right.call(view, X), view


@pytest.mark.parametrize(
    ("id", "least"),
    [
        ("f2", 1),
        ("f3", 1),
        ("f4a", 1e-3),
        ("f4b", 1e-3),
        ("f20", 1e-3),
        ("f22", 1e-8),
        ("f6", 1e-7),
        ("f16", 1e-3),
        ("lost-sign", 1),
        ("series-off-by-one", 1),
        ("surrogate-value", 1),
    ],
)
def test_values_are_wrong(id, least):
    found, control, view = both(id)
    error = float((found.samples - control.samples).abs().max())
    assert error > max(least, 100 * FAULTS[id].subject.rounding(view))


def test_random_degree_is_biased():
    wrong, _, view = pair("f13", n=10)
    values, weights = wrong.outcomes(view)
    assert float(values @ weights) < 1.1 * wrong.expected(view) < 0
    found, control, _ = both("f13")
    assert not torch.allclose(found.value, control.value)


@pytest.mark.parametrize(("id", "low", "high"), [("f14", 0.05, 0.5), ("f15", 1e-3, 1e-2)])
def test_joint_estimators_are_biased_over_all_triples(id, low, high):
    wrong, _, view = pair(id, n=5)
    X = torch.from_numpy(exact.all_signs(5)[np.array(TRIPLES)]).mT
    error = float(wrong.call(view, X).value.mean()) / wrong.expected(view) - 1
    assert low < abs(error) < high


def test_leave_one_out_error_bar_is_too_short():
    wrong, right, view = pair("xtrace-error-bar", n=5)
    X = torch.from_numpy(exact.all_signs(5)[np.array(TRIPLES)]).mT
    found = wrong.call(view, X)
    ratio = float(found.standard_error.square().mean() / found.value.var(correction=0))
    assert ratio < 0.8
    assert torch.isnan(right.call(view, X).standard_error).all()


def test_triangular_factor_fails_on_equal_probes():
    wrong, right, view = pair("xtrace-inverse")
    X = probes(right)
    torch.testing.assert_close(wrong.call(view, X).value, right.call(view, X).value)
    X[:, 1] = -X[:, 0]
    # Of the identity the image of the probes is their signs: their last pivot is exactly zero.
    view = multiple_of_identity(N, 1.0).views["A"]
    assert torch.isnan(wrong.call(view, X).value)
    assert torch.isfinite(right.call(view, X).value)


def test_products_are_more_than_declared():
    wrong, right, view = pair("undeclared-products")
    counter = CountingOperator(view.operator)
    found = wrong.estimate(counter, probes(right))
    assert (found.num_matvecs, counter.num_matvecs) == (12, 18)


def gradient(subject, view, X):
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    G = torch.randn(N, N, generator=generator_for("direction"), dtype=torch.float64)
    value = subject.bound(view)(view.operator + t * (G + G.mT), X).value
    return float(torch.autograd.grad(value, t)[0]) if value.requires_grad else None


@pytest.mark.parametrize(
    ("id", "least"),
    [
        ("f7", 9e-3),
        ("f8a", 1e-3),
        ("f8b", 0.1),
        ("f8c", 1e-4),
        ("f18", 0.01),
        ("wrong-f-gradient", 0.1),
        ("loose-cg", 1e-3),
    ],
)
def test_gradients_are_wrong_and_values_right(id, least):
    wrong, right, view = pair(id)
    X = probes(right)
    torch.testing.assert_close(wrong.call(view, X).value, right.call(view, X).value)
    error = gradient(wrong, view, X) / gradient(right, view, X) - 1
    assert abs(error) > least


def test_gradient_of_the_first_probe_is_all_there_is():
    wrong, right, view = pair("f18")
    X = probes(right)
    assert gradient(wrong, view, X) == pytest.approx(gradient(right, view, X[:, :1]))


def test_detached_value_has_no_gradient():
    wrong, right, view = pair("detached-gradient")
    assert gradient(wrong, view, probes(right)) is None


def test_gradient_of_the_surrogate_is_right():
    wrong, right, view = pair("surrogate-value")
    X = probes(right)
    assert gradient(wrong, view, X) == pytest.approx(gradient(right, view, X))


@pytest.mark.parametrize("id", ["ritz-floor", "singular-gram"])
def test_singular_matrices_get_a_confident_number(id):
    wrong, right, view = pair(id)
    singular = view.operator.clone()
    if wrong.on == "J":
        singular[:, 1] = singular[:, 0]
    else:
        lam, V = torch.linalg.eigh(singular)
        singular = (V[:, 1:] * lam[1:]) @ V[:, 1:].mT
    X = probes(right)
    torch.testing.assert_close(wrong.call(view, X).value, right.call(view, X).value)
    found = wrong.bound(view)(singular, X)
    assert torch.isfinite(found.value)
    assert bool(found.ok)
    assert not bool(right.bound(view)(singular, X).ok)


def test_failed_probe_counts_as_zero():
    wrong, right, view = pair("failed-as-zero")
    X = probes(right)
    X[:, 0] = torch.nan
    found = wrong.call(view, X)
    assert float(found.value) == pytest.approx(float(found.samples[1:].sum()) / 6)
    assert not bool(right.call(view, X).ok)


@pytest.mark.parametrize(
    ("id", "ratio"), [("f9", (5 / 6) ** 0.5), ("sem-over-m", 6**-0.5), ("sum-for-mean", 6)]
)
def test_error_bars_are_off_by_a_factor(id, ratio):
    found, control, _ = both(id)
    assert float(found.standard_error / control.standard_error) == pytest.approx(ratio)
    changed = float(found.value / control.value)
    assert changed == pytest.approx(6 if id == "sum-for-mean" else 1)


def test_last_probe_is_not_used():
    wrong, right, view = pair("f19")
    X = probes(right)
    torch.testing.assert_close(wrong.call(view, X).value, right.call(view, X[:, :-1]).value)


def test_extremes_are_trimmed():
    found, control, _ = both("outlier-trimming")
    middle = control.samples.sort().values[1:-1]
    assert float(found.value) == pytest.approx(float(middle.mean()))
    assert float(found.standard_error) < float(control.standard_error)


def test_stopping_rules_leave_probes_out():
    found, control, _ = both("signed-tolerance")
    # Every log-determinant here is negative, so that the first change is the last.
    assert float(found.value) == pytest.approx(float(control.samples[:2].mean()))
    wrong, right, view = pair("peeking-stop")
    X = right.draw(N, 8, generator=generator_for("peek"), batch_shape=(50,))
    early = (wrong.call(view, X).value - right.call(view, X).value).abs() > 1e-9
    assert 0.3 < float(early.double().mean()) < 1
