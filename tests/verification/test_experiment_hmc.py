"""Hamiltonian moves: geometry of the leapfrog, invariance of the target, and what breaks it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from specbp import generator_for
from verification.experiments import ais, hmc, noisy_models

f64 = torch.float64
LEVEL = 1e-6  # false-alarm rate of the test of invariance, over all of its comparisons
ONE = torch.ones(1, 1, dtype=f64)


def normal(*shape, key="draws"):
    return torch.randn(shape, generator=generator_for("hmc tests", key), dtype=f64)


def bent(z):
    """A log likelihood that is not quadratic."""
    return -(z[..., 0].square() - z[..., 1]).square() - torch.cosh(z[..., 1] / 2)


def test_leapfrog_of_the_prior_is_the_power_of_a_matrix():
    z, v, h = normal(1, 5, 2), normal(1, 5, 2, key="v"), 0.3
    state, end = hmc.leapfrog(bent, hmc.evaluate(bent, z), v, 0 * ONE, h * ONE, 7)
    once = np.array([[1 - h**2 / 2, h], [-h * (1 - h**2 / 4), 1 - h**2 / 2]])
    power = torch.tensor(np.linalg.matrix_power(once, 7))
    torch.testing.assert_close(state.z, power[0, 0] * z + power[0, 1] * v)
    torch.testing.assert_close(end, power[1, 0] * z + power[1, 1] * v)


def test_leapfrog_is_reversible():
    start, v = hmc.evaluate(bent, normal(1, 50, 2)), normal(1, 50, 2, key="v")
    there, momentum = hmc.leapfrog(bent, start, v, ONE, 0.05 * ONE)
    back, end = hmc.leapfrog(bent, there, -momentum, ONE, 0.05 * ONE)
    assert float((there.z - start.z).abs().max()) > 0.1
    torch.testing.assert_close(back.z, start.z, rtol=0, atol=1e-11)
    torch.testing.assert_close(-end, v, rtol=0, atol=1e-11)


def test_leapfrog_preserves_volume():
    def move(point):
        """(..., 4) -> (..., 4), positions and momenta."""
        z, v = point[None, :, :2], point[None, :, 2:]
        state, end = hmc.leapfrog(bent, hmc.evaluate(bent, z), v, ONE, 0.1 * ONE)
        return torch.cat([state.z, end], -1)[0]

    point, h = normal(1, 4, key="volume"), 1e-5
    nudges = h * torch.eye(4, dtype=f64)
    J = (move(point + nudges) - move(point - nudges)).mT / (2 * h)
    assert float(torch.linalg.det(J)) == pytest.approx(1, abs=1e-7)
    assert float((J - torch.eye(4)).abs().max()) > 0.3


def test_energy_error_falls_with_the_square_of_the_step():
    start, v = hmc.evaluate(bent, normal(1, 400, 2) / 2), normal(1, 400, 2, key="v") / 2
    before, errors = hmc.energy(start, v, ONE), []
    for halvings in range(4):
        step, count = 0.05 / 2**halvings, 10 * 2**halvings
        state, end = hmc.leapfrog(bent, start, v, ONE, step * ONE, count)
        errors.append(float((hmc.energy(state, end, ONE) - before).square().mean().sqrt()))
    ratios = np.array(errors[:-1]) / errors[1:]
    np.testing.assert_allclose(ratios, 4, rtol=0.1)


def after_moves(move, sigma=0.3, chains=20_000, moves=3):
    """Exact draws of a posterior moved a few times; in coordinates where they are normal."""
    f = noisy_models.Linear(2, 4)
    x = f(normal(1, 2, key="point")).detach()
    log_likelihood = ais.gaussian_log_likelihood(f, x, sigma)
    draws = f.posterior(x, sigma, normal(1, chains, 2, key="posterior"))
    state, generator = hmc.evaluate(log_likelihood, draws), generator_for("ais tests", "moves")
    rates = []
    for _ in range(moves):
        state, probability = move(log_likelihood, state, ONE, 0.22 * ONE, generator=generator)
        rates.append(float(probability.mean()))
    zero, unit = torch.zeros(1, 1, 2, dtype=f64), torch.eye(2, dtype=f64).unsqueeze(0)
    mean = f.posterior(x, sigma, zero)
    root = f.posterior(x, sigma, unit) - mean  # draws are mean + noise @ root
    return torch.linalg.solve(root[0].mT, (state.z - mean)[0].mT).mT, rates


def smallest_p(normals):
    """Bonferroni p-value of both coordinates, their product and the squared radius."""
    u, v = normals.T.numpy()
    found = [
        stats.kstest(u, "norm").pvalue,
        stats.kstest(v, "norm").pvalue,
        stats.kstest((u + v) / 2**0.5, "norm").pvalue,
        stats.kstest(u**2 + v**2, stats.chi2(2).cdf).pvalue,
    ]
    return len(found) * min(found)


def test_a_move_leaves_the_posterior_invariant():
    normals, rates = after_moves(hmc.transition)
    assert 0.3 < min(rates) < max(rates) < 0.9  # the Metropolis test has work to do
    assert smallest_p(normals) > LEVEL


def test_moves_without_rejection_are_seen():
    def careless(log_likelihood, state, beta, step, *, generator):
        v = torch.randn(state.z.shape, generator=generator, dtype=f64)
        return hmc.leapfrog(log_likelihood, state, v, beta, step)[0], ONE

    assert smallest_p(after_moves(careless)[0]) < LEVEL


def test_a_state_carries_its_own_value_and_slope():
    state = hmc.evaluate(bent, normal(1, 200, 2))
    options = {"generator": generator_for("ais tests", "own")}
    moved, probability = hmc.transition(bent, state, ONE, 0.5 * ONE, **options)
    stayed = (moved.z == state.z).all(-1)
    assert 0 < int(stayed.sum()) < 200
    for found, exact in zip(moved, hmc.evaluate(bent, moved.z), strict=True):
        torch.testing.assert_close(found, exact)
    assert bool(((probability >= 0) & (probability <= 1)).all())


def test_a_proposal_without_energy_is_rejected():
    def cliff(z):
        return torch.where(z[..., 0] > 0, torch.nan, 0.0) * z.sum(-1) - z.square().sum(-1)

    state = hmc.evaluate(cliff, -normal(1, 100, 2).abs())
    moved, probability = hmc.transition(
        cliff, state, ONE, 0.3 * ONE, generator=generator_for("cliff"), leapfrog_steps=2
    )
    assert bool((moved.z[..., 0] <= 0).all())
    assert bool(torch.isfinite(probability).all())
    assert 0 < int((probability == 0).sum()) < 100
