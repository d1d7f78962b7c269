"""What `specbp.logdet` plans has a gradient: exact where the answer is, else that of its probes."""

from __future__ import annotations

import pytest
import torch

from specbp import Jacobian, RecordedOperator, logdet
from specbp.models import BottleneckResNet, DCGANGenerator
from specbp.plan_costs import Shape, costs_of
from tests.support import f32, f64, generator, geometric, normal, spd


class Scaled:
    """θ A, its products recorded by autograd: d log det / dθ = n / θ."""

    def __init__(self, A, theta):
        self.A, self.theta = A, theta
        self.shape, self.dtype, self.device = A.shape, A.dtype, A.device

    def __matmul__(self, X):
        return self.theta * (self.A @ X)


def scaled(n, theta):
    return RecordedOperator(Scaled(spd(geometric(n, 5.0)), theta), [theta])


def test_an_exact_answer_has_the_exact_gradient():
    f = BottleneckResNet(6, 10, generator=generator()).double()
    z, parameters = normal(3, 6), list(f.parameters())
    found = logdet(Jacobian(f, z), generator=generator())
    assert found.plan.method == "qr"
    assert not found.standard_error.requires_grad
    dense = torch.func.vmap(torch.func.jacrev(f))(z)
    truth = 2 * torch.linalg.slogdet(dense)[1]
    weights = normal(3, seed=1)
    for a, b in zip(
        torch.autograd.grad((weights * found.value).sum(), parameters, materialize_grads=True),
        torch.autograd.grad((weights * truth).sum(), parameters, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_eigenvalues_from_products_have_the_gradient_of_the_operator():
    theta = torch.tensor(2.0, dtype=f64, requires_grad=True)
    found = logdet(scaled(20, theta), generator=generator())
    assert found.plan.method == "eigenvalues"
    (gradient,) = torch.autograd.grad(found.value, theta)
    assert float(gradient) == pytest.approx(10, rel=1e-12)


@pytest.mark.parametrize("budget", [60, 120])
def test_an_estimate_has_the_gradient_of_its_probes(budget):
    theta = torch.tensor(2.0, dtype=f64, requires_grad=True)
    found = logdet(scaled(300, theta), rtol=0.1, budget=budget, generator=generator())
    assert found.samples.shape[-1] > 1
    (gradient,) = torch.autograd.grad(found.value, theta)
    assert float(gradient) == pytest.approx(150, rel=0.1)


def test_nothing_is_attached_where_no_gradient_is_wanted():
    theta = torch.tensor(2.0, dtype=f64, requires_grad=True)
    with torch.no_grad():
        found = logdet(scaled(20, theta), generator=generator())
    assert not found.value.requires_grad


def test_the_gradient_is_part_of_the_costs_and_moves_the_choice_towards_exact():
    f = BottleneckResNet(256, 32, generator=generator())
    J = Jacobian(f, normal(256, dtype=f32), check=False)
    wanted = costs_of(J, factor=True, affordable=True)
    with torch.no_grad():
        plain = costs_of(J, factor=True, affordable=True)
    assert wanted.pull > 0 == plain.pull
    assert wanted.exact > plain.exact
    shared = Shape(1, 10, 12, shared=True)
    assert wanted.of(shared) > plain.of(shared)
    own = Shape(1, 4, 40)
    assert wanted.of(own) - plain.of(own) == pytest.approx(wanted.pull * 4 * 8)


@pytest.mark.slow
@pytest.mark.parametrize("latent", [16, 64])
def test_generators_with_few_latents_get_the_exact_gradient(latent):
    f = DCGANGenerator(latent, generator=generator())
    z = normal(latent, dtype=f32)
    found = logdet(Jacobian(f, z, check=False), generator=generator())
    assert found.plan.method == "qr"
    (gradient,) = torch.autograd.grad(found.value, f.layers[0].weight)
    assert torch.isfinite(gradient).all()
