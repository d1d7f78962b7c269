"""Planned sizes and effects against simulations and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from specbp.testing import planning


@pytest.mark.parametrize(
    ("alpha", "R", "shift"),
    [(1e-3, 20, 1.10), (1e-3, 100, 0.49), (1e-3, 10_000, 0.049), (3.3e-6, 64, 0.79)],
)
def test_detectable_shifts(alpha, R, shift):
    assert planning.detectable_shift(R, alpha) == pytest.approx(shift, rel=0.011)


@pytest.mark.parametrize("effect", [2.0, 0.5, 0.0313])
@pytest.mark.parametrize("power", [0.5, 0.95])
def test_min_replicates_is_the_smallest_number_that_detects(effect, power):
    R = planning.min_replicates(effect, 1e-3, power)
    assert planning.detectable_shift(R, 1e-3, power) <= effect
    assert R == 1 or planning.detectable_shift(R - 1, 1e-3, power) > effect
    z = stats.norm.isf(5e-4)
    assert stats.norm.sf(z - effect * math.sqrt(R)) >= power - 1e-12


@pytest.mark.parametrize("excess", [-1.0, 0.0, 5.0])
@pytest.mark.parametrize("ratio", [1.1, 2.0])
def test_min_replicates_of_ratio_is_the_smallest_number_that_detects(ratio, excess):
    R = planning.min_replicates_of_ratio(ratio, 1e-3, excess)
    detects = [
        planning.detectable_ratio(r, 1e-3, excess) <= ratio for r in range(1, 2 * R, 1 + R // 99)
    ]
    assert detects == sorted(detects)
    assert planning.detectable_ratio(R, 1e-3, excess) <= ratio
    assert planning.detectable_ratio(R - 1, 1e-3, excess) > ratio


def test_the_detectable_ratio_of_normal_values_is_found_with_the_power():
    R, alpha, power = 200, 1e-2, 0.8
    ratio = planning.detectable_ratio(R, alpha, power=power)
    rng = np.random.default_rng(20260901)
    squares = (ratio * rng.standard_normal((4000, R)) ** 2).sum(1)
    found = np.mean(squares > stats.chi2.isf(alpha / 2, R))
    # 4000 trials: 0.8 ± 0.025 with probability 1 - 1e-4.
    assert abs(found - power) < 0.025


def test_detectable_coverage_is_found_with_the_power():
    R, alpha = 300, 1e-2
    loss = planning.detectable_coverage(R, 0.9, alpha, power=0.8)
    critical = max(k for k in range(R) if stats.binom.cdf(k, R, 0.9) <= alpha / 2)
    assert stats.binom.cdf(critical, R, 0.9 - loss) == pytest.approx(0.8)
    assert planning.detectable_coverage(2, 0.95, 1e-3) == math.inf


def test_impossible_effects_are_refused():
    with pytest.raises(ValueError, match="effect must be positive, got 0"):
        planning.min_replicates(0, 1e-3)
    with pytest.raises(ValueError, match="ratio must be above 1, got 1"):
        planning.min_replicates_of_ratio(1, 1e-3)
