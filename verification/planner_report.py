"""The study of `method="auto"` as Markdown and JSONL, each line of acceptance met or not met."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scipy import stats

from verification.report.files import replace_files
from verification.store import Record

LIMIT, EXACT_LIMIT, SHARE, RMSE = 1.25, 1.2, 0.95, 50.0


class Line(NamedTuple):
    """One line of acceptance."""

    promise: str
    found: str
    met: bool


def write(rows: list[Record], out: Path) -> int:
    """Write `README.md` and `planner.jsonl`, print the former; 1 if a line is not met."""
    lines = acceptance(rows)
    page = markdown(rows, lines)
    out.mkdir(parents=True, exist_ok=True)
    records = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    replace_files({out / "README.md": page, out / "planner.jsonl": records})
    print(page)
    print(out / "README.md")
    return int(not all(line.met for line in lines))


def acceptance(rows: Sequence[Record]) -> list[Line]:
    """What the planner promises, and whether these records hold it."""
    timed = [row for row in rows if row["kind"] == "planner"]
    lines = [_in_hindsight(timed), _where_exact(timed), *_met(timed)]
    budgets = [row for row in rows if row["kind"] == "planner-budget"]
    if budgets:
        lines += _budgets(budgets)
    for row in rows:
        if row["kind"] == "planner-shape":
            found = f"{row['rmse']:.1f} nats, {row['products']:g} products"
            promise = f"log-uniform n = 1000, cond 1e4, 200 products: RMSE ≤ {RMSE:g} nats"
            lines.append(Line(promise, found, row["rmse"] <= RMSE and row["products"] <= 200))
    return lines


def _in_hindsight(timed: Sequence[Record]) -> Line:
    within = sum(row["ratio"] <= LIMIT for row in timed)
    low, high = interval(within, len(timed))
    found = f"{within} of {len(timed)}, {within / len(timed):.1%} ({low:.1%} to {high:.1%})"
    promise = f"time ≤ {LIMIT} × the best in hindsight on ≥ {SHARE:.0%} of cases"
    return Line(promise, found, within >= SHARE * len(timed))


def _where_exact(timed: Sequence[Record]) -> Line:
    ratios = [row["ratio"] for row in timed if row["best"] == "exact"]
    within = sum(ratio <= EXACT_LIMIT for ratio in ratios)
    found = f"{within} of {len(ratios)}, at most {max(ratios, default=0):.2f}"
    return Line(
        f"time ≤ {EXACT_LIMIT} × the exact answer wherever that is best",
        found,
        within == len(ratios),
    )


def _met(timed: Sequence[Record]) -> list[Line]:
    lines = []
    for name, chosen in (
        ("all", timed),
        ("answered by estimates", [row for row in timed if not row["exact"]]),
    ):
        met, size = sum(row["met"] for row in chosen), sum(row["seeds"] for row in chosen)
        low, high = interval(met, size)
        found = f"{met} of {size}, {met / max(size, 1):.1%} ({low:.1%} to {high:.1%})"
        lines.append(
            Line(
                f"error within the asked one on ≥ {SHARE:.0%} of runs: {name}",
                found,
                met >= SHARE * size,
            )
        )
    return lines


def _budgets(rows: Sequence[Record]) -> list[Line]:
    unsaid, beyond = (sum(row[key] for row in rows) for key in ("unsaid", "beyond"))
    size = sum(row["seeds"] for row in rows)
    return [
        Line(
            f"errors missed for want of budget and not said ≤ {1 - SHARE:.0%}",
            f"{unsaid} of {size}",
            unsaid <= (1 - SHARE) * size,
        ),
        Line("no budget exceeded", f"{beyond} of {size}", beyond == 0),
    ]


def interval(successes: int, size: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval of a share."""
    if size == 0:
        return 0.0, 1.0
    found = stats.binomtest(successes, size).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def markdown(rows: Sequence[Record], lines: Sequence[Line]) -> str:
    """The page."""
    timed = [row for row in rows if row["kind"] == "planner"]
    head = (
        "case",
        "n",
        "rtol",
        "chosen",
        "best in hindsight",
        "auto ms",
        "best ms",
        "exact ms",
        "auto / best",
        "met",
    )
    body = [
        (
            row["case"],
            str(row["n"]),
            f"{row['rtol']:g}",
            row["chosen"],
            row["best"],
            *(f"{1e3 * row[key]:.2f}" for key in ("seconds", "seconds_best", "seconds_exact")),
            f"{row['ratio']:.2f}",
            f"{row['met']}/{row['seeds']}",
        )
        for row in timed
    ]
    parts = [
        '# `method="auto"` against the best method in hindsight',
        "`python -m verification planner` writes this page. Times are CPU times of one thread, "
        "medians of runs in turn. The best in hindsight is the exact answer or the fastest shape "
        "of a grid whose measured RMSE is at most half the asked error; it is told its shape, "
        "auto is not. `met` counts errors within the asked one at confidence 0.95.",
        _table(
            ("promise", "found", ""),
            [(line.promise, line.found, "met" if line.met else "not met") for line in lines],
        ),
        _table(head, body),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
