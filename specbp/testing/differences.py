"""Directional derivatives by central differences, with the error that they know of themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Five steps within a factor of three. Their ratio is irrational: on values that were rounded to a
# grid, steps of 1, 1/2 and 1/4 agree exactly, and wrongly.
_RATIO, _LEVELS = 0.7548776662466927, 5  # 1 / ρ with ρ³ = ρ + 1
_SHRINK, _TRIES = 8.0, 10


def directional_derivative(
    function: Callable[[Tensor], float], theta: Tensor, direction: Tensor, *, target: float
) -> tuple[float, float]:
    r"""Derivative of f along d with an estimate of its error.

    .. math:: D(h) = \frac{f(\theta + h d) - f(\theta - h d)}{2h}, \qquad
              E(h) = \frac{D(rh) - r^2 D(h)}{1 - r^2}, \qquad r = 0.7549

    The first step is eps^(1/7) max(|θ|, 1), rather too long: noise hides behind short ones. Steps
    shrink eightfold until the error is below `target`, or grows, or two of them disagree. It is
    twice the range of E(h), E(rh), E(r²h) and E(r³h) plus the rounding of f over the step: four
    estimates that agree can only be wrong together if f is not what it seems to be.

    Args:
        function: θ -> f(θ); NaN where it is not defined.
        theta: Any shape, float32 or float64.
        direction: d, of theta's shape, of length one.
        target: An error that is good enough.

    Returns:
        Derivative and error; (NaN, inf) where no step gave finite values.

    Source: Ridders (1982), Adv. Eng. Softw. 4, doi:10.1016/S0141-1195(82)80057-0.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> value, error = directional_derivative(lambda t: float(t.exp()), one, one, target=1e-8)
        >>> abs(value - math.e) < error < 1e-8
        True
    """
    eps = torch.finfo(theta.dtype).eps
    step = eps ** (1 / 7) * max(float(theta.norm()), 1.0)
    best = (math.nan, math.inf)
    for _ in range(_TRIES):
        found = _extrapolated(function, theta, direction, step, eps)
        gap = abs(found[0] - best[0])
        if gap > best[1] or (best[1] < math.inf and found[1] > 2 * best[1]):
            # Rounding has taken over. Still shorter steps end on the plateaus of the values, where
            # all differences agree on zero.
            return best[0], max(best[1], gap)
        best = min(best, found, key=lambda pair: pair[1])
        if best[1] <= target:
            break
        step /= _SHRINK
    return best


def _extrapolated(
    function: Callable[[Tensor], float], theta: Tensor, d: Tensor, step: float, eps: float
) -> tuple[float, float]:
    size, quotients = 0.0, []
    for level in range(_LEVELS):
        h = step * _RATIO**level
        up, down = theta + h * d, theta - h * d
        high, low = function(up), function(down)
        size = max(size, abs(high), abs(low))
        # The distance that was really taken, after rounding.
        quotients.append((high - low) / float(((up - down) * d).sum()))
    square = _RATIO**2
    estimates = [
        (near - square * far) / (1 - square)
        for far, near in zip(quotients, quotients[1:], strict=False)
    ]
    error = 2 * (max(estimates) - min(estimates)) + 16 * eps * size / step
    return (estimates[-1], error) if math.isfinite(error) else (math.nan, math.inf)
