"""One evaluation of f at the base points: what it returned, what it costs, whether f is usable."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Primal:
    """f at the points z (b, *event).

    Attributes:
        f: The callable; it may overwrite its argument, and evaluates attention unfused.
        z: (b, *event), detached.
        value: f(z), (b, *out), detached.
        activation_bytes: Bytes of all results of operations in one evaluation at the b points:
            what an autograd graph of f keeps, give or take.
        mean_bytes: The same per operation.
        leaves: Tensors that f uses and that require a gradient, found in the graph of its value.
        check: Whether to test what f and its derivatives return.
    """

    f: Callable[[Tensor], Tensor]
    z: Tensor
    value: Tensor
    activation_bytes: int
    mean_bytes: float
    leaves: tuple[Tensor, ...]
    check: bool

    @classmethod
    def evaluate(cls, f: Callable[[Tensor], Tensor], z: Tensor, *, check: bool) -> Primal:
        """Evaluate f, refuse what has no Jacobian per item, and, with ``check``, test for more.

        Raises:
            TypeError: If f returns no floating tensor of z's dtype, or has a layer with batch
                statistics.
            ValueError: If f(z) has another leading dimension, is empty, not finite or on another
                device; with ``check``, if f is random, couples items, or hides its derivative.
        """
        _check_batch_statistics(f)
        f = _guarded(f)
        with plain_evaluation(z.device), torch.enable_grad():
            point = z.detach().requires_grad_()
            with _Observer() as seen:
                value = f(point)
        _check_value(value, z)
        mean = seen.bytes / max(seen.operations, 1)
        leaves = _leaves(value)
        others = tuple(leaf for leaf in leaves if leaf is not point)
        primal = cls(f, z, value.detach(), seen.bytes, mean, others, check)
        if check:
            _check_items(primal, hidden=len(others) == len(leaves))
        return primal


def plain_evaluation(device: torch.device) -> AbstractContextManager[Any]:
    """Evaluate as written, whatever the caller's modes: no autocast, inference mode or graph."""
    autocast = torch.is_autocast_enabled(device.type)
    if not autocast and not torch.is_inference_mode_enabled():
        return torch.no_grad()
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.autocast(device.type, enabled=False))
    stack.enter_context(torch.no_grad())
    return stack


def _guarded(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Give f a copy, and attention by its formula: the derivatives of fused kernels have none."""

    def evaluate(z: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return f(z.clone())

    return evaluate


class _Observer(TorchDispatchMode):
    """Counts operations and sums the bytes they return."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.operations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default wraps the method below in a slow call, and imports the compiler

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,  # noqa: ARG002
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            outs = out if isinstance(out, (tuple, list)) else (out,)
            self.operations += 1
            self.bytes += sum(o.nbytes for o in outs if isinstance(o, Tensor))
        return out


def _modules(f: Any) -> list[tuple[str, nn.Module]]:
    """All layers of f, with names, when f is a module or a method of one."""
    owner = f if isinstance(f, nn.Module) else getattr(f, "__self__", None)
    return list(owner.named_modules()) if isinstance(owner, nn.Module) else []


def state(f: Any) -> dict[str, Tensor]:
    """Parameters and buffers, when f is a module or a method of one."""
    owner = f if isinstance(f, nn.Module) else getattr(f, "__self__", None)
    if not isinstance(owner, nn.Module):
        return {}
    tensors = {**dict(owner.named_parameters()), **dict(owner.named_buffers())}
    return {name: t for name, t in tensors.items() if not t.is_inference()}


def _check_batch_statistics(f: Any) -> None:
    for name, layer in _modules(f):
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        if layer.training or layer.running_mean is None:
            msg = (
                f"f treats the items of a batch independently, but layer {name or 'f'!r}"
                f" ({type(layer).__name__}) normalises with statistics of the batch: "
            )
            if layer.training:
                raise TypeError(msg + "call .eval() on the module first.")
            raise TypeError(msg + "it has no running statistics (track_running_stats=False).")


def _check_value(value: Any, z: Tensor) -> None:
    b = len(z)
    if not isinstance(value, Tensor):
        msg = f"f must return one torch.Tensor (b, *out), got {type(value).__name__}."
        raise TypeError(msg)
    if value.dtype != z.dtype:
        msg = f"f must keep the dtype: z is {z.dtype}, f(z) is {value.dtype}; convert f or z."
        raise TypeError(msg)
    if value.device != z.device:
        msg = f"f must keep the device: z is on {z.device}, f(z) is on {value.device}; move one."
        raise ValueError(msg)
    if value.ndim < 1 or len(value) != b or value.numel() == 0:
        msg = (
            f"f must map (b, *event) to (b, *out), one item at a time: for z of shape "
            f"{tuple(z.shape)} it returned {tuple(value.shape)}, not ({b}, ...)."
        )
        raise ValueError(msg)
    bad = ~torch.isfinite(value.detach()).reshape(b, -1).all(-1)
    if bad.any():
        msg = (
            f"f(z) contains NaN or inf at {int(bad.sum())} of {b} points (first: item "
            f"{int(bad.nonzero()[0])} of the flattened batch); its Jacobian means nothing there."
        )
        raise ValueError(msg)


def _check_items(primal: Primal, *, hidden: bool) -> None:
    """Each item once more, between shifted copies: its value may not change, the copies' must.

    Rounding depends on the size of the batch, a coupling on its content. The former moves f by eps
    times what f amplifies, the latter by a share of f itself: the threshold is their geometric
    middle, sqrt(eps) times the scale of f. A weaker coupling is not seen.
    """
    f, z, value = primal.f, primal.z, primal.value
    copies = z + _shift(z)
    with plain_evaluation(z.device):
        mixed = f(torch.stack([copies, z], dim=1).flatten(0, 1))
        if not isinstance(mixed, Tensor) or mixed.shape != (2 * len(z), *value.shape[1:]):
            msg = (
                f"f must map (b, *event) to (b, *out) for every b: for b = {len(z)} it returned "
                f"{tuple(value.shape)}, for b = {2 * len(z)} "
                f"{tuple(mixed.shape) if isinstance(mixed, Tensor) else type(mixed).__name__}."
            )
            raise ValueError(msg)
        moved, again = mixed.unflatten(0, (len(z), 2)).unbind(1)
        threshold = math.sqrt(rounding_unit(z)) * float(value.abs().max())
        if not _differs(again, value, threshold):
            if hidden and _differs(moved, value, threshold):
                msg = (
                    "f(z) depends on z, but its derivative is hidden from autograd: remove "
                    "torch.no_grad(), .detach() or .data inside f."
                )
                raise ValueError(msg)
            return
        random = _differs(f(z), value, threshold)
    gap = float((again - value).abs().max())
    if random:
        msg = (
            f"f is random: evaluated at the same z again, it changed by {gap:.3g}. Call .eval() "
            "(dropout), or fix the noise outside of f."
        )
    else:
        msg = (
            f"f couples the items of a batch: next to other items, f(z) changed by {gap:.3g} "
            f"(rounding explains {threshold:.3g}). Call .eval() if layers use batch statistics."
        )
    raise ValueError(msg)


def _leaves(value: Tensor) -> list[Tensor]:
    """The tensors at the ends of the autograd graph of the value."""
    nodes, seen, found = [value.grad_fn], set(), []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            found.append(node.variable)  # type: ignore[attr-defined]
        nodes.extend(child for child, _ in node.next_functions)
    return found


def uneven(like: Tensor) -> Tensor:
    """A fixed tensor with elements in (1/2, 3/2): nothing is drawn, no symmetry hides in it."""
    steps = torch.arange(1, like.numel() + 1, dtype=like.dtype, device=like.device)
    return 1 + steps.cos().reshape(like.shape) / 2


def _shift(z: Tensor) -> Tensor:
    """A tenth of the points' scale, unevenly."""
    scale = z.abs().amax()
    return uneven(z) * torch.where(scale > 0, scale, torch.ones_like(scale)) / 10


def rounding_unit(z: Tensor) -> float:
    """Relative rounding error; on CUDA, float32 products may round to the 10 bits of TF32."""
    if z.is_cuda and z.dtype == torch.float32:
        return 2.0**-10
    return torch.finfo(z.dtype).eps


def _differs(a: Tensor, b: Tensor, threshold: float) -> bool:
    return not bool(((a - b).abs() <= threshold).all())
