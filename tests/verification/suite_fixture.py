"""Synthetic records on the suite itself: made up, like those of `report_fixture`."""

from __future__ import annotations

from typing import Any

import numpy as np

Record = dict[str, Any]


def suite_records() -> list[Record]:
    """Faults, controls, an A/A record, a mutation score and a family, all as they should be."""
    return [
        fault("f1", kills=["P1", "S2"], by_S=True),
        fault("f2", kills=["D1", "D2"], by_S=False),
        {**fault("right", kills=[], by_S=False), "role": "control"},
        control(),
        mutation(),
        family(),
    ]


def fault(name: str, *, kills: list[str], by_S: bool) -> Record:
    return {
        "kind": "fault",
        "role": "fault",
        "id": name,
        "title": f"what is wrong with {name}",
        "source": "made up",
        "control": "chebyshev",
        "kills": kills,
        "verdicts": {"D6a": "marginal", "D9": "", **dict.fromkeys(kills, "clear")},
        "expected": kills,
        "missed": [],
        "killed_by_DP": any(code[0] in "DP" for code in kills),
        "killed_by_S": by_S,
    }


def control(*, rejected: int = 0, consistent: bool = True) -> Record:
    rng = np.random.default_rng(0)
    return {
        "kind": "control",
        "id": "control",
        "epochs": 200,
        "rejected": rejected,
        "nominal": 0.05,
        "commit": "0123456789abcdef",
        "clean": True,
        "interval": [0.0, 0.018],
        "p_values": rng.uniform(size=400).tolist(),
        "scores": rng.standard_normal(400).tolist(),
        "consistent": consistent,
    }


def mutation(*, score: float = 0.97) -> Record:
    counts = {"mutants": 100, "killed": 94, "timeout": 1, "equivalent": 2, "survived": 3}
    part = {**counts, "score": score}
    tool = "a mutation tool"
    return {"kind": "mutation", "id": "m", "tool": tool, "modules": {"trace": part}, "total": part}


def family() -> Record:
    return {
        "kind": "family",
        "id": "chebyshev|float64|mean",
        "method": "chebyshev",
        "dtype": "float64",
        "statistic": "mean",
        "cells": 40,
        "verdict": "PASS",
        "holm": 0.4,
        "stouffer": 0.5,
        "spread": 0.6,
        "alpha": 1e-5,
        "shift": 0.9,
        "worst": "spd/geometric-c1e4/n32",
    }
