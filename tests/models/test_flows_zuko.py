"""Estimators against zuko, a flow library that computes its log-determinants independently."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from specbp import (
    Jacobian,
    JacobianMetric,
    chebyshev_logdet,
    golub_kahan_logdet,
    hadamard,
    qr_logdet,
    rademacher,
    slq_logdet,
)

zuko = pytest.importorskip("zuko", reason="the oracle of another library: pip install zuko")

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")

DIM = 8
FLOWS = {
    "RealNVP": lambda: zuko.flows.RealNVP(DIM, transforms=4, activation=torch.nn.Tanh),
    "spline": lambda: zuko.flows.NSF(DIM, transforms=2, activation=torch.nn.Tanh),
    "autoregressive": lambda: zuko.flows.MAF(DIM, transforms=2, activation=torch.nn.Tanh),
    "gaussianization": lambda: zuko.flows.GF(DIM, transforms=2),
    "Bernstein": lambda: zuko.flows.BPF(DIM, transforms=1, activation=torch.nn.Tanh),
}
every_flow = pytest.mark.parametrize("name", FLOWS)


def problem(name: str) -> tuple[Jacobian, torch.Tensor, torch.Tensor]:
    """J of zuko's map x -> z at four points, its log |det J|, and the log-density of the flow."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # zuko draws initial weights from the global state
        flow = FLOWS[name]().double()
    for parameter in flow.parameters():
        scale = parameter.shape[-1] ** -0.5
        parameter.data.normal_(std=scale, generator=generator)
    flow.requires_grad_(False)
    x = torch.randn(4, DIM, dtype=torch.float64, generator=generator)
    transform = flow().transform
    _, log_det = transform.call_and_ladj(x)
    return Jacobian(transform, x), log_det, flow().log_prob(x)


@every_flow
def test_qr_logdet(name):
    J, log_det, _ = problem(name)
    assert_close(qr_logdet(J).value, 2 * log_det, rtol=0, atol=1e-9)


@every_flow
def test_log_likelihood(name):
    """log p(x) = log φ(f(x)) + ½ log det JᵀJ, in the direction from data to latent."""
    J, _, log_prob = problem(name)
    normal = torch.distributions.Normal(0.0, 1.0)
    found = normal.log_prob(J.value).sum(-1) + qr_logdet(J).value / 2
    assert_close(found, log_prob, rtol=0, atol=1e-9)


@every_flow
def test_quadrature_with_all_steps_and_an_orthogonal_basis(name):
    J, log_det, _ = problem(name)
    basis = hadamard(DIM, DIM, generator=torch.Generator().manual_seed(1), batch_shape=(4,))
    found = golub_kahan_logdet(J, basis, num_steps=DIM)
    assert_close(found.value, 2 * log_det, rtol=0, atol=1e-8)
    assert_close(slq_logdet(JacobianMetric(J), basis, num_steps=DIM).value, found.value)


@every_flow
def test_chebyshev_expansion_with_an_orthogonal_basis(name):
    J, log_det, _ = problem(name)
    basis = hadamard(DIM, DIM, generator=torch.Generator().manual_seed(1), batch_shape=(4,))
    eigenvalues = torch.linalg.svdvals(J.dense()).square()
    interval = (0.99 * eigenvalues[:, -1], 1.01 * eigenvalues[:, 0])
    found = chebyshev_logdet(JacobianMetric(J), basis, degree=64, interval=interval)
    bracket = (found.upper - found.lower) / 2
    assert ((found.value - 2 * log_det).abs() <= bracket + 1e-9).all()
    assert bracket.max() < 2


@every_flow
def test_few_probes_agree_within_their_standard_error(name):
    J, log_det, _ = problem(name)
    probes = rademacher(DIM, 64, generator=torch.Generator().manual_seed(2), batch_shape=(4,))
    found = golub_kahan_logdet(J, probes, num_steps=DIM)
    assert ((found.value - 2 * log_det).abs() < 5 * found.standard_error).all()
    assert (found.standard_error < 2).all()
