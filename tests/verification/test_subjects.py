"""Subjects: what the oracle says of each row of the methods table agrees with what it computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from specbp import generator_for, probes
from specbp.methods import METHODS
from verification import subjects
from verification.checks.problems import problem
from verification.subjects import differentiate, from_method

X = probes.rademacher(10, 3, generator=generator_for("subjects"))


@pytest.fixture(params=[n for n, row in METHODS.items() if row.uses_probes and row.claims.additive])
def subject(request):
    return from_method(METHODS[request.param])


def test_oracle_gives_the_value_of_each_probe(subject):
    view = problem("cond 1e2", 10).views[subject.on]
    found = subject.call(view, X).samples.numpy()
    np.testing.assert_allclose(found, subject.oracle(view, X), rtol=0, atol=subject.rounding(view))


def test_form_is_the_matrix_of_the_contract(subject):
    view = problem("cond 1e2", 10).views[subject.on]
    assert np.trace(subject.form(view)) == pytest.approx(subject.expected(view), rel=1e-12)


def test_derivative_is_that_of_the_contract(subject):
    view = problem("cond 1e2", 10).views[subject.on]
    by_differences = replace(subject, slope=None).derivative(view)(view.eigenvalues)
    np.testing.assert_allclose(
        subject.derivative(view)(view.eigenvalues), by_differences, rtol=1e-8
    )


@pytest.mark.parametrize("name", ["qr", "algorithm1"])
def test_methods_that_are_no_mean_of_known_values_have_no_oracle(name):
    view = problem("cond 1e2", 10).views[METHODS[name].on]
    assert from_method(METHODS[name]).oracle(view, X) is None


def test_krylov_dimensions_are_cut_to_the_order_of_the_matrix():
    slq = from_method(METHODS["slq"])
    assert (slq.configured(10), slq.configured(64)) == ({"num_steps": 10}, {"num_steps": 20})


def test_interval_contains_the_spectrum():
    view = problem("cond 1e2", 10).views["A"]
    a, b = subjects.interval(view)
    assert a < view.eigenvalues.min() < view.eigenvalues.max() < b


def test_probes_take_the_dtype_of_the_operator():
    view = problem("easy", 10, "float32").views["A"]
    assert bool(from_method(METHODS["hutchinson"]).call(view, X).ok)


def test_draw_hands_the_generator_to_the_sampler():
    slq, draws = from_method(METHODS["slq"]), []
    for _ in range(2):
        draws.append(slq.draw(5, 2, generator=generator_for("draw"), batch_shape=(3,)))
    assert draws[0].shape == (3, 5, 2)
    assert torch.equal(*draws)


def test_rounding_grows_with_the_condition_number_on_a_and_with_its_root_on_j():
    def ratio(name):
        subject = from_method(METHODS[name])
        views = [problem(s, 10).views[subject.on] for s in ("cond 1e4", "cond 1e6")]
        return subject.amplification(views[1]) / subject.amplification(views[0])

    assert ratio("slq") == pytest.approx(100, rel=1e-6)
    assert ratio("golub_kahan") == pytest.approx(10, rel=1e-6)


def test_differences_are_exact_for_polynomials_to_degree_six():
    for degree in range(7):
        slope = differentiate(lambda s, d=degree: (2 + s) ** d, 0.1)
        assert float(slope) == pytest.approx(degree * 2.0 ** (degree - 1), rel=1e-10)
    assert float(differentiate(lambda s: (2 + s) ** 7, 0.5)) != pytest.approx(448, rel=1e-5)


def test_only_polynomials_round_as_sums_of_products_do():
    def growth(subject):
        views = [problem(s, 10).views[subject.on] for s in ("cond 1e4", "cond 1e6")]
        return subject.rounding(views[1]) / subject.rounding(views[0])

    chebyshev = from_method(METHODS["chebyshev"])
    assert growth(chebyshev) < 2
    assert growth(from_method(METHODS["hutchinson"])) < 2
    log = replace(chebyshev, contract=lambda _view: np.log)
    assert growth(log) == pytest.approx(100, rel=0.01)
    assert growth(replace(log, config={}, arguments=lambda _view: {})) == pytest.approx(
        100, rel=0.01
    )


def test_an_interval_that_is_found_becomes_the_contract():
    adaptive, view = from_method(METHODS["algorithm1"]), problem("easy", 10).views["A"]
    a, b = adaptive.found(view, X[:, 0])
    assert a == subjects.interval(view)[0]
    assert b == pytest.approx(view.eigenvalues.max(), rel=1e-10)  # ten steps are complete
    held = adaptive.held(view, X[:, 0])
    assert held.found is None
    assert held.contract(view).domain.tolist() == [a, b]
    slq = from_method(METHODS["slq"])
    assert slq.found is None
    assert slq.held(view, X[:, 0]) is slq


def test_steps_are_told_only_to_those_that_take_them():
    backprop, slq = (from_method(METHODS[name]) for name in ("backprop", "slq"))
    assert backprop.with_steps(3) is backprop
    assert slq.with_steps(3).config == {"num_steps": 3}
