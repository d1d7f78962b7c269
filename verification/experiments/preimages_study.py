"""Preimages of generators of the plane, and what the formula with one of them gets wrong.

A generator f pushes the prior p_Z to the density

    p(x) = Σ p_Z(z) / |det J_f(z)|   over ALL z with f(z) = x,

of which the published formula keeps the term of the z at hand. The error log p(x) − log(term) is
measured at x = f(z), z drawn from the prior, with all preimages found: exactly for the bottleneck
residual network, which is affine on triangles that are computed; for other maps by Newton's method
from an interpolant. Its mean is H(Z|X), the entropy left of z when x is known: the loss of the
direction Z → X is too small by so much, so that folding the plane lowers it. In the direction
X → Z the formula has the mass E[number of preimages] in place of 1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from specbp import generator_for
from specbp.models import BottleneckResNet
from specbp.models.energies import Box
from verification.experiments.grid import midpoints
from verification.experiments.newton import multi_start, polished, value_and_jacobian
from verification.experiments.triangulation import (
    Map,
    Preimages,
    Triangulation,
    affine_triangulation,
    grid_triangulation,
    winding_number,
)
from verification.store import Record

RADIUS = 6.0  # preimages are sought in |z_i| <= RADIUS
QUANTILES = (0.5, 0.9, 0.99, 1.0)
RARE = 0.99  # quantile of a density over the draws that says whether points can meet it
CENTRAL = 0.95  # of each coordinate of the samples: the box over which densities are integrated
REPEATS = 8  # of an integral, and parts of the draws it is compared with
NEAR = 1e-6  # distance at which a preimage is the point it came from
CELLS = 400  # along an axis, of the interpolant of a map that is not a network
PARTS = 2**15  # points whose Jacobian is taken at once


def log_prior(z: Tensor) -> Tensor:
    """Log density (m,) of the standard normal at ``z`` (m, 2)."""
    return -z.square().sum(-1) / 2 - math.log(2 * math.pi)


def prior_outside(radius: float) -> float:
    """Prior mass outside |z_i| <= radius."""
    return -math.expm1(2 * math.log1p(-math.erfc(radius / math.sqrt(2))))


class Cover:
    """A map in float64, its triangulation and its search for preimages.

    Args:
        f: Map (m, 2) -> (m, 2); a module is copied to float64 on the CPU and evaluated as in
            ``eval()``.
        radius: Half the side of the square |z_i| <= radius.
        cells: Cells along an axis, for a map that is no `BottleneckResNet`.
    """

    def __init__(self, f: Map, radius: float = RADIUS, cells: int = CELLS) -> None:
        if isinstance(f, nn.Module):
            f = copy.deepcopy(f).double().cpu().eval().requires_grad_(False)
        self.f, self.radius = f, radius
        self.exact = isinstance(f, BottleneckResNet)
        self.triangles: Triangulation = (
            affine_triangulation(f, radius)
            if isinstance(f, BottleneckResNet)
            else grid_triangulation(f, radius, cells)
        )

    def preimages(self, x: Tensor) -> Preimages:
        """All preimages of ``x`` (m, 2) in the square."""
        return self.triangles.locate(x) if self.exact else polished(self.f, x, self.triangles)

    def misfit(self) -> float:
        """Largest |f − affine map| at the centroids of the triangles."""
        with torch.no_grad():
            gap = self.f(self.triangles.corners.mean(1)) - self.triangles.images.mean(1)
        return float(gap.abs().max())

    def uncovered(self) -> float:
        """Share of the square that the triangles miss: pieces of the size of rounding."""
        return abs(1 - float(self.triangles.areas.sum()) / (2 * self.radius) ** 2)


def study(f: Map | Cover, z: Tensor, *, newton: int = 0, starts: int = 16) -> Record:
    """Preimages of x = f(z), and the error of the formula with one of them, in nats.

    Args:
        f: Map (m, 2) -> (m, 2), or its `Cover`; exact for a `BottleneckResNet`.
        z: Draws (m, 2) of the prior; those outside the square of the cover are left out.
        newton: Number of draws for which the preimages are sought by Newton's method as well.
        starts: Starting points of that along each axis of the square.

    Returns:
        Counts, shares and errors with standard errors, and the checks: ``winding_agrees`` (share
        of points at which the signs of det J add up to the winding number of the boundary),
        ``recovered`` (share of z found again), ``newton_*``.
    """
    cover = f if isinstance(f, Cover) else Cover(f)
    z = z.double()[(z.abs() <= cover.radius).all(-1)]
    x, log_terms, found = _all_and_one(cover, z)
    error = found.log_sum(_log_terms(found)) - log_terms
    quantiles = torch.quantile(error, torch.tensor(QUANTILES).double()).tolist()
    return {
        "samples": len(z),
        "exact": cover.exact,
        "triangles": len(cover.triangles.corners),
        **_estimate("share_several", (found.count > 1).double()),
        "mean_count": float(found.count.double().mean()),
        "counts": found.count.bincount().tolist(),
        **_estimate("error_mean", error),
        **{f"error_q{q:g}": e for q, e in zip(QUANTILES, quantiles, strict=True)},
        "log_p_one": float(log_terms.mean()),
        "log_p_all": float((log_terms + error).mean()),
        **_checks(cover, z, x, found),
        **(_by_newton(cover, x[:newton], found.count[:newton], starts) if newton else {}),
    }


def errors(cover: Cover, z: Tensor) -> Tensor:
    """log p(x) − log p_Z(z)/|det J(z)| (m,) at x = f(z), not negative."""
    _, log_terms, found = _all_and_one(cover, z)
    return found.log_sum(_log_terms(found)) - log_terms


def log_densities(cover: Cover, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At ``x`` (m, 2): log of the sum over all preimages, of its greatest term, their number."""
    found = cover.preimages(x)
    terms = _log_terms(found)
    return found.log_sum(terms), found.log_max(terms), found.count


def integrates_to_one(f: Map | Cover, z: Tensor, *, cells: int = 300) -> Record:
    """The density integrated over a box of x, with all preimages and with the likeliest alone.

    The box holds the central part of f(z). What to expect there: ``mass``, the prior mass that f
    sends into the box, by quadrature in z; and with the likeliest preimage alone
    ``one_expected``, the mean over the draws of the share that its term has in p(x).

    Args:
        f: Map from Z to X, or its `Cover`.
        z: Draws (m, 2) of the prior.
        cells: Along an axis, each with one random point, `REPEATS` times.

    Returns:
        The four integrals; ``all_gap``, ``one_gap``: integral less what is expected, repeat by
        repeat; ``point_mass``: what one point of the integral stands for, at one draw in a hundred
        that or more.
    """
    cover = f if isinstance(f, Cover) else Cover(f)
    x, _, found = _all_and_one(cover, z.double())
    box, terms = central_box(x), _log_terms(found)
    inside, log_p = _inside(x, box), found.log_sum(terms)
    share = inside * (found.log_max(terms) - log_p).exp()

    def log_sent(z: Tensor) -> Tensor:
        return torch.where(_inside(cover.f(z), box), log_prior(z), -torch.inf).unsqueeze(0)

    def log_both(x: Tensor) -> Tensor:
        return torch.stack(log_densities(cover, x)[:2])

    sent = _integrals(log_sent, ((-cover.radius, cover.radius),) * 2, 2 * cells, "sent")
    integrals = _integrals(log_both, box, cells, "density")
    area = math.prod((high - low) / cells for low, high in box)
    return {
        "box": box,
        "repeats": REPEATS,
        "point_mass": float(torch.quantile(log_p[inside].exp() * area, RARE)),
        **_estimate("all_gap", integrals[:, 0] - sent[:, 0]),
        **_estimate("one_gap", integrals[:, 1] - _parts(share)),
        **_estimate("mass", sent[:, 0]),
        **_estimate("one_expected", share),
        **_estimate("all", integrals[:, 0]),
        **_estimate("one", integrals[:, 1]),
    }


def mass_of_inverse(f: Map | Cover, z: Tensor, *, cells: int = 300) -> Record:
    r"""Mass of the unnormalised density of the direction X → Z, and the mean number of preimages.

    .. math:: \int_{|x_i| \le r} p_Z(f(x))\, |\det J_f(x)|\, dx
              = \operatorname{E}_{z \sim p_Z} \#\{x : f(x) = z,\ |x_i| \le r\}

    Args:
        f: Map from X to Z, or its `Cover`.
        z: Draws (m, 2) of the prior, for the right side.
        cells: Along an axis, each with one random point, `REPEATS` times: for the left side.

    Returns:
        Both sides, and ``inverse_gap``, their difference, repeat by part of the draws; its standard
        error is at least that of one draw, since a rare preimage may be met by none.
    """
    cover = f if isinstance(f, Cover) else Cover(f)
    box = ((-cover.radius, cover.radius),) * 2

    def log_density(x: Tensor) -> Tensor:
        return torch.cat([log_prior(value) + d for value, d in _values(cover.f, x)]).unsqueeze(0)

    masses = _integrals(log_density, box, cells, "inverse")[:, 0]
    count = cover.preimages(z.double()).count.double()
    gap = _estimate("inverse_gap", masses - _parts(count))
    gap["inverse_gap_se"] = max(gap["inverse_gap_se"], 1 / len(z))
    return {**_estimate("inverse_mass", masses), **_estimate("inverse_count", count), **gap}


def central_box(x: Tensor) -> Box:
    """Box of the central part of each coordinate of ``x`` (m, 2)."""
    tails = torch.tensor([(1 - CENTRAL) / 2, (1 + CENTRAL) / 2], dtype=x.dtype)
    low, high = torch.quantile(x, tails, dim=0).tolist()
    return (low[0], high[0]), (low[1], high[1])


def _all_and_one(cover: Cover, z: Tensor) -> tuple[Tensor, Tensor, Preimages]:
    """x = f(z), the log density by the formula with one preimage, and all preimages of x."""
    values, log_determinants = zip(*_values(cover.f, z), strict=True)
    x = torch.cat(values)
    return x, log_prior(z) - torch.cat(log_determinants), cover.preimages(x)


def _values(f: Map, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """f and log |det J|, J by automatic differentiation."""
    for part in z.split(PARTS):
        value, J = value_and_jacobian(f, part)
        yield value, torch.linalg.det(J).abs().log()


def _log_terms(found: Preimages) -> Tensor:
    return log_prior(found.z) - found.determinant.abs().log()


def _checks(cover: Cover, z: Tensor, x: Tensor, found: Preimages) -> Record:
    distance = torch.linalg.vector_norm(found.z - z[found.point], dim=-1)
    nearest = -found.log_max(-distance)
    winding = winding_number(cover.triangles.boundary(), x)
    return {
        "radius": cover.radius,
        "prior_outside": prior_outside(cover.radius),
        "uncovered": cover.uncovered(),
        "misfit": cover.misfit(),
        "recovered": float((nearest < NEAR).double().mean()),
        "winding_agrees": float((found.degree == winding).double().mean()),
        "winding_values": sorted(set(winding.tolist())),
    }


def _by_newton(cover: Cover, x: Tensor, count: Tensor, starts: int) -> Record:
    by_newton = multi_start(cover.f, x, cover.radius, starts).count
    return {
        "newton_points": len(x),
        "newton_starts": starts**2,
        "newton_agrees": float((by_newton == count).double().mean()),
        "newton_missed": int((count - by_newton).clamp_min(0).sum()),
        "newton_extra": int((by_newton - count).clamp_min(0).sum()),
    }


def _parts(values: Tensor) -> Tensor:
    """Means (REPEATS,) of equal parts of independent values (m,)."""
    return torch.stack([part.mean() for part in values.tensor_split(REPEATS)])


def _integrals(log_density: Callable[[Tensor], Tensor], box: Box, n: int, key: str) -> Tensor:
    """Unbiased integrals (REPEATS, k) of k densities, one uniform point in each of n² cells.

    Densities jump at folds or are unbounded there: midpoints in line with a fold would mislead.
    """
    width = torch.tensor([(high - low) / n for low, high in box], dtype=torch.float64)
    points = midpoints(box, (n, n)).flatten(0, 1)
    found = []
    for repeat in range(REPEATS):
        generator = generator_for("preimages", "integral", key, repeat)
        shift = torch.rand(points.shape, generator=generator, dtype=torch.float64) - 0.5
        found.append(log_density(points + shift * width).exp().sum(-1) * width.prod())
    return torch.stack(found)


def _estimate(name: str, values: Tensor) -> Record:
    """Mean of ``values`` (m,) and its standard error."""
    return {name: float(values.mean()), f"{name}_se": float(values.std()) / len(values) ** 0.5}


def _inside(x: Tensor, box: Box) -> Tensor:
    low, high = torch.tensor(box, dtype=x.dtype).unbind(1)
    return ((x >= low) & (x <= high)).all(-1)
