"""Coefficients against numpy's interpolation, moments against the recurrence without doubling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.operators import CountingOperator
from specbp.polynomials import (
    chebyshev_coefficients,
    chebyshev_moments,
    chebyshev_series,
    taylor_coefficients,
    taylor_moments,
)
from tests.support import (
    EPS,
    f32,
    f64,
    geometric,
    interpolant,
    normal,
    signs,
    spd,
    taylor_polynomial,
    truncated_series,
)

intervals = st.tuples(st.floats(1e-4, 10), st.floats(1.05, 1e4)).map(lambda t: (t[0], t[0] * t[1]))
degrees = st.integers(1, 60)


def scalar(x):
    return torch.tensor(x, dtype=f64)


def bound_of_interpolation(degree, a, b, factor=4):
    rho = (math.sqrt(b / a) + 1) / (math.sqrt(b / a) - 1)
    return factor * rho**-degree / ((degree + 1) * (rho - 1))


def largest_log(a, b):
    return max(abs(math.log(a)), abs(math.log(b)))


@given(degrees, intervals)
def test_interpolant_equals_numpy(degree, interval):
    a, b = interval
    ours = chebyshev_coefficients(degree, scalar(a), scalar(b))
    bound = 20 * (degree + 1) * EPS[f64] * (largest_log(a, b) + b / a * EPS[f64])
    # numpy maps the points by a different formula, which rounds those next to a relatively more.
    bound += 20 * EPS[f64] * b / a
    np.testing.assert_allclose(ours, interpolant(degree, a, b).coef, rtol=0, atol=bound)


@pytest.mark.parametrize(("a", "b"), [(0.5, 1.0), (0.01, 3.0), (1e-3, 2.0)])
@pytest.mark.parametrize("degree", [1, 2, 9, 60])
def test_series_equals_the_limit_of_interpolants(degree, a, b):
    ours = chebyshev_series(degree, scalar(a), scalar(b))
    bound = 4001 * EPS[f64] * largest_log(a, b)
    expected = truncated_series(degree, a, b).coef
    np.testing.assert_allclose(ours[: len(expected)], expected, rtol=0, atol=bound)
    # numpy's truncate drops trailing zeros, so what is left over must be one.
    assert float(ours[len(expected) :].abs().sum()) <= bound


@given(degrees, intervals)
def test_truncation_stays_within_the_certified_bounds(degree, interval):
    a, b = interval
    # Not only inside: both ends, where the error is largest, belong to the interval.
    x = np.concatenate([np.geomspace(a, b, 200), np.linspace(a, b, 200)]).clip(a, b)
    rounding = 50 * (degree + 1) * EPS[f64] * (1 + largest_log(a, b)) * (1 + b / a * EPS[f64])
    for make, factor in ((chebyshev_coefficients, 4), (chebyshev_series, 2)):
        p = np.polynomial.Chebyshev(make(degree, scalar(a), scalar(b)).numpy(), domain=[a, b])
        # Near a, evaluation maps x to −1 + O(eps): a relative error of eps b/a in x.
        worst = np.abs(p(x) - np.log(x)).max()
        limit = bound_of_interpolation(degree, a, b, factor)
        assert worst <= limit + rounding + 4 * EPS[f64] * b / a
        if make is chebyshev_series and degree > 1:
            at_a = abs(float(p(a)) - math.log(a))
            assert at_a >= worst - rounding - 4 * EPS[f64] * b / a  # attained at a
            assert at_a >= limit / 2 * (1 - 1 / degree) * (1 - rounding) - rounding or limit > 1


@given(st.integers(1, 30), st.floats(0.1, 10))
def test_taylor_equals_the_truncated_series(degree, alpha):
    ours = taylor_coefficients(degree, scalar(alpha)).numpy()
    p = np.polynomial.Polynomial(ours, domain=[0, alpha], window=[1, 0])
    x = np.linspace(0.05, 1, 20) * alpha
    np.testing.assert_allclose(p(x), taylor_polynomial(degree, alpha)(x), rtol=0, atol=1e-13)
    assert (p(x) >= np.log(x) - 1e-13).all()  # one-sided
    remainder = (1 - x / alpha) ** (degree + 1) / ((degree + 1) * (x / alpha))
    assert (p(x) - np.log(x) <= remainder + 1e-13).all()


def test_coefficients_of_a_batch_of_intervals():
    a, b = torch.tensor([[0.1, 0.2]], dtype=f64), torch.tensor([[1.0], [2.0], [3.0]], dtype=f64)
    a, b = torch.broadcast_tensors(a, b)
    for make in (chebyshev_coefficients, chebyshev_series):
        whole = make(5, a, b)
        assert whole.shape == (3, 2, 6)
        torch.testing.assert_close(whole[2, 1], make(5, scalar(0.2), scalar(3.0)))
    assert taylor_coefficients(5, b).shape == (3, 2, 6)
    torch.testing.assert_close(taylor_coefficients(5, b)[2, 0], taylor_coefficients(5, scalar(3.0)))


@pytest.mark.parametrize("make", [chebyshev_coefficients, chebyshev_series])
def test_coefficients_stay_on_the_device_of_the_interval(make):
    end = torch.empty(3, dtype=f64, device="meta")
    assert make(5, end, end).device.type == "meta"


def naive_chebyshev_moments(A, x, degree, a, b):
    """One product for each degree, no doubling."""
    M = (2 * A - (a + b) * np.eye(len(A))) / (b - a)
    vectors = [x, M @ x]
    while len(vectors) <= degree:
        vectors.append(2 * M @ vectors[-1] - vectors[-2])
    return np.array([x @ w for w in vectors[: degree + 1]])


def naive_taylor_moments(A, x, degree, alpha):
    vectors = [x]
    while len(vectors) <= degree:
        vectors.append(vectors[-1] - A @ vectors[-1] / alpha)
    return np.array([x @ w for w in vectors])


def case(dtype=f64, n=20, cond=30.0, m=3):
    A = spd(geometric(n, cond)).to(dtype)
    return A, signs(m, n, seed=1, dtype=dtype)


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("degree", [1, 2, 3, 4, 7, 8, 51])
def test_moments_by_doubling_equal_one_product_a_degree(degree, dtype):
    A, rows = case(dtype)
    dense, (a, b) = A.double().numpy(), (0.03, 1.1)
    cheb = chebyshev_moments(A, rows, degree, scalar(a), scalar(b))
    taylor = taylor_moments(A, rows, degree, scalar(b))
    assert cheb.moments.shape == taylor.moments.shape == (3, degree + 1)
    assert cheb.moments.dtype == f64
    bound = 50 * (degree + 1) * EPS[dtype] / 2 * 20
    for i, x in enumerate(rows.double().numpy()):
        expected = naive_chebyshev_moments(dense, x, degree, a, b)
        np.testing.assert_allclose(cheb.moments[i], expected, rtol=0, atol=bound)
        expected = naive_taylor_moments(dense, x, degree, b)
        np.testing.assert_allclose(taylor.moments[i], expected, rtol=0, atol=bound)


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 10, 11])
def test_products_are_half_the_degree_rounded_up(degree):
    A, rows = case()
    counted = CountingOperator(A)
    chebyshev_moments(counted, rows, degree, scalar(0.03), scalar(1.1))
    assert counted.num_matvecs == 3 * math.ceil(degree / 2)
    counted = CountingOperator(A)
    taylor_moments(counted, rows, degree, scalar(1.1))
    assert counted.num_matvecs == 3 * math.ceil(degree / 2)


def test_moments_of_a_batch_of_intervals():
    A, rows = case()
    a, b = torch.tensor([0.03, 0.02], dtype=f64), torch.tensor([1.1, 1.3], dtype=f64)
    whole = chebyshev_moments(A.expand(2, 20, 20), rows.expand(2, 3, 20), 9, a, b)
    for i in range(2):
        one = chebyshev_moments(A, rows, 9, a[i], b[i])
        for name, left, right in zip(whole._fields[:-1], whole[:-1], one[:-1], strict=True):
            torch.testing.assert_close(left[i], right, rtol=0, atol=1e-11, msg=name)
    whole = taylor_moments(A.expand(2, 20, 20), rows.expand(2, 3, 20), 9, b)
    torch.testing.assert_close(whole.moments[1], taylor_moments(A, rows, 9, b[1]).moments)


@pytest.mark.parametrize("degree", [1, 2, 9, 10])
def test_vectors_that_are_kept_are_those_of_the_recurrence(degree):
    A, rows = case()
    a, b = torch.tensor(0.03, dtype=f64), torch.tensor(1.1, dtype=f64)
    seen = chebyshev_moments(A, rows, degree, a, b, keep=True)
    M = (2 * A - (a + b) * torch.eye(20, dtype=f64)) / (b - a)
    expected = [rows, rows @ M]
    while len(expected) < (degree + 1) // 2 + 1:
        expected.append(2 * expected[-1] @ M - expected[-2])
    assert len(seen.vectors) == (degree + 1) // 2 + 1
    for found, vector in zip(seen.vectors, expected, strict=False):
        torch.testing.assert_close(found, vector, rtol=0, atol=1e-12)
    assert chebyshev_moments(A, rows, degree, a, b).vectors == ()
    powers = taylor_moments(A, rows, degree, b, keep=True).vectors
    torch.testing.assert_close(powers[1], rows - rows @ A / b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("cond", [2.0, 1e2, 1e4])
@pytest.mark.parametrize("degree", [3, 40, 200])
def test_nothing_grows_on_the_right_interval(dtype, cond, degree):
    """Even for probes along the extreme eigenvectors and an interval that ends at them."""
    A = spd(geometric(20, cond)).to(dtype)
    eigenvalues, V = torch.linalg.eigh(A.double())
    rows = torch.cat([signs(3, 20, seed=1), 20**0.5 * V.mT[[0, -1]]]).to(dtype)
    seen = chebyshev_moments(A, rows, degree, eigenvalues[0], eigenvalues[-1])
    assert float((seen.growth - 1).max()) <= 16 * (degree + 1) ** 2 * EPS[dtype]
    assert float(seen.asymmetry.max()) <= EPS[dtype] ** 0.5  # the limit of the estimators
    taylor = taylor_moments(A, rows, degree, eigenvalues[-1])
    assert float((taylor.growth - 1).max()) <= 16 * (degree + 1) ** 2 * EPS[dtype]
    assert float(taylor.asymmetry.max()) <= EPS[dtype] ** 0.5


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("cond", [1.01, 1.1, 1.5])
@pytest.mark.parametrize("degree", [10, 50, 200])
def test_little_grows_on_a_narrow_interval(dtype, cond, degree):
    """Products are rounded to eps |A|: (b + a)/(b − a) times as much in the variable of T_k."""
    A = spd(geometric(32, cond)).to(dtype)
    eigenvalues, V = torch.linalg.eigh(A.double())
    rows = (32**0.5 * V.mT[[0, -1]]).to(dtype)
    a, b = eigenvalues[0], eigenvalues[-1]
    seen = chebyshev_moments(A, rows, degree, a, b)
    limit = 16 * (degree + 1) ** 2 * EPS[dtype] * float((b + a) / (b - a))
    assert float((seen.growth - 1).max()) <= limit


@pytest.mark.parametrize("degree", [10, 11, 40])
@pytest.mark.parametrize("b", [0.5, 0.9])
def test_growth_is_the_largest_even_moment_and_its_vector_tells_where(degree, b):
    A, rows = case()
    seen = chebyshev_moments(A, rows, degree, scalar(0.03), scalar(b))
    eigenvalues, V = torch.linalg.eigh(A)
    t = ((2 * eigenvalues - b - 0.03) / (b - 0.03)).numpy()
    weights = (rows @ V).square().numpy()
    even = range(0, 2 * ((degree + 1) // 2) + 1, 2)
    basis = np.polynomial.Chebyshev.basis
    moments = np.array([weights @ basis(k)(t) for k in even])
    expected = np.abs(moments).max(0) / 20
    np.testing.assert_allclose(seen.growth, expected, rtol=1e-9)
    assert (expected > 1).all()
    # Where: the Rayleigh quotient at T_k(M) x for the k < ⌈d/2⌉ whose moment 2k is largest.
    for i, k in enumerate(np.abs(moments[:-1]).argmax(0)):
        masses = weights[i] * basis(k)(t) ** 2
        quotient = masses @ eigenvalues.numpy() / masses.sum()
        assert float(seen.rayleigh[i]) == pytest.approx(quotient, rel=1e-9)
    assert (seen.rayleigh <= eigenvalues[-1] + 1e-12).all()
    if b == 0.5:
        assert (seen.rayleigh > b).all()


def test_taylor_growth_and_where():
    A, rows = case()
    seen = taylor_moments(A, rows, 20, scalar(0.4))  # 1 − λ/α reaches −1.5
    assert bool((seen.growth > 10).all())
    assert bool((seen.rayleigh > 0.8).all())
    assert bool((seen.rayleigh <= 1.0 + 1e-12).all())


@pytest.mark.parametrize("moments", [chebyshev_moments, taylor_moments])
def test_asymmetry_shows_from_the_second_moment_on(moments):
    A, rows = case()
    skew = normal(20, 20, seed=7)
    skew = 1e-3 * (skew - skew.mT) / torch.linalg.matrix_norm(skew - skew.mT, 2)
    ends = (scalar(0.03), scalar(1.1)) if moments is chebyshev_moments else (scalar(1.1),)
    assert float(moments(A, rows, 3, *ends).asymmetry.max()) <= 1e-13
    # xᵀSx = 0 but |Sx|² ≠ 0: even moments see the square of the skew, mixed ones see it linearly.
    assert float(moments(A + skew, rows, 3, *ends).asymmetry.min()) >= 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_spoiled_probe_does_not_touch_its_neighbours(bad):
    A, rows = case()
    rows = rows.clone()
    clean = chebyshev_moments(A, rows, 9, scalar(0.03), scalar(1.1))
    rows[1, 4] = bad
    seen = chebyshev_moments(A, rows, 9, scalar(0.03), scalar(1.1))
    assert not bool(torch.isfinite(seen.moments[1]).all())
    torch.testing.assert_close(seen.moments[[0, 2]], clean.moments[[0, 2]], rtol=0, atol=1e-12)


class Breaking:
    """A symmetric operator whose second product is NaN."""

    def __init__(self, matrix):
        self.matrix, self.calls = matrix, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, X):
        self.calls += 1
        return self.matrix @ X * (math.nan if self.calls == 2 else 1)


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("moments", [chebyshev_moments, taylor_moments])
def test_a_broken_product_is_no_growth_whatever_the_length_of_the_probes(moments, length):
    A, rows = case()
    ends = (scalar(0.03), scalar(1.1)) if moments is chebyshev_moments else (scalar(1.1),)
    before, seen = (
        moments(A, length * rows, 2, *ends),
        moments(Breaking(A), length * rows, 4, *ends),
    )
    assert bool(seen.moments[:, 3:].isnan().all())
    torch.testing.assert_close(seen.growth, before.growth, rtol=0, atol=0)
    torch.testing.assert_close(seen.rayleigh, before.rayleigh, rtol=0, atol=0)
