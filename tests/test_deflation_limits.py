"""Captured Krylov spaces on hard and bad input: what fails says so."""

from __future__ import annotations

import math

import pytest
import torch

from specbp.deflation import krylov_aware_golub_kahan_logdet, krylov_aware_logdet
from specbp.estimate import Status
from tests.support import f32, f64, flags, geometric, normal, signs, spd

SHAPE = {"num_block": 2, "block_steps": 2, "extra_steps": 1, "num_steps": 4}


def on_factor(A, X, **config):
    return krylov_aware_golub_kahan_logdet(torch.linalg.cholesky(A).mT.contiguous(), X, **config)


both = pytest.mark.parametrize("estimate", [krylov_aware_logdet, on_factor])


class Spoiled:
    """A, whose product number `after` is not a number."""

    dtype, device = f64, torch.device("cpu")

    def __init__(self, A, after):
        self.A, self.left = A, after
        self.shape = A.shape

    def __matmul__(self, X):
        self.left -= 1
        return self.A @ X * (math.nan if self.left == 0 else 1)

    mT = property(lambda self: self)


@pytest.mark.parametrize("after", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("estimate", [krylov_aware_logdet, krylov_aware_golub_kahan_logdet])
def test_a_product_that_is_nan_gives_nan(estimate, after):
    est = estimate(Spoiled(spd(geometric(12, 5.0)), after), signs(12, 5), **SHAPE, lower=0.01)
    assert math.isnan(float(est.value))
    assert flags(est) & Status.NONFINITE
    assert float(est.lower) == -math.inf


def test_indefinite_singular_and_skew_are_told():
    A, X = spd(geometric(20, 10.0)), signs(20, 6)
    config = SHAPE | {"num_steps": 14}
    assert flags(krylov_aware_logdet(A - 0.5 * torch.eye(20), X, **config)) & Status.NEGATIVE_RITZ
    singular = spd(torch.cat([torch.zeros(3, dtype=f64), geometric(17, 10.0)]))
    assert flags(krylov_aware_logdet(singular, X, **config)) & (
        Status.SINGULAR | Status.NEGATIVE_RITZ
    )
    J = torch.cat([torch.zeros(20, 2, dtype=f64), normal(20, 18)], 1)
    est = krylov_aware_golub_kahan_logdet(J, X, **config)
    assert float(est.value) == -math.inf
    assert flags(est) & Status.SINGULAR
    skew = A + 1e-3 * (normal(20, 20) - normal(20, 20).mT)
    assert flags(krylov_aware_logdet(skew, X, **config)) & Status.NONSYMMETRIC


@both
def test_zero_probes_and_more_steps_than_dimensions(estimate):
    A = spd(geometric(6, 5.0))
    est = estimate(A, torch.zeros(6, 3, dtype=f64), **SHAPE)
    assert bool(torch.isfinite(est.value))
    est = estimate(A, signs(6, 5), num_block=2, block_steps=1, extra_steps=1, num_steps=6)
    assert flags(est) == Status.INVARIANT_SUBSPACE
    assert bool(torch.isfinite(est.value))


@both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_block": 0}, "num_block"),
        ({"num_block": 5}, "num_block"),
        ({"block_steps": -1}, "block_steps"),
        ({"extra_steps": 0}, "extra_steps"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 13}, "num_steps"),
        ({"lower": -1.0}, "lower"),
    ],
)
def test_bad_numbers_are_refused(estimate, change, message):
    with pytest.raises(ValueError, match=message):
        estimate(spd(geometric(12, 5.0)), signs(12, 5), **(SHAPE | change))


@both
def test_bad_tensors_are_refused(estimate):
    A = spd(geometric(12, 5.0))
    with pytest.raises(TypeError, match="float32"):
        estimate(A, signs(12, 5, dtype=f32), **SHAPE)
    with pytest.raises(ValueError, match="n = 12"):
        estimate(A, signs(11, 5), **SHAPE)
