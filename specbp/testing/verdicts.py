"""From a check to an assertion: a message that says what was found and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from specbp.testing.outcome import FAIL, INCONCLUSIVE, POWER, Check

_WIDTH = 10


def settle(
    check: Check,
    *,
    likely: Sequence[str] = (),
    remedy: str = "",
    allow_inconclusive: bool = False,
) -> Check:
    """Return a check that passed; raise for one that did not.

    Raises:
        AssertionError: The verdict is FAIL, or INCONCLUSIVE and that is not allowed.
    """
    if check.verdict == FAIL or (check.verdict == INCONCLUSIVE and not allow_inconclusive):
        raise AssertionError(explain(check, likely=likely, remedy=remedy))
    return check


def explain(check: Check, *, likely: Sequence[str] = (), remedy: str = "") -> str:
    """The check in several lines: measured, reference, p, size, power, likely causes, remedy."""
    lines = [f"{check.verdict} {check.name}: {check.claim}"]
    lines += [_line("found", check.message)]
    # Something that holds or does not has no size worth a line.
    measured = check.margin is not None or check.p is not None
    if measured and not math.isnan(check.reference):
        gap = check.statistic - check.reference
        share = f" ({gap / abs(check.reference):+.3g} of it)" if check.reference else ""
        lines += [_line("measured", f"{check.statistic:.10g}")]
        lines += [_line("reference", f"{check.reference:.10g}")]
        lines += [_line("gap", f"{gap:+.4g}{share}")]
    if check.p is not None:
        lines += [_line("p-value", f"{check.p:.3g}, level {check.alpha:.2g}")]
    if check.size is not None:
        lines += [_line("sample", f"{check.size} evaluations")]
    if check.detectable is not None:
        text = f"effects of {check.detectable:.3g} with probability {POWER}"
        lines += [_line("detects", f"{text}, margin {check.margin:g}")]
    lines += [_line("likely", text) for text in likely]
    lines += [_line("to do", remedy)] if remedy else []
    return "\n".join(lines)


def _line(label: str, text: str) -> str:
    return f"  {label:<{_WIDTH}}{text}"


def causes_of_mean(
    mean: float, expected: float, *, n: int, m: int, slack: float, offsets: np.ndarray | None
) -> list[str]:
    """What a wrong mean looks like: a lost sign, a factor, a constant.

    Args:
        mean: Of the estimates.
        expected: What it should be.
        n: Order of the matrix.
        m: Probes of one estimate.
        slack: How far a suspicion may be off, absolutely.
        offsets: Value minus xᵀBx of every evaluation, where the form B is known.
    """
    slack = max(slack, 1e-6 * abs(expected))
    suspicions = [
        (-expected, "the sign is lost: the mean is minus the expected value"),
        (m * expected, f"the sum over {m} probes is not divided by their number"),
        (expected / m, f"the mean over {m} probes is divided by their number twice"),
        (2 * expected, "a factor of 2: log det JᵀJ = 2 log |det J|"),
        (expected / 2, "a factor of 1/2: log det JᵀJ = 2 log |det J|"),
        (n * expected, f"probes of norm √n are normalised to 1, or n = {n} is counted twice"),
        (expected / n, f"a factor n = {n} is missing: xᵀx = n"),
    ]
    found = [
        text for value, text in suspicions if abs(mean - value) <= slack < abs(value - expected)
    ][:1]
    if offsets is not None and len(offsets) > 1:
        size = float(np.abs(offsets).max())
        if size > slack and float(np.ptp(offsets)) <= max(slack, 1e-6 * size):
            c = float(offsets.mean()) / n
            found.append(
                f"every evaluation is off by the same {n} × {c:.6g}: a constant term, such as a "
                "zeroth Chebyshev coefficient that is not halved or a forgotten log of a scale"
            )
    return found or [
        "a bias of the method itself (truncation, a stopping rule), or a wrong coefficient",
    ]


def causes_of_variance(ratio: float, m: int) -> list[str]:
    """What a wrong variance looks like, from its ratio to the right one."""
    suspicions = [
        (0.0, "the value does not depend on the probes: they are frozen, or drawn elsewhere"),
        (m, f"{m} times too large: only one of {m} probes is used, or all are equal"),
        (m**2, f"{m}² times too large: the sum is not divided by {m}"),
        (2.0, "twice too large: pairs ±x are counted as two probes"),
    ]
    found = [text for value, text in suspicions if value != 1 and abs(ratio - value) < 0.1 * value]
    if ratio < 0.01:
        found = [suspicions[0][1]]
    return found[:1] or ["probes of another law, or probes shared between evaluations"]


def causes_of_ratio(ratio: float, m: int, slack: float) -> list[str]:
    """What a wrong E[se²] / Var looks like."""
    suspicions = [
        ((m - 1) / m, f"the ratio is (m − 1)/m = {(m - 1) / m:.4g}: ddof = 0, want ddof = 1"),
        (m, f"the ratio is m = {m}: the standard deviation is not divided by √m"),
        (1 / m, f"the ratio is 1/m = {1 / m:.4g}: divided by m instead of √m"),
        (2, "the ratio is 2: antithetic or paired probes, or √2 too much"),
        (0.5, "the ratio is 1/2: pairs of equal values are counted as independent"),
    ]
    found = [text for value, text in suspicions if value != 1 and abs(ratio - value) <= slack]
    return found[:2] or [
        "values that are not independent (leave-one-out, orthogonal or shared probes), or a wrong "
        "formula of the error bar"
    ]
