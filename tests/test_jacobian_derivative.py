"""Gradients of ⟨u, J x⟩: both ways to them, batches, trees of parameters and closures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from specbp import Jacobian
from specbp.jacobian import derivative
from tests.support import f32, f64, normal


def network(dtype=f64):
    f = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 6)).to(dtype)
    with torch.no_grad():
        for i, p in enumerate(f.parameters()):
            p.copy_(normal(*p.shape, seed=i) / p.shape[-1] ** 0.5)
    return f


def naive(f, z, left, right, inputs):
    """Gradients of Σ uᵀ J(z_b) x over a stack of points (b, n), rows (b, r, ·), by autograd."""
    total = sum(
        u @ torch.func.jacrev(f)(point) @ x
        for point, us, xs in zip(z, left, right, strict=True)
        for u, x in zip(us, xs, strict=True)
    )
    return torch.autograd.grad(total, inputs, materialize_grads=True, allow_unused=True)


def same(found, expected, tolerance=1e-12):
    for one, other in zip(found, expected, strict=True):
        size = float(other.abs().max()) + 1
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * size)


@pytest.fixture(params=["repeated", "mapped"])
def way(request, monkeypatch):
    """Points repeated per column, or columns by vmap."""
    monkeypatch.setattr(derivative, "is_small", lambda *_: request.param == "repeated")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("width", [1, 3, 17])
def test_gradients_in_parameters_and_points(width):
    f, z = network(), normal(3, 4, seed=5).requires_grad_()
    left, right = normal(3, width, 6, seed=6), normal(3, width, 4, seed=7)
    J = Jacobian(f, z)
    assert {*map(id, J.inputs)} == {*map(id, [*f.parameters(), z])}
    assert J.inputs[-1] is z
    same(J.pull_back(left, right), naive(f, z, left, right, J.inputs))


@pytest.mark.usefixtures("way")
def test_blocks_of_columns_add_up():
    f, z = network(), normal(2, 4, seed=5).requires_grad_()
    left, right = normal(2, 9, 6, seed=6), normal(2, 9, 4, seed=7)
    same(
        Jacobian(f, z, chunk_size=1).pull_back(left, right),
        Jacobian(f, z).pull_back(left, right),
    )


@pytest.mark.usefixtures("way")
def test_images_and_single_precision():
    conv = nn.Conv2d(1, 2, 3, padding=1).to(f32)
    z = normal(2, 1, 4, 4, dtype=f32).requires_grad_()
    J = Jacobian(lambda x: conv(x).tanh(), z, event_dim=3)
    left, right = normal(2, 3, 32, seed=1, dtype=f32), normal(2, 3, 16, seed=2, dtype=f32)

    def flat(point):
        return conv(point.view(1, 1, 4, 4)).tanh().flatten()

    found = J.pull_back(left, right)
    assert found[-1].shape == z.shape
    assert {t.dtype for t in found} == {f32}
    same(found, naive(flat, z.flatten(1), left, right, J.inputs), 1e-5)


def test_an_operation_without_forward_mode_is_repeated(monkeypatch):
    """Whichever way is first, the other one is found."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 2 * x * grad

    monkeypatch.setattr(derivative, "is_small", lambda *_: False)
    A, z = normal(5, 4).requires_grad_(), normal(2, 4, seed=5).requires_grad_()
    left, right = normal(2, 3, 5, seed=6), normal(2, 3, 4, seed=7)
    J = Jacobian(lambda x: Square.apply(x @ A.mT), z, check=False)
    expected = naive(lambda x: (A @ x) ** 2, z, left, right, [A, z])
    same(J.pull_back(left, right), expected)


# Shapes -------------------------------------------------------------------------------------------


def test_no_batch():
    f, z = network(), normal(4, seed=5).requires_grad_()
    left, right = normal(3, 6, seed=6), normal(3, 4, seed=7)
    J = Jacobian(f, z)
    found = J.pull_back(left, right)
    assert found[-1].shape == (4,)
    expected = naive(f, z[None], left[None], right[None], J.inputs)
    same(found, expected)


def test_replicates_are_summed_for_the_points_that_they_share():
    f, z = network(), normal(2, 3, 4, seed=5).requires_grad_()
    left, right = normal(5, 2, 3, 2, 6, seed=6), normal(5, 2, 3, 2, 4, seed=7)
    J = Jacobian(f, z)
    found = J.pull_back(left, right)
    assert found[-1].shape == (2, 3, 4)
    folded = [t.movedim(0, 2).reshape(6, 10, -1) for t in (left, right)]
    expected = naive(f, z.reshape(6, 4), *folded, J.inputs)
    same(found, expected)


def test_rows_broadcast_against_the_batch():
    f, z = network(), normal(3, 4, seed=5).requires_grad_()
    left, right = normal(2, 6, seed=6), normal(2, 4, seed=7)
    J = Jacobian(f, z)
    found = J.pull_back(left.expand(3, 2, 6), right)
    expected = naive(f, z, left.expand(3, 2, 6), right.expand(3, 2, 4), J.inputs)
    same(found, expected)


def test_the_adjoint_swaps_its_sides():
    f, z = network(), normal(3, 4, seed=5).requires_grad_()
    left, right = normal(3, 2, 6, seed=6), normal(3, 2, 4, seed=7)
    J = Jacobian(f, z)
    same(J.mT.pull_back(right, left), J.pull_back(left, right))
    assert J.mT.inputs == J.inputs


# What J depends on --------------------------------------------------------------------------------


def test_points_alone():
    A, z = normal(5, 4), normal(4, seed=5).requires_grad_()
    left, right = normal(2, 5, seed=6), normal(2, 4, seed=7)

    def f(x):
        return (x @ A.mT).sin()

    J = Jacobian(f, z)
    assert J.inputs == (z,)
    same(J.pull_back(left, right), naive(f, z[None], left[None], right[None], [z]))


def test_nothing():
    J = Jacobian(lambda x: x.sin(), normal(4))
    assert J.inputs == ()
    assert J.pull_back(normal(2, 4), normal(2, 4)) == ()


def test_parameters_that_are_frozen_are_left_out():
    f = network()
    f[0].requires_grad_(False)
    J = Jacobian(f, normal(4))
    assert [t is p for t, p in zip(J.inputs, f[2].parameters(), strict=True)] == [True, True]


def test_leaf_tensors_of_a_closure_are_found():
    A, b = normal(5, 4).requires_grad_(), normal(5, seed=1).requires_grad_()
    z, left, right = normal(2, 4, seed=5), normal(2, 3, 5, seed=6), normal(2, 3, 4, seed=7)

    def f(x):
        return (x @ A.mT + b).sin()

    J = Jacobian(f, z)
    found = dict(zip(map(id, J.inputs), J.pull_back(left, right), strict=True))
    expected = naive(f, z, left, right, [A, b])
    same([found[id(A)], found[id(b)]], expected)


@pytest.mark.usefixtures("way")
def test_a_tree_of_parameters_that_are_results_of_others():
    scale = torch.tensor(1.5, dtype=f64, requires_grad=True)
    A, z = normal(5, 4), normal(2, 4, seed=5)
    tree = {"first": [scale * A], "other": (scale**2, "a name", None)}
    left, right = normal(2, 3, 5, seed=6), normal(2, 3, 4, seed=7)

    def f(params, x):
        return (x @ params["first"][0].mT).sin() * params["other"][0]

    J = Jacobian(f, z, params=tree)
    assert [t is p for t, p in zip(J.inputs, [tree["first"][0], tree["other"][0]], strict=True)]
    grads = J.pull_back(left, right)
    (found,) = torch.autograd.grad(J.inputs, scale, grads)

    def whole(x):
        return (x @ (scale * A).mT).sin() * scale**2

    (expected,) = naive(whole, z, left, right, [scale])
    same([found], [expected])


def test_a_map_that_is_linear_in_its_points_has_no_gradient_there():
    A, z = normal(5, 4).requires_grad_(), normal(4, seed=5).requires_grad_()
    J = Jacobian(lambda x: x @ A.mT, z)
    left, right = normal(2, 5, seed=6), normal(2, 4, seed=7)
    of_matrix, at_points = J.pull_back(left, right)
    torch.testing.assert_close(of_matrix, left.mT @ right)
    assert not bool(at_points.any())


def test_a_parameter_modified_in_place_is_refused():
    f = network()
    J = Jacobian(f, normal(4))
    with torch.no_grad():
        f[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place"):
        J.pull_back(normal(1, 6), normal(1, 4))
