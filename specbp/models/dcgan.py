"""The generator of a DCGAN with translated LeakyReLU, as studied by Ramesh & LeCun (2018)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TranslatedLeakyReLU(nn.Module):
    r"""LeakyReLU whose kink sits on a learned point of the diagonal, per channel.

    .. math:: y = a(x - t) + t

    Xiang & Li (2017) learn the slope as well; here it is fixed, which is what "translated
    LeakyReLU" suggests.

    Args:
        channels: Number of translations t, one per channel, initially zero.
        slope: Slope of a below zero.
        device: Where t lives.
    """

    def __init__(
        self, channels: int, slope: float = 0.2, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.slope = slope
        self.translation = nn.Parameter(
            torch.zeros(channels, 1, 1, dtype=torch.float32, device=device)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (b, channels, H, W) to the same shape."""
        return F.leaky_relu(x - self.translation, self.slope) + self.translation


class DCGANGenerator(nn.Module):
    r"""Five transposed convolutions from a code z in R^n to an image in (-1, 1).

    .. math:: f(z) = \tanh(b + K_5 * y_4), \quad y_i = a(K_i * y_{i-1} - t_i) + t_i, \quad y_0 = z

    The layers follow Radford, Metz & Chintala (2016): the first spreads the code over a small
    square, each further one doubles the side (kernel 4, stride 2, padding 1) and halves the number
    of feature maps, 8, 4, 2, 1 times ``base_width``.

    ========  =======================================  ==================
    ``size``  side of the image after each layer       origin
    ========  =======================================  ==================
    64        4, 8, 16, 32, 64                         DCGAN
    32        2, 4, 8, 16, 32                          ours
    ========  =======================================  ==================

    The variant for 32x32 keeps all five layers and starts from a 2x2 square, so that the depth,
    the kernels and the doubling are those of the large one.

    From Ramesh & LeCun (2018): five layers, translated LeakyReLU, ``base_width`` as the capacity
    parameter. Ours: no batch normalisation (batch statistics couple the items of a batch, and then
    the Jacobian of one item does not exist), no bias where a translation follows, He-normal
    weights with fan-in ``C_in k² / stride²``, which is the number of terms in one output pixel, and
    the slope 0.2.

    Args:
        latent: n, the size of the code.
        base_width: Number of feature maps before the last layer.
        channels: C, of the image.
        size: Side of the image, 32 or 64.
        slope: Slope of the LeakyReLU below zero.
        generator: Source of the initial float32 parameters, which live on its device. The global
            random state is neither read nor changed.

    Raises:
        ValueError: If ``size`` is neither 32 nor 64, or another size is not positive.

    Example:
        >>> import torch
        >>> f = DCGANGenerator(16, 4, 1, 32, generator=torch.Generator().manual_seed(0))
        >>> f(torch.zeros(5, 16)).shape
        torch.Size([5, 1, 32, 32])

    References:
        Ramesh & LeCun, Backpropagation for Implicit Spectral Densities, 2018, arXiv:1806.00499.
        Radford, Metz & Chintala, Unsupervised Representation Learning with DCGANs, 2016,
        arXiv:1511.06434.
        Xiang & Li, On the Effects of Batch and Weight Normalization in GANs, 2017,
        arXiv:1704.03971.
    """

    def __init__(
        self,
        latent: int = 64,
        base_width: int = 16,
        channels: int = 1,
        size: int = 32,
        slope: float = 0.2,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if size not in (32, 64):
            msg = f"size must be 32 or 64, got {size}: resize the images to one of them."
            raise ValueError(msg)
        if min(latent, base_width, channels) < 1:
            msg = (
                "latent, base_width and channels must be at least 1, "
                f"got latent={latent}, base_width={base_width}, channels={channels}."
            )
            raise ValueError(msg)
        self.latent = latent
        widths = [latent, 8 * base_width, 4 * base_width, 2 * base_width, base_width, channels]
        gain = nn.init.calculate_gain("leaky_relu", slope)
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers.append(
                _deconv(
                    c_in,
                    c_out,
                    # A code is one pixel: the first layer spreads it, without overlap.
                    kernel=size // 16 if i == 0 else 4,
                    stride=1 if i == 0 else 2,
                    bias=i == 4,
                    gain=gain if i > 0 else 1.0,
                    generator=generator,
                )
            )
            if i < 4:
                layers.append(TranslatedLeakyReLU(c_out, slope, device=generator.device))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Map ``z`` (b, n) to images (b, C, size, size), each item on its own."""
        return torch.tanh(self.layers(z[:, :, None, None]))


def _deconv(
    c_in: int,
    c_out: int,
    *,
    kernel: int,
    stride: int,
    bias: bool,
    gain: float,
    generator: torch.Generator,
) -> nn.ConvTranspose2d:
    # The constructor of nn.ConvTranspose2d draws from the global generator; skip_init does not run
    # it.
    layer = nn.utils.skip_init(
        nn.ConvTranspose2d,
        c_in,
        c_out,
        kernel,
        stride=stride,
        padding=(kernel - stride) // 2 if stride > 1 else 0,
        bias=bias,
        dtype=torch.float32,
        device=generator.device,
    )
    fan_in = c_in if stride == 1 else c_in * (kernel // stride) ** 2
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in), generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
