"""Sensitivities against naive double loops over divided differences, and the laws they obey."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Chebyshev

from specbp import polynomials, sensitivities
from specbp.krylov import golub_kahan, lanczos
from specbp.operators import Dense
from tests.support import f32, f64, factor, geometric, normal, signs, spd

NEGLECTED = 1e-8  # of G: what compressing leaves out, and rounding


def log_difference(x: float, y: float) -> float:
    return 1 / x if x == y else (math.log(x) - math.log(y)) / (x - y)


def naive(nodes, vectors, x, difference):
    """Σ_ab f[λ_a, λ_b] (x·v_a) (x·v_b) v_a v_bᵀ, pair by pair."""
    G = np.zeros((len(x), len(x)))
    for a, u in zip(nodes, vectors.T, strict=True):
        for b, v in zip(nodes, vectors.T, strict=True):
            G += difference(a, b) * (x @ u) * (x @ v) * np.outer(u, v)
    return G


def naive_in_krylov_space(A, x, k):
    """The same in the space of x, A x, …, from QR of Chebyshev vectors in extended precision."""
    lam, V = np.linalg.eigh(A)
    t = (2 * lam - lam.max() - lam.min()) / (lam.max() - lam.min())
    columns = [np.cos(j * np.arccos(np.clip(t, -1, 1))) * (V.T @ x) for j in range(k)]
    Q = orthonormalised(np.array(columns, dtype=np.longdouble))
    H = np.array([[float((p * lam * q).sum()) for q in Q] for p in Q])
    nodes, S = np.linalg.eigh(H)
    return naive(nodes, V @ Q.T.astype(float) @ S, x, log_difference)


def orthonormalised(rows):
    found = []
    for row in rows:
        for q in found * 2:
            row = row - (q @ row) * q
        found.append(row / np.sqrt(row @ row))
    return np.array(found)


def close(found, expected, tolerance=NEGLECTED):
    size = np.abs(expected).max()
    assert np.abs(np.asarray(found) - expected).max() <= tolerance * size


# Quadratures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_frechet_is_the_double_loop_in_the_krylov_space(k):
    A, x = spd(geometric(9, 100.0)), normal(9, seed=1)
    G = sensitivities.frechet(lanczos(A, x[None], k)).dense()[0]
    close(G, naive_in_krylov_space(A.numpy(), x.numpy(), k))


def test_frechet_of_a_factor_is_that_of_its_gram_matrix():
    J, x = factor(geometric(7, 30.0), 11), normal(2, 7, seed=2)
    for k in (3, 7):
        G = sensitivities.frechet(golub_kahan(J, x, k)).dense()
        close(G, sensitivities.frechet(lanczos(J.mT @ J, x, k)).dense().numpy())


def test_frechet_is_exact_after_n_steps():
    A, x = spd(geometric(8, 1e3)), signs(8, seed=3)
    lam, V = np.linalg.eigh(A.numpy())
    G = sensitivities.frechet(lanczos(A, x[None], 8)).dense()[0]
    close(G, naive(lam, V, x.numpy(), log_difference))


@pytest.mark.parametrize("k", [3, 6])
def test_a_closed_space_and_repeated_eigenvalues(k):
    """Two distinct eigenvalues: the space closes after two steps, and its filler has no weight."""
    A, x = spd(torch.tensor([2.0, 2, 2, 0.5, 0.5, 0.5], dtype=f64)), normal(6, seed=4)
    lam, V = np.linalg.eigh(A.numpy())
    rounded = np.where(lam > 1, 2.0, 0.5)
    G = sensitivities.frechet(lanczos(A, x[None], k)).dense()[0]
    close(G, naive(rounded, V, x.numpy(), log_difference))


def test_a_multiple_of_the_identity():
    G = sensitivities.frechet(lanczos(3.0 * torch.eye(4, dtype=f64), signs(1, 4), 4)).dense()[0]
    close(G, np.outer(signs(4), signs(4)) / 3)


@pytest.mark.parametrize("k", [2, 4, 8])
@given(c=st.floats(1e-6, 1e6))
def test_scaling_the_matrix_divides_the_sensitivity(k, c):
    A, x = spd(geometric(8, 50.0)), signs(8, seed=5)[None]
    G, scaled = (sensitivities.frechet(lanczos(B, x, k)).dense() for B in (A, c * A))
    close(c * scaled, G.numpy())


@pytest.mark.parametrize("k", [1, 4, 8])
def test_along_the_matrix_the_derivative_is_the_squared_length(k):
    """tr G A = |x|² after any number of steps: log det (1 + θ) A grows by n log(1 + θ)."""
    A, x = spd(geometric(8, 1e4)), normal(3, 8, seed=6)
    G = sensitivities.frechet(lanczos(A, x, k)).dense()
    torch.testing.assert_close((G @ A).diagonal(dim1=-2, dim2=-1).sum(-1), x.square().sum(-1))


def test_a_failed_process_gives_nan_for_its_probe_alone():
    T = lanczos(spd(geometric(6, 10.0)), normal(2, 6, seed=7), 4)
    T.diagonal[1, 2] = torch.nan
    G = sensitivities.frechet(T).dense()
    assert bool(torch.isfinite(G[0]).all())
    assert bool(torch.isnan(G[1]).all())


def test_batches_and_replicates_equal_loops():
    A = torch.stack([spd(geometric(6, c), s) for s, c in enumerate((10.0, 40.0))])
    rows = normal(3, 2, 4, 6, seed=8)
    whole = sensitivities.frechet(lanczos(A, rows, 3)).dense()
    for r in range(3):
        for b in range(2):
            close(whole[r, b], sensitivities.frechet(lanczos(A[b], rows[r, b], 3)).dense().numpy())


def test_single_precision_keeps_its_digits():
    A, rows = spd(geometric(12, 50.0)), signs(2, 12, seed=9)
    double, single = (sensitivities.frechet(lanczos(A.to(d), rows.to(d), 8)) for d in (f64, f32))
    assert single.vectors.dtype == f32
    assert single.weights.dtype == f64
    close(single.dense(), double.dense().numpy(), 1e-3)


@given(st.floats(1e-150, 1e150), st.floats(0, 40))
def test_log_differences_lose_no_digits(small, decades):
    for ratio in (1 + 10.0**-decades, 10.0**decades):
        large = small * ratio
        found = sensitivities.log_differences(torch.tensor([small, large], dtype=f64))
        x, y = mpmath.mpf(large), mpmath.mpf(small)
        with mpmath.workdps(80):
            exact = 1 / x if x == y else (mpmath.log(x) - mpmath.log(y)) / (x - y)
        assert float(found[0, 1]) == pytest.approx(float(exact), rel=1e-14)
        assert float(found[0, 0]) == 1 / small


# Polynomials --------------------------------------------------------------------------------------


def numerical(p, slope):
    """Divided differences of a polynomial, by quotients of its values."""

    def difference(x, y):
        return slope(x) if abs(x - y) < 1e-6 else (p(x) - p(y)) / (x - y)

    return difference


@pytest.mark.parametrize("degree", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("known", [1, 2, 5])
def test_chebyshev_is_the_double_loop_over_divided_differences(degree, known):
    """Also where there are fewer dimensions than vectors, and whatever vectors are known."""
    A, rows, c = spd(geometric(6, 20.0)), normal(2, 6, seed=10), normal(1, degree + 1, seed=11)
    a, b = (torch.tensor(end, dtype=f64) for end in (0.04, 1.1))
    M = (2 * A - (a + b) * torch.eye(6, dtype=f64)) / (b - a)
    vectors = [rows, rows @ M]
    while len(vectors) < known:
        vectors.append(2 * vectors[-1] @ M - vectors[-2])
    G = sensitivities.chebyshev(Dense(A), vectors[:known], c, a, b).dense()
    p = Chebyshev(c[0].numpy(), domain=[0.04, 1.1])
    lam, V = np.linalg.eigh(A.numpy())
    for found, x in zip(G, rows, strict=True):
        close(found, naive(lam, V, x.numpy(), numerical(p, p.deriv())))


@pytest.mark.parametrize("degree", [1, 2, 5, 12])
def test_taylor_is_the_double_loop_over_divided_differences(degree):
    A, rows = spd(geometric(6, 20.0)), normal(2, 6, seed=12)
    alpha = torch.tensor(1.2, dtype=f64)
    c = polynomials.taylor_coefficients(degree, alpha).unsqueeze(-2)
    G = sensitivities.taylor(Dense(A), [rows], c, alpha).dense()
    p = np.polynomial.Polynomial(c[0].numpy())
    lam, V = np.linalg.eigh(A.numpy())
    difference = numerical(lambda x: p(1 - x / 1.2), lambda x: -p.deriv()(1 - x / 1.2) / 1.2)
    for found, x in zip(G, rows, strict=True):
        close(found, naive(lam, V, x.numpy(), difference))


def test_coefficients_of_every_probe_are_its_own():
    A, rows, c = spd(geometric(6, 20.0)), normal(3, 6, seed=13), normal(3, 8, seed=14)
    a, b = (torch.tensor(end, dtype=f64) for end in (0.04, 1.1))
    whole = sensitivities.chebyshev(Dense(A), [rows], c, a, b).dense()
    for i in range(3):
        one = sensitivities.chebyshev(Dense(A), [rows[i : i + 1]], c[i : i + 1], a, b).dense()
        close(whole[i], one[0].numpy())


@given(c=st.floats(1e-3, 1e3))
def test_scaling_matrix_and_interval_divides_the_sensitivity_of_a_polynomial(c):
    A, rows = spd(geometric(6, 20.0)), signs(1, 6)
    a, b = (torch.tensor(end, dtype=f64) for end in (0.04, 1.1))
    coefficients = normal(1, 9, seed=15)
    G = sensitivities.chebyshev(Dense(A), [rows], coefficients, a, b).dense()
    scaled = sensitivities.chebyshev(Dense(c * A), [rows], coefficients, c * a, c * b).dense()
    close(c * scaled, G.numpy())


def test_vectors_that_are_not_finite_give_nan_for_their_probe_alone():
    A, rows = spd(geometric(6, 20.0)), normal(2, 6, seed=16)
    rows[0, 0] = torch.inf
    a, b = (torch.tensor(end, dtype=f64) for end in (0.04, 1.1))
    G = sensitivities.chebyshev(Dense(A), [rows], normal(1, 5), a, b)
    assert bool(torch.isnan(G.weights[0]).all())
    assert bool(torch.isfinite(G.dense()[1]).all())
