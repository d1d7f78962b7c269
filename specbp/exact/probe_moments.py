"""Exact moments of quadratic forms q = xᵀBx in random probes, and exhaustive sign vectors.

Three laws with E[x xᵀ] = I: "rademacher" (independent signs), "gaussian" (standard normal),
"sphere" (uniform on |x|² = n). B enters only through its symmetric part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from specbp.exact._arrays import Array, as_square

# 2^19 vectors of length 20 take 84 MB; each further coordinate doubles that.
_MAX_ENUMERATED = 20


@dataclass(frozen=True)
class Moments:
    """Mean and central moments of orders two to four of a scalar random variable.

    >>> m = moments([[0.0, 1.0], [1.0, 0.0]], "rademacher")      # q = 2 x_1 x_2 = +-2
    >>> m.mean, m.variance, m.third, m.fourth, m.excess_kurtosis
    (0.0, 4.0, 0.0, 16.0, -2.0)
    """

    mean: float
    variance: float
    third: float
    fourth: float

    @property
    def skewness(self) -> float:
        """Third standardised moment; NaN where the variance is zero."""
        return self.third / self.variance**1.5 if self.variance > 0 else math.nan

    @property
    def excess_kurtosis(self) -> float:
        """Fourth standardised moment minus 3; NaN where the variance is zero."""
        return self.fourth / self.variance**2 - 3 if self.variance > 0 else math.nan

    def averaged(self, m: int) -> Moments:
        r"""Moments of the mean of m independent copies.

        .. math:: \sigma^2/m, \qquad \mu_3/m^2, \qquad \bigl(\mu_4 + 3(m-1)\sigma^4\bigr)/m^3.

        Raises:
            ValueError: m is not a positive integer.
        """
        m = positive(m, "m")
        fourth = (self.fourth + 3 * (m - 1) * self.variance**2) / m**3
        return Moments(self.mean, self.variance / m, self.third / m**2, fourth)


def moments(B: Any, law: str) -> Moments:
    r"""Exact moments of q = xᵀBx for one probe.

    Rademacher, with C the off-diagonal part of B:

    .. math:: \sigma^2 = 2\|C\|_F^2, \quad \mu_3 = 8\,\mathrm{tr}C^3, \quad
              \mu_4 = 12\|C\|_F^4 + 48\,\mathrm{tr}C^4
              - 96\sum_i (C^2)_{ii}^2 + 32\sum_{ij} C_{ij}^4.

    Gaussian: from the cumulants κ_r = 2^(r−1) (r−1)! tr Bʳ. Sphere: the Gaussian central moments of
    B₀ = B − (tr B / n) I, that of order r times nʳ / (n (n+2) ... (n+2r−2)).

    One product of n x n matrices, so n = 1024 costs a fraction of a second.

    Args:
        B: shape (n, n); the symmetric part is used, xᵀBx sees nothing else.
        law: "rademacher", "gaussian" or "sphere"; for blocks of the others, `block_variance`.

    Raises:
        ValueError: B is not one finite square matrix, or the law is unknown.

    Source: Avron and Toledo, J. ACM 58(2) (2011), doi:10.1145/1944345.1944349 (variances);
    Mathai and Provost, Quadratic Forms in Random Variables (1992), chapter 3 (cumulants). The
    third and fourth Rademacher moments are counted out and checked by enumeration in the tests.
    """
    if law not in _LAWS:
        msg = f"law must be one of {sorted(_LAWS)}, got {law!r}"
        raise ValueError(msg)
    B = as_square(B, "B")
    return _LAWS[law]((B + B.T) / 2)


def orthogonal_variance(B: Any, m: int, law: str) -> float:
    r"""Variance of the mean of x_jᵀBx_j over m orthogonal probes of length √n.

    .. math:: \mathrm{Var} = \frac{\sigma^2}{m}\,\frac{n - m}{n - 1},

    with σ² the variance of one probe. It holds for any m exchangeable columns out of n
    orthogonal ones, since all n together give the trace: Haar columns ("sphere"), or columns of
    D H drawn without replacement, D random signs and H a Hadamard matrix ("rademacher").

    Raises:
        ValueError: m is not in 1..n, or the law has no such design.

    >>> orthogonal_variance(np.diag([1.0, 2.0, 3.0]), 3, "sphere")
    0.0
    """
    if law not in ("rademacher", "sphere"):
        msg = f'law must be "rademacher" or "sphere" for orthogonal probes, got {law!r}'
        raise ValueError(msg)
    n = as_square(B, "B").shape[0]
    m = positive(m, "m")
    if m > n:
        msg = f"at most n = {n} probes can be orthogonal, got m = {m}"
        raise ValueError(msg)
    return moments(B, law).variance / m * (n - m) / max(n - 1, 1)


def all_signs(n: int) -> Array:
    """Enumerate the sign vectors of length n up to global sign: (2^(n-1), n), first entry +1.

    x and -x give the same quadratic form (and the same Krylov space up to sign), so the equally
    weighted rows carry the exact law of any even function of a Rademacher probe.

    Raises:
        ValueError: n is not in 1..20.

    >>> all_signs(2)
    array([[ 1.,  1.],
           [ 1., -1.]])
    """
    n = positive(n, "n")
    if n > _MAX_ENUMERATED:
        msg = f"n must be at most {_MAX_ENUMERATED} (2^(n-1) vectors), got {n}"
        raise ValueError(msg)
    bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n - 1) & 1
    return np.hstack([np.ones((len(bits), 1)), 1.0 - 2.0 * bits])


def _rademacher(B: Array) -> Moments:
    C = B - np.diag(np.diagonal(B))
    C2 = C @ C
    norm2 = np.sum(C * C)
    fourth = (
        12 * norm2**2 + 48 * np.sum(C2 * C2) - 96 * np.sum(np.diagonal(C2) ** 2) + 32 * np.sum(C**4)
    )
    return _as_moments(np.trace(B), 2 * norm2, 8 * np.sum(C2 * C), fourth)


def _gaussian(B: Array) -> Moments:
    B2 = B @ B
    norm2 = np.sum(B * B)
    fourth = 48 * np.sum(B2 * B2) + 12 * norm2**2
    return _as_moments(np.trace(B), 2 * norm2, 8 * np.sum(B2 * B), fourth)


def _sphere(B: Array) -> Moments:
    n = len(B)
    mean = np.trace(B)
    # A Gaussian is g = |g| x / √n with |g| independent of x, and q − tr B is the form of B₀:
    # E (gᵀB₀g)ʳ = E|g|²ʳ / nʳ · E (xᵀB₀x)ʳ,   E|g|²ʳ = n (n + 2) ... (n + 2r − 2).
    g = _gaussian(B - mean / n * np.eye(n))
    ratio = [n**r / math.prod(range(n, n + 2 * r, 2)) for r in (2, 3, 4)]
    return _as_moments(mean, ratio[0] * g.variance, ratio[1] * g.third, ratio[2] * g.fourth)


_LAWS: dict[str, Callable[[Array], Moments]] = {
    "rademacher": _rademacher,
    "gaussian": _gaussian,
    "sphere": _sphere,
}


def _as_moments(*values: float) -> Moments:
    return Moments(*(float(value) for value in values))


def positive(value: int, name: str) -> int:
    """The value as an int; anything but a positive integer is an error."""
    if int(value) != value or value < 1:
        msg = f"{name} must be a positive integer, got {value}"
        raise ValueError(msg)
    return int(value)
