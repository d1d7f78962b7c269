"""Ways to a silently wrong gradient, each closed: what users do to f, its tensors and a loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from specbp import (
    Jacobian,
    JacobianMetric,
    RecordedOperator,
    ShiftedOperator,
    backprop_logdet,
    block_slq_logdet,
    chebyshev_logdet,
    golub_kahan_logdet,
    orthogonal,
    qr_logdet,
    slq_logdet,
    solve_logdet,
)
from specbp.jacobian.tape import StaleError
from tests.support import f32, f64, generator, geometric, normal, signs, spd


def dense_logdet(f, z):
    J = torch.func.vmap(torch.func.jacrev(f))(z)
    return torch.logdet(J.mT @ J)


def gradients(value, tensors):
    return torch.autograd.grad(value.sum(), tensors, materialize_grads=True, retain_graph=True)


def same(found, expected, tolerance=1e-8):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def normalised(width):
    """Forward mode over a LayerNorm has a wrong derivative in torch: ours must not pass there."""
    torch_layers = [nn.Linear(6, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, 8)]
    f = nn.Sequential(*torch_layers).double()
    for i, p in enumerate(f.parameters()):
        p.data = normal(*p.shape, seed=i) / p.shape[-1] ** 0.5 + (p.ndim == 1)
    return f


@pytest.mark.parametrize("width", [8, 4096])  # columns repeated, and columns by vmap
def test_layers_whose_forward_mode_is_not_differentiable_are_right(width):
    f, z = normalised(width), normal(2, 6, seed=9)
    expected = gradients(dense_logdet(f, z), list(f.parameters()))
    same(gradients(qr_logdet(Jacobian(f, z)).value, list(f.parameters())), expected)


def test_a_tensor_that_stands_twice_in_params_counts_once():
    W = normal(5, 5).requires_grad_()

    def f(p, z):
        return torch.tanh(z @ p["a"]) @ p["b"] @ p["c"].mT

    def tied(z):
        return torch.tanh(z @ W) @ W @ W.exp().mT

    z = normal(3, 5, seed=1)
    J = Jacobian(f, z, params={"a": W, "b": W, "c": W.exp()})
    same(gradients(qr_logdet(J).value, [W]), gradients(dense_logdet(tied, z), [W]))


def test_what_else_f_uses_has_its_gradient_beside_params():
    W, V = normal(4, 4).requires_grad_(), normal(4, 4, seed=1).requires_grad_()
    z = normal(2, 4, seed=2)
    J = Jacobian(lambda p, x: torch.tanh(x @ p[0]) @ V, z, params=[W])
    expected = gradients(dense_logdet(lambda x: torch.tanh(x @ W) @ V, z), [W, V])
    same(gradients(qr_logdet(J).value, [W, V]), expected)


@pytest.mark.parametrize("params", [nn.Linear(2, 2), nn.ParameterDict({"a": torch.ones(2)})])
def test_params_are_tensors_not_modules(params):
    with pytest.raises(TypeError, match="named_parameters"):
        Jacobian(lambda p, z: z, torch.ones(1, 2), params=params)


def test_a_name_bound_anew_before_backward_is_refused():
    nets = [nn.Linear(3, 3).double() for _ in range(2)]
    z, values = normal(2, 3), []
    for net in nets:
        values.append(qr_logdet(Jacobian(lambda x: torch.tanh(net(x)), z)).value.sum())  # noqa: B023
    with pytest.raises(StaleError, match="bound anew"):
        values[0].backward()
    values[1].backward()


def test_train_mode_before_backward_is_refused():
    f = nn.Sequential(nn.Linear(4, 16), nn.Dropout(), nn.Tanh(), nn.Linear(16, 4)).double().eval()
    value = qr_logdet(Jacobian(f, normal(2, 4))).value.sum()
    f.train()
    with pytest.raises(StaleError):
        value.backward()


def test_hooks_of_a_parameter_see_the_whole_gradient_once():
    W, z, seen = normal(5, 5).requires_grad_(), normal(4, 5, seed=1), []
    (plain,) = gradients(qr_logdet(Jacobian(lambda x: torch.tanh(x @ W), z)).value, [W])
    W.register_hook(lambda g: seen.append(g) or 2 * g)
    qr_logdet(Jacobian(lambda x: torch.tanh(x @ W), z)).value.sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(W.grad, 2 * plain)


def test_the_gradient_of_a_gradient_through_its_weight_is_refused_too():
    A, weight = spd(geometric(4, 3.0)).requires_grad_(), torch.ones((), dtype=f64).requires_grad_()
    value = slq_logdet(A, signs(4, 2), num_steps=4).value
    (first,) = torch.autograd.grad(weight * value, A, create_graph=True)
    with pytest.raises(RuntimeError, match="no derivative of its own"):
        torch.autograd.grad(first.square().sum(), weight)


def test_reverse_mode_refuses_operators_whose_products_are_detached():
    J = Jacobian(nn.Linear(3, 3).double(), normal(3))
    shift = torch.tensor(0.1, dtype=f64, requires_grad=True)
    for A in (ShiftedOperator(JacobianMetric(J), shift), ShiftedOperator(JacobianMetric(J), 0.1)):
        with pytest.raises(TypeError, match="keep no graph"):
            backprop_logdet(A, signs(3, 1), degree=3, interval=(0.01, 9.0))


def test_parameters_of_an_operator_are_leaves_and_count_once():
    theta = torch.ones(3, dtype=f64, requires_grad=True)
    with pytest.raises(ValueError, match="leaves"):
        RecordedOperator(torch.eye(3, dtype=f64), [theta, theta.exp()])
    assert len(RecordedOperator(torch.eye(3, dtype=f64), [theta, theta]).inputs) == 1


def test_one_shift_for_each_item_of_the_batch():
    A = torch.stack([spd(geometric(3, 2.0))] * 3)
    shifts = torch.tensor([0.5, 1.0, 2.0], dtype=f64, requires_grad=True)
    found = slq_logdet(ShiftedOperator(A, shifts), torch.eye(3, dtype=f64), num_steps=3).value
    expected = torch.logdet(A + shifts[:, None, None] * torch.eye(3, dtype=f64)) / 3
    torch.testing.assert_close(found, expected)
    same(gradients(found, [shifts]), gradients(expected, [shifts]))


@pytest.mark.parametrize("cond", [1e2, 1e4, 1e6])
def test_the_adjoint_is_right_along_large_eigenvalues_in_float32(cond):
    A, X = spd(geometric(40, cond)), signs(40, 3)
    ends = (0.9 / cond, 1.1)

    def gradient(estimate, dtype):
        B = A.to(dtype).clone().requires_grad_()
        value = estimate(B, X.to(dtype), degree=60, interval=ends).value
        return torch.autograd.grad(value, B)[0].double()

    expected = gradient(backprop_logdet, f64)
    v = torch.linalg.eigh(A)[1][:, -1]  # G is smallest there, and A largest
    found = gradient(chebyshev_logdet, f32)
    assert float(v @ (found - expected) @ v) == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_dependent_probes_do_not_bias_the_gradient_of_a_block_along_its_matrix(num_steps):
    A = spd(geometric(32, 50.0))
    X = orthogonal(32, 12, generator=generator(), dtype=f64)
    scale = torch.ones((), dtype=f64, requires_grad=True)
    found = block_slq_logdet(scale * A, X, num_steps=num_steps)
    (gradient,) = torch.autograd.grad(found.value, scale)
    assert float(gradient) == pytest.approx(32, rel=1e-10)


@pytest.mark.parametrize("num_steps", [None, 3])
def test_a_probe_of_zeros_adds_nothing_to_the_gradient_of_a_solve(num_steps):
    A = spd(geometric(3, 4.0)).requires_grad_()
    X = torch.stack([torch.ones(3, dtype=f64), torch.zeros(3, dtype=f64)], -1)
    both, one, none = (
        solve_logdet(A, x, rtol=1e-12, num_steps=num_steps).value for x in (X, X[:, :1], 0 * X)
    )
    same(gradients(2 * both, [A]), gradients(one, [A]))
    assert float(none.detach()) == 0
    same(gradients(none, [A]), [torch.zeros(3, 3, dtype=f64)])


def test_ill_conditioned_factors_keep_their_digits():
    sigma = torch.logspace(0, -6, 6, dtype=f64).requires_grad_()
    found = golub_kahan_logdet(
        Jacobian(lambda z: torch.tanh(z) * sigma, torch.zeros(1, 6, dtype=f64)),
        6**0.5 * torch.linalg.qr(normal(6, 6))[0],
        num_steps=6,
    )
    (gradient,) = gradients(found.value, [sigma])
    torch.testing.assert_close(
        gradient * sigma, torch.full((6,), 2.0, dtype=f64), rtol=1e-6, atol=0
    )
