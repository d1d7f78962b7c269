"""Hard symmetric positive definite matrices from real data: kernels and graph Laplacians.

The data are those bundled with scikit-learn, imported only when a matrix is asked for; nothing is
downloaded. Matrices are dense tensors (n, n), not sparse ones: torch multiplies a sparse CSR tensor
by one (n, m) block only, not by a batch of blocks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

DATASETS = ("breast_cancer", "diabetes", "digits")
"""Names of the data sets: 569 points in 30 dimensions, 442 in 10, and 1797 in 64."""


def features(dataset: str, *, subset: int | None = None) -> NDArray[np.float64]:
    """The first `subset` points (default: all), each feature with mean 0 and variance 1.

    Features that are constant over these points are only centred.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If the data set is unknown, or subset is not in 2 … number of points.
    """
    if dataset not in DATASETS:
        msg = f"Unknown dataset {dataset!r}: use one of {', '.join(DATASETS)}."
        raise ValueError(msg)
    points = np.asarray(getattr(_sklearn_datasets(), f"load_{dataset}")().data, dtype=np.float64)
    if subset is not None and not 2 <= subset <= len(points):
        msg = f"subset of {dataset} must be between 2 and {len(points)}, got {subset}."
        raise ValueError(msg)
    points = points[:subset]
    constant = np.ptp(points, axis=0) == 0  # exact, unlike a zero standard deviation
    deviation = np.where(constant, 1.0, points.std(axis=0))
    return (points - points.mean(axis=0)) / deviation


def rbf_kernel(
    dataset: str,
    *,
    noise: float,
    lengthscale: float | None = None,
    subset: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    r"""Gaussian kernel matrix of standardised features plus noise, the covariance of GP regression.

    .. math:: A_{ij} = \exp\bigl(-\|x_i - x_j\|^2 / 2 \ell^2\bigr) + \text{noise} \cdot \delta_{ij}

    Exactly symmetric, with diagonal 1 + noise; λ_min ≥ noise up to rounding. Computed in float64
    and rounded to `dtype` at the end: for float32 the spectrum is that of the rounded matrix.

    Args:
        dataset: One of `DATASETS`.
        noise: Positive, in units of the kernel's diagonal.
        lengthscale: ℓ, in standardised units; default the median distance between two points.
        subset: Use the first points only.
        dtype: float32 or float64.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If an argument is out of range, or noise is so small that rounding to `dtype`
            may make the matrix indefinite.

    Source: of the median heuristic, Garreau, Jitkrittum & Kanagawa (2017), arXiv:1707.07269.
    """
    _check_positive("noise", noise)
    distances = pdist(features(dataset, subset=subset))
    lengthscale = float(np.median(distances)) if lengthscale is None else lengthscale
    _check_positive("lengthscale", lengthscale)
    K = torch.from_numpy(squareform(np.exp(-0.5 * (distances / lengthscale) ** 2)))
    K.fill_diagonal_(1.0)
    _check_noise(noise, K, dtype)
    return K.fill_diagonal_(1.0 + noise).to(dtype)


def knn_laplacian(
    dataset: str,
    *,
    shift: float,
    neighbours: int = 10,
    subset: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    r"""Unnormalised Laplacian of the nearest-neighbour graph of standardised features, plus shift.

    .. math:: A = D - W + \text{shift} \cdot I

    W_ij = 1 if i is among the nearest neighbours of j or j among those of i, else 0. Unnormalised
    because the entries off the diagonal are then integers, exact in every dtype. D holds the row
    sums of W, so A 1 = shift·1: the smallest eigenvalue is shift, once for each connected
    component, and the largest at most 2 max D + shift. Strictly diagonally dominant, hence positive
    definite as stored.

    Args:
        dataset: One of `DATASETS`.
        shift: Positive.
        neighbours: Number of nearest neighbours, ties broken by index.
        subset: Use the first points only.
        dtype: float32 or float64.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If an argument is out of range, or shift vanishes beside D in `dtype`.

    Source: von Luxburg (2007), doi:10.1007/s11222-007-9033-z.
    """
    _check_positive("shift", shift)
    W = _neighbour_graph(features(dataset, subset=subset), neighbours)
    degrees = torch.from_numpy(W.sum(axis=1))
    diagonal = (degrees + shift).to(dtype)
    if not bool((diagonal > degrees).all()):
        msg = f"shift = {shift} vanishes beside degrees up to {degrees.max():.0f} in {dtype}."
        raise ValueError(msg)
    return (-torch.from_numpy(W)).to(dtype).diagonal_scatter(diagonal)


def _neighbour_graph(points: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    n = len(points)
    if not 1 <= neighbours < n:
        msg = f"neighbours must be between 1 and n - 1 = {n - 1}, got {neighbours}."
        raise ValueError(msg)
    distances = squareform(pdist(points))
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :neighbours]
    W = np.zeros((n, n))
    np.put_along_axis(W, nearest, 1.0, axis=1)
    return np.maximum(W, W.T)


def _check_noise(noise: float, K: Tensor, dtype: torch.dtype) -> None:
    # Rounding to dtype moves each entry by eps/2 of itself, hence eigenvalues by eps/2 |K|_F; the
    # float64 distances in at most 64 dimensions and exp leave an error below 16 eps in each entry.
    rounding = torch.finfo(dtype).eps / 2 * K.norm().item()
    limit = rounding + 16 * torch.finfo(torch.float64).eps * K.shape[0]
    if not noise > limit:
        msg = f"noise must exceed {limit:.1e} in {dtype} to keep the matrix definite, got {noise}."
        raise ValueError(msg)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        msg = f"{name} must be positive and finite, got {value}."
        raise ValueError(msg)


def _sklearn_datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        msg = "The data sets come with scikit-learn: pip install specbp[verify]"
        raise ImportError(msg) from error
    return datasets
