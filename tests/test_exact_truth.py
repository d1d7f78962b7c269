from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import block_diag, hadamard

from specbp.exact import (
    Truth,
    check_tolerance,
    jacobian_eigh,
    truth_of_jacobian,
    truth_of_matrix,
)

EPS = np.finfo(np.float64).eps


def _haar(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def _jacobian(N: int, n: int, cond: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (_haar(N, n, rng) * np.geomspace(1 / cond, 1, n)) @ _haar(n, n, rng).T


def _spd(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    V = _haar(len(eigenvalues), len(eigenvalues), np.random.default_rng(seed))
    A = (V * eigenvalues) @ V.T
    return (A + A.T) / 2


def _logdet_mp(A: np.ndarray, *, gram: bool = False) -> mpmath.mpf:
    """Log det of the float64 matrix A (of A^T A for gram) by LU in 60 digits."""
    with mpmath.workdps(60):
        M = mpmath.matrix(A.tolist())
        return mpmath.log(abs(mpmath.det(M.T * M if gram else M)))


@pytest.mark.parametrize("cond", [1e2, 1e4, 1e6, 1e7])
@pytest.mark.parametrize(("N", "n"), [(24, 24), (40, 16)])
def test_jacobian_truth_is_within_its_uncertainty(N: int, n: int, cond: float) -> None:
    J = _jacobian(N, n, cond, seed=n)
    truth, exact = truth_of_jacobian(J), _logdet_mp(J, gram=True)
    for name, value in truth.methods.items():
        assert abs(value - exact) <= truth.u_truth, name
    assert truth.value == truth.methods[truth.method]
    # 10 decimals at cond(J) = 1e2, and one less for each factor 10: the bound is not a loose one.
    assert truth.u_truth <= 1e-10 * (cond / 1e2)
    assert truth.n == n
    assert truth.cond == pytest.approx(cond**2, rel=n * EPS * cond * 4)


@pytest.mark.parametrize("cond", [1e4, 1e6, 1e7])
def test_eigvalsh_of_the_gram_matrix_is_no_truth(cond: float) -> None:
    J = _jacobian(24, 24, cond)
    truth, exact = truth_of_jacobian(J), _logdet_mp(J, gram=True)
    naive = np.log(np.abs(np.linalg.eigvalsh(J.T @ J))).sum()
    assert abs(naive - exact) > truth.u_truth
    assert abs(naive - exact) > 100 * max(abs(v - exact) for v in truth.methods.values())


@pytest.mark.parametrize(("N", "n"), [(64, 64), (1024, 128)])
def test_jacobian_truth_of_hadamard_columns(N: int, n: int) -> None:
    truth = truth_of_jacobian(hadamard(N)[:, :n])
    assert abs(truth.value - n * np.log(N)) <= truth.u_truth
    assert truth.u_truth <= 4 * n**1.5 * EPS + 4 * EPS * n * np.log(N)


def test_jacobian_value_survives_column_scaling() -> None:
    J = _jacobian(30, 10, 10.0)
    powers = 2.0 ** np.linspace(-20, 20, 10).round()
    plain, scaled = truth_of_jacobian(J), truth_of_jacobian(J * powers)
    error = scaled.value - plain.value - 2 * np.log(powers).sum()
    # cond(J D) is 2^40 times worse, the value is not: it keeps the bound of the unscaled J.
    assert abs(error) <= 2 * plain.u_truth + EPS * abs(scaled.value)
    assert scaled.u_truth > 1e3 * plain.u_truth


@settings(max_examples=25, deadline=None)
@given(
    log_c=st.floats(-20, 20),
    n=st.integers(1, 8),
    extra=st.integers(0, 5),
    seed=st.integers(0, 2**16),
)
def test_jacobian_truth_laws(log_c: float, n: int, extra: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    J, c = rng.standard_normal((n + extra, n)), np.exp(log_c)
    truth = truth_of_jacobian(J)
    scaled = truth_of_jacobian(c * J)
    permuted = truth_of_jacobian(rng.permutation(J))
    assert abs(scaled.value - truth.value - 2 * n * np.log(c)) <= truth.u_truth + scaled.u_truth
    assert abs(permuted.value - truth.value) <= truth.u_truth + permuted.u_truth


@pytest.mark.parametrize(
    ("J", "error", "match"),
    [
        (np.ones((2, 3)), ValueError, r"N >= n >= 1, got shape \(2, 3\)"),
        (np.ones(3), ValueError, r"got shape \(3,\)"),
        (np.ones((3, 0)), ValueError, r"got shape \(3, 0\)"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), ValueError, "finite: 1 of its 4"),
        (np.array([[1.0, 1j], [0.0, 1.0]]), ValueError, "real"),
        (np.ones((3, 2)), np.linalg.LinAlgError, "-inf"),
        (np.zeros((3, 2)), np.linalg.LinAlgError, "-inf"),
        (np.diag([1.0, 1e-16]), np.linalg.LinAlgError, "full column rank"),
    ],
)
def test_jacobian_truth_refuses(J: np.ndarray, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        truth_of_jacobian(J)


@pytest.mark.parametrize("cond", [1e2, 1e6, 1e10])
@pytest.mark.parametrize("prescribed", [False, True])
def test_matrix_truth_is_within_its_uncertainty(cond: float, prescribed: bool) -> None:
    lam = np.geomspace(1 / cond, 1, 24)
    A = _spd(lam)
    truth = truth_of_matrix(A, lam if prescribed else None)
    exact = _logdet_mp(A)
    for name, value in truth.methods.items():
        assert abs(value - exact) <= truth.u_truth, name
    assert truth.method == ("eigenvalues" if prescribed else "cholesky")
    assert truth.u_truth >= max(truth.methods.values()) - min(truth.methods.values())
    assert truth.u_truth <= 1e-12 * cond
    assert truth.cond == pytest.approx(cond, rel=24 * EPS * cond)


def test_matrix_truth_covers_the_skew_part() -> None:
    rng = np.random.default_rng(0)
    S = _spd(np.geomspace(1e-3, 1, 10)).astype(np.float32)
    K = rng.standard_normal((10, 10))
    A = S + (1e-7 * (K - K.T)).astype(np.float32)
    truth = truth_of_matrix(A)
    error = abs(truth.value - _logdet_mp(A.astype(np.float64)))
    assert error <= truth.u_truth
    # Without the second-order term the certificate would be wrong.
    assert error > truth_of_matrix(((A + A.T) / 2).astype(np.float64)).u_truth


@settings(max_examples=25, deadline=None)
@given(log_c=st.floats(-20, 20), n=st.integers(1, 8), seed=st.integers(0, 2**16))
def test_matrix_truth_laws(log_c: float, n: int, seed: int) -> None:
    lam, c = np.random.default_rng(seed).uniform(0.01, 1.0, n), np.exp(log_c)
    A = _spd(lam, seed)
    truth, scaled = truth_of_matrix(A), truth_of_matrix(c * A)
    blocks = truth_of_matrix(block_diag(A, c * A))
    assert abs(scaled.value - truth.value - n * np.log(c)) <= truth.u_truth + scaled.u_truth
    assert abs(blocks.value - truth.value - scaled.value) <= blocks.u_truth


@pytest.mark.parametrize(
    ("A", "error", "match"),
    [
        (np.ones((2, 3)), ValueError, r"square matrix \(n, n\), got shape \(2, 3\)"),
        (np.ones((2, 2, 2)), ValueError, "one square matrix"),
        (np.array([[1.0, 0.1], [0.2, 1.0]]), ValueError, "must be symmetric"),
        (np.array([[1.0, 1e-14], [0.0, 1.0]]), ValueError, "must be symmetric"),
        (np.array([[1.0, np.inf], [np.inf, 1.0]]), ValueError, "finite: 2 of its 4"),
        (np.diag([1.0, -1.0]), np.linalg.LinAlgError, "must be positive definite"),
        (np.ones((2, 2)), np.linalg.LinAlgError, "must be positive definite"),
        (np.diag([1.0, 1e-16]), np.linalg.LinAlgError, "must be positive definite"),
        (np.diag([-0.5, -1.0]), np.linalg.LinAlgError, "must be positive definite"),
    ],
)
def test_matrix_truth_refuses(A: np.ndarray, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        truth_of_matrix(A)


@pytest.mark.parametrize(
    ("eigenvalues", "match"),
    [
        ([1.0], "2 positive numbers, got 1"),
        ([1.0, -2.0], "minimum -2"),
        ([1.0, 2.0 + 1e-9], "must be those of A"),
    ],
)
def test_matrix_truth_refuses_foreign_eigenvalues(eigenvalues: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        truth_of_matrix(np.diag([1.0, 2.0]), eigenvalues)


def test_eigenvalue_check_follows_the_dtype() -> None:
    lam = np.geomspace(0.1, 1.0, 12)
    single = _spd(lam).astype(np.float32)
    assert truth_of_matrix(single, lam).u_truth > 1e-8
    with pytest.raises(ValueError, match="must be those of A"):
        truth_of_matrix(single.astype(np.float64), lam)


def test_check_tolerance() -> None:
    truth = Truth(5.0, 1e-6, "qr", {"qr": 5.0}, 3, 10.0)
    check_tolerance(truth, 1e-5)
    for tolerance in (0.99e-5, 0.0, float("nan")):
        with pytest.raises(ValueError, match="at least 10 u_truth = 1e-05"):
            check_tolerance(truth, tolerance)


def test_digits() -> None:
    assert Truth(-200.0, 2e-8, "qr", {}, 3, 10.0).digits == pytest.approx(10)
    assert Truth(1e-9, 1e-6, "qr", {}, 3, 10.0).digits == pytest.approx(6)


def test_jacobian_eigh() -> None:
    sigma = np.geomspace(1e-6, 1.0, 12)
    J = _jacobian(20, 12, 1e6)
    lam, V = jacobian_eigh(J)
    assert (np.diff(lam) > 0).all()
    # Weyl, with the same p = sqrt(n) as the certificate; twice, since J itself was rounded.
    assert np.abs(np.sqrt(lam) - sigma).max() <= 2 * np.sqrt(12) * EPS
    assert np.abs(np.linalg.norm(J @ V, axis=0) - np.sqrt(lam)).max() <= 2 * np.sqrt(12) * EPS
    assert np.abs(V.T @ V - np.eye(12)).max() <= 12 * EPS
    truth = truth_of_jacobian(J)
    assert abs(np.log(lam).sum() - truth.value) <= truth.u_truth
    with pytest.raises(np.linalg.LinAlgError, match="-inf"):
        jacobian_eigh(np.ones((3, 2)))


def test_tensors_and_lists_are_accepted() -> None:
    J = _jacobian(6, 4, 10.0)
    tensor = torch.tensor(J, requires_grad=True)
    assert truth_of_jacobian(tensor) == truth_of_jacobian(J) == truth_of_jacobian(J.tolist())
    A = torch.eye(3, dtype=torch.float32) * 2
    assert truth_of_matrix(A).value == pytest.approx(3 * np.log(2), abs=8 * EPS)
