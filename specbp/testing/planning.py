"""How large a check has to be: smallest effects that it detects, and values that an effect needs.

All for two-sided tests of level α that are to see the effect with probability `power`.
"""

from __future__ import annotations

import math

from scipy import stats

from specbp.testing.outcome import POWER
from specbp.testing.pvalues import box_freedom


def detectable_shift(R: int, alpha: float, power: float = POWER) -> float:
    r"""Smallest shift of the mean that R values show, in standard deviations of one value.

    .. math:: \delta = (z_{\alpha/2} + z_{1 - power}) / \sqrt R

    Example:
        >>> round(detectable_shift(100, alpha=1e-3), 2)
        0.49
    """
    return _scores(alpha, power) / math.sqrt(R)


def min_replicates(effect: float, alpha: float, power: float = POWER) -> int:
    r"""Values that show a shift of the mean by `effect` standard deviations of one value.

    .. math:: R = \lceil (z_{\alpha/2} + z_{1 - power})^2 / effect^2 \rceil

    Raises:
        ValueError: The effect is not positive.

    Example:
        >>> min_replicates(0.5, alpha=1e-3), min_replicates(0.05, alpha=1e-3)
        (98, 9744)
    """
    if not effect > 0:
        raise ValueError(f"The effect must be positive, got {effect}.")
    return math.ceil((_scores(alpha, power) / effect) ** 2)


def detectable_ratio(
    R: int, alpha: float, excess_kurtosis: float = 0.0, power: float = POWER
) -> float:
    r"""Smallest ratio above 1 of a variance to its reference that R values show.

    .. math:: \chi^2_{\nu, \alpha/2} / \chi^2_{\nu, power}, \qquad \nu = 2R / (e + 2)

    with upper quantiles, for values whose expectation is known.

    Example:
        >>> round(detectable_ratio(400, alpha=1e-3), 2)
        1.41
        >>> round(detectable_ratio(400, alpha=1e-3, excess_kurtosis=12.0), 2)
        2.43
    """
    nu = box_freedom(R, excess_kurtosis)
    return float(stats.chi2.isf(alpha / 2, nu) / stats.chi2.isf(power, nu))


def min_replicates_of_ratio(
    ratio: float, alpha: float, excess_kurtosis: float = 0.0, power: float = POWER
) -> int:
    """Values that show a variance `ratio` times its reference, `ratio` > 1.

    Raises:
        ValueError: The ratio is not above 1.

    Example:
        >>> R = min_replicates_of_ratio(1.5, alpha=1e-3)
        >>> R, detectable_ratio(R, alpha=1e-3) <= 1.5 < detectable_ratio(R - 1, alpha=1e-3)
        (285, True)
    """
    if not ratio > 1:
        raise ValueError(f"The ratio must be above 1, got {ratio}.")

    def seen(R: int) -> bool:
        return detectable_ratio(R, alpha, excess_kurtosis, power) <= ratio

    high = 1
    while not seen(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def detectable_coverage(R: int, reference: float, alpha: float, power: float = POWER) -> float:
    r"""Smallest loss of coverage that R intervals show, by exact binomial tails.

    .. math:: c^* - c, \qquad P_c(K \le k) = power, \quad
              k = \max\{j : P_{c^*}(K \le j) \le \alpha/2\}

    Infinite where not even R misses are rare enough.

    Example:
        >>> round(detectable_coverage(1000, 0.95, alpha=1e-3), 3)
        0.039
    """
    k = int(stats.binom.ppf(alpha / 2, R, reference)) - 1
    if k < 0:
        return math.inf
    # P_c(K ≤ k) is the upper tail of the beta law of k + 1 and R − k at c.
    return float(reference - stats.beta.isf(power, k + 1, R - k))


def _scores(alpha: float, power: float) -> float:
    return float(stats.norm.isf(alpha / 2) + stats.norm.isf(1 - power))
