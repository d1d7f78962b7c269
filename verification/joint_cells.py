"""Cells of estimators that use their probes jointly: every number of probes is a run of its own.

No block of probes can be cut into smaller ones, and no moments are known but, for the kinds that
are unbiased, the mean. That is judged by Student's t, at the level of every other check of one
cell, and only where there are the 400 replicates that the test needs to keep its level; where there
are fewer, the bias is reported. Where the rank of the probes makes the value exact, it is judged as
such on every replicate, and the mean is not put to a test.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from specbp import Estimate, Status, generator_for
from specbp.probes import LAWS
from specbp.testing import outcome, sampling
from specbp.testing.outcome import Check, Level
from verification.cell_parts import (
    first_alone,
    in_blocks,
    judged,
    status_check,
    status_counts,
    verdict_of,
)
from verification.store import Record
from verification.units import FEW, MARGINS, UNBIASED, VACUOUS, Oracle, Unit

REPLICATES = sampling.T_SIZE  # at most; and all that a t test needs
REPORTED = 24  # where nothing is tested
FEWEST = 4
EFFORT, SHOWN = 4e8, 3e7  # operations for a cell with a test, and for one without
UNKNOWN = 40  # products for each probe where their number is random
OWN = 10  # operations of a small dense problem of order d, in d³; an eigenproblem has many more
KRYLOV = 100
NETWORK = 50  # products of a network, in those of a dense matrix of its order
CLEARLY = 1e-6
NOMINAL, LEVEL = 0.95, 0.99  # of the intervals that are counted, and of those of the records


def cell(unit: Unit, oracle: Oracle, m: int) -> Record:
    """The cell of one number of probes."""
    X = draw(unit, m)
    seconds, blocks = in_blocks(unit, X)
    status = torch.cat([b.status for b in blocks])
    values = torch.cat([b.value for b in blocks]).numpy()
    alone, single = first_alone(unit, X, m)
    truth, u_truth = _truth(unit, oracle)
    expected = unit.subject.expected(unit.view)
    exactly = _is_exact(unit, X)
    found = [status_check(unit, status), *_single_call(unit, alone, float(values[0]), m)]
    found += _exact(unit, values[exactly], truth, m)
    bracket, checks = _bracket(unit, blocks, _target(unit, oracle, X, truth), m)
    found += checks
    if unit.method.claims.expectation in UNBIASED and not unit.documented and not exactly.any():
        found.append(mean(unit, values, expected, m))
    return {
        **unit.record(m),
        **_statistics(values, truth),
        **_coverage(unit, blocks, truth, m),
        **verdict_of(unit, found),
        "joint": True,
        "replicates": len(values),
        "truth": truth,
        "u_truth": u_truth,
        "exact_replicates": int(exactly.sum()),
        "bracket": bracket,
        "matvecs": alone.num_matvecs,
        "seconds": seconds,
        "seconds_single": single * len(values),
        "status": status_counts(status),
    }


def draw(unit: Unit, m: int) -> Tensor:
    """The probes of a cell, (R, n, m): the same numbers in either precision."""
    n, law = unit.case.n, unit.method.law
    generator = generator_for("joint probes", unit.case.id, unit.epoch, law, m)
    X = LAWS[law](n, m, generator=generator, batch_shape=(replicates(unit, m),))
    return X.to(unit.view.operator.dtype)


def replicates(unit: Unit, m: int) -> int:
    """As many as `EFFORT` pays for, and a test or a report needs: fewer on large problems."""
    n, config = unit.case.n, unit.config
    products = unit.method.claims.matvecs(n, m, config)
    if math.isnan(products):
        products = m * UNKNOWN
    krylov = "num_steps" in config
    size = max(min(products, n), m) if krylov else m
    one = n * n * (NETWORK if unit.case.family == "jacobian" else 1)
    # Products, orthogonalisation against the basis, and the small problem that is left.
    each = products * (one + n * size) + (KRYLOV if krylov else OWN) * size**3
    tested = unit.method.claims.expectation in UNBIASED and m in FEW
    effort, most = (EFFORT, REPLICATES) if tested else (SHOWN, REPORTED)
    return int(np.clip(effort / each, FEWEST, most))


def mean(unit: Unit, values: np.ndarray, expected: float, m: int) -> Check:
    """Student's t at the level of the cell, or a report of the bias where it would not keep it."""
    rounding = m * unit.rounding
    if len(values) >= REPLICATES and m in FEW:
        # Rounding has a sign of its own, which 400 replicates may well see.
        allowed = np.clip(values.mean(), expected - rounding, expected + rounding)
        return sampling.t_mean(values, float(allowed), Level(unit.alpha, MARGINS["mean"], rounding))
    error, half = abs(float(values.mean()) - expected), _half_width(values)
    claim = "the expectation of the estimate is that of its contract"
    reason = f"{len(values)} replicates, a t test needs {REPLICATES} and m in {FEW}"
    return outcome.reported("mean", claim, error, half + rounding, reason)


def _truth(unit: Unit, oracle: Oracle) -> tuple[float, float]:
    if unit.method.estimand == "logdet":
        return unit.view.truth.value, unit.view.truth.u_truth
    trace = oracle.moments(np.asarray).mean
    return trace, unit.eps * unit.case.n * trace


def _is_exact(unit: Unit, X: Tensor) -> np.ndarray:
    """Which replicates have as many probes as make their value exact, in general position, (R,)."""
    promise = unit.method.claims.exact_from
    # Eigenvalues that are nearer may close a Krylov space before it has them all.
    apart = "num_steps" not in unit.config or _spacing(unit) > unit.eps**0.25
    if promise is None or not (apart and promise(unit.case.n, X.shape[-1], unit.config)):
        return np.zeros(len(X), dtype=bool)
    return in_general_position(X).numpy()


def _spacing(unit: Unit) -> float:
    """Smallest gap between eigenvalues, relative to the largest: what Krylov spaces resolve."""
    lam = np.sort(unit.view.eigenvalues)
    return float(np.diff(lam).min() / lam[-1]) if len(lam) > 1 else 1.0


def in_general_position(X: Tensor) -> Tensor:
    """Whether no block X (R, n, m) has less than full rank, nor has it without any one column.

    That is when no column has leverage one among more than n; among fewer than n all must.
    """
    n, m = X.shape[-2:]
    _, sigma, V = torch.linalg.svd(X.double(), full_matrices=False)
    full = sigma[..., -1] > CLEARLY * sigma[..., 0]
    return full if m <= n else full & (V.square().sum(-2) < 1 - CLEARLY).all(-1)


def _exact(unit: Unit, values: np.ndarray, truth: float, m: int) -> list[Check]:
    if not len(values):
        return []
    limit = max(m * unit.rounding, 10 * unit.view.truth.u_truth)
    error = float(np.abs(values - truth).max())
    claim = f"the value is exact where the probes are enough, to rounding ({len(values)} are)"
    if limit > VACUOUS * unit.case.n and unit.method.estimand == "logdet":
        reason = f"the limit exceeds {VACUOUS:.0%} of a nat for each dimension"
        return [outcome.reported("exact", claim, error, limit, reason)]
    return [judged(unit, "exact", claim, error, limit)]


def _single_call(unit: Unit, alone: Estimate, value: float, m: int) -> list[Check]:
    """One replicate of the batch equals a call of its own, and costs what it claims."""
    claim = "a replicate of a batch is what a call of its own gives"
    gap, limit = abs(float(alone.value) - value), 4 * m * unit.rounding
    if Status(int(alone.status)) & Status.UNCONVERGED:
        same = outcome.reported("aggregation", claim, gap, limit, "the iteration says it stopped")
    else:
        same = judged(unit, "aggregation", claim, gap, limit)
    claimed = unit.method.claims.matvecs(unit.case.n, m, unit.config)
    claim = "counted products are those claimed"
    if math.isnan(claimed):
        reason = "the number of products is random"
        found = outcome.reported("matvecs", claim, alone.num_matvecs, math.nan, reason)
    else:
        gap = abs(alone.num_matvecs - claimed)
        found = outcome.within("matvecs", claim, gap, 0, "products")
    return [same, found]


def _target(unit: Unit, oracle: Oracle, X: Tensor, truth: float) -> np.ndarray:
    """What a claimed bracket holds, for each replicate."""
    if unit.method.claims.bracket_of == "truth":
        return np.full(len(X), truth)
    forms = Oracle(oracle.view, X).forms(np.log)
    return forms.reshape(*X.shape[:-2], X.shape[-1]).mean(-1)


def _bracket(
    unit: Unit, blocks: list[Estimate], target: np.ndarray, m: int
) -> tuple[Record | None, list[Check]]:
    sides = unit.method.claims.bracket
    if not sides or unit.method.claims.bracket_of in ("complete", "inner"):
        return None, []
    ends = {side: torch.cat([getattr(b, side) for b in blocks]).numpy() for side in sides}
    beyond = {"lower": lambda end: end - target, "upper": lambda end: target - end}
    excess = np.max([beyond[side](ends[side]) for side in sides], axis=0)
    limit = m * unit.rounding
    what = "log det A" if unit.method.claims.bracket_of == "truth" else "the mean of xᵀlog(A)x"
    claim = f"the bracket of {what} ({' and '.join(sides)}) holds for every estimate"
    largest = float(excess.max()) if np.isfinite(excess).all() else math.nan
    found = {side: float(ends[side].mean()) if side in sides else None for side in beyond}
    found["holds"] = float(np.mean(excess <= limit))
    return found, [judged(unit, "bracket", claim, largest, limit)]


def _statistics(values: np.ndarray, truth: float) -> Record:
    """Bias and spread of the replicates, with what chance leaves open."""
    R, centre, half = len(values), float(values.mean()), _half_width(values)
    sd = float(values.std(ddof=1))
    return {
        "sd_exact": None,
        "mean": centre,
        "mean_ci": [centre - half, centre + half],
        "bias": centre - truth,
        "bias_se": sd / math.sqrt(R),
        "sd": sd,
        "rmse": float(np.sqrt(np.mean((values - truth) ** 2))),
    }


def _half_width(values: np.ndarray) -> float:
    R = len(values)
    return float(stats.t.isf((1 - LEVEL) / 2, R - 1) * values.std(ddof=1) / math.sqrt(R))


def _coverage(unit: Unit, blocks: list[Estimate], truth: float, m: int) -> Record:
    """How often the 95 % interval holds the truth, and its median half width."""
    if unit.method.claims.expectation in UNBIASED:  # there is no truncation to allow for
        blocks = [replace(b, lower=b.value, upper=b.value) for b in blocks]
    both = [block.interval(NOMINAL) for block in blocks]
    lower, upper = (torch.cat(ends).double().numpy() for ends in zip(*both, strict=True))
    half = (upper - lower) / 2
    # None is claimed, or what is left to cover is rounding.
    if not np.isfinite(half).all() or np.median(half) <= m * unit.rounding:
        return {"coverage": None, "half_width": None}
    return {
        "coverage": float(np.mean((lower <= truth) & (truth <= upper))),
        "half_width": float(np.median(half)),
    }
