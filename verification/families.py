"""Tests over the whole grid: what many cells of a method see together and none of them alone.

Cells of different cases have probes of their own, so their scores are independent. Those of one
case are not: each statistic is taken at one number of probes, each precision for itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from specbp.testing import multiplicity
from specbp.testing.outcome import FAIL, PASS
from verification.store import Record

PROBES = {"mean": 1, "variance": 1, "se": 4}
Key = tuple[str, str, str]


def judge(cells: Iterable[Record], alpha: float) -> list[Record]:
    """One record for each method, precision and statistic, all at the level alpha together."""
    grouped = _grouped(cells)
    return [_family(key, found, alpha / len(grouped)) for key, found in grouped.items()]


def _grouped(cells: Iterable[Record]) -> dict[Key, list[tuple[Record, Record]]]:
    groups: dict[Key, list[tuple[Record, Record]]] = defaultdict(list)
    for cell in cells:
        for check in cell["checks"]:
            random = check.get("z") is not None
            if random and PROBES.get(check["name"]) == cell["probes"]:
                groups[cell["method"], cell["dtype"], check["name"]].append((cell, check))
    return dict(groups)


def _family(key: Key, found: list[tuple[Record, Record]], alpha: float) -> Record:
    z, p = ([check[name] for _, check in found] for name in ("z", "p"))
    family = multiplicity.combined(z, alpha, p=p)
    method, dtype, statistic = key
    return {
        "kind": "family",
        "id": "|".join(key),
        "method": method,
        "dtype": dtype,
        "statistic": statistic,
        "cells": len(found),
        "verdict": FAIL if family.rejected else PASS,
        "holm": family.holm,
        "stouffer": family.stouffer,
        "spread": family.spread,
        "alpha": alpha,
        "shift": multiplicity.detectable_shift(len(found), alpha),
        "worst": found[family.worst][0]["case"],
    }
