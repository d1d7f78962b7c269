"""Certified bounds of the cdf for every probe and point; the bound for probes from the sphere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.density import golub_kahan_density, slq_density
from specbp.density_estimate import DiscreteDensity, kolmogorov_bound
from specbp.probes import sphere
from tests.support import f32, f64, generator, geometric, normal, signs, spd


def weighted_cdf(A, X, x):
    """n⁻¹ X_iᵀ 1[A ≤ x] X_i of every point and column from a dense eigendecomposition, (p, m)."""
    eigenvalues, V = torch.linalg.eigh(A.double())
    return (eigenvalues <= x.unsqueeze(-1)).double() @ (V.mT @ X.double()) ** 2 / len(A)


def between(eigenvalues):
    """A point in every gap of a spectrum and beyond both ends, ascending."""
    x = eigenvalues.sort().values
    return torch.cat([x[:1] - 1, (x[1:] + x[:-1]) / 2, x[-1:] + 1])


@pytest.mark.parametrize("kind", ["geometric", "clusters", "indefinite", "repeated"])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 24])
def test_bounds_hold_for_every_probe_and_point(kind, num_steps):
    values = {
        "geometric": geometric(24, 1e4),
        "clusters": torch.cat([1 + geometric(12, 10.0) / 10, 5 + geometric(12, 10.0) / 10]),
        "indefinite": torch.linspace(-3, 4, 24, dtype=f64),
        "repeated": torch.tensor([1.0, 2.0, 5.0], dtype=f64).repeat_interleave(8),
    }[kind]
    A = torch.diag(values)  # the oracle's jumps are where the points are, without rounding
    X = torch.cat([signs(24, 20, seed=3), normal(24, 20, seed=4)], 1)
    density = slq_density(A, X, num_steps=num_steps)
    x = torch.cat([values, between(values.unique()), density.nodes.flatten()])
    lower, upper = density.cdf_bounds(x)
    exact = weighted_cdf(A, X, x)
    assert lower.shape == upper.shape == exact.shape
    slack = 1e-11  # rounding of the recurrence
    assert bool((lower <= exact + slack).all())
    assert bool((exact <= upper + slack).all())
    if num_steps == 5 and kind != "repeated":
        assert float((upper - lower).mean()) < 0.75  # they say something
    est = density.cdf(x)
    assert torch.equal(est.lower, lower.mean(-1))
    assert torch.equal(est.upper, upper.mean(-1))


def test_bounds_equal_the_inequalities_node_by_node():
    nodes, weights = [1.0, 2.0, 4.0, 5.0], [0.1, 0.2, 0.3, 0.4]
    status = torch.zeros(1, dtype=torch.int64)
    density = DiscreteDensity(4, 4, status, *torch.tensor([[nodes], [weights]], dtype=f64))
    for x in (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 4.5, 5.0, 6.0):
        # F(θ_j) ≥ Σ_{i<j} at the last node that x reaches, F(θ_j) ≤ Σ_{i≤j} at the first above.
        reached = [j for j in range(4) if nodes[j] <= x]
        above = [j for j in range(4) if nodes[j] >= x]
        lower = sum(weights[: reached[-1]]) if reached else 0.0
        upper = sum(weights[: above[0] + 1]) if above else 1.0
        found = density.cdf_bounds(x)
        assert [float(part) for part in found] == pytest.approx([lower, upper], abs=1e-15)


@pytest.mark.parametrize("dtype", [f32, f64])
def test_bounds_on_the_factor_hold_for_the_gram_matrix(dtype):
    sigma, X = geometric(24, 1e3), signs(24, 20, seed=3)
    exact = weighted_cdf(torch.diag(sigma**2), X, between(sigma**2))
    roots = weighted_cdf(torch.diag(sigma), X, between(sigma))
    J, X = torch.diag(sigma).to(dtype), X.to(dtype)
    slack = 1e-4 if dtype == f32 else 1e-11
    for singular_values, cdf, points in ((False, exact, sigma**2), (True, roots, sigma)):
        density = golub_kahan_density(J, X, num_steps=6, singular_values=singular_values)
        lower, upper = density.cdf_bounds(between(points))
        assert bool((lower <= cdf + slack).all())
        assert bool((cdf <= upper + slack).all())


def test_bounds_of_the_count_hold():
    A, X = spd(geometric(30, 100.0)), signs(30, 5, seed=9)
    eigenvalues = torch.linalg.eigvalsh(A)
    density = slq_density(A, X, num_steps=8)
    ends = between(eigenvalues)
    for i in range(0, 31, 5):
        est = density.count(ends[i], ends[i:])
        exact = 30 * (weighted_cdf(A, X, ends[i:]) - weighted_cdf(A, X, ends[i : i + 1])).mean(-1)
        assert bool((est.lower <= exact + 1e-12).all())
        assert bool((exact <= est.upper + 1e-12).all())


@given(st.integers(2, 60), st.floats(0.001, 0.999))
def test_bound_for_the_sphere_holds_for_the_law_of_one_probe(n, confidence):
    eps = kolmogorov_bound(n, 1, confidence)
    j = np.arange(1, n)
    law, mean = scipy.stats.beta(j / 2, (n - j) / 2), j / n
    each = law.cdf(mean - eps) + law.sf(mean + eps)
    assert np.all(each <= 2 * math.exp(-(n + 2) * eps**2) * (1 + 1e-9))
    assert each.sum() <= 1 - confidence


def test_constant_of_the_complex_sphere_is_wrong_for_real_probes():
    n, eps = 50, 0.3
    law = scipy.stats.beta(n / 4, n / 4)
    assert 2 * law.sf(0.5 + eps) > 2 * math.exp(-2 * (n + 1) * eps**2)


def test_bound_shrinks_with_probes_and_dimension():
    eps = math.sqrt(math.log(2 * 100 / 0.05) / (8 * 102))
    assert kolmogorov_bound(100, 8, 0.95) == pytest.approx(eps)
    for bad in ((0, 1, 0.5), (1, 0, 0.5), (1, 1, 0.0), (1, 1, 1.0), (1, 1, math.nan)):
        with pytest.raises(ValueError, match="confidence"):
            kolmogorov_bound(*bad)


def test_band_holds_the_distribution_function():
    n, values = 40, geometric(40, 100.0)
    X = sphere(n, 6, generator=generator(), batch_shape=(100,))
    density = slq_density(torch.diag(values), X, num_steps=10)
    x = torch.cat([values, between(values)])
    lower, upper = density.band(x, confidence=0.5)
    exact = (values <= x.unsqueeze(-1)).double().mean(-1)
    held = ((lower <= exact + 1e-12) & (exact <= upper + 1e-12)).all(-1)
    assert held.shape == (100,)
    with pytest.raises(ValueError, match="normalized"):
        slq_density(torch.diag(values), 2 * X[0], num_steps=2).band(x, confidence=0.5)
    half = kolmogorov_bound(n, 6, 0.5)
    inner = [part.mean(-1) for part in density.cdf_bounds(x)]
    assert torch.equal(lower, (inner[0] - half).clamp(min=0))
    assert torch.equal(upper, (inner[1] + half).clamp(max=1))
    assert float(held.double().mean()) > 0.5
    assert float((upper - lower).mean()) < 0.75
