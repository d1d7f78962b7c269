"""Results of an experiment on disk: JSON, figures and a page, each written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from verification import provenance
from verification.store import Record, strict

WIDTH = 12.8  # inches at 100 dots each: 1280 pixels
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#7f3c8d", "#e69f00", "#56b4e9", "#8c564b", "#6b7280")
_RC: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


@contextmanager
def canvas(rows: int, columns: int, height: float, **options: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure of 1280 pixels with rows × columns axes; Matplotlib's state stays as it was."""
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def png(figure: Figure) -> bytes:
    """The figure as PNG without a date; call it inside `canvas`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def unique_legend(target: Axes | Figure, axes: Sequence[Axes], **options: Any) -> None:
    """One legend entry for every label that occurs in some of the axes."""
    found: dict[Any, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= {k: v for k, v in zip(labels, handles, strict=True) if k not in found}
    target.legend(found.values(), found.keys(), **options)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def save(
    out: Path, records: Sequence[Record], contents: Mapping[str, str | bytes], **settings: object
) -> None:
    """Write results.json (provenance first) and the files named, creating the folder."""
    out.mkdir(parents=True, exist_ok=True)
    everything = [provenance.describe(records, **settings), *records]
    text = json.dumps(strict(everything), indent=1, allow_nan=False)
    for name, content in {"results.json": text + "\n", **contents}.items():
        data = content.encode() if isinstance(content, str) else content
        _replace(out / name, data)


def _replace(target: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(name).chmod(0o644)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)
