"""RMSE against products with A, measured over predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from verification.report import derive
from verification.report.figures.style import (
    FAINT,
    INK,
    FigureGroup,
    Mark,
    Panel,
    finish,
    look,
    method_legend,
    panel,
    title,
    write,
)
from verification.report.records import Record, by_case, config_numbers, label_key, method_rank
from verification.report.verdicts import cell_verdict

_LINE = "M1 6h22"
_DOTTED = "M1 6h3m3 0h3m3 0h3m3 0h3"


def rmse_figure(cells: Sequence[Record], methods: Sequence[str]) -> FigureGroup | None:
    """RMSE against matvecs with the predicted curve √(b² + V1/m), for representative cases."""
    chosen = derive.representative_cases(cells)
    if not chosen:
        return None
    groups = by_case([cell for cell in cells if cell["case"] in set(chosen)])
    panels = [_rmse_panel(groups[case], methods) for case in chosen]
    shown = sorted(
        {c["method"] for case in chosen for c in _drawable(groups[case])}, key=method_rank
    )
    legend = method_legend(shown, methods)
    legend += [
        Mark("predicted √(b² + V1/m)", INK, _LINE),
        Mark("bias floor |b|, slope −½ guide", FAINT, _DOTTED),
        Mark("n products: the price of the exact value", FAINT, "M12 0v12"),
    ]
    caption = (
        "Root mean square error of one estimate against its products with A. Markers are measured "
        f"(bars: {derive.LEVEL:.0%} interval), the line through them is not a fit but the "
        "prediction from exact mathematics (its bias is exact for polynomials, else measured on "
        "the probes). Look for markers on their lines. A marker above its line is an error the "
        "theory does not contain; a flat line is truncation bias that no further probe removes. "
        "Numbers at the ends are the configuration. The frame is that of the gated cells; "
        "reported ones may lie outside."
    )
    return FigureGroup("rmse", panels, caption, legend)


def _drawable(group: Sequence[Record]) -> list[Record]:
    """Log-determinant cells with a measured and a predicted error, in the best dtype present."""
    found = [
        c
        for c in group
        if c.get("rmse")
        and c.get("matvecs")
        and derive.predicted_rmse(c)
        and c.get("estimand", "logdet") == "logdet"
    ]
    best = "float64" if any(c.get("dtype") == "float64" for c in found) else None
    return [c for c in found if best is None or c.get("dtype") == best]


def _rmse_panel(group: Sequence[Record], methods: Sequence[str]) -> Panel:
    cells = _drawable(group)
    series: dict[tuple[object, ...], list[Record]] = {}
    for cell in sorted(cells, key=label_key):
        series.setdefault((*label_key(cell), str(cell.get("law"))), []).append(cell)
    first = group[0]
    with panel() as (figure, ax):
        ends = [
            _rmse_series(ax, line, look(line[0]["method"], methods)) for line in series.values()
        ]
        _log_axes(ax, cells)
        _slope_guide(ax)
        if first.get("n"):
            ax.axvline(first["n"], color=FAINT, lw=0.9, zorder=0)
        _end_labels(ax, ends)
        title(ax, str(first["case"]))
        ax.set_xlabel("products with A per estimate")
        ax.set_ylabel("RMSE (nats)")
        worst_factor = max(c["rmse"] / (derive.predicted_rmse(c) or math.inf) for c in cells)
        alt = (
            f"RMSE against products for {first['case']}, n = {first.get('n')}: {len(series)} "
            f"configurations; largest ratio of measured to predicted error {worst_factor:.2f}."
        )
        return finish(figure, alt)


def _rmse_series(
    ax: Axes, line: Sequence[Record], style: tuple[str, str]
) -> tuple[float, float, str, str]:
    """Draw one configuration; returns where its curve ends, with text and colour for a label."""
    colour, marker = style
    line = sorted(line, key=lambda c: float(c["probes"]))
    m = np.array([c["probes"] for c in line], dtype=float)
    b = derive.bias(line[0])
    floor = abs(b.value) if b else 0.0
    variance = median(derive.one_probe_variance(c) or 0.0 for c in line)
    grid = np.geomspace(m.min(), 3 * m.max(), 60)
    products = _price(line)(grid)
    curve = np.hypot(floor, np.sqrt(variance / grid))
    ax.plot(products, curve, color=colour, lw=1.1, alpha=0.85)
    ax.plot(products[[30, -1]], [floor, floor], color=colour, lw=0.9, ls=":")
    rmse = np.array([c["rmse"] for c in line])
    relative = derive.QUANTILE / np.sqrt(2 * np.array([c.get("replicates") or 1 for c in line]))
    ax.errorbar(
        [c["matvecs"] for c in line],
        rmse,
        yerr=rmse * np.minimum(relative, 0.9),
        fmt=marker,
        ms=4.8,
        color=colour,
        mec="white",
        mew=0.5,
        elinewidth=0.9,
    )
    return float(products[-1]), float(curve[-1]), _config_text(line[0]), colour


def _price(line: Sequence[Record]) -> Callable[[np.ndarray], np.ndarray]:
    """Products as a function of m: those of a set-up and so many a probe."""
    first, last = line[0], line[-1]
    if first["probes"] == last["probes"]:
        return lambda m: m * (first["matvecs"] / first["probes"])
    slope = (last["matvecs"] - first["matvecs"]) / (last["probes"] - first["probes"])
    return lambda m: first["matvecs"] + slope * (m - first["probes"])


def _config_text(cell: Record) -> str:
    """The part of a label that the method's colour does not say already."""
    return ",".join(f"{v:g}" for v in config_numbers(cell))


def _log_axes(ax: Axes, cells: Sequence[Record]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    framed = [c for c in cells if cell_verdict(c) != "REPORTED"] or cells
    values = [v for c in framed for v in (c["rmse"], derive.predicted_rmse(c)) if v]
    ax.set_ylim(min(values) / 2.5, max(values) * 1.8)
    left, right = ax.get_xlim()
    ax.set_xlim(left, right * 1.25)
    ax.minorticks_off()
    low, high = ax.get_ylim()
    if high / low < 300:  # too few powers of ten to read a value from
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _slope_guide(ax: Axes) -> None:
    """A short grey line of slope −½ in the upper right corner, where no curve ends."""
    (x0, x1), (y0, y1) = np.log10(ax.get_xlim()), np.log10(ax.get_ylim())
    start, width = x0 + 0.66 * (x1 - x0), 0.22 * (x1 - x0)
    top = y0 + 0.96 * (y1 - y0)
    ax.plot(
        10 ** np.array([start, start + width]),
        10 ** np.array([top, top - width / 2]),
        color=FAINT,
        lw=1.2,
        ls=":",
    )
    end = 10 ** (start + width), 10 ** (top - width / 2)
    write(ax, *end, " −½", color="#6b7280", fontsize=7.5)


def _end_labels(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Configuration at the end of each curve, raised where it would cover another one."""
    (x0, x1), (y0, y1) = np.log10(ax.get_xlim()), np.log10(ax.get_ylim())
    placed: list[tuple[float, float]] = []
    for x, y, text, colour in sorted(ends, key=lambda end: (end[1], end[0])):
        u, v = (math.log10(x) - x0) / (x1 - x0), max((math.log10(y) - y0) / (y1 - y0), 0.02)
        if v > 1:
            continue
        while any(abs(u - a) < 0.07 and abs(v - b) < 0.055 for a, b in placed):
            v += 0.02
        placed.append((u, v))
        ax.annotate(
            text,
            (u, v),
            xycoords="axes fraction",
            xytext=(2, 0),
            textcoords="offset points",
            color=colour,
            fontsize=7.5,
            va="center",
            parse_math=False,
        )
