"""Nyström-preconditioned log det against dense twins: sketch, correction, law, brackets, limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.estimate import Status
from specbp.nystrom import Whitened, nystrom_logdet, nystrom_preconditioner
from specbp.testing.designs import all_signs, sign_tuples
from tests.support import (
    f32,
    f64,
    flags,
    geometric,
    log_forms,
    naive_gauss,
    normal,
    signs,
    spd,
    variance_of_signs,
)


def decaying(n=40, noise=0.05, seed=0):
    """K + noise: K falls from 100 by a factor of 3 each."""
    return spd(100.0 / 3.0 ** torch.arange(n, dtype=f64), seed) + noise * torch.eye(n, dtype=f64)


def naive_preconditioner(A, S, mu):
    """P by dense pseudo-inverses, in the order of the definition."""
    n, s = A.shape[0], min(S.shape)
    K = A - mu * torch.eye(n, dtype=f64)
    K_hat = K @ S @ torch.linalg.pinv(S.mT @ K @ S, rtol=1e-13) @ S.mT @ K
    values, V = torch.linalg.eigh((K_hat + K_hat.mT) / 2)
    U, top = V[:, -s:], values[-s:]
    c = float(top.min()) + mu
    return c * torch.eye(n, dtype=f64) + (U * (top + mu - c)) @ U.mT


def whiten(A, P):
    values, V = torch.linalg.eigh(P)
    half = (V * values.rsqrt()) @ V.mT
    M = half @ A @ half
    return (M + M.mT) / 2


def log_matrix(M):
    values, V = torch.linalg.eigh(M)
    return (V * values.log()) @ V.mT


def built(A, S, mu=0.0):
    P, status = nystrom_preconditioner(A, S.mT.contiguous(), mu or None)
    return P, Status(int(status))


def dense(P):
    n = P.vectors.shape[-1]
    excess = (P.values - P.rest).unsqueeze(-1) * P.vectors
    return P.rest * torch.eye(n, dtype=f64) + P.vectors.mT @ excess


# The preconditioner -------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [0.0, 0.05])
@pytest.mark.parametrize("s", [1, 4, 9])
def test_preconditioner_is_that_of_the_definition(mu, s):
    A, S = decaying(), signs(40, s)
    P, status = built(A, S, mu)
    torch.testing.assert_close(dense(P), naive_preconditioner(A, S, mu), rtol=0, atol=1e-10)
    assert float(P.log_det) == pytest.approx(float(torch.logdet(dense(P))), rel=1e-12)
    assert float(P.cond) == pytest.approx(float(torch.linalg.cond(dense(P))), rel=1e-9)
    assert status == Status.OK


def test_only_the_range_of_the_sketch_counts():
    A, S = decaying(), signs(40, 5)
    P = dense(built(A, S)[0])
    for other in (S[:, [3, 1, 0, 4, 2]], S @ normal(5, 5), torch.cat([S, S[:, :3]], 1)):
        torch.testing.assert_close(dense(built(A, other)[0]), P, rtol=0, atol=1e-9)


def test_the_shift_that_keeps_the_sketch_stable_is_taken_off_again():
    P, _ = nystrom_preconditioner(torch.eye(64, dtype=f32), signs(64, 60, dtype=f32).mT)
    stable = 2.0**-23 * 60**0.5
    assert abs(float(P.values.mean()) - 1) < stable / 4


@pytest.mark.parametrize("dtype", [f32, f64])
def test_whitened_operator_is_the_dense_product(dtype):
    A, S = decaying().to(dtype), signs(40, 6, dtype=dtype)
    P, _ = nystrom_preconditioner(A, S.mT, 0.05)
    M, X = whiten(A.double(), dense(P)), normal(40, 3)
    W = Whitened(A, P)
    found = W @ X.to(dtype)
    assert (found.dtype, W.dtype, W.shape) == (dtype, dtype, A.shape)
    tolerance = {f32: 3e-3, f64: 1e-10}[dtype]
    torch.testing.assert_close(found.double(), M @ X, rtol=0, atol=tolerance)


def test_sketch_of_the_effective_dimension_leaves_a_small_condition_number():
    A = decaying()
    M = whiten(A, dense(built(A, signs(40, 14), 0.05)[0]))
    assert float(torch.linalg.cond(A)) > 1e3
    assert float(torch.linalg.cond(M)) < 3


# Each probe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [None, 0.05])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_each_probe_gives_the_gauss_rule_of_the_whitened_matrix(mu, k):
    A, S, X = decaying(), signs(40, 5, seed=1), signs(40, 7, seed=2)
    est = nystrom_logdet(A, torch.cat([S, X], 1), num_sketch=5, num_steps=k, shift=mu)
    P = naive_preconditioner(A, S, mu or 0.0)
    expected = torch.logdet(P) + naive_gauss(whiten(A, P), X, k)
    torch.testing.assert_close(est.samples, expected, rtol=0, atol=1e-8)
    assert est.num_matvecs == 5 + 7 * k
    assert est.samples.shape == (7,)
    assert flags(est) == Status.OK
    deviation = est.samples.std() / 7**0.5
    assert float(est.standard_error) == pytest.approx(float(deviation), rel=1e-12)


# The whole law ------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [1, 3])
def test_given_the_sketch_mean_and_variance_over_all_signs_are_exact(s):
    n = 8
    A, S = spd(geometric(n, 1e3)), signs(n, s, seed=3)
    est = nystrom_logdet(A, torch.cat([S, all_signs(n).columns], 1), num_sketch=s, num_steps=n)
    L = log_matrix(whiten(A, naive_preconditioner(A, S, 0.0)))
    assert float(est.value) == pytest.approx(float(torch.logdet(A)), abs=1e-9)
    assert float(est.samples.var(correction=0)) == pytest.approx(variance_of_signs(L), rel=1e-8)


@pytest.mark.parametrize("s", [1, 2])
def test_over_all_tuples_it_is_unbiased_and_the_standard_error_calibrated(s):
    """Sketches of coinciding probes included: 512 and 4096 blocks."""
    A, design = spd(geometric(4, 50.0)), sign_tuples(4, s + 2)
    est = nystrom_logdet(A, design.probes, num_sketch=s, num_steps=4)
    assert design.mean(est.value) == pytest.approx(float(torch.logdet(A)), abs=1e-10)
    squares = est.standard_error.square()
    assert design.mean(squares) == pytest.approx(design.variance(est.value), rel=1e-9)
    assert bool(est.ok.all())


def test_variance_is_far_below_that_of_plain_probes_where_the_spectrum_decays():
    A = spd(torch.arange(1, 61, dtype=f64) ** -2.0)
    L = log_matrix(whiten(A, dense(built(A, signs(60, 20))[0])))
    assert variance_of_signs(L) < 0.25 * variance_of_signs(log_matrix(A))


# Exact cases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("s", [12, 20])
def test_a_sketch_of_n_probes_is_exact(dtype, s):
    A = spd(geometric(12, 100.0)).to(dtype)
    X = normal(12, s + 3, seed=4, dtype=dtype)
    est = nystrom_logdet(A, X, num_sketch=s, num_steps=2)
    tolerance = {f32: 1e-3, f64: 1e-11}[dtype]
    assert float(est.value) == pytest.approx(float(torch.logdet(A.double())), abs=tolerance)
    assert float(est.standard_error) <= tolerance
    assert est.num_matvecs == 12 + 3 * 2
    assert bool(est.ok)


def test_low_rank_plus_noise_is_exact_from_as_many_probes_as_the_rank():
    n, noise = 30, 0.1
    L = normal(n, 4)
    A = L @ L.mT + noise * torch.eye(n, dtype=f64)
    est = nystrom_logdet(A, signs(n, 8, seed=5), num_sketch=5, num_steps=1, shift=noise)
    assert float(est.value) == pytest.approx(float(torch.logdet(A)), abs=1e-10)
    assert float(est.standard_error) <= 1e-10
    assert bool(est.ok)


@pytest.mark.parametrize("c", [1e-3, 1.0, 7.0])
@pytest.mark.parametrize("mu", [None, 0.5])
def test_multiples_of_the_identity_are_exact(c, mu):
    A, shift = c * torch.eye(9, dtype=f64), mu and mu * c
    est = nystrom_logdet(A, signs(9, 5), num_sketch=2, num_steps=2, shift=shift, lower=0.5 * c)
    for found in (est.value, est.upper, est.lower):
        assert float(found) == pytest.approx(9 * math.log(c), abs=1e-11)


@pytest.mark.parametrize("mu", [None, 1e-4, 0.02, 3.0])
def test_any_shift_is_exact_in_the_full_krylov_space(mu):
    """Also one above λ_min, for which K is not positive."""
    A, X = spd(geometric(10, 100.0)), torch.cat([signs(10, 4), all_signs(10).columns], 1)
    est = nystrom_logdet(A, X, num_sketch=4, num_steps=10, shift=mu)
    assert float(est.value) == pytest.approx(float(torch.logdet(A)), abs=1e-9)


# Brackets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [None, 0.02, 0.05, 0.2])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_brackets_hold_for_every_probe(mu, k):
    """One residual probe an estimate, so that nothing averages out; lower = 0.049 < λ_min."""
    A, S, X = decaying(), signs(40, 5, seed=6), signs(40, 30, seed=7)
    blocks = torch.cat([S.expand(30, 40, 5), X.mT.unsqueeze(-1)], -1)
    est = nystrom_logdet(A, blocks, num_sketch=5, num_steps=k, shift=mu, lower=0.049)
    P = dense(built(A, S, mu or 0.0)[0])
    truth = torch.logdet(P) + log_forms(whiten(A, P), X)
    assert bool((est.lower <= truth + 1e-9).all())
    assert bool((truth <= est.upper + 1e-9).all())
    assert bool((est.upper == est.value).all())
    assert bool(torch.isfinite(est.lower).all())
    plain = nystrom_logdet(A, blocks, num_sketch=5, num_steps=k, shift=mu)
    assert bool((plain.lower == -math.inf).all())


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 12),
    s=st.integers(1, 12),
    cond=st.floats(1, 1e5),
    mu=st.floats(0, 3),
    fraction=st.floats(0.1, 1),
)
def test_smallest_ratio_is_a_lower_bound(seed, n, s, cond, mu, fraction):
    """λ_min = 1 / cond, lower a fraction of it, and the shift from 0 to above."""
    A, lower = spd(geometric(n, cond), seed), fraction / cond
    P, _ = built(A, signs(n, s, seed=seed), mu * lower)
    smallest = torch.linalg.eigvalsh(whiten(A, dense(P)))[0]
    assert float(P.smallest_ratio(torch.tensor(lower, dtype=f64))) <= float(smallest) * (1 + 1e-8)


def test_noise_as_shift_and_lower_bound_gives_the_sharp_ratio():
    A = decaying()
    P, _ = built(A, signs(40, 5), 0.05)
    found = float(P.smallest_ratio(torch.tensor(0.05, dtype=f64)))
    assert found == pytest.approx(0.05 / float(P.rest), rel=1e-9)


# Laws ---------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), c=st.floats(1e-6, 1e6), shifted=st.booleans())
def test_scaling_adds_n_log_c(seed, c, shifted):
    A, X = decaying(12, seed=seed), signs(12, 6, seed=seed)
    mu = 0.05 if shifted else None
    one = nystrom_logdet(A, X, num_sketch=3, num_steps=4, shift=mu)
    two = nystrom_logdet(c * A, X, num_sketch=3, num_steps=4, shift=mu and c * mu)
    torch.testing.assert_close(two.samples, one.samples + 12 * math.log(c), rtol=0, atol=1e-7)


def test_order_within_sketch_and_rest_does_not_matter():
    A, X = decaying(), signs(40, 9)
    one = nystrom_logdet(A, X, num_sketch=4, num_steps=3)
    two = nystrom_logdet(A, X[:, [2, 0, 3, 1, 8, 7, 4, 5, 6]], num_sketch=4, num_steps=3)
    assert float(two.value) == pytest.approx(float(one.value), abs=1e-8)
    assert float(two.standard_error) == pytest.approx(float(one.standard_error), rel=1e-8)


def test_a_batch_equals_its_items():
    A = torch.stack([decaying(20, seed=s) for s in range(3)])
    X, mu = signs(2, 1, 20, 8), torch.tensor([0.05, 0.01, 0.05], dtype=f64)
    X = X.expand(2, 3, 20, 8) * signs(2, 3, 1, 8, seed=9)
    both = nystrom_logdet(A, X, num_sketch=3, num_steps=4, shift=mu, lower=0.04)
    assert both.num_matvecs == 3 + 5 * 4
    for i in range(2):
        for j in range(3):
            one = nystrom_logdet(
                A[j], X[i, j], num_sketch=3, num_steps=4, shift=float(mu[j]), lower=0.04
            )
            for name in ("value", "standard_error", "lower", "upper", "samples"):
                found, single = getattr(both, name)[i, j], getattr(one, name)
                torch.testing.assert_close(found, single, rtol=0, atol=1e-8)


def test_float32_agrees_with_float64():
    A, X = decaying(), signs(40, 10)
    one = nystrom_logdet(A, X, num_sketch=6, num_steps=5, shift=0.05)
    two = nystrom_logdet(A.to(f32), X.to(f32), num_sketch=6, num_steps=5, shift=0.05)
    assert two.value.dtype == f64
    torch.testing.assert_close(two.samples, one.samples, rtol=0, atol=0.02)
    assert flags(two) == Status.OK
