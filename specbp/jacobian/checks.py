"""What a `Jacobian` can be built from and multiplied with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_arguments(f: Any, z: Any, event_dim: int, chunk_size: int | None) -> None:
    """Refuse what cannot be a function and its points.

    Raises:
        TypeError: If f is not callable or z is no tensor of float32 or float64.
        ValueError: If the shape of z, its values or the number of columns are impossible.
    """
    if not callable(f):
        msg = f"f must be callable, (b, *event) -> (b, *out); got {type(f).__name__}."
        raise TypeError(msg)
    if not isinstance(z, Tensor):
        msg = f"z must be a torch.Tensor (*batch, *event), got {type(z).__name__}."
        raise TypeError(msg)
    if z.dtype not in (torch.float32, torch.float64):
        msg = f"z must be float32 or float64, got {z.dtype}: convert it."
        raise TypeError(msg)
    if not 1 <= event_dim <= z.ndim or z.numel() == 0:
        msg = (
            "z must have shape (*batch, *event) with event_dim >= 1 dimensions of an event, none "
            f"of them empty; got shape {tuple(z.shape)} and event_dim={event_dim}."
        )
        raise ValueError(msg)
    if not torch.isfinite(z).all():
        msg = "z contains NaN or inf: there is no Jacobian there."
        raise ValueError(msg)
    if chunk_size is not None and chunk_size < 1:
        msg = f"chunk_size must be a positive number of columns, or None; got {chunk_size}."
        raise ValueError(msg)


def check_block(
    X: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, product: str
) -> None:
    """Refuse a block that an operator of this shape cannot be applied to.

    Raises:
        TypeError: If X is no tensor or of another dtype.
        ValueError: If X is on another device or its shape does not fit.
    """
    name = f"{product}: {product[-1]}"
    if not isinstance(X, Tensor):
        msg = f"{name} must be a torch.Tensor (..., {shape[-1]}, m), got {type(X).__name__}."
        raise TypeError(msg)
    if X.dtype != dtype:
        msg = f"{name} is {X.dtype}, the Jacobian is {dtype}: convert one of them."
        raise TypeError(msg)
    if X.device != device:
        msg = f"{name} is on {X.device}, the Jacobian on {device}: move one of them."
        raise ValueError(msg)
    if X.ndim < 2 or X.shape[-2] != shape[-1]:
        msg = (
            f"{name} must have shape (..., {shape[-1]}, m) to be multiplied by an operator of "
            f"shape {tuple(shape)}, got {tuple(X.shape)}."
        )
        raise ValueError(msg)
    for size, own in zip(X.shape[-3::-1], shape[-3::-1], strict=False):
        if size != own and 1 not in (size, own):
            msg = (
                f"{name} of shape {tuple(X.shape)} does not broadcast against an operator of "
                f"shape {tuple(shape)}: leading dimensions {size} and {own}."
            )
            raise ValueError(msg)
