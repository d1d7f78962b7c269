"""The acceptance lines: what is required, what was measured, met or not. Nothing is rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from verification.budgets_cases import BudgetCase, all_cases
from verification.budgets_methods import label
from verification.budgets_run import Cell
from verification.budgets_stats import ROUNDING, Measured, best_ratio, ratio, rmse
from verification.budgets_time import LIMITS
from verification.store import Record

TUNING = "tune"  # the epoch whose seeds estimators may be tuned on
MIN_SEEDS, MIN_COVERAGE, MAX_HALF_WIDTH = 30, 0.93, 3.0

SAME_SHAPE = {
    "kernel 1e-2": 1 / 3,
    "kernel 1e-4": 1 / 10,
    "power law": 1 / 10,
    "clusters": 1 / 10,
    "Jacobian": 1 / 1.5,
}
BEST_SHAPE = {
    "kernel 1e-2": 1 / 2,
    "kernel 1e-4": 1 / 2,
    "power law": 1 / 3,
    "clusters": 1 / 3,
    "": 1.1,  # every case
}
PLANNER_NATS = 50.0


@dataclass(frozen=True)
class Finding:
    """One figure against the limit of its line: at most, or at least.

    Attributes:
        where: Case, or problem.
        measured: With its interval; NaN ends where there is none.
        limit: Of the line.
        least: The limit is a lower one.
    """

    where: str
    measured: Measured
    limit: float
    least: bool = False

    @property
    def met(self) -> bool:
        """The figure itself keeps the limit; NaN does not."""
        value = self.measured.value
        return value >= self.limit if self.least else value <= self.limit

    @property
    def certain(self) -> bool:
        """The interval lies on one side of the limit; a figure without one is taken as it is."""
        low, high = self.measured.low, self.measured.high
        return math.isnan(low) or low > self.limit or high < self.limit or low == high

    @property
    def excess(self) -> float:
        """Larger where the figure is worse; NaN is the worst."""
        value = self.measured.value
        if math.isnan(value):
            return math.inf
        return self.limit - value if self.least else value / self.limit

    def record(self) -> Record:
        return {
            "where": self.where,
            "measured": list(self.measured),
            "limit": self.limit,
            "met": self.met,
            "certain": self.certain,
        }


@dataclass(frozen=True)
class Line:
    """One acceptance line, with everything that was measured for it."""

    name: str
    requirement: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Every finding is met, and there is one."""
        return bool(self.findings) and all(finding.met for finding in self.findings)

    @property
    def worst(self) -> Finding | None:
        """The finding farthest beyond its limit, or closest to it."""
        return max(self.findings, key=lambda finding: finding.excess, default=None)

    def record(self) -> Record:
        return {
            "kind": "budget-line",
            "id": self.name,
            "requirement": self.requirement,
            "met": self.met,
            "findings": [finding.record() for finding in self.findings],
        }


def lines(
    cells: Sequence[Cell], times: Iterable[Record], precision: Iterable[Record], epoch: str
) -> list[Line]:
    """Every acceptance line, in their order."""
    table = Table(cells)
    return [
        *(_same_shape(table, group, limit) for group, limit in SAME_SHAPE.items()),
        *(_best_shape(table, group, limit) for group, limit in BEST_SHAPE.items()),
        _planner(cells),
        _exact(table),
        *_intervals(table),
        *_fair(table, epoch),
        *_times(list(times)),
        _float32(precision),
    ]


class Table:
    """Cells by what they are looked up by."""

    def __init__(self, cells: Sequence[Cell]):
        self.cells = cells
        known = all_cases()
        self.cases = [known[name] for name in dict.fromkeys(cell.case for cell in cells)]

    def of(self, case: BudgetCase, role: str) -> list[Cell]:
        """All shapes of the base, or of the judged method, that kept the budget."""
        return [c for c in self.cells if (c.case, c.role) == (case.id, role) and c.within]

    def same(self, case: BudgetCase, role: str) -> Cell | None:
        """The cell in the common shape."""
        found = [cell for cell in self.of(case, role) if cell.shape == label(case.same)]
        return found[0] if found else None


def same_ratio(table: Table, case: BudgetCase) -> Measured | None:
    """RMSE of the judged method over that of the base in the common shape."""
    base, ours = table.same(case, "base"), table.same(case, "judged")
    if base is None or ours is None:
        return None
    size = min(len(base.errors), len(ours.errors))
    return ratio(base.errors[:size], ours.errors[:size])


def best_of_shapes(table: Table, case: BudgetCase) -> Measured | None:
    """Best shape of the judged method against the best shape of the base."""
    base, ours = table.of(case, "base"), table.of(case, "judged")
    if not base or not ours:
        return None
    size = min(len(cell.errors) for cell in (*base, *ours))
    return best_ratio([c.errors[:size] for c in base], [c.errors[:size] for c in ours])


def best_shape(table: Table, case: BudgetCase, role: str) -> str:
    """The shape of smallest RMSE."""
    cells = table.of(case, role)
    size = min((len(cell.errors) for cell in cells), default=0)
    found = min(cells, key=lambda cell: rmse(cell.errors[:size]), default=None)
    return found.shape if found else ""


def _same_shape(table: Table, group: str, limit: float) -> Line:
    text = f"same shape, {group}: RMSE / RMSE of plain SLQ ≤ {_fraction(limit)}"
    return Line(f"same|{group}", text, _compared(table, group, limit, same_ratio))


def _best_shape(table: Table, group: str, limit: float) -> Line:
    text = (
        f"best shape against best shape, {group or 'every case'}: RMSE ratio ≤ {_fraction(limit)}"
    )
    return Line(f"best|{group}", text, _compared(table, group, limit, best_of_shapes))


def _compared(
    table: Table,
    group: str,
    limit: float,
    compare: Callable[[Table, BudgetCase], Measured | None],
) -> list[Finding]:
    found = []
    for case in table.cases:
        if case.exact or (group and case.group != group):
            continue
        measured = compare(table, case)
        if measured is not None:
            found.append(Finding(case.id, measured, limit))
    return found


def _planner(cells: Sequence[Cell]) -> Line:
    text = (
        f"shape chosen by the planner, log-uniform n = 1000, cond 1e4: RMSE ≤ {PLANNER_NATS:g} nats"
    )
    found = [
        # A planner that spends more than it was given has not met the line.
        Finding(cell.case, cell.rmse if cell.within else _figure(math.nan), PLANNER_NATS)
        for cell in cells
        if cell.role == "planned" and cell.group == "planner"
    ]
    return Line("planner", text, found)


def _exact(table: Table) -> Line:
    text = f"exact where probes × steps ≥ n: largest error ≤ {ROUNDING:g} nats"
    found = [
        Finding(f"{cell.case} {cell.shape}", _figure(np.abs(cell.errors).max()), ROUNDING)
        for case in table.cases
        if case.exact
        for cell in table.of(case, "judged")
        if math.prod(map(int, cell.shape.split("x"))) >= case.n
    ]
    return Line("exact", text, found)


def _intervals(table: Table) -> list[Line]:
    covered, widths = [], []
    for case in table.cases:
        cell = table.same(case, "judged")
        found = cell.coverage if cell else None
        if cell is None or found is None:
            continue
        covered.append(Finding(case.id, found.share, MIN_COVERAGE, least=True))
        if not case.exact:
            widths.append(Finding(case.id, _figure(cell.relative_width), MAX_HALF_WIDTH))
    where = "where the method claims one"
    return [
        Line("coverage", f"95 % intervals cover ≥ {MIN_COVERAGE:.0%} {where}", covered),
        Line("width", f"median half-width ≤ {MAX_HALF_WIDTH:g} × RMSE {where}", widths),
    ]


def _fair(table: Table, epoch: str) -> list[Line]:
    products, seeds = [], []
    for case in table.cases:
        base = {cell.shape: cell.products for cell in table.of(case, "base")}
        ours = table.of(case, "judged")
        spent = [cell.products / base[cell.shape] for cell in ours if cell.shape in base]
        if spent:
            products.append(Finding(case.id, _figure(max(spent)), 1.0))
        replicates = [len(cell.errors) for cell in (*table.of(case, "base"), *ours)]
        if replicates:
            fresh = min(replicates) if epoch != TUNING else 0
            seeds.append(Finding(case.id, _figure(fresh), MIN_SEEDS, least=True))
    return [
        Line("products", "metered products / those of plain SLQ in the same shape ≤ 1", products),
        Line("seeds", f"≥ {MIN_SEEDS} seeds, fresh ones (epoch {epoch!r})", seeds),
    ]


def _times(records: list[Record]) -> list[Line]:
    found = []
    for on, name in (("J", "networks"), ("A", "dense n = 1000")):
        text = f"time over products alone, {name}: ≤ {LIMITS[on]:g}"
        findings = [
            Finding(f"{r['problem']} {r['dtype']}", _figure(r["ratio"]), LIMITS[on])
            for r in records
            if r["on"] == on
        ]
        found.append(Line(f"time|{on}", text, findings))
    return found


def _float32(records: Iterable[Record]) -> Line:
    found = [
        Finding(f"{r['method']} cond {r['cond']:g}", _figure(r["error"]), r["limit"])
        for r in records
        if r["limit"] is not None
    ]
    text = "float32 against float64 on the same probes, cond(JᵀJ) ≤ 1e8: error ≤ 1e-3 nats"
    return Line("float32", text, found)


def _figure(value: float) -> Measured:
    return Measured(float(value), math.nan, math.nan)


def _fraction(limit: float) -> str:
    return f"{limit:g}" if limit >= 1 else f"1/{1 / limit:g}"
