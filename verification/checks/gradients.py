"""D6 and D8 for gradients: autograd through the value against differences and closed forms.

The operator is A(θ) = A + θ dA, an explicit matrix; the gradient is d/dθ at θ = 0, with the probes
and the arguments (an interval) held fixed. One probe contributes xᵀLx, where L is the Fréchet
derivative of f for an estimator that differentiates xᵀf(A)x, and sym(f'(A) dA) for one that solves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from specbp import exact, generator_for
from specbp.testing import designs
from verification import subjects
from verification.cases import View
from verification.checks import claims
from verification.checks.claims import Gap, measured
from verification.checks.settings import Settings
from verification.subjects import Subject, differentiate

N, PROBES, M = 10, 6, 4
SPECTRA = ("easy", "cond 1e2")
# |dA| = λ_min below, so four steps stay within the 1 % by which an interval is too wide.
STEP = 1e-3
SOLVED = 1e-10  # relative residual expected of an iterative solver


@measured("D6a differences", "autograd gives the derivative of the value, probes held fixed")
def differences(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if subject.gradient != "derivative":
        return
    for where, view, dA, X in _directions(subject):
        found = gradients(subject, view, dA, X)
        fine, coarse = (_five_points(subject, view, dA, X, h) for h in (STEP, 2 * STEP))
        # Halving the step divides the error of the formula by 16; 1.5 is the sum of its weights.
        limit = float(np.abs(fine - coarse).max()) + 1.5 * subject.rounding(view) / STEP
        yield claims.furthest(where, found - fine, limit)


@measured("D6a form", "the gradient of each probe is the quadratic form of its contract")
def form(subject: Subject, settings: Settings) -> Iterator[Gap]:
    if subject.outcomes is not None:  # the form is that of a polynomial drawn for the probe
        return
    # Ten steps of an iterative solver are exact at n = 10.
    for n in (N, settings.array_n):
        for where, view, dA, X in _directions(subject, n):
            yield _against_form(subject, where, view, dA, X)


@measured("D6b basis", "the mean gradient over n orthogonal probes is the contract's")
def basis(subject: Subject, settings: Settings) -> Iterator[Gap]:
    if subject.outcomes is not None:
        return
    n = settings.array_n
    for where, view, dA, _ in _directions(subject, n):
        probes = designs.hadamard_basis(n).probes
        theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        found = float(_differentiated(subject, view, theta * dA, probes, theta)) / len(probes)
        expected = float(np.trace(_matrix(subject, view, dA)))
        yield Gap(where, abs(found - expected), _limit(subject, view, dA))


@measured("D6c scale", "along A → (1 + θ) A each probe has the gradient of its contract")
def scale(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if subject.outcomes is not None:
        return
    for where, view, _, X in _directions(subject):
        yield _against_form(subject, where, view, view.operator, X)


@measured("D8 gradient", "the gradient of m probes is the mean of their gradients")
def mean(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    for where, view, dA, X in _directions(subject):
        theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        together = float(_differentiated(subject, view, theta * dA, X[None, :, :M], theta))
        alone = gradients(subject, view, dA, X[:, :M]).mean()
        yield Gap(where, abs(together - alone), 2 * _limit(subject, view, dA))


def _directions(subject: Subject, n: int = N) -> Iterator[tuple[str, View, Tensor, Tensor]]:
    """Views with a random symmetric direction dA of length λ_min, and probes (n, 6)."""
    if subject.gradient is None or subject.on == "J":
        return
    for where, view in claims.cells(subject, SPECTRA, n):
        generator = generator_for("tier D", "direction", where)
        dA = torch.randn(n, n, generator=generator, dtype=torch.float64)
        dA = dA + dA.mT
        dA = dA * (view.eigenvalues.min() / torch.linalg.matrix_norm(dA, ord=2))
        yield where, view, dA, claims.draw(view, PROBES, "D6", where)


def gradients(subject: Subject, view: View, dA: Tensor, X: Tensor) -> np.ndarray:
    """d/dθ of the value of each column of X (n, P), all in one call: (P,)."""
    theta = torch.zeros(X.shape[-1], dtype=torch.float64, requires_grad=True)
    shift = theta[:, None, None] * dA
    return _differentiated(subject, view, shift, X.mT.unsqueeze(-1), theta).numpy()


def _differentiated(
    subject: Subject, view: View, shift: Tensor, X: Tensor, theta: Tensor
) -> Tensor:
    """The gradient in θ of the summed values of the blocks X (R, n, m) on A + shift(θ)."""
    found = subject.call(_with_operator(view, view.operator + shift), X)
    claims.value_of(found, X.shape[:1])
    return torch.autograd.grad(found.value.sum(), theta)[0]


def _five_points(subject: Subject, view: View, dA: Tensor, X: Tensor, h: float) -> np.ndarray:
    """d/dθ of the value of each column of X by central differences of order 4."""
    steps = h * torch.tensor([-2.0, -1, 1, 2], dtype=torch.float64)
    A = (view.operator + steps[:, None, None] * dA).repeat_interleave(X.shape[-1], 0)
    found = claims.values(subject, _with_operator(view, A), X.mT.unsqueeze(-1).repeat(4, 1, 1))
    return np.array([1, -8, 8, -1]) @ found.reshape(4, -1) / (12 * h)


def _with_operator(view: View, A: Tensor) -> View:
    """The same arguments for another matrix."""
    return replace(view, operator=A)


def _against_form(subject: Subject, where: str, view: View, dA: Tensor, X: Tensor) -> Gap:
    L, columns = _matrix(subject, view, dA), X.numpy()
    expected = np.einsum("ij,ik,kj->j", columns, L, columns)
    errors = gradients(subject, view, dA, X) - expected
    return claims.furthest(where, errors, _limit(subject, view, dA))


def _matrix(subject: Subject, view: View, dA: Tensor) -> np.ndarray:
    """The matrix L of the quadratic form that is one probe's gradient."""
    lam, V, slope = view.eigenvalues, view.eigenvectors, subject.derivative(view)
    if subject.gradient == "solve":
        return exact.solve_form(lam, V, slope, dA.numpy())
    L = exact.frechet_derivative(lam, V, subject.contract(view), slope, dA.numpy())
    if not subject.arguments(view):
        # Without arguments that are held fixed, f itself may depend on A.
        L = L + exact.matrix_function(lam, V, lambda x: _motion(subject, view, dA, x))
    return L


def _motion(subject: Subject, view: View, dA: Tensor, x: np.ndarray) -> np.ndarray:
    """d/dθ f(x) at fixed x, f the contract of A + θ dA."""

    def f(step: float) -> np.ndarray:
        A = view.operator + step * dA
        lam, V = np.linalg.eigh(A.numpy())
        return subject.contract(replace(view, operator=A, eigenvalues=lam, eigenvectors=V))(x)

    length = torch.linalg.matrix_norm(dA, ord=2)
    return differentiate(f, subjects.STEP * float(view.eigenvalues.min() / length))


def _limit(subject: Subject, view: View, dA: Tensor) -> float:
    """Rounding of the gradient of one probe with |x|² = n, relative to n max|f'| |dA|.

    Differentiating a recurrence of d + 1 steps adds up d + 1 terms of what each of them rounds; a
    solve amplifies rounding and residual by the condition number.
    """
    n, eps, lam = len(view.eigenvalues), float(np.finfo(np.float64).eps), view.eigenvalues
    largest = float(np.abs(subject.derivative(view)(lam)).max())
    unit = n * float(torch.linalg.matrix_norm(dA, ord=2))
    # Differences of the contract, where the closed form needs them, are rounded too.
    size = float(np.abs(subject.contract(view)(lam)).max()) / float(lam.min())
    known = subject.slope and subject.arguments(view)
    oracle = 0.0 if known else 8 * eps * size / subjects.STEP
    if subject.gradient == "solve":
        relative = 8 * eps * n * subject.amplification(view) + SOLVED
    else:
        relative = 50 * (subject.config.get("degree", 1) + 1) ** 2 * (eps / 2)
    return unit * (relative * largest + oracle)


CHECKS = (differences, form, basis, scale, mean)
