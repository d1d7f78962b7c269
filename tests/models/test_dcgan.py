"""The DCGAN generator and its translated LeakyReLU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from specbp.models import DCGANGenerator, TranslatedLeakyReLU


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def deconvolutions(f: nn.Module) -> list[nn.ConvTranspose2d]:
    return [m for m in f.modules() if isinstance(m, nn.ConvTranspose2d)]


def test_translation_moves_the_kink_along_the_diagonal():
    act = TranslatedLeakyReLU(3, slope=0.25)  # 0.25 and the inputs are exact in binary
    act.translation.data = torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1)
    x = torch.arange(-4.0, 5.0).expand(1, 3, 1, 9)
    t = act.translation
    assert torch.equal(act(x), torch.where(x > t, x, t + 0.25 * (x - t)))
    assert torch.equal(act(t[None]), t[None])


def test_translation_is_learned_and_starts_at_zero():
    f = DCGANGenerator(4, 2, generator=generator())
    translations = [p for key, p in f.named_parameters() if key.endswith("translation")]
    assert [t.numel() for t in translations] == [16, 8, 4, 2]
    assert all(t.requires_grad and not t.any() for t in translations)


@pytest.mark.parametrize(("size", "sides"), [(32, [2, 4, 8, 16, 32]), (64, [4, 8, 16, 32, 64])])
def test_five_layers_double_the_side_and_halve_the_width(size, sides):
    f = DCGANGenerator(6, 3, 2, size, generator=generator())
    shapes = []
    for layer in deconvolutions(f):
        layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    f(torch.zeros(1, 6))
    widths = [24, 12, 6, 3, 2]
    assert shapes == [(width, side, side) for width, side in zip(widths, sides, strict=True)]


def test_only_the_last_layer_is_affine():
    biases = [m.bias for m in deconvolutions(DCGANGenerator(generator=generator()))]
    assert [b is None for b in biases] == [True] * 4 + [False]


def test_output_is_the_tanh_of_the_last_layer():
    f = DCGANGenerator(4, 2, generator=generator())
    z = torch.randn(3, 4, generator=generator(1))
    assert torch.equal(f(z), f.layers(z[:, :, None, None]).tanh())


@pytest.mark.parametrize("size", [32, 64])
def test_weights_have_the_variance_of_their_fan_in(size):
    f = DCGANGenerator(64, 8, 1, size, slope=0.2, generator=generator())
    for i, layer in enumerate(deconvolutions(f)):
        # The fan-in by counting: with ones everywhere, a pixel is the number of its terms.
        ones = nn.functional.conv_transpose2d(
            torch.ones(1, layer.in_channels, 5, 5),
            torch.ones_like(layer.weight),
            stride=layer.kernel_size if i == 0 else layer.stride,
            padding=layer.padding,
        )
        fan_in = ones[0, 0, ones.shape[-2] // 2, ones.shape[-1] // 2].item()
        gain2 = 1.0 if i == 0 else 2 / (1 + 0.2**2)
        N = layer.weight.numel()
        z = (layer.weight.square().mean().item() * fan_in / gain2 - 1) * math.sqrt(N / 2)
        assert abs(z) < 6, f"layer {i}: variance x fan-in is {z:.1f} standard errors off"


def test_untrained_network_is_homogeneous_before_the_tanh():
    """No bias, no translation: doubling the code doubles the pre-image of the picture, exactly."""
    f = DCGANGenerator(5, 2, generator=generator()).double()
    z = torch.randn(2, 5, 1, 1, dtype=torch.float64, generator=generator(1))
    assert_close(f.layers(2 * z), 2 * f.layers(z), rtol=0, atol=0)
