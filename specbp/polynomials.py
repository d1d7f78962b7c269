r"""Polynomial approximations of log and the moments of a probe in their bases.

A polynomial estimate is an inner product c · μ(x) of coefficients, which know the interval, and of
moments μ_k = xᵀ φ_k(A) x, which know the probe. Symmetry gives two moments for each product,

.. math:: x^\top T_{2k} x = 2 |T_k x|^2 - |x|^2, \qquad
          x^\top T_{2k+1} x = 2 (T_k x)^\top (T_{k+1} x) - x^\top T_1 x,

so degree d costs ⌈d/2⌉ products.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from specbp.estimate import Status
from specbp.operators import LinearOperator, product


class Moments(NamedTuple):
    """Moments of every probe and what they betray of the spectrum.

    Attributes:
        moments: μ_0 … μ_d, (..., m, d + 1), float64.
        growth: max_k |xᵀ φ_{2k}(A) x| / |x|², (..., m): at most 1 if the spectrum is where it
            should be.
        rayleigh: Rayleigh quotient of A at the vector φ_k(A) x that grew most, (..., m): where it
            is.
        asymmetry: |xᵀ φ_k x by doubling − directly| / |x|² of the last vector, relative to the
            growth, (..., m): rounding if A = Aᵀ.
        vectors: φ_0(A) x … φ_⌈d/2⌉(A) x, (..., m, n), if they were to be kept.
    """

    moments: Tensor
    growth: Tensor
    rayleigh: Tensor
    asymmetry: Tensor
    vectors: tuple[Tensor, ...] = ()


def chebyshev_coefficients(degree: int, lower: Tensor, upper: Tensor) -> Tensor:
    r"""Coefficients of the interpolant of log at Chebyshev points of [lower, upper], (..., d + 1).

    .. math:: c_k = \frac{2 - [k=0]}{d+1} \sum_{j=0}^{d} \log(y_j) \cos\frac{k \pi (j + 1/2)}{d+1},
              \quad y_j = \tfrac{b-a}{2} \cos\tfrac{\pi (j + 1/2)}{d+1} + \tfrac{a+b}{2}

    Source: Han, Malioutov & Shin (2015), arXiv:1503.06394, equation (4) of Ramesh & LeCun (2018).
    """
    a, b = lower.double().unsqueeze(-1), upper.double().unsqueeze(-1)
    k = torch.arange(degree + 1, dtype=torch.float64, device=a.device)
    angle = math.pi * (k + 0.5) / (degree + 1)
    values = (a + (b - a) * torch.cos(angle / 2) ** 2).log()
    coefficients = 2 / (degree + 1) * values @ torch.cos(torch.outer(angle, k))
    return torch.cat([coefficients[..., :1] / 2, coefficients[..., 1:]], -1)


def chebyshev_series(degree: int, lower: Tensor, upper: Tensor) -> Tensor:
    r"""Coefficients of the Chebyshev series of log on [lower, upper], in closed form, (..., d + 1).

    .. math:: c_0 = \log\frac{(\sqrt a + \sqrt b)^2}{4}, \quad
              c_k = \frac{2 (-1)^{k+1}}{k} \rho^{-k}, \quad
              \rho = \frac{\sqrt b + \sqrt a}{\sqrt b - \sqrt a}

    Its truncation error is at most 2 ρ^{-d} / ((d+1)(ρ-1)), attained at λ = a, about half of the
    interpolant's. Derived from −log(1 − 2 t x + t²) = Σ 2 tᵏ T_k(x) / k, t = −1/ρ.
    """
    a, b = lower.double().sqrt().unsqueeze(-1), upper.double().sqrt().unsqueeze(-1)
    k = torch.arange(1, degree + 1, dtype=torch.float64, device=a.device)
    tail = -2 / k * ((a - b) / (a + b)) ** k
    return torch.cat([2 * ((a + b) / 2).log(), tail], -1)


def taylor_coefficients(degree: int, upper: Tensor) -> Tensor:
    r"""Coefficients of log x = log α + Σ_{k ≥ 1} −(1/k) (1 − x/α)^k at α = upper, (..., d + 1).

    Source: Boutsidis, Drineas, Kambadur, Kontopoulou & Zouzias (2017), arXiv:1503.00374.
    """
    k = torch.arange(1, degree + 1, dtype=torch.float64, device=upper.device)
    tail = (-1 / k).expand(*upper.shape, degree)
    return torch.cat([upper.double().log().unsqueeze(-1), tail], -1)


def check_degree(degree: int) -> None:
    """Refuse a degree below 1.

    Raises:
        ValueError: If degree < 1.
    """
    if degree < 1:
        raise ValueError(f"The degree of the polynomial must be at least 1, got {degree}.")


def moving_interval(coefficients: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    r"""The coefficients of p on the interval as it is, when its ends a and b move p.

    .. math:: \tilde c(a, b): \quad
              \sum_k \tilde c_k T_k(x) = \sum_k c_k(a, b)\, T_k\bigl(\phi_{a,b}^{-1}(\phi(x))\bigr)

    with φ the map of [-1, 1] to the interval, held fixed: c̃ = c, but differentiated with respect to
    a and b it is the derivative of p, not of its coefficients in a moving basis.

    Args:
        coefficients: c, (..., m, d + 1), with the graph of a and b.
        lower: a, shape (...).
        upper: b, shape (...).
    """
    count = coefficients.shape[-1]
    k = torch.arange(count, dtype=torch.float64, device=coefficients.device)
    cosines = torch.cos(torch.outer(math.pi * (k + 0.5) / count, k))
    a, b = (end.double()[..., None, None] for end in (lower, upper))
    points = (a + (b - a) * (1 + cosines[:, 1]) / 2).detach()
    angle = torch.acos((2 * points - a - b) / (b - a)).mT
    values = (torch.cos(angle * k) @ coefficients.mT).mT
    found = 2 / count * values @ cosines
    return torch.cat([found[..., :1] / 2, found[..., 1:]], -1)


def chebyshev_moments(
    A: LinearOperator,
    rows: Tensor,
    degree: int,
    lower: Tensor,
    upper: Tensor,
    *,
    keep: bool = False,
) -> Moments:
    r"""Moments xᵀ T_k(M) x with M = (2A − (a+b) I) / (b−a), ⌈d/2⌉ products.

    Args:
        A: Symmetric operator (..., n, n).
        rows: Probes as rows (..., m, n).
        degree: d ≥ 1.
        lower: a, shape (...).
        upper: b > a, shape (...).
        keep: Whether to return the vectors.
    """
    slope = _as_rows(2 / (upper - lower), rows)
    offset = _as_rows((upper + lower) / (upper - lower), rows)
    double_slope, double_offset = 2 * slope, 2 * offset

    def vectors() -> Iterator[Tensor]:
        # w_k up to its sign σ_k = + + − − + + …: with σ_{k+1} = −σ_{k−1} both terms are added, and
        # a step reads its vectors twice instead of three times.
        before, w, sign = rows, slope * product(A, rows) - offset * rows, 1
        yield from (before, w)
        while True:
            sign = -sign
            known = torch.addcmul(before, double_offset, w, value=-sign)
            before, w = w, torch.addcmul(known, double_slope, product(A, w), value=sign)
            yield w

    kept: list[Tensor] = []
    squares, across, last = _inner_products(_kept(vectors(), kept, keep), degree)
    across, last = across * _signs(across), last * (-1) ** (len(across) // 2)
    even, odd = 2 * squares - squares[:1], 2 * across - across[:1]
    image = torch.cat([across[:1], (across[1:] + across[:-1]) / 2])
    raw = _moments(even, odd, last, image / squares[:-1], degree)
    scale, shift = slope.squeeze(-1).double(), offset.squeeze(-1).double()
    signed = tuple(-w if k // 2 % 2 else w for k, w in enumerate(kept))
    return raw._replace(rayleigh=(raw.rayleigh + shift) / scale, vectors=signed)


def taylor_moments(
    A: LinearOperator, rows: Tensor, degree: int, upper: Tensor, *, keep: bool = False
) -> Moments:
    """Moments xᵀ (I − A/upper)^k x, ⌈d/2⌉ products; shapes as in `chebyshev_moments`."""
    inverse = _as_rows(1 / upper, rows)

    def vectors() -> Iterator[Tensor]:
        w = rows
        while True:
            yield w
            w = torch.addcmul(w, inverse, product(A, w), value=-1)

    kept: list[Tensor] = []
    squares, across, last = _inner_products(_kept(vectors(), kept, keep), degree)
    raw = _moments(squares, across, last, across / squares[:-1], degree)
    found = (1 - raw.rayleigh) / inverse.squeeze(-1).double()
    return raw._replace(rayleigh=found, vectors=tuple(kept))


def _kept(vectors: Iterator[Tensor], kept: list[Tensor], keep: bool) -> Iterator[Tensor]:
    for w in vectors:
        if keep:
            kept.append(w)
        yield w


def _inner_products(vectors: Iterator[Tensor], degree: int) -> tuple[Tensor, Tensor, Tensor]:
    """|w_k|² and w_kᵀ w_{k+1} of the first ⌈d/2⌉ + 1 vectors, stacked in front; last w_0ᵀ w_k."""
    start = w = next(vectors)
    lengths, across = [torch.linalg.vector_norm(start, dim=-1)], []
    for following in itertools.islice(vectors, (degree + 1) // 2):
        across.append(_dot(w, following))
        lengths.append(torch.linalg.vector_norm(following, dim=-1))
        w = following
    squares = torch.stack(lengths).double() ** 2
    return squares, torch.stack(across).double(), _dot(start, w).double()


def _moments(even: Tensor, odd: Tensor, last: Tensor, image: Tensor, degree: int) -> Moments:
    """Interleave the moments; keep the Rayleigh quotient `image` where the vectors grew most."""
    total = even[0]
    both = torch.stack([even[:-1], odd], 1).flatten(0, 1)
    moments = torch.cat([both, even[-1:]])[: degree + 1]
    # φ_{2k} bounds |φ_k|² for both bases: a growing vector shows in the even moments. What grew
    # out of the range of the dtype was large before.
    size = torch.where(torch.isfinite(even), even.abs(), 0)
    growth = size.amax(0) / total
    where = torch.where(torch.isfinite(image), size[:-1], -1).argmax(0)
    # The last vector gives its moment directly; doubling had it from symmetry. At degree 1 the two
    # are the same number.
    gap = (moments[len(odd)] - last).abs() / total / growth
    rayleigh = image.gather(0, where.unsqueeze(0)).squeeze(0)
    return Moments(moments.movedim(0, -1), growth, rayleigh, gap)


def _signs(across: Tensor) -> Tensor:
    """σ_k σ_{k+1} = + − + − …, in front."""
    k = torch.arange(len(across), device=across.device)
    return (1 - 2 * (k % 2)).view(-1, *[1] * (across.ndim - 1))


def _as_rows(scalar: Tensor, rows: Tensor) -> Tensor:
    return scalar.to(rows)[..., None, None]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def growth_status(
    growth: Tensor, asymmetry: Tensor, degree: int | Tensor, dtype: torch.dtype, amplified: Tensor
) -> Tensor:
    """Flags of vectors that grew or betrayed asymmetry under a polynomial on [a, b].

    An eigenvalue within rounding δ of an end grows like T_d(1 + δ) = 1 + d² δ + …, and products are
    rounded to eps |A|, which is eps times `amplified` = (b + a) / (b − a) in the variable of T_d.
    """
    eps = torch.finfo(dtype).eps
    outside = growth > 1 + 16 * (degree + 1) ** 2 * eps * amplified
    asymmetric = asymmetry > eps**0.5 * amplified
    return outside * int(Status.OUTSIDE_INTERVAL) | asymmetric * int(Status.NONSYMMETRIC)
