"""p-values of the gate on an estimator known to be right: they should look uniform."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from verification.report.figures.style import FAINT, INK, FigureGroup, finish, panel
from verification.report.records import Record
from verification.report.text import sig


def alarm_figure(control: Sequence[Record]) -> FigureGroup | None:
    """Scores of all families and epochs, and the share of them rejected at each level."""
    last = control[-1] if control else {}
    scores, values = np.array(last.get("scores") or []), np.sort(last.get("p_values") or [])
    if not len(scores) or not len(values):
        return None
    with panel() as (figure, ax):
        bins = np.linspace(0, 1, 21).tolist()
        ax.hist(stats.norm.cdf(scores), bins=bins, color="#0072b2", edgecolor="white", lw=0.5)
        ax.axhline(len(scores) / 20, color=INK, lw=1, ls="--")
        ax.set_xlabel("Φ(z) of a family's score")
        ax.set_ylabel("count")
        one = finish(figure, f"Histogram of {len(scores)} scores; the dashed line is uniform.")
    with panel() as (figure, ax):
        ax.loglog([values[0], 1], [values[0], 1], color=FAINT, lw=1)
        ax.loglog(values, np.arange(1, len(values) + 1) / len(values), color="#0072b2")
        ax.set_xlabel("level of one family")
        ax.set_ylabel("share rejected at that level")
        alt = f"Share of p-values below each level; the smallest is {sig(float(values[0]))}."
        two = finish(figure, alt)
    caption = (
        "The families of the sampling tier on the trusted sampler. Left: scores, which a valid "
        "test makes standard normal, so that the histogram is flat. Right: the share rejected at "
        "each level, all three tests of a family together; it must not rise above the grey "
        "diagonal by more than chance, and lies below it because bounds are added up."
    )
    return FigureGroup("alarms", [one, two], caption)
