"""Matrices of gradients against derivatives taken naively: product rule, differences, 50 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from scipy.linalg import expm_frechet

from specbp.exact import (
    all_signs,
    chebyshev_log,
    divided_differences,
    frechet_derivative,
    gradient_bias,
    matrix_function,
    moments,
    solve_form,
)

EPS = np.finfo(np.float64).eps

SPECTRA = {
    "separate": np.array([0.1, 0.5, 1.0, 2.0, 3.0]),
    "equal": np.array([0.5, 0.5, 0.5, 2.0, 2.0]),
    "nearly equal": np.array([0.3, 0.3 + 1e-13, 0.3 + 1e-7, 0.3 + 1e-3, 0.34]),
    "one": np.full(5, 1.5),
}
spectra = pytest.mark.parametrize("lam", SPECTRA.values(), ids=SPECTRA)


def _basis(n: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def _symmetric(n: int, seed: int = 1) -> np.ndarray:
    B = np.random.default_rng(seed).standard_normal((n, n))
    return B + B.T


def _inverse(x: np.ndarray) -> np.ndarray:
    return 1 / x


@spectra
def test_divided_differences_of_log_in_fifty_digits(lam):
    found = divided_differences(lam, np.log, _inverse)
    with mpmath.workdps(50):
        values = [mpmath.mpf(float(x)) for x in lam]
        expected = [
            [float(mpmath.log(x / y) / (x - y) if x != y else 1 / x) for y in values]
            for x in values
        ]
    # 1 / λ bounds the derivative; the quotient of a pair apart by 0.1 λ loses one digit.
    limit = 20 * EPS * (1 + np.abs(np.log(lam)).max()) / lam.min()
    assert np.abs(found - expected).max() <= limit


def test_the_quotient_alone_would_fail_where_eigenvalues_are_close():
    lam = SPECTRA["nearly equal"]
    with np.errstate(invalid="ignore"):
        plain = np.subtract.outer(np.log(lam), np.log(lam)) / np.subtract.outer(lam, lam)
    found = divided_differences(lam, np.log, _inverse)
    assert np.nanmax(np.abs(plain - found)) > 1e-5


@spectra
@pytest.mark.parametrize("degree", [1, 4, 9])
def test_frechet_derivative_of_a_polynomial_by_the_product_rule(lam, degree):
    p = np.polynomial.Polynomial(np.random.default_rng(degree).standard_normal(degree + 1))
    V, dA = _basis(5), _symmetric(5)
    A = (V * lam) @ V.T
    power = [np.linalg.matrix_power(A, k) for k in range(degree + 1)]
    expected = sum(
        p.coef[k] * power[i] @ dA @ power[k - 1 - i] for k in range(1, degree + 1) for i in range(k)
    )
    found = frechet_derivative(lam, V, p, p.deriv(), dA)
    scale = sum(k * abs(p.coef[k]) * lam.max() ** (k - 1) for k in range(1, degree + 1))
    assert np.abs(found - expected).max() <= 100 * EPS * scale * np.linalg.norm(dA)


@spectra
def test_frechet_derivative_of_exp_by_its_block_matrix(lam):
    V, dA = _basis(5), _symmetric(5)
    _, expected = expm_frechet((V * lam) @ V.T, dA)
    assert np.allclose(
        frechet_derivative(lam, V, np.exp, np.exp, dA), expected, rtol=0, atol=1e-12 * np.exp(3)
    )


def _logm(A: mpmath.matrix) -> mpmath.matrix:
    lam, V = mpmath.eigsy(A)
    return V * mpmath.diag([mpmath.log(x) for x in lam]) * V.T


@spectra
def test_frechet_derivative_of_log_by_central_differences_in_fifty_digits(lam):
    V, dA = _basis(5), _symmetric(5)
    with mpmath.workdps(50):
        # Exactly orthogonal in 50 digits, so that A has the eigenvalues that are asked for.
        Q, _ = mpmath.qr(mpmath.matrix(V.tolist()))
        A = Q * mpmath.diag([mpmath.mpf(float(x)) for x in lam]) * Q.T
        A, E, h = (A + A.T) / 2, mpmath.matrix(dA.tolist()), mpmath.mpf(10) ** -15
        difference = (_logm(A + h * E) - _logm(A - h * E)) / (2 * h)
        expected = np.array(difference.tolist(), dtype=np.float64)
        V = np.array(Q.tolist(), dtype=np.float64)
    found = frechet_derivative(lam, V, np.log, _inverse, dA)
    assert np.abs(found - expected).max() <= 500 * EPS * np.linalg.norm(dA) / lam.min()


def test_frechet_derivative_of_the_interpolant_of_log():
    """What estimators differentiate, on a whole spectrum: by central differences of p(A)."""
    n, cond = 40, 100.0
    lam, V, dA = np.geomspace(1 / cond, 1, n), _basis(n), _symmetric(n)
    p, h = chebyshev_log(30, (1 / cond, 1.0)), 1e-6
    A, dA = (V * lam) @ V.T, dA / np.linalg.norm(dA, 2)

    def value(step: float) -> np.ndarray:
        return matrix_function(*np.linalg.eigh(A + step * dA), p)

    expected = (value(h) - value(-h)) / (2 * h)
    found = frechet_derivative(lam, V, p, p.deriv(), dA)
    # h² p‴ / 6 with p‴ ≈ 2 / λ³, and rounding / h.
    assert np.abs(found - expected).max() < h**2 * cond**3 + 100 * EPS * 5 / h
    assert np.linalg.norm(found) > 10


def test_the_interpolant_of_high_degree_is_resolved_between_close_eigenvalues():
    """Degree 300 at cond 1e4 against the quotient in 50 digits, where float64 has lost it."""
    p = chebyshev_log(300, (1e-4, 1.0))
    lam = np.array([1e-4, 1.05e-4, 1.0999e-4, 0.5, 0.54])
    found = divided_differences(lam, p, p.deriv())
    with mpmath.workdps(50):
        values = [_clenshaw(p, float(x)) for x in lam]
        for i, j in ((0, 1), (0, 2), (1, 2), (3, 4)):
            expected = (values[i] - values[j]) / (mpmath.mpf(lam[i]) - mpmath.mpf(lam[j]))
            assert found[i, j] == pytest.approx(float(expected), rel=1e-9)


def _clenshaw(p: np.polynomial.Chebyshev, x: float) -> mpmath.mpf:
    a, b = (mpmath.mpf(float(end)) for end in p.domain)
    t, one, two = (2 * mpmath.mpf(x) - a - b) / (b - a), mpmath.mpf(0), mpmath.mpf(0)
    for c in p.coef[:0:-1]:
        one, two = mpmath.mpf(float(c)) + 2 * t * one - two, one
    return mpmath.mpf(float(p.coef[0])) + t * one - two


@spectra
def test_traces_are_the_gradients_of_the_trace(lam):
    """tr L = tr sym(f′(A) dA) = d tr f(A): the two forms have one expectation, not one variance."""
    V, dA = _basis(5), _symmetric(5)
    L = frechet_derivative(lam, V, np.log, _inverse, dA)
    S = solve_form(lam, V, _inverse, dA)
    assert np.trace(L) == pytest.approx(np.trace(S), abs=100 * EPS * 50)
    assert np.trace(S) == pytest.approx(np.trace(np.linalg.inv((V * lam) @ V.T) @ dA), abs=1e-12)


def test_forms_are_the_derivatives_of_values_probe_by_probe():
    """All sign vectors: (q(A + h dA) − q(A − h dA)) / 2h, its mean and its variance."""
    n, h = 6, 1e-5
    lam, V, dA = np.linspace(0.5, 2, n), _basis(n), _symmetric(n)
    A, X = (V * lam) @ V.T, all_signs(n).T
    up, down = (matrix_function(*np.linalg.eigh(A + s * dA), np.log) for s in (h, -h))
    derivative = np.sum(X * ((up - down) @ X), 0) / (2 * h)
    L = frechet_derivative(lam, V, np.log, _inverse, dA)
    law = moments(L, "rademacher")
    assert np.abs(derivative - np.sum(X * (L @ X), 0)).max() < 1e-6
    assert derivative.mean() == pytest.approx(law.mean, abs=1e-7)
    assert derivative.var() == pytest.approx(law.variance, rel=1e-6)


def test_solve_form_is_the_symmetric_part_of_the_product():
    lam, V, dA = SPECTRA["separate"], _basis(5), _symmetric(5)
    x = np.random.default_rng(2).standard_normal(5)
    A = (V * lam) @ V.T
    S = solve_form(lam, V, _inverse, dA)
    assert np.array_equal(S, S.T)
    assert x @ S @ x == pytest.approx(np.linalg.solve(A, x) @ dA @ x, rel=1e-12)


def test_gradient_bias_by_differences_of_the_traces():
    n, h = 8, 1e-6
    lam, V, dA = np.geomspace(0.02, 1, n), _basis(n), _symmetric(n)
    A, p = (V * lam) @ V.T, chebyshev_log(6, (0.02, 1.0))

    def error(step: float) -> float:
        eigenvalues = np.linalg.eigvalsh(A + step * dA)
        return float(np.sum(p(eigenvalues) - np.log(eigenvalues)))

    expected = (error(h) - error(-h)) / (2 * h)
    found = gradient_bias(lam, V, p.deriv(), dA)
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(found) > 0.1
    L = frechet_derivative(lam, V, p, p.deriv(), dA)
    exact = np.trace(solve_form(lam, V, _inverse, dA))
    assert found == pytest.approx(np.trace(L) - exact, abs=1e-10)
    assert gradient_bias(lam, V, p.deriv(), dA, derivative=p.deriv()) == 0.0


def test_many_directions_take_one_call():
    lam, V = SPECTRA["separate"], _basis(5)
    directions = np.stack([_symmetric(5, seed) for seed in range(3)])
    stacked = (
        frechet_derivative(lam, V, np.log, _inverse, directions),
        solve_form(lam, V, np.sqrt, directions),
        gradient_bias(lam, V, np.sqrt, directions),
    )
    for k, dA in enumerate(directions):
        assert np.allclose(stacked[0][k], frechet_derivative(lam, V, np.log, _inverse, dA))
        assert np.allclose(stacked[1][k], solve_form(lam, V, np.sqrt, dA))
        assert np.allclose(stacked[2][k], gradient_bias(lam, V, np.sqrt, dA))


@pytest.mark.parametrize("call", [solve_form, gradient_bias])
def test_directions_must_be_symmetric(call):
    for dA in (np.triu(np.ones((5, 5))), np.ones((5, 4)), np.full((5, 5), np.nan)):
        with pytest.raises(ValueError, match="dA must be"):
            call(SPECTRA["separate"], _basis(5), np.sqrt, dA)
