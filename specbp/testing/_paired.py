"""Intervals and tests from which paired comparisons are made; `specbp.testing.paired` is public."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import stats

Array = np.ndarray


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def mapped(self, f: Callable[[float], float]) -> Interval:
        """The interval of an increasing function of the parameter."""
        return Interval(f(self.value), f(self.low), f(self.high))


UNKNOWN, ONE = Interval(math.nan, math.nan, math.nan), Interval(1.0, 1.0, 1.0)


def mean_interval(values: Array, alpha: float) -> Interval:
    """Student's interval of an expectation, (R,) values; NaN for fewer than three.

    Example:
        >>> mean_interval(np.array([1.0, 1.0, 1.0]), 0.01)
        Interval(value=1.0, low=1.0, high=1.0)
    """
    if len(values) < 3:
        return UNKNOWN
    return around(float(values.mean()), values - values.mean(), alpha)


def spread(rho: float, kurtosis: float, alpha: float, power: float) -> float:
    if not -1 <= rho <= 1:
        raise ValueError(f"A correlation lies in [-1, 1], got {rho}.")
    z = float(stats.norm.isf(alpha / 2) + stats.norm.isf(1 - power))
    free = 1 - rho**2
    return z**2 * free * (rho**2 + free * (kurtosis - 1) / 2)


def around(value: float, influence: Array, alpha: float) -> Interval:
    """Interval of a statistic whose error is the mean of centred values."""
    R = len(influence)
    if R < 3 or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):  # the base has no error at all and the head has one
        return Interval(value, value, value)
    half = float(stats.t.isf(alpha / 2, R - 1)) * float(influence.std(ddof=1)) / math.sqrt(R)
    return Interval(value, value - half, value + half)


def log_ratio(below: Array, above: Array) -> tuple[float, Array]:
    """Logarithm of a ratio of two means of nonnegative values, and its influence function."""
    if len(below) == 0 or not (below.any() or above.any()):
        return (0.0 if len(below) else math.nan), np.zeros(len(below))
    if not (below.any() and above.any()):
        return (math.inf if above.any() else -math.inf), np.zeros(len(below))
    a, b = float(above.mean()), float(below.mean())
    return math.log(a / b), above / a - below / b


def ratio_of_means(below: Array, above: Array, alpha: float) -> Interval:
    return around(*log_ratio(below, above), alpha).mapped(exponential)


def growth_of(bias: Interval, shift: Interval) -> Interval:
    """|β + δ| − |β| for β and δ in a rectangle.

    The function is linear between the lines β = 0 and β = −δ, so its extremes lie where those cross
    the edges or each other: at the points of the grid below.
    """

    def grown(b: float, d: float) -> float:
        return abs(b + d) - abs(b)

    if math.isnan(bias.low) or math.isnan(shift.low):
        return UNKNOWN
    b = np.clip([*bias[1:], 0, -shift.low, -shift.high], bias.low, bias.high)
    d = np.clip([*shift[1:], 0, -bias.low, -bias.high], shift.low, shift.high)
    corners = [grown(*pair) for pair in product(b, d)]
    return Interval(grown(bias.value, shift.value), float(min(corners)), float(max(corners)))


def text(interval: Interval) -> str:
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def centred(values: Array) -> Array:
    """Squared deviations from the mean, whose mean is the variance."""
    return (values - values.mean()) ** 2 if len(values) else values


def t_test(values: Array) -> float:
    """Two-sided p-value of Student's test of mean zero; a constant is decided exactly."""
    if len(values) < 3:
        return 1.0
    mean, se = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    if se == 0:
        return float(mean == 0)
    return float(2 * stats.t.sf(abs(mean / se), len(values) - 1))


def correlation(x: Array, y: Array) -> float:
    """Correlation of two samples; NaN where one of them is constant."""
    x, y = (v - v.mean() if len(v) else v for v in (x, y))
    size = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    return max(-1.0, min(1.0, float(x @ y) / size)) if size > 0 else math.nan


def kurtosis_of(errors: Array) -> float:
    """E[e⁴] / E[e²]²; NaN without error."""
    size = float(np.abs(errors).max(initial=0.0))
    if size == 0:
        return math.nan
    squares = (errors / size) ** 2  # of the largest: fourth powers overflow
    return float((squares**2).mean()) / float(squares.mean()) ** 2


def pitman_morgan(e_b: Array, e_h: Array) -> float:
    """Two variances are equal if and only if sum and difference are uncorrelated."""
    r = correlation(e_h + e_b, e_h - e_b)
    if len(e_b) < 3 or math.isnan(r):
        return 1.0
    if abs(r) == 1:
        return 0.0
    t = r * math.sqrt((len(e_b) - 2) / (1 - r**2))
    return float(2 * stats.t.sf(abs(t), len(e_b) - 2))


def sign_test(differences: Array) -> float:
    wins, losses = int((differences < 0).sum()), int((differences > 0).sum())
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def square_root(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def exponential(x: float) -> float:
    return math.exp(x) if x < 700 else x * math.inf


def require(base: Array, head: Array, control: Array, margin: float) -> None:
    if not (base.ndim == 1 and base.shape == head.shape == control.shape and len(base) >= 3):
        raise ValueError(
            "Base, head and control are one value for each of R >= 3 replicates, got shapes "
            f"{base.shape}, {head.shape}, {control.shape}."
        )
    if not np.isfinite(control).all():
        raise ValueError("The truth and the control values must be finite.")
    if not margin > 0:
        raise ValueError(f"The margin must be positive, got {margin}.")
