"""Gauss and Gauss–Radau rules against dense eigenproblems; the bracket for every probe and step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from specbp.krylov import Bidiagonal, Tridiagonal, golub_kahan, lanczos
from specbp.quadrature import gauss, gauss_radau
from tests.support import EPS, f32, f64, factor, geometric, log_forms, signs, spd


def tridiagonal(alphas, betas, norm_squared=1.0):
    """A hand-made Lanczos result for one probe."""
    fields = (torch.tensor([v], dtype=f64) for v in (alphas, betas, norm_squared))
    flat = torch.zeros(1, dtype=torch.bool)
    return Tridiagonal(*fields, flat, torch.zeros(1, len(alphas), 1), torch.zeros(1))


def bidiagonal(alphas, betas, norm_squared=1.0):
    fields = (torch.tensor([v], dtype=f64) for v in (alphas, betas, norm_squared))
    flat = torch.zeros(1, dtype=torch.bool)
    return Bidiagonal(*fields, flat, torch.zeros(1, len(alphas), 1), torch.zeros(1))


def dense(alphas, betas):
    return np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)


def naive_rule(T, norm_squared):
    """|x|² Σ (first component)² log θ of a dense symmetric matrix."""
    theta, S = np.linalg.eigh(T)
    return norm_squared * (S[0] ** 2 @ np.log(theta)), theta[0], theta[-1]


def naive_radau(T, beta, node, norm_squared):
    """Extend T so that `node` is an eigenvalue: δ solves (T − node I) δ = β² e_k."""
    k = len(T)
    e = np.zeros(k)
    e[-1] = 1
    delta = np.linalg.solve(T - node * np.eye(k), beta**2 * e)
    big = np.zeros((k + 1, k + 1))
    big[:k, :k], big[k, k], big[k, k - 1], big[k - 1, k] = T, node + delta[-1], beta, beta
    return naive_rule(big, norm_squared)


def case(n=30, cond=100.0, seed=0, m=3):
    A = spd(geometric(n, cond), seed)
    X = signs(n, m, seed=seed + 1)
    return A, X, X.mT.contiguous()


positive = st.floats(0.1, 10)


def test_one_step_is_the_log_of_the_rayleigh_quotient():
    rule = gauss(tridiagonal([2.5], [0.3], 4.0))
    assert float(rule.value) == pytest.approx(4 * math.log(2.5), abs=1e-15)
    assert float(rule.smallest) == float(rule.largest) == pytest.approx(2.5)


@given(st.lists(positive, min_size=2, max_size=8), st.floats(0.1, 100), st.data())
def test_gauss_equals_dense_eigenproblem(alphas, norm_squared, data):
    k = len(alphas)
    # Off-diagonals below half of the smallest diagonal keep T positive definite.
    betas = data.draw(st.lists(st.floats(0.01, 0.49), min_size=k, max_size=k))
    betas = [b * min(alphas) for b in betas]
    rule = gauss(tridiagonal(alphas, betas, norm_squared))
    value, smallest, largest = naive_rule(dense(alphas, betas[:-1]), norm_squared)
    # Eigenvalues move by k eps |T|, hence their logs by that over the smallest.
    bound = 20 * k * EPS[f64] * norm_squared * largest / smallest
    assert abs(float(rule.value) - value) <= bound
    assert float(rule.smallest) == pytest.approx(smallest)
    assert float(rule.largest) == pytest.approx(largest)


@given(st.lists(positive, min_size=1, max_size=6), st.data())
def test_bidiagonal_rules_are_those_of_its_gram_matrix(alphas, data):
    k = len(alphas)
    betas = data.draw(st.lists(positive, min_size=k, max_size=k))
    B = np.diag(alphas) + np.diag(betas[:-1], 1)
    gram = B.T @ B
    largest, smallest = np.linalg.eigvalsh(gram)[[-1, 0]]
    bound = 1e3 * k * EPS[f64] * 3.0 * max(largest, betas[-1] ** 2) / smallest
    assume(bound <= 1e-3)  # beyond, BᵀB no longer determines the logs: so the library avoids it
    rule = gauss(bidiagonal(alphas, betas, 3.0))
    assert abs(float(rule.value) - naive_rule(gram, 3.0)[0]) <= bound
    node = smallest / 2
    radau = gauss_radau(bidiagonal(alphas, betas, 3.0), torch.tensor(node, dtype=f64))
    expected = naive_radau(gram, alphas[-1] * betas[-1], node, 3.0)
    assert abs(float(radau.value) - expected[0]) <= bound
    assert float(radau.smallest) == pytest.approx(node, rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("share", [0.999, 0.5, 1e-3])
def test_radau_equals_dense_extension_with_the_node_as_eigenvalue(k, share):
    A, _, rows = case()
    T = lanczos(A, rows, k)
    node = share * float(torch.linalg.eigvalsh(A)[0])
    rule = gauss_radau(T, torch.tensor(node, dtype=f64))
    for i in range(len(rows)):
        alphas, betas = T.diagonal[i].numpy(), T.off_diagonal[i].numpy()
        expected, smallest, largest = naive_radau(dense(alphas, betas[:-1]), betas[-1], node, 30.0)
        bound = 50 * 30 * EPS[f64] * 30 * largest / node
        assert abs(float(rule.value[i]) - expected) <= bound
        assert float(rule.smallest[i]) == pytest.approx(node, rel=1e-9)
        assert smallest == pytest.approx(node, rel=1e-9)


@pytest.mark.parametrize("cond", [3.0, 100.0, 1e5])
def test_bracket_closes_monotonically_on_the_truth_for_every_probe(cond):
    A, X, rows = case(cond=cond, m=10)
    truth = log_forms(A, X)
    node = torch.linalg.eigvalsh(A)[0] * 0.9
    rounding = 50 * 30**2 * EPS[f64] * cond
    below, above = torch.full_like(truth, -math.inf), torch.full_like(truth, math.inf)
    for k in range(1, 31):
        T = lanczos(A, rows, k)
        lower, upper = gauss_radau(T, node).value, gauss(T).value
        assert bool((lower <= truth + rounding).all())
        assert bool((truth <= upper + rounding).all())
        assert bool((lower >= below - rounding).all())
        assert bool((upper <= above + rounding).all())
        below, above = lower, upper
    assert float((above - below).max()) <= 2 * rounding


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("k", [1, 4, 15, 30])
def test_bracket_of_golub_kahan_holds_for_every_probe(dtype, k):
    cond = 1e3  # of J
    J = factor(geometric(30, cond), 40).to(dtype)
    X = signs(30, 10, seed=4, dtype=dtype)
    _, sigma, right = torch.linalg.svd(J.double(), full_matrices=False)
    truth = 2 * sigma.log() @ (right @ X.double()) ** 2
    B = golub_kahan(J, X.mT.contiguous(), k)
    # The rounding of σ is eps √n |J|, so that of log σ² is cond(J) times it: no squared condition.
    rounding = 2 * 30 * 30**0.5 * EPS[dtype] * cond
    assert bool((gauss_radau(B, 0.9 * sigma[-1] ** 2).value <= truth + rounding).all())
    assert bool((truth <= gauss(B).value + rounding).all())


def test_gauss_of_k_steps_needs_two_k_moments_only():
    """Two spectra with equal moments to 2k − 1 from the probe have the same k-point rule."""
    A, _, rows = case(n=8, m=1)
    T = lanczos(A, rows, 4)
    nodes, S = np.linalg.eigh(dense(T.diagonal[0].numpy(), T.off_diagonal[0, :-1].numpy()))
    weights = 8 * S[0] ** 2
    for power in range(8):
        moment = float(rows[0] @ torch.linalg.matrix_power(A, power) @ rows[0])
        assert weights @ nodes**power == pytest.approx(moment, rel=1e-12)
    assert weights @ np.log(nodes) == pytest.approx(float(gauss(T).value), rel=1e-12)


def test_node_above_a_ritz_value_gives_nan_not_a_bound():
    A, _, rows = case()
    T = lanczos(A, rows, 10)
    node = gauss(T).smallest.max() * 1.01
    assert bool(gauss_radau(T, node).value.isnan().all())
    B = golub_kahan(torch.linalg.cholesky(A).mT, rows, 10)
    node = gauss(B).smallest.max() * 1.01
    assert bool(gauss_radau(B, node).value.isnan().all())


def test_one_node_for_each_item_of_the_batch():
    A, _, rows = case()
    matrices = torch.stack([A, 2 * A])
    T = lanczos(matrices, rows.expand(2, 3, 30).contiguous(), 6)
    nodes = torch.tensor([1e-3, 5e-3], dtype=f64)
    both = gauss_radau(T, nodes.unsqueeze(-1)).value
    for i in range(2):
        one = gauss_radau(lanczos(matrices[i], rows, 6), nodes[i]).value
        torch.testing.assert_close(both[i], one, rtol=0, atol=1e-11)


@pytest.mark.parametrize("place", ["diagonal", "off_diagonal"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_spoiled_probe_is_nan_and_its_neighbours_are_not(place, bad):
    A, _, rows = case()
    for T in (lanczos(A, rows, 4), golub_kahan(torch.linalg.cholesky(A).mT, rows, 4)):
        spoiled = getattr(T, place).clone()
        spoiled[1, 1] = bad
        S = T._replace(**{place: spoiled})
        node = torch.tensor(1e-3, dtype=f64)
        for rule, clean in (
            (gauss(S), gauss(T)),
            (gauss_radau(S, node), gauss_radau(T, node)),
        ):
            assert math.isnan(float(rule.value[1]))
            torch.testing.assert_close(rule.value[[0, 2]], clean.value[[0, 2]], rtol=0, atol=0)


def test_extreme_nodes_are_those_of_each_probe():
    A, _, rows = case()
    both = torch.stack([A, 3 * A])
    for run in (lanczos, golub_kahan):
        scale = 3 if run is lanczos else 9  # nodes of B are squares
        rule = gauss(run(both, rows.expand(2, 3, 30).contiguous(), 5))
        for nodes in (rule.smallest, rule.largest):
            assert len(set(nodes.flatten().tolist())) == 6
            torch.testing.assert_close(nodes[1], scale * nodes[0], rtol=1e-9, atol=0)


def test_a_negative_ritz_value_is_reported_and_its_log_is_nan():
    rule = gauss(tridiagonal([1.0, 1.0], [2.0, 0.0]))
    assert float(rule.smallest) == pytest.approx(-1.0)
    assert math.isnan(float(rule.value))


def test_filler_of_a_closed_space_weighs_nothing():
    T = tridiagonal([2.0, 3.0, 2.0, 2.0], [0.5, 0.0, 0.0, 0.0])
    expected = naive_rule(dense([2.0, 3.0], [0.5]), 1.0)[0]
    assert float(gauss(T).value) == pytest.approx(expected, abs=1e-14)
    below = gauss_radau(T, torch.tensor(0.5, dtype=f64))
    assert float(below.value) == pytest.approx(expected, abs=1e-14)  # exact: both ends meet
    zero = gauss(bidiagonal([2.0, 0.0, 2.0], [0.0, 0.0, 0.0]))
    assert float(zero.value) == pytest.approx(2 * math.log(2.0))
    assert float(zero.smallest) == 0.0


@pytest.mark.parametrize("node", [0.5, 1.0])
@pytest.mark.parametrize("small", [tridiagonal, bidiagonal])
def test_closed_space_is_exact_even_with_the_node_on_its_smallest_eigenvalue(node, small):
    T = small([1.0, 3.0], [0.0, 0.0])
    assert float(gauss_radau(T, torch.tensor(node, dtype=f64)).value) == 0.0


@pytest.mark.parametrize("run", [lanczos, golub_kahan])
def test_node_on_the_smallest_eigenvalue_bounds_at_full_dimension(run):
    """A user who knows λ_min exactly, such as the noise of a kernel matrix, must not get NaN."""
    values = geometric(20, 100.0)
    A = torch.diag(values) if run is lanczos else torch.diag(values.sqrt())
    rows = signs(10, 20, seed=8)
    lower = gauss_radau(run(A, rows, 20), values[-1]).value
    truth = float(values.log().sum())
    # Where rounding leaves no room between node and Ritz value there may be no bound, but no NaN.
    assert not bool(lower.isnan().any())
    assert bool((lower <= truth + 50 * 20**2 * EPS[f64] * 100).all())
