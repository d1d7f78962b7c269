"""The page on the suite itself: which faults it kills, and how often it fails what is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        "matrix_origin": _origin(records.faults[-1]) if records.faults else None,
        "sources": sources_table(records.faults),
        "controls": controls_table(records.faults),
        "codes": codes_table(),
        "alarms": _alarm_sentences(records.control),
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
    for c in records.control:
        name = f"false alarms at {sig(c['nominal'])}"
        found.append((name, f"{c['rejected']} in {c['epochs']} epochs"))
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
    codes = _codes(faults)
    body = [
        [
            code(str(r["id"])),
            r["title"],
            *(MARK[r["verdicts"].get(name)] for name in codes),
        ]
        for r in rows
    ]
    caption = (
        "✓ the group fails the faulty estimator clearly: by ten times its limit, or at a hundredth "
        "of its level; (✓) it fails it by less; · it was run and does not."
    )
    return Table(caption, ["fault", "what is wrong", *codes], body)


def sources_table(faults: Sequence[Record]) -> Table:
    """Where the faults come from."""
    body = [
        [code(str(r["id"])), r["source"], code(str(r["control"])), r.get("note") or MISSING]
        for r in planted(faults)
    ]
    return Table("Where the faults come from.", ["fault", "seen in", "made from", "note"], body)


MARK = {"clear": "✓", "marginal": "(✓)", "": "·", None: ""}


def _codes(faults: Sequence[Record]) -> list[str]:
    """Codes that occur, in the order of `CODES`; D6a is a kind of D6."""
    order = list(CODES)
    found = {name for record in faults for name in record["verdicts"]}
    return sorted(found, key=lambda name: (order.index(name.rstrip("abcde")), name))


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
    head = ["module", "mutants", "killed", "timeout", "equivalent", "survived", "score"]
    parts = [*mutation[-1]["modules"].items(), ("all", mutation[-1]["total"])]
    keys = ("mutants", "killed", "timeout", "equivalent", "survived")
    body = [
        [code(name), *(f"{part[k]:,}" for k in keys), f"{part['score']:.1%}"]
        for name, part in parts
    ]
    return Table(
        "Score: killed or timed out, over those that are not equivalent.",
        head,
        body,
        {1, 2, 3, 4, 5, 6},
    )


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
    return [
        (
            "PASS" if c["consistent"] else "FAIL",
            f"{plural(c['rejected'], 'false alarm')} in {c['epochs']} epochs "
            f"at {sig(c['nominal'])}",
        )
        for c in records.control
    ]


def _mutation_part(records: Records) -> list[tuple[str, str]]:
    if not records.mutation:
        return []
    score = records.mutation[-1]["total"]["score"]
    text = f"{score:.1%} of the mutants of the source are noticed"
    return [("PASS" if score >= 0.95 else "FAIL", text)]


def _alarm_sentences(control: Sequence[Record]) -> list[str]:
    if not control:
        return []
    first = (
        "A trusted dense sampler, which shares no code with the estimators, went through the "
        "sampling tier of the gate, each epoch with seeds of its own."
    )
    return [first, *(_alarm_sentence(c) for c in control), _origin(control[-1])]


def _alarm_sentence(c: Record) -> str:
    low, high = c["interval"]
    return (
        f"Nominal rate {sig(c['nominal'])} for each run: {plural(c['rejected'], 'false alarm')} in "
        f"{c['epochs']} epochs; the rate lies in [{sig(low)}, {sig(high)}] (95\u00a0%)."
    )


def _origin(record: Record) -> str:
    """Which source was measured: this page shows records of several commands."""
    clean = "" if record.get("clean") else ", with changes"
    return f"Measured on commit {str(record.get('commit'))[:10]}{clean}."


def _mutation_sentence(mutation: Sequence[Record]) -> str | None:
    if not mutation:
        return None
    last = mutation[-1]
    return (
        f"{last['tool']} changed one operator, constant or comparison at a time in the modules "
        f"that compute; the tests noticed {last['total']['score']:.1%} of the changes that can be "
        "noticed. The survivors stand with their reasons in reports/mutation/survivors.md."
    )
