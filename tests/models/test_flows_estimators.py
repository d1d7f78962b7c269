"""The package's estimators of log det JᵀJ and its gradient on flows, which know both exactly."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from specbp import Jacobian, golub_kahan_logdet, qr_logdet, rademacher
from specbp.models import (
    AdditiveCoupling,
    AffineCoupling,
    AutoregressiveFlow,
    Composition,
    ElementWiseFlow,
    Flow,
    LinearFlow,
    RealNVP,
    TriangularFlow,
)

# torch scripts some decompositions when the first JVP of a process is taken.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")

# name: constructor of a flow from R^5, by generator
FLOWS = {
    "linear": lambda g: LinearFlow(5, generator=g),
    "linear-tall": lambda g: LinearFlow(5, 8, generator=g),
    "triangular": lambda g: TriangularFlow(5, generator=g),
    "element-wise": lambda g: ElementWiseFlow(5, generator=g),
    "additive": lambda g: AdditiveCoupling(5, generator=g),
    "affine": lambda g: AffineCoupling(5, generator=g),
    "autoregressive": lambda g: AutoregressiveFlow(5, 16, generator=g),
    "real-nvp": lambda g: RealNVP(5, 16, 6, generator=g),
    "composition": lambda g: Composition(
        ElementWiseFlow(5, generator=g), RealNVP(5, 8, generator=g), LinearFlow(5, 7, generator=g)
    ),
}
every_flow = pytest.mark.parametrize("name", FLOWS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flow(name: str) -> Flow:
    return FLOWS[name](generator()).double()


def points(*batch: int, dim: int = 5) -> torch.Tensor:
    return torch.randn(*batch, dim, dtype=torch.float64, generator=generator(1))


def gradients(value: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of the sum, zero where there is no path."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    pairs = zip(found, leaves, strict=True)
    return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in pairs]


@every_flow
def test_qr_logdet_of_the_jacobian(name):
    f, z = flow(name).requires_grad_(False), points(3)
    assert_close(qr_logdet(Jacobian(f, z)).value, 2 * f.log_det(z), rtol=0, atol=1e-10)


@every_flow
def test_golub_kahan_with_all_steps_and_all_signs(name):
    """Quadrature is exact at n steps, and the mean over all sign vectors is the trace."""
    f, z = flow(name).requires_grad_(False), points(2)
    signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * 5).mT
    found = golub_kahan_logdet(Jacobian(f, z), signs.expand(2, 5, 32), num_steps=5)
    assert_close(found.value, 2 * f.log_det(z), rtol=0, atol=1e-9)


def test_few_steps_overestimate_the_zero_of_an_additive_coupling():
    f = AdditiveCoupling(32, gain=3.0, generator=generator()).double().requires_grad_(False)
    probes = rademacher(32, 64, generator=generator(2))
    J = Jacobian(f, points(1, dim=32)[0])
    errors = [golub_kahan_logdet(J, probes, num_steps=k).value.item() for k in (1, 2, 4)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] > 1


@every_flow
def test_gradient_of_qr_logdet(name):
    f, z = flow(name), points(3).requires_grad_()
    leaves = [z, *f.parameters()]
    found = gradients(qr_logdet(Jacobian(f, z)).value, leaves)
    for a, b in zip(found, gradients(2 * f.log_det(z), leaves), strict=True):
        assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["linear-tall", "affine", "autoregressive", "composition"])
def test_gradient_of_golub_kahan_with_all_steps_and_all_signs(name):
    f, z = flow(name), points(2).requires_grad_()
    signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * 5).mT
    leaves = [z, *f.parameters()]
    value = golub_kahan_logdet(Jacobian(f, z), signs.expand(2, 5, 32), num_steps=5).value
    found = gradients(value, leaves)
    for a, b in zip(found, gradients(2 * f.log_det(z), leaves), strict=True):
        assert_close(a, b, rtol=0, atol=1e-8)
