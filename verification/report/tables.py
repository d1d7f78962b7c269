"""The tables of the page as plain data: the template knows one table and no statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from verification.report import derive
from verification.report.records import Record, case_key, label, label_key, method_rank
from verification.report.text import MISSING, sig, typeset, whole
from verification.report.verdicts import (
    SYMBOL,
    cell_verdict,
    checks_with,
    limit_verdict,
    suspicion,
)

Anchors = dict[int, str]


@dataclass(frozen=True)
class Table:
    """Heading, rows, and which columns hold numbers; the first column names the row."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    numeric: set[int] = field(default_factory=set)
    ids: list[str] | None = None


def numbers(*texts: str) -> list[str]:
    """Formatted numbers with true minus signs."""
    return [typeset(text) for text in texts]


def badge(verdict: str | None, text: str = "") -> Markup:
    """Verdict as symbol and word, never as colour alone."""
    if verdict is None:
        return Markup('<span class="none">{}</span>').format(MISSING)
    inner = Markup(
        '<span class="v {0}"><b aria-hidden="true">{1}</b><span class="word"> {0}</span></span>'
    )
    tail = Markup(' <span class="count">{}</span>').format(text) if text else Markup()
    return inner.format(verdict, SYMBOL[verdict]) + tail


def code(text: str) -> Markup:
    """Identifier in a monospaced face, allowed to break at its separators."""
    return Markup("<code>{}</code>").format(breakable(text, "/|"))


def breakable(text: str, separators: str = "_") -> Markup:
    """Text that may break after any of the separators."""
    for separator in separators:
        text = text.replace(separator, f"{separator}\0")
    return Markup("<wbr>").join(text.split("\0"))


def link(cell: Record, anchors: Anchors) -> Markup:
    """Link to the row of a cell in the decomposition."""
    return Markup('<a href="#{}">{}</a>').format(anchors[id(cell)], code(cell["id"]))


def certificate_table(certificates: Sequence[Record]) -> Table:
    """Truth of each case, how well it is known, and the digits to which methods agree with it."""
    rows = [_certificate_row(record) for record in sorted(certificates, key=case_key)]
    head = ["case", "dtype", "n", "cond(A)", "tr log A", "u_truth", "digits that agree"]
    head.append("methods and their digits")
    caption = "Truth of every case and its certified uncertainty u_truth, in nats."
    return Table(caption, head, rows, set(range(2, 7)))


def _certificate_row(record: Record) -> list[str]:
    methods, truth = record.get("methods") or {}, record.get("truth")
    single = ", ".join(
        f"{name} {sig(derive.agreeing_digits({'truth': truth, name: value}, truth))}"
        for name, value in methods.items()
    )
    digits = derive.agreeing_digits(methods, truth)
    operator = f" {record['operator']}" if record.get("operator") else ""
    return [
        code(str(record["case"])),
        f"{record.get('dtype') or MISSING}{operator}",
        *numbers(
            whole(record.get("n")),
            sig(record.get("cond")),
            MISSING if truth is None else f"{truth:.12g}",
            sig(record.get("u_truth")),
            MISSING if digits is None else f"{digits:.1f}",
        ),
        single,
    ]


def timing_table(timing: Sequence[Record]) -> Table:
    """Overhead ratios against their limits."""
    head = [
        "problem",
        "method",
        "dtype",
        "ratio",
        "limit",
        "verdict",
        "estimate (s)",
        "products (s)",
    ]
    rows = [
        [
            str(t.get("problem")),
            str(t.get("method")),
            str(t.get("dtype") or MISSING),
            sig(t.get("ratio")),
            sig(t.get("limit")),
            badge(limit_verdict(t.get("ratio"), t.get("limit"))),
            sig(t.get("seconds_estimate")),
            sig(t.get("seconds_products")),
        ]
        for t in timing
    ]
    return Table(
        "Time of an estimate over the time of its products alone.", head, rows, {3, 4, 6, 7}
    )


def precision_table(precision: Sequence[Record]) -> Table:
    """Error in float32 against the limits."""
    order = sorted(precision, key=lambda p: (*method_rank(p["method"]), p.get("cond") or 0.0))
    rows = [
        [
            str(p["method"]),
            *numbers(
                whole(p.get("n")), sig(p.get("cond")), sig(p.get("error")), sig(p.get("limit"))
            ),
            badge(limit_verdict(p.get("error"), p.get("limit"))),
        ]
        for p in order
    ]
    head = ["method", "n", "cond(A)", "error", "limit", "verdict"]
    return Table("Error of methods in float32.", head, rows, {1, 2, 3, 4})


def exceptions(cells: Sequence[Record], verdict: str, anchors: Anchors) -> Table | None:
    """Every check with this verdict, most suspicious cell first."""
    rows = [
        row
        for cell in sorted(cells, key=suspicion, reverse=True)
        for row in _exception_rows(cell, verdict, anchors)
    ]
    head = ["cell", "check", "statistic", "expected", "p", "α", "detectable", "margin", "reason"]
    caption = f"Checks with the verdict {verdict}."
    return Table(caption, head, rows, set(range(2, 8))) if rows else None


def _exception_rows(cell: Record, verdict: str, anchors: Anchors) -> list[list[str]]:
    checks = checks_with(verdict, cell)
    if not checks and cell_verdict(cell) == verdict:
        blank = [MISSING] * 7
        return [[link(cell, anchors), *blank, f"the runner recorded {verdict} for the whole cell"]]
    return [[link(cell, anchors), *_check_columns(check)] for check in checks]


def _check_columns(check: Record) -> list[str]:
    keys = ("statistic", "reference", "p", "alpha", "detectable", "margin")
    reason = check.get("message") or check.get("claim") or "no reason recorded"
    if check["verdict"] == "PASS":  # shown as worse than recorded, by the rule on power
        reason = f"passed, but its detectable effect exceeds its margin ({reason})"
    return [str(check["name"]), *numbers(*(sig(check.get(key)) for key in keys)), str(reason)]


def limitations(cells: Sequence[Record], anchors: Anchors) -> Table | None:
    """What is REPORTED, by configuration, dtype and check: how often, and the largest value."""
    groups: dict[tuple[str, str, str], list[tuple[Record, Record]]] = {}
    for cell in sorted(cells, key=label_key):
        for check in _limitations_of(cell):
            key = (label(cell), str(cell.get("dtype")), str(check["name"]))
            groups.setdefault(key, []).append((check, cell))
    rows = [_limitation_row(key, found, anchors) for key, found in groups.items()]
    head = ["configuration", "dtype", "check", "cells", "largest", "its limit", "where", "reason"]
    caption = "Documented limitations: measured and shown, not gated."
    return Table(caption, head, rows, {3, 4, 5}) if rows else None


def _limitations_of(cell: Record) -> list[Record]:
    found = checks_with("REPORTED", cell)
    if found or cell_verdict(cell) != "REPORTED":
        return found
    return [{"name": "whole cell", "message": "the runner recorded REPORTED for the whole cell"}]


def _limitation_row(
    key: tuple[str, str, str], found: list[tuple[Record, Record]], anchors: Anchors
) -> list[str]:
    def size(pair: tuple[Record, Record]) -> float:
        statistic = pair[0].get("statistic")
        return -1.0 if statistic is None else abs(statistic - (pair[0].get("reference") or 0.0))

    check, cell = max(found, key=size)
    reason = check.get("message") or check.get("claim") or "no reason recorded"
    return [
        *key,
        *numbers(whole(len(found)), sig(check.get("statistic")), sig(check.get("margin"))),
        link(cell, anchors),
        str(reason),
    ]


def power_table(cells: Sequence[Record], anchors: Anchors) -> Table | None:
    """Smallest effect that each kind of check detects: best, median and worst cell."""
    rows = [
        [
            p.name,
            whole(p.checks),
            *numbers(sig(p.best), sig(p.typical), sig(p.largest), sig(p.margin)),
            f"{p.beyond:,} of {p.checks:,}",
            link(p.largest_cell, anchors),
        ]
        for p in derive.power(cells)
    ]
    head = ["check", "number", "smallest", "median", "largest", "median margin"]
    head += ["beyond the margin", "where the largest is"]
    caption = "Smallest detectable effect of every check, in the units of the text above."
    return Table(caption, head, rows, set(range(1, 7))) if rows else None


def provenance_table(run: Record) -> Table:
    """Everything that was recorded about the run."""
    flat: list[list[str]] = []
    for key, value in run.items():
        if isinstance(value, dict):
            flat += [[f"{key}: {name}", _plain(item)] for name, item in value.items()]
        elif key != "kind":
            flat.append([key.replace("_", " "), _plain(value)])
    return Table("Provenance of the run.", ["what", "value"], flat)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return MISSING if value is None else sig(value, 6) if isinstance(value, float) else str(value)


def family_table(families: Sequence[Record]) -> Table:
    """What many cells see together."""
    head = ["method", "dtype", "statistic", "cells", "verdict"]
    head += ["p of Holm", "Stouffer", "spread", "level", "common shift seen", "worst cell"]
    rows = [
        [
            breakable(str(f["method"])),
            str(f["dtype"]),
            str(f["statistic"]),
            whole(f["cells"]),
            badge(f["verdict"]),
            *numbers(*(sig(f[k]) for k in ("holm", "stouffer", "spread", "alpha", "shift"))),
            code(str(f["worst"])),
        ]
        for f in sorted(families, key=lambda f: (method_rank(f["method"]), f["id"]))
    ]
    caption = "p-values over all cells of a method; a shift is in standard errors of one cell."
    return Table(caption, head, rows, {3, 5, 6, 7, 8, 9})
