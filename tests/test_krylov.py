"""Lanczos and Golub–Kahan: against textbook loops, and by the identities that define them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from specbp.krylov import golub_kahan, lanczos
from specbp.operators import CountingOperator
from tests.support import (
    EPS,
    f32,
    f64,
    factor,
    geometric,
    naive_lanczos,
    normal,
    orthonormal,
    signs,
    spd,
)

DTYPES = [f32, f64]


def naive_golub_kahan(J, x, k):
    """One probe, two Gram–Schmidt sweeps on either side."""

    def clean(w, basis):
        for _ in range(2):
            for p in basis:
                w = w - (p @ w) * p
        return w, np.linalg.norm(w)

    v, V, U, alphas, betas = x / np.linalg.norm(x), [], [], [], []
    for _ in range(k):
        V.append(v)
        w, alpha = clean(J @ v, U)
        U.append(w / alpha)
        w, beta = clean(J.T @ U[-1], V)
        v = w / beta
        alphas.append(alpha)
        betas.append(beta)
    return np.array(alphas), np.array(betas), np.array(V)


def basis_of(T):
    """Basis rows of each probe, (..., m, k, n) in float64, and which came before a closure."""
    before = (T.off_diagonal[..., :-1] == 0).cumsum(-1) == 0
    live = torch.cat([torch.ones_like(before[..., :1]), before], -1)
    return T.basis.movedim(0, -2).double() * live.unsqueeze(-1), live.double().unsqueeze(-1)


def tridiagonal(T):
    off = T.off_diagonal[..., :-1]
    return (
        torch.diag_embed(T.diagonal) + torch.diag_embed(off, offset=1) + torch.diag_embed(off, -1)
    )


def bidiagonal(B):
    return torch.diag_embed(B.diagonal) + torch.diag_embed(B.off_diagonal[..., :-1], offset=1)


def rows_of(n, m, seed=3, dtype=f64):
    return signs(m, n, seed=seed, dtype=dtype)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_lanczos_equals_textbook(k):
    A, rows = spd(geometric(12, 50.0)), rows_of(12, 3)
    T = lanczos(A, rows, k)
    for i, x in enumerate(rows.numpy()):
        alphas, betas, Q = naive_lanczos(A.numpy(), x, k)
        # The coefficients of 7 steps amplify rounding; positive β fix every sign.
        np.testing.assert_allclose(T.diagonal[i], alphas, atol=1e-11)
        np.testing.assert_allclose(T.off_diagonal[i], betas, atol=1e-11)
        np.testing.assert_allclose(T.basis[:, i], Q, atol=1e-9)
    torch.testing.assert_close(T.norm_squared, torch.full((3,), 12.0, dtype=f64))
    assert not bool(T.closed.any())


@pytest.mark.parametrize("k", [1, 2, 7])
def test_golub_kahan_equals_textbook(k):
    J, rows = factor(geometric(12, 7.0), 20), rows_of(12, 3)
    B = golub_kahan(J, rows, k)
    for i, x in enumerate(rows.numpy()):
        alphas, betas, V = naive_golub_kahan(J.numpy(), x, k)
        np.testing.assert_allclose(B.diagonal[i], alphas, atol=1e-11)
        np.testing.assert_allclose(B.off_diagonal[i], betas, atol=1e-11)
        np.testing.assert_allclose(B.basis[:, i], V, atol=1e-9)
    torch.testing.assert_close(B.norm_squared, torch.full((3,), 12.0, dtype=f64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cond", [1e1, 1e4, 1e8])
@pytest.mark.parametrize("k", [5, 40])
def test_lanczos_basis_is_orthonormal_and_projects_to_tridiagonal(dtype, cond, k):
    n = 40
    A = spd(geometric(n, cond)).to(dtype)
    T = lanczos(A, rows_of(n, 2, dtype=dtype), k)
    (Q, live), rounding = basis_of(T), 50 * n * EPS[dtype]
    gram, identity = Q @ Q.mT, torch.eye(k, dtype=f64) * live
    assert float((gram - identity).abs().max()) <= rounding
    projected = Q @ A.double() @ Q.mT
    gap = (projected - tridiagonal(T)) * live * live.mT
    assert float(gap.abs().max()) <= rounding  # |A| = 1
    assert float(T.asymmetry.max()) <= rounding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cond", [1e1, 1e4])
@pytest.mark.parametrize("k", [5, 24])
def test_golub_kahan_bases_are_orthonormal_and_project_to_bidiagonal(dtype, cond, k):
    n, N = 24, 40
    J = factor(geometric(n, cond), N).to(dtype)
    B = golub_kahan(J, rows_of(n, 2, dtype=dtype), k)
    (V, live), rounding = basis_of(B), 50 * N * EPS[dtype]
    assert float((V @ V.mT - torch.eye(k, dtype=f64) * live).abs().max()) <= rounding
    # J V = U B with orthonormal U means (J V)ᵀ(J V) = BᵀB.
    image = J.double() @ V.mT
    gap = (image.mT @ image - bidiagonal(B).mT @ bidiagonal(B)) * live * live.mT
    assert float(gap.abs().max()) <= rounding


def test_golub_kahan_is_lanczos_on_the_gram_matrix():
    J, rows = factor(geometric(10, 5.0), 15), rows_of(10, 4)
    B, T = golub_kahan(J, rows, 6), lanczos(J.mT @ J, rows, 6)
    dense = bidiagonal(B)
    torch.testing.assert_close(dense.mT @ dense, tridiagonal(T), rtol=0, atol=1e-11)
    torch.testing.assert_close(
        B.diagonal[:, -1] * B.off_diagonal[:, -1], T.off_diagonal[:, -1], rtol=0, atol=1e-11
    )


def test_products_spent():
    A = CountingOperator(spd(geometric(9, 10.0)))
    lanczos(A, rows_of(9, 2), 4)
    assert A.num_matvecs == 4 * 2
    J = CountingOperator(factor(geometric(9, 10.0), 11))
    golub_kahan(J, rows_of(9, 2), 4)
    assert (J.num_matvecs, J.mT.num_matvecs, J.num_gram_matvecs) == (8, 8, 8)


@pytest.mark.parametrize("run", [lanczos, golub_kahan])
def test_batch_equals_loop(run):
    matrices = torch.stack([spd(geometric(8, c), seed) for c, seed in ((3.0, 1), (30.0, 2))])
    rows = signs(5, 2, 3, 8)
    whole = run(matrices, rows, 6)
    for r in range(5):
        for b in range(2):
            one = run(matrices[b], rows[r, b], 6)
            for name in ("diagonal", "off_diagonal", "norm_squared", "closed"):
                left, right = getattr(whole, name)[r, b], getattr(one, name)
                torch.testing.assert_close(left, right, rtol=0, atol=1e-10, msg=name)
            torch.testing.assert_close(whole.basis[:, r, b], one.basis, rtol=0, atol=1e-9)


@pytest.mark.parametrize("run", [lanczos, golub_kahan])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [6, 40, 200])
def test_few_distinct_eigenvalues_close_the_space(run, dtype, n):
    """Three exactly repeated eigenvalues: β₃ is rounding, and counts as zero."""
    values = torch.tensor([1.0, 0.4, 0.1], dtype=dtype).repeat(n)[:n]
    T = run(torch.diag(values), rows_of(n, 8, dtype=dtype), 6)
    assert bool(T.closed.all())
    assert bool((T.off_diagonal[:, :2] > 0).all())
    assert bool((T.off_diagonal[:, 2:] == 0).all())
    assert bool((T.diagonal > 0).all())  # filler that no log can choke on


@pytest.mark.parametrize("n", [1, 2, 3, 50])
@pytest.mark.parametrize("dtype", DTYPES)
def test_multiple_of_identity_closes_at_once(n, dtype):
    rows = normal(20, n, dtype=dtype)
    k = min(n, 4)
    T = lanczos(1.7 * torch.eye(n, dtype=dtype), rows, k)
    assert bool((T.off_diagonal == 0).all())
    assert T.closed.tolist() == [k > 1] * 20
    B = golub_kahan(1.7 * torch.eye(n, dtype=dtype), rows, k)
    assert bool((B.off_diagonal == 0).all())


def test_space_that_closes_at_the_last_step_is_not_called_early():
    T = lanczos(spd(geometric(4, 10.0)), rows_of(4, 2), 4)
    assert not bool(T.closed.any())


def test_zero_matrix():
    T = lanczos(torch.zeros(4, 4, dtype=f64), rows_of(4, 2), 3)
    assert float(T.diagonal.abs().max()) == float(T.off_diagonal.abs().max()) == 0
    assert bool(T.closed.all())
    B = golub_kahan(torch.zeros(5, 4, dtype=f64), rows_of(4, 2), 3)
    assert float(B.diagonal.abs().max()) == float(B.off_diagonal.abs().max()) == 0
    assert bool(B.closed.all())


class Spoiling:
    """A symmetric operator whose product with column 1 contains `bad` at one call."""

    def __init__(self, matrix, bad, call):
        self.matrix, self.bad, self.call, self.calls = matrix, bad, call, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    mT = property(lambda self: self)

    def __matmul__(self, X):
        Y = (self.matrix @ X).clone()
        if self.calls == self.call:
            Y[..., 0, 1] = self.bad
        self.calls += 1
        return Y


@pytest.mark.parametrize("run", [lanczos, golub_kahan])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("call", [0, 3])
def test_bad_product_spoils_its_own_probe_and_never_looks_like_closure(run, bad, call):
    A, rows = spd(geometric(8, 10.0)), rows_of(8, 3)
    good, spoiled = run(A, rows, 5), run(Spoiling(A, bad, call), rows, 5)
    entries = torch.cat([spoiled.diagonal, spoiled.off_diagonal], -1)
    assert not bool(torch.isfinite(entries[1]).all())
    assert not bool(spoiled.closed[1])
    for i in (0, 2):
        torch.testing.assert_close(spoiled.diagonal[i], good.diagonal[i], rtol=0, atol=0)


@pytest.mark.parametrize("k", [2, 6])
def test_asymmetry_is_measured(k):
    n, skew = 12, 1e-3
    S = normal(n, n, seed=5)
    S = skew * (S - S.mT) / torch.linalg.matrix_norm(S - S.mT, 2)
    T = lanczos(spd(geometric(n, 10.0)) + S, rows_of(n, 20), k)
    # Some |q_iᵀ (A − Aᵀ) q_j| ≤ 2 skew is seen: the typical one is skew / √n.
    assert float(T.asymmetry.max()) <= 2.1 * skew
    assert float(T.asymmetry.min()) >= 1e-2 * skew / n**0.5


def test_negative_multiple_of_identity_is_symmetric():
    T = lanczos(-3.7 * orthonormal(8, 8) @ orthonormal(8, 8).mT, rows_of(8, 4), 3)
    assert float(T.asymmetry.max()) <= 50 * 8 * EPS[f64]


@pytest.mark.parametrize("run", [lanczos, golub_kahan])
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_float32_coefficients_scale_with_the_matrix(run, scale):
    A, rows = spd(geometric(8, 100.0)).float(), rows_of(8, 4, dtype=f32)
    plain, scaled = run(A, rows, 5), run(scale * A, rows, 5)
    bound = 200 * 8 * EPS[f32]
    assert float((scaled.diagonal / scale - plain.diagonal).abs().max()) <= bound
    assert bool((scaled.closed == plain.closed).all())


@pytest.mark.parametrize("run", [lanczos, golub_kahan])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_overflow_and_underflow_never_look_like_closure(run, scale):
    A, rows = spd(geometric(8, 100.0)).float(), rows_of(8, 4, dtype=f32)
    scaled = run(scale * A, rows, 5)
    finite = torch.isfinite(scaled.diagonal).all(-1) & torch.isfinite(scaled.off_diagonal).all(-1)
    assert not bool((scaled.closed & finite).any())


def test_many_rows_do_not_close_a_space():
    """Rounding is relative to √n |J|; √N |J| would bury a singular value of 2e-5 in float32."""
    sigma = torch.tensor([1.0, 1.0, 1.0, 2e-5], dtype=f64)
    B = golub_kahan((orthonormal(65536, 4) * sigma).to(f32), rows_of(4, 3, dtype=f32), 2)
    found = torch.linalg.svdvals(bidiagonal(B))[:, -1]
    assert float((found / 2e-5 - 1).abs().max()) <= 4 * EPS[f32] / 2e-5


@pytest.mark.parametrize("k", [4, 5, 8])
def test_asymmetry_beyond_the_neighbours_is_measured(k):
    """From e₁ the basis is e₁, e₂ …: only step 3 meets the crooked entry q₁ᵀAq₃ = 0.4."""
    A = torch.diag(torch.full((8,), 2.0, dtype=f64))
    A = A + 0.5 * (torch.eye(8, dtype=f64).roll(1, 0) + torch.eye(8, dtype=f64).roll(-1, 0))
    A[0, -1] = A[-1, 0] = 0
    A[0, 2] = 0.4
    assert float(lanczos(A, torch.eye(8, dtype=f64)[:1], k).asymmetry) >= 0.1
