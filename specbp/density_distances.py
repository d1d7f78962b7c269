r"""Distances between distribution functions, by exact formulas on the jumps: no grid.

.. math:: W_1 = \int |F - G| \, dx, \qquad K = \sup_x |F(x) - G(x)|
"""

from __future__ import annotations

import torch
from torch import Tensor

from specbp.density_estimate import DensityEstimate, DiscreteDensity
from specbp.density_kernel import KernelDensity


def wasserstein1(p: DensityEstimate | Tensor, q: DensityEstimate | Tensor) -> Tensor:
    r"""Wasserstein-1 distance ∫ |F − G| dx, shape (...), float64.

    Two step functions differ by a constant between merged jumps. Where one is the smooth cdf of
    `kpm_density`, it crosses each constant once at most, at its quantile; the integrals to both
    sides have a closed form. The result is exact to rounding in either case.

    Args:
        p: A density, or eigenvalues (..., n) of equal weights.
        q: Likewise; leading dimensions broadcast.

    Raises:
        TypeError: If p or q is neither.
        ValueError: If both are from `kpm_density`, a mass is not one, or a cdf is not monotone.

    NaN where a density failed or an eigenvalue is NaN.

    Example:
        >>> import torch
        >>> float(wasserstein1(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0])))
        1.0
    """
    if isinstance(p, KernelDensity) or isinstance(q, KernelDensity):
        return _smooth_wasserstein(*_smooth_first(p, q))
    x, gap = _merged(_atoms(p), _atoms(q))
    return (gap[..., :-1].abs() * x.diff(dim=-1)).sum(-1)


def kolmogorov(
    p: DensityEstimate | Tensor, q: DensityEstimate | Tensor, *, tolerance: float = 0.0
) -> Tensor:
    r"""Kolmogorov distance sup |F − G|, shape (...), float64.

    The supremum is at a jump, from the left or the right. It counts a jump displaced by rounding in
    full: between eigenvalues and converged Ritz values it is the largest jump. `tolerance` forgives
    that: intervals between jumps of two step functions that are not longer are skipped.

    Args:
        p: A density, or eigenvalues (..., n) of equal weights.
        q: Likewise; leading dimensions broadcast.
        tolerance: Length ≥ 0, in units of the eigenvalues.

    Raises:
        TypeError: If p or q is neither.
        ValueError: As `wasserstein1`, or if tolerance is negative.

    Example:
        >>> import torch
        >>> float(kolmogorov(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0])))
        0.5
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance is a length ≥ 0, got {tolerance}.")
    if isinstance(p, KernelDensity) or isinstance(q, KernelDensity):
        return _smooth_kolmogorov(*_smooth_first(p, q))
    x, gap = _merged(_atoms(p), _atoms(q))
    # Within one point several jumps are one: only sums up to an interval count.
    lasting = x.diff(dim=-1) > tolerance
    largest = torch.where(lasting, gap[..., :-1].abs(), 0).amax(-1)
    return largest.masked_fill(torch.isnan(gap).any(-1), torch.nan)


def _merged(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Merged jumps (..., k), ascending, and F − G to the right of each."""
    (x, v), (y, w) = p, q
    batch = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    x, v, y, w = (part.expand(*batch, part.shape[-1]) for part in (x, v, y, w))
    points, order = torch.cat([x, y], -1).sort(-1)
    gap = torch.cat([v, -w], -1).gather(-1, order).cumsum(-1)
    bad = torch.isnan(points.sum(-1, keepdim=True) + gap[..., -1:])
    return points, gap.masked_fill(bad, torch.nan)


def _smooth_wasserstein(smooth: KernelDensity, x: Tensor, w: Tensor) -> Tensor:
    a, b = smooth.lower.unsqueeze(-1), smooth.upper.unsqueeze(-1)
    edges = torch.cat([torch.minimum(a, x[..., :1]), x, torch.maximum(b, x[..., -1:])], -1)
    levels = torch.nn.functional.pad(w.cumsum(-1), (1, 0)).clamp(max=1)
    left, right = edges[..., :-1], edges[..., 1:]
    crossing = torch.clamp(_quantile(smooth, levels), left, right)
    start, middle, end = (smooth.antiderivative(edge) for edge in (left, crossing, right))
    below = levels * (crossing - left) - (middle - start)
    above = (end - middle) - levels * (right - crossing)
    return (below + above).sum(-1)


def _smooth_kolmogorov(smooth: KernelDensity, x: Tensor, w: Tensor) -> Tensor:
    levels = torch.nn.functional.pad(w.cumsum(-1), (1, 0))
    height = smooth.cdf(torch.nan_to_num(x)).value
    gaps = torch.cat([height - levels[..., :-1], levels[..., 1:] - height], -1)
    return gaps.abs().amax(-1).masked_fill(torch.isnan(x).any(-1), torch.nan)


def _quantile(smooth: KernelDensity, levels: Tensor) -> Tensor:
    """Quantiles of levels (..., p); NaN levels, of what failed, stay NaN."""
    known = torch.nan_to_num(levels, nan=0.5)
    return smooth.quantile(known).masked_fill(torch.isnan(levels), torch.nan)


def _smooth_first(
    p: DensityEstimate | Tensor, q: DensityEstimate | Tensor
) -> tuple[KernelDensity, Tensor, Tensor]:
    """The smooth one, normalised, and jumps and weights of the other, broadcast to its batch."""
    smooth, step = (p, q) if isinstance(p, KernelDensity) else (q, p)
    if isinstance(step, KernelDensity):
        raise ValueError(
            "Two smooth densities have no common jumps: replace one by equal atoms, "
            "q.quantile((torch.arange(K) + 0.5) / K), whose distance to q itself is computed too."
        )
    assert isinstance(smooth, KernelDensity)
    smooth.require_positive("A distance")
    smooth.require_unit_mass("A distance")
    x, w = _atoms(step)
    batch = torch.broadcast_shapes(x.shape[:-1], smooth.lower.shape)
    x, w = (part.expand(*batch, part.shape[-1]) for part in (x, w))
    return _expanded(smooth.normalized(), batch), x, w


def _expanded(smooth: KernelDensity, batch: torch.Size) -> KernelDensity:
    """The same density for each item of a larger batch."""
    return KernelDensity(
        smooth.n,
        smooth.num_matvecs,
        smooth.probe_status.expand(*batch, -1),
        smooth.moments.expand(*batch, -1, -1),
        smooth.lower.expand(batch),
        smooth.upper.expand(batch),
        smooth.positive,
    )


def _atoms(p: DensityEstimate | Tensor) -> tuple[Tensor, Tensor]:
    """Jumps, ascending, and their weights, of sum one, each (..., k)."""
    if isinstance(p, DiscreteDensity):
        p.require_unit_mass("A distance")
        nodes, weights = p.atoms()
        return nodes, weights / weights.sum(-1, keepdim=True)
    if not isinstance(p, Tensor) or p.is_complex():
        raise TypeError(f"Pass a density or real eigenvalues (..., n), got {type(p).__name__}.")
    if p.ndim < 1 or p.shape[-1] == 0:
        raise ValueError(f"Eigenvalues have shape (..., n), n ≥ 1, got {tuple(p.shape)}.")
    x = p.detach().double().sort(-1).values
    return x, torch.full_like(x, 1 / x.shape[-1])
