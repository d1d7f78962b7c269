r"""The smooth density of the kernel polynomial method, in closed form.

With x = a + (b − a) cos²(θ/2), μ_k = n⁻¹ x_iᵀ T_k x_i damped by g_k, the distribution function is

.. math:: F(x) = \mu_0 \Bigl(1 - \frac\theta\pi\Bigr)
          - \frac2\pi \sum_{k=1}^d g_k \mu_k \frac{\sin k\theta}{k} .
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from specbp.density_estimate import DensityEstimate, Points
from specbp.estimate import Estimate


@dataclass(frozen=True, eq=False)
class KernelDensity(DensityEstimate):
    r"""Damped Chebyshev series of each probe: a smooth density on [a, b].

    The kernel smears a jump over a width of about π (b − a) / (2 d) within the interval, less at
    its ends; truncation has no bracket.

    Attributes:
        moments: Damped moments g_k μ_k, (..., m, d + 1), float64.
        lower: a, (...).
        upper: b, (...).
        positive: True for a positive kernel, whose cdf is monotone.
    """

    moments: Tensor
    lower: Tensor
    upper: Tensor
    positive: bool

    def expectation(self, f: Callable[[Tensor], Tensor], *, points: int | None = None) -> Estimate:
        """Mean of f by Gauss–Chebyshev quadrature of the density, at 4 (d + 1) points by default.

        Exact where f is a polynomial of degree below 2 points − d. Without damping and with d + 1
        points, n times the value is that of `chebyshev_logdet` for f = log.

        Raises:
            ValueError: If points ≤ d / 2, too few for the moments themselves.
        """
        d = self.moments.shape[-1] - 1
        count = 4 * (d + 1) if points is None else points
        if 2 * count <= d:
            raise ValueError(f"Moments to degree d = {d} need more than d / 2 points, got {count}.")
        return self._mean_of(*self._values(f, count))

    def quantile(self, q: Points) -> Tensor:
        """See the base class; by bisection of the closed form."""
        shares, shape = self._shares(q)
        self.require_positive("quantile")
        moments = self.mean_moments()
        target = shares * moments[..., :1]
        low, high = torch.zeros_like(target), torch.full_like(target, math.pi)
        for _ in range(60):  # π/2⁶⁰ is below the spacing of float64
            middle = (low + high) / 2
            above = _integral(moments.unsqueeze(-2), middle).squeeze(-2) > target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        found = self._x((low + high) / 2).masked_fill(~self.ok.unsqueeze(-1), torch.nan)
        return found if shape else found.squeeze(-1)

    def normalized(self) -> Self:
        """See the base class."""
        return replace(self, moments=self.moments / self.moments[..., :1])

    def mean_moments(self) -> Tensor:
        """Damped moments of the mean over the probes, (..., d + 1)."""
        return self.moments.mean(-2)

    def antiderivative(self, x: Tensor) -> Tensor:
        r"""∫ Φ̂ from −∞ to points (..., p), of the mean over the probes, in closed form.

        .. math:: \frac{2}{b - a} \int_{-\infty}^x \hat\Phi
                  = \mu_0 \Bigl[\bigl(1 - \tfrac\theta\pi\bigr) \cos\theta
                  + \tfrac1\pi \sin\theta\Bigr] - \frac2\pi \sum_{k=1}^d \frac{g_k \mu_k}{k} J_k,
                  \quad J_k = \int_\theta^\pi \sin k\varphi \, \sin\varphi \, d\varphi
        """
        moments, theta = self.mean_moments(), self._theta(x)
        k = torch.arange(1, moments.shape[-1], dtype=torch.float64, device=x.device)
        angle = theta.unsqueeze(-1)
        down = torch.where(
            k > 1, torch.sin((k - 1) * angle) / (k - 1).clamp(min=1), angle - math.pi
        )
        inner = (torch.sin((k + 1) * angle) / (k + 1) - down) / 2
        mass = moments[..., :1] * ((1 - theta / math.pi) * theta.cos() + theta.sin() / math.pi)
        series = ((moments[..., 1:] / k).unsqueeze(-2) * inner).sum(-1)
        half = (self.upper - self.lower).unsqueeze(-1) / 2
        beyond = (x - self.upper.unsqueeze(-1)).clamp(min=0) * moments[..., :1]
        return half * (mass - 2 / math.pi * series) + beyond

    def require_positive(self, what: str) -> None:
        """Refuse what needs a monotone cdf.

        Raises:
            ValueError: If the kernel is not positive.
        """
        if not self.positive:
            raise ValueError(
                f"{what} needs a monotone cdf, which a series without damping does not have: use "
                'damping="jackson" or "lorentz".'
            )

    def _masses(self) -> Tensor:
        return self.moments[..., 0]

    def _cdfs(self, x: Tensor) -> Tensor:
        return _integral(self.moments, self._theta(x))

    def _densities(self, x: Tensor, width: float | None) -> Tensor:
        if width is not None:
            raise ValueError("The kernel sets the width of this density: leave width = None.")
        theta, a, b = self._theta(x), self.lower.unsqueeze(-1), self.upper.unsqueeze(-1)
        # dx = (b − a)/2 sin θ dθ: at the ends the density is infinite, as that of an arcsine law.
        slope = (math.pi * (b - a) / 2 * theta.sin()).unsqueeze(-2)
        return torch.where(
            ((x >= a) & (x <= b)).unsqueeze(-2), _series(self.moments, theta) / slope, 0
        )

    def _values(
        self, f: Callable[[Tensor], Tensor], count: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.arange(count, 0, -1, dtype=torch.float64, device=self.moments.device)
        theta = math.pi * (place - 0.5) / count
        nodes = self._x(theta.expand(*self.lower.shape, count)).unsqueeze(-2)
        return nodes, _series(self.moments, theta) / count, f(nodes)

    def _theta(self, x: Tensor) -> Tensor:
        """Angles in [0, π] of points (..., p); those outside belong to the ends."""
        # Half an angle by its tangent: arccos would lose half of the digits at the ends.
        a, b = self.lower.unsqueeze(-1), self.upper.unsqueeze(-1)
        return 2 * torch.atan2((b - x).clamp(min=0).sqrt(), (x - a).clamp(min=0).sqrt())

    def _x(self, theta: Tensor) -> Tensor:
        a, b = self.lower.unsqueeze(-1), self.upper.unsqueeze(-1)
        return a + (b - a) * (theta / 2).cos().square()


def _integral(moments: Tensor, theta: Tensor) -> Tensor:
    """The cdf at angles (..., p) of moments (..., m, d + 1): (..., m, p)."""
    k = torch.arange(1, moments.shape[-1], dtype=torch.float64, device=moments.device)
    waves = torch.sin(k.unsqueeze(-1) * theta.unsqueeze(-2))
    ramp = moments[..., :1] * (1 - theta / math.pi).unsqueeze(-2)
    return ramp - 2 / math.pi * ((moments[..., 1:] / k) @ waves)


def _series(moments: Tensor, theta: Tensor) -> Tensor:
    """μ_0 + 2 Σ μ_k cos kθ at angles (..., p) of moments (..., m, d + 1): (..., m, p)."""
    k = torch.arange(1, moments.shape[-1], dtype=torch.float64, device=moments.device)
    return moments[..., :1] + 2 * moments[..., 1:] @ torch.cos(
        k.unsqueeze(-1) * theta.unsqueeze(-2)
    )
