"""The strongest route that is open is taken, and no symmetry is taken on faith."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from specbp import hutchinson_trace
from specbp.testing import evidence
from tests.support import geometric, normal, spd


def A(n: int) -> torch.Tensor:
    return spd(geometric(n, 10.0))


def ordered(A, X):
    """Even in every probe, but the first one counts twice."""
    forms = (X * (A @ X)).sum(0)
    return forms[0] + forms.mean()


def odd(A, X):
    return hutchinson_trace(A, X).value + X[0].sum()


@pytest.mark.parametrize(
    ("estimator", "n", "m", "outcomes"),
    [
        (hutchinson_trace, 12, 1, 2048),
        (hutchinson_trace, 13, 1, None),
        (odd, 8, 1, 256),
        (odd, 4, 2, None),
        (hutchinson_trace, 6, 2, 1024),
        (hutchinson_trace, 7, 2, 2080),
        (ordered, 7, 2, None),
        (ordered, 6, 2, 1024),
        (hutchinson_trace, 5, 3, 816),
        (hutchinson_trace, 8, 2, None),
    ],
)
def test_outcomes_are_enumerated_where_they_are_few(estimator, n, m, outcomes):
    design = evidence.exact_law(estimator, A(n), "rademacher", m)
    assert (None if design is None else len(design.weights)) == outcomes


@pytest.mark.parametrize("law", ["gaussian", "sphere", "orthogonal", None])
def test_only_signs_are_enumerated(law):
    assert evidence.exact_law(hutchinson_trace, A(4), law, 1) is None


@pytest.mark.parametrize(("n", "law"), [(8, "rademacher"), (7, "rademacher"), (8, "sphere")])
@pytest.mark.parametrize("m", [1, 3, 20])
def test_blocks_of_a_basis_average_to_the_trace(n, law, m):
    B, design = normal(n, n), evidence.basis(n, m, law, ("test",))
    assert design.probes.shape == (n, n, m)
    forms = torch.einsum("rim,ij,rjm->r", design.probes, B, design.probes) / m
    assert design.mean(forms) == pytest.approx(float(B.trace()))


def test_replicates_follow_their_key_and_their_law():
    def estimator(A, X):
        return X[0, 0], X.shape[1]

    first, again = (
        evidence.replicates(estimator, A(4), 30, "gaussian", 2, ("key",)) for _ in range(2)
    )
    assert np.array_equal(first.values, again.values)
    assert set(first.errors) == {2.0}
    assert len(set(first.values)) == 30
    other = evidence.replicates(estimator, A(4), 30, "gaussian", 2, ("other",))
    assert not np.array_equal(first.values, other.values)


def test_failures_are_counted_with_the_first_reason():
    values = iter([1.0, math.nan, "no", 2.0])
    found = evidence.over(lambda A, X: next(values), A(2), torch.ones(4, 2, 1))
    assert found.failures == 2
    assert found.reason == "the value is nan"


def test_probes_come_in_the_dtype_of_the_operator():
    def estimator(A, X):
        return (X.T @ (A @ X)).trace()

    found = evidence.over(estimator, A(3).float(), torch.ones(2, 3, 1).double())
    assert found.failures == 0
