"""Densities on the plane tabulated on a grid: normaliser, samples, divergences, with error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specbp.models.energies import Box

BATCH = 2**16  # points evaluated at once


@dataclass(frozen=True, eq=False)
class GridDensity:
    r"""A density tabulated at the midpoints of the cells of a box.

    .. math:: \log Z = \log \sum_i \exp(\ell_i)\, h_1 h_2

    Attributes:
        log_values: Log density ℓ as given, not normalised, at the midpoints (resolution_1,
            resolution_2), float64.
        box: ((min, max) of x1, (min, max) of x2).
        log_normaliser: log Z by the midpoint rule.
        error: |log Z − log Z of half the resolution|. For a smooth density that vanishes at the
            edge it bounds the error with a wide margin, for one that jumps it is its size.
        edge: Share of the mass in the cells at the edge of the box: if it is not small, the box
            cuts off mass.
    """

    log_values: Tensor
    box: Box
    log_normaliser: float
    error: float
    edge: float

    @property
    def cell(self) -> float:
        """Area of a cell."""
        return _area(self.box) / self.log_values.numel()

    @property
    def log_density(self) -> Tensor:
        """Log density normalised on the box (resolution_1, resolution_2)."""
        return self.log_values - self.log_normaliser

    @property
    def probability(self) -> Tensor:
        """Probability of each cell (resolution_1, resolution_2)."""
        return torch.softmax(self.log_values.flatten(), 0).view_as(self.log_values)

    @property
    def points(self) -> Tensor:
        """Midpoints of the cells (resolution_1, resolution_2, 2)."""
        return midpoints(self.box, self.log_values.shape)

    def sample(
        self, num: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Draw ``num`` points (num, 2) from the density that is constant on each cell.

        The cell by the inverse of the cumulative distribution function, the point in it uniformly.
        """
        cumulative = self.probability.flatten().cumsum(0)
        uniform = torch.rand(num, 3, generator=generator, dtype=torch.float64)
        # The last sum is 1 up to rounding; scaled by it, no point falls beyond the last cell.
        index = torch.searchsorted(cumulative, uniform[:, 0] * cumulative[-1], right=True)
        low, width = _corner_and_width(self.box, self.log_values.shape)
        cell = torch.stack(torch.unravel_index(index, self.log_values.shape), -1)
        return (low + (cell + uniform[:, 1:]) * width).to(dtype)

    def expectation(self, values: Tensor) -> float:
        """Mean of ``values`` given at the midpoints; cells without mass do not count."""
        p = self.probability
        return float(torch.where(p > 0, p * values, 0).sum())


def grid_density(
    log_density: Callable[[Tensor], Tensor], box: Box, resolution: int | tuple[int, int] = 400
) -> GridDensity:
    """Tabulate a log density and normalise it, with the check of half the resolution.

    Args:
        log_density: Points (m, 2), float64 -> log density (m,) up to a constant; -inf where there
            is no mass.
        box: ((min, max) of x1, (min, max) of x2).
        resolution: Number of cells along each axis, or along both.

    Raises:
        ValueError: If the box is empty, the resolution less than 2, a value NaN or +inf, or all
            values -inf.
    """
    shape = (resolution, resolution) if isinstance(resolution, int) else resolution
    if min(shape) < 2 or any(not low < high for low, high in box):
        msg = f"need 2 cells or more along each axis of a box, got {shape} on {box}."
        raise ValueError(msg)
    fine, coarse = (
        _tabulate(log_density, box, size) for size in (shape, (shape[0] // 2, shape[1] // 2))
    )
    log_normaliser = _log_mass(fine, box)
    edge = fine.clone()
    edge[1:-1, 1:-1] = -math.inf
    return GridDensity(
        fine,
        box,
        log_normaliser,
        abs(log_normaliser - _log_mass(coarse, box)),
        math.exp(_log_mass(edge, box) - log_normaliser),
    )


def kl_divergence(p: GridDensity, q: GridDensity, *, normalise: bool = True) -> float:
    r"""KL(p‖q) of two densities tabulated on the same grid, +inf where q lacks mass that p has.

    .. math:: \mathrm{KL}(p \| q) = \sum_i P_i (\log p_i - \log q_i)

    Args:
        p: Normalised on the box.
        q: Likewise, unless ``normalise`` is False.
        normalise: False takes the values of q as they are, which is right if q is a density whose
            mass outside the box must count against it.

    Raises:
        ValueError: If the grids differ.
    """
    if p.box != q.box or p.log_values.shape != q.log_values.shape:
        msg = (
            "KL takes two densities on one grid: tabulate both on the same box with the same "
            f"resolution; got {p.box} with {tuple(p.log_values.shape)} and {q.box} with "
            f"{tuple(q.log_values.shape)}."
        )
        raise ValueError(msg)
    return p.expectation(p.log_density - (q.log_density if normalise else q.log_values))


def midpoints(box: Box, shape: tuple[int, int] | torch.Size) -> Tensor:
    """Midpoints of the cells (*shape, 2), float64."""
    low, width = _corner_and_width(box, shape)
    axes = [
        a + (torch.arange(n, dtype=torch.float64) + 0.5) * h
        for a, h, n in zip(low, width, shape, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _tabulate(log_density: Callable[[Tensor], Tensor], box: Box, shape: tuple[int, int]) -> Tensor:
    points = midpoints(box, shape).flatten(0, 1)
    with torch.no_grad():
        values = torch.cat([log_density(part).double() for part in points.split(BATCH)])
    if values.shape != points.shape[:1]:
        msg = f"log_density of {tuple(points.shape)} must be {tuple(points.shape[:1])}, got "
        raise ValueError(msg + f"{tuple(values.shape)}.")
    if values.isnan().any() or values.max().isinf():
        msg = "log_density must be finite or -inf, and finite somewhere in the box: got "
        raise ValueError(msg + f"{int(values.isnan().sum())} NaN, greatest value {values.max()}.")
    return values.view(shape)


def _log_mass(values: Tensor, box: Box) -> float:
    return float(values.flatten().logsumexp(0)) + math.log(_area(box) / values.numel())


def _area(box: Box) -> float:
    return math.prod(high - low for low, high in box)


def _corner_and_width(box: Box, shape: tuple[int, int] | torch.Size) -> tuple[Tensor, Tensor]:
    edges = torch.tensor(box, dtype=torch.float64)
    return edges[:, 0], (edges[:, 1] - edges[:, 0]) / torch.tensor(shape)
