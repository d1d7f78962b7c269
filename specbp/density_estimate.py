r"""Estimates of the spectral density of A: what `slq_density`, `kpm_density` and others return.

The distribution function of the eigenvalues and its estimate from probes x_i, E x xᵀ = I, are

.. math:: \Phi(x) = \tfrac1n \#\{j : \lambda_j \le x\}, \qquad
          \hat\Phi(x) = \tfrac1m \sum_i F_i(x), \quad F_i(x) \approx
          \tfrac1n x_i^\top 1[A \le x] \, x_i .
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from specbp.estimate import FAILURES, Estimate, Status, from_samples, union

Points = float | Tensor
MASS_TOLERANCE = 1e-5  # the squared length of a float32 probe is n to rounding


@dataclass(frozen=True, eq=False)
class DensityEstimate(ABC):
    """An estimate of the spectral density of an n × n matrix, one measure for each probe.

    Each answer is an `Estimate` with the Monte Carlo error of independent probes. Points are one
    number, which gives answers of the batch's shape (...), or (p,) or (..., p), which gives
    (..., p).

    A probe weighs |x|²/n, so that n · expectation(f) is the plain estimate of tr f(A). Gaussian
    probes have a total mass other than one; `normalized` divides by it, which makes them probes
    from the sphere.

    Attributes:
        n: Order of A.
        num_matvecs: Products with A that the estimate cost, counted.
        probe_status: `Status` flags of each probe, (..., m). A failed probe makes the estimate NaN.
    """

    n: int
    num_matvecs: float
    probe_status: Tensor

    @property
    def status(self) -> Tensor:
        """`Status` flags as int64, shape (...)."""
        return union(self.probe_status)

    @property
    def ok(self) -> Tensor:
        """True where no probe failed, shape (...)."""
        return (self.status & int(FAILURES)) == 0

    def raise_for_status(self) -> Self:
        """Return self, or raise `EstimationError` naming what failed, how often, and the remedy."""
        self.mass().raise_for_status()
        return self

    def mass(self) -> Estimate:
        """Total mass, mean of |x|²/n: one for probes of length √n."""
        return self._estimate(self._masses())

    def require_unit_mass(self, what: str) -> None:
        """Refuse what is about a distribution function from 0 to 1.

        Raises:
            ValueError: If the mass of a probe is not one, but for rounding.
        """
        gap = (self._masses() - 1).abs().nan_to_num(nan=0)
        if bool((gap > MASS_TOLERANCE).any()):
            raise ValueError(
                f"{what} needs probes of mass |x|²/n = 1, one is off by {float(gap.max()):.3g}: "
                "use probes of length √n, or density.normalized(), which makes Gaussian probes "
                "spherical."
            )

    def cdf(self, x: Points) -> Estimate:
        """Share of the eigenvalues at or below x.

        `lower` and `upper` hold the truncation bracket of `cdf_bounds` where there is one.
        """
        points, shape = self._points(x)
        return self._at(shape, self._cdfs(points), *self._bracket(points))

    def density(self, x: Points, *, width: float | None = None) -> Estimate:
        """Derivative of the cdf at x; a discrete measure needs the `width` of a Gaussian for it.

        Raises:
            ValueError: If width is missing for a discrete measure, not positive, or not expected.
        """
        points, shape = self._points(x)
        return self._at(shape, self._densities(points, width))

    def count(self, a: Points, b: Points) -> Estimate:
        r"""Number of eigenvalues in (a, b].

        .. math:: n \, (\hat\Phi(b) - \hat\Phi(a))

        Raises:
            ValueError: If a > b somewhere.

        Source: Di Napoli, Polizzi & Saad (2016), doi:10.1002/nla.2048.
        """
        left, shape_a = self._points(a)
        right, shape_b = self._points(b)
        if not bool((left <= right).all()):
            raise ValueError("count(a, b) needs a ≤ b: it counts the eigenvalues in (a, b].")
        (low_a, up_a), (low_b, up_b) = self._bracket(left), self._bracket(right)
        lower = None if low_b is None or up_a is None else self.n * (low_b - up_a).clamp(min=0)
        upper = None if up_b is None or low_a is None else self.n * (up_b - low_a)
        found = self.n * (self._cdfs(right) - self._cdfs(left))
        return self._at(shape_a or shape_b, found, lower, upper)

    def expectation(self, f: Callable[[Tensor], Tensor]) -> Estimate:
        """Mean of f over the spectrum: n times its value estimates tr f(A).

        A value −∞ at a node has the status `SINGULAR`, NaN at a negative node `NEGATIVE_RITZ`.
        """
        return self._mean_of(*self._values(f))

    @abstractmethod
    def quantile(self, q: Points) -> Tensor:
        """Smallest x at which the cdf, divided by its mass, reaches q; (...) or (..., p), float64.

        Raises:
            ValueError: If q is not in [0, 1], or the measure is not monotone.
        """

    @abstractmethod
    def normalized(self) -> Self:
        """The same estimate with the mass of every probe divided out."""

    @abstractmethod
    def _masses(self) -> Tensor:
        """Mass of each probe, (..., m)."""

    @abstractmethod
    def _cdfs(self, x: Tensor) -> Tensor:
        """Of each probe at points (..., p): (..., m, p)."""

    @abstractmethod
    def _densities(self, x: Tensor, width: float | None) -> Tensor:
        """Of each probe at points (..., p): (..., m, p)."""

    @abstractmethod
    def _values(self, f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes, their weights, and f at them, each broadcasting to (..., m, k)."""

    def _bracket(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:  # noqa: ARG002
        """Truncation bracket of the cdf of each probe at points (..., p): (..., m, p)."""
        return None, None

    def _mean_of(self, nodes: Tensor, weights: Tensor, values: Tensor) -> Estimate:
        counted = weights != 0
        # Weights of a kernel that is not positive may take both signs: inf − inf would be NaN.
        singular = (counted & (values == -torch.inf)).any(-1)
        negative = (counted & torch.isnan(values) & (nodes < 0)).any(-1)
        flags = singular * int(Status.SINGULAR) | negative * int(Status.NEGATIVE_RITZ)
        samples = torch.where(counted, weights * values, 0).sum(-1)
        samples = samples.masked_fill(torch.isnan(self._masses()), torch.nan)
        return self._estimate(samples, flags)

    def _estimate(self, samples: Tensor, flags: Tensor | int = 0) -> Estimate:
        """From one value for each probe, (..., m)."""
        status = self.probe_status | flags
        return from_samples(samples, num_matvecs=self.num_matvecs, status=status)

    def _at(
        self,
        points: bool,
        samples: Tensor,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> Estimate:
        """From values (..., m, p) for each probe and point, or (..., m, 1) for a single number."""

        def turned(part: Tensor) -> Tensor:
            return part.mT if points else part.squeeze(-1)

        return from_samples(
            turned(samples),
            num_matvecs=self.num_matvecs,
            lower=None if lower is None else turned(lower),
            upper=None if upper is None else turned(upper),
            status=turned(self.probe_status.unsqueeze(-1).expand(samples.shape)),
        )

    def _points(self, x: Points) -> tuple[Tensor, bool]:
        """Points (..., p) in float64, and whether they are more than one number."""
        device, batch = self.probe_status.device, self.probe_status.shape[:-1]
        points = torch.as_tensor(x, dtype=torch.float64, device=device)
        if bool(torch.isnan(points).any()):
            raise ValueError("A point is NaN: pass numbers.")
        if points.ndim == 0:
            return points.expand(*batch, 1), False
        try:
            return points.expand(*batch, points.shape[-1]), True
        except RuntimeError as error:
            raise ValueError(
                f"Points have shape (), (p,) or (..., p) with the batch {tuple(batch)} of the "
                f"density in front, got {tuple(points.shape)}."
            ) from error

    def _shares(self, q: Points) -> tuple[Tensor, bool]:
        shares, shape = self._points(q)
        if not bool(((shares >= 0) & (shares <= 1)).all()):
            raise ValueError("A quantile is of a share q with 0 ≤ q ≤ 1.")
        return shares, shape


@dataclass(frozen=True, eq=False)
class DiscreteDensity(DensityEstimate):
    r"""Gauss quadrature of each probe: jumps of the given weights at the given nodes.

    Attributes:
        nodes: θ (..., m, k), ascending, float64.
        weights: (..., m, k), the squared first components of the eigenvectors times |x|²/n.
    """

    nodes: Tensor
    weights: Tensor

    def cdf_bounds(self, x: Points) -> tuple[Tensor, Tensor]:
        r"""Certified bounds of n⁻¹ x_iᵀ 1[A ≤ x] x_i for each probe, (..., m) or (..., p, m).

        .. math:: \sum_{i < j} w_i \le F(\theta_j^-) \le F(\theta_j) \le \sum_{i \le j} w_i

        They hold for every matrix, probe and number of steps, up to rounding. Their means over the
        probes bracket the truncation error; they say nothing of the Monte Carlo error.

        Source: Chebyshev–Markov–Stieltjes inequalities; Szegő (1939), Orthogonal Polynomials, 3.41.
        """
        points, shape = self._points(x)
        lower, upper = (part.mT for part in self._bracket(points))
        return (lower, upper) if shape else (lower.squeeze(-2), upper.squeeze(-2))

    def band(self, x: Points, *, confidence: float) -> tuple[Tensor, Tensor]:
        r"""Band that holds Φ at all x at once with the given probability, (...) or (..., p).

        The means of `cdf_bounds`, widened by `kolmogorov_bound`: truncation and Monte Carlo error
        together. It is right for independent probes from the sphere, and only for these.

        Raises:
            ValueError: If probes are not of length √n, or confidence is not in (0, 1).
        """
        self.require_unit_mass("A band")
        half = kolmogorov_bound(self.n, self.nodes.shape[-2], confidence)
        lower, upper = self.cdf_bounds(x)
        return (lower.mean(-1) - half).clamp(min=0), (upper.mean(-1) + half).clamp(max=1)

    def quantile(self, q: Points) -> Tensor:
        """See the base class; exact for the step function."""
        shares, shape = self._shares(q)
        nodes, weights = self.atoms()
        levels = weights.cumsum(-1)
        # A level reached but for rounding is reached: quantile(j/n) must not skip a jump.
        rounding = 4 * torch.finfo(torch.float64).eps * levels.shape[-1]
        # A node without weight is no quantile, not even of q = 0.
        targets = ((shares - rounding) * levels[..., -1:]).clamp(min=torch.finfo(levels.dtype).tiny)
        place = torch.searchsorted(levels, targets).clamp(max=nodes.shape[-1] - 1)
        found = nodes.gather(-1, place).masked_fill(~self.ok.unsqueeze(-1), torch.nan)
        return found if shape else found.squeeze(-1)

    def atoms(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights of the mean over the probes, (..., m k), nodes ascending."""
        weights = self.weights.flatten(-2) / self.nodes.shape[-2]
        nodes, order = self.nodes.flatten(-2).sort(-1)
        return nodes, weights.gather(-1, order)

    def normalized(self) -> Self:
        """See the base class."""
        return replace(self, weights=self.weights / self.weights.sum(-1, keepdim=True))

    def _masses(self) -> Tensor:
        return self.weights.sum(-1)

    def _cdfs(self, x: Tensor) -> Tensor:
        return self._levels(self._place(x, right=True))

    def _bracket(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Nodes at or below x, but for the last; nodes below x, and one more.
        return (
            self._levels((self._place(x, right=True) - 1).clamp(min=0)),
            self._levels((self._place(x, right=False) + 1).clamp(max=self.nodes.shape[-1])),
        )

    def _place(self, x: Tensor, *, right: bool) -> Tensor:
        """Number of nodes ≤ x, or < x, of each probe, (..., m, p)."""
        points = x.unsqueeze(-2).expand(*self.nodes.shape[:-1], x.shape[-1]).contiguous()
        return torch.searchsorted(self.nodes.contiguous(), points, right=right)

    def _levels(self, place: Tensor) -> Tensor:
        """Sum of the first weights of each probe."""
        levels = torch.nn.functional.pad(self.weights.cumsum(-1), (1, 0))
        return levels.gather(-1, place)

    def _densities(self, x: Tensor, width: float | None) -> Tensor:
        if width is None or not 0 < width < math.inf:
            raise ValueError(
                f"A discrete measure has no density without the width of a Gaussian, got {width}: "
                "pass width > 0, in units of the nodes, or use kpm_density."
            )
        z = (x[..., None, None, :] - self.nodes.unsqueeze(-1)) / width
        bells = torch.exp(-z.square() / 2) / (width * math.sqrt(2 * math.pi))
        return (self.weights.unsqueeze(-1) * bells).sum(-2)

    def _values(self, f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return self.nodes, self.weights, f(self.nodes)


def kolmogorov_bound(n: int, m: int, confidence: float) -> float:
    r"""Half width ε that holds |Φ − mean_i F_i| everywhere with the given probability.

    .. math:: P\Bigl(\sup_x \bigl|\Phi(x) - \tfrac1m \textstyle\sum_i F_i(x)\bigr| > \epsilon\Bigr)
              \le 2 n \, e^{-m (n + 2) \epsilon^2}

    It is about the exact weighted functions F_i(x) = n⁻¹ x_iᵀ 1[A ≤ x] x_i of m independent probes
    from the real sphere of radius √n: F_i(λ_j) has the law Beta(j/2, (n − j)/2). The error of the
    Gauss quadrature comes on top; `DiscreteDensity.band` adds it. For complex probes the exponent
    is −2 m (n + 1) ε², about half the variance, which does not hold here.

    Raises:
        ValueError: If n < 1, m < 1, or confidence is not in (0, 1).

    Source: Chen, Trogdon & Ubaru (2021), arXiv:2105.06595; Marchal & Arbel (2017) for the Beta law,
    doi:10.1214/17-ECP92.
    """
    if n < 1 or m < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"A bound needs n ≥ 1, m ≥ 1 and 0 < confidence < 1, got n = {n}, m = {m}, "
            f"confidence = {confidence}."
        )
    return math.sqrt(math.log(2 * n / (1 - confidence)) / (m * (n + 2)))
