"""Records as the report reads them: strict JSON, sorted by kind, nothing dropped in silence."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]

METHOD_ORDER = (
    "qr",
    "cholesky",
    "eigenvalues",
    "golub_kahan",
    "slq",
    "chebyshev",
    "taylor",
    "algorithm1",
    "algorithm1_plain",
    "backprop",
    "solve",
    "block_golub_kahan",
    "block_slq",
    "krylov_aware_golub_kahan",
    "krylov_aware",
    "nystrom",
    "multilevel_golub_kahan",
    "multilevel",
    "randomised_chebyshev",
    "deflated_chebyshev",
    "maxent",
    "hutchinson",
    "hutchpp",
    "xtrace",
    "xnystrace",
)
"""Order of rows and colours; a method that is not named here follows in alphabetical order."""


def strict(value: Any) -> Any:
    """Value as strict JSON: NaN and infinities become null, NumPy and torch scalars plain numbers.

    Args:
        value: Any nesting of mappings, sequences, scalars, strings and None.

    Returns:
        A copy made of dict, list, str, int, bool, finite float and None.

    Raises:
        TypeError: If a leaf has no JSON form, or a key is not a string.

    >>> strict({"p": float("nan"), "ci": (0.0, float("inf"))})
    {'p': None, 'ci': [0.0, None]}
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): strict(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [strict(item) for item in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return strict(value.item())
    msg = (
        f"a record may hold numbers, strings, lists, mappings and None, not "
        f"{type(value).__name__}: convert it before storing the record"
    )
    raise TypeError(msg)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        msg = f"the keys of a record must be strings, got {key!r}: convert it with str()"
        raise TypeError(msg)
    return key


def to_json_lines(records: Sequence[Record]) -> str:
    """One line of strict JSON per record (see `strict`), in the order given."""
    lines = (json.dumps(strict(r), allow_nan=False, ensure_ascii=False) for r in records)
    return "".join(line + "\n" for line in lines)


@dataclass(frozen=True)
class Records:
    """The records of one run, by kind; `others` keeps the kinds the report has no section for."""

    cells: list[Record] = field(default_factory=list)
    certificates: list[Record] = field(default_factory=list)
    provenance: list[Record] = field(default_factory=list)
    timing: list[Record] = field(default_factory=list)
    precision: list[Record] = field(default_factory=list)
    families: list[Record] = field(default_factory=list)
    faults: list[Record] = field(default_factory=list)
    control: list[Record] = field(default_factory=list)
    mutation: list[Record] = field(default_factory=list)
    others: list[Record] = field(default_factory=list)

    @property
    def run(self) -> Record:
        """The latest provenance record, empty when there is none."""
        return self.provenance[-1] if self.provenance else {}

    @property
    def methods(self) -> list[str]:
        """Names of the methods that have cells, in the order of `METHOD_ORDER`."""
        return sorted({cell["method"] for cell in self.cells}, key=method_rank)

    def of_method(self, method: str) -> list[Record]:
        """The cells of one method, in the order of the run."""
        return [cell for cell in self.cells if cell["method"] == method]


def method_rank(method: str) -> tuple[int, str]:
    """Sort key: the methods of `METHOD_ORDER` first, then the others by name."""
    known = method in METHOD_ORDER
    return (METHOD_ORDER.index(method) if known else len(METHOD_ORDER), method)


_FIELD = {
    "cell": "cells",
    "certificate": "certificates",
    "provenance": "provenance",
    "timing": "timing",
    "precision": "precision",
    "family": "families",
    "fault": "faults",
    "control": "control",
    "mutation": "mutation",
}


def sort_by_kind(records: Sequence[Record]) -> Records:
    """Sort records by their kind, with non-finite numbers already turned into None.

    Raises:
        ValueError: If a record has no kind, or a cell lacks its id, method or verdict.
    """
    result = Records()
    for position, record in enumerate(records):
        clean = strict(record)
        kind = clean.get("kind")
        if not kind:
            msg = f"record {position} has no 'kind' (got the keys {sorted(clean)}): see the schema"
            raise ValueError(msg)
        if kind == "cell":
            _require(clean, ("id", "case", "method", "verdict"), position)
        getattr(result, _FIELD.get(kind, "others")).append(clean)
    return result


def _require(record: Record, keys: Sequence[str], position: int) -> None:
    missing = [key for key in keys if record.get(key) is None]
    if missing:
        name = record.get("id", f"record {position}")
        msg = f"cell {name} lacks {', '.join(missing)}: write it with the runner, or drop it"
        raise ValueError(msg)


def by_case(cells: Sequence[Record]) -> dict[str, list[Record]]:
    """Cells grouped by case, cases in the order of family, name and size."""
    groups: dict[str, list[Record]] = {}
    for cell in cells:
        groups.setdefault(cell["case"], []).append(cell)
    return dict(sorted(groups.items(), key=lambda item: case_key(item[1][0])))


def case_key(record: Record) -> tuple[str, str, int, str]:
    """Sort key of a case: family, id without its order, order, dtype."""
    return (
        str(record.get("family") or ""),
        re.sub(r"/n\d+$", "", str(record.get("case"))),
        int(record.get("n") or 0),
        str(record.get("dtype")),
    )


def label_key(cell: Record) -> tuple[Any, ...]:
    """Sort key of a configuration: method, then the numbers in its config, then the label."""
    return (*method_rank(cell["method"]), config_numbers(cell), str(label(cell)))


def config_numbers(cell: Record) -> tuple[float, ...]:
    """The numbers in the configuration of a cell, such as its degree; switches are none."""
    values = (cell.get("config") or {}).values()
    return tuple(
        float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)
    )


def label(cell: Record) -> str:
    """Short label of method and configuration."""
    return str(cell.get("label") or cell["method"])
