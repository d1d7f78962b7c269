r"""Entropies of generators of the plane with known gradients, smooth and piecewise linear.

.. math:: \nabla_\theta H(f_\theta(z)) = \nabla_\theta\, \mathbb{E} \tfrac12 \log\det J^\top J

holds for invertible f. Spectral backpropagation differentiates under the expectation, which is
allowed where log det is a smooth function of z. For a piecewise linear f it jumps at the kinks, the
kinks move with θ, and their motion is a term that no derivative at a point contains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specbp import Jacobian, generator_for, qr_logdet
from specbp.models import BottleneckResNet
from verification.experiments.noisy_models import InjectiveNet, Linear
from verification.experiments.stein_score import flat_gradient

EDGE = 6.0  # of the grid
BATCH = 10_000  # points of the grid at once


@dataclass(frozen=True, eq=False)
class Problem:
    """A generator and the gradient of its entropy.

    Attributes:
        name: What it is called.
        f: Maps (K, 2) to (K, 2).
        entropy: Gradient of H(f(z)), flat.
        entropy_error: Relative error of `entropy`, estimated.
        pathwise: Expectation of the gradient of ½ log det JᵀJ at a point, flat.
        notes: Further facts.
    """

    name: str
    f: nn.Module
    entropy: Tensor
    entropy_error: float
    pathwise: Tensor
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters in the order of the gradients."""
        return list(self.f.parameters())


def linear() -> Problem:
    """f(z) = L z with ∇ log |det L| = L⁻ᵀ."""
    f = Linear(2, 2)
    exact = torch.linalg.inv(f.matrix.detach()).mT.flatten()
    return Problem("linear 2→2", f, exact, 0.0, exact)


def smooth(step: float) -> Problem:
    """An invertible network of tanh; its gradient by the midpoint rule on two grids."""
    f = InjectiveNet(2, 2)
    fine, coarse = (pathwise_gradient(f, list(f.parameters()), h) for h in (step, 2 * step))
    return Problem("smooth net 2→2", f, fine, _relative(coarse, fine), fine)


def resnet(step: float, tau: float) -> Problem:
    """The paper's bottleneck ResNet, the last weights of its blocks halved to make it invertible.

    The entropy's gradient is that of the network with a LeakyReLU rounded over a width τ, where no
    term is lost; its error is the change to 2τ.
    """
    f = BottleneckResNet(generator=generator_for("stein", 0)).double()
    with torch.no_grad():
        for block in f.blocks:
            block.linear3.weight.mul_(0.5)  # type: ignore[union-attr,operator]
    parameters = list(f.parameters())
    sharp, double = (
        pathwise_gradient(lambda z, t=t: rounded(f, z, t), parameters, step)  # type: ignore[misc]
        for t in (tau, 2 * tau)
    )
    path = pathwise_gradient(f, parameters, step)
    notes = {
        "smallest_det": smallest_determinant(f, step),
        "missing": _relative(path, sharp),
        "missing_cosine": float(F.cosine_similarity(path, sharp, dim=0)),
    }
    return Problem("bottleneck ResNet", f, sharp, _relative(double, sharp), path, notes)


def rounded(f: BottleneckResNet, z: Tensor, tau: float) -> Tensor:
    """f with the smooth LeakyReLU of `rounded_leaky_relu` in place of its own."""
    for block in f.blocks:
        a, b, c, slope = block.linear1, block.linear2, block.linear3, block.slope
        h = rounded_leaky_relu(a(z), slope, tau)  # type: ignore[operator,arg-type]
        h = rounded_leaky_relu(b(h), slope, tau)  # type: ignore[operator,arg-type]
        z = z + c(h)  # type: ignore[operator]
    return z


def rounded_leaky_relu(x: Tensor, slope: float, tau: float) -> Tensor:
    r"""A LeakyReLU whose derivative goes from one slope to the other over a width τ.

    .. math:: s\,x + (1 - s)\, \tau \log(1 + e^{x/\tau})
    """
    return slope * x + (1 - slope) * tau * F.softplus(x / tau)


def pathwise_gradient(
    f: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], step: float
) -> Tensor:
    """E ∇ ½ log det JᵀJ over a normal z by the midpoint rule on a grid, flat."""
    z, weights = normal_grid(step)
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for points, share in zip(z.split(BATCH), weights.split(BATCH), strict=True):
        J = torch.func.vmap(torch.func.jacfwd(lambda p: f(p.unsqueeze(0))[0]))(points)
        total += flat_gradient(share @ torch.linalg.slogdet(J).logabsdet, parameters)
    return total


def normal_grid(step: float) -> tuple[Tensor, Tensor]:
    """Midpoints (m, 2) and weights (m,) of a standard normal on the plane."""
    tick = torch.arange(-EDGE + step / 2, EDGE, step, dtype=torch.float64)
    z = torch.cartesian_prod(tick, tick)
    density = (-z.square().sum(-1) / 2).exp()
    kept = density > 1e-8
    return z[kept], density[kept] / density[kept].sum()


def smallest_determinant(f: Callable[[Tensor], Tensor], step: float) -> float:
    """Smallest det J on the grid: f is invertible where it never changes sign."""
    z, _ = normal_grid(step)
    with torch.no_grad():
        return min(float(torch.linalg.det(Jacobian(f, p, check=False).dense()).min())
                   for p in z.split(BATCH))  # fmt: skip


def check_pathwise(problem: Problem, z: Tensor) -> float:
    """Relative difference of specbp's exact gradient and jacfwd's at some points."""
    value = qr_logdet(Jacobian(problem.f, z, check=False)).value.mean() / 2
    J = torch.func.vmap(torch.func.jacfwd(lambda p: problem.f(p.unsqueeze(0))[0]))(z)
    naive = torch.linalg.slogdet(J).logabsdet.mean()
    ours, other = (flat_gradient(v, problem.parameters) for v in (value, naive))
    return _relative(ours, other)


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())
