"""Implicit densities: closed forms of affine maps, gradients, errors that travel with the value."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from specbp import Jacobian, Status, generator_for, golub_kahan_logdet, qr_logdet, rademacher
from specbp.likelihood import (
    ImplicitDensity,
    PullbackDensity,
    StandardNormal,
    affine,
    relative_error,
)
from specbp.models import BottleneckResNet
from tests.support import f32, f64, generator, normal

BASE = StandardNormal(2)
A = torch.tensor([[2.0, 0.5], [-0.3, 0.7]], dtype=f64)


def linear(z):
    return z @ A.to(z).mT


def quadrature(J):
    probes = rademacher(J.shape[-1], 6, generator=generator_for("probes"), batch_shape=(5,))
    return golub_kahan_logdet(J, probes, num_steps=1, lower=1e-3)


# The base -----------------------------------------------------------------------------------------


def test_standard_normal_is_that_of_torch():
    z = normal(3, 4, 5)
    torch.testing.assert_close(StandardNormal(5).log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(-1))
    both = StandardNormal((4, 5)).log_prob(z)
    torch.testing.assert_close(both, Normal(0.0, 1.0).log_prob(z).sum((-2, -1)))
    assert StandardNormal(5).log_prob(z.float()).dtype == f64


def test_draws_are_those_of_the_generator_in_every_dtype():
    one, other = (
        StandardNormal((2, 3)).sample(4, generator=generator(1), dtype=d) for d in (f32, f64)
    )
    assert one.dtype == f32
    assert one.shape == other.shape == (4, 2, 3)
    torch.testing.assert_close(one, other.float(), rtol=0, atol=0)
    many = BASE.sample(20_000, generator=generator(2))
    assert float(many.mean(0).abs().max()) < 4 / 20_000**0.5
    assert float((many.mT.cov() - torch.eye(2)).abs().max()) < 6 / 20_000**0.5


def test_bad_events():
    with pytest.raises(ValueError, match="all positive; got 0"):
        StandardNormal(0)
    with pytest.raises(ValueError, match=r"needs points \(\*batch, 2\), got \(4, 3\)"):
        BASE.log_prob(torch.zeros(4, 3))


# Generators ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [BASE, Independent(Normal(torch.zeros(2), torch.ones(2)), 1)])
def test_affine_generator_has_the_density_of_a_normal(base):
    z = normal(3, 4, 2)
    found = ImplicitDensity(base, linear, logdet=qr_logdet).log_prob_at(z)
    exact = MultivariateNormal(torch.zeros(2, dtype=f64), A @ A.mT).log_prob(linear(z))
    torch.testing.assert_close(found.value, exact)
    assert found.value.shape == (3, 4)
    assert not found.standard_error.any()


def test_density_on_a_surface():
    """A map to R^3 has a density per area, which does not depend on how the plane lies there."""
    Q = torch.linalg.qr(normal(3, 2))[0]
    found = ImplicitDensity(BASE, lambda z: 3 * z @ Q.mT, logdet=qr_logdet).log_prob_at(
        normal(5, 2)
    )
    torch.testing.assert_close(found.value, BASE.log_prob(normal(5, 2)) - 2 * math.log(3))


def test_gradients_in_parameters_and_points():
    weight = A.clone().requires_grad_()
    z = normal(5, 2).requires_grad_()

    def f(params, z):
        return (z @ params["w"].mT).tanh()

    density = ImplicitDensity(BASE, f, logdet=qr_logdet, params={"w": weight})
    density.log_prob_at(z).value.sum().backward()

    w, points = A.clone().requires_grad_(), z.detach().clone().requires_grad_()
    slope = 1 - (points @ w.mT).tanh() ** 2
    logdet = torch.linalg.slogdet(slope.unsqueeze(-1) * w)[1]
    (-points.square().sum(-1) / 2 - logdet).sum().backward()
    torch.testing.assert_close(weight.grad, w.grad)
    torch.testing.assert_close(z.grad, points.grad)


def test_every_part_of_the_error_is_halved():
    z, f = normal(5, 2), BottleneckResNet(generator=generator(3)).double()
    half = quadrature(Jacobian(f, z))
    found = ImplicitDensity(BASE, f, logdet=quadrature).log_prob_at(z)
    base = BASE.log_prob(z)
    torch.testing.assert_close(found.value, base - half.value / 2)
    torch.testing.assert_close(found.standard_error, half.standard_error / 2)
    torch.testing.assert_close(found.samples.mean(-1), found.value)
    torch.testing.assert_close(found.lower, base - half.upper / 2)
    torch.testing.assert_close(found.upper, base - half.lower / 2)
    assert bool((found.lower <= found.upper).all())
    assert found.num_matvecs == half.num_matvecs > 0


def test_truncation_and_failures_travel_with_the_value():
    half = qr_logdet(normal(3, 2, 2))
    known = affine(
        type(half)(**{**vars(half), "truncation": torch.full((3,), 0.2, dtype=f64)}),
        torch.tensor([0.0, math.nan, -math.inf], dtype=f64),
        -0.5,
    )
    assert known.truncation.tolist() == pytest.approx([0.1] * 3)
    assert known.status.tolist() == [0, int(Status.NONFINITE), 0]
    assert known.value.isnan().tolist() == [False, True, False]
    assert known.value[2] == -math.inf


def test_singular_maps_have_infinite_density_where_they_collapse():
    squash = ImplicitDensity(BASE, lambda z: z * torch.tensor([1.0, 0.0]), logdet=qr_logdet)
    found = squash.log_prob_at(torch.ones(2, 2))
    assert found.value.tolist() == [math.inf] * 2
    assert found.status.tolist() == [int(Status.SINGULAR)] * 2


def test_planner_is_the_default_and_wants_a_generator():
    density = ImplicitDensity(BASE, linear)
    found = density.log_prob_at(normal(5, 2), generator=generator(0))
    exact = ImplicitDensity(BASE, linear, logdet=qr_logdet).log_prob_at(normal(5, 2))
    torch.testing.assert_close(found.value, exact.value)
    assert found.plan.met
    with pytest.raises(ValueError, match="pass generator=, or logdet=specbp.qr_logdet"):
        density.log_prob_at(normal(5, 2))


@pytest.mark.parametrize("logdet", [None, lambda J, generator: qr_logdet(J)])
def test_a_tensor_may_take_the_place_of_the_operator(logdet):
    z = normal(5, 2)
    density = ImplicitDensity(
        BASE, linear, logdet=logdet, jacobian=lambda z: A.expand(len(z), 2, 2)
    )
    expected = BASE.log_prob(z) - torch.linalg.slogdet(A)[1]
    torch.testing.assert_close(density.log_prob_at(z, generator=generator(0)).value, expected)


def test_samples_are_images_of_the_base():
    z, x = ImplicitDensity(BASE, linear).sample(4, generator=generator(5), dtype=f32)
    assert x.dtype == f32
    torch.testing.assert_close(x, linear(z))
    torch.testing.assert_close(z, BASE.sample(4, generator=generator(5), dtype=f32))


def test_bad_bases():
    with pytest.raises(TypeError, match=r"base needs log_prob\(z\) -> \(\*batch\), got int"):
        ImplicitDensity(3, linear)
    elementwise = ImplicitDensity(Normal(torch.zeros(2), 1.0), linear, logdet=qr_logdet)
    with pytest.raises(ValueError, match="StandardNormal or torch.distributions.Independent"):
        elementwise.log_prob_at(torch.zeros(5, 2).float())


# Maps to the base ---------------------------------------------------------------------------------


def test_pulled_back_density_of_an_affine_map():
    x = normal(5, 2).requires_grad_()
    found = PullbackDensity(BASE, linear, logdet=qr_logdet).log_prob(x)
    covariance = torch.linalg.inv(A.mT @ A)
    exact = MultivariateNormal(torch.zeros(2, dtype=f64), (covariance + covariance.mT) / 2)
    torch.testing.assert_close(found.value, exact.log_prob(x))
    (gradient,) = torch.autograd.grad(found.value.sum(), x)
    torch.testing.assert_close(gradient, -x.detach() @ (A.mT @ A))


def test_mass_of_a_fold_is_its_mean_number_of_preimages():
    x = torch.linspace(-8, 8, 4001, dtype=f64).unsqueeze(-1)
    fold = PullbackDensity(
        StandardNormal(1), lambda x: x.abs() - 0.5, logdet=qr_logdet, check=False
    )
    mass = float(torch.trapezoid(fold.log_prob(x).value.exp(), x.squeeze(-1)))
    reached = 1 - Normal(0.0, 1.0).cdf(torch.tensor(-0.5)).item()
    assert mass == pytest.approx(2 * reached, abs=1e-5)


# Relative error -----------------------------------------------------------------------------------


def test_relative_error_is_absolute_near_zero():
    truth = torch.tensor([0.0, -0.5, 10.0, -100.0], dtype=f64)
    error = relative_error(truth + 0.25, truth)
    assert error.tolist() == pytest.approx([0.25, 0.25, 0.025, 0.0025])
    assert relative_error(truth + 0.25, truth, floor=0.5)[0] == 0.5
    with pytest.raises(ValueError, match="floor must be positive, got 0"):
        relative_error(truth, truth, floor=0.0)
