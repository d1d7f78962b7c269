"""Gradients that are estimators of their own: the paper's recurrence, and solves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import specbp
from specbp import Jacobian, JacobianMetric, Status
from specbp.operators import CountingOperator
from tests.support import f32, f64, factor, geometric, log_forms, normal, signs, spd

INTERVAL = (0.009, 1.1)


def of_matrix(estimate, A, **config):
    """Value and gradient of an estimate in an explicit matrix."""
    A = A.clone().requires_grad_()
    est = estimate(A, **config)
    (grad,) = torch.autograd.grad(est.value.sum(), A)
    return est, grad


def network(dtype=f64):
    f = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 7)).to(dtype)
    with torch.no_grad():
        for i, p in enumerate(f.parameters()):
            p.copy_(normal(*p.shape, seed=i) / p.shape[-1] ** 0.5)
    return f


# Reverse mode through the recurrence --------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 7, 30])
def test_backprop_equals_the_adjoint(degree):
    A, X = spd(geometric(12, 100.0)), signs(12, 5)
    config = {"probes": X, "degree": degree, "interval": INTERVAL}
    left, by_backprop = of_matrix(specbp.backprop_logdet, A, **config)
    right, by_adjoint = of_matrix(specbp.chebyshev_logdet, A, **config)
    torch.testing.assert_close(left.samples, right.samples, rtol=1e-12, atol=1e-12)
    # Autograd of products gives AᵀX, not its symmetric part: the same along symmetric directions.
    symmetric = (by_backprop + by_backprop.mT) / 2
    torch.testing.assert_close(
        symmetric, by_adjoint, rtol=0, atol=1e-9 * float(symmetric.abs().max())
    )


@pytest.mark.parametrize("dtype", [f32, f64])
def test_backprop_equals_the_adjoint_through_a_network(dtype):
    f, z, X = network(dtype), normal(3, 5, seed=9, dtype=dtype).requires_grad_(), signs(5, 4)
    found = []
    for estimate in (specbp.backprop_logdet, specbp.chebyshev_logdet):
        A = JacobianMetric(Jacobian(f, z))
        est = estimate(A, X.to(dtype), degree=12, interval=(1e-2, 20.0))
        found.append(torch.autograd.grad(est.value.sum(), [f[0].weight, f[2].weight, z]))
    for left, right in zip(*found, strict=True):
        size = float(left.abs().max())
        torch.testing.assert_close(
            left, right, rtol=0, atol=size * (1e-9 if dtype == f64 else 1e-3)
        )


def test_backprop_differentiates_the_ends_of_its_interval_as_the_adjoint_does():
    A, X = spd(geometric(8, 50.0)), signs(8, 3)
    found = []
    for estimate in (specbp.backprop_logdet, specbp.chebyshev_logdet):
        ends = [torch.tensor(end, dtype=f64, requires_grad=True) for end in INTERVAL]
        value = estimate(A, X, degree=9, interval=tuple(ends)).value
        found.append(torch.stack(torch.autograd.grad(value, ends)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_backprop_takes_replicates_as_every_estimator_does():
    f, z = network(), normal(3, 5)
    A, X = JacobianMetric(Jacobian(f, z)), signs(4, 3, 5, 2)
    config = {"degree": 6, "interval": (0.01, 9.0)}
    # Probes of their own for every point where z has a dimension of size one.
    wide = JacobianMetric(Jacobian(f, z.unsqueeze(0)))
    torch.testing.assert_close(
        specbp.backprop_logdet(wide, X, **config).value,
        specbp.backprop_logdet(A, X, **config).value,
        rtol=1e-11,
        atol=1e-11,
    )
    found, expected = (
        estimate(A, X, **config).value
        for estimate in (specbp.backprop_logdet, specbp.chebyshev_logdet)
    )
    assert found.shape == (4, 3)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    weights = normal(4, 3, seed=2)
    for a, b in zip(
        *(
            torch.autograd.grad((weights * v).sum(), list(f.parameters())[:3])
            for v in (found, expected)
        ),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    for p in f.parameters():
        p.requires_grad_(False)
    plain = specbp.backprop_logdet(JacobianMetric(Jacobian(f, z)), X, **config).value
    assert not plain.requires_grad
    torch.testing.assert_close(plain, expected, rtol=1e-11, atol=1e-11)


def test_backprop_counts_every_product():
    counted = CountingOperator(spd(geometric(8, 50.0)))
    est = specbp.backprop_logdet(counted, signs(8, 3), degree=9, interval=INTERVAL)
    assert counted.num_matvecs == est.num_matvecs == 27


def test_backprop_reports_a_spectrum_outside_of_its_interval():
    est = specbp.backprop_logdet(
        spd(geometric(8, 50.0)), signs(8, 3), degree=20, interval=(0.009, 0.5)
    )
    assert bool(est.status & int(Status.OUTSIDE_INTERVAL))
    assert bool(torch.isnan(est.value))
    fine = specbp.backprop_logdet(
        spd(geometric(8, 50.0)), signs(8, 3), degree=20, interval=INTERVAL
    )
    assert bool(fine.ok)


def test_algorithm1_holds_the_interval_that_it_found():
    """Its upper end depends on the matrix, which its gradient leaves out in either form."""
    A, X = spd(torch.cat([torch.tensor([4.0], dtype=f64), geometric(9, 20.0)])), signs(10, 3)
    for safe in (True, False):
        _, grad = of_matrix(
            specbp.algorithm1_logdet,
            A,
            probes=X,
            degree=12,
            lower=0.04,
            power_steps=10,
            safe=safe,
        )
        find = specbp.bounds.lanczos_interval if safe else specbp.bounds.power_method
        found = find(A, X[:, 0], 10)
        upper = float(found.upper if safe else found)
        config = {"probes": X, "degree": 12, "interval": (0.04, upper)}
        _, expected = of_matrix(specbp.chebyshev_logdet, A, **config)
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-8 * float(expected.abs().max()))


# Solves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-10])
def test_a_solve_gives_the_symmetric_part_of_its_outer_product(rtol):
    A, X = spd(geometric(12, 100.0)), normal(12, 4)
    _, grad = of_matrix(specbp.solve_logdet, A, probes=X, rtol=rtol)
    outer = torch.linalg.solve(A, X) @ X.mT / 4
    error = float(torch.linalg.matrix_norm(grad - (outer + outer.mT) / 2))
    # |y − A⁻¹x| ≤ rtol |x| / λ_min, and |x|² ≈ n.
    assert error <= rtol * 100 * float(X.square().sum()) / 4
    assert error > 1e-14


def test_the_mean_over_orthogonal_probes_is_the_inverse():
    A = spd(geometric(8, 100.0))
    X = 8**0.5 * torch.linalg.qr(normal(8, 8))[0]
    _, grad = of_matrix(specbp.solve_logdet, A, probes=X, rtol=1e-12)
    torch.testing.assert_close(grad, torch.linalg.inv(A), rtol=0, atol=1e-8)


def test_the_value_is_quadrature():
    A, X = spd(geometric(12, 30.0)), signs(12, 4)
    est = specbp.solve_logdet(A, X, rtol=1e-10)
    np.testing.assert_allclose(est.samples.numpy(), log_forms(A, X).numpy(), rtol=1e-10)
    assert est.num_matvecs <= 4 * 14


def test_a_solve_that_ends_early_says_so():
    est = specbp.solve_logdet(spd(geometric(40, 1e4)), signs(40, 2), rtol=1e-10, max_steps=5)
    assert bool(est.status & int(Status.UNCONVERGED))


@pytest.mark.parametrize(("dtype", "tolerance"), [(f64, 1e-8), (f32, 1e-2)])
def test_solves_through_a_network(dtype, tolerance):
    f, z = network(dtype), normal(5, seed=9, dtype=dtype).requires_grad_()
    X = 5**0.5 * torch.linalg.qr(normal(5, 5))[0].to(dtype)
    rtol = 1e-11 if dtype == f64 else 1e-5
    value = specbp.solve_logdet(JacobianMetric(Jacobian(f, z)), X, rtol=rtol).value
    inputs = [f[0].weight, f[2].weight, z]
    found = torch.autograd.grad(value, inputs)
    J = torch.func.jacrev(f)(z).double()
    exact = torch.autograd.grad(torch.linalg.slogdet(J.mT @ J)[1], inputs)
    for left, right in zip(found, exact, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance * float(right.abs().max()))


def test_a_factor_of_any_kind_will_do():
    """The metric of an explicit factor has the gradient of the matrix, taken through it."""
    J, X = factor(geometric(6, 10.0), 9).requires_grad_(), signs(6, 3)
    (through,) = torch.autograd.grad(specbp.solve_logdet(JacobianMetric(J), X, rtol=1e-12).value, J)
    _, grad = of_matrix(specbp.solve_logdet, (J.mT @ J).detach(), probes=X, rtol=1e-12)
    torch.testing.assert_close(through, 2 * J.detach() @ grad, rtol=1e-7, atol=1e-9)
