"""Operators made of others: shifted, scaled, or recording a graph of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from specbp.operators import LinearOperator, as_operator, product


class ShiftedOperator:
    """A + shift·I, with one shift, or one for each item of the batch, (...) or (..., 1, 1)."""

    def __init__(self, operator: LinearOperator, shift: float | Tensor):
        self.operator, self.shift = as_operator(operator), shift

    shape = property(lambda self: self.operator.shape)
    dtype = property(lambda self: self.operator.dtype)
    device = property(lambda self: self.operator.device)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Those of the operator, and the shift if it requires a gradient."""
        return (*getattr(self.operator, "inputs", ()), *_of_scalar(self.shift))

    def pull_back(self, left: Tensor, right: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of Σ leftᵀ (A + shift I) right in the inputs."""
        own = _for_scalar(self.shift, lambda: (left * right).sum((-2, -1)))
        return (*_pulled_back(self.operator, left, right), *own)

    def __matmul__(self, X: Tensor) -> Tensor:
        return self.operator @ X + _for_blocks(self.shift) * X


class ScaledOperator:
    """scale·A, or scale·J with its adjoint; one scale, or one for each item, as for a shift."""

    def __init__(self, operator: LinearOperator, scale: float | Tensor):
        self.operator, self.scale = as_operator(operator), scale

    shape = property(lambda self: self.operator.shape)
    dtype = property(lambda self: self.operator.dtype)
    device = property(lambda self: self.operator.device)
    mT = property(lambda self: ScaledOperator(self.operator.mT, self.scale))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Those of the operator, and the scale if it requires a gradient."""
        return (*getattr(self.operator, "inputs", ()), *_of_scalar(self.scale))

    def pull_back(self, left: Tensor, right: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of Σ leftᵀ (scale · M) right in the inputs."""
        own = _for_scalar(self.scale, lambda: (left * product(self.operator, right)).sum((-2, -1)))
        return (*_pulled_back(self.operator, _for_blocks(self.scale) * left, right), *own)

    def __matmul__(self, X: Tensor) -> Tensor:
        return _for_blocks(self.scale) * (self.operator @ X)


class RecordedOperator:
    """An operator of your own whose products record a graph, with the tensors they depend on.

    Estimates of its log-determinant then carry a gradient with respect to these.

    Args:
        operator: With `shape`, `dtype`, `device` and a differentiable `@`; a factor has `mT`.
        parameters: The leaf tensors that require a gradient.

    Raises:
        ValueError: If a parameter is the result of an operation.

    Example:
        >>> import torch
        >>> scale = torch.tensor(2.0, requires_grad=True)
        >>> class Diagonal:
        ...     shape, dtype, device = torch.Size((2, 2)), torch.float32, scale.device
        ...     def __matmul__(self, X):
        ...         return torch.stack([scale, scale**2]).unsqueeze(-1) * X
        >>> A = RecordedOperator(Diagonal(), [scale])
        >>> A.pull_back(torch.eye(2), torch.eye(2))
        (tensor(5.),)
    """

    def __init__(self, operator: LinearOperator, parameters: Iterable[Tensor]):
        self.operator = operator
        self._parameters = tuple({id(p): p for p in parameters}.values())
        if any(not p.is_leaf for p in self._parameters):
            raise ValueError(
                "The parameters of an operator are leaves: name the tensors that the others are "
                "computed from, or the gradient of both would count twice."
            )

    shape = property(lambda self: self.operator.shape)
    dtype = property(lambda self: self.operator.dtype)
    device = property(lambda self: self.operator.device)
    mT = property(lambda self: RecordedOperator(self.operator.mT, self._parameters))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Those parameters that require a gradient."""
        return tuple(p for p in self._parameters if p.requires_grad)

    def pull_back(self, left: Tensor, right: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of Σ leftᵀ M right in the inputs, by differentiating the product."""
        with torch.enable_grad():
            total = (left.detach() * product(self.operator, right.detach())).sum()
        return torch.autograd.grad(total, self.inputs, allow_unused=True, retain_graph=True)

    def __matmul__(self, X: Tensor) -> Tensor:
        with torch.no_grad():
            return self.operator @ X


def _for_blocks(value: float | Tensor) -> float | Tensor:
    """One number for each item, to multiply blocks (..., n, m)."""
    if isinstance(value, Tensor) and value.ndim and value.shape[-2:] != (1, 1):
        return value[..., None, None]
    return value


def _of_scalar(value: float | Tensor) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) and value.requires_grad else ()


def _for_scalar(value: float | Tensor, gradient: Callable[[], Tensor]) -> tuple[Tensor, ...]:
    # A shift or scale broadcasts against blocks: (...), or (..., 1, 1).
    return tuple(_summed(gradient(), t) for t in _of_scalar(value))


def _summed(gradient: Tensor, like: Tensor) -> Tensor:
    if like.shape[-2:] == (1, 1):
        gradient = gradient[..., None, None]
    return gradient.sum_to_size(like.shape)


def _pulled_back(operator: Any, left: Tensor, right: Tensor) -> tuple[Tensor | None, ...]:
    if not getattr(operator, "inputs", ()):
        return ()
    return tuple(operator.pull_back(left, right))
