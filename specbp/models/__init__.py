"""Networks whose Jacobians the verification suite studies, and targets on the plane.

The networks are the bottleneck residual network of Ramesh & LeCun (2018), a convolutional Wide
ResNet, a DCGAN generator, and flows, whose log |det J| is known in closed form. Each is drawn from
an explicit generator, treats the items of a batch independently and works under `torch.func`. The
targets are test energies (`ENERGIES`) and data distributions with an exact density (`DATA`).
"""

from __future__ import annotations

from specbp.models.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    AutoregressiveFlow,
    RealNVP,
)
from specbp.models.dcgan import DCGANGenerator, TranslatedLeakyReLU
from specbp.models.energies import DATA, ENERGIES, Energy, GaussianMixture
from specbp.models.flows import (
    Composition,
    ElementWiseFlow,
    Flow,
    LinearFlow,
    TriangularFlow,
)
from specbp.models.two_dim import Bottleneck, BottleneckResNet
from specbp.models.wide_resnet import ConvBlock, ConvWideResNet

__all__ = [
    "AdditiveCoupling",
    "AffineCoupling",
    "AutoregressiveFlow",
    "Bottleneck",
    "BottleneckResNet",
    "Composition",
    "ConvBlock",
    "ConvWideResNet",
    "DATA",
    "DCGANGenerator",
    "ENERGIES",
    "ElementWiseFlow",
    "Energy",
    "Flow",
    "GaussianMixture",
    "LinearFlow",
    "RealNVP",
    "TranslatedLeakyReLU",
    "TriangularFlow",
]
