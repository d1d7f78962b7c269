"""Conjugate gradients against direct solves, textbook CG and Galerkin projections; its failures."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbp.estimate import Status
from specbp.krylov import lanczos
from specbp.operators import CountingOperator
from specbp.solvers import block_cg, cg
from tests.support import EPS, f32, f64, geometric, normal, spd

BOTH = pytest.mark.parametrize("solve", [block_cg, cg])
TINY = 1e-15  # a tolerance out of reach: all of max_steps are taken


def statuses(found):
    return [Status(int(s)) for s in found.status.flatten()]


def textbook_cg(A, b, num_steps):
    """Hestenes and Stiefel, one right side, with the α and β of each step."""
    x, r = torch.zeros_like(b), b.clone()
    p, alphas, betas = r.clone(), [], []
    for _ in range(num_steps):
        alphas.append(float(r @ r / (p @ A @ p)))
        x, new = x + alphas[-1] * p, r - alphas[-1] * (A @ p)
        betas.append(float(new @ new / (r @ r)))
        r, p = new, new + betas[-1] * p
    return x, alphas, betas


def galerkin(A, B, num_steps):
    """Minimiser of the A-norm of the error over the block Krylov space, by explicit projection."""
    basis, block = torch.zeros(len(A), 0, dtype=f64), B.mT
    for _ in range(num_steps):
        basis = torch.linalg.qr(torch.cat([basis, block], 1))[0]
        block = A @ basis[:, -len(B) :]
    return (basis @ torch.linalg.solve(basis.mT @ A @ basis, basis.mT @ B.mT)).mT


def true_residual(A, B, X):
    """Relative residuals in float64."""
    left = B.double() - X.double() @ A.double().mT
    return left.norm(dim=-1) / B.double().norm(dim=-1)


# Against other ways to the same numbers -----------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 2, 5, 9])
def test_cg_is_the_textbook_iteration(num_steps):
    A, B = spd(geometric(20, 100)), normal(3, 20, seed=1)
    found = cg(A, B, rtol=TINY, max_steps=num_steps)
    for x, b in zip(found.X, B, strict=True):
        torch.testing.assert_close(x, textbook_cg(A, b, num_steps)[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("m", [1, 2, 4])
def test_block_iterate_is_the_galerkin_solution_of_its_space(num_steps, m):
    A, B = spd(geometric(24, 100)), normal(m, 24, seed=1)
    found = block_cg(A, B, rtol=TINY, max_steps=num_steps)
    torch.testing.assert_close(found.X, galerkin(A, B, num_steps), rtol=1e-9, atol=1e-10)


@BOTH
@pytest.mark.parametrize("cond", [1, 1e2, 1e4, 1e6, 1e8])
def test_solution_is_that_of_a_direct_solve(solve, cond):
    A, B = spd(geometric(16, cond)), normal(4, 16, seed=1)
    rtol = max(1e-10, 1e-14 * cond)
    found = solve(A, B, rtol=rtol, max_steps=2000)
    exact = torch.linalg.solve(A, B.mT).mT
    error = (found.X - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert statuses(found) == [Status.OK] * 4
    assert float(error.max()) <= cond * rtol  # |x − x*| / |x*| ≤ κ |r| / |b|


@BOTH
@pytest.mark.parametrize("cond", [1, 10, 1e3])
def test_float32_reaches_what_float32_can(solve, cond):
    A, B = spd(geometric(40, cond)).to(f32), normal(3, 40, seed=1, dtype=f32)
    rtol = 20 * cond * EPS[f32]
    found = solve(A, B, rtol=rtol)
    exact = torch.linalg.solve(A.double(), B.double().mT).mT
    error = (found.X.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert found.X.dtype == f32
    assert found.residual.dtype == f64
    assert bool(found.converged.all())
    assert float(error.max()) <= 2 * cond * rtol


# Cost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 5, 7, 24, 30])
def test_block_ends_after_the_steps_that_fill_the_space(m):
    n = 24
    A, B = spd(1 + torch.linspace(0, 1, n, dtype=f64)), normal(m, n, seed=1)
    found = block_cg(A, B, rtol=1e-12, max_steps=-(-n // m))
    assert bool(found.converged.all())
    assert int(found.num_steps.max()) <= -(-n // m)


def test_block_needs_fewer_products_than_separate_spaces_on_outliers():
    """Four small eigenvalues: a block of four resolves them at once, each vector one by one."""
    eigenvalues = torch.cat([torch.linspace(1, 2, 56, dtype=f64), 10.0 ** -torch.arange(2, 6)])
    A, B = spd(eigenvalues), normal(8, 60, seed=1)
    counted = {solve: CountingOperator(A) for solve in (block_cg, cg)}
    for solve, operator in counted.items():
        assert bool(solve(operator, B, rtol=1e-8).converged.all())
    assert counted[block_cg].num_matvecs < 0.75 * counted[cg].num_matvecs


@pytest.mark.parametrize("clusters", [1, 2, 4])
def test_steps_are_the_distinct_eigenvalues(clusters):
    values = torch.linspace(1, 3, clusters, dtype=f64).repeat_interleave(24 // clusters)
    for solve in (block_cg, cg):
        found = solve(spd(values), normal(3, 24, seed=1), rtol=1e-10)
        assert found.num_steps.tolist() == [clusters] * 3


def test_products_are_those_of_the_steps_and_of_the_residual():
    A, B = spd(geometric(30, 30)), normal(4, 30, seed=1)
    B[1] = torch.linalg.eigh(A)[1][:, 0]  # its space ends after one step, and costs nothing more
    counted = CountingOperator(A)
    steps = cg(counted, B, rtol=1e-6).num_steps
    assert counted.num_matvecs == int(steps.sum()) + 4
    assert steps[1] == 1 < steps[0]
    counted = CountingOperator(A)
    steps = block_cg(counted, B, rtol=1e-6).num_steps
    assert counted.num_matvecs == 4 * int(steps[0]) + 4


# Laws ---------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("dtype", [f32, f64])
@given(a=st.integers(-30, 30), b=st.integers(-30, 30))
def test_powers_of_two_pass_through_exactly(solve, dtype, a, b):
    A, B = spd(geometric(10, 10)).to(dtype), normal(3, 10, seed=1, dtype=dtype)
    first, scaled = solve(A, B, rtol=1e-4), solve(A * 2.0**a, B * 2.0**b, rtol=1e-4)
    assert torch.equal(scaled.X, first.X * 2.0 ** (b - a))
    assert torch.equal(scaled.num_steps, first.num_steps)
    assert torch.equal(scaled.residual, first.residual)


@given(seed=st.integers(0, 1000), num_steps=st.integers(1, 4))
def test_block_solution_is_linear_in_its_right_sides_at_any_step(seed, num_steps):
    A, B, W = spd(geometric(20, 20), seed), normal(3, 20, seed=seed), normal(3, 3, seed=seed + 1)
    W = W + 3 * torch.eye(3, dtype=f64)
    mixed, plain = (block_cg(A, C, rtol=TINY, max_steps=num_steps).X for C in (W @ B, B))
    torch.testing.assert_close(mixed, W @ plain, rtol=1e-8, atol=1e-8 * float(W.abs().max()))


@given(seed=st.integers(0, 1000), m=st.integers(1, 5), exponent=st.floats(-9, -0.1))
def test_tolerance_is_met_and_the_residual_reported_is_true(seed, m, exponent):
    A, B, rtol = spd(geometric(25, 100), seed), normal(m, 25, seed=seed), 10.0**exponent
    for solve in (block_cg, cg):
        found = solve(A, B, rtol=rtol)
        residual = true_residual(A, B, found.X)
        torch.testing.assert_close(found.residual, residual, rtol=1e-3, atol=1e-14)
        assert bool(found.converged.all())
        assert float(residual.max()) <= rtol
        assert float(found.claimed.max()) <= 0.9 * rtol  # room for rounding


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_error_in_the_norm_of_a_falls_and_that_of_the_block_is_smaller(seed):
    A, B = spd(geometric(20, 1e4), seed), normal(3, 20, seed=seed)
    exact = torch.linalg.solve(A, B.mT).mT
    squares = {}
    for solve in (block_cg, cg):
        errors = [exact - solve(A, B, rtol=TINY, max_steps=k).X for k in (1, 2, 4, 7, 11)]
        squares[solve] = torch.stack([(e @ A * e).sum(-1) for e in errors])
        assert bool((squares[solve][1:] <= squares[solve][:-1] * (1 + 1e-8) + 1e-16).all())
    assert bool((squares[block_cg] <= squares[cg] * (1 + 1e-8)).all())


@BOTH
def test_batch_is_its_items(solve):
    n = 20
    A = torch.stack([spd(geometric(n, c), seed=i) for i, c in enumerate([1, 2, 100])])
    A = torch.cat([A, -A[:1], A[:1] * torch.nan, 0 * A[:1]])
    B = normal(6, 3, n, seed=2)
    B[1, 2] = 0
    found = solve(A, B, rtol=1e-5)
    for i in range(6):
        alone = solve(A[i], B[i], rtol=1e-5)
        torch.testing.assert_close(found.X[i], alone.X, rtol=1e-10, atol=1e-10, equal_nan=True)
        assert torch.equal(found.status[i], alone.status)
        assert torch.equal(found.num_steps[i], alone.num_steps)
    assert len(set(found.num_steps[:3, 0].tolist())) == 3


@BOTH
def test_leading_dimensions_broadcast(solve):
    A, B = spd(geometric(10, 10)), normal(2, 3, 4, 10, seed=1)
    found = solve(A, B, rtol=1e-8)
    assert found.X.shape == (2, 3, 4, 10)
    assert {f.shape for f in found[1:6]} == {(2, 3, 4)}
    found = solve(A.expand(5, 10, 10), B[0, 0], rtol=1e-8)
    assert found.X.shape == (5, 4, 10)
    torch.testing.assert_close(found.X[4], found.X[0])


# The Lanczos matrix -------------------------------------------------------------------------------


def small_matrix(found):
    return torch.diag_embed(found.diagonal) + torch.diag_embed(found.off_diagonal[..., :-1], 1)


def test_coefficients_are_those_of_lanczos_and_of_the_textbook():
    A, B = spd(geometric(30, 100)), normal(2, 30, seed=1)
    found, T = cg(A, B, rtol=TINY, max_steps=8), lanczos(A, B, 8)
    torch.testing.assert_close(found.diagonal, T.diagonal, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found.off_diagonal, T.off_diagonal, rtol=1e-11, atol=1e-13)
    _, alphas, betas = textbook_cg(A, B[0], 8)
    off = [math.sqrt(b) / a for a, b in zip(alphas, betas, strict=True)]
    diagonal = [1 / alphas[0]]
    diagonal += [1 / alphas[j] + betas[j - 1] / alphas[j - 1] for j in range(1, 8)]
    assert found.diagonal[0].tolist() == pytest.approx(diagonal, rel=1e-10)
    assert found.off_diagonal[0].tolist() == pytest.approx(off, rel=1e-10)


@pytest.mark.parametrize("dtype", [f32, f64])
def test_one_run_gives_solve_and_logarithm(dtype):
    A, B = spd(geometric(30, 50)).to(dtype), normal(4, 30, seed=1, dtype=dtype)
    values, V = torch.linalg.eigh(A.double())
    B[1], B[2] = 0, V[:, 5].to(dtype)  # spaces that end before the others
    found = cg(A, B, rtol=1e-4 if dtype == f32 else 1e-10)
    theta, S = torch.linalg.eigh(small_matrix(found), UPLO="U")
    forms = B.double().square().sum(-1) * (S[..., 0, :] ** 2 * theta.log()).sum(-1)
    exact = ((B.double() @ V) ** 2 * values.log()).sum(-1)
    rtol = 1e-4 if dtype == f32 else 1e-10
    torch.testing.assert_close(forms, exact, rtol=rtol, atol=rtol)


def test_filler_is_decoupled_and_positive():
    A, B = spd(geometric(12, 10)), normal(3, 12, seed=1)
    B[1], B[2] = 0, torch.linalg.eigh(A)[1][:, 0]
    found = cg(A, B, rtol=1e-9)
    assert found.num_steps[1:].tolist() == [0, 1]
    assert int((found.off_diagonal[1:] != 0).sum()) == 0
    torch.testing.assert_close(found.diagonal[1], torch.ones_like(found.diagonal[1]))
    smallest = torch.full_like(found.diagonal[2], 0.1)
    torch.testing.assert_close(found.diagonal[2], smallest, rtol=1e-8, atol=0)
    assert bool((found.off_diagonal[0, :-1] > 0).all())


def test_without_a_step_the_matrix_is_empty():
    found = cg(spd(geometric(4, 2)), torch.zeros(2, 4, dtype=f64), rtol=0.1)
    assert found.diagonal.shape == found.off_diagonal.shape == (2, 0)
