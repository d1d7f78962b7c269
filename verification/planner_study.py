"""`method="auto"` against the best method in hindsight: time to the asked error, and errors met.

The best in hindsight is the fastest of the exact answer and a grid of estimators, shapes whose
measured RMSE is half the asked error at most. Times are CPU times of one thread, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from specbp import generator_for
from specbp.estimate import Status
from specbp.planner import logdet
from verification import planner_report, provenance
from verification.planner_cases import PROBES, STEPS, Case, Implicit, Problem, all_cases, draw
from verification.provenance import ROOT
from verification.store import Record

ASKS = (0.1, 0.03, 0.01, 0.001)
CONFIDENCE = 0.95
SEEDS, REPLICATES = 8, 8  # of auto's error, and of the RMSE of each shape
BUDGET, BUDGET_SEEDS = 200, 20
SLOW = 0.1  # seconds beyond which times are medians of fewer runs
SMALL_BUDGETS = 600  # orders up to which budgets of a quarter of them are tried
EXACT = "exact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m verification planner`."""
    out = ROOT / "reports" / "planner"
    parser.add_argument("--quick", action="store_true", help="few cases, few seeds")
    epoch = provenance.judging_epoch()
    parser.add_argument(
        "--epoch", default=epoch, help="part of every seed (default: new with every change of code)"
    )
    parser.add_argument("--case", default="", help="only cases whose id contains this")
    parser.add_argument("--out", type=Path, default=out, help="folder of the table and the records")


def main(options: argparse.Namespace) -> int:
    """Run the study, print and write it; exit status 1 if a line of acceptance is not met."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = list(study(options.epoch, options.case, quick=options.quick))
    finally:
        torch.set_num_threads(threads)
    return planner_report.write(rows, options.out)


def study(epoch: str, only: str = "", *, quick: bool = False) -> Iterator[Record]:
    """One record for each case and asked error, then those of small budgets."""
    cases = [case for case in all_cases(quick=quick) if only in case.id]
    for case in tqdm(cases, unit="case", disable=None):
        yield from compare(case, epoch, seeds=SEEDS // 2 if quick else SEEDS)
    for case in cases:
        if case.id.endswith("products") and case.n <= SMALL_BUDGETS:
            yield short_of_budget(case, epoch, seeds=SEEDS)
    if not quick and not only:
        yield planned_shape(epoch)


def compare(case: Case, epoch: str, seeds: int) -> Iterator[Record]:
    """auto at every asked error against the best of what the grid holds."""
    problem = case.build()
    exact = cpu_seconds({EXACT: problem.exact})[EXACT]
    shapes = list(_reachable(problem, case, epoch, exact))
    for rtol in ASKS:
        enough = [s for s in shapes if 2 * s["rmse"] <= rtol * problem.size]
        best = min(enough, key=_seconds, default=None)
        yield _judged(case, problem, rtol, best, epoch, seeds)


def _reachable(problem: Problem, case: Case, epoch: str, exact: float) -> Iterator[Record]:
    """Shapes faster than the exact answer, with their time and RMSE, the fastest first."""
    found: list[Record] = [
        {"method": name, "probes": m, "steps": k, "seconds": seconds}
        for name in problem.methods
        for k in STEPS
        for m, seconds in _faster(problem, name, k, exact)
    ]
    for shape in sorted(found, key=_seconds):
        X = draw(problem, shape["probes"], REPLICATES, "grid", epoch, case.id)
        values = problem.methods[shape["method"]](
            problem.operator, X, num_steps=shape["steps"]
        ).value
        rmse = float((values - problem.truth).square().mean().sqrt())
        yield shape | {"rmse": rmse}
        if 2 * rmse <= min(ASKS) * problem.size:
            return  # what takes longer is not needed


def _seconds(shape: Record) -> float:
    return float(shape["seconds"])


def _faster(problem: Problem, name: str, k: int, exact: float) -> Iterator[tuple[int, float]]:
    n = problem.operator.shape[-1]
    for m in PROBES:
        if m > n or k > n:
            return
        X = draw(problem, m, 1, "time")[0]
        run = partial(problem.methods[name], problem.operator, X, num_steps=k)
        seconds = cpu_seconds({name: run})[name]
        if seconds >= exact:
            return  # more probes take longer still
        yield m, seconds


def _judged(
    case: Case, problem: Problem, rtol: float, best: Record | None, epoch: str, seeds: int
) -> Record:
    runs: dict[str, Callable[[int], Any]] = {
        "auto": lambda i: _auto(problem, rtol, "time", epoch, case.id, i),
        EXACT: lambda _: problem.exact(),
    }
    if best is not None:
        X = draw(problem, best["probes"], 1, "time")[0]
        method = problem.methods[best["method"]]
        runs["best"] = lambda _: method(problem.operator, X, num_steps=best["steps"])
    seconds = cpu_seconds_of(runs)
    fastest = min(seconds.get("best", float("inf")), seconds[EXACT])
    found = _errors(problem, rtol, case, epoch, seeds if seconds["auto"] < 2 * SLOW else 2)
    shape = f"{best['method']} {best['probes']}×{best['steps']}" if best else ""
    return {
        "kind": "planner",
        "id": f"{case.id}|{rtol:g}",
        "case": case.id,
        "n": case.n,
        "rtol": rtol,
        "best": shape if fastest < seconds[EXACT] else EXACT,
        "seconds": seconds["auto"],
        "seconds_best": fastest,
        "seconds_exact": seconds[EXACT],
        "ratio": seconds["auto"] / fastest,
        **found,
    }


def _errors(problem: Problem, rtol: float, case: Case, epoch: str, seeds: int) -> Record:
    """How often the error was reached; an exact answer without probes is the same every time."""
    allowed, met, said, estimates = rtol * problem.size, 0, 0, []
    for seed in range(seeds):
        found = _auto(problem, rtol, "error", epoch, case.id, seed)
        estimates.append(found)
        met += abs(float(found.value) - problem.truth) <= max(allowed, 1e-6)
        said += bool(found.plan.met)
    last = estimates[-1].plan
    shape = f"{last.method} {last.shapes[-1]}" if float(last.error.max()) > 0 else last.method
    return {
        "chosen": shape,
        "met": int(met),
        "said": said,
        "seeds": seeds,
        "exact": not last.shapes,
    }


def _auto(problem: Problem, rtol: float, *key: object) -> Any:
    return logdet(
        problem.operator,
        rtol=rtol,
        confidence=CONFIDENCE,
        generator=generator_for("planner", rtol, *key),
    )


def short_of_budget(case: Case, epoch: str, seeds: int) -> Record:
    """Too few products for the error asked for: missed errors that the plan does not admit."""
    problem = case.build()
    unsaid = beyond = 0
    budget, rtol = case.n // 4, ASKS[-1]
    for seed in range(seeds):
        generator = generator_for("planner", "budget", epoch, case.id, seed)
        found = logdet(problem.operator, rtol=rtol, budget=budget, generator=generator)
        beyond += found.num_matvecs > budget
        wrong = abs(float(found.value) - problem.truth) > rtol * problem.size
        flagged = bool(int(found.status) & Status.TOLERANCE_MISSED)
        unsaid += wrong and (bool(found.plan.met) or not flagged)
    return {
        "kind": "planner-budget",
        "id": f"{case.id}|budget {budget}",
        "unsaid": int(unsaid),
        "beyond": int(beyond),
        "seeds": seeds,
    }


def planned_shape(epoch: str) -> Record:
    """RMSE on log-uniform n = 1000, cond 1e4, with 200 products in the planner's own shape."""
    (case,) = (c for c in all_cases() if c.id == "spd/log-uniform-c1e4/n1000/products")
    problem = case.build()
    assert isinstance(problem.operator, Implicit)
    errors, spent = [], 0.0
    for seed in range(BUDGET_SEEDS):
        generator = generator_for("planner", "shape", epoch, seed)
        found = logdet(problem.operator, rtol=1e-3, budget=BUDGET, generator=generator)
        errors.append(float(found.value) - problem.truth)
        spent = max(spent, found.num_matvecs)
    rmse = statistics.fmean(e * e for e in errors) ** 0.5
    return {"kind": "planner-shape", "id": f"{case.id}|shape", "rmse": rmse, "products": spent}


def cpu_seconds(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median CPU seconds of each."""
    return cpu_seconds_of({name: partial(_ignoring, run) for name, run in runs.items()})


def _ignoring(run: Callable[[], Any], _: int) -> Any:
    return run()


def cpu_seconds_of(runs: dict[str, Callable[[int], Any]]) -> dict[str, float]:
    """Median CPU seconds of each, run in turn so that slow moments hit all alike."""
    first = {name: _timed(run, 0) for name, run in runs.items()}  # warms up
    repeats = 2 if max(first.values()) > SLOW else 5
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats):
        for name, run in runs.items():
            taken[name].append(_timed(run, i + 1))
    return {name: statistics.median(values) for name, values in taken.items()}


def _timed(run: Callable[[int], Any], i: int) -> float:
    start = time.process_time()
    run(i)
    return time.process_time() - start


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(_parser)
    raise SystemExit(main(_parser.parse_args()))
