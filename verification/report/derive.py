"""What the report computes from the records: bias, predicted error, honest m, digits, power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from verification.report.records import Record, by_case, label

LEVEL = 0.99
"""Level of the intervals in the records."""
QUANTILE = NormalDist().inv_cdf(0.5 + LEVEL / 2)
NOMINAL = 0.95
"""Level of the t intervals whose coverage the records hold."""
BIAS_SHARE = 0.2
"""A bias of this share of the standard error costs a 95 % interval at most half a point."""


@dataclass(frozen=True)
class Bias:
    """Systematic error of a method: exact, or measured with the half width of its interval."""

    value: float
    half_width: float
    exact: bool

    @property
    def bound(self) -> float:
        """The largest |bias| the interval admits."""
        return abs(self.value) + self.half_width


def bias(cell: Record) -> Bias | None:
    """Exact truncation bias, else the paired measurement over all probes, else None."""
    if cell.get("bias_exact") is not None:
        return Bias(cell["bias_exact"], 0.0, exact=True)
    if cell.get("paired_bias") is not None:
        half = QUANTILE * (cell.get("paired_bias_se") or 0.0)
        return Bias(cell["paired_bias"], half, exact=False)
    return None


def measured_bias(cell: Record) -> float | None:
    """Measured bias: paired where the probes were seen, else mean minus truth."""
    if cell.get("paired_bias") is not None:
        return float(cell["paired_bias"])
    if cell.get("mean") is None or cell.get("truth") is None:
        return None
    return float(cell["mean"] - cell["truth"])


def one_probe_variance(cell: Record) -> float | None:
    """V1 = m · sd_exact², the exact sampling variance of one probe."""
    if cell.get("sd_exact") is None or not cell.get("probes"):
        return None
    return float(cell["probes"] * cell["sd_exact"] ** 2)


def predicted_rmse(cell: Record) -> float | None:
    """√(b² + V1/m), with the bias of `bias` (none known counts as zero)."""
    variance = one_probe_variance(cell)
    if variance is None:
        return None
    b = bias(cell)
    return math.hypot(b.value if b else 0.0, math.sqrt(variance / cell["probes"]))


def honest_probes(cell: Record) -> float | None:
    """Largest m with |b| ≤ BIAS_SHARE · √(V1/m), infinite for no bias at all.

    A measured bias enters with the far end of its interval, so the answer is a lower bound.
    """
    b, variance = bias(cell), one_probe_variance(cell)
    if b is None or variance is None:
        return None
    # below the certified accuracy of the truth a bias is indistinguishable from none
    floor = max(cell.get("u_truth") or 0.0, 2.0**-52 * abs(cell.get("truth") or 0.0))
    if b.bound <= floor:
        return math.inf
    return float(math.floor(BIAS_SHARE**2 * variance / b.bound**2))


def honest_by_case(cells: Sequence[Record]) -> dict[tuple[str, str], dict[str, float]]:
    """`honest_probes` by (case, dtype) and label, the smallest over everything else."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    for group in by_case(cells).values():
        for cell in group:
            m = honest_probes(cell)
            if m is None:
                continue
            row = table.setdefault((cell["case"], str(cell.get("dtype"))), {})
            row[label(cell)] = min(m, row.get(label(cell), math.inf))
    return table


def agreeing_digits(methods: dict[str, float | None], truth: float | None) -> float | None:
    """Decimal digits to which independent values of the truth agree, relative to its size.

    >>> round(agreeing_digits({"svd": 100.0, "qr": 100.0 + 1e-9}, 100.0), 1)
    11.0
    """
    values = [v for v in methods.values() if v is not None]
    if len(values) < 2 or truth is None:
        return None
    spread = max(values) - min(values)
    scale = max(abs(truth), max(abs(v) for v in values), 1e-300)
    # two float64 values that are equal still carry only float64's digits
    return -math.log10(max(spread / scale, 2.0**-53))


def certified(certificates: Sequence[Record]) -> list[tuple[float, Record]]:
    """Certificates by two or more methods with the digits that agree, fewest digits first."""
    digits = [(agreeing_digits(r.get("methods") or {}, r.get("truth")), r) for r in certificates]
    return sorted(((d, r) for d, r in digits if d is not None), key=lambda pair: pair[0])


def speedup(cells: Sequence[Record], recorded: float | None) -> tuple[float | None, int]:
    """Speed-up of batched replicates over one at a time, and the number of cells behind it."""
    timed = [c for c in cells if c.get("seconds") and c.get("seconds_single")]
    if recorded is not None or not timed:
        return recorded, len(timed)
    total = sum(c["seconds_single"] for c in timed)
    return total / sum(c["seconds"] for c in timed), len(timed)


@dataclass(frozen=True)
class Power:
    """Smallest detectable effects of one kind of check, over all cells."""

    name: str
    checks: int
    best: float
    typical: float
    largest: float
    largest_cell: Record
    margin: float | None
    beyond: int


def blind_bias(cells: Sequence[Record]) -> float | None:
    """Median over cells of the smallest detectable bias of the log-determinant, nats per dimension.

    The check of the mean states its effect in standard deviations √V1 of one probe.
    """
    found = [
        check["detectable"] * math.sqrt(variance) / cell["n"]
        for cell in cells
        for check in cell.get("checks") or []
        if check["name"] == "mean"
        and check.get("detectable") is not None
        and cell.get("estimand", "logdet") == "logdet"
        and cell.get("n")
        and (variance := one_probe_variance(cell)) is not None
    ]
    return median(found) if found else None


def power(cells: Sequence[Record]) -> list[Power]:
    """Detectable effects by check name, in the order of first appearance."""
    found: dict[str, list[tuple[float, Record, Record]]] = {}
    for cell in cells:
        for check in cell.get("checks") or []:
            if check.get("detectable") is not None:
                found.setdefault(check["name"], []).append((check["detectable"], cell, check))
    return [_power(name, entries) for name, entries in found.items()]


def _power(name: str, entries: list[tuple[float, Record, Record]]) -> Power:
    effects = [effect for effect, _, _ in entries]
    largest, cell, _ = max(entries, key=lambda entry: entry[0])
    margins = [check["margin"] for _, _, check in entries if check.get("margin") is not None]
    beyond = sum(
        check.get("margin") is not None and effect > check["margin"] for effect, _, check in entries
    )
    return Power(
        name=name,
        checks=len(entries),
        best=min(effects),
        typical=median(effects),
        largest=largest,
        largest_cell=cell,
        margin=median(margins) if margins else None,
        beyond=beyond,
    )


def representative_cases(cells: Sequence[Record], count: int = 9) -> list[str]:
    """Cases to draw: families in turn, within each from easy to hard, richest in cells first."""
    drawable = [c for c in cells if predicted_rmse(c) and c.get("rmse") and c.get("matvecs")]
    groups = by_case([c for c in drawable if c.get("estimand", "logdet") == "logdet"])
    families: dict[str, list[str]] = {}
    for case, group in groups.items():
        families.setdefault(str(group[0].get("family")), []).append(case)
    queues = [_spread_by_condition(names, groups) for names in families.values()]
    chosen: list[str] = []
    for turn in range(max(map(len, queues), default=0)):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
    keep = set(chosen[:count])
    return [case for case in groups if case in keep]


def _spread_by_condition(names: list[str], groups: dict[str, list[Record]]) -> list[str]:
    """Order names so that every prefix spans the condition numbers: ends first, then middles."""
    largest: dict[str, str] = {}  # one case per spectrum: the one with most cells, then largest n
    for name in names:
        key = str(groups[name][0].get("spectrum") or name)
        rank = (len(groups[name]), groups[name][0].get("n") or 0)
        held = largest.get(key)
        if held is None or rank > (len(groups[held]), groups[held][0].get("n") or 0):
            largest[key] = name
    order = sorted(largest.values(), key=lambda name: groups[name][0].get("cond") or 0.0)
    picked: list[str] = []
    step = len(order)
    while step >= 1 and len(picked) < len(order):
        grid = [order[min(i, len(order) - 1)] for i in range(0, len(order) + step, step)]
        picked += [name for name in dict.fromkeys(grid) if name not in picked]
        step //= 2
    return picked
