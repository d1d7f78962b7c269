"""Whatever a foreign estimator returns or raises becomes a number or a reason; seeds stay apart."""

from __future__ import annotations

import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from specbp import Estimate, generator_for
from specbp.estimate import Status, from_samples
from specbp.testing.blackbox import (
    Outcome,
    as_outcome,
    call,
    call_seeded,
    global_state,
    isolated_rng,
    takes_generator,
)


def estimate_of(*samples: float) -> Estimate:
    return from_samples(torch.tensor(samples), num_matvecs=1)


@pytest.mark.parametrize(
    ("result", "value", "error"),
    [
        (3, 3.0, None),
        (np.float32(2.5), 2.5, None),
        (torch.tensor(2.5), 2.5, None),
        (torch.tensor([[2.5]], requires_grad=True), 2.5, None),
        (np.array([2.5]), 2.5, None),
        ((2.5, 0.5), 2.5, 0.5),
        ([torch.tensor(2.5), np.float64(0.5)], 2.5, 0.5),
        ((2.5, None), 2.5, None),
        ((2.5, float("nan")), 2.5, None),
        ((2.5, 0), 2.5, 0.0),
        ((2.5,), 2.5, None),
        (estimate_of(1.0, 3.0), 2.0, 1.0),
        (estimate_of(1.0), 1.0, None),
        (SimpleNamespace(estimate=2.5, stderr=0.5), 2.5, 0.5),
        (SimpleNamespace(value=2.5, sem=torch.tensor(0.5)), 2.5, 0.5),
    ],
)
def test_results_that_are_understood(result, value, error):
    assert as_outcome(result) == Outcome(value, error, None)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (None, "type NoneType"),
        (True, "type bool"),
        ("3.0", "type str"),
        (
            {"value": 3.0},
            r"type dict.*accepted are a number, \(value, standard error\), and an object with .val",
        ),
        (object(), "not a real number"),
        (1 + 2j, "dtype is complex128"),
        (np.complex128(1 + 100j), "dtype is complex128"),
        (np.array([1 + 0j]), "dtype is complex128"),
        (torch.tensor(1 + 2j), "dtype is torch.complex64"),
        (torch.tensor(1 + 0j), "dtype is torch.complex64"),
        ((1 + 2j, 0.5), "the result of type complex"),
        (np.array("3.0"), "not a real number"),
        (torch.tensor(True), "dtype is torch.bool"),
        (torch.ones(3), r"shape \(3,\)"),
        (np.ones((1, 2)), r"shape \(1, 2\)"),
        (torch.ones(0), r"shape \(0,\)"),
        ((1.0, 2.0, 3.0), "a tuple of 3; accepted are a number"),
        ([], "a list of 0; accepted are a number"),
        (float("nan"), "the value is nan"),
        (torch.tensor(-torch.inf), "the value is -inf"),
        ((float("inf"), 0.0), "the value is inf"),
    ],
)
def test_results_that_are_none(result, reason):
    outcome = as_outcome(result)
    assert (outcome.value, outcome.standard_error) == (None, None)
    assert re.search(reason, outcome.reason)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("n/a", "the error bar is of type str"),
        ({"std.err": 0.5}, "the error bar is of type dict"),
        (float("inf"), "the error bar is inf"),
        (torch.tensor(-0.5), "the error bar is -0.5"),
        (np.ones(3), r"the error bar has shape \(3,\)"),
        (1j, "the error bar of type complex is not a real number"),
        (object(), "the error bar of type object is not a real number"),
    ],
)
def test_rubbish_as_error_bar_is_a_failure_of_the_call(error, reason):
    for result in ((2.5, error), SimpleNamespace(value=2.5, stderr=error)):
        outcome = as_outcome(result)
        assert (outcome.value, outcome.standard_error) == (None, None)
        assert re.search(reason, outcome.reason)


def test_the_status_of_an_estimate_explains_its_nan():
    failed = from_samples(
        torch.ones(2), num_matvecs=1, status=torch.tensor([0, int(Status.NEGATIVE_RITZ)])
    )
    reason = as_outcome(failed).reason
    assert "NEGATIVE_RITZ" in reason
    assert "use float64" in reason


def test_what_is_raised_is_a_reason_and_an_interrupt_is_not():
    assert call(lambda A: A.nothing, 3).reason.startswith("raised AttributeError")

    def interrupted(A):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(interrupted, None)


class Callable:
    def __call__(self, A, *, generator):
        return torch.randn((), generator=generator)


@pytest.mark.parametrize(
    ("estimator", "takes"),
    [
        (lambda A: 0.0, False),
        (lambda A, k=3: 0.0, False),
        (lambda A, **options: 0.0, False),
        (lambda A, generator: torch.rand((), generator=generator), True),
        (lambda A, generator=None: torch.rand((), generator=generator), True),
        (lambda A, g: torch.rand((), generator=g), True),
        (Callable(), True),
        (max, False),
    ],
)
def test_a_generator_is_passed_where_there_is_room_for_one(estimator, takes):
    assert takes_generator(estimator) is takes
    if takes:
        values = [call(estimator, None, generator_for(i)).value for i in (0, 0, 1)]
        assert values[0] == values[1] != values[2]


def draw_everything() -> list[float]:
    return [
        float(torch.randn(())),
        float(np.random.randn()),  # noqa: NPY002
        float(np.random.rand()),  # noqa: NPY002
        random.random(),
    ]


def draw_and_fail() -> None:
    raise ZeroDivisionError(draw_everything())


def test_isolated_draws_are_those_of_the_seed():
    runs = []
    for seed in (1, 1, 2):
        with isolated_rng(seed):
            runs.append(draw_everything())
    assert runs[0] == runs[1]
    assert not set(runs[0]) & set(runs[2])


def test_global_generators_continue_as_if_nothing_had_happened():
    # An odd number of normal deviates leaves one in numpy's cache: it has to be restored too.
    draw_everything()
    before = global_state()
    with isolated_rng(3):
        draw_everything()
        assert global_state() != before
    assert global_state() == before
    with pytest.raises(ZeroDivisionError), isolated_rng(4):
        draw_and_fail()
    assert global_state() == before


def test_the_next_global_draws_are_the_same():
    with isolated_rng(5):
        draw_everything()
        with isolated_rng(6):
            draw_everything()
        after = draw_everything()
    with isolated_rng(5):
        draw_everything()
        assert draw_everything() == after


def test_calls_with_a_key_are_reproducible_with_and_without_generator():
    for estimator in (lambda A: torch.randn(()), lambda A, g: torch.randn((), generator=g)):
        first, again, other = (call_seeded(estimator, None, ("k", i)).value for i in (0, 0, 1))
        assert first == again != other


def test_the_state_sees_every_generator():
    for change in (
        lambda: torch.randn(()),
        lambda: np.random.rand(),  # noqa: NPY002
        lambda: random.random(),
    ):
        with isolated_rng(7):
            before = global_state()
            change()
            assert global_state() != before
