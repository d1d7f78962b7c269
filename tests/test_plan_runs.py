"""Estimates that go on: replayed products, variances known from few probes."""

from __future__ import annotations

import pytest
import torch

from specbp.operators import CountingOperator
from specbp.plan_runs import Batch, Replay
from specbp.probes import generator_for, sphere
from tests.planner_support import Implicit, ImplicitFactor, well
from tests.support import f64, factor, geometric, normal


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("factored", [False, True])
def test_going_on_gives_what_starting_anew_would(shared, factored):
    J = factor(geometric(120, 10.0), 130)
    A = ImplicitFactor(J) if factored else Implicit(J.mT @ J)
    rows = normal(2 if shared else 1, 6, 120)

    def batch():
        return Batch(A, rows, factor=factored, shared=shared, keep=True)

    going_on, anew = batch(), batch()
    going_on.run(5)
    found, expected = going_on.run(11), anew.run(11)
    assert torch.allclose(found.estimate.value, expected.estimate.value, rtol=1e-8)
    assert going_on.products == anew.products  # nothing is multiplied twice


def test_replay_multiplies_where_the_question_changed():
    counted = CountingOperator(torch.eye(4, dtype=f64))
    replay, X = Replay(counted), normal(4, 2)
    replay @ X
    replay.rewind()
    assert torch.equal(replay @ X, X)
    assert counted.num_matvecs == 2
    replay.rewind()
    assert torch.equal(replay @ (2 * X), 2 * X)
    assert counted.num_matvecs == 4


def test_the_variance_of_sphere_probes_is_known_from_few():
    """Over many draws, the mean claimed variance is the variance of the values."""
    A, m = well(60, 30.0), 3
    X = sphere(60, m, generator=generator_for("var"), batch_shape=(1500,))
    found = Batch(A, X.mT.contiguous(), factor=False, shared=False, keep=False).run(30).estimate
    ratio = float(found.standard_error.square().mean() / found.value.var())
    assert ratio == pytest.approx(1, abs=0.12)  # the variance of 1500 values: ± 0.037
