r"""Tests over many cells: one family error rate, for faults in one cell and for faults in all.

Holm alone misses a fault that shifts every cell a little; a sum of scores sees that and misses a
shift of random sign; a sum of squares sees that. `combined` runs the three at a third of the level
each. Sums need cells that are independent: draw each from seeds of its own. Holm needs nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from specbp.testing.outcome import POWER

Array = npt.NDArray[np.float64]
TESTS = 3  # Holm, Stouffer and spread share the level of a family


class Family(NamedTuple):
    """What a family of cells says together.

    Attributes:
        holm: Smallest adjusted p-value of a cell.
        stouffer: p-value of the sum of scores.
        spread: p-value of the sum of their squares.
        rejected: Whether `p` ≤ alpha.
        worst: Index of the cell with the smallest p-value.
        p: p-value of the three together.
    """

    holm: float
    stouffer: float
    spread: float
    rejected: bool
    worst: int
    p: float


def holm(p: npt.ArrayLike) -> Array:
    r"""Adjusted p-values of Holm's step-down procedure, valid under any dependence.

    .. math:: \tilde p_{(k)} = \max_{j \le k} \min\{(K - j + 1)\, p_{(j)}, 1\}

    Args:
        p: p-values, shape (K,).

    Returns:
        Shape (K,), float64; rejecting those ≤ α errs anywhere with probability at most α.

    Raises:
        ValueError: If p is empty, not one-dimensional, or not within [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]

    Source: Holm, Scand. J. Statist. 6 (1979) 65–70.
    """
    p = _p_values(p)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(np.arange(len(p), 0, -1) * p[order], 1.0)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def stouffer(z: npt.ArrayLike) -> float:
    r"""Two-sided p-value of the sum of K independent normal scores.

    .. math:: p = 2\,\Phi\bigl(-|\textstyle\sum_i z_i| / \sqrt K\bigr)

    Args:
        z: Scores, shape (K,), signs aligned: a common fault must push all the same way.

    Raises:
        ValueError: If z is empty, not one-dimensional or not finite.

    Example:
        >>> round(stouffer([1.0, 2.0, 1.0, 2.0]), 4)
        0.0027

    Source: Stouffer et al., The American Soldier, vol. 1 (1949).
    """
    z = _scores(z)
    return float(2 * stats.norm.sf(abs(z.sum()) / math.sqrt(len(z))))


def spread(z: npt.ArrayLike) -> float:
    r"""p-value of the sum of squares of K independent normal scores, upper tail of χ²_K.

    Args:
        z: Scores, shape (K,).

    Raises:
        ValueError: If z is empty, not one-dimensional or not finite.

    Example:
        >>> round(spread([3.0, -3.0, 0.0, 0.0]), 4)
        0.0012

    Source: Fisher, Statistical Methods for Research Workers (1925), for χ² of normal scores.
    """
    z = _scores(z)
    return float(stats.chi2.sf(float(z @ z), len(z)))


def combined(z: npt.ArrayLike, alpha: float, p: npt.ArrayLike | None = None) -> Family:
    r"""Holm, Stouffer and spread at α/3 each: false alarm at most α over independent cells.

    .. math:: p = \min\{1, 3 \min(p_\text{Holm}, p_\text{Stouffer}, p_\text{spread})\}

    Args:
        z: Signed scores of the cells, shape (K,); standard normal where nothing is wrong.
        alpha: Level of the family.
        p: p-values of the cells, shape (K,), where they are not 2 Φ(−|z|).

    Raises:
        ValueError: If z or p is no array of K scores or p-values, or alpha is not in (0, 1).

    Example:
        >>> family = combined([0.4] * 100, 1e-3)      # no cell is suspicious, all of them are
        >>> round(family.holm, 2), family.rejected, family.stouffer < 1e-4
        (1.0, True, True)
    """
    z = _scores(z)
    p = 2 * stats.norm.sf(np.abs(z)) if p is None else _p_values(p)
    if len(p) != len(z):
        raise ValueError(f"Every score needs its p-value: {len(z)} scores, {len(p)} p-values.")
    parts = float(holm(p).min()), stouffer(z), spread(z)
    together = min(1.0, TESTS * min(parts))
    rejected = together <= _level(alpha)
    return Family(*parts, rejected=rejected, worst=int(np.argmin(p)), p=together)


def detectable_shift(K: int, alpha: float) -> float:
    """Smallest shift common to K scores that `combined` sees with probability `POWER`, at least.

    Raises:
        ValueError: If K < 1 or alpha is not in (0, 1).

    Example:
        >>> round(detectable_shift(300, 1e-3), 3), round(detectable_cell(300, 1e-3), 3)
        (0.302, 6.516)
    """
    return _two_sided(_level(alpha) / TESTS) / math.sqrt(_count(K))


def detectable_cell(K: int, alpha: float) -> float:
    """Smallest shift of one score of K that `combined` sees with probability `POWER`, at least.

    Raises:
        ValueError: If K < 1 or alpha is not in (0, 1).

    Example:
        >>> round(detectable_cell(1, 1e-3), 3)
        5.233
    """
    return _two_sided(_level(alpha) / TESTS / _count(K))


def detectable_scatter(K: int, alpha: float) -> float:
    r"""Smallest root mean square of shifts of any sign that `combined` sees with `POWER`.

    The sum of squares is noncentral χ²_K, its noncentrality K times the mean square.

    Raises:
        ValueError: If K < 1 or alpha is not in (0, 1).

    Example:
        >>> round(detectable_scatter(300, 1e-3), 2)
        0.7
    """
    critical = stats.chi2.isf(_level(alpha) / TESTS, _count(K))

    def missing(noncentrality: float) -> float:
        return float(stats.ncx2.sf(critical, K, noncentrality)) - POWER

    return math.sqrt(optimize.brentq(missing, 0.0, 10 * critical) / K)


def benjamini_hochberg(p: npt.ArrayLike, q: float) -> npt.NDArray[np.bool_]:
    r"""Which cells to mark so that at most a share q of the marks is false, on average.

    .. math:: \text{reject the } \hat k \text{ smallest}, \quad
              \hat k = \max\{k : p_{(k)} \le kq/K\}

    Args:
        p: p-values, shape (K,), independent or positively dependent.
        q: False discovery rate.

    Returns:
        Shape (K,), True where rejected.

    Raises:
        ValueError: If p is no array of p-values or q is not in (0, 1).

    Example:
        >>> benjamini_hochberg([0.02, 0.9, 0.024, 0.03], 0.05).tolist()
        [True, False, True, True]

    Source: Benjamini and Hochberg, J. R. Statist. Soc. B 57 (1995) 289–300,
    doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    p = _p_values(p)
    return _step_up(p, _level(q))


def e_benjamini_hochberg(e: npt.ArrayLike, q: float) -> npt.NDArray[np.bool_]:
    r"""The procedure of Benjamini and Hochberg for e-values, valid under any dependence.

    .. math:: \text{reject the } \hat k \text{ largest}, \quad
              \hat k = \max\{k : k\, e_{(k)} \ge K/q\}

    Args:
        e: e-values, shape (K,), ≥ 0 and possibly infinite; those of stopped processes count too.
        q: False discovery rate.

    Returns:
        Shape (K,), True where rejected.

    Raises:
        ValueError: If e is empty, not one-dimensional, negative or NaN, or q is not in (0, 1).

    Example:
        >>> e_benjamini_hochberg([50.0, 1.0, 100.0, 0.0], 0.05).tolist()
        [True, False, True, False]

    Source: Wang and Ramdas, J. R. Statist. Soc. B 84 (2022) 822–852, arXiv:2009.02824.
    """
    e = _vector(e, "e-values")
    if not (e >= 0).all():
        raise ValueError(f"e-values are ≥ 0, got {e.min()}.")
    # 1/e is a p-value (Markov), and the step-up rule on it is the rule above.
    with np.errstate(divide="ignore"):
        return _step_up(1 / e, _level(q))


def _step_up(p: Array, q: float) -> npt.NDArray[np.bool_]:
    ordered = np.sort(p)
    below = np.flatnonzero(ordered <= q * np.arange(1, len(p) + 1) / len(p))
    return p <= ordered[below[-1]] if len(below) else np.zeros(len(p), dtype=bool)


def _two_sided(alpha: float) -> float:
    """Shift of one normal score that a two-sided test of level alpha sees with `POWER`."""
    return float(stats.norm.isf(alpha / 2) + stats.norm.isf(1 - POWER))


def _vector(x: npt.ArrayLike, what: str) -> Array:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"The {what} are one array of shape (K,) with K ≥ 1, got {x.shape}.")
    return x


def _p_values(p: npt.ArrayLike) -> Array:
    p = _vector(p, "p-values")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1], got {p[~((p >= 0) & (p <= 1))][0]}.")
    return p


def _scores(z: npt.ArrayLike) -> Array:
    z = _vector(z, "scores")
    if not np.isfinite(z).all():
        raise ValueError(f"Scores are finite, got {z[~np.isfinite(z)][0]}: use `normal_score`.")
    return z


def _level(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"A level lies strictly between 0 and 1, got {alpha}.")
    return alpha


def _count(K: int) -> int:
    if K < 1:
        raise ValueError(f"A family has at least one cell, got K = {K}.")
    return K
