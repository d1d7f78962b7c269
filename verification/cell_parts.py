"""What the cells of all kinds of methods share: timed calls, statuses, verdicts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict

from torch import Tensor

from specbp import Estimate, Status
from specbp.estimate import FAILURES
from specbp.testing import outcome
from specbp.testing.outcome import Check
from verification.store import Record
from verification.units import Unit


def in_blocks(unit: Unit, probes: Tensor) -> tuple[float, list[Estimate]]:
    """Run all replicates, as many at once as keep a Krylov basis within the cache."""
    replicates = max(1, 2**17 // unit.case.n // probes.shape[-1])
    start = time.perf_counter()
    blocks = [unit.estimate(unit.view.operator, block) for block in probes.split(replicates)]
    return time.perf_counter() - start, blocks


def first_alone(unit: Unit, probes: Tensor, m: int) -> tuple[Estimate, float]:
    """The first replicate alone, and its time, the better of two where that is cheap."""
    seconds: list[float] = []
    while len(seconds) < 2 and sum(seconds) < 0.05:
        start = time.perf_counter()
        found = unit.estimate(unit.view.operator, probes[0, :, :m])
        seconds.append(time.perf_counter() - start)
    return found, min(seconds)


def status_check(unit: Unit, status: Tensor) -> Check:
    """Deterministic: no replicate failed, and none found its matrix singular."""
    failed = float(((status & int(FAILURES | Status.SINGULAR)) != 0).double().mean())
    return judged(unit, "status", "no replicate fails", failed, 0.0, "of the replicates")


def judged(
    unit: Unit, name: str, claim: str, error: float, limit: float, unit_of_error: str = "nats"
) -> Check:
    """A deterministic check, or its report where a failure is a documented limitation."""
    if unit.documented:
        return outcome.reported(name, claim, error, limit, unit.documented)
    return outcome.within(name, claim, error, limit, unit_of_error)


def status_counts(status: Tensor) -> dict[str, int]:
    """How often each combination of flags occurs, by its name."""
    names = Counter(_name(Status(int(s))) for s in status.flatten())
    return dict(sorted(names.items()))


def _name(flags: Status) -> str:
    return "|".join(flag.name or "" for flag in Status if flag and flag & flags) or "OK"


def verdict_of(unit: Unit, found: list[Check]) -> Record:
    """The checks of a cell as records, and the worst of their verdicts."""
    gated = not unit.documented
    return {"checks": [asdict(c) for c in found], "verdict": outcome.worst(found, gated=gated)}
