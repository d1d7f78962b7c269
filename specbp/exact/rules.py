r"""Gauss and Gauss–Radau rules of discrete measures: what Lanczos quadrature returns when exact.

The measure of a probe x is μ = Σ_i w_i δ(λ_i) with w_i = (v_iᵀx)². For a node a outside the open
spectrum let Σ = diag(√|λ_i − a|) and b the vector of √w_i. There are orthogonal U, V with

.. math:: U^\top \Sigma V = B \text{ upper bidiagonal}, \qquad V^\top b = |b|\, e_1,

and BᵀB is the Jacobi matrix of |λ − a| under μ. Its leading part gives the rules: nodes
a ± σ_j(B)², weights |b|² times the squared first components of the right singular vectors.

- a = 0 and the leading k x k part: the k-point Gauss rule, exact to degree 2k − 1. Nodes are
  resolved to eps in √λ, as no tridiagonal eigenvalue problem can.
- Any a and the leading k x (k + 1) part, which has a null vector: the Gauss–Radau rule with k free
  nodes and the node a, exact to degree 2k.

B is built by inserting the support points one at a time, each followed by a chase of plane
rotations down the diagonal: the scheme of Gragg and Harrod (1984, Numer. Math. 44, 317-335),
carried over from the Jacobi matrix to its factor B. It knows no Krylov space, no recurrence and no
reorthogonalisation, so it shares no weakness with Lanczos; it is backward stable because it only
rotates, and needs no threshold to see that a measure is exhausted. Information flows down the
diagonal only, hence the part below row k need not be computed: 2nk rotations for each measure.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from specbp.exact._arrays import Array, as_float64
from specbp.exact.functions import ScalarFunction

# Numbers kept at once by one chunk of probes in slq_value (256 MB of float64).
_CHUNK = 2**25


def gauss_rule(eigenvalues: Any, weights: Any, k: int) -> tuple[Array, Array]:
    r"""Compute the k-point Gauss rule of the measure Σ_i w_i δ(λ_i).

    .. math:: \sum_{j=1}^{k} \omega_j\,p(\theta_j) = \sum_i w_i\,p(\lambda_i),
              \qquad \deg p \le 2k - 1

    A measure with fewer than k support points is returned whole: the remaining nodes repeat given
    eigenvalues, sharing the weight of a repeated one and without weight (up to eps²) elsewhere.

    Args:
        eigenvalues: shape (..., n), positive, in any order, repetitions allowed.
        weights: shape (..., n), nonnegative, positive sum for each measure; broadcasts.
        k: number of nodes, >= 1; n of them suffice, so no more are returned.

    Returns:
        nodes and weights, both (..., min(k, n)), nodes ascending.

    Raises:
        ValueError: an eigenvalue is not positive, a weight negative, a sum zero, k not positive.

    >>> nodes, w = gauss_rule([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], 2)
    >>> round(float(nodes**2 @ w), 12), round(float(nodes**3 @ w), 12)
    (14.0, 36.0)
    """
    lam, w, k = _measure(eigenvalues, weights, k)
    if not (lam > 0).all():
        msg = f"eigenvalues must be positive, the smallest given is {lam.min():.3g}"
        raise ValueError(msg)
    diagonal, above = _bidiagonal(np.sqrt(lam), np.sqrt(w), k)
    squares, omega = _singular(diagonal, above[..., : k - 1])
    return squares[..., ::-1], omega[..., ::-1] * w.sum(axis=-1, keepdims=True)


def radau_rule(eigenvalues: Any, weights: Any, k: int, node: float) -> tuple[Array, Array]:
    r"""Compute the Gauss–Radau rule with k free nodes and one prescribed outside the spectrum.

    .. math:: \omega_0\,p(a) + \sum_{j=1}^{k} \omega_j\,p(\theta_j) = \sum_i w_i\,p(\lambda_i),
              \qquad \deg p \le 2k

    It uses what k steps of Lanczos know. For log, a node at or below the smallest eigenvalue gives
    a lower bound of the integral, one at or above the largest an upper bound; the Gauss rule is an
    upper bound too (Golub and Meurant 2010, Matrices, Moments and Quadrature, chapter 6).

    Args:
        eigenvalues: shape (..., n), all >= node or all <= node.
        weights: shape (..., n), nonnegative, positive sum for each measure; broadcasts.
        k: number of free nodes, >= 1; n of them suffice, so no more are returned.
        node: the prescribed node a.

    Returns:
        nodes and weights, both (..., min(k, n) + 1), nodes ascending, so that ``node`` is the first
        or the last; its weight is zero where the free nodes exhaust the measure.

    Raises:
        ValueError: the node lies inside the spectrum; as `gauss_rule` otherwise.
    """
    lam, w, k = _measure(eigenvalues, weights, k)
    below = bool((lam >= node).all())
    if not (below or (lam <= node).all()):
        msg = f"node must lie outside the spectrum ({lam.min():.6g}, {lam.max():.6g}), got {node}"
        raise ValueError(msg)
    squares, omega = _singular(*_bidiagonal(np.sqrt(np.abs(lam - node)), np.sqrt(w), k))
    omega = omega * w.sum(axis=-1, keepdims=True)
    if below:
        return node + squares[..., ::-1], omega[..., ::-1]
    return node - squares, omega


def slq_value(
    eigenvalues: Any,
    eigenvectors: Any,
    X: Any,
    k: int,
    f: ScalarFunction,
    *,
    node: float | None = None,
) -> Array:
    """Evaluate, for each probe, the quadrature of xᵀf(A)x that k exact Lanczos steps give.

    Args:
        eigenvalues: shape (..., n), positive.
        eigenvectors: shape (..., n, n), columns; for a Jacobian take both from `jacobian_eigh`.
        X: probes, shape (..., n, m), columns of any nonzero length.
        k: number of Lanczos steps.
        f: function applied to the nodes.
        node: None for the Gauss rule, else the prescribed node of the Gauss–Radau rule.

    Returns:
        Values of shape (..., m).

    Raises:
        ValueError: as `gauss_rule` and `radau_rule`.

    >>> value = slq_value([1.0, 4.0], np.eye(2), [[1.0], [1.0]], 2, np.sqrt)
    >>> round(float(value[0]), 12)
    3.0
    """
    lam, V = as_float64(eigenvalues, "eigenvalues"), as_float64(eigenvectors, "eigenvectors")
    w = np.swapaxes((np.swapaxes(V, -1, -2) @ as_float64(X, "X")) ** 2, -1, -2)  # (..., m, n)
    m, n = w.shape[-2:]
    width = max(1, _CHUNK * m // (w.size * max(1, 4 * min(k, n) ** 2 // n)))
    parts = []
    for start in range(0, m, width):
        measure = (lam[..., None, :], w[..., start : start + width, :], k)
        nodes, omega = gauss_rule(*measure) if node is None else radau_rule(*measure, node)
        parts.append(np.sum(omega * f(nodes), axis=-1))
    return np.concatenate(parts, axis=-1)


def _measure(eigenvalues: Any, weights: Any, k: int) -> tuple[Array, Array, int]:
    if int(k) != k or k < 1:
        msg = f"k must be a positive integer, got {k}"
        raise ValueError(msg)
    lam, w = np.broadcast_arrays(
        as_float64(eigenvalues, "eigenvalues"), as_float64(weights, "weights")
    )
    if not ((w >= 0).all() and (w.sum(axis=-1) > 0).all()):
        msg = "weights must be nonnegative with a positive sum for every measure"
        raise ValueError(msg)
    return lam, w, min(int(k), lam.shape[-1])


def _bidiagonal(sigma: Array, b: Array, k: int) -> tuple[Array, Array]:
    """Leading k diagonal and k superdiagonal entries of B: (..., n) twice -> (..., k) twice.

    One more row and column, "x", holds the point being inserted. Rotating columns 1 and x moves its
    part of b to the first component; then for i = 1, 2, ... the 2 x 3 window of rows i, x and
    columns i, i + 1, x is

        [ a  e_i  b ]   rows i, x     [ d_i  g  f ]   columns i + 1, x   [ d_i  e_i  0 ]
        [ p   0   q ]  ----------->   [  0   t  h ]  ----------------->  [  0    p   q ]
    """
    sigma, b = np.moveaxis(sigma, -1, 0), np.moveaxis(b, -1, 0)
    d, e = np.zeros((2, k + 1, *sigma.shape[1:]))
    length = np.zeros(sigma.shape[1:])
    for j, point in enumerate(sigma):
        length, c, s = _rotation(length, b[j])
        a, b_x, p, q = c * d[0], -s * d[0], s * point, c * point
        for i in range(min(j + 1, k)):
            d[i], c, s = _rotation(a, p)
            g, f, t, h = c * e[i], c * b_x + s * q, -s * e[i], c * q - s * b_x
            e[i], c, s = _rotation(g, f)
            # Row i + 1 is met for the first time here; d[k] is a place that stays zero.
            a, b_x, p, q = c * d[i + 1], -s * d[i + 1], c * t + s * h, c * h - s * t
    return np.moveaxis(d[:k], 0, -1), np.moveaxis(e[:k], 0, -1)


def _rotation(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return r = hypot(x, y), c = x / r, s = y / r; (0, 0, 1) where both vanish.

    The swap, and not the identity, is what carries a decoupled point (weight zero, or a repeated
    eigenvalue) to the next free place.
    """
    r = np.hypot(x, y)
    zero = r == 0
    safe = r + zero
    return r, x / safe, y / safe + zero


def _singular(diagonal: Array, above: Array) -> tuple[Array, Array]:
    """Squared singular values, descending, and squared first components of right vectors.

    ``above`` has k − 1 entries for a square matrix, k for k rows and k + 1 columns; the null vector
    of the latter comes last, with value zero.
    """
    k, columns = diagonal.shape[-1], above.shape[-1] + 1
    B = np.zeros((*diagonal.shape, columns))
    rows, over = np.arange(k), np.arange(columns - 1)
    B[..., rows, rows] = diagonal
    B[..., over, over + 1] = above
    _, sigma, Vt = np.linalg.svd(B, full_matrices=True)
    squares = np.zeros((*diagonal.shape[:-1], columns))
    squares[..., :k] = sigma**2
    return squares, Vt[..., :, 0] ** 2
