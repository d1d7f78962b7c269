"""Reproducibility in one line: seeds, frozen and shared probes, the global generators."""

from __future__ import annotations

import pytest
import torch

from specbp import generator_for, hutchinson_trace, rademacher, slq_logdet
from specbp.testing.assertions import assert_reproducible
from specbp.testing.blackbox import global_state
from tests.support import geometric, normal, spd

n = 40
A = spd(geometric(n, 10.0))


def fresh(A, generator):
    return hutchinson_trace(A, rademacher(n, 3, generator=generator))


def globally(A):
    X = torch.randn(n, 3, dtype=A.dtype)
    return torch.einsum("im,ij,jm->m", X, A, X).mean()


def batched(A, generator):
    X = rademacher(n, 3, generator=generator, batch_shape=A.shape[:-2])
    return slq_logdet(A, X, num_steps=4)


BATCH = torch.stack([A, 2 * A, A + torch.eye(n).double()])


@pytest.mark.parametrize(("estimator", "A"), [(fresh, A), (globally, A), (batched, BATCH)])
def test_fresh_probes_pass(estimator, A):
    before = global_state()
    check = assert_reproducible(estimator, A)
    assert check.verdict == "PASS"
    assert "duplicates across seeds: 0 of" in check.message
    assert global_state() == before


def frozen(A, generator):
    return fresh(A, generator_for("always the same"))


def shared_by_the_batch(A, generator):
    X = rademacher(n, 3, generator=generator).expand(*A.shape[:-2], n, 3)
    return slq_logdet(A, X, num_steps=4)


def antithetic(A, generator):
    X = rademacher(n, 2, generator=generator)
    return hutchinson_trace(A, torch.cat([X, -X], -1))


def period_two(A, generator):
    return fresh(A, generator_for(generator.initial_seed() % 2, float(generator.get_state()[9])))


def ignores_its_generator(A, generator):
    return (A @ torch.randn(n, 3).double()).sum()


class Cached:
    """The probes of the first call for good."""

    probes = None

    def __call__(self, A, generator):
        if self.probes is None:
            self.probes = rademacher(n, 3, generator=generator)
        return hutchinson_trace(A, self.probes)


@pytest.mark.parametrize(
    ("estimator", "matrix", "words"),
    [
        (frozen, A, ["1 different values in 10 calls", "frozen or cached probes"]),
        (Cached(), A, ["1 different values in 10 calls", "across seeds", "across calls"]),
        (shared_by_the_batch, BATCH, ["duplicates across items of axis 0", "a whole batch"]),
        (antithetic, A, ["duplicates within one block", "antithetic pairs"]),
        (period_two, A, ["duplicates across seeds", "a seed that repeats"]),
        (ignores_its_generator, A, ["gave other bits", "numpy or python has changed"]),
        (lambda A: A.nothing, A, ["raised AttributeError"]),
    ],
)
def test_planted_faults_are_named(estimator, matrix, words):
    with pytest.raises(AssertionError, match="FAIL P") as caught:
        assert_reproducible(estimator, matrix)
    for part in words:
        assert part in str(caught.value)


def test_probes_that_cannot_be_caught_are_mentioned():
    def elementwise(A, generator):
        X = rademacher(n, 3, generator=generator)
        return (A.diagonal().unsqueeze(-1) * X).sum()

    assert "could not be captured" in assert_reproducible(elementwise, A).message


def test_chance_is_allowed_for_on_short_vectors():
    def short(A, generator):
        return hutchinson_trace(A, rademacher(6, 3, generator=generator))

    assert assert_reproducible(short, normal(6, 6)).verdict == "PASS"
