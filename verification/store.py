"""Results in SQLite, one transaction for each record: a killed run loses and repeats nothing."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

Record = dict[str, Any]

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    kind TEXT NOT NULL,
    id   TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (kind, id)
)
"""


class Store:
    """Records of one run, keyed by kind and id; several processes may write at once (WAL)."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as db, db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(SCHEMA)

    def put(self, record: Record) -> None:
        """Commit one record; a record of the same kind and id is replaced."""
        row = (record["kind"], record["id"], json.dumps(strict(record), allow_nan=False))
        with closing(self._connect()) as db, db:
            db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", row)

    def ids(self, kind: str) -> set[str]:
        """Ids of the records of one kind that are committed."""
        with closing(self._connect()) as db:
            return {i for (i,) in db.execute("SELECT id FROM records WHERE kind = ?", (kind,))}

    def records(self, kind: str | None = None) -> Iterator[Record]:
        """All records, or those of one kind, ordered by kind and id."""
        query = "SELECT body FROM records WHERE kind = ? OR ? IS NULL ORDER BY kind, id"
        with closing(self._connect()) as db:
            for (body,) in db.execute(query, (kind, kind)):
                yield json.loads(body)

    def clear(self) -> None:
        """Forget everything."""
        with closing(self._connect()) as db, db:
            db.execute("DELETE FROM records")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)


def strict(value: Any) -> Any:
    """The same value with NaN and infinities as None, as strict JSON requires."""
    if isinstance(value, dict):
        return {k: strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
