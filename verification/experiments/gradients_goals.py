"""Goals of the study of gradients, each at equal products, and what no gradient at all would do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from verification.experiments.gradients_derived import (
    Shape,
    best,
    budgets,
    chosen,
    names,
    of_cost,
    order,
    shapes,
)
from verification.experiments.gradients_estimators import (
    BLOCK,
    FRECHET,
    ORTHOGONAL,
    PAPER,
    PAPERS,
    PLAIN,
)
from verification.experiments.outputs import table
from verification.store import Record

OURS = ("Chebyshev adjoint", FRECHET, "SLQ")
LONG = 40  # degree at which memory and time are compared
THIRD = 1 / 3
Choice = Callable[[list[Shape]], Shape | None]


@dataclass(frozen=True)
class Comparison:
    """Ours beside the paper's on one case, at equal products.

    Attributes:
        ratio: Ours over the paper's.
        zero: The zero gradient over the paper's.
        better: Whether ours has less error than the zero gradient, RMSE < 1.
        dear: Whether the exact gradient, n/2 products, costs more.
    """

    ratio: float
    zero: float
    better: bool
    dear: bool

    def meets(self, goal: float) -> bool:
        """Within the goal, and better than no gradient."""
        return self.ratio <= goal and self.better


def costs(records: list[Record]) -> str:
    """Every goal of memory and time with the range of what was measured over the networks."""
    rows = []
    for label, goal, text, values in _costs(records):
        met = sum(value <= goal for value in values)
        span = f"{min(values):.3g} to {max(values):.3g}"
        rows.append([label, text, span, f"{met} of {len(values)}"])
    return table(["Ratio", "Goal", "Measured", "Cases that meet it"], rows) + "\n"


def _costs(records: list[Record]) -> Iterator[tuple[str, float, str, list[float]]]:
    ladder = sorted({r["steps"] for r in chosen(records, "memory") if r["steps"]})
    long = LONG if LONG in ladder else ladder[-1]
    cases = names(records, "memory")

    def size(case: str, name: str, steps: int, vectors: bool) -> float:
        r = of_cost(records, "memory", case, name, steps)
        return r["bytes"] + (r["held"] if vectors else 0)

    for (vectors, kind), name in itertools.product(
        ((False, "saved tensors"), (True, "saved tensors and vectors held")), OURS
    ):
        grown = [
            size(c, name, ladder[-1], vectors) / size(c, name, ladder[0], vectors) for c in cases
        ]
        ratio = [size(c, name, long, vectors) / size(c, PAPER, long, vectors) for c in cases]
        yield f"{kind} of {name}, {ladder[-1]} steps : {ladder[0]} steps", 1.1, "≤ 1.1", grown
        yield f"{kind} of {name} : paper's, degree {long}", 0.05, "≤ 1/20", ratio
    timed = max(r["steps"] for r in chosen(records, "time"))
    baselines = {PAPER: "paper's", PLAIN: "paper's with f differentiated anew for each product"}
    for (baseline, text), name in itertools.product(baselines.items(), OURS):
        pair = (
            [of_cost(records, "time", c, e, timed)["seconds"] for c in cases]
            for e in (name, baseline)
        )
        ratio = [ours / theirs for ours, theirs in zip(*pair, strict=True)]
        yield f"time of {name} : {text}, degree {timed}", 0.5, "≤ 1/2", ratio


def noise(records: list[Record]) -> str:
    """Every goal of noise and error with the range of what was measured over the cases."""
    rows = []
    for budget, (label, goal, text, value, ours, paper) in itertools.product(
        budgets(records), _noise()
    ):
        found = compared(records, budget, value, ours, paper)
        if found:
            ratios = [c.ratio for c in found]
            met = [c for c in found if c.meets(goal)]
            counts = (met, [c for c in met if c.dear], [c for c in found if c.zero <= goal])
            span = f"{min(ratios):.3g} to {max(ratios):.3g}"
            cells = [f"{len(some)} of {len(found)}" for some in counts]
            cells[1] = f"{len(counts[1])} of {sum(c.dear for c in found)}"
            rows.append([str(budget), label, text, span, *cells])
    head = ["Products", "Ratio", "Goal", "Measured", "Cases that meet it"]
    head += ["… among those where exact costs more", "The zero gradient would"]
    return table(head, rows) + "\n"


def _noise() -> Iterator[tuple[str, float, str, str, Choice, Choice]]:
    paper = only(PAPER)
    same = paper_with(PAPERS)
    for name in (BLOCK, ORTHOGONAL):
        ours = only(name)
        label = f"std of {name}"
        fixed = f"{label} : paper's, both with {PAPERS} steps for each probe"
        yield fixed, THIRD, "≤ 1/3", "std", _fixed(name), same
        yield (
            f"{label} : paper's, each in its least noisy shape",
            THIRD,
            "≤ 1/3",
            "std",
            least(ours),
            least(paper),
        )
        yield (
            f"{label} : paper's, each in its shape of least RMSE",
            THIRD,
            "≤ 1/3",
            "std",
            lowest(ours),
            lowest(paper),
        )
    text = f"of {FRECHET} : paper's, both with {PAPERS} steps for each probe"
    yield f"std {text}", 1.05, "≤ 1.05", "std", _fixed(FRECHET), same
    yield f"RMSE {text}", 1.05, "≤ 1.05", "rmse", _fixed(FRECHET), same
    label = "RMSE of ours : paper's, each in its shape of least RMSE"
    yield label, THIRD, "≤ 1/3", "rmse", lowest(lambda s: s.estimator != PAPER), lowest(paper)


def only(name: str) -> Callable[[Shape], bool]:
    """Of one estimator."""
    return lambda s: s.estimator == name


def lowest(kept: Callable[[Shape], bool]) -> Choice:
    """The shape of least RMSE among some."""
    return lambda found: best(own) if (own := [s for s in found if kept(s)]) else None


def least(kept: Callable[[Shape], bool]) -> Choice:
    """The least noisy shape among some, whatever its bias."""
    return lambda found: min((s for s in found if kept(s)), key=lambda s: s.std, default=None)


def _fixed(name: str) -> Choice:
    return lowest(lambda s: s.estimator == name and s.steps == PAPERS)


def paper_with(steps: int) -> Choice:
    """The paper's with so many steps for each probe."""
    return lowest(lambda s: s.estimator == PAPER and s.steps == steps)


def compared(
    records: list[Record], budget: int, value: str, ours: Choice, paper: Choice
) -> list[Comparison]:
    """All cases on which both choices exist.

    Args:
        records: Of the study.
        budget: Products.
        value: ``"std"`` or ``"rmse"``.
        ours: Picks our shape.
        paper: Picks the paper's.
    """
    found = []
    for case in names(records, "noise"):
        known = shapes(records, case, budget)
        own, other = ours(known), paper(known)
        if own and other:
            base = getattr(other, value)
            zero = {"std": 0.0, "rmse": 1 / base}[value]
            dear = order(records, case) / 2 > budget
            found.append(Comparison(getattr(own, value) / base, zero, own.rmse < 1, dear))
    return found
