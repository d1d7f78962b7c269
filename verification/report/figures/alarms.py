"""p-values of the gate on an estimator known to be right: they should look uniform."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verification.report.figures.style import FAINT, INK, FigureGroup, finish, panel
from verification.report.records import Record
from verification.report.text import sig


def alarm_figure(control: Sequence[Record]) -> FigureGroup | None:
    """Histogram of p-values over all epochs, and their distribution function near zero."""
    values = np.sort(control[-1].get("p_values") or []) if control else np.empty(0)
    if not len(values):
        return None
    with panel() as (figure, ax):
        bins = np.linspace(0, 1, 21).tolist()
        ax.hist(values, bins=bins, color="#0072b2", edgecolor="white", lw=0.5)
        ax.axhline(len(values) / 20, color=INK, lw=1, ls="--")
        ax.set_xlabel("p-value of a family")
        ax.set_ylabel("count")
        one = finish(figure, f"Histogram of {len(values)} p-values; the dashed line is uniform.")
    with panel() as (figure, ax):
        ax.loglog([values[0], 1], [values[0], 1], color=FAINT, lw=1)
        ax.loglog(values, np.arange(1, len(values) + 1) / len(values), color="#0072b2")
        ax.set_xlabel("level of one family")
        ax.set_ylabel("share rejected at that level")
        alt = f"Share of p-values below each level; the smallest is {sig(float(values[0]))}."
        two = finish(figure, alt)
    caption = (
        "p-values of the families of the sampling tier on the trusted sampler. Left: a valid test "
        "gives a flat histogram, a conservative one leans to the right. Right: the share rejected "
        "at each level must not rise above the grey diagonal by more than chance."
    )
    return FigureGroup("alarms", [one, two], caption)
