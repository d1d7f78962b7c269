"""Operators made of others: their products, and the gradients they pass on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp import (
    CountingOperator,
    JacobianMetric,
    RecordedOperator,
    ScaledOperator,
    ShiftedOperator,
    golub_kahan_logdet,
    slq_logdet,
)
from specbp.operators import LinearOperator, as_operator
from tests.support import f64, geometric, normal, spd


def test_shifted_operator_adds_multiple_of_identity():
    A, X = normal(2, 4, 4), normal(2, 4, 3, seed=1)
    expected = A @ X + 0.7 * X
    torch.testing.assert_close(ShiftedOperator(A, 0.7) @ X, expected, rtol=0, atol=1e-14)
    shift = torch.tensor([0.5, 2.0], dtype=f64)[:, None, None]
    torch.testing.assert_close(ShiftedOperator(A, shift) @ X, A @ X + shift * X)
    assert ShiftedOperator(A, 0.7).shape == A.shape


def test_scaled_operator_scales_product_and_adjoint():
    J, X, Y = normal(6, 4), normal(4, 3, seed=1), normal(6, 3, seed=2)
    scaled = ScaledOperator(J, -2.5)
    torch.testing.assert_close(scaled @ X, -2.5 * (J @ X), rtol=0, atol=1e-14)
    torch.testing.assert_close(scaled.mT @ Y, -2.5 * (J.mT @ Y), rtol=0, atol=1e-14)
    torch.testing.assert_close(scaled.mT.mT @ X, scaled @ X)
    assert scaled.shape == (6, 4)
    assert scaled.mT.shape == (4, 6)


@pytest.mark.parametrize(
    "wrap", [lambda A: ScaledOperator(A, 2.0), lambda A: ShiftedOperator(A, 1.0)]
)
def test_wrappers_keep_shape_dtype_and_device(wrap):
    A = spd(geometric(5, 10.0))
    wrapped = wrap(as_operator(A))
    assert (wrapped.shape, wrapped.dtype, wrapped.device) == (A.shape, A.dtype, A.device)
    assert isinstance(wrapped, LinearOperator)


@given(shift=st.floats(-2, 2), scale=st.floats(-3, 3))
def test_gradients_pass_through_shift_and_scale_to_the_matrix(shift, scale):
    A = spd(geometric(6, 10.0)).requires_grad_()
    shift, scale = (torch.tensor(t, dtype=f64, requires_grad=True) for t in (shift, scale))
    left, right = normal(3, 6), normal(3, 6, seed=1)
    operator = ScaledOperator(ShiftedOperator(as_operator(A), shift), scale)
    found = operator.pull_back(left, right)
    dense = scale * (A + shift * torch.eye(6, dtype=f64))
    expected = torch.autograd.grad((left * (right @ dense.mT)).sum(), operator.inputs)
    assert len(found) == len(operator.inputs) == 3
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_shifts_of_every_item_and_of_every_row_have_gradients_of_their_shape():
    A, left, right = normal(4, 5, 5), normal(4, 2, 5), normal(4, 2, 5, seed=1)
    for shape in ((), (4, 1, 1), (1, 1)):
        shift = torch.ones(shape, dtype=f64, requires_grad=True)
        (found,) = ShiftedOperator(as_operator(A), shift).pull_back(left, right)
        assert found.shape == shape
        torch.testing.assert_close(
            found.sum() if shape else found, (left * right).sum(), rtol=1e-13, atol=0
        )


def test_what_requires_no_gradient_has_no_inputs():
    A = spd(geometric(4, 10.0))
    assert ScaledOperator(ShiftedOperator(as_operator(A), 0.1), 2.0).inputs == ()
    assert ShiftedOperator(as_operator(A), torch.tensor(0.1)).pull_back(A, A) == ()


class Diagonal:
    """diag(θ), its products recorded by autograd."""

    def __init__(self, theta):
        self.theta = theta
        self.shape, self.dtype = torch.Size((len(theta), len(theta))), theta.dtype
        self.device = theta.device
        self.mT = self

    def __matmul__(self, X):
        return self.theta.unsqueeze(-1) * X


def test_an_operator_of_ones_own_has_the_gradient_of_its_log_determinant():
    theta = torch.linspace(1, 3, 6, dtype=f64).requires_grad_()
    A = RecordedOperator(Diagonal(theta), [theta])
    probes = 6**0.5 * torch.eye(6, dtype=f64)
    (found,) = torch.autograd.grad(slq_logdet(A, probes, num_steps=1).value, theta)
    torch.testing.assert_close(found, 1 / theta.detach(), rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(golub_kahan_logdet(A, probes, num_steps=1).value, theta)
    torch.testing.assert_close(found, 2 / theta.detach(), rtol=1e-12, atol=0)


def test_a_metric_pulls_back_through_its_factor():
    J = normal(7, 4).requires_grad_()
    left, right = normal(3, 4), normal(3, 4, seed=1)
    (found,) = CountingOperator(JacobianMetric(J)).pull_back(left, right)
    (expected,) = torch.autograd.grad((left * (right @ (J.mT @ J))).sum(), J)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
