"""Run the estimators on the cases: all replicates of a cell at once, every product metered."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbp import Estimate, generator_for
from specbp.probes import LAWS
from verification import budgets_cases
from verification.budgets_cases import BudgetCase, Target
from verification.budgets_methods import Candidate, Meter, Variant, label, select
from verification.budgets_stats import (
    CONFIDENCE,
    Array,
    Coverage,
    Measured,
    coverage,
    rmse_interval,
    summary,
)
from verification.store import Record

CHUNK = 2**28  # bytes that the bases of one call may take
COPIES = 4  # arrays of that size that a block method has at once


class OverspentError(RuntimeError):
    """A method used more products than it was given, or reported fewer than it used."""


@dataclass(frozen=True)
class Settings:
    """How much is run.

    Attributes:
        seeds: Replicates of every cell, the same for all methods of one probe law.
        interval_seeds: Replicates of the judged methods in the common shape: whether 95 % intervals
            cover 93 % takes more of them than an RMSE does.
        epoch: Part of every seed.
    """

    seeds: int
    interval_seeds: int
    epoch: str


@dataclass(frozen=True)
class Cell:
    """One method in one shape on one case.

    Attributes:
        case: Id of the case, with its `group` and order `n`.
        method: Name of the candidate, and its `role` and `shape`.
        errors: Estimate − truth of each replicate, (R,); NaN where it failed.
        low: Lower end of the 95 % interval of each replicate, minus the truth, (R,).
        high: Upper end, minus the truth, (R,).
        products: Metered products of one replicate, the most over all calls.
        budget: Products allowed.
        seconds: CPU time of one replicate within its batch, probes included.
    """

    case: str
    group: str
    n: int
    method: str
    role: str
    shape: str
    errors: Array
    low: Array
    high: Array
    products: float
    budget: int
    seconds: float

    @property
    def within(self) -> bool:
        """The budget was kept."""
        return self.products <= self.budget

    @property
    def coverage(self) -> Coverage | None:
        """Coverage of the intervals, None where none is claimed."""
        return coverage(self.low, self.high, 0.0)

    @property
    def rmse(self) -> Measured:
        """Root mean square error with its interval."""
        return rmse_interval(self.errors)

    @property
    def relative_width(self) -> float:
        """Median half-width of the intervals over the RMSE; NaN where none is claimed."""
        covered, error = self.coverage, self.rmse.value
        if covered is None:
            return math.nan
        if error == 0:
            return 0.0 if covered.half_width == 0 else math.inf
        return covered.half_width / error

    def record(self) -> Record:
        """Statistics as plain values."""
        covered = self.coverage
        return {
            "kind": "budget-cell",
            "id": f"{self.case}|{self.method}|{self.shape}",
            **{k: getattr(self, k) for k in ("case", "group", "n", "method", "role", "shape")},
            "products": self.products,
            "budget": self.budget,
            "within": self.within,
            "replicates": len(self.errors),
            "rmse": list(self.rmse),
            **summary(self.errors),
            "coverage": list(covered.share) if covered else None,
            "claimed": covered.claimed if covered else 0,
            "half_width_over_rmse": self.relative_width,
            "seconds": self.seconds,
        }


def run(
    chosen: Sequence[BudgetCase], methods: Sequence[str], settings: Settings, workers: int
) -> Iterator[tuple[str, list[Cell]]]:
    """Cells of every case, case by case as they are done, in processes of one thread each."""
    call = partial(run_case, methods=methods, settings=settings)
    if workers <= 1:
        for case in chosen:
            yield case.id, call(case.id)
        return
    # The largest first, so that no process is left alone with it at the end.
    order = sorted(chosen, key=lambda case: -case.n)
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        jobs = {pool.submit(call, case.id): case.id for case in order}
        for job in as_completed(jobs):
            yield jobs[job], job.result()


def run_case(case_id: str, *, methods: Sequence[str], settings: Settings) -> list[Cell]:
    """All methods in all shapes on one case."""
    case = budgets_cases.all_cases()[case_id]
    target = case.build()
    return [
        measure(case, target, candidate, variant, settings)
        for candidate in select(methods)
        if candidate.applies(case, target)
        for variant in candidate.variants(case)
    ]


def measure(
    case: BudgetCase, target: Target, candidate: Candidate, variant: Variant, settings: Settings
) -> Cell:
    """One cell.

    Raises:
        OverspentError: If the method spent more than the budget, although its products are known
            beforehand, or reports fewer products than it used.
    """
    common = candidate.role == "judged" and variant.name == label(case.same)
    many = common and not case.exact
    seeds = settings.interval_seeds if many else settings.seeds
    size = _replicates_at_once(case, candidate, variant)
    found: list[Estimate] = []
    products, start = 0.0, time.process_time()
    for first in range(0, seeds, size):
        block = range(first, min(first + size, seeds))
        estimate, used = _call(case, target, candidate, variant, block, settings.epoch)
        found.append(estimate)
        products = max(products, used / len(block))
    seconds = (time.process_time() - start) / seeds
    _check_products(case, candidate, variant, products, found)
    bounds = [estimate.interval(CONFIDENCE) for estimate in found]
    return Cell(
        case=case.id,
        group=case.group,
        n=case.n,
        method=candidate.name,
        role=candidate.role,
        shape=variant.name,
        errors=_stack(estimate.value for estimate in found) - target.truth,
        low=_stack(low for low, _ in bounds) - target.truth,
        high=_stack(high for _, high in bounds) - target.truth,
        products=products,
        budget=case.budget,
        seconds=seconds,
    )


def probes(
    case: BudgetCase, candidate: Candidate, variant: Variant, seeds: range, epoch: str
) -> Tensor:
    """Probes (R, n, m): the same for all methods of one law and for any number of replicates."""
    sampler, m = LAWS[candidate.law], variant.probes
    return torch.stack(
        [
            sampler(
                case.n,
                m,
                generator=generator_for("budgets", epoch, case.id, candidate.law, m, seed),
            )
            for seed in seeds
        ]
    )


def _call(
    case: BudgetCase,
    target: Target,
    candidate: Candidate,
    variant: Variant,
    seeds: range,
    epoch: str,
) -> tuple[Estimate, float]:
    """The estimates of some replicates in one call, and its products."""
    meter = Meter(target.operators[candidate.on])
    call = partial(candidate.estimate, meter, **variant.config, **candidate.knows(target))
    if candidate.draws:
        estimate = call(generator=generator_for("budgets", epoch, case.id, "drawn", seeds[0]))
    else:
        X = probes(case, candidate, variant, seeds, epoch)
        estimate = call(X if candidate.batched else X[0])
    return estimate, meter.products(candidate.on)


def _check_products(
    case: BudgetCase,
    candidate: Candidate,
    variant: Variant,
    products: float,
    found: Sequence[Estimate],
) -> None:
    where = f"{candidate.name} {variant.name} on {case.id}"
    if candidate.bounded and products > case.budget:
        raise OverspentError(f"{where} used {products:g} products of {case.budget}.")
    reported = max(estimate.num_matvecs for estimate in found)
    if not math.isclose(reported, products, rel_tol=1e-9):
        raise OverspentError(f"{where} reports {reported:g} products and used {products:g}.")


def _replicates_at_once(case: BudgetCase, candidate: Candidate, variant: Variant) -> int:
    if not candidate.batched:
        return 1
    return max(1, CHUNK // (COPIES * 8 * case.n * max(case.budget, variant.probes)))


def _stack(values: Any) -> Array:
    return np.concatenate([np.atleast_1d(value.double().numpy()) for value in values])
