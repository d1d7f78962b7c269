"""Multilevel quadrature against loops, all tuples of signs, and brute force for its allocation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbp.estimate import Status
from specbp.logdets import golub_kahan_logdet, slq_logdet
from specbp.multilevel import (
    allocate,
    level_deviations,
    multilevel_golub_kahan_logdet,
    multilevel_logdet,
    nystrom_multilevel_logdet,
    welch_dof,
)
from specbp.nystrom import Whitened, nystrom_logdet, nystrom_preconditioner
from specbp.testing.designs import all_signs, sign_tuples
from tests.support import (
    f32,
    f64,
    factor,
    flags,
    geometric,
    log_forms,
    log_forms_of_factor,
    naive_gauss,
    signs,
    spd,
)

LEVELS = ((2, 6), (5, 3), (9, 2))
BOTH = pytest.mark.parametrize("on", ["A", "J"])


def case(n=16, cond=1e3, m=11, seed=0, dtype=f64):
    J = factor(geometric(n, cond**0.5), n + 4, seed).to(dtype)
    A = J.mT @ J
    return (A + A.mT) / 2, J, signs(n, m, seed=seed + 50, dtype=dtype)


def estimate(on, A, J, X, levels=LEVELS):
    if on == "J":
        return multilevel_golub_kahan_logdet(J, X, levels=levels)
    return multilevel_logdet(A, X, levels=levels)


def naive_levels(A, X, levels):
    """What every level averages, and the finest rule of every probe, level by level."""
    parts, finest, start, coarse = [], [], 0, 0
    for k, m in levels:
        own = X[:, start : start + m]
        finest.append(naive_gauss(A, own, k))
        below = naive_gauss(A, own, coarse) if coarse else torch.zeros(m, dtype=f64)
        parts.append(finest[-1] - below)
        start, coarse = start + m, k
    return parts, torch.cat(finest)


# Against the definition ---------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("levels", [LEVELS, ((3, 11),), ((1, 2), (16, 9)), ((1, 10), (2, 1))])
def test_value_and_error_are_those_of_the_levels(on, levels):
    A, J, X = case()
    est = estimate(on, A, J, X, levels)
    parts, finest = naive_levels(A, X, levels)
    assert float(est.value) == pytest.approx(sum(float(p.mean()) for p in parts), abs=1e-8)
    error = math.sqrt(sum(float(p.std()) ** 2 / len(p) if len(p) > 1 else math.nan for p in parts))
    assert float(est.standard_error) == pytest.approx(error, rel=1e-8, nan_ok=True)
    assert float(est.upper) == pytest.approx(float(finest.mean()), abs=1e-8)
    assert float(est.samples.mean()) == pytest.approx(float(est.value), abs=1e-9)
    assert est.num_matvecs == sum(k * m for k, m in levels)
    assert float(est.lower) == -math.inf
    assert flags(est) == Status.OK


@BOTH
def test_one_level_is_plain_quadrature(on):
    A, J, X = case()
    est = estimate(on, A, J, X, ((4, 11),))
    plain = slq_logdet(A, X, num_steps=4) if on == "A" else golub_kahan_logdet(J, X, num_steps=4)
    for name in ("value", "standard_error", "upper", "lower", "samples", "status"):
        torch.testing.assert_close(getattr(est, name), getattr(plain, name), rtol=1e-12, atol=0)
    assert est.num_matvecs == plain.num_matvecs


def test_levels_use_slices_of_the_probes_and_nothing_else():
    A, _, X = case()
    whole, other = multilevel_logdet(A, X, levels=LEVELS), X.clone()
    other[:, 10] = signs(16, 1, seed=99).squeeze(-1)
    changed = multilevel_logdet(A, other, levels=LEVELS)
    assert bool((changed.samples[:10] == whole.samples[:10]).all())
    assert float(changed.samples[10]) != float(whole.samples[10])
    order = [3, 1, 5, 0, 4, 2, 8, 6, 7, 10, 9]  # within levels
    assert float(multilevel_logdet(A, X[:, order], levels=LEVELS).value) == pytest.approx(
        float(whole.value), abs=1e-10
    )


# The whole law ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("levels", [((1, 1), (2, 2)), ((1, 2), (3, 2)), ((1, 2), (2, 1), (4, 1))])
def test_over_all_tuples_it_has_the_mean_of_the_finest_rule(on, levels):
    A, J, _ = case(4, 50.0)
    est = estimate(on, A, J, sign_tuples(4, sum(m for _, m in levels)).probes, levels)
    finest = slq_logdet(A, all_signs(4).columns, num_steps=levels[-1][0])
    assert float(est.value.mean()) == pytest.approx(float(finest.value), abs=1e-10)
    assert float(est.value.mean()) >= float(torch.logdet(A)) - 1e-10


@BOTH
def test_over_all_tuples_the_standard_error_is_calibrated(on):
    """4096 blocks of 2 + 2 probes."""
    A, J, _ = case(4, 50.0)
    design = sign_tuples(4, 4)
    est = estimate(on, A, J, design.probes, ((1, 2), (3, 2)))
    squares = est.standard_error.square()
    assert design.mean(squares) == pytest.approx(design.variance(est.value), rel=1e-9)


def test_upper_bounds_the_forms_for_every_draw_and_the_value_in_expectation_only():
    A, _, _ = case(4, 50.0)
    X, levels = sign_tuples(4, 3).probes, ((1, 2), (2, 1))
    est = multilevel_logdet(A, X, levels=levels)
    forms = torch.stack([log_forms(A, x).mean() for x in X])
    assert bool((forms <= est.upper + 1e-10).all())
    assert bool((est.value < forms - 0.1).any())
    assert float(est.value.mean()) > float(torch.logdet(A))


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), cond=st.floats(1, 1e4), n=st.integers(5, 12))
def test_no_difference_is_positive(seed, cond, n):
    A = spd(geometric(n, cond), seed)
    est = multilevel_logdet(A, signs(n, 6, seed=seed), levels=((1, 2), (2, 2), (5, 2)))
    assert bool((est.samples[2:] <= 1e-8).all())


# Laws ---------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), c=st.floats(1e-6, 1e6))
def test_scaling_adds_n_log_c(seed, c):
    A, J, X = case(12, seed=seed)
    for on, factors in (("A", c), ("J", c**0.5)):
        one, two = estimate(on, A, J, X), estimate(on, c * A, factors * J, X)
        assert float(two.value) == pytest.approx(float(one.value) + 12 * math.log(c), abs=1e-7)
        assert float(two.standard_error) == pytest.approx(float(one.standard_error), abs=1e-7)


@BOTH
def test_a_batch_equals_its_items(on):
    A, J, X = (torch.stack(parts) for parts in zip(case(), case(seed=1), strict=True))
    X = torch.stack([X, -X * signs(16, 1)])
    both = estimate(on, A, J, X)
    assert both.num_matvecs == 2 * 6 + 5 * 3 + 9 * 2
    for i in range(2):
        for j in range(2):
            one = estimate(on, A[j], J[j], X[i, j])
            for name in ("value", "standard_error", "upper", "samples"):
                found, single = getattr(both, name)[i, j], getattr(one, name)
                torch.testing.assert_close(found, single, rtol=0, atol=1e-9)


@BOTH
def test_float32_agrees_with_float64(on):
    A, J, X = case(cond=100.0)
    one, two = estimate(on, A, J, X), estimate(on, A.to(f32), J.to(f32), X.to(f32))
    assert two.value.dtype == two.standard_error.dtype == f64
    assert float(two.value) == pytest.approx(float(one.value), abs=0.01)


def test_float32_on_the_factor_resolves_what_the_gram_matrix_cannot():
    A, J, X = case(32, 1e8, dtype=f32)
    levels = ((8, 8), (32, 3))
    exact = log_forms_of_factor(J, X)
    est = multilevel_golub_kahan_logdet(J, X, levels=levels)
    parts, start = [], 0
    for k, m in levels:
        own = X[:, start : start + m]
        coarse = 0 if k == 8 else golub_kahan_logdet(J, own, num_steps=8).value
        fine = exact[8:].mean() if k == 32 else golub_kahan_logdet(J, own, num_steps=8).value
        parts.append(float(fine - coarse))
        start += m
    assert float(est.value) == pytest.approx(sum(parts), abs=0.05)
    squared = multilevel_logdet(A, X, levels=levels)
    assert not abs(float(squared.value) - sum(parts)) <= 0.1


@pytest.mark.parametrize("c", [1e-3, 1.0, 7.0])
@BOTH
def test_multiples_of_the_identity_are_exact(on, c):
    eye = torch.eye(16, dtype=f64)
    est = estimate(on, c * eye, c**0.5 * eye, signs(16, 11))
    assert float(est.value) == pytest.approx(16 * math.log(c), abs=1e-11)
    assert float(est.standard_error) <= 1e-11
    assert flags(est) == Status.INVARIANT_SUBSPACE


def test_repeated_eigenvalues_close_the_space_and_leave_nothing_to_the_fine_levels():
    A = torch.diag(torch.tensor([4.0, 1.0] * 8, dtype=f64))
    est = multilevel_logdet(A, signs(16, 11), levels=LEVELS)
    assert float(est.value) == pytest.approx(8 * math.log(4), abs=1e-10)
    assert float(est.samples[6:].abs().max()) <= 1e-9


# With a sketch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [None, 1e-3])
def test_with_a_sketch_it_is_the_levels_of_the_whitened_matrix(mu):
    A, _, X = case()
    S = signs(16, 4, seed=7)
    probes = torch.cat([S, X], 1)
    est = nystrom_multilevel_logdet(A, probes, num_sketch=4, levels=LEVELS, shift=mu)
    P, _ = nystrom_preconditioner(A, S.mT, mu)
    parts, finest = naive_levels(Whitened(A, P) @ torch.eye(16, dtype=f64), X, LEVELS)
    value = sum(float(p.mean()) for p in parts) + float(P.log_det)
    assert float(est.value) == pytest.approx(value, abs=1e-8)
    assert float(est.samples.mean()) == pytest.approx(value, abs=1e-8)
    assert float(est.upper) == pytest.approx(float(finest.mean() + P.log_det), abs=1e-8)
    error = math.sqrt(sum(float(p.var()) / len(p) for p in parts))
    assert float(est.standard_error) == pytest.approx(error, rel=1e-8)
    assert est.num_matvecs == 4 + 2 * 6 + 5 * 3 + 9 * 2
    assert flags(est) == Status.OK
    one = nystrom_multilevel_logdet(A, probes, num_sketch=4, levels=((5, 11),), shift=mu)
    plain = nystrom_logdet(A, probes, num_sketch=4, num_steps=5, shift=mu)
    torch.testing.assert_close(one.samples, plain.samples)


def test_with_a_sketch_it_is_unbiased_and_calibrated_over_all_tuples():
    A, design = case(4, 50.0)[0], sign_tuples(4, 5)
    levels = ((1, 2), (4, 2))
    est = nystrom_multilevel_logdet(A, design.probes, num_sketch=1, levels=levels)
    assert design.mean(est.value) == pytest.approx(float(torch.logdet(A)), abs=1e-9)
    squares = est.standard_error.square()
    assert design.mean(squares) == pytest.approx(design.variance(est.value), rel=1e-8)


# Degrees of freedom -------------------------------------------------------------------------------


def test_degrees_of_freedom_are_those_of_the_formula():
    A, _, X = case()
    est = multilevel_logdet(A, X, levels=LEVELS)
    squares = [float(p.var()) / len(p) for p in naive_levels(A, X, LEVELS)[0]]
    below = sum(v**2 / (m - 1) for v, (_, m) in zip(squares, LEVELS, strict=True))
    assert float(welch_dof(est, LEVELS)) == pytest.approx(sum(squares) ** 2 / below, rel=1e-8)


def test_degrees_of_freedom_of_one_level_and_their_range():
    A, _, _ = case()
    X = signs(5, 16, 11)
    one = multilevel_logdet(A, X, levels=((4, 11),))
    torch.testing.assert_close(welch_dof(one, ((4, 11),)), torch.full((5,), 10.0, dtype=f64))
    dof = welch_dof(multilevel_logdet(A, X, levels=LEVELS), LEVELS)
    assert bool(((dof >= 1 - 1e-12) & (dof <= 8 + 1e-12)).all())
    lonely = ((2, 10), (5, 1))
    assert math.isnan(float(welch_dof(multilevel_logdet(A, X[0], levels=lonely), lonely)))


# Allocation ---------------------------------------------------------------------------------------


def variance_and_cost(sigma, steps, counts):
    variance = sum(s**2 / m for s, m in zip(sigma, counts, strict=True))
    return variance, sum(k * m for k, m in zip(steps, counts, strict=True))


@pytest.mark.parametrize("sigma", [(8.0, 1.0), (5.0, 5.0), (1.0, 0.0), (0.3, 9.0), (3.0, 2.0, 1.0)])
@pytest.mark.parametrize("budget", [60, 111, 200])
def test_allocation_is_near_the_best_by_brute_force(sigma, budget):
    steps = (2, 7, 16)[: len(sigma)]
    levels = allocate(sigma, steps, budget)
    assert tuple(k for k, _ in levels) == steps
    variance, cost = variance_and_cost(sigma, steps, [m for _, m in levels])
    ranges = [range(2, budget // k + 1) for k in steps]
    tried = (variance_and_cost(sigma, steps, c) for c in itertools.product(*ranges))
    best = min(v for v, price in tried if price <= budget)
    assert cost <= budget
    assert best <= variance <= 1.05 * best


@given(
    sigma=st.lists(st.floats(0, 1e3), min_size=1, max_size=5),
    extra=st.floats(0, 1e4),
    data=st.data(),
)
def test_allocation_keeps_two_probes_a_level_within_the_budget(sigma, extra, data):
    count = len(sigma)
    chosen = st.lists(st.integers(1, 90), min_size=count, max_size=count, unique=True)
    steps = sorted(data.draw(chosen))
    budget = 2 * sum(steps) + extra
    levels = allocate(sigma, steps, budget)
    assert all(m >= 2 for _, m in levels)
    assert sum(k * m for k, m in levels) <= budget
    if max(sigma) > 0:  # nothing that would help is left over
        useful = [k for s, k in zip(sigma, steps, strict=True) if s > 1e-100]
        left = budget - sum(k * m for k, m in levels)
        assert not useful or left < min(useful)


def test_allocation_follows_giles_where_the_budget_is_large():
    levels = allocate(torch.tensor([4.0, 2.0, 1.0]), (4, 16, 64), 10**6)
    counts = [m for _, m in levels]
    assert counts[0] / counts[1] == pytest.approx(4, rel=1e-2)
    assert counts[1] / counts[2] == pytest.approx(4, rel=1e-2)


def test_pilot_gives_the_deviations_of_all_levels():
    A, _, X = case()
    found = level_deviations(A, torch.stack([X, X * signs(16, 1)]), steps=(2, 5, 9))
    rules = [naive_gauss(A, X, k) for k in (2, 5, 9)]
    expected = [rules[0].std(), (rules[1] - rules[0]).std(), (rules[2] - rules[1]).std()]
    assert found.shape == (2, 3)
    torch.testing.assert_close(found[0], torch.stack(expected), rtol=0, atol=1e-8)
