"""Gradients of whole networks: those of the dense log-determinant of the Jacobian."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specbp
from specbp import Jacobian, JacobianMetric
from tests.support import f32, f64, normal


def dense_gradients(f, z):
    """log det JᵀJ and its gradients by autograd of the explicit Jacobian."""
    J = torch.stack([torch.func.jacrev(f)(point) for point in z]).double()
    value = torch.linalg.slogdet(J.mT @ J)[1]
    inputs = [*f.parameters(), z]
    return value, torch.autograd.grad(
        value.sum(), inputs, materialize_grads=True, allow_unused=True
    )


ESTIMATORS = {
    "golub_kahan": lambda J, X: specbp.golub_kahan_logdet(J, X, num_steps=X.shape[-2]),
    "slq": lambda J, X: specbp.slq_logdet(JacobianMetric(J), X, num_steps=X.shape[-2]),
    "qr": lambda J, _: specbp.qr_logdet(J),
    "solve": lambda J, X: specbp.solve_logdet(JacobianMetric(J), X, rtol=1e-6),
}


def residual_network(dtype=f64):
    torch_state = torch.random.get_rng_state()
    f = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 9)).to(dtype)
    torch.random.set_rng_state(torch_state)
    with torch.no_grad():
        for i, p in enumerate(f.parameters()):
            p.copy_(normal(*p.shape, seed=i) / p.shape[-1] ** 0.5)
    return f


@pytest.mark.parametrize("name", ["golub_kahan", "slq", "qr"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(f64, 1e-8), (f32, 2e-3)])
def test_gradients_of_a_network_are_those_of_its_dense_jacobian(name, dtype, tolerance):
    """n orthogonal probes and n steps leave neither chance nor truncation."""
    f, z = residual_network(dtype), normal(3, 4, seed=5, dtype=dtype).requires_grad_()
    X = 2 * torch.linalg.qr(normal(4, 4, seed=6))[0].to(dtype)
    est = ESTIMATORS[name](Jacobian(f, z), X)
    expected, gradients = dense_gradients(f, z)
    torch.testing.assert_close(est.value, expected, rtol=tolerance, atol=tolerance)
    found = torch.autograd.grad(est.value.sum(), [*f.parameters(), z])
    for one, other in zip(found, gradients, strict=True):
        assert one.dtype == dtype
        scale = float(max(g.abs().max() for g in gradients))
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale)


def test_backward_fills_the_gradients_of_parameters():
    f, z = residual_network(), normal(4, seed=5).requires_grad_()
    specbp.qr_logdet(Jacobian(f, z)).value.backward()
    assert all(p.grad is not None for p in (f[0].weight, f[0].bias, f[2].weight, z))
    # The last bias moves f and not its Jacobian.
    assert f[2].bias.grad is None or not bool(f[2].bias.grad.any())


def test_a_row_weighted_sum_weights_the_gradients():
    f, z = residual_network(), normal(3, 4, seed=5)
    weights = normal(3, seed=7)
    (whole,) = torch.autograd.grad(
        (weights * specbp.qr_logdet(Jacobian(f, z)).value).sum(), f[0].weight
    )
    parts = [
        w * torch.autograd.grad(specbp.qr_logdet(Jacobian(f, p)).value, f[0].weight)[0]
        for w, p in zip(weights, z, strict=True)
    ]
    torch.testing.assert_close(whole, sum(parts))
