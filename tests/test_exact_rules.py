from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.chebyshev import chebvander

from specbp.exact import gauss_rule, jacobian_eigh, quadratic_forms, radau_rule, rules, slq_value

EPS = np.finfo(np.float64).eps


def _stieltjes_mp(lam: np.ndarray, w: np.ndarray, k: int, node: float | None):
    """The textbook route in 80 digits: Stieltjes recurrence, Golub's extension, Golub–Welsch."""
    x, w = [mpmath.mpf(t) for t in lam], [mpmath.mpf(t) for t in w]
    total = sum(w)
    before, p = [mpmath.mpf(0)] * len(x), [1 / mpmath.sqrt(total)] * len(x)
    T, beta = mpmath.zeros(k + (node is not None)), mpmath.mpf(0)
    for j in range(k):
        T[j, j] = sum(wi * xi * q * q for wi, xi, q in zip(w, x, p, strict=True))
        r = [(xi - T[j, j]) * q - beta * b for xi, q, b in zip(x, p, before, strict=True)]
        beta = mpmath.sqrt(sum(wi * ri * ri for wi, ri in zip(w, r, strict=True)))
        before, p = p, [ri / beta for ri in r]
        if j + 1 < T.rows:
            T[j, j + 1] = T[j + 1, j] = beta
    if node is not None:
        pivot = mpmath.inf
        for j in range(k):
            pivot = T[j, j] - node - (T[j, j - 1] ** 2 / pivot if j else 0)
        T[k, k] = node + beta**2 / pivot
    theta, Q = mpmath.eigsy(T)
    return theta, [total * Q[0, j] ** 2 for j in range(T.rows)]


@pytest.mark.parametrize("cond", [1e2, 1e6, 1e10])
@pytest.mark.parametrize("node", [None, "below", "lambda_min", "above"])
def test_rules_to_eighty_digits(cond: float, node: str | None) -> None:
    rng, n, k = np.random.default_rng(0), 20, 8
    lam, w = rng.permutation(np.geomspace(1 / cond, 1, n)), rng.standard_normal(n) ** 2
    a = {None: None, "below": 0.3 / cond, "lambda_min": lam.min(), "above": 1.5}[node]
    nodes, omega = gauss_rule(lam, w, k) if a is None else radau_rule(lam, w, k, a)
    with mpmath.workdps(80):
        theta, exact = _stieltjes_mp(lam, w, k, a)
        value = sum(o * mpmath.log(t) for o, t in zip(exact, theta, strict=True))
    # Bidiagonal data are resolved to a few eps in sqrt|lambda - a|; measured 10 eps at worst. Seen
    # from above, small nodes are differences of numbers of size a: eps a / lambda.
    unit = 40 * EPS * (cond if node == "above" else 1)
    theta = np.array([float(t) for t in theta])
    assert (np.abs(nodes - theta) <= unit * theta).all()
    assert np.abs(omega - np.array([float(o) for o in exact])).max() <= unit * w.sum()
    assert abs(omega @ np.log(nodes) - value) <= k * unit * w.sum() * np.log(cond)


measures = st.tuples(st.integers(2, 12), st.integers(0, 2**16), st.floats(0, 6))


def _measure(n: int, seed: int, log_cond: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 10 ** -rng.uniform(0, log_cond, n), rng.standard_normal(n) ** 2


def _chebyshev_moments(x: np.ndarray, w: np.ndarray, lam: np.ndarray, degree: int) -> np.ndarray:
    """Integrals of T_0 ... T_degree mapped to the interval spanned by lam."""
    centre, radius = (lam.max() + lam.min()) / 2, max((lam.max() - lam.min()) / 2, 1e-3)
    return w @ chebvander((x - centre) / radius, degree)


@settings(max_examples=40, deadline=None)
@given(measures, st.integers(1, 12))
def test_gauss_is_exact_to_degree_2k_minus_1(measure: tuple[int, int, float], k: int) -> None:
    lam, w = _measure(*measure)
    nodes, omega = gauss_rule(lam, w, k)
    expected = _chebyshev_moments(lam, w, lam, 2 * k - 1)
    actual = _chebyshev_moments(nodes, omega, lam, 2 * k - 1)
    # |T_j'| <= j^2 amplifies nodes off by 40 eps lambda_max over a radius >= 1e-3 lambda_max.
    assert np.abs(actual - expected).max() <= (2 * k) ** 2 * 40 * EPS * 1e3 * w.sum()


@settings(max_examples=40, deadline=None)
@given(measures, st.integers(1, 8), st.booleans())
def test_radau_is_exact_to_degree_2k(measure: tuple[int, int, float], k: int, below: bool) -> None:
    lam, w = _measure(*measure)
    node = lam.min() / 2 if below else lam.max() * 1.1
    nodes, omega = radau_rule(lam, w, k, node)
    assert (nodes[0] if below else nodes[-1]) == node
    support = np.append(lam, node)
    expected = _chebyshev_moments(lam, w, support, 2 * k)
    actual = _chebyshev_moments(nodes, omega, support, 2 * k)
    assert np.abs(actual - expected).max() <= (2 * k + 1) ** 2 * 40 * EPS * 1e3 * w.sum()


def test_gauss_is_not_exact_beyond_its_degree() -> None:
    lam, w = _measure(10, 1, 1.0)
    for k in (1, 2, 3):
        moment = _chebyshev_moments(lam, w, lam, 2 * k)
        nodes, omega = gauss_rule(lam, w, k)
        assert abs(_chebyshev_moments(nodes, omega, lam, 2 * k)[-1] - moment[-1]) > 1e-3


@settings(max_examples=40, deadline=None)
@given(measures)
def test_bracket_of_log_tightens_to_the_sum(measure: tuple[int, int, float]) -> None:
    lam, w = _measure(*measure)
    exact, a, b = w @ np.log(lam), lam.min() / 2, lam.max() * 2
    n, slack = len(lam), 40 * len(lam) * EPS * w.sum() * (np.abs(np.log(lam)).max() + 1)
    upper = [np.dot(o, np.log(t)) for t, o in (gauss_rule(lam, w, k) for k in range(1, n + 1))]
    lower = [np.dot(o, np.log(t)) for t, o in (radau_rule(lam, w, k, a) for k in range(1, n + 1))]
    above = [np.dot(o, np.log(t)) for t, o in (radau_rule(lam, w, k, b) for k in range(1, n + 1))]
    assert (np.diff(upper) <= slack).all()
    assert (np.diff(lower) >= -slack).all()
    assert min(upper) >= exact - slack
    assert max(lower) <= exact + slack
    assert min(above) >= exact - slack * b / lam.min()
    assert abs(upper[-1] - exact) <= slack
    assert abs(lower[-1] - exact) <= slack


def test_bracket_is_strict_before_the_end() -> None:
    lam, w = np.geomspace(1e-3, 1, 20), np.ones(20)
    exact = np.log(lam).sum()
    nodes, omega = gauss_rule(lam, w, 5)
    assert omega @ np.log(nodes) > exact + 1e-2
    nodes, omega = radau_rule(lam, w, 5, lam.min())
    assert omega @ np.log(nodes) < exact - 1e-2


@pytest.mark.parametrize(
    ("lam", "w"),
    [
        ([2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0]),
        ([1.0, 2.0, 2.0, 5.0], [1.0, 0.0, 1.0, 1.0]),
        ([3.0, 1.0, 2.0], [1.0, 0.0, 0.0]),
        (np.repeat([1e-6, 0.3, 1.0], 5), np.arange(1.0, 16.0)),
        ([1e-8, 1.0, 1.0 + 1e-15, 1.0 + 2e-15], [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_short_supports_are_returned_whole(lam: list[float], w: list[float]) -> None:
    lam, w = np.array(lam), np.array(w)
    support = len(np.unique(lam[w > 0].round(12)))
    tolerance = 40 * EPS * w.sum() * (1 + np.abs(np.log(lam)).max())
    for k in range(support, len(lam) + 3):
        nodes, omega = gauss_rule(lam, w, k)
        assert nodes.shape == (min(k, len(lam)),)
        assert (np.diff(nodes) >= 0).all()
        assert abs(omega @ np.log(nodes) - w @ np.log(lam)) <= tolerance
        assert nodes.min() >= lam.min() * (1 - 40 * EPS)
        nodes, omega = radau_rule(lam, w, k, lam.min() / 2)
        assert nodes.shape == (min(k, len(lam)) + 1,)
        assert abs(omega @ np.log(nodes) - w @ np.log(lam)) <= tolerance
        assert omega[0] <= tolerance


def test_batches_broadcast_and_equal_single_measures() -> None:
    rng = np.random.default_rng(0)
    lam, w = rng.uniform(0.1, 1, (2, 1, 9)), rng.uniform(0, 1, (3, 9))
    w[1, 2:] = 0.0  # a measure with two points among full ones
    for rule in (lambda l, w: gauss_rule(l, w, 4), lambda l, w: radau_rule(l, w, 4, 0.05)):
        nodes, omega = rule(lam, w)
        assert nodes.shape[:-1] == omega.shape[:-1] == (2, 3)
        for i, j in np.ndindex(2, 3):
            single = rule(lam[i, 0], w[j])
            assert np.array_equal(nodes[i, j], single[0])
            assert np.array_equal(omega[i, j], single[1])


def test_weights_scale_and_order_does_not_matter() -> None:
    lam, w = _measure(12, 3, 4.0)
    nodes, omega = gauss_rule(lam, w, 5)
    order = np.random.default_rng(0).permutation(12)
    again, moved = gauss_rule(lam[order], 4 * w[order], 5)
    assert np.allclose(again, nodes, rtol=40 * EPS)
    assert np.abs(moved - 4 * omega).max() <= 40 * EPS * 4 * w.sum()


def _problem(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    V = np.linalg.qr(rng.standard_normal((2, n, n)))[0]
    return rng.uniform(0.01, 1, (2, n)), V, rng.choice([-1.0, 1.0], (n, m))


@pytest.mark.parametrize("node", [None, 0.005, 2.0])
def test_slq_value_is_the_rule_of_each_probe(
    node: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lam, V, X = _problem(7, 5)
    values = slq_value(lam, V, X, 3, np.log, node=node)
    assert values.shape == (2, 5)
    for i, j in np.ndindex(2, 5):
        w = (V[i].T @ X[:, j]) ** 2
        t, o = gauss_rule(lam[i], w, 3) if node is None else radau_rule(lam[i], w, 3, node)
        assert abs(values[i, j] - o @ np.log(t)) <= 40 * EPS * 7 * np.log(400)
    monkeypatch.setattr(rules, "_CHUNK", 1)
    assert np.array_equal(slq_value(lam, V, X, 3, np.log, node=node), values)


def test_slq_value_is_exact_at_k_equals_n() -> None:
    lam, V, X = _problem(7, 5)
    exact = quadratic_forms(lam, V, np.log, X)
    for k in (7, 9):
        error = np.abs(slq_value(lam, V, X, k, np.log) - exact).max()
        assert error <= 40 * EPS * 7 * np.log(100)
    assert np.abs(slq_value(lam, V, X, 2, np.log) - exact).max() > 1e-3


def test_slq_value_brackets_the_quadratic_form_of_a_jacobian() -> None:
    rng = np.random.default_rng(0)
    lam, V = jacobian_eigh(rng.standard_normal((30, 20)) * np.geomspace(1e-4, 1, 20))
    X = rng.choice([-1.0, 1.0], (20, 50))
    exact = quadratic_forms(lam, V, np.log, X)
    assert (slq_value(lam, V, X, 6, np.log) > exact).all()
    assert (slq_value(lam, V, X, 6, np.log, node=lam[0]) < exact).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([1.0, 0.0], [1.0, 1.0], 1), "eigenvalues must be positive"),
        (([1.0, 2.0], [1.0, -1.0], 1), "weights must be nonnegative"),
        (([1.0, 2.0], [[1.0, 1.0], [0.0, 0.0]], 1), "positive sum"),
        (([1.0, 2.0], [1.0, 1.0], 0), "k must be a positive integer, got 0"),
        (([1.0, np.nan], [1.0, 1.0], 1), "finite"),
    ],
)
def test_gauss_refuses(arguments: tuple, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gauss_rule(*arguments)


def test_radau_refuses_a_node_inside() -> None:
    with pytest.raises(ValueError, match="outside the spectrum"):
        radau_rule([1.0, 2.0], [1.0, 1.0], 1, 1.5)
