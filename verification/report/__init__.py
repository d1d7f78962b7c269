"""The accuracy report: two HTML pages, a Markdown summary, and the records they come from.

from verification import report
report.write(records, Path("reports/accuracy"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from verification.report import markdown, page
from verification.report.explain import explain
from verification.report.files import replace_files
from verification.report.markdown import methods_table, update_readme
from verification.report.records import Record, sort_by_kind, to_json_lines

__all__ = ["explain", "methods_table", "update_readme", "write"]


def write(records: Sequence[Record], out: Path) -> Path:
    """Write index.html, suite.html, report.md and records.jsonl.

    Everything is rendered before the first byte is written, and the files are renamed into place
    when all are complete: an error on the way leaves an older report as it was. The files
    are a function of the records alone.

    Args:
        records: The records of a run: cells, certificates, timing, precision, provenance. Kinds
            that are missing leave their section empty, and the section says so.
        out: Directory of the report, made if necessary.

    Returns:
        Path of index.html.

    Raises:
        ValueError: If a record has no kind, or a cell lacks its id, case, method or verdict.
        TypeError: If a record holds something that JSON cannot express.
    """
    by_kind = sort_by_kind(records)
    index = out / "index.html"
    contents = {
        out / "records.jsonl": to_json_lines(records),
        out / "report.md": markdown.render(by_kind),
        index: page.render(by_kind),
        out / "suite.html": page.render_suite(by_kind),
    }
    out.mkdir(parents=True, exist_ok=True)
    replace_files(contents)
    return index
