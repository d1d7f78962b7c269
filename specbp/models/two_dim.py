"""The bottleneck Wide ResNet on R^2 of Ramesh & LeCun (2018), and the same family on R^n."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    r"""One residual block of three affine layers.

    .. math:: x \mapsto x + W_3\, a(W_2\, a(W_1 x + b_1) + b_2) + b_3, \quad
              a(t) = \max(t, 0) + \text{slope} \cdot \min(t, 0)

    Its Jacobian is ``I + W3 D2 W2 D1 W1``, ``D_i`` diagonal with entries 1 and ``slope``.

    Args:
        dim: n, the size of the input and of the output.
        hidden: Width of the two inner layers.
        slope: Slope of the LeakyReLU below zero.
        gain: Factor on the standard deviation of ``W3`` at initialisation.
        generator: Source of the initial parameters, which live on its device.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        slope: float = 0.2,
        *,
        gain: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.slope = slope
        inner = nn.init.calculate_gain("leaky_relu", slope)
        self.linear1 = _linear(dim, hidden, gain=inner, generator=generator)
        self.linear2 = _linear(hidden, hidden, gain=inner, generator=generator)
        self.linear3 = _linear(hidden, dim, gain=gain, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., n) to (..., n)."""
        h = F.leaky_relu(self.linear1(x), self.slope)
        h = F.leaky_relu(self.linear2(h), self.slope)
        return x + self.linear3(h)


class BottleneckResNet(nn.Module):
    r"""Wide ResNet on R^n made of bottleneck residual blocks, f = f_blocks ∘ … ∘ f_1.

    .. math:: f_\ell(x) = x + W_3\, a(W_2\, a(W_1 x + b_1) + b_2) + b_3

    From Ramesh & LeCun (2018), section 3: four residual blocks, three layers each from R^2 to R^2
    with hidden size 32, biases in all layers, LeakyReLU. Ours, because the paper does not give
    them: the slope 0.2, no activation between blocks, and the initialisation (He-normal weights
    scaled by 1/sqrt(blocks) in the last layer of a block, so that the depth does not set the scale
    of the untrained map; biases uniform on ±1/sqrt(fan-in), as zero biases would make the map
    positively homogeneous). Sizes other than ``dim = 2`` are ours too.

    f is not invertible in general. It is piecewise affine, so log det JᵀJ is locally constant: its
    gradient with respect to x and to the biases is zero almost everywhere, the one with respect to
    the weights is not.

    Args:
        dim: n, the size of the input and of the output.
        hidden: Width of the two inner layers of a block.
        blocks: Number of residual blocks.
        slope: Slope of the LeakyReLU below zero.
        generator: Source of the initial float32 parameters, which live on its device. The global
            random state is neither read nor changed.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> import torch
        >>> f = BottleneckResNet(generator=torch.Generator().manual_seed(0))
        >>> f(torch.zeros(5, 2)).shape
        torch.Size([5, 2])

    Reference:
        Ramesh & LeCun, Backpropagation for Implicit Spectral Densities, 2018, arXiv:1806.00499.
    """

    def __init__(
        self,
        dim: int = 2,
        hidden: int = 32,
        blocks: int = 4,
        slope: float = 0.2,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if min(dim, hidden, blocks) < 1:
            msg = (
                "dim, hidden and blocks must be at least 1, "
                f"got dim={dim}, hidden={hidden}, blocks={blocks}."
            )
            raise ValueError(msg)
        self.dim = dim
        self.blocks = nn.Sequential(
            *(
                Bottleneck(dim, hidden, slope, gain=blocks**-0.5, generator=generator)
                for _ in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., n) to (..., n), each item on its own."""
        return self.blocks(x)


def _linear(fan_in: int, fan_out: int, *, gain: float, generator: torch.Generator) -> nn.Linear:
    # The constructor of nn.Linear draws from the global generator; skip_init does not run it.
    layer = nn.utils.skip_init(
        nn.Linear, fan_in, fan_out, dtype=torch.float32, device=generator.device
    )
    scale = 1 / math.sqrt(fan_in)
    nn.init.normal_(layer.weight, std=gain * scale, generator=generator)
    nn.init.uniform_(layer.bias, -scale, scale, generator=generator)
    return layer
