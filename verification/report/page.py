"""The accuracy report as one self-contained HTML page: no script, no external request."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from verification.report import decomposition, derive, figures, suite, summary, tables
from verification.report.files import read_style
from verification.report.records import Records
from verification.report.text import listed, plural, sig
from verification.report.verdicts import ORDER, SYMBOL, effect_text, underpowered

_HERE = Path(__file__).parent
_FAMILY = {
    "spd": "SPD matrices with a prescribed spectrum",
    "kernel": "Kernel matrices of real data",
    "laplacian": "Graph Laplacians of real data",
    "jacobian": "Gram matrices of generator Jacobians",
}


def render(records: Records) -> str:
    """The whole page, a function of the records alone."""
    return _templates().get_template("template.html.j2").render(**_context(records))


def render_suite(records: Records) -> str:
    """The page on the suite itself."""
    return _templates().get_template("suite.html.j2").render(**suite.context(records))


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _context(records: Records) -> dict[str, Any]:
    cells, methods = records.cells, records.methods
    anchors = {id(cell): f"c{i}" for i, cell in enumerate(cells)}
    columns, rows = summary.grid(records)
    head = summary.headline(records)
    return {
        "css": read_style(),
        "headline": head,
        "symbol": SYMBOL,
        "columns": columns,
        "grid": rows,
        "anchors": {row.method: anchors[id(row.worst)] for row in rows},
        "badge": tables.badge,
        "code": tables.code,
        "breakable": tables.breakable,
        "facts": [*summary.facts(records), *suite.facts(records)],
        "provenance_line": summary.provenance_line(records.run),
        "legend": [tables.badge(verdict) for verdict in ORDER],
        "exceptions": _exceptions(records, anchors),
        "certificates": _certificates(records),
        "families": _families(records, anchors),
        "level": f"{derive.LEVEL:.0%}".replace("%", "\u00a0%"),
        "share": f"{derive.BIAS_SHARE:g}",
        "rmse": figures.rmse_figure(cells, methods),
        "z": figures.z_figure(cells, methods),
        "variance": figures.variance_figure(cells, methods),
        "coverage": figures.coverage_figure(cells, methods),
        "honest": decomposition.honest_tables(cells),
        "brackets": decomposition.bracket_table(cells, anchors),
        "timing": tables.timing_table(records.timing) if records.timing else None,
        "cost": figures.cost_figure(records.timing),
        "precision": tables.precision_table(records.precision) if records.precision else None,
        "precision_figure": figures.precision_figure(records.precision, methods),
        "families_over_grid": tables.family_table(records.families) if records.families else None,
        "blind": blind_spots(records),
        "power": tables.power_table(cells, anchors),
        "provenance": [tables.provenance_table(run) for run in records.provenance],
        "others": _others(records),
    }


@dataclass(frozen=True)
class Exceptions:
    """What has one verdict other than PASS."""

    verdict: str
    table: tables.Table


def _exceptions(records: Records, anchors: tables.Anchors) -> list[Exceptions]:
    by_verdict = {
        "FAIL": tables.exceptions(records.cells, "FAIL", anchors),
        "INCONCLUSIVE": tables.exceptions(records.cells, "INCONCLUSIVE", anchors),
        "REPORTED": tables.limitations(records.cells, anchors),
    }
    return [Exceptions(verdict, table) for verdict, table in by_verdict.items() if table]


@dataclass(frozen=True)
class Certificates:
    """Table of truths with the sentence that sums it up."""

    sentence: str
    table: tables.Table


def _certificates(records: Records) -> Certificates | None:
    found = records.certificates
    if not found:
        return None
    known = derive.certified(found)
    sentence = f"{plural(len(found), 'truth')}, each from at least two independent decompositions."
    if len(known) < len(found):
        sentence = (
            f"{plural(len(found), 'truth')}, {len(found) - len(known)} of them from fewer than two "
            "independent decompositions and therefore without a certificate."
        )
    if known:
        digits, weakest = known[0]
        sentence += f" They agree to {digits:.1f} digits or more; the weakest is {weakest['case']}."
    return Certificates(sentence, tables.certificate_table(found))


@dataclass(frozen=True)
class Family:
    """The cases of one family."""

    title: str
    groups: list[decomposition.CaseGroup]


def _families(records: Records, anchors: tables.Anchors) -> list[Family]:
    groups = decomposition.case_groups(records, anchors)
    return [Family(_FAMILY.get(name, name), found) for name, found in groups.items()]


def blind_spots(records: Records) -> list[str]:
    """What this run cannot detect, in sentences computed from its records."""
    cells = records.cells
    if not cells:
        return []
    sentences = []
    powers = derive.power(cells)
    if powers:
        typical = listed([effect_text(p.name, sig(p.typical)) for p in powers])
        largest = listed([effect_text(p.name, sig(p.largest)) for p in powers])
        sentences.append(
            f"Smaller effects than these pass unseen in the median cell: {typical}; "
            f"in the worst cell: {largest}."
        )
    bias = derive.blind_bias(cells)
    if bias is not None:
        sentences.append(
            f"For the log-determinant the median detectable bias is {sig(bias, 2)} nats per "
            "dimension."
        )
    blind = sum(underpowered(check) for cell in cells for check in cell.get("checks") or [])
    if blind:
        verb = "checks have" if blind > 1 else "check has"
        sentences.append(
            f"{blind:,} {verb} a detectable effect beyond the margin to be certified and can "
            "therefore never be shown as PASS."
        )
    uncertain = max(cells, key=lambda c: c.get("u_truth") or 0.0)
    if uncertain.get("u_truth"):
        sentences.append(
            f"No bias below the uncertainty of the truth can be seen, at most "
            f"{sig(uncertain['u_truth'], 2)} nats ({uncertain['case']})."
        )
    matrices = plural(len({c["case"] for c in cells}), "case")
    sentences.append(
        f"The run covers {matrices} ({summary.scope(cells)}), one matrix each; beyond them it "
        "claims nothing, and a fault that shows only in other matrices stays hidden."
    )
    missing = _missing_kinds(records)
    if missing:
        sentences.append(f"Not measured in this run: {listed(missing)}.")
    return sentences


def _missing_kinds(records: Records) -> list[str]:
    kinds = {
        "certificates of the truth": records.certificates,
        "cost overhead": records.timing,
        "float32 robustness": records.precision,
        "provenance": records.provenance,
        "kill matrix": records.faults,
        "false alarms": records.control,
        "mutants": records.mutation,
    }
    return [name for name, found in kinds.items() if not found]


def _others(records: Records) -> list[str]:
    counts: dict[str, int] = {}
    for record in records.others:
        counts[record["kind"]] = counts.get(record["kind"], 0) + 1
    return [f"{kind} ({plural(count, 'record')})" for kind, count in counts.items()]
