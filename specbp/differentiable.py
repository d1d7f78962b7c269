r"""Gradients of log-determinants, each a symmetric matrix in place of A⁻¹.

.. math:: d \log\det A = \operatorname{tr}(A^{-1}\, dA) \approx \operatorname{tr}(G\, dA)
          = \sum_r w_r \, y_r^\top dA\, y_r, \qquad G = \sum_r w_r \, y_r y_r^\top

A gradient estimator is a G with E[G] ≈ A⁻¹ that a value brings along. The vectors are constants: no
product that led to them is recorded, so that what autograd saves does not grow with the steps, and
nothing is computed before `backward` asks for it. Until then an estimate holds its Krylov vectors,
k numbers for each entry of its probes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from specbp.jacobian import Jacobian, JacobianMetric
from specbp.operators import CountingOperator, as_operator


class Sensitivity(NamedTuple):
    """G = Σ_r w_r y_r y_rᵀ for every sample.

    Attributes:
        weights: w, (..., m, r), float64.
        vectors: y as rows, (..., m, r, n), in the operator's dtype.
        width: Columns that the products of the estimate had at once; None for as many as there are.
    """

    weights: Tensor
    vectors: Tensor
    width: int | None = None

    def dense(self) -> Tensor:
        """G itself, (..., m, n, n), float64."""
        rows = self.vectors.double()
        return (self.weights.unsqueeze(-1) * rows).mT @ rows


def compressed(weights: Tensor, vectors: Tensor, rtol: float | Tensor) -> Sensitivity:
    """Without the terms that are small: |w_r| |y_r|² ≤ rtol times the largest, for every sample.

    The eigenvalues of a Fréchet derivative fall geometrically, so a handful of vectors remain, and
    each of them costs a product with a graph.

    Args:
        weights: (..., m, r).
        vectors: (..., m, r, n).
        rtol: A number, or (..., 1, 1).
    """
    size = weights.abs() * vectors.double().square().sum(-1)
    large = ~(size <= rtol * size.amax(-1, keepdim=True))
    count = max(1, int(large.sum(-1).max()))
    kept = size.nan_to_num(torch.inf).topk(count, -1).indices
    rows = vectors.gather(-2, kept.unsqueeze(-1).expand(*kept.shape, vectors.shape[-1]))
    return Sensitivity(weights.gather(-1, kept), rows)


def rounding(dtype: torch.dtype) -> float:
    """What is left out of a derivative, relative to it: eps^0.6, 4e-10 in float64."""
    return float(torch.finfo(dtype).eps ** 0.6)


def inputs_of(operator: Any) -> tuple[Tensor, ...]:
    """The tensors on which a differentiable operator depends; none where gradients are off."""
    if not torch.is_grad_enabled():
        return ()
    return tuple(getattr(operator, "inputs", ()))


def attach(
    samples: Tensor, operator: Any, sensitivity: Callable[[], Sensitivity], *, factor: bool = False
) -> Tensor:
    """The same samples, with G for the gradient of each with respect to `operator.inputs`.

    Args:
        samples: One value per probe, (..., m), without a graph.
        operator: A, or a factor J with A = JᵀJ. If it is differentiable it has `inputs`, the
            tensors it depends on, and `pull_back(left, right)`, their gradients of Σ leftᵀ M right.
        sensitivity: Computes G when `backward` comes, or never.
        factor: Whether the operator is a factor.
    """
    inputs = inputs_of(operator)
    if not inputs:
        return samples
    operator, factor = _factored(operator, factor)
    found: Tensor = _Attached.apply(samples, operator, sensitivity, factor, *inputs)
    return found


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(samples: Tensor, *_: Any) -> Tensor:
        return samples.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        samples, ctx.operator, ctx.sensitivity, ctx.factor, *tensors = inputs
        ctx.failed = ~torch.isfinite(samples)
        ctx.save_for_backward(*tensors)  # so that autograd refuses those that were modified

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs = ctx.saved_tensors
        # A sample that failed has no gradient: NaN says so, where zero would be believed. One that
        # the loss leaves out is not asked for any.
        masked = grad.masked_fill(ctx.failed & (grad != 0), torch.nan)
        with torch.no_grad():
            grads = gradients(ctx.operator, ctx.sensitivity(), masked, factor=ctx.factor)
        pairs = zip(grads, inputs, strict=True)
        return (
            None,
            None,
            None,
            None,
            *(g if g is None else _Once.apply(g, grad, t) for g, t in pairs),
        )


class _Once(torch.autograd.Function):
    """A gradient that, where a graph of it is asked for, refuses to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *_: Tensor) -> Tensor:  # noqa: ARG004
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: ARG004
        raise RuntimeError(
            "The gradient of an estimate holds its vectors fixed and has no derivative of its own: "
            "for second derivatives use torch.logdet of an explicit matrix, or backprop_logdet."
        )


def _factored(operator: Any, factor: bool) -> tuple[Any, bool]:
    """A Gram matrix by its factor, which takes half the products: d(yᵀJᵀJy) = 2 (Jy)ᵀ dJ y."""
    while isinstance(operator, CountingOperator):
        operator = operator.operator
    if isinstance(operator, JacobianMetric) and not factor:
        return as_operator(operator.J), True
    return operator, factor


def gradients(
    operator: Any, G: Sensitivity, grad: Tensor, *, factor: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of Σ grad · tr(G A) with respect to `operator.inputs`, G held fixed."""
    unused = (grad == 0).unsqueeze(-1)  # whatever its vectors are, NaN among them
    weights = (grad.double().unsqueeze(-1) * G.weights).masked_fill(unused, 0)
    G = G._replace(vectors=G.vectors.masked_fill(unused.unsqueeze(-1), 0))
    if not isinstance(operator, Jacobian):
        right = G.vectors.flatten(-3, -2)
        left = 2 * (operator @ right.mT).mT if factor else right
        return tuple(operator.pull_back((weights.flatten(-2)[..., None] * left).to(right), right))
    # As wide as the blocks of the estimate, whose graphs and records serve again.
    width = G.width or operator.shape[-1]
    weights, right = _filled(weights.flatten(-2), G.vectors.flatten(-3, -2), width)
    images = torch.cat([(operator @ block.mT).mT for block in right.split(width, -2)], -2)
    left = (2 * weights.unsqueeze(-1) * images).to(right.dtype)
    return tuple(operator.pull_back(left, right, width=G.width))


def _filled(weights: Tensor, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Weights (..., r) and vectors (..., r, n) with zeros, to a multiple of the width."""
    missing = -rows.shape[-2] % width
    if rows.shape[-2] <= width or not missing:
        return weights, rows
    return pad(weights, (0, missing)), pad(rows, (0, 0, 0, missing))
