"""Laws of the degree: exact means, optimality, variance in closed form against enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.degree_laws import (
    DegreeLaw,
    degree_law,
    degree_variance,
    spectral_degree_variance,
    weighted_variance,
)
from tests.support import f64, generator, geometric, normal

KINDS = ["log", "products", "geometric"]
kinds = pytest.mark.parametrize("kind", KINDS)
intervals = st.tuples(st.floats(1e-3, 10), st.floats(1.1, 1e3)).map(lambda t: (t[0], t[0] * t[1]))


def masses(law):
    """P(N = j), j = 0 … J."""
    S = law.probabilities
    return S - torch.cat([S[..., 1:], torch.zeros_like(S[..., :1])], -1)


def chebyshev(law, points):
    """T_0 … T_J at points (...) of the interval, by the recurrence."""
    a, b = (float(end) for end in law.interval)
    t = (2 * points - a - b) / (b - a)
    values = [torch.ones_like(t), t]
    while len(values) <= law.max_degree:
        values.append(2 * t * values[-1] - values[-2])
    return torch.stack(values, -1)


def outcomes(law, moments):
    """Σ_{j ≤ N} b_j μ_j / S_j for every N = 0 … J, one N at a time."""
    terms = law.coefficients * moments
    return torch.stack(
        [
            sum(terms[..., j] / float(law.survival(j)) for j in range(N + 1))
            for N in range(law.max_degree + 1)
        ],
        -1,
    )


@kinds
@given(interval=intervals, mean=st.floats(0.05, 90))
def test_mean_is_met_and_survival_falls_from_one(kind, interval, mean):
    law = degree_law(interval, mean, kind)
    S = law.probabilities
    assert float(law.mean_degree) == pytest.approx(mean, rel=1e-12)
    assert float(S[0]) == 1
    assert bool((S[1:] <= S[:-1]).all())
    assert float(S[-1]) > 0
    assert float(law.survival(law.max_degree + 1)) == 0
    assert torch.equal(law.survival(torch.arange(3)), S[:3])
    parity = masses(law)[1::2].sum()
    assert (float(parity) == 0) == (kind == "products")


@pytest.mark.parametrize(("interval", "mean"), [((0.01, 1.0), 20), ((1e-3, 1.0), 7)])
def test_geometric_law_is_that_of_the_paper(interval, mean):
    a, b = interval
    rho = (math.sqrt(b) + math.sqrt(a)) / (math.sqrt(b) - math.sqrt(a))
    K = max(0, mean - math.floor(rho / (rho - 1)))
    law = degree_law(interval, mean, "geometric")
    q = masses(law)
    if (mean - K) * (rho - 1) > rho:
        pytest.skip("outside the paper's formula")
    assert float(q[:K].sum()) == 0
    first = 1 - (mean - K) * (rho - 1) / rho
    assert float(q[K]) == pytest.approx(first, abs=1e-13)
    for i in range(K + 1, K + 30):
        expected = (mean - K) * (rho - 1) ** 2 / rho ** (i + 1 - K)
        assert float(q[i]) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("mean", [3.0, 20.0])
def test_log_law_has_the_least_weighted_variance_of_its_mean(mean):
    """Against the geometric law, and against moving mass between any two degrees."""
    law = degree_law((0.01, 1.0), mean, "log")
    best = float(weighted_variance(law))
    assert best < float(weighted_variance(degree_law((0.01, 1.0), mean, "geometric")))
    S = law.probabilities
    for i in range(1, 18):
        for j in range(i + 1, 18):
            for sign in (1, -1):
                other = S.clone()
                other[i] += sign * 1e-4 * S[j]
                other[j] -= sign * 1e-4 * S[j]
                if float(other.max()) <= 1:
                    assert float(weighted_variance(DegreeLaw(law.interval, other))) > best


def test_paired_law_has_the_least_weighted_variance_of_its_products():
    for cond in (1e2, 1e3):
        paired = degree_law((1 / cond, 1.0), 40, "products")
        assert float(paired.mean_products) == pytest.approx(20, rel=1e-12)
        for kind in ("log", "geometric"):
            # The mean degree at which the other law spends the same products, by bisection.
            low, high = 1.0, 80.0
            for _ in range(60):
                middle = (low + high) / 2
                law = degree_law((1 / cond, 1.0), middle, kind)
                low, high = (middle, high) if float(law.mean_products) < 20 else (low, middle)
            assert float(weighted_variance(paired)) < float(weighted_variance(law))


@kinds
def test_mean_is_log_at_every_point(kind):
    law = degree_law((0.02, 1.5), 9, kind)
    points = torch.linspace(0.02, 1.5, 40, dtype=f64)
    means = outcomes(law, chebyshev(law, points)) @ masses(law)
    torch.testing.assert_close(means, points.log(), rtol=0, atol=1e-12)


@kinds
def test_variance_over_degrees_is_the_closed_form(kind):
    law = degree_law((0.05, 2.0), 6, kind)
    moments = normal(4, law.max_degree + 1)
    values, q = outcomes(law, moments), masses(law)
    mean = (values @ q).unsqueeze(-1)
    expected = (values - mean).square() @ q
    torch.testing.assert_close(degree_variance(law, moments), expected, rtol=1e-10, atol=0)


def test_spectral_variance_is_the_mean_over_gaussian_probes():
    """Second moments of xᵀT_jx and xᵀT_lx by Isserlis, summed over all pairs (j, l)."""
    law = degree_law((0.05, 2.0), 6)
    ev = geometric(5, 20.0) * 1.9
    T = chebyshev(law, ev)  # (n, J + 1)
    second = torch.outer(T.sum(0), T.sum(0)) + 2 * T.mT @ T
    S, b = law.probabilities, law.coefficients
    j = torch.arange(len(S))
    weight = 1 / S[torch.minimum(j.unsqueeze(-1), j)] - 1
    expected = float((torch.outer(b, b) * second * weight).sum())
    assert float(spectral_degree_variance(law, ev)) == pytest.approx(expected, rel=1e-10)


def test_weighted_variance_is_the_integral():
    law = degree_law((0.05, 2.0), 6)
    J = law.max_degree
    angle = math.pi * (torch.arange(2 * J + 1, dtype=f64) + 0.5) / (2 * J + 1)
    points = 0.05 + 1.95 * torch.cos(angle / 2) ** 2
    variances = degree_variance(law, chebyshev(law, points))
    integral = math.pi * float(variances.mean())  # Gauss–Chebyshev
    assert float(weighted_variance(law)) == pytest.approx(integral, rel=1e-9)


@kinds
def test_draws_follow_the_survival_function(kind):
    """Every frequency within five standard deviations, from a fixed seed."""
    law = degree_law((0.02, 1.0), 5, kind)
    N = law.draw((200, 500), generator=generator())
    assert N.shape == (200, 500)
    assert N.dtype == torch.int64
    for j in range(30):
        p = float(law.survival(j))
        found = float((j <= N).double().mean())
        assert abs(found - p) <= 5 * math.sqrt(p * (1 - p) / 1e5)


def test_inversion_is_exact_at_the_ends_of_every_step(monkeypatch):
    law = degree_law((0.3, 1.0), 2)
    S = law.probabilities
    for j in range(1, law.max_degree + 1):
        # u < S_j is degree j or more; u = S_j is not.
        u = torch.stack([S[j] - 2.0**-53, S[j]]).clamp(max=1 - 2.0**-53)
        monkeypatch.setattr(torch, "rand", lambda *_, u=u, **__: u)
        below, at = law.draw((2,), generator=generator()).tolist()
        assert below >= j
        assert at < j or float(S[j]) == 1
    assert bool(((S * 2**53).floor() == S * 2**53).all())


@kinds
def test_batch_of_intervals_is_that_of_its_items(kind):
    lower, upper = (
        torch.tensor([[0.01], [0.1]], dtype=f64),
        torch.tensor([1.0, 2.0, 3.0], dtype=f64),
    )
    law = degree_law((lower, upper), 8, kind)
    N = law.draw((5, 2, 3, 4), generator=generator())
    u = torch.rand(5, 2, 3, 4, generator=generator(), dtype=f64)
    assert law.mean_degree.shape == law.mean_products.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = degree_law((float(lower[i]), float(upper[j])), 8, kind)
            size = one.max_degree + 1
            torch.testing.assert_close(law.probabilities[i, j, :size], one.probabilities)
            assert float(law.probabilities[i, j, size:].abs().sum()) == 0
            expected = (u[:, i, j].unsqueeze(-1) < one.probabilities[1:]).sum(-1)
            assert torch.equal(N[:, i, j], expected)
            total = float(weighted_variance(law)[i, j])
            assert total == pytest.approx(float(weighted_variance(one)))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (((0.1, 1.0), 0.0), "mean_degree must be positive"),
        (((0.1, 1.0), math.inf), "mean_degree must be positive"),
        (((1.0, 1.0), 5), "0 < a < b"),
        (((-1.0, 1.0), 5), "0 < a < b"),
        (((0.1, 1.0), 5, "poisson"), '"log", "products" or "geometric"'),
    ],
)
def test_bad_laws_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        degree_law(*arguments)
