"""What the gate found: as text, as Markdown for a summary, as JUnit XML and as JSON."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, REPORTED, Check, worst

if TYPE_CHECKING:
    from verification.gate import GateResult
    from verification.gate_pool import Judged

SYMBOL = {PASS: "✓", FAIL: "✗", INCONCLUSIVE: "?", REPORTED: "i"}
NOTHING = "–"  # no check of this kind applies
LEGEND = (
    "promises: law of the probes, products, brackets, batches, attention to probes and matrix, "
    "failures reported, figures no worse than recorded. "
    "✓ PASS, ✗ FAIL, ? INCONCLUSIVE, i REPORTED, – not applicable."
)

# Column by the first that occurs: the whole name, one of its words, its code.
NAMES = {"D8 mean": "bias", "D8 batch": "promises", "D8 gradient": "gradient"}
WORDS = {
    "gradient": "gradient",
    "variance": "variance",
    "sd": "variance",
    "bars": "error bars",
    "baseline": "promises",
}
COLUMNS = {
    "bias": "D1 D2 D3 D4 D5 D7 S1",
    "variance": "S2",
    "gradient": "D6 S6 S7",
    "error bars": "D8 S3 S4",
    "reproducibility": "P2 P3 S5",
    "promises": "P1 D9 D10 D11 D12",
}


def column(check: Check) -> str | None:
    """The column of the table to which a check belongs; None for one that belongs to all."""
    if check.name in NAMES:
        return NAMES[check.name]
    code, *words = check.name.split()
    for word in (code, *words):
        if word in WORDS:
            return WORDS[word]
    code = re.sub(r"\D*$", "", code)  # D6a is a kind of D6
    return next((name for name, codes in COLUMNS.items() if code in codes.split()), None)


def verdicts(subject: Judged) -> dict[str, str | None]:
    """Verdict of one estimator by column; None where nothing was checked."""
    found: dict[str, list[Check]] = {name: [] for name in COLUMNS}
    for check in subject.checks:
        name = column(check)
        for target in COLUMNS if name is None and check.verdict == FAIL else filter(None, [name]):
            found[target].append(check)
    return {
        name: worst(checks, gated=subject.gated) if checks else None
        for name, checks in found.items()
    }


def text(result: GateResult) -> str:
    """The table, every check that is not passed in full, and the conditions."""
    rows = [("", *COLUMNS, "verdict", "checks", "seconds")]
    for subject in result.subjects:
        symbols = [SYMBOL[v] if v else NOTHING for v in verdicts(subject).values()]
        verdict = f"{SYMBOL[subject.verdict]} {subject.verdict}"
        rows.append(
            (subject.name, *symbols, verdict, str(len(subject.checks)), f"{subject.seconds:.1f}")
        )
    parts = ["\n".join(_aligned(rows))]
    for title, lines in _open_questions(result):
        parts.append("\n".join([title, *(f"  {line}" for line in lines)]))
    return _legal("\n\n".join([*parts, f"{LEGEND}\n{conditions(result)}"]))


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _open_questions(result: GateResult) -> Iterator[tuple[str, list[str]]]:
    for subject in result.subjects:
        lines = [
            f"{SYMBOL[check.verdict]} {check}"
            for check in subject.checks
            if subject.gated and check.verdict in (FAIL, INCONCLUSIVE)
        ]
        if lines:
            yield subject.name, lines


def conditions(result: GateResult) -> str:
    """Counts, level, epoch and seconds in one line."""
    counts = sum((_counted(subject) for subject in result.subjects), Counter[str]())
    found = ", ".join(f"{counts[v]} {v}" for v in SYMBOL if counts[v]) or "no checks"
    return (
        f"{found}. Tier {result.tier}, false alarms at most {result.suite_alpha:g} in all "
        f"({result.spent:.2g} spent), epoch {result.epoch}, {result.seconds:.1f} s, "
        f"{result.workers} {'process' if result.workers == 1 else 'processes'}."
    )


def _counted(subject: Judged) -> Counter[str]:
    """Checks by verdict; those of a method that is shown and not judged are REPORTED."""
    return Counter(check.verdict if subject.gated else REPORTED for check in subject.checks)


def markdown(result: GateResult) -> str:
    """A summary for the page of a pull request."""
    failed = result.count(FAIL)
    title = (
        f"Gate: {failed} of {len(result.subjects)} estimators FAIL" if failed else "Gate: passed"
    )
    header = ["estimator", *COLUMNS, "verdict"]
    lines = [f"## {title}", "", _row(header), _row(["---"] * len(header))]
    for subject in result.subjects:
        symbols = [SYMBOL[v] if v else NOTHING for v in verdicts(subject).values()]
        verdict = f"{SYMBOL[subject.verdict]} {subject.verdict}"
        lines.append(_row([f"`{subject.name}`", *symbols, verdict]))
    for name, messages in _open_questions(result):
        lines += ["", f"<details open><summary><code>{_escaped(name)}</code></summary>", ""]
        lines += [f"* {_escaped(message)}" for message in messages]
        lines += ["", "</details>"]
    return _legal("\n".join([*lines, "", _escaped(conditions(result)), ""]))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _escaped(line: str) -> str:
    """Text of foreign code, such as the message of an exception, is text and nothing else."""
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line).replace("@", "&#64;")


def junit(result: GateResult) -> str:
    """JUnit XML: a suite for each estimator, a case for each check.

    INCONCLUSIVE is a skipped case with its message; PASS and REPORTED write to system-out.
    """
    root = ElementTree.Element("testsuites", name="gate", time=f"{result.seconds:.3f}")
    totals: Counter[str] = Counter()
    for subject in result.subjects:
        counts = _counted(subject)
        totals += counts
        named = {"name": _legal(subject.name), "time": f"{subject.seconds:.3f}"}
        suite = ElementTree.SubElement(root, "testsuite", named | _counts(counts))
        for check in subject.checks:
            _case(suite, subject, check)
    for key, value in _counts(totals).items():
        root.set(key, value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _counts(counts: Counter[str]) -> dict[str, str]:
    return {
        "tests": str(counts.total()),
        "failures": str(counts[FAIL]),
        "errors": "0",
        "skipped": str(counts[INCONCLUSIVE]),
    }


def _case(suite: ElementTree.Element, subject: Judged, check: Check) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_legal(f"gate.{subject.name}"),
        name=_legal(check.name),
        time="0",
    )
    message = _legal(f"{check.claim}: {check.message}")
    if check.verdict == FAIL and subject.gated:
        ElementTree.SubElement(case, "failure", message=message, type=FAIL).text = message
    elif check.verdict == INCONCLUSIVE and subject.gated:
        ElementTree.SubElement(case, "skipped", message=message)
    else:
        ElementTree.SubElement(case, "system-out").text = f"{check.verdict}: {message}"


def _legal(line: str) -> str:
    """Without what XML 1.0 and UTF-8 have no way to write: control characters and surrogates."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", line)


def as_json(result: GateResult) -> str:
    """Every field of every check; numbers that are not finite are null."""
    document = {
        "tier": result.tier,
        "epoch": result.epoch,
        "seconds": result.seconds,
        "workers": result.workers,
        "suite_alpha": result.suite_alpha,
        "spent": result.spent,
        "subjects": [
            {
                "name": _legal(subject.name),
                "verdict": subject.verdict,
                "gated": subject.gated,
                "seconds": subject.seconds,
                "columns": verdicts(subject),
                "checks": [_finite(asdict(check)) for check in subject.checks],
            }
            for subject in result.subjects
        ],
    }
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _finite(fields: dict[str, object]) -> dict[str, object]:
    infinite = (float("inf"), float("-inf"))
    found = {k: _legal(v) if isinstance(v, str) else v for k, v in fields.items()}
    return {
        key: None if isinstance(value, float) and (value != value or value in infinite) else value
        for key, value in found.items()
    }


def check_targets(*targets: Path | None) -> None:
    """Refuse files that could not be written, before anything is run.

    Raises:
        ValueError: If a folder does not exist or takes no new file, if something other than a file
            has the name, or if two have the same.
    """
    wanted = [target for target in targets if target is not None]
    for target in wanted:
        _check_target(target)
    twice = [str(path) for path, n in Counter(path.resolve() for path in wanted).items() if n > 1]
    if twice:
        raise ValueError(f"Each file is written once, {twice[0]} is named twice: name another.")


def _check_target(target: Path) -> None:
    try:
        if not target.parent.is_dir():
            raise ValueError(
                f"There is no folder {target.parent} for {target.name}: make it first."
            )
        # A device must not be replaced by a file either.
        if target.exists() and not target.is_file():
            raise ValueError(f"A file is required, {target} is none: name another.")
        # Files are written beside their target, under a name as long as this one, and renamed.
        prefix = f".{target.name}."
        with tempfile.NamedTemporaryFile(prefix=prefix, suffix=".tmp", dir=target.parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{target} cannot be written ({reason}): name another file.") from None


def write(
    result: GateResult, junit_file: Path | None, markdown_file: Path | None, json_file: Path | None
) -> None:
    """Write the files that are wanted, all at once or none."""
    # Imported here: it brings the page of the accuracy report with it.
    from verification.report.files import replace_files

    renderers = ((junit_file, junit), (markdown_file, markdown), (json_file, as_json))
    contents = {path: render(result) for path, render in renderers if path is not None}
    if contents:
        replace_files(contents)
