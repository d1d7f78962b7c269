"""Annealing against closed forms: schedules, weights in both directions, error bars."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from specbp import generator_for
from verification.experiments import ais, noisy_decoder, noisy_models

f64 = torch.float64
LEVEL = 1e-6  # false-alarm rate of each statistical test below, over all of its comparisons


def normal(*shape, key="draws"):
    return torch.randn(shape, generator=generator_for("ais tests", key), dtype=f64)


def linear(sigma=0.3, points=2):
    """A linear decoder with observations, its log likelihood and exact log evidence."""
    f = noisy_models.Linear(2, 4)
    x = (f(normal(points, 2, key="points")) + sigma * normal(points, 4, key="noise")).detach()
    return f, x, ais.gaussian_log_likelihood(f, x, sigma), f.log_evidence(x, sigma)


# Schedules ----------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.floats(0.1, 12))
def test_sigmoidal_schedule_runs_from_exactly_0_to_exactly_1(steps, slope):
    betas = ais.sigmoidal_schedule(steps, slope=slope)
    assert betas.shape == (steps + 1, 1)
    assert float(betas[0]) == 0
    assert float(betas[-1]) == 1
    assert bool((betas.diff(dim=0) > 0).all())
    torch.testing.assert_close(betas + betas.flip(0), torch.ones_like(betas))


@given(st.integers(3, 400), st.floats(1e-12, 0.9))
def test_geometric_schedule_has_equal_ratios_and_exact_ends(steps, first):
    betas = ais.geometric_schedule(steps, torch.tensor([first, 0.5], dtype=f64))
    assert betas.shape == (steps + 1, 2)
    assert betas[0].tolist() == [0, 0]
    assert betas[-1].tolist() == [1, 1]
    ratios = betas[2:] / betas[1:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-9, atol=0)
    assert float(betas[1, 0]) == pytest.approx(first, rel=1e-9)


@pytest.mark.parametrize("first", [0.0, 1.0, -1.0, math.nan])
def test_schedules_refuse_what_is_not_one(first):
    with pytest.raises(ValueError, match="first must lie between 0 and 1"):
        ais.geometric_schedule(10, first)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        ais.geometric_schedule(1, 0.5)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ais.sigmoidal_schedule(0)
    with pytest.raises(ValueError, match="slope must be positive"):
        ais.sigmoidal_schedule(5, slope=0.0)


# The decoder --------------------------------------------------------------------------------------


def test_log_likelihood_is_that_of_a_normal_with_standard_deviation_sigma():
    f, x, _, _ = linear()
    z, sigma = normal(2, 3, 2, key="z"), torch.tensor([0.3, 2.0], dtype=f64)
    found = ais.gaussian_log_likelihood(f, x, sigma)(z)
    exact = [
        [stats.norm.logpdf(x[p], f(z[p, c : c + 1])[0].detach(), sigma[p]).sum() for c in range(3)]
        for p in range(2)
    ]
    torch.testing.assert_close(found.detach(), torch.tensor(np.array(exact)))


def test_log_likelihood_refuses_bad_input():
    with pytest.raises(ValueError, match="sigma must be positive"):
        ais.gaussian_log_likelihood(lambda z: z, torch.zeros(1, 2), 0.0)
    with pytest.raises(ValueError, match=r"shape \(P, N\)"):
        ais.gaussian_log_likelihood(lambda z: z, torch.zeros(2), 1.0)


# Annealing ----------------------------------------------------------------------------------------


def runs(steps, chains, sigma=0.3, leapfrog_steps=2):
    """Forward and reverse runs of the linear decoder, independent draws for every chain."""
    f, x, log_likelihood, exact = linear(sigma)
    generator = generator_for("ais tests", steps, chains)
    betas = ais.geometric_schedule(steps, (sigma / 10) ** 2)
    options = {"generator": generator, "leapfrog_steps": leapfrog_steps}
    pilot = ais.prior_draws(2, 32, 2, generator=generator)
    sizes = ais.tune(log_likelihood, betas, pilot, **options)
    start = ais.prior_draws(2, chains, 2, generator=generator)
    end = f.posterior(x, sigma, normal(2, chains, 2, key="end"))
    forward = ais.anneal(log_likelihood, betas, sizes, start, **options)
    reverse = ais.anneal_reverse(log_likelihood, betas, sizes, end, **options)
    return betas, forward, reverse, exact, (f, x, sigma)


@pytest.fixture(scope="module")
def short():
    return runs(steps=60, chains=4000)


def test_acceptance_is_what_was_asked_for(short):
    _, forward, reverse, *_ = short
    assert bool(((forward.acceptance.mean(0) - ais.ACCEPTANCE).abs() < 0.05).all())
    assert bool(((reverse.acceptance.mean(0) - ais.ACCEPTANCE).abs() < 0.05).all())


def score(samples, truth):
    """z-scores of means over the last dimension."""
    return (samples.mean(-1) - truth) / (samples.std(-1) / samples.shape[-1] ** 0.5)


def quantile(comparisons):
    return stats.norm.isf(LEVEL / (2 * comparisons))


def test_weights_are_unbiased_in_both_directions(short):
    _, forward, reverse, exact, _ = short
    ratio = (forward.log_weights - exact.unsqueeze(-1)).exp()
    inverse = (exact.unsqueeze(-1) - reverse.log_weights).exp()
    assert float(ratio.std()) > 0.3  # otherwise nothing is tested
    scores = torch.cat([score(ratio, 1.0), score(inverse, 1.0)])
    assert float(scores.abs().max()) < quantile(4)


def test_forward_lies_below_and_reverse_above(short):
    """Ten standard errors: the gap of so short a run is far beyond chance."""
    _, forward, reverse, exact, _ = short
    assert bool((score(forward.log_weights, exact) < -10).all())
    assert bool((score(reverse.log_weights, exact) > 10).all())


def test_markov_bounds_hold_for_single_chains(short):
    _, forward, reverse, exact, _ = short
    for excess in (forward.log_weights - exact[:, None], exact[:, None] - reverse.log_weights):
        for b in (0.5, 1.0, 2.0):
            broken = (excess > b).double().mean(-1)
            assert bool((broken <= math.exp(-b)).all())


def test_every_temperature_is_a_noise_with_its_own_evidence(short):
    betas, forward, _, _, (f, x, sigma) = short
    scores = []
    for t in (5, 20, 40, 60):
        beta = float(betas[t, 0])
        path = forward.path[t] + noisy_decoder._renoise(4, sigma, beta)
        exact = f.log_evidence(x, sigma / beta**0.5)
        scores.append(score((path - exact.unsqueeze(-1)).exp(), 1.0))
    assert float(torch.cat(scores).abs().max()) < quantile(8)


def test_long_runs_reach_the_closed_form_within_their_error_bars():
    *_, exact, _ = found = runs(steps=300, chains=200)
    mean = ais.log_mean(found[1].log_weights)
    assert float(mean.standard_error.max()) < 0.1
    assert float(((mean.value - exact) / mean.standard_error).abs().max()) < quantile(2)
    gap = -ais.log_mean(-found[2].log_weights).value - mean.value
    assert float(gap.abs().max()) < 0.3


def test_runs_repeat_and_need_sound_input():
    f, x, log_likelihood, _ = linear()
    betas, z = ais.sigmoidal_schedule(5), normal(2, 3, 2)
    steps = torch.full((5, 2), 0.1, dtype=f64)
    first, second = (
        ais.anneal(log_likelihood, betas, steps, z, generator=generator_for(1)) for _ in range(2)
    )
    assert torch.equal(first.path, second.path)
    for bad, message in (
        ((betas[1:], steps[1:], z), "from exactly 0 to exactly 1"),
        ((betas.flip(0), steps, z), "from exactly 0 to exactly 1"),
        ((betas, steps[1:], z), r"shape \(5, 2\), got \(4, 2\)"),
        ((betas, steps, z[0]), r"shape \(P, C, n\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ais.anneal(log_likelihood, *bad, generator=generator_for(1))


# Averages of weights ------------------------------------------------------------------------------


def test_log_mean_is_the_jackknife_done_slowly():
    y = normal(3, 12, key="weights")
    found = ais.log_mean(y)
    for row, value, error, ess in zip(y.numpy(), *found, strict=True):
        w = np.exp(row)
        left = np.array([np.log(np.delete(w, i).mean()) for i in range(12)])
        slow = np.sqrt(11 / 12 * np.square(left - left.mean()).sum())
        assert float(value) == pytest.approx(np.log(w.mean()))
        assert float(error) == pytest.approx(slow)
        assert float(ess) == pytest.approx(w.sum() ** 2 / (w**2).sum())


@given(st.floats(-1e4, 1e4))
def test_log_mean_moves_with_a_constant(shift):
    y = normal(8, key="shift")
    plain, moved = ais.log_mean(y), ais.log_mean(y + shift)
    assert float(moved.value - plain.value) == pytest.approx(shift, abs=1e-9)
    assert float(moved.standard_error) == pytest.approx(float(plain.standard_error), rel=1e-6)


def test_one_weight_that_is_all_has_no_finite_error():
    assert math.isinf(float(ais.log_mean(torch.tensor([0.0, -1e4, -1e4])).standard_error))
    with pytest.raises(ValueError, match="at least 2 chains, got 1"):
        ais.log_mean(torch.zeros(1))
