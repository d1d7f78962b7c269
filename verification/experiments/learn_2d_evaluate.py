"""What the trained plane networks are: divergences with all preimages, masses, densities."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from specbp import generator_for
from specbp.likelihood import StandardNormal
from specbp.models import BottleneckResNet
from specbp.models.energies import DATA, ENERGIES, Box
from verification.experiments.grid import grid_density, kl_divergence
from verification.experiments.learn_2d_network import value_and_jacobian
from verification.experiments.triangulation import Triangulation, affine_triangulation
from verification.store import Record

NORMAL = StandardNormal(2)
RADIUS = 6.0  # preimages are sought in |z_i| <= RADIUS, where all but 4e-9 of the prior is
POINTS = 20_000  # samples of the model
CELLS = 240  # along an axis of a grid
WIDE: Box = ((-10.0, 10.0), (-10.0, 10.0))  # for the mass of a density that is not normalised


class Evaluation(NamedTuple):
    """The numbers of a trained network, and its log density (c, c) over the box of the target."""

    record: Record
    log_density: Tensor


class Divergence(NamedTuple):
    """An expectation by Monte Carlo."""

    value: float
    standard_error: float


def log_normaliser(target: str) -> float:
    """log Z of a confined energy: in closed form where there is one, else on a fine grid."""
    energy = ENERGIES[target]
    if energy.log_normaliser is not None:
        return energy.log_normaliser
    return grid_density(lambda x: -energy(x), energy.box, 2000).log_normaliser


class Pushforward:
    """The density of f(z), z standard normal, by all preimages: exact for LeakyReLU networks."""

    def __init__(self, network: BottleneckResNet):
        self.network = copy.deepcopy(network).double().requires_grad_(False)
        self.triangles: Triangulation = affine_triangulation(self.network, RADIUS)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x (m, 2), the sum over its preimages; -inf where there is none."""
        found = self.triangles.locate(x)
        return found.log_sum(NORMAL.log_prob(found.z) - found.determinant.abs().log())

    def count(self, x: Tensor) -> Tensor:
        """Number of preimages of x (m, 2)."""
        return self.triangles.locate(x).count


def evaluate_energy(network: BottleneckResNet, target: str) -> Evaluation:
    """KL(p‖q) of a generator against exp(-U) / Z, from samples and on a grid."""
    model, energy = Pushforward(network), ENERGIES[target]
    p = grid_density(model.log_prob, energy.box, CELLS)
    q = grid_density(lambda x: -energy(x), energy.box, CELLS)
    record = {
        **sampled(model, target, POINTS),
        "triangles": len(model.triangles.corners),
        "kl_grid": kl_divergence(p, q),
        "mass_in_box": math.exp(p.log_normaliser),
    }
    return Evaluation(record, p.log_values)


def sampled(model: Pushforward, target: str, points: int) -> Record:
    """KL(p‖q) from samples of p: with all preimages, and with the one at hand."""
    energy, log_Z = ENERGIES[target], log_normaliser(target)
    z = NORMAL.sample(points, generator=generator_for("learn_2d", "evaluate", target))
    x, J = value_and_jacobian(model.network, z)
    determinant = torch.linalg.det(J)
    own = NORMAL.log_prob(z) - determinant.abs().log()
    # Rounding at the edge of a triangle may lose the preimage that is known.
    full = torch.maximum(model.log_prob(x), own)
    every, single = (_mean(log_p + energy(x) + log_Z) for log_p in (full, own))
    return {
        "log_normaliser": log_Z,
        "kl": every.value,
        "kl_error": every.standard_error,
        "kl_single": single.value,
        "kl_single_error": single.standard_error,
        "folding": _mean(full - own).value,
        "preimages": float(model.count(x).double().mean()),
        "orientation_reversed": float((determinant < 0).double().mean()),
    }


def evaluate_data(network: BottleneckResNet, target: str) -> Evaluation:
    """KL(q‖p) of the density that a map X -> Z pulls back, and its mass."""
    data = DATA[target]
    q = grid_density(data.log_prob, data.box, CELLS)
    log_p = pulled_back(network)
    inside = grid_density(log_p, data.box, CELLS)
    everywhere = grid_density(log_p, WIDE, 2 * CELLS)
    log_q = data.log_prob(q.points)
    kl = q.expectation(log_q - inside.log_values)
    mass = math.exp(everywhere.log_normaliser)
    record = {
        "entropy": -q.expectation(log_q),
        "kl": kl,
        "kl_normalised": kl + everywhere.log_normaliser,
        "mass": mass,
        "mass_error": mass * everywhere.error,
        "mass_at_edge": everywhere.edge,
        "mass_in_box": math.exp(inside.log_normaliser),
    }
    return Evaluation(record, inside.log_values)


def pulled_back(network: BottleneckResNet) -> Callable[[Tensor], Tensor]:
    """log p of `PullbackDensity` at x (m, 2), in float64, without gradients."""
    f = copy.deepcopy(network).double().requires_grad_(False)

    def log_prob(x: Tensor) -> Tensor:
        z, J = value_and_jacobian(f, x)
        return NORMAL.log_prob(z) + torch.linalg.det(J).abs().log()

    return log_prob


def evaluate(network: BottleneckResNet, target: str) -> Evaluation:
    """The divergence of a trained network from its target, with what goes with it."""
    find = evaluate_energy if target in ENERGIES else evaluate_data
    return find(network, target)


def _mean(values: Tensor) -> Divergence:
    return Divergence(float(values.mean()), float(values.std() / len(values) ** 0.5))
