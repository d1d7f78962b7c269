"""Correct estimators, small and clear, from which the faults are made: none may be rejected.

They repeat on purpose what `specbp` does in its own way: each has the seams at which a fault is
planted, as keyword arguments whose defaults are right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbp import Estimate, exact, probes
from specbp.estimate import Status, from_samples
from specbp.methods import METHODS, Claims
from specbp.operators import CountingOperator, as_operator
from verification.cases import View
from verification.faults import differentiable, joint, roulette
from verification.subjects import ScalarFunction, Subject, from_method

DEGREE, FLOOR = 30, 1e-3
Vector = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    """The identity: the right choice at a seam."""
    return x


# log det by a Chebyshev expansion of A / |A|_F ------------------------------------------------


def log_coefficients(degree: int, floor: float) -> Tensor:
    """Chebyshev coefficients of the interpolant of log on [floor, 1], (degree + 1,)."""
    angle = math.pi * (torch.arange(degree + 1, dtype=torch.float64) + 0.5) / (degree + 1)
    nodes = (1 + floor) / 2 + (1 - floor) / 2 * angle.cos()
    k = torch.arange(degree + 1, dtype=torch.float64)
    c = 2 / (degree + 1) * torch.cos(k.unsqueeze(-1) * angle) @ nodes.log()
    return torch.cat([c[:1] / 2, c[1:]])


def scaled_chebyshev(
    A: Any,
    X: Tensor,
    *,
    degree: int,
    floor: float,
    coefficients: Callable[[int, float], Tensor] = log_coefficients,
    inner: Vector = same,
    outer: Vector = same,
    accumulate: Vector = Tensor.double,
) -> Estimate:
    """xᵀ p(A / L) x + |x|² log L with L = |A|_F and p ≈ log on [floor, 1].

    L is a function of A, and gradients go through it in both places: `inner` is what A is divided
    by, `outer` what the logarithm is taken of.
    """
    A = CountingOperator(as_operator(A))
    image = A @ X
    L = (A @ torch.eye(A.shape[-1], dtype=X.dtype)).square().sum((-2, -1)).sqrt()
    scale = inner(L)[..., None, None]

    def mapped(AX: Tensor, X: Tensor) -> Tensor:
        return (2 * AX / scale - (1 + floor) * X) / (1 - floor)

    basis = [X, mapped(image, X)]
    for _ in range(degree - 1):
        basis.append(2 * mapped(A @ basis[-1], basis[-1]) - basis[-2])
    moments = torch.stack([(X * w).sum(-2) for w in basis], -1)
    c = coefficients(degree, floor).to(accumulate(moments).dtype)
    size = X.square().sum(-2)
    values = accumulate(moments) @ c + size * outer(L).log().unsqueeze(-1)
    growth = torch.stack([w.detach().square().sum(-2) for w in basis]).amax(0) / size
    # No positive semidefinite matrix lets T_k x grow more than its eigenvalue 0 does.
    largest = math.cosh(degree * math.acosh((1 + floor) / (1 - floor))) ** 2
    status = (growth > 1.01 * largest) * int(Status.OUTSIDE_INTERVAL)
    return from_samples(values, num_matvecs=A.num_matvecs, status=status)


def scaled_log(degree: int, floor: float, view: View) -> ScalarFunction:
    """The contract of `scaled_chebyshev`: p(λ / L) + log L, L from the eigenvalues."""
    L = float(np.linalg.norm(view.eigenvalues))
    p = exact.chebyshev_log(degree, (floor, 1.0))
    return lambda lam: p(np.asarray(lam) / L) + math.log(L)


# log det by Lanczos quadrature ----------------------------------------------------------------


def lanczos(A: Any, X: Tensor, steps: int, *, reorthogonalise: bool = True) -> Tensor:
    """Tridiagonal matrices of the Krylov spaces of the columns of X, (..., m, k, k)."""
    q = X / torch.linalg.vector_norm(X, dim=-2, keepdim=True)
    basis: list[Tensor] = [q]
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    for _ in range(steps):
        w = A @ basis[-1]
        alphas.append((basis[-1] * w).sum(-2))
        w = w - alphas[-1].unsqueeze(-2) * basis[-1]
        if len(basis) > 1:
            w = w - betas[-1].unsqueeze(-2) * basis[-2]
        for p in basis * 2 if reorthogonalise else []:
            w = w - (p * w).sum(-2, keepdim=True) * p
        beta = torch.linalg.vector_norm(w, dim=-2)
        closed = beta <= 100 * torch.finfo(X.dtype).eps * alphas[0].abs()
        betas.append(beta.masked_fill(closed, 0))
        basis.append((w / beta.unsqueeze(-2)).masked_fill(closed.unsqueeze(-2), 0))
    diagonal, off = torch.stack(alphas, -1), torch.stack(betas, -1)[..., :-1]
    # A closed space leaves zeros; any positive number will do, for its weight is zero.
    diagonal = torch.where(diagonal == 0, diagonal[..., :1], diagonal)
    return torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)


def log_or_fail(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """log of Ritz values (..., k), and flags (...) where one is not positive."""
    rounding = 4 * torch.finfo(nodes.dtype).eps * nodes.abs().amax(-1)
    smallest = nodes.amin(-1)
    failed = (smallest < -rounding) * int(Status.NEGATIVE_RITZ)
    return nodes.log(), failed | (smallest.abs() <= rounding) * int(Status.SINGULAR)


def lanczos_quadrature(
    A: Any,
    X: Tensor,
    *,
    num_steps: int,
    tridiagonalise: Callable[[Any, Tensor, int], Tensor] = lanczos,
    row: int = 0,
    logarithm: Callable[[Tensor], tuple[Tensor, Tensor]] = log_or_fail,
) -> Estimate:
    """|x|² Σ_j s_j² log θ_j: nodes θ and first components s of the eigenvectors of T."""
    A = CountingOperator(as_operator(A))
    T = tridiagonalise(A, X.detach(), num_steps)
    sound = torch.isfinite(T).all(-1).all(-1)
    nodes, S = torch.linalg.eigh(torch.where(sound[..., None, None], T, torch.eye(num_steps).to(T)))
    logs, status = logarithm(nodes)
    weights = S[..., row, :] ** 2
    values = X.square().sum(-2) * torch.where(weights > 0, weights * logs, 0).sum(-1)
    values = values.masked_fill(~sound, torch.nan)
    return from_samples(values, num_matvecs=A.num_matvecs, upper=values, status=status)


# Gradient by a solve --------------------------------------------------------------------------


def conjugate_gradients(A: Any, X: Tensor, steps: int, tolerance: float, least: int) -> Tensor:
    """A⁻¹X by CG; after `least` steps a column stays as it is once |residual| ≤ tolerance · |x|."""
    U, R, P = torch.zeros_like(X), X, X
    square = R.square().sum(-2, keepdim=True)
    goal = tolerance**2 * square
    for k in range(steps):
        AP = A @ P
        active = square > (goal if k >= least else 1e-30 * goal)
        step = torch.where(active, square / (P * AP).sum(-2, keepdim=True), 0)
        U, R = U + step * P, R - step * AP
        new = R.square().sum(-2, keepdim=True)
        P = torch.where(active, R + new / square * P, P)
        square = torch.where(active, new, square)
    return U


def with_gradient_of(values: Tensor, forms: Tensor) -> Tensor:
    """The values, with the gradient of other numbers."""
    return values + (forms - forms.detach())


def solved_gradient(
    A: Any,
    X: Tensor,
    *,
    num_steps: int,
    tolerance: float,
    least: int = 0,
    combine: Callable[[Tensor, Tensor], Tensor] = with_gradient_of,
) -> Estimate:
    """Value by Lanczos quadrature, gradient xᵀ A⁻¹ dA x with A⁻¹x from CG, 2 n steps."""
    counted = CountingOperator(as_operator(A))
    with torch.no_grad():
        value = lanczos_quadrature(A, X, num_steps=num_steps)
        U = conjugate_gradients(counted, X, 2 * counted.shape[-1], tolerance, least)
    forms = (U * (counted @ X)).sum(-2).double()
    found = from_samples(
        combine(value.samples, forms),
        num_matvecs=value.num_matvecs + counted.num_matvecs,
        upper=value.samples,
    )
    return found if bool(value.ok.all()) else value


SCALED_CHEBYSHEV = Subject(
    name="scaled chebyshev",
    estimate=scaled_chebyshev,
    on="A",
    estimand="logdet",
    claims=Claims(
        "tr p(A)", matvecs=lambda n, m, config: n + m * config["degree"], gradient="derivative"
    ),
    config={"degree": DEGREE, "floor": FLOOR},
    contract=partial(scaled_log, DEGREE, FLOOR),
    gradient="derivative",
)
LANCZOS = Subject(
    name="lanczos quadrature",
    estimate=lanczos_quadrature,
    on="A",
    estimand="logdet",
    claims=Claims("quadrature", lambda _n, m, config: m * config["num_steps"], bracket=("upper",)),
    config={"num_steps": 20},
)
SOLVED = Subject(
    name="solved gradient",
    estimate=solved_gradient,
    on="A",
    estimand="logdet",
    claims=Claims(
        "quadrature",
        matvecs=lambda n, m, config: m * (config["num_steps"] + 2 * n + 1),
        bracket=("upper",),
    ),
    config={"num_steps": 20, "tolerance": 1e-12},
    gradient="solve",
)
GAUSSIAN = Subject(
    name="gaussian chebyshev",
    estimate=scaled_chebyshev,
    on="A",
    estimand="logdet",
    claims=SCALED_CHEBYSHEV.claims,
    config=SCALED_CHEBYSHEV.config,
    contract=SCALED_CHEBYSHEV.contract,
    sampler=probes.gaussian,
    law="gaussian",
    gradient="derivative",
)
# Below all eigenvalues, so that they lie within the interval: how coarse p is does not matter.
BOUNDED = differentiable.bounded(scaled_log, DEGREE, 1e-8)
ROWS = {row.name: from_method(row) for row in METHODS.values() if row.claims.gated}
TRACE, CHEBYSHEV, TAYLOR = ROWS["hutchinson"], ROWS["chebyshev"], ROWS["taylor"]
GOLUB_KAHAN, SLQ, SOLVE = ROWS["golub_kahan"], ROWS["slq"], ROWS["solve"]

CONTROLS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        SCALED_CHEBYSHEV,
        GAUSSIAN,
        LANCZOS,
        SOLVED,
        BOUNDED,
        differentiable.SCALED,
        roulette.CONTROL,
        joint.HUTCH_PP,
        joint.XTRACE,
        joint.RESPHERED,
        *ROWS.values(),
    )
}
