"""Gradients made of sensitivities, with the seams at which one is wrong; two controls with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specbp import (
    Estimate,
    chebyshev_logdet,
    krylov,
    polynomials,
    quadrature,
    sensitivities,
    slq_logdet,
)
from specbp.claims import Claims
from specbp.differentiable import Sensitivity, attach
from specbp.estimate import from_samples
from specbp.operators import CountingOperator, as_operator, check_probes
from specbp.wrappers import ScaledOperator
from verification.subjects import Subject

Change = Callable[[Sensitivity], Sensitivity]


def unchanged(G: Sensitivity) -> Sensitivity:
    """The identity: the right choice at a seam."""
    return G


def resensitised(
    A: Any,
    X: Tensor,
    *,
    estimate: Callable[..., Estimate],
    sensitivity: Callable[..., Sensitivity],
    factor: bool = False,
    through: Callable[[Any], Any] = as_operator,
    **config: Any,
) -> Estimate:
    """The value of an estimator, with the gradient of a sensitivity (operator, rows, **config).

    `through` is the operator whose pull-back is used.
    """
    found = estimate(A.detach() if isinstance(A, Tensor) else A, X, **config)
    operator = as_operator(A)
    rows = check_probes(operator, X)
    zero = torch.zeros_like(found.samples.detach())
    samples = found.samples + attach(
        zero, through(A), lambda: sensitivity(operator, rows, **config), factor=factor
    )
    return replace(found, samples=samples, value=samples.mean(-1))


def in_krylov_space(
    A: Any,
    rows: Tensor,
    *,
    num_steps: int,
    process: Callable[..., Any] = krylov.lanczos,
    kernel: Callable[[Tensor], Tensor] = sensitivities.log_differences,
    change: Change = unchanged,
    **_config: Any,
) -> Sensitivity:
    """G = |x|² Σ e_a e_b kernel(θ_a, θ_b) u_a u_bᵀ over Ritz pairs, e_a their share of x."""
    T = process(A, rows, num_steps)
    nodes, S = quadrature.ritz(T)
    first = T.norm_squared.sqrt().unsqueeze(-1) * S[..., 0, :]
    weights, U = torch.linalg.eigh(first.unsqueeze(-1) * kernel(nodes) * first.unsqueeze(-2))
    return change(Sensitivity(weights, (S @ U).mT @ T.basis.movedim(0, -2)))


def of_polynomial(
    A: Any,
    rows: Tensor,
    *,
    degree: int,
    interval: tuple[float | Tensor, float | Tensor],
    taken: Callable[[Tensor], Tensor] = lambda c: c,
    change: Change = unchanged,
) -> Sensitivity:
    """The sensitivity of a Chebyshev expansion; `taken` are the coefficients that it sees."""
    a, b = (torch.as_tensor(end, dtype=torch.float64).detach() for end in interval)
    c = polynomials.chebyshev_coefficients(degree, a, b).unsqueeze(-2)
    return change(sensitivities.chebyshev(A, [rows], taken(c), a, b))


def length_of(A: Any, X: Tensor) -> Tensor:
    """|A|_F with its graph, n products, (...)."""
    columns = A @ torch.eye(A.shape[-1], dtype=X.dtype)
    return columns.square().sum((-2, -1)).sqrt()


def bounded_chebyshev(
    A: Any,
    X: Tensor,
    *,
    degree: int,
    floor: float,
    bound: Callable[[Tensor], Tensor] = lambda L: L,
) -> Estimate:
    """Chebyshev expansion on [floor L, L] with L = |A|_F, whose gradient goes through L too."""
    L = bound(length_of(A, X))
    found = chebyshev_logdet(A, X, degree=degree, interval=(floor * L, L))
    return from_samples(
        found.samples, num_matvecs=found.num_matvecs + A.shape[-1], status=_of_each(found)
    )


def scaled_quadrature(
    A: Any,
    X: Tensor,
    *,
    num_steps: int,
    inner: Callable[[Tensor], Tensor] = lambda L: L,
) -> Estimate:
    """Lanczos quadrature of A / L plus |x|² log L, L = |A|_F: `inner` is what A is divided by."""
    counted = CountingOperator(as_operator(A))
    L = length_of(A, X)
    scaled = ScaledOperator(counted, 1 / inner(L)[..., None, None])
    found = slq_logdet(scaled, X, num_steps=num_steps)
    shift = X.square().sum(-2) * L.log().unsqueeze(-1)
    return from_samples(
        found.samples + shift,
        num_matvecs=found.num_matvecs + A.shape[-1],
        upper=(found.samples + shift).detach(),
        status=_of_each(found),
    )


def _of_each(found: Estimate) -> Tensor:
    """The status of the estimate for each of its probes."""
    return found.status.unsqueeze(-1).expand(found.samples.shape)


def bounded(contract: Callable[..., Any], degree: int, floor: float) -> Subject:
    """`bounded_chebyshev` as a subject with the contract of a polynomial on the scaled matrix."""
    return Subject(
        name="bounded chebyshev",
        estimate=bounded_chebyshev,
        on="A",
        estimand="logdet",
        claims=Claims(
            "tr p(A)",
            matvecs=lambda n, m, config: n + m * ((config["degree"] + 1) // 2),
            gradient="derivative",
        ),
        config={"degree": degree, "floor": floor},
        contract=partial(contract, degree, floor),
        gradient="derivative",
    )


SCALED = Subject(
    name="scaled quadrature",
    estimate=scaled_quadrature,
    on="A",
    estimand="logdet",
    claims=Claims(
        "quadrature",
        matvecs=lambda n, m, config: n + m * config["num_steps"],
        bracket=("upper",),
        gradient="frechet",
    ),
    config={"num_steps": 20},
    gradient="frechet",
)
