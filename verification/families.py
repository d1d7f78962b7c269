"""Tests over the whole grid: what many cells of a method see together and none of them alone.

Cells of different cases have probes of their own, so their scores are independent. Those of one
case are not: each statistic is taken at one number of probes, each precision for itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from specbp.testing import multiplicity
from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, normal_score
from verification.store import Record

FEW, VISIBLE = 8, 1.0  # fewer cells must see a common shift of one standard error of a cell
PROBES = {"mean": 1, "variance": 1, "se": 4}
JOINT = 4  # probes at which a mean is taken where they are used jointly: one may not be enough
Key = tuple[str, str, str]


def judge(cells: Iterable[Record], alpha: float) -> list[Record]:
    """One record for each method, precision and statistic, all at the level alpha together."""
    grouped = _grouped(cells)
    return [_family(key, found, alpha / len(grouped)) for key, found in grouped.items()]


def _grouped(cells: Iterable[Record]) -> dict[Key, list[tuple[Record, Record]]]:
    groups: dict[Key, list[tuple[Record, Record]]] = defaultdict(list)
    for cell in cells:
        for check in cell["checks"]:
            random = check.get("z") is not None or check.get("p") is not None
            taken = JOINT if cell.get("joint") else PROBES.get(check["name"])
            if random and taken == cell["probes"]:
                groups[cell["method"], cell["dtype"], check["name"]].append((cell, check))
    return dict(groups)


def _family(key: Key, found: list[tuple[Record, Record]], alpha: float) -> Record:
    z, p = [_score(check) for _, check in found], [_p(check) for _, check in found]
    family = multiplicity.combined(z, alpha, p=p)
    method, dtype, statistic = key
    return {
        "kind": "family",
        "id": "|".join(key),
        "method": method,
        "dtype": dtype,
        "statistic": statistic,
        "cells": len(found),
        "verdict": FAIL if family.rejected else INCONCLUSIVE if _blind(len(found), alpha) else PASS,
        "holm": family.holm,
        "stouffer": family.stouffer,
        "spread": family.spread,
        "alpha": alpha,
        "shift": multiplicity.detectable_shift(len(found), alpha),
        "worst": found[family.worst][0]["case"],
    }


def _score(check: Record) -> float:
    """The normal score; one that is missing or no number is as far out as scores go."""
    z = check.get("z")
    return float(z) if z is not None and math.isfinite(z) else normal_score(0.0)


def _p(check: Record) -> float:
    numbers = [v for v in (check.get("p"), check.get("z")) if v is not None and math.isfinite(v)]
    return float(numbers[0]) if len(numbers) == 2 else 0.0


def _blind(cells: int, alpha: float) -> bool:
    """Whether a family is too small to see what it is there for, a small common shift."""
    return cells < FEW and multiplicity.detectable_shift(cells, alpha) > VISIBLE
