"""What the experiment on noisy decoders is judged by, all from its records."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy import stats

from verification.store import Record

LEVEL = 1e-3  # false-alarm rate of all comparisons with standard errors together
ROUNDING = 1e-9  # nats between the grid and the closed form
ORDERS = (1.5, 2.5)  # of |grid − limit| in σ, for injective maps: 2 in theory
FOLD = "fold 2→3"


def chosen(records: Iterable[Record], kind: str, **keys: object) -> list[Record]:
    """Records of a kind with these entries."""
    return [r for r in records if r["kind"] == kind and all(r[k] == v for k, v in keys.items())]


def models(records: list[Record]) -> list[str]:
    """Names of the models, in order."""
    return list(dict.fromkeys(r["model"] for r in chosen(records, "formula")))


def judge(records: list[Record], chains: int) -> Record:
    """Whether annealing, bounds, grid, closed form and limit agree where two of them are known.

    Deviations in standard errors of `chains` chains are judged by Student's t with chains − 1
    degrees of freedom, at `LEVEL` over all of them.
    """
    limits = chosen(records, "limit")
    closed = [abs(r["closed"] - r["grid"]) for r in limits if r["closed"] is not None]
    found = scores(records)
    count = sum(map(len, found.values()))
    limit = float(stats.t.isf(LEVEL / (2 * count), chains - 1))
    largest = {name: float(max(values)) for name, values in found.items()}
    orders = {m: order(records, m) for m in models(records) if m != FOLD}
    orders = {m: value for m, value in orders.items() if _has_grid(limits, m)}
    right = all(ORDERS[0] <= value <= ORDERS[1] for value in orders.values())
    return {
        "kind": "verdict",
        "level": LEVEL,
        "limit": limit,
        "comparisons": {name: len(values) for name, values in found.items()},
        "largest": largest,
        "within_two": {n: float(np.mean(np.abs(values) <= 2)) for n, values in found.items()},
        "orders": orders,
        "grid_against_closed_form": max(closed),
        "grid_halved": max(r["grid_error"] for r in limits if r["grid_error"] is not None),
        "passed": bool(max(largest.values()) <= limit and right and max(closed) <= ROUNDING),
    }


def scores(records: list[Record]) -> dict[str, list[float]]:
    """Deviations in standard errors, absolute but for the order of the bounds."""
    limits, bounds = chosen(records, "limit"), chosen(records, "certificate")
    known = [r for r in bounds if r["truth"] is not None]
    last = [r for r in limits if r["grid"] is None and r["sigma"] == _least(limits, r["model"])]
    return {
        "AIS − grid": [abs(r["ais"] - r["grid"]) / r["ais_error"] for r in limits if _grid(r)],
        "AIS − limit at the smallest σ, no grid": [
            abs(r["ais"] - _limit(records, r)) / r["ais_error"] for r in last
        ],
        "forward − truth": [abs(r["lower"] - r["truth"]) / r["lower_error"] for r in known],
        "reverse − truth": [abs(r["upper"] - r["truth"]) / r["upper_error"] for r in known],
        "forward − reverse, if positive": [max(0.0, -_gap(r)) for r in known],
        "reverse − forward, no grid": [abs(_gap(r)) for r in bounds if r["truth"] is None],
    }


def order(records: list[Record], model: str) -> float:
    """Slope of log |grid − limit| against log σ over σ ≤ 0.2, mean over points; NaN if no grid."""
    slopes = []
    for known in chosen(records, "formula", model=model):
        rows = chosen(records, "limit", model=model, point=known["point"])
        pairs = [
            (r["sigma"], abs(r["grid"] - known["all_preimages"]))
            for r in rows
            if r["grid"] is not None and r["sigma"] <= 0.21
        ]
        kept = np.log([pair for pair in pairs if pair[1] > 1e-10])
        if len(kept) > 1:
            slopes.append(np.polyfit(kept[:, 0], kept[:, 1], 1)[0])
    return float(np.mean(slopes)) if slopes else math.nan


def _gap(record: Record) -> float:
    """Reverse estimate less forward, whose chains are independent, in standard errors."""
    error = math.hypot(record["lower_error"], record["upper_error"])
    return float((record["upper"] - record["lower"]) / error)


def _limit(records: list[Record], row: Record) -> float:
    known = chosen(records, "formula", model=row["model"], point=row["point"])[0]
    return float(known["all_preimages"])


def _least(limits: list[Record], model: str) -> float:
    return float(min(r["sigma"] for r in limits if r["model"] == model))


def _grid(record: Record) -> bool:
    return record["grid"] is not None


def _has_grid(limits: list[Record], model: str) -> bool:
    return any(_grid(r) for r in limits if r["model"] == model)
