"""Spectra against their formulas, exact moments and laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from specbp.matrices import clusters, lapack_mode, marchenko_pastur, power_law

EPS = torch.finfo(torch.float64).eps
orders = st.integers(2, 60)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_lapack_mode(mode: int, n: int, cond: float) -> list[float]:
    """LAPACK's description, entry by entry."""
    one_large = [1.0] + [1 / cond] * (n - 1)
    one_small = [1.0] * (n - 1) + [1 / cond]
    geometric = [cond ** (-i / (n - 1)) for i in range(n)]
    arithmetic = [1 - i / (n - 1) * (1 - 1 / cond) for i in range(n)]
    return [one_large, one_small, geometric, arithmetic][mode - 1]


@given(st.integers(1, 4), orders, st.floats(1, 1e16))
def test_lapack_modes_follow_the_formula_and_have_the_condition_number(mode, n, cond):
    values = lapack_mode(mode, n, cond)
    assert values.dtype == torch.float64
    assert values.shape == (n,)
    assert values[0] == 1
    assert values[-1] == 1 / cond
    assert bool((values.diff() <= 0).all())
    # The naive arithmetic mode cancels at the small end: an error of eps, absolutely. The exponent
    # of the geometric one is rounded: log(cond) eps, relatively.
    expected = torch.tensor(naive_lapack_mode(mode, n, cond), dtype=torch.float64)
    rtol = 2 * (1 + math.log(cond)) * EPS
    torch.testing.assert_close(values, expected, rtol=rtol, atol=2 * EPS if mode == 4 else 0)


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_lapack_modes_of_order_one(mode):
    assert lapack_mode(mode, 1, 10.0).tolist() == [1.0]


def test_lapack_mode_5_is_log_uniform():
    n, cond = 2000, 1e6
    values = lapack_mode(5, n, cond, generator=generator())
    assert bool(
        ((values >= 1 / cond) & (values <= 1) & (values.diff(prepend=values[:1]) <= 0)).all()
    )
    # Dvoretzky-Kiefer-Wolfowitz: P(sup |F_n - F| > d) <= 2 exp(-2 n d^2), here 1e-9.
    u = -values.log() / math.log(cond)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((u - steps[:-1]).abs(), (u - steps[1:]).abs()).max()
    assert distance <= math.sqrt(math.log(2e9) / (2 * n))


def test_lapack_mode_5_depends_on_the_generator_only():
    g = generator(1)
    first, second = (lapack_mode(5, 9, 10.0, generator=g) for _ in range(2))
    assert not first.equal(second)
    assert first.equal(lapack_mode(5, 9, 10.0, generator=generator(1)))


@given(orders, st.floats(0, 5))
def test_power_law(n, exponent):
    values = power_law(n, exponent)
    expected = torch.tensor([i**-exponent for i in range(1, n + 1)], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=4 * EPS, atol=0)


@given(orders, st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=2), st.floats(0, 0.99))
def test_clusters_stay_near_their_centres_and_keep_the_mean(n, centres, spread):
    values = clusters(n, centres, spread)
    counts = [n // len(centres) + (i < n % len(centres)) for i in range(len(centres))]
    near = [((values / c - 1).abs() <= spread + 4 * EPS).sum() for c in centres]
    assert bool((values > 0).all() & (values.diff() <= 0).all())
    assert all(found >= count for found, count in zip(near, counts, strict=True))
    total = sum(c * count for c, count in zip(centres, counts, strict=True))
    torch.testing.assert_close(values.sum().item(), total, rtol=4 * n * EPS, atol=0)


def test_clusters_of_given_sizes_and_zero_spread():
    assert clusters(5, [1.0, 7.0], 0.0, sizes=[3, 2]).tolist() == [7, 7, 1, 1, 1]
    assert clusters(4, [2.0], 0.5).tolist() == [2.75, 2.25, 1.75, 1.25]


@pytest.mark.parametrize("ratio", [1e-3, 0.5, 0.99])
def test_marchenko_pastur_inverts_the_integral_of_the_density(ratio):
    n, (a, b) = 7, [(1 + s * math.sqrt(ratio)) ** 2 for s in (-1, 1)]

    def density(x):
        return math.sqrt(max((b - x) * (x - a), 0)) / (2 * math.pi * ratio * x)

    for i, x in enumerate(reversed(marchenko_pastur(n, ratio).tolist())):
        integral, error = quad(density, a, x, epsabs=1e-12, limit=200)
        assert abs(integral - (i + 0.5) / n) <= max(error, 1e-12)


@given(orders, st.floats(1e-6, 1 - 1e-6))
def test_marchenko_pastur_moments_and_support(n, ratio):
    values, r = marchenko_pastur(n, ratio), math.sqrt(ratio)
    assert bool((values > 0).all() & (values.diff() <= 0).all())
    assert (1 - r) ** 2 <= values[-1]
    assert values[0] <= (1 + r) ** 2
    # The midpoint rule for a monotone quantile function errs by at most its range / (2n).
    slack = 1e-9  # the distribution function of ratio r^2 is known to eps / r
    assert abs(values.mean() - 1) <= 4 * r / (2 * n) + slack
    assert abs(values.square().mean() - (1 + ratio)) <= 8 * r * (1 + ratio) / (2 * n) + slack


def test_marchenko_pastur_moments_converge():
    values = marchenko_pastur(20000, 0.25)
    moments = [values.pow(k).mean().item() for k in (1, 2, 3)]
    assert moments == pytest.approx([1, 1.25, 1 + 3 * 0.25 + 0.25**2], abs=2e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lapack_mode(6, 3, 10.0), "mode must be 1, 2, 3, 4 or 5, got 6"),
        (lambda: lapack_mode(-3, 3, 10.0), "mode must be 1, 2, 3, 4 or 5, got -3"),
        (lambda: lapack_mode(1, 0, 10.0), "n must be at least 1, got 0"),
        (lambda: lapack_mode(1, 3, 0.5), "cond must be finite and at least 1, got 0.5"),
        (lambda: lapack_mode(1, 3, math.inf), "cond must be finite and at least 1, got inf"),
        (lambda: lapack_mode(1, 3, math.nan), "cond must be finite and at least 1, got nan"),
        (lambda: lapack_mode(5, 3, 10.0), "mode 5 is random: pass generator"),
        (lambda: power_law(0, 1.0), "n must be at least 1, got 0"),
        (lambda: power_law(3, -1.0), "exponent must be finite and ≥ 0, got -1"),
        (lambda: clusters(3, [], 0.1), "centres must be positive and finite"),
        (lambda: clusters(3, [1.0, -1.0], 0.1), "centres must be positive and finite"),
        (lambda: clusters(3, [1.0], 1.0), r"spread must be in \[0, 1\).*got 1.0"),
        (lambda: clusters(1, [1.0, 2.0], 0.1), "2 clusters need 2 sizes ≥ 1 .* n = 1, got"),
        (lambda: clusters(3, [1.0, 2.0], 0.1, sizes=[1, 1]), "add up to n = 3"),
        (lambda: clusters(3, [1.0, 2.0], 0.1, sizes=[3]), "2 clusters need 2 sizes"),
        (lambda: marchenko_pastur(0, 0.5), "n must be at least 1, got 0"),
        (lambda: marchenko_pastur(3, 0.0), r"ratio must be in \(0, 1\).*got 0.0"),
        (lambda: marchenko_pastur(3, 1.0), r"ratio must be in \(0, 1\).*got 1.0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
