r"""Whether the integrals of the study of preimages are what its draws say, by Student's t.

.. math:: t = \frac{\bar d}{s / \sqrt R}, \qquad d_r = \text{integral}_r - \text{expected}_r

with R independent repeats of each, so that t has R − 1 degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence

from scipy import stats

from verification.store import Record

LEVEL = 1e-3  # false-alarm rate of all comparisons together
POINT = 0.05  # of the mass: where one point stands for more, the integral is not resolved
ROUNDING = 1e-12


def verdict(records: Sequence[Record]) -> Record:
    """Whether every check of the preimages and every comparison of integrals is passed."""
    scores = {
        f"{r['name']}, {key}": score(r, key)
        for r in records
        if "repeats" in r
        for key in compared(r)
    }
    repeats = next((r["repeats"] for r in records if "repeats" in r), 2)
    limit = float(stats.t.isf(LEVEL / (2 * max(len(scores), 1)), repeats - 1))
    worst = max(scores, key=lambda key: abs(scores[key]), default="")
    within = all(abs(value) <= limit for value in scores.values())
    return {
        "comparisons": len(scores),
        "repeats": repeats,
        "level": LEVEL,
        "limit": limit,
        "largest": abs(scores.get(worst, 0.0)),
        "worst": worst,
        "unresolved": [r["name"] for r in records if "repeats" in r and not resolved(r)],
        "unsound": [r["name"] for r in records if not sound(r)],
        "passed": within and all(sound(r) for r in records),
    }


def sound(record: Record) -> bool:
    """Whether no check of the preimages contradicts them.

    Every draw is found again, the signs of det J add up to the winding number, Newton's method
    finds nothing that was not located, and a known answer is met.
    """
    whole = ("recovered", "winding_agrees", "known_count")
    return all(record.get(key, 1.0) == 1.0 for key in whole) and not record["newton_extra"]


def resolved(record: Record) -> bool:
    """Whether uniform points can meet the density: a near-singular map has it on a curve."""
    return bool(record["point_mass"] <= POINT)


def compared(record: Record) -> tuple[str, ...]:
    """The integrals of a record that are judged."""
    return ("all", "one", "inverse") if resolved(record) else ("inverse",)


def score(record: Record, key: str) -> float:
    """Student's t of integral less expectation."""
    return float(record[f"{key}_gap"] / max(record[f"{key}_gap_se"], ROUNDING))
