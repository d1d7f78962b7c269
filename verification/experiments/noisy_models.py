r"""Generators with a known density under noise: linear, injective networks, and a fold.

.. math:: p_\sigma(x) = \int N(z; 0, I)\, N(x; f(z), \sigma^2 I)\, dz
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from specbp import generator_for, matrices

CUT = 45.0  # nats below the peak beyond which a cell of the grid is left out
RADIUS = 9.0  # of the grid: the prior holds exp(−40) beyond
MAX_CELLS = 2_000_000


class Linear(nn.Module):
    """f(z) = L z, for which p_σ is N(0, LLᵀ + σ²I)."""

    def __init__(self, n: int, N: int):
        super().__init__()
        generator = generator_for("noisy decoder", "linear", n, N)
        self.n, self.N = n, N
        self.matrix = nn.Parameter(_tall(N, n, generator) * torch.linspace(0.5, 2, n).double())

    def forward(self, z: Tensor) -> Tensor:
        """Map (b, n) to (b, N)."""
        return z @ self.matrix.mT

    def lipschitz(self) -> float:
        """A Lipschitz constant of f."""
        return float(torch.linalg.matrix_norm(self.matrix.detach(), 2))

    def preimages(self, z: Tensor) -> Tensor:
        """All points (b, k, n) with the image of z (b, n)."""
        return z.unsqueeze(1)

    def log_evidence(self, x: Tensor, sigma: float) -> Tensor:
        """log N(x; 0, LLᵀ + σ²I) from the singular values of L, (P,)."""
        U, s, _ = torch.linalg.svd(self.matrix.detach(), full_matrices=True)
        variance = torch.full((self.N,), sigma**2, dtype=torch.float64)
        variance[: self.n] += s**2
        y = x @ U
        return -(y.square() / variance + (2 * math.pi * variance).log()).sum(-1) / 2

    def posterior(self, x: Tensor, sigma: float, noise: Tensor) -> Tensor:
        """Exact draws (P, C, n) of z given x (P, N), from normal noise (P, C, n)."""
        _, s, Vh = torch.linalg.svd(self.matrix.detach(), full_matrices=False)
        variance = 1 / (1 + s**2 / sigma**2)
        mean = (x @ self.matrix.detach()) @ Vh.mT * variance / sigma**2
        return (mean.unsqueeze(1) + noise * variance.sqrt()) @ Vh


class InjectiveNet(nn.Module):
    r"""f(z) = A z + B tanh(C z + d), injective because |B||C| < σ_min(A).

    .. math:: |f(z) - f(z')| \ge (\sigma_{\min}(A) - \|B\| \, \|C\|) \, |z - z'|

    Args:
        n: Latent size.
        N: Observed size, N ≥ n.
        hidden: Width of the layer of tanh.
        bend: |B||C| / σ_min(A), below 1.
    """

    def __init__(self, n: int, N: int, hidden: int = 24, bend: float = 0.9):
        super().__init__()
        generator = generator_for("noisy decoder", "net", n, N)
        self.n, self.N = n, N
        B = _normal(N, hidden, generator)
        C = 2 * _normal(hidden, n, generator) / n**0.5
        size = torch.linalg.matrix_norm(B, 2) * torch.linalg.matrix_norm(C, 2)
        self.A = nn.Parameter(_tall(N, n, generator) * torch.linspace(1, 2, n).double())
        self.B = nn.Parameter(B * (bend / size))
        self.C = nn.Parameter(C)
        self.d = nn.Parameter(_normal(hidden, 1, generator).squeeze(-1))

    def forward(self, z: Tensor) -> Tensor:
        """Map (b, n) to (b, N)."""
        return z @ self.A.mT + torch.tanh(z @ self.C.mT + self.d) @ self.B.mT

    def lipschitz(self) -> float:
        """A Lipschitz constant of f."""
        a, b, c = (float(torch.linalg.matrix_norm(W.detach(), 2)) for W in (self.A, self.B, self.C))
        return a + b * c

    def preimages(self, z: Tensor) -> Tensor:
        """All points (b, k, n) with the image of z (b, n)."""
        return z.unsqueeze(1)


class Fold(nn.Module):
    r"""f(z) = (√(1 + (z₁ − a)²), z₂, ½ sin z₂): two points, z₁ and 2a − z₁, share every image.

    Both have the same log det JᵀJ, and a prior that differs by exp(2a (z₁ − a)).
    """

    n, N = 2, 3

    def __init__(self, centre: float = 0.5):
        super().__init__()
        self.centre = centre

    def forward(self, z: Tensor) -> Tensor:
        """Map (b, 2) to (b, 3)."""
        first = (1 + (z[:, 0] - self.centre).square()).sqrt()
        return torch.stack([first, z[:, 1], z[:, 1].sin() / 2], -1)

    def lipschitz(self) -> float:
        """A Lipschitz constant of f."""
        return 1.25**0.5

    def away(self, z: Tensor, distance: float = 0.5) -> Tensor:
        """The points moved to at least a distance from the fold, where JᵀJ is singular."""
        offset = z[:, 0] - self.centre
        first = self.centre + offset.sign() * offset.abs().clamp(min=distance)
        return torch.stack([first, z[:, 1]], -1)

    def preimages(self, z: Tensor) -> Tensor:
        """All points (b, k, n) with the image of z (b, n)."""
        other = torch.stack([2 * self.centre - z[:, 0], z[:, 1]], -1)
        return torch.stack([z, other], 1)


MODELS: dict[str, Callable[[], Any]] = {
    "linear 2→8": lambda: Linear(2, 8),
    "net 2→3": lambda: InjectiveNet(2, 3),
    "net 2→8": lambda: InjectiveNet(2, 8),
    "net 8→16": lambda: InjectiveNet(8, 16),
    "fold 2→3": Fold,
}


def grid_log_evidence(
    f: Callable[[Tensor], Tensor], x: Tensor, sigma: float, lipschitz: float, *, fine: float = 0.5
) -> float:
    r"""log p_σ(x) for a latent plane by the midpoint rule on a uniform grid, cells found by bounds.

    .. math:: \log p_\sigma(x) \approx \log h^2 \sum_i p(z_i)\, N(x; f(z_i), \sigma^2 I)

    The midpoint rule converges faster than any power of h for a smooth integrand that decays. Cells
    are quartered until h ≤ `fine` · min(1, σ/Lipschitz), and one is dropped when the bound
    |f(z) − x| ≥ |f(centre) − x| − Lipschitz · |z − centre| puts all of it `CUT` nats below the
    best value seen: no mode can be missed, wherever it lies, and nothing is sampled.

    Args:
        f: Maps (b, 2) to (b, N).
        x: One observation (N,), float64.
        sigma: Standard deviation of the noise.
        lipschitz: A Lipschitz constant of f.
        fine: Final cell size in units of the narrowest scale.

    Raises:
        MemoryError: If more than `MAX_CELLS` cells would be needed.
    """
    h = 2 * RADIUS / 16
    centres = _square(h * (torch.arange(16, dtype=torch.float64) - 7.5))
    target = fine * min(1.0, sigma / lipschitz)
    while True:
        residual = torch.linalg.vector_norm(f(centres).detach() - x, dim=-1)
        radius = torch.linalg.vector_norm(centres, dim=-1)
        value = -(residual.square() / sigma**2 + radius.square()) / 2
        if h <= target:
            break
        reach = h / math.sqrt(2)
        nearest = (residual - lipschitz * reach).clamp(min=0)
        bound = -(nearest.square() / sigma**2 + (radius - reach).clamp(min=0).square()) / 2
        kept = centres[bound > value.max() - CUT]
        if 4 * len(kept) > MAX_CELLS:
            raise MemoryError(
                f"{4 * len(kept)} cells needed, at most {MAX_CELLS}: raise sigma or fine."
            )
        corners = _square(torch.tensor([-h / 4, h / 4], dtype=torch.float64))
        centres, h = (kept.unsqueeze(1) + corners).reshape(-1, 2), h / 2
    constant = 2 * math.log(h) - math.log(2 * math.pi)
    constant -= x.shape[-1] / 2 * math.log(2 * math.pi * sigma**2)
    return float(torch.logsumexp(value, 0)) + constant


def log_prior(z: Tensor) -> Tensor:
    """log N(z; 0, I) over the last dimension."""
    return -(z.square() + math.log(2 * math.pi)).sum(-1) / 2


def _square(ticks: Tensor) -> Tensor:
    return torch.cartesian_prod(ticks, ticks)


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn((rows, columns), generator=generator, dtype=torch.float64)


def _tall(N: int, n: int, generator: torch.Generator) -> Tensor:
    """N × n with orthonormal columns."""
    return matrices.haar(N, generator=generator)[:, :n]
