"""Functions of others: what a trial lets them claim, and that they leave their input alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specbp import generator_for
from specbp.operators import CountingOperator
from specbp.testing.outcome import FAIL, PASS
from verification.checks.aggregation import products
from verification.checks.problems import problem
from verification.checks.settings import Settings
from verification.gate_pool import judge
from verification.resolve import Request, resolve

HERE = "tests.verification.wild"


def named(name, estimand="trace", **options):
    return resolve(Request(f"{HERE}:{name}", estimand, **options))


def verdicts(name, code, estimand="trace"):
    found = judge(Request(f"{HERE}:{name}", estimand), "unit", Settings())
    return [c.verdict for part in found for c in part if c.name.startswith(code)]


@pytest.mark.parametrize(
    ("name", "claimed"),
    [
        ("pair", True),
        ("tensor_only", False),
        ("estimate", True),
        ("bars_of_many", True),
        ("bars_of_few", True),
    ],
)
def test_an_error_bar_is_claimed_if_there_is_one_for_some_number_of_probes(name, claimed):
    assert named(name).claims.calibrated == claimed


def test_wrong_bars_of_many_probes_only_are_noticed():
    assert FAIL in verdicts("bars_of_many", "D8 standard error")


def test_batches_of_matrices_are_taken_apart():
    found = named("pair")
    A = torch.stack([problem(s, 8).views["A"].operator for s in ("easy", "cond 1e2")])
    X = found.draw(8, 3, generator=generator_for("r"), batch_shape=(2,))
    together = found.estimate(A, X)
    alone = [found.estimate(a, x) for a, x in zip(A, X, strict=True)]
    assert together.value.tolist() == [float(e.value) for e in alone]
    assert together.standard_error.tolist() == [float(e.standard_error) for e in alone]


def test_a_function_that_wants_a_tensor_gets_one():
    found = named("tensor_only")
    assert found.on == "dense A"
    A = problem("easy", 8).views["A"].operator
    X = found.draw(8, 3, generator=generator_for("r"))
    torch.testing.assert_close(
        found.estimate(CountingOperator(A), X).value, found.estimate(A, X).value
    )


def test_probes_are_handed_over_by_their_name():
    view = problem("easy", 8).views["A"]
    X = torch.ones(8, 2, dtype=torch.float64)
    found = named("keyword_probes").call(view, X)
    assert float(found.value) == pytest.approx(float(view.operator.sum()))


@pytest.mark.parametrize("what", ["matrix", "probes"])
def test_input_changed_in_place_is_an_error_and_its_owner_keeps_it(what):
    view = problem("easy", 8).views["A"]
    X = torch.ones(8, 2, dtype=torch.float64)
    before = view.operator.clone(), X.clone()
    with pytest.raises(ValueError, match=f"changed its {what} in place"):
        named(f"changes_its_{what}").call(view, X)
    assert torch.equal(view.operator, before[0])
    assert torch.equal(X, before[1])
    assert verdicts(f"changes_its_{what}", "D1 ") == [FAIL]


def test_input_with_nan_is_not_taken_for_changed():
    view = problem("easy", 8).views["A"]
    operator = view.operator.clone()
    operator[0, 0] = torch.nan
    X = torch.ones(8, 2, dtype=torch.float64)
    assert torch.isnan(named("estimate").call(replace(view, operator=operator), X).value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("overhead", []),
        ("tensor_only", []),
        ("estimate", [PASS]),
        ("overhead_reported", [PASS]),
        ("overhead_hidden", [FAIL]),
    ],
)
def test_products_are_judged_if_they_are_reported_and_against_those_counted(name, expected):
    assert [c.verdict for c in products(named(name), Settings())] == expected
    assert verdicts(name, "D9") == expected


def test_a_correct_dense_logdet_of_probes_passes():
    assert verdicts("dense_logdet", "D", "logdet").count(FAIL) == 0
