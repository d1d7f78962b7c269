"""Where sampling checks draw: cells, what is known exactly about each, and the replicates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from specbp import exact, generator_for
from specbp.exact import Moments
from specbp.testing.block_laws import BLOCK_LAWS
from verification.cases import View
from verification.checks import claims
from verification.checks.problems import FEW, problem
from verification.checks.settings import Settings
from verification.subjects import Subject

NEGLIGIBLE = 0.05  # truncation, in sd of one estimate, up to which a cell is used
BLOCK = 2**17  # numbers in one block of probes
RANDOM_PART = 0.1  # of the direction of a derivative


class Cell(NamedTuple):
    """Where estimates are drawn: a spectrum, the order, and the probes of one estimate."""

    spectrum: str
    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.spectrum}, n = {self.n}, m = {self.m}"


SPECTRA = ("easy", "cond 1e2", "clusters", "power law", "spike")
GRID = (
    *(Cell(s, n, m) for n, m in ((16, 4), (32, 4), (48, 2), (48, 8)) for s in SPECTRA),
    Cell("cond 1e4", 16, 4),
    Cell("cond 1e6", 16, 4),  # where Krylov vectors lose their orthogonality
)
# Where a joint Krylov estimator is unbiased although its probes do not span everything: five steps
# complete their spaces, and 5 m < n.
FEW_GRID = tuple(Cell("few", n, m) for n, m in ((24, 4), (32, 4), (32, 6), (40, 6)))


@dataclass(frozen=True)
class Reference:
    """Everything that is known exactly about one estimate of a cell.

    Attributes:
        cell: The cell.
        view: Its operator.
        B: Matrix of the contract; one probe's value is xᵀBx, up to `slack`.
        law: Law of the probes; None where the moments of an estimate are unknown.
        slack: Largest truncation of one estimate, in nats.
    """

    cell: Cell
    view: View
    B: np.ndarray
    law: str | None
    slack: float = 0.0

    @cached_property
    def one(self) -> Moments:
        """Moments of the value of one probe."""
        return exact.moments(self.B, self.law or "rademacher")

    @cached_property
    def estimate(self) -> Moments:
        """Moments of one estimate."""
        return self.one.averaged(self.cell.m)

    @property
    def sd(self) -> float:
        """Standard deviation of one estimate."""
        return math.sqrt(self.estimate.variance)

    def centre(self, sample_mean: float) -> float:
        """The expectation that truncation allows, the nearest to the sample mean."""
        return float(np.clip(sample_mean, self.one.mean - self.slack, self.one.mean + self.slack))

    def ratio(self, mean_square: float) -> float:
        """A mean square over the nearest variance that truncation allows."""
        low, high = ((self.sd + side * self.slack) ** 2 for side in (-1, 1))
        return mean_square / float(np.clip(mean_square, low, high))


class Drawn(NamedTuple):
    """Replicates of one cell: values (R,) and standard errors (R,)."""

    values: np.ndarray
    errors: np.ndarray


class Source:
    """Draws the replicates of a subject, each cell and look from a seed of its own."""

    def __init__(self, subject: Subject, settings: Settings):
        self.subject, self.settings = subject, settings
        self.kept: dict[tuple[str, Cell, int], Drawn] = {}

    def values(self, ref: Reference, R: int) -> Drawn:
        """R estimates of a cell in as few calls as memory allows; drawn once for all families."""
        key = ("value", ref.cell, R)
        if key not in self.kept:
            blocks = [self._estimate(ref, X) for X in self._blocks(*key)]
            self.kept[key] = Drawn(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))
        return self.kept[key]

    def singles(self, ref: Reference, count: int) -> np.ndarray:
        """Estimates of a cell from calls of their own, each with a seed of its own."""
        found = []
        for i in range(count):
            blocks = self._blocks(f"single {i}", ref.cell, 1)
            found += [self._estimate(ref, X).values for X in blocks]
        return np.concatenate(found)

    def gradients(self, ref: Reference, R: int) -> Drawn:
        """R derivatives along one direction, by automatic differentiation."""
        key = ("gradient", ref.cell, R)
        if key not in self.kept:
            found = np.concatenate([self._derivative(ref, X) for X in self._blocks(*key)])
            self.kept[key] = Drawn(found, np.empty(0))
        return self.kept[key]

    def _blocks(self, what: str, cell: Cell, R: int) -> Iterator[Tensor]:
        key = (what, self.subject.name, tuple(cell), self.settings.epoch, R)
        generator = generator_for("gate", *key)
        most = max(BLOCK // (cell.n * cell.m), 1)
        for start in range(0, R, most):
            shape = (min(most, R - start),)
            yield self.subject.draw(cell.n, cell.m, generator=generator, batch_shape=shape)

    def _estimate(self, ref: Reference, X: Tensor) -> Drawn:
        found = self.subject.call(ref.view, X)
        values = claims.value_of(found, X.shape[:1])
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise ValueError(f"{bad} of {len(values)} estimates are not finite, at {ref.cell}.")
        errors = found.standard_error.detach().double().expand(X.shape[:1])
        return Drawn(values, errors.numpy())

    def _derivative(self, ref: Reference, X: Tensor) -> np.ndarray:
        t = torch.zeros(len(X), 1, 1, dtype=torch.float64, requires_grad=True)
        operator = ref.view.operator + t * direction(ref.view)
        value = self.subject.bound(ref.view)(operator, X).value
        (gradient,) = torch.autograd.grad(value.sum(), t)
        return gradient.flatten().numpy()


def direction(view: View) -> Tensor:
    """The direction of a derivative: the operator itself and a little of a random matrix.

    Along A the gradient of a log-determinant is n and does not vary; the random part, of a tenth of
    its size, makes it vary, little enough for a relative error of its size to show.
    """
    operator = view.operator
    n, shape = operator.shape[-1], tuple(operator.shape)
    G = torch.randn(shape, generator=generator_for("gate", "direction", shape), dtype=torch.float64)
    size = RANDOM_PART * torch.linalg.matrix_norm(operator.double()) / n
    return operator + size * ((G + G.mT) / 2 if shape[0] == n else G)


def references(subject: Subject) -> list[Reference]:
    """The cells on which truncation is proven negligible, with what is known of them."""
    joint = _is_joint(subject)
    cells = [c for c in GRID if c.spectrum in SPECTRA[:2] and c.m > 2] if joint else GRID
    if subject.claims.expectation == "krylov":
        cells = FEW_GRID
    found = []
    for cell in cells:
        if subject.law == "hadamard" and cell.n & (cell.n - 1):
            continue  # no Hadamard matrix of Sylvester's kind
        view = problem(cell.spectrum, cell.n).views[subject.on]
        law = None if joint else subject.law
        ref = Reference(cell, view, subject.form(view), law, truncation(subject, view))
        if ref.slack <= NEGLIGIBLE * ref.sd:
            found.append(ref)
    return found


def prepared(subject: Subject) -> Subject:
    """The subject with as many steps as complete the spaces of `FEW_GRID`, if it is made for it."""
    if subject.claims.expectation != "krylov":
        return subject
    largest = max(FEW_GRID, key=lambda cell: cell.n * cell.m)
    return claims.with_complete_spaces(subject, largest.n, largest.m, FEW)


def _is_joint(subject: Subject) -> bool:
    """Whether the law of an estimate is more than that of a mean of independent forms."""
    additive = subject.claims.additive or subject.claims.expectation == "adaptive"
    return not additive or subject.outcomes is not None or subject.law in BLOCK_LAWS


def truncation(subject: Subject, view: View) -> float:
    r"""Largest |value − xᵀf(A)x| of a probe with |x|² = n, proven a priori.

    A k-point Gauss rule errs by twice the best approximation of degree 2k − 1, and the Chebyshev
    series is that to 2 ρ^-d / ((d+1) (ρ−1)) (Trefethen 2013, theorems 8.2 and 19.3).
    """
    n = view.operator.shape[-1]
    if subject.claims.expectation == "adaptive":
        return claims.allowance(subject, view) - subject.rounding(view)
    steps = subject.configured(n).get("num_steps", n)
    if subject.claims.expectation != "quadrature" or steps >= n:
        return 0.0
    degree = 2 * steps - 1
    ratio = math.sqrt(view.eigenvalues.max() / view.eigenvalues.min())
    rho = (ratio + 1) / (ratio - 1)
    return 2 * n * 2 * rho**-degree / ((degree + 1) * (rho - 1))


def gradient_references(subject: Subject) -> list[Reference]:
    """Cells with the matrix of the derivative along `direction` in place of f(A)."""
    if subject.gradient is None or _is_joint(subject):
        return []
    kept = [ref for ref in references(subject) if ref.slack == 0]
    return [replace(ref, B=derivative_form(subject, ref.view)) for ref in kept]


def derivative_form(subject: Subject, view: View) -> np.ndarray:
    """Matrix of the derivative along `direction`, by central differences of order four."""
    operator, change = view.operator.double().numpy(), direction(view).numpy()
    step = 1e-3 * float(view.eigenvalues.min() / view.eigenvalues.max())
    fixed = subject.contract(view) if subject.arguments(view) else None

    def gram(t: float) -> np.ndarray:
        moved = operator + t * change
        return moved.T @ moved if subject.on == "J" else moved

    def form(t: float) -> np.ndarray:
        lam, V = np.linalg.eigh(gram(t))
        # Without arguments that are held fixed, f itself may depend on A.
        f = fixed or subject.contract(replace(view, eigenvalues=lam, eigenvectors=V))
        return exact.matrix_function(lam, V, f)

    if subject.gradient == "solve":
        slope = subject.derivative(view)(view.eigenvalues)
        half = (view.eigenvectors * slope) @ view.eigenvectors.T @ _five_points(gram, step)
        return (half + half.T) / 2
    return _five_points(form, step)


def _five_points(f: Callable[[float], np.ndarray], h: float) -> np.ndarray:
    """f'(0) of a matrix-valued function."""
    return (8 * (f(h) - f(-h)) - f(2 * h) + f(-2 * h)) / (12 * h)
