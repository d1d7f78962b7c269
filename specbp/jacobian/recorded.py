"""Products with a Jacobian that keep their graph: what reverse mode through a recurrence needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specbp.jacobian.fold import fold


class RecordedMetric:
    r"""JᵀJ of f at z, its products differentiable with respect to z and whatever f uses.

    Every product keeps what its backward needs until the graph is freed. With `reuse`, the
    evaluation of f at the points, repeated for the columns of a block, is shared by all products of
    that width.

    Args:
        f: (b, *event) -> (b, *out).
        z: Points (*batch, *event), with their graph.
        batch: Number of dimensions of the batch.
        reuse: Evaluate f once for all products, instead of anew for each.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], z: Tensor, batch: int, *, reuse: bool):
        self.f, self.z, self.reuse = f, z, reuse
        n = z.shape[batch:].numel()
        self.shape = torch.Size((*z.shape[:batch], n, n))
        self.dtype, self.device = z.dtype, z.device
        self._shared: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def __matmul__(self, X: Tensor) -> Tensor:
        folded, restore = fold(X.mT, self.shape[:-2])
        return restore(self._product(folded)).mT

    def _product(self, rows: Tensor) -> Tensor:
        """(b, m, n) -> (b, m, n)."""
        m = rows.shape[1]
        if m not in self._shared or not self.reuse:
            self._shared[m] = self._evaluated(m)
        z, value, u, adjoint = self._shared[m]
        (image,) = torch.autograd.grad(
            adjoint, u, rows.reshape(z.shape), create_graph=True, materialize_grads=True
        )
        (back,) = torch.autograd.grad(value, z, image, create_graph=True, materialize_grads=True)
        return back.reshape(rows.shape)

    def _evaluated(self, m: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points, f there, a cotangent u, and u -> Jᵀu, linear in u: its adjoint is J."""
        event = self.z.shape[len(self.shape) - 2 :]
        z = self.z.reshape(-1, 1, *event).expand(-1, m, *event).flatten(0, 1)
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        value = self.f(z)
        u = torch.zeros_like(value).requires_grad_()
        (adjoint,) = torch.autograd.grad(value, z, u, create_graph=True, materialize_grads=True)
        return z, value, u, adjoint
