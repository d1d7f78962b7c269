"""S1–S7: what sampling says of an estimator, its outputs alone, against exact moments.

A family is one question, such as the mean, put to all cells (spectrum, order, probes): each cell
gives one normal score, and Holm, Stouffer and spread judge them at a third of the level each. The
cells of a family have seeds of their own, as their sums require. Families share replicates: the
levels of families are added up, which needs no independence. A suspicious family is asked again
with more replicates and fresh seeds at each look, the level split over the looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from specbp.testing import multiplicity, outcome
from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, Check
from verification.checks import replicates
from verification.checks.replicates import Drawn, Reference, Source
from verification.checks.scores import (
    Score,
    Scorer,
    bars_not_small,
    bars_of_unknown,
    coverage,
    error_bars,
    mean,
    variance,
)
from verification.checks.settings import Settings
from verification.subjects import Subject

SUSPICIOUS = 1e-2  # p-value of a family below which it is asked again
JOINT = 400  # replicates from which Student's t keeps its level
SINGLES = 8  # calls of one estimate each, beside the batch, that must all differ
ENTROPY = 64  # bits in the probes of an estimate above which equal outputs are no chance


@dataclass(frozen=True)
class Question:
    """One question to a family of cells.

    Attributes:
        name: Code and name of the check.
        claim: The sentence that is put to the test.
        score: What one cell says.
        margin: Smallest effect that matters, if it is present in all cells.
        unit: What an effect is.
    """

    name: str
    claim: str
    score: Scorer
    margin: float
    unit: str


MEAN = "sd of one estimate"
RATIO = "ratio − 1"
VALUES = (
    Question("S1 mean", "the expectation is that of the contract", mean, 0.2, MEAN),
    Question("S2 variance", "the variance is that of the probe law", variance, 0.25, RATIO),
    Question("S3 error bars", "E[se²] is the variance of the estimate", error_bars, 0.25, RATIO),
    Question(
        "S4 coverage",
        "the 95 % interval covers as often as that of an ideal sample of the law",
        coverage,
        0.05,
        "share of intervals",
    ),
)
GRADIENTS = (
    Question("S6 gradient mean", "the gradient has the expectation of its form", mean, 0.2, MEAN),
    Question("S7 gradient variance", "the gradient has its form's variance", variance, 0.25, RATIO),
)


def run(subject: Subject, settings: Settings) -> list[Check]:
    """One check for each family that applies, and one for equal outputs."""
    if subject.claims.expectation == "exact":
        return []
    subject = replicates.prepared(subject)
    source = Source(subject, settings)
    refs = replicates.references(subject)
    found = [asked(q, refs, source.values, settings) for q in _questions(subject, refs)]
    found.append(_guarded("S5 duplicates", DISTINCT, lambda: duplicates(refs, source)))
    along = replicates.gradient_references(subject)
    if along:
        found += [asked(q, along, source.gradients, settings) for q in GRADIENTS]
    return [check for check in found if check is not None]


def _questions(subject: Subject, refs: Sequence[Reference]) -> tuple[Question, ...]:
    means, variances, bars, hits = VALUES
    if subject.claims.expectation == "model":
        return ()
    if subject.claims.conservative:
        claim = "E[se²] is no less than 0.8 of the variance of the estimate"
        return (means, variances, replace(bars, claim=claim, score=bars_not_small))
    if not subject.claims.calibrated:
        return (means, variances)
    if any(ref.law is None for ref in refs):
        return (means, replace(bars, score=bars_of_unknown))
    return (means, variances, bars, hits)


Draw = Callable[[Reference, int], Drawn]


def asked(
    question: Question, refs: Sequence[Reference], draw: Draw, settings: Settings
) -> Check | None:
    return _guarded(question.name, question.claim, lambda: family(question, refs, draw, settings))


def _guarded(name: str, claim: str, check: Callable[[], Check | None]) -> Check | None:
    """The check; what the estimator raises counts as its failure."""
    try:
        return check()
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        return outcome.broken(name, claim, f"raised {type(error).__name__}: {text}")


def family(question: Question, refs: Sequence[Reference], draw: Draw, settings: Settings) -> Check:
    """Ask all cells; while the answer is suspicious or blind, ask again with more replicates.

    Each look has its share of the level, and fails on its own: by the union bound right code fails
    with probability `settings.alpha` at most. REPORTED where no cell has an exact reference.
    """
    sizes = _sizes(refs, settings)
    detectable = math.inf
    for R, share in zip(sizes, _shares(len(sizes)), strict=True):
        looked = _look(question, refs, draw, R, settings)
        if not looked:
            reason = "no cell with an exact reference"
            return outcome.reported(question.name, question.claim, math.nan, math.nan, reason)
        level = settings.alpha * share
        judged = multiplicity.combined([score.z for _, score in looked], level)
        if detectable > question.margin:
            last = sizes[-1] == R
            ratio = question.unit == RATIO
            detectable = _detectable(looked, level if last else SUSPICIOUS, ratio=ratio)
        seeing = detectable <= question.margin
        if judged.rejected or (seeing and judged.p > SUSPICIOUS):
            break
    return _verdict(question, looked, judged, share, R, detectable, settings)


def _sizes(refs: Sequence[Reference], settings: Settings) -> list[int]:
    """Replicates at each look: where the law is not known, as many as Student's t wants."""
    least = max((JOINT for ref in refs if ref.law is None), default=1)
    return sorted({max(size, least) for size in settings.sizes})


def _shares(looks: int) -> list[float]:
    """1 : 1 : 2 : 4 …, so that the last look, with most replicates, has half of the level."""
    weights = [1.0] + [2.0**j for j in range(looks - 1)]
    return [w / sum(weights) for w in weights]


Looked = list[tuple[Reference, Score]]


def _look(
    question: Question, refs: Sequence[Reference], draw: Draw, R: int, settings: Settings
) -> Looked:
    scored = []
    for ref in refs:
        score = question.score(ref, draw(ref, R), settings)
        if score is not None:
            # A statistic that is not even finite is as far out as scores go.
            z = float(np.clip(score.z, -37, 37)) if not math.isnan(score.z) else 37.0
            scored.append((ref, score._replace(z=z)))
    return scored


def _detectable(looked: Looked, level: float, *, ratio: bool) -> float:
    """Effect, the same in all cells, that a look rejects at a level with probability POWER.

    The level is that of suspicion while looks are left: the next has four times the replicates,
    which makes of suspicion a certainty. A mean square that is too large by an effect scatters more
    by that effect as well.
    """
    sensitivity = float(np.mean([score.sensitivity for _, score in looked]))
    scatter = stats.norm.isf(1 - outcome.POWER) / math.sqrt(len(looked)) if ratio else 0.0
    return multiplicity.detectable_shift(len(looked), level) / max(sensitivity - scatter, 1e-9)


def _verdict(
    question: Question,
    looked: Looked,
    judged: multiplicity.Family,
    share: float,
    R: int,
    detectable: float,
    settings: Settings,
) -> Check:
    K, (ref, score) = len(looked), looked[judged.worst]
    seeing = detectable <= question.margin
    verdict = FAIL if judged.rejected else PASS if seeing else INCONCLUSIVE
    z = [s.z for _, s in looked]
    total = sum(z) / math.sqrt(K)
    p = min(1.0, judged.p / share)
    message = (
        f"{K} cells of {R} replicates: p = {judged.holm:.2g} (Holm), {judged.stouffer:.2g} (sum), "
        f"{judged.spread:.2g} (squares), together {p:.2g}, level {settings.alpha:.2g}; worst "
        f"{ref.cell}: {score.statistic:.4g}, z = {score.z:.2f}; detects {detectable:.2g} in all "
        f"cells with probability {outcome.POWER}, margin {question.margin:g} ({question.unit})"
    )
    return Check(
        question.name,
        question.claim,
        verdict,
        total,
        0.0,
        message,
        p=p,
        alpha=settings.alpha,
        detectable=detectable,
        margin=question.margin,
        size=K * R,
        z=total,
    )


DISTINCT = "estimates from different seeds differ, within a batch and between calls"


def duplicates(refs: Sequence[Reference], source: Source) -> Check | None:
    """S5: no two outputs agree to rounding where chance would not make them agree."""
    worst: tuple[int, int, str] = (0, 0, "")
    rich = [ref for ref in refs if ref.cell.m * (ref.cell.n - 1) > ENTROPY]
    for ref in rich:
        batch = source.values(ref, source.settings.sizes[0]).values
        values = np.sort(np.concatenate([batch, source.singles(ref, SINGLES)]))
        scale = np.maximum(np.abs(values[1:]), ref.sd)
        same = int(np.sum(np.diff(values) <= 1e-13 * scale))
        worst = max(worst, (same, len(values), str(ref.cell)))
    if not rich:
        return None
    same, count, where = worst
    message = (
        f"{same} of {count} outputs repeat another, at {where}"
        if same
        else (f"no repetition in {len(rich)} cells of {source.settings.sizes[0] + SINGLES} outputs")
    )
    return outcome.exactly("S5 duplicates", DISTINCT, same == 0, message)
