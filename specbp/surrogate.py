"""A value with the gradient of something else, under its own name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value itself, bit for bit, with the gradient of a surrogate of the same shape.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = with_gradient_of(torch.tensor(0.1), x**2)
        >>> y.backward()
        >>> y.detach(), x.grad
        (tensor(0.1000), tensor(6.))
    """
    if value.shape != surrogate.shape:
        raise ValueError(
            f"A surrogate has the shape of its value: {tuple(surrogate.shape)} does not match "
            f"{tuple(value.shape)}."
        )
    found: Tensor = _WithGradientOf.apply(value.detach(), surrogate)
    return found


class _WithGradientOf(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:  # noqa: ARG004
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: ARG004
        return None, grad
