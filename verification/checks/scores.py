"""What one cell says: normal scores of mean, variance, error bars and coverage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from specbp import generator_for
from specbp.testing import outcome, pvalues
from verification.checks.replicates import Drawn, Reference
from verification.checks.settings import Settings

NEAR_NORMAL = 1.0  # excess kurtosis of an estimate up to which Box's χ² keeps its level
REFERENCE = 2**14  # draws behind a reference coverage
NOMINAL = 0.95
CONSERVATIVE = 0.8  # E[se²] / Var that an error bar which is none too small keeps


class Score(NamedTuple):
    """What one cell says: a score, its size for one unit of effect, and the statistic itself."""

    z: float
    sensitivity: float
    statistic: float


Scorer = Callable[[Reference, Drawn, Settings], Score | None]


def mean(ref: Reference, drawn: Drawn, _settings: Settings) -> Score:
    """Mean against its expectation; the sign is that of tr f(A), so that faults add up."""
    R, found = len(drawn.values), float(drawn.values.mean())
    if ref.law is None:
        sd = float(drawn.values.std(ddof=1))
        z = _student((found - ref.centre(found)) / (sd / math.sqrt(R)), R)
    else:
        sd = ref.sd
        z = _score_of_mean(ref, found - ref.centre(found), R)
    sign = -1 if ref.one.mean < 0 else 1
    return Score(sign * z, math.sqrt(R), (found - ref.one.mean) / sd)


def _score_of_mean(ref: Reference, deviation: float, R: int) -> float:
    if ref.law == "gaussian":
        cgf = pvalues.gaussian_cgf(np.linalg.eigvalsh(ref.B), ref.cell.m)
        return pvalues.saddlepoint_score(ref.one.mean + deviation, cgf, R)
    # Truncation may add to the standard deviation as well.
    z = deviation / ((ref.sd + ref.slack) / math.sqrt(R))
    return pvalues.cornish_fisher(z, ref.estimate.averaged(R))


def _student(t: float, R: int) -> float:
    return math.copysign(outcome.normal_score(2 * stats.t.sf(abs(t), R - 1)), t)


def variance(ref: Reference, drawn: Drawn, _settings: Settings) -> Score | None:
    """Mean square about the expectation against the exact variance, by Box's χ²."""
    excess = ref.estimate.excess_kurtosis
    if ref.law is None or excess > NEAR_NORMAL:
        return None
    R = len(drawn.values)
    square = float(np.mean((drawn.values - ref.one.mean) ** 2))
    z = pvalues.box_score(ref.ratio(square), pvalues.box_freedom(R, excess))
    return Score(z, math.sqrt(R / (excess + 2)), square / ref.estimate.variance)


def error_bars(ref: Reference, drawn: Drawn, _settings: Settings) -> Score | None:
    """Mean of se² against the exact variance; of m values it has variance σ⁴ (e/m + 2/(m−1))."""
    m, R = ref.cell.m, len(drawn.errors)
    if ref.law is None or ref.estimate.excess_kurtosis > NEAR_NORMAL:
        return None
    square = float(np.mean(drawn.errors**2))
    spread = ref.one.excess_kurtosis / m + 2 / (m - 1)
    z = pvalues.box_score(ref.ratio(square), 2 * R / spread)
    return Score(z, math.sqrt(R / spread), square / ref.estimate.variance)


def coverage(ref: Reference, drawn: Drawn, settings: Settings) -> Score | None:
    """Hits of the 95 % interval against those of a dense simulation of the law.

    A count is discrete: its score is that of a point chosen at random within its step, which makes
    it normal where nothing is wrong (Dunn & Smyth 1996, doi:10.2307/1390802).
    """
    if ref.law is None or ref.cell.m * ref.cell.n > 100:
        return None
    known, R = _reference_coverage(ref, settings), len(drawn.values)
    half = stats.t.isf((1 - NOMINAL) / 2, ref.cell.m - 1) * drawn.errors
    hits = int(np.sum(np.abs(drawn.values - ref.one.mean) <= half))
    # The reference is a count as well: hits given the hits of both are hypergeometric.
    both = stats.hypergeom(REFERENCE + R, known + hits, R)
    u = np.random.default_rng(_seed("coverage", str(ref.cell), settings.epoch, R)).uniform()
    tail = both.sf(hits) + u * both.pmf(hits)
    share = known / REFERENCE
    sensitivity = math.sqrt(R / max(share * (1 - share), 1 / REFERENCE))
    return Score(float(stats.norm.isf(tail)), sensitivity, hits / R - share)


def _reference_coverage(ref: Reference, settings: Settings) -> int:
    """Hits among `REFERENCE` estimates drawn from dense forms, by a generator of its own."""
    rng = np.random.default_rng(_seed("reference", str(ref.cell), settings.epoch))
    n, m = ref.cell.n, ref.cell.m
    if ref.law == "rademacher":
        X = 1.0 - 2.0 * rng.integers(0, 2, (REFERENCE * m, n))
    else:
        X = rng.standard_normal((REFERENCE * m, n))
    if ref.law == "sphere":
        X *= math.sqrt(n) / np.linalg.norm(X, axis=1, keepdims=True)
    forms = np.einsum("ij,ij->i", X @ ref.B, X).reshape(REFERENCE, m)
    half = stats.t.isf((1 - NOMINAL) / 2, m - 1) * forms.std(1, ddof=1) / math.sqrt(m)
    return int(np.sum(np.abs(forms.mean(1) - ref.one.mean) <= half))


def _seed(*key: object) -> int:
    return generator_for("gate", *key).initial_seed()


def bars_of_unknown(_ref: Reference, drawn: Drawn, _settings: Settings) -> Score:
    """Mean of se² against the variance of the values, where neither is known: delta method."""
    squares = drawn.errors**2
    deviations = (drawn.values - drawn.values.mean()) ** 2
    terms = squares / squares.mean() - deviations / deviations.mean()
    spread = float(terms.std(ddof=1)) / math.sqrt(len(terms))
    ratio = float(squares.mean() / drawn.values.var(ddof=1))
    return Score(math.log(ratio) / spread if ratio > 0 else -math.inf, 1 / spread, ratio)


def bars_not_small(ref: Reference, drawn: Drawn, settings: Settings) -> Score:
    """The same where error bars may be too large: only a ratio below `CONSERVATIVE` counts."""
    found = bars_of_unknown(ref, drawn, settings)
    ratio = found.statistic / CONSERVATIVE
    z = min(math.log(ratio), 0.0) * found.sensitivity if ratio > 0 else -math.inf
    return Score(z, found.sensitivity, found.statistic)
