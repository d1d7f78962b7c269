"""The page on the suite itself: which faults it kills, and how often it fails what is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from verification.report import figures, tables
from verification.report.files import read_style
from verification.report.records import Record, Records
from verification.report.summary import provenance_line
from verification.report.tables import Table, code
from verification.report.text import MISSING, listed, plural, sig
from verification.report.verdicts import SYMBOL, worst

CODES = {
    "D1": "each probe against an independent oracle",
    "D2": "exact mean and variance over all sign vectors",
    "D3": "exact mean over a basis of n probes",
    "D4": "exact mean and variance over an orthogonal array",
    "D5": "scaling, identity, evenness, permutation, blocks",
    "D6": "gradient: finite differences, exact gradient, scale",
    "D7": "quadrature exact where it must be, and never below",
    "D8": "mean and standard error of the per-probe values",
    "D9": "products counted against products claimed",
    "D10": "claimed brackets hold for every probe",
    "D11": "failure is reported as failure",
    "D12": "the value follows its probes and its matrix",
    "P1": "law of the probes",
    "P2": "no probe is used twice",
    "P3": "equal seeds repeat, other seeds do not",
    "S1": "mean over replicates",
    "S2": "variance over replicates",
    "S3": "error bars: E[se²] against the variance",
    "S4": "coverage of the intervals",
    "S5": "no output occurs twice",
    "S6": "mean of the gradient",
    "S7": "variance of the gradient",
}
"""Groups of checks, by tier: D deterministic, P law of the probes, S sampling."""


def context(records: Records) -> dict[str, Any]:
    """What the template of this page needs."""
    parts = [*_kill_part(records), *_alarm_part(records), *_mutation_part(records)]
    verdict = worst(v for v, _ in parts) or "INCONCLUSIVE"
    sentence = "; ".join(text for _, text in parts) or "nothing was measured in this run"
    return {
        "css": read_style(),
        "symbol": SYMBOL,
        "verdict": verdict,
        "sentence": sentence[0].upper() + sentence[1:] + ".",
        "provenance_line": provenance_line(records.run),
        "facts": facts(records),
        "matrix": matrix_table(records.faults),
        "controls": controls_table(records.faults),
        "codes": codes_table(),
        "alarms": _alarm_sentence(records.control),
        "histogram": figures.alarm_figure(records.control),
        "mutants": mutation_table(records.mutation),
        "mutation_sentence": _mutation_sentence(records.mutation),
    }


def facts(records: Records) -> list[tuple[str, str]]:
    """The suite in four numbers; page and index show them."""
    faults, found = planted(records.faults), []
    if faults:
        for name, key in (("killed by D or P", "killed_by_DP"), ("killed by S", "killed_by_S")):
            known = [f for f in faults if f.get(key) is not None]
            killed = sum(bool(f[key]) for f in known)
            found.append((f"faults {name}", f"{killed} of {len(known)}"))
    if records.control:
        last = records.control[-1]
        found.append(("false alarms", f"{last['rejected']} in {last['epochs']} epochs"))
    if records.mutation:
        found.append(("mutation score", f"{records.mutation[-1]['total']['score']:.1%}"))
    return found


def planted(faults: Sequence[Record]) -> list[Record]:
    """The rows with a fault."""
    return [record for record in faults if record["role"] == "fault"]


def matrix_table(faults: Sequence[Record]) -> Table | None:
    """Faults against groups of checks."""
    rows = planted(faults)
    if not rows:
        return None
    head = ["fault", "what is wrong", "seen in", "made from", *CODES]
    body = [
        [
            Markup("<code>{}</code>").format(r["id"]),
            r["title"],
            r["source"],
            code(str(r["control"])),
            *(_mark(r, name) for name in CODES),
        ]
        for r in rows
    ]
    caption = "✓ the group fails the faulty estimator; · it was run and does not."
    return Table(caption, head, body)


def _mark(record: Record, name: str) -> str:
    if name in record["kills"]:
        return "✓"
    return "·" if name in record["verdicts"] else ""


def controls_table(faults: Sequence[Record]) -> Table | None:
    """The right estimators and what failed them, which must be nothing."""
    rows = [record for record in faults if record["role"] == "control"]
    if not rows:
        return None
    body = [
        [
            code(str(r["id"])),
            tables.badge("FAIL" if r["kills"] else "PASS"),
            listed(r["kills"]) or MISSING,
        ]
        for r in rows
    ]
    return Table("Right estimators under the same checks.", ["control", "verdict", "failed"], body)


def codes_table() -> Table:
    """Legend of the codes."""
    return Table(
        "Groups of checks.", ["code", "what is checked"], [[k, v] for k, v in CODES.items()]
    )


def mutation_table(mutation: Sequence[Record]) -> Table | None:
    """Mutants of the source by module."""
    if not mutation:
        return None
    head = ["module", "mutants", "killed", "equivalent", "survived", "score"]
    parts = [*mutation[-1]["modules"].items(), ("all", mutation[-1]["total"])]
    keys = ("mutants", "killed", "equivalent", "survived")
    body = [
        [code(name), *(f"{part[k]:,}" for k in keys), f"{part['score']:.1%}"]
        for name, part in parts
    ]
    return Table("Score: killed over those that are not equivalent.", head, body, {1, 2, 3, 4, 5})


def _kill_part(records: Records) -> list[tuple[str, str]]:
    faults = planted(records.faults)
    if not faults:
        return []
    alive = [f["id"] for f in faults if not f["killed_by_DP"]]
    hurt = [r["id"] for r in records.faults if r["role"] == "control" and r["kills"]]
    verdict = "FAIL" if alive or hurt else "PASS"
    text = f"{len(faults) - len(alive)} of {len(faults)} planted faults are killed without sampling"
    text += f", alive: {listed(alive)}" if alive else ""
    return [(verdict, text + (f", failed though right: {listed(hurt)}" if hurt else ""))]


def _alarm_part(records: Records) -> list[tuple[str, str]]:
    if not records.control:
        return []
    last = records.control[-1]
    text = f"{plural(last['rejected'], 'false alarm')} in {last['epochs']} epochs"
    return [("PASS" if last["consistent"] else "FAIL", text)]


def _mutation_part(records: Records) -> list[tuple[str, str]]:
    if not records.mutation:
        return []
    score = records.mutation[-1]["total"]["score"]
    text = f"{score:.1%} of the mutants of the source are noticed"
    return [("PASS" if score >= 0.95 else "FAIL", text)]


def _alarm_sentence(control: Sequence[Record]) -> str | None:
    if not control:
        return None
    last = control[-1]
    low, high = last["interval"]
    return (
        f"A trusted dense sampler, which shares no code with the estimators, went through the "
        f"sampling tier of the gate for {last['epochs']} epochs, each with seeds of its own: "
        f"{plural(last['rejected'], 'false alarm')} at a nominal {sig(last['nominal'])} for each "
        f"run; the rate lies in [{sig(low)}, {sig(high)}] (95 %)."
    )


def _mutation_sentence(mutation: Sequence[Record]) -> str | None:
    if not mutation:
        return None
    last = mutation[-1]
    return (
        f"{last['tool']} changed one operator, constant or comparison at a time in the modules "
        f"that compute; the tests noticed {last['total']['score']:.1%} of the changes that can be "
        "noticed. The survivors stand with their reasons in reports/mutation/survivors.md."
    )
