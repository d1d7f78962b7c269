"""The bottleneck residual network: the paper's architecture, and its exact Jacobian."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import jacfwd
from torch.testing import assert_close

from specbp.models import Bottleneck, BottleneckResNet

# torch scripts some decompositions when the first JVP of a process is taken.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")

EPS = torch.finfo(torch.float64).eps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def preactivations(block: Bottleneck, x: torch.Tensor) -> list[torch.Tensor]:
    (W1, b1), (W2, b2) = ((l.weight, l.bias) for l in (block.linear1, block.linear2))
    first = W1 @ x + b1
    second = W2 @ torch.where(first > 0, first, block.slope * first) + b2
    return [first, second]


def jacobian_by_hand(block: Bottleneck, x: torch.Tensor) -> torch.Tensor:
    """I + W3 D2 W2 D1 W1."""
    ones = torch.ones(len(block.linear1.bias), dtype=x.dtype)
    D1, D2 = (torch.where(h > 0, ones, block.slope * ones) for h in preactivations(block, x))
    W1, W2, W3 = (l.weight for l in (block.linear1, block.linear2, block.linear3))
    eye = torch.eye(len(x), dtype=x.dtype)
    return eye + W3 @ torch.diag(D2) @ W2 @ torch.diag(D1) @ W1


@pytest.mark.parametrize(("dim", "hidden"), [(2, 32), (7, 3), (64, 64)])
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_jacobian_of_a_block(dim, hidden, slope):
    block = Bottleneck(dim, hidden, slope, generator=generator()).double()
    x = torch.randn(dim, dtype=torch.float64, generator=generator(1))
    W1, W2, W3 = (l.weight.detach().abs() for l in (block.linear1, block.linear2, block.linear3))
    atol = 2 * (dim + 2 * hidden) * EPS * (1 + (W3 @ W2 @ W1).max().item())
    assert_close(jacfwd(block)(x), jacobian_by_hand(block, x), rtol=0, atol=atol)


def test_jacobian_of_the_network_is_the_product_of_its_blocks():
    f = BottleneckResNet(5, 8, 3, generator=generator()).double()
    x = torch.randn(5, dtype=torch.float64, generator=generator(1))
    product, y = torch.eye(5, dtype=torch.float64), x
    amplification = 1.0
    for block in f.blocks:
        J = jacobian_by_hand(block, y)
        product, y = J @ product, block(y)
        amplification *= torch.linalg.matrix_norm(J, 2).item()
    atol = 2 * 3 * (5 + 2 * 8 + 5) * 5 * EPS * amplification
    assert_close(jacfwd(f)(x), product, rtol=0, atol=atol)


def test_the_default_is_the_architecture_of_the_paper():
    f = BottleneckResNet(generator=generator())
    layers = [m for m in f.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(2, 32), (32, 32), (32, 2)] * 4
    assert all(m.bias is not None for m in layers)


def test_leading_dimensions_broadcast():
    f = BottleneckResNet(3, generator=generator()).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator(1))
    assert f(x).shape == x.shape
    assert f(x[:0]).shape == (0, 4, 3)


def test_untrained_scale_does_not_grow_with_the_depth():
    """The residual branches of all blocks together carry about the variance of one."""
    x = torch.randn(200, 64, generator=generator(1))
    shallow, deep = (
        (BottleneckResNet(64, 64, blocks, generator=generator())(x) - x).var().item()
        for blocks in (1, 32)
    )
    # Without the factor 1/sqrt(blocks) the ratio exceeds 32; with it, it stays near (e - 1)/1 or
    # below, since each block amplifies the variance by at most about 1 + 1/32.
    assert deep / shallow < torch.e
