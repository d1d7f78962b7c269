"""Conjugate gradients where blocks are singular, rounding wins, or A is not positive definite."""

from __future__ import annotations

import math

import pytest
import torch

from specbp.estimate import Status
from specbp.operators import CountingOperator
from specbp.solvers import block_cg, cg
from tests.support import f32, f64, geometric, normal, spd

BOTH = pytest.mark.parametrize("solve", [block_cg, cg])


def statuses(found):
    return [Status(int(s)) for s in found.status.flatten()]


def true_residual(A, B, X):
    """Relative residuals in float64."""
    left = B.double() - X.double() @ A.double().mT
    return left.norm(dim=-1) / B.double().norm(dim=-1)


# Right sides that make blocks singular ------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("dtype", [f32, f64])
def test_zero_repeated_and_dependent_right_sides(solve, dtype):
    A, B = spd(geometric(20, 30)).to(dtype), normal(6, 20, seed=1, dtype=dtype)
    B[0], B[2], B[3] = 0, B[1], B[1] - 2 * B[4]
    B[5] = 1e-20 * B[4]
    rtol = 1e-4 if dtype == f32 else 1e-9
    found = solve(A, B, rtol=rtol)
    assert statuses(found) == [Status.OK] * 6
    assert not bool(found.X[0].any())
    assert bool((true_residual(A, B, found.X)[1:] <= rtol).all())


@BOTH
def test_all_zero(solve):
    found = solve(spd(geometric(5, 2)), torch.zeros(2, 5, dtype=f64), rtol=0.5)
    assert bool(found.converged.all())
    assert found.num_steps.tolist() == [0, 0]
    assert not bool(found.X.any())


def test_more_right_sides_than_dimensions_cost_one_block():
    counted, B = CountingOperator(spd(geometric(6, 100))), normal(10, 6, seed=1)
    assert bool(block_cg(counted, B, rtol=1e-9).converged.all())
    assert counted.num_matvecs == 6 + 10


def test_eigenvectors_converge_one_after_the_other():
    """A block whose residuals vanish in turn: noise of the vanished ones does no harm."""
    A = spd(geometric(30, 1e3))
    V = torch.linalg.eigh(A)[1]
    B = torch.stack([V[:, 0], V[:, 1] + V[:, 2], normal(30, seed=1), V[:, :9].sum(-1)])
    found = block_cg(A, B, rtol=1e-11)
    assert statuses(found) == [Status.OK] * 4
    assert float(true_residual(A, B, found.X).max()) <= 1e-11


@BOTH
@pytest.mark.parametrize("dtype", [f32, f64])
def test_order_one(solve, dtype):
    A, B = torch.full((1, 1), 4.0, dtype=dtype), torch.tensor([[2.0], [0.0], [-1.0]], dtype=dtype)
    found = solve(A, B, rtol=1e-6)
    assert found.X.flatten().tolist() == [0.5, 0.0, -0.25]


# Failures -----------------------------------------------------------------------------------------


@BOTH
def test_unconverged_is_reported_with_its_last_iterate(solve):
    A, B = spd(geometric(40, 1e4)), normal(2, 40, seed=1)
    found = solve(A, B, rtol=1e-8, max_steps=3)
    assert statuses(found) == [Status.UNCONVERGED] * 2
    assert found.num_steps.tolist() == [3, 3]
    torch.testing.assert_close(found.residual, true_residual(A, B, found.X))


@BOTH
def test_recurrence_that_lies_is_found_out(solve):
    A, B = spd(geometric(60, 1e4)).to(f32), normal(5, 60, seed=1, dtype=f32)
    found = solve(A, B, rtol=1e-5)
    assert bool((found.claimed <= 1e-5).all())
    assert bool((found.residual > 1e-5).all())
    assert statuses(found) == [Status.UNCONVERGED] * 5
    assert not bool(found.converged.any())
    assert bool(torch.isfinite(found.X).all())


@BOTH
@pytest.mark.parametrize(
    ("dtype", "smallest"), [(f64, -1.0), (f64, -0.01), (f64, -1e-8), (f32, -0.01)]
)
def test_indefinite(solve, dtype, smallest):
    eigenvalues = geometric(30, 50)
    eigenvalues[-1] = smallest
    found = solve(spd(eigenvalues).to(dtype), normal(3, 30, seed=1, dtype=dtype), rtol=1e-6)
    assert statuses(found) == [Status.NEGATIVE_RITZ | Status.UNCONVERGED] * 3
    for part in (found.X, found.residual, found.claimed):
        assert bool(torch.isnan(part).all())


@BOTH
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("nullity", [1, 5])
def test_singular(solve, dtype, nullity):
    eigenvalues = geometric(30, 50)
    eigenvalues[-nullity:] = 0
    A, B = spd(eigenvalues).to(dtype), normal(3, 30, seed=1, dtype=dtype)
    rtol = 1e-4 if dtype == f32 else 1e-8
    assert statuses(solve(A, B, rtol=rtol)) == [Status.SINGULAR | Status.UNCONVERGED] * 3
    consistent = solve(A, B @ A, rtol=rtol)
    assert statuses(consistent) == [Status.OK] * 3
    assert float(true_residual(A, B @ A, consistent.X).max()) <= rtol


def test_flat_direction_that_no_right_side_needs_is_no_failure():
    """The block is filled up with the null vector."""
    A, B = torch.diag(torch.tensor([1.0, 2.0, 0.0])), torch.eye(3) * torch.tensor([1.0, 1.0, 0.0])
    found = block_cg(A, B, rtol=1e-6)
    assert statuses(found) == [Status.OK] * 3
    torch.testing.assert_close(found.X, torch.diag(torch.tensor([1.0, 0.5, 0.0])))


@BOTH
def test_operator_zero(solve):
    found = solve(torch.zeros(5, 5), torch.ones(2, 5), rtol=0.1)
    assert statuses(found) == [Status.SINGULAR | Status.UNCONVERGED] * 2
    assert found.residual.tolist() == [1.0, 1.0]
    assert found.num_steps.tolist() == [0, 0]


class NaNAt:
    """A matrix whose call of number `when` returns NaN in one column."""

    def __init__(self, matrix, when, column=0):
        self.matrix, self.when, self.column, self.calls = matrix, when, column, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, X):
        assert bool(torch.isfinite(X).all()), "an operator may not stand NaN"
        self.calls += 1
        Y = self.matrix @ X
        if self.calls == self.when:
            Y[..., 7, self.column] = torch.nan
        return Y


@BOTH
@pytest.mark.parametrize("when", [1, 3, 5])
def test_product_that_is_not_finite(solve, when):
    """The last of five is that of the residual."""
    found = solve(NaNAt(spd(geometric(30, 50)), when), normal(3, 30), rtol=1e-10, max_steps=4)
    bad = Status.NONFINITE | Status.UNCONVERGED
    others = bad if solve is block_cg and when < 5 else Status.UNCONVERGED
    assert statuses(found) == [bad, others, others]
    assert bool(torch.isnan(found.X[0]).all())
    assert bool(torch.isnan(found.X[1:]).any()) == (others == bad)


@BOTH
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_right_side_that_is_not_finite_spoils_no_other(solve, value):
    A, B = spd(geometric(20, 10)), normal(3, 20)
    B[1, 4] = value
    found = solve(A, B, rtol=1e-8)
    assert statuses(found) == [Status.OK, Status.NONFINITE | Status.UNCONVERGED, Status.OK]
    assert bool(torch.isnan(found.X[1]).all())
    assert float(true_residual(A, B, found.X)[[0, 2]].max()) <= 1e-8


@BOTH
def test_nothing_is_recorded(solve):
    A = spd(geometric(5, 2)).requires_grad_()
    found = solve(A, normal(2, 5).requires_grad_(), rtol=1e-6)
    assert not any(part.requires_grad for part in found if part is not None)


@BOTH
@pytest.mark.parametrize(
    ("B", "options", "error", "message"),
    [
        (torch.ones(2, 4), {}, ValueError, r"\(\.\.\., m, n\) with n = 3, got \(2, 4\)"),
        (torch.ones(3), {}, ValueError, r"got \(3,\)"),
        ([[1.0, 2.0, 3.0]], {}, ValueError, "got list"),
        (torch.ones(0, 3), {}, ValueError, "At least one"),
        (torch.ones(2, 3).double(), {}, TypeError, "float64"),
        (torch.ones(2, 3), {"rtol": 0.0}, ValueError, "between 0 and 1, got 0.0"),
        (torch.ones(2, 3), {"rtol": 1.0}, ValueError, "between 0 and 1, got 1.0"),
        (torch.ones(2, 3), {"rtol": math.nan}, ValueError, "got nan"),
        (torch.ones(2, 3), {"max_steps": 0}, ValueError, "at least 1, got 0"),
    ],
)
def test_bad_input(solve, B, options, error, message):
    with pytest.raises(error, match=message):
        solve(torch.eye(3), B, **{"rtol": 1e-3, **options})


@BOTH
def test_operator_must_be_square(solve):
    with pytest.raises(ValueError, match="square"):
        solve(torch.ones(4, 3), torch.ones(1, 3), rtol=0.1)
