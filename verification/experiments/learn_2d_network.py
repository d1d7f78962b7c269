r"""The bottleneck network with its kinks smoothed, and its value and Jacobian in one pass.

.. math:: a_t(h) = s h + (1 - s)\, t \log(1 + e^{h / t}), \qquad a_0 = \mathrm{LeakyReLU}_s
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specbp.models import Bottleneck, BottleneckResNet


class Pushed(NamedTuple):
    """f(z) (b, 2) and J (b, 2, 2), with their graph."""

    value: Tensor
    jacobian: Tensor


def value_and_jacobian(f: BottleneckResNet, z: Tensor, t: float = 0.0) -> Pushed:
    """f and J at z (b, n), the tangents pushed through the layers by hand.

    It is what `torch.func.jvp` does with n columns, in a third of its time: the network is small
    and dispatch is all.

    Args:
        f: The network.
        z: Points (b, n).
        t: Width of the kinks; 0 takes LeakyReLU as it is.
    """
    n = z.shape[-1]
    tangents = torch.eye(n, dtype=z.dtype, device=z.device).expand(len(z), n, n)  # rows J e_k
    for block in f.blocks:
        assert isinstance(block, Bottleneck)
        z, tangents = _through(block, z, tangents, t)
    return Pushed(z, tangents.mT)


def smoothed(f: BottleneckResNet, z: Tensor, t: float = 0.0) -> Tensor:
    """f(z) alone, z (..., n)."""
    for block in f.blocks:
        assert isinstance(block, Bottleneck)
        h = activation(block.linear1(z), block.slope, t)[0]
        h = activation(block.linear2(h), block.slope, t)[0]
        z = z + block.linear3(h)
    return z


def activation(h: Tensor, slope: float, t: float) -> tuple[Tensor, Tensor]:
    """a_t and its derivative."""
    if t == 0:
        steepness = torch.where(h > 0, 1.0, slope).to(h.dtype)
        return h * steepness, steepness
    gate = torch.sigmoid(h / t)
    return slope * h + (1 - slope) * t * F.softplus(h / t), slope + (1 - slope) * gate


def _through(block: Bottleneck, z: Tensor, tangents: Tensor, t: float) -> tuple[Tensor, Tensor]:
    h, rows = z, tangents
    for layer in (block.linear1, block.linear2):
        h, steepness = activation(layer(h), block.slope, t)
        rows = (rows @ layer.weight.mT) * steepness.unsqueeze(-2)
    return z + block.linear3(h), tangents + rows @ block.linear3.weight.mT
