"""The estimators that are compared, how each may spend a budget, and the meter of its products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from specbp import (
    Estimate,
    blockquad,
    deflated_chebyshev,
    deflation,
    logdets,
    maxent,
    multilevel,
    nystrom,
    planner,
)
from specbp.operators import Dense
from verification.budgets_cases import BudgetCase, Shape, Target
from verification.subjects import SLACK


class Meter:
    """Counts every vector that is multiplied, whichever dimension of the block it hides in.

    `CountingOperator` counts columns for each item of a batch, which is what an estimator reports;
    here all vectors count, so that no way of arranging them is cheaper than another.
    """

    def __init__(self, operator: Any):
        self._operator = Dense(operator) if isinstance(operator, Tensor) else operator
        self.vectors = 0
        self._adjoint: Meter | None = None

    shape = property(lambda self: self._operator.shape)
    dtype = property(lambda self: self._operator.dtype)
    device = property(lambda self: self._operator.device)

    @property
    def mT(self) -> Meter:
        """The adjoint, metered too."""
        if self._adjoint is None:
            self._adjoint = Meter(self._operator.mT)
        return self._adjoint

    def __matmul__(self, X: Tensor) -> Tensor:
        self.vectors += X.numel() // X.shape[-2]
        return self._operator @ X

    def products(self, on: str) -> float:
        """Products with A: on J, one with J or with its adjoint is a half."""
        if on == "A":
            return float(self.vectors)
        return (self.vectors + (self._adjoint.vectors if self._adjoint else 0)) / 2


@dataclass(frozen=True)
class Variant:
    """One way of spending a budget: a name, the probes to draw, the arguments of the method."""

    name: str
    probes: int
    config: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One estimator of the study.

    Attributes:
        name: Key.
        estimate: `(operator, probes, **config) -> Estimate`.
        on: "A" or "J".
        variants: The ways to spend the budget of a case.
        knows: Further arguments from knowledge of the spectrum.
        law: Of its probes. Methods of one law meet the same probes.
        role: "base" for plain SLQ, "judged" for the methods that the acceptance lines are about,
            "planned" for the one that chooses its shape, "other" for all that is shown beside them.
        batched: All replicates in one call; False for methods whose number of products depends on
            the probes, so that replicates would pay for each other.
        draws: It takes a generator instead of probes: it chooses their number.
        bounded: The products are known beforehand; the others may exceed the budget, and then they
            are shown, and compared with nothing.
    """

    name: str
    estimate: Callable[..., Estimate]
    on: str
    variants: Callable[[BudgetCase], list[Variant]]
    knows: Callable[[Target], dict[str, Any]] = field(default=lambda _target: {})
    law: str = "rademacher"
    role: str = "other"
    batched: bool = True
    draws: bool = False
    bounded: bool = True

    def applies(self, case: BudgetCase, target: Target) -> bool:
        """The problem has what the method works on; of two judged methods, one per problem."""
        return self.on in target.operators and (self.role != "judged" or self.on == case.on)


def label(shape: Shape) -> str:
    """A shape as in the acceptance lines."""
    return f"{shape[0]}x{shape[1]}"


def steps(case: BudgetCase, shapes: Sequence[Shape] | None = None) -> list[Variant]:
    """Shapes probes × steps, for Krylov methods; no more steps than dimensions."""
    return [
        Variant(label((m, k)), m, {"num_steps": min(k, case.n)})
        for m, k in (case.shapes if shapes is None else shapes)
    ]


def same_steps(case: BudgetCase) -> list[Variant]:
    """The common shape alone."""
    return steps(case, [case.same])


def degrees(case: BudgetCase) -> list[Variant]:
    """Shapes probes × products, for polynomials: two moments a product."""
    return [Variant(label((m, k)), m, {"degree": 2 * k}) for m, k in case.shapes]


def _algorithm1(case: BudgetCase) -> list[Variant]:
    m, power = case.same[0], 10
    degree = 2 * ((case.budget - power) // m)
    return [Variant(label(case.same), m, {"degree": degree, "power_steps": power})]


# Budgets that are split between two uses, by the budget. Reasonable, not tuned.
CAPTURED = {  # (b, q, r) for the block, (s, k) for the remainder
    200: ((5, 10, 10, 5, 20), (20, 2, 3, 5, 20)),
    100: ((5, 5, 5, 5, 10), (10, 2, 3, 5, 10)),
}
SKETCHED = {  # s of the sketch, m probes of k steps
    200: ((100, 5, 20), (150, 5, 10)),
    100: ((50, 5, 10), (70, 3, 10)),
}
LEVELS = {  # (steps, probes) of each level
    200: (((5, 20), (20, 5)), ((10, 10), (25, 4)), ((5, 10), (10, 5), (25, 4))),
    100: (((5, 10), (10, 5)), ((5, 10), (25, 2))),
}


def _krylov_aware(case: BudgetCase) -> list[Variant]:
    names = ("num_block", "block_steps", "extra_steps", "num_steps")
    return [
        Variant(f"{b}x({q}+{r}) + {s}x{k}", b + s, dict(zip(names, (b, q, r, k), strict=True)))
        for b, q, r, s, k in CAPTURED[case.budget]
    ]


def _nystrom(case: BudgetCase) -> list[Variant]:
    return [
        Variant(f"{sketch} + {m}x{k}", sketch + m, {"num_sketch": sketch, "num_steps": k})
        for sketch, m, k in SKETCHED[case.budget]
    ]


def _multilevel(case: BudgetCase) -> list[Variant]:
    return [
        Variant(
            " + ".join(f"{m}x{k}" for k, m in levels),
            sum(m for _, m in levels),
            {"levels": levels},
        )
        for levels in LEVELS[case.budget]
    ]


def _maxent(case: BudgetCase) -> list[Variant]:
    """Few moments: the maximum entropy of many is ill-conditioned."""
    shapes = [(m, k) for m, k in case.shapes if k <= 10]
    return [Variant(label((m, k)), m, {"num_moments": 2 * k}) for m, k in shapes]


def _deflated_chebyshev(case: BudgetCase) -> list[Variant]:
    names, half = ("num_block", "block_steps", "degree"), case.budget // 2
    b, s = 5, 5
    values = (b, half // b, 2 * (half // s))
    name = f"{b}x{half // b} + {s}x{half // s}"
    return [Variant(name, b + s, dict(zip(names, values, strict=True)))]


def _planned(case: BudgetCase) -> list[Variant]:
    """More than the budget can reach is asked for, so that the planner spends it."""
    return [Variant("planned", 0, {"budget": case.budget, "rtol": 1e-6})]


def noise(target: Target) -> dict[str, Any]:
    """The noise of a kernel matrix, which its user knows."""
    return {} if target.noise is None else {"shift": target.noise}


def interval(target: Target) -> dict[str, Any]:
    """The true spectral interval, one per cent wide: no user knows it as well."""
    a, b = target.interval
    return {"interval": (a * (1 - SLACK), b * (1 + SLACK))}


def lower(target: Target) -> dict[str, Any]:
    """The true smallest eigenvalue, one per cent below."""
    return {"lower": target.interval[0] * (1 - SLACK)}


def all_candidates() -> dict[str, Candidate]:
    """Every estimator by name, the base first."""
    found = [
        Candidate("slq", logdets.slq_logdet, "A", steps, role="base"),
        Candidate("block_slq", blockquad.block_slq_logdet, "A", steps, role="judged"),
        Candidate(
            "block_golub_kahan", blockquad.block_golub_kahan_logdet, "J", steps, role="judged"
        ),
        Candidate(
            "planned", planner.logdet, "A", _planned, role="planned", batched=False, draws=True
        ),
        Candidate("golub_kahan", logdets.golub_kahan_logdet, "J", same_steps),
        Candidate("slq_lower", logdets.slq_logdet, "A", same_steps, knows=lower),
        Candidate("chebyshev_oracle", logdets.chebyshev_logdet, "A", degrees, knows=interval),
        Candidate(
            "algorithm1",
            logdets.algorithm1_logdet,
            "A",
            _algorithm1,
            knows=lower,
            batched=False,
            bounded=False,
        ),
        Candidate("maxent_oracle", maxent.maxent_logdet, "A", _maxent, knows=interval),
        Candidate(
            "deflated_chebyshev_oracle",
            deflated_chebyshev.deflated_chebyshev_logdet,
            "A",
            _deflated_chebyshev,
            knows=interval,
            batched=False,
            bounded=False,
        ),
        Candidate("krylov_aware", deflation.krylov_aware_logdet, "A", _krylov_aware),
        Candidate("nystrom", nystrom.nystrom_logdet, "A", _nystrom, knows=noise),
        Candidate("multilevel", multilevel.multilevel_logdet, "A", _multilevel),
    ]
    return {candidate.name: candidate for candidate in found}


def select(wanted: Sequence[str] = (), *, quick: bool = False) -> list[Candidate]:
    """Candidates by name; by default all, or base and judged ones. The base is always there.

    Raises:
        ValueError: If a name is unknown.
    """
    known = all_candidates()
    for name in wanted:
        if name not in known:
            raise ValueError(f"Unknown method {name!r}: use one of {', '.join(known)}.")
    if not wanted:
        return [c for c in known.values() if not (quick and c.role == "other")]
    return [c for c in known.values() if c.name in wanted or c.role == "base"]
