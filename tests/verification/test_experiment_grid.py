"""Tabulated densities: normaliser and its error, sampler, divergences against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from specbp import generator_for
from specbp.models import ENERGIES
from verification.experiments.grid import grid_density, kl_divergence, midpoints

BOX = ((-9.0, 9.0), (-8.0, 10.0))


def normal(mean: tuple[float, float] = (0.0, 1.0), std: float = 1.0, log_scale: float = 0.0):
    def log_density(x: torch.Tensor) -> torch.Tensor:
        t = (x - torch.tensor(mean).to(x)) / std
        return log_scale - t.square().sum(-1) / 2 - math.log(2 * math.pi * std**2)

    return log_density


@given(log_scale=st.floats(-800, 800), std=st.floats(0.5, 1.0))
def test_normaliser_of_a_smooth_density_is_exact(log_scale, std):
    found = grid_density(normal(std=std, log_scale=log_scale), BOX, (120, 100))
    assert found.log_normaliser == pytest.approx(log_scale, abs=1e-9)
    assert abs(found.log_normaliser - log_scale) <= found.error + 1e-12
    assert found.edge < 1e-9
    assert float(found.log_density.exp().sum()) * found.cell == pytest.approx(1)


@pytest.mark.parametrize("name", ["u2_confined", "u3_confined", "u4_confined"])
def test_normaliser_of_the_confined_energies(name):
    energy = ENERGIES[name]
    found = grid_density(lambda z: -energy(z), energy.box, 200)
    # The curvature jumps at the wall: second order there, and the error found says so.
    assert abs(found.log_normaliser - energy.log_normaliser) <= found.error < 1e-4


def test_error_and_edge_tell_of_a_jump_and_of_a_cut():
    def indicator(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.square().sum(-1) < 1, 0.0, -math.inf)

    disc = grid_density(indicator, ((-2, 2), (-2, 2)), 101)
    assert abs(disc.log_normaliser - math.log(math.pi)) < 4 * disc.error
    assert disc.error > 1e-4
    assert grid_density(normal((0.0, 0.0)), ((0, 9), (-9, 9)), 90).edge > 0.05


def test_samples_follow_the_density():
    num = 40_000
    density = grid_density(normal((1.0, -2.0), 0.5), BOX, 360)
    x = density.sample(num, generator=generator_for("grid"))
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert ((x.mean(0) - mean).abs() < 5 * 0.5 / num**0.5).all()
    covariance = torch.eye(2, dtype=torch.float64) * (0.25 + (18 / 360) ** 2 / 12)
    assert_close(torch.cov(x.mT), covariance, rtol=0, atol=5 * 0.25 * (2 / num) ** 0.5)
    single = density.sample(9, generator=generator_for("grid", 1), dtype=torch.float32)
    again = density.sample(9, generator=generator_for("grid", 1))
    assert torch.equal(single, again.float())


def test_no_sample_falls_into_an_empty_cell():
    """Empty cells at both ends and in the middle of the order of the cells."""
    full = torch.zeros(3, 2, dtype=torch.bool)
    full[1, 0] = full[2, 0] = True

    def log_density(x: torch.Tensor) -> torch.Tensor:
        cell = x.floor().long()
        return torch.where(full[cell[:, 0], cell[:, 1]], 0.0, -math.inf)

    density = grid_density(log_density, ((0, 3), (0, 2)), (6, 4))
    x = density.sample(2000, generator=generator_for("holes"))
    cell = x.floor().long()
    assert full[cell[:, 0], cell[:, 1]].all()
    assert abs(float((cell[:, 0] == 1).double().mean()) - 0.5) < 5 * 0.5 / 2000**0.5


def test_samples_are_uniform_within_a_cell():
    """Two cells along each axis: midpoints alone would have variance 1/4, not 1/3."""
    density = grid_density(lambda x: torch.zeros(len(x)), ((0, 2), (0, 2)), 2)
    x = density.sample(20_000, generator=generator_for("uniform"))
    assert_close(x.var(0), torch.full((2,), 1 / 3, dtype=torch.float64), rtol=0.03, atol=0)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_extreme_uniforms_stay_within_the_support(monkeypatch, uniform):
    density = grid_density(
        lambda x: torch.where((x[:, 0] > 1) & (x[:, 0] < 2), 0.0, -math.inf), ((0, 3), (0, 1)), 6
    )
    monkeypatch.setattr(
        torch, "rand", lambda *size, generator, dtype: torch.full(size, uniform, dtype=dtype)
    )
    x = density.sample(1, generator=generator_for("extreme"))
    assert 1 <= float(x[0, 0]) <= 2


def test_divergence_of_normals():
    p, q = normal(std=0.7), normal((1.0, 0.0), 1.0)
    exact = math.log(1 / 0.7) * 2 + (2 * 0.49 + 2) / 2 - 1
    a, b = (grid_density(f, BOX, 120) for f in (p, q))
    assert kl_divergence(a, b) == pytest.approx(exact, abs=1e-8)
    assert kl_divergence(a, a) == 0
    lost = grid_density(normal((1.0, 0.0), 1.0, log_scale=-0.5), BOX, 120)
    assert kl_divergence(a, lost) == pytest.approx(exact, abs=1e-8)
    assert kl_divergence(a, lost, normalise=False) == pytest.approx(exact + 0.5, abs=1e-8)


def test_divergence_where_one_density_is_zero():
    whole = grid_density(lambda x: torch.zeros(len(x)), ((0, 2), (0, 1)), 4)
    half = grid_density(lambda x: torch.where(x[:, 0] < 1, 0.0, -math.inf), ((0, 2), (0, 1)), 4)
    assert kl_divergence(half, whole) == pytest.approx(math.log(2))
    assert kl_divergence(whole, half) == math.inf


def test_midpoints():
    points = midpoints(((0, 2), (10, 14)), (2, 4))
    assert points.shape == (2, 4, 2)
    assert points[1, 0].tolist() == [1.5, 10.5]
    assert torch.equal(grid_density(normal(), ((0, 2), (10, 14)), (2, 4)).points, points)


def test_bad_input():
    a, b = (grid_density(normal(), BOX, n) for n in (4, 6))
    with pytest.raises(ValueError, match="on the same box with the same resolution"):
        kl_divergence(a, b)
    with pytest.raises(ValueError, match="2 cells or more"):
        grid_density(normal(), BOX, 1)
    with pytest.raises(ValueError, match="2 cells or more"):
        grid_density(normal(), ((1, 0), (0, 1)), 4)
    with pytest.raises(ValueError, match="64 NaN"):
        grid_density(lambda x: torch.full((len(x),), math.nan), BOX, 8)
    with pytest.raises(ValueError, match="greatest value -inf"):
        grid_density(lambda x: torch.full((len(x),), -math.inf), BOX, 8)
    with pytest.raises(ValueError, match="must be"):
        grid_density(lambda x: x, BOX, 8)
