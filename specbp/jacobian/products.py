"""Strategies for products with a Jacobian and with its adjoint at fixed points.

Every strategy maps blocks of rows: ``jvp`` (b, m, *event) -> (b, m, *out), ``vjp`` the other way.
Callers wrap them in `plain_evaluation`.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from specbp.jacobian.primal import Primal, rounding_unit, uneven
from specbp.jacobian.tape import StaleError, Tape

MAX_GRAPHS = 2  # graphs kept, by width: a block and a single column
MAX_TAPES = 4  # tapes kept, by width and direction
SMALL_BYTES = 96 * 2**10  # mean result of an operation on a block: below, overhead dominates

K = TypeVar("K")
T = TypeVar("T")


class Products(Protocol):
    """Block products with J and Jᵀ."""

    def jvp(self, rows: Tensor) -> Tensor:
        """J x for each row x: (b, m, *event) -> (b, m, *out)."""

    def vjp(self, rows: Tensor) -> Tensor:
        """Jᵀ u for each row u: (b, m, *out) -> (b, m, *event)."""


class ForwardProducts:
    """Forward-mode J and reverse-mode Jᵀ, by `torch.func`; each J product evaluates f again."""

    def __init__(self, primal: Primal):
        self.f, self.z = primal.f, primal.z
        self._pullback: Callable[[Tensor], tuple[Tensor]] | None = None

    def jvp(self, rows: Tensor) -> Tensor:
        """Map the block by vmap over JVPs."""
        return torch.func.vmap(self._pushforward, in_dims=1)(rows).transpose(0, 1)

    def vjp(self, rows: Tensor) -> Tensor:
        """Map the block by vmap over a retained VJP."""
        if self._pullback is None:
            _, self._pullback, *_ = torch.func.vjp(self.f, self.z)
        (result,) = torch.func.vmap(self._pullback, in_dims=1)(rows)
        return result.transpose(0, 1)

    def _pushforward(self, x: Tensor) -> Tensor:
        return torch.func.jvp(self.f, (self.z,), (x,))[1]


class Graph:
    """The autograd graph of f at every point repeated, and that of u -> Jᵀu built upon it."""

    def __init__(self, primal: Primal, width: int):
        self.z = primal.z.repeat_interleave(width, 0).requires_grad_()
        with torch.enable_grad():
            self.value = primal.f(self.z)
        self._adjoint: tuple[Tensor, Tensor] | None = None

    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀu: one backward."""
        return _derivative(self.value, self.z, u)

    def jvp(self, x: Tensor) -> Tensor:
        """J x, as the adjoint of u -> Jᵀu, which is linear: one backward through a backward."""
        if self._adjoint is None:
            with torch.enable_grad():
                u = torch.zeros_like(self.value).requires_grad_()
                self._adjoint = u, _derivative(self.value, self.z, u, create_graph=True)
        u, image = self._adjoint
        return _derivative(image, u, x)

    def check_adjoint(self) -> None:
        """<u, J x> = <Jᵀu, x>, which fails when a backward inside f is cut from the graph."""
        x, u = uneven(self.z.detach()), uneven(self.value.detach())
        left, right = u * self.jvp(x), self.vjp(u) * x
        b = len(x)
        gap = (left.reshape(b, -1).sum(1) - right.reshape(b, -1).sum(1)).abs()
        scale = left.abs().reshape(b, -1).sum(1) + right.abs().reshape(b, -1).sum(1)
        if bool((gap > math.sqrt(rounding_unit(x)) * scale).any()):
            msg = (
                "the derivative of f is not differentiable in turn (a custom autograd.Function "
                "with @once_differentiable, or one that detaches in its backward)"
            )
            raise RuntimeError(msg)


class GraphProducts:
    """One batched backward per product, through the graphs of the block widths used last."""

    def __init__(self, primal: Primal):
        self.primal = primal
        self._graphs: OrderedDict[int, Graph] = OrderedDict()
        self._unchecked = primal.check

    def jvp(self, rows: Tensor) -> Tensor:
        """Map the block by one double backward."""
        return self.source("jvp", rows)(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])

    def vjp(self, rows: Tensor) -> Tensor:
        """Map the block by one backward."""
        return self.source("vjp", rows)(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])

    def source(self, direction: str, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """The map (b·m, ...) -> (b·m, ...) of blocks like these rows (b, m, ...)."""
        width = rows.shape[1]
        graph = _recall(self._graphs, width)
        if graph is None:
            graph = _remember(self._graphs, width, Graph(self.primal, width), MAX_GRAPHS)
        if direction == "jvp" and self._unchecked:
            graph.check_adjoint()
            self._unchecked = False
        return graph.jvp if direction == "jvp" else graph.vjp


class MappedProducts:
    """The tape of one column, run under vmap: no set-up per width.

    Every activation is kept and read once for all columns, nothing is computed that is not needed.
    """

    def __init__(self, graphs: GraphProducts):
        self._graphs = graphs
        self._single: dict[str, Tape] = {}

    def jvp(self, rows: Tensor) -> Tensor:
        """Map the block by vmap."""
        return self.source("jvp", rows)(rows.transpose(0, 1)).transpose(0, 1)

    def vjp(self, rows: Tensor) -> Tensor:
        """Map the block by vmap."""
        return self.source("vjp", rows)(rows.transpose(0, 1)).transpose(0, 1)

    def source(self, direction: str, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """The map (m, b, ...) -> (m, b, ...) of blocks like these rows (b, m, ...)."""
        if direction not in self._single:
            one = self._graphs.source(direction, rows[:, :1])
            self._single[direction], _ = Tape.record(one, torch.zeros_like(rows[:, 0]))
        single = self._single[direction]
        return torch.func.vmap(single)


class TapeProducts:
    """Replays of products recorded at the first use of each width: see `Tape`.

    Small blocks are recorded from a backward through the graph of their width, others from the tape
    of one column under vmap.
    """

    def __init__(self, graphs: GraphProducts, mapped: MappedProducts):
        self._graphs, self._mapped = graphs, mapped
        self._tapes: OrderedDict[tuple[str, int], Tape] = OrderedDict()

    def jvp(self, rows: Tensor) -> Tensor:
        """Map the block by the tape of its width."""
        return self._apply("jvp", rows)

    def vjp(self, rows: Tensor) -> Tensor:
        """Map the block by the tape of its width."""
        return self._apply("vjp", rows)

    def _apply(self, direction: str, rows: Tensor) -> Tensor:
        shape = rows.shape[:2]
        small = is_small(self._graphs.primal, shape[1])
        tape = _recall(self._tapes, (direction, shape[1]))
        x = rows.flatten(0, 1) if small else rows.transpose(0, 1)
        if tape is not None:
            y = tape(x)
        else:
            base = self._graphs if small else self._mapped
            tape, y = Tape.record(base.source(direction, rows), x)
            _remember(self._tapes, (direction, shape[1]), tape, MAX_TAPES)
        return y.unflatten(0, shape) if small else y.transpose(0, 1)


class AutoProducts:
    """The strategy that `choice` names; where f does not allow it, the next one that works.

    Once the strategy named has worked for blocks of a width, its later errors are raised.
    """

    def __init__(self, primal: Primal):
        self.primal = primal
        graphs = GraphProducts(primal)
        mapped = MappedProducts(graphs)
        self._strategies: dict[str, Products] = {
            "tape": TapeProducts(graphs, mapped),
            "mapped": mapped,
            "graph": graphs,
            "forward": ForwardProducts(primal),
        }
        self._products: Counter[tuple[str, int]] = Counter()
        self._worked: set[tuple[str, str, int]] = set()
        self._failed: dict[tuple[str, str, int], str] = {}

    def jvp(self, rows: Tensor) -> Tensor:
        """Map the block."""
        return self._apply("jvp", rows)

    def vjp(self, rows: Tensor) -> Tensor:
        """Map the block."""
        return self._apply("vjp", rows)

    def announce(self, direction: str, width: int) -> None:
        """Several products of this width are coming at once: do not wait for the second."""
        self._products[direction, width] += 1

    def _apply(self, direction: str, rows: Tensor) -> Tensor:
        width = rows.shape[1]
        first = choice(self.primal, width, self._products[direction, width])
        self._products[direction, width] += 1
        if (first, direction, width) in self._worked:
            return getattr(self._strategies[first], direction)(rows)
        names = [first, *(name for name in self._strategies if name != first)]
        for key in ((name, direction, width) for name in names):
            if key in self._failed:
                continue
            try:
                result = getattr(self._strategies[key[0]], direction)(rows)
            except RuntimeError as error:
                if is_final(error):
                    raise
                self._failed[key] = str(error)
            else:
                self._worked.add(key)
                return result
        told = dict.fromkeys(self._failed[name, direction, width] for name in names)
        msg = (
            f"No strategy can compute the {direction.upper()} of f ({'; '.join(told)}). Replace "
            "the operation named, or give its autograd.Function a differentiable backward."
        )
        raise RuntimeError(msg)


def is_final(error: RuntimeError) -> bool:
    """Whether another strategy would only hide the error; the last one is autograd's StaleError."""
    if isinstance(error, StaleError | torch.OutOfMemoryError):
        return True
    return "modified by an inplace operation" in str(error)


def choice(primal: Primal, width: int, earlier: int) -> str:
    """The rule of ``method="auto"`` (see `Jacobian`), after ``earlier`` products of this width."""
    if earlier:
        return "tape"
    return "graph" if is_small(primal, width) else "mapped"


def is_small(primal: Primal, width: int) -> bool:
    """Whether overhead dominates a block, so that repeating the points per column is cheap."""
    return width == 1 or width * primal.mean_bytes <= SMALL_BYTES


def _tape(primal: Primal) -> Products:
    graphs = GraphProducts(primal)
    return TapeProducts(graphs, MappedProducts(graphs))


METHODS: dict[str, Callable[[Primal], Products]] = {
    "auto": AutoProducts,
    "forward": ForwardProducts,
    "graph": GraphProducts,
    "tape": _tape,
}


def _derivative(y: Tensor, x: Tensor, weights: Tensor, *, create_graph: bool = False) -> Tensor:
    """The adjoint of dy/dx applied to the weights; zero where y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (result,) = torch.autograd.grad(
        y,
        x,
        weights,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return result


def _recall(cache: OrderedDict[K, T], key: K) -> T | None:
    if key in cache:
        cache.move_to_end(key)
    return cache.get(key)


def _remember(cache: OrderedDict[K, T], key: K, value: T, size: int) -> T:
    """Add an entry; the one used longest ago makes room."""
    cache[key] = value
    while len(cache) > size:
        cache.popitem(last=False)
    return value
