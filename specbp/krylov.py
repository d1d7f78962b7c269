"""Lanczos tridiagonalisation and Golub–Kahan bidiagonalisation, one Krylov space for each probe.

Everything is batched over probes and leading dimensions, and reorthogonalised fully: without it
copies of converged Ritz values crowd out the small ones, where log is large, soonest in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specbp.operators import LinearOperator, RectangularOperator, product


class Tridiagonal(NamedTuple):
    """k Lanczos steps from each probe x: QᵀAQ = T, Q e₁ = x / |x|.

    Attributes:
        diagonal: α₁ … α_k of T, (..., m, k), float64.
        off_diagonal: β₁ … β_k, (..., m, k), float64; β_k couples T to the rest of the space.
        norm_squared: |x|², (..., m).
        closed: True where the Krylov space closed before k steps, (..., m).
        basis: Q as rows, (k, ..., m, n), in the operator's dtype; zero where the space closed.
        asymmetry: max |q_iᵀ A q_j| beyond the tridiagonal, relative to |T|, (..., m): rounding if A
            is symmetric.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    norm_squared: Tensor
    closed: Tensor
    basis: Tensor
    asymmetry: Tensor


class Bidiagonal(NamedTuple):
    """k Golub–Kahan steps from each probe x: J V = U B, B upper bidiagonal, V e₁ = x / |x|.

    Attributes:
        diagonal: α₁ … α_k of B, (..., m, k), float64.
        off_diagonal: β₁ … β_k above it, (..., m, k), float64; β_k couples B to the rest.
        norm_squared: |x|², (..., m).
        closed: True where the Krylov space closed before k steps, (..., m).
        basis: V as rows, (k, ..., m, n), in the operator's dtype; zero where the space closed.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    norm_squared: Tensor
    closed: Tensor
    basis: Tensor


@torch.no_grad()
def lanczos(A: LinearOperator, rows: Tensor, num_steps: int) -> Tridiagonal:
    r"""Lanczos with full reorthogonalisation from each row of `rows` (..., m, n).

    .. math:: \beta_j q_{j+1} = A q_j - \alpha_j q_j - \beta_{j-1} q_{j-1}

    The three-term recurrence, with both coefficients taken as inner products, is followed by one
    Gram–Schmidt pass against all earlier vectors. If A is symmetric, q_{j-1}ᵀ A q_j repeats β_{j-1}
    and that pass subtracts only rounding; the difference is the `asymmetry`, a check of symmetry
    that costs no product.

    Cost: k products and 2 k² n flops for each probe. A space that closes after j < k steps leaves
    β_j = 0 and positive filler on the rest of the diagonal, which no quadrature weight ever meets.
    Nothing is recorded for automatic differentiation.

    Source: Lanczos (1950), J. Res. Nat. Bur. Standards 45; Golub & Meurant (2010), chapter 4.
    """
    basis, norm = _start(rows, num_steps)
    alphas, betas, above, across = [], [], [], []
    for j, q in enumerate(basis):
        w = product(A, q.view(rows.shape)).reshape(q.shape)
        w, near = _orthogonalised(w, basis[max(j - 1, 0) : j + 1])
        w, overlap = _orthogonalised(w, basis[: j + 1])
        above.append(near[:, :-1])
        across.append(overlap.abs().amax(-1, keepdim=True))
        alphas.append(near[:, -1:])
        betas.append(_append(w, basis, j + 1))
    diagonal, off, ended = _small(alphas, betas, norm, rows)
    repeated = (torch.cat(above, -1) - torch.cat(betas, -1)[:, :-1]).abs()
    gap = torch.cat([repeated, torch.cat(across, -1)], -1).double()
    after = torch.cat([ended[..., 1:], ended], -1)
    gap = gap.view(after.shape).masked_fill(after, 0).amax(-1)
    return Tridiagonal(
        diagonal,
        off,
        norm_squared=norm.double().view(rows.shape[:-1]) ** 2,
        closed=ended.any(-1),
        basis=_rows_of(basis, rows, ended),
        asymmetry=gap / torch.maximum(diagonal.abs(), off).amax(-1),
    )


@torch.no_grad()
def golub_kahan(J: RectangularOperator, rows: Tensor, num_steps: int) -> Bidiagonal:
    r"""Golub–Kahan bidiagonalisation with full reorthogonalisation of both bases.

    .. math:: \alpha_j u_j = J v_j - \beta_{j-1} u_{j-1}, \qquad
              \beta_j v_{j+1} = J^\top u_j - \alpha_j v_j

    In exact arithmetic BᵀB is the Lanczos matrix of JᵀJ from the same probe; in floating point the
    singular values of B resolve those of J to eps σ_max, where Lanczos on JᵀJ reaches √eps σ_max.

    Cost: k products with J and k with its adjoint, and 2 k² (n + N) flops, for each probe. Nothing
    is recorded for automatic differentiation.

    Source: Golub & Kahan (1965), SIAM J. Numer. Anal. 2, doi:10.1137/0702016.
    """
    right, norm = _start(rows, num_steps)
    left = rows.new_empty(num_steps, right.shape[1], J.shape[-2])
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    for j, v in enumerate(right):
        w = product(J, v.view(rows.shape)).reshape(left.shape[1:])
        if j > 0:
            w = torch.addcmul(w, betas[-1], left[j - 1], value=-1)
            w, _ = _orthogonalised(w, left[:j])
        alphas.append(_append(w, left, j))
        u = left[j]
        w = product(J.mT, u.view(*rows.shape[:-1], -1)).reshape(v.shape)
        w = torch.addcmul(w, alphas[-1], v, value=-1)
        w, _ = _orthogonalised(w, right[: j + 1])
        betas.append(_append(w, right, j + 1))
    diagonal, off, ended = _small(alphas, betas, norm, rows, bidiagonal=True)
    return Bidiagonal(
        diagonal,
        off,
        norm_squared=norm.double().view(rows.shape[:-1]) ** 2,
        closed=ended.any(-1),
        basis=_rows_of(right, rows, ended),
    )


def _start(rows: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Room for a basis (k, P, n), all probes in one dimension, with its first vector set."""
    # One vector of all probes is contiguous: it goes to the product without a copy.
    basis = rows.new_empty(num_steps, rows.shape[:-1].numel(), rows.shape[-1])
    return basis, _append(rows.reshape(basis.shape[1:]), basis, 0)


def _append(w: Tensor, basis: Tensor, j: int) -> Tensor:
    """Normalise w (P, n) into basis[j], if there is room, and return its length (P, 1)."""
    # Squares of float32 leave its range long before the lengths do.
    length = torch.linalg.vector_norm(w, dim=-1, keepdim=True, dtype=torch.float64).to(w.dtype)
    if j < len(basis):
        torch.div(w, length.clamp_min(torch.finfo(w.dtype).tiny), out=basis[j])
    return length


def _orthogonalised(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """One Gram–Schmidt pass of w (P, n) against basis (j, P, n), and the overlaps (P, j)."""
    rows, vectors = w.unsqueeze(1), basis.transpose(0, 1)
    # A row times a matrix: torch computes matrix times column several times slower.
    overlap = torch.bmm(rows, vectors.mT)
    return torch.baddbmm(rows, overlap, vectors, alpha=-1).squeeze(1), overlap.squeeze(1)


def _small(
    alphas: list[Tensor],
    betas: list[Tensor],
    norm: Tensor,
    rows: Tensor,
    *,
    bidiagonal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Entries of T or B in float64 (..., m, k), and where the space had ended before that step.

    float64 because the small matrices cost nothing, and their rounding would. A length that is only
    rounding ends the space: what was computed from it afterwards, be it NaN, becomes filler, and so
    does all of a probe that is zero.
    """
    shape = (*rows.shape[:-1], len(alphas))
    diagonal, off = (torch.cat(x, -1).double().view(shape) for x in (alphas, betas))
    scale = torch.maximum(diagonal.abs(), off).cummax(-1).values
    rounding = rows.shape[-1] ** 0.5 * torch.finfo(rows.dtype).eps * scale
    zero = off <= rounding
    if bidiagonal:
        null = diagonal <= rounding
        diagonal = diagonal.masked_fill(null, 0)
        zero = zero | null
    last = zero.cumsum(-1) > 0
    ended = torch.cat([torch.zeros_like(last[..., :1]), last[..., :-1]], -1)
    diagonal = torch.where(ended, diagonal[..., :1].abs(), diagonal)
    diagonal = diagonal.masked_fill((norm == 0).view(*rows.shape[:-1], 1), 1)
    return diagonal, off.masked_fill(last, 0), ended


def _rows_of(basis: Tensor, rows: Tensor, ended: Tensor) -> Tensor:
    """Basis (k, P, n) as (k, ..., m, n), zero where a space had ended."""
    if bool(ended.any()):
        basis.masked_fill_(ended.reshape(-1, len(basis)).mT.unsqueeze(-1), 0)
    return basis.view(-1, *rows.shape)
