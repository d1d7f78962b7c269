"""A comparison as Markdown: the verdict, each method, what changed, and what failed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from specbp.testing.outcome import FAIL, PASS, worst
from specbp.testing.paired import CALIBRATION, TOLERANCE, Interval
from verification.compare_cells import MOST_PROBES, PROBES
from verification.compare_judge import ALPHA, FACTOR, Report, Row

LONGEST = 300  # characters of an exception
SIGNS = {
    "PASS": "✓ PASS",
    "FAIL": "✗ FAIL",
    "INCONCLUSIVE": "? INCONCLUSIVE",
    "REPORTED": "i REPORTED",
}


def markdown(report: Report) -> str:
    """The whole report."""
    base, head = report.labels
    parts = [f"# {head} against {base}", _verdict(report), _table(*_summary(report))]
    changed = [row for row in report.rows if not row.equal]
    if changed:
        parts += ["## What changed", _table(*_changes(changed)), _legend(report)]
    parts += _differences(report)
    return "\n\n".join(parts) + "\n"


def _verdict(report: Report) -> str:
    equal = sum(row.equal for row in report.rows)
    improved = {row.method for row in report.rows if row.comparison and row.comparison.improved}
    lines = [
        f"**{SIGNS[report.verdict]}**: {len(report.rows)} comparisons, {equal} bit-equal; "
        f"{report.replicates} replicates of {PROBES} common probes."
    ]
    if report.verdict == FAIL:
        lines.append(f"Accuracy got worse: {_names(report, FAIL)}.")
    if improved:
        lines.append(f"Smaller RMSE on some matrix, with certainty: {', '.join(sorted(improved))}.")
    return " ".join(lines)


def _names(report: Report, verdict: str) -> str:
    return ", ".join(sorted({row.method for row in report.rows if row.verdict == verdict}))


def _summary(report: Report) -> tuple[list[str], list[list[str]]]:
    """One line for each method: the worst of its cells."""
    header = ["Method", "Bit-equal", "Largest RMSE ratio", "Products", "Seconds", "Verdict"]
    lines = []
    for name in dict.fromkeys(row.method for row in report.rows):
        rows = [row for row in report.rows if row.method == name]
        ratios = [row.comparison.rmse_ratio for row in rows if row.comparison]
        seconds = [row.seconds for row in rows if not math.isnan(row.seconds)]
        largest = max((r for r in ratios if not math.isnan(r.value)), default=None)
        lines.append(
            [
                f"`{name}`",
                f"{sum(row.equal for row in rows)} of {len(rows)}",
                _interval(largest) if largest else "–",
                _range(row.products for row in rows),
                f"{np.median(seconds):.2f}" if seconds else "–",
                SIGNS[_worst(rows)],
            ]
        )
    return header, lines


def _worst(rows: Iterable[Row]) -> str:
    rows = list(rows)
    return worst([check for row in rows for check in row.checks], gated=rows[0].gated)


def _changes(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    header = [
        "Method",
        "Matrix",
        "Per probe",
        "Mean shift",
        "Distance to the truth",
        "Variance ratio",
        "RMSE ratio",
        "ρ",
        "Detectable",
        "E[se²]/Var",
        "Failures",
        "Verdict",
    ]
    order = list(SIGNS)
    rows = sorted(rows, key=lambda row: order.index(row.verdict) != order.index(FAIL))
    return header, [_change(row) for row in rows]


def _change(row: Row) -> list[str]:
    """One method on one matrix."""
    cells = [f"`{row.method}`", row.cell, _number(row.largest)]
    if row.comparison is None:
        return [*cells, *["–"] * 8, SIGNS[row.verdict]]
    c = row.comparison
    return [
        *cells,
        _interval(c.shift),
        _interval(c.growth),
        _interval(c.variance_ratio),
        _interval(c.rmse_ratio),
        "–" if math.isnan(c.rho) else f"{c.rho:.6f}",
        f"{c.detectable:.4g}",
        _interval(row.calibration) if row.calibration else "–",
        f"{c.failed[0]} → {c.failed[1]}",
        SIGNS[row.verdict] + (", better" if c.improved else ""),
    ]


def _legend(report: Report) -> str:
    return (
        "Head against base, in the unit of the estimate (nats for log det). An interval holds with "
        f"probability {report.confidence:.6f}: any false alarm at all has a probability of at most "
        f"{ALPHA:.0%}. FAIL: a lower end of the variance ratio or of the RMSE ratio above "
        f"{TOLERANCE}; a mean shift beyond 0.2 standard errors of {MOST_PROBES} probes that is not "
        f"shown to approach the truth; E[se²]/Var farther from 1 by a factor above {CALIBRATION}; "
        f"failures of the head alone; {FACTOR:g} times the error without probes, or the distance "
        "from the oracle's form. Detectable: RMSE ratio seen with probability 0.9. Seconds are of "
        "this run and judge nothing."
    )


def _differences(report: Report) -> list[str]:
    """Failed checks in full, exceptions, other configurations, methods of one side only."""
    failed = [
        f"* `{row.method}` on {row.cell}: {check}"
        for row in report.rows
        for check in row.checks
        if row.gated and check.verdict == FAIL
    ]
    changed = [f"* `{name}`: {b} → {h}" for name, (b, h) in report.changed.items()]
    parts = []
    for title, lines in (
        ("What got worse", failed),
        ("What raised an exception", list(_exceptions(report))),
        ("Other arguments or claims, each side with its own", changed),
        ("Added, not compared", [f"* `{name}`" for name in report.added]),
        ("Removed, not compared", [f"* `{name}`" for name in report.removed]),
    ):
        if lines:
            parts += [f"## {title}", "\n".join(lines)]
    return parts


def _exceptions(report: Report) -> Iterator[str]:
    """The first exception of each side and method, but for those that are an answer."""
    for name in dict.fromkeys(row.method for row in report.rows):
        raised = [
            row
            for row in report.rows
            if row.method == name and row.raised and worst(row.checks) != PASS
        ]
        for side in ("base", "head"):
            found = [(row.cell, row.raised[side]) for row in raised if side in row.raised]
            if found:
                text = " ".join(found[0][1].split())
                text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
                where = f"{len(found)} matrices, first on {found[0][0]}"
                yield f"* `{name}`, {side}, on {where}: {text}"


def _table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _interval(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "–"
    if interval.low == interval.high:
        return _number(interval.value)
    return f"{_number(interval.value)} [{_number(interval.low)}, {_number(interval.high)}]"


def _number(value: float) -> str:
    """Ratios near 1 keep the digits that differ from it."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.6f}" if 0.5 < value < 2 else f"{value:.2e}"


def _range(values: Iterable[float]) -> str:
    found = [value for value in values if not math.isnan(value)]
    if not found:
        return "–"
    low, high = min(found), max(found)
    return f"{low:g}" if low == high else f"{low:.3g}–{high:.3g}"
