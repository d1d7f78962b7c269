r"""Isotropic probe vectors, E[x xᵀ] = I: the only place of the package where anything is drawn.

Probes are drawn on the CPU, signs as int8 and the others in float64, then converted and moved: the
same generator gives the same probes for float32 and float64, CPU and GPU.

| law | probes of a block | Var of the mean of xᵀBx over a block of m |
|---|---|---|
| `rademacher`, `gaussian`, `sphere` | independent | V₁/m |
| `orthogonal`, `hadamard`, `mixed_unit`, `unit_vector` | orthogonal, m ≤ n | (n−m)/(n−1) V₁/m |
| `antithetic` | pairs, nearly orthogonal | (n−2)/(n−1) V₁/m, for odd n (n−1)/n V₁/m |

V₁, the variance of one probe, is in the docstrings; `specbp.exact.block_variance` computes them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Sampler(Protocol):
    """A probe law: (n, m) -> probes (*batch_shape, n, m)."""

    def __call__(
        self,
        n: int,
        m: int,
        *,
        generator: torch.Generator,
        batch_shape: Sequence[int] = (),
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw m probes of length n for every item of the batch."""


def generator_for(*key: object) -> torch.Generator:
    """CPU generator seeded by the SHA-256 of the key's representation.

    Equal keys give equal streams on every machine; different keys give unrelated ones.

    Example:
        >>> a, b = generator_for("case", 1), generator_for("case", 1)
        >>> bool((rademacher(4, 2, generator=a) == rademacher(4, 2, generator=b)).all())
        True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def rademacher(
    n: int,
    m: int,
    *,
    generator: torch.Generator,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Independent signs ±1, shape (*batch_shape, n, m): the law of Hutchinson (1990).

    .. math:: \operatorname{Var} x^\top B x = 2 \bigl(\|B\|_F^2 - \textstyle\sum_i b_{ii}^2\bigr)

    Raises:
        ValueError: If n < 1 or m < 1.
    """
    signs = _signs(_shape(n, m, batch_shape), generator)
    return signs.to(device=device, dtype=dtype).mT


def gaussian(
    n: int,
    m: int,
    *,
    generator: torch.Generator,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Independent standard normal vectors, shape (*batch_shape, n, m).

    .. math:: \operatorname{Var} x^\top B x = 2 \|B\|_F^2

    Raises:
        ValueError: If n < 1 or m < 1.
    """
    x = torch.randn(_shape(n, m, batch_shape), generator=generator, dtype=torch.float64)
    return x.to(device=device, dtype=dtype).mT


def sphere(
    n: int,
    m: int,
    *,
    generator: torch.Generator,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Independent vectors uniform on the sphere of radius √n, shape (*batch_shape, n, m).

    .. math:: \operatorname{Var} x^\top B x
              = \tfrac{2n}{n+2} \bigl(\|B\|_F^2 - (\operatorname{tr} B)^2 / n\bigr)

    Raises:
        ValueError: If n < 1 or m < 1.
    """
    x = torch.randn(_shape(n, m, batch_shape), generator=generator, dtype=torch.float64)
    x = x * (n**0.5 / torch.linalg.vector_norm(x, dim=-1, keepdim=True))
    return x.to(device=device, dtype=dtype).mT


def orthogonal(
    n: int,
    m: int,
    *,
    generator: torch.Generator,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""m ≤ n mutually orthogonal vectors of length √n, Haar distributed, (*batch_shape, n, m).

    .. math:: \operatorname{Var} \tfrac1m \textstyle\sum_i x_i^\top B x_i
              = \tfrac{n - m}{n - 1} \, \tfrac{V_1}{m}, \quad V_1 \text{ that of the sphere}

    The probes of one block are dependent: `Estimate.standard_error` is then conservative.

    Raises:
        ValueError: If n < 1, m < 1 or m > n.
    """
    shape = _orthogonal_shape(n, m, batch_shape)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(x.mT)
    # The sign of diag(R) makes Q Haar distributed (Mezzadri 2007, arXiv math-ph/0609050).
    q = q * (n**0.5 * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2))
    return q.mT.contiguous().to(device=device, dtype=dtype).mT


def hadamard(
    n: int,
    m: int,
    *,
    generator: torch.Generator,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""m ≤ n = 2ᵏ columns of D H, drawn without replacement, (*batch_shape, n, m).

    D holds random signs, H_ij = (−1)^popcount(i & j) is Sylvester's matrix: the probes of a block
    are signs and mutually orthogonal, and one probe alone is a Rademacher vector.

    .. math:: \operatorname{Var} \tfrac1m \textstyle\sum_i x_i^\top B x_i
              = \tfrac{n - m}{n - 1} \, \tfrac{V_1}{m}, \quad V_1 \text{ that of Rademacher signs}

    The probes of one block are dependent: `Estimate.standard_error` is then conservative.

    Raises:
        ValueError: If n < 1, m < 1, m > n, or n is not a power of two.

    Source: Avron and Toledo (2011), doi:10.1145/1944345.1944349, mixed unit vectors.

    Example:
        >>> X = hadamard(4, 4, generator=generator_for("doc"))
        >>> bool((X.mT @ X == 4 * torch.eye(4)).all())
        True
    """
    shape = _orthogonal_shape(n, m, batch_shape)
    if n & (n - 1):
        remedy = "take mixed_unit or orthogonal probes, which exist for every n"
        raise ValueError(f"Hadamard probes need n = 2^k, got n = {n}: {remedy}.")
    j = _without_replacement(shape, generator)
    rows = torch.ones((*shape[:-1], 1), dtype=torch.int8)
    for bit in range(n.bit_length() - 1):
        sign = (1 - 2 * (j >> bit & 1)).to(torch.int8)
        rows = torch.cat([rows, sign.unsqueeze(-1) * rows], -1)
    rows = rows * _signs((*batch_shape, 1, n), generator)
    return rows.to(device=device, dtype=dtype).mT


def mixed_unit(
    n: int,
    m: int,
    *,
    generator: torch.Generator,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""m ≤ n vectors √n D Fᵀ eⱼ, j drawn without replacement, shape (*batch_shape, n, m).

    D holds random signs, F is the orthonormal discrete cosine transform (DCT-II), of any order n:
    mutually orthogonal vectors of length √n, n of which give the trace exactly.

    .. math:: V_1 &= \operatorname{E}_j \bigl[ 2 n^2 \textstyle\sum_{p \ne q}
              F_{jp}^2 F_{jq}^2 b_{pq}^2 \bigr]
              + \operatorname{Var}_j \bigl( n \textstyle\sum_p F_{jp}^2 b_{pp} \bigr), \\
              \operatorname{Var} \tfrac1m \textstyle\sum_i x_i^\top B x_i
              &= \tfrac{n - m}{n - 1} \, \tfrac{V_1}{m} \quad (B \text{ symmetric})

    The block variance is exact: whatever the signs, all n vectors have the mean tr B.
    `Estimate.standard_error` is conservative.

    Raises:
        ValueError: If n < 1, m < 1 or m > n.

    Source: Avron and Toledo (2011), doi:10.1145/1944345.1944349.
    """
    shape = _orthogonal_shape(n, m, batch_shape)
    j = _without_replacement(shape, generator).unsqueeze(-1)
    # Reduced as integers, the angle keeps its accuracy for every n.
    angle = ((2 * torch.arange(n) + 1) * j % (4 * n)).double() * (math.pi / (2 * n))
    rows = angle.cos() * (2 - (j == 0).double()).sqrt()
    rows = rows * _signs((*batch_shape, 1, n), generator)
    return rows.to(device=device, dtype=dtype).mT


def unit_vector(
    n: int,
    m: int,
    *,
    generator: torch.Generator,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""m ≤ n vectors √n eⱼ, j drawn without replacement, shape (*batch_shape, n, m).

    .. math:: \operatorname{Var} \tfrac1m \textstyle\sum_i x_i^\top B x_i
              = \tfrac{n - m}{n - 1} \, \tfrac{V_1}{m}, \quad
              V_1 = n \textstyle\sum_i b_{ii}^2 - (\operatorname{tr} B)^2

    For matrices of nearly constant diagonal. Unlike the other laws, E[x] is not 0 but 1/√n.
    `Estimate.standard_error` is conservative.

    Raises:
        ValueError: If n < 1, m < 1 or m > n.

    Source: Avron and Toledo (2011), doi:10.1145/1944345.1944349.
    """
    shape = _orthogonal_shape(n, m, batch_shape)
    j = _without_replacement(shape, generator)
    rows = torch.zeros(shape, dtype=torch.float64).scatter_(-1, j.unsqueeze(-1), n**0.5)
    return rows.to(device=device, dtype=dtype).mT


def antithetic(
    n: int,
    m: int,
    *,
    generator: torch.Generator,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Independent pairs (x, s ∘ x) side by side, m even, shape (*batch_shape, n, m).

    x is a Rademacher vector, s an independent and uniformly random sign vector of which half, for
    odd n the floor or the ceiling of half with equal probability, are −1: xᵀ(s ∘ x) is 0, or ±1.

    .. math:: \operatorname{Cov}(x^\top B x, (s \circ x)^\top B (s \circ x))
              &= V_1 \operatorname{E}[s_i s_j] = \rho V_1, \quad
              \rho = -\tfrac1{n - 1} \text{ (n even)}, \ -\tfrac1n \text{ (n odd)}, \\
              \operatorname{Var} \tfrac1m \textstyle\sum_i x_i^\top B x_i
              &= (1 + \rho) \, \tfrac{V_1}{m}, \quad V_1 \text{ that of Rademacher signs}

    `Estimate.standard_error` takes the probes of a pair for independent and is conservative.

    Raises:
        ValueError: If n < 1, m < 1 or m is odd.

    Source: antithetic variates, Hammersley and Morton (1956), doi:10.1017/S0305004100031455;
    E[sᵢ sⱼ] follows from E[(Σ sᵢ)²], which is 0 or 1.
    """
    shape = _shape(n, m, batch_shape)
    if m % 2:
        raise ValueError(f"Antithetic probes come in pairs: m must be even, got m = {m}.")
    half = (*batch_shape, m // 2, n)
    x = _signs(half, generator)
    coin = torch.randint(0, 2, (*half[:-1], 1), generator=generator)
    place = torch.rand(half, generator=generator, dtype=torch.float64).argsort(-1)
    rows = torch.stack([x, torch.where(place < (n + coin) // 2, -x, x)], -2).reshape(shape)
    return rows.to(device=device, dtype=dtype).mT


LAWS: dict[str, Sampler] = {
    "rademacher": rademacher,
    "gaussian": gaussian,
    "sphere": sphere,
    "orthogonal": orthogonal,
    "hadamard": hadamard,
    "mixed_unit": mixed_unit,
    "unit_vector": unit_vector,
    "antithetic": antithetic,
}


def _shape(n: int, m: int, batch_shape: Sequence[int]) -> tuple[int, ...]:
    # Stored as rows (..., m, n), handed out transposed: block products read contiguous rows.
    if n < 1 or m < 1:
        raise ValueError(f"Probes need n ≥ 1 and m ≥ 1, got n = {n}, m = {m}.")
    return (*batch_shape, m, n)


def _orthogonal_shape(n: int, m: int, batch_shape: Sequence[int]) -> tuple[int, ...]:
    shape = _shape(n, m, batch_shape)
    if m > n:
        raise ValueError(f"At most n = {n} orthogonal probes exist, got m = {m}.")
    return shape


def _signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return 2 * torch.randint(0, 2, tuple(shape), generator=generator, dtype=torch.int8) - 1


def _without_replacement(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """m different indices out of n, in random order, for a shape (..., m, n): (..., m)."""
    *batch, m, n = shape
    return torch.rand((*batch, n), generator=generator, dtype=torch.float64).argsort(-1)[..., :m]
