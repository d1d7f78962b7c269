"""Trace estimators that use their probes jointly, as controls: Hutch++, XTrace, and resphering.

Sources: Meyer, Musco, Musco & Woodruff (2021), arXiv:2010.09649; Epperly, Tropp & Webber (2024),
arXiv:2301.07825.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbp import Estimate, probes
from specbp.estimate import from_samples
from specbp.methods import Claims
from specbp.operators import CountingOperator, as_operator
from verification.subjects import Subject


def span(Y: Tensor) -> Tensor:
    """Orthonormal basis of the columns of Y, with zero columns where Y has no full rank."""
    if not bool(torch.isfinite(Y).all()):
        return torch.full_like(Y, torch.nan)  # LAPACK raises on NaN
    U, sigma, _ = torch.linalg.svd(Y, full_matrices=False)
    rank = sigma > 1e3 * torch.finfo(Y.dtype).eps * sigma[..., :1]
    basis = (U * rank.unsqueeze(-2)).to(Y)
    return torch.nn.functional.pad(basis, (0, Y.shape[-1] - basis.shape[-1]))


def trace_of(H: Tensor) -> Tensor:
    """Trace of the last two dimensions."""
    return H.diagonal(dim1=-2, dim2=-1).sum(-1)


def blocks(X: Tensor) -> tuple[Tensor, Tensor]:
    """The probes of the sketch, and those of the residual."""
    half = X.shape[-1] // 2
    return X[..., :half], X[..., half:]


def hutch_pp(
    A: Any, X: Tensor, *, split: Callable[[Tensor], tuple[Tensor, Tensor]] = blocks
) -> Estimate:
    """tr QᵀAQ + mean gᵀ(I − P)A(I − P)g, with Q from the first ⌊m/2⌋ probes, P = QQᵀ."""
    A = CountingOperator(as_operator(A))
    S, G = split(X)
    Q = span(A @ S) if S.shape[-1] else X[..., :0]
    low_rank = trace_of(Q.mT @ (A @ Q)) if S.shape[-1] else X.new_zeros(X.shape[:-2])
    G = G - Q @ (Q.mT @ G)
    values = low_rank.unsqueeze(-1) + (G * (A @ G)).sum(-2)
    return unreliable(from_samples(values, num_matvecs=A.num_matvecs))


def xtrace(
    A: Any,
    X: Tensor,
    *,
    resphere: bool = False,
    basis: Callable[[Tensor], Tensor] = span,
    calibrated: bool = False,
) -> Estimate:
    """Mean over i of tr PᵢA + xᵢᵀ(I − Pᵢ)A(I − Pᵢ)xᵢ, Pᵢ the projector on A's image of the others.

    Resphering stretches the residual (I − Pᵢ)xᵢ to the length √(n − rank Pᵢ).
    """
    A = CountingOperator(as_operator(A))
    n, m = X.shape[-2:]
    Y = A @ X
    Q = span(Y)
    AQ = A @ Q
    H, C = Q.mT @ AQ, Q.mT @ Y
    values = []
    for i in range(m):
        # Coordinates, in Q, of a basis of the image of the others.
        U = basis(torch.cat([C[..., :i], C[..., i + 1 :]], -1)) if m > 1 else C[..., :0]
        w = U @ (U.mT @ (Q.mT @ X[..., i : i + 1]))
        r, Ar = X[..., i : i + 1] - Q @ w, Y[..., i : i + 1] - AQ @ w
        stretch = X.new_ones(())
        if resphere:
            rank = U.square().sum((-2, -1))
            square = r.square().sum((-2, -1))
            stretch = torch.where(rank < n - 0.5, (n - rank) / square, 0)
        values.append(trace_of(U.mT @ H @ U) + stretch * (r * Ar).sum((-2, -1)))
    found = from_samples(torch.stack(values, -1), num_matvecs=A.num_matvecs)
    return found if calibrated else unreliable(found)


def unreliable(found: Estimate) -> Estimate:
    """Without error bar: the values of one estimate are not independent."""
    return replace(found, standard_error=torch.full_like(found.value, torch.nan))


def _products(_n: int, m: int, _config: dict[str, Any]) -> float:
    return 2 * m


HUTCH_PP = Subject(
    name="naive hutch++",
    estimate=hutch_pp,
    on="A",
    estimand="trace",
    claims=Claims("tr A", matvecs=lambda _n, m, _c: m + m // 2, calibrated=False, additive=False),
    contract=lambda _view: np.asarray,
)
XTRACE = replace(
    HUTCH_PP,
    name="naive xtrace",
    estimate=xtrace,
    claims=Claims("tr A", matvecs=_products, calibrated=False, additive=False),
)
RESPHERED = replace(
    XTRACE,
    name="naive resphered xtrace",
    config={"resphere": True},
    sampler=probes.sphere,
    law="sphere",
)
