"""Black boxes: right ones pass, and each way of being wrong has a verdict with a reason."""

from __future__ import annotations

import pytest
import torch

from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, REPORTED, worst
from tests.verification import wild
from verification.checks import foreign
from verification.checks.foreign import BlackBox
from verification.checks.settings import Settings

SETTINGS = Settings(alpha=1e-5)


def found(name, estimand="trace", law=None):
    checks = foreign.run(BlackBox(name, getattr(wild, name), estimand, law), SETTINGS)
    return checks, {check.name: check for check in checks}


@pytest.mark.parametrize("name", ["right", "global_signs", "gaussian", "library", "hutchpp"])
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
    assert "S2 variance" not in by_name


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
        ("frozen", "P2 duplicates across calls", "coincide"),
        ("from_entropy", "P3 same seed", "draws from elsewhere"),
        ("biased", "S1 mean", "sd of one estimate"),
        ("small_bars", "S3 error bars", "ratio"),
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
