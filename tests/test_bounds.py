"""Bounds of the spectrum: what is certified holds always, estimates err to the side they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.bounds import certified_upper, interval, lanczos_interval, positive, power_method
from specbp.krylov import lanczos
from specbp.operators import CountingOperator
from tests.support import EPS, f32, f64, geometric, normal, signs, spd

ROWS = torch.ones(4, 2)  # four probes of length 2, no batch
BATCH = torch.ones(2, 4, 2)


def test_interval_is_float64_for_each_item_of_the_batch():
    ends = interval(0.1, torch.tensor([1.0, 2.0]), BATCH)
    assert ends.lower.dtype == ends.upper.dtype == f64
    assert ends.lower.shape == ends.upper.shape == (2,)
    assert ends.lower.tolist() == [0.1, 0.1]
    assert interval(0.1, 1.0, ROWS).lower.shape == ()


@pytest.mark.parametrize("rows", [ROWS, BATCH])
def test_bounds_that_do_not_fit_the_batch(rows):
    three = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(
        ValueError, match=r"interval has shape \(3,\), which does not fit the batch"
    ):
        interval(0.1, three, rows)
    with pytest.raises(ValueError, match=r"upper has shape \(3,\), which does not fit the batch"):
        positive(three, "upper", rows)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        pytest.param(1.0, 1.0, id="empty"),
        pytest.param(2.0, 1.0, id="reversed"),
        pytest.param(0.0, 1.0, id="zero"),
        pytest.param(-1.0, 1.0, id="negative"),
        pytest.param(math.nan, 1.0, id="nan below"),
        pytest.param(1.0, math.nan, id="nan above"),
        pytest.param(1.0, math.inf, id="infinite"),
        pytest.param(torch.tensor([0.1, 3.0]), 2.0, id="one of a batch"),
    ],
)
def test_bad_interval(lower, upper):
    with pytest.raises(ValueError, match="needs 0 < lower < upper < inf, got lower = "):
        interval(lower, upper, BATCH)


def test_message_shows_the_range_of_a_batch():
    with pytest.raises(ValueError, match=r"lower = 0\.1 … 3, upper = 2 … 2"):
        interval(torch.tensor([0.1, 3.0]), 2.0, BATCH)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, -2.0])])
def test_bound_that_is_not_positive(bound):
    with pytest.raises(ValueError, match="delta must be a positive, finite bound, got"):
        positive(bound, "delta", BATCH)


def test_positive_bound():
    assert positive(0.3, "lower", ROWS).dtype == f64
    assert positive(torch.tensor([0.5, 2.0]), "lower", BATCH).tolist() == [0.5, 2.0]


symmetric = st.tuples(st.integers(1, 20), st.integers(0, 10**6), st.floats(-3, 3))


@given(symmetric, st.sampled_from([f32, f64]))
def test_certified_upper_bounds_the_spectrum_and_is_a_norm(case, dtype):
    n, seed, shift = case
    B = normal(n, n, seed=seed) + shift
    A = ((B + B.mT) / 2).to(dtype)
    upper = float(certified_upper(A))
    assert upper >= float(torch.linalg.eigvalsh(A.double())[-1]) * (1 - 2 * n * EPS[dtype])
    wide = A.double()
    norms = (wide.abs().sum(1).max(), wide.square().sum().sqrt())
    assert upper == pytest.approx(float(min(norms)), rel=2 * n * EPS[dtype])


def test_certified_upper_of_a_batch():
    A = torch.stack([spd(geometric(5, 10.0), s) * s for s in (1, 2)])
    assert certified_upper(A).shape == (2,)
    assert certified_upper(A).dtype == f64
    assert float(certified_upper(A)[1]) == pytest.approx(float(certified_upper(A[1])))


def test_certified_upper_refuses_what_it_cannot_certify():
    with pytest.raises(ValueError, match="not symmetric"):
        certified_upper(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="NaN or inf"):
        certified_upper(torch.tensor([[math.nan]]))


def test_certified_upper_of_a_rectangle():
    with pytest.raises(ValueError, match="square"):
        certified_upper(torch.ones(3, 4))


@pytest.mark.parametrize("steps", [1, 2, 10, 300])
def test_power_method_equals_the_quotient_of_the_iterate(steps):
    A, start = spd(geometric(15, 20.0)), normal(15, seed=2)
    u = np.linalg.matrix_power(A.numpy(), steps - 1) @ start.numpy()
    expected = u @ A.numpy() @ u / (u @ u)
    found = float(power_method(A, start, steps))
    assert found == pytest.approx(expected, rel=1e-10)
    assert found <= 1.0 + 1e-14  # a lower bound of λ_max = 1


def test_power_method_converges_from_below():
    A, start = spd(geometric(15, 20.0)), normal(15, seed=2)
    values = [float(power_method(A, start, k)) for k in (1, 3, 10, 30, 300)]
    assert values == sorted(values)
    assert values[2] < 0.999  # what makes the plain Algorithm 1 explode
    assert values[-1] == pytest.approx(1.0, abs=1e-12)


def test_power_method_counts_and_batches():
    A = CountingOperator(torch.stack([spd(geometric(6, 5.0)), 2 * spd(geometric(6, 5.0), 1)]))
    found = power_method(A, normal(2, 6), 7)
    assert A.num_matvecs == 7
    assert found.shape == (2,)
    one = power_method(A.operator[1], normal(2, 6)[1], 7)
    assert float(found[1]) == pytest.approx(float(one), rel=1e-12)


@pytest.mark.parametrize("steps", [0, -3])
def test_power_method_needs_a_product(steps):
    with pytest.raises(ValueError, match=f"at least one product, got {steps}"):
        power_method(torch.eye(3), torch.ones(3), steps)


def naive_interval(T):
    """Ritz values and residuals of one probe, from numpy."""
    alphas, betas = T.diagonal[0].numpy(), T.off_diagonal[0].numpy()
    theta, S = np.linalg.eigh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
    return theta[0], (theta + betas[-1] * np.abs(S[-1])).max(), theta


@pytest.mark.parametrize("k", [1, 3, 8, 15])
def test_lanczos_interval_equals_ritz_values_and_residuals(k):
    A, start = spd(geometric(15, 20.0)), signs(15, seed=2)
    found = lanczos_interval(A, start, k)
    lower, upper, theta = naive_interval(lanczos(A, start.unsqueeze(0), k))
    assert float(found.lower) == pytest.approx(lower, rel=1e-12)
    assert float(found.upper) == pytest.approx(upper, rel=1e-12)
    eigenvalues = torch.linalg.eigvalsh(A)
    assert float(found.lower) >= float(eigenvalues[0]) - 1e-14
    assert theta[-1] <= float(eigenvalues[-1]) + 1e-14
    # What the residual promises: an eigenvalue no further from θ_max than upper is.
    assert float((eigenvalues - theta[-1]).abs().min()) <= float(found.upper) - theta[-1] + 1e-13


@pytest.mark.parametrize(("k", "share"), [(3, 0.5), (5, 0.7), (10, 0.9), (20, 0.99)])
def test_upper_end_covers_the_spectrum_more_often_with_every_product(k, share):
    """Measured over 400 starts: 0.56, 0.79, 0.99 and 1; the power method never covers it."""
    A, starts = spd(geometric(50, 100.0)).expand(400, 50, 50), signs(400, 50, seed=3)
    upper = lanczos_interval(A, starts, k).upper
    assert float((upper >= 1 - 1e-12).double().mean()) >= share
    power = power_method(A, starts, k)
    assert bool((power < 1 - 1e-6).all())
    assert bool((power <= upper).all())


def test_lanczos_interval_is_exact_at_full_dimension():
    A = spd(geometric(8, 20.0))
    found = lanczos_interval(A, signs(8, seed=2), 8)
    assert float(found.lower) == pytest.approx(0.05, rel=1e-10)
    assert float(found.upper) == pytest.approx(1.0, rel=1e-10)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_filler_of_a_closed_space_is_no_ritz_value(k):
    A = torch.diag(torch.tensor([1.0, 2.0, 5.0, 7.0], dtype=f64))
    start = torch.tensor([0.0, 0.0, 3.0, 0.0], dtype=f64)
    found = lanczos_interval(A, start, k)
    assert (float(found.lower), float(found.upper)) == (5.0, 5.0)


def test_lanczos_interval_counts_and_batches():
    A = CountingOperator(torch.stack([spd(geometric(6, 5.0)), 2 * spd(geometric(6, 5.0), 1)]))
    starts = normal(2, 6)
    found = lanczos_interval(A, starts, 4)
    assert A.num_matvecs == 4
    one = lanczos_interval(A.operator[1], starts[1], 4)
    assert float(found.upper[1]) == pytest.approx(float(one.upper), rel=1e-12)
    assert float(found.lower[1]) == pytest.approx(float(one.lower), rel=1e-12)


@pytest.mark.parametrize("k", [0, 7])
def test_lanczos_interval_within_the_order(k):
    with pytest.raises(ValueError, match=f"between 1 and n = 6, got {k}"):
        lanczos_interval(torch.eye(6), torch.ones(6), k)


def test_nan_products_give_nan_bounds_not_plausible_ones():
    A = torch.eye(4, dtype=f64)
    A[2, 2] = math.nan
    start = torch.ones(4, dtype=f64)
    assert math.isnan(float(power_method(A, start, 3)))
    found = lanczos_interval(A, start, 3)
    assert not math.isfinite(float(found.upper))
