"""Judge the values that two trees gave on common probes: one row for each method and matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specbp.testing.outcome import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    REPORTED,
    Check,
    broken,
    exactly,
    within,
    worst,
)
from specbp.testing.paired import Comparison, Interval, compare, compare_calibration
from verification.compare_cells import Cell, Reference

ALPHA = 0.01  # probability of any false alarm in one comparison
FACTOR = 4.0  # two bits may be lost to rounding
SAME = 0.999  # correlation above which two estimators differ by rounding and truncation only
Fields = dict[str, np.ndarray]


@dataclass(frozen=True)
class Results:
    """What one tree gave: its methods, and arrays by "method/cell/field"."""

    methods: dict[str, dict[str, Any]]
    arrays: dict[str, np.ndarray]

    def of(self, method: str, cell: int) -> dict[str, np.ndarray]:
        """The fields of one method on one cell."""
        prefix = f"{method}/{cell}/"
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}


@dataclass(frozen=True)
class Row:
    """One method on one cell.

    Attributes:
        method: Name of the method.
        cell: Id of the cell.
        equal: Every value and standard error has the same bits.
        largest: Largest difference of two values on one probe, in nats.
        comparison: Statistics of the replicates; None without probes.
        calibration: E[se²]/Var of the head over that of the base; None where no bars are claimed.
        products: Ratio of the products with A.
        seconds: Ratio of the times; advisory.
        checks: What was judged.
        gated: False for a baseline method that is shown and not judged.
        raised: What base and head raised instead of giving a value, by side.
    """

    method: str
    cell: str
    equal: bool
    largest: float
    comparison: Comparison | None
    calibration: Interval | None
    products: float
    seconds: float
    checks: tuple[Check, ...]
    gated: bool
    raised: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst of the checks."""
        return worst(self.checks, gated=self.gated)


@dataclass(frozen=True)
class Report:
    """Everything that a comparison found."""

    labels: tuple[str, str]
    rows: tuple[Row, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: dict[str, tuple[Any, Any]]
    replicates: int
    confidence: float

    @property
    def verdict(self) -> str:
        """FAIL if any row does."""
        verdicts = {row.verdict for row in self.rows}
        return next((v for v in (FAIL, INCONCLUSIVE, PASS) if v in verdicts), REPORTED)


def judge(labels: tuple[str, str], cells: Sequence[Cell], base: Results, head: Results) -> Report:
    """Compare every method that both trees have, each with its own default configuration.

    Raises:
        ValueError: If there is none.
    """
    common = _common(base, head)
    if not (common and cells):
        raise ValueError("Nothing to compare: the two sides have no method in common.")
    # Of a row, shift and calibration can fail on either side, the two ratios on one side each.
    confidence = 1 - ALPHA / (3 * len(common) * len(cells))
    rows = [
        _row(name, cell, (base, head), i, confidence, never=_never_runs(head, name, cells))
        for name in common
        for i, cell in enumerate(cells)
    ]
    return Report(
        labels=labels,
        rows=tuple(rows),
        added=tuple(name for name in head.methods if name not in common),
        removed=tuple(name for name in base.methods if name not in common),
        changed=_changed(common, base, head),
        replicates=len(cells[0].probes),
        confidence=confidence,
    )


def _common(base: Results, head: Results) -> list[str]:
    """Methods of one name that estimate the same."""
    both = [name for name in base.methods if name in head.methods]
    return [n for n in both if base.methods[n]["estimand"] == head.methods[n]["estimand"]]


def _changed(common: Sequence[str], base: Results, head: Results) -> dict[str, tuple[Any, Any]]:
    """Methods whose configuration differs, with both of them."""
    both = {name: (base.methods[name], head.methods[name]) for name in common}
    keys = ("on", "config", "gated", "calibrated")
    pairs = {name: tuple({k: m[k] for k in keys} for m in pair) for name, pair in both.items()}
    return {name: (pair[0], pair[1]) for name, pair in pairs.items() if pair[0] != pair[1]}


def _never_runs(side: Results, name: str, cells: Sequence[Cell]) -> bool:
    """Whether a method raises on every matrix that has an answer."""
    tried = ["error" in side.of(name, i) for i, cell in enumerate(cells) if not cell.hopeless]
    return bool(tried) and all(tried)


def _row(
    name: str,
    cell: Cell,
    sides: tuple[Results, Results],
    i: int,
    confidence: float,
    *,
    never: bool,
) -> Row:
    b, h = (side.of(name, i) for side in sides)
    about = [side.methods[name] for side in sides]
    gated = any(described["gated"] for described in about)
    raised = {
        side: str(found["error"]) for side, found in (("base", b), ("head", h)) if "error" in found
    }
    if raised:
        checks = (_raised(raised, cell.hopeless, never),)
        nothing = (False, np.nan, None, None, np.nan, np.nan)
        return Row(name, cell.id, *nothing, checks, gated, raised)
    comparison, calibration, judged = _judged(b, h, about, cell, confidence)
    keys = ("value", "standard_error", "ok", "samples")
    per_probe = "samples" if b["samples"].shape == h["samples"].shape else "value"
    return Row(
        method=name,
        cell=cell.id,
        equal=all(np.array_equal(b[key], h[key], equal_nan=True) for key in keys),
        largest=_largest(b[per_probe], h[per_probe]),
        comparison=comparison,
        calibration=calibration,
        products=_quotient(h["matvecs"], b["matvecs"]),
        seconds=_quotient(h["seconds"], b["seconds"]),
        checks=(_status(b, h), *judged),
        gated=gated,
    )


def _judged(
    b: Fields, h: Fields, about: Sequence[dict[str, Any]], cell: Cell, confidence: float
) -> tuple[Comparison | None, Interval | None, list[Check]]:
    """Statistics and checks of two results, as far as they are defined."""
    if cell.hopeless:
        return None, None, [_silent(b, h)]
    references = [Reference(cell.views[m["on"]], m["estimand"], cell.probes) for m in about]
    if not len(b["value"]) == len(h["value"]) == len(cell.probes):
        return None, None, [_without_probes(b, h, references, cell.dtype)]
    found = _replicates(b, h, references, confidence)
    checks = [*found.checks, *_precision(b, h, references, found.rho, cell.dtype)]
    bars = any(np.isfinite(side["standard_error"]).any() for side in (b, h))
    if not (about[0]["calibrated"] and bars):
        return found, None, checks
    pairs = [(side["value"], side["standard_error"]) for side in (b, h)]
    calibration, check = compare_calibration(*pairs, confidence=confidence)
    return found, calibration, [*checks, check]


def _replicates(
    b: Fields, h: Fields, references: Sequence[Reference], confidence: float
) -> Comparison:
    """The paired statistics of R replicates, each side against the truth of its own matrix."""
    base, head = references
    with np.errstate(over="ignore", invalid="ignore"):
        return compare(
            b["value"] - base.truth,
            h["value"] - head.truth,
            0.0,
            margin=head.margin,
            control=base.control - base.truth,
            confidence=confidence,
        )


def _status(b: Fields, h: Fields) -> Check:
    wrong = [int((np.isfinite(side["value"]) != side["ok"]).sum()) for side in (b, h)]
    claim = "what failed says so, and nothing else does"
    message = f"flag and value contradict each other {wrong[1]} times, {wrong[0]} in the base"
    return exactly("status", claim, wrong[1] <= wrong[0], message)


def _silent(b: Fields, h: Fields) -> Check:
    """Where methods have to fail, the head gives no value that the base refused."""
    given = [int(np.isfinite(side["value"]).sum()) for side in (b, h)]
    claim = "what cannot be computed has no value"
    message = f"{given[1]} of {len(h['value'])} values are finite, {given[0]} in the base"
    return exactly("silent failure", claim, given[1] <= given[0], message)


def _precision(
    b: Fields, h: Fields, references: Sequence[Reference], rho: float, dtype: str
) -> list[Check]:
    """Rounding and truncation of one and the same estimator: its distance from xᵀf(A)x."""
    if not rho > SAME:
        return []
    both = np.isfinite(b["value"]) & np.isfinite(h["value"])
    errors = [
        float(np.sqrt(np.mean((side["value"] - known.control)[both] ** 2)))
        for side, known in zip((b, h), references, strict=True)
    ]
    claim = f"the distance from the oracle's form is at most {FACTOR:g} times that of the base"
    return [
        within("precision", claim, errors[1], FACTOR * max(errors[0], references[1].unit(dtype)))
    ]


def _without_probes(b: Fields, h: Fields, references: Sequence[Reference], dtype: str) -> Check:
    """One value: the head's error against four times the base's, or a few units of rounding."""
    claim = f"the error is at most {FACTOR:g} times that of the base"
    pairs = zip((b, h), references, strict=True)
    before, now = (float(abs(side["value"][0] - known.truth)) for side, known in pairs)
    if not np.isfinite(before):
        return exactly(
            "accuracy", claim, True, f"the base has no value, the head's error is {now:.3g}"
        )
    known = references[1]
    limit = FACTOR * max(before, known.unit(dtype)) + known.view.truth.u_truth
    return within("accuracy", claim, now, limit)


def _raised(raised: dict[str, str], hopeless: bool, never: bool) -> Check:
    """An exception is an answer where there is no other; a method that never runs has none."""
    claim = "the head runs wherever the base does"
    text = "; ".join(f"{side} raises {message}" for side, message in raised.items())
    if hopeless and "head" in raised:
        return exactly("runs", claim, True, text)
    if never:
        return broken("runs", "the head runs on some matrix", text)
    if "base" in raised:
        return Check("runs", claim, INCONCLUSIVE, np.nan, np.nan, text)
    return broken("runs", claim, text)


def _largest(x: np.ndarray, y: np.ndarray) -> float:
    """Largest difference of finite values."""
    both = np.isfinite(x) & np.isfinite(y)
    return float(np.abs(x[both] - y[both]).max(initial=0.0))


def _quotient(x: np.ndarray, y: np.ndarray) -> float:
    return 1.0 if x == y else float(x) / float(y) if y else float("inf")
