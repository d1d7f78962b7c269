"""The spaces of all probes but one group: known, and independent of the group's own probes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from specbp.block import BlockKrylov, block_lanczos
from specbp.block_rules import Spectrum, positive, spectrum, squared
from specbp.differentiable import Sensitivity
from specbp.sensitivities import in_eigenbasis, log_differences

GROUPS = 5
LEAK = 512  # of √n eps |A|: the rounding of T as it is amplified within a Krylov space


class Fold(NamedTuple):
    """Groups of one size, each with the space of all others within that of all probes.

    Attributes:
        parts: Probes of the groups, (G, size).
        others: Those of all others, (G, s − size).
        space: Their spaces, with one more dimension (..., G, ...), in coordinates of W.
        coordinates: All probes in coordinates of W, (..., s, d).
    """

    parts: Tensor
    others: Tensor
    space: BlockKrylov
    coordinates: Tensor

    def spectrum(self) -> Spectrum:
        """Eigenpairs of T_g."""
        return positive(self.space.matrix, self.space.kept)

    def inside(self, index: Tensor) -> Tensor:
        """Coordinates of probes (G, size) in the spaces, (..., G, size, d_g)."""
        return self.coordinates[..., index, :] @ self.space.basis.mT


def folds(K: BlockKrylov, groups: int, rows: Tensor) -> Iterator[Fold]:
    """All groups, those of one size together; none where there is but one probe."""
    (s, n), d = rows.shape[-2:], K.matrix.shape[-1]
    if s < 2:
        return
    T, coordinates = squared(K), torch.nn.functional.pad(K.start, (0, d - s))
    for parts in _of_equal_size(s, groups, rows.device):
        others = _complements(parts, s)
        # Groups are one more dimension of the batch: (..., G, s', d).
        starts = coordinates[..., others, :]
        # T carries the rounding of products with A. Where the space of the others is closed, that
        # alone would lead on, into the direction of x_i, of which L_g must know nothing.
        rounding = LEAK * n**0.5 * torch.finfo(rows.dtype).eps
        space = block_lanczos(Shared(T), starts, d // s, rounding=rounding)
        yield Fold(parts, others, space, coordinates)


def sensitivity(K: BlockKrylov, groups: int, rows: Tensor) -> Sensitivity:
    r"""G for the mean over the probes, one for each item: (..., 1, r) and (..., 1, r, n).

    .. math:: G = \frac1s \sum_i \Bigl[ W L(T; W^\top x_i x_i^\top W) W^\top
              + W_g \bigl(T_g^{-1} - L(T_g; W_g^\top x_i x_i^\top W_g)
              + h_i \, c_g'\bigr) W_g^\top \Bigr]

    with L(T; E) the Fréchet derivative of log at T in the direction E, and W_g, T_g the space of
    the probes that are not in the group of x_i. The second term cancels what the first has of
    chance within that space, c_g' is the derivative of the level c_g of the rest, and h_i = n − d_g
    − |(I − W_g W_gᵀ) x_i|². Both are zero on average for probes independent of each other. Where W
    fills the space, G = A⁻¹.
    """
    s, n = rows.shape[-2:]
    whole = spectrum(K)
    core = _derivative(whole, K.start @ whole.vectors[..., :s, :]) / s
    for fold in folds(K, groups, rows):
        known, size = fold.spectrum(), fold.parts.shape[-1]
        own, seen = (fold.inside(index) @ known.vectors for index in (fold.parts, fold.others))
        inverse = torch.diag_embed(known.kept / known.nodes)
        # The level c_g of the rest of the spectrum, as the others see it, moves with A too.
        level = _derivative(known, seen) / seen.shape[-2] - inverse
        left = (n - fold.space.rank).double().unsqueeze(-1)
        rest = fold.coordinates[..., fold.parts, :].square().sum(-1) - own.square().sum(-1)
        share = ((left - rest) / left.clamp_min(1) * (left > 0)).sum(-1)[..., None, None]
        inner = size * inverse - _derivative(known, own) + share * level
        vectors = whole.vectors.mT.unsqueeze(-3) @ fold.space.basis.mT @ known.vectors
        core = core + (vectors @ inner @ vectors.mT).sum(-3) / s
    inverse = torch.diag_embed(whole.kept / whole.nodes)
    core = torch.where((K.rank == n)[..., None, None], inverse, (core + core.mT) / 2)
    inside = in_eigenbasis(core, whole.nodes, whole.vectors, K.basis.dtype)
    vectors = (inside.vectors @ K.basis).unsqueeze(-3)
    return Sensitivity(inside.weights.unsqueeze(-2), vectors, width=s)


def _derivative(known: Spectrum, coordinates: Tensor) -> Tensor:
    """Σ L(T; ξξᵀ) in eigenvectors of T, ξ given there by the rows (..., s, d)."""
    kept = known.kept.unsqueeze(-1) & known.kept.unsqueeze(-2)
    return torch.where(kept, coordinates.mT @ coordinates * log_differences(known.nodes), 0)


def _of_equal_size(s: int, groups: int, device: torch.device) -> list[Tensor]:
    """The probes 0 … s − 1 in groups: tensors (G, size), one for each size that occurs."""
    split = torch.arange(s, device=device).tensor_split(min(groups, s))
    sizes = sorted({len(group) for group in split})
    return [torch.stack([g for g in split if len(g) == size]) for size in sizes]


def _complements(parts: Tensor, s: int) -> Tensor:
    """All other probes for each group (G, size), (G, s − size)."""
    every = torch.arange(s, device=parts.device)
    return torch.stack([every[~torch.isin(every, part)] for part in parts])


class Shared:
    """A small matrix (..., d, d) that multiplies blocks (..., G, d, m) without copies of itself."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    shape = property(lambda self: self.matrix.shape)
    dtype = property(lambda self: self.matrix.dtype)
    device = property(lambda self: self.matrix.device)

    def __matmul__(self, X: Tensor) -> Tensor:
        G, d, m = X.shape[-3:]
        rows = X.mT.reshape(*X.shape[:-3], G * m, d)
        return (rows @ self.matrix.mT).view(*X.shape[:-3], G, m, d).mT
