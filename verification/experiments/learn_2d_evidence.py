r"""What automatic differentiation leaves out where the Jacobian jumps.

The derivative of E[log det J] by the pathwise gradient is compared with the difference quotient of
the mean itself, along that gradient, with common points. They agree for a smooth activation. For
LeakyReLU, log det J is constant on pieces of the plane, and their edges move with the parameters:
no derivative at a point sees that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specbp import generator_for
from specbp.likelihood import StandardNormal
from specbp.models import BottleneckResNet
from specbp.models.energies import ENERGIES
from verification.experiments.learn_2d_network import value_and_jacobian
from verification.store import Record

POINTS = 40_000
CHUNK = 4096
STEP = 1e-3  # along the unit vector of the gradient
WIDTHS = (0.3, 0.1, 0.03, 0.0)
NORMAL = StandardNormal(2)


def slopes(points: int = POINTS) -> list[Record]:
    """Slope of the reverse objective along its own gradient: as promised, and as measured."""
    return [_slope(t, points) for t in WIDTHS]


def _slope(t: float, points: int) -> Record:
    f = BottleneckResNet(generator=generator_for("learn_2d", "u1", 0, "weights")).double()
    z = NORMAL.sample(points, generator=generator_for("learn_2d", "slopes"))
    for part in z.split(CHUNK):
        (_items(f, part, t).sum() / points).backward()
    gradient = [p.grad for p in f.parameters() if p.grad is not None]
    assert len(gradient) == len(list(f.parameters()))
    size = torch.cat([g.flatten() for g in gradient]).norm()
    low, high = (_moved(f, gradient, sign * STEP / float(size), z, t) for sign in (-1, 1))
    quotient = (high - low) / (2 * STEP)
    return {
        "kind": "slope",
        "id": f"width {t:g}",
        "width": t,
        "promised": float(size),
        "measured": float(quotient.mean()),
        "measured_error": float(quotient.std() / points**0.5),
    }


@torch.no_grad()
def _moved(
    f: BottleneckResNet, direction: list[Tensor], step: float, z: Tensor, t: float
) -> Tensor:
    """The objective of each point with the parameters moved, and moved back."""
    kept = [p.clone() for p in f.parameters()]
    for p, d in zip(f.parameters(), direction, strict=True):
        p.add_(d, alpha=step)
    found = torch.cat([_items(f, part, t) for part in z.split(CHUNK)])
    for p, original in zip(f.parameters(), kept, strict=True):
        p.copy_(original)
    return found


def _items(f: BottleneckResNet, z: Tensor, t: float) -> Tensor:
    x, J = value_and_jacobian(f, z, t)
    return NORMAL.log_prob(z) - torch.linalg.slogdet(J)[1] + ENERGIES["u1"](x)
