"""Overhead of the estimators, and their error in float32, both against limits."""

from __future__ import annotations

from collections.abc import Sequence

from verification.report.figures.style import (
    FAINT,
    INK,
    VERDICT_COLOUR,
    FigureGroup,
    Mark,
    finish,
    look,
    method_legend,
    panel,
    write,
)
from verification.report.records import Record, method_rank
from verification.report.text import plural, sig
from verification.report.verdicts import limit_verdict


def cost_figure(timing: Sequence[Record]) -> FigureGroup | None:
    """Time of an estimate over the time of its products, with the limits."""
    rows = [t for t in timing if t.get("ratio") is not None]
    if not rows:
        return None
    with panel((4.6, 0.75 + 0.36 * len(rows))) as (figure, ax):
        for i, t in enumerate(rows):
            over = limit_verdict(t["ratio"], t.get("limit")) == "FAIL"
            colour = VERDICT_COLOUR["FAIL"] if over else "#0072b2"
            ax.plot([1, t["ratio"]], [i, i], color=FAINT, lw=1.2)
            ax.plot(t["ratio"], i, "X" if over else "o", ms=6, color=colour)
            if t.get("limit") is not None:
                ax.plot(t["limit"], i, "|", ms=11, mew=2, color=INK)
            name = f" {t.get('method')}, {t.get('problem')}"
            write(ax, 1, i - 0.22, name, fontsize=8, va="bottom")
        ax.axvline(1.0, color="#6b7280", lw=0.9)
        ax.set_yticks([])
        ax.set_ylim(len(rows) - 0.5, -0.9)
        ax.set_xlabel("time of the estimate / time of its products alone")
        one = finish(figure, _cost_alt(rows))
    caption = (
        "Time of an estimate over the time of the same products alone; the upright bar of each "
        "row is its limit. One is the floor; a dot (then a red cross) beyond its bar is overhead "
        "that the estimator adds to its products."
    )
    return FigureGroup("cost", [one], caption)


def _cost_alt(rows: Sequence[Record]) -> str:
    over = sum(limit_verdict(t["ratio"], t.get("limit")) == "FAIL" for t in rows)
    largest = max(rows, key=lambda t: float(t["ratio"]))
    return (
        f"Overhead ratios of {plural(len(rows), 'problem')}: largest {sig(largest['ratio'])} for "
        f"{largest.get('method')} on {largest.get('problem')}; {over} over their limits."
    )


def precision_figure(precision: Sequence[Record], methods: Sequence[str]) -> FigureGroup | None:
    """Error in float32 against the condition number, with the limits."""
    rows = [p for p in precision if p.get("error") and p.get("cond")]
    if not rows:
        return None
    shown = sorted({p["method"] for p in rows}, key=method_rank)
    every = [*methods, *shown]
    with panel((4.6, 3.5)) as (figure, ax):
        for method in shown:
            line = sorted((p for p in rows if p["method"] == method), key=lambda p: p["cond"])
            colour, marker = look(method, every)
            ax.plot(
                [p["cond"] for p in line],
                [p["error"] for p in line],
                color=colour,
                marker=marker,
                ms=5,
                mec="white",
                mew=0.5,
            )
            limits = [p for p in line if p.get("limit") is not None]
            ax.plot(
                [p["cond"] for p in limits],
                [p["limit"] for p in limits],
                "_",
                ms=13,
                mew=1.8,
                color=colour,
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.minorticks_off()
        ax.set_xlabel("condition number of A")
        ax.set_ylabel("error in float32")
        beyond = sum(limit_verdict(p["error"], p.get("limit")) == "FAIL" for p in rows)
        alt = (
            f"Error in float32 against the condition number for {plural(len(shown), 'method')}, "
            f"{plural(len(rows), 'point')}, {beyond} beyond their limits."
        )
        one = finish(figure, alt)
    legend = [
        *method_legend(shown, every),
        Mark("limit of the method, in its colour", INK, "M5 6h14"),
    ]
    caption = (
        "Error of methods that work in float32 against the condition number of A. A point above "
        "the bar of its colour breaks a promise. A method that works on J should rise with the "
        "square root of the condition number where one that works on A = JᵀJ rises with the "
        "condition number itself."
    )
    return FigureGroup("precision", [one], caption, legend)
