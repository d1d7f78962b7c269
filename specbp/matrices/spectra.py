"""Spectra: positive eigenvalues (n,) in float64, descending, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def lapack_mode(
    mode: int, n: int, cond: float, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Eigenvalues in (0, 1] laid out as by LAPACK's test matrix generator xLATMS.

    ====  ==================================================  ================
    mode  λᵢ for i = 0 … n−1, t = i/(n−1)
    ====  ==================================================  ================
    1     1, then 1/cond                                      one large
    2     1, the last 1/cond                                  one small
    3     cond^(−t)                                           geometric
    4     1 − t(1 − 1/cond)                                   arithmetic
    5     cond^(−uᵢ), uᵢ uniform on [0, 1), sorted            log-uniform
    ====  ==================================================  ================

    Modes 1 to 4 have largest value 1 and smallest 1/cond (n ≥ 2; n = 1 gives 1); mode 5 stays
    between the two. LAPACK's mode 6 (the law of the matrix entries) ignores cond and may be
    negative: not offered.

    Args:
        mode: 1 to 5.
        n: Order, at least 1.
        cond: Condition number, at least 1.
        generator: CPU generator, used (and required) by mode 5 only.

    Raises:
        ValueError: If an argument is out of range, or mode 5 has no generator.

    Source: Demmel & McKenney (1989), A test matrix generation suite, LAPACK Working Note 9;
    DLATM1 in LAPACK's TESTING/MATGEN.

    Example:
        >>> lapack_mode(4, 3, 10.0)
        tensor([1.0000, 0.5500, 0.1000], dtype=torch.float64)
    """
    _require(mode in (1, 2, 3, 4, 5), f"mode must be 1, 2, 3, 4 or 5, got {mode}.")
    _require(n >= 1, f"n must be at least 1, got {n}.")
    _require(1 <= cond < math.inf, f"cond must be finite and at least 1, got {cond}.")
    t = torch.linspace(0, 1, n, dtype=torch.float64)  # [0] for n = 1
    if mode == 1:
        values = torch.where(t > 0, 1 / cond, torch.ones_like(t))
    elif mode == 2:
        values = torch.where(t == 1, 1 / cond, torch.ones_like(t))
    elif mode == 3:
        values = torch.where(t < 1, cond**-t, 1 / cond)
    elif mode == 4:
        values = (1 - t) + t / cond  # no cancellation at the small end, unlike the usual form
    else:
        _require(generator is not None, "mode 5 is random: pass generator=torch.Generator().")
        values = cond ** -torch.rand(n, generator=generator, dtype=torch.float64)
    # For cond close to 1, rounding could leave the interval or the order by one unit.
    return values.clamp(1 / cond, 1).sort(descending=True).values


def power_law(n: int, exponent: float) -> Tensor:
    """Eigenvalues i^(−exponent), i = 1 … n, of condition number n^exponent.

    Raises:
        ValueError: If n < 1, or exponent is negative or not finite.

    Example:
        >>> power_law(3, 2.0)
        tensor([1.0000, 0.2500, 0.1111], dtype=torch.float64)
    """
    _require(n >= 1, f"n must be at least 1, got {n}.")
    _require(0 <= exponent < math.inf, f"exponent must be finite and ≥ 0, got {exponent}.")
    return torch.arange(1, n + 1, dtype=torch.float64) ** -exponent


def clusters(
    n: int, centres: Sequence[float], spread: float, *, sizes: Sequence[int] | None = None
) -> Tensor:
    """Eigenvalues in a few clusters c·(1 + spread·u), u equally spaced in (−1, 1), of mean c.

    The clusters have equal sizes, the first ones taking the remainder, unless `sizes` says more:
    centres (100, 1) with sizes (5, n − 5) are a bulk and five outliers.

    Raises:
        ValueError: If a centre is not positive, spread is outside [0, 1), or the sizes do not match
            the centres, are below 1 or do not add up to n.

    Example:
        >>> clusters(5, [10.0, 1.0], 0.1)
        tensor([10.6667, 10.0000,  9.3333,  1.0500,  0.9500], dtype=torch.float64)
    """
    k = len(centres)
    positive = k >= 1 and all(0 < c < math.inf for c in centres)
    _require(positive, f"centres must be positive and finite, got {list(centres)}.")
    _require(0 <= spread < 1, f"spread must be in [0, 1), so that values stay > 0, got {spread}.")
    counts = [n // k + (i < n % k) for i in range(k)] if sizes is None else list(sizes)
    _require(
        len(counts) == k and min(counts) >= 1 and sum(counts) == n,
        f"{k} clusters need {k} sizes ≥ 1 that add up to n = {n}, got {counts}.",
    )
    u = [(2 * torch.arange(s, dtype=torch.float64) + 1) / s - 1 for s in counts]
    values = [c * (1 + spread * offsets) for c, offsets in zip(centres, u, strict=True)]
    return torch.cat(values).sort(descending=True).values


def marchenko_pastur(n: int, ratio: float) -> Tensor:
    r"""Quantiles, at (i + ½)/n, of the Marchenko–Pastur law: the spectrum of Gaussian JᵀJ/N.

    For J of shape (N, n) with independent standard normal entries, n/N → ratio = r² < 1, the
    eigenvalues fill [(1−r)², (1+r)²], with mean 1 and second moment 1 + ratio. With
    x = 1 + r² − 2r cos θ, θ in [0, π], the distribution function is

    .. math:: \pi F = \theta + \frac{\sin\theta}{r}
              - \frac{1 - r^2}{r^2} \arctan\frac{r \sin\theta}{1 - r \cos\theta}

    (integrate the density after sin θ / x = Σ_k r^(k−1) sin kθ), inverted here by bisection:
    nothing is drawn.

    Raises:
        ValueError: If n < 1 or ratio is outside (0, 1); at 1 the law reaches 0.

    Source: Marchenko & Pastur (1967), doi:10.1070/SM1967v001n04ABEH001994.
    """
    _require(n >= 1, f"n must be at least 1, got {n}.")
    _require(0 < ratio < 1, f"ratio must be in (0, 1) for positive eigenvalues, got {ratio}.")
    r = math.sqrt(ratio)
    target = math.pi * (torch.arange(n, 0, -1, dtype=torch.float64) - 0.5) / n
    low, high = torch.zeros_like(target), torch.full_like(target, math.pi)
    for _ in range(60):  # π/2⁶⁰ is below the spacing of float64
        theta = (low + high) / 2
        sin, cos = theta.sin(), theta.cos()
        angle = torch.atan2(r * sin, 1 - r * cos)
        below = theta + sin / r - (1 / ratio - 1) * angle < target
        low, high = torch.where(below, theta, low), torch.where(below, high, theta)
    return (1 - r) ** 2 + 4 * r * (theta / 2).sin() ** 2  # = x, without cancellation near 0


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
