"""Networks whose Jacobians the verification suite studies.

Three families: the bottleneck residual network of Ramesh & LeCun (2018), a convolutional Wide
ResNet and a DCGAN generator. Each is drawn from an explicit generator, treats the items of a batch
independently and works under `torch.func`.
"""

from __future__ import annotations

from specbp.models.dcgan import DCGANGenerator, TranslatedLeakyReLU
from specbp.models.two_dim import Bottleneck, BottleneckResNet
from specbp.models.wide_resnet import ConvBlock, ConvWideResNet

__all__ = [
    "Bottleneck",
    "BottleneckResNet",
    "ConvBlock",
    "ConvWideResNet",
    "DCGANGenerator",
    "TranslatedLeakyReLU",
]
