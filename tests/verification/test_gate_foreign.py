"""The gate on released estimators of two other libraries, given by import path alone.

Skipped where they are absent; `tests/test_foreign.py` says what to install.
"""

from __future__ import annotations

import importlib.util

import pytest

from specbp.testing.outcome import FAIL
from verification.gate import run_gate
from verification.resolve import Request


def judge(library: str, name: str, **options):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed, see the top of tests/test_foreign.py")
    (judged,) = run_gate([Request(name, **options)], workers=1).subjects
    return judged


def failing(judged) -> set[str]:
    return {check.name.split()[0] for check in judged.checks if check.verdict == FAIL}


@pytest.mark.parametrize(
    ("name", "matvecs"),
    [("hutchinson_trace", 10), ("hutchpp_trace", 9), ("xtrace", 10)],
)
def test_estimators_of_curvlinops_pass(name, matvecs):
    config = {"num_matvecs": matvecs}
    judged = judge("curvlinops", f"curvlinops:{name}", estimand="trace", config=config)
    assert judged.checks
    assert failing(judged) == set()


def test_a_wrong_setting_of_curvlinops_is_a_failure_with_its_reason():
    config = {"num_matvecs": 9}
    judged = judge("curvlinops", "curvlinops:xtrace", estimand="trace", config=config)
    assert judged.verdict == FAIL
    assert "must be divisible by 2" in judged.checks[0].message


def test_the_default_logdet_of_linear_operator_is_biased():
    path = "tests.verification.foreign_logdet:default_logdet"
    assert "S1" in failing(judge("linear_operator", path, estimand="logdet"))


def test_the_careful_logdet_of_linear_operator_is_not():
    path = "tests.verification.foreign_logdet:careful_logdet"
    assert failing(judge("linear_operator", path, estimand="logdet")) == set()
