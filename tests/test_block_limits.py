"""Block Lanczos and Golub–Kahan where the operator breaks its promise, or is zero."""

from __future__ import annotations

import pytest
import torch

from specbp.block import block_golub_kahan, block_lanczos
from tests.support import f32, f64, factor, geometric, normal, signs, spd

DTYPES = [f32, f64]


class Noisy:
    """Products that differ from call to call."""

    def __init__(self, matrix, size):
        self.matrix, self.size, self.calls = matrix, size, 0

    shape = property(lambda self: self.matrix.shape)
    dtype = property(lambda self: self.matrix.dtype)
    device = property(lambda self: self.matrix.device)

    def __matmul__(self, X):
        self.calls += 1
        return self.matrix @ X + self.size * normal(*X.shape, seed=self.calls, dtype=X.dtype)


def rows_of(n, s, seed=3, dtype=f64):
    return signs(s, n, seed=seed, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_skew_part_shows(dtype, steps):
    n = 30
    skew = normal(n, n, seed=5)
    A = spd(geometric(n, 5.0)) + 0.01 * (skew - skew.mT)
    assert float(block_lanczos(A.to(dtype), rows_of(n, 3, dtype=dtype), steps).asymmetry) >= 1e-3


def test_wrong_adjoint_shows():
    class Wrong:
        J = factor(geometric(20, 4.0), 30)
        shape, dtype, device = J.shape, J.dtype, J.device
        mT = 1.01 * J.mT

        def __matmul__(self, X):
            return self.J @ X

    assert float(block_golub_kahan(Wrong(), rows_of(20, 3), 4).asymmetry) >= 1e-3
    honest = block_golub_kahan(Wrong.J, rows_of(20, 3), 4)
    assert float(honest.asymmetry) <= 1e-14


def test_noise_in_the_products_shows():
    A = Noisy(spd(geometric(40, 5.0)), 1e-4)
    assert float(block_lanczos(A, rows_of(40, 3), 6).asymmetry) >= 1e-6


@pytest.mark.parametrize("run", [block_lanczos, block_golub_kahan])
def test_zero_operator(run):
    K = run(torch.zeros(9, 6, dtype=f64)[: 6 if run is block_lanczos else 9], rows_of(6, 2), 3)
    assert int(K.rank) == 2
    assert float(K.matrix[K.kept][:, K.kept].abs().max()) == 0
    assert torch.isfinite(K.matrix).all()
