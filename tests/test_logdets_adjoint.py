"""Factors that are not what they promise: products that change, an adjoint that is none."""

from __future__ import annotations

import pytest
import torch

from specbp.blockquad import block_golub_kahan_logdet
from specbp.estimate import Status
from specbp.logdets import golub_kahan_logdet
from tests.support import f32, f64, flags, signs

ESTIMATORS = pytest.mark.parametrize("estimate", [golub_kahan_logdet, block_golub_kahan_logdet])


class Factor:
    """J with an adjoint of its own choice, and products in which entries of J drop out."""

    def __init__(self, matrix, adjoint=None, dropped=0.0, seed=0):
        self.matrix, self.dropped = matrix, dropped
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device
        self.generator = torch.Generator().manual_seed(seed)
        self.mT = adjoint if adjoint is not None else Factor(matrix.mT, self, dropped, seed + 1)

    def __matmul__(self, X):
        kept = torch.rand(self.matrix.shape, generator=self.generator) >= self.dropped
        return (self.matrix * kept) @ X


def matrix(dtype):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(30, 20, generator=generator, dtype=f64).to(dtype)


@ESTIMATORS
@pytest.mark.parametrize("dropped", [1e-2, 0.5])
def test_products_that_change_are_reported(estimate, dropped):
    found = estimate(Factor(matrix(f64), dropped=dropped), signs(20, 4), num_steps=4)
    assert flags(found) & Status.NONSYMMETRIC
    assert torch.isnan(found.value)


@ESTIMATORS
@pytest.mark.parametrize("dtype", [f32, f64])
def test_an_adjoint_that_is_one_per_cent_off_is_reported(estimate, dtype):
    J = matrix(dtype)
    found = estimate(Factor(J, adjoint=1.01 * J.mT), signs(20, 4).to(dtype), num_steps=4)
    assert flags(found) & Status.NONSYMMETRIC


@ESTIMATORS
@pytest.mark.parametrize("dtype", [f32, f64])
def test_a_sound_factor_is_not_accused(estimate, dtype):
    J = matrix(dtype)
    found = estimate(Factor(J), signs(20, 4).to(dtype), num_steps=4)
    assert bool(found.ok)
