"""Networks at a point with the exact gradient of log det JᵀJ, and their linearised Jacobians."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from specbp import Jacobian, generator_for, qr_logdet
from specbp.sensitivities import log_differences
from verification import training
from verification.experiments.gradients_estimators import Limit
from verification.training import State

WIDTH = 64  # columns differentiated at once
POINT = ""  # key of the point in a tree of parameters: no parameter has an empty name

Tree = dict[str, Tensor]
Variables = Literal["parameters", "point"]


@dataclass(frozen=True, eq=False)
class Case:
    r"""One network at one point, small enough to know everything about it.

    .. math:: Q^\top J(\theta + \textstyle\sum_d \alpha_d \delta_d)
              = R + \sum_d \alpha_d\, Q^\top \partial_d J + O(\alpha^2), \qquad J(\theta) = Q R

    The directions δ_d are normal over all variables, E[δ δᵀ] = I, so that the mean over d of
    (∇ · δ_d)² estimates |∇|² without bias, and so does that of the variances of ∇ · δ_d estimate
    their sum over all variables. Only QᵀJ matters for the first derivatives of JᵀJ.

    Attributes:
        name: Key of `training.MODELS`, and the state of the weights.
        variables: With respect to which gradients are taken.
        f: The network, float64, its parameters with gradients.
        z: The point (1, *event).
        directions: δ, trees like the variables.
        R: Triangular factor of J, (n, n), float64.
        slopes: Qᵀ ∂_d J, (d, n, n).
        exact: Exact gradient along the directions, (d,).
        norm: Norm of the exact gradient.
        eigenvalues: Of JᵀJ, ascending (n,).
        vectors: Its eigenvectors as columns (n, n).
    """

    name: str
    variables: Variables
    f: nn.Module
    z: Tensor
    directions: list[Tree]
    R: Tensor
    slopes: Tensor
    exact: Tensor
    norm: float
    eigenvalues: Tensor
    vectors: Tensor

    @property
    def label(self) -> str:
        """Name and variables, as figures and tables show them."""
        return self.name + (", in z" if self.variables == "point" else "")

    @property
    def interval(self) -> tuple[float, float]:
        """The true ends of the spectrum."""
        return float(self.eigenvalues[0]), float(self.eigenvalues[-1])

    @cached_property
    def changes(self) -> Tensor:
        """Derivatives of JᵀJ along all directions, in its eigenbasis (d, n, n)."""
        half = self.R.mT @ self.slopes
        return self.vectors.mT @ (half + half.mT) @ self.vectors

    def forms(self, limit: Limit) -> Tensor:
        """Those of log JᵀJ, or of JᵀJ times its inverse, made symmetric, (d, n, n)."""
        if limit == "log":
            return self.changes * log_differences(self.eigenvalues)
        inverse = 1 / self.eigenvalues
        return self.changes * (inverse.unsqueeze(-1) + inverse) / 2


def network(name: str, state: State, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A network of the registry that takes gradients, and its first held-out point (1, *event)."""
    f = training.build(name, state, dtype).requires_grad_(True)
    return f, training.points(name, 1, dtype)


def jacobian(f: nn.Module, z: Tensor) -> Jacobian:
    """The Jacobian (1, N, n) of a network, not tested again."""
    return Jacobian(f, z, event_dim=z.ndim - 1, check=False)


def case(name: str, state: State, directions: int, variables: Variables = "parameters") -> Case:
    """Everything about one network, in float64.

    Args:
        name: Key of `training.MODELS`.
        state: ``"init"`` or ``"digits"``.
        directions: Number of random directions.
        variables: With respect to which gradients are taken.

    Raises:
        ValueError: If the gradient is zero, as in the point of a piecewise linear network.
    """
    f, z = network(name, state, torch.float64)
    gradient = exact_gradient(f, z, variables)
    norm = float(dot(gradient, gradient).sqrt())
    if norm == 0:
        msg = f"log det JᵀJ of {name} has no gradient in its {variables}: nothing is relative to 0."
        raise ValueError(msg)
    draws = generator_for("gradients", name, state, variables)
    random = [_normal_like(gradient, draws) for _ in range(directions)]
    Q, R = torch.linalg.qr(jacobian(f, z).dense()[0])
    eigenvalues, vectors = torch.linalg.eigh(R.mT @ R)
    return Case(
        name=f"{name} {state}",
        variables=variables,
        f=f,
        z=z,
        directions=random,
        R=R,
        slopes=torch.stack([Q.mT @ _slope(f, z, direction) for direction in random]),
        exact=torch.stack([dot(gradient, direction) for direction in random]),
        norm=norm,
        eigenvalues=eigenvalues.clamp_min(torch.finfo(R.dtype).tiny),
        vectors=vectors,
    )


def exact_gradient(f: nn.Module, z: Tensor, variables: Variables = "parameters") -> Tree:
    """Gradient of log det JᵀJ from `qr_logdet`."""
    z = z.detach().requires_grad_(variables == "point")
    return gradient_of(qr_logdet(jacobian(f, z)).value.sum(), f, z)


def gradient_of(value: Tensor, f: nn.Module, z: Tensor) -> Tree:
    """Gradient in the point if it requires one, in the parameters of f otherwise."""
    tree = {POINT: z} if z.requires_grad else dict(f.named_parameters())
    found = torch.autograd.grad(
        value, list(tree.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(tree, found, strict=True))


def dense_gradient(f: nn.Module, z: Tensor) -> Tree:
    """The same by differentiating `torch.linalg.slogdet` of a Jacobian by `torch.func.jacfwd`."""

    def output(x: Tensor) -> Tensor:
        return f(x.unsqueeze(0)).flatten()

    J = torch.func.jacfwd(output)(z[0]).flatten(1)
    return gradient_of(torch.linalg.slogdet(J.mT @ J).logabsdet, f, z)


def dot(a: Tree, b: Tree) -> Tensor:
    """Inner product of two trees."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def _normal_like(tree: Tree, draws: torch.Generator) -> Tree:
    return {k: torch.randn(t.shape, generator=draws, dtype=t.dtype) for k, t in tree.items()}


def _slope(f: nn.Module, z: Tensor, direction: Tree) -> Tensor:
    """Derivative of J, (N, n), along a direction: forward over forward mode."""
    tree = {name: p.detach() for name, p in f.named_parameters()} | {POINT: z}
    tree = {name: tree[name] for name in direction}

    def images(rows: Tensor) -> Tensor:
        def at(variables: Any) -> Tensor:
            point = variables.get(POINT, z)
            parameters = {k: t for k, t in variables.items() if k != POINT}

            def evaluate(x: Tensor) -> Tensor:
                return functional_call(f, parameters, (x,))

            def column(x: Tensor) -> Tensor:
                return jvp(evaluate, (point,), (x.view_as(z),))[1]

            return vmap(column)(rows).flatten(1)

        with torch.no_grad():
            return jvp(at, (tree,), (direction,))[1]

    identity = torch.eye(z[0].numel(), dtype=z.dtype)
    return torch.cat([images(rows) for rows in identity.split(WIDTH)]).mT


class Linearised:
    r"""J(α) = R + Σ_d α_d S_d at α = 0, for a batch of replicates with an α each.

    A differentiable operator like `specbp.Jacobian`: estimates of log det JᵀJ carry the gradient in
    α, hence directional derivatives in the parameters of the network, without its evaluation.

    Args:
        R: (n, n).
        slopes: (d, n, n).
        replicates: Size b of the batch.
    """

    def __init__(self, R: Tensor, slopes: Tensor, replicates: int):
        self.R, self.slopes = R, slopes
        self.alpha = R.new_zeros(replicates, len(slopes)).requires_grad_()
        self.shape = torch.Size((replicates, *R.shape))
        self.dtype, self.device = R.dtype, R.device

    @property
    def mT(self) -> Linearised:
        """The adjoint."""
        adjoint = Linearised(self.R.mT, self.slopes.mT, 0)
        adjoint.alpha, adjoint.shape = self.alpha, self.shape
        return adjoint

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """α, (b, d)."""
        return (self.alpha,)

    def pull_back(self, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        """Gradients of Σ leftᵀ J right in α."""
        outer = left.mT @ right
        return (outer.flatten(1) @ self.slopes.flatten(1).mT,)

    def __matmul__(self, X: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(X.shape[:-2], self.shape[:-2])
        return (X.detach().mT @ self.R.mT).mT.expand(*lead, *X.shape[-2:])
