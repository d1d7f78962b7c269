"""What the interval of a correct estimator covers: the reference for the coverage of its own."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from specbp import exact
from specbp.testing.designs import MAX_OUTCOMES, multisets


class Coverage(NamedTuple):
    """Coverage of a nominal t interval of a correct estimator.

    Attributes:
        expectation: Of the estimator's own expectation, tr p(A): are the statistics right?
        truth: Of tr f(A), off by the bias: what the user has, falling as m grows.
        standard_error: Of both, from the replicates; 0 where the law was enumerated.
    """

    expectation: float
    truth: float
    standard_error: float


def reference_coverage(
    B: Any,
    law: str,
    m: int,
    *,
    bias: float = 0.0,
    level: float = 0.95,
    replicates: int = 100_000,
    rng: np.random.Generator | None = None,
) -> Coverage:
    r"""Coverage of the t interval of the mean of m values q = xᵀBx, x independent.

    .. math:: P\bigl(|\bar q - \operatorname{tr} B| \le t_{m-1} s / \sqrt m\bigr), \qquad
              P\bigl(|\bar q - \operatorname{tr} B + bias| \le t_{m-1} s / \sqrt m\bigr)

    Exact, over all multisets of sign vectors, for Rademacher probes with at most a million of them;
    otherwise from values drawn with the dense B.

    Args:
        B: Matrix of the form, shape (n, n), such as p(A).
        law: "rademacher", "gaussian" or "sphere".
        m: Values in one estimate, at least 2.
        bias: tr p(A) − tr f(A).
        level: Nominal level.
        replicates: Intervals drawn.
        rng: Generator, needed where values are drawn.

    Raises:
        ValueError: m < 2, a form without variance, an unknown law, or no generator where it is
            needed.

    Example:
        >>> reference_coverage(np.ones((3, 3)), "rademacher", 2)
        Coverage(expectation=0.375, truth=0.375, standard_error=0.0)
    """
    B = (np.asarray(B, dtype=np.float64) + np.asarray(B, dtype=np.float64).T) / 2
    moments = exact.moments(B, law)
    if m < 2 or not moments.variance > (1e-13 * float(np.abs(B).sum())) ** 2:
        raise ValueError(
            f"An interval needs m ≥ 2 values that vary, got m = {m} and the variance "
            f"{moments.variance:.3g}; compare a constant exactly instead."
        )
    exhaustive = _enumerable(B, law, m)
    if exhaustive:
        values, weights = _enumerated(B, m)
    else:
        values, weights = _drawn(B, law, m, replicates, rng)
    # Ties, as of equal probes, are decided as in exact arithmetic.
    half = _half_width(values, level) + 1e-12 * float(np.abs(values).max())
    error = values.mean(-1) - moments.mean
    own, truth = (float(weights @ (np.abs(e) <= half)) for e in (error, error + bias))
    spread = max(own * (1 - own), truth * (1 - truth), 0.0)
    return Coverage(own, truth, 0.0 if exhaustive else math.sqrt(spread / replicates))


def _half_width(values: np.ndarray, level: float) -> np.ndarray:
    m = values.shape[-1]
    scale = float(stats.t.isf((1 - level) / 2, m - 1)) / math.sqrt(m)
    return scale * values.std(-1, ddof=1)


def _enumerable(B: np.ndarray, law: str, m: int) -> bool:
    n = len(B)
    return law == "rademacher" and n <= 20 and math.comb(2 ** (n - 1) + m - 1, m) <= MAX_OUTCOMES


def _enumerated(B: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Values (R, m) of all estimates, and their probabilities."""
    X = exact.all_signs(len(B))
    index, weights = multisets(len(X), m)
    return ((X @ B) * X).sum(-1)[index], weights


def _drawn(
    B: np.ndarray, law: str, m: int, replicates: int, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Values (R, m) of independent estimates, and equal weights."""
    if rng is None:
        raise ValueError(
            f"{law} probes with n = {len(B)}, m = {m} cannot be enumerated: pass rng, such as "
            "numpy.random.default_rng(seed)."
        )
    values = dense_forms(B, law, replicates * m, rng=rng).reshape(replicates, m)
    return values, np.full(replicates, 1 / replicates)


def dense_forms(B: np.ndarray, law: str, size: int, *, rng: np.random.Generator) -> np.ndarray:
    """Independent values of xᵀBx, shape (size,), from the dense symmetric B alone.

    Example:
        >>> values = dense_forms(np.eye(3), "sphere", 4, rng=np.random.default_rng(0))
        >>> bool(np.allclose(values, 3))
        True
    """
    n, rows = len(B), max(1, 2**20 // len(B))
    counts = [min(rows, size - start) for start in range(0, size, rows)]
    if law == "rademacher":
        signs = (2.0 * rng.integers(0, 2, (count, n)) - 1 for count in counts)
        return np.concatenate([((x @ B) * x).sum(-1) for x in signs])
    # Both other laws are invariant under rotation: the eigenvalues are enough.
    lam = np.linalg.eigvalsh(B)
    squares = (rng.standard_normal((count, n)) ** 2 for count in counts)
    scale = 1.0 if law == "gaussian" else n
    return np.concatenate(
        [scale * (g @ lam) / (1.0 if law == "gaussian" else g.sum(-1)) for g in squares]
    )
