"""Objectives: values and gradients in closed form, two sources of error, refusals with a remedy."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from specbp import EstimationError, Jacobian, block_golub_kahan_logdet, qr_logdet, sphere
from specbp.estimate import from_samples
from specbp.likelihood import ImplicitDensity, PullbackDensity, StandardNormal
from specbp.models import BottleneckResNet
from specbp.objectives import forward_kl, reverse_kl, spectral_norm
from tests.support import f64, generator, normal

BASE = StandardNormal(2)
A = torch.tensor([[2.0, 0.5], [-0.3, 0.7]], dtype=f64)


def linear(z):
    return z @ A.to(z).mT


def bowl(x):
    return x.square().sum(-1) / 2


def exact(f, **options):
    return ImplicitDensity(BASE, f, logdet=qr_logdet, **options)


def with_samples(samples):
    return lambda J: from_samples(samples, num_matvecs=1)


# KL(p‖q) ------------------------------------------------------------------------------------------


def test_reverse_kl_is_that_of_two_normals():
    z = BASE.sample(20_000, generator=generator(0))
    found = reverse_kl(exact(linear, check=False), bowl, z)
    p, q = MultivariateNormal(torch.zeros(2, dtype=f64), A @ A.mT), StandardNormal(2)
    x = linear(z)
    items = p.log_prob(x) + bowl(x)
    torch.testing.assert_close(found.items, items)
    assert found.value == pytest.approx(float(items.mean()))
    assert float(found.standard_error) == pytest.approx(float(items.std()) / 20_000**0.5)
    assert float(found.probe_error) == 0
    kl = float(
        torch.distributions.kl_divergence(
            p, MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
        )
    )
    log_Z = math.log(2 * math.pi)
    assert abs(found.value + log_Z - kl) < 4 * float(found.standard_error)
    torch.testing.assert_close(found.energy + log_Z, -q.log_prob(x))


def test_gradient_of_reverse_kl_is_that_of_the_formula():
    f, z = BottleneckResNet(generator=generator(1)).double(), normal(6, 2)
    reverse_kl(exact(f), bowl, z).loss.backward()
    found = [p.grad.clone() for p in f.parameters()]
    f.zero_grad()
    J = torch.func.vmap(torch.func.jacfwd(f))(z)
    (bowl(f(z)) - torch.linalg.slogdet(J)[1]).mean().backward()
    for one, other in zip(found, f.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)


def test_error_of_probes_that_items_share_does_not_average_out():
    """All items err alike: the batch shows no spread, yet the mean is uncertain."""
    noise = normal(1, 5)
    density = ImplicitDensity(BASE, linear, logdet=with_samples(noise.expand(64, 5)))
    found = reverse_kl(density, lambda x: -BASE.log_prob(z), z := normal(64, 2))
    assert float(found.items.std()) < 1e-12
    expected = float(noise.std()) / 2 / 5**0.5
    assert float(found.probe_error) == pytest.approx(expected)
    assert float(found.standard_error) == pytest.approx(expected)


def test_errors_of_batch_and_probes_of_its_own_add_up_to_the_spread():
    samples = 2 * normal(4000, 5, seed=1)
    z = normal(4000, 2, seed=2)
    density = ImplicitDensity(BASE, linear, logdet=with_samples(samples), check=False)
    found = reverse_kl(density, bowl, z)
    parts = float(found.batch_error), float(found.probe_error)
    assert parts[1] == pytest.approx(1 / (4000 * 5) ** 0.5, rel=0.9)
    own = (bowl(linear(z)) + BASE.log_prob(z)).std() / 4000**0.5
    assert parts[0] == pytest.approx(float(own), rel=0.02)
    assert float(found.standard_error) == pytest.approx(math.hypot(*parts))


def test_errors_of_samples_that_are_correlated_scale_the_part_of_the_probes():
    z, plain = normal(50, 2), from_samples(normal(50, 4), num_matvecs=1)
    told = replace(plain, standard_error=3 * plain.standard_error, freedom=3.0)
    found, other = (
        reverse_kl(ImplicitDensity(BASE, linear, logdet=lambda J, e=e: e), bowl, z)
        for e in (told, plain)
    )
    assert float(found.probe_error) == pytest.approx(3 * float(other.probe_error))


def test_block_probes_that_items_share_move_all_of_them_together():
    """The error of the mean does not fall with the batch: it is measured over fresh probes."""
    weight = torch.eye(24, dtype=f64) + normal(24, 24) / 4
    z, means, errors = normal(16, 24, seed=1), [], []
    for seed in range(40):
        X = sphere(24, 4, generator=generator(seed), dtype=f64)
        density = ImplicitDensity(
            StandardNormal(24),
            lambda x: torch.sinh(x @ weight),
            logdet=lambda J, X=X: block_golub_kahan_logdet(J, X, num_steps=2),
            check=False,
        )
        with torch.no_grad():
            found = reverse_kl(density, lambda x: 0 * x.sum(-1), z)
        means.append(found.value)
        errors.append(float(found.probe_error))
    spread = float(torch.tensor(means).std())
    # The bar of a block is inflated where its space is a third of all: large, never small.
    assert 0.7 * spread < float(torch.tensor(errors).square().mean().sqrt()) < 2 * spread


def test_single_probe_cannot_tell_the_sources_apart():
    z = normal(8, 2)
    found = reverse_kl(ImplicitDensity(BASE, linear, logdet=with_samples(normal(8, 1))), bowl, z)
    assert math.isnan(found.probe_error)
    assert math.isnan(found.batch_error)
    assert float(found.standard_error) == pytest.approx(float(found.items.std()) / 8**0.5)


# Refusals -----------------------------------------------------------------------------------------


def fold(z):
    """Singular on the left half of the plane."""
    return torch.cat([z[:, :1].clamp_min(0), z[:, 1:]], -1)


POINTS = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 1.0], [-2.0, 0.0]], dtype=f64)


def test_singular_item_is_named():
    with pytest.raises(EstimationError, match=r"log p is inf at item 1 of 4 and at 1 more.*skip"):
        reverse_kl(exact(fold), bowl, POINTS)


def test_singular_items_are_left_out_if_asked_and_counted():
    weight = torch.ones(2, dtype=f64, requires_grad=True)

    def scaled(params, z):
        return fold(z) * params

    density = exact(scaled, params=weight)
    found = reverse_kl(density, bowl, POINTS, on_singular="skip")
    assert found.num_skipped == 2
    assert found.value == pytest.approx(
        float((BASE.log_prob(POINTS) + bowl(POINTS))[[0, 2]].mean())
    )
    found.loss.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([1.5, -0.5], dtype=f64))


def test_all_singular_is_an_error_even_if_they_may_be_skipped():
    with pytest.raises(EstimationError, match="log p is inf at item 0 of 2"):
        reverse_kl(exact(fold), bowl, POINTS[1::2], on_singular="skip")


def test_forward_kl_skips_too():
    density = PullbackDensity(BASE, fold, logdet=qr_logdet)
    with pytest.raises(EstimationError, match="log p is -inf at item 1 of 4"):
        forward_kl(density, POINTS)
    assert forward_kl(density, POINTS, on_singular="skip").num_skipped == 2


def test_values_that_are_not_finite_are_named_with_a_remedy():
    z = torch.zeros(3, 2, dtype=f64)
    with pytest.raises(EstimationError, match=r"The energy is NaN at item 0 of 3 and at 2 more"):
        reverse_kl(exact(linear), lambda x: x[:, 0] * math.nan, z)
    with pytest.raises(
        EstimationError, match=r"f\(z\) is NaN at item 0 .* lower the learning rate"
    ):
        reverse_kl(exact(lambda z: z * math.nan), bowl, z)


def test_failed_estimates_are_never_averaged_in():
    samples = torch.tensor([[1.0, 2.0], [1.0, math.nan]], dtype=f64)
    density = ImplicitDensity(BASE, linear, logdet=with_samples(samples))
    with pytest.raises(EstimationError, match=r"log p is NaN at item 1 of 2 .*NONFINITE"):
        reverse_kl(density, bowl, normal(2, 2), on_singular="skip")


def test_bad_arguments():
    z = normal(3, 2)
    with pytest.raises(
        ValueError, match='"raise" or "skip", got "drop"'.replace('"drop"', "'drop'")
    ):
        reverse_kl(exact(linear), bowl, z, on_singular="drop")
    with pytest.raises(ValueError, match=r"energy must map \(3, 2\) to \(3,\), got \(3, 2\)"):
        reverse_kl(exact(linear), lambda x: x, z)
    with pytest.raises(TypeError, match="ImplicitDensity is known at x = f"):
        forward_kl(exact(linear), z)


def test_a_map_without_derivative_is_refused():
    with pytest.raises(ValueError, match="derivative"):
        reverse_kl(exact(lambda z: z.detach() + normal(2).requires_grad_()), bowl, normal(3, 2))


# KL(q‖p) ------------------------------------------------------------------------------------------


def test_forward_kl_is_the_negative_log_likelihood():
    x = normal(7, 2)
    found = forward_kl(PullbackDensity(BASE, linear, logdet=qr_logdet), x)
    items = -(BASE.log_prob(linear(x)) + torch.linalg.slogdet(A)[1])
    torch.testing.assert_close(found.items, items)
    assert found.energy is None
    assert str(found) == f"{float(items.mean()):.4f} ± {float(items.std() / 7**0.5):.4f}"


def test_gradient_of_forward_kl_passes_through_both_terms():
    f, x = BottleneckResNet(generator=generator(1)).double(), normal(6, 2)
    forward_kl(PullbackDensity(BASE, f, logdet=qr_logdet), x).loss.backward()
    found = [p.grad.clone() for p in f.parameters()]
    f.zero_grad()
    J = torch.func.vmap(torch.func.jacfwd(f))(x)
    (bowl(f(x)) - torch.linalg.slogdet(J)[1]).mean().backward()
    for one, other in zip(found, f.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)


# The spectral norm --------------------------------------------------------------------------------


def test_spectral_norm_with_all_steps_is_exact_and_so_is_its_gradient():
    J = normal(4, 5, 3).requires_grad_()
    found = spectral_norm(J, torch.ones(3, dtype=f64), 3)
    largest = torch.linalg.matrix_norm(J, 2) ** 2
    torch.testing.assert_close(found, largest)
    (one,) = torch.autograd.grad(found.sum(), J)
    (other,) = torch.autograd.grad(largest.sum(), J)
    torch.testing.assert_close(one, other)


def test_spectral_norm_differentiates_through_a_network():
    f, z = BottleneckResNet(generator=generator(2)).double(), normal(6, 2)
    spectral_norm(Jacobian(f, z), torch.ones(2, dtype=f64), 2).sum().backward()
    found = [p.grad.clone() for p in f.parameters()]
    f.zero_grad()
    J = torch.func.vmap(torch.func.jacfwd(f))(z)
    torch.linalg.matrix_norm(J, 2).square().sum().backward()
    for one, other in zip(found, f.parameters(), strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other.grad is None else other.grad)


@given(seed=st.integers(0, 1000), steps=st.integers(1, 4))
def test_spectral_norm_is_a_lower_bound_that_steps_improve(seed, steps):
    J, start = normal(6, 5, seed=seed), normal(5, seed=seed + 1)
    one, more = (float(spectral_norm(J, start, k)) for k in (steps, steps + 1))
    largest = float(torch.linalg.matrix_norm(J, 2)) ** 2
    assert one <= more * (1 + 1e-12) <= largest * (1 + 2e-12)


def test_gradient_of_a_lower_bound_is_that_of_its_own_quotient():
    """One step from x: the quotient |J x|² / |x|², x held fixed."""
    J, x = normal(6, 5).requires_grad_(), normal(5, seed=3)
    found = spectral_norm(J, x, 1)
    quotient = (J @ x).square().sum() / x.square().sum()
    torch.testing.assert_close(found, quotient)
    torch.testing.assert_close(*(torch.autograd.grad(value, J)[0] for value in (found, quotient)))


def test_spectral_norm_refuses_impossible_steps():
    with pytest.raises(ValueError, match="num_steps"):
        spectral_norm(torch.eye(2), torch.ones(2), 3)
