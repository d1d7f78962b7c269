"""Families see what cells cannot: a small common shift; and they take independent cells only."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from verification import families


def cell(case: str, z: float, *, name: str = "mean", probes: int = 1, dtype: str = "float64"):
    check = {"name": name, "z": z, "p": float(2 * stats.norm.sf(abs(z)))}
    return {
        "method": "chebyshev",
        "case": case,
        "dtype": dtype,
        "probes": probes,
        "checks": [check, {"name": "probe", "z": None, "p": None}],
    }


def cells(shift: float, count: int = 200, **options):
    z = shift + np.random.default_rng(3).standard_normal(count)
    return [cell(f"case{i}", float(v), **options) for i, v in enumerate(z)]


def test_a_shift_too_small_for_any_cell_is_seen_in_all():
    (right,) = families.judge(cells(0.0), 1e-3)
    (wrong,) = families.judge(cells(0.5), 1e-3)
    assert (right["verdict"], wrong["verdict"]) == ("PASS", "FAIL")
    assert wrong["holm"] > 1e-3 > wrong["stouffer"]
    assert 0.3 < wrong["shift"] < 0.5


def test_one_bad_cell_is_named():
    (found,) = families.judge([*cells(0.0), cell("culprit", 9.0)], 1e-3)
    assert (found["verdict"], found["worst"]) == ("FAIL", "culprit")


def test_the_level_is_shared_and_dependent_cells_are_left_out():
    several = [*cells(0.0), *cells(0.0, dtype="float32"), *cells(0.0, name="se", probes=4)]
    dependent = [*cells(0.0, probes=4), *cells(0.0, name="se", probes=16)]
    found = families.judge([*several, *dependent], 1e-3)
    assert sorted(f["id"] for f in found) == [
        "chebyshev|float32|mean",
        "chebyshev|float64|mean",
        "chebyshev|float64|se",
    ]
    assert sum(f["alpha"] for f in found) == pytest.approx(1e-3)
    assert {f["cells"] for f in found} == {200}


def test_no_random_check_gives_no_family():
    assert families.judge([], 1e-3) == []


@pytest.mark.parametrize("lost", [{"z": None}, {"z": float("nan")}, {"z": 0.1, "p": float("nan")}])
def test_a_cell_without_a_score_is_a_failure_and_not_left_out(lost):
    culprit = cell("culprit", 0.0)
    culprit["checks"][0] |= lost
    (found,) = families.judge([*cells(0.0), culprit], 1e-3)
    assert (found["cells"], found["verdict"], found["worst"]) == (201, "FAIL", "culprit")


def test_few_cells_are_inconclusive_unless_they_fail():
    verdict = {k: families.judge(cells(0.0, k), 1e-3)[0]["verdict"] for k in (1, 7, 8, 200)}
    assert verdict == {1: "INCONCLUSIVE", 7: "INCONCLUSIVE", 8: "PASS", 200: "PASS"}
    (wrong,) = families.judge(cells(9.0, 3), 1e-3)
    assert wrong["verdict"] == "FAIL"
