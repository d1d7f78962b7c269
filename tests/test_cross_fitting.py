"""Gradients of block estimates against dense matrices, loops over pairs, and all sign tuples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp import (
    Jacobian,
    JacobianMetric,
    block_golub_kahan_logdet,
    block_slq_logdet,
)
from specbp.testing.designs import sign_tuples
from tests.support import f32, factor, geometric, normal, signs, spd


def krylov_basis(A, X, k):
    """Orthonormal columns of span{X, AX, …}, by SVD of the whole Krylov matrix."""
    blocks = [X]
    for _ in range(k - 1):
        blocks.append(A @ blocks[-1] / np.linalg.norm(A, 2))
    U, sizes, _ = np.linalg.svd(np.concatenate(blocks, 1), full_matrices=False)
    return U[:, sizes > 1e-8 * sizes[0]]


def derivative_of_log(T, E):
    """L(T; E) of log, one pair of eigenvalues at a time."""
    nodes, S = np.linalg.eigh(T)
    inside = S.T @ E @ S
    for a, x in enumerate(nodes):
        for b, y in enumerate(nodes):
            same = abs(x - y) < 1e-9 * x
            inside[a, b] *= 1 / x if same else (np.log(x) - np.log(y)) / (x - y)
    return S @ inside @ S.T


def naive(A, X, k, groups):
    """The formula of `sensitivity`, with projections of A itself on every space."""
    s = X.shape[1]
    W = krylov_basis(A, X, k)
    G = np.zeros_like(A)
    for part in np.array_split(np.arange(s), min(groups, s)):
        others = np.setdiff1d(np.arange(s), part)
        Wg = krylov_basis(A, X[:, others], k)
        T, Tg = W.T @ A @ W, Wg.T @ A @ Wg
        left = len(A) - Wg.shape[1]
        level = derivative_of_log(Tg, Wg.T @ X[:, others] @ X[:, others].T @ Wg) / len(others)
        level = (level - np.linalg.inv(Tg)) / left
        for i in part:
            x = X[:, [i]]
            G += W @ derivative_of_log(T, W.T @ x @ x.T @ W) @ W.T / s
            inside = np.linalg.inv(Tg) - derivative_of_log(Tg, Wg.T @ x @ x.T @ Wg)
            outside = left - (np.linalg.norm(x) ** 2 - np.linalg.norm(Wg.T @ x) ** 2)
            G += Wg @ (inside + outside * level) @ Wg.T / s
    return torch.from_numpy(G)


def gradient(A, X, **config):
    A = A.clone().requires_grad_()
    return torch.autograd.grad(block_slq_logdet(A, X, **config).value.sum(), A)[0]


@pytest.mark.parametrize(("s", "k", "groups"), [(4, 2, 4), (4, 3, 2), (5, 2, 2), (2, 1, 5)])
def test_the_gradient_is_that_of_the_formula(s, k, groups):
    A, X = spd(geometric(24, 30.0)), normal(24, s)
    expected = naive(A.numpy(), X.numpy(), k, groups)
    found = gradient(A, X, num_steps=k, groups=groups)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_it_is_the_inverse_where_the_space_is_full():
    A = spd(geometric(12, 1e3))
    found = gradient(A, normal(12, 4), num_steps=3)
    torch.testing.assert_close(found, torch.linalg.inv(A), rtol=1e-9, atol=1e-9)


def test_one_probe_has_no_others():
    A, X = spd(geometric(10, 20.0)), normal(10, 1)
    W = krylov_basis(A.numpy(), X.numpy(), 4)
    E = W.T @ X.numpy() @ X.numpy().T @ W
    expected = torch.from_numpy(W @ derivative_of_log(W.T @ A.numpy() @ W, E) @ W.T)
    torch.testing.assert_close(gradient(A, X, num_steps=4), expected, rtol=1e-9, atol=1e-9)


def in_the_space(A, X, k):
    """The first bracket alone: derivatives in the space of all probes."""
    W = krylov_basis(A, X, k)
    return W @ derivative_of_log(W.T @ A @ W, W.T @ X @ X.T @ W) @ W.T / X.shape[1]


def test_the_control_variate_is_zero_on_average_over_all_signs():
    A, design = spd(geometric(4, 10.0)), sign_tuples(4, 3)
    found = gradient(A.expand(512, 4, 4), design.probes, num_steps=1, groups=3)
    inside = [in_the_space(A.numpy(), X, 1) for X in design.probes.numpy()]
    plain = torch.from_numpy(np.stack(inside))
    gap = (found - plain).abs().amax((-2, -1))
    assert (gap > 1e-2).sum() > 100  # it is not zero for each of them
    torch.testing.assert_close(found.mean(0), plain.mean(0), rtol=1e-12, atol=1e-12)


def test_the_metric_of_a_jacobian_and_its_factor_have_the_gradient_of_the_dense_matrix():
    weight = factor(geometric(8, 6.0), 11).requires_grad_()

    def f(z):
        return torch.tanh(z @ weight.mT)

    z, X = normal(3, 8), normal(3, 8, 3, seed=1)
    dense = torch.func.vmap(torch.func.jacrev(f))(z)
    J = Jacobian(f, z)
    (expected,) = torch.autograd.grad(
        block_slq_logdet(dense.mT @ dense, X, num_steps=2).value.sum(), weight, retain_graph=True
    )
    for found in (
        block_golub_kahan_logdet(J, X, num_steps=2),
        block_slq_logdet(JacobianMetric(J), X, num_steps=2),
        block_golub_kahan_logdet(dense, X, num_steps=2),
    ):
        (gradient,) = torch.autograd.grad(found.value.sum(), weight, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-9)


def test_every_sample_brings_the_gradient_of_the_mean():
    A = spd(geometric(20, 10.0)).requires_grad_()
    found = block_slq_logdet(A, normal(20, 4), num_steps=2)
    (of_value,) = torch.autograd.grad(found.value, A, retain_graph=True)
    (of_first,) = torch.autograd.grad(found.samples[0], A)
    torch.testing.assert_close(of_first, of_value, rtol=1e-12, atol=1e-12)
    assert not any(t.requires_grad for t in (found.standard_error, found.lower, found.upper))


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 20))
def test_scaling_the_matrix_divides_the_gradient(scale, seed):
    A, X = spd(geometric(14, 20.0), seed), signs(14, 3, seed=seed)
    found, scaled = (gradient(B, X, num_steps=2) for B in (A, scale * A))
    torch.testing.assert_close(scale * scaled, found, rtol=1e-8, atol=1e-9)


def test_batches_have_the_gradients_of_their_items():
    A = torch.stack([spd(geometric(10, c)) for c in (5.0, 50.0)])
    X = normal(2, 10, 3)
    found = gradient(A, X, num_steps=2)
    for i in range(2):
        torch.testing.assert_close(
            found[i], gradient(A[i], X[i], num_steps=2), rtol=1e-9, atol=1e-10
        )


def test_float32_is_that_of_float64_to_its_rounding():
    A, X = spd(geometric(16, 10.0)), normal(16, 4)
    found = gradient(A.to(f32), X.to(f32), num_steps=3).double()
    torch.testing.assert_close(found, gradient(A, X, num_steps=3), rtol=2e-4, atol=2e-4)


def test_an_item_that_failed_has_no_gradient_and_the_others_have_theirs():
    A = torch.stack([spd(geometric(10, 5.0)), -spd(geometric(10, 5.0))]).requires_grad_()
    X = normal(10, 3)
    found = block_slq_logdet(A, X, num_steps=2)
    assert torch.isnan(found.value).tolist() == [False, True]
    (found,) = torch.autograd.grad(found.value.sum(), A)
    torch.testing.assert_close(found[0], gradient(A[0].detach(), X, num_steps=2))
    assert torch.isnan(found[1]).all()


def test_the_noise_of_the_space_is_cancelled_by_the_control_variate():
    """A space of 36 of 40 dimensions: most of the noise is known."""
    A, X = spd(geometric(40, 5.0)), normal(20, 40, 12)
    exact = torch.linalg.inv(A)
    found = gradient(A.expand(20, 40, 40), X, num_steps=3, groups=12)
    plain = [torch.from_numpy(in_the_space(A.numpy(), x, 3)) for x in X.numpy()]
    error, without = ((G - exact).square().sum().sqrt() for G in (found, torch.stack(plain)))
    assert error < 0.7 * without
