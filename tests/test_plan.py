"""Errors asked for, costs, and shapes chosen from an outlook: against loops over all of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.plan import (
    CAUTION,
    STEPS,
    WIDEST,
    Ask,
    Outlook,
    Plan,
    best_within,
    cheapest,
    cost,
    products,
    shaped,
)
from specbp.plan_costs import Costs, Shape, costs_of
from tests.support import f32, f64, normal

CHEAP = Costs(n=1000, sides=1, items=1, call=50.0, column=0.1, exact=math.inf)


def outlook(shared=False, sd=1.0, truncation=0.5, rate=0.8, probes=4, steps=8):
    return Outlook(Shape(1, probes, steps, shared), sd, truncation, rate)


@pytest.mark.parametrize(
    ("asked", "nats"), [({"atol": 3.0}, 3.0), ({"per_dimension": 0.1}, 5.0), ({"rtol": 0.02}, 0.8)]
)
def test_three_measures_of_an_error(asked, nats):
    size = torch.tensor([40.0, 40.0], dtype=f64)
    assert torch.allclose(Ask(**asked).nats(50, size), torch.full_like(size, nats))


@pytest.mark.parametrize(
    "asked", [{}, {"atol": 1.0, "rtol": 0.1}, {"atol": -1.0}, {"rtol": 0.0}, {"atol": math.nan}]
)
def test_one_positive_error_is_asked(asked):
    with pytest.raises(ValueError, match="Ask for one error, positive"):
        Ask(**asked)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 95])
def test_confidence_lies_between_zero_and_one(confidence):
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        Ask(atol=1.0, confidence=confidence)


def test_probes_fall_with_the_square_of_the_error():
    assert Ask(rtol=0.01).probes(100) == pytest.approx(100 * Ask(rtol=0.1).probes(100))
    assert Ask(atol=1.0).probes(100) == pytest.approx(Ask(per_dimension=0.01).probes(100))


@pytest.mark.parametrize("shared", [False, True])
@given(sd=st.floats(0.01, 30), truncation=st.floats(0, 20), rate=st.floats(0.1, 0.97))
def test_needed_probes_reach_the_tolerance_as_predicted(shared, sd, truncation, rate):
    seen = outlook(shared, sd, truncation, rate)
    for k in (8, 15, 46):
        probes = seen.needed(k, 0.95)
        left = 1 - truncation * rate ** (CAUTION * (k - 8))
        assert (probes is None) == (left <= 0)
        if probes is not None and 6 <= probes < 10**7:
            assert seen.error(Shape(1, probes, k, shared), 0.95) <= 1 + (0.05 if shared else 1e-9)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("left", [30, 300, math.inf])
@pytest.mark.parametrize("sd", [0.3, 3.0, 20.0])
def test_cheapest_is_that_of_a_search(shared, left, sd):
    seen = outlook(shared, sd=sd)
    found = cheapest(seen, CHEAP, 0.95, left)
    costs = []
    for k in (8, *(k for k in STEPS if k > 8)):
        probes = seen.needed(k, 0.95)
        if probes is None:
            continue
        on = Shape(max(1, -(-probes // 4)), 4, k, True) if shared else Shape(1, max(4, probes), k)
        if on.products - seen.shape.products <= left:
            costs.append(CHEAP.of(on, seen.shape))
        new = shaped(probes, k, 1000)
        if shared and new.products <= left:
            costs.append(CHEAP.of(new))
    assert (found is None) == (not costs)
    if found is not None:
        assert cost(found, seen.shape, CHEAP) == min(costs)
        assert products(found, seen.shape) <= left


@pytest.mark.parametrize("shared", [False, True])
@given(left=st.integers(0, 2000), truncation=st.sampled_from([0.0, 1.0, 50.0, math.inf]))
def test_best_within_spends_no_more_than_is_left(shared, left, truncation):
    seen = outlook(shared, truncation=truncation)
    step = best_within(seen, 1000, 0.95, left)
    assert (step is None) == (left < 4)
    if step is not None:
        assert step.goes_on
        assert 0 < products(step, seen.shape) <= left
        # Less than the cheapest addition remains: one more step of these probes, or a probe.
        added = step.shape.num_steps * (4 if shared else 1)
        assert left - products(step, seen.shape) < added or step.shape.num_steps >= max(STEPS)


def test_unknown_truncation_asks_for_more_steps():
    step = best_within(outlook(truncation=math.inf), 1000, 0.95, 40)
    assert step is not None
    assert step.shape == Shape(1, 4, 18)


@given(st.integers(1, 3000), st.sampled_from(STEPS), st.integers(1, 3000))
def test_shared_shapes_hold_the_probes_and_stay_narrow(probes, k, n):
    shape = shaped(probes, k, n)
    assert shape.shared
    if probes * k >= n and n <= WIDEST:
        assert n <= shape.products < n + k
    else:
        assert shape.probes >= min(probes, n)
        assert shape.num_probes * k <= max(WIDEST, 6 * k)


def test_going_on_costs_what_is_new():
    done, more = Shape(1, 4, 8), Shape(1, 4, 12)
    assert CHEAP.of(more, done) < CHEAP.of(more)
    dear = Costs(1000, 2, 1, 50.0, 1e4, math.inf)
    assert dear.of(more, done) == pytest.approx(2 * 16 * 1e4, rel=0.2)


def test_costs_grow_with_the_batch_and_end_where_exact_is_forbidden():
    A = normal(3, 50, 50)

    class Implicit:
        shape, dtype, device = A.shape, f32, A.device

        def __matmul__(self, X):
            return A @ X

    one = costs_of(Implicit(), factor=False, affordable=True)
    assert one.items == 3
    assert math.isfinite(one.exact)
    assert math.isinf(costs_of(Implicit(), factor=False, affordable=False).exact)


def test_a_plan_reads_as_sentences():
    one = torch.tensor(1.0)
    plan = Plan("slq", one, one / 2, True, 96, (Shape(1, 8, 12),), ("Pilot: 8 probes.",))
    assert str(plan) == "Pilot: 8 probes.\nslq: ±0.5 nats, asked ±1: met, 96 products."
    missed = Plan("slq", one, 2 * one, False, 96)
    assert "NOT met" in str(missed)
    assert str(Shape(2, 6, 12)) == "2 blocks of 6 probes with 12 steps"
    assert str(Plan("qr", one, 0 * one, True, 5)) == "qr: exact, 5 products."
