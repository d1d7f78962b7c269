"""Which block is taken for the probes, and that every call has a matrix of its own."""

from __future__ import annotations

import pytest
import torch

from verification.checks.foreign_calls import called, varying_block

FIXED, OTHER = torch.ones(3, 1), torch.arange(3.0)[:, None]
PROBES = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def test_the_first_block_that_varies_is_that_of_the_probes():
    for fixed in ([], [FIXED], [FIXED, OTHER]):
        records = [[*fixed, block, block + 1] for block in (PROBES[0], PROBES[1], PROBES[0])]
        found = varying_block(records, 3)
        assert torch.equal(found, PROBES[[0, 1, 0]])


@pytest.mark.parametrize(
    "records",
    [
        [],
        [[], []],
        [[FIXED], [FIXED]],
        [[FIXED, OTHER], [FIXED]],
        [[FIXED], [FIXED, OTHER]],
        [[PROBES[0]], [PROBES[1][:, :2]]],
        [[PROBES[0]], [PROBES[1] * torch.nan]],
        [[PROBES[0].mT], [PROBES[1].mT]],
    ],
)
def test_otherwise_there_are_none(records):
    assert varying_block(records, 3) is None


def test_calls_start_from_the_same_matrix_and_changes_are_counted():
    A = torch.eye(3, dtype=torch.float64)

    def grows(A, generator):
        A *= 2
        return A.trace()

    for record in (False, True):
        calls = called(grows, A, 4, ("k",), record=record)
        assert calls.values.tolist() == [6.0] * 4
        assert calls.changed == 4
    assert torch.equal(A, torch.eye(3, dtype=torch.float64))


def test_a_call_sees_the_products_of_its_own_only():
    def product(A, generator):
        x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        return (A @ torch.ones(3, dtype=torch.float64)).sum() + (x * (A @ x)).sum()

    calls = called(product, torch.eye(3, dtype=torch.float64), 5, ("k",), record=True)
    expected = 3 + calls.probes.square().sum((1, 2)).numpy()
    assert calls.values == pytest.approx(expected)
    assert calls.changed == 0


def test_it_stops_where_nothing_works():
    calls = called(lambda A: None, torch.eye(3), 50, ("k",), record=True)
    assert len(calls.values) == len(calls.failures) == 3
    assert calls.probes is None
