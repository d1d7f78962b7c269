"""log det of a Jacobian under the transforms of torch.func, against plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad, vmap

from specbp import Jacobian, golub_kahan_logdet, logdet_at, qr_logdet
from specbp.models import BottleneckResNet
from tests.support import f64, generator, normal, signs

NET = BottleneckResNet(5, 12, generator=generator()).double()
PARAMS = {name: p.detach() for name, p in NET.named_parameters()}
Z, PROBES = normal(3, 5), signs(5, 2)


def smooth(params, z):
    return torch.sinh(functional_call(NET, params, (z,)) / 2)


def estimate(J):
    return golub_kahan_logdet(J, PROBES, num_steps=5)


def value(params, z):
    return logdet_at(smooth, params, z, estimate)


def plain_gradients():
    """The same estimates by autograd through an explicit Jacobian."""
    params = {name: p.clone().requires_grad_() for name, p in PARAMS.items()}
    z = Z.clone().requires_grad_()
    J = vmap(torch.func.jacrev(lambda x: smooth(params, x)))(z)
    total = golub_kahan_logdet(J, PROBES, num_steps=5).value.sum()
    *of_params, of_z = torch.autograd.grad(total, [*params.values(), z])
    return dict(zip(params, of_params, strict=True)), of_z


def test_the_value_is_that_of_the_jacobian():
    expected = estimate(Jacobian(lambda x: smooth(PARAMS, x), Z)).value
    torch.testing.assert_close(value(PARAMS, Z), expected)
    torch.testing.assert_close(vmap(lambda x: value(PARAMS, x))(Z), expected)
    torch.testing.assert_close(vmap(lambda x: value(PARAMS, x), in_dims=1)(Z.mT), expected)


def test_gradients_under_grad_vmap_and_both():
    of_params, of_z = plain_gradients()
    found = grad(lambda p, z: value(p, z).sum(), argnums=(0, 1))(PARAMS, Z)
    for name, expected in of_params.items():
        torch.testing.assert_close(found[0][name], expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found[1], of_z, rtol=1e-9, atol=1e-11)
    mapped = vmap(grad(lambda z: value(PARAMS, z)))(Z)
    torch.testing.assert_close(mapped, of_z, rtol=1e-9, atol=1e-11)
    outside = grad(lambda z: vmap(lambda x: value(PARAMS, x))(z).sum())(Z)
    torch.testing.assert_close(outside, of_z, rtol=1e-9, atol=1e-11)


def test_mapped_points_have_gradients_of_their_own_in_the_parameters():
    found = vmap(grad(value), in_dims=(None, 0))(PARAMS, Z)
    for i, z in enumerate(Z):
        alone = grad(value)(PARAMS, z)
        for name, expected in alone.items():
            torch.testing.assert_close(found[name][i], expected, rtol=1e-9, atol=1e-11)


def test_plain_autograd_sees_an_ordinary_tensor():
    params = {name: p.clone().requires_grad_() for name, p in PARAMS.items()}
    value(params, Z).sum().backward()
    of_params, _ = plain_gradients()
    for name, expected in of_params.items():
        torch.testing.assert_close(params[name].grad, expected, rtol=1e-9, atol=1e-11)


def test_leaves_that_are_no_floating_tensors_are_passed_through():
    def f(params, z):
        return params["scale"] * z ** params["power"]

    params = {"scale": torch.tensor(2.0, dtype=f64), "power": 1}
    found = logdet_at(f, params, Z, qr_logdet)
    torch.testing.assert_close(found, torch.full((3,), 10 * torch.tensor(2.0).log()).double())


def test_second_derivatives_are_refused():
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad(lambda z: grad(lambda x: value(PARAMS, x).sum())(z).sum())(Z)
    z = Z.clone().requires_grad_()
    (first,) = torch.autograd.grad(value(PARAMS, z).sum(), z, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        first.sum().backward()


def test_mapped_parameters_are_refused():
    stacked = {name: torch.stack([p, p]) for name, p in PARAMS.items()}
    with pytest.raises(NotImplementedError, match="params cannot be mapped"):
        vmap(value, in_dims=(0, None))(stacked, Z)


def test_tensors_beside_the_params_are_refused_where_their_gradient_would_be_lost():
    scale = torch.ones((), dtype=f64, requires_grad=True)
    with pytest.raises(ValueError, match="beside its params"):
        logdet_at(lambda p, z: scale * smooth(p, z), PARAMS, Z, estimate)
    found = logdet_at(lambda p, z: scale.detach() * smooth(p, z), PARAMS, Z, estimate)
    torch.testing.assert_close(found, value(PARAMS, Z))
