"""Faults of polynomials: wrong coefficients, intervals, weights and signs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specbp import Estimate, polynomials
from specbp.estimate import Status, from_samples
from specbp.operators import CountingOperator, as_operator
from verification.faults import roulette
from verification.faults.controls import (
    CHEBYSHEV,
    FLOOR,
    SCALED_CHEBYSHEV,
    TAYLOR,
    log_coefficients,
    scaled_chebyshev,
)
from verification.faults.fault import Fault, plant, then


def not_halved(degree: int, floor: float) -> Tensor:
    """The sum over nodes gives twice the constant coefficient."""
    c = log_coefficients(degree, floor)
    return torch.cat([2 * c[:1], c[1:]])


def without_last(degree: int, floor: float) -> Tensor:
    """A loop that ends one step early."""
    return log_coefficients(degree, floor) * (torch.arange(degree + 1) < degree)


def beyond(k: Tensor) -> Tensor:
    """P(N > k) in the place of P(N ≥ k)."""
    return roulette.reached(k + 1)


def shifted_series(A: Any, X: Tensor, *, degree: int, upper: float) -> Estimate:
    """log α − Σ (1 − x/α)^k / (k + 1): the coefficient of the term after."""
    A = CountingOperator(as_operator(A))
    alpha = torch.as_tensor(upper, dtype=torch.float64)
    c = polynomials.taylor_coefficients(degree + 1, alpha)
    c = torch.cat([c[:1], c[2:]])
    seen = polynomials.taylor_moments(A, X.mT.contiguous(), degree, alpha)
    values, status = seen.moments @ c, (seen.growth > 1.01) * int(Status.OUTSIDE_INTERVAL)
    return from_samples(values, num_matvecs=A.num_matvecs, upper=values, status=status)


def absolute(found: Estimate) -> Estimate:
    """The sign of the log-determinant goes into a phase that nobody reads."""
    return replace(found, value=found.value.abs(), samples=found.samples.abs())


BOTH = "D1 D2 D3 D4"
FAULTS: tuple[Fault, ...] = (
    plant(
        SCALED_CHEBYSHEV,
        "f2",
        "c₀ not halved",
        f"{BOTH} D5 S1",
        estimate=partial(scaled_chebyshev, coefficients=not_halved),
    ),
    plant(
        SCALED_CHEBYSHEV,
        "f3",
        "n log(scale) forgotten",
        f"{BOTH} D5 S1",
        estimate=partial(scaled_chebyshev, outer=torch.ones_like),
    ),
    plant(
        SCALED_CHEBYSHEV,
        "f4a",
        "lower end of the interval ten times too large",
        BOTH,
        config=SCALED_CHEBYSHEV.config | {"floor": 10 * FLOOR},
    ),
    plant(
        SCALED_CHEBYSHEV,
        "f4b",
        "lower end of the interval twenty times too small",
        BOTH,
        config=SCALED_CHEBYSHEV.config | {"floor": FLOOR / 20},
    ),
    plant(
        roulette.CONTROL,
        "f13",
        "random degree: weights 1/P(N > j) for 1/P(N ≥ j)",
        "D2 S1",
        estimate=partial(roulette.random_degree, weight=beyond),
        outcomes=partial(roulette.outcomes, weight=beyond),
    ),
    plant(
        SCALED_CHEBYSHEV,
        "f20",
        "last coefficient dropped",
        BOTH,
        equivalent="S: one coefficient of the smallest is far below one sd.",
        estimate=partial(scaled_chebyshev, coefficients=without_last),
    ),
    plant(
        SCALED_CHEBYSHEV,
        "f22",
        "float32 accumulation in the float64 path",
        BOTH,
        estimate=partial(scaled_chebyshev, accumulate=Tensor.float),
    ),
    plant(
        CHEBYSHEV,
        "lost-sign",
        "absolute value of tr log A returned as the value",
        f"{BOTH} D5 S1",
        source="CoLA, logdet and slogdet with an iterative algorithm",
        note="Unseen where log det A > 0: the matrices of the checks have both signs.",
        estimate=then(CHEBYSHEV, absolute),
    ),
    plant(
        TAYLOR,
        "series-off-by-one",
        "Taylor series with 1/(k + 1) for 1/k",
        f"{BOTH} S1",
        source="residual-flows #4, the branch of the exact trace",
        estimate=shifted_series,
    ),
)
