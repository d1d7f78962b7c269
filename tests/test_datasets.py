"""Kernel and Laplacian matrices against explicit loops, exact structure and bounds."""

from __future__ import annotations

import importlib
import math
import statistics
import sys

import numpy as np
import pytest
import torch

from specbp import datasets
from specbp.datasets import DATASETS, features, knn_laplacian, rbf_kernel

EPS = torch.finfo(torch.float64).eps
SIZES = {"breast_cancer": (569, 30), "diabetes": (442, 10), "digits": (1797, 64)}
SHIFT = 2.0**-6  # exact beside small integers, so that row sums are


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("subset", [None, 50])
def test_features_are_standardised(dataset, subset):
    X = features(dataset, subset=subset)
    n, d = SIZES[dataset]
    assert X.shape == (subset or n, d)
    constant = np.ptp(X, axis=0) == 0
    assert (constant.any()) == (dataset == "digits")  # the pixels in the corners
    assert (X[:, constant] == 0).all()
    # Sums of n terms of size at most max|X|.
    tolerance = 4 * len(X) * EPS * np.abs(X).max()
    assert np.abs(X.mean(axis=0)).max() <= tolerance
    assert np.abs(X[:, ~constant].var(axis=0) - 1).max() <= tolerance * np.abs(X).max()


def test_subset_takes_the_first_points():
    whole, part = features("diabetes"), features("diabetes", subset=100)
    correlations = [np.corrcoef(whole[:100, j], part[:, j])[0, 1] for j in range(10)]
    assert min(correlations) >= 1 - 100 * EPS


def naive_kernel(X: np.ndarray, noise: float, lengthscale: float | None) -> torch.Tensor:
    n = len(X)
    pairs = [distance(X[i], X[j]) for i in range(n) for j in range(i)]
    scale = lengthscale or statistics.median(pairs)
    K = [[math.exp(-(distance(x, y) ** 2) / (2 * scale**2)) for y in X] for x in X]
    return torch.tensor(K, dtype=torch.float64) + noise * torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("lengthscale", [None, 3.0])
def test_kernel_equals_the_formula(dataset, lengthscale):
    n = 21 if lengthscale else 20  # an odd and an even number of pairs
    K = rbf_kernel(dataset, noise=0.5, lengthscale=lengthscale, subset=n)
    expected = naive_kernel(features(dataset, subset=n), 0.5, lengthscale)
    torch.testing.assert_close(K, expected, rtol=0, atol=16 * EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dataset", ["breast_cancer", "diabetes"])
def test_kernel_is_symmetric_definite_and_ill_conditioned(dataset, dtype):
    noise, n = 1e-4, SIZES[dataset][0]
    K = rbf_kernel(dataset, noise=noise, dtype=dtype)
    assert K.shape == (n, n)
    assert K.dtype == dtype
    assert K.equal(K.mT)
    assert K.diagonal().equal(torch.full((n,), 1 + noise, dtype=dtype))
    values = torch.linalg.eigvalsh(K.double())
    rounding = torch.finfo(dtype).eps / 2 * K.double().norm() + 16 * n * EPS
    assert values[0] >= noise - rounding > 0
    assert values[-1] / values[0] > 1e6
    assert K.equal(rbf_kernel(dataset, noise=noise).to(dtype))


def naive_laplacian(X: np.ndarray, neighbours: int, shift: float) -> torch.Tensor:
    n = len(X)
    L = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        others = sorted((distance(X[i], X[j]), j) for j in range(n) if j != i)
        for _, j in others[:neighbours]:
            L[i, j] = L[j, i] = -1
    return L + torch.diag(shift - L.sum(1))


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("neighbours", [1, 4])
def test_laplacian_equals_the_definition(dataset, neighbours):
    A = knn_laplacian(dataset, shift=SHIFT, neighbours=neighbours, subset=30)
    assert A.equal(naive_laplacian(features(dataset, subset=30), neighbours, SHIFT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dataset", ["breast_cancer", "diabetes"])
def test_laplacian_structure(dataset, dtype):
    A = knn_laplacian(dataset, shift=SHIFT, dtype=dtype)
    degrees = A.diagonal() - SHIFT
    assert A.dtype == dtype
    assert A.equal(A.mT)
    assert set((A - A.diagonal().diag()).unique().tolist()) == {-1.0, 0.0}
    assert bool((A.sum(1) == SHIFT).all())  # sums of small integers and shift are exact
    assert degrees.min() >= 10
    values = torch.linalg.eigvalsh(A.double())
    error = len(A) * EPS * values[-1]
    assert abs(values[0] - SHIFT) <= error
    assert values[-1] <= 2 * degrees.max() + SHIFT + error


def test_laplacian_multiplicity_of_shift_counts_components(monkeypatch):
    points = np.array([0.0, 1, 2, 100, 101, 102])[:, None]
    monkeypatch.setattr(datasets, "features", lambda dataset, subset: points)
    A = knn_laplacian("two clusters", shift=SHIFT, neighbours=1)
    path = torch.tensor([[1.0, -1, 0], [-1, 2, -1], [0, -1, 1]], dtype=torch.float64)
    assert A.equal(torch.block_diag(path, path) + SHIFT * torch.eye(6))
    values = torch.linalg.eigvalsh(A)
    expected = SHIFT + torch.tensor([0.0, 0, 1, 1, 3, 3], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=6 * EPS * 3)


def test_laplacian_breaks_ties_by_index(monkeypatch):
    # The corners of a simplex are equally far apart: all are joined to the first two. (300 of them:
    # an unstable sort keeps the order of a few.)
    monkeypatch.setattr(datasets, "features", lambda dataset, subset: np.eye(300))
    A = knn_laplacian("simplex", shift=SHIFT, neighbours=2)
    assert bool((A[2:, :2] == -1).all())
    assert A.diagonal().tolist() == [299 + SHIFT] * 2 + [2 + SHIFT] * 298


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: features("iris"), "'iris'.*breast_cancer, diabetes, digits"),
        (lambda: rbf_kernel("iris", noise=1.0), "Unknown dataset 'iris'"),
        (lambda: features("diabetes", subset=1), "between 2 and 442, got 1"),
        (lambda: features("diabetes", subset=443), "between 2 and 442, got 443"),
        (lambda: rbf_kernel("diabetes", noise=0.0), "noise must be positive.*got 0.0"),
        (lambda: rbf_kernel("diabetes", noise=math.nan), "noise must be positive.*got nan"),
        (lambda: rbf_kernel("diabetes", noise=1.0, lengthscale=0.0), "lengthscale must be positi"),
        (
            lambda: rbf_kernel("diabetes", noise=1e-6, dtype=torch.float32),
            "noise must exceed .* in torch.float32 .*, got 1e-06",
        ),
        (lambda: knn_laplacian("diabetes", shift=-1.0), "shift must be positive.*got -1.0"),
        (lambda: knn_laplacian("diabetes", shift=1.0, neighbours=0), "between 1 and n - 1 = 441"),
        (lambda: knn_laplacian("diabetes", shift=1.0, neighbours=442), "n - 1 = 441, got 442"),
        (
            lambda: knn_laplacian("diabetes", shift=1e-7, dtype=torch.float32),
            "shift = 1e-07 vanishes beside degrees up to 30 in torch.float32",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_scikit_learn_is_imported_only_when_data_are_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    reloaded = importlib.reload(datasets)
    with pytest.raises(ImportError, match=r"pip install specbp\[verify\]"):
        reloaded.rbf_kernel("diabetes", noise=1.0)
