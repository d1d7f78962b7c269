"""Captured Krylov spaces against dense projections probe by probe: laws, brackets, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbp.deflation import krylov_aware_golub_kahan_logdet, krylov_aware_logdet
from specbp.estimate import Status
from specbp.logdets import slq_logdet
from specbp.testing.designs import all_signs, sign_tuples
from tests.support import f32, f64, factor, flags, geometric, log_forms, normal, signs, spd

SHAPE = {"num_block": 2, "block_steps": 2, "extra_steps": 1, "num_steps": 4}


def on_factor(A, X, **config):
    return krylov_aware_golub_kahan_logdet(torch.linalg.cholesky(A).mT.contiguous(), X, **config)


both = pytest.mark.parametrize("estimate", [krylov_aware_logdet, on_factor])


def grow(A, columns, steps, known=()):
    """Orthonormal basis of a block Krylov space, vector by vector, beside vectors known."""
    basis, block = [], list(columns.T)
    for _ in range(steps):
        fresh = []
        for v in block:
            for _ in range(3):
                for q in [*known, *basis]:
                    v = v - (q @ v) * q
            fresh.append(v / np.linalg.norm(v))
            basis.append(fresh[-1])
        block = [A @ v for v in fresh]
    return basis


def naive(A, X, b, q, r, k, inner=None):
    """One value per probe from a dense projection of A; inner(W): what grows V instead of A."""
    A, X = A.numpy(), X.numpy()
    W = grow(A, X[:, :b], q + r)
    Q = np.array(W[: (q + 1) * b]).T
    nodes, S = np.linalg.eigh(np.array(W) @ A @ np.array(W).T)
    captured = (S[: (q + 1) * b] ** 2 @ np.log(nodes)).sum()
    logs = [(S.T @ (np.array(W) @ x)) ** 2 @ np.log(nodes) for x in X[:, :b].T]
    n, d = Q.shape
    c = np.clip((np.mean(logs) - captured) / (n - d), *np.log(nodes[[0, -1]]))
    parts = []
    for x in X[:, b:].T:
        y = x - Q @ (Q.T @ x)
        V = grow(A if inner is None else inner(np.array(W).T), y[:, None], k, W)
        B = np.array([*W, *V]).T
        nodes, S = np.linalg.eigh(B.T @ A @ B)
        held = (S[: (q + 1) * b] ** 2).sum(0) @ np.log(nodes)
        parts.append((held, (S.T @ (B.T @ y)) ** 2 @ np.log(nodes), y @ y))
    values = []
    for i, (held, form, square) in enumerate(parts):
        others = [part for j, part in enumerate(parts) if j != i]
        centre = sum(p[1] for p in others) / sum(p[2] for p in others) if others else c
        values.append(held + form - centre * (square - (n - d)))
    return torch.tensor(np.array(values))


def schur(A):
    """What Golub–Kahan on (I − UUᵀ) J (I − WWᵀ) sees of A = JᵀJ."""

    def inner(W):
        AW = A.numpy() @ W
        return A.numpy() - AW @ np.linalg.solve(W.T @ AW, AW.T)

    return inner


# Each probe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "q", "r", "k"), [(1, 0, 1, 1), (2, 2, 1, 4), (3, 1, 2, 2), (1, 4, 3, 6)]
)
def test_each_sample_is_that_of_a_dense_projection(b, q, r, k):
    A, X = spd(geometric(30, 50.0)), signs(30, b + 3)
    config = {"num_block": b, "block_steps": q, "extra_steps": r, "num_steps": k}
    est = krylov_aware_logdet(A, X, **config)
    torch.testing.assert_close(est.samples, naive(A, X, b, q, r, k), rtol=1e-9, atol=1e-9)
    assert est.num_matvecs == b * (q + r) + 3 * k
    assert flags(est) == Status.OK
    est = on_factor(A, X, **config)
    expected = naive(A, X, b, q, r, k, schur(A))
    torch.testing.assert_close(est.samples, expected, rtol=1e-9, atol=1e-9)
    assert est.num_matvecs == b * (q + r - 0.5) + 3 * (k - 0.5)


@both
def test_value_and_error_are_those_of_the_samples(estimate):
    est = estimate(spd(geometric(30, 50.0)), signs(30, 8), **SHAPE)
    assert est.samples.shape == (6,)
    assert float(est.value) == pytest.approx(float(est.samples.mean()))
    assert float(est.standard_error) == pytest.approx(float(est.samples.std() / 6**0.5))


# The whole law ------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("m", [1, 2])
def test_mean_over_all_tuples_of_signs_is_exact_once_the_joined_space_is_full(estimate, m):
    """Whatever the block and c_i: neither of them biases."""
    A, tuples = spd(geometric(5, 100.0)), sign_tuples(5, m).probes
    X = torch.cat([normal(5, 1).expand(len(tuples), 5, 1), tuples], -1)
    config = {"num_block": 1, "block_steps": 1, "extra_steps": 3, "num_steps": 1}
    est = estimate(A, X, **config, lower=1e-3)
    assert float(est.value.mean()) == pytest.approx(float(torch.logdet(A)), abs=1e-9)
    assert float(est.samples.std()) > 0.1
    torch.testing.assert_close(est.lower, est.upper)


@both
def test_mean_over_all_signs_is_bracketed_when_it_is_not(estimate):
    A, design = spd(geometric(10, 1e3)), all_signs(10).probes
    X = torch.cat([signs(10, 1, seed=3).expand(len(design), 10, 1), design], -1)
    exact = float(torch.logdet(A))
    gaps = []
    for k in (2, 3, 4):
        config = {"num_block": 1, "block_steps": 1, "extra_steps": 1, "num_steps": k}
        est = estimate(A, X, **config, lower=0.9e-3)
        assert float(est.lower.mean()) < exact < float(est.upper.mean())
        torch.testing.assert_close(est.upper, est.value)
        gaps.append(float((est.upper - est.lower).mean()))
    assert gaps == sorted(gaps, reverse=True)


@both
def test_each_sample_is_bracketed(estimate):
    """The truncated form is that of log A on Q, on y, and the shift, known exactly."""
    A, X = spd(geometric(40, 1e4), 2), signs(40, 9)
    config = {"num_block": 3, "block_steps": 2, "extra_steps": 2, "num_steps": 5}
    est = estimate(A, X, **config, lower=0.8e-4)
    full = estimate(A, X, **(config | {"num_steps": 28}))
    assert float(est.lower) < float(full.value) < float(est.upper)


@pytest.mark.parametrize("k", [3, 10])
def test_standard_error_is_calibrated(k):
    A, R, m = spd(geometric(60, 1e3)), 300, 5
    X = signs(R, m + 2, 60, seed=9).mT
    est = krylov_aware_logdet(A, X, **(SHAPE | {"num_steps": k}))
    alone = signs(R, m, 60, seed=10).mT
    # One block for all: the variance is that given the space.
    alone = torch.cat([X[:1, :, :2].expand(R, -1, -1), alone], -1)
    given = krylov_aware_logdet(A, alone, **(SHAPE | {"num_steps": k}))
    ratio = float(given.standard_error.square().mean() / given.value.var())
    assert 0.7 < ratio < 1.4
    assert bool(est.ok.all())


# Exactness and laws -------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("block_steps", [0, 3, 40])
def test_exact_when_the_block_fills_the_space(estimate, block_steps):
    A, X = spd(geometric(20, 1e4)), signs(20, 6)
    config = {"num_block": 3, "block_steps": block_steps, "extra_steps": 30, "num_steps": 1}
    est = estimate(A, X, **config, lower=1e-5)
    assert float(est.value) == pytest.approx(float(torch.logdet(A)), rel=1e-11)
    assert float(est.standard_error) <= 1e-10
    assert float(est.upper - est.lower) <= 1e-10
    assert flags(est) == Status.INVARIANT_SUBSPACE


@both
def test_exact_for_few_distinct_eigenvalues_captured(estimate):
    """An invariant space of four outliers, and a bulk that log(A) = c I makes certain."""
    values = torch.cat([torch.tensor([9e3, 5e3, 2e3, 1e-3], dtype=f64), torch.full((36,), 7.0)])
    A, X = spd(values.double()), signs(40, 9)
    est = estimate(A, X, num_block=4, block_steps=6, extra_steps=1, num_steps=3)
    assert float(est.value) == pytest.approx(float(values.log().sum()), rel=1e-9)
    assert float(est.standard_error) <= 1e-6


@both
@settings(max_examples=15, deadline=None)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_scaling_adds_n_log_c_to_every_sample(estimate, scale, seed):
    A, X = spd(geometric(20, 30.0), seed), signs(20, 6, seed=seed)
    plain, scaled = (
        estimate(B, X, **SHAPE, lower=low) for B, low in ((A, 1 / 31), (A * scale, scale / 31))
    )
    torch.testing.assert_close(
        scaled.samples, plain.samples + 20 * math.log(scale), rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(
        scaled.lower, plain.lower + 20 * math.log(scale), rtol=1e-7, atol=1e-7
    )


@both
def test_order_of_the_remainders_and_of_the_block_is_free(estimate):
    A, X = spd(geometric(30, 50.0)), signs(30, 7)
    plain = estimate(A, X, **SHAPE)
    order = torch.tensor([1, 0, 6, 4, 2, 3, 5])
    mixed = estimate(A, X[:, order], **SHAPE)
    torch.testing.assert_close(mixed.samples, plain.samples[order[2:] - 2], rtol=1e-9, atol=1e-9)


@both
def test_batches_equal_single_calls(estimate):
    """Items of unequal rank: one closes early, one fills its space."""
    close = torch.tensor([5.0] * 3 + [2.0] * 9, dtype=f64)
    A = torch.stack([spd(geometric(12, 50.0)), spd(close, 1), spd(geometric(12, 3.0), 2)])
    X = signs(2, 3, 12, 5, seed=4)
    config = {"num_block": 2, "block_steps": 2, "extra_steps": 2, "num_steps": 3, "lower": 0.01}
    whole = estimate(A, X, **config)
    for i in range(2):
        for j in range(3):
            one = estimate(A[j], X[i, j], **config)
            torch.testing.assert_close(whole.value[i, j], one.value, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(whole.lower[i, j], one.lower, rtol=1e-8, atol=1e-8)
            assert int(whole.status[i, j]) == int(one.status)
            assert whole.num_matvecs == one.num_matvecs


def test_float32_holds_on_a_factor_at_condition_1e8():
    J = factor(torch.logspace(0, -4, 40, dtype=f64), 60).to(f32)
    X = signs(40, 9, dtype=f32)
    config = {"num_block": 3, "block_steps": 3, "extra_steps": 1, "num_steps": 20}
    est = krylov_aware_golub_kahan_logdet(J, X, **config)
    exact = krylov_aware_golub_kahan_logdet(J.double(), X.double(), **config)
    assert est.value.dtype == f64
    assert float((est.samples - exact.samples).abs().max()) <= 2e-2
    squared = krylov_aware_logdet(J.mT @ J, X, **config)
    assert not bool(squared.ok)


@pytest.mark.parametrize("seed", range(3))
def test_capturing_outliers_beats_plain_quadrature(seed):
    values = torch.cat(
        [torch.logspace(0, 4, 10, dtype=f64), torch.linspace(1e-2, 1.1e-2, 90, dtype=f64)]
    )
    A, exact = spd(values, seed), float(values.log().sum())
    X = signs(20, 20, 100, seed=seed).mT
    slq = slq_logdet(A, X[..., :10], num_steps=8)
    est = krylov_aware_logdet(
        A, X[..., :10], num_block=5, block_steps=7, extra_steps=1, num_steps=8
    )
    assert est.num_matvecs == slq.num_matvecs
    assert (
        float((est.value - exact).square().mean())
        < float((slq.value - exact).square().mean()) / 100
    )


def test_samples_bound_the_forms_from_above():
    """tr Qᵀ log(A) Q + yᵀ log(A) y, with Q and y rebuilt densely: one probe, so that c is known."""
    A, X = spd(geometric(30, 1e3)), signs(40, 3, 30).mT
    est = krylov_aware_logdet(A, X, **SHAPE, lower=0.9e-3)
    for i in range(40):
        Q = torch.from_numpy(np.array(grow(A.numpy(), X[i, :, :2].numpy(), 3))).mT
        y = X[i, :, 2:] - Q @ (Q.mT @ X[i, :, 2:])
        nodes, S = torch.linalg.eigh(Q.mT @ A @ Q)
        logs = (nodes.log().unsqueeze(-1) * (S.mT @ (Q.mT @ X[i, :, :2])) ** 2).sum(0).mean()
        c = ((logs - nodes.log().sum()) / 24).clamp(nodes.min().log(), nodes.max().log())
        truth = log_forms(A, Q).sum() + log_forms(A, y) - c * (y.square().sum(0) - 24)
        assert float(est.lower[i]) < float(truth) < float(est.upper[i])
