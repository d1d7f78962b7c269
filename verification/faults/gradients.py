"""Faults of gradients: scaled, detached, of another function, from one probe or a loose solve."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from specbp import Estimate
from specbp.estimate import from_samples
from specbp.operators import CountingOperator, as_operator
from verification.faults.controls import (
    CHEBYSHEV,
    SCALED_CHEBYSHEV,
    SOLVED,
    TRACE,
    scaled_chebyshev,
    solved_gradient,
    with_gradient_of,
)
from verification.faults.fault import Fault, plant, then


def scaled(found: Estimate) -> Estimate:
    """The same value with 0.99 of its gradient."""
    return _with_gradient(found, 0.99 * found.samples)


def of_first_probe(found: Estimate) -> Estimate:
    """The value of all probes, the gradient of the first."""
    return _with_gradient(found, found.samples[..., :1])


def detached(found: Estimate) -> Estimate:
    """The value without its gradient."""
    return replace(found, value=found.value.detach(), samples=found.samples.detach())


def gradient_of_square(A: Any, X: Tensor) -> Estimate:
    """tr A with the gradient of ½ tr A²: the rule of another function, at the same cost."""
    A = CountingOperator(as_operator(A))
    image = A @ X
    forms = (image * image).sum(-2) / 2
    values = (X * image).sum(-2).detach()
    return from_samples(with_gradient_of(values, forms), num_matvecs=A.num_matvecs)


def surrogate(_values: Tensor, forms: Tensor) -> Tensor:
    """(A⁻¹x)ᵀ A x, whose gradient is that of log det A and whose value is n."""
    return forms


def _with_gradient(found: Estimate, like: Tensor) -> Estimate:
    """Values as found, the gradient that of `like`."""
    samples = with_gradient_of(found.samples.detach(), like)
    value = with_gradient_of(found.value.detach(), like.mean(-1))
    return replace(found, value=value, samples=samples)


ALL = "D6a D6b D6c"
FAULTS: tuple[Fault, ...] = (
    plant(
        SCALED_CHEBYSHEV,
        "f7",
        "gradient times 0.99",
        f"{ALL} S6",
        estimate=then(SCALED_CHEBYSHEV, scaled),
    ),
    plant(
        SCALED_CHEBYSHEV,
        "f8a",
        "n log L detached, A/L not",
        f"{ALL} S6",
        estimate=partial(scaled_chebyshev, outer=Tensor.detach),
    ),
    plant(
        SCALED_CHEBYSHEV,
        "f8b",
        "A/L detached, n log L not",
        f"{ALL} S6",
        estimate=partial(scaled_chebyshev, inner=Tensor.detach),
    ),
    plant(
        SCALED_CHEBYSHEV,
        "f8c",
        "A/L and n log L both detached",
        ALL,
        note="With the interval held fixed it is a gradient, which another contract may promise. "
        "It differs by truncation: S sees it only along A itself, where the right one is constant.",
        estimate=partial(scaled_chebyshev, inner=Tensor.detach, outer=Tensor.detach),
    ),
    plant(
        CHEBYSHEV,
        "f18",
        "gradient from one of m probes",
        "D8 S7",
        estimate=then(CHEBYSHEV, of_first_probe),
    ),
    plant(
        CHEBYSHEV,
        "detached-gradient",
        "the value carries no gradient",
        f"{ALL} S6",
        source="FrEIA, IResNetLayer: autograd.grad without create_graph",
        estimate=then(CHEBYSHEV, detached),
    ),
    plant(
        TRACE,
        "wrong-f-gradient",
        "gradient of another f",
        f"{ALL} S6",
        source="CoLA, stochastic Lanczos quadrature: the gradient of log whatever f is",
        estimate=gradient_of_square,
    ),
    plant(
        SOLVED,
        "loose-cg",
        "gradient from CG with tolerance 1",
        "D6a D6b S6",
        source="GPyTorch and rectangular-flows, default tolerance",
        note="As in GPyTorch, ten steps are done all the same.",
        config=SOLVED.config | {"tolerance": 1.0, "least": 10},
    ),
    plant(
        SOLVED,
        "surrogate-value",
        "surrogate CG(x)ᵀAx posing as the value",
        "D1 D2 D5 D7 D12 S1",
        source="rectangular-flows, log det JᵀJ during training",
        note="Its gradient is right; its value is n for every matrix.",
        estimate=partial(solved_gradient, combine=surrogate),
    ),
)
