"""Tier D: what needs no sampling, since the estimate is a known function of its probes."""

from __future__ import annotations

from verification.checks import aggregation, exactness, failure, gradients, metamorphic
from verification.checks.claims import Claim

CHECKS: tuple[Claim, ...] = (
    *exactness.CHECKS,
    *metamorphic.CHECKS,
    *gradients.CHECKS,
    *aggregation.CHECKS,
    *failure.CHECKS,
)
