"""What all networks promise: explicit randomness, independent items, every transform of torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacfwd, jvp, vjp, vmap
from torch.testing import assert_close

from specbp.models import BottleneckResNet, ConvWideResNet, DCGANGenerator

# torch scripts some decompositions when the first JVP of a process is taken.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")

# name: (constructor, shape of one input, shape of one output)
MODELS = {
    "bottleneck": (lambda g: BottleneckResNet(generator=g), (2,), (2,)),
    "bottleneck-d5": (lambda g: BottleneckResNet(5, 7, 2, generator=g), (5,), (5,)),
    "wide-resnet": (lambda g: ConvWideResNet(3, 4, 2, generator=g), (3, 6, 5), (3, 6, 5)),
    "dcgan-32": (lambda g: DCGANGenerator(6, 2, 1, 32, generator=g), (6,), (1, 32, 32)),
    "dcgan-64": (lambda g: DCGANGenerator(6, 2, 3, 64, generator=g), (6,), (3, 64, 64)),
}
every_model = pytest.mark.parametrize("name", MODELS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(name: str, seed: int = 0) -> nn.Module:
    return MODELS[name][0](generator(seed)).double()


def inputs(name: str, batch: int) -> torch.Tensor:
    return torch.randn(batch, *MODELS[name][1], dtype=torch.float64, generator=generator(1))


def rounding(f: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> float:
    """Bound on the rounding error of f(x), whatever the order of the sums.

    A sum of k products errs by at most k·eps·|w|·|x|, and LeakyReLU and tanh do not enlarge an
    error. So the network with weights |w| and slope 1, at |x|, carries every error to the output.
    """
    majorant = copy.deepcopy(f).double()
    length = 0
    for module in majorant.modules():
        if hasattr(module, "slope"):
            module.slope = 1.0
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            length += module.weight.numel() // module.weight.shape[0] + module.weight.shape[0] + 4
    for parameter in majorant.parameters():
        parameter.data.abs_()
    if isinstance(majorant, DCGANGenerator):
        x, majorant = x[:, :, None, None], majorant.layers
    largest = 1 + majorant(x.double().abs()).max().item()
    return length * torch.finfo(dtype).eps * largest


@every_model
@pytest.mark.parametrize("batch", [1, 3])
def test_shape(name, batch):
    assert network(name)(inputs(name, batch)).shape == (batch, *MODELS[name][2])


@every_model
def test_construction_leaves_global_randomness_alone(name):
    before = torch.get_rng_state()
    network(name)
    assert torch.equal(torch.get_rng_state(), before)


@every_model
def test_weights_come_from_the_generator_alone(name):
    source = generator()
    first, second = (MODELS[name][0](source) for _ in range(2))  # one draws on after the other
    again = MODELS[name][0](generator())
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
        if key.endswith("weight"):
            assert not torch.equal(value, second.state_dict()[key]), key


@every_model
def test_weights_are_float32_whatever_the_default(name):
    torch.set_default_dtype(torch.float64)
    try:
        f = MODELS[name][0](generator())
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in f.parameters()} == {torch.float32}
    for key, value in MODELS[name][0](generator()).state_dict().items():
        assert torch.equal(value, f.state_dict()[key]), key


@every_model
@pytest.mark.parametrize("training", [True, False])
def test_items_of_a_batch_are_independent(name, training):
    f, x = network(name).train(training), inputs(name, 4)
    x[1:] *= 10  # a statistic shared by the batch would betray itself
    atol = 2 * rounding(f, x, torch.float64)
    assert_close(f(x), torch.cat([f(item[None]) for item in x]), rtol=0, atol=atol)


@every_model
def test_float32_and_float64_agree(name):
    f, x = network(name), inputs(name, 3).float()
    atol = rounding(f, x, torch.float32)
    assert_close(copy.deepcopy(f).float()(x).double(), f(x.double()), rtol=0, atol=atol)


@every_model
def test_vmap_is_the_batch(name):
    f, x = network(name), inputs(name, 4)
    atol = 2 * rounding(f, x, torch.float64)
    assert_close(vmap(lambda z: f(z[None])[0])(x), f(x), rtol=0, atol=atol)


@every_model
def test_reverse_mode_is_the_adjoint_of_forward_mode(name):
    f, x = network(name), inputs(name, 2)
    v = torch.randn(x.shape, dtype=x.dtype, generator=generator(2))
    value, Jv = jvp(f, (x,), (v,))
    u = torch.randn(value.shape, dtype=x.dtype, generator=generator(3))
    (JTu,) = vjp(f, x)[1](u)
    # J is a sum over paths, as f is: its products err by what f(v) would, weighted by u.
    atol = 2 * rounding(f, v, torch.float64) * u.abs().sum().item()
    assert_close((u * Jv).sum(), (JTu * v).sum(), rtol=0, atol=atol)
    assert atol < (u * Jv).sum().abs()


@every_model
def test_jacfwd_gives_the_columns_of_the_jacobian(name):
    f, z = network(name), inputs(name, 1)[0]
    J = jacfwd(lambda z: f(z[None])[0])(z)
    assert J.shape == MODELS[name][2] + MODELS[name][1]
    _, Jv = jvp(f, (z[None],), (torch.ones_like(z)[None],))
    atol = 2 * rounding(f, torch.ones_like(z)[None], torch.float64)
    assert_close(J.flatten(-z.ndim).sum(-1), Jv[0], rtol=0, atol=atol)


@every_model
def test_jacobian_of_the_batch_is_block_diagonal(name):
    f, x = network(name), inputs(name, 3)
    tangent = torch.zeros_like(x)
    tangent[1] = 1
    _, change = jvp(f, (x,), (tangent,))
    assert change[1].abs().max() > 0
    assert change[0].count_nonzero() == change[2].count_nonzero() == 0


@every_model
def test_double_backward_agrees_with_reverse_over_forward(name):
    f, x = network(name), inputs(name, 2)
    v = torch.randn(x.shape, dtype=x.dtype, generator=generator(2))
    parameters = {key: p.detach() for key, p in f.named_parameters()}

    def forward(parameters):  # ‖Jv‖² by a JVP
        return jvp(lambda x: functional_call(f, parameters, x), (x,), (v,))[1].square().sum()

    def twice_reverse(parameters):  # Jv as the derivative of uᵀJ with respect to u
        output, pullback = vjp(lambda x: functional_call(f, parameters, x), x)
        return vjp(lambda u: pullback(u)[0], output)[1](v)[0].square().sum()

    def gradient(h):
        return torch.func.grad(h)(parameters)

    expected, actual = gradient(forward), gradient(twice_reverse)
    assert sum(g.abs().sum() for g in expected.values()) > 0
    # Backward stable: both err by the relative rounding of the network's own evaluation.
    scale = max(g.abs().max().item() for g in expected.values())
    rtol = rounding(f, x, torch.float64) / f(x).abs().max().item()
    for key, value in expected.items():
        assert_close(actual[key], value, rtol=0, atol=rtol * scale, msg=key)


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        (BottleneckResNet, {"dim": 0}, "dim=0"),
        (BottleneckResNet, {"blocks": 0}, "blocks=0"),
        (ConvWideResNet, {"width": 0}, "width=0"),
        (DCGANGenerator, {"latent": 0}, "latent=0"),
        (DCGANGenerator, {"size": 48}, "32 or 64, got 48"),
    ],
)
def test_impossible_sizes_are_refused(model, sizes, message):
    with pytest.raises(ValueError, match=message):
        model(**sizes, generator=generator())


@pytest.mark.parametrize("model", [BottleneckResNet, ConvWideResNet, DCGANGenerator])
def test_generator_is_required(model):
    with pytest.raises(TypeError, match="generator"):
        model()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_model
def test_weights_live_on_the_device_of_the_generator(name):
    source = torch.Generator("cuda").manual_seed(0)
    assert {p.device.type for p in MODELS[name][0](source).parameters()} == {"cuda"}
