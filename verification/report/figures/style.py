"""Look of the figures: one colour and marker per method, small readable type, repeatable SVG."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from verification.report.records import METHOD_ORDER
from verification.report.text import shorten

INK = "#1f2933"
FAINT = "#9aa5b1"
VERDICT_COLOUR = {
    "PASS": "#00734f",
    "REPORTED": "#4f6b88",
    "INCONCLUSIVE": "#a86400",
    "FAIL": "#b3261e",
}

# Neutral for the exact methods, for the others Okabe and Ito's without yellow, and a purple
_EXACT_COLOURS = ("#111111", "#6b7280", "#8c564b")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#7f3c8d", "#cc79a7", "#56b4e9")
_MARKERS = ("s", "o", "D", "^", "v", "P", "X", "<", ">", "p")
PANEL = (4.2, 3.15)  # inches; shown at about 400 px, so that 8 pt stays readable on a phone

_RC: dict[Any, Any] = {
    "svg.hashsalt": "specbp-report",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#52606d",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#3e4c59",
    "ytick.color": "#3e4c59",
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Panel:
    """One drawn panel: SVG text, alternative text, size in CSS pixels."""

    svg: str
    alt: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


@dataclass(frozen=True)
class Mark:
    """One entry of a legend that is set in HTML: text, colour, and a path on a 24 by 12 canvas."""

    text: str
    colour: str
    path: str
    filled: bool = False


@dataclass(frozen=True)
class FigureGroup:
    """Panels that share one caption and one legend."""

    name: str
    panels: list[Panel]
    caption: str
    legend: list[Mark] = field(default_factory=list)


def look(method: str, methods: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of a method; methods outside `METHOD_ORDER` follow in their own order."""
    names = [*METHOD_ORDER, *(m for m in methods if m not in METHOD_ORDER)]
    palette = _EXACT_COLOURS + _COLOURS
    # Once round the colours the markers move on by one, so that no two methods look the same.
    turn, place = divmod(names.index(method), len(palette))
    return palette[place], _MARKERS[(turn * (len(palette) + 1) + place) % len(_MARKERS)]


GLYPH = {  # the matplotlib markers as SVG paths round (12, 6)
    "s": "M8.5 2.5h7v7h-7z",
    "o": "M8 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "D": "M12 1.5l4.5 4.5l-4.5 4.5l-4.5-4.5z",
    "^": "M12 1.5l4.5 8.5h-9z",
    "v": "M12 10.5l4.5-8.5h-9z",
    "P": "M10.5 2h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
    "X": "M8 4l2-2l2 2l2-2l2 2l-2 2l2 2l-2 2l-2-2l-2 2l-2-2l2-2z",
    "<": "M7.5 6l8.5-4.5v9z",
    ">": "M16.5 6l-8.5-4.5v9z",
    "p": "M12 1.5l4.5 3.5l-1.8 5h-5.4l-1.8-5z",
}


def method_legend(shown: Sequence[str], methods: Sequence[str]) -> list[Mark]:
    """Legend entries of some methods."""
    looks = [(method, *look(method, methods)) for method in shown]
    return [Mark(m, colour, GLYPH[marker], filled=True) for m, colour, marker in looks]


def write(ax: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """A note inside the axes: taken literally, and never a reason to shrink them."""
    ax.text(x, y, shorten(text, 60), parse_math=False, **style).set_in_layout(False)


def title(ax: Axes, text: str) -> None:
    """Title of a panel, taken literally and cut to its width."""
    ax.set_title(shorten(text, 46), parse_math=False)


@contextmanager
def panel(size: tuple[float, float] = PANEL) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one axes in the report's style; nothing of it stays behind in Matplotlib."""
    with mpl.rc_context(_RC):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def finish(figure: Figure, alt: str) -> Panel:
    """Figure as a panel; call it inside `panel`, because saving still reads the style."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    width, height = figure.get_size_inches() * 96
    return Panel(_shrink(buffer.getvalue()), alt, round(width), round(height))


def _shrink(svg: str) -> str:
    """SVG without its preamble, metadata and comments, paths rounded to a hundredth of a point."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    return re.sub(r"\s*\n\s*", "\n", svg)
