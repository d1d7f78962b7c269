"""Faults of what is done with the values: means, error bars, stopping, and failures left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specbp import Estimate
from specbp.estimate import from_samples
from verification.faults.controls import CHEBYSHEV, TRACE
from verification.faults.fault import Fault, plant, then

SETTLED = 1e-2


def population_sd(found: Estimate) -> Estimate:
    """sd with ddof = 0."""
    m = found.samples.shape[-1]
    return replace(found, standard_error=found.samples.std(-1, correction=0) / m**0.5)


def sem_over_m(found: Estimate) -> Estimate:
    """sd / m for sd / √m."""
    return replace(found, standard_error=found.standard_error / found.samples.shape[-1] ** 0.5)


def summed(found: Estimate) -> Estimate:
    """The sum over probes for their mean."""
    m = found.samples.shape[-1]
    return replace(found, value=found.value * m, standard_error=found.standard_error * m)


def without_last(A: Any, X: Tensor, **config: Any) -> Estimate:
    """range(m − 1) for range(m)."""
    return CHEBYSHEV.estimate(A, X[..., : max(X.shape[-1] - 1, 1)], **config)


def trimmed(found: Estimate) -> Estimate:
    """Mean and error bar without the smallest and the largest value."""
    y = found.samples.sort(-1).values
    return _of(found, y[..., 1:-1]) if y.shape[-1] > 3 else found


def zero_for_failure(found: Estimate) -> Estimate:
    """Probes that failed enter the mean as 0, and no flag is left."""
    return _of(found, found.samples.nan_to_num(0, 0, 0))


def settled(found: Estimate) -> Estimate:
    """Mean of the probes until the running mean moves by less than a hundredth."""
    return _stopped(found, lambda change, mean: change.abs() < SETTLED * mean.abs())


def signed(found: Estimate) -> Estimate:
    """Stops when |change| / mean is below the tolerance, which any negative mean is."""
    return _stopped(found, lambda change, mean: change.abs() / mean < 1e-6)


def _stopped(found: Estimate, enough: Callable[[Tensor, Tensor], Tensor]) -> Estimate:
    """The running mean where `enough(change, mean)` first holds, or of all probes."""
    y = found.samples
    if y.shape[-1] == 1:
        return found
    means = y.cumsum(-1) / torch.arange(1, y.shape[-1] + 1)
    stop = enough(means.diff(dim=-1), means[..., 1:])
    stop = torch.cat([stop[..., :-1], torch.ones_like(stop[..., -1:])], -1)
    used = 1 + stop.int().argmax(-1, keepdim=True)
    return replace(found, value=means.gather(-1, used).squeeze(-1))


def _of(found: Estimate, samples: Tensor) -> Estimate:
    """The estimate of other samples, with the bracket that was found."""
    changed = from_samples(samples, num_matvecs=found.num_matvecs)
    return replace(changed, lower=found.lower, upper=found.upper)


FAULTS: tuple[Fault, ...] = (
    plant(
        CHEBYSHEV,
        "f9",
        "standard error with ddof = 0",
        "D8 S3",
        source="mutation table; matfree and traceax",
        estimate=then(CHEBYSHEV, population_sd),
    ),
    plant(CHEBYSHEV, "f19", "m − 1 probes used", "D8 D9", estimate=without_last),
    plant(
        TRACE,
        "sum-for-mean",
        "sum over probes without 1/m",
        "D8 S1",
        source="bayesflow #772, Hutchinson without division by the number of probes",
        estimate=then(TRACE, summed),
    ),
    plant(
        CHEBYSHEV,
        "sem-over-m",
        "sd/m for sd/√m",
        "D8 S3",
        source="matfree, whose test of error bars is too loose to see it",
        estimate=then(CHEBYSHEV, sem_over_m),
    ),
    plant(
        CHEBYSHEV,
        "peeking-stop",
        "uses only the probes until the running mean settles",
        "D2 D5 S2",
        source="PyHessian and the convergence check of curvlinops",
        estimate=then(CHEBYSHEV, settled),
    ),
    plant(
        CHEBYSHEV,
        "signed-tolerance",
        "stops on change/mean, negative for every negative mean",
        "D8 S2",
        source="nncf #2155; imate compares with rtol · mean",
        estimate=then(CHEBYSHEV, signed),
    ),
    plant(
        CHEBYSHEV,
        "outlier-trimming",
        "smallest and largest value left out of the mean",
        "D8 S3",
        source="imate, outliers trimmed from the mean",
        estimate=then(CHEBYSHEV, trimmed),
    ),
    plant(
        CHEBYSHEV,
        "failed-as-zero",
        "probes that failed are averaged in as 0",
        "D11",
        source="gam #3553, failed Lanczos probes",
        equivalent="S: sampling sees matrices on which no probe fails.",
        estimate=then(CHEBYSHEV, zero_for_failure),
    ),
)
