"""Exact methods against prescribed singular values, in both dtypes, tall, batched and singular."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.direct import cholesky_logdet, eigenvalue_logdet, explicit, qr_logdet
from specbp.estimate import Status
from specbp.operators import CountingOperator
from specbp.wrappers import ScaledOperator, ShiftedOperator
from tests.support import (
    EPS,
    f32,
    f64,
    factor,
    flags,
    geometric,
    log_forms,
    normal,
    orthonormal,
    spd,
)

EXPLICIT = [cholesky_logdet, eigenvalue_logdet]
each_explicit = pytest.mark.parametrize("method", EXPLICIT)


def singular_sum(J):
    """2 Σ log σ from the singular values of J in float64."""
    return float(2 * torch.linalg.svdvals(J.double()).log().sum())


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("cond", [1.0, 1e2, 1e4])
@pytest.mark.parametrize(("N", "n"), [(1, 1), (2, 1), (2, 2), (8, 8), (300, 20)])
def test_qr_equals_the_singular_values(dtype, cond, N, n):
    J = factor(geometric(n, cond), N).to(dtype)
    est = qr_logdet(J)
    # QR moves σ by √n eps |J| each, so log σ by cond(J) times it: the condition is not squared.
    assert abs(float(est.value) - singular_sum(J)) <= 4 * n * n**0.5 * EPS[dtype] * cond
    assert est.value.dtype == f64
    assert est.num_matvecs == n / 2
    assert flags(est) == Status.OK
    assert float(est.standard_error) == 0
    assert float(est.lower) == float(est.upper) == float(est.value)


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("cond", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("n", [1, 2, 8, 50])
@each_explicit
def test_explicit_methods_equal_the_prescribed_eigenvalues(method, dtype, cond, n):
    A = spd(geometric(n, cond)).to(dtype)
    est = method(A)
    exact = float(log_forms(A, n**0.5 * torch.eye(n, dtype=f64)).mean())
    assert abs(float(est.value) - exact) <= 4 * n * n * EPS[dtype] * cond
    assert est.num_matvecs == 0
    assert flags(est) == Status.OK


@given(st.integers(1, 8), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_scaling_adds_a_multiple_of_its_log(n, seed, c):
    J = normal(n + 3, n, seed=seed)
    unit = 1e3 * EPS[f64] * n * float(torch.linalg.cond(J)) ** 2
    for shift, est, scaled in (
        (2 * n * math.log(c), qr_logdet(J), qr_logdet(c * J)),
        (n * math.log(c), cholesky_logdet(J.mT @ J), cholesky_logdet(c * (J.mT @ J))),
        (n * math.log(c), eigenvalue_logdet(J.mT @ J), eigenvalue_logdet(c * (J.mT @ J))),
    ):
        assert abs(float(scaled.value) - float(est.value) - shift) <= unit + 20 * n * EPS[f64]


def test_all_agree_on_the_gram_matrix_and_on_blocks():
    J = factor(geometric(6, 10.0), 9)
    A = J.mT @ J
    values = [float(f(X).value) for f, X in ((qr_logdet, J), *((f, A) for f in EXPLICIT))]
    assert max(values) - min(values) <= 1e3 * EPS[f64] * 100
    for method, X in ((qr_logdet, J), *((f, A) for f in EXPLICIT)):
        both = method(torch.block_diag(X, 2 * X))
        assert float(both.value) == pytest.approx(
            float(method(X).value) + float(method(2 * X).value), abs=1e-10
        )


def test_batches():
    J = torch.stack([factor(geometric(4, 3.0), 6, s) for s in range(6)]).reshape(2, 3, 6, 4)
    A = J.mT @ J
    for method, X in ((qr_logdet, J), *((f, A) for f in EXPLICIT)):
        est = method(X)
        assert est.value.shape == est.status.shape == (2, 3)
        assert float(est.value[1, 2]) == pytest.approx(float(method(X[1, 2]).value), abs=1e-12)


class Foreign:
    """Products only; attributes named like those of the library's own operators must not matter."""

    matrix = dense = None

    def __init__(self, J):
        self.J = J
        self.shape, self.dtype, self.device = J.shape, J.dtype, J.device

    mT = property(lambda self: Foreign(self.J.mT))

    def __matmul__(self, X):
        return self.J @ X


def test_columns_of_any_operator_by_products_with_the_identity():
    J = normal(2, 6, 4)
    for operator, expected in (
        (J, J),
        (Foreign(J), J),
        (ScaledOperator(J, 3.0), 3 * J),
        (CountingOperator(J), J),
    ):
        torch.testing.assert_close(explicit(operator), expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(
            qr_logdet(operator).value, qr_logdet(expected).value, rtol=0, atol=1e-11
        )
    A = spd(geometric(4, 5.0))
    torch.testing.assert_close(explicit(ShiftedOperator(A, 2.0)), A + 2 * torch.eye(4, dtype=f64))


# Singular, indefinite, not finite -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("n", [2, 5, 30])
def test_missing_and_equal_columns_are_singular(dtype, n):
    J = normal(2 * n, n, seed=n, dtype=dtype)
    for column in (torch.zeros_like(J[:, 0]), J[:, 0], 2 * J[:, 0]):
        K = torch.cat([J[:, :-1], column.unsqueeze(-1)], 1)
        est = qr_logdet(K)
        assert float(est.value) == -math.inf
        assert flags(est) == Status.SINGULAR


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize(("n", "rank"), [(2, 1), (4, 1), (8, 4), (30, 29)])
def test_low_rank_gram_matrices_are_singular(dtype, n, rank):
    for seed in range(20):
        B = normal(n, rank, seed=seed, dtype=dtype)
        est = eigenvalue_logdet((B @ B.mT + (B @ B.mT).mT) / 2)
        assert float(est.value) == -math.inf
        assert flags(est) == Status.SINGULAR


@pytest.mark.parametrize(("dtype", "cond"), [(f32, 1e4), (f64, 1e12)])
@pytest.mark.parametrize("n", [2, 16, 64])
def test_ill_conditioned_is_not_singular(dtype, cond, n):
    for seed in range(5):
        assert bool(qr_logdet(factor(geometric(n, cond), 2 * n, seed).to(dtype)).ok)
        assert bool(eigenvalue_logdet(spd(geometric(n, cond), seed).to(dtype)).ok)
        assert bool(cholesky_logdet(spd(geometric(n, cond), seed).to(dtype)).ok)


def test_many_rows_do_not_make_a_jacobian_singular():
    # A generator of 64 × 64 colour images, cond(J) = 1000.
    J = (orthonormal(12288, 8) * geometric(8, 1e3)).to(f32)
    est = qr_logdet(J)
    assert flags(est) == Status.OK
    assert float(est.value) == pytest.approx(singular_sum(J), abs=1e-2)


@pytest.mark.parametrize(
    "n",
    [2, 8],
)
def test_factors_of_rank_one_less_are_singular(n):
    found = []
    for seed in range(200):
        J = normal(2 * n, n - 1, seed=seed) @ normal(n - 1, n, seed=seed + 1000)
        found.append(flags(qr_logdet(J)) == Status.SINGULAR)
    assert sum(found) == len(found)


def test_cholesky_of_a_singular_matrix_is_no_number():
    for seed in range(20):
        B = normal(8, 7, seed=seed)
        A = B @ B.mT
        assert not math.isfinite(float(cholesky_logdet((A + A.mT) / 2).value))


@each_explicit
def test_indefinite_is_nan_even_where_the_determinant_is_positive(method):
    A = torch.diag(torch.tensor([1.0, -2.0, -3.0], dtype=f64))
    est = method(torch.stack([A, torch.eye(3, dtype=f64)]))
    assert est.value.isnan().tolist() == [True, False]
    assert est.status.tolist() == [int(Status.NEGATIVE_RITZ), 0]
    assert float(est.value[1]) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_jacobian_fails_its_own_item(bad):
    J = torch.stack([normal(5, 3), normal(5, 3, seed=1)])
    J[0, 2, 1] = bad
    est = qr_logdet(J)
    assert math.isnan(float(est.value[0]))
    assert Status.NONFINITE in Status(int(est.status[0]))
    assert int(est.status[1]) == 0
    assert float(est.value[1]) == pytest.approx(singular_sum(J[1]), abs=1e-12)


def test_nonfinite_jacobian_is_not_also_called_singular():
    assert flags(qr_logdet(torch.full((5, 3), math.nan))) == Status.NONFINITE
