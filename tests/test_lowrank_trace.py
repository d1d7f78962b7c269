"""Hutch++, XTrace and XNysTrace against their definitions, over all tuples of sign vectors."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbp.lowrank_trace import hutchpp_trace, xnystrace, xtrace
from specbp.probes import gaussian, orthogonal, sphere
from specbp.testing.designs import sign_tuples
from specbp.trace import hutchinson_trace
from tests.support import (
    f64,
    generator,
    geometric,
    normal,
    orthonormal,
    signs,
    spd,
)

PLAIN = {
    "hutchpp": hutchpp_trace,
    "xtrace": partial(xtrace, resphere=False),
    "xnystrace": partial(xnystrace, resphere=False),
}
RESPHERED = {"xtrace": xtrace, "xnystrace": xnystrace}
ALL = PLAIN | {f"{name} resphered": f for name, f in RESPHERED.items()}
every = pytest.mark.parametrize("estimate", ALL.values(), ids=ALL)
plain = pytest.mark.parametrize("name", PLAIN)
resphered = pytest.mark.parametrize("name", RESPHERED)
both_forms = pytest.mark.parametrize("resphere", [False, True])


def matrix(name: str, n: int) -> torch.Tensor:
    """Positive definite for XNysTrace, neither symmetric nor definite for the others."""
    return spd(geometric(n, 30.0)) if name.startswith("xnys") else normal(n, n)


def decaying(n: int, dtype=f64) -> torch.Tensor:
    return spd(1 / torch.arange(1, n + 1, dtype=f64)).to(dtype)


# The definitions, one probe left out at a time ----------------------------------------------------


def orth(Y: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the columns."""
    U, sigma, _ = np.linalg.svd(Y, full_matrices=False)
    return U[:, sigma > 1e-12 * max(sigma.max(initial=0), 1e-300)]


def stretched(mu: np.ndarray, x: np.ndarray, free: int) -> float:
    """free / |mu|², nothing where x has no residual."""
    return free / (mu @ mu) if np.linalg.norm(mu) > 1e-12 * np.linalg.norm(x) else 0.0


def naive_hutchpp(A: np.ndarray, X: np.ndarray) -> float:
    half = X.shape[1] // 2
    Q = orth(A @ X[:, :half])
    G = X[:, half:] - Q @ (Q.T @ X[:, half:])
    return np.trace(Q.T @ A @ Q) + np.mean([g @ A @ g for g in G.T])


def naive_xtrace(A: np.ndarray, X: np.ndarray, resphere: bool) -> list[float]:
    values = []
    for i, x in enumerate(X.T):
        Q = orth(A @ np.delete(X, i, 1))
        mu = x - Q @ (Q.T @ x)
        stretch = stretched(mu, x, len(A) - Q.shape[1]) if resphere else 1.0
        values.append(np.trace(Q.T @ A @ Q) + stretch * (mu @ A @ mu))
    return values


def naive_xnystrace(A: np.ndarray, X: np.ndarray, resphere: bool) -> list[float]:
    values = []
    for i, x in enumerate(X.T):
        Q = orth(np.delete(X, i, 1))
        nystrom = A @ Q @ np.linalg.pinv(Q.T @ A @ Q, rcond=1e-12, hermitian=True) @ Q.T @ A
        mu = x - Q @ (Q.T @ x)
        stretch = stretched(mu, x, len(A) - Q.shape[1]) if resphere else 1.0
        values.append(np.trace(nystrom) + stretch * (mu @ (A - nystrom) @ mu))
    return values


NAIVE = {"xtrace": naive_xtrace, "xnystrace": naive_xnystrace}


@pytest.mark.parametrize("m", [1, 2, 3, 8, 20])
@resphered
@both_forms
def test_downdate_equals_leaving_one_out(name, resphere, m):
    A, X = matrix(name, 20), normal(20, m, seed=1)
    est = RESPHERED[name](A, X, resphere=resphere)
    exact = NAIVE[name](A.numpy(), X.numpy(), resphere)
    np.testing.assert_allclose(est.samples.numpy(), exact, rtol=1e-10, atol=1e-10)
    assert float(est.value) == pytest.approx(np.mean(exact), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(("n", "m"), [(4, 3), (3, 4), (2, 5), (5, 2)])
@resphered
@both_forms
def test_downdate_equals_leaving_one_out_on_equal_and_dependent_probes(name, resphere, n, m):
    """All tuples of signs: among them every way in which few probes coincide or depend."""
    A, X = matrix(name, n), sign_tuples(n, m).probes
    est = RESPHERED[name](A, X, resphere=resphere)
    exact = [NAIVE[name](A.numpy(), block, resphere) for block in X.numpy()]
    np.testing.assert_allclose(est.samples.numpy(), exact, rtol=1e-10, atol=1e-10)
    assert int(est.status.abs().max()) == 0


@pytest.mark.parametrize("m", [1, 2, 3, 8, 30])
def test_hutchpp_equals_its_definition(m):
    A, X = matrix("hutchpp", 20), normal(20, m, seed=1)
    est = hutchpp_trace(A, X)
    assert float(est.value) == pytest.approx(naive_hutchpp(A.numpy(), X.numpy()), rel=1e-10)
    assert est.samples.shape == (m - m // 2,)


# Expectations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(4, 3), (3, 4), (5, 2), (4, 1)])
@plain
def test_mean_over_all_sign_tuples_is_the_trace(name, n, m):
    A, design = matrix(name, n), sign_tuples(n, m)
    est = PLAIN[name](A, design.probes)
    assert design.mean(est.value) == pytest.approx(float(A.trace()), abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(4, 3), (3, 4)])
def test_error_bar_of_hutchpp_is_calibrated_over_the_whole_law(n, m):
    A, design = matrix("hutchpp", n), sign_tuples(n, m)
    est = hutchpp_trace(A, design.probes)
    variance = design.variance(est.value)
    assert variance > 0.1
    assert design.mean(est.standard_error.square()) == pytest.approx(variance, rel=1e-11)


@pytest.mark.parametrize("m", [1, 2])
def test_hutchpp_has_no_error_bar_from_one_residual_probe(m):
    est = hutchpp_trace(normal(6, 6), signs(6, m))
    assert bool(est.standard_error.isnan())
    assert bool(est.value.isfinite())


@pytest.mark.parametrize("estimate", [xtrace, xnystrace])
@both_forms
def test_leave_one_out_values_give_no_error_bar(estimate, resphere):
    est = estimate(decaying(10), sphere(10, 4, generator=generator()), resphere=resphere)
    assert bool(est.standard_error.isnan())
    assert est.samples.shape == (4,)


@resphered
def test_mean_over_directions_of_one_residual_is_the_trace(name):
    """With the others fixed, any orthonormal basis of the complement averages to the trace.

    This is what a rotation-invariant law does, for every value of the other probes.
    """
    n, m, i = 9, 4, 2
    A, X = matrix(name, n), normal(n, m, seed=3)
    others = np.delete(X.numpy(), i, 1)
    Q = orth(others if name.startswith("xnys") else A.numpy() @ others)
    complement = np.linalg.qr(np.hstack([Q, normal(n, n - m + 1, seed=4).numpy()]))[0][:, m - 1 :]
    blocks = X.repeat(n - m + 1, 1, 1)
    within = torch.from_numpy(Q @ np.ones(m - 1))
    blocks[:, :, i] = 3 * torch.from_numpy(complement.T) + within
    est = RESPHERED[name](A, blocks)
    assert float(est.samples[:, i].mean()) == pytest.approx(float(A.trace()), rel=1e-11)
    assert float(est.samples[:, i].std()) > 0.01


@resphered
def test_resphered_value_is_blind_to_the_lengths_of_probes(name):
    A, X, lengths = matrix(name, 9), normal(9, 4), torch.tensor([1.0, 2.0, 0.1, 30.0], dtype=f64)
    one, other = RESPHERED[name](A, X), RESPHERED[name](A, X * lengths)
    assert float(one.value) == pytest.approx(float(other.value), rel=1e-11)
    free = PLAIN[name](A, X * lengths).value - PLAIN[name](A, X).value
    assert abs(float(free)) > 0.01


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("xtrace", sphere),
        ("xtrace", gaussian),
        ("xnystrace", sphere),
        ("xnystrace", gaussian),
        ("xnystrace", orthogonal),
    ],
)
def test_resphered_mean_is_the_trace_for_invariant_laws(name, law):
    """20000 replicates at 4 standard errors: a false alarm in 6e-5 of the seeds."""
    A = matrix(name, 6)
    X = law(6, 3, generator=generator(1), batch_shape=(20000,))
    error = RESPHERED[name](A, X).value - A.trace()
    assert abs(float(error.mean())) <= 4 * float(error.std()) / 20000**0.5


@resphered
def test_resphered_form_is_biased_for_signs(name):
    A, design = matrix(name, 4), sign_tuples(4, 2)
    bias = design.mean(RESPHERED[name](A, design.probes).value) - float(A.trace())
    assert abs(bias) > 0.01


def test_less_variance_than_hutchinson_at_equal_products():
    """Eigenvalues 1/k, n = 200, 42 products."""
    A, R = decaying(200), 150
    budget = {hutchinson_trace: 42, hutchpp_trace: 28, xtrace: 21, xnystrace: 42}
    spread = {}
    for estimate, m in budget.items():
        est = estimate(A, sphere(200, m, generator=generator(2), batch_shape=(R,)))
        assert est.num_matvecs == 42
        spread[estimate] = float((est.value - A.trace()).square().mean().sqrt())
    assert spread[hutchpp_trace] < 0.6 * spread[hutchinson_trace]
    assert spread[xtrace] < 0.4 * spread[hutchinson_trace]
    assert spread[xnystrace] < 0.35 * spread[hutchinson_trace]


# Laws ---------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(c=st.floats(1e-100, 1e100), seed=st.integers(0, 1000), m=st.integers(1, 7))
@every
def test_scaling_of_a(estimate, c, seed, m):
    A, X = decaying(6), normal(6, m, seed=seed)
    expected = c * float(estimate(A, X).value)
    assert float(estimate(c * A, X).value) == pytest.approx(expected, rel=1e-8, abs=1e-8 * c)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), m=st.integers(2, 7))
@pytest.mark.parametrize("name", ["xtrace", "xnystrace"])
@both_forms
def test_permuting_probes_permutes_the_values(name, resphere, seed, m):
    A, X = matrix(name, 8), normal(8, m, seed=seed)
    order = torch.randperm(m, generator=generator(seed))
    one = RESPHERED[name](A, X, resphere=resphere).samples[order]
    other = RESPHERED[name](A, X[:, order], resphere=resphere).samples
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@every
def test_rotating_matrix_and_probes_changes_nothing(estimate):
    A, X, Q = decaying(12), normal(12, 5), orthonormal(12, 12)
    rotated = Q @ A @ Q.mT
    value = estimate((rotated + rotated.mT) / 2, Q @ X).value
    assert float(value) == pytest.approx(float(estimate(A, X).value), rel=1e-11)


@pytest.mark.parametrize("m", [1, 5])
@every
def test_batches_of_matrices_and_replicates_equal_singles(estimate, m):
    A, X = torch.stack([decaying(6), spd(geometric(6, 9.0))]), normal(3, 1, 6, m)
    est = estimate(A, X)
    assert est.value.shape == (3, 2)
    for r in range(3):
        for b in range(2):
            one = estimate(A[b], X[r, 0])
            assert float(est.value[r, b]) == pytest.approx(float(one.value), abs=1e-12)
            torch.testing.assert_close(
                est.standard_error[r, b], one.standard_error, rtol=1e-9, atol=1e-12, equal_nan=True
            )
            assert est.num_matvecs == one.num_matvecs


@pytest.mark.parametrize(("n", "m"), [(9, 1), (9, 2), (9, 5), (3, 7)])
def test_counted_products(n, m):
    A, X = decaying(n), signs(n, m)
    assert hutchpp_trace(A, X).num_matvecs == m + min(n, m // 2)
    assert xtrace(A, X).num_matvecs == 2 * m
    assert xnystrace(A, X).num_matvecs == m
