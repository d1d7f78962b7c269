"""The cells of one unit: what was measured, compared with what is known exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats

from specbp import Estimate, exact
from specbp.estimate import from_samples
from specbp.testing import outcome, sampling
from specbp.testing.outcome import Check, Level
from verification import joint_cells
from verification.cell_parts import (
    first_alone,
    in_blocks,
    judged,
    status_check,
    status_counts,
    verdict_of,
)
from verification.store import Record
from verification.units import MARGINS, PROBE_COUNTS, VACUOUS, Oracle, Unit

# A bound on every estimate needs fewer of them than a mean does: a 16th of the probes for each m.
ADAPTIVE_SHARE = 16


def run(unit: Unit, oracle: Oracle) -> Iterator[Record]:
    """All cells of a unit."""
    if not unit.method.uses_probes:
        yield _exact_cell(unit)
    elif unit.method.claims.additive:
        yield from _additive_cells(unit, oracle)
    elif unit.method.claims.joint:
        yield from (joint_cells.cell(unit, oracle, m) for m in unit.counts)
    else:
        yield from (_adaptive_cell(unit, oracle, m) for m in PROBE_COUNTS)


def _exact_cell(unit: Unit) -> Record:
    start = time.perf_counter()
    found = unit.estimate(unit.view.operator)
    seconds = time.perf_counter() - start
    truth = unit.view.truth
    error = abs(float(found.value) - truth.value)
    limit = max(10 * truth.u_truth, _exact_limit(unit))
    claim = "the value is exact to the stated limit"
    outcome = [judged(unit, "exact", claim, error, limit), status_check(unit, found.status)]
    return {
        **unit.record(0),
        **verdict_of(unit, outcome),
        "replicates": 1,
        "truth": truth.value,
        "u_truth": truth.u_truth,
        "mean": float(found.value),
        "rmse": error,
        "matvecs": found.num_matvecs,
        "seconds": seconds,
        "status": status_counts(found.status),
    }


def _exact_limit(unit: Unit) -> float:
    """Promise of QR in float32: 1e-4 nats to cond 1e6, 1e-3 to 1e10; otherwise rounding."""
    cond = unit.view.truth.cond
    if unit.method.on == "J" and unit.dtype == "float32" and cond <= 1e10:
        return 1e-4 if cond <= 1e6 else 1e-3
    return unit.rounding


def _additive_cells(unit: Unit, oracle: Oracle) -> Iterator[Record]:
    seconds, blocks = in_blocks(unit, oracle.probes)
    samples = torch.cat([b.samples for b in blocks]).flatten().numpy()
    status = torch.cat([b.status for b in blocks])
    lower, upper = (
        torch.cat([getattr(b, end) for b in blocks]).numpy() for end in ("lower", "upper")
    )
    log_forms, log_law = oracle.of_log
    truth, u_truth, target, law = _target(unit, oracle, log_forms, log_law)
    polynomial = unit.method.claims.expectation == "tr p(A)"
    contract = oracle.forms(unit.contract) if polynomial else target
    bias = samples - target
    expected = law.mean if unit.method.claims.expectation != "quadrature" else truth + bias.mean()
    common = {
        "replicates": None,
        "truth": truth,
        "u_truth": u_truth,
        "bias_exact": law.mean - truth if polynomial else None,
        "paired_bias": float(bias.mean()),
        "paired_bias_se": float(bias.std(ddof=1) / len(bias) ** 0.5),
        "status": status_counts(status),
    }
    shared = [status_check(unit, status)]
    if polynomial or unit.method.claims.expectation == "tr A":
        shared.append(_probe_check(unit, float(np.abs(samples - contract).max())))
    else:
        shared.append(_rule_check(unit, oracle, samples))
    bracket, bracket_check = _bracket(unit, lower, upper, log_forms)
    shared += bracket_check
    for index, m in enumerate(PROBE_COUNTS):
        window = np.array_split(samples, len(PROBE_COUNTS))[index]
        cell = from_samples(torch.from_numpy(samples).reshape(-1, m), num_matvecs=0)
        direct, single = first_alone(unit, oracle.probes, m)
        R = len(cell.value)
        found = [*shared, *_aggregation(unit, direct, samples, m)]
        if not unit.documented:
            found += _random_checks(unit, samples, cell, expected, law, m)
        yield {
            **unit.record(m),
            **common,
            **_statistics(cell, window, truth, expected, law, m),
            **verdict_of(unit, found),
            "probe_error": shared[1].statistic / shared[1].margin if shared[1].margin else None,
            "bracket": bracket,
            "replicates": R,
            "matvecs": direct.num_matvecs,
            "seconds": seconds / len(PROBE_COUNTS),
            "seconds_single": single * R,
        }


def _adaptive_cell(unit: Unit, oracle: Oracle, m: int) -> Record:
    """A method whose polynomial depends on its probes: bounded, not predicted."""
    rows = oracle.probes.mT.flatten(0, 1)
    counts = {k: max(len(rows) // ADAPTIVE_SHARE // k, 2) for k in PROBE_COUNTS}
    count, start = counts[m], sum(counts[k] * k for k in PROBE_COUNTS if k < m)
    window = slice(start, start + count * m)
    probes = rows[window].reshape(count, m, -1).mT
    seconds, blocks = in_blocks(unit, probes)
    values = torch.cat([b.value for b in blocks])
    status = torch.cat([b.status for b in blocks])
    cell = from_samples(torch.cat([b.samples for b in blocks]), num_matvecs=0)
    log_forms, law = oracle.of_log
    target = log_forms[window].reshape(count, m).mean(-1)
    bias = values.numpy() - target
    direct, single = first_alone(unit, probes, m)
    truth = unit.view.truth
    a, b = unit.interval
    limit = unit.case.n * _sup_error(a, 2 * b, unit.config["degree"]) + unit.rounding
    claim = "truncation stays within the bound of an interval up to 2 λ_max"
    found = [
        status_check(unit, status),
        judged(unit, "bracket", claim, float(np.abs(bias).max()), limit),
    ]
    return {
        **unit.record(m),
        **_statistics(cell, cell.samples.numpy(), truth.value, truth.value + bias.mean(), law, m),
        "var_ratio": None,  # the polynomial, hence its variance, differs from estimate to estimate
        **verdict_of(unit, found),
        "replicates": count,
        "truth": truth.value,
        "u_truth": truth.u_truth,
        "paired_bias": float(bias.mean()),
        "paired_bias_se": float(bias.std(ddof=1) / len(bias) ** 0.5),
        "matvecs": direct.num_matvecs,
        "seconds": seconds,
        "seconds_single": single * count,
        "status": status_counts(status),
    }


def _sup_error(a: float, b: float, degree: int) -> float:
    ratio = (b / a) ** 0.5
    rho = (ratio + 1) / (ratio - 1)
    return 4 * rho**-degree / ((degree + 1) * (rho - 1))


def _target(
    unit: Unit, oracle: Oracle, log_forms: np.ndarray, log_law: exact.Moments
) -> tuple[float, float, np.ndarray, exact.Moments]:
    """Truth, its uncertainty, the per-probe values it is the mean of, and the law of one value."""
    truth = unit.view.truth
    if unit.method.estimand == "trace":
        law = oracle.moments(np.asarray)
        return law.mean, unit.eps * unit.case.n * law.mean, oracle.forms(np.asarray), law
    if unit.method.claims.expectation == "tr p(A)":
        return truth.value, truth.u_truth, log_forms, oracle.moments(unit.contract)
    return truth.value, truth.u_truth, log_forms, log_law


def _probe_check(unit: Unit, error: float) -> Check:
    claim = "each probe agrees with xᵀp(A)x to 50 (d+1) u |p| |x|²"
    return outcome.within("probe", claim, error, unit.rounding)


def _rule_check(unit: Unit, oracle: Oracle, samples: np.ndarray) -> Check:
    """Compare a few probes with the Gauss rule that an independent algorithm finds."""
    few = oracle.probes[0, :, :4].double().numpy()
    view, steps = unit.view, unit.config["num_steps"]
    rule = exact.slq_value(view.eigenvalues, view.eigenvectors, few, steps, np.log)
    error = float(np.abs(samples[: few.shape[-1]] - rule).max())
    claim = "each probe agrees with its Gauss rule to rounding"
    if unit.rounding > VACUOUS * unit.case.n:
        reason = f"the limit exceeds {VACUOUS:.0%} of a nat for each dimension"
        return outcome.reported("probe", claim, error, unit.rounding, reason)
    return judged(unit, "probe", claim, error, unit.rounding)


def _bracket(
    unit: Unit, lower: np.ndarray, upper: np.ndarray, log_forms: np.ndarray
) -> tuple[Record | None, list[Check]]:
    sides = unit.method.claims.bracket
    if not sides:
        return None, []
    target = log_forms.reshape(len(lower), -1).mean(-1)
    below, above = lower - target, target - upper
    excess = np.maximum(below, above) if "lower" in sides else above
    holds = float(np.mean(excess <= unit.rounding))
    found = {
        "lower": float(lower.mean()) if "lower" in sides else None,
        "upper": float(upper.mean()),
        "holds": holds,
    }
    claim = f"the truncation bracket ({' and '.join(sides)}) holds for every estimate"
    largest = float(excess.max()) if np.isfinite(excess).all() else float("nan")
    return found, [judged(unit, "bracket", claim, largest, unit.rounding)]


def _aggregation(unit: Unit, direct: Estimate, samples: np.ndarray, m: int) -> list[Check]:
    """A direct call with m probes equals the cut from the wide block, and costs what it claims."""
    gap = float(np.abs(direct.samples.numpy() - samples[:m]).max())
    claim = "the estimate is the mean of per-probe values"
    claimed = unit.method.claims.matvecs(unit.case.n, m, unit.config)
    cost = abs(direct.num_matvecs - claimed)
    same = judged(unit, "aggregation", claim, gap, 2 * unit.rounding)
    products = outcome.within("matvecs", "counted products are those claimed", cost, 0, "products")
    return [same, products]


def _random_checks(
    unit: Unit,
    samples: np.ndarray,
    cell: Estimate,
    expected: float,
    law: exact.Moments,
    m: int,
) -> list[Check]:
    def level(name: str) -> Level:
        return Level(unit.alpha, MARGINS[name], unit.rounding)

    # The variance of a quadrature is that of log A only as far as its truncation is small.
    closed_form = unit.method.claims.expectation != "quadrature"
    if m == 1:
        found = [sampling.mean(samples, expected, law, level("mean"))]
        if closed_form:
            found.append(sampling.variance(samples, expected, law, level("variance")))
        return found
    if closed_form and unit.method.claims.calibrated:
        squares = cell.standard_error.numpy() ** 2
        return [sampling.error_bars(squares, law, m, level("se"))]
    return []


def _statistics(
    cell: Estimate, window: np.ndarray, truth: float, expected: float, law: exact.Moments, m: int
) -> Record:
    """Bias, spread and coverage of the replicates with m probes."""
    values, errors = cell.value.numpy(), cell.standard_error.numpy()
    one = law.variance**0.5
    sd_exact = one / m**0.5
    deviation = values - expected
    windows = window.reshape(-1, m).mean(-1)
    found = {
        "sd_exact": sd_exact,
        "mean": float(windows.mean()),
        "mean_ci": sampling.interval_of_mean(windows, sd_exact),
        "sd": float(np.sqrt(np.mean(deviation**2))),
        "sd_ci": sampling.interval_of_sd(values, exact.Moments(expected, *_central(law, m))),
        "rmse": float(np.sqrt(np.mean((values - truth) ** 2))),
        "z": float((windows.mean() - expected) / (sd_exact / len(windows) ** 0.5)) if one else None,
        "var_ratio": float(np.mean(deviation**2)) / sd_exact**2 if one else None,
    }
    if m == 1:
        return found
    half = stats.t.isf(0.025, m - 1) * errors
    return {
        **found,
        "coverage": float(np.mean(np.abs(values - truth) <= half)),
        "coverage_expectation": float(np.mean(np.abs(deviation) <= half)),
        "se2_ratio": float(np.mean(errors**2)) / sd_exact**2 if one else None,
    }


def _central(law: exact.Moments, m: int) -> tuple[float, float, float]:
    averaged = law.averaged(m)
    return averaged.variance, averaged.third, averaged.fourth
