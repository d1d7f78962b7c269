"""What was measured of the suite itself, kept in reports/suite: it takes longer than a run.

The kill matrix and the record of false alarms are made by commands of their own; the report shows
what they left, and whether it came from the source of the run that it reports.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from verification import provenance
from verification.report.files import replace_files
from verification.store import Record, strict

FOLDER = provenance.ROOT / "reports" / "suite"
MUTATION = provenance.ROOT / "reports" / "mutation" / "score.json"


def keep(name: str, records: Iterable[Record], folder: Path = FOLDER) -> Path:
    """Write records to FOLDER/name.jsonl, each with the source that it was measured on."""
    origin = provenance.origin()
    lines = (
        json.dumps(strict({**record, **origin}), allow_nan=False, ensure_ascii=False)
        for record in records
    )
    path = folder / f"{name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    replace_files({path: "".join(line + "\n" for line in lines)})
    return path


def kept(folder: Path = FOLDER, mutation: Path = MUTATION) -> list[Record]:
    """Everything that was kept, and the mutation score.

    Raises:
        ValueError: If a file is damaged.
    """
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        found += [_parsed(line, path) for line in path.read_text("utf-8").splitlines()]
    if mutation.exists():
        score = _parsed(mutation.read_text("utf-8"), mutation)
        found.append({"kind": "mutation", "id": "score", **score})
    return found


def _parsed(text: str, path: Path) -> Record:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): measure it again.") from error
