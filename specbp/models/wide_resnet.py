"""A convolutional Wide ResNet from images to images, without normalisation layers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    r"""One pre-activation residual block of two 3x3 convolutions.

    .. math:: h \mapsto h + s\, K_2 * a(K_1 * a(h) + b_1) + b_2

    Args:
        width: Number of feature maps in and out.
        slope: Slope of the LeakyReLU below zero.
        scale: s, the fixed factor on the residual branch.
        generator: Source of the initial parameters, which live on its device.
    """

    def __init__(
        self, width: int, slope: float, *, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.slope = slope
        self.scale = scale
        gain = nn.init.calculate_gain("leaky_relu", slope)
        self.conv1 = _conv3x3(width, width, gain=gain, generator=generator)
        self.conv2 = _conv3x3(width, width, gain=gain, generator=generator)

    def forward(self, h: Tensor) -> Tensor:
        """Map ``h`` (b, width, H, W) to the same shape."""
        r = self.conv1(F.leaky_relu(h, self.slope))
        r = self.conv2(F.leaky_relu(r, self.slope))
        return h + self.scale * r


class ConvWideResNet(nn.Module):
    r"""Wide ResNet from images to images of the same shape.

    .. math:: f = \text{head} \circ B_\ell \circ \dots \circ B_1 \circ \text{stem}, \quad
              B_i(h) = h + \ell^{-1/2} K_2 * a(K_1 * a(h))

    The blocks are those of Zagoruyko & Komodakis (2016) at one resolution, with LeakyReLU, and with
    no batch normalisation: batch statistics couple the items of a batch, and then the Jacobian of
    one item does not exist. Instead each residual branch carries the fixed factor
    1/sqrt(blocks), which keeps the scale of the features independent of the depth (as in the
    normalisation-free initialisation of Zhang, Dauphin & Ma, 2019). There is no skip from the image
    to the output, so the spectrum of J is not anchored at one.

    Args:
        channels: C, of the input and of the output.
        width: Number of feature maps between stem and head.
        blocks: Number of residual blocks.
        slope: Slope of the LeakyReLU below zero.
        generator: Source of the initial float32 parameters, which live on its device. The global
            random state is neither read nor changed.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> import torch
        >>> f = ConvWideResNet(channels=1, width=8, generator=torch.Generator().manual_seed(0))
        >>> f(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])

    References:
        Zagoruyko & Komodakis, Wide Residual Networks, 2016, arXiv:1605.07146.
        Zhang, Dauphin & Ma, Fixup Initialization, 2019, arXiv:1901.09321.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 16,
        blocks: int = 4,
        slope: float = 0.2,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if min(channels, width, blocks) < 1:
            msg = (
                "channels, width and blocks must be at least 1, "
                f"got channels={channels}, width={width}, blocks={blocks}."
            )
            raise ValueError(msg)
        scale = blocks**-0.5
        self.stem = _conv3x3(channels, width, gain=1.0, generator=generator)
        self.blocks = nn.Sequential(
            *(ConvBlock(width, slope, scale=scale, generator=generator) for _ in range(blocks))
        )
        self.head = _conv3x3(width, channels, gain=1.0, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (b, C, H, W) to (b, C, H, W), each item on its own."""
        return self.head(self.blocks(self.stem(x)))


def _conv3x3(fan_in: int, fan_out: int, *, gain: float, generator: torch.Generator) -> nn.Conv2d:
    # The constructor of nn.Conv2d draws from the global generator; skip_init does not run it.
    layer = nn.utils.skip_init(
        nn.Conv2d, fan_in, fan_out, 3, padding=1, dtype=torch.float32, device=generator.device
    )
    scale = 1 / math.sqrt(9 * fan_in)
    nn.init.normal_(layer.weight, std=gain * scale, generator=generator)
    assert layer.bias is not None
    nn.init.uniform_(layer.bias, -scale, scale, generator=generator)
    return layer
