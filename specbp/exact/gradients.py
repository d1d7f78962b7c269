"""Exact gradients: the matrices whose quadratic forms are derivatives of estimates, and their bias.

An estimator of log det whose value is xᵀf(A)x has, along dA, the derivative xᵀLx with L the Fréchet
derivative of f; one that solves has xᵀ sym(g(A) dA) x with g ≈ 1/λ. `moments` of these matrices are
the exact mean and variance of the gradient. Both have the trace tr f′(A) dA where g = f′.

Eigenvalues have shape (..., n), eigenvectors are the columns of (..., n, n), dA is symmetric with
shape (..., n, n); leading dimensions broadcast, so a stack of directions takes one call. Everything
is float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from specbp.exact._arrays import Array, as_float64
from specbp.exact.functions import ScalarFunction, matrix_function

# Pairs of eigenvalues closer than this, relative to the larger, are integrated, not divided: the
# quotient of the others loses one digit, and on segments this short the rule has converged.
_CLOSE, _NODES = 0.1, 16


def divided_differences(eigenvalues: Any, f: ScalarFunction, derivative: ScalarFunction) -> Array:
    r"""First divided differences of f at all pairs of eigenvalues, (..., n) -> (..., n, n).

    .. math:: f[\lambda, \mu] = \frac{f(\lambda) - f(\mu)}{\lambda - \mu}
              = \int_0^1 f'\bigl(\mu + t(\lambda - \mu)\bigr)\, dt

    The quotient for pairs that are apart; for close and equal ones, where it cancels, the integral
    by Gauss and Legendre with 16 points: exact for polynomials to degree 32, and to rounding for
    log and what approximates it.

    Args:
        eigenvalues: shape (..., n).
        f: function of an array of eigenvalues.
        derivative: its derivative.

    >>> divided_differences([1.0, 2.0], np.square, lambda x: 2 * x)
    array([[2., 3.],
           [3., 4.]])
    """
    lam = as_float64(eigenvalues, "eigenvalues")
    x, y = np.broadcast_arrays(lam[..., :, None], lam[..., None, :])
    gap, size = x - y, np.maximum(np.abs(x), np.abs(y))
    close = np.abs(gap) <= _CLOSE * size
    values = f(lam)
    rise = values[..., :, None] - values[..., None, :]
    result = np.divide(rise, gap, out=np.zeros_like(rise), where=~close)
    result[close] = _mean_on_segments(derivative, y[close], gap[close])
    return (result + np.swapaxes(result, -1, -2)) / 2


def frechet_derivative(
    eigenvalues: Any, eigenvectors: Any, f: ScalarFunction, derivative: ScalarFunction, dA: Any
) -> Array:
    r"""Fréchet derivative of f at A = V diag(λ) Vᵀ in the direction dA, by Daleckii and Krein.

    .. math:: L = \frac{d}{d\varepsilon} f(A + \varepsilon\, dA)\Big|_0
              = V \bigl(f[\lambda_i, \lambda_j] \circ V^\top dA\, V\bigr) V^\top

    Args:
        eigenvalues: shape (..., n).
        eigenvectors: shape (..., n, n), orthonormal columns.
        f: function of an array of eigenvalues, such as `chebyshev_log(...)`.
        derivative: its derivative, such as `chebyshev_log(...).deriv()`.
        dA: shape (..., n, n), symmetric.

    Returns:
        Symmetric, shape (..., n, n); E xᵀLx = tr f′(A) dA.

    Raises:
        ValueError: an input that is not finite, or a dA that is not symmetric.

    Source: Daleckii and Krein (1965); Higham, Functions of Matrices (2008), theorem 3.11 and
    corollary 3.12, doi:10.1137/1.9780898717778.

    >>> dA = np.array([[1.0, 3.0], [3.0, 0.0]])
    >>> frechet_derivative([1.0, 2.0], np.eye(2), np.square, lambda x: 2 * x, dA)  # A dA + dA A
    array([[2., 9.],
           [9., 0.]])
    """
    V, dA = as_float64(eigenvectors, "eigenvectors"), _symmetric(dA)
    F = divided_differences(eigenvalues, f, derivative)
    L = V @ (F * (np.swapaxes(V, -1, -2) @ dA @ V)) @ np.swapaxes(V, -1, -2)
    return (L + np.swapaxes(L, -1, -2)) / 2


def solve_form(eigenvalues: Any, eigenvectors: Any, g: ScalarFunction, dA: Any) -> Array:
    r"""Symmetric part of g(A) dA, the form of a gradient by solves, xᵀ g(A) dA x.

    .. math:: \tfrac12 \bigl(g(A)\, dA + dA\, g(A)\bigr)

    Args:
        eigenvalues: shape (..., n).
        eigenvectors: shape (..., n, n), orthonormal columns.
        g: what stands for 1/λ.
        dA: shape (..., n, n), symmetric.

    Raises:
        ValueError: an input that is not finite, or a dA that is not symmetric.

    >>> solve_form([1.0, 2.0], np.eye(2), np.reciprocal, [[1.0, 4.0], [4.0, 2.0]])
    array([[1., 3.],
           [3., 1.]])
    """
    product = matrix_function(eigenvalues, eigenvectors, g) @ _symmetric(dA)
    return (product + np.swapaxes(product, -1, -2)) / 2


def gradient_bias(
    eigenvalues: Any,
    eigenvectors: Any,
    approximate: ScalarFunction,
    dA: Any,
    derivative: ScalarFunction = np.reciprocal,
) -> Array:
    r"""Truncation bias of a gradient: that of its expectation against d tr f(A).

    .. math:: \sum_i \bigl(p'(\lambda_i) - f'(\lambda_i)\bigr)\, v_i^\top dA\, v_i

    Usually larger, relative to the gradient, than the truncation bias of the value is.

    Args:
        eigenvalues: shape (..., n).
        eigenvectors: shape (..., n, n), orthonormal columns.
        approximate: p′, or g of `solve_form`.
        dA: shape (..., n, n), symmetric.
        derivative: f′; that of log unless given.

    Returns:
        Shape (...).

    Raises:
        ValueError: an input that is not finite, or a dA that is not symmetric.

    >>> gradient_bias([1.0, 2.0], np.eye(2), lambda x: 0 * x + 1, np.diag([5.0, 3.0])).item()
    1.5
    """
    lam, V = as_float64(eigenvalues, "eigenvalues"), as_float64(eigenvectors, "eigenvectors")
    diagonal = np.sum(V * (_symmetric(dA) @ V), axis=-2)
    # Term by term, so that what the two gradients share cancels before it is summed.
    return np.sum((approximate(lam) - derivative(lam)) * diagonal, axis=-1)


def _mean_on_segments(derivative: ScalarFunction, start: Array, gap: Array) -> Array:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    total = np.zeros_like(start)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        total += weight * derivative(start + node * gap)
    return total


def _symmetric(dA: Any) -> Array:
    dA = as_float64(dA, "dA")
    if dA.ndim < 2 or dA.shape[-1] != dA.shape[-2]:
        msg = f"dA must be square (..., n, n), got shape {dA.shape}"
        raise ValueError(msg)
    gap = np.abs(dA - np.swapaxes(dA, -1, -2)).max(initial=0.0)
    if gap > 1e-12 * np.abs(dA).max(initial=0.0):
        msg = f"dA must be symmetric, as A is: it differs from its transpose by {gap:.3g}"
        raise ValueError(msg)
    return dA
