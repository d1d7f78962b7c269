"""The gate: judge estimators, each within a time limit, and say what was found.

All randomness comes from seeds that the epoch fixes, so the same code has the same verdict on every
run; right code fails with probability `SUITE_ALPHA` at most over the choice of the epoch.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from specbp.methods import METHODS
from specbp.probes import LAWS
from specbp.testing.outcome import FAIL, INCONCLUSIVE
from verification import gate_report
from verification.checks.settings import TIERS
from verification.gate_pool import Judged, Pool, WorkerError
from verification.resolve import (
    ESTIMANDS,
    EXPECTATIONS,
    PREFIX,
    RATCHET,
    Request,
    check,
    settings_from,
)
from verification.runner import EPOCH, SUITE_ALPHA

TIME_LIMITS = {"unit": 120.0, "pull-request": 120.0, "nightly": 1800.0}  # s for one estimator
RANDOM_CHECKS = 16  # of one estimator, at most: each gets an equal share of the suite's alpha


@dataclass(frozen=True)
class GateResult:
    """What was found about all estimators, and under which conditions.

    Attributes:
        subjects: In the order in which they were asked for.
        tier: "unit", "pull-request" or "nightly".
        epoch: Part of every seed.
        seconds: Wall seconds, the start of the processes included.
        workers: Processes.
        suite_alpha: False-alarm rate of the whole suite.
    """

    subjects: tuple[Judged, ...]
    tier: str
    epoch: str
    seconds: float
    workers: int
    suite_alpha: float = SUITE_ALPHA

    @property
    def spent(self) -> float:
        """Sum of the levels of the random checks made: within `suite_alpha`."""
        return sum(check.alpha or 0.0 for subject in self.subjects for check in subject.checks)

    def count(self, verdict: str) -> int:
        """Number of estimators with a verdict."""
        return sum(subject.verdict == verdict for subject in self.subjects)

    def status(self, *, strict: bool = False) -> int:
        """Exit status: 0, or 1 if there is a FAIL, or with `strict` an INCONCLUSIVE."""
        return int(bool(self.count(FAIL)) or (strict and bool(self.count(INCONCLUSIVE))))


def default_requests() -> list[Request]:
    """All gated rows of the methods table, and the figures recorded for this platform."""
    rows = [Request(PREFIX + name) for name, row in METHODS.items() if row.claims.gated]
    return [*rows, Request(RATCHET)]


def run_gate(
    requests: Sequence[Request] = (),
    *,
    tier: str = "pull-request",
    time_limit: float | None = None,
    workers: int | None = None,
    epoch: str = EPOCH,
    progress: Callable[[int, int, str], None] | None = None,
) -> GateResult:
    """Judge estimators, by default all gated rows of the methods table.

    Args:
        requests: What to judge.
        tier: "unit", "pull-request" or "nightly".
        time_limit: Seconds for one estimator, by default as in `TIME_LIMITS`; one without result by
            then is a FAIL.
        workers: Processes; the number of cores by default.
        epoch: Part of every seed.
        progress: Called with the number of estimators done, of all, and what was done last.

    Raises:
        ResolveError: If nothing can be judged under one of the names.
        ValueError: If the tier is unknown, or a number is out of its range.
        WorkerError: If no process can be started.
    """
    start = time.perf_counter()
    requests = list(requests) or default_requests()
    if tier not in TIERS:
        raise ValueError(f"tier is one of {', '.join(TIERS)}, got {tier!r}.")
    time_limit = TIME_LIMITS[tier] if time_limit is None else time_limit
    _refuse(requests, time_limit, workers)
    # An equal share for every random check of every estimator: the suite's rate is their sum.
    alpha = SUITE_ALPHA / (RANDOM_CHECKS * len(requests))
    settings = replace(TIERS[tier], epoch=epoch, alpha=alpha)
    count = min(workers or os.cpu_count() or 1, len(requests))
    found: dict[int, Judged] = {}
    for index, judged in Pool(requests, tier, settings, time_limit).results(count):
        found[index] = judged
        if progress:
            progress(len(found), len(requests), judged.name)
    subjects = tuple(found[i] for i in range(len(requests)))
    return GateResult(subjects, tier, epoch, time.perf_counter() - start, count)


def _refuse(requests: Sequence[Request], time_limit: float, workers: int | None) -> None:
    if not 0 < time_limit < float("inf"):
        raise ValueError(f"The time limit is a positive number of seconds, got {time_limit}.")
    if workers is not None and workers < 1:
        raise ValueError(f"At least one worker is required, got {workers}.")
    for request in requests:
        check(request)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m verification gate`."""
    add = parser.add_argument
    add("--tier", choices=TIERS, default="pull-request", help="default: pull-request")
    add(
        "--estimator",
        action="append",
        default=[],
        metavar="NAME",
        help="pkg.mod:name or method:NAME; repeatable (default: all gated methods)",
    )
    add("--estimand", choices=ESTIMANDS, help="what a function estimates")
    add("--law", choices=LAWS, help="law of the probes (default: rademacher, or recognised)")
    add("--expects", choices=EXPECTATIONS, help="what a function of probes is unbiased for")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="argument of the function")
    add("--time-limit", type=float, metavar="S", help="seconds for one estimator")
    add("--workers", type=int, help="processes (default: one for each core)")
    add("--epoch", default=EPOCH, help="part of every seed")
    add("--junit", type=Path, metavar="FILE", help="write JUnit XML")
    add("--markdown", type=Path, metavar="FILE", help="write a summary in Markdown")
    add("--json", type=Path, metavar="FILE", help="write every check as JSON")
    add("--strict", action="store_true", help="an INCONCLUSIVE fails too")


def main(options: argparse.Namespace) -> int:
    """Run the gate; the exit status is 0, 1 if something failed, 2 for a usage error."""
    try:
        gate_report.check_targets(options.junit, options.markdown, options.json)
        result = _run(options)
    except (ValueError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(gate_report.text(result))
    gate_report.write(result, options.junit, options.markdown, options.json)
    return result.status(strict=options.strict)


def _run(options: argparse.Namespace) -> GateResult:
    config = settings_from(options.set)
    requests = [
        Request(name, options.estimand, options.law, options.expects, config)
        for name in options.estimator
    ]
    with tqdm(unit="estimator", disable=None, leave=False) as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description_str(f"{what:24.24}")

        return run_gate(
            requests,
            tier=options.tier,
            time_limit=options.time_limit,
            workers=options.workers,
            epoch=options.epoch,
            progress=progress,
        )
