r"""What an answer costs: products with the operator, and the algebra beside them.

Times are nominal microseconds of one core, from constants measured once (`python -m verification
planner` shows how well decisions made with them do). Only their ratios matter. They are computed
from shapes, never clocked: the same generator gives the same answer on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from specbp.differentiable import inputs_of
from specbp.jacobian import Jacobian
from specbp.operators import Dense

CALL = 50.0  # of a call of the operator, whatever it multiplies
PER_BYTE = 4.5e-4  # of one column of J, for each byte of what the function computes
FLOPS, BYTES = 6e4, 1e4  # of a dense product, in a microsecond
DENSE_FLOPS = 2e4  # of factorisations
EIGEN_FLOPS = 1.2e4
SETUP = 2500.0  # of an estimate: rules, statuses, bookkeeping
STEP = 300.0  # of a step beside its product, each side of J counted
SHARED_SETUP, SHARED_STEP = 8000.0, 2200.0  # the same where probes share a space …
# Assumed, not measured: a column of the derivative in columns of J, and the vectors of each probe.
PULL, KEPT = 4.0, 8
CUBIC = 4e-3  # … whose small matrices take this times its dimension cubed


class Shape(NamedTuple):
    """Probes and Krylov steps.

    Attributes:
        num_blocks: Blocks of probes, each with one Krylov space, if `shared`.
        num_probes: Probes of each block.
        num_steps: Steps of each probe.
        shared: Whether the probes of a block share their space (`specbp.blockquad`), or each has
            its own.
    """

    num_blocks: int
    num_probes: int
    num_steps: int
    shared: bool = False

    @property
    def probes(self) -> int:
        """Probes of all blocks."""
        return self.num_blocks * self.num_probes

    @property
    def products(self) -> int:
        """Products with A that the blocks take."""
        return self.probes * self.num_steps

    def __str__(self) -> str:
        blocks = f"{self.num_blocks} blocks of " if self.num_blocks > 1 else ""
        return f"{blocks}{self.num_probes} probes with {self.num_steps} steps"


@dataclass(frozen=True)
class Costs:
    """Nominal microseconds of answers about one operator, all items of its batch together.

    Attributes:
        n: Order of A.
        sides: Products of one step: 2 for JᵀJ, 1 for A.
        items: Size of the batch.
        call: Of one product, beside its columns.
        column: Of one column of a product.
        exact: Of the cheapest exact answer; infinite where memory or budget forbid it.
        pull: Of one column of the derivative; 0 where no gradient is wanted.
    """

    n: int
    sides: int
    items: int
    call: float
    column: float
    exact: float
    pull: float = 0.0

    def of(self, shape: Shape, done: Shape | None = None) -> float:
        """Of an estimate; only of what is new where it goes on from `done`."""
        products = shape.products - (done.products if done else 0)
        spent = self.sides * (shape.num_steps * self.call + products * self.column)
        if not shape.shared:
            batches = 1 if done is None or shape.probes == done.probes else 2
            calls = shape.num_steps * self.sides * (STEP + (batches - 1) * self.call)
            spent += self.pull * min(shape.num_steps, KEPT) * shape.probes
            return spent + SETUP + batches * calls + self._orthogonal(shape)
        d = min(shape.num_probes * shape.num_steps, self.n)
        algebra = CUBIC * self.items * shape.num_blocks * d**3
        spent += self.pull * shape.num_blocks * d
        return spent + SHARED_SETUP + shape.num_steps * SHARED_STEP + algebra

    def _orthogonal(self, shape: Shape) -> float:
        """Every step reads all earlier vectors of each probe, twice on each side."""
        entries = self.items * shape.probes * shape.num_steps**2 / 2 * self.n * self.sides
        return entries * 4 * 8 / BYTES


def costs_of(operator: Any, *, factor: bool, affordable: bool) -> Costs:
    """Costs of answers about A (..., n, n), or JᵀJ of a factor J (..., N, n).

    Args:
        operator: What is multiplied.
        factor: Whether it is J.
        affordable: Whether memory and budget allow the exact answer.
    """
    *batch, N, n = operator.shape
    items = math.prod(batch)
    if isinstance(operator, Jacobian):
        call, column = 2 * CALL, PER_BYTE * operator._primal.activation_bytes
    else:
        # Of an operator that is only multiplied with, nothing else is known than its shape.
        call = CALL + items * N * n * operator.dtype.itemsize / BYTES
        column = items * 2 * N * n / FLOPS
    algebra = CALL + items * _flops(operator, factor)
    products = 0 if isinstance(operator, Dense) else n * column
    # Of an explicit matrix the gradient is one more product of small matrices.
    wanted = inputs_of(operator) and not isinstance(operator, Dense)
    pull = PULL * column if wanted else 0.0
    exact = products + n * pull + algebra if affordable else math.inf
    return Costs(n, 2 if factor else 1, items, call, column, exact, pull)


def _flops(operator: Any, factor: bool) -> float:
    """Microseconds of the factorisation of one item."""
    N, n = operator.shape[-2:]
    if factor:  # QR, and the inverse of R
        return (2 * N * n**2 + n**3 / 3) / DENSE_FLOPS
    if isinstance(operator, Dense):  # Cholesky, and the inverse of L
        return 4 / 3 * n**3 / DENSE_FLOPS
    return 4 / 3 * n**3 / EIGEN_FLOPS
