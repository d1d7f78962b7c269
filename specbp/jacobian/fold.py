"""Blocks of rows with more leading dimensions than there are points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def fold(rows: Tensor, batch: Sequence[int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Rows (..., m, n) as (b, M, n) for the b points of a batch, and the way back.

    Leading dimensions broadcast against the batch; those that are not its own (replicates) become
    further rows of the same point. Differentiable.
    """
    lead = torch.broadcast_shapes(rows.shape[:-2], batch)
    rows = rows.expand(*lead, *rows.shape[-2:])
    offset = len(lead) - len(batch)
    own = [offset + i for i, size in enumerate(batch) if size == lead[offset + i]]
    order = own + [i for i in range(rows.ndim) if i not in own]
    moved = rows.permute(order)
    inverse = sorted(range(rows.ndim), key=order.__getitem__)

    def restore(folded: Tensor) -> Tensor:
        return folded.reshape(*moved.shape[:-1], folded.shape[-1]).permute(inverse)

    return moved.reshape(torch.Size(batch).numel(), -1, rows.shape[-1]), restore
