"""The table of gradient estimators: one more is one function and one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import specbp
from specbp import Estimate, JacobianMetric, degree_law
from specbp.probes import Sampler

Limit = Literal["log", "inverse"]
Interval = tuple[float, float]
Function = Callable[[Any, Tensor, int, Interval, torch.Generator], Estimate]


@dataclass(frozen=True)
class Estimator:
    """One way to the gradient of log det JᵀJ.

    Attributes:
        name: As figures and tables show it.
        estimate: (J, probes (..., n, m), steps, interval, generator) -> Estimate, whose value
            carries the gradient; `interval` are the ends of the spectrum of JᵀJ. Its forward pass
            takes so many products with JᵀJ for each probe, unless it has a tolerance.
        law: Of its probes.
        independent: Whether the gradient is the mean of one of each probe, and probes are
            independent: m probes then have 1/√m of the noise of one.
        rtol: Tolerance of its solves, which then take as many steps as they need.
        final: Products for each probe beside those of the steps.
        limit: What weighs dA in the eigenbasis of A as steps grow, for each probe alone: divided
            differences of log, or the mean of 1/λ; None if neither does.
        largest: Order of JᵀJ up to which it is measured: some run for thousands of steps.
        twin: Another function with the same gradient for the same probes, for what is not
            possible or too slow with this one: on explicit operators.
    """

    name: str
    estimate: Function
    law: Sampler = specbp.rademacher
    independent: bool = True
    rtol: float | None = None
    final: int = 0
    limit: Limit | None = "log"
    largest: int = 1024
    twin: Function | None = None


def backprop(J: Any, x: Tensor, steps: int, ends: Interval, _: torch.Generator) -> Estimate:
    """The paper's: a product for each degree."""
    return specbp.backprop_logdet(JacobianMetric(J), x, degree=steps, interval=ends)


def backprop_anew(J: Any, x: Tensor, steps: int, ends: Interval, _: torch.Generator) -> Estimate:
    """The same with f differentiated anew for each product, as a plain implementation does."""
    A = JacobianMetric(J)
    return specbp.backprop_logdet(A, x, degree=steps, interval=ends, reuse=False)


def equal_degree(J: Any, x: Tensor, steps: int, ends: Interval, _: torch.Generator) -> Estimate:
    """The adjoint of the paper's polynomial, which takes half the products."""
    return specbp.chebyshev_logdet(JacobianMetric(J), x, degree=steps, interval=ends)


def _equal_products(
    J: Any, x: Tensor, steps: int, ends: Interval, draws: torch.Generator
) -> Estimate:
    return equal_degree(J, x, 2 * steps, ends, draws)


def golub_kahan(J: Any, x: Tensor, steps: int, _: Interval, __: torch.Generator) -> Estimate:
    """Fréchet derivative in the Krylov spaces of Golub and Kahan."""
    return specbp.golub_kahan_logdet(J, x, num_steps=min(steps, x.shape[-2]))


def slq(J: Any, x: Tensor, steps: int, _: Interval, __: torch.Generator) -> Estimate:
    """The same in those of Lanczos."""
    return specbp.slq_logdet(JacobianMetric(J), x, num_steps=min(steps, x.shape[-2]))


def block_golub_kahan(J: Any, x: Tensor, steps: int, _: Interval, __: torch.Generator) -> Estimate:
    """Fréchet derivative in the space of all probes, that of the others as control variate."""
    return specbp.block_golub_kahan_logdet(J, x, num_steps=min(steps, x.shape[-2]))


def solve(J: Any, x: Tensor, steps: int, _: Interval, __: torch.Generator) -> Estimate:
    """One solve for each probe, ended early."""
    return specbp.solve_logdet(JacobianMetric(J), x, rtol=1e-12, max_steps=steps)


def _to(rtol: float) -> Function:
    def estimate(J: Any, x: Tensor, _: int, __: Interval, ___: torch.Generator) -> Estimate:
        return specbp.solve_logdet(JacobianMetric(J), x, rtol=rtol)

    return estimate


def _random_degree(
    J: Any, x: Tensor, steps: int, ends: Interval, draws: torch.Generator
) -> Estimate:
    law = degree_law(ends, 2 * steps, "products")  # even degrees: half as many products
    degrees = law.draw((*x.shape[:-2], x.shape[-1]), generator=draws)
    A = JacobianMetric(J)
    return specbp.randomised_chebyshev_logdet(A, x, law=law, degrees=degrees)


def exact(J: Any, _: Tensor, __: int, ___: Interval, ____: torch.Generator) -> Estimate:
    """All columns of J, and QR."""
    return specbp.qr_logdet(J)


PAPER, PLAIN, FRECHET = "paper: backprop", "paper: backprop, f anew", "Golub–Kahan"
PAPERS = 20  # steps for each probe, of the paper's, where noise is compared
BLOCK, ORTHOGONAL = "block Golub–Kahan", "SLQ, orthogonal"

NOISE = (
    Estimator(PAPER, backprop, twin=equal_degree),
    Estimator("Chebyshev adjoint", _equal_products),
    Estimator(FRECHET, golub_kahan),
    Estimator("SLQ", slq),
    Estimator(BLOCK, block_golub_kahan, law=specbp.sphere, independent=False, limit=None),
    Estimator(ORTHOGONAL, slq, law=specbp.orthogonal, independent=False, largest=256),
    Estimator("random degree", _random_degree, limit=None, largest=64),
    Estimator("solve, cut off", solve, final=1, limit="inverse"),
    Estimator("solve, rtol 1e-2", _to(1e-2), rtol=1e-2, final=1, limit="inverse", largest=128),
    Estimator("solve, rtol 1e-6", _to(1e-6), rtol=1e-6, final=1, limit="inverse", largest=128),
)

COST = (
    Estimator(PAPER, backprop),
    Estimator(PLAIN, backprop_anew),
    Estimator("Chebyshev adjoint", equal_degree),
    Estimator(FRECHET, golub_kahan),
    Estimator("SLQ", slq),
    Estimator("solve, cut off", solve),
)

EXACT = Estimator("exact: QR", exact)
