"""What a check found: one record with three possible verdicts, and how records are made.

A check states its statistic, the reference, the p-value (or e-value) and level where chance plays
a part, the sample size, and the smallest effect it detects with probability 0.95. A pass that could
not have seen an effect of the size of its margin is INCONCLUSIVE, never green.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy import stats

PASS, FAIL, INCONCLUSIVE, REPORTED = "PASS", "FAIL", "INCONCLUSIVE", "REPORTED"
POWER = 0.95


@dataclass(frozen=True)
class Check:
    """Outcome of one check; fields of chance are None where nothing is random.

    Attributes:
        name: Short name, such as "D1 probe".
        claim: The sentence that was put to the test.
        verdict: PASS, FAIL, INCONCLUSIVE, or REPORTED for what is shown and not judged.
        statistic: What was measured.
        reference: What it was compared with.
        message: Everything in one line, for people.
        p: p-value.
        e: e-value, of a sequential test.
        alpha: Level.
        detectable: Smallest effect seen with probability `POWER`, in the unit of `margin`.
        margin: Smallest effect that matters; of a deterministic check, its limit.
        size: Independent values that went in.
        z: Signed normal score of the statistic, for tests over many cells.
    """

    name: str
    claim: str
    verdict: str
    statistic: float
    reference: float
    message: str
    p: float | None = None
    e: float | None = None
    alpha: float | None = None
    detectable: float | None = None
    margin: float | None = None
    size: int | None = None
    z: float | None = None

    def __str__(self) -> str:
        return f"{self.verdict} {self.name}: {self.claim}: {self.message}"


def worst(checks: Iterable[Check], *, gated: bool = True) -> str:
    """The worst verdict, or REPORTED for a method that is shown and not judged."""
    if not gated:
        return REPORTED
    verdicts = {check.verdict for check in checks}
    return next((v for v in (FAIL, INCONCLUSIVE, PASS) if v in verdicts), REPORTED)


def within(name: str, claim: str, error: float, limit: float, unit: str = "nats") -> Check:
    """Deterministic: error ≤ limit; NaN fails."""
    verdict = PASS if error <= limit else FAIL
    message = f"largest error {error:.3g} {unit}, limit {limit:.3g}"
    return Check(name, claim, verdict, float(error), 0.0, message, margin=limit)


def exactly(name: str, claim: str, holds: bool, message: str) -> Check:
    """Deterministic: something holds or it does not."""
    return Check(name, claim, PASS if holds else FAIL, float(not holds), 0.0, message)


def reported(name: str, claim: str, error: float, limit: float, reason: str) -> Check:
    """A documented limitation: measured, shown, not judged."""
    message = f"measured {error:.3g}, not judged: {reason}"
    return Check(name, claim, REPORTED, float(error), 0.0, message, margin=limit)


def broken(name: str, claim: str, reason: str) -> Check:
    """The check could not be carried out because of what it judges, which is a failure of that."""
    return Check(name, claim, FAIL, math.nan, math.nan, reason)


@dataclass(frozen=True)
class Level:
    """How a random check is judged: level, margin, and the rounding of one value in nats."""

    alpha: float
    margin: float
    rounding: float = 0.0


def judged(
    name: str,
    claim: str,
    statistic: float,
    reference: float,
    *,
    p: float,
    detectable: float,
    level: Level,
    size: int,
    unit: str,
) -> Check:
    """A random check of fixed size: FAIL below its level, PASS only with power at the margin."""
    verdict = FAIL if not p > level.alpha else PASS if detectable <= level.margin else INCONCLUSIVE
    message = (
        f"{statistic:.4g} against {reference:g} ({unit}), p = {p:.3g}, level {level.alpha:.2g}, "
        f"{size} values; detects {detectable:.3g} with probability {POWER}, margin {level.margin:g}"
    )
    return Check(
        name,
        claim,
        verdict,
        float(statistic),
        float(reference),
        message,
        p=float(p),
        alpha=level.alpha,
        detectable=float(detectable),
        margin=level.margin,
        size=size,
        z=math.copysign(normal_score(p), statistic - reference),
    )


def normal_score(p: float) -> float:
    """|z| of a two-sided p-value; finite for p = 0, where scores end."""
    return float(stats.norm.isf(max(p, 1e-300) / 2))
