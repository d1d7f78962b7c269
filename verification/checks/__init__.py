"""Checks of an estimator in three tiers: D deterministic, P law of the probes, S sampling."""

from __future__ import annotations

import math

from specbp.testing import outcome
from specbp.testing.outcome import Check
from verification.checks import deterministic, law, sampling
from verification.checks.claims import Claim
from verification.checks.settings import Settings
from verification.subjects import Subject

CLAIMS = {"D": deterministic.CHECKS, "P": law.CHECKS}
TIERS = (*CLAIMS, "S")
UNIT = Settings()
LEFT_OUT = "nothing of the kind is claimed where probes are used jointly"


def run(subject: Subject, tiers: str = "DP", settings: Settings = UNIT) -> list[Check]:
    """All checks of some tiers that apply to a subject; an estimator that raises fails them.

    Args:
        subject: What is judged.
        tiers: Letters out of "DPS", in the order in which they are run.
        settings: Sizes, levels and seeds.

    Raises:
        ValueError: If there is no such tier.
    """
    unknown = set(tiers) - set(TIERS)
    if unknown or not tiers:
        raise ValueError(f"tiers is made of the letters {''.join(TIERS)}, got {tiers!r}.")
    found: list[Check] = []
    for tier in tiers:
        if tier == "S":
            found += sampling.run(subject, settings)
        for claim in CLAIMS.get(tier, ()):
            found += claim(subject, settings) or _left_out(subject, claim)
    return found


def _left_out(subject: Subject, claim: Claim) -> list[Check]:
    """Says of an estimator with joint probes which questions it was not asked."""
    if not subject.claims.joint:
        return []
    return [outcome.reported(claim.name, claim.text, math.nan, math.nan, LEFT_OUT)]
