r"""Isotropic probe vectors, E[x xᵀ] = I: the only place of the package where anything is drawn.

Probes are drawn on the CPU, Rademacher signs as int8 and the others in float64, then converted and
moved: the same generator gives the same probes for float32 and float64, CPU and GPU.
"""

from __future__ import annotations

import hashlib
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
    shape = _shape(n, m, batch_shape)
    bits = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
    return (2 * bits - 1).to(device=device, dtype=dtype).mT


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
    shape = _shape(n, m, batch_shape)
    if m > n:
        raise ValueError(f"At most n = {n} orthogonal probes exist, got m = {m}.")
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(x.mT)
    # The sign of diag(R) makes Q Haar distributed (Mezzadri 2007, arXiv math-ph/0609050).
    q = q * (n**0.5 * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2))
    return q.mT.contiguous().to(device=device, dtype=dtype).mT


LAWS: dict[str, Sampler] = {
    "rademacher": rademacher,
    "gaussian": gaussian,
    "sphere": sphere,
    "orthogonal": orthogonal,
}


def _shape(n: int, m: int, batch_shape: Sequence[int]) -> tuple[int, ...]:
    # Stored as rows (..., m, n), handed out transposed: block products read contiguous rows.
    if n < 1 or m < 1:
        raise ValueError(f"Probes need n ≥ 1 and m ≥ 1, got n = {n}, m = {m}.")
    return (*batch_shape, m, n)
