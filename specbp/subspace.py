r"""Projections on a shared block Krylov space joined with the Krylov space of each probe.

With W an orthonormal basis of the shared space and V one of the Krylov space of the compression of
A to its complement, started at the probe,

.. math:: M = [W\; V]^\top A\, [W\; V] = \begin{pmatrix} T & C \\ C^\top & \tilde T \end{pmatrix},
          \qquad C = W^\top A V,

where C falls out of the products that give T̃. For a factor J it is J [W V] = [U Ũ] M instead, M
block triangular, and singular values take the place of eigenvalues.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specbp.block import ROUNDINGS, BlockKrylov
from specbp.operators import LinearOperator, RectangularOperator, product


class Recorder:
    """A factor J that keeps the images of its own products, (..., m, N) each."""

    def __init__(self, operator: LinearOperator):
        self.operator = operator
        self.images: list[Tensor] = []

    shape = property(lambda self: self.operator.shape)
    dtype = property(lambda self: self.operator.dtype)
    device = property(lambda self: self.operator.device)
    mT = property(lambda self: self.operator.mT)

    def __matmul__(self, X: Tensor) -> Tensor:
        images = self.operator @ X
        self.images.append(images.mT)
        return images


class Shared(NamedTuple):
    """The shared space of an estimate.

    Attributes:
        right: W as rows, (..., d, n), zero where a direction is lost.
        left: W again, or U with J W = U B, (..., d, N).
        matrix: T or B, (..., d, d), float64, lost directions decoupled and neutral.
        filler: What stands for them: an eigenvalue or singular value amid the others, (...).
        inside: True for the directions that span Q, whose trace is taken exactly, (..., d).
        squared: True for B.
        block: Vectors in a block.
        scale: Size of A, or J, (...).
    """

    right: Tensor
    left: Tensor
    matrix: Tensor
    filler: Tensor
    inside: Tensor
    squared: bool
    block: int
    scale: Tensor


def shared_space(space: BlockKrylov, num_directions: int, images: list[Tensor] | None) -> Shared:
    """A block Krylov space whose first directions span Q; all do if it is invariant.

    Args:
        space: From `block_lanczos`, or `block_golub_kahan` of a `Recorder`.
        num_directions: How many span Q.
        images: Those of the recorder.
    """
    d = space.kept.shape[-1]
    first = torch.arange(d, device=space.kept.device) < num_directions
    inside = (first | _is_invariant(space).unsqueeze(-1)) & space.kept
    left, matrix = space.basis, space.matrix
    if images is not None:
        left, matrix = _left(torch.cat(images, -2), space)
    lost = torch.diag_embed((~space.kept).double())
    matrix = matrix.masked_fill(lost != 0, 0)
    total = matrix.square().sum((-2, -1)) if images is not None else _trace(matrix)
    # Amid the spectrum: lost directions are neither its smallest nor its largest.
    filler = torch.where(space.rank == 0, 1, total / space.rank.clamp(min=1))
    filler = filler.sqrt() if images is not None else filler
    matrix = matrix + lost * filler[..., None, None]
    block, scale = space.start.shape[-1], matrix.abs().amax((-2, -1))
    return Shared(space.basis, left, matrix, filler, inside, images is not None, block, scale)


def complement(rows: Tensor, basis: Tensor) -> Tensor:
    """(I − WWᵀ) of every row (..., s, n); what is only rounding is zero."""
    y = rows
    for _ in range(2):
        y = y - (y @ basis.mT) @ basis
    size = torch.linalg.vector_norm(y, dim=-1, keepdim=True, dtype=torch.float64)
    whole = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float64)
    limit = ROUNDINGS * rows.shape[-1] ** 0.5 * torch.finfo(rows.dtype).eps * whole
    return y.masked_fill(size <= limit, 0)


class Joined(NamedTuple):
    """The spaces [W V] of all probes.

    Attributes:
        matrix: M, (..., s, d + k, d + k), float64.
        length: Part of each probe outside W, (..., s), in the direction of the first vector of V.
        beta: What the last vector but one leaves, in the direction of the last, (..., s).
        rank: Dimension of V, less than k where its space closed, (..., s).
        asymmetry: Overlaps that vanish if A is symmetric, relative to |M|, (..., s).
    """

    matrix: Tensor
    length: Tensor
    beta: Tensor
    rank: Tensor
    asymmetry: Tensor


@torch.no_grad()
def join_lanczos(A: LinearOperator, space: Shared, rows: Tensor, num_steps: int) -> Joined:
    """k Lanczos steps in the complement of W from each row (..., s, n) of it: k products each."""
    k, d = num_steps, space.matrix.shape[-1]
    V = Local(space.right, rows, k, space.scale)
    length = V.append(rows, 0)
    columns, lengths = [], []
    for j in range(k):
        w, column = V.split(product(A, V.vectors[..., j, :]), j + 1)
        columns.append(torch.nn.functional.pad(column, (0, k - 1 - j)))
        lengths.append(V.append(w, j + 1))
    added, beta = torch.stack(columns, -1), torch.stack(lengths, -1)
    M = _assembled(space, added, V.ended)
    # Nothing couples beyond the last block of W and beyond the tridiagonal.
    T, b = added[..., d:, :], space.block
    far = torch.cat([added[..., : d - b, :], T.triu(2)], -2).abs().amax((-2, -1))
    near = (T.diagonal(1, -2, -1) - beta[..., :-1]).abs()
    gap = torch.cat([far.unsqueeze(-1), near], -1).amax(-1) / M.abs().amax((-2, -1))
    M = M.triu() + M.triu(1).mT
    return Joined(M, length, beta[..., max(k - 2, 0)], V.rank, gap)


@torch.no_grad()
def join_golub_kahan(J: RectangularOperator, space: Shared, rows: Tensor, num_steps: int) -> Joined:
    """k Golub–Kahan steps in the complements of W and U: k products with J, k − 1 with Jᵀ each."""
    k = num_steps
    V = Local(space.right, rows, k, space.scale)
    length = V.append(rows, 0)
    left = rows.new_zeros((*rows.shape[:-1], J.shape[-2]))
    U = Local(space.left, left, k, space.scale)
    columns, lengths = [], [torch.zeros_like(length)]
    for j in range(k):
        w, column = U.split(product(J, V.vectors[..., j, :]), j)
        column = torch.cat([column, U.append(w, j).unsqueeze(-1)], -1)
        columns.append(torch.nn.functional.pad(column, (0, k - 1 - j)))
        if j + 1 < k:
            w, _ = V.split(product(J.mT, U.vectors[..., j, :]), j + 1)
            lengths.append(V.append(w, j + 1))
    M = _assembled(space, torch.stack(columns, -1), V.ended)
    return Joined(M, length, lengths[-1], V.rank, torch.zeros_like(length))


class Local:
    """Orthonormal vectors (..., s, k, n) of every probe, orthogonal to a shared basis (..., d, n).

    A length that is only rounding of A, whose size is `scale` (...), ends the space: the vectors
    from there on are zero.
    """

    def __init__(self, shared: Tensor, like: Tensor, num_steps: int, scale: Tensor):
        self.shared = shared
        self.vectors = like.new_zeros((*like.shape[:-1], num_steps, like.shape[-1]))
        self.ended = torch.zeros(self.vectors.shape[:-1], dtype=torch.bool, device=like.device)
        self.limit = ROUNDINGS * like.shape[-1] ** 0.5 * torch.finfo(like.dtype).eps * scale

    @property
    def rank(self) -> Tensor:
        """Number of vectors, (..., s)."""
        return (~self.ended).sum(-1)

    def split(self, images: Tensor, j: int) -> tuple[Tensor, Tensor]:
        """What images (..., s, n) have outside, and coordinates (..., s, d + j) inside, float64."""
        basis, w, parts = self.vectors[..., :j, :], images, []
        # The first of two passes leaves rounding of the whole image in a small remainder.
        for _ in range(2):
            a = w @ self.shared.mT
            w = w - a @ self.shared
            h = w.unsqueeze(-2) @ basis.mT
            w = w - (h @ basis).squeeze(-2)
            parts.append(torch.cat([a, h.squeeze(-2)], -1).double())
        return w, parts[0] + parts[1]

    def append(self, w: Tensor, j: int) -> Tensor:
        """Make w (..., s, n) of unit length vector j, if there is room; its length, (..., s)."""
        length = torch.linalg.vector_norm(w, dim=-1, dtype=torch.float64)
        # A probe is compared with nothing: `complement` did that.
        ends = length <= (self.limit.unsqueeze(-1) if j else 0)
        if j < self.vectors.shape[-2]:
            unit = w / length.clamp_min(torch.finfo(w.dtype).tiny).to(w.dtype).unsqueeze(-1)
            self.vectors[..., j, :] = unit.masked_fill(ends.unsqueeze(-1), 0)
            self.ended[..., j] = ends
        return length.masked_fill(ends, 0)


def _assembled(space: Shared, columns: Tensor, ended: Tensor) -> Tensor:
    """M from the matrix of W and the columns (..., s, d + k, k) that V adds, upper triangle."""
    d, k = space.matrix.shape[-1], columns.shape[-1]
    M = columns.new_zeros((*columns.shape[:-2], d + k, d + k))
    M[..., :d, :d] = space.matrix.unsqueeze(-3)
    M[..., d:] = columns
    M.diagonal(0, -2, -1)[..., d:] += ended * space.filler[..., None, None]
    return M


def spectrum(matrix: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    """Eigenvalues of M, or of MᵀM, (..., D), and their vectors as columns; NaN for NaN."""
    sound = torch.isfinite(matrix).all(-1).all(-1)[..., None, None]
    # LAPACK raises on NaN.
    masked = torch.where(sound, matrix, 0)
    if squared:
        _, sigma, right = torch.linalg.svd(masked)
        nodes, vectors = sigma**2, right.mT
    else:
        nodes, vectors = torch.linalg.eigh(masked)
    return torch.where(sound.squeeze(-1), nodes, torch.nan), vectors


def log_sum(nodes: Tensor, weights: Tensor) -> Tensor:
    """Σ_j w_j log θ_j, (...); eigenvalues without weight may be zero."""
    return torch.where(weights == 0, 0, weights * nodes.log()).sum(-1)


def radau(M: Tensor, coupling: Tensor, node: Tensor, squared: bool) -> Tensor:
    r"""The block Gauss–Radau extension M̂ of a projection M, with A ≽ M̂ ⊕ a I wherever a I ≼ A.

    .. math:: \hat M = \begin{pmatrix} M & F \\ F^\top & a I + F^\top (M - a I)^{-1} F \end{pmatrix}

    F is what A adds to the space, in an orthonormal basis; M̂ − a I is then the least positive
    semidefinite matrix with these blocks. For MᵀM in place of M, F is what Jᵀ adds and

    .. math:: \hat M = \begin{pmatrix} M & F \\ 0 & D \end{pmatrix}, \qquad
              D^\top D = a \bigl(I + F^\top (M M^\top - a I)^{-1} F\bigr).

    A larger F Fᵀ gives a lower bound that is lower.

    Args:
        M: (..., D, D), float64.
        coupling: F, (..., D, c).
        node: a, (...).
        squared: Whether M is that of a factor J.

    NaN where an eigenvalue that meets the coupling is not above the node.
    """
    sound = torch.isfinite(M).all(-1).all(-1)[..., None, None]
    identity = torch.eye(coupling.shape[-1], dtype=M.dtype, device=M.device)
    a = node[..., None, None]
    nodes, vectors = spectrum(M.mT if squared else M, squared)
    corner = _resolvent(vectors.mT @ coupling, nodes - node.unsqueeze(-1))
    corner = _root(a * (identity + corner)) if squared else a * identity + corner
    below = torch.zeros_like(coupling.mT) if squared else coupling.mT
    extended = torch.cat([torch.cat([M, coupling], -1), torch.cat([below, corner], -1)], -2)
    return torch.where(sound, extended, torch.nan)


def leaving(gram: Tensor, joined: Joined, num_steps: int) -> Tensor:
    r"""F of `radau` for the joined space without its last vector v, (..., s, d + k − 1, b + 1).

    .. math:: F F^\top = \begin{pmatrix} R R^\top & \beta c \\ \beta c^\top & \beta^2 \end{pmatrix}

    on the last block of W and the last vector but one of V, zero elsewhere; c are the overlaps of
    the image of v with the last block, and β v is what the vector before leaves.

    Args:
        gram: R Rᵀ, overlaps of what the last block of W leaves, (..., b, b). It counts once more
            what V holds of that, so that nothing cancels: the bound is only lower for it.
        joined: The space of each probe.
        num_steps: k ≥ 2.
    """
    b, M, beta = gram.shape[-1], joined.matrix, joined.beta
    d = M.shape[-1] - num_steps
    whole = M.new_zeros((*beta.shape, b + 1, b + 1))
    whole[..., :b, :b] = gram.unsqueeze(-3)
    whole[..., :b, b] = whole[..., b, :b] = beta.unsqueeze(-1) * M[..., d - b : d, -1]
    whole[..., b, b] = beta**2
    root = _root(whole)
    F = M.new_zeros((*beta.shape, d + num_steps - 1, b + 1))
    F[..., d - b : d, :], F[..., -1, :] = root[..., :b, :], root[..., b, :]
    return F


def _is_invariant(space: BlockKrylov) -> Tensor:
    """True where A maps the space into itself, (...)."""
    s = space.start.shape[-1]
    filled = space.rank == space.basis.shape[-1]
    if space.coupling is None:
        return filled | ~space.kept[..., -s:].any(-1)
    return filled | (space.coupling == 0).all(-1).all(-1)


def _left(images: Tensor, space: BlockKrylov) -> tuple[Tensor, Tensor]:
    """U as rows and B with J W = U B, from the images of W as rows; U is zero for lost rows."""
    d, N = images.shape[-2:]
    # Lost directions last: a zero column amid the others would take a direction from those after.
    order = torch.sort((~space.kept).to(torch.int8), stable=True).indices
    back = order.argsort(-1).unsqueeze(-1)
    sorted_ = images.gather(-2, order.unsqueeze(-1).expand(images.shape))
    # What spoils a product with the adjoint leaves the images sound, but not the overlaps.
    overlaps = torch.isfinite(space.asymmetry) | (space.rank == 0)
    sound = torch.isfinite(images).all(-1).all(-1) & overlaps
    sound = sound[..., None, None]
    Q, R = torch.linalg.qr(torch.where(sound, sorted_, 0).mT)
    short = max(d - N, 0)
    Q, R = torch.nn.functional.pad(Q, (0, short)), torch.nn.functional.pad(R, (0, 0, 0, short))
    kept = space.kept.unsqueeze(-1)
    left = Q.mT.gather(-2, back.expand(images.shape)) * kept
    B = R.gather(-2, back.expand(R.shape)).gather(-1, back.mT.expand(R.shape)).double()
    return left, torch.where(sound, B * kept, torch.nan)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def _resolvent(F: Tensor, gaps: Tensor) -> Tensor:
    """Fᵀ diag(1 / gaps) F, (..., c, c), NaN where a gap that counts is not positive."""
    inverse = torch.where(gaps > 0, 1 / gaps, torch.nan)
    counts = (F != 0).any(-1)
    return F.mT @ (F * torch.where(counts, inverse, 0).unsqueeze(-1))


def _root(matrix: Tensor) -> Tensor:
    """The positive semidefinite D with D² = matrix, NaN where that is NaN."""
    values, vectors = spectrum(matrix, squared=False)
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT
