"""Coverage of the nominal 95 % error bars against the number of probes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from verification.report import derive
from verification.report.figures.style import GLYPH, FigureGroup, Mark, Panel, finish, panel, title
from verification.report.records import Record
from verification.report.text import sig


def coverage_figure(cells: Sequence[Record], methods: Sequence[str]) -> FigureGroup | None:
    """Coverage of nominal 95 % intervals against m, of the truth and of the expectation."""
    tested = [c for c in cells if _covered(c, "coverage") or _covered(c, "coverage_expectation")]
    if not tested:
        return None
    shown = [m for m in methods if any(c["method"] == m for c in tested)]
    panels = [_coverage_panel([c for c in tested if c["method"] == m]) for m in shown]
    legend = [Mark(text, colour, GLYPH[key], filled=True) for key, colour, text in _TRUTHS]
    legend.append(Mark("binomial band round the nominal level", "#c3cad3", "M1 1h22v10h-22z", True))
    caption = (
        f"Share of nominal {derive.NOMINAL:.0%} t intervals that contain (circles) the own "
        "expectation of the estimator and (triangles) tr f(A) itself; one faint mark per cell, the "
        f"line is the median. The band is where a right interval falls with {derive.LEVEL:.0%} "
        "probability, given the median number of replicates. Circles below the band: the error "
        "bars are too short. Triangles that sink as m grows are no fault of the error bars: there "
        "the truncation bias has become larger than the noise (see honest m below)."
    )
    return FigureGroup("coverage", panels, caption, legend)


_TRUTHS = (
    ("o", "#0072b2", "own expectation"),
    ("^", "#d55e00", "tr f(A)"),
)
_FIELDS = ("coverage_expectation", "coverage")


def _covered(cell: Record, name: str) -> bool:
    return cell.get(name) is not None and bool(cell.get("probes"))


def _coverage_panel(cells: Sequence[Record]) -> Panel:
    method = cells[0]["method"]
    probes = sorted({c["probes"] for c in cells})
    half = np.array([_half_width(cells, m) for m in probes])
    medians = []
    with panel() as (figure, ax):
        lower, upper = derive.NOMINAL - half, np.minimum(derive.NOMINAL + half, 1.0)
        places = np.array([0.8 * probes[0], *probes, 1.25 * probes[-1]])
        band = np.pad(lower, 1, mode="edge"), np.pad(upper, 1, mode="edge")
        ax.fill_between(places, *band, color="#c3cad3", alpha=0.55, lw=0)
        ax.axhline(derive.NOMINAL, color="#6b7280", lw=0.9)
        for (marker, colour, _), name, side in zip(_TRUTHS, _FIELDS, (0.94, 1.06), strict=True):
            here = [c for c in cells if _covered(c, name)]
            ax.plot(
                [c["probes"] * side for c in here],
                [c[name] for c in here],
                marker,
                ms=4,
                color=colour,
                alpha=0.28,
                mew=0,
            )
            centre = [
                median([c[name] for c in here if c["probes"] == m] or [math.nan]) for m in probes
            ]
            ax.plot(np.array(probes) * side, centre, color=colour, marker=marker, ms=5, mec="white")
            medians.append(centre[-1])
        _axes(ax, probes)
        title(ax, method)
        alt = (
            f"Coverage against probes for {method}: at m = {probes[-1]} the median over "
            f"{len(cells)} cells is {sig(medians[0])} for its own expectation and "
            f"{sig(medians[1])} for the truth; nominal {derive.NOMINAL}."
        )
        return finish(figure, alt)


def _half_width(cells: Sequence[Record], m: int) -> float:
    """Half width of the binomial band round the nominal level for the cells with m probes."""
    replicates = median(c.get("replicates") or 1 for c in cells if c["probes"] == m)
    return derive.QUANTILE * math.sqrt(derive.NOMINAL * (1 - derive.NOMINAL) / replicates)


def _axes(ax: Axes, probes: Sequence[int]) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator([float(m) for m in probes]))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("probes m")
    ax.set_ylabel("coverage")
