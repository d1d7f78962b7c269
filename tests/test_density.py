"""Quadrature densities: dense oracles for each probe, certified bounds, bound for the sphere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.density import golub_kahan_density, slq_density
from specbp.density_estimate import DiscreteDensity
from specbp.estimate import EstimationError, Status
from specbp.logdets import golub_kahan_logdet, slq_logdet
from specbp.probes import gaussian
from tests.support import (
    EPS,
    all_signs,
    f32,
    f64,
    factor,
    generator,
    geometric,
    hadamard,
    naive_lanczos,
    normal,
    signs,
    spd,
)


def case(n=30, cond=100.0, m=5, seed=0, dtype=f64):
    return spd(geometric(n, cond), seed).to(dtype), signs(n, m, seed=seed + 9, dtype=dtype)


def weighted_cdf(A, X, x):
    """n⁻¹ X_iᵀ 1[A ≤ x] X_i of every point and column from a dense eigendecomposition, (p, m)."""
    eigenvalues, V = torch.linalg.eigh(A.double())
    return (eigenvalues <= x.unsqueeze(-1)).double() @ (V.mT @ X.double()) ** 2 / len(A)


def between(eigenvalues):
    """A point in every gap of a spectrum and beyond both ends, ascending."""
    x = eigenvalues.sort().values
    return torch.cat([x[:1] - 1, (x[1:] + x[:-1]) / 2, x[-1:] + 1])


# Each probe ---------------------------------------------------------------------------------------


def test_nodes_and_weights_equal_a_loop_over_probes():
    A, X = case()
    density = slq_density(A, X, num_steps=6)
    for i, x in enumerate(X.mT.numpy()):
        alphas, betas, _ = naive_lanczos(A.numpy(), x, 6)
        theta, S = np.linalg.eigh(
            np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
        )
        assert density.nodes[i].numpy() == pytest.approx(theta, rel=1e-10)
        assert density.weights[i].numpy() == pytest.approx(S[0] ** 2, rel=1e-9)
        for t in (-1.0, 0.02, float(density.nodes[i, 2]), 0.4, 2.0):
            naive = (S[0] ** 2)[density.nodes[i].numpy() <= t].sum()
            assert float(density.cdf(t).samples[i]) == pytest.approx(naive, abs=1e-12)


@pytest.mark.parametrize("dtype", [f32, f64])
def test_all_steps_give_the_weighted_cdf_of_each_probe(dtype):
    A, X = case(dtype=dtype)
    x = between(torch.linalg.eigvalsh(A.double()))
    est = slq_density(A, X, num_steps=30).cdf(x)
    assert est.value.dtype == est.samples.dtype == f64
    assert est.samples.numpy() == pytest.approx(
        weighted_cdf(A, X, x).numpy(), abs=30 * EPS[dtype] * 100
    )


@pytest.mark.parametrize("law", [gaussian, signs])
@pytest.mark.parametrize("num_steps", [1, 4, 30])
def test_expectation_of_log_is_the_log_det_of_the_same_probes(law, num_steps):
    A, J = case()[0], factor(geometric(30, 10.0), 40)
    X = signs(30, 5) if law is signs else gaussian(30, 5, generator=generator())
    for density, logdet in (
        (slq_density(A, X, num_steps=num_steps), slq_logdet(A, X, num_steps=num_steps)),
        (
            golub_kahan_density(J, X, num_steps=num_steps),
            golub_kahan_logdet(J, X, num_steps=num_steps),
        ),
    ):
        est = density.expectation(torch.log)
        assert (30 * est.samples).numpy() == pytest.approx(logdet.samples.numpy(), rel=1e-12)
        assert 30 * float(est.standard_error) == pytest.approx(float(logdet.standard_error))
        assert est.num_matvecs == density.num_matvecs == logdet.num_matvecs == 5 * num_steps


def test_mean_over_all_signs_is_the_distribution_of_eigenvalues():
    A = spd(torch.tensor([-2.0, 0.0, 0.0, 1.0, 1.0, 1.0, 3.0, 7.0], dtype=f64))
    density = slq_density(A, all_signs(8), num_steps=8)
    x = torch.tensor([-3, -1, 0.5, 2, 5, 8.0], dtype=f64)
    expected = torch.tensor([0, 1, 3, 6, 7, 8]) / 8
    assert density.cdf(x).value.numpy() == pytest.approx(expected.numpy(), abs=1e-12)
    assert float(density.count(-0.5, 2).value) == pytest.approx(5, abs=1e-11)
    shares = torch.tensor([0, 1 / 16, 1 / 8, 0.2, 0.5, 6 / 8, 1], dtype=f64)
    quantiles = [-2, -2, -2, 0, 1, 1, 7]
    assert density.quantile(shares).numpy() == pytest.approx(quantiles, abs=1e-12)


def test_zero_eigenvalues_are_counted_at_zero():
    A = spd(torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0, 2.0, 3.0, 4.0], dtype=f64))
    J = torch.linalg.qr(normal(5, 5))[0] @ torch.diag(torch.arange(1.0, 6.0, dtype=f64))
    wide = torch.cat([J, normal(5, 3, seed=1)], 1)
    # Seven distinct values: the Krylov spaces close there.
    densities = (
        (slq_density(A, hadamard(8), num_steps=8), 2),
        (golub_kahan_density(wide, hadamard(8), num_steps=8), 3),
        (golub_kahan_density(wide, hadamard(8), num_steps=8, singular_values=True), 3),
    )
    for density, nullity in densities:
        assert float(density.cdf(0.0).value) == pytest.approx(nullity / 8, abs=1e-12)
        assert float(density.count(-1.0, 0.0).value) == pytest.approx(nullity, abs=1e-11)
        assert Status(int(density.status)) == Status.INVARIANT_SUBSPACE
        est = density.expectation(torch.log)
        assert float(est.value) == -math.inf
        assert Status(int(est.status)) & Status.SINGULAR


def test_golub_kahan_is_lanczos_on_the_gram_matrix():
    J, X = factor(geometric(20, 10.0), 25), signs(20, 4)
    gram, found = slq_density(J.mT @ J, X, num_steps=7), golub_kahan_density(J, X, num_steps=7)
    roots = golub_kahan_density(J, X, num_steps=7, singular_values=True)
    assert found.nodes.numpy() == pytest.approx(gram.nodes.numpy(), rel=1e-10)
    assert found.weights.numpy() == pytest.approx(gram.weights.numpy(), rel=1e-9)
    assert roots.nodes.square().numpy() == pytest.approx(found.nodes.numpy(), rel=1e-12)


def test_float32_resolves_small_singular_values_on_the_factor_only():
    sigma = geometric(32, 1e5)
    J, X = factor(sigma, 40).to(f32), hadamard(32).to(f32)
    exact = torch.linalg.svdvals(J.double()) ** 2
    limit = float((exact[-5] * exact[-6]).sqrt())
    on_factor = golub_kahan_density(J, X, num_steps=32)
    on_gram = slq_density(J.mT @ J, X, num_steps=32)
    assert float(on_factor.count(0.0, limit).value) == pytest.approx(5, abs=0.01)
    assert float(on_factor.quantile(0.5 / 32)) == pytest.approx(float(exact[-1]), rel=0.1)
    assert float(on_gram.count(0.0, limit).value) < 1  # all of them are lost in rounding: zero
    assert float(on_gram.cdf(0.0).value) > 5 / 32


# Quantiles, densities, masses ---------------------------------------------------------------------


def test_broadened_density_is_the_derivative_of_the_smoothed_cdf():
    A, X = case()
    density = slq_density(A, X, num_steps=5)
    x = torch.linspace(-0.5, 1.5, 2001, dtype=f64)
    est = density.density(x, width=0.05)
    nodes, weights = density.atoms()
    smooth = [
        float(scipy.stats.norm.pdf(t, nodes.numpy(), 0.05) @ weights.numpy()) for t in (0, 0.3)
    ]
    assert [float(est.value[i]) for i in (500, 800)] == pytest.approx(smooth)
    assert float(torch.trapezoid(est.value, x)) == pytest.approx(1, abs=1e-6)
    assert est.samples.shape == (2001, 5)
    for width in (None, 0.0, math.inf):
        with pytest.raises(ValueError, match="width"):
            density.density(x, width=width)


def test_a_node_without_weight_counts_for_nothing():
    nodes, weights = torch.tensor([[[1.0, 2, 3, 4]], [[0, 0.5, 0.5, 0]]], dtype=f64)
    density = DiscreteDensity(4, 4, torch.zeros(1, dtype=torch.int64), nodes, weights)
    shares = torch.tensor([0, 0.25, 0.5, 0.75, 1])
    assert density.quantile(shares).tolist() == [2, 2, 2, 3, 3]
    est = density.expectation(lambda x: (x - 1).log())  # −∞ at the first node
    assert float(est.value) == pytest.approx(math.log(2) / 2)
    assert int(est.status) == 0


def test_mass_of_gaussian_probes_is_divided_out():
    A, X = case()[0], normal(30, 4)
    density = slq_density(A, X, num_steps=5)
    lengths = X.square().sum(0)
    assert density.mass().samples.numpy() == pytest.approx((lengths / 30).numpy())
    onto = slq_density(A, X * (30 / lengths).sqrt(), num_steps=5)
    assert density.normalized().weights.numpy() == pytest.approx(onto.weights.numpy())
    assert float(density.normalized().mass().value) == pytest.approx(1)
    assert float(density.quantile(1.0)) == float(density.nodes.max())


@given(st.floats(0.01, 100), st.integers(1, 6))
def test_scaling_moves_the_nodes_only(scale, num_steps):
    A, X = case(n=8, m=3)
    one, other = (slq_density(c * A, X, num_steps=num_steps) for c in (1, scale))
    assert other.nodes.numpy() == pytest.approx(scale * one.nodes.numpy(), rel=1e-9)
    assert other.weights.numpy() == pytest.approx(one.weights.numpy(), rel=1e-7)


def test_order_and_signs_of_probes_do_not_matter():
    A, X = case()
    one = slq_density(A, X, num_steps=6).cdf(0.3)
    other = slq_density(A, -X[:, torch.tensor([4, 1, 0, 3, 2])], num_steps=6).cdf(0.3)
    assert float(one.value) == pytest.approx(float(other.value), rel=1e-12)
    assert float(one.standard_error) == pytest.approx(float(other.standard_error))


@pytest.mark.parametrize("estimate", [slq_density, golub_kahan_density])
def test_batch_equals_single_calls(estimate):
    A = torch.stack([case(seed=s)[0] for s in range(6)]).view(2, 3, 30, 30)
    X = signs(3, 30, 4, seed=5)
    batch = estimate(A, X, num_steps=5)
    x = torch.tensor([0.1, 0.5], dtype=f64)
    assert batch.status.shape == batch.ok.shape == (2, 3)
    assert batch.cdf(0.5).value.shape == batch.quantile(0.5).shape == (2, 3)
    assert batch.quantile(x).shape == batch.count(0.0, x).value.shape == (2, 3, 2)
    assert batch.num_matvecs == 20
    for i in range(2):
        for j in range(3):
            single = estimate(A[i, j], X[j], num_steps=5)
            for f in (lambda d: d.cdf(x).value, lambda d: d.density(x, width=0.1).value):
                assert f(batch)[i, j].numpy() == pytest.approx(f(single).numpy(), rel=1e-9)
            assert float(batch.quantile(0.3)[i, j]) == pytest.approx(float(single.quantile(0.3)))


# What fails ---------------------------------------------------------------------------------------


def test_nan_in_one_item_is_a_status_and_leaves_the_other():
    A = torch.stack([case()[0]] * 2)
    A[1, 0, 0] = torch.nan
    X = signs(30, 3)
    for density in (slq_density(A, X, num_steps=4), golub_kahan_density(A, X, num_steps=4)):
        assert density.ok.tolist() == [True, False]
        assert Status(int(density.status[1])) & Status.NONFINITE
        x = torch.tensor([0.5, 9.0], dtype=f64)
        for value in (
            density.cdf(x).value,
            density.count(x - 1, x).value,
            density.density(x, width=1.0).value,
            density.quantile(torch.tensor([0.0, 1.0])),
            density.cdf_bounds(x)[0].mean(-1),
            density.expectation(torch.exp).value.unsqueeze(-1),
        ):
            assert bool(torch.isfinite(value[0]).all())
            assert bool(torch.isnan(value[1]).all())
        with pytest.raises(EstimationError, match="1 of 2"):
            density.raise_for_status()
        assert slq_density(A[0], X, num_steps=4).raise_for_status().n == 30


def test_asymmetry_is_a_status():
    A = case()[0] + 0.1 * normal(30, 30)
    density = slq_density(A, signs(30, 3), num_steps=8)
    assert Status(int(density.status)) & Status.NONSYMMETRIC
    assert math.isnan(float(density.cdf(0.5).value))


def test_log_of_an_indefinite_matrix_is_no_number():
    density = slq_density(torch.diag(torch.linspace(-1, 2, 8, dtype=f64)), hadamard(8), num_steps=8)
    est = density.expectation(torch.log)
    assert math.isnan(float(est.value))
    assert Status(int(est.status)) & Status.NEGATIVE_RITZ
    assert float(density.expectation(torch.square).value) == pytest.approx(
        float(torch.linspace(-1, 2, 8).square().mean())
    )


@pytest.mark.parametrize("estimate", [slq_density, golub_kahan_density])
def test_zero_matrix_is_a_jump_at_zero(estimate):
    density = estimate(torch.zeros(8, 8, dtype=f64), signs(8, 3), num_steps=3)
    assert density.cdf(torch.tensor([-1e-9, 0.0])).value.tolist() == pytest.approx([0, 1])
    assert density.quantile(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 0, 0]


def test_bad_input_is_refused():
    A, X = case()
    density = slq_density(A, X, num_steps=3)
    with pytest.raises(ValueError, match="num_steps"):
        slq_density(A, X, num_steps=31)
    with pytest.raises(ValueError, match="num_steps"):
        golub_kahan_density(A, X, num_steps=0)
    with pytest.raises(TypeError, match="convert one"):
        slq_density(A, X.float(), num_steps=3)
    with pytest.raises(ValueError, match="square"):
        slq_density(A[:5], X, num_steps=3)
    with pytest.raises(ValueError, match="At least one probe"):
        golub_kahan_density(A, X[:, :0], num_steps=3)
    with pytest.raises(TypeError, match="adjoint"):
        golub_kahan_density(NoAdjoint(A), X, num_steps=3)
    with pytest.raises(ValueError, match="NaN"):
        density.cdf(math.nan)
    with pytest.raises(ValueError, match="a ≤ b"):
        density.count(1.0, 0.0)
    for q in (-0.1, 1.1):
        with pytest.raises(ValueError, match="0 ≤ q ≤ 1"):
            density.quantile(q)
    batch = slq_density(A, torch.stack([X, X]), num_steps=3)
    with pytest.raises(ValueError, match="batch"):
        batch.cdf(torch.zeros(3, 4))


class NoAdjoint:
    def __init__(self, A):
        self.shape, self.dtype, self.device = A.shape, A.dtype, A.device

    def __matmul__(self, X):
        return X
