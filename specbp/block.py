r"""Block Lanczos and block Golub–Kahan: one Krylov space shared by all probes of an estimate.

The small matrix is assembled from *all* overlaps of the products with the basis, not from the
recurrence: it is the projection WᵀAW to rounding, whatever happened to the block structure. Every
bound that holds for projections then holds for it (operator Jensen inequality, Hansen & Pedersen
2003, doi:10.1112/S0024609303002200): for any orthonormal W and operator concave f, such as log,

.. math:: W^\top f(A) W \preceq f(W^\top A W).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from specbp.operators import LinearOperator, RectangularOperator, product

ROUNDINGS = 8  # of √n eps |A|: a direction shorter than that is rounding


class BlockKrylov(NamedTuple):
    """The space of k blocks of s probes, d = k s directions, W orthonormal.

    A direction that depends on earlier ones is lost: its row of the basis is zero and its row of
    the matrix that of the identity, whose logarithm is zero. Batches of unequal rank work so.

    Attributes:
        basis: W as rows, (..., d, n), in the operator's dtype.
        matrix: T = WᵀAW, or B = UᵀJW, (..., d, d), float64.
        start: Coordinates of the probes in the first block, (..., s, s), float64: row i is probe i.
        coupling: The block of WᵀAW̃ by which the last block meets the one that would follow, (...,
            s, s); None if it was not computed.
        squared: True after Golub–Kahan: T = BᵀB, its eigenvalues the squared singular values of B.
        kept: False for lost directions, (..., d).
        asymmetry: Largest deviation of the overlaps from symmetry (from the adjoint, for J)
            relative to |T|, (...): rounding, if the operator is what it promises.
    """

    basis: Tensor
    matrix: Tensor
    start: Tensor
    coupling: Tensor | None
    kept: Tensor
    asymmetry: Tensor
    squared: bool

    @property
    def rank(self) -> Tensor:
        """Dimension of the space, (...)."""
        return self.kept.sum(-1)


def num_blocks(n: int, s: int, num_steps: int) -> int:
    """Steps that a space of n dimensions has room for, with blocks of s."""
    return min(num_steps, -(-n // s))


@torch.no_grad()
def block_lanczos(
    A: LinearOperator, rows: Tensor, num_steps: int, *, rounding: float | None = None
) -> BlockKrylov:
    r"""Block Lanczos with full reorthogonalisation from the probes `rows` (..., s, n).

    .. math:: \operatorname{span} W = \operatorname{span}\{X, A X, \dots, A^{k-1} X\},
              \qquad T = W^\top A W

    Cost: k blocks of s products, no more blocks than fill the space, and 4 d² n flops. Each
    block takes two Gram–Schmidt passes, the second on unit vectors; where it is short beside the
    products, a singular value decomposition of the s × s factor reveals its rank: what is shorter
    than `rounding` |A|, 8 √n eps if None, is lost.

    Source: Golub & Underwood (1977); Golub & Meurant (2010), chapter 4.
    """
    s, n = rows.shape[-2:]
    k = num_blocks(n, s, num_steps)
    space = Space(rows, k, n, rounding)
    start = space.extend(rows, 0)
    T = rows.new_zeros((*rows.shape[:-2], (k + 1) * s, (k + 1) * s), dtype=torch.float64)
    for j in range(k):
        images = product(A, space.block(j))
        inside, coupling = space.split(images, j + 1)
        row = slice(j * s, (j + 1) * s)
        T[..., row, : (j + 1) * s] = inside
        T[..., row, (j + 1) * s : (j + 2) * s] = coupling
    inside = T[..., : k * s, : k * s]
    largest = inside.abs().amax((-2, -1)).clamp_min(torch.finfo(T.dtype).tiny)
    gap = (inside - inside.mT).abs().amax((-2, -1)) / largest
    return BlockKrylov(
        space.vectors,
        space.filled((inside + inside.mT) / 2),
        start,
        T[..., (k - 1) * s : k * s, k * s :],
        space.kept,
        gap,
        squared=False,
    )


@torch.no_grad()
def block_golub_kahan(
    J: RectangularOperator, rows: Tensor, num_steps: int, *, follow: bool = False
) -> BlockKrylov:
    r"""Block Golub–Kahan bidiagonalisation with full reorthogonalisation of both bases.

    .. math:: J W = U B, \qquad \operatorname{span} W
              = \operatorname{span}\{X, J^\top J X, \dots, (J^\top J)^{k-1} X\}

    WᵀJᵀJW = BᵀB, never formed: singular values are resolved to eps σ_max.

    Cost: k blocks of s products with J and, but for the last, with Jᵀ: k − ½ blocks of products
    with JᵀJ. The last one too if `follow` asks for the coupling to the next block.

    Source: Golub, Luk & Overton (1981), doi:10.1145/355945.355946.
    """
    s, n = rows.shape[-2:]
    k = num_blocks(n, s, num_steps)
    right, left = Space(rows, k, n), Space(rows, k, J.shape[-2])
    start = right.extend(rows, 0)
    B = rows.new_zeros((*rows.shape[:-2], k * s, k * s), dtype=torch.float64)
    gap, coupling = B.new_zeros(B.shape[:-2]), None
    for j in range(k):
        column, before = slice(j * s, (j + 1) * s), slice(0, j * s)
        inside, corner = left.split(product(J, right.block(j)), j)
        B[..., before, column] = inside.mT
        B[..., column, column] = corner.mT
        if follow or j + 1 < k:
            inside, onward = right.split(product(J.mT, left.block(j)), j + 1)
            coupling = corner @ onward if j + 1 == k else None
            gap = torch.maximum(gap, (inside - B[..., column, : (j + 1) * s]).abs().amax((-2, -1)))
    # A product with Jᵀ that is NaN shows in the overlaps alone.
    B = B.masked_fill(~torch.isfinite(gap)[..., None, None], torch.nan)
    gap = gap / B.abs().amax((-2, -1)).clamp_min(torch.finfo(B.dtype).tiny)
    return BlockKrylov(
        right.vectors, right.filled(B), start, coupling, right.kept, gap, squared=True
    )


class Block(NamedTuple):
    """Orthonormal rows that make up what is left of some images outside a basis.

    Attributes:
        vectors: (..., s, n), zero where a direction is lost.
        factor: Coordinates of the images in them, (..., s, s), float64.
        leaked: Coordinates in the basis that a first pass had left, (..., s, j s), float64.
        kept: False where a direction is lost, (..., s).
    """

    vectors: Tensor
    factor: Tensor
    leaked: Tensor
    kept: Tensor


class Space:
    """An orthonormal basis (..., k s, n) that grows by blocks of s vectors."""

    def __init__(self, like: Tensor, num_steps: int, n: int, rounding: float | None = None):
        self.rounding = rounding or ROUNDINGS * n**0.5 * torch.finfo(like.dtype).eps
        self.s = like.shape[-2]
        self.num_steps = num_steps
        self.vectors = like.new_zeros((*like.shape[:-2], num_steps * self.s, n))
        self.kept = torch.zeros(self.vectors.shape[:-1], dtype=torch.bool, device=like.device)
        self.scale = like.new_zeros(like.shape[:-2], dtype=torch.float64)

    def block(self, j: int) -> Tensor:
        """Vectors of block j, (..., s, n)."""
        return self.vectors[..., j * self.s : (j + 1) * self.s, :]

    def split(self, images: Tensor, j: int) -> tuple[Tensor, Tensor]:
        """Coordinates of images (..., s, n) in the first j blocks, and in the next, which is set.

        Both in float64: (..., s, j s) and (..., s, s).
        """
        # Twice, the second time on unit vectors: what cancellation left of the basis is removed.
        basis = self.vectors[..., : j * self.s, :]
        first = images @ basis.mT
        rest, inside = images - first @ basis, first.double()
        size = _length(inside, rest) / self.s**0.5
        self.scale = torch.maximum(self.scale, size)
        # In units of the images: squares of float32 leave its range long before the lengths do.
        unit = torch.where(size > 0, size, 1)[..., None, None]
        rest = rest / unit.to(rest.dtype)
        found = self._block_of(rest, basis, self.rounding * self.scale / unit[..., 0, 0])
        self._append(found, j)
        return inside + found.leaked * unit, found.factor * unit

    def _block_of(self, rest: Tensor, basis: Tensor, rounding: Tensor) -> Block:
        L, info = torch.linalg.cholesky_ex((rest @ rest.mT).double())
        # So well conditioned, Cholesky twice is as orthogonal as QR (Yamamoto et al. 2015).
        clear = (info == 0) & (_shortest(L) > torch.finfo(rest.dtype).eps ** 0.25)
        if bool(clear.all()):
            return _by_cholesky(rest, L, basis)
        revealed = _by_rank(rest, basis, rounding)
        if not bool(clear.any()):
            return revealed
        # Each item takes the way that it would take alone.
        quick = _by_cholesky(rest, L, basis)
        chosen = [clear[(...,) + (None,) * (x.ndim - clear.ndim)] for x in quick]
        return Block(*map(torch.where, chosen, quick, revealed))

    def _append(self, found: Block, j: int) -> None:
        if j < self.num_steps:
            block = slice(j * self.s, (j + 1) * self.s)
            self.vectors[..., block, :] = found.vectors
            self.kept[..., block] = found.kept

    def extend(self, rows: Tensor, j: int) -> Tensor:
        """Make the span of rows (..., s, n) block j; their coordinates in it, (..., s, s)."""
        factor = self.split(rows, j)[1]
        self.scale = 0 * self.scale  # probes are not measured by what products are; NaN stays
        return factor

    def filled(self, matrix: Tensor) -> Tensor:
        """The matrix with rows and columns of lost directions replaced by those of the identity."""
        both = self.kept.unsqueeze(-1) & self.kept.unsqueeze(-2)
        spoiled = ~torch.isfinite(matrix).all(-1).all(-1)
        found = torch.where(both, matrix, torch.diag_embed((~self.kept).to(matrix)))
        return found.masked_fill(spoiled[..., None, None], torch.nan)


def _by_cholesky(rest: Tensor, L: Tensor, basis: Tensor) -> Block:
    """The block of well conditioned rows, L that of their Gram matrix."""
    q = torch.linalg.solve_triangular(L.to(rest.dtype), rest, upper=False)
    second = q @ basis.mT
    q = q - second @ basis
    S = torch.linalg.cholesky_ex((q @ q.mT).double()).L
    q = torch.linalg.solve_triangular(S.to(q.dtype), q, upper=False)
    kept = torch.ones(q.shape[:-1], dtype=torch.bool, device=q.device)
    return Block(q, L @ S, L @ second.double(), kept)


def _by_rank(rest: Tensor, basis: Tensor, rounding: Tensor) -> Block:
    """The block of any rows: directions no longer than rounding (...) are lost."""
    q, R = _by_qr(rest)
    second = q @ basis.mT
    q, S = _by_qr(q - second @ basis)
    factor = R @ S
    sound = torch.isfinite(factor).all((-2, -1), keepdim=True)
    # LAPACK raises on NaN: such items go on with zeros here, and NaN in their matrix.
    U, sigma, Vh = torch.linalg.svd(torch.where(sound, factor, 0))
    kept = sigma > rounding.unsqueeze(-1)
    directions = (Vh * kept.unsqueeze(-1)).to(q.dtype) @ q
    coupling = U * (sigma * kept).unsqueeze(-2)
    return Block(
        torch.where(sound, directions, 0),
        torch.where(sound, coupling, torch.nan),
        R @ second.double(),
        kept,
    )


def _by_qr(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows q and a factor R, float64, with rows = R q; NaN stays in the factor."""
    sound = torch.isfinite(rows).all(-1).all(-1)[..., None, None]
    Q, R = torch.linalg.qr(torch.where(sound, rows, 0).mT)
    missing = rows.shape[-2] - Q.shape[-1]  # more rows than dimensions: the others are zero
    q, R = pad(Q.mT, (0, 0, 0, missing)), pad(R.mT.double(), (0, missing))
    return q, torch.where(sound, R, torch.nan)


def _shortest(L: Tensor) -> Tensor:
    """Lower bound of the smallest singular value of triangular (..., s, s)."""
    return 1 / torch.linalg.matrix_norm(torch.linalg.inv_ex(L).inverse)


def _length(inside: Tensor, rest: Tensor) -> Tensor:
    """Frobenius norm of two matrices side by side, (...), float64; no square overflows."""
    parts = [x for x in (inside, rest) if x.shape[-1]]
    largest = torch.stack([x.abs().amax((-2, -1)).double() for x in parts]).amax(0)
    unit = torch.where(largest > 0, largest, 1)
    lengths = [torch.linalg.matrix_norm(x / unit[..., None, None].to(x.dtype)) for x in parts]
    return torch.stack([x.double() for x in lengths]).square().sum(0).sqrt() * unit
