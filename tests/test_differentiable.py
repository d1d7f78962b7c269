"""Values that carry a gradient: what is attached, what is kept, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specbp
from specbp import Jacobian, JacobianMetric
from specbp.differentiable import (
    Sensitivity,
    attach,
    compressed,
    gradients,
    inputs_of,
    rounding,
)
from specbp.operators import CountingOperator, Dense
from tests.rows import each_row, matrix, run
from tests.support import EPS, f32, f64, geometric, normal, signs, spd

# Attaching ----------------------------------------------------------------------------------------


def leaf(*shape, seed=0):
    return normal(*shape, seed=seed).requires_grad_()


def some(m=3, r=2, n=4, seed=1):
    return Sensitivity(normal(m, r, seed=seed), normal(m, r, n, seed=seed + 1))


def test_the_gradient_of_each_sample_is_its_sensitivity():
    A, G, values = leaf(4, 4), some(), normal(3, seed=3)
    found = attach(values, Dense(A), lambda: G)
    torch.testing.assert_close(found.detach(), values, rtol=0, atol=0)
    for i in range(3):
        (grad,) = torch.autograd.grad(found[i], A, retain_graph=True)
        torch.testing.assert_close(grad, G.dense()[i])


def test_a_factor_has_the_derivative_of_its_gram_matrix():
    J, G = leaf(6, 4), some()
    (found,) = torch.autograd.grad(
        attach(torch.zeros(3), Dense(J), lambda: G, factor=True).sum(), J
    )
    (by_hand,) = torch.autograd.grad((G.dense() * (J.mT @ J)).sum(), J)
    torch.testing.assert_close(found, by_hand)


@pytest.mark.parametrize("wrap", [lambda A: A, CountingOperator])
def test_a_metric_is_taken_by_its_factor(wrap):
    J, G = leaf(6, 4), some()
    A = JacobianMetric(J)
    (found,) = torch.autograd.grad(attach(torch.zeros(3), wrap(A), lambda: G).sum(), J)
    (direct,) = gradients(A, G, torch.ones(3, dtype=f64), factor=False)
    torch.testing.assert_close(found, direct)


def test_nothing_is_computed_before_backward_and_once_then():
    calls, A = [], leaf(4, 4)

    def sensitivity():
        calls.append(1)
        return some()

    found = attach(torch.zeros(3, dtype=f64), Dense(A), sensitivity)
    assert calls == []
    found.sum().backward()
    assert calls == [1]


def test_a_constant_operator_or_no_grad_gives_plain_samples():
    values, A = normal(3), leaf(4, 4)
    assert attach(values, Dense(A.detach()), some) is values
    with torch.no_grad():
        assert attach(values, Dense(A), some) is values
        assert inputs_of(Dense(A)) == ()
    assert [t is A for t in inputs_of(Dense(A))] == [True]


ENDS = {"low": 0.08, "high": 1.2}  # numbers: an interval with a graph has a gradient of its own


@each_row
def test_estimates_without_grad_mode_are_plain(row):
    A = matrix().requires_grad_()
    with torch.no_grad():
        est = run(row, A, signs(8, 4), **ENDS)
    assert not est.value.requires_grad
    assert not est.samples.requires_grad


@each_row
def test_only_the_value_and_the_samples_carry_a_gradient(row):
    est = run(row, matrix().requires_grad_(), signs(8, 4), **ENDS)
    if row.claims.gradient is not None:
        assert est.value.requires_grad
        assert est.samples.requires_grad or est.samples.numel() == 0
    for name in ("standard_error", "lower", "upper"):
        assert not getattr(est, name).requires_grad


@each_row
def test_carrying_a_gradient_changes_no_number(row):
    A, X = matrix(), signs(8, 4)
    with_graph, without = (run(row, B, X, **ENDS) for B in (A.clone().requires_grad_(), A))
    for name in ("value", "samples", "standard_error", "lower", "upper", "status"):
        left, right = getattr(with_graph, name).detach(), getattr(without, name)
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    if row.claims.gradient == "solve":  # the solves are products of their own
        assert with_graph.num_matvecs > without.num_matvecs
    else:
        assert with_graph.num_matvecs == without.num_matvecs


# What is refused ----------------------------------------------------------------------------------


def slq(A, k=4, m=3):
    return specbp.slq_logdet(A, signs(A.shape[-1], m, dtype=A.dtype), num_steps=k)


def test_a_matrix_modified_before_backward_is_refused():
    A = matrix().requires_grad_()
    est = slq(A)
    with torch.no_grad():
        A.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        est.value.backward()


def test_a_parameter_modified_before_backward_is_refused():
    f = nn.Linear(3, 5, dtype=f64)
    est = specbp.qr_logdet(Jacobian(f, normal(3)))
    with torch.no_grad():
        f.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified"):
        est.value.backward()


def test_a_second_derivative_is_refused():
    A = matrix().requires_grad_()
    (grad,) = torch.autograd.grad(slq(A).value, A, create_graph=True)
    with pytest.raises(RuntimeError, match="no derivative of its own"):
        grad.sum().backward()


def test_a_second_derivative_is_not_silently_left_out_of_a_sum():
    A = matrix().requires_grad_()
    (grad,) = torch.autograd.grad(slq(A).value, A, create_graph=True)
    with pytest.raises(RuntimeError, match="no derivative of its own"):
        (grad.square().sum() + A.square().sum()).backward()


def test_backward_with_a_graph_is_the_same_backward():
    A = matrix().requires_grad_()
    value = slq(A).value
    plain, kept = (
        torch.autograd.grad(value, A, create_graph=create, retain_graph=True)[0]
        for create in (False, True)
    )
    assert torch.equal(plain, kept)
    assert (plain.requires_grad, kept.requires_grad) == (False, True)


def test_backward_twice_is_allowed_where_the_graph_is_kept():
    A = matrix().requires_grad_()
    value = slq(A).value
    first, second = (torch.autograd.grad(value, A, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_failed_sample_poisons_its_gradient_and_its_batch_item_alone():
    bad = spd(torch.tensor([1.0, 0.5, -0.3, 0.2], dtype=f64))
    A = torch.stack([spd(geometric(4, 5.0)), bad]).requires_grad_()
    est = specbp.slq_logdet(A, signs(4, 3), num_steps=4)
    assert torch.isnan(est.value).tolist() == [False, True]
    (grad,) = torch.autograd.grad(est.value.sum(), A)
    assert bool(torch.isfinite(grad[0]).all())
    assert bool(torch.isnan(grad[1]).any())


def test_a_failed_sample_that_the_loss_leaves_out_spoils_nothing():
    A, G = leaf(4, 4), some()
    G.weights[1], G.vectors[1] = torch.nan, torch.nan
    values = torch.tensor([1.0, torch.nan, 2.0], dtype=f64)
    found = attach(values, Dense(A), lambda: G)
    (kept,) = torch.autograd.grad(found[[0, 2]].sum(), A, retain_graph=True)
    torch.testing.assert_close(kept, G.dense()[0] + G.dense()[2])
    (spoiled,) = torch.autograd.grad(found.sum(), A)
    assert bool(torch.isnan(spoiled).any())


@pytest.mark.parametrize("name", ["cholesky_logdet", "eigenvalue_logdet"])
def test_an_indefinite_matrix_has_no_gradient_but_nan(name):
    A = spd(torch.tensor([1.0, 0.5, -0.3], dtype=f64)).requires_grad_()
    (grad,) = torch.autograd.grad(getattr(specbp, name)(A).value, A)
    assert bool(torch.isnan(grad).any())


def test_a_polynomial_outside_its_interval_has_a_nan_gradient():
    A = spd(geometric(6, 10.0)).requires_grad_()
    est = specbp.chebyshev_logdet(A, signs(6, 2), degree=20, interval=(0.09, 0.5))
    assert bool(torch.isnan(est.value))
    (grad,) = torch.autograd.grad(est.value, A)
    assert bool(torch.isnan(grad).any())


# Compressing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [f32, f64])
def test_what_is_left_out_is_small(dtype):
    """Orthonormal vectors: the error is the largest weight left out."""
    Q = torch.linalg.qr(normal(40, 40))[0].to(dtype)
    weights = torch.logspace(3, -17, 40, dtype=f64) * signs(2, 40)
    whole = Sensitivity(weights, Q.expand(2, 40, 40))
    small = compressed(whole.weights, whole.vectors, rounding(dtype))
    error = torch.linalg.matrix_norm(small.dense() - whole.dense(), ord=2)
    assert bool((error <= 1.01 * EPS[dtype] ** 0.6 * weights.abs().amax(-1)).all())
    assert small.weights.shape[-1] < 40
    assert small.vectors.dtype == dtype


def test_long_vectors_count_by_their_length():
    weights = torch.tensor([[1.0, 1e-20]], dtype=f64)
    vectors = torch.stack([torch.eye(3, dtype=f64)[0], 1e12 * torch.eye(3, dtype=f64)[1]])[None]
    assert compressed(weights, vectors, rounding(f64)).weights.shape == (1, 2)


def test_every_sample_keeps_what_it_needs():
    weights = torch.tensor([[1.0, 1e-30, 1e-30], [1.0, 1.0, 1e-30]], dtype=f64)
    small = compressed(weights, torch.eye(3, dtype=f64).expand(2, 3, 3), rounding(f64))
    assert small.weights.shape == (2, 2)
    assert float(small.weights[1].sum()) == 2


def test_nan_is_not_left_out_and_nothing_is_no_error():
    weights = torch.tensor([[1.0, torch.nan, 1e-30], [0.0, 0.0, 0.0]], dtype=f64)
    small = compressed(weights, torch.eye(3, dtype=f64).expand(2, 3, 3), rounding(f64))
    assert bool(torch.isnan(small.weights[0]).any())
    assert float(small.weights[1].abs().sum()) == 0


# Memory -------------------------------------------------------------------------------------------


def saved_bytes(estimate):
    """Bytes of all tensors that autograd keeps for the backward pass of an estimate."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    estimate()  # what is recorded once for all products of a width does not count
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = estimate().value
    assert value.requires_grad
    return sum(sizes)


def network():
    f = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 20)).double()
    return f, Jacobian(f, normal(12), check=False)


def test_the_graph_does_not_grow_with_the_steps():
    _, J = network()
    X = signs(12, 4)
    few, many = (
        saved_bytes(lambda k=k: specbp.golub_kahan_logdet(J, X, num_steps=k)) for k in (2, 12)
    )
    assert few == many


def test_the_graph_of_the_baseline_does():
    _, J = network()
    X, interval = signs(12, 4), (1e-3, 10.0)
    few, many = (
        saved_bytes(
            lambda d=d: specbp.backprop_logdet(JacobianMetric(J), X, degree=d, interval=interval)
        )
        for d in (5, 40)
    )
    assert many > 4 * few
    few, many = (
        saved_bytes(
            lambda d=d: specbp.chebyshev_logdet(JacobianMetric(J), X, degree=d, interval=interval)
        )
        for d in (5, 40)
    )
    assert few == many
