"""Faults of Krylov quadrature: lost digits, wrong weights, and Ritz values that are hidden."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from specbp import Estimate, quadrature
from specbp.estimate import from_samples
from specbp.krylov import golub_kahan
from verification.faults.controls import GOLUB_KAHAN, LANCZOS, lanczos, lanczos_quadrature
from verification.faults.fault import Fault, plant


class Rounded:
    """An operator whose products pass through float32."""

    def __init__(self, operator: Any):
        self.operator = operator

    def __matmul__(self, X: Tensor) -> Tensor:
        return (self.operator @ X.to(self.operator.dtype)).float()


def single_lanczos(A: Any, X: Tensor, steps: int) -> Tensor:
    """Lanczos in float32 without reorthogonalisation, whatever the dtype of A."""
    T = lanczos(Rounded(A), X.float(), steps, reorthogonalise=False)
    return T.to(X.dtype)


def log_above_floor(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """log of the large Ritz values, 0 for all others: no flag is ever raised."""
    floor = 10 * torch.finfo(nodes.dtype).eps * nodes.abs().amax(-1, keepdim=True)
    logs = torch.where(nodes > floor, nodes.abs().log(), 0)
    return logs, torch.zeros(nodes.shape[:-1], dtype=torch.int64)


def confident(J: Any, X: Tensor, *, num_steps: int, lower: float) -> Estimate:
    """Golub–Kahan quadrature in which singular values of rounding count as singular values."""
    B = golub_kahan(J, X.mT.contiguous(), num_steps)
    matrix = torch.diag_embed(B.diagonal) + torch.diag_embed(B.off_diagonal[..., :-1], 1)
    sound = torch.isfinite(matrix).all(-1).all(-1)
    _, sigma, Vt = torch.linalg.svd(torch.where(sound[..., None, None], matrix, 1))
    logs = 2 * sigma.clamp_min(torch.finfo(X.dtype).eps).log()
    values = (B.norm_squared * (Vt[..., :, 0] ** 2 * logs).sum(-1)).masked_fill(~sound, torch.nan)
    below = quadrature.gauss_radau(B, torch.tensor(lower, dtype=torch.float64)).value
    return from_samples(
        values,
        num_matvecs=X.shape[-1] * num_steps,
        lower=below.nan_to_num(nan=-torch.inf),
        upper=values,
    )


FAULTS: tuple[Fault, ...] = (
    plant(
        LANCZOS,
        "f6",
        "Lanczos in float32 without reorthogonalisation",
        "D1 D2 D7 S1",
        note="S sees it where the condition number is 1e6; elsewhere it is far below one sd.",
        estimate=partial(lanczos_quadrature, tridiagonalise=single_lanczos),
    ),
    plant(
        LANCZOS,
        "f16",
        "last components of the eigenvectors for the first",
        "D1 D2 D7 S1",
        estimate=partial(lanczos_quadrature, row=-1),
    ),
    plant(
        LANCZOS,
        "ritz-floor",
        "Ritz values below a floor count as log 1",
        "D11",
        source="CoLA, values below 10 eps λ_max mapped to f = 0",
        note="Right for every definite matrix; confident and finite for the others.",
        equivalent="S: sampling sees definite matrices, on which nothing is wrong.",
        estimate=partial(lanczos_quadrature, logarithm=log_above_floor),
    ),
    plant(
        GOLUB_KAHAN,
        "singular-gram",
        "a singular JᵀJ gets a finite number with an error bar",
        "D11",
        source="matfree, Golub–Kahan on a J with a repeated column",
        equivalent="S: sampling sees matrices of full rank, on which nothing is wrong.",
        estimate=confident,
    ),
)
