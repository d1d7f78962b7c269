"""Wrappers against explicit matrices; the counting operator against a tally of every product."""

from __future__ import annotations

import pytest
import torch

from specbp.operators import (
    CountingOperator,
    Dense,
    LinearOperator,
    RectangularOperator,
    as_operator,
    check_probes,
    check_square,
    check_steps,
    check_symmetric,
    check_tall,
    product,
)
from tests.support import EPS, f32, f64, normal, spd


class Foreign:
    """The least an operator must have."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, X):
        return self.matrix @ X


def assert_rounding(result, exact, terms, scale):
    """Equal to the float64 `exact` up to the rounding of sums of `terms` products."""
    assert result.shape == exact.shape
    bound = 2 * terms * EPS[result.dtype] * scale
    assert float((result.double() - exact).abs().max()) <= bound


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize(
    ("matrix", "block"), [((7, 5), (5, 3)), ((2, 7, 5), (5, 3)), ((2, 7, 5), (4, 2, 5, 3))]
)
def test_dense_equals_product_in_both_layouts(dtype, by_rows, matrix, block):
    A, X = normal(*matrix, dtype=dtype), normal(*block, seed=1, dtype=dtype)
    X = X.mT.contiguous().mT if by_rows else X
    scale = float((A.abs() @ X.abs()).max())
    assert_rounding(Dense(A) @ X, A.double() @ X.double(), 5, scale)
    Y = normal(*block[:-2], 7, 3, seed=2, dtype=dtype)
    assert_rounding(Dense(A).mT @ Y, A.mT.double() @ Y.double(), 7, float(10 * scale))


def test_dense_keeps_blocks_stored_by_rows():
    X = normal(5, 3).mT.contiguous().mT
    assert (Dense(normal(7, 5)) @ X).mT.is_contiguous()


def test_product_multiplies_rows():
    A, rows = normal(2, 4, 4), normal(2, 3, 4, seed=1)
    torch.testing.assert_close(product(A, rows), torch.einsum("bij,bmj->bmi", A, rows))


@pytest.mark.parametrize("wrap", [Dense, CountingOperator])
def test_wrappers_keep_shape_dtype_device_and_adjoint(wrap):
    J = normal(3, 6, 4, dtype=f32)
    operator = wrap(J)
    assert isinstance(operator, LinearOperator)
    assert isinstance(operator, RectangularOperator)
    assert (operator.shape, operator.dtype, operator.device) == (J.shape, J.dtype, J.device)
    assert operator.mT.shape == (3, 4, 6)


def test_counting_counts_columns_once_for_each_item_of_a_batch():
    A = CountingOperator(normal(4, 4))
    X = normal(7, 5, 4, 3, seed=1)
    torch.testing.assert_close(A @ X, A.operator @ X)
    assert A.num_matvecs == 3
    _ = A @ X[..., :1]
    assert A.num_matvecs == 4


def test_counting_half_a_gram_product_for_each_side():
    J = CountingOperator(normal(6, 4))
    _ = J @ normal(4, 3)
    assert J.num_gram_matvecs == 1.5
    _ = J.mT @ normal(6, 2)
    assert J.num_gram_matvecs == 2.5
    assert (J.num_matvecs, J.mT.num_matvecs) == (3, 2)
    assert J.mT is J.mT  # else its tally would be lost


def test_counting_a_foreign_operator():
    A = CountingOperator(Foreign(normal(4, 4)))
    _ = A @ normal(4, 2)
    assert A.num_matvecs == 2


def test_tensor_becomes_dense_and_anything_else_passes_through():
    A = normal(4, 4)
    assert isinstance(as_operator(A), Dense)
    assert as_operator(A).matrix is A
    foreign = Foreign(A)
    assert as_operator(foreign) is foreign


@pytest.mark.parametrize("bad", [[[1.0, 0.0], [0.0, 1.0]], None, "A"])
def test_not_an_operator(bad):
    with pytest.raises(TypeError, match=f"{type(bad).__name__} lacks some of them"):
        as_operator(bad)


def test_an_array_is_not_an_operator():
    """It has the four members, and a dtype that prints as float64."""
    with pytest.raises(TypeError, match=r"ndarray.*torch\.Tensor"):
        as_operator(normal(2, 2).numpy())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.complex64])
def test_dtype_of_operator(dtype):
    with pytest.raises(TypeError, match=f"float32 or float64, got {dtype}"):
        as_operator(torch.zeros(3, 3, dtype=dtype))


@pytest.mark.parametrize("shape", [(), (3,), (0, 0), (3, 0), (2, 0, 3, 3)])
def test_shape_of_operator(shape):
    with pytest.raises(ValueError, match=r"shape \(\.\.\., n, n\), n ≥ 1"):
        as_operator(torch.zeros(shape))


def test_square_returns_order_and_tells_rectangular_users_where_to_go():
    assert check_square(normal(2, 5, 5)) == 5
    with pytest.raises(ValueError, match=r"got \(6, 4\).*golub_kahan_logdet"):
        check_square(normal(6, 4))


def test_tall_returns_columns_and_refuses_wide():
    assert check_tall(normal(2, 6, 4)) == 4
    assert check_tall(normal(4, 4)) == 4
    with pytest.raises(ValueError, match=r"\(4, 6\): fewer rows than columns.*J\.mT"):
        check_tall(normal(4, 6))


def test_tall_needs_adjoint():
    with pytest.raises(TypeError, match=r"Foreign has no adjoint `\.mT`"):
        check_tall(Foreign(normal(6, 4)))


def test_probes_become_contiguous_rows_of_every_batch_item():
    X = normal(3, 1, 5, 2)
    rows = check_probes(normal(4, 5, 5), X)
    assert rows.shape == (3, 4, 2, 5)
    assert rows.is_contiguous()
    for j in range(4):
        torch.testing.assert_close(rows[:, j], X[:, 0].mT, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vector", "wrong n", "transposed"])
def test_probes_of_wrong_shape(name):
    shape = {"vector": (5,), "wrong n": (4, 2), "transposed": (2, 5)}[name]
    with pytest.raises(ValueError, match=r"\(\.\.\., n, m\) with n = 5, got"):
        check_probes(normal(5, 5), normal(*shape))


def test_no_probes():
    with pytest.raises(ValueError, match="At least one probe is required"):
        check_probes(normal(5, 5), torch.zeros(5, 0, dtype=f64))


def test_probes_that_are_no_tensor():
    with pytest.raises(TypeError, match=r"torch\.Tensor .* got ndarray"):
        check_probes(normal(5, 5), normal(5, 2).numpy())


def test_probes_of_another_dtype():
    with pytest.raises(TypeError, match=r"torch\.float64, the probes are torch\.float32"):
        check_probes(normal(5, 5), normal(5, 2, dtype=f32))
    with pytest.raises(TypeError, match=r"the probes are torch\.int64"):
        check_probes(normal(5, 5), torch.ones(5, 2, dtype=torch.int64))


def test_probes_on_another_device():
    X = torch.empty(5, 2, dtype=f64, device="meta")
    with pytest.raises(ValueError, match="operator is on cpu, the probes on meta"):
        check_probes(normal(5, 5), X)


@pytest.mark.parametrize("k", [1, 4])
def test_steps_within_the_order(k):
    assert check_steps(k, 4) is None


@pytest.mark.parametrize("k", [-1, 0, 5])
def test_steps_beyond_the_order(k):
    with pytest.raises(ValueError, match=f"steps must be between 1 and n = 4, got {k}"):
        check_steps(k, 4, "steps")


@pytest.mark.parametrize("dtype", [f32, f64])
def test_symmetric_to_rounding(dtype):
    B = normal(30, 40, dtype=dtype)
    check_symmetric(B @ B.mT)
    check_symmetric(spd(torch.ones(5, dtype=f64)))


@pytest.mark.parametrize("dtype", [f32, f64])
def test_not_symmetric_beyond_rounding(dtype):
    A = spd(torch.linspace(1, 2, 20, dtype=f64)).to(dtype)
    A[3, 7] += 1000 * EPS[dtype] * float(A.abs().max())
    with pytest.raises(ValueError, match=r"not symmetric: max\|A - A\.mT\| = .*\(A \+ A\.mT\) / 2"):
        check_symmetric(A)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad):
    A = torch.eye(3)
    A[1, 1] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        check_symmetric(A)


def test_every_item_of_a_batch_is_symmetric_at_its_own_scale():
    crooked = torch.tensor([[1.0, 0.5], [0.4, 1.0]], dtype=f64)
    check_symmetric(1e14 * torch.eye(2, dtype=f64))
    with pytest.raises(ValueError, match="not symmetric"):
        check_symmetric(torch.stack([1e14 * torch.eye(2, dtype=f64), crooked]))


def test_batches_that_do_not_fit():
    with pytest.raises(ValueError, match="batch"):
        check_probes(normal(3, 5, 5), normal(2, 5, 4))
