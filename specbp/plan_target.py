"""What a planned estimate is asked about: an operator, how it is known exactly, at what cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from specbp.direct import (
    cholesky_logdet,
    eigenvalue_logdet,
    inverse_of,
    qr_logdet,
    with_inverse,
)
from specbp.estimate import Estimate, Status, without_probes
from specbp.jacobian import Jacobian, JacobianMetric
from specbp.operators import Dense, as_operator, check_square, check_tall
from specbp.plan_costs import Costs, costs_of


@dataclass(frozen=True)
class Target:
    """An operator and its exact answer.

    Attributes:
        operator: A, or J.
        factor: Whether it is J.
        costs: Of its answers.
        exact_name: Row of the methods table that is exact.
        exact: That method, applied.
        exact_products: Products with A that it takes.
        max_bytes: Limit of memory, if there is one.
    """

    operator: Any
    factor: bool
    costs: Costs
    exact_name: str
    exact: Callable[[], Estimate]
    exact_products: float
    max_bytes: int | None

    def estimator(self, *, shared: bool) -> str:
        """Row of the methods table whose quadrature the estimates are."""
        if shared:
            return "block_golub_kahan" if self.factor else "block_slq"
        return "golub_kahan" if self.factor else "slq"


def target_of(A: Any, max_bytes: int | None, budget: float) -> Target:
    """A square operator is A; a Jacobian, its metric, or a tall operator with an adjoint is J.

    Raises:
        ValueError: If J is wide, or A is neither square nor has an adjoint.
    """
    if isinstance(A, JacobianMetric):
        return _factor(A.J, max_bytes, budget)
    op = A if isinstance(A, Jacobian) else as_operator(A)
    if isinstance(A, Jacobian) or (hasattr(op, "mT") and op.shape[-1] != op.shape[-2]):
        return _factor(op, max_bytes, budget)
    n = check_square(op)
    if isinstance(op, Dense):
        costs = costs_of(op, factor=False, affordable=True)
        exact = lambda: cholesky_logdet(op.matrix)  # noqa: E731
        return Target(op, False, costs, "cholesky", exact, 0, max_bytes)
    affordable = n <= budget and _fits(n * n, op, max_bytes)
    costs = costs_of(op, factor=False, affordable=affordable)
    return Target(op, False, costs, "eigenvalues", lambda: _multiplied(op), n, max_bytes)


def _factor(J: Any, max_bytes: int | None, budget: float) -> Target:
    op = J if isinstance(J, Jacobian) else as_operator(J)
    n = check_tall(op)
    affordable = n / 2 <= budget and (
        isinstance(op, Dense) or _fits(op.shape[-2] * n, op, max_bytes)
    )
    costs = costs_of(op, factor=True, affordable=affordable)
    return Target(
        op, True, costs, "qr", lambda: qr_logdet(J, max_bytes=max_bytes), n / 2, max_bytes
    )


def _fits(entries: int, op: Any, max_bytes: int | None) -> bool:
    """Whether a matrix and its float64 copy fit, for every item of the batch."""
    items = math.prod(op.shape[:-2])
    return max_bytes is None or items * entries * (8 + op.dtype.itemsize) <= max_bytes


def _multiplied(op: Any) -> Estimate:
    """From all columns of A, made by products; asymmetry that is rounding is averaged away."""
    A = op @ torch.eye(op.shape[-1], dtype=op.dtype, device=op.device)
    # Products carry rounding of their own, those with an inverse most: the bound is Lanczos's.
    gap = (A - A.mT).abs().amax((-2, -1))
    skew = gap > torch.finfo(op.dtype).eps ** 0.5 * A.abs().amax((-2, -1))
    finite = torch.isfinite(A).all(-1).all(-1)
    identity = torch.eye(op.shape[-1], dtype=op.dtype, device=op.device)
    A = torch.where(finite[..., None, None], (A + A.mT) / 2, identity).detach()
    found = eigenvalue_logdet(A)
    status = skew * int(Status.NONSYMMETRIC) | ~finite * int(Status.NONFINITE) | found.status
    value = with_inverse(found.value, op, lambda: inverse_of(A))
    return without_probes(value, num_matvecs=float(op.shape[-1]), status=status)
