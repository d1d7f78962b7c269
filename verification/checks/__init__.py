"""Checks of an estimator in three tiers: D deterministic, P law of the probes, S sampling."""

from __future__ import annotations

from specbp.testing.outcome import Check
from verification.checks import deterministic, law, sampling
from verification.checks.settings import Settings
from verification.subjects import Subject

CLAIMS = {"D": deterministic.CHECKS, "P": law.CHECKS}
TIERS = (*CLAIMS, "S")
UNIT = Settings()


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
            found += claim(subject, settings)
    return found
