"""Deterministic figures of every method: what chance and load of the machine cannot change.

Matrices have entries that are multiples of 2⁻¹⁸, so they are the same numbers on every machine and
in both precisions; the probes are designs over which means and variances are exact.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from specbp import exact
from specbp.methods import METHODS
from specbp.testing import designs
from verification.cases import DTYPES, View
from verification.checks.problems import problem
from verification.subjects import Subject, from_method

SPECTRA = ("cond 1e2", "cond 1e4", "power law")
ENUMERATED, ARRAY = 10, 64  # orders: all sign vectors, or an orthogonal array of them
GRID = 2.0**18
FEW_STEPS = 5  # a Gauss rule far from exact at n = 10
MANY = 256  # probes of the array that meet the slow oracle of the Gauss rule, or a joint estimator
BLOCK = 4  # probes of one estimate where they are used jointly
FLOOR = 4  # units of rounding of the largest value: errors below them are equal
ERROR, LIMIT, BIAS, VARIANCE, PRODUCTS = "error", "limit", "bias", "variance_ratio", "products"


@dataclass(frozen=True)
class Row:
    """Figures of one method on one matrix in one precision.

    Attributes:
        id: "method | spectrum | n | dtype".
        inputs: SHA-256 of the matrix and of the probes.
        figures: Largest error of a probe (or of the value) in units of `limit`; `limit`, the
            rounding that deterministic checks allow, in nats; `bias`, the mean over the design less
            that of xᵀf(A)x; `variance_ratio` to the closed form; `products` for each probe. What is
            not defined is left out.
        slack: Rounding of each figure: a change up to it is none.
        fine: That of the error if the arithmetic is float64, whatever the matrix is stored in.
        claimed: Products that the method promises; NaN if their number depends on the probes.
    """

    id: str
    inputs: str
    figures: dict[str, float]
    slack: dict[str, float]
    fine: float
    claimed: float

    def broken_promises(self) -> list[str]:
        """Figures that violate the contract itself, whatever was recorded."""
        found = []
        if not self.figures.get(ERROR, 0.0) <= 1:
            found.append(f"error {self.figures[ERROR]:.3g} × rounding")
        if not all(math.isfinite(v) for v in self.figures.values()):
            found.append("a figure is not finite")
        if not math.isnan(self.claimed) and self.figures[PRODUCTS] != self.claimed:
            found.append(f"{self.figures[PRODUCTS]:g} products, {self.claimed:g} claimed")
        return [f"{self.id}: {text}" for text in found]


def measure(subjects: list[Subject] | None = None) -> list[Row]:
    """The rows of all gated methods, on one thread: the order of sums depends on their number."""
    if subjects is None:
        subjects = [from_method(m) for m in METHODS.values() if m.claims.gated]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return [row for subject in subjects for row in _rows(subject)]
    finally:
        torch.set_num_threads(threads)


def _rows(subject: Subject) -> Iterator[Row]:
    for n in (ENUMERATED, ARRAY):
        if n == ARRAY and subject.claims.expectation == "adaptive":
            continue  # its interval depends on the probes: only all of them have a meaning
        for spectrum in SPECTRA:
            for dtype in DTYPES:
                view = view_of(spectrum, n, dtype, subject.on)
                yield _row(subject, view, f"{subject.name} | {spectrum} | {n} | {dtype}")


@cache
def view_of(spectrum: str, n: int, dtype: str, on: str) -> View:
    """The problem with its entries rounded to the grid: exact in either precision."""
    rounded = (problem(spectrum, n).views[on].operator * GRID).round() / GRID
    operator = rounded.to(DTYPES[dtype])
    if on == "J":
        return View(operator, exact.truth_of_jacobian(operator), *exact.jacobian_eigh(operator))
    return View(operator, exact.truth_of_matrix(operator), *np.linalg.eigh(rounded.numpy()))


@cache
def design(n: int) -> Tensor:
    """All probes of a design with equal weights, (n, P)."""
    found = designs.all_signs(n) if n == ENUMERATED else designs.orthogonal_array(n)
    return found.columns


def _row(subject: Subject, view: View, row_id: str) -> Row:
    n = view.operator.shape[-1]
    exactly = subject.claims.expectation == "exact"
    if subject.claims.expectation == "quadrature" and n == ENUMERATED:
        subject = replace(subject, config={**subject.config, "num_steps": FEW_STEPS})
    X = design(n)
    if subject.claims.expectation == "quadrature" or subject.claims.joint:
        X = X[:, :: max(1, X.shape[1] // MANY)] if n == ARRAY else X
    figures, slack = _exact(subject, view) if exactly else _stochastic(subject, view, X)
    fine = slack[ERROR] * EPS / _eps(view)
    m = BLOCK if subject.claims.joint else 1
    claimed = subject.claims.matvecs(n, m, subject.configured(n))
    return Row(row_id, checksum(view, X, subject), figures, slack, fine, float(claimed))


def _exact(subject: Subject, view: View) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of a method without probes: its error is that of its one value."""
    found = subject.bound(view)(view.operator)
    limit = max(subject.rounding(view), 10 * view.truth.u_truth)
    error = abs(float(found.value) - view.truth.value)
    figures = {ERROR: error / limit, LIMIT: limit, PRODUCTS: float(found.num_matvecs)}
    # One value may be right by luck: errors that add like a random walk are what to expect.
    ratios = view.eigenvalues.max() / view.eigenvalues
    walk = 2 * ratios.sum() ** 0.5 if subject.on == "J" else (ratios**2).sum() ** 0.5
    return figures, _slack(view, max(abs(view.truth.value), float(walk) / FLOOR), limit)


def _stochastic(
    subject: Subject, view: View, X: Tensor
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of a method with probes, every probe an estimate of its own, or every few of them."""
    joint = subject.claims.joint
    found = subject.call(view, _in_blocks(X) if joint else X.mT.unsqueeze(-1))
    values = found.value.numpy()
    f = np.log if subject.estimand == "logdet" else np.asarray
    forms = exact.quadratic_forms(view.eigenvalues, view.eigenvectors, f, X.numpy())
    limit, target = subject.rounding(view), subject.oracle(view, X)
    if joint:  # its error is that of the truth, not of the forms of its probes
        limit, forms = BLOCK * limit, np.array(f(view.eigenvalues).sum())
    figures = {LIMIT: limit, BIAS: float(np.mean(values - forms))}
    size, noise = float(np.abs(forms).max()), limit
    if target is not None:
        largest = float(np.abs(values - target).max())
        figures[ERROR] = largest / limit
        noise = max(largest, FLOOR * _eps(view) * size)
    slack = _slack(view, size, limit) | {BIAS: noise}
    if X.shape[1] == design(len(X)).shape[1] and not joint:  # all of the law
        law = exact.moments(subject.form(view), "rademacher")
        figures[VARIANCE] = float(values.var()) / law.variance
        slack[VARIANCE] = 2 * noise / law.variance**0.5
    figures[PRODUCTS] = float(found.num_matvecs)
    return figures, slack


def _in_blocks(X: Tensor) -> Tensor:
    """The probes of a design in blocks of BLOCK, (R, n, BLOCK), of columns that are far apart."""
    n, P = X.shape
    # Neighbours in a design differ in few signs: a block of them would span little.
    order = torch.arange(P) * (int(P * 0.618) | 1) % P
    return X[:, order].view(n, P // BLOCK, BLOCK).movedim(1, 0)


EPS = float(np.finfo(np.float64).eps)


def _eps(view: View) -> float:
    return float(torch.finfo(view.operator.dtype).eps)


def _slack(view: View, size: float, limit: float) -> dict[str, float]:
    """Errors below a few units in the last place of the largest value are all the same."""
    return {ERROR: FLOOR * _eps(view) * max(size, 1.0) / limit, LIMIT: 0.0, PRODUCTS: 0.0}


def checksum(view: View, X: Tensor, subject: Subject) -> str:
    """SHA-256 of the numbers that went in: matrix and probes, both exact in float64."""
    digest = hashlib.sha256(repr(sorted(subject.config.items())).encode())
    for tensor in (view.operator, X):
        numbers = np.ascontiguousarray(tensor.double().numpy(), dtype="<f8")
        digest.update(repr(numbers.shape).encode() + (numbers + 0.0).tobytes())
    return digest.hexdigest()
