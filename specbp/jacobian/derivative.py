r"""Gradients of ⟨u, J x⟩ with respect to what J depends on: the parameters of f and its points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from specbp.jacobian.primal import Primal, plain_evaluation, rounding_unit
from specbp.jacobian.products import is_final, is_small
from specbp.jacobian.tape import StaleError


class Derivative:
    r"""Gradients of a sum of bilinear forms, u and x held fixed.

    .. math:: \nabla_{\theta, z} \sum_r u_r^\top J(\theta, z)\, x_r

    Args:
        primal: f at the points (b, *event).
        parameters: The tensors θ.
    """

    def __init__(self, primal: Primal, parameters: Sequence[Tensor]):
        self.primal, self.parameters = primal, tuple(parameters)

    def summed(self, u: Tensor, x: Tensor, width: int) -> list[Tensor]:
        """Gradients for columns u (b, r, N) and x (b, r, n), at most ``width`` of them at once."""
        total = self._zeros()
        shapes = self.primal.value.shape[1:], self.primal.z.shape[1:]
        for blocks in zip(u.split(width, 1), x.split(width, 1), strict=True):
            # A view would keep all columns alive in the graph of some.
            columns = (t.clone().unflatten(-1, s) for t, s in zip(blocks, shapes, strict=True))
            for sum_, part in zip(total, self(*columns), strict=True):
                sum_.add_(part)
        return total

    def __call__(self, u: Tensor, x: Tensor) -> list[Tensor]:
        """Gradients for u (b, r, *out) and x (b, r, *event), θ first, then z (b, *event)."""
        with plain_evaluation(x.device), torch.enable_grad(), _without_hooks(self.parameters):
            if is_small(self.primal, x.shape[1]):
                return self._repeated(u, x)
            try:
                return self._mapped(u, x)
            except RuntimeError as error:
                if is_final(error):
                    raise
                # an operation of f has no batching rule
                return self._repeated(u, x)

    def _repeated(self, u: Tensor, x: Tensor) -> list[Tensor]:
        """Reverse over reverse, every point repeated for its columns: few and small operations."""
        b, r = x.shape[:2]
        z = self.primal.z.repeat_interleave(r, 0).requires_grad_()
        value = self.primal.f(z)
        self._check_unchanged(value.detach().unflatten(0, (b, r))[:, 0])
        if not value.requires_grad:
            return self._zeros()
        (slope,) = torch.autograd.grad(
            value, z, u.flatten(0, 1), create_graph=True, allow_unused=True, materialize_grads=True
        )
        *grads, at_points = self._gradients(slope, x.flatten(0, 1), z)
        return [*grads, at_points.unflatten(0, (b, r)).sum(1)]

    def _mapped(self, u: Tensor, x: Tensor) -> list[Tensor]:
        """The same, columns by vmap: the activations of f itself are those of b points.

        Not reverse over forward: the forward formulas of torch for normalisation layers and solves
        take for constants what they computed on the way, and have wrong derivatives.
        """
        z = self.primal.z.clone().requires_grad_()
        value, pull, *_ = torch.func.vjp(self.primal.f, z)
        self._check_unchanged(value.detach())

        def slope(column: Tensor) -> Tensor:
            return pull(column)[0]

        slopes = torch.func.vmap(slope, in_dims=1, out_dims=1)(u)
        return self._gradients(slopes, x, z)

    def _check_unchanged(self, value: Tensor) -> None:
        """Refuse an f that is not the one that J was built from: its gradient would be another's.

        Raises:
            StaleError: If f(z) has moved by more than rounding.
        """
        before = self.primal.value
        threshold = math.sqrt(rounding_unit(before)) * float(before.abs().max())
        if value.shape == before.shape and bool(((value - before).abs() <= threshold).all()):
            return
        msg = (
            "f does not return what it returned when the Jacobian was built: a name that it looks "
            "up was bound anew (in a loop?), a parameter replaced, or .train() called. Call "
            "backward before that, or pass what f depends on by params= or functools.partial."
        )
        raise StaleError(msg)

    def _gradients(self, y: Tensor, weights: Tensor, z: Tensor) -> list[Tensor]:
        """Gradients of ⟨y, weights⟩; zero where y does not depend on a tensor."""
        if not y.requires_grad:
            return [*self._zeros()[:-1], torch.zeros_like(z)]
        # Parameters may come with a graph of their own, which the next block needs again.
        found = torch.autograd.grad(
            y,
            [*self.parameters, z],
            weights.to(y),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return list(found)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(t) for t in (*self.parameters, self.primal.z)]


@contextmanager
def _without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Hooks of a tensor are for its gradient as a whole, which the caller's backward delivers."""
    kept = [(t._backward_hooks, dict(t._backward_hooks)) for t in tensors if t._backward_hooks]
    for hooks, _ in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.update(before)
