"""Operators of linear_operator and curvlinops, end to end against their dense matrices.

What installs them is said in `tests/test_foreign.py`; without them their tests are skipped.
"""

from __future__ import annotations

import warnings
from types import ModuleType

import pytest
import torch

from specbp.estimate import Status
from specbp.logdets import golub_kahan_logdet, slq_logdet
from specbp.lowrank_trace import hutchpp_trace, xnystrace, xtrace
from specbp.operators import as_operator, check_deterministic
from specbp.trace import hutchinson_trace
from specbp.wrappers import ShiftedOperator
from tests.support import f64, flags, normal, signs
from tests.test_interop import A8, BATCHES, J8, assert_multiplies


def library(name: str) -> ModuleType:
    """The module, or a skipped test; its own deprecation warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


# linear_operator ----------------------------------------------------------------------------------


def of_linear_operator():
    """Operators of several structures."""
    lib = library("linear_operator.operators")
    dense = lib.DenseLinearOperator
    return {
        "dense": dense(A8),
        "diagonal": lib.DiagLinearOperator(A8.diagonal()),
        "kronecker": lib.KroneckerProductLinearOperator(dense(A8[:2, :2]), dense(A8[:4, :4])),
        "toeplitz": lib.ToeplitzLinearOperator(torch.tensor([4.0, 1, 0.5, 0.2], dtype=f64)),
        "root": lib.RootLinearOperator(J8.mT),
        "jitter": dense(A8).add_jitter(0.5),
        "sum": dense(A8) + lib.DiagLinearOperator(A8.diagonal()),
        "product": dense(J8.mT) @ dense(J8),
        "identity": lib.IdentityLinearOperator(8, dtype=f64),
        "blocks": lib.BlockDiagLinearOperator(dense(torch.stack([A8, 2 * A8]))),
        "rectangular": dense(J8),
        "batch": dense(torch.stack([A8, 2 * A8])),
    }


NAMES = [
    *("dense", "diagonal", "kronecker", "toeplitz", "root", "jitter"),
    *("sum", "product", "identity", "blocks", "rectangular", "batch"),
]


@pytest.mark.parametrize("batch", [(), (3, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_linear_operator_multiplies(name, batch):
    operator = of_linear_operator()[name]
    if name == "batch":
        batch = (*batch[:1], 2)
    assert_multiplies(operator, operator.to_dense(), *batch)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rectangular"])
def test_linear_operator_logdet_equals_that_of_the_matrix(name):
    operator = of_linear_operator()[name]
    matrix, n = operator.to_dense(), operator.shape[-1]
    X = signs(3, 1, n, 4)
    one, dense = slq_logdet(operator, X, num_steps=n), slq_logdet(matrix, X, num_steps=n)
    torch.testing.assert_close(one.value, dense.value, rtol=1e-9, atol=1e-9)
    assert bool(one.ok.all())


def test_linear_operator_rectangular_logdet():
    operator, X = of_linear_operator()["rectangular"], signs(8, 4)
    one, dense = (golub_kahan_logdet(J, X, num_steps=8) for J in (operator, J8))
    assert float(one.value) == pytest.approx(float(dense.value), rel=1e-11)


def test_linear_operator_keeps_its_graph():
    lib = library("linear_operator.operators")
    root, X = J8.mT.clone().requires_grad_(), signs(8, 3)
    hutchinson_trace(lib.RootLinearOperator(root), X).value.backward()
    torch.testing.assert_close(root.grad, 2 / 3 * X @ (X.mT @ J8.mT))


# curvlinops ---------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """A small network, with dropout if asked for."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.first = torch.nn.Parameter(normal(4, 6, seed=5) / 2)
        self.last = torch.nn.Parameter(normal(6, 2, seed=6) / 2)
        self.drop = torch.nn.Dropout(dropout)

    def forward(self, x):
        return self.drop(torch.tanh(x @ self.first)) @ self.last


DATA = [(normal(30, 4, seed=7), normal(30, 2, seed=8)), (normal(9, 4), normal(9, 2))]


def of_curvlinops(name: str, net: torch.nn.Module | None = None, **options):
    """An operator of this name on the parameters of a net."""
    lib, net = library("curvlinops"), net or Net()
    loss = [] if "Jacobian" in name else [torch.nn.MSELoss()]
    return getattr(lib, name)(net, *loss, list(net.parameters()), DATA, **options)


CURVATURES = ["GGNLinearOperator", "HessianLinearOperator", "EFLinearOperator"]
JACOBIANS = ["JacobianLinearOperator", "TransposedJacobianLinearOperator"]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", CURVATURES + JACOBIANS)
def test_curvlinops_multiplies(name, batch):
    operator = of_curvlinops(name)
    matrix = operator @ torch.eye(operator.shape[1], dtype=f64)
    assert_multiplies(operator, matrix, *batch)


@pytest.mark.parametrize("name", CURVATURES)
def test_curvlinops_trace_equals_that_of_the_matrix(name):
    operator = of_curvlinops(name)
    matrix = operator @ torch.eye(36, dtype=f64)
    matrix, X = (matrix + matrix.mT) / 2, signs(5, 36, 6)
    for estimate in (hutchinson_trace, hutchpp_trace, xtrace):
        one, dense = estimate(operator, X), estimate(matrix, X)
        torch.testing.assert_close(one.value, dense.value, rtol=1e-9, atol=1e-9)
        assert one.num_matvecs == dense.num_matvecs
    if name == "GGNLinearOperator":
        values = [xnystrace(A, X).value for A in (operator, matrix)]
        torch.testing.assert_close(*values, rtol=1e-9, atol=1e-9)


def test_curvlinops_logdet_with_a_shift():
    """The Laplace approximation: log det (GGN + λI)."""
    operator = ShiftedOperator(as_operator(of_curvlinops("GGNLinearOperator")), 0.1)
    matrix = operator @ torch.eye(36, dtype=f64)
    est = slq_logdet(operator, signs(36, 4), num_steps=36)
    dense = slq_logdet((matrix + matrix.mT) / 2, signs(36, 4), num_steps=36)
    assert float(est.value) == pytest.approx(float(dense.value), rel=1e-9)


def test_curvlinops_logdet_at():
    operator, X = of_curvlinops("JacobianLinearOperator"), signs(2, 36, 4)
    matrix = operator @ torch.eye(36, dtype=f64)
    one, dense = (golub_kahan_logdet(J, X, num_steps=20) for J in (operator, matrix))
    torch.testing.assert_close(one.value, dense.value, rtol=1e-9, atol=1e-9)
    assert bool(one.ok.all())


def test_curvlinops_without_dtype():
    base = library("curvlinops._torch_base").PyTorchLinearOperator
    with pytest.raises(TypeError, match="PyTorchLinearOperator defines no dtype or device"):
        as_operator(base([(3,)], [(3,)]))


def test_check_refuses_dropout():
    X = signs(36, 3)
    net = Net(0.3).train()
    operator = of_curvlinops("GGNLinearOperator", net, check_deterministic=False)
    with pytest.raises(ValueError, match="operator is random"):
        check_deterministic(operator, X)
    assert flags(slq_logdet(operator, X, num_steps=8)) & Status.NONSYMMETRIC
    net.eval()
    check_deterministic(operator, X)
