"""Statistics and acceptance lines of the study: counted by hand, never rounded in favour."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from specbp import generator_for, rademacher, slq_logdet
from specbp.estimate import without_probes
from tests.verification.budgets_fixture import (
    BASE,
    PERFECT,
    SMALL,
    N,
    by_name,
    measured,
    tiny_cases,
)
from verification import budgets_accept, budgets_methods, budgets_stats, budgets_time
from verification.budgets_accept import Finding
from verification.budgets_methods import Candidate, Meter, Variant
from verification.budgets_stats import Measured, best_ratio, coverage, ratio, rmse

__all__ = ["tiny_cases"]  # a fixture of every test


# Statistics ---------------------------------------------------------------------------------------


def test_rmse_has_the_bias_in_it_and_a_failure_makes_it_infinite():
    assert rmse(np.array([3.0, 4.0])) == pytest.approx(12.5**0.5)
    assert rmse(np.array([3.0, math.nan])) == math.inf


def test_ratios_pair_the_seeds():
    errors = np.random.default_rng(1).standard_normal(40)
    paired = ratio(errors, errors / 2)
    assert tuple(paired) == pytest.approx((0.5, 0.5, 0.5))
    shuffled = ratio(errors, np.random.default_rng(2).permutation(errors) / 2)
    assert shuffled.high - shuffled.low > 0.1


def test_the_best_shapes_are_chosen_on_both_sides():
    rng = np.random.default_rng(3)
    base = [s * rng.standard_normal(200) for s in (5.0, 1.0, 3.0)]
    ours = [s * rng.standard_normal(200) for s in (0.5, 9.0)]
    found = best_ratio(base, ours)
    assert found.value == rmse(ours[0]) / rmse(base[1])
    assert found.low < 0.5 < found.high


def test_ratios_of_unequal_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match="paired by seed"):
        ratio(np.ones(3), np.ones(4))


@pytest.mark.parametrize("base", [np.zeros(30), np.full(30, math.nan)])
def test_a_base_without_errors_to_compare_with_gives_no_ratio(base):
    found = ratio(base, np.ones(30))
    assert math.isnan(found.value)
    assert not Finding("here", found, 1.1).met


def test_a_failed_method_is_infinitely_bad():
    errors = np.ones(30)
    assert ratio(errors, np.where(np.arange(30) == 7, math.nan, errors)).value == math.inf


def test_coverage_is_counted_by_hand():
    truth = 1.0
    low = np.array([0.0, 0.9, 1.1, -np.inf, math.nan, 0.5])
    high = np.array([2.0, 0.95, 1.2, np.inf, math.nan, 1.5])
    found = coverage(low, high, truth)
    # Covered: the first, the infinite one, and the last. NaN is no interval and covers nothing.
    assert (found.claimed, found.covered, found.size) == (4, 3, 6)
    assert found.share.value == 0.5
    assert found.half_width == np.median([1.0, 0.025, 0.05, np.inf, np.inf, 0.5])


@pytest.mark.parametrize("end", [np.inf, math.nan])
def test_no_interval_is_claimed_where_an_end_is_missing_everywhere(end):
    assert coverage(np.zeros(5), np.full(5, end), 0.0) is None


def test_clopper_pearson_agrees_with_the_tabulated_interval():
    share, low, high = budgets_stats.clopper_pearson(8, 10)
    assert (share, low, high) == pytest.approx((0.8, 0.44390, 0.97479), abs=1e-5)
    assert budgets_stats.clopper_pearson(0, 10).low == 0
    assert budgets_stats.clopper_pearson(10, 10).high == 1


def test_too_narrow_intervals_are_seen():
    def boastful(operator, probes, *, num_steps):
        found = slq_logdet(operator, probes, num_steps=num_steps)
        return replace(found, lower=found.value, standard_error=found.standard_error / 10)

    cells = [measured(BASE), measured(replace(PERFECT, estimate=boastful))]
    line = by_name(cells)["coverage"]
    assert line.findings
    assert not line.met


def test_too_wide_intervals_are_seen():
    def timid(operator, probes, *, num_steps):
        found = slq_logdet(operator, probes, num_steps=num_steps)
        return replace(found, lower=found.value - 1e4, upper=found.value + 1e4)

    found = by_name([measured(BASE), measured(replace(PERFECT, estimate=timid))])
    assert found["coverage"].met
    assert not found["width"].met


# Lines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "least", "met"),
    [
        (1 / 3, False, True),
        (1 / 3 * (1 + 1e-15), False, False),
        (1 / 3 * (1 - 1e-15), True, False),
        (math.nan, False, False),
        (math.nan, True, False),
        (math.inf, False, False),
    ],
)
def test_nothing_is_rounded_in_favour(value, least, met):
    assert Finding("here", Measured(value, 0, 1), 1 / 3, least).met is met


def test_a_figure_is_certain_where_its_interval_lies_on_one_side():
    assert Finding("here", Measured(0.5, 0.4, 0.6), 0.7).certain
    assert not Finding("here", Measured(0.5, 0.4, 0.6), 0.55).certain


def test_a_perfect_method_meets_its_lines_and_plain_slq_does_not():
    cells = [measured(BASE), measured(PERFECT)]
    found = by_name(cells)
    assert found["same|kernel 1e-2"].met
    assert found["best|"].met
    assert found["products"].met
    again = replace(BASE, name="again", role="judged")
    found = by_name([cells[0], measured(again)])
    assert not found["same|kernel 1e-2"].met
    assert found["same|kernel 1e-2"].worst.measured.value == 1
    assert found["best|"].met


def test_a_line_without_measurements_is_not_met():
    found = by_name([measured(BASE), measured(PERFECT)])
    for name in ("same|clusters", "planner", "time|J", "float32"):
        assert not found[name].met
        assert found[name].worst is None


def test_the_worst_finding_decides():
    good, bad = Finding("good", Measured(0.1, 0, 1), 1.0), Finding("bad", Measured(2, 1, 3), 1.0)
    line = budgets_accept.Line("x", "x ≤ 1", [bad, good])
    assert not line.met
    assert line.worst is bad


def test_exactness_is_asked_for_where_the_products_fill_the_space(tiny):
    tiny[SMALL.id] = SMALL
    full = Variant("6x4", 6, {"num_steps": 4})
    cells = [
        replace(measured(replace(PERFECT, bounded=False), full), case=SMALL.id, budget=24),
        replace(measured(PERFECT), case=SMALL.id),  # 12 < 24 products: nothing is asked
    ]
    line = by_name(cells)["exact"]
    assert [finding.where for finding in line.findings] == ["spd/exact 6x4"]
    assert line.met
    off = replace(cells[0], errors=cells[0].errors + 2e-6)
    assert not by_name([off])["exact"].met
    failed = replace(cells[0], errors=np.where(np.arange(30) == 3, np.nan, cells[0].errors))
    assert not by_name([failed])["exact"].met


def test_a_planner_over_its_budget_has_not_met_its_line():
    cell = replace(measured(replace(PERFECT, role="planned")), group="planner")
    assert by_name([cell])["planner"].met
    assert not by_name([replace(cell, products=13.0)])["planner"].met


# Time and float32 ---------------------------------------------------------------------------------


def test_the_floor_is_the_fastest_layout(monkeypatch):
    seconds = {"method": 6.0, "rows": 4.0, "columns": 3.0}
    monkeypatch.setattr(budgets_time, "interleaved", lambda runs, repeats: seconds)
    A = torch.eye(N, dtype=torch.float64)
    record = budgets_time._timed(PERFECT, "tiny", A, 1)
    assert (record["ratio"], record["layout"], record["limit"]) == (2.0, "columns", 2.0)
    assert by_name([], times=[record])["time|A"].met
    seconds["method"] = 6.1
    slower = budgets_time._timed(PERFECT, "tiny", A, 1)
    assert not by_name([], times=[record, slower])["time|A"].met


def test_the_floor_makes_as_many_products_as_the_method(monkeypatch):
    monkeypatch.setattr(budgets_time, "Dense", lambda operator: operator)
    meter = Meter(torch.eye(N, dtype=torch.float64))
    X = rademacher(N, 4, generator=generator_for("floor"))
    for run in budgets_time._floors(meter, X, 5, "A").values():
        meter.vectors = 0
        run()
        assert meter.products("A") == 20


@pytest.mark.parametrize(("error", "met"), [(9e-4, True), (2e-3, False), (math.nan, False)])
def test_float32_is_held_against_float64(monkeypatch, error, met):
    def rounded(J, probes, *, num_steps):
        value = torch.tensor(1.0, dtype=torch.float64)
        if J.dtype == torch.float32:
            value = value + error
        return without_probes(value, num_matvecs=0, status=torch.tensor(0))

    monkeypatch.setattr(budgets_time, "N", 8)
    monkeypatch.setattr(budgets_time, "SEEDS", 2)
    judged = Candidate("rounded", rounded, "J", budgets_methods.steps, role="judged")
    records = list(budgets_time.float32_study([judged]))
    line = by_name([], precision=records)["float32"]
    assert len(line.findings) == 4  # up to cond 1e8; 1e10 is shown only
    assert line.met is met
