"""What the gradients of single probes promise: quadratic forms, by eigendecompositions of A."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from specbp import exact
from verification import subjects
from verification.cases import View
from verification.subjects import Subject, differentiate

SOLVED = 1e-10  # relative residual of an iterative solver that does not name its own
# A truncated Krylov space is known to this only: `krylov_form` has it from ill-conditioned vectors.
SPACE = 2 * float(np.finfo(np.float64).eps) ** 0.6


def forms(subject: Subject, view: View, change: Tensor, X: Tensor) -> np.ndarray:
    """The gradient that each column of X (n, P) promises along a change of the operator, (P,).

    Without probes it is one number.
    """
    if subject.gradient == "exact":
        return np.array([mean(subject, view, change)])
    columns = X.double().numpy().T
    if subject.gradient == "frechet":
        dA, steps = of_gram(subject, view, change), subject.configured(X.shape[-2])["num_steps"]
        return np.array([krylov_form(view, x, steps, dA) for x in columns])
    L = np.stack([matrix(one, view, change) for one in _held(subject, view, X)])
    return np.einsum("ji,jik,jk->j", columns, L.repeat(len(columns) // len(L), 0), columns)


def krylov_form(view: View, x: np.ndarray, steps: int, dA: np.ndarray) -> float:
    r"""Fréchet derivative of log in the Krylov space of x, a double loop over its Ritz pairs.

    .. math:: \sum_{a,b} \log[\theta_a, \theta_b]\, (x^\top u_a) (x^\top u_b)\, u_a^\top dA\, u_b

    The space is spanned by Chebyshev polynomials of A at x, from its eigenvalues, and QR: no
    recurrence between vectors and no reorthogonalisation.
    """
    lam, V = view.eigenvalues, view.eigenvectors
    t = 2 * (lam - lam.min()) / (lam.max() - lam.min()) - 1
    angle = np.arccos(np.clip(t, -1, 1))
    Q, _ = np.linalg.qr(V @ ((V.T @ x)[:, None] * np.cos(np.outer(angle, np.arange(steps)))))
    nodes, S = np.linalg.eigh((V.T @ Q).T * lam @ (V.T @ Q))
    U = Q @ S
    F = exact.divided_differences(nodes, np.log, np.reciprocal)
    parts = x @ U
    total = 0.0
    for a in range(steps):
        for b in range(steps):
            total += F[a, b] * parts[a] * parts[b] * float(U[:, a] @ dA @ U[:, b])
    return total


def matrix(subject: Subject, view: View, change: Tensor) -> np.ndarray:
    """The matrix L of the quadratic form that is one probe's gradient; in a complete space."""
    lam, V, slope = view.eigenvalues, view.eigenvectors, subject.derivative(view)
    dA = of_gram(subject, view, change)
    if subject.gradient == "solve":
        return exact.solve_form(lam, V, slope, dA)
    L = exact.frechet_derivative(lam, V, subject.contract(view), slope, dA)
    if not subject.arguments(view):
        # Without arguments that are held fixed, f itself may depend on A.
        L = L + exact.matrix_function(lam, V, lambda x: _motion(subject, view, change, x))
    return L


def mean(subject: Subject, view: View, change: Tensor) -> float:
    """The gradient of tr f(A)."""
    return float(np.trace(matrix(subject, view, change)))


def truth(subject: Subject, view: View, change: Tensor) -> float:
    """tr A⁻¹ dA, that of log det A."""
    lam, V = view.eigenvalues, view.eigenvectors
    diagonal = np.einsum("ji,jk,ki->i", V, of_gram(subject, view, change), V)
    return float((diagonal / lam).sum())


def of_gram(subject: Subject, view: View, change: Tensor) -> np.ndarray:
    """The change of A, that of the operator itself or dJᵀJ + JᵀdJ, exactly symmetric."""
    dA = change.mT @ view.operator if subject.on == "J" else change / 2
    return (dA + dA.mT).numpy()


def limit(subject: Subject, view: View, change: Tensor, X: Tensor) -> float:
    """Largest rounding of the gradient of one probe out of X, with |x|² = n."""
    return max(_limit(subject, view, change) for subject in _held(subject, view, X))


def _held(subject: Subject, view: View, X: Tensor) -> list[Subject]:
    """The subject, or one for each probe where that finds the interval."""
    return [subject.held(view, x) for x in X.mT] if subject.found else [subject]


def _limit(subject: Subject, view: View, change: Tensor) -> float:
    """Rounding relative to n max|f'| |dA|.

    Differentiating a recurrence of d + 1 steps adds up d + 1 terms of what each of them rounds; a
    solve or a Krylov space amplifies rounding, and a solve its residual, by the condition number.
    """
    n, eps, lam = len(view.eigenvalues), float(np.finfo(np.float64).eps), view.eigenvalues
    largest = float(np.abs(subject.derivative(view)(lam)).max())
    unit = n * float(np.linalg.norm(of_gram(subject, view, change), ord=2))
    # Differences of the contract, where the closed form needs them, are rounded too.
    size = float(np.abs(subject.contract(view)(lam)).max()) / float(lam.min())
    known = subject.slope and subject.arguments(view)
    oracle = 0.0 if known else 8 * eps * size / subjects.STEP
    if subject.gradient == "derivative":
        relative = 50 * (subject.config.get("degree", 1) + 1) ** 2 * (eps / 2)
    else:
        relative = 8 * eps * n * subject.amplification(view)
    if subject.gradient == "frechet":
        relative += SPACE
    if subject.gradient == "solve":
        relative += max(SOLVED, subject.config.get("rtol", 0.0))
    return unit * (relative * largest + oracle)


def _motion(subject: Subject, view: View, change: Tensor, x: np.ndarray) -> np.ndarray:
    """d/dθ f(x) at fixed x, f the contract of the operator moved by θ."""

    def f(step: float) -> np.ndarray:
        moved = view.operator + step * change
        gram = moved.mT @ moved if subject.on == "J" else moved
        lam, V = np.linalg.eigh(gram.numpy())
        return subject.contract(replace(view, operator=moved, eigenvalues=lam, eigenvectors=V))(x)

    length = np.linalg.norm(of_gram(subject, view, change), ord=2)
    return differentiate(f, subjects.STEP * float(view.eigenvalues.min() / length))
