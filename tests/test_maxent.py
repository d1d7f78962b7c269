"""Maximum entropy against its definition, a general optimiser, published numbers and replicates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from specbp.estimate import Status
from specbp.maxent import RIDGE, maxent_logdet
from specbp.probes import gaussian, rademacher
from tests.support import (
    all_signs,
    f32,
    f64,
    flags,
    generator,
    geometric,
    log_forms,
    normal,
    signs,
    spd,
)

ENDS = (0.045, 1.05)


def case(n=40, cond=20.0, m=6, dtype=f64, seed=0):
    return spd(geometric(n, cond), seed).to(dtype), signs(n, m, seed=seed + 9, dtype=dtype)


def exact_moments(eigenvalues, K, interval, **options):
    """The fit to the moments of the whole spectrum: one probe on a diagonal matrix."""
    X = torch.ones(len(eigenvalues), 1, dtype=f64)
    A = torch.diag(eigenvalues)
    return maxent_logdet(A, X, num_moments=K, interval=interval, **options)


def naive(A, X, K, interval, exponent):
    """The dual on a fine trapezoidal grid in log x, minimised by scipy from its own gradient."""
    (a, b), n = interval, len(A)
    M = (2 * A.numpy() - (a + b) * np.eye(n)) / (b - a)
    target = []
    for k in range(1, K + 1):
        T = np.polynomial.chebyshev.Chebyshev.basis(k)
        ev, V = np.linalg.eigh(M)
        target.append(np.sum((V.T @ X.numpy()) ** 2 * T(ev)[:, None]) / np.sum(X.numpy() ** 2))
    logs = np.linspace(np.log(a), np.log(b), 20001)
    x = np.exp(logs)
    t = np.clip((2 * x - a - b) / (b - a), -1, 1)
    Phi = np.cos(np.arccos(t)[:, None] * np.arange(1, K + 1))
    base = x ** (1 - exponent)
    base[[0, -1]] /= 2

    def dual(alpha):
        e = base * np.exp(Phi @ alpha)
        p = e / e.sum()
        penalty = RIDGE / 2 * alpha @ alpha
        return np.log(e.sum()) - alpha @ target + penalty, p @ Phi - target + RIDGE * alpha

    found = minimize(dual, np.zeros(K), jac=True, method="BFGS", options={"gtol": 1e-9})
    e = base * np.exp(Phi @ found.x)
    return n * (e @ logs) / e.sum()


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("K", [2, 3, 6])
def test_value_is_that_of_a_general_optimiser(K, exponent):
    A, X = case()
    est = maxent_logdet(A, X, num_moments=K, interval=ENDS, base_exponent=exponent)
    expected = naive(A, X, K, ENDS, exponent)
    assert float(est.value) == pytest.approx(expected, abs=1e-3)
    assert flags(est) == Status.OK
    assert est.num_matvecs == 6 * math.ceil(K / 2)


def test_published_numbers_of_the_uniform_base():
    """Log-uniform spectrum, exact moments: 812 and 745 nats for 2 and 4, exact 691."""
    ev = torch.logspace(0, 3, 200, dtype=f64)
    for K, expected in ((2, 812), (4, 745)):
        est = exact_moments(ev, K, (1.0, 1e3), base_exponent=0.0)
        assert float(est.value) == pytest.approx(expected, abs=0.5)
    ev = torch.logspace(-3, 3, 200, dtype=f64)
    assert float(exact_moments(ev, 2, (1e-3, 1e3), base_exponent=0.0).value) > 600


@pytest.mark.parametrize(("cond", "tolerance"), [(1e3, 0.2), (1e6, 4.0)])
def test_logarithmic_base_serves_spectra_that_span_decades(cond, tolerance):
    ev = torch.logspace(0, math.log10(cond), 200, dtype=f64)
    exact = float(ev.log().sum())
    for K in (2, 8, 20):
        est = exact_moments(ev, K, (1.0, cond))
        assert flags(est) == Status.OK
        assert float(est.value) == pytest.approx(exact, abs=tolerance)
        uniform = exact_moments(ev, K, (1.0, cond), base_exponent=0.0)
        assert abs(float(uniform.value) - exact) > abs(float(est.value) - exact)


def test_model_converges_with_moments_on_a_smooth_spectrum():
    W = normal(200, 400)
    ev = torch.linalg.eigvalsh(W @ W.mT / 400)
    errors = [
        abs(float(exact_moments(ev, K, (float(ev[0]), float(ev[-1]))).value - ev.log().sum()))
        for K in (2, 4, 8, 16)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[3] < 0.02


@given(st.integers(2, 24), st.integers(0, 10**6), st.sampled_from([0.0, 0.7, 1.0]))
@settings(max_examples=25)
def test_value_and_truth_lie_in_the_bracket(K, seed, exponent):
    A, X = case(n=15, m=2, seed=seed)
    X = X * (1 + 0.5 * normal(1, 2, seed=seed))  # of different lengths
    est = maxent_logdet(A, X, num_moments=K, interval=ENDS, base_exponent=exponent)
    exact = float(15 * log_forms(A, X).sum() / X.square().sum())
    assert float(est.lower) - 1e-9 <= exact <= float(est.upper) + 1e-9
    assert float(est.lower) - 1e-9 <= float(est.value) <= float(est.upper) + 1e-9


@given(st.floats(1e-3, 1e3), st.integers(0, 10**6))
@settings(max_examples=25)
def test_scaling_adds_n_log_c(c, seed):
    A, X = case(seed=seed)
    plain = maxent_logdet(A, X, num_moments=6, interval=ENDS)
    moved = maxent_logdet(c * A, X, num_moments=6, interval=(ENDS[0] * c, ENDS[1] * c))
    expected = float(plain.value) + 40 * math.log(c)
    assert float(moved.value) == pytest.approx(expected, abs=1e-6)
    assert float(moved.standard_error) == pytest.approx(float(plain.standard_error), rel=1e-5)


def test_order_length_and_sign_of_probes_do_not_matter():
    A, X = case()
    est = maxent_logdet(A, X, num_moments=6, interval=ENDS)
    for Y in (X[:, torch.tensor([3, 5, 0, 1, 4, 2])], -X, 2 * X):
        again = maxent_logdet(A, Y, num_moments=6, interval=ENDS)
        assert float(again.value) == pytest.approx(float(est.value), abs=1e-7)


def test_float32_moments_give_nearly_the_float64_fit():
    A, X = case(dtype=f32)
    single = maxent_logdet(A, X, num_moments=10, interval=ENDS)
    double = maxent_logdet(A.double(), X.double(), num_moments=10, interval=ENDS)
    assert single.value.dtype == f64
    assert float(single.value) == pytest.approx(float(double.value), abs=1e-2)


@pytest.mark.parametrize("batched_interval", [False, True])
def test_batch_equals_singles(batched_interval):
    A = torch.stack([case(seed=1)[0], case(seed=2)[0]])
    X = signs(3, 1, 40, 5, seed=3)
    lower = torch.tensor([0.04, 0.045], dtype=f64) if batched_interval else 0.045
    est = maxent_logdet(A, X, num_moments=7, interval=(lower, 1.05))
    assert est.value.shape == (3, 2)
    assert est.num_matvecs == 5 * 4
    for r in range(3):
        for i in range(2):
            end = float(lower[i]) if batched_interval else lower
            one = maxent_logdet(A[i], X[r, 0], num_moments=7, interval=(end, 1.05))
            for name in ("value", "standard_error", "lower", "upper", "samples"):
                found, expected = getattr(est, name)[r, i], getattr(one, name)
                torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("sampler", [rademacher, gaussian])
@pytest.mark.parametrize("m", [4, 16])
def test_standard_error_is_that_of_the_moment_noise(sampler, m):
    """E[se²] / Var over 600 replicates; the model's bias is no part of either."""
    A = spd(geometric(40, 100.0))
    X = sampler(40, m, generator=generator(m), batch_shape=(600,))
    est = maxent_logdet(A, X, num_moments=6, interval=(0.009, 1.05))
    assert int(est.status.max()) == 0
    ratio = float(est.standard_error.square().mean() / est.value.var())
    # sd of a variance over 600 normal replicates: 6 %; first order in the noise: a few more.
    assert ratio == pytest.approx(1, abs=0.2)


def test_samples_are_the_derivative_of_the_fit_by_its_weights():
    """Doubling the weight of probe i moves the value by (y_i − ȳ) / m to first order."""
    A, X = case(m=8)
    est = maxent_logdet(A, X, num_moments=6, interval=ENDS)
    h = 1e-4
    for i in range(3):
        Y = X.clone()
        Y[:, i] *= math.sqrt(1 + h)
        moved = float(maxent_logdet(A, Y, num_moments=6, interval=ENDS).value)
        slope = (moved - float(est.value)) / h
        expected = float(est.samples[i] - est.value) / 8
        assert slope == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_gradient_is_the_derivative_of_the_fit():
    A, X = case(n=8, m=3)
    entries, direction = A.clone().requires_grad_(), normal(8, 8, seed=3)
    direction = (direction + direction.mT) / 2

    def value(matrix):
        return maxent_logdet(matrix, X, num_moments=4, interval=ENDS).value

    (gradient,) = torch.autograd.grad(value(entries), entries)
    h = 1e-4
    slope = float(value(A + h * direction) - value(A - h * direction)) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_value_over_all_signs_is_biased_by_curvature_and_converges_to_the_fit():
    A = spd(geometric(8, 20.0))
    whole = maxent_logdet(A, all_signs(8), num_moments=4, interval=ENDS)
    exact = maxent_logdet(A, math.sqrt(8) * torch.eye(8, dtype=f64), num_moments=4, interval=ENDS)
    assert float(whole.value) == pytest.approx(float(exact.value), abs=1e-6)
    singles = maxent_logdet(
        A, all_signs(8).mT.unsqueeze(-1), num_moments=4, interval=ENDS
    ).value.mean()
    assert abs(float(singles - whole.value)) > 1e-3


def test_multiple_of_the_identity_is_told_not_to_converge_or_is_right():
    """One eigenvalue: no density has its moments, α runs away."""
    A, X = 0.3 * torch.eye(20, dtype=f64), signs(20, 3)
    est = maxent_logdet(A, X, num_moments=8, interval=ENDS)
    exact = 20 * math.log(0.3)
    assert float(est.lower) - 1e-12 <= exact <= float(est.upper) + 1e-12
    assert float(est.lower) - 1e-12 <= float(est.value) <= float(est.upper) + 1e-12
    assert float(est.value) == pytest.approx(exact, abs=0.5)
    assert flags(est) in (Status.OK, Status.UNCONVERGED)


def test_few_newton_steps_are_told(monkeypatch):
    A, X = case()
    monkeypatch.setattr("specbp.maxent.MAX_NEWTON", 1)
    est = maxent_logdet(A, X, num_moments=8, interval=ENDS)
    assert flags(est) == Status.UNCONVERGED
    assert "fewer moments" in flags(est).remedy
    assert bool(est.ok)
    assert float(est.lower) <= float(est.value) <= float(est.upper)


def test_moments_that_no_density_matches_are_told(monkeypatch):
    monkeypatch.setattr("specbp.maxent.MISMATCH", 1e-12)
    A, X = case()
    est = maxent_logdet(A, X, num_moments=8, interval=ENDS)
    assert flags(est) == Status.UNCONVERGED


@pytest.mark.parametrize("top", [-0.5, 1.5])
def test_eigenvalue_outside_the_interval_is_told(top):
    ev = geometric(12, 20.0)
    ev[0] = top
    est = maxent_logdet(torch.diag(ev), signs(12, 3), num_moments=20, interval=ENDS)
    assert Status.OUTSIDE_INTERVAL in flags(est)
    assert bool(est.value.isnan())
    assert float(est.upper) == math.inf


def test_asymmetry_is_told():
    A, X = case()
    A[0, 1] += 0.1
    est = maxent_logdet(A, X, num_moments=8, interval=ENDS)
    assert Status.NONSYMMETRIC in flags(est)
    assert bool(est.value.isnan())


def test_nan_in_a_product_gives_nan_and_a_status():
    A, X = case()
    A = torch.stack([A, A])
    A[0, 3, 3] = math.nan
    est = maxent_logdet(A, X, num_moments=8, interval=ENDS)
    assert bool(est.value[0].isnan())
    assert int(est.status[0]) & int(Status.NONFINITE)
    assert float(est.lower[0]) == -math.inf
    assert int(est.status[1]) == 0
    alone = maxent_logdet(A[1], X, num_moments=8, interval=ENDS)
    assert float(est.value[1]) == pytest.approx(float(alone.value), abs=1e-8)


@pytest.mark.parametrize("dtype", [f32, f64])
def test_one_probe_has_no_error_bar(dtype):
    A, X = case(m=1, dtype=dtype)
    est = maxent_logdet(A, X, num_moments=4, interval=ENDS)
    assert math.isfinite(float(est.value))
    assert math.isnan(float(est.standard_error))


def test_bad_input_is_refused():
    A, X = case()
    with pytest.raises(ValueError, match="at least 2"):
        maxent_logdet(A, X, num_moments=1, interval=ENDS)
    with pytest.raises(ValueError, match="0 < lower < upper"):
        maxent_logdet(A, X, num_moments=4, interval=(1.0, 0.5))
    with pytest.raises(TypeError, match="convert one"):
        maxent_logdet(A, X.float(), num_moments=4, interval=ENDS)
    with pytest.raises(ValueError, match="square"):
        maxent_logdet(A[:5], X, num_moments=4, interval=ENDS)
