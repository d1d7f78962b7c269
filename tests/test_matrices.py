"""Bases against explicit products and exact moments, operators against dense matrices."""

from __future__ import annotations

import math
from functools import reduce

import pytest
import torch
from scipy.stats import norm

from specbp.matrices import (
    Householder,
    SpectralFactor,
    SpectralMatrix,
    clusters,
    haar,
    lapack_mode,
    marchenko_pastur,
    power_law,
    random_householder,
)
from specbp.operators import LinearOperator, RectangularOperator

EPS = torch.finfo(torch.float64).eps
DTYPES = [torch.float32, torch.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def block(*shape: int, dtype=torch.float64, rows: bool = True) -> torch.Tensor:
    """Gaussian block (..., n, m), stored by rows (..., m, n) as the library does, or by columns."""
    X = torch.randn(*shape, generator=generator(9), dtype=torch.float64).to(dtype)
    return X.mT.contiguous().mT if rows else X


def assert_product(A, X, terms: int, norm: float = 1.0) -> None:
    """A @ X equals the float64 product to the rounding of `terms` additions, columnwise in norm."""
    result, exact = A @ X, A.dense() @ X.double()
    assert result.dtype == X.dtype
    assert result.shape == exact.shape
    assert result.mT.is_contiguous()
    error = torch.linalg.vector_norm(result.double() - exact, dim=-2)
    scale = norm * torch.linalg.vector_norm(X.double(), dim=-2)
    assert bool((error <= 2 * terms * torch.finfo(X.dtype).eps * scale).all())


# Bases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("dtype", DTYPES)
def test_haar_is_orthogonal(n, dtype):
    Q = haar(n, generator=generator(), batch_shape=(3,), dtype=dtype)
    assert Q.dtype == dtype
    assert Q.shape == (3, n, n)
    error = Q.double().mT @ Q.double() - torch.eye(n, dtype=torch.float64)
    assert error.abs().max() <= 4 * n * torch.finfo(dtype).eps
    assert Q.equal(haar(n, generator=generator(), batch_shape=(3,)).to(dtype))


def test_haar_moments():
    """Exact moments of Haar entries; false alarm probability 1e-6 in the normal limit."""
    n, R = 5, 20000
    Q = haar(n, generator=generator(2), batch_shape=(R,))
    q2, q4 = 1 / n, 3 / (n * (n + 2))
    q8 = 105 / (n * (n + 2) * (n + 4) * (n + 6))
    off = (n + 1) / ((n - 1) * n * (n + 2))  # E q_11^2 q_22^2
    off4 = 9 * (n + 3) * (n + 5) / ((n - 1) * n * (n + 1) * (n + 2) * (n + 4) * (n + 6))
    corner = (Q[:, 0, 0] * Q[:, 1, 1]).square()
    z = [
        (Q.mean(0) / math.sqrt(q2 / R)).flatten(),
        ((Q.square().mean(0) - q2) / math.sqrt((q4 - q2**2) / R)).flatten(),
        ((Q.pow(4).mean(0) - q4) / math.sqrt((q8 - q4**2) / R)).flatten(),
        ((corner.mean() - off) / math.sqrt((off4 - off**2) / R)).reshape(1),
        ((torch.linalg.det(Q).mean()) * math.sqrt(R)).reshape(1),  # det = +-1, evenly
    ]
    z = torch.cat(z)
    assert z.abs().max() <= norm.isf(1e-6 / (2 * len(z)))


def test_generators_move():
    g = generator()
    assert not haar(4, generator=g).equal(haar(4, generator=g))
    first, second = (random_householder(4, 2, generator=g).vectors for _ in range(2))
    assert not first.equal(second)


def naive_reflectors(V: torch.Tensor) -> torch.Tensor:
    """H_1 H_2 ... H_k, multiplied out."""
    eye = torch.eye(V.shape[-2], dtype=torch.float64)
    columns = [v.unsqueeze(-1) for v in V.double().unbind(-1)]
    return reduce(torch.matmul, [eye - 2 * v @ v.mT / (v.mT @ v) for v in columns])


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (9, 4), (3, 5), (2, 3, 9, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_householder_is_the_product_of_its_reflectors(shape, dtype):
    Q = Householder(5 * torch.randn(*shape, generator=generator(), dtype=torch.float64).to(dtype))
    expected, (n, k) = naive_reflectors(Q.vectors), shape[-2:]
    assert Q.shape == expected.shape
    torch.testing.assert_close(Q.dense(), expected, rtol=0, atol=8 * n * k * EPS)
    torch.testing.assert_close(Q.mT.dense(), expected.mT, rtol=0, atol=8 * n * k * EPS)
    torch.testing.assert_close(Q.mT.dense() @ Q.dense(), torch.eye(n).expand(Q.shape).double())


def test_householder_of_rounded_vectors_is_orthogonal_beyond_their_precision():
    Q = random_householder(64, 4, generator=generator()).to(torch.float32)
    rounded = haar(64, generator=generator(), dtype=torch.float32).double()
    eye = torch.eye(64, dtype=torch.float64)
    assert (Q.dense().mT @ Q.dense() - eye).abs().max() <= 64 * EPS
    assert (rounded.mT @ rounded - eye).abs().max() > 1e6 * EPS


def test_householder_with_parallel_vectors():
    v = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    twice = Householder(torch.cat([v, -2 * v], dim=1))
    torch.testing.assert_close(twice.dense(), torch.eye(2).double(), rtol=0, atol=8 * EPS)


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batches", [((), ()), ((), (2, 3)), ((3,), ()), ((2, 1), (3,))])
def test_householder_products(batches, dtype, rows):
    n, k, m = 33, 3, 5
    Q = random_householder(n, k, generator=generator(), batch_shape=batches[0], dtype=dtype)
    X = block(*batches[1], n, m, dtype=dtype, rows=rows)
    before = X.clone()
    assert_product(Q, X, terms=n + k)
    assert_product(Q.mT, X, terms=n + k)
    assert X.equal(before)


# Operators ----------------------------------------------------------------------------------------

SPECTRA = {
    "one large": lapack_mode(1, 40, 1e6),
    "geometric": lapack_mode(3, 40, 1e8),
    "power law": power_law(40, 2.0),
    "clusters": clusters(40, [100.0, 1.0], 0.1),
    "marchenko_pastur": marchenko_pastur(40, 0.9),
    "order 2": lapack_mode(3, 2, 1e3),
    "order 1": lapack_mode(3, 1, 1e3),
}


def bases(n: int, **options) -> list[torch.Tensor | Householder]:
    g = generator(3)
    return [haar(n, generator=g, **options), random_householder(n, 4, generator=g, **options)]


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("implicit", [False, True])
def test_spectrum_is_recovered(name, implicit):
    values = SPECTRA[name]
    n = len(values)
    A = SpectralMatrix(values, bases(n)[implicit])
    dense = A.dense()
    # Backward stable: an absolute error of n eps lambda_max, i.e. n eps cond relative to any.
    atol = 4 * n * EPS * values[0].item()
    computed = torch.linalg.eigvalsh(dense).flip(0)
    torch.testing.assert_close(computed, values, rtol=0, atol=atol)
    assert dense.equal(dense.mT)
    for N in (n, n + 7):
        J = SpectralFactor(values, bases(N)[implicit], bases(n)[implicit])
        assert J.shape == (N, n)
        for matrix in (J.dense(), J.mT.dense()):
            torch.testing.assert_close(torch.linalg.svdvals(matrix), values, rtol=0, atol=atol)


@pytest.mark.parametrize("implicit", [False, True])
def test_basis_columns_are_the_eigenvectors(implicit):
    values = lapack_mode(3, 30, 1e5)
    A = SpectralMatrix(values, bases(30)[implicit])
    Q = A.basis.dense() if implicit else A.basis
    torch.testing.assert_close(A @ Q, Q * values, rtol=0, atol=4 * 30 * EPS)


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("values_batch", "basis_batch", "block_batch"),
    [((), (), ()), ((), (), (2, 3)), ((3,), (), ()), ((), (3,), ()), ((2, 1), (3,), (1,))],
)
def test_products_equal_dense_products(
    values_batch, basis_batch, block_batch, implicit, dtype, rows
):
    n, m = 20, 5
    scales = torch.rand(*values_batch, 1, generator=generator(), dtype=torch.float64) + 0.5
    values = (scales * lapack_mode(4, n, 1e3)).to(dtype)
    V = bases(n, batch_shape=basis_batch, dtype=dtype)[implicit]
    X = block(*block_batch, n, m, dtype=dtype, rows=rows)
    before = X.clone()
    A = SpectralMatrix(values, V)
    assert A.shape == torch.broadcast_shapes(values.shape[:-1], V.shape[:-2]) + (n, n)
    assert_product(A, X, terms=2 * (n + 4), norm=1.5)
    for N in (n, n + 6, n - 6):
        J = SpectralFactor(values[..., : min(N, n)], bases(N, dtype=dtype)[implicit], V)
        assert_product(J, X, terms=N + n + 8, norm=1.5)
        assert_product(J.mT, block(*block_batch, N, m, dtype=dtype, rows=rows), N + n + 8, 1.5)
    assert X.equal(before)


def test_adjoint_transposes_the_dense_matrix_and_is_made_once():
    J = SpectralFactor(power_law(5, 1.0), haar(8, generator=generator()), bases(5)[1])
    torch.testing.assert_close(J.mT.dense(), J.dense().mT, rtol=0, atol=8 * EPS)
    assert J.mT is J.mT
    assert J.mT.mT is J


@pytest.mark.parametrize("implicit", [False, True])
def test_operators_satisfy_the_protocols(implicit):
    Q = bases(4)[implicit]
    A, J = SpectralMatrix(power_law(4, 1.0), Q), SpectralFactor(power_law(4, 1.0), Q, Q)
    assert isinstance(A, LinearOperator)
    assert isinstance(J, RectangularOperator)
    assert A.shape == J.shape == torch.Size((4, 4))
    assert A.dtype == J.dtype == torch.float64
    assert A.device == J.device == torch.device("cpu")


@pytest.mark.parametrize("implicit", [False, True])
def test_conversion_rounds_what_is_stored(implicit):
    values, Q = lapack_mode(3, 12, 1e4), bases(12)[implicit]
    A = SpectralMatrix(values, Q).to(torch.float32)
    J = SpectralFactor(values, Q, Q).to(dtype=torch.float32, device="cpu")
    assert A.dtype == A.basis.dtype == J.dtype == J.left.dtype == torch.float32
    assert A.eigenvalues.equal(values.float())
    assert A.dense().dtype == torch.float64
    # The bases differ by their rounding, of relative size eps in each entry of a column.
    change = 12 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(A.dense(), SpectralMatrix(values, Q).dense(), rtol=0, atol=change)
    if implicit:  # orthogonal again after rounding, so the stored eigenvalues are still exact
        computed = torch.linalg.eigvalsh(A.dense()).flip(0)
        exact = A.eigenvalues.double()
        torch.testing.assert_close(computed, exact, rtol=0, atol=4 * 12 * EPS)


@pytest.mark.parametrize("implicit", [False, True])
def test_products_are_differentiable(implicit):
    J = SpectralFactor(power_law(6, 1.0), bases(9)[implicit], bases(6)[implicit])
    X, Z = block(4, 6, 3).requires_grad_(), block(4, 9, 3)
    (gradient,) = torch.autograd.grad((J @ X * Z).sum(), X)
    torch.testing.assert_close(gradient, J.mT @ Z)


Q4, H4, ones4 = haar(4, generator=generator()), bases(4)[1], torch.ones(4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: haar(0, generator=generator()), ValueError, "n must be at least 1, got 0"),
        (lambda: random_householder(0, 1, generator=generator()), ValueError, "n must be at"),
        (lambda: random_householder(2, 0, generator=generator()), ValueError, "num_reflectors"),
        (lambda: Householder(torch.ones(3)), ValueError, r"shape \(\.\.\., n, k\).*\(3,\)"),
        (lambda: Householder(torch.ones(3, 0)), ValueError, "k ≥ 1"),
        (lambda: Householder(torch.eye(3)[:, :2] * 0), ValueError, "finite and not zero"),
        (lambda: Householder(torch.full((3, 1), math.nan)), ValueError, "finite and not zero"),
        (lambda: Householder(torch.ones(3, 1).half()), TypeError, "float32 or float64.*float16"),
        (lambda: SpectralMatrix(0 * ones4, Q4), ValueError, "eigenvalues must be positive.* 0"),
        (lambda: SpectralMatrix(math.nan * ones4, Q4), ValueError, "eigenvalues must be positive"),
        (lambda: SpectralMatrix(math.inf * ones4, Q4), ValueError, "positive and finite"),
        (lambda: SpectralMatrix(ones4.int(), Q4), TypeError, "float32 or float64, got torch.int32"),
        (lambda: SpectralMatrix(ones4[0], Q4), ValueError, r"shape \(\.\.\., n\), n ≥ 1"),
        (lambda: SpectralMatrix(ones4[:3], Q4), ValueError, "needs 4 eigenvalues, got 3"),
        (lambda: SpectralMatrix(ones4, H4.to(torch.float32)), TypeError, "float64, basis is .*32"),
        (lambda: SpectralMatrix(ones4, Q4[:3]), ValueError, r"basis must be square.*\(3, 4\)"),
        (lambda: SpectralMatrix(ones4, 1.01 * Q4), ValueError, "basis is not orthogonal.*0.02"),
        (lambda: SpectralMatrix(ones4, Q4.tolist()), TypeError, "Tensor or Householder, got list"),
        (lambda: SpectralMatrix(ones4, Q4.to("meta")), ValueError, "on cpu, basis is on meta"),
        (lambda: SpectralFactor(-ones4, Q4, Q4), ValueError, "singular_values must be.* -1"),
        (lambda: SpectralFactor(ones4, Q4, Q4[:, :2]), ValueError, "right must be square"),
        (lambda: SpectralFactor(ones4, bases(6)[0], bases(5)[0]), ValueError, "5 singular_values"),
        (lambda: SpectralMatrix(ones4, H4) @ block(3, 2), ValueError, "n = 4, got"),
        (lambda: SpectralMatrix(ones4, Q4) @ ones4, ValueError, "n = 4, got"),
        (lambda: H4 @ block(4, 2, dtype=torch.float32), TypeError, "float64.*float32"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
