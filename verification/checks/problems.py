"""Small problems of the gate: matrices with a prescribed spectrum and all that is known of them."""

from __future__ import annotations

from functools import cache

import torch

from specbp import generator_for, matrices
from verification.cases import DTYPES, Problem, dense_spectral

SPECTRA = {
    "cond 1e2": lambda n: matrices.lapack_mode(3, n, 1e2),
    "cond 1e4": lambda n: matrices.lapack_mode(3, n, 1e4),
    "cond 1e6": lambda n: matrices.lapack_mode(3, n, 1e6),
    "clusters": lambda n: matrices.clusters(n, [10.0, 1.0, 0.1][: min(n, 3)], 0.05),
    "power law": lambda n: matrices.power_law(n, 1.0),
    "spike": lambda n: torch.cat([torch.full((1,), 50.0), torch.linspace(1, 2, n - 1)]).double(),
}


@cache
def problem(spectrum: str, n: int, dtype: str = "float64") -> Problem:
    """Views "A", "dense A" and "J" of a matrix with a Haar eigenbasis.

    Args:
        spectrum: A key of `SPECTRA`.
        n: Order.
        dtype: "float32" or "float64".
    """
    basis = matrices.haar(n, generator=generator_for("gate", spectrum, n))
    return dense_spectral(SPECTRA[spectrum](n).double(), basis, DTYPES[dtype])
