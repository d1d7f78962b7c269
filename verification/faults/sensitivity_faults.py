"""Faults of sensitivities: another kernel, half a factor, a stale probe, an end held fixed."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from specbp import Estimate, krylov, solve_logdet
from specbp.differentiable import Sensitivity
from specbp.operators import as_operator
from specbp.wrappers import RecordedOperator
from verification.faults.controls import BOUNDED, CHEBYSHEV, GOLUB_KAHAN, SLQ, SOLVE
from verification.faults.differentiable import (
    SCALED,
    bounded_chebyshev,
    in_krylov_space,
    of_polynomial,
    resensitised,
    scaled_quadrature,
)
from verification.faults.fault import Fault, plant


def of_slq(**changes: Any) -> Any:
    """Lanczos quadrature with a changed sensitivity."""
    sensitivity = partial(in_krylov_space, **changes)
    return partial(resensitised, estimate=SLQ.estimate, sensitivity=sensitivity)


def of_factor(*, through: Any = as_operator, factor: bool = True, **changes: Any) -> Any:
    """Golub–Kahan quadrature with a changed sensitivity, or another way to the factor."""
    sensitivity = partial(in_krylov_space, process=krylov.golub_kahan, **changes)
    seams = {"sensitivity": sensitivity, "through": through, "factor": factor}
    return partial(resensitised, estimate=GOLUB_KAHAN.estimate, **seams)


def of_chebyshev(**changes: Any) -> Any:
    """The Chebyshev expansion with a changed sensitivity."""
    sensitivity = partial(of_polynomial, **changes)
    return partial(resensitised, estimate=CHEBYSHEV.estimate, sensitivity=sensitivity)


def lighter(G: Sensitivity, by: float) -> Sensitivity:
    """All weights times a factor."""
    return G._replace(weights=by * G.weights)


def first_for_all(G: Sensitivity) -> Sensitivity:
    """The sensitivity of the first probe for every probe of its block."""
    weights, vectors = G.weights[..., :1, :], G.vectors[..., :1, :, :]
    return Sensitivity(weights.expand_as(G.weights), vectors.expand_as(G.vectors))


def of_neighbour(G: Sensitivity) -> Sensitivity:
    """The sensitivity of the block computed before."""
    return Sensitivity(G.weights.roll(1, 0), G.vectors.roll(1, 0))


def other_parity(c: Tensor) -> Tensor:
    """Coefficients that make Σ c_k over k ≢ i + j a sum over k ≡ i + j, k > i + j."""
    return torch.cat([torch.zeros_like(c[..., :1]), c[..., 2:], torch.zeros_like(c[..., :1])], -1)


def mean_of_reciprocals(nodes: Tensor) -> Tensor:
    """½ (1/λ + 1/μ)."""
    return (1 / nodes.unsqueeze(-1) + 1 / nodes.unsqueeze(-2)) / 2


def reciprocal_of_mean(nodes: Tensor) -> Tensor:
    """2 / (λ + μ)."""
    return 2 / (nodes.unsqueeze(-1) + nodes.unsqueeze(-2))


def reciprocal_of_root(nodes: Tensor) -> Tensor:
    """1 / √(λ μ)."""
    return (nodes.unsqueeze(-1) * nodes.unsqueeze(-2)).rsqrt()


class HalfDetached:
    """JᵀJ whose products are differentiated in one of its factors."""

    def __init__(self, J: Tensor):
        n = J.shape[-1]
        self.J, self.shape = J, torch.Size((*J.shape[:-2], n, n))
        self.dtype, self.device = J.dtype, J.device

    def __matmul__(self, X: Tensor) -> Tensor:
        return self.J.detach().mT @ (self.J @ X)


def half_detached(J: Tensor) -> RecordedOperator:
    """The Gram matrix of a tensor with half of its derivative."""
    return RecordedOperator(HalfDetached(J), [J])


def with_fixed_interval(A: Any, X: Tensor, *, ends: tuple[int, ...], **config: Any) -> Estimate:
    """The Chebyshev expansion, some ends of its interval taken for numbers."""
    interval = [
        torch.as_tensor(end, dtype=torch.float64).detach() if i in ends else end
        for i, end in enumerate(config.pop("interval"))
    ]
    return CHEBYSHEV.estimate(A, X, interval=tuple(interval), **config)


def loose(A: Any, X: Tensor, *, rtol: float) -> Estimate:
    """Solves that end at a hundredth, whatever tolerance is asked for."""
    return solve_logdet(A, X, rtol=max(rtol, 1e-2))


ALL = "D6a D6b D6c"
OWN = "a slip in sensitivities"
FAULTS: tuple[Fault, ...] = (
    plant(
        SLQ,
        "lighter-sensitivity",
        "0.99 of the Fréchet derivative",
        f"{ALL} S6",
        source=OWN,
        estimate=of_slq(change=partial(lighter, by=0.99)),
    ),
    plant(
        GOLUB_KAHAN,
        "half-pull-back",
        "yᵀ(dJᵀJ)y for 2 yᵀJᵀdJ y",
        f"{ALL} S6",
        source=OWN,
        estimate=of_factor(change=partial(lighter, by=0.5)),
    ),
    plant(
        GOLUB_KAHAN,
        "detached-factor",
        "one factor of JᵀJ detached",
        f"{ALL} S6",
        source=OWN,
        estimate=of_factor(through=half_detached, factor=False),
    ),
    plant(
        SLQ,
        "harmonic-kernel",
        "½ (1/λ + 1/μ) for log[λ, μ]",
        "D6a D6b",
        note="The gradient of one solve: as unbiased, and another one.",
        source=OWN,
        estimate=of_slq(kernel=mean_of_reciprocals),
    ),
    plant(
        SLQ,
        "geometric-kernel",
        "1 / √(λμ) for log[λ, μ]",
        "D6a D6b",
        source=OWN,
        estimate=of_slq(kernel=reciprocal_of_root),
    ),
    plant(
        SLQ,
        "arithmetic-kernel",
        "2 / (λ + μ) for log[λ, μ]",
        "D6a D6b",
        source=OWN,
        estimate=of_slq(kernel=reciprocal_of_mean),
    ),
    plant(
        CHEBYSHEV,
        "hankel-parity",
        "coefficients of the same parity in the adjoint recurrence",
        f"{ALL} S6",
        source=OWN,
        estimate=of_chebyshev(taken=other_parity),
    ),
    plant(
        CHEBYSHEV,
        "shared-sensitivity",
        "the sensitivity of one of m probes",
        "D8 S7",
        source=OWN,
        estimate=of_chebyshev(change=first_for_all),
    ),
    plant(
        SLQ,
        "stale-sensitivity",
        "the sensitivity of the block before",
        "D6a",
        note="Its mean is right: it belongs to another estimate of the same matrix.",
        equivalent="S: drawn blocks are exchangeable, so that its law is the right one.",
        source=OWN,
        estimate=of_slq(change=of_neighbour),
    ),
    plant(
        CHEBYSHEV,
        "fixed-interval",
        "no derivative in the ends of the interval",
        "D6d",
        source=OWN,
        estimate=partial(with_fixed_interval, ends=(0, 1)),
    ),
    plant(
        CHEBYSHEV,
        "fixed-lower-end",
        "no derivative in the lower end of the interval",
        "D6d",
        source=OWN,
        estimate=partial(with_fixed_interval, ends=(0,)),
    ),
    plant(
        BOUNDED,
        "detached-bound",
        "the derivative of the bound dropped",
        ALL,
        note="As with f8c, a gradient that another contract may promise.",
        source=OWN,
        estimate=partial(bounded_chebyshev, bound=Tensor.detach),
    ),
    plant(
        SCALED,
        "detached-scale",
        "the scale of the operator detached",
        f"{ALL} S6",
        source=OWN,
        estimate=partial(scaled_quadrature, inner=Tensor.detach),
    ),
    plant(
        SOLVE,
        "loose-solve",
        "solves that end at a relative residual of 1e-2",
        "D1 D6a D6b",
        source="GPyTorch and rectangular-flows, default tolerance",
        equivalent="S: what is left of a residual of 1e-2 is far below one standard deviation.",
        estimate=loose,
    ),
)
