"""The study as Markdown, as records, and as a figure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verification import provenance
from verification.budgets_accept import (
    BEST_SHAPE,
    SAME_SHAPE,
    TUNING,
    Finding,
    Line,
    Table,
    best_of_shapes,
    best_shape,
    same_ratio,
)
from verification.budgets_cases import BudgetCase
from verification.budgets_run import Cell, Settings
from verification.budgets_stats import Measured, rmse
from verification.report.figures.style import FAINT, INK, finish, panel
from verification.report.files import replace_files
from verification.report.text import MISSING, sig
from verification.store import Record, strict


@dataclass(frozen=True)
class Study:
    """Everything that was measured, and under which settings."""

    cells: list[Cell]
    times: list[Record]
    precision: list[Record]
    lines: list[Line]
    settings: Settings
    seconds: float


def write(study: Study, out: Path) -> list[Path]:
    """Write the three files into a folder and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    contents = {out / "budgets.md": markdown(study), out / "budgets.jsonl": records(study)}
    figure = ratios_figure(Table(study.cells))
    if figure:
        contents[out / "ratios.svg"] = figure
    replace_files(contents)
    return list(contents)


def records(study: Study) -> str:
    """One JSON object a line: the settings, the lines, every cell, times and float32 errors."""
    run = {
        "kind": "budget-run",
        "id": "run",
        **vars(study.settings),
        "seconds": study.seconds,
        **provenance.origin(),
    }
    rows: Iterable[Record] = [
        run,
        *(line.record() for line in study.lines),
        *(cell.record() for cell in study.cells),
        *study.times,
        *study.precision,
    ]
    return "".join(
        json.dumps(strict(row), allow_nan=False, ensure_ascii=False) + "\n" for row in rows
    )


def markdown(study: Study) -> str:
    """The whole report."""
    table = Table(study.cells)
    parts = [
        "# Estimators at equal measured products",
        _introduction(study),
        lines_table(study.lines),
        "## Against plain SLQ",
        "![RMSE over that of plain SLQ](ratios.svg)",
        _table(*_comparison(table)),
        "## Every method, its best shape",
        "RMSE in nats, in the shape with the smallest one. `!`: more products than the budget, "
        "so the figure is compared with nothing.",
        _table(*_methods(table)),
        "## Intervals",
        _table(*_intervals(study.cells)),
        *_costs(study),
    ]
    return "\n\n".join(parts) + "\n"


def lines_table(lines: Sequence[Line]) -> str:
    """One row for each acceptance line: the worst of its findings, and how many are met."""
    rows = []
    for line in lines:
        worst = line.worst
        rows.append(
            [
                line.requirement,
                measured(worst.measured) if worst else "not measured",
                worst.where if worst else MISSING,
                f"{sum(f.met for f in line.findings)} of {len(line.findings)}",
                _verdict(line),
            ]
        )
    return _table(["Requirement", "Worst measured", "Where", "Met on", "Verdict"], rows)


def measured(figure: Measured) -> str:
    """A figure with its interval, rounded away from what a limit would like."""
    if np.isnan(figure.low):
        return sig(figure.value, 4)
    return f"{sig(figure.value, 4)} [{sig(figure.low)}, {sig(figure.high)}]"


def _verdict(line: Line) -> str:
    if not line.findings:
        return "not measured"
    unsure = [finding for finding in line.findings if not finding.certain]
    note = f" ({len(unsure)} within noise of the limit)" if unsure else ""
    return ("met" if line.met else "**NOT met**") + note


def _introduction(study: Study) -> str:
    settings = study.settings
    warning = (
        "**These seeds are for tuning: the figures judge nothing.** "
        if settings.epoch == TUNING
        else ""
    )
    return (
        f"{warning}{settings.seeds} replicates of every cell ({settings.interval_seeds} of the "
        f"judged methods in the common shape), epoch `{settings.epoch}`, float64. All methods of "
        "one probe law meet the same probes. Products are metered outside the estimators, vector "
        "by vector. Brackets: 95 % intervals, by a bootstrap over seeds that chooses best shapes "
        "anew in each resample, or Clopper–Pearson's. A line is met if the figure itself keeps the "
        "limit on every case."
    )


def _comparison(table: Table) -> tuple[list[str], list[list[str]]]:
    header = ["Case", "n", "Products", "SLQ", "Joint", "Ratio, same shape", "Best", "Ratio, best"]
    rows = []
    for case in table.cases:
        base, ours = table.same(case, "base"), table.same(case, "judged")
        if base is None or ours is None:
            continue
        same, best = same_ratio(table, case), best_of_shapes(table, case)
        shapes = f"{best_shape(table, case, 'judged')} against {best_shape(table, case, 'base')}"
        rows.append(
            [
                case.id,
                str(case.n),
                f"{ours.products:g}",
                sig(base.rmse.value),
                sig(rmse(ours.errors[: len(base.errors)])),  # on the same seeds
                measured(same) if same else MISSING,
                shapes,
                measured(best) if best else MISSING,
            ]
        )
    return header, rows


def _methods(table: Table) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(cell.method for cell in table.cells))
    rows = []
    for case in table.cases:
        row = [case.id]
        for name in names:
            found = [c for c in table.cells if (c.case, c.method) == (case.id, name)]
            best = min(found, key=lambda cell: (not cell.within, cell.rmse.value), default=None)
            mark = "" if best is None or best.within else " !"
            row.append(f"{sig(best.rmse.value)} ({best.shape}){mark}" if best else MISSING)
        rows.append(row)
    return ["Case", *names], rows


def _intervals(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    header = ["Case", "Method", "Shape", "Coverage", "Half-width / RMSE", "Bias", "sd"]
    rows = []
    for cell in cells:
        covered, body = cell.coverage, cell.record()
        if covered is None:
            continue
        width = body["half_width_over_rmse"]
        rows.append(
            [
                cell.case,
                cell.method,
                cell.shape,
                f"{measured(covered.share)} of {covered.size}",
                sig(width),
                sig(body["bias"]),
                sig(body["sd"]),
            ]
        )
    return header, rows


def _costs(study: Study) -> Iterator[str]:
    if study.times:
        yield "## Time over products alone"
        yield "Medians of interleaved rounds on one thread, 10 probes and 20 steps."
        header = ["Problem", "dtype", "Method", "Seconds", "Products alone", "Layout", "Ratio"]
        keys = ["problem", "dtype", "method", "seconds", "seconds_products", "layout", "ratio"]
        yield _table(header, [[_text(row[key]) for key in keys] for row in study.times])
    if study.precision:
        yield "## float32 against float64"
        header = ["Method", "n", "cond(JᵀJ)", "Largest difference, nats"]
        keys = ["method", "n", "cond", "error"]
        yield _table(header, [[_text(row[key]) for key in keys] for row in study.precision])


def _text(value: object) -> str:
    return sig(value) if isinstance(value, float) else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratios_figure(table: Table) -> str:
    """RMSE of the judged methods over that of plain SLQ, in the same shape and best against best.

    Empty where nothing was compared.
    """
    rows = [
        (case, same, best)
        for case in table.cases
        if not case.exact
        and (same := same_ratio(table, case))
        and (best := best_of_shapes(table, case))
    ]
    if not rows:
        return ""
    with panel((6.4, 1.0 + 0.34 * len(rows))) as (figure, ax):
        for i, (case, same, best) in enumerate(rows):
            for offset, colour, marker, found, limit in (
                (-0.13, "#0072b2", "o", same, SAME_SHAPE.get(case.group)),
                (0.13, "#d55e00", "D", best, BEST_SHAPE.get(case.group, BEST_SHAPE[""])),
            ):
                y = i + offset
                ax.plot([found.low, found.high], [y, y], color=FAINT, lw=1.4)
                ax.plot(found.value, y, marker, ms=5, color=colour)
                if limit is not None:
                    ax.plot(limit, y, "|", ms=9, mew=2, color=INK)
        ax.axvline(1.0, color="#6b7280", lw=0.9)
        ax.set_xscale("log")
        ax.set_yticks(range(len(rows)), [case.id for case, _, _ in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel(
            "RMSE / RMSE of plain SLQ, with 95 % intervals\n"
            "dot: same shape; diamond: best against best; bar: limit"
        )
        return finish(figure, "ratios").svg


def described(case: BudgetCase, cells: Sequence[Cell]) -> str:
    """One line of progress."""
    table = Table(cells)
    same, best = same_ratio(table, case), best_of_shapes(table, case)
    seconds = sum(cell.seconds * len(cell.errors) for cell in cells)
    figures = "" if not (same and best) else f"same {sig(same.value)}, best {sig(best.value)}"
    return f"{case.id:38} {figures:28} {seconds:5.1f} s"


def failures(lines: Sequence[Line]) -> Iterator[tuple[str, Finding]]:
    """Every finding that is not met, with its line."""
    for line in lines:
        for finding in line.findings:
            if not finding.met:
                yield line.name, finding
