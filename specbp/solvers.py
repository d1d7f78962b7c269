r"""Conjugate gradients for A X = B, one Krylov space for all right sides of an item or for each.

Every item of a batch, and in `cg` every right side, is a space of its own: it stops when it has
converged or failed and then takes steps of length zero, so that its answer is that of a separate
call. What is reported is the residual B − A X itself, not what the recurrence believes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from specbp.estimate import FAILURES, Status
from specbp.operators import LinearOperator, as_operator, check_probes, check_square, product

STEPS_PER_DIMENSION = 10  # rounding delays an end that exact arithmetic would reach after one
AIM = 0.9  # of the tolerance: the residual itself is larger than that of the recurrence by rounding
ROUNDINGS = 4  # of eps |A|: a curvature smaller than that is rounding


class Solution(NamedTuple):
    """Approximate solutions of A x = b, with what is known of their errors.

    Attributes:
        X: One solution per row, (..., m, n), in the operator's dtype: the last iterate; NaN where
            the solve failed (`NONFINITE`, `NEGATIVE_RITZ`), as are its residuals.
        residual: |b − A x| / |b|, recomputed from x by one more product, (..., m), float64; 0 for
            b = 0.
        claimed: The same as the recurrence believed it, (..., m), float64. Where it is below the
            tolerance and `residual` is not, rounding has parted the two: more steps will not help,
            float64 or a larger tolerance will.
        converged: True where `residual` ≤ rtol, (..., m).
        num_steps: Steps that the space of each right side took, (..., m), int64.
        status: `Status` flags, (..., m), int64. `UNCONVERGED` where not converged, together with
            the reason where one is known: `NONFINITE`, `NEGATIVE_RITZ` (A is not positive definite)
            or `SINGULAR` (A has no curvature to working precision along some direction that was
            met: if b has a component there, x grows without bound).
        diagonal: α₁ … α_k of the Lanczos matrix of each right side, (..., m, k), float64; None for
            `block_cg`.
        off_diagonal: β₁ … β_k beside it, in the convention of `specbp.krylov.Tridiagonal`.
    """

    X: Tensor
    residual: Tensor
    claimed: Tensor
    converged: Tensor
    num_steps: Tensor
    status: Tensor
    diagonal: Tensor | None = None
    off_diagonal: Tensor | None = None


def block_cg(A: Any, B: Tensor, *, rtol: float, max_steps: int | None = None) -> Solution:
    r"""Solve A x = b for all right sides of an item in one block Krylov space.

    .. math:: x_i \in \operatorname{span}\{B, A B, \dots, A^{k-1} B\}, \qquad
              |x_i - A^{-1} b_i|_A = \min

    Residuals R = C Q and directions P are both kept orthonormal, by Householder QR:

    .. math:: M = P A P^\top, \quad X \leftarrow X + C Q P^\top M^{-1} P, \quad
              \rho Q' = Q - Q P^\top M^{-1} P A, \quad C \leftarrow C \rho, \quad
              P' \propto Q' - Q' A P^\top M^{-1} P

    R = C Q and the descent hold whatever directions QR fills in where rows of R depend on each
    other, so right sides may be zero, repeated or dependent, and converge one before the other:
    no rank is decided.

    Cost: k blocks of min(m, n) products and m more for the true residual, and about 20 m² n flops
    a step. In exact arithmetic |x − A⁻¹b|_A is after no step larger than that of `cg`, and zero
    after ⌈n / m⌉ steps; a block of m deals with m outlying eigenvalues at once. Nothing is recorded
    for automatic differentiation.

    Args:
        A: Symmetric positive definite operator (..., n, n), float32 or float64.
        B: Right sides as rows, (..., m, n), in the operator's dtype; leading dimensions broadcast.
        rtol: Each space stops when |b − A x| ≤ rtol |b| for all of its right sides; the recurrence
            aims at 0.9 rtol, so that a little rounding does not turn into a miss.
        max_steps: Most block steps; 10 ⌈n / m⌉ + 10 if None.

    Raises:
        TypeError: If A is no operator, B no tensor, or their dtypes differ.
        ValueError: If shapes or devices do not fit, or rtol or max_steps is out of range.

    Source: O'Leary (1980), doi:10.1016/0024-3795(80)90247-5; Dubrulle (2001), Electron. Trans.
    Numer. Anal. 12 (orthonormal residuals); Ji & Li (2017), doi:10.1007/s10543-016-0631-z
    (orthonormal directions).

    Example:
        >>> import torch
        >>> A, B = torch.diag(torch.tensor([1.0, 2.0, 4.0])), torch.tensor([[1.0, 1.0, 1.0]])
        >>> found = block_cg(A, B, rtol=1e-5)
        >>> [round(float(x), 3) for x in found.X[0]], int(found.num_steps)
        ([1.0, 0.5, 0.25], 3)
    """
    A, rows, limit = _checked(A, B, rtol, max_steps, shared=True)
    return _report(A, rows, _iterate(A, rows.unsqueeze(-3), rtol, limit), rtol)


def cg(A: Any, B: Tensor, *, rtol: float, max_steps: int | None = None) -> Solution:
    r"""Solve A x = b for each right side in its own Krylov space, and return its Lanczos matrix T.

    .. math:: T_{jj} = \frac1{\alpha_j} + \frac{\beta_{j-1}}{\alpha_{j-1}}, \qquad
              T_{j,j+1} = \frac{\sqrt{\beta_j}}{\alpha_j}, \qquad
              b^\top f(A)\, b \approx |b|^2\, e_1^\top f(T)\, e_1

    with the α and β of conjugate gradients, so that one set of products serves bᵀA⁻¹ and
    bᵀ log(A) b. Rows of T beyond the steps of a space are decoupled filler, without weight at e₁:
    a Gauss rule is right, a Gauss–Radau rule, which needs the last β, is not. T is what
    Lanczos without reorthogonalisation gives: copies of converged Ritz values may appear in it.

    Arguments, cost and errors are those of `block_cg`, with one product per right side and step,
    and at most 10 n + 10 steps if `max_steps` is None.

    Source: Hestenes & Stiefel (1952), doi:10.6028/jres.049.044; Golub & Meurant (2010), chapter 4;
    Gardner et al. (2018), arXiv:1809.11165 (one set of products for solves and log det).

    Example:
        >>> import torch
        >>> A, b = torch.diag(torch.tensor([1.0, 4.0]).double()), torch.ones(1, 2).double()
        >>> found = cg(A, b, rtol=1e-10)
        >>> [round(float(x), 6) for x in found.X[0]]
        [1.0, 0.25]
        >>> T = torch.diag_embed(found.diagonal) + torch.diag_embed(found.off_diagonal[..., :-1], 1)
        >>> theta, S = torch.linalg.eigh(T, UPLO="U")
        >>> round(float(2 * (S[0, 0] ** 2 * theta[0].log()).sum().exp()), 6)  # 2 exp ½ log 4
        4.0
    """
    A, rows, limit = _checked(A, B, rtol, max_steps, shared=False)
    spaces = _iterate(A, rows.unsqueeze(-2), rtol, limit)
    diagonal, off_diagonal = spaces.tridiagonal()
    return _report(A, rows, spaces, rtol)._replace(diagonal=diagonal, off_diagonal=off_diagonal)


class _Spaces:
    """Krylov spaces in step: `rows` (..., g, r, n), one space for each item and each of g groups.

    Attributes:
        X: Solutions for right sides of length one, (..., g, r, n).
        Q, C: Orthonormal rows (..., g, s, n) and factor (..., g, r, s) of the residuals C Q.
        P, G: Orthonormal directions and their lengths G before that.
        active: False where a space has stopped, (..., g).
        flat: True where a direction without curvature was met, (..., g).
        status: Failures, (..., g).
    """

    def __init__(self, rows: Tensor):
        self.length = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
        spoiled = ~torch.isfinite(self.length)
        unit = (rows / _nonzero(self.length).unsqueeze(-1)).to(rows.dtype)
        self.C, self.Q = _orthonormal(unit.masked_fill(spoiled.unsqueeze(-1), 0))
        self.G, self.P = _orthonormal(self.Q)
        self.X = torch.zeros_like(rows)
        self.active = torch.ones(rows.shape[:-2], dtype=torch.bool, device=rows.device)
        self.flat = torch.zeros_like(self.active)
        self.status = torch.zeros_like(self.active, dtype=torch.int64)
        self.num_steps = torch.zeros_like(self.status)
        self.scale = self.C.new_zeros(self.active.shape)
        self.taken: list[tuple[Tensor, ...]] = []

    @property
    def claimed(self) -> Tensor:
        """Relative residuals of the recurrence, (..., g, r)."""
        return torch.linalg.vector_norm(self.C, dim=-1)

    def each(self, x: Tensor) -> Tensor:
        """What is known of each space (..., g), or right side (..., g, r), for all (..., m)."""
        x = x if x.ndim == self.length.ndim else x.unsqueeze(-1)
        return x.expand_as(self.length).flatten(-2)

    def step(self, images: Tensor) -> None:
        """One step along P, `images` those of P under A; of length zero where not active."""
        M, inverse = self._curvature(images)
        # What has failed stays finite, so that no operator is ever given NaN.
        images = torch.where(self.active[..., None, None], images, 0)
        along = inverse @ _inner(self.P, self.Q)
        self.X += (self.C @ along.mT).to(self.X.dtype) @ self.P
        rho, self.Q = _orthonormal(self.Q - along.mT.to(images.dtype) @ images)
        self.C = self.C @ rho
        self.num_steps += self.active
        if rho.shape[-1] == 1:
            D = self.G**2 * M
            self.taken.append((self.active, D[..., 0, 0], rho[..., 0, 0]))
        back = inverse @ _inner(images, self.Q)
        self.G, self.P = _orthonormal(self.Q - back.mT.to(images.dtype) @ self.P)

    def _curvature(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """M = P A Pᵀ and its inverse on directions with curvature; spaces without are stopped."""
        M = _inner(self.P, images)
        M = (M + M.mT) / 2
        sound = torch.isfinite(M).all(-1).all(-1)
        # LAPACK raises on NaN: such spaces go on with zeros, and their status.
        ritz, vectors = _eigh(torch.where((self.active & sound)[..., None, None], M, 0))
        self.scale = torch.maximum(self.scale, ritz.abs().amax(-1))
        rounding = ROUNDINGS * torch.finfo(images.dtype).eps * self.scale.unsqueeze(-1)
        curved = ritz > rounding
        negative = (ritz < -rounding).any(-1)
        self._fail(~sound, Status.NONFINITE)
        self._fail(negative, Status.NEGATIVE_RITZ)
        self.flat |= self.active & ~curved.all(-1)
        self.active = self.active & curved.any(-1)
        weights = torch.where(curved, 1 / ritz, 0)
        return M, (vectors * weights.unsqueeze(-2)) @ vectors.mT

    def _fail(self, where: Tensor, flag: Status) -> None:
        self.status |= (self.active & where) * int(flag)
        self.active = self.active & ~where

    def tridiagonal(self) -> tuple[Tensor, Tensor]:
        """Lanczos coefficients of spaces of one right side each, both (..., g, k)."""
        if not self.taken:
            none = self.claimed[..., :0]
            return none, none
        active, D, rho = (torch.stack(x, -1) for x in zip(*self.taken, strict=True))
        # Residuals of length one and directions of curvature D give T = L D Lᵀ, L unit bidiagonal.
        D, rho = D.masked_fill(~active, 0), rho.masked_fill(~active, 0)
        diagonal = D + pad((rho**2 * D)[..., :-1], (1, 0))
        filler = _nonzero(diagonal[..., :1])
        last = active & ~pad(active[..., 1:], (0, 1), value=True)
        return torch.where(active, diagonal, filler), (rho * D).masked_fill(last, 0)


def _checked(
    A: Any, B: Tensor, rtol: float, max_steps: int | None, *, shared: bool
) -> tuple[LinearOperator, Tensor, int]:
    """The operator, right sides as rows (..., m, n), and the most steps."""
    A = as_operator(A)
    n = check_square(A)
    if not isinstance(B, Tensor) or B.ndim < 2 or B.shape[-1] != n:
        given = tuple(B.shape) if isinstance(B, Tensor) else type(B).__name__
        raise ValueError(f"Right sides are rows, a tensor (..., m, n) with n = {n}, got {given}.")
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must lie between 0 and 1, got {rtol}.")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}; None leaves it open.")
    rows = check_probes(A, B.mT)
    size = min(B.shape[-2], n) if shared else 1
    return A, rows, max_steps or STEPS_PER_DIMENSION * (-(-n // size) + 1)


@torch.no_grad()
def _iterate(A: LinearOperator, rows: Tensor, rtol: float, max_steps: int) -> _Spaces:
    """Steps until every space has converged or failed."""
    spaces = _Spaces(rows)
    for _ in range(max_steps):
        spaces.active = spaces.active & (spaces.claimed > AIM * rtol).any(-1)
        live = spaces.active.reshape(-1, spaces.active.shape[-1]).any(0)
        if not bool(live.any()):
            break
        images = torch.zeros_like(spaces.P)
        directions = spaces.P[..., live, :, :]
        images[..., live, :, :] = product(A, directions.flatten(-3, -2)).view(directions.shape)
        spaces.step(images)
    return spaces


@torch.no_grad()
def _report(A: LinearOperator, rows: Tensor, spaces: _Spaces, rtol: float) -> Solution:
    """What was reached, by the residual itself."""
    X = (spaces.X * spaces.length.unsqueeze(-1).to(rows.dtype)).view(rows.shape)
    left = torch.linalg.vector_norm(rows - product(A, X), dim=-1, dtype=torch.float64)
    residual = left / _nonzero(spaces.each(spaces.length))
    status = spaces.each(spaces.status) | ~torch.isfinite(residual) * int(Status.NONFINITE)
    failed = (status & int(FAILURES)) != 0
    converged = (residual <= rtol) & ~failed
    flat = spaces.each(spaces.flat) & ~converged & ~failed
    return Solution(
        X=X.masked_fill(failed.unsqueeze(-1), torch.nan),
        residual=residual.masked_fill(failed, torch.nan),
        claimed=spaces.each(spaces.claimed).masked_fill(failed, torch.nan),
        converged=converged,
        num_steps=spaces.each(spaces.num_steps),
        status=status | ~converged * int(Status.UNCONVERGED) | flat * int(Status.SINGULAR),
    )


def _orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Factor L (..., r, s), float64, and orthonormal q (..., s, n), s = min(r, n): rows = L q."""
    if rows.shape[-2] == 1:
        L = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float64)
        return L, rows / _nonzero(L).to(rows.dtype)
    Q, R = torch.linalg.qr(rows.mT)
    return R.mT.double(), Q.mT.contiguous()


def _eigh(M: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of small matrices; those of order one are known."""
    if M.shape[-1] == 1:
        return M[..., 0], torch.ones_like(M)
    return torch.linalg.eigh(M)


def _inner(X: Tensor, Y: Tensor) -> Tensor:
    return (X @ Y.mT).double()


def _nonzero(length: Tensor) -> Tensor:
    return torch.where(length > 0, length, 1)
