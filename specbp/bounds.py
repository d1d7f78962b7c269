"""Bounds of the spectrum of A: certified from entries, or estimated from products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specbp.krylov import lanczos
from specbp.operators import (
    LinearOperator,
    check_square,
    check_steps,
    check_symmetric,
    product,
)


class Interval(NamedTuple):
    """Spectral interval [lower, upper], each of shape (...)."""

    lower: Tensor
    upper: Tensor


def interval(lower: float | Tensor, upper: float | Tensor, rows: Tensor) -> Interval:
    """A checked interval 0 < lower < upper for each item of the batch of probes `rows`, float64.

    Raises:
        ValueError: If it is empty, not positive, not finite or does not fit the batch.
    """
    a, b = _of_batch(lower, "interval", rows), _of_batch(upper, "interval", rows)
    if not bool(((a > 0) & (a < b) & torch.isfinite(b)).all()):
        raise ValueError(
            f"A spectral interval needs 0 < lower < upper < inf, got lower = {_brief(a)}, "
            f"upper = {_brief(b)}."
        )
    return Interval(a, b)


def positive(bound: float | Tensor, name: str, rows: Tensor) -> Tensor:
    """A checked positive bound for each item of the batch of probes `rows`, float64.

    Raises:
        ValueError: If it is not positive, not finite or does not fit the batch.
    """
    a = _of_batch(bound, name, rows)
    if not bool(((a > 0) & torch.isfinite(a)).all()):
        raise ValueError(f"{name} must be a positive, finite bound, got {_brief(a)}.")
    return a


def _of_batch(bound: float | Tensor, name: str, rows: Tensor) -> Tensor:
    a, batch = torch.as_tensor(bound, dtype=torch.float64, device=rows.device), rows.shape[:-2]
    try:
        return a.expand(batch)
    except RuntimeError as error:
        raise ValueError(
            f"{name} has shape {tuple(a.shape)}, which does not fit the batch {tuple(batch)} of "
            "operator and probes."
        ) from error


def certified_upper(A: Tensor) -> Tensor:
    r"""Upper bound of the spectrum of an explicit symmetric matrix, shape (...).

    .. math:: \lambda_{\max} \le \min(\|A\|_\infty, \|A\|_F)

    Raises:
        ValueError: If A is not symmetric or not finite.
    """
    check_square(A)
    check_symmetric(A)
    return torch.minimum(A.abs().sum(-1).amax(-1), torch.linalg.matrix_norm(A)).double()


def power_method(A: LinearOperator, start: Tensor, num_steps: int) -> Tensor:
    r"""Rayleigh quotient after `num_steps` products: a *lower* bound of λ_max, shape (...).

    .. math:: u \leftarrow A u / |A u|, \qquad \hat\lambda = u^\top A u \le \lambda_{\max}

    It is low after any number of products, which is fatal for a Chebyshev expansion that takes it
    for an upper bound: the polynomial explodes beyond its interval.

    Args:
        A: Symmetric operator (..., n, n).
        start: Vector (..., n), not zero.
        num_steps: Products spent, at least 1.

    Raises:
        ValueError: If num_steps < 1.
    """
    if num_steps < 1:
        raise ValueError(f"The power method needs at least one product, got {num_steps}.")
    u = start.unsqueeze(-2)
    for _ in range(num_steps):
        u = u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        image = product(A, u)
        u, quotient = image, torch.linalg.vecdot(u, image)
    return quotient.squeeze(-1).double()


def lanczos_interval(A: LinearOperator, start: Tensor, num_steps: int) -> Interval:
    r"""Extreme Ritz values with their residuals added on the upper side, each of shape (...).

    .. math:: \lambda_{\min} \le \theta_{\min}, \qquad
              \text{upper} = \theta_{\max} + \beta_k |s_{k}|

    Some eigenvalue lies within the residual of θ_max, and from about ten steps on `upper` mostly
    exceeds λ_max: an estimate, not a certificate. `lower` is an upper bound of λ_min.

    Source: Zhou & Li (2011), Linear Algebra Appl. 435, doi:10.1016/j.laa.2010.06.034.

    Args:
        A: Symmetric operator (..., n, n).
        start: Vector (..., n), not zero.
        num_steps: Products spent, 1 … n.

    Raises:
        ValueError: If num_steps is not in 1 … n.
    """
    check_steps(num_steps, A.shape[-1])
    T = lanczos(A, start.unsqueeze(-2), num_steps)
    off = T.off_diagonal[..., :-1]
    matrix = torch.diag_embed(T.diagonal) + torch.diag_embed(off, offset=1)
    nodes, vectors = torch.linalg.eigh(torch.nan_to_num(matrix), UPLO="U")
    residual = T.off_diagonal[..., -1:] * vectors[..., -1, :].abs()
    upper = (nodes + residual).amax(-1)
    return Interval(nodes.amin(-1).squeeze(-1), upper.squeeze(-1))


def _brief(x: Tensor) -> str:
    return f"{float(x):.4g}" if x.ndim == 0 else f"{float(x.min()):.4g} … {float(x.max()):.4g}"
