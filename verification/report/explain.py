"""One cell in plain text, for the terminal: what was known, what was measured, what was decided."""

from __future__ import annotations

import math

from verification.report import derive
from verification.report.records import Record, label, strict
from verification.report.text import MISSING, interval, plural, sig, signed, whole
from verification.report.verdicts import (
    SYMBOL,
    cell_verdict,
    check_verdict,
    effect_text,
    underpowered,
)

Rows = list[tuple[str, str | None]]
_WIDTH = 26


def explain(record: Record) -> str:
    """Plain-text explanation of one cell.

    Truth and its certificate; exact bias and variance; what was measured, with intervals; each
    check with statistic, p, detectable effect and verdict. What was not measured has no line.

    Args:
        record: A record of kind "cell".

    Raises:
        ValueError: If the record is of another kind.
    """
    cell = strict(record)
    if cell.get("kind") != "cell":
        msg = f"explain takes a record of kind 'cell', got {cell.get('kind')!r}: pick a cell by id"
        raise ValueError(msg)
    verdict = cell_verdict(cell)
    lines = [f"{SYMBOL[verdict]} {verdict}  {cell['id']}", *_setting(cell), ""]
    for title, rows in (
        ("Truth", _truth(cell)),
        ("Known from exact mathematics", _known(cell)),
        ("Measured", _measured(cell)),
    ):
        found = [f"  {name:<{_WIDTH}}{value}" for name, value in rows if value is not None]
        lines += [title, *(found or ["  nothing of this kind"]), ""]
    checks = [line for check in cell.get("checks") or [] for line in _check(check, cell)]
    lines += ["Checks", *(checks or ["  none recorded"])]
    return "\n".join(lines) + "\n"


def _setting(c: Record) -> list[str]:
    config = ", ".join(f"{k}={v}" for k, v in (c.get("config") or {}).items()) or "no parameters"
    where = f"{c.get('dtype')} on {c.get('device')}"
    return [
        f"  {c.get('title') or c['case']}",
        f"  {label(c)} ({config}), estimand {c.get('estimand') or 'logdet'}, {_probes(c)}{where}, "
        f"{plural(c.get('replicates') or 1, 'replicate')}",
    ]


def _probes(c: Record) -> str:
    return plural(c["probes"], f"{c.get('law')} probe") + ", " if c.get("probes") else ""


def _truth(c: Record) -> Rows:
    truth, u = c.get("truth"), c.get("u_truth")
    digits = -math.log10(max(u / abs(truth), 2.0**-53)) if truth and u else None
    return [
        ("value", None if truth is None else f"{truth:.12g}"),
        ("certified uncertainty", _maybe(u)),
        ("certified digits", _maybe(digits, "{:.1f}")),
        ("matrix", f"n = {whole(c.get('n'))}, condition number {sig(c.get('cond'))}"),
    ]


def _known(c: Record) -> Rows:
    b, predicted, m = derive.bias(c), derive.predicted_rmse(c), derive.honest_probes(c)
    share = (b.value / predicted) ** 2 if b and predicted else None
    return [
        ("exact truncation bias", _maybe(c.get("bias_exact"), sign=True)),
        ("exact sampling sd", _maybe(c.get("sd_exact"))),
        ("predicted RMSE", _maybe(predicted)),
        ("bias share of the MSE", _maybe(share, "{:.2%}")),
        (f"m with |bias| ≤ {derive.BIAS_SHARE:g} se", m if m is None else f"up to {sig(m)}"),
    ]


def _measured(c: Record) -> Rows:
    truth, mean = c.get("truth") or 0.0, c.get("mean")
    error = None if mean is None else mean - truth
    own, true = c.get("coverage_expectation"), c.get("coverage")
    covered = None if own is None and true is None else f"own {sig(own)}, truth {sig(true)}"
    paired, half = c.get("paired_bias"), derive.QUANTILE * (c.get("paired_bias_se") or 0.0)
    return [
        ("bias, paired per probe", _with(_maybe(paired, sign=True), f"± {sig(half, 2)}")),
        ("mean − truth", _with(_maybe(error, sign=True), interval(c.get("mean_ci"), truth))),
        ("z against expectation", _maybe(c.get("z"))),
        ("sd", _with(_maybe(c.get("sd")), interval(c.get("sd_ci")))),
        ("variance ratio", _maybe(c.get("var_ratio"))),
        ("RMSE", _maybe(c.get("rmse"))),
        (f"coverage of {derive.NOMINAL:.0%} bars", covered),
        ("E[se²]/Var", _maybe(c.get("se2_ratio"))),
        ("bracket", _bracket(c["bracket"]) if c.get("bracket") else None),
        ("products per estimate", None if c.get("matvecs") is None else whole(c["matvecs"])),
        ("status", ", ".join(f"{k} {v:,}" for k, v in (c.get("status") or {}).items()) or None),
    ]


def _maybe(x: float | None, form: str = "", *, sign: bool = False) -> str | None:
    if x is None:
        return None
    return form.format(x) if form else signed(x) if sign else sig(x)


def _with(value: str | None, spread: str) -> str | None:
    """A value with its interval, where there is one."""
    if value is None or spread in (MISSING, "± 0"):
        return value
    return f"{value}  {spread} ({derive.LEVEL:.0%})"


def _bracket(bracket: Record) -> str:
    ends = f"[{sig(bracket.get('lower'), 6)}, {sig(bracket.get('upper'), 6)}]"
    return f"{ends}, holds for {sig(bracket.get('holds'), 4)} of the probes"


def _check(check: Record, cell: Record) -> list[str]:
    verdict = check_verdict(check, cell)
    name = str(check["name"])
    lines = [
        f"  {SYMBOL[verdict]} {verdict:<13}{name}: {check.get('claim') or ''}".rstrip(),
        f"      {_evidence(check)}",
    ]
    if check.get("detectable") is not None:
        effect = effect_text(name, sig(check["detectable"]))
        margin = sig(check.get("margin"))
        lines.append(f"      smallest detectable effect: {effect}; margin {margin}")
    if check["verdict"] == "PASS" and underpowered(check):
        lines.append("      recorded PASS, but the detectable effect exceeds the margin")
    if check.get("message"):
        lines.append(f"      {check['message']}")
    return lines


def _evidence(check: Record) -> str:
    statistic = f"statistic {sig(check.get('statistic'))}"
    if check.get("p") is None:
        return f"{statistic}, limit {sig(check.get('margin'))} (nothing random)"
    reference, p, alpha = (sig(check.get(key)) for key in ("reference", "p", "alpha"))
    return f"{statistic} (expected {reference}), p = {p}, α = {alpha}"
