"""Explicit Jacobians in float64, by reverse mode: the one place where the oracle meets torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from specbp.exact._arrays import Array


def dense_jacobian(f: Callable[[Any], Any], z: Any, *, chunk_size: int | None = 256) -> Array:
    """Compute the Jacobian df/dz at one point, in float64, row by row in reverse mode.

    Estimators multiply with J by forward mode; a fault in a forward-mode rule therefore shows as a
    disagreement with this matrix.

    Args:
        f: maps one point of shape event (no batch dimension) to one output of any shape. A module
            is copied and the copy converted to float64; any other callable must follow the dtype
            of its argument, so close over a float64 copy of its parameters.
        z: the point, a tensor of any floating dtype; converted to float64.
        chunk_size: rows computed at once (memory grows with it); None for all.

    Returns:
        J of shape (N, n), N and n the numbers of output and input elements.

    Raises:
        TypeError: f returns anything but a float64 tensor.
    """
    import torch

    g = copy.deepcopy(f).double() if isinstance(f, torch.nn.Module) else f

    def checked(point: Any) -> Any:
        y = g(point)
        given = y.dtype if isinstance(y, torch.Tensor) else type(y)
        if given != torch.float64:
            msg = (
                f"f must return one float64 tensor for a float64 point, it returned {given}; "
                "convert what it closes over"
            )
            raise TypeError(msg)
        return y.flatten()

    point = z.detach().double()
    J = torch.func.jacrev(checked, chunk_size=chunk_size)(point)
    return J.detach().reshape(len(J), point.numel()).cpu().numpy()
