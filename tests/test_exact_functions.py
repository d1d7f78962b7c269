from __future__ import annotations

import mpmath
import numpy as np
import pytest
from scipy.interpolate import BarycentricInterpolator
from scipy.linalg import expm

from specbp.exact import (
    all_signs,
    chebyshev_log,
    matrix_function,
    polynomial_bias,
    quadratic_forms,
    taylor_log,
)

EPS = np.finfo(np.float64).eps


def _rho(a: float, b: float) -> float:
    root = np.sqrt(b / a)
    return (root + 1) / (root - 1)


def _nodes(degree: int, a: float, b: float) -> np.ndarray:
    theta = np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1)
    return a + (b - a) * np.cos(theta / 2) ** 2


def _rounding(p, x: np.ndarray, degree: int, interval: tuple[float, float]) -> np.ndarray:
    """Mapping x and the nodes to [-1, 1] loses eps b each; then degree + 1 roundings of log's size.

    Lebesgue's constant of the nodes, below 1 + log(degree + 1), passes the nodes' error on.
    """
    a, b = interval
    mapped = b * np.abs(p.deriv()(x)) + (1 + np.log(degree + 1)) * b / _nodes(degree, a, b).min()
    return 4 * EPS * (mapped + (degree + 1) * np.abs(np.log([a, b])).max())


def _interpolant_mp(x: float, degree: int, a: float, b: float) -> mpmath.mpf:
    """Barycentric formula of the first kind of nodes, in 50 digits (Berrut and Trefethen 2004)."""
    with mpmath.workdps(50):
        a, b, top, bottom = mpmath.mpf(a), mpmath.mpf(b), mpmath.mpf(0), mpmath.mpf(0)
        for j in range(degree + 1):
            theta = mpmath.pi * (j + mpmath.mpf(1) / 2) / (degree + 1)
            node = (a + b) / 2 + (b - a) / 2 * mpmath.cos(theta)
            w = (-1) ** j * mpmath.sin(theta) / (mpmath.mpf(x) - node)
            top, bottom = top + w * mpmath.log(node), bottom + w
        return top / bottom


@pytest.mark.parametrize("degree", [1, 7, 20])
@pytest.mark.parametrize("interval", [(0.5, 3.0), (1e-2, 1.0)])
def test_interpolant_is_the_barycentric_one(degree: int, interval: tuple[float, float]) -> None:
    p, nodes = chebyshev_log(degree, interval), _nodes(degree, *interval)
    x = np.linspace(*interval, 101)[1:-1]
    # The seed only permutes the nodes; the default would draw it globally.
    twin = BarycentricInterpolator(nodes, np.log(nodes), rng=np.random.default_rng(0))
    assert (np.abs(p(x) - twin(x)) <= 2 * _rounding(p, x, degree, interval)).all()
    assert p.degree() == degree


@pytest.mark.parametrize(
    ("degree", "interval"),
    [(0, (0.5, 3.0)), (10, (1e-2, 1.0)), (50, (1e-4, 1.0)), (60, (1e-6, 10.0))],
)
def test_interpolant_to_fifty_digits(degree: int, interval: tuple[float, float]) -> None:
    p, x = chebyshev_log(degree, interval), np.geomspace(*interval, 15)
    exact = np.array([float(_interpolant_mp(t, degree, *interval)) for t in x])
    assert (np.abs(p(x) - exact) <= _rounding(p, x, degree, interval)).all()


@pytest.mark.parametrize("ratio", [1.001, 2.0, 1e2, 1e4, 1e8])
def test_series_has_the_closed_form_coefficients(ratio: float) -> None:
    a, b, k = 0.3, 0.3 * ratio, np.arange(1, 31)
    exact = np.append(
        2 * np.log((np.sqrt(a) + np.sqrt(b)) / 2), 2 * (-1.0) ** (k + 1) * _rho(a, b) ** -k / k
    )
    p = chebyshev_log(30, (a, b), kind="series")
    # Every sample carries an argument rounded twice and a logarithm rounded once; the transform
    # averages them and adds log2(number of points) < 20 roundings.
    tolerance = (4 + 20) * EPS * np.abs(np.log([a, b])).max()
    assert np.abs(p.coef - exact).max() <= tolerance


def test_interpolation_is_the_aliased_series() -> None:
    degree, interval = 6, (0.05, 1.0)
    series = chebyshev_log(200, interval, kind="series").coef
    folded, points = series[: degree + 1].copy(), 2 * (degree + 1)
    for k in range(degree + 1):
        for j in range(1, 14):
            folded[k] += (-1) ** j * series[points * j - k]
            folded[k] += (-1) ** j * series[points * j + k] * (k > 0)
    interpolant = chebyshev_log(degree, interval).coef
    assert np.abs(interpolant - folded).max() <= 100 * EPS * np.log(1 / 0.05)
    assert np.abs(interpolant - series[: degree + 1]).max() > 1e-3


@pytest.mark.parametrize("kind", ["interpolation", "series"])
@pytest.mark.parametrize("degree", [5, 20, 60])
def test_chebyshev_error_bound(kind: str, degree: int) -> None:
    a, b = 1e-3, 2.0
    p, rho, x = chebyshev_log(degree, (a, b), kind=kind), _rho(a, b), np.geomspace(a, b, 500)
    bound = 2 * rho**-degree / ((degree + 1) * (rho - 1)) * (2 if kind == "interpolation" else 1)
    error = np.abs(p(x) - np.log(x)).max()
    assert bound / 20 < error < bound


@pytest.mark.parametrize("interval", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1, np.inf)])
def test_chebyshev_refuses_intervals(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 < a < b < inf"):
        chebyshev_log(3, interval)


def test_chebyshev_refuses_the_rest() -> None:
    with pytest.raises(ValueError, match="degree must be an integer >= 0, got -1"):
        chebyshev_log(-1, (1, 2))
    with pytest.raises(ValueError, match='"interpolation" or "series", got \'taylor\''):
        chebyshev_log(3, (1, 2), kind="taylor")
    with pytest.raises(ValueError, match="quadrature points"):
        chebyshev_log(3, (1e-14, 1), kind="series")


@pytest.mark.parametrize("degree", [0, 1, 5, 80])
def test_taylor_against_the_sum(degree: int) -> None:
    upper, x = 7.0, np.array([1e-3, 0.1, 1.0, 6.9, 7.0])
    p = taylor_log(degree, upper)
    for value, point in zip(p(x), x, strict=True):
        with mpmath.workdps(40):
            t = 1 - mpmath.mpf(point) / upper
            exact = mpmath.log(upper) - sum(t**k / k for k in range(1, degree + 1))
            # t is rounded twice, and degree Horner steps (two roundings each) have positive terms.
            size = mpmath.log(upper) + sum((2 * k + 4) * t**k / k for k in range(1, degree + 1))
        assert abs(value - exact) <= EPS * (2 + size)
    assert p(np.array([upper]))[0] == np.log(upper)


def test_taylor_refuses() -> None:
    with pytest.raises(ValueError, match="upper must be positive"):
        taylor_log(3, 0.0)
    with pytest.raises(ValueError, match="degree must be an integer"):
        taylor_log(2.5, 1.0)


def test_polynomial_bias() -> None:
    lam = np.random.default_rng(0).uniform(0.1, 1.0, (3, 8))
    biases = [polynomial_bias(lam, taylor_log(degree, 1.0)) for degree in (5, 10, 20)]
    assert biases[0].shape == (3,)
    # The neglected Taylor terms are all negative: one-sided, and smaller with each degree.
    assert (biases[0] > biases[1]).all()
    assert (biases[1] > biases[2]).all()
    assert (biases[2] > 0).all()
    p = chebyshev_log(4, (0.1, 1.0))
    direct = [p(row).sum() - np.log(row).sum() for row in lam]
    assert np.abs(polynomial_bias(lam, p) - direct).max() <= 4 * 8 * 8 * EPS * np.log(10)
    with pytest.raises(ValueError, match="positive eigenvalues"):
        polynomial_bias([1.0, 0.0], p)


def test_quadratic_forms_and_matrix_function() -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((2, 3, 6, 6))
    A = A + np.swapaxes(A, -1, -2)
    A = A / np.linalg.norm(A, 2, axis=(-2, -1), keepdims=True)
    lam, V = np.linalg.eigh(A)
    X = rng.standard_normal((3, 6, 5))
    F = matrix_function(lam, V, np.exp)
    assert np.array_equal(F, np.swapaxes(F, -1, -2))
    # |A| = 1: no squaring in expm; sums of 6 terms of size e in either.
    assert np.abs(F - expm(A)).max() <= 6 * 6 * EPS * np.e
    forms = quadratic_forms(lam, V, np.exp, X)
    assert forms.shape == (2, 3, 5)
    direct = np.einsum("...im,...ij,...jm->...m", X, F, X)
    assert np.abs(forms - direct).max() <= 6 * 6 * EPS * np.e * (X**2).sum(-2).max()


def test_quadratic_forms_of_all_signs_average_to_the_trace() -> None:
    lam = np.geomspace(1e-3, 1, 8)
    V = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    forms = quadratic_forms(lam, V, np.log, all_signs(8).T)
    assert abs(forms.mean() - np.log(lam).sum()) <= 8 * 8 * EPS * np.abs(np.log(lam)).sum()
