"""Maps of the plane whose preimages, and so whose densities, are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specbp import generator_for
from specbp.models import Bottleneck, BottleneckResNet
from verification.experiments.triangulation import Map


@dataclass(frozen=True, eq=False)
class KnownMap:
    """A map with its exact answer.

    Attributes:
        f: z (m, 2) -> x (m, 2).
        formula: For the reader.
        preimages: x (m, 2) -> all its preimages, padded with NaN, (m, most, 2).
    """

    f: Map
    formula: str
    preimages: Callable[[Tensor], Tensor]

    def count(self, x: Tensor) -> Tensor:
        """Number of preimages of ``x`` (m, 2) in the plane, shape (m,)."""
        return self.preimages(x).isfinite().all(-1).sum(-1)


def mirror_network() -> BottleneckResNet:
    """A bottleneck residual network that computes (|z1|, z2).

    With t = z1 and the LeakyReLU a of slope s: a(t) + a(-t) = (1 - s)|t|, a(t) - a(-t) = (1 + s)t;
    the block adds |t| - t.
    """
    f = BottleneckResNet(2, 3, 1, generator=generator_for("mirror"))
    block = f.blocks[0]
    assert isinstance(block, Bottleneck)
    even, odd = 1 / (1 - block.slope), 1 / (1 + block.slope) ** 2
    weights = {
        "linear1": [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]],
        "linear2": [[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]],
        "linear3": [[even, -odd, odd], [0.0, 0.0, 0.0]],
    }
    f = f.double()
    with torch.no_grad():
        for name, weight in weights.items():
            layer = getattr(block, name)
            layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
            layer.bias.zero_()
    return f.requires_grad_(False)


def _square(z: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return torch.stack([a.square() - b.square(), 2 * a * b], -1)


def _square_roots(x: Tensor) -> Tensor:
    root = torch.view_as_real(torch.view_as_complex(x.contiguous()).sqrt())
    return torch.stack([root, -root], 1)


def _mirror_preimages(x: Tensor) -> Tensor:
    """Two for x1 > 0, none for x1 < 0."""
    found = torch.stack([x, x * torch.tensor([-1.0, 1.0]).to(x)], 1)
    return torch.where(x[:, :1, None] > 0, found, math.nan)


def _cubic(linear: Callable[[Tensor], Tensor]) -> Map:
    """(z1³ + p(z2) z1, z2)."""

    def f(z: Tensor) -> Tensor:
        a, b = z.unbind(-1)
        return torch.stack([a**3 + linear(b) * a, b], -1)

    return f


def _cubic_roots(linear: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The real roots t of t³ + p(x2) t = x1: Viète's where there are three, Cardano's for one."""

    def preimages(x: Tensor) -> Tensor:
        p, q = linear(x[:, 1]), x[:, 0]
        discriminant = (q / 2).square() + (p / 3) ** 3
        root = discriminant.clamp_min(0).sqrt()
        # The sum without cancellation; the other term of Cardano's formula is -p/3 over it.
        u = _cube_root(q / 2 + torch.where(q >= 0, root, -root))
        single = u - p / (3 * torch.where(u == 0, 1, u))
        m = (-p / 3).clamp_min(1e-300).sqrt()
        angle = torch.acos((q / (2 * m**3)).clamp(-1, 1)) / 3
        three = [2 * m * torch.cos(angle - 2 * math.pi * k / 3) for k in range(3)]
        only = (discriminant > 0).unsqueeze(-1)
        lone = torch.stack([single, *[torch.full_like(q, math.nan)] * 2], -1)
        roots = torch.where(only, lone, torch.stack(three, -1))
        return torch.stack([roots, x[:, 1:].expand_as(roots)], -1)

    return preimages


def _cube_root(t: Tensor) -> Tensor:
    return t.sign() * t.abs() ** (1 / 3)


KNOWN: dict[str, KnownMap] = {
    "square": KnownMap(_square, "(z1² − z2², 2 z1 z2)", _square_roots),
    "fold": KnownMap(
        _cubic(lambda b: torch.full_like(b, -1.0)),
        "(z1³ − z1, z2)",
        _cubic_roots(lambda b: torch.full_like(b, -1.0)),
    ),
    "cusp": KnownMap(_cubic(lambda b: b), "(z1³ + z1 z2, z2)", _cubic_roots(lambda b: b)),
    "mirror": KnownMap(mirror_network(), "(|z1|, z2), as a network", _mirror_preimages),
}
