"""Verdicts: their order, how checks make a cell's verdict and cells a method's, the worst cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from verification.report.records import Record

ORDER = ("PASS", "REPORTED", "INCONCLUSIVE", "FAIL")
"""From best to worst. REPORTED is a documented limitation: shown, not gated."""

SYMBOL = {"PASS": "✓", "REPORTED": "i", "INCONCLUSIVE": "?", "FAIL": "✗"}

COLUMNS: dict[str, tuple[str, ...]] = {
    "expectation": ("mean",),
    "variance": ("variance",),
    "error bars": ("se", "coverage"),
    "brackets": ("bracket",),
    "exactness": ("probe", "exact", "aggregation", "matvecs", "status"),
}
"""Columns of the verdict grid and the checks each of them gathers."""

EFFECT = {
    "mean": "a bias of {} standard deviations of one probe",
    "variance": "a relative change of {} in the variance",
    "se": "a relative change of {} in E[se²]/Var",
    "coverage": "a change of {} in coverage",
    "bracket": "a share of {} of the probes outside",
    "probe": "{} tolerances",
    "exact": "{} tolerances",
}
"""What an effect is in each check: the unit of its detectable effect and of its margin."""


def effect_text(name: str, size: str) -> str:
    """An effect of some size in words, for checks without an entry in the check's own unit."""
    return EFFECT.get(name, f"{{}} in the unit of the check {name}").format(size)


def severity(verdict: str) -> int:
    """Place of a verdict in `ORDER`.

    Raises:
        ValueError: If the verdict is none of the four.
    """
    if verdict not in ORDER:
        msg = f"a verdict is one of {', '.join(ORDER)}; got {verdict!r}: correct the record"
        raise ValueError(msg)
    return ORDER.index(verdict)


def worst(verdicts: Iterable[str]) -> str | None:
    """The worst of some verdicts, None when there are none."""
    return max(verdicts, key=severity, default=None)


def underpowered(check: Record) -> bool:
    """Whether the smallest effect a check detects is larger than the margin it has to certify."""
    detectable, margin = check.get("detectable"), check.get("margin")
    return detectable is not None and margin is not None and detectable > margin


def check_verdict(check: Record, cell: Record) -> str:
    """Verdict of one check as shown.

    A PASS that could not have seen an effect of the size of its margin is INCONCLUSIVE, never
    green; in a cell that is REPORTED, whatever is not PASS is REPORTED.
    """
    verdict = str(check["verdict"])
    if verdict == "PASS" and underpowered(check):
        verdict = "INCONCLUSIVE"
    return "REPORTED" if cell["verdict"] == "REPORTED" and severity(verdict) > 0 else verdict


def cell_verdict(cell: Record) -> str:
    """Verdict of one cell as shown: its own, or that of a worse check if the cell is gated.

    In a gated cell a check that is REPORTED has its line in the report but no say.
    """
    own = str(cell["verdict"])
    severity(own)
    if own == "REPORTED":
        return own
    shown = [check_verdict(check, cell) for check in cell.get("checks") or []]
    return worst([own, *(v for v in shown if v != "REPORTED")]) or own


def checks_with(verdict: str, cell: Record) -> list[Record]:
    """The checks of a cell that are shown with this verdict."""
    return [c for c in cell.get("checks") or [] if check_verdict(c, cell) == verdict]


def deciding_check(cell: Record) -> Record | None:
    """The check that weighs most in a cell: worst verdict, smallest p, nearest to its limit."""
    checks = cell.get("checks") or []
    return max(checks, key=lambda check: _weight(check, cell), default=None)


def _weight(check: Record, cell: Record) -> tuple[int, float, float]:
    verdict = check_verdict(check, cell)
    p, used = check.get("p"), 0.0
    if p is None:  # a deterministic check: certain when it fails, no evidence when it passes
        p = 0.0 if verdict == "FAIL" else 1.0
        used = abs(check.get("statistic") or 0.0) / (check.get("margin") or math.inf)
    return severity(verdict), -p, used


def suspicion(cell: Record) -> tuple[int, float, float, float]:
    """Sort key of the worst cell: its verdict, the weight of its deciding check, |z|."""
    check = deciding_check(cell)
    _, evidence, used = _weight(check, cell) if check else (0, -1.0, 0.0)
    return severity(cell_verdict(cell)), evidence, used, abs(cell.get("z") or 0.0)


def worst_cell(cells: Sequence[Record]) -> Record | None:
    """The cell an expert should look at first."""
    return max(cells, key=suspicion, default=None)


@dataclass(frozen=True)
class Tally:
    """How many cells have which verdict."""

    counts: Counter[str]

    @property
    def total(self) -> int:
        """Number of cells that were judged."""
        return self.counts.total()

    @property
    def verdict(self) -> str | None:
        """The worst verdict, None when nothing was judged."""
        return worst(v for v, count in self.counts.items() if count)

    def text(self) -> str:
        """Counts from worst to best, such as ``1 ✗, 211 ✓``; one number when all agree."""
        present = [v for v in reversed(ORDER) if self.counts[v]]
        if len(present) == 1:
            return f"{self.total:,}"
        return ", ".join(f"{self.counts[v]:,}\u00a0{SYMBOL[v]}" for v in present)


def tally(cells: Iterable[Record]) -> Tally:
    """Verdicts of whole cells."""
    return Tally(Counter(cell_verdict(cell) for cell in cells))


def column_tally(cells: Iterable[Record], names: Sequence[str]) -> Tally:
    """Verdicts of the checks called `names`, the worst of them for each cell that has any."""
    counts: Counter[str] = Counter()
    for cell in cells:
        checks = [check for check in cell.get("checks") or [] if check["name"] in names]
        verdict = worst(check_verdict(check, cell) for check in checks)
        if verdict:
            counts[verdict] += 1
    return Tally(counts)


def columns(cells: Iterable[Record]) -> dict[str, tuple[str, ...]]:
    """`COLUMNS`, and a column for checks that none of them gathers, if the records have any."""
    known = {name for names in COLUMNS.values() for name in names}
    found = {check["name"] for cell in cells for check in cell.get("checks") or []}
    extra = tuple(sorted(found - known))
    return {**COLUMNS, "other checks": extra} if extra else COLUMNS


def limit_verdict(value: float | None, limit: float | None) -> str:
    """Verdict of a number against its limit; without a limit it is only REPORTED."""
    if limit is None:
        return "REPORTED"
    return "INCONCLUSIVE" if value is None else "PASS" if value <= limit else "FAIL"
