"""The faulty samplers are what they say, and draw only from the generator or from nothing."""

from __future__ import annotations

import pytest
import torch

from specbp import generator_for
from verification.faults import FAULTS

SAMPLERS = ["f1", "f5", "f10", "f11", "f12", "f21", "frozen-probes", "preconditioned-probes"]


def draw(id, n, m, batch=(), seed=0):
    generator = generator_for("faulty", id, seed)
    return FAULTS[id].subject.draw(n, m, generator=generator, batch_shape=batch)


@pytest.mark.parametrize("id", SAMPLERS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_shapes(id, batch):
    X = draw(id, 7, 3, batch)
    assert X.shape == (*batch, 7, 3)
    assert X.dtype == torch.float64
    assert torch.equal(X, draw(id, 7, 3, batch))


@pytest.mark.parametrize("id", ["f5", "f10", "f11", "f12", "frozen-probes"])
def test_signs_stay_signs(id):
    assert torch.equal(draw(id, 40, 4, (5,)).abs(), torch.ones(5, 40, 4, dtype=torch.float64))


def test_another_law():
    assert draw("f1", 1000, 1).abs().max() > 2
    X = draw("f21", 50, 4)
    assert X.abs().max() > 1.5
    torch.testing.assert_close(X.square().sum(0), torch.full((4,), 50.0, dtype=torch.float64))


def test_items_share_their_probes():
    X = draw("f5", 40, 4, (3,))
    assert torch.equal(X[0], X[2])
    assert not torch.equal(X, draw("f5", 40, 4, (3,), seed=1))


def test_five_blocks_at_most():
    blocks = {tuple(x.flatten().tolist()) for x in draw("f10", 40, 4, (200,))}
    assert len(blocks) == 5


def test_generator_is_ignored():
    assert torch.equal(draw("frozen-probes", 40, 4), draw("frozen-probes", 40, 4, seed=1))


def test_probes_come_in_opposite_pairs():
    X = draw("f11", 40, 4)
    assert torch.equal(X[:, 2:], -X[:, :2])
    assert draw("f11", 40, 3).shape == (40, 3)


def test_coin_is_biased():
    share = float((draw("f12", 1000, 1000) > 0).double().mean())
    assert abs(share - 0.51) < 5 * 0.5 / 1000


def test_covariance_is_not_the_identity():
    squares = draw("preconditioned-probes", 3, 40000).square().mean(-1)
    expected = torch.tensor([1, 1.5, 2], dtype=torch.float64)
    torch.testing.assert_close(squares, expected, rtol=0.05, atol=0)
