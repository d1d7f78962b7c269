"""The convolutional Wide ResNet."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from specbp.models import ConvBlock, ConvWideResNet

EPS = torch.finfo(torch.float64).eps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_conv(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """The 3x3 convolution with zero padding of one item (C, H, W), as a sum over nine shifts."""
    _, H, W = x.shape
    padded = torch.zeros(x.shape[0], H + 2, W + 2, dtype=x.dtype)
    padded[:, 1:-1, 1:-1] = x
    return layer.bias[:, None, None] + sum(
        torch.einsum("oc,chw->ohw", layer.weight[:, :, i, j], padded[:, i : i + H, j : j + W])
        for i in range(3)
        for j in range(3)
    )


def naive_block(block: ConvBlock, h: torch.Tensor) -> torch.Tensor:
    def a(t):
        return torch.where(t > 0, t, block.slope * t)

    return h + block.scale * naive_conv(block.conv2, a(naive_conv(block.conv1, a(h))))


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 5, 3)])
def test_forward_is_the_formula(shape):
    f = ConvWideResNet(shape[0], 4, 3, generator=generator()).double()
    x = torch.randn(shape, dtype=torch.float64, generator=generator(1))
    h = naive_conv(f.stem, x)
    size = h.abs().max()
    for block in f.blocks:
        h = naive_block(block, h)
        size = torch.maximum(size, h.abs().max())
    # 9·4 products in each of 2·3 + 2 layers, whose weights sum to about sqrt(36) in absolute value.
    atol = 8 * 36 * EPS * 6 * size.item()
    assert_close(f(x[None])[0], naive_conv(f.head, h), rtol=0, atol=atol)


def test_no_layer_couples_the_items():
    kinds = {type(m) for m in ConvWideResNet(generator=generator()).modules()}
    assert kinds == {ConvWideResNet, ConvBlock, nn.Sequential, nn.Conv2d}


@pytest.mark.parametrize("blocks", [1, 4])
def test_residual_branches_are_scaled_by_the_depth(blocks):
    f = ConvWideResNet(blocks=blocks, generator=generator())
    assert [block.scale for block in f.blocks] == [blocks**-0.5] * blocks
