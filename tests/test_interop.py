"""Operators of SciPy, sparse tensors, and operators that change, against dense matrices."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator as ScipyLinearOperator
from scipy.sparse.linalg import aslinearoperator

from specbp import interop
from specbp.estimate import Status
from specbp.logdets import chebyshev_logdet, golub_kahan_logdet, slq_logdet
from specbp.lowrank_trace import hutchpp_trace, xnystrace, xtrace
from specbp.operators import RectangularOperator, as_operator, check_deterministic
from specbp.trace import hutchinson_trace
from tests.support import EPS, f32, f64, factor, flags, geometric, normal, signs, spd

A8, J8 = spd(geometric(8, 10.0)), factor(geometric(8, 3.0), 11)
BATCHES = [(), (3,), (2, 3)]


def assert_multiplies(operator, matrix, *batch, adjoint=True):
    """Products with blocks, of the batch or without, are those of the dense matrix."""
    operator = as_operator(operator)
    assert operator.shape == matrix.shape
    assert (operator.dtype, operator.device) == (matrix.dtype, matrix.device)
    sides = [(operator, matrix), (operator.mT, matrix.mT)] if adjoint else [(operator, matrix)]
    for seed, (one, dense) in enumerate(sides):
        for shape in ((*batch, dense.shape[-1], 5), (*batch, dense.shape[-1], 1)):
            X = normal(*shape, seed=seed, dtype=matrix.dtype)
            for block in (X, X.mT.contiguous().mT):
                Y = one @ block
                assert type(Y) is torch.Tensor
                assert Y.dtype == matrix.dtype
                tolerance = 20 * EPS[matrix.dtype] * float((dense.abs() @ X.abs()).max())
                torch.testing.assert_close(Y, dense @ X, rtol=0, atol=tolerance)
        assert one.shape == dense.shape


# SciPy --------------------------------------------------------------------------------------------

SCIPY = {
    "aslinearoperator": lambda M: aslinearoperator(M),
    "functions": lambda M: ScipyLinearOperator(
        M.shape, matvec=lambda x: M @ x, rmatvec=lambda x: M.T @ x, dtype=M.dtype
    ),
    "blocks": lambda M: ScipyLinearOperator(
        M.shape,
        matvec=None,
        matmat=lambda X: M @ X,
        rmatmat=lambda X: M.T @ X,
        dtype=M.dtype,
    ),
    "csr": scipy.sparse.csr_array,
    "csc matrix": scipy.sparse.csc_matrix,
    "coo": scipy.sparse.coo_array,
    "product": lambda M: (
        aslinearoperator(scipy.sparse.csr_array(M))
        @ aslinearoperator(np.eye(M.shape[1], dtype=M.dtype))
    ),
}
every_scipy = pytest.mark.parametrize("wrap", SCIPY.values(), ids=SCIPY)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", [f32, f64])
@every_scipy
def test_scipy_multiplies(wrap, dtype, batch):
    matrix = J8.to(dtype)
    assert_multiplies(wrap(matrix.numpy()), matrix, *batch)


@every_scipy
def test_scipy_estimates_equal_those_of_the_matrix(wrap):
    X = signs(3, 8, 5)
    for estimate in (hutchinson_trace, hutchpp_trace, xtrace, xnystrace):
        one, dense = estimate(wrap(A8.numpy()), X), estimate(A8, X)
        torch.testing.assert_close(one.value, dense.value, rtol=1e-12, atol=1e-12)
        assert one.num_matvecs == dense.num_matvecs
    one, dense = slq_logdet(wrap(A8.numpy()), X, num_steps=8), slq_logdet(A8, X, num_steps=8)
    torch.testing.assert_close(one.value, dense.value, rtol=1e-11, atol=1e-11)
    one = golub_kahan_logdet(wrap(J8.numpy()), X, num_steps=8)
    torch.testing.assert_close(one.value, golub_kahan_logdet(J8, X, num_steps=8).value)


def test_scipy_needs_no_adjoint_where_none_is_used():
    A = A8.numpy()
    operator = ScipyLinearOperator((8, 8), matvec=lambda x: A @ x, dtype=A.dtype)
    assert_multiplies(operator, A8, 2, adjoint=False)
    assert bool(slq_logdet(operator, signs(8, 3), num_steps=8).ok)


def test_scipy_adjoint_that_is_missing():
    J = J8.numpy()
    operator = ScipyLinearOperator(J.shape, matvec=lambda x: J @ x, dtype=J.dtype)
    with pytest.raises(TypeError, match="define rmatvec or rmatmat"):
        golub_kahan_logdet(operator, signs(8, 3), num_steps=4)


def test_scipy_results_are_writable_tensors_of_the_declared_dtype():
    """float64 matrices behind a float32 operator, read-only results, matrices of numpy."""
    A = A8.numpy()
    operator = ScipyLinearOperator(
        (8, 8), matvec=lambda x: A @ x, matmat=lambda X: np.broadcast_to(A @ X, (8, 2)), dtype="f4"
    )
    Y = as_operator(operator) @ torch.ones(8, 2, requires_grad=True)
    assert (Y.dtype, Y.requires_grad) == (f32, False)
    Y.zero_()


def test_scipy_keeps_its_adjoint():
    operator = as_operator(aslinearoperator(J8.numpy()))
    assert operator.mT.mT is operator
    assert isinstance(operator, RectangularOperator)


def test_scipy_complex_is_refused():
    for A in (aslinearoperator(1j * np.eye(3)), scipy.sparse.eye_array(3, dtype=complex)):
        with pytest.raises(TypeError, match=r"real matrices.*complex128.*\[\[Re, -Im\], \[Im, Re"):
            hutchinson_trace(A, signs(3, 2))
    liar = ScipyLinearOperator((3, 3), matvec=lambda x: 1j * x, dtype=np.float64)
    with pytest.raises(TypeError, match="declares torch.float64 and returned complex128"):
        hutchinson_trace(liar, signs(3, 2))


@pytest.mark.parametrize("dtype", ["int32", "bool", "float16", "longdouble", "object"])
def test_scipy_of_another_dtype(dtype):
    operator = ScipyLinearOperator((3, 3), matvec=lambda x: x, dtype=np.dtype(dtype))
    with pytest.raises(TypeError, match="float32 or float64"):
        hutchinson_trace(operator, signs(3, 2))


def test_scipy_without_dtype():
    operator = ScipyLinearOperator((3, 3), matvec=lambda x: x, dtype=np.float64)
    operator.dtype = None
    with pytest.raises(TypeError, match="has no dtype"):
        hutchinson_trace(operator, signs(3, 2))


def test_scipy_probes_of_another_dtype():
    with pytest.raises(TypeError, match=r"torch\.float64, the probes are torch\.float32"):
        hutchinson_trace(aslinearoperator(A8.numpy()), signs(8, 2, dtype=f32))


def test_scipy_type_error_of_the_users_own_function_is_kept():
    def broken(x):
        raise TypeError("mine")

    operator = ScipyLinearOperator((3, 3), matvec=broken, dtype=np.float64)
    with pytest.raises(TypeError, match="mine"):
        hutchinson_trace(operator, signs(3, 2))


def test_arrays_are_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"ndarray is not an operator: pass torch\.from_numpy\(A\)"):
        hutchinson_trace(A8.numpy(), signs(8, 2))


# Sparse tensors -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_sparse_tensors_multiply(layout, batch):
    assert_multiplies(getattr(J8, f"to_sparse_{layout}")(), J8, *batch)


# Operators that change from product to product ----------------------------------------------------


class Changing:
    """Another matrix at every product: a fresh mask on the rows of a factor."""

    def __init__(self, J, keep):
        self.J, self.keep, self.calls = J, keep, 0
        self.shape, self.dtype, self.device = torch.Size((8, 8)), J.dtype, J.device

    def __matmul__(self, X):
        self.calls += 1
        u = torch.from_numpy(np.random.default_rng(self.calls).random(len(self.J)))
        return self.J.mT @ ((u < self.keep).to(X).unsqueeze(-1) * (self.J @ X)) + 0.1 * X


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_krylov_and_polynomials_see_a_changing_operator(keep):
    X = signs(8, 3)
    for est in (
        slq_logdet(Changing(J8, keep), X, num_steps=6),
        chebyshev_logdet(Changing(J8, keep), X, degree=12, interval=(0.05, 1.2)),
    ):
        assert flags(est) & Status.NONSYMMETRIC
        assert bool(est.value.isnan())


def test_check_refuses_a_changing_operator():
    with pytest.raises(ValueError, match=r"operator is random: .* changed by .*\.eval\(\)"):
        check_deterministic(Changing(J8, 0.9), signs(8, 3))


@pytest.mark.parametrize("dtype", [f32, f64])
def test_check_passes_what_stays(dtype):
    check_deterministic(A8.to(dtype), signs(3, 8, 2, dtype=dtype))
    check_deterministic(J8.to(dtype), signs(8, 2, dtype=dtype))
    check_deterministic(torch.zeros(3, 3), torch.ones(3, 1))
    check_deterministic(aslinearoperator(A8.numpy()), signs(8, 2))


# Recognition --------------------------------------------------------------------------------------


def test_no_library_is_imported():
    """Not at the top, nor within a function."""
    tree = ast.parse(Path(interop.__file__).read_text(encoding="utf-8"))
    found = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    found |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert found == {"__future__", "typing", "numpy", "torch"}


def test_anything_else_is_left_alone():
    for thing in (None, "A", [[1.0]], object(), A8, Changing(J8, 1.0)):
        assert interop.adapt(thing) is thing
