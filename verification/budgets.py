"""Judge estimators at equal measured products: `python -m verification budgets`.

Plain stochastic Lanczos quadrature is the base; the block methods are judged against it by the
acceptance lines of `budgets_accept`, and everything else that spends a budget of products is shown
beside them. Seeds come from the epoch: what is tuned on epoch "tune" is judged on another one,
which changes with the source: nothing can be tuned on it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from verification import (
    budgets_cases,
    budgets_methods,
    budgets_report,
    budgets_run,
    budgets_time,
    provenance,
)
from verification.budgets_accept import lines
from verification.budgets_report import Study
from verification.budgets_run import Cell, OverspentError, Settings
from verification.provenance import ROOT
from verification.store import Record

SEEDS, INTERVAL_SEEDS, REPEATS = 40, 100, 7
QUICK_SEEDS, QUICK_REPEATS = 30, 3
OUT = ROOT / "reports" / "budgets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m verification budgets`."""
    add = parser.add_argument
    add("--quick", action="store_true", help="base and judged methods, fewer cases: a minute")
    add("--cases", action="append", default=[], metavar="TEXT", help="ids that contain this")
    add("--methods", action="append", default=[], metavar="NAME", help="beside plain SLQ")
    add("--seeds", type=int, help=f"replicates of every cell (default: {SEEDS})")
    add(
        "--interval-seeds",
        type=int,
        help=f"replicates of the judged methods in the common shape (default: {INTERVAL_SEEDS})",
    )
    add(
        "--epoch",
        default=provenance.judging_epoch(),
        help='part of every seed (default: one of its own for each state of the source; "tune" is '
        "for tuning)",
    )
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    add("--no-costs", action="store_true", help="leave out times and float32")
    add("--out", type=Path, default=OUT, help="folder of the report")


def main(options: argparse.Namespace) -> int:
    """Run the study and write its report; the exit status is 1 if a line is not met."""
    try:
        study = run(options)
    except OverspentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    paths = budgets_report.write(study, options.out)
    print(budgets_report.lines_table(study.lines))
    for name, finding in budgets_report.failures(study.lines):
        limit = f"{'≥' if finding.least else '≤'} {finding.limit:.4g}"
        print(f"not met: {name}: {finding.where}: {finding.measured.value:.4g}, limit {limit}")
    print(f"epoch {study.settings.epoch!r}, {study.seconds:.0f} s")
    print("\n".join(map(str, paths)))
    return 0 if all(line.met for line in study.lines) else 1


def run(options: argparse.Namespace) -> Study:
    """Everything that the options ask for.

    Raises:
        ValueError: If a case or a method is unknown, or there are too few seeds.
        OverspentError: If a method used more products than it was given.
    """
    start = time.perf_counter()
    chosen = budgets_cases.select(options.cases, quick=options.quick)
    candidates = budgets_methods.select(options.methods, quick=options.quick)
    settings = _settings(options)
    cells = _cells(chosen, [c.name for c in candidates], settings, options.workers)
    times, precision = _costs(options, candidates)
    judged = lines(cells, times, precision, settings.epoch)
    return Study(cells, times, precision, judged, settings, time.perf_counter() - start)


def _settings(options: argparse.Namespace) -> Settings:
    few = (QUICK_SEEDS, QUICK_SEEDS) if options.quick else (SEEDS, INTERVAL_SEEDS)
    seeds = few[0] if options.seeds is None else options.seeds
    most = few[1] if options.interval_seeds is None else options.interval_seeds
    if seeds < 2:
        raise ValueError(f"At least two seeds are required, got {seeds}.")
    return Settings(seeds, max(seeds, most), options.epoch)


def _cells(
    chosen: list[budgets_cases.BudgetCase], methods: list[str], settings: Settings, workers: int
) -> list[Cell]:
    found: dict[str, list[Cell]] = {}
    known = budgets_cases.all_cases()
    for case_id, cells in budgets_run.run(chosen, methods, settings, workers):
        found[case_id] = cells
        done = f"{len(found)}/{len(chosen)}"
        print(f"{done:>6} {budgets_report.described(known[case_id], cells)}", file=sys.stderr)
    return [cell for case in chosen for cell in found[case.id]]


def _costs(
    options: argparse.Namespace, candidates: list[budgets_methods.Candidate]
) -> tuple[list[Record], list[Record]]:
    if options.no_costs:
        return [], []
    judged = [candidate for candidate in candidates if candidate.role == "judged"]
    repeats = QUICK_REPEATS if options.quick else REPEATS
    times = []
    for record in budgets_time.time_study(judged, repeats):
        times.append(record)
        name = f"{record['problem']} {record['dtype']} {record['method']}"
        print(f"  time {name:48} {record['ratio']:.3f} × products", file=sys.stderr)
    return times, list(budgets_time.float32_study(judged))
