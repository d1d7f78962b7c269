r"""Exact variance of the mean of xᵀBx over a block of m probes, for every law of `specbp.probes`.

One-probe variances V₁ and what the dependence inside a block makes of them, for symmetric B:

| law | V₁ | variance of the mean |
|---|---|---|
| rademacher | 2 (‖B‖² − Σ b_ii²) | V₁/m |
| gaussian | 2 ‖B‖² | V₁/m |
| sphere | 2n/(n+2) (‖B‖² − (tr B)²/n) | V₁/m |
| orthogonal | that of the sphere | V₁/m · (n−m)/(n−1) |
| hadamard, n = 2ᵏ | that of rademacher | V₁/m · (n−m)/(n−1) |
| mixed_unit | see `block_variance` | V₁/m · (n−m)/(n−1) |
| unit_vector | n Σ b_ii² − (tr B)² | V₁/m · (n−m)/(n−1) |
| antithetic, m even | that of rademacher | V₁/m · (1 − 1/(n−1)), n odd: V₁/m · (1 − 1/n) |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from specbp.exact._arrays import Array, as_square
from specbp.exact.probe_moments import moments, positive

_INDEPENDENT = ("rademacher", "gaussian", "sphere")
_PAIRED = "antithetic"


def block_variance(B: Any, law: str, m: int) -> float:
    r"""Variance of the mean of x_jᵀBx_j over one block of m probes of a law.

    For "orthogonal", "hadamard", "mixed_unit" and "unit_vector" a block is drawn without
    replacement out of n orthogonal vectors of length √n, whose forms have the mean tr B: the
    variance of sampling from a finite population. With F the orthonormal DCT-II and B symmetric,

    .. math:: \frac{V_1}{m}\,\frac{n - m}{n - 1}, \qquad
              V_1^{\text{mixed}} = \mathrm{E}_j\Bigl[2 n^2 \sum_{p \ne q} F_{jp}^2 F_{jq}^2 b_{pq}^2
              \Bigr] + \mathrm{Var}_j\Bigl(n \sum_p F_{jp}^2 b_{pp}\Bigr).

    For pairs (x, s∘x) with a balanced s the forms have the covariance

    .. math:: \mathrm{E}_s \Bigl[2 \sum_{i \ne j} b_{ij}^2 s_i s_j\Bigr] = V_1\,\mathrm{E}[s_1 s_2],
              \qquad \mathrm{E}[s_1 s_2] = \frac{\mathrm{E}[(\sum_i s_i)^2] - n}{n (n - 1)},

    where (Σ s_i)² is 0 for even and 1 for odd n.

    Args:
        B: shape (n, n); the symmetric part is used.
        law: A name of the table above.
        m: Number of probes in the block.

    Raises:
        ValueError: B is not one finite square matrix, the law is unknown, or it has no block of m
            probes of length n.

    Source: Avron and Toledo, J. ACM 58(2) (2011), doi:10.1145/1944345.1944349 (V₁); Cochran,
    Sampling Techniques (1977), theorem 2.2 (finite populations).

    Eight probes, n = 64: the logarithm of a matrix with condition 1e3 in a random basis, a smooth
    kernel, and a matrix that is nearly diagonal. Signs see no diagonal, unit vectors nothing else.

    >>> i, n = np.arange(64.0), 64
    >>> V = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    >>> examples = {
    ...     "log A": (V * np.linspace(-np.log(1e3), 0, n)) @ V.T,
    ...     "kernel": np.exp(-np.abs(i[:, None] - i) / 8),
    ...     "near diagonal": np.diag(n / (1 + i)) + np.exp(-np.abs(i[:, None] - i)),
    ... }
    >>> print(f"{'variance of 8 probes':20}" + "".join(f"{name:>15}" for name in examples))
    variance of 8 probes          log A         kernel  near diagonal
    >>> for law in (*_INDEPENDENT, *_POPULATIONS, _PAIRED):
    ...     variances = (block_variance(B, law, 8) for B in examples.values())
    ...     print(f"{law:20}" + "".join(f"{v:15.4g}" for v in variances))
    rademacher                    63.61          104.7          4.918
    gaussian                      256.5          120.7           1841
    sphere                        63.65          101.5           1274
    orthogonal                    56.58          90.25           1132
    hadamard                      56.54          93.07          4.372
    mixed_unit                     56.5          92.06          248.3
    unit_vector                    57.9              0      3.722e+04
    antithetic                     62.6            103           4.84
    """
    B, m = as_square(B, "B"), positive(m, "m")
    B, n = (B + B.T) / 2, len(B)
    _check_block(law, n, m)
    if law in _POPULATIONS:
        return _POPULATIONS[law](B) / m * (n - m) / max(n - 1, 1)
    if law in _INDEPENDENT:
        return moments(B, law).variance / m
    correlation = (n % 2 - n) / (n * (n - 1)) if n > 1 else 0.0
    return moments(B, "rademacher").variance / m * (1 + correlation)


def _check_block(law: str, n: int, m: int) -> None:
    known = (*_INDEPENDENT, *_POPULATIONS, _PAIRED)
    msg = ""
    if law not in known:
        msg = f"law must be one of {known}, got {law!r}"
    elif law in _POPULATIONS and m > n:
        msg = f"a block of {law} probes has at most n = {n}, got m = {m}"
    elif law == "hadamard" and n & (n - 1):
        msg = f"hadamard probes need n = 2^k, got n = {n}"
    elif law == _PAIRED and m % 2:
        msg = f"antithetic probes come in pairs: m must be even, got m = {m}"
    if msg:
        raise ValueError(msg)


def _mixed_unit(B: Array) -> float:
    n = len(B)
    squares = n * _dct(n) ** 2
    off = (B - np.diag(np.diagonal(B))) ** 2
    within = 2 * np.einsum("jp,pq,jq->j", squares, off, squares, optimize=True)
    return float(within.mean() + (squares @ np.diagonal(B)).var())


def _dct(n: int) -> Array:
    """Orthonormal DCT-II: row j holds √((2 − δ_j0)/n) cos(π (2p + 1) j / 2n)."""
    j, p = np.arange(n)[:, None], np.arange(n)
    scale = np.where(j == 0, 1.0, 2.0) / n
    return np.sqrt(scale) * np.cos(np.pi * ((2 * p + 1) * j % (4 * n)) / (2 * n))


def _unit_vector(B: Array) -> float:
    return float((len(B) * np.diagonal(B)).var())


_POPULATIONS: dict[str, Callable[[Array], float]] = {
    "orthogonal": lambda B: moments(B, "sphere").variance,
    "hadamard": lambda B: moments(B, "rademacher").variance,
    "mixed_unit": _mixed_unit,
    "unit_vector": _unit_vector,
}
