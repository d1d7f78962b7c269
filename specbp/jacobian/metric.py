"""The Gram matrix of an operator with an adjoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specbp import interop
from specbp.operators import as_operator


class JacobianMetric:
    r"""The metric that f pulls back, or the Gram matrix of any operator with an adjoint.

    .. math:: A = J^\top J, \qquad A X = J^\top (J X)

    Args:
        J: (..., N, n) with ``@`` and ``.mT``: a `Jacobian`, a tensor, a factor.

    Raises:
        TypeError: If J lacks one of shape, dtype, device, mT and ``@``.

    Example:
        >>> import torch
        >>> A = JacobianMetric(torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]]))
        >>> A.shape, A @ torch.eye(2)
        (torch.Size([2, 2]), tensor([[2., 2.],
            [2., 5.]]))
    """

    def __init__(self, J: Any):
        J = interop.adapt(J)
        missing = [a for a in ("shape", "dtype", "device", "mT", "__matmul__") if not hasattr(J, a)]
        if missing:
            msg = f"JacobianMetric needs an operator with its adjoint: {type(J).__name__} lacks "
            raise TypeError(msg + ", ".join(missing) + ".")
        self.J = J
        n = J.shape[-1]
        self.shape = torch.Size((*J.shape[:-2], n, n))
        self.dtype, self.device = J.dtype, J.device

    def __repr__(self) -> str:
        return f"JacobianMetric({self.J!r})"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Those of the factor."""
        return tuple(getattr(as_operator(self.J), "inputs", ()))

    def pull_back(self, left: Tensor, right: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of Σ leftᵀ JᵀJ right in the inputs."""
        J = as_operator(self.J)
        images = [(J @ rows.mT).mT for rows in (left, right)]
        return tuple(J.pull_back(torch.cat(images, -2), torch.cat([right, left], -2)))

    def __matmul__(self, X: Tensor) -> Tensor:
        return self.J.mT @ (self.J @ X)
