"""Limits of the estimators: exactly where a flag is raised, a bound given up, a raise the last."""

from __future__ import annotations

import math

import pytest
import torch

from specbp import logdets, polynomials, quadrature
from specbp.estimate import Status
from specbp.logdets import (
    algorithm1_logdet,
    chebyshev_logdet,
    golub_kahan_logdet,
    slq_logdet,
)
from tests.support import EPS, f32, f64, flags, geometric, signs, spd

up = torch.tensor(math.inf, dtype=f64)


def just_above(x):
    return torch.nextafter(torch.as_tensor(x, dtype=f64), up)


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("estimate", [slq_logdet, golub_kahan_logdet])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_node_within_rounding_of_zero_is_zero(monkeypatch, dtype, estimate, sign):
    """4 eps of the largest: of λ for Lanczos on A, of σ for Golub–Kahan on J."""
    limit = 4 * EPS[dtype] if estimate is slq_logdet else (4 * EPS[dtype]) ** 2
    beyond = Status.OK if sign > 0 else Status.NEGATIVE_RITZ
    for smallest, expected in ((3.0 * limit, Status.SINGULAR), (just_above(3.0 * limit), beyond)):
        fixed = (torch.tensor([x], dtype=f64) for x in (1.0, sign * float(smallest), 3.0))
        rule = quadrature.Rule(*fixed)
        monkeypatch.setattr(quadrature, "gauss", lambda _, rule=rule: rule)
        est = estimate(spd(geometric(5, 2.0)).to(dtype), signs(5, 1, dtype=dtype), num_steps=2)
        assert flags(est) == expected


def test_skew_up_to_the_root_of_eps_passes(monkeypatch):
    run, root = logdets.lanczos, EPS[f64] ** 0.5
    for asymmetry, expected in ((root, Status.OK), (just_above(root), Status.NONSYMMETRIC)):
        seen = torch.as_tensor(asymmetry, dtype=f64).expand(1)
        monkeypatch.setattr(logdets, "lanczos", lambda *a, s=seen: run(*a)._replace(asymmetry=s))
        assert flags(slq_logdet(spd(geometric(5, 2.0)), signs(5, 1), num_steps=2)) == expected


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("degree", [1, 2, 5])
@pytest.mark.parametrize("quantity", ["growth", "asymmetry"])
def test_rounding_alone_proves_no_interval_wrong(monkeypatch, dtype, degree, quantity):
    """On [1, 3], where products are rounded to (b + a)/(b − a) = 2 eps in the variable of T_k."""
    if quantity == "growth":
        limit, flag = 1 + 16 * (degree + 1) ** 2 * EPS[dtype] * 2, Status.OUTSIDE_INTERVAL
    else:
        limit, flag = EPS[dtype] ** 0.5 * 2, Status.NONSYMMETRIC
    A, X = torch.diag(torch.linspace(1, 3, 5)).to(dtype), signs(5, 1, dtype=dtype)
    run = polynomials.chebyshev_moments
    for value, expected in ((limit, Status.OK), (just_above(limit), flag)):
        planted = {quantity: torch.as_tensor(value, dtype=f64).expand(1)}
        planted = {"growth": torch.ones(1), "asymmetry": torch.zeros(1), **planted}
        monkeypatch.setattr(
            polynomials, "chebyshev_moments", lambda *a, p=planted, **k: run(*a, **k)._replace(**p)
        )
        assert flags(chebyshev_logdet(A, X, degree=degree, interval=(1.0, 3.0))) == expected


@pytest.mark.parametrize("estimate", [slq_logdet, golub_kahan_logdet])
def test_a_lower_bound_that_is_none_is_given_up(estimate):
    """Above a Ritz value there is no rule, hence no lower end, but the upper one still holds."""
    A, X = spd(geometric(8, 10.0)), signs(8, 3)
    J = A if estimate is slq_logdet else torch.linalg.cholesky(A).mT
    est, plain = estimate(J, X, num_steps=5, lower=0.5), estimate(J, X, num_steps=5)
    assert float(est.lower) == -math.inf
    assert float(est.upper) == float(est.value) == float(plain.value)
    assert bool(est.ok)


class Growing:
    """Ten times as large at every product: no bound of its spectrum lasts."""

    shape, dtype, device = torch.Size([4, 4]), f64, torch.device("cpu")

    def __init__(self):
        self.scale = 1.0

    def __matmul__(self, X):
        self.scale *= 10
        return self.scale * X


@pytest.mark.parametrize("power_steps", [1, 2, 4])
def test_safe_form_gives_up_after_four_raises(power_steps):
    est = algorithm1_logdet(Growing(), signs(4, 3), degree=2, lower=0.5, power_steps=power_steps)
    # One product and probe for each expansion of degree 2: the first and four more.
    assert est.num_matvecs == power_steps + 3 * (1 + 4)
    assert flags(est) & Status.OUTSIDE_INTERVAL
    assert math.isnan(float(est.value))


@pytest.mark.parametrize("safe", [True, False])
def test_one_power_step_is_enough(safe):
    A, X = 2 * torch.eye(4, dtype=f64), signs(4, 3)
    est = algorithm1_logdet(A, X, degree=20, lower=1.0, power_steps=1, safe=safe)
    assert float(est.value) == pytest.approx(4 * math.log(2), rel=1e-9)
    assert est.num_matvecs == 1 + 3 * 10


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("delta", [2.0, 3.0])
def test_no_room_above_delta_makes_the_interval_twice_delta(safe, delta):
    """λ_max ≤ δ still needs an interval. δ itself belongs to it: nothing is floored there."""
    A, X = 2 * torch.eye(4, dtype=f64), signs(4, 3)
    est = algorithm1_logdet(A, X, degree=5, lower=delta, safe=safe, power_steps=2)
    known = chebyshev_logdet(A, X, degree=5, interval=(delta, 2 * delta))
    if delta == 2.0:
        assert float(est.value) == float(known.value)
        assert flags(est) == Status.OK
    elif safe:
        assert flags(est) & Status.FLOORED
