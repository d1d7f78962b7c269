"""Heat maps dimension × probes of the standardised mean error and of the variance ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from verification.report.figures.style import (
    INK,
    VERDICT_COLOUR,
    FigureGroup,
    Panel,
    finish,
    panel,
    title,
    write,
)
from verification.report.records import Record
from verification.report.text import sig, signed
from verification.report.verdicts import SYMBOL, cell_verdict, check_verdict, worst

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Quantity:
    """What a heat map shows: a number, its check, and its deviation where the check has no p."""

    name: str
    check: str
    value: Callable[[Record], float]
    deviation: Callable[[Record], float]


Z = Quantity("z", "mean", lambda c: float(c["z"]), lambda c: float(c["z"]))
LOG_RATIO = Quantity(
    "log variance ratio",
    "variance",
    lambda c: math.log(c["var_ratio"]),
    lambda c: math.log(c["var_ratio"]) / math.sqrt(2 / (c.get("replicates") or 1)),
)

_READING = (
    "The number is that of the most significant cell of the square; the colour allows for how "
    "many cells there are to choose from, so that chance leaves most squares pale. It saturates "
    "at {limit:.2f} standard deviations, where a check with α = {alpha} rejects. "
)
_MARKS = (
    "Outlined squares hold a check that is not PASS (✗ fail, ? inconclusive, i reported); "
    "reported cells enter number and colour only where there are no others."
)


def z_figure(cells: Sequence[Record], methods: Sequence[str]) -> FigureGroup | None:
    """Heat maps dimension × probes of the most significant z of each method."""
    tested = [c for c in cells if c.get("z") is not None and c.get("probes")]
    if not tested:
        return None
    alpha = _alpha(tested, Z.check)
    caption = (
        "Standardised error of the mean, z = (mean − expectation)·√R / sd, over all cases of each "
        f"order n. {_READING.format(limit=_limit(alpha), alpha=sig(alpha))}"
        "A row or a column of one colour would be a bias that depends on n or on the number of "
        f"probes; a single dark square is one cell to look at. {_MARKS}"
    )
    return FigureGroup("z", _heat_maps(tested, methods, Z, _limit(alpha)), caption)


def variance_figure(cells: Sequence[Record], methods: Sequence[str]) -> FigureGroup | None:
    """Heat maps dimension × probes of the most significant log variance ratio of each method."""
    tested = [c for c in cells if (c.get("var_ratio") or 0.0) > 0.0 and c.get("probes")]
    if not tested:
        return None
    alpha = _alpha(tested, LOG_RATIO.check)
    caption = (
        "Natural logarithm of measured over exact variance, over all cases of each order n. "
        "Exact is the closed form for the polynomial applied, or for log A where there is none. "
        f"{_READING.format(limit=_limit(alpha), alpha=sig(alpha))}"
        "Blue throughout would be a variance that is too small for the probes claimed, red "
        f"throughout a variance that is too large, such as probes used twice. {_MARKS}"
    )
    panels = _heat_maps(tested, methods, LOG_RATIO, _limit(alpha))
    return FigureGroup("variance", panels, caption)


def _limit(alpha: float) -> float:
    return _NORMAL.inv_cdf(1 - alpha / 2)


def _alpha(cells: Sequence[Record], name: str) -> float:
    """Median α of the checks with this name; the 99 % of the intervals where none has one."""
    found = [check["alpha"] for c in cells for check in _checks(c, name) if check.get("alpha")]
    return median(found) if found else 0.01


def _checks(cell: Record, name: str) -> list[Record]:
    return [check for check in cell.get("checks") or [] if check["name"] == name]


def p_value(cell: Record, quantity: Quantity) -> float:
    """Two-sided p of the quantity in one cell: the check's own, else a normal approximation."""
    found = [c["p"] for c in _checks(cell, quantity.check) if c.get("p") is not None]
    return float(found[0]) if found else 2 * _NORMAL.cdf(-abs(quantity.deviation(cell)))


def evidence(p: float, count: int) -> float:
    """|deviation| in standard deviations of the smallest p of `count` cells, chosen as smallest.

    >>> round(evidence(0.001, 1), 2), round(evidence(0.001, 100), 2)
    (3.29, 1.67)
    """
    adjusted = -math.expm1(count * math.log1p(-min(p, 1 - 1e-16)))
    return -_NORMAL.inv_cdf(max(adjusted, 1e-300) / 2)


@dataclass(frozen=True)
class Square:
    """One square of a heat map: number, signed evidence, worst verdict of the check."""

    value: float
    colour: float
    verdict: str


def square(cells: Sequence[Record], quantity: Quantity) -> Square:
    """The most significant of some cells; reported cells only where there are no others."""
    gated = [c for c in cells if cell_verdict(c) != "REPORTED"] or list(cells)
    p, chosen = min(((p_value(c, quantity), c) for c in gated), key=lambda pair: pair[0])
    value = quantity.value(chosen)
    verdicts = [check_verdict(check, c) for c in cells for check in _checks(c, quantity.check)]
    verdicts += ["REPORTED" for c in cells if cell_verdict(c) == "REPORTED"]
    colour = math.copysign(evidence(p, len(gated)), value)
    return Square(value, colour, worst(verdicts) or "PASS")


Squares = dict[tuple[int, int], Square]


def _heat_maps(
    cells: Sequence[Record], methods: Sequence[str], quantity: Quantity, limit: float
) -> list[Panel]:
    by_method = [(m, [c for c in cells if c["method"] == m]) for m in methods]
    return [_heat_map(m, found, quantity, limit) for m, found in by_method if found]


def _heat_map(method: str, cells: Sequence[Record], quantity: Quantity, limit: float) -> Panel:
    groups: dict[tuple[int, int], list[Record]] = {}
    for c in cells:
        groups.setdefault((c.get("n") or 0, c["probes"]), []).append(c)
    orders, probes = sorted({n for n, _ in groups}), sorted({m for _, m in groups})
    squares = {
        (orders.index(n), probes.index(m)): square(found, quantity)
        for (n, m), found in groups.items()
    }
    with panel((4.2, max(2.1, 0.95 + 0.235 * len(orders)))) as (figure, ax):
        image = np.full((len(orders), len(probes)), np.nan)
        for place, found in squares.items():
            image[place] = np.clip(found.colour, -limit, limit)
        drawn = ax.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        bar = figure.colorbar(drawn, ax=ax, fraction=0.05, pad=0.02)
        bar.set_label("standard deviations", fontsize=7.5)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=7.5)
        _write_squares(ax, squares, limit)
        _axes(ax, orders, probes)
        title(ax, f"{method}: {quantity.name}")
        return finish(figure, _alt(method, quantity.name, squares, orders, probes))


def _write_squares(ax: Axes, squares: Squares, limit: float) -> None:
    for (i, j), found in squares.items():
        size = abs(found.value)
        text = f"{found.value:{'+.2f' if size < 9.95 else '+.1f' if size < 999 else '+.0e'}}"
        marked = found.verdict != "PASS"
        if marked:
            text = f"{SYMBOL[found.verdict]} {text}"
            colour = VERDICT_COLOUR[found.verdict]
            ax.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, ec=colour, lw=1.8))
        write(
            ax,
            j,
            i,
            text.replace("-", "−"),
            ha="center",
            va="center",
            fontsize=7.2,
            color="white" if abs(found.colour) > 0.7 * limit else INK,
            weight="bold" if marked else "normal",
        )


def _axes(ax: Axes, orders: Sequence[int], probes: Sequence[int]) -> None:
    ax.set_xticks(range(len(probes)), [f"{m:g}" for m in probes])
    ax.set_yticks(range(len(orders)), [f"{n:g}" for n in orders])
    ax.set_xlabel("probes m")
    ax.set_ylabel("order n")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _alt(
    method: str, what: str, squares: Squares, orders: Sequence[int], probes: Sequence[int]
) -> str:
    (i, j), found = max(squares.items(), key=lambda item: abs(item[1].colour))
    marked = sum(s.verdict != "PASS" for s in squares.values())
    return (
        f"Heat map of {what} for {method}, {len(orders)} orders by {len(probes)} numbers of "
        f"probes: most significant {signed(found.value)} at n = {orders[i]}, m = {probes[j]}; "
        f"{marked} of {len(squares)} squares marked."
    )
