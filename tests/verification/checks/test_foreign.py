"""Black boxes: right ones pass, and each way of being wrong has a verdict with a reason."""

from __future__ import annotations

import pytest
import torch

from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, REPORTED, worst
from tests.verification import wild
from verification.checks import foreign
from verification.checks.foreign import BlackBox
from verification.checks.problems import problem
from verification.checks.settings import Settings
from verification.gate_pool import Judged
from verification.gate_report import verdicts

SETTINGS = Settings(alpha=1e-5)


def found(name, estimand="trace", law=None):
    checks = foreign.run(BlackBox(name, getattr(wild, name), estimand, law), SETTINGS)
    return checks, {check.name: check for check in checks}


@pytest.mark.parametrize(
    "name",
    ["right", "global_signs", "gaussian", "library", "hutchpp", "no_bars", "exact_by_products"],
)
def test_right_ones_pass(name):
    checks, _ = found(name)
    assert worst(checks) == PASS
    assert not [check for check in checks if check.verdict == INCONCLUSIVE]


def test_a_plain_estimator_is_paired_with_its_probes_and_known_exactly():
    _, by_name = found("right", law="rademacher")
    assert by_name["D1 probe"].verdict == PASS
    assert by_name["P1 support"].verdict == PASS
    assert {"S1 mean", "S2 variance", "S3 error bars"} <= set(by_name)


def test_another_estimator_is_judged_by_its_values():
    _, by_name = found("hutchpp")
    assert by_name["D1 probe"].verdict == REPORTED
    assert by_name["S1 mean"].verdict == PASS
    assert by_name["S2 variance"].verdict == REPORTED
    assert "not the mean over the probes seen" in by_name["S2 variance"].message


def test_a_fixed_vector_before_the_probes_is_not_taken_for_them():
    checks, by_name = found("after_a_norm", law="rademacher")
    assert worst(checks) == PASS
    assert by_name["D1 probe"].verdict == PASS
    assert by_name["P2 duplicates across calls"].verdict == PASS


def test_blocks_that_never_vary_are_no_probes():
    checks, by_name = found("noise_on_fixed_probes")
    assert worst(checks) == PASS
    for name in ("P1 law", "D1 probe", "S2 variance"):
        assert by_name[name].verdict == REPORTED
        assert "no block of probes was seen" in by_name[name].message


@pytest.mark.parametrize("name", ["hutchpp", "reads_the_diagonal"])
def test_no_column_is_green_without_a_check_of_it(name):
    checks, _ = found(name)
    assert verdicts(Judged(name, tuple(checks)))["variance"] == REPORTED


def test_a_change_in_place_reaches_no_other_call():
    before = {cell: problem(*cell).views["A"].operator.clone() for cell in foreign.CELLS}
    _, by_name = found("shifts_in_place")
    # Every other check is as it would be without.
    assert [check.name for check in by_name.values() if check.verdict == FAIL] == [
        "D12 matrix in place"
    ]
    for cell, operator in before.items():
        assert torch.equal(problem(*cell).views["A"].operator, operator)


def test_a_change_in_place_is_seen_on_any_matrix():
    _, by_name = found("shifts_what_is_large", "logdet")
    assert by_name["D12 matrix in place"].verdict == FAIL
    assert "by 800 of 2006 calls" in by_name["D12 matrix in place"].message


def test_an_exact_value_needs_no_statistics():
    checks, by_name = found("exact", "logdet")
    assert by_name["D1 value"].verdict == PASS
    assert worst(checks) == PASS
    assert not [name for name in by_name if name.startswith("S")]


@pytest.mark.parametrize(
    ("name", "check", "reason"),
    [
        ("raises", "D0 result", "raised RuntimeError: no convergence"),
        ("returns_nan", "D0 result", "the value is nan"),
        ("sometimes_nan", "D0 result", "of 400 calls failed"),
        ("wrong_shape", "D0 result", "shape (3,)"),
        ("ignores_its_matrix", "D12 matrix", "A is ignored"),
        ("frozen", "P3 new seed", "one value"),
        ("frozen", "D1 value", "largest error"),
        ("from_entropy", "P3 same seed", "draws from elsewhere"),
        ("biased", "S1 mean", "sd of one estimate"),
        ("small_bars", "S3 error bars", "ratio"),
        ("zero_bars", "S3 error bars", "ratio"),
        ("zero_bars_hutchpp", "S3 error bars", ""),
        ("some_bars", "S3 error bars given", "calls gave no error bar"),
        ("text_as_bar", "D0 result", "the error bar is of type str"),
        ("imaginary", "D0 result", "dtype is complex128"),
        ("as_dict", "D0 result", "an object with .value"),
        ("shifts_in_place", "D12 matrix in place", "A was changed in place by"),
    ],
)
def test_wrong_ones_fail_with_a_reason(name, check, reason):
    _, by_name = found(name)
    assert by_name[check].verdict == FAIL
    assert reason in by_name[check].message


def test_a_law_that_was_declared_is_held_against_the_probes():
    _, by_name = found("gaussian", law="rademacher")
    assert by_name["P1 support"].verdict == FAIL


def test_without_products_the_law_is_reported_as_unseen():
    _, by_name = found("reads_the_diagonal")
    assert by_name["P1 law"].verdict == REPORTED
    assert by_name["S1 mean"].verdict == PASS


def test_global_generators_are_left_as_they_were():
    before = torch.random.get_rng_state()
    found("global_signs")
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_second_run_gives_the_same_numbers():
    first, again = (found("right")[0] for _ in range(2))
    assert [c.message for c in first] == [c.message for c in again]
