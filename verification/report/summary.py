"""The run in a few lines: headline, verdict grid, worst cells. Page and Markdown both read it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from verification.report.derive import speedup
from verification.report.records import Record, Records, method_rank
from verification.report.text import listed, plural, sig, span
from verification.report.verdicts import (
    Tally,
    cell_verdict,
    column_tally,
    columns,
    deciding_check,
    limit_verdict,
    tally,
    worst,
    worst_cell,
)


@dataclass(frozen=True)
class Headline:
    """One verdict for the whole run, with the sentence that explains it."""

    verdict: str
    sentence: str


def headline(records: Records) -> Headline:
    """Verdict of the run: cells, families, float32 limits; REPORTED and the clock do not gate."""
    parts = [
        *_cell_part(records.cells),
        *_family_part(records.families),
        *_limit_part(
            "float32 error", [(p.get("error"), p.get("limit")) for p in records.precision]
        ),
    ]
    verdict = worst(v for v, _ in parts) or "INCONCLUSIVE"
    shown = [text for v, text in parts if v == verdict] if verdict != "PASS" else [parts[0][1]]
    sentence = "; ".join(shown) + "."
    reported = sum(cell_verdict(cell) == "REPORTED" for cell in records.cells)
    if reported:
        sentence += (
            f" {plural(reported, 'cell')} with a documented limitation: reported, not gated."
        )
    # A shared machine must not decide what is right: timings advise.
    costs = [(t.get("ratio"), t.get("limit")) for t in records.timing]
    for _, text in _limit_part("cost ratio", costs):
        sentence += f" Advice: {text}."
    return Headline(verdict, sentence[0].upper() + sentence[1:])


def _cell_part(cells: Sequence[Record]) -> list[tuple[str, str]]:
    if not cells:
        return [("INCONCLUSIVE", "no verification cell in this run")]
    found = Counter(cell_verdict(cell) for cell in cells)
    gated = len(cells) - found["REPORTED"]
    if found["FAIL"]:
        who = _by_method(cells, "FAIL")
        return [("FAIL", f"{found['FAIL']:,} of {plural(len(cells), 'cell')} failed ({who})")]
    if found["INCONCLUSIVE"]:
        who = _by_method(cells, "INCONCLUSIVE")
        text = f"nothing failed, but {found['INCONCLUSIVE']:,} of {plural(len(cells), 'cell')}"
        return [("INCONCLUSIVE", f"{text} could not decide ({who})")]
    if not gated:
        return [("INCONCLUSIVE", "every cell is a documented limitation: nothing was gated")]
    methods = len({cell["method"] for cell in cells})
    subject = plural(methods, "method")
    text = f"all {plural(gated, 'gated cell')} of {subject} agree with the exact mathematics"
    return [("PASS", text)]


def _by_method(cells: Sequence[Record], verdict: str) -> str:
    counts = Counter(cell["method"] for cell in cells if cell_verdict(cell) == verdict)
    return ", ".join(f"{method}: {counts[method]}" for method in sorted(counts, key=method_rank))


def _family_part(families: Sequence[Record]) -> list[tuple[str, str]]:
    bad = [str(f["id"]) for f in families if f["verdict"] == "FAIL"]
    return [("FAIL", f"the cells of {listed(bad)} deviate together")] if bad else []


def _limit_part(
    noun: str, pairs: Sequence[tuple[float | None, float | None]]
) -> list[tuple[str, str]]:
    found = Counter(limit_verdict(value, limit) for value, limit in pairs if limit is not None)
    total = plural(found.total(), noun)
    parts = []
    if found["FAIL"]:
        parts.append(("FAIL", f"{found['FAIL']} of {total} beyond the limit"))
    if found["INCONCLUSIVE"]:
        parts.append(("INCONCLUSIVE", f"{found['INCONCLUSIVE']} of {total} without a value"))
    return parts


@dataclass(frozen=True)
class MethodRow:
    """One row of the verdict grid."""

    method: str
    overall: Tally
    columns: list[Tally]
    worst: Record
    reason: str


def grid(records: Records) -> tuple[list[str], list[MethodRow]]:
    """Names of the columns and one row per method."""
    gathered = columns(records.cells)
    rows = []
    for method in records.methods:
        cells = records.of_method(method)
        bad = worst_cell(cells)
        assert bad is not None  # a method is listed because it has cells
        tallies = [column_tally(cells, names) for names in gathered.values()]
        rows.append(MethodRow(method, tally(cells), tallies, bad, reason(bad)))
    return list(gathered), rows


def reason(cell: Record) -> str:
    """What decided a cell, in a few words."""
    check = deciding_check(cell)
    return check_text(check) if check else "no check recorded"


def check_text(check: Record) -> str:
    """Check, statistic and p as one short phrase."""
    parts = [str(check["name"])]
    if check.get("statistic") is not None:
        parts.append(sig(check["statistic"]))
        if check.get("p") is None and check.get("margin") is not None:
            parts.append(f"(limit {sig(check['margin'])})")
        elif check.get("reference") is not None:
            parts.append(f"against {sig(check['reference'])}")
    if check.get("p") is not None:
        parts.append(f"(p {p_text(check['p'])})")
    return " ".join(parts)


def p_text(p: float) -> str:
    """Relation and p; one that underflowed is no zero."""
    return f"= {sig(p, 2)}" if p > 0 else f"< {sys.float_info.min:.0e}"


def facts(records: Records) -> list[tuple[str, str]]:
    """Size and rules of the run, as name and value."""
    cells, run = records.cells, records.run
    found = [("cells", f"{len(cells):,} in {plural(len({c['case'] for c in cells}), 'case')}")]
    checks = [check for cell in cells for check in cell.get("checks") or []]
    found.append(("checks", f"{len(checks):,}"))
    if run.get("suite_alpha"):
        alpha = run["suite_alpha"]
        meaning = f"{sig(alpha)} (right code fails 1 run in {1 / alpha:,.0f})"
        found.append(("suite α", meaning))
    replicates = [c["replicates"] for c in cells if c.get("replicates") and c.get("probes")]
    if replicates:
        found.append(("replicates per cell", span(replicates, ",d")))
    factor, timed = speedup(cells, run.get("batched_speedup"))
    if factor is not None:
        over = f", measured on {plural(timed, 'cell')}" if timed else ""
        found.append(("batched replicates", f"{sig(factor)} times faster than one by one{over}"))
    if run.get("tier"):
        found.append(("tier", str(run["tier"])))
    return found


def provenance_line(run: Record) -> str:
    """Where the numbers come from, on one line; says so when nothing was recorded."""
    if not run:
        return "No provenance recorded: these numbers cannot be traced to a commit."
    parts = []
    if run.get("commit"):
        clean = run.get("clean")
        state = "state unknown" if clean is None else "clean tree" if clean else "MODIFIED tree"
        parts.append(f"commit {str(run['commit'])[:12]} ({state})")
    versions = run.get("versions") or {}
    parts += [
        f"{name} {versions[name]}" for name in ("python", "torch", "numpy") if name in versions
    ]
    parts += [str(run[key]) for key in ("platform", "device") if run.get(key)]
    for key, text in (("threads", "threads"), ("epoch", "seed epoch"), ("started", "started")):
        if run.get(key) is not None:
            parts.append(f"{text} {run[key]}")
    if run.get("results_sha256"):
        parts.append(f"results sha256 {str(run['results_sha256'])[:12]}")
    return " · ".join(parts)


def scope(cells: Sequence[Record]) -> str:
    """What the cells span, as a clause: orders, condition numbers, dtypes, devices, laws."""
    parts = []
    orders = [float(c["n"]) for c in cells if c.get("n")]
    conditions = [float(c["cond"]) for c in cells if c.get("cond")]
    if orders:
        parts.append(f"n = {span(orders, ',.0f')}")
    if conditions:
        parts.append(f"condition numbers {sig(min(conditions))} to {sig(max(conditions))}")
    for key in ("dtype", "device", "law"):
        values = sorted({str(c[key]) for c in cells if c.get(key)})
        if values:
            name = {"law": "probe law", "dtype": "precision"}.get(key, key)
            parts.append(f"{name} {listed(values)}")
    return "; ".join(parts)
