"""Preimages of a map of the plane by Newton's method from many starting points."""

from __future__ import annotations

import torch
from torch import Tensor

from specbp import Jacobian
from verification.experiments.triangulation import Map, Preimages, Triangulation

BATCH = 2**14  # pairs of a point and a start iterated at once
STEPS = 60
HALVINGS = 6
RESIDUAL = 1e-10  # relative, |f(z) - x| <= RESIDUAL (1 + |x|)
DISTANCE = 1e-6  # roots nearer than this are the same
SLACK = 1.0  # by which a triangle of an interpolant is widened
BORDER = 1e-9  # of the square: a root on its edge belongs to it


def value_and_jacobian(f: Map, z: Tensor) -> tuple[Tensor, Tensor]:
    """f(z) (m, 2) and its Jacobians (m, 2, 2), by automatic differentiation."""
    J = Jacobian(f, z, check=False)
    return J.value, J.dense()


def multi_start(f: Map, x: Tensor, radius: float, starts: int) -> Preimages:
    """Preimages of ``x`` (m, 2) found from a grid of starts² points of |z_i| <= radius."""
    axis = torch.linspace(-radius, radius, starts, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    point = torch.arange(len(x)).repeat_interleave(len(grid))
    return roots(f, x, point, grid.repeat(len(x), 1), radius)


def polished(f: Map, x: Tensor, cover: Triangulation) -> Preimages:
    """Preimages of ``x`` (m, 2) found from those of the piecewise affine interpolant."""
    near = cover.locate(x, SLACK)
    return roots(f, x, near.point, near.z, cover.radius)


def roots(f: Map, x: Tensor, point: Tensor, start: Tensor, radius: float) -> Preimages:
    """Different solutions of f(z) = x[point] within |z_i| <= radius, from starts (k, 2)."""
    z = torch.cat(
        [
            damped_newton(f, x[p], s)
            for p, s in zip(point.split(BATCH), start.split(BATCH), strict=True)
        ]
    )
    with torch.no_grad():
        residual = torch.linalg.vector_norm(f(z) - x[point], dim=-1)
    solved = residual <= RESIDUAL * (1 + torch.linalg.vector_norm(x[point], dim=-1))
    kept = solved & (z.abs() <= radius * (1 + BORDER)).all(-1)
    point, z = _distinct(point[kept], z[kept])
    determinant = torch.linalg.det(value_and_jacobian(f, z)[1]) if len(z) else z.new_zeros(0)
    return Preimages(len(x), point, z, determinant)


def damped_newton(f: Map, x: Tensor, z: Tensor) -> Tensor:
    r"""Iterates z (k, 2) of :math:`z - t J^{-1}(f(z) - x)`, t halved while |f(z) - x| grows."""
    t = 0.5 ** torch.arange(HALVINGS + 1, dtype=torch.float64)
    active = torch.arange(len(z))
    z = z.clone()
    for _ in range(STEPS):
        value, J = value_and_jacobian(f, z[active])
        gap = value - x[active]
        unsolved = torch.linalg.vector_norm(gap, dim=-1) > RESIDUAL / 10
        active, J, gap = active[unsolved], J[unsolved], gap[unsolved]
        if not len(active):
            break
        step = torch.linalg.lstsq(J, gap.unsqueeze(-1)).solution.squeeze(-1)
        trial = z[active].unsqueeze(1) - t.unsqueeze(-1) * step.unsqueeze(1)
        with torch.no_grad():
            left = torch.linalg.vector_norm(
                f(trial.flatten(0, 1)).view_as(trial) - x[active].unsqueeze(1), dim=-1
            )
        # Where no step helps (a local minimum), the shortest is taken: the iterate moves on.
        best = torch.where(left.isfinite(), left, torch.inf).argmin(1)
        z[active] = trial[torch.arange(len(active)), best]
    return z


def _distinct(point: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs in order of the point, without those close to an earlier one of the same point."""
    order = point.argsort(stable=True)
    point, z = point[order], z[order]
    keep = torch.ones(len(point), dtype=torch.bool)
    for lag in range(1, int(torch.bincount(point).amax()) if len(point) else 0):
        same = point[lag:] == point[:-lag]
        close = torch.linalg.vector_norm(z[lag:] - z[:-lag], dim=-1) < DISTANCE
        keep[lag:] &= ~(same & close)
    return point[keep], z[keep]
