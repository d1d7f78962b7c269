"""Small problems of the gate: matrices with a prescribed spectrum and all that is known of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from specbp import exact, generator_for, matrices
from verification.cases import DTYPES, Problem, View, dense_spectral

FEW = 5


def _few(n: int) -> Tensor:
    """Five distinct eigenvalues in turn: a Krylov space of five dimensions at most."""
    return torch.logspace(0, -2, FEW, dtype=torch.float64).repeat(-(-n // FEW))[:n]


def _two(n: int, cond: float) -> Tensor:
    """Two distinct eigenvalues: a Krylov space of two dimensions at most."""
    return torch.tensor([1.0, 1 / cond], dtype=torch.float64).repeat_interleave(-(-n // 2))[:n]


def _spike(n: int) -> torch.Tensor:
    rest = torch.linspace(1, 2, n - 1, dtype=torch.float64)
    return torch.cat([torch.full((1,), 50.0, dtype=torch.float64), rest])


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "easy": lambda n: matrices.lapack_mode(4, n, 4.0),
    "cond 1e2": lambda n: matrices.lapack_mode(3, n, 1e2),
    "cond 1e4": lambda n: matrices.lapack_mode(3, n, 1e4),
    "cond 1e6": lambda n: matrices.lapack_mode(3, n, 1e6),
    "clusters": lambda n: matrices.clusters(n, [10.0, 1.0, 0.1][: min(n, 3)], 0.05),
    "power law": lambda n: matrices.power_law(n, 1.0),
    "spike": _spike,
    "few": _few,
    "two": partial(_two, cond=30.0),
    "two, cond 1e4": partial(_two, cond=1e4),
    # Smooth kernels decay like this, down to the noise.
    "kernel": lambda n: n * torch.exp(-torch.arange(n).double() / 4) + 1e-3,
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


@cache
def multiple_of_identity(n: int, factor: float) -> Problem:
    """factor · I, and √factor · I as its factor."""
    eye = torch.eye(n, dtype=torch.float64)
    return dense_spectral(torch.full((n,), factor, dtype=torch.float64), eye, torch.float64)


def scaled(view: View, on: str, root: float) -> View:
    """The view of root² A (root · J): a power of two makes it exact in floating point."""
    factor = root if on == "J" else root**2
    value = view.truth.value + len(view.eigenvalues) * float(np.log(root**2))
    return View(
        factor * view.operator,
        replace(view.truth, value=value),
        root**2 * view.eigenvalues,
        view.eigenvectors,
    )


def block_diagonal(views: list[View], on: str) -> View:
    """The view of diag(A₁, A₂, …)."""
    operator = torch.block_diag(*(view.operator for view in views))
    if on == "J":
        return View(operator, exact.truth_of_jacobian(operator), *exact.jacobian_eigh(operator))
    return View(operator, exact.truth_of_matrix(operator), *np.linalg.eigh(operator.numpy()))


def degenerate(view: View, on: str, kind: Literal["singular", "indefinite"]) -> Tensor:
    """The operator with its smallest eigenvalue moved to 0, or to −0.3 λ_max."""
    smallest = view.eigenvalues.argmin()
    v = torch.from_numpy(view.eigenvectors[:, [smallest]]).to(view.operator.dtype)
    if on == "J":
        return view.operator - (view.operator @ v) @ v.mT
    target = 0.0 if kind == "singular" else -0.3 * float(view.eigenvalues.max())
    moved = view.operator + (target - float(view.eigenvalues.min())) * v @ v.mT
    return (moved + moved.mT) / 2
