"""Log-determinants against dense oracles: each probe, the whole law, every bracket, exact cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from specbp.bounds import lanczos_interval, power_method
from specbp.estimate import Status
from specbp.logdets import (
    algorithm1_logdet,
    chebyshev_logdet,
    golub_kahan_logdet,
    slq_logdet,
    taylor_logdet,
)
from tests.support import (
    EPS,
    all_signs,
    blind_start,
    f32,
    f64,
    factor,
    flags,
    geometric,
    hadamard,
    interpolant,
    log_forms,
    log_forms_of_factor,
    naive_gauss,
    signs,
    spd,
    strength_five_array,
    taylor_polynomial,
    truncated_series,
    variance_of_signs,
)

A_END, B_END = 0.009, 1.05
POLYNOMIALS = {
    "interpolant": (
        lambda A, X, d: chebyshev_logdet(A, X, degree=d, interval=(A_END, B_END)),
        lambda d: interpolant(d, A_END, B_END),
    ),
    "series": (
        lambda A, X, d: chebyshev_logdet(A, X, degree=d, interval=(A_END, B_END), series=True),
        lambda d: truncated_series(d, A_END, B_END),
    ),
    "taylor": (
        lambda A, X, d: taylor_logdet(A, X, degree=d, upper=B_END),
        lambda d: taylor_polynomial(d, B_END),
    ),
}
polynomial = pytest.mark.parametrize("name", list(POLYNOMIALS))


def matrix_function(p, A):
    """p(A) by a dense eigendecomposition in float64."""
    eigenvalues, V = torch.linalg.eigh(A.double())
    return (V * torch.from_numpy(p(eigenvalues.numpy()))) @ V.mT


def rounding(p, degree, n, dtype, lower=A_END):
    """50 (d + 1) u |p|∞ |x|²."""
    size = float(np.abs(p(np.linspace(lower, B_END, 500))).max())
    return 50 * (degree + 1) * EPS[dtype] / 2 * size * n


def case(n=40, cond=100.0, m=8, seed=0, dtype=f64):
    return spd(geometric(n, cond), seed).to(dtype), signs(n, m, seed=seed + 50, dtype=dtype)


# Each probe ---------------------------------------------------------------------------------------


@polynomial
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("n", [10, 64])
@pytest.mark.parametrize("degree", [1, 2, 7, 30, 101])
def test_each_probe_gives_its_form_of_the_polynomial(name, dtype, n, degree):
    estimate, make = POLYNOMIALS[name]
    A, X = case(n, dtype=dtype)
    est, p = estimate(A, X, degree), make(degree)
    P = matrix_function(p, A)
    expected = torch.einsum("im,ij,jm->m", X.double(), P, X.double())
    assert float((est.samples - expected).abs().max()) <= rounding(p, degree, n, dtype)
    assert flags(est) == Status.OK
    assert est.num_matvecs == 8 * math.ceil(degree / 2)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_each_probe_gives_its_gauss_rule(k):
    A, X = case(10)
    expected = naive_gauss(A, X, k)
    tolerance = 50 * 10**2 * EPS[f64] * 100
    for est in (
        slq_logdet(A, X, num_steps=k),
        golub_kahan_logdet(torch.linalg.cholesky(A).mT, X, num_steps=k),
    ):
        assert float((est.samples - expected).abs().max()) <= tolerance
        assert est.num_matvecs == 8 * k
        assert flags(est) == Status.OK


# The whole law ------------------------------------------------------------------------------------


@polynomial
def test_mean_and_variance_over_all_signs_are_exact(name):
    estimate, make = POLYNOMIALS[name]
    A = spd(geometric(10, 100.0))
    est, p = estimate(A, all_signs(10), 12), make(12)
    P = matrix_function(p, A)
    assert abs(float(est.value) - float(P.trace())) <= rounding(p, 12, 10, f64)
    variance = float(est.samples.var(correction=0))
    assert variance == pytest.approx(variance_of_signs(P), rel=1e-11)
    assert flags(est) == Status.OK


@polynomial
def test_mean_over_a_hadamard_basis_is_exact_at_64(name):
    estimate, make = POLYNOMIALS[name]
    A, p = spd(geometric(64, 100.0)), make(21)
    est = estimate(A, hadamard(64), 21)
    assert abs(float(est.value) - float(matrix_function(p, A).trace())) <= rounding(p, 21, 64, f64)


@polynomial
def test_mean_and_variance_over_the_array_are_exact_at_64(name):
    estimate, make = POLYNOMIALS[name]
    A, p = spd(geometric(64, 100.0)), make(10)
    est, P = estimate(A, strength_five_array(), 10), matrix_function(p, A)
    assert abs(float(est.value) - float(P.trace())) <= rounding(p, 10, 64, f64)
    assert float(est.samples.var(correction=0)) == pytest.approx(variance_of_signs(P), rel=1e-10)


def test_quadrature_over_all_signs_has_the_mean_of_its_gauss_rules():
    """SLQ is biased upwards, by exactly this much; more steps, less bias."""
    A, X = spd(geometric(10, 100.0)), all_signs(10)
    truth, biases = float(torch.logdet(A)), []
    for k in (2, 4, 8, 10):
        est = slq_logdet(A, X, num_steps=k)
        assert float(est.value) == pytest.approx(float(naive_gauss(A, X, k).mean()), abs=1e-9)
        biases.append(float(est.value) - truth)
    assert biases == sorted(biases, reverse=True)
    assert biases[0] > 0.1
    assert abs(biases[-1]) <= 1e-10


# Exact cases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 10, 64])
@pytest.mark.parametrize("cond", [10.0, 1e4, 1e8])
def test_full_krylov_space_is_exact_for_each_probe(n, cond):
    J, X = factor(geometric(n, cond**0.5), n + 5), signs(n, 4, seed=1)
    unit = 50 * n**2 * EPS[f64]
    est = golub_kahan_logdet(J, X, num_steps=n)
    exact = log_forms_of_factor(J, X)
    assert float((est.samples - exact).abs().max()) <= unit * cond**0.5
    A = spd(geometric(n, cond))
    est = slq_logdet(A, X, num_steps=n)
    assert float((est.samples - log_forms(A, X)).abs().max()) <= unit * cond


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("distinct", [1, 2, 4])
@pytest.mark.parametrize("extra", [0, 1, 5])
def test_as_many_steps_as_distinct_eigenvalues_are_exact(dtype, distinct, extra):
    n = 24
    values = torch.linspace(0.2, 1, distinct, dtype=f64).repeat(n)[:n]
    A, X = spd(values).to(dtype), signs(n, 6, seed=2, dtype=dtype)
    unit = 50 * n**2 * EPS[dtype]
    est = slq_logdet(A, X, num_steps=distinct + extra)
    assert float((est.samples - log_forms(A, X)).abs().max()) <= unit * 5
    J = factor(values.sqrt(), 30).to(dtype)
    est = golub_kahan_logdet(J, X, num_steps=distinct + extra)
    assert float((est.samples - log_forms_of_factor(J, X)).abs().max()) <= unit * 5**0.5
    # Rotated matrices repeat eigenvalues to rounding only; a diagonal one exactly, and is flagged.
    est = slq_logdet(torch.diag(values).to(dtype), X, num_steps=distinct + extra)
    closed = Status.INVARIANT_SUBSPACE if extra else Status.OK
    assert flags(est) == closed
    exact = X.double().square().mT @ values.log()
    assert float((est.samples - exact).abs().max()) <= unit * 5


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("n", [1, 2, 17])
@pytest.mark.parametrize("c", [1e-3, 1.0, 7.0])
def test_multiples_of_the_identity_are_exact_for_every_method(dtype, n, c):
    A, X = c * torch.eye(n, dtype=dtype), signs(n, 5, seed=3, dtype=dtype)
    J, k = c**0.5 * torch.eye(n, dtype=dtype), min(n, 3)
    degree = 60
    for est in (
        slq_logdet(A, X, num_steps=k, lower=0.5 * c),
        golub_kahan_logdet(J, X, num_steps=k, lower=0.5 * c),
        chebyshev_logdet(A, X, degree=degree, interval=(0.5 * c, 1.5 * c)),
        taylor_logdet(A, X, degree=degree, upper=1.5 * c),
        algorithm1_logdet(A, X, degree=degree, lower=0.5 * c, power_steps=2),
    ):
        # Polynomials of degree 60 on [c/2, 3c/2] are within 1e-29 of log.
        bound = 50 * (degree + 1) * EPS[dtype] * n * max(1, abs(math.log(c)))
        assert abs(float(est.value) - n * math.log(c)) <= bound
        assert float(est.standard_error) <= bound
        assert bool(est.ok)


def test_identity_has_log_determinant_zero():
    est = slq_logdet(torch.eye(9, dtype=f64), signs(9, 3), num_steps=4, lower=0.5)
    assert float(est.value) == pytest.approx(0, abs=1e-14)
    assert float(est.lower) == float(est.upper) == pytest.approx(0, abs=1e-14)
    assert flags(est) == Status.INVARIANT_SUBSPACE


def test_golub_kahan_is_slq_on_the_gram_matrix():
    J, X = factor(geometric(20, 6.0), 33), signs(20, 5, seed=4)
    one = golub_kahan_logdet(J, X, num_steps=7, lower=0.02)
    two = slq_logdet(J.mT @ J, X, num_steps=7, lower=0.02)
    for name in ("samples", "lower", "upper", "standard_error"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=0, atol=1e-9)


# Brackets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cond", [5.0, 100.0, 1e4])
@pytest.mark.parametrize("size", [1, 4, 12])
def test_brackets_hold_for_every_probe(cond, size):
    """One probe an estimate, so that nothing averages out."""
    n = 30
    A, X = case(n, cond, m=40)
    J, truth, low = torch.linalg.cholesky(A).mT, log_forms(A, X), 0.9 / cond
    singles, slack = X.mT.unsqueeze(-1), 50 * n**2 * EPS[f64] * cond
    for est in (
        slq_logdet(A, singles, num_steps=size, lower=low),
        golub_kahan_logdet(J, singles, num_steps=size, lower=low),
        chebyshev_logdet(A, singles, degree=2 * size, interval=(low, 1.1)),
        chebyshev_logdet(A, singles, degree=2 * size, interval=(low, 1.1), series=True),
    ):
        assert bool((est.lower <= truth + slack).all())
        assert bool((truth <= est.upper + slack).all())
        assert bool(torch.isfinite(est.lower).all())
        assert bool(((est.lower <= est.value + slack) & (est.value <= est.upper + slack)).all())
    for est in (
        slq_logdet(A, singles, num_steps=size),
        taylor_logdet(A, singles, degree=2 * size, upper=1.1),
    ):
        assert bool((truth <= est.value + slack).all())  # one-sided
        assert bool((est.upper == est.value).all())
        assert bool((est.lower == -math.inf).all())


@pytest.mark.parametrize(("series", "degree"), [(False, 1), (False, 20), (True, 1), (True, 20)])
def test_width_of_the_chebyshev_bracket_is_the_certified_bound(series, degree):
    A, X = case(20)
    est = chebyshev_logdet(A, X, degree=degree, interval=(A_END, B_END), series=series)
    root = math.sqrt(B_END / A_END)
    rho = (root + 1) / (root - 1)
    bound = (2 if series else 4) * rho**-degree / ((degree + 1) * (rho - 1))
    assert float(est.upper - est.lower) == pytest.approx(2 * bound * 20, rel=1e-10)


# Float32 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cond", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("spectrum", ["geometric", "arithmetic"])
def test_float32_golub_kahan_keeps_a_thousandth_of_a_nat(cond, spectrum):
    n, root = 64, cond**0.5
    sigma = geometric(n, root)
    sigma = sigma if spectrum == "geometric" else torch.linspace(1, 1 / root, n, dtype=f64)
    J, X = factor(sigma, 96).to(f32), signs(n, 16, seed=6, dtype=f32)
    exact = float(log_forms_of_factor(J, X).mean())
    est = golub_kahan_logdet(J, X, num_steps=n)
    assert bool(est.ok)
    assert abs(float(est.value) - exact) <= 1e-3
    if cond == 1e8:  # the same in exact arithmetic, but not in this one
        gram = J.mT @ J
        squared = slq_logdet((gram + gram.mT) / 2, X, num_steps=n)
        assert not abs(float(squared.value) - exact) <= 0.1


# Algorithm 1 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chebyshev", "taylor"])
def test_algorithm1_is_the_expansion_on_the_bound_it_found(kind):
    A, X = case(30)
    est = algorithm1_logdet(A, X, degree=15, lower=A_END, polynomial=kind)
    b = lanczos_interval(A, X[:, 0], 10).upper
    plain = algorithm1_logdet(A, X, degree=15, lower=A_END, polynomial=kind, safe=False)
    power = power_method(A, X[:, 0], 10)
    assert float(power) < 1 <= float(b)
    for found, end in ((est, b), (plain, power)):
        p = interpolant(15, A_END, float(end)) if kind == "chebyshev" else None
        p = p or taylor_polynomial(15, float(end))
        expected = torch.einsum("im,ij,jm->m", X, matrix_function(p, A), X)
        torch.testing.assert_close(found.samples, expected, rtol=1e-11, atol=1e-10)
        assert found.num_matvecs == 8 * 8 + 10
    assert flags(est) == Status.OK


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("kind", ["chebyshev", "taylor"])
def test_safe_form_raises_a_bound_proved_wrong_and_counts_it(dtype, kind):
    A, X = blind_start(dtype=dtype, cond=10.0)
    if kind == "taylor":
        A[0, 0] = 2.5  # |1 − λ/α| exceeds 1 only beyond 2α
    degree = 20
    assert float(lanczos_interval(A, X[:, 0], 10).upper) < 0.8 * float(A[0, 0])
    est = algorithm1_logdet(A, X, degree=degree, lower=0.09, polynomial=kind)
    assert bool(est.ok)
    exact = float(log_forms(A, X).mean())
    bias = 0.1 if kind == "taylor" else 1e-4  # truncation on the final interval
    assert float(est.value) == pytest.approx(exact, rel=max(bias, 1e3 * EPS[dtype]))
    runs, rest = divmod(est.num_matvecs - 10, 6 * degree // 2)
    assert (runs >= 2, rest) == (True, 0)


def test_safe_form_raises_a_bound_that_is_a_little_too_low():
    """T_k grows so slowly that its Rayleigh quotient stays inside: growth alone must suffice."""
    for degree in (20, 40):
        A, X = blind_start(n=100, m=8, cond=10.0, top=1.0)
        est = algorithm1_logdet(A, X, degree=degree, lower=0.09, power_steps=30)
        assert bool(est.ok)
        assert est.num_matvecs > 30 + 8 * degree // 2
        assert float(est.value) == pytest.approx(float(log_forms(A, X).mean()), rel=1e-4)


def test_plain_form_explodes_without_a_word():
    A, X = blind_start()
    est = algorithm1_logdet(A, X, degree=60, lower=A_END, safe=False)
    exact = float(log_forms(A, X).mean())
    assert abs(float(est.value)) > 1e6 * abs(exact)
    assert flags(est) == Status.OK
    assert est.num_matvecs == 10 + 6 * 30


def test_eigenvalue_below_the_interval_is_floored_and_said_so():
    A, X = case(30, cond=1e3)
    est = algorithm1_logdet(A, X, degree=15, lower=1.2e-3, power_steps=30)
    assert flags(est) == Status.FLOORED
    assert bool(est.ok)
    assert float(est.value) > float(log_forms(A, X).mean())  # upwards
    assert flags(algorithm1_logdet(A, X, degree=15, lower=0.9e-3, power_steps=30)) == Status.OK
