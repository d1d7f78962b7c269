"""The ratchet: deterministic figures against those recorded for this platform, never much worse.

`python -m verification baseline` compares; `--update` records, which is a change to be reviewed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, PASS, REPORTED, Check, broken
from verification import checks, provenance
from verification.baseline_rows import BIAS, ERROR, LIMIT, PRODUCTS, VARIANCE, Row, measure
from verification.report.files import replace_files
from verification.subjects import from_method

FOLDER = provenance.ROOT / "reports" / "reference"
COMMAND = "python -m verification baseline --update"
# A rounding error may quadruple: another processor adds in another order. A bias is a property of
# the method, so is its variance; what rounding does to them is in the row's slack.
FACTORS = {ERROR: 4.0, LIMIT: 1.01, BIAS: 1.01, VARIANCE: 1.01, PRODUCTS: 1.0}
BY_CHANCE = 1e-3  # of the rounding: no error is smaller by luck
CLAIM = "no figure is worse than the recorded one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m verification baseline`."""
    parser.add_argument("--update", action="store_true", help="record the figures of this tree")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where references lie (default: %(default)s)"
    )


def main(options: argparse.Namespace) -> int:
    """Compare or record; 1 if a figure is worse, or if the tree has a failure to record."""
    if options.update:
        return update(options.folder)
    found = check(options.folder)
    shown = [c for c in found if c.verdict != PASS]
    print("\n".join(str(c) for c in shown) or f"{len(found)} rows, none worse than recorded")
    return int(any(c.verdict == FAIL for c in found))


def platform_key() -> str:
    """What a reference belongs to: "linux-x86_64-torch2.13-cpu".

    Example:
        >>> platform_key().count("-") >= 3
        True
    """
    version = ".".join(torch.__version__.split("+")[0].split(".")[:2])
    return f"{platform.system()}-{platform.machine()}-torch{version}-cpu".lower()


def check(folder: Path = FOLDER, rows: list[Row] | None = None) -> list[Check]:
    """One check for each row of this tree and of the reference of this platform.

    Without a reference there is one REPORTED check that says how to record it. What makes the
    comparison meaningless fails: other inputs, an edited file, a row on one side only.
    """
    path = folder / f"{platform_key()}.json"
    if not path.exists():
        message = f"nothing is recorded for {platform_key()}: run `{COMMAND}` and commit {path}"
        return [Check("baseline", CLAIM, REPORTED, 0.0, 0.0, message)]
    try:
        recorded = read(path)
    except ValueError as error:
        return [broken("baseline", CLAIM, str(error))]
    now = {row.id: row for row in (measure() if rows is None else rows)}
    gone = [
        broken(f"baseline {name}", CLAIM, f"recorded, but not measured: if meant, `{COMMAND}`")
        for name in recorded
        if name not in now
    ]
    return [_compare(row, recorded.get(row.id)) for row in now.values()] + gone


def _compare(row: Row, recorded: dict[str, Any] | None) -> Check:
    name = f"baseline {row.id}"
    if recorded is None:
        return broken(name, CLAIM, f"measured, but not recorded: run `{COMMAND}`")
    if recorded["inputs"] != row.inputs:
        reason = "matrix, probes or arguments are not the recorded ones"
        return broken(name, CLAIM, f"{reason}: if meant, `{COMMAND}`")
    if set(recorded["figures"]) != set(row.figures):
        return broken(name, CLAIM, f"other figures than recorded: if meant, `{COMMAND}`")
    severity, message = max(_severities(row, recorded["figures"]))
    verdict = PASS if severity <= 1 else FAIL
    return Check(name, CLAIM, verdict, severity, 0.0, message, margin=1.0)


def _severities(row: Row, recorded: dict[str, float]) -> Iterator[tuple[float, str]]:
    """Every figure in units of what is allowed; NaN is worse than anything."""
    for key, now in row.figures.items():
        before, allowed = recorded[key], allowance(key, recorded[key], row)
        size = distance(key, now)
        severity = size / allowed if allowed > 0 else float("inf") if size else 0.0
        text = f"{key} {now:.6g}, recorded {before:.6g}, allowed {allowed:.3g} off the ideal"
        yield (severity if severity == severity else float("inf")), text


def distance(key: str, value: float) -> float:
    """How far a figure is from the ideal: a ratio from 1, all else from 0."""
    return abs(value - 1) if key == VARIANCE else abs(value)


def allowance(key: str, recorded: float, row: Row) -> float:
    """Largest distance from the ideal that is not worse than the recorded one.

    The slack of a figure is its rounding: an error below it counts as that large, a bias and a
    variance may have moved by four times as much. An error far below the rounding of float32 was
    made in float64, and has to be again.
    """
    slack, size = row.slack.get(key, 0.0), distance(key, recorded)
    if key == ERROR:
        return FACTORS[key] * max(size, row.fine if size < BY_CHANCE * slack else slack)
    return FACTORS[key] * size + FACTORS[ERROR] * slack


def update(folder: Path = FOLDER, rows: list[Row] | None = None) -> int:
    """Record the figures of this tree, unless it fails; print what changed."""
    rows = measure() if rows is None else rows
    failures = [text for row in rows for text in row.broken_promises()] + _failures()
    if failures:
        print("\n".join(["not recorded, this tree fails:", *failures]), file=sys.stderr)
        return 1
    path = folder / f"{platform_key()}.json"
    lines = list(_changes(rows, path))
    folder.mkdir(parents=True, exist_ok=True)
    replace_files({path: _document(rows)})
    print("\n".join(lines or ["nothing changed"]))
    print(path)
    return 0


def _failures() -> list[str]:
    """What the deterministic checks say of every gated method."""
    subjects = [from_method(method) for method in METHODS.values() if method.claims.gated]
    return [
        f"{subject.name}: {found}"
        for subject in subjects
        for found in checks.run(subject, "D")
        if found.verdict == FAIL
    ]


def _changes(rows: list[Row], path: Path) -> Iterator[str]:
    """One line for each row that is new, gone, on other inputs, worse or better."""
    try:
        recorded = read(path) if path.exists() else {}
    except ValueError:
        recorded = {}
        yield "the earlier file was edited: everything is recorded anew"
    new = [row.id for row in rows if row.id not in recorded]
    yield from [f"new      {name}" for name in new] if recorded else [f"{len(new)} new rows"]
    for row in (row for row in rows if row.id in recorded):
        before = recorded[row.id]
        if before["inputs"] != row.inputs:
            yield f"inputs   {row.id}"
        for key in row.figures.keys() & before["figures"].keys():
            yield from _change(row, key, before["figures"][key])
    for name in recorded.keys() - {row.id for row in rows}:
        yield f"gone     {name}"


def _change(row: Row, key: str, before: float) -> Iterator[str]:
    now = row.figures[key]
    for word, this, other in (("worse", now, before), ("improved", before, now)):
        if distance(key, this) > allowance(key, other, row):
            yield f"{word:8} {row.id}: {key} {before:.6g} → {now:.6g}"


def _document(rows: list[Row]) -> str:
    table = {row.id: {"inputs": row.inputs, "figures": row.figures} for row in rows}
    source = provenance.describe([])
    kept = ("commit", "clean", "versions", "platform")
    about = {key: source[key] for key in kept} | {"recorded": datetime.now(UTC).date().isoformat()}
    document = {
        "platform": platform_key(),
        "provenance": about,
        "sha256": _digest(table),
        "rows": table,
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The recorded rows by id.

    Raises:
        ValueError: If the file is not what `--update` wrote.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows, digest = document["rows"], document["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}): run `{COMMAND}`") from error
    if _digest(rows) != digest:
        raise ValueError(f"{path} was edited by hand, its checksum differs: run `{COMMAND}`")
    return rows


def _digest(rows: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
