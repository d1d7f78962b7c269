"""Log-determinants of Jacobians as functions of tensors alone, for `torch.func`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from specbp.estimate import Estimate
from specbp.jacobian import Jacobian


def logdet_at(
    f: Callable[[Any, Tensor], Tensor],
    params: Any,
    z: Tensor,
    estimator: Callable[[Jacobian], Estimate],
    *,
    event_dim: int = 1,
) -> Tensor:
    r"""log det JᵀJ of f(params, ·) at z, differentiable under `torch.func.grad` and `vmap`.

    .. math:: (\theta, z) \mapsto \log\det J^\top J, \qquad
              J = \frac{\partial f(\theta, z)}{\partial z}

    A `Jacobian` looks at the values of its products, which transforms of `torch.func` hide from it.
    Here it is built beneath them. Outside of them, `estimator(Jacobian(f, z, params=params)).value`
    is the same.

    Args:
        f: (params, (b, *event)) -> (b, *out).
        params: Tensors in any nesting of lists and dictionaries, not mapped by `vmap`.
        z: Points (*batch, *event), float32 or float64; `vmap` adds a dimension of the batch.
        estimator: From a `Jacobian` to an estimate; probes that it holds serve all mapped points.
        event_dim: Number of dimensions of an event.

    Returns:
        The value, (*batch), float64.

    Raises:
        ValueError: If f uses tensors that require a gradient and are not among `params`.
        NotImplementedError: If `params` are mapped by `vmap`, or the gradient is differentiated.

    Example:
        >>> import torch
        >>> from specbp import qr_logdet
        >>> def f(theta, z):
        ...     return theta * z
        >>> theta, z = torch.tensor(2.0), torch.ones(4, 3)
        >>> torch.func.vmap(lambda x: logdet_at(f, theta, x, qr_logdet))(z).shape
        torch.Size([4])
        >>> torch.func.grad(lambda t: logdet_at(f, t, z[0], qr_logdet))(theta)
        tensor(3.)
    """
    leaves, tree = pytree.tree_flatten(params)
    build = _Build(f, tree, estimator, event_dim)
    found: Tensor = _Logdet.apply(build, z, *leaves)
    return found


class _Build:
    """The estimate of plain tensors, and its graph."""

    def __init__(self, f: Any, tree: Any, estimator: Any, event_dim: int):
        self.f, self.tree, self.estimator, self.event_dim = f, tree, estimator, event_dim
        self.value: Tensor | None = None
        self.inputs: list[Tensor] = []

    def forward(self, z: Tensor, leaves: tuple[Any, ...]) -> Tensor:
        with torch.enable_grad():
            own = [_leaf(t) for t in (z, *leaves)]
            params = pytree.tree_unflatten(own[1:], self.tree)
            J = Jacobian(self.f, own[0], params=params, event_dim=self.event_dim)
            _check_inputs(J, own)
            self.value = self.estimator(J).value
        self.inputs = own
        return self.value.detach()

    def backward(self, grad: Tensor) -> list[Tensor | None]:
        assert self.value is not None
        wanted = [t for t in self.inputs if isinstance(t, Tensor) and t.requires_grad]
        found = torch.autograd.grad(
            self.value, wanted, grad, retain_graph=True, materialize_grads=True
        )
        grads = iter(found)
        return [
            next(grads) if isinstance(t, Tensor) and t.requires_grad else None for t in self.inputs
        ]


class _Logdet(torch.autograd.Function):
    @staticmethod
    def forward(build: _Build, z: Tensor, *leaves: Any) -> Tensor:
        return build.forward(z, leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.build, *tensors = inputs
        ctx.save_for_backward(*(t for t in tensors if isinstance(t, Tensor)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # The inputs go along, so that a second derivative is refused and not taken for zero.
        found = _Pull.apply(ctx.build, grad, *ctx.saved_tensors)
        return None, *found

    @staticmethod
    def vmap(info: Any, in_dims: Any, build: _Build, z: Tensor, *leaves: Any) -> Any:  # noqa: ARG004
        if any(dim is not None for dim in in_dims[2:]):
            raise NotImplementedError("logdet_at maps over z; params cannot be mapped.")
        return _Logdet.apply(build, z.movedim(in_dims[1], 0), *leaves), 0


class _Pull(torch.autograd.Function):
    """The backward, beneath the transforms too."""

    @staticmethod
    def forward(build: _Build, grad: Tensor, *_: Tensor) -> Any:
        return tuple(build.backward(grad))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:  # noqa: ARG004
        raise NotImplementedError(
            "The gradient of a log-determinant holds its Krylov vectors fixed and has no gradient "
            "of its own: for second derivatives differentiate torch.logdet of a dense matrix."
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, build: _Build, grad: Tensor, *tensors: Tensor) -> Any:
        # Every mapped point has a gradient of its own in the parameters: one backward for each.
        grads = grad.movedim(in_dims[1], 0)
        items = []
        for i in range(info.batch_size):
            alone = torch.zeros_like(grads)
            alone[i] = grads[i]
            items.append(_Pull.apply(build, alone, *tensors))
        # Points of another item do not move this one's value.
        at_points = sum(item[0] for item in items)
        others = [None if t[0] is None else torch.stack(t) for t in zip(*items, strict=True)][1:]
        found = (at_points, *others)
        return found, tuple(None if t is None else 0 for t in found)


def _check_inputs(J: Jacobian, own: list[Any]) -> None:
    known = {id(t) for t in own}
    if any(id(t) not in known for t in J.inputs):
        raise ValueError(
            "f uses tensors that require a gradient beside its params, and would lose it here: "
            "pass them in params, or detach them."
        )


def _leaf(t: Any) -> Any:
    if isinstance(t, Tensor) and t.is_floating_point():
        return t.detach().clone().requires_grad_()
    return t
