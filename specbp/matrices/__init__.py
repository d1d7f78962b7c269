"""Matrices whose spectrum is known: prescribed eigenvalues, eigenbases, and their products.

`spectra` gives eigenvalues, `bases` orthogonal matrices; `SpectralMatrix` and `SpectralFactor`
combine them and keep the decomposition, so an oracle has log det, every matrix function and every
eigenvector without computing one.

Example:
    >>> import torch
    >>> g = torch.Generator().manual_seed(0)
    >>> A = SpectralMatrix(lapack_mode(3, 4, 1e3), haar(4, generator=g))
    >>> print(f"{A.eigenvalues.log().sum():.9f} {torch.logdet(A.dense()):.9f}")
    -13.815510558 -13.815510558
"""

from specbp.matrices.bases import Householder, haar, random_householder
from specbp.matrices.spectra import clusters, lapack_mode, marchenko_pastur, power_law
from specbp.matrices.spectral import Basis, SpectralFactor, SpectralMatrix

__all__ = [
    "Basis",
    "Householder",
    "SpectralFactor",
    "SpectralMatrix",
    "clusters",
    "haar",
    "lapack_mode",
    "marchenko_pastur",
    "power_law",
    "random_householder",
]
