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
        asymmetry: max |u_iᵀ J v_j| beyond the bidiagonal, seen from either side, relative to |B|,
            (..., m): rounding if `J.mT` is the adjoint of J and both stay the same.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    norm_squared: Tensor
    closed: Tensor
    basis: Tensor
    asymmetry: Tensor


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
    betas, nears, overlaps = [], [], []
    for j, q in enumerate(basis.vectors):
        w = product(A, q.view(rows.shape)).reshape(q.shape)
        w, near = basis.project_out(w, max(j - 1, 0), j + 1)
        w, overlap = basis.project_out(w, 0, j + 1)
        nears.append(near)
        overlaps.append(overlap)
        betas.append(basis.append(w, j + 1))
    # α₁, q₁ᵀAq₂, α₂, q₂ᵀAq₃, α₃ … in the last dimension.
    near = torch.cat(nears, -1)
    off = torch.cat(betas, -1)
    repeated = (near[..., 1::2] - off[..., :-1]).abs()
    diagonal, off, ended = _small(near[..., ::2], off, norm, rows)
    gap = torch.maximum(
        _largest(repeated, ended[..., 1:]), _largest(torch.cat(overlaps, -1), _for_each(ended))
    )
    return Tridiagonal(
        diagonal,
        off,
        norm_squared=norm.double().view(rows.shape[:-1]) ** 2,
        closed=ended.any(-1),
        basis=basis.rows(rows.shape, ended),
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
    left = Basis(rows, num_steps, J.shape[-2])
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    from_left: list[Tensor] = []
    from_right: list[Tensor] = []
    for j, v in enumerate(right.vectors):
        w = product(J, v.view(rows.shape)).reshape(left.vectors.shape[1:])
        # The overlap of step 0 on the left is none: a zero keeps one layout for both sides.
        overlap = w.new_zeros(len(w), 1, 1)
        if j > 0:
            w = torch.addcmul(w, betas[-1], left.vectors[j - 1], value=-1)
            w, overlap = left.project_out(w, 0, j)
        from_left.append(overlap.abs().amax(-1, keepdim=True))
        alphas.append(left.append(w, j))
        w = product(J.mT, left.vectors[j].view(*rows.shape[:-1], -1)).reshape(v.shape)
        w = torch.addcmul(w, alphas[-1], v, value=-1)
        w, overlap = right.project_out(w, 0, j + 1)
        from_right.append(overlap.abs().amax(-1, keepdim=True))
        betas.append(right.append(w, j + 1))
    diagonal, off = torch.cat(alphas, -1), torch.cat(betas, -1)
    diagonal, off, ended = _small(diagonal, off, norm, rows, bidiagonal=True)
    # Where J v is nothing but rounding, so is the direction u that Jᵀ was applied to.
    gap = torch.maximum(
        _largest(torch.cat(from_left, -1), ended),
        _largest(torch.cat(from_right, -1), ended | (diagonal == 0)),
    )
    return Bidiagonal(
        diagonal,
        off,
        norm_squared=norm.double().view(rows.shape[:-1]) ** 2,
        closed=ended.any(-1),
        basis=right.rows(rows.shape, ended),
        asymmetry=gap / torch.maximum(diagonal.abs(), off).amax(-1),
    )


class Basis:
    """Orthonormal vectors of P Krylov spaces, (k, P, 1, n), filled one step at a time.

    All probes of all items of the batch are one dimension. One vector of all probes is contiguous:
    it goes to the product without a copy. Small products cost less than the calls that prepare
    them, so the views that every step slices are made once.
    """

    def __init__(self, like: Tensor, num_steps: int, n: int):
        self.vectors = like.new_empty(num_steps, like.shape[:-1].numel(), 1, n)
        self._rows = self.vectors.squeeze(2).transpose(0, 1)
        self._columns = self._rows.mT
        self._tiny = torch.finfo(like.dtype).tiny

    def project_out(self, w: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        """One Gram–Schmidt pass of w (P, 1, n) against some vectors, and the overlaps (P, 1, ·)."""
        # A row times a matrix: torch computes matrix times column several times slower.
        overlap = torch.bmm(w, self._columns.narrow(2, start, end - start))
        vectors = self._rows.narrow(1, start, end - start)
        return torch.baddbmm(w, overlap, vectors, alpha=-1), overlap

    def append(self, w: Tensor, j: int) -> Tensor:
        """Normalise w (P, 1, n) into vector j, if there is room, and return its length."""
        # Squares of float32 leave its range long before the lengths do.
        length = torch.linalg.vector_norm(w, dim=-1, keepdim=True, dtype=torch.float64)
        length = length.to(w.dtype)
        if j < len(self.vectors):
            torch.div(w, length.clamp_min(self._tiny), out=self.vectors[j])
        return length

    def rows(self, shape: torch.Size, ended: Tensor) -> Tensor:
        """The vectors as (k, ..., m, n), zero where a space (..., m, k) had ended."""
        if bool(ended.any()):
            gone = ended.reshape(-1, len(self.vectors)).mT
            self.vectors.masked_fill_(gone[..., None, None], 0)
        return self.vectors.view(-1, *shape)


def _start(rows: Tensor, num_steps: int) -> tuple[Basis, Tensor]:
    """A basis with its first vector set, and the lengths of the probes."""
    basis = Basis(rows, num_steps, rows.shape[-1])
    return basis, basis.append(rows.reshape(basis.vectors.shape[1:]), 0)


def _small(
    diagonal: Tensor, off: Tensor, norm: Tensor, rows: Tensor, *, bidiagonal: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Entries of T or B in float64 (..., m, k), and where the space had ended before that step.

    float64 because the small matrices cost nothing, and their rounding would. A length that is only
    rounding ends the space: what was computed from it afterwards, be it NaN, becomes filler, and so
    does all of a probe that is zero.
    """
    shape = (*rows.shape[:-1], diagonal.shape[-1])
    diagonal, off = diagonal.double().reshape(shape), off.double().reshape(shape)
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


def _for_each(ended: Tensor) -> Tensor:
    """From steps (..., m, k) to their overlaps: step j has j + 1 of them."""
    k = ended.shape[-1]
    steps = torch.arange(k, device=ended.device)
    return ended[..., steps.repeat_interleave(steps + 1, output_size=k * (k + 1) // 2)]


def _largest(values: Tensor, ended: Tensor) -> Tensor:
    """Largest magnitude of values (P, 1, c) whose step (..., m, c) had not ended, (..., m)."""
    if ended.shape[-1] == 0:
        return ended.new_zeros(ended.shape[:-1], dtype=torch.float64)
    return values.double().abs().reshape(ended.shape).masked_fill(ended, 0).amax(-1)
