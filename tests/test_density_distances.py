"""Distances between distribution functions: SciPy, naive suprema, quadrature; laws of a metric."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.density import golub_kahan_density, kpm_density, slq_density
from specbp.density_distances import kolmogorov, wasserstein1
from tests.support import f32, f64, geometric, hadamard, normal, signs, spd

spectra = st.lists(st.floats(-10, 10), min_size=1, max_size=7)
# Few distinct values: ties within a spectrum and between both.
tied = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=7)


def tensor(values):
    return torch.tensor(values, dtype=f64)


def naive_kolmogorov(x, y):
    """The largest gap of two empirical cdfs over every jump."""
    points = np.concatenate([x, y])
    x, y = np.array(x), np.array(y)
    return max(abs((x <= t).mean() - (y <= t).mean()) for t in points)


def case(n=16, m=5, seed=0):
    return spd(geometric(n, 100.0), seed), signs(n, m, seed=seed + 9)


@given(st.one_of(spectra, tied), st.one_of(spectra, tied))
def test_step_functions_equal_scipy(x, y):
    w = float(wasserstein1(tensor(x), tensor(y)))
    assert w == pytest.approx(scipy.stats.wasserstein_distance(x, y), abs=1e-12)
    k = float(kolmogorov(tensor(x), tensor(y)))
    assert k == pytest.approx(naive_kolmogorov(x, y), abs=1e-14)


def test_kolmogorov_is_the_statistic_of_smirnov():
    x, y = normal(40), 0.5 + normal(55, seed=1)
    expected = scipy.stats.ks_2samp(x.numpy(), y.numpy()).statistic
    assert float(kolmogorov(x, y)) == pytest.approx(float(expected), abs=1e-14)


@given(tied, tied, spectra)
def test_laws_of_a_metric(x, y, z):
    x, y, z = tensor(x), tensor(y), tensor(z)
    for distance in (wasserstein1, kolmogorov):
        d = float(distance(x, y))
        assert d == pytest.approx(float(distance(y, x)), abs=1e-14)
        assert d <= float(distance(x, z)) + float(distance(z, y)) + 1e-12
        assert float(distance(x, x.flip(-1).repeat(2))) == pytest.approx(0, abs=1e-14)
    moved = float(wasserstein1(3 * x + 1, 3 * y + 1))
    assert moved == pytest.approx(3 * float(wasserstein1(x, y)), abs=1e-12)
    assert float(wasserstein1(x, x + 0.25)) == pytest.approx(0.25)


def test_weighted_atoms_equal_scipy():
    A, X = case()
    p, q = slq_density(A, X, num_steps=4), golub_kahan_density(A, X, num_steps=3)
    atoms = [tuple(part.numpy() for part in density.atoms()) for density in (p, q)]
    (x, v), (y, w) = atoms
    expected = scipy.stats.wasserstein_distance(x, y, v, w)
    assert float(wasserstein1(p, q)) == pytest.approx(expected, abs=1e-13)
    gaps = [abs(v[x <= t].sum() - w[y <= t].sum()) for t in np.concatenate([x, y])]
    assert float(kolmogorov(p, q)) == pytest.approx(max(gaps), abs=1e-13)


def test_all_steps_over_a_basis_of_probes_reach_the_spectrum():
    A = case()[0]
    eigenvalues = torch.linalg.eigvalsh(A)
    density = slq_density(A, hadamard(16), num_steps=16)
    assert float(wasserstein1(density, eigenvalues)) < 1e-13
    # Ritz values differ from eigenvalues by rounding: a jump in full, unless that is forgiven.
    assert float(kolmogorov(density, eigenvalues, tolerance=1e-10)) < 1e-12


@pytest.mark.parametrize("damping", ["jackson", "lorentz"])
@pytest.mark.parametrize("degree", [1, 5, 30])
def test_smooth_against_steps_equals_the_trapezoidal_rule(damping, degree):
    A, X = case()
    smooth = kpm_density(A, X, degree=degree, interval=(0.009, 1.05), damping=damping)
    # Jumps beyond both ends of the interval, ties, and jumps at its ends.
    for x in ([-1.0, 0.02, 0.3, 0.3, 2.0], [0.009, 0.5, 1.05], [0.4], [-2.0, -1.0], [3.0, 3.0]):
        steps = np.array(x)

        edges = np.unique([*steps, 0.009, 1.05])
        area = 0.0
        for left, right in zip(edges[:-1], edges[1:], strict=True):
            t = torch.linspace(left, right, 5001, dtype=f64)  # a kink costs h², an end h^1.5
            area += float(torch.trapezoid((smooth.cdf(t).value - (steps <= left).mean()).abs(), t))
        assert float(wasserstein1(smooth, tensor(x))) == pytest.approx(area, abs=2e-5)
        assert float(wasserstein1(tensor(x), smooth)) == float(wasserstein1(smooth, tensor(x)))
        grid = np.concatenate([np.linspace(-2, 3, 4001), steps, steps - 1e-12])
        height = smooth.cdf(torch.from_numpy(grid)).value.numpy()
        sup = np.abs(height - (steps <= grid[:, None]).mean(-1)).max()
        found = float(kolmogorov(smooth, tensor(x)))
        assert found == pytest.approx(sup, abs=1e-3)
        assert found >= sup - 1e-9


def test_equal_atoms_stand_for_a_smooth_density():
    A, X = case()
    p, q = (kpm_density(A, X, degree=d, interval=(0.009, 1.05)) for d in (10, 20))
    with pytest.raises(ValueError, match="equal atoms"):
        wasserstein1(p, q)
    with pytest.raises(ValueError, match="equal atoms"):
        kolmogorov(p, q)
    estimates = []
    for K in (50, 800):
        atoms = q.quantile((torch.arange(K) + 0.5) / K)
        estimates.append((float(wasserstein1(p, atoms)), float(wasserstein1(q, atoms))))
    (rough, doubt), (fine, less) = estimates
    assert less < doubt / 4
    assert abs(rough - fine) <= doubt + less


def test_batches_broadcast_and_equal_single_calls():
    A = torch.stack([case(seed=s)[0] for s in range(3)])
    X = signs(16, 4)
    eigenvalues = torch.linalg.eigvalsh(A)
    others = normal(2, 1, 16)
    for density in (
        slq_density(A, X, num_steps=3),
        kpm_density(A, X, degree=5, interval=(0.009, 1.05)),
    ):
        for distance in (wasserstein1, kolmogorov):
            assert distance(density, eigenvalues).shape == (3,)
            found = distance(density, others)
            assert found.shape == (2, 3)
            for i in range(2):
                for j in range(3):
                    single = (
                        slq_density(A[j], X, num_steps=3)
                        if hasattr(density, "nodes")
                        else kpm_density(A[j], X, degree=5, interval=(0.009, 1.05))
                    )
                    expected = float(distance(single, others[i, 0]))
                    assert float(found[i, j]) == pytest.approx(expected, rel=1e-9)


def test_nan_gives_nan_in_its_item_only():
    A = torch.stack([case()[0]] * 2)
    A[1, 0, 0] = torch.nan
    X, exact = signs(16, 3), torch.linspace(0, 1, 16, dtype=f64)
    for density in (
        slq_density(A, X, num_steps=3),
        kpm_density(A, X, degree=4, interval=(0.009, 1.05)),
    ):
        for distance in (wasserstein1, kolmogorov):
            assert torch.isnan(distance(density, exact)).tolist() == [False, True]
    good = kpm_density(A[0], X, degree=4, interval=(0.009, 1.05))
    broken = tensor([0.0, math.nan, 1.0])
    for distance in (wasserstein1, kolmogorov):
        assert math.isnan(float(distance(exact, broken)))
        assert math.isnan(float(distance(tensor([0.0]), tensor([math.nan]))))
        assert math.isnan(float(distance(good, broken)))


def test_float32_probes_have_mass_one_and_gaussian_ones_have_not():
    A, X = case()
    eigenvalues = torch.linalg.eigvalsh(A)
    small = slq_density(A.to(f32), X.to(f32), num_steps=4)
    assert float(wasserstein1(small, eigenvalues)) == pytest.approx(
        float(wasserstein1(slq_density(A, X, num_steps=4), eigenvalues)), rel=1e-4
    )
    Y = normal(16, 3)
    for density in (
        slq_density(A, Y, num_steps=4),
        kpm_density(A, Y, degree=4, interval=(0.009, 1.05)),
    ):
        for distance in (wasserstein1, kolmogorov):
            with pytest.raises(ValueError, match="normalized"):
                distance(density, eigenvalues)
            assert 0 < float(distance(density.normalized(), eigenvalues)) < 1


def test_bad_input_is_refused():
    A, X = case()
    x = torch.zeros(2)
    with pytest.raises(TypeError, match="eigenvalues"):
        wasserstein1(x, [0.0, 1.0])
    with pytest.raises(TypeError, match="real"):
        kolmogorov(x, torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="n ≥ 1"):
        wasserstein1(x, torch.zeros(0))
    with pytest.raises(ValueError, match="tolerance"):
        kolmogorov(x, x, tolerance=-1.0)
    ringing = kpm_density(A, X, degree=4, interval=(0.009, 1.05), damping="none")
    with pytest.raises(ValueError, match="monotone"):
        wasserstein1(ringing, x)
