"""Kernel polynomials: kernels, moments, closed forms against quadrature, the wrong interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.density import damping_factors, kpm_density, slq_density
from specbp.density_distances import wasserstein1
from specbp.estimate import Status
from specbp.logdets import chebyshev_logdet
from tests.support import EPS, all_signs, f32, f64, geometric, hadamard, normal, signs, spd

DAMPINGS = ("jackson", "lorentz", "none")
END = (0.009, 1.05)
damped = pytest.mark.parametrize("damping", DAMPINGS)


def case(n=30, m=5, seed=0, dtype=f64):
    return spd(geometric(n, 100.0), seed).to(dtype), signs(n, m, seed=seed + 9, dtype=dtype)


def kernel(degree, damping, angles):
    g = damping_factors(degree, damping)
    k = torch.arange(degree + 1)
    both = torch.where(k > 0, 2.0, 1.0) * g
    return torch.cos(angles.unsqueeze(-1) * k) @ both


# Kernels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 7, 50, 301])
def test_jackson_and_lorentz_kernels_are_positive_and_none_is_not(degree):
    angles = torch.linspace(0, math.pi, 20 * degree + 1, dtype=f64)
    for damping in ("jackson", "lorentz"):
        assert damping_factors(degree, damping)[0] == 1
        smallest = float(kernel(degree, damping, angles).min())
        assert smallest >= -degree * 4 * EPS[f64] * (degree + 1), damping
    assert float(kernel(degree, "none", angles).min()) < -0.2


@pytest.mark.parametrize("degree", [1, 5, 40])
def test_jackson_factors_are_the_autocorrelation_of_a_sine(degree):
    # The positive kernel |Σ a_j e^{ijφ}|² with a_j = sin(π (j + 1) / (N + 1)) has least variance.
    N = degree + 1
    a = np.sin(math.pi * np.arange(1, N + 1) / (N + 1))
    naive = [a[: N - k] @ a[k:] / (a @ a) for k in range(N)]
    assert damping_factors(degree, "jackson").numpy() == pytest.approx(naive, abs=1e-13)


def test_lorentz_factors_are_those_of_their_definition():
    naive = [math.sinh(4 * (1 - k / 10)) / math.sinh(4) for k in range(10)]
    assert damping_factors(9, "lorentz").numpy() == pytest.approx(naive, rel=1e-13)


# Moments and the density of each probe ------------------------------------------------------------


@damped
def test_density_and_cdf_of_each_probe_equal_a_loop_over_degrees(damping):
    A, X = case()
    est = kpm_density(A, X, degree=9, interval=END, damping=damping)
    g, (a, b) = damping_factors(9, damping), END
    M = (2 * A - (a + b) * torch.eye(30, dtype=f64)) / (b - a)
    eigenvalues, V = torch.linalg.eigh(M)
    for x in (0.02, 0.4, 1.0):
        t = (2 * x - a - b) / (b - a)
        total = torch.zeros(5, dtype=f64)
        for k in range(10):
            T = (V * torch.cos(k * eigenvalues.clamp(-1, 1).arccos())) @ V.mT
            moment = torch.einsum("im,ij,jm->m", X, T, X) / 30
            assert est.moments[:, k].numpy() == pytest.approx((g[k] * moment).numpy(), abs=1e-12)
            total += (1 if k == 0 else 2) * g[k] * moment * math.cos(k * math.acos(t))
        expected = total / (math.pi * math.sqrt(1 - t**2) * (b - a) / 2)
        assert est.density(x).samples.numpy() == pytest.approx(expected.numpy(), rel=1e-10)
    assert est.num_matvecs == 5 * 5


@damped
def test_moments_are_unbiased_over_all_signs(damping):
    values = torch.tensor([-2.0, -1.0, 0.0, 0.0, 0.5, 1.0, 2.5, 3.0], dtype=f64)
    A = spd(values)
    est = kpm_density(A, all_signs(8), degree=7, interval=(-2.5, 4.0), damping=damping)
    t = (2 * values - 1.5) / 6.5
    exact = [float(torch.cos(k * t.arccos()).mean()) for k in range(8)]
    expected = damping_factors(7, damping).numpy() * exact
    assert est.mean_moments().numpy() == pytest.approx(expected, abs=1e-13)


@damped
def test_closed_forms_equal_adaptive_quadrature(damping):
    A, X = case()
    est = kpm_density(A, X, degree=12, interval=END, damping=damping)
    a, b = END

    def rho(theta):  # the density in θ, without its infinite ends
        x = a + (b - a) * math.cos(theta / 2) ** 2
        return float(est.density(x).value) * (b - a) / 2 * math.sin(theta)

    for x in (a, 0.011, 0.2, 0.9, b):
        theta = 2 * math.atan2(math.sqrt(b - x), math.sqrt(x - a))
        mass = scipy.integrate.quad(rho, max(theta, 1e-12), math.pi - 1e-12, limit=200)[0]
        assert float(est.cdf(x).value) == pytest.approx(mass, abs=1e-7)
        area = scipy.integrate.quad(lambda y: float(est.cdf(y).value), a, x, limit=200)[0]
        found = est.antiderivative(torch.tensor([x, a - 3], dtype=f64))
        assert float(found[0]) == pytest.approx(area, abs=1e-7)
        assert float(found[1]) == pytest.approx(0, abs=1e-15)
    beyond = est.antiderivative(torch.tensor([b, b + 2], dtype=f64))
    assert float(beyond[1] - beyond[0]) == pytest.approx(2)


@damped
def test_mass_is_one_and_nothing_lies_outside(damping):
    A, X = case()
    est = kpm_density(A, X, degree=10, interval=END, damping=damping)
    x = torch.tensor([-math.inf, -1.0, END[0], END[1], 2.0, math.inf], dtype=f64)
    assert est.cdf(x).value.tolist() == pytest.approx([0, 0, 0, 1, 1, 1], abs=1e-14)
    assert est.density(torch.tensor([0.0, 1.06])).value.tolist() == [0, 0]
    assert float(est.expectation(torch.ones_like).value) == pytest.approx(1)


def test_cdf_of_a_positive_kernel_is_monotone_and_has_quantiles():
    A, X = case()
    x = torch.linspace(*END, 2001, dtype=f64)
    for damping in ("jackson", "lorentz"):
        est = kpm_density(A, X, degree=25, interval=END, damping=damping)
        assert float(est.cdf(x).samples.diff(dim=0).min()) >= -1e-14
        q = torch.tensor([0.0, 1e-6, 0.3, 0.5, 0.99, 1.0], dtype=f64)
        assert est.cdf(est.quantile(q)).value.numpy() == pytest.approx(q.numpy(), abs=1e-9)
        assert float(est.quantile(0.5)) == float(est.quantile(q)[3])
    ringing = kpm_density(A, X, degree=25, interval=END, damping="none")
    assert float(ringing.cdf(x).samples.diff(dim=0).min()) < -1e-4
    with pytest.raises(ValueError, match="jackson"):
        ringing.quantile(0.5)


# The Chebyshev trace ------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [4, 15])
def test_expectation_of_log_without_damping_is_the_chebyshev_log_det(degree):
    A, X = case()
    est = kpm_density(A, X, degree=degree, interval=END, damping="none")
    interpolant = chebyshev_logdet(A, X, degree=degree, interval=END)
    found = est.expectation(torch.log, points=degree + 1)
    assert (30 * found.samples).numpy() == pytest.approx(interpolant.samples.numpy(), rel=1e-11)
    series = chebyshev_logdet(A, X, degree=degree, interval=END, series=True)
    found = est.expectation(torch.log, points=400)
    assert (30 * found.samples).numpy() == pytest.approx(series.samples.numpy(), rel=1e-11)
    with pytest.raises(ValueError, match="points"):
        est.expectation(torch.log, points=degree // 2)


@given(st.integers(1, 12), st.data())
def test_expectation_of_a_polynomial_is_its_trace(degree, data):
    power = data.draw(st.integers(0, degree))
    A, X = case(n=8, m=3)
    est = kpm_density(A, X, degree=degree, interval=END, damping="none")
    exact = torch.einsum("im,ij,jm->m", X, torch.linalg.matrix_power(A, power), X) / 8
    found = est.expectation(lambda x: x**power).samples
    assert found.numpy() == pytest.approx(exact.numpy(), abs=1e-12)


# Convergence, laws, failures ----------------------------------------------------------------------


def test_distance_to_the_spectrum_falls_like_one_over_the_degree():
    values = torch.linspace(0.1, 1, 64, dtype=f64)
    A = torch.diag(values)
    distances = [
        float(wasserstein1(kpm_density(A, hadamard(64), degree=d, interval=(0.0, 1.1)), values))
        for d in (8, 16, 32)
    ]
    assert 0.35 < distances[1] / distances[0] < 0.65
    assert 0.35 < distances[2] / distances[1] < 0.65


def test_batch_equals_single_calls_and_float32_is_close():
    A = torch.stack([case(seed=s)[0] for s in range(6)]).view(2, 3, 30, 30)
    X = signs(3, 30, 4, seed=5)
    low = torch.tensor([[0.001], [0.009]], dtype=f64)
    batch = kpm_density(A, X, degree=11, interval=(low, 1.05))
    x, q = torch.tensor([0.1, 0.5], dtype=f64), torch.tensor([0.2, 0.7, 0.9], dtype=f64)
    assert batch.cdf(x).value.shape == (2, 3, 2)
    assert batch.quantile(q).shape == (2, 3, 3)
    assert batch.num_matvecs == 24
    for i in range(2):
        for j in range(3):
            single = kpm_density(A[i, j], X[j], degree=11, interval=(low[i, 0], 1.05))
            small = kpm_density(
                A[i, j].float(), X[j].float(), degree=11, interval=(low[i, 0], 1.05)
            )
            for f in (
                lambda d: d.cdf(x).value,
                lambda d: d.density(x).value,
                lambda d: d.quantile(q),
                lambda d: d.expectation(torch.log).value,
                lambda d: d.normalized().count(0.1, x).standard_error,
            ):
                assert f(batch)[i, j].numpy() == pytest.approx(f(single).numpy(), rel=1e-9)
                assert f(small).dtype == f64
                assert f(small).numpy() == pytest.approx(f(single).numpy(), rel=1e-3)


@pytest.mark.parametrize("dtype", [f32, f64])
@damped
def test_eigenvalue_outside_the_interval_is_a_status(damping, dtype):
    A, X = case(dtype=dtype)
    right = kpm_density(A, X, degree=40, interval=(0.009, 1.01), damping=damping)
    assert int(right.status) == 0
    for interval in ((0.009, 0.9), (0.1, 1.05)):
        wrong = kpm_density(A, X, degree=40, interval=interval, damping=damping)
        assert Status(int(wrong.status)) == Status.OUTSIDE_INTERVAL
        assert not bool(wrong.ok)
        assert math.isnan(float(wrong.cdf(0.5).value))
        assert math.isnan(float(wrong.expectation(torch.log).value))
        if damping != "none":
            assert math.isnan(float(wrong.quantile(0.5)))


def test_an_eigenvalue_barely_outside_is_seen():
    # T_100 has slope 10⁴ at the end: 10⁻¹⁰ beyond is a growth of 10⁻⁶.
    A = torch.diag(torch.tensor([0.2, 1 + 1e-10], dtype=f64))
    X = torch.tensor([[0.0], [1.0]], dtype=f64)
    status = kpm_density(A, X, degree=100, interval=(-1.0, 1.0)).status
    assert Status(int(status)) == Status.OUTSIDE_INTERVAL


def test_an_interval_that_ends_at_the_spectrum_is_no_failure():
    values = torch.linspace(-1, 1, 30, dtype=f64)
    for dtype in (f32, f64):
        A, X = torch.diag(values).to(dtype), signs(30, 5, dtype=dtype)
        assert int(kpm_density(A, X, degree=100, interval=(-1.0, 1.0)).status) == 0


def test_nan_and_asymmetry_are_statuses():
    A, X = case()
    broken = A.clone()
    broken[3, 3] = torch.nan
    density = kpm_density(torch.stack([A, broken]), X, degree=6, interval=END)
    assert density.ok.tolist() == [True, False]
    assert Status(int(density.status[1])) & Status.NONFINITE
    values = density.quantile(torch.tensor([0.0, 0.5]))
    assert torch.isnan(values).tolist() == [[False, False], [True, True]]
    skew = A + 0.01 * (normal(30, 30) - normal(30, 30).mT)
    status = Status(int(kpm_density(skew, X, degree=6, interval=(-1.0, 2.0)).status))
    assert status & Status.NONSYMMETRIC


def test_zero_matrix_is_a_smeared_jump():
    density = kpm_density(torch.zeros(8, 8, dtype=f64), signs(8, 2), degree=50, interval=(-1, 1))
    assert float(density.cdf(0.0).value) == pytest.approx(0.5)
    assert float(density.count(-0.2, 0.2).value) == pytest.approx(8, abs=0.05)
    exact = slq_density(torch.zeros(8, 8, dtype=f64), signs(8, 2), num_steps=1)
    assert float(wasserstein1(density, exact)) < 0.05


def test_bad_input_is_refused():
    A, X = case()
    with pytest.raises(ValueError, match="degree"):
        kpm_density(A, X, degree=0, interval=END)
    with pytest.raises(ValueError, match="damping"):
        kpm_density(A, X, degree=3, interval=END, damping="fejer")
    for interval in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="interval"):
            kpm_density(A, X, degree=3, interval=interval)
    with pytest.raises(ValueError, match="batch"):
        kpm_density(A, X, degree=3, interval=(torch.zeros(2), 1.0))
    with pytest.raises(TypeError, match="convert one"):
        kpm_density(A, X.float(), degree=3, interval=END)
    density = kpm_density(A, X, degree=3, interval=END)
    with pytest.raises(ValueError, match="width"):
        density.density(0.5, width=0.1)
    assert float(density.cdf(0.5).lower) == -math.inf
