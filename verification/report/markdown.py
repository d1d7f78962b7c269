"""The report as Markdown: a summary for a pull request, and the table of the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from verification.report import derive, summary
from verification.report.files import replace_files
from verification.report.records import Record, Records, method_rank, sort_by_kind
from verification.report.text import MISSING, plural, sig, span
from verification.report.verdicts import (
    ORDER,
    SYMBOL,
    Tally,
    cell_verdict,
    checks_with,
    limit_verdict,
    suspicion,
    tally,
)

BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
LISTED = 50
"""Cells that the summary names one by one; the page has them all."""


def methods_table(records: Sequence[Record]) -> str:
    """Markdown table of the methods with what was measured of each, without a trailing newline.

    Bias is the median of |measured bias| / n over the cells and, in brackets, the largest. The
    ratio of standard deviations is the median of √(measured / exact variance) with its smallest
    and largest value. Coverage is the median share of nominal 95 % intervals that contain the
    method's own expectation, and the truth. Documented limitations (REPORTED) enter none of them
    while a method has other cells.

    Args:
        records: Records of one run, of any kind.
    """
    return _methods_table(sort_by_kind(records))


def _methods_table(records: Records) -> str:
    head = "Method | Bias per dimension | sd, measured / exact | Coverage, own / truth"
    lines = [f"| {head} | Products with A | Verdict |", "|---|---|---|---|---|---|"]
    lines += [_method_line(name, records.of_method(name)) for name in records.methods]
    return "\n".join(lines)


def _method_line(method: str, cells: list[Record]) -> str:
    gated = [c for c in cells if cell_verdict(c) != "REPORTED"] or cells
    biases = [
        abs(b) / c["n"] for c in gated if c.get("n") and (b := derive.measured_bias(c)) is not None
    ]
    ratios = [max(c["var_ratio"], 0.0) ** 0.5 for c in gated if c.get("var_ratio") is not None]
    products = [float(c["matvecs"]) for c in gated if c.get("matvecs") is not None]
    columns = [
        f"`{_plain(method)}`",
        f"{sig(median(biases), 2)} (max {sig(max(biases), 2)})" if biases else MISSING,
        f"{median(ratios):.3f} ({span(ratios, '.2f')})" if ratios else MISSING,
        _coverage(gated),
        span(products, ",.0f"),
        _verdict(tally(cells)),
    ]
    return f"| {' | '.join(columns)} |"


def _coverage(cells: Sequence[Record]) -> str:
    own = [c["coverage_expectation"] for c in cells if c.get("coverage_expectation") is not None]
    truth = [c["coverage"] for c in cells if c.get("coverage") is not None]
    if not own and not truth:
        return MISSING
    return " / ".join(f"{median(v):.3f}" if v else MISSING for v in (own, truth))


def _verdict(found: Tally) -> str:
    verdict = found.verdict or "INCONCLUSIVE"
    count = found.counts[verdict]
    of = plural(found.total, "cell") if count == found.total else f"{count:,} of {found.total:,}"
    return f"{SYMBOL[verdict]} {verdict} ({of})"


def _plain(text: object) -> str:
    """Text that cannot break a Markdown table or open a tag."""
    clean = " ".join(str(text).split())
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'")):
        clean = clean.replace(character, entity)
    return clean


def update_readme(path: Path, table: str) -> None:
    """Replace what stands between the two markers of a README by a table.

    Args:
        path: The file; it holds ``<!-- methods:begin -->`` and ``<!-- methods:end -->`` once each.
        table: The new content, from `methods_table`.

    Raises:
        ValueError: If a marker is missing, occurs twice, or the two stand in the wrong order.
    """
    with path.open(encoding="utf-8", newline="") as stream:  # line ends stay as they are
        text = stream.read()
    for marker in (BEGIN, END):
        if text.count(marker) != 1:
            msg = (
                f"{path.name} must hold the marker {marker} exactly once, found "
                f"{text.count(marker)}: put {BEGIN} and {END} on lines of their own where the "
                "table belongs"
            )
            raise ValueError(msg)
    if text.index(BEGIN) > text.index(END):
        msg = f"{path.name} has {END} before {BEGIN}: exchange the two markers"
        raise ValueError(msg)
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    replace_files({path: f"{before}{BEGIN}\n{table}\n{END}{after}"})


def render(records: Records) -> str:
    """The summary as Markdown."""
    head = summary.headline(records)
    parts = [
        "# Accuracy of stochastic log-determinant estimators",
        f"**{SYMBOL[head.verdict]} {head.verdict}** {_plain(head.sentence)}",
        "\n".join(f"- {name}: {_plain(value)}" for name, value in summary.facts(records)),
        _section("Methods", _methods_table(records) if records.cells else ""),
        _section("Worst cells", _worst(records)),
        _section("What did not pass", _exceptions(records.cells) if records.cells else ""),
        _section("Certificates of the truth", _certificates(records.certificates)),
        _section("Overhead beyond the products", _timing(records.timing)),
        _section("Robustness in float32", _precision(records.precision)),
        _section("Provenance", _plain(summary.provenance_line(records.run))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body or 'Not measured in this run.'}"


def _worst(records: Records) -> str:
    _, rows = summary.grid(records)
    return "\n".join(
        f"- `{row.method}`: {_code(row.worst['id'])} ({_plain(row.reason)})" for row in rows
    )


def _code(text: object) -> str:
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"


def _exceptions(cells: Sequence[Record]) -> str:
    gating = [c for c in cells if cell_verdict(c) in ("FAIL", "INCONCLUSIVE")]
    lines = [_exception(c) for c in sorted(gating, key=suspicion, reverse=True)[:LISTED]]
    if len(gating) > LISTED:
        lines.append(f"- and {plural(len(gating) - LISTED, 'cell')} more, all listed in index.html")
    reported = [c for c in cells if cell_verdict(c) == "REPORTED"]
    for method in sorted({c["method"] for c in reported}, key=method_rank):
        found = [c for c in reported if c["method"] == method]
        worst = max(found, key=suspicion)
        count = plural(len(found), "cell")
        lines.append(f"- {_mark('REPORTED')} `{_plain(method)}`: {count}, such as {_why(worst)}")
    return "\n".join(lines) or "Every cell passed."


def _exception(cell: Record) -> str:
    return f"- {_mark(cell_verdict(cell))} {_why(cell)}"


def _why(cell: Record) -> str:
    found = [
        f"{summary.check_text(c)}: {c.get('message') or 'no reason recorded'}"
        for c in checks_with(cell_verdict(cell), cell)
    ]
    return f"{_code(cell['id'])} {_plain('; '.join(found))}".rstrip()


def _certificates(certificates: Sequence[Record]) -> str:
    if not certificates:
        return ""
    known = derive.certified(certificates)
    text = f"{plural(len(certificates), 'truth')}, {len(known):,} of them by two or more methods"
    if not known:
        return f"{text}."
    digits, weakest = known[0]
    return f"{text} that agree to {digits:.1f} digits or more (least: {_code(weakest['case'])})."


def _timing(timing: Sequence[Record]) -> str:
    if not timing:
        return ""
    lines = ["| Problem | Method | Ratio | Limit | Verdict |", "|---|---|---|---|---|"]
    lines += [
        f"| {_plain(t.get('problem'))} | {_plain(t.get('method'))} | {sig(t.get('ratio'))} "
        f"| {sig(t.get('limit'))} | {_mark(limit_verdict(t.get('ratio'), t.get('limit')))} |"
        for t in timing
    ]
    return "\n".join(lines)


def _precision(precision: Sequence[Record]) -> str:
    if not precision:
        return ""
    lines = ["| Method | cond(A) | Error | Limit | Verdict |", "|---|---|---|---|---|"]
    lines += [
        f"| {_plain(p['method'])} | {sig(p.get('cond'))} | {sig(p.get('error'))} "
        f"| {sig(p.get('limit'))} | {_mark(limit_verdict(p.get('error'), p.get('limit')))} |"
        for p in precision
    ]
    return "\n".join(lines)


def _mark(verdict: str) -> str:
    assert verdict in ORDER
    return f"{SYMBOL[verdict]} {verdict}"
