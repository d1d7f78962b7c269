"""Statistics of the study: errors, ratios on common probes, coverage, each with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import stats

Array = np.ndarray
CONFIDENCE = 0.95
RESAMPLES = 2000
ROUNDING = 1e-6  # nats: an error, or a miss of an interval, that float64 explains everywhere here


class Measured(NamedTuple):
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Coverage(NamedTuple):
    """How often intervals of one method contain the truth.

    Attributes:
        claimed: Replicates with a finite interval.
        covered: Replicates whose interval contains the truth.
        size: All replicates.
        share: covered / size, with its Clopper–Pearson interval.
        half_width: Median over all replicates; one that claims no interval counts as infinite.
    """

    claimed: int
    covered: int
    size: int
    share: Measured
    half_width: float


def rmse(errors: Array) -> float:
    """Root mean square of errors (..., R) over the last axis; infinite if one is missing."""
    return float(_rmse(np.asarray(errors)))


def rmse_interval(errors: Array) -> Measured:
    """RMSE of R replicates, and the percentiles of its bootstrap."""
    return _percentiles(rmse(errors), _rmse(errors[_resamples(len(errors))]))


def ratio(base: Array, ours: Array) -> Measured:
    """RMSE(ours) / RMSE(base) on common seeds, both (R,); replicates are resampled in pairs."""
    return best_ratio([base], [ours])


def best_ratio(base: Sequence[Array], ours: Sequence[Array]) -> Measured:
    """Smallest RMSE of ours over the smallest RMSE of the base, each over its shapes.

    Every resample chooses its shapes anew: both sides gain from choosing after the fact, and the
    interval knows.
    """
    size = {len(errors) for errors in (*base, *ours)}
    if len(size) != 1:
        raise ValueError(f"Replicates are paired by seed, got {sorted(size)} of them.")
    index = _resamples(size.pop())
    value = float(_quotient(min(map(rmse, ours)), min(map(rmse, base))))
    below, above = (
        np.min([_rmse(np.asarray(errors)[index]) for errors in side], axis=0)
        for side in (base, ours)
    )
    return _percentiles(value, _quotient(above, below))


def coverage(low: Array, high: Array, truth: float) -> Coverage | None:
    """Coverage of R intervals, or None where no replicate claims one.

    A NaN end is no interval and covers nothing; an infinite one covers and has infinite width.
    """
    low, high = np.asarray(low), np.asarray(high)
    claimed = int((np.isfinite(low) & np.isfinite(high)).sum())
    if claimed == 0:
        return None
    covered = int(((low - ROUNDING <= truth) & (truth <= high + ROUNDING)).sum())
    half = np.where(np.isnan(low) | np.isnan(high), np.inf, (high - low) / 2)
    return Coverage(
        claimed, covered, len(low), clopper_pearson(covered, len(low)), float(np.median(half))
    )


def clopper_pearson(successes: int, size: int) -> Measured:
    """A proportion and its exact interval.

    Example:
        >>> clopper_pearson(40, 40).low > 0.9
        True
    """
    alpha = 1 - CONFIDENCE
    low = stats.beta.ppf(alpha / 2, successes, size - successes + 1) if successes else 0.0
    high = stats.beta.isf(alpha / 2, successes + 1, size - successes) if successes < size else 1.0
    return Measured(successes / size, float(low), float(high))


def summary(errors: Array) -> dict[str, float]:
    """Bias and standard deviation of the errors that are numbers."""
    known = errors[np.isfinite(errors)]
    return {
        "bias": float(known.mean()) if len(known) else math.nan,
        "sd": float(known.std(ddof=1)) if len(known) > 1 else math.nan,
        "failed": int(len(errors) - len(known)),
    }


@cache
def _resamples(size: int) -> Array:
    """The same resamples for every statistic of that many replicates: (RESAMPLES, size)."""
    return np.random.default_rng(0).integers(0, size, (RESAMPLES, size))


def _rmse(errors: Array) -> Array:
    return np.sqrt(np.mean(np.where(np.isnan(errors), np.inf, errors) ** 2, axis=-1))


def _quotient(above: Array | float, below: Array | float) -> Array:
    """above / below; NaN where the base has no error to compare with, or has failed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.divide(above, below)
    return np.where(np.isinf(below) | (np.asarray(below) == 0), np.nan, found)


def _percentiles(value: float, resampled: Array) -> Measured:
    tail = (1 - CONFIDENCE) / 2
    if np.isnan(resampled).any():
        return Measured(value, math.nan, math.nan)
    # With infinite values among them, interpolation would give NaN.
    low, high = np.quantile(resampled, [tail, 1 - tail], method="nearest")
    return Measured(value, float(low), float(high))
