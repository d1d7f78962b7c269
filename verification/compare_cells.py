"""The problems on which two trees are compared: matrices, common probes, and what is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from specbp import exact, generator_for, rademacher
from verification.cases import View
from verification.checks.problems import problem

SPECTRA = ("cond 1e2", "cond 1e6", "clusters", "spike")
SIZES, DTYPES = (32, 128), ("float64", "float32")
REPLICATES, PROBES = 200, 8
MOST_PROBES = 100  # a bias of 0.2 standard errors of that many probes matters
FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"logdet": np.log, "trace": np.asarray}


@dataclass(frozen=True)
class Cell:
    """One matrix in one precision with its block of probes (R, n, m).

    `hopeless` marks a problem on which methods have to fail and to say so: nothing else is judged.
    """

    id: str
    dtype: str
    views: dict[str, View]
    probes: np.ndarray
    hopeless: bool = False
    widened: float = 1.01  # factor between the largest eigenvalue and the bound that methods get

    def ends(self) -> tuple[float, float]:
        """The interval handed to methods that need one."""
        lam = self.views["A"].eigenvalues
        return 0.99 * float(lam.min()), self.widened * float(lam.max())


@dataclass(frozen=True)
class Reference:
    """What is known of an estimand on a cell: truth, oracle form of every replicate, margin."""

    view: View
    estimand: str
    probes: np.ndarray

    @property
    def truth(self) -> float:
        """tr f(A)."""
        return float(FUNCTIONS[self.estimand](self.view.eigenvalues).sum())

    @cached_property
    def control(self) -> np.ndarray:
        """Mean of xᵀf(A)x over the probes of each replicate, (R,): its expectation is the truth."""
        view, f = self.view, FUNCTIONS[self.estimand]
        forms = exact.quadratic_forms(view.eigenvalues, view.eigenvectors, f, self.probes)
        return forms.mean(-1)

    @cached_property
    def sd(self) -> float:
        """Standard deviation of xᵀf(A)x for one probe."""
        view, f = self.view, FUNCTIONS[self.estimand]
        form = exact.matrix_function(view.eigenvalues, view.eigenvectors, f)
        return float(exact.moments(form, "rademacher").variance ** 0.5)

    def unit(self, dtype: str) -> float:
        """eps Σ|f(λ)|: rounding of a sum that loses nothing else."""
        size = float(np.abs(FUNCTIONS[self.estimand](self.view.eigenvalues)).sum())
        return float(np.finfo(dtype).eps) * max(1.0, size)

    @property
    def margin(self) -> float:
        """0.2 standard errors of the largest number of probes, and what the truth is good for."""
        return 0.2 * self.sd / MOST_PROBES**0.5 + self.view.truth.u_truth


def make_cells(
    replicates: int = REPLICATES,
    spectra: Sequence[str] = SPECTRA,
    sizes: Sequence[int] = SIZES,
    dtypes: Sequence[str] = DTYPES,
) -> list[Cell]:
    """Every spectrum, order and precision; the probes are common to both precisions."""
    found = []
    for spectrum in spectra:
        for n in sizes:
            draw = generator_for("compare", spectrum, n)
            probes = rademacher(n, PROBES, generator=draw, batch_shape=(replicates,)).numpy()
            for dtype in dtypes:
                views = problem(spectrum, n, dtype).views
                found.append(Cell(f"{spectrum}, n {n}, {dtype}", dtype, views, probes))
    return found + hopeless_cells(replicates)


def hopeless_cells(replicates: int, spectrum: str = "spike", n: int = 32) -> list[Cell]:
    """Problems on which a finite value is a failure that was not noticed."""
    views, draw = problem(spectrum, n).views, generator_for("compare", "hopeless")
    probes = rademacher(n, PROBES, generator=draw, batch_shape=(replicates,)).numpy()
    poisoned = probes.copy()
    poisoned[:, 0, 0] = np.nan
    A, lam = views["A"].operator, views["A"].eigenvalues
    below = replace(views["A"], operator=A - 2 * float(lam.min()) * torch.eye(n, dtype=A.dtype))
    indefinite = {"A": below, "dense A": below, "J": views["J"]}
    dtype = "float64"
    return [
        Cell("hopeless: NaN in a probe", dtype, views, poisoned, hopeless=True),
        Cell("hopeless: indefinite", dtype, indefinite, probes, hopeless=True),
        Cell("hopeless: interval too short", dtype, views, probes, hopeless=True, widened=0.25),
    ]
