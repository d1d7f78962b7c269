"""Matrix functions from an eigendecomposition, and the polynomials estimators put in log's place.

Eigenvalues have shape (..., n), eigenvectors are the columns of (..., n, n), probes the columns
of (..., n, m); leading dimensions broadcast. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.fft
from numpy.polynomial import Chebyshev

from specbp.exact._arrays import EPS, Array, as_float64

ScalarFunction = Callable[[Array], Array]

# Quadrature points allowed for one series: 0.25 GB, enough for b / a = 1e12.
_MAX_POINTS = 2**25


def chebyshev_log(
    degree: int, interval: tuple[float, float], kind: str = "interpolation"
) -> Chebyshev:
    r"""Approximate log on [a, b] by a Chebyshev polynomial of the given degree.

    ``kind="interpolation"`` interpolates at the zeros of T_(degree + 1), mapped to [a, b];
    ``kind="series"`` truncates the orthogonal expansion, whose coefficients

    .. math:: c_k = \frac{2 - [k = 0]}{\pi} \int_0^\pi \log\bigl(a + (b-a)\cos^2\tfrac\theta2\bigr)
              \cos k\theta \,d\theta

    come from a discrete cosine transform fine enough for the aliasing to drop below rounding.

    Args:
        degree: degree of the polynomial, >= 0.
        interval: (a, b) with 0 < a < b.
        kind: "interpolation" or "series".

    Returns:
        The polynomial, callable on eigenvalues (Clenshaw's recurrence); ``.coef`` are the
        coefficients in [a, b]'s own Chebyshev polynomials.

    Raises:
        ValueError: a negative degree, an invalid interval, an unknown kind, b / a above about 1e12.

    Source: Trefethen, Approximation Theory and Approximation Practice (2013), chapters 3 and 4.

    >>> p = chebyshev_log(1, (1.0, 3.0))
    >>> node = 2 - np.sqrt(0.5)
    >>> abs(p(node) - np.log(node)) < 1e-15
    np.True_
    """
    degree = _degree(degree)
    a, b = (float(end) for end in interval)
    if not 0 < a < b < math.inf:
        msg = f"interval must satisfy 0 < a < b < inf, got ({a}, {b})"
        raise ValueError(msg)
    if kind == "interpolation":
        return Chebyshev.interpolate(np.log, degree, domain=[a, b])
    if kind == "series":
        return Chebyshev(_series_coefficients(degree, a, b), domain=[a, b])
    msg = f'kind must be "interpolation" or "series", got {kind!r}'
    raise ValueError(msg)


def taylor_log(degree: int, upper: float) -> ScalarFunction:
    r"""Truncate the Taylor series of log at ``upper``.

    .. math:: p(x) = \log u - \sum_{k=1}^{d} \frac{(1 - x/u)^k}{k}

    Args:
        degree: degree d >= 0.
        upper: expansion point u > 0, normally an upper bound of the spectrum; for 0 < x <= u the
            terms have one sign and Horner's rule loses nothing.

    Raises:
        ValueError: a negative degree, or upper not positive and finite.

    >>> float(taylor_log(2, 1.0)(np.array(0.5)))
    -0.625
    """
    degree, upper = _degree(degree), float(upper)
    if not 0 < upper < math.inf:
        msg = f"upper must be positive and finite, got {upper}"
        raise ValueError(msg)

    def p(x: Array) -> Array:
        t = (upper - np.asarray(x, dtype=np.float64)) / upper
        total = np.zeros_like(t)
        for k in range(degree, 0, -1):
            total = t * (1 / k + total)
        return math.log(upper) - total

    return p


def polynomial_bias(eigenvalues: Any, p: ScalarFunction) -> Array:
    """Truncation bias tr p(A) - tr log A = sum_i p(lambda_i) - log lambda_i; (..., n) -> (...)."""
    lam = as_float64(eigenvalues, "eigenvalues")
    if not (lam > 0).all():
        msg = f"log needs positive eigenvalues, the smallest given is {lam.min():.3g}"
        raise ValueError(msg)
    # Term by term, so that the large common part of the two traces cancels before it is summed.
    return np.sum(p(lam) - np.log(lam), axis=-1)


def quadratic_forms(eigenvalues: Any, eigenvectors: Any, f: ScalarFunction, X: Any) -> Array:
    """Compute x_jᵀf(A)x_j for all columns of X: (..., n), (..., n, n), (..., n, m) -> (..., m).

    >>> quadratic_forms([1.0, 4.0], np.eye(2), np.sqrt, [[1.0, 2.0], [1.0, 0.0]])
    array([3., 4.])
    """
    lam, V = as_float64(eigenvalues, "eigenvalues"), as_float64(eigenvectors, "eigenvectors")
    weights = (np.swapaxes(V, -1, -2) @ as_float64(X, "X")) ** 2
    return np.sum(f(lam)[..., :, None] * weights, axis=-2)


def matrix_function(eigenvalues: Any, eigenvectors: Any, f: ScalarFunction) -> Array:
    """Compute f(A) = V diag(f(λ)) Vᵀ, symmetrised: (..., n), (..., n, n) -> (..., n, n)."""
    lam, V = as_float64(eigenvalues, "eigenvalues"), as_float64(eigenvectors, "eigenvectors")
    F = (V * f(lam)[..., None, :]) @ np.swapaxes(V, -1, -2)
    return (F + np.swapaxes(F, -1, -2)) / 2


def _degree(degree: int) -> int:
    if int(degree) != degree or degree < 0:
        msg = f"degree must be an integer >= 0, got {degree}"
        raise ValueError(msg)
    return int(degree)


def _series_coefficients(degree: int, a: float, b: float) -> Array:
    # Coefficients decay like rho^-k, log rho = 2 artanh(sqrt(a / b)). With M points c_k is polluted
    # by c_(2M-k), so M - degree below makes the pollution smaller than eps.
    log_rho = 2 * math.atanh(math.sqrt(a / b)) if a < b * (1 - EPS) else math.inf
    points = degree + 1 + math.ceil(-math.log(EPS) / log_rho)
    if points > _MAX_POINTS:
        msg = f"b / a = {b / a:.3g} needs {points} quadrature points; raise a"
        raise ValueError(msg)
    theta = math.pi * (np.arange(points) + 0.5) / points
    samples = np.log(a + (b - a) * np.cos(theta / 2) ** 2)
    coefficients = scipy.fft.dct(samples, type=2)[: degree + 1] / points
    coefficients[0] /= 2
    return coefficients
