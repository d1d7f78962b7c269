"""How blocks are cut, laid out, counted and kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specbp.jacobian import Jacobian
from specbp.jacobian.products import MAX_GRAPHS, MAX_TAPES, Graph
from specbp.models.dcgan import DCGANGenerator
from specbp.models.wide_resnet import ConvWideResNet


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def rows(*shape: int, seed: int = 0) -> Tensor:
    """A block (..., n, m) in the library's layout: the transpose of contiguous rows."""
    return randn(*shape[:-2], shape[-1], shape[-2], seed=seed).mT


class Spy:
    """Passes products on and notes their widths."""

    def __init__(self, inner):
        self.inner, self.widths, self.directions = inner, [], set()

    def jvp(self, block):
        self.widths.append(block.shape[1])
        self.directions.add("jvp")
        return self.inner.jvp(block)

    def vjp(self, block):
        self.widths.append(block.shape[1])
        self.directions.add("vjp")
        return self.inner.vjp(block)


def images() -> ConvWideResNet:
    return ConvWideResNet(1, 3, 2, generator=seeded()).double()


def spied(f=None, *event: int, **options) -> tuple[Jacobian, Spy]:
    f, event = (f, event) if event else (images(), (1, 4, 3))
    J = Jacobian(f, randn(*event), event_dim=len(event), **options)
    J._products = Spy(J._products)
    return J, J._products


def test_dense_respects_its_memory_bound_and_takes_the_shorter_side():
    J, spy = spied()
    per_column = J._primal.activation_bytes
    assert per_column > 12 * 8 * 3  # at least the maps between stem and head
    J.dense(max_bytes=7 * per_column)
    assert max(spy.widths) == 3  # two bytes of working memory per byte of activation
    assert spy.directions == {"jvp"}
    J, spy = spied(lambda x: x[:, :2] * x.sum(-1, keepdim=True), 7)
    J.dense()
    assert spy.directions == {"vjp"}
    assert spy.widths == [2]


@pytest.mark.parametrize(
    ("columns", "size", "widths"), [(7, 3, [3] * 3), (6, 3, [3, 3]), (5, 9, [5])]
)
def test_blocks_have_one_width(columns, size, widths):
    """So one graph or tape serves all of them; the last block overlaps the one before."""
    J, spy = spied(chunk_size=size)
    _ = J @ rows(12, columns)
    assert spy.widths == widths


def test_an_empty_block_gives_an_empty_product():
    J, _ = spied()
    assert (J @ rows(2, 12, 0)).shape == (2, 12, 0)
    assert (J.mT @ rows(0, 12, 4)).shape == (0, 12, 4)


def test_blocks_stay_transposed_views_of_rows():
    f = DCGANGenerator(3, 1, 1, 32, generator=seeded()).double()
    for batch in [(), (2,)]:
        J = Jacobian(f, randn(*batch, 3))
        for _ in range(3):
            for result in (J @ rows(3, *batch, 3, 4), J.mT @ rows(*batch, 1024, 4)):
                assert result.mT.stride(-1) == 1
        assert J.dense().mT.is_contiguous()
    assert (J @ rows(2, 3, 4)).mT.stride(-1) == 1


def test_caches_are_bounded_and_keep_what_was_used_last():
    J = Jacobian(lambda x: x.sin(), randn(6))
    graphs, tapes = (J._products._strategies[name] for name in ("graph", "tape"))
    kept = []
    for m in range(1, 12):
        for _ in range(3):
            J @ rows(6, m), J.mT @ rows(6, m), J @ rows(6, 20)
        kept.append(tapes._tapes["jvp", 20])
    assert len(graphs._graphs) == MAX_GRAPHS
    assert len(tapes._tapes) == MAX_TAPES
    assert all(tape is kept[0] for tape in kept)


def test_the_adjoint_is_checked_once(monkeypatch):
    calls = []
    monkeypatch.setattr(Graph, "check_adjoint", lambda graph: calls.append(graph))
    for check in (True, False):
        J = Jacobian(lambda x: x.sin(), randn(6), check=check)
        for m in (1, 2, 3, 2):
            J.mT @ rows(6, m), J @ rows(6, m)
    assert len(calls) == 1


def test_several_blocks_are_recorded_from_the_first():
    J = Jacobian(lambda x: x.sin(), randn(6), chunk_size=2)
    _ = J @ rows(6, 5)
    assert J._products._worked == {("tape", "jvp", 2)}
    _ = J.mT @ rows(6, 2)
    assert J._products._worked == {("tape", "jvp", 2), ("graph", "vjp", 2)}


def test_activations_are_counted_without_views():
    J = Jacobian(lambda x: (2 * x).unflatten(-1, (2, 3)).mT.exp().flatten(1), randn(5, 6))
    # The copy of z that f is given, the product, exp, and the copy that flatten makes.
    assert J._primal.activation_bytes == 4 * 5 * 6 * 8
