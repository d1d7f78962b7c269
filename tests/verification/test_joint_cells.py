"""Cells of joint estimators: right ones pass, planted faults do not, chance is accounted for."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, PASS, REPORTED
from tests.support import signs
from verification import cells, families, joint_cells, runner, units
from verification.cases import all_cases

CASES = all_cases()
SMALL, MIDDLE, LARGE = (CASES[f"spd/geometric-c1e4/n{n}"] for n in (8, 32, 1024))
HUTCHPP, XTRACE, MULTILEVEL = (METHODS[n] for n in ("hutchpp", "xtrace", "multilevel"))


def unit_of(method, case=SMALL, dtype="float64"):
    view = case.build(getattr(torch, dtype)).views[method.on]
    return units.Unit(case, view, method, dtype, runner.check_level("standard"), "tests")


def run(method, case=SMALL, dtype="float64"):
    unit = unit_of(method, case, dtype)
    probes = units.draw(case, getattr(torch, dtype), "tests")
    return list(cells.run(unit, units.Oracle(unit.view, probes)))


def verdicts(records, name) -> list[str]:
    return [c["verdict"] for r in records for c in r["checks"] if c["name"] == name]


def wrapped(method, wrap):
    return dataclasses.replace(method, estimate=partial(wrap, method.estimate))


def moved(by):
    def wrap(estimate, A, X, **kwargs):
        found = estimate(A, X, **kwargs)
        return dataclasses.replace(found, value=found.value + by, upper=found.upper + by)

    return wrap


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_right_estimator_passes_with_a_mean_at_four_and_sixteen_probes(dtype):
    records = run(HUTCHPP, MIDDLE, dtype)
    assert {r["verdict"] for r in records} == {PASS}
    assert [r["replicates"] for r in records][1:3] == [joint_cells.REPLICATES] * 2
    assert verdicts(records, "mean") == [REPORTED, PASS, PASS, REPORTED]


def reused_sketch(estimate, A, X, **kwargs):
    half = X.shape[-1] // 2
    twice = torch.cat([X[..., :half], X[..., :half]], -1) if half else X
    return estimate(A, twice, **kwargs)


def test_a_sketch_that_is_used_twice_is_biased():
    assert verdicts(run(wrapped(HUTCHPP, reused_sketch), MIDDLE), "mean")[1:3] == [FAIL, FAIL]


def test_a_shift_below_rounding_is_no_bias():
    unit = unit_of(HUTCHPP)
    expected, rounding = unit.subject.expected(unit.view), 4 * unit.rounding
    values = expected + rounding * np.random.default_rng(0).normal(size=400)
    for shift, verdict in ((0, PASS), (rounding, PASS), (-rounding, PASS), (2 * rounding, FAIL)):
        assert joint_cells.mean(unit, values + shift, expected, 4).verdict == verdict


def test_values_that_should_be_exact_are_judged_one_by_one():
    records = run(XTRACE)
    assert [r["exact_replicates"] for r in records] == [0, 0, 24, 24] or (
        [r["exact_replicates"] > 0 for r in records] == [False, False, True, True]
    )
    assert verdicts(records, "exact") == [PASS, PASS]
    assert verdicts(run(wrapped(XTRACE, moved(1e-6))), "exact") == [FAIL, FAIL]


def test_products_statuses_and_batches_are_judged():
    def thirsty(estimate, A, X, **kwargs):
        found = estimate(A, X, **kwargs)
        return dataclasses.replace(found, num_matvecs=found.num_matvecs + 1)

    def lost(estimate, A, X, **kwargs):
        found = estimate(A, X, **kwargs)
        return dataclasses.replace(found, status=found.status | 4)

    def different_in_batches(estimate, A, X, **kwargs):
        found = estimate(A, X, **kwargs)
        return dataclasses.replace(found, value=found.value * (1 + 1e-3 * (X.ndim > 2)))

    for wrap, name in (
        (thirsty, "matvecs"),
        (lost, "status"),
        (different_in_batches, "aggregation"),
    ):
        assert set(verdicts(run(wrapped(XTRACE, wrap)), name)) == {FAIL}


def test_a_bracket_that_does_not_hold_is_seen():
    assert set(verdicts(run(MULTILEVEL), "bracket")) == {PASS}
    assert FAIL in verdicts(run(wrapped(MULTILEVEL, moved(-5.0))), "bracket")


def test_of_truncated_estimators_the_bias_is_recorded_and_not_judged():
    for record in run(MULTILEVEL):
        assert not verdicts([record], "mean")
        assert record["bias"] == pytest.approx(record["mean"] - record["truth"])
        assert record["bias_se"] > 0


def test_coverage_is_that_of_an_interval_that_is_claimed():
    covered = [r["coverage"] for r in run(HUTCHPP, MIDDLE)]
    assert covered[0] is None  # one probe has no error bar
    assert covered[1] == pytest.approx(0.95, abs=0.05)
    assert [r["coverage"] for r in run(XTRACE)] == [None] * 4

    def half_the_bar(estimate, A, X, **kwargs):
        found = estimate(A, X, **kwargs)
        return dataclasses.replace(found, standard_error=found.standard_error / 10)

    assert run(wrapped(HUTCHPP, half_the_bar), MIDDLE)[1]["coverage"] < 0.8


def test_large_problems_and_networks_have_few_replicates_and_numbers_of_probes():
    unit = unit_of(MULTILEVEL, LARGE)
    assert unit.counts == (4, 16)
    assert joint_cells.replicates(unit, 16) == joint_cells.FEWEST
    assert units.probe_counts(MULTILEVEL, CASES["jacobian/bottleneck-d64/init"]) == (4, 16)
    assert units.probe_counts(MULTILEVEL, CASES["jacobian/wideresnet-1x8x8/init"]) == (4,)
    assert units.probe_counts(MULTILEVEL, SMALL) == (4, 16, 64)  # one probe is too few
    assert units.probe_counts(METHODS["slq"], LARGE) == units.PROBE_COUNTS


def test_orthogonal_probes_are_not_more_than_there_are_dimensions():
    orthogonal = dataclasses.replace(XTRACE, law="orthogonal")
    assert units.probe_counts(orthogonal, SMALL) == (1, 4)


def test_the_level_is_shared_with_every_mean_that_is_judged():
    assert units.num_random_checks(HUTCHPP) == len(units.FEW)
    assert units.num_random_checks(MULTILEVEL) == 0
    judged = sum(v != REPORTED for v in verdicts(run(HUTCHPP, MIDDLE), "mean"))
    assert judged <= units.num_random_checks(HUTCHPP)


def test_families_take_the_mean_of_joint_estimators_at_four_probes():
    found = families.judge(run(HUTCHPP, MIDDLE), 1e-3)
    assert [(f["statistic"], f["cells"]) for f in found] == [("mean", 1)]


def test_probes_are_those_of_the_law_and_the_same_in_either_precision():
    double, single = (joint_cells.draw(unit_of(XTRACE, dtype=d), 4) for d in ("float64", "float32"))
    assert torch.equal(double.float(), single)
    torch.testing.assert_close(double.square().sum(-2), torch.full(double.shape[::2], 8.0).double())
    other = joint_cells.draw(dataclasses.replace(unit_of(XTRACE), epoch="other"), 4)
    assert not torch.equal(double, other)


def test_general_position_is_that_of_every_block_but_one():
    X = signs(1, 4, 6, seed=1)
    X[0, 0, 3:] = X[0, 0, 3:].abs() * torch.tensor([1.0, -1, 1])
    twins = torch.eye(4).double()[:, [0, 0, 1, 2, 3]]  # without the last, three dimensions
    good = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert bool(joint_cells.in_general_position(good))
    assert not bool(joint_cells.in_general_position(twins.unsqueeze(0)))
    assert not bool(joint_cells.in_general_position(twins[None, :, :3]))
    assert bool(joint_cells.in_general_position(good[..., :3]))
