"""Hutchinson's estimator: exact mean and variance over all signs, by enumeration and designs."""

from __future__ import annotations

import pytest
import torch

from specbp.probes import rademacher
from specbp.trace import hutchinson_trace
from tests.support import (
    EPS,
    all_signs,
    f32,
    f64,
    generator,
    hadamard,
    normal,
    signs,
    strength_five_array,
    variance_of_signs,
)


def crooked(n, seed=0):
    """A matrix that is neither symmetric nor definite."""
    return normal(n, n, seed=seed)


@pytest.mark.parametrize("dtype", [f32, f64])
def test_each_probe_gives_its_quadratic_form(dtype):
    A, X = crooked(30).to(dtype), signs(30, 7, seed=1, dtype=dtype)
    est = hutchinson_trace(A, X)
    exact = torch.einsum("im,ij,jm->m", X.double(), A.double(), X.double())
    bound = 2 * 30 * EPS[dtype] * float(A.abs().sum())
    assert float((est.samples - exact).abs().max()) <= bound
    assert float(est.value) == pytest.approx(float(est.samples.mean()), rel=1e-14)
    assert est.num_matvecs == 7
    assert int(est.status) == 0
    assert float(est.lower) == -float("inf")


def test_mean_and_variance_over_all_signs_are_exact():
    A = crooked(10)
    est = hutchinson_trace(A, all_signs(10))
    assert est.samples.shape == (512,)
    bound = 512 * EPS[f64] * 10 * float(A.abs().sum())
    assert abs(float(est.value) - float(A.trace())) <= bound
    variance = float(est.samples.var(correction=0))
    # xᵀAx sees the symmetric part only; the common formula with A itself is wrong for crooked ones.
    assert variance == pytest.approx(variance_of_signs((A + A.mT) / 2), rel=1e-12)
    assert variance != pytest.approx(variance_of_signs(A), rel=0.01)


def test_mean_over_a_hadamard_basis_is_exact_at_64():
    A = crooked(64)
    est = hutchinson_trace(A, hadamard(64))
    assert abs(float(est.value) - float(A.trace())) <= 64 * EPS[f64] * float(A.abs().sum())


def test_mean_and_variance_over_the_array_are_exact_at_64():
    A, array = crooked(64), strength_five_array()
    assert array.shape == (64, 4096)
    est = hutchinson_trace(A, array)
    assert abs(float(est.value) - float(A.trace())) <= 64 * EPS[f64] * float(A.abs().sum())
    variance = float(est.samples.var(correction=0))
    assert variance == pytest.approx(variance_of_signs((A + A.mT) / 2), rel=1e-11)


def test_standard_error_is_calibrated_over_the_whole_law():
    """E[se²] = Var / m over every pair of sign vectors."""
    A = crooked(5)
    X = all_signs(5)
    pairs = torch.stack([X.unsqueeze(2).expand(5, 16, 16), X.unsqueeze(1).expand(5, 16, 16)], -1)
    est = hutchinson_trace(A, pairs.permute(1, 2, 0, 3))
    assert est.value.shape == (16, 16)
    expected = variance_of_signs((A + A.mT) / 2) / 2
    assert float(est.standard_error.square().mean()) == pytest.approx(expected, rel=1e-12)
    assert float(est.value.var(correction=0)) == pytest.approx(expected, rel=1e-12)


def test_batches_of_matrices_and_replicates_broadcast():
    A, X = torch.stack([crooked(6, 1), crooked(6, 2)]), signs(5, 1, 6, 3, seed=3)
    est = hutchinson_trace(A, X)
    assert est.value.shape == (5, 2)
    assert est.num_matvecs == 3
    for r in range(5):
        for b in range(2):
            one = hutchinson_trace(A[b], X[r, 0])
            assert float(est.value[r, b]) == pytest.approx(float(one.value), abs=1e-13)
            assert float(est.standard_error[r, b]) == pytest.approx(float(one.standard_error))


def test_diagonal_matrices_have_no_variance():
    d = normal(20)
    est = hutchinson_trace(torch.diag(d), rademacher(20, 4, generator=generator()))
    assert float(est.standard_error) <= 20 * EPS[f64] * float(d.abs().sum())
    assert float(est.value) == pytest.approx(float(d.sum()), abs=1e-13)


def test_nan_in_one_product_fails_the_estimate():
    A = crooked(4)
    A[0, 0] = float("nan")
    est = hutchinson_trace(A, signs(4, 3))
    assert bool(est.value.isnan())
    assert not bool(est.ok)
