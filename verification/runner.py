"""Run a tier over a local process pool, cell by cell into the store, with progress."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from specbp.methods import METHODS
from verification import cells, units
from verification.cases import DTYPES, Case, Problem, of_tier
from verification.store import Record, Store

EPOCH = "2026-11"  # part of every seed; moved by hand, so that a new draw is a reviewed change
SUITE_ALPHA = 1e-3
CELLS_SHARE = 1 / 3  # of the suite's level: single cells; the rest is for tests over all of them


@dataclass(frozen=True)
class Task:
    """One case in one precision: what one process does at a time."""

    case: Case
    dtype: str

    @property
    def key(self) -> str:
        """Id of the record that says the task is done."""
        return f"{self.case.id}|{self.dtype}"


def tasks(tier: str, only: str = "") -> list[Task]:
    """All tasks of a tier whose case id contains `only`, the longest first."""
    chosen = [case for case in of_tier(tier) if only in case.id]
    if not chosen:
        raise ValueError(f"No case of tier {tier} has {only!r} in its id; see `list`.")
    both = itertools.product(chosen, DTYPES)
    return sorted((Task(c, d) for c, d in both), key=lambda t: -_weight(t.case))


def check_level(tier: str) -> float:
    """Level of each random check: the share of single cells, split over all checks of the tier."""
    each = sum(units.num_random_checks(method) for method in METHODS.values())
    return CELLS_SHARE * SUITE_ALPHA / (each * len(of_tier(tier)) * len(DTYPES))


def families_level() -> float:
    """Level of all tests over many cells together."""
    return (1 - CELLS_SHARE) * SUITE_ALPHA


def run(
    tier: str,
    store: Path,
    *,
    only: str = "",
    workers: int | None = None,
    epoch: str = EPOCH,
    progress: Callable[[int, int, str], None] | None = None,
) -> float:
    """Run what the store lacks, and return the wall seconds spent.

    Args:
        tier: "smoke", "standard" or "full".
        store: Path of the SQLite file; cells found there are not run again.
        only: Part of the case ids to run.
        workers: Processes; the number of cores by default.
        epoch: Part of every seed.
        progress: Called with the number of tasks done, of all, and what was done last.

    Raises:
        ValueError: If the tier is unknown or no case matches.
    """
    start = time.perf_counter()
    finished = Store(store).ids("task")
    wanted = tasks(tier, only)
    todo = [task for task in wanted if task.key not in finished]
    done = len(wanted) - len(todo)
    progress = progress or _silent
    progress(done, len(wanted), "")
    alpha = check_level(tier)
    for task in _completed(todo, store, alpha, epoch, workers or os.cpu_count() or 1):
        done += 1
        progress(done, len(wanted), task.key)
    return time.perf_counter() - start


def _completed(
    todo: list[Task], store: Path, alpha: float, epoch: str, workers: int
) -> Iterator[Task]:
    if workers == 1 or len(todo) < 2:
        for task in todo:
            run_task(task, store, alpha, epoch)
            yield task
        return
    # Forked workers would inherit torch's thread pool in an undefined state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context) as pool:
        pending = {
            pool.submit(_run_by_id, t.case.id, t.dtype, store, alpha, epoch): t for t in todo
        }
        try:
            for future in as_completed(pending):
                future.result()
                yield pending[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_by_id(case_id: str, dtype: str, store: Path, alpha: float, epoch: str) -> None:
    # Ids travel between processes, not cases: those hold closures.
    from verification.cases import all_cases

    run_task(Task(all_cases()[case_id], dtype), store, alpha, epoch)


def run_task(task: Task, path: Path, alpha: float, epoch: str) -> None:
    """Run the cells of one task that the store lacks, one transaction for each."""
    # One process for each core beats threads on small products, in torch as in numpy.
    torch.set_num_threads(1)
    with threadpool_limits(1):
        _run_task(task, Store(path), alpha, epoch)


def _run_task(task: Task, store: Store, alpha: float, epoch: str) -> None:
    problem = task.case.build(DTYPES[task.dtype])
    for record in _certificates(task, problem):
        store.put(record)
    present = store.ids("cell")
    oracles: dict[tuple[str, str], units.Oracle] = {}
    for method in METHODS.values():
        view = problem.views.get(method.on)
        if view is None:
            continue
        unit = units.Unit(task.case, view, method, task.dtype, alpha, epoch)
        if present.issuperset(units.cell_ids(unit)):
            continue
        # Joint estimators draw their own probes: of the oracle they only want what it knows of A.
        law = "rademacher" if method.claims.joint else method.law
        if (method.on, law) not in oracles:
            probes = units.draw(task.case, DTYPES[task.dtype], epoch, law)
            oracles[method.on, law] = units.Oracle(view, probes, law)
        for record in cells.run(unit, oracles[method.on, law]):
            store.put(record)
    store.put({"kind": "task", "id": task.key})


def _certificates(task: Task, problem: Problem) -> Iterator[Record]:
    for on, view in problem.views.items():
        if on == "dense A":
            continue
        yield {
            "kind": "certificate",
            "id": f"{task.case.id}|{on}|{task.dtype}",
            "case": task.case.id,
            "family": task.case.family,
            "title": task.case.title,
            "n": task.case.n,
            "cond": view.truth.cond,
            "truth": view.truth.value,
            "u_truth": view.truth.u_truth,
            "method": view.truth.method,
            "methods": dict(view.truth.methods),
            "dtype": task.dtype,
            "operator": on,
        }


def _weight(case: Case) -> float:
    networks = 50 if case.family == "jacobian" else 1
    return networks * case.n * case.num_probes


def _silent(_done: int, _total: int, _what: str) -> None:
    pass
