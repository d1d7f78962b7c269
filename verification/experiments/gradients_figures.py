"""Figures of the study of gradients: memory and time against steps, noise and bias by shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes

from verification.experiments.gradients_derived import budgets, chosen, names, shapes
from verification.experiments.gradients_estimators import COST, EXACT, NOISE, PLAIN
from verification.experiments.outputs import COLOURS, canvas, png, unique_legend
from verification.store import Record

COLUMNS = 4
FLOOR = 1e-3  # what is less, as where the probes fill the space, is exact
SHOWN = [row.name for row in NOISE if row.rtol is None]
COLOUR = dict(zip(SHOWN, COLOURS, strict=False)) | {EXACT.name: "#000000", PLAIN: "#999999"}


def all_of(records: list[Record]) -> dict[str, bytes]:
    """Figures by file name."""
    costs = names(records, "memory")
    return {
        "memory.png": _grid(records, costs, "memory", _memory),
        "time.png": _grid(records, costs, "time", _time),
        "noise.png": _grid(records, names(records, "noise"), "noise", _noise),
    }


def _grid(
    records: list[Record], cases: list[str], kind: str, draw: Callable[[Axes, Any, str], None]
) -> bytes:
    columns = min(COLUMNS, len(cases))
    rows = -(-len(cases) // columns)
    with canvas(rows, columns, 0.8 + 2.7 * rows) as (figure, axes):
        used = axes.flat[: len(cases)]
        for ax, case in zip(used, cases, strict=True):
            draw(ax, records, case)
            ax.set_title(case)
        for ax in axes.flat[len(cases) :]:
            ax.set_axis_off()
        labels = {
            "memory": "peak saved tensors (MiB)",
            "time": "forward + backward (ms)",
            "noise": f"relative to |exact gradient|; below {FLOOR:g} drawn there",
        }
        figure.supylabel(labels[kind])
        about = f", {budgets(records)[-2:][0]} products" if kind == "noise" else ""
        figure.supxlabel(f"degree or steps for each probe{about}")
        unique_legend(figure, list(used), loc="outside upper center", ncols=4)
        return png(figure)


def _memory(ax: Axes, records: list[Record], case: str) -> None:
    _lines(ax, records, case, "memory", "bytes", 2**-20)
    for row in COST:
        own = chosen(records, "memory", case=case, estimator=row.name)
        values = [2**-20 * (r["bytes"] + r["held"]) for r in own]
        ax.plot([r["steps"] for r in own], values, ":", color=COLOUR[row.name])
    ax.plot([], [], ":", color="grey", label="dotted: with vectors held")


def _time(ax: Axes, records: list[Record], case: str) -> None:
    _lines(ax, records, case, "time", "seconds", 1e3)


def _lines(ax: Axes, records: list[Record], case: str, kind: str, value: str, unit: float) -> None:
    for row in COST:
        own = chosen(records, kind, case=case, estimator=row.name)
        values = [unit * r[value] for r in own]
        ax.plot([r["steps"] for r in own], values, "o-", color=COLOUR[row.name], label=row.name)
    (exact,) = chosen(records, kind, case=case, estimator=EXACT.name)
    ax.axhline(unit * exact[value], color=COLOUR[EXACT.name], ls="--", label=EXACT.name)
    _logarithmic(ax, [r["steps"] for r in chosen(records, kind, case=case) if r["steps"]])


def _noise(ax: Axes, records: list[Record], case: str) -> None:
    found = shapes(records, case, budgets(records)[-2:][0])
    for name in SHOWN:
        own = sorted((s for s in found if s.estimator == name), key=lambda s: s.steps)
        if own:
            steps = [s.steps for s in own]
            ax.plot(
                steps,
                [max(s.rmse, FLOOR) for s in own],
                "o-",
                color=COLOUR[name],
                label=f"{name}: RMSE",
            )
            ax.plot(steps, [max(s.std, FLOOR) for s in own], ":", color=COLOUR[name])
    ax.plot([], [], ":", color="grey", label="dotted: std alone")
    _logarithmic(ax, [s.steps for s in found if s.steps])


def _logarithmic(ax: Axes, steps: Sequence[int]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(sorted(set(steps)), labels=map(str, sorted(set(steps))))
    ax.minorticks_off()
