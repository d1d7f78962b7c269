"""The Jacobian of a torch callable at a batch of points, as an operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specbp.jacobian.checks import check_arguments, check_block
from specbp.jacobian.derivative import Derivative
from specbp.jacobian.fold import fold
from specbp.jacobian.params import copied, sources
from specbp.jacobian.primal import Primal, plain_evaluation, state
from specbp.jacobian.products import METHODS, AutoProducts, Products
from specbp.jacobian.recorded import RecordedMetric

CACHE_BYTES = 2**26  # working memory of a block on the CPU: more falls out of the cache, slower
DEVICE_BYTES = 2**30  # the same on other devices
GRAPH_COPIES = 4  # assumed: f, its adjoint and the derivatives of both are alive in the derivative
DENSE_WIDTH = 256  # columns of `Jacobian.dense`; more only need memory


class Jacobian:
    r"""The Jacobian of f at a batch of points, given by its products.

    .. math:: J = \frac{\partial f}{\partial z}, \qquad
              J x = \frac{d}{dt} f(z + t x) \Big|_{t=0}, \qquad
              J^\top u = \nabla_z \langle u, f(z) \rangle

    ``J @ X`` maps blocks of columns (..., n, m) to (..., N, m), ``J.mT @ U`` maps (..., N, m) to
    (..., n, m), n and N being the numbers of elements of an event and of an output. Leading
    dimensions broadcast against those of z as in matmul; those that z does not have (replicates)
    are multiplied as further columns of the same point. Blocks come back as the library keeps them,
    transposed views of rows (..., m, N). N < n is allowed: JᵀJ is singular then.

    Products are detached: nothing differentiates through them, no ``.grad`` is touched. They are
    the same under no_grad, inference_mode and autocast. Estimates of log det JᵀJ carry a gradient
    all the same, by `pull_back`: with respect to the parameters that f uses (leaf tensors that
    require a gradient, those of a module or of a closure), and to z.

    Args:
        f: Function or module, (b, *event) -> (b, *out), each of the b items on its own; b is the
            number of points, or a multiple of it, whatever suits the products.
        z: Points (*batch, *event), float32 or float64; they are copied.
        event_dim: Number of dimensions of an event, at least 1.
        method: Strategy of the products; they agree to rounding.

            - ``"forward"``: vmap over `torch.func.jvp` and over a retained `torch.func.vjp`.
            - ``"graph"``: the autograd graph of f at every point repeated m times; Jᵀu is one
              backward, J x one backward through the backward. Keeps the activations of b·m points
              for the two widths m used last (measured: 2.5 times their bytes).
            - ``"tape"``: the tensor operations that remain of such a product when x alone changes,
              recorded and replayed. Keeps the activations of b points; of b·m for small blocks.
            - ``"auto"``: by the width m, see below.
        chunk_size: Columns multiplied at once. By default so many that a block needs 64 MiB of
            working memory on the CPU (more is slower), 1 GiB elsewhere: twice the bytes that the
            operations of f return at the b points, per column. Measured: 0.5 to 1.5 times.
        check: Test f at z for what the shapes do not show: couplings between items (down to
            sqrt(eps) of the scale of f), random values, hidden or cut derivatives. This costs one
            evaluation at 2b points, and one more J x and Jᵀu with the first product. Pass False for
            an f that rounding alone moves by more, through cancellation.
        params: Tensors, in any nesting of lists and dictionaries, that f takes as its first
            argument, f(params, z), and with respect to which gradients are taken: for functional
            models, and for parameters that are results of other operations.

    Raises:
        TypeError: If f returns no tensor of z's dtype or normalises with statistics of the batch
            (BatchNorm in training mode: call ``.eval()``); if z or a block is no tensor, or of
            another dtype.
        ValueError: If shapes or devices do not fit, if f(z) is not finite, and if ``check`` finds f
            to couple items, to be random, or to hide its derivative.
        RuntimeError: At a product, if f has no such derivative, or if its parameters were modified
            in place after J was built (for a plain function: noticed when a recorded product is
            repeated).

    **The rule of "auto"** looks at the width m and at the bytes that an operation of f returns on
    average at the b points, times m. Up to 96 KiB the overhead of an operation costs more than its
    work: the first product of a width is one of "graph", the second records it on a tape, later
    ones replay that. Beyond, the first runs the tape of a single column under vmap, the second
    records this, later ones replay it. Where f does not allow a strategy the next one is tried.

    Milliseconds per pair J x, Jᵀu, set-up included, averaged over 20 pairs (float32, one point, one
    thread of a shared CPU, torch 2.13; `python -m verification products` measures the like on your
    machine); "auto" with the 25 µs per product that the operator itself takes, the others without.
    ``linearize`` is `torch.func.linearize`, kept for all products: its set-up takes 150 to 400 ms.

    ==========================  ====  =======  =======  =========  =======
    f                              m  forward    graph  linearize     auto
    ==========================  ====  =======  =======  =========  =======
    bottleneck ResNet on R²        1     3.19     0.30       16.2     0.32
    (4 blocks, hidden 32)         16     3.36     0.32       16.1     0.35
    .                             64     3.50     0.37       16.8     0.41
    the same on R⁷⁸⁴, hidden 64    1     3.44     0.40       16.4     0.42
    .                             16     4.26     0.79       12.3     0.83
    .                             64     5.20     1.77       17.7     1.81
    convolutional ResNet,          1     3.66     1.41       10.3     1.07
    1x16x16, width 16             16     7.95     7.53       18.5     5.01
    .                             64     20.0     37.9       26.4     15.4
    DCGAN, 64 -> 1x32x32           1     5.18     1.51       9.66     1.33
    .                             16     7.15     4.08       16.9     3.52
    .                             64     13.7     12.5       21.9     9.36
    DCGAN, 128 -> 3x64x64          1     11.5     5.49       13.3     4.47
    .                             16     43.2     46.3       45.5     33.5
    .                             64      147      180        154     98.0
    ==========================  ====  =======  =======  =========  =======

    On these maps (m = 1 to 64, both dtypes) the products chosen took at most 1.2 times those of the
    best strategy for a single pair, 1.1 times for 10, 20 and 40 pairs; up to 2.1 times for 2 or 3,
    when a record is paid for and hardly replayed. An attention block took 1.5 times as long as its
    graph for 10 pairs with m = 1.

    Example:
        >>> import torch
        >>> z = torch.tensor([2.0, 5.0])
        >>> J = Jacobian(lambda x: x.prod(-1, keepdim=True) * torch.ones(3), z)
        >>> J @ torch.eye(2)
        tensor([[5., 2.],
                [5., 2.],
                [5., 2.]])
        >>> J.mT @ torch.ones(3, 1)
        tensor([[15.],
                [ 6.]])
    """

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        z: Tensor,
        *,
        event_dim: int = 1,
        method: str = "auto",
        chunk_size: int | None = None,
        check: bool = True,
        params: Any = None,
    ):
        check_arguments(f, z, event_dim, chunk_size)
        if method not in METHODS:
            msg = f"method must be one of {', '.join(map(repr, METHODS))}; got {method!r}."
            raise ValueError(msg)
        self._batch, self._event = z.shape[: z.ndim - event_dim], z.shape[z.ndim - event_dim :]
        copies = None
        if params is not None:
            copies = copied(params)
            f = partial(f, copies)
        with plain_evaluation(z.device):
            points = z.detach().clone().reshape(-1, *self._event)
        self._primal = Primal.evaluate(f, points, check=check)
        self._out = self._primal.value.shape[1:]
        self._state = state(f)
        self._versions = [tensor._version for tensor in self._state.values()]
        self._products: Products = METHODS[method](self._primal)
        self._sources, parameters = sources(self._primal.leaves, params, copies)
        self._derivative = Derivative(self._primal, parameters)
        self._source = z if z.requires_grad else None
        self._chunk_size = chunk_size
        self.method = method
        self.shape = torch.Size((*self._batch, math.prod(self._out), math.prod(self._event)))
        self.dtype, self.device = z.dtype, z.device

    def __repr__(self) -> str:
        return (
            f"Jacobian(shape={tuple(self.shape)}, dtype={self.dtype}, device={str(self.device)!r}, "
            f"method={self.method!r})"
        )

    @property
    def value(self) -> Tensor:
        """f(z), shape (*batch, *out), detached."""
        return self._primal.value.reshape(*self._batch, *self._out)

    @property
    def mT(self) -> JacobianAdjoint:
        """The adjoint, (*batch, n, N), again with `@`."""
        return JacobianAdjoint(self)

    def __matmul__(self, X: Tensor) -> Tensor:
        return self._multiply(X, adjoint=False)

    def dense(self, *, max_bytes: int | None = None) -> Tensor:
        """J itself, (*batch, N, n): by JVPs of identity columns, or by N VJPs if N < n.

        Blocks have 256 columns, or fewer if 32 MiB of working memory bound them (measured, for n
        from 64 to 1024: at most 1.2 times as long as the best strategy with the best width, 1.5
        times for a float64 convolution; `torch.func.jacfwd` takes 1.04 to 5 times the best).

        Args:
            max_bytes: Working memory beside the result; by default as for products.
        """
        (N, n), b = self.shape[-2:], len(self._primal.z)
        adjoint = n > N  # rows by VJPs rather than columns by JVPs
        width = min(DENSE_WIDTH, self._width(max_bytes, CACHE_BYTES // 2))
        identity = torch.eye(min(n, N), dtype=self.dtype, device=self.device)
        rows = self._in_blocks(identity.expand(b, -1, -1), width, adjoint=adjoint)
        rows = rows.reshape(*self._batch, *rows.shape[1:])
        return rows if adjoint else rows.mT

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors that J depends on and that require a gradient: parameters, then z."""
        return (*self._sources, *([] if self._source is None else [self._source]))

    def pull_back(
        self, left: Tensor, right: Tensor, *, width: int | None = None
    ) -> tuple[Tensor, ...]:
        r"""Gradients of Σ leftᵀ J right in `inputs`, both held fixed.

        Args:
            left: Rows (..., r, N), their leading dimensions broadcasting against those of z.
            right: Rows (..., r, n), likewise.
            width: Columns differentiated at once, the products' graphs making room for them; by
                default as many as the products take.
        """
        self._check_state()
        most = max(1, self._width() // GRAPH_COPIES)
        if width is not None:
            self._products = METHODS[self.method](self._primal)
            # The graphs of the products are gone, and those of half as many columns more may be.
            most = min(most, max(1, 3 * width // 2))
        u, x = (fold(rows.detach(), self._batch)[0] for rows in (left, right))
        total = self._derivative.summed(u, x, most)
        at_points = total.pop()
        if self._source is not None:
            total.append(at_points.reshape(self._source.shape))
        return tuple(total)

    def recorded_metric(self, *, reuse: bool = True) -> RecordedMetric:
        """JᵀJ with products that keep their graph, for reverse mode through a recurrence."""
        z = self._primal.z if self._source is None else self._source
        points = z.reshape(*self._batch, *self._event)
        return RecordedMetric(self._primal.f, points, len(self._batch), reuse=reuse)

    def _multiply(self, X: Tensor, *, adjoint: bool) -> Tensor:
        N, n = self.shape[-2:]
        shape = (*self._batch, n, N) if adjoint else self.shape
        check_block(X, shape, self.dtype, self.device, "J.mT @ U" if adjoint else "J @ X")
        rows = X.detach().mT
        if X.shape[:-2] == self._batch:
            folded = rows.reshape(len(self._primal.z), *rows.shape[-2:])
            result = self._in_blocks(folded, self._width(), adjoint=adjoint)
            result = result.reshape(*rows.shape[:-1], shape[-2])
        else:
            result = self._multiply_broadcast(rows, adjoint=adjoint)
        if result.untyped_storage().data_ptr() == X.untyped_storage().data_ptr():
            result = result.clone()  # f passes elements through: do not hand out the caller's own
        return result.mT

    def _multiply_broadcast(self, rows: Tensor, *, adjoint: bool) -> Tensor:
        """Products of rows whose leading dimensions are not the batch's own."""
        folded, restore = fold(rows, self._batch)
        return restore(self._in_blocks(folded, self._width(), adjoint=adjoint))

    def _in_blocks(self, rows: Tensor, width: int, *, adjoint: bool) -> Tensor:
        """(b, m, n) -> (b, m, N), or back for the adjoint, at most ``width`` rows at a time."""
        self._check_state()
        if 1 <= rows.shape[1] <= width:
            return self._block(rows, adjoint=adjoint)
        blocks = _blocks(rows.shape[1], width)
        if blocks and isinstance(self._products, AutoProducts):
            self._products.announce("vjp" if adjoint else "jvp", blocks[0].stop)
        size = self.shape[-1] if adjoint else self.shape[-2]
        result = rows.new_empty(*rows.shape[:2], size)
        for block in blocks:
            result[:, block] = self._block(rows[:, block], adjoint=adjoint)
        return result

    def _block(self, rows: Tensor, *, adjoint: bool) -> Tensor:
        apply = self._products.vjp if adjoint else self._products.jvp
        with plain_evaluation(self.device):
            result = apply(rows.reshape(*rows.shape[:2], *(self._out if adjoint else self._event)))
            return result.reshape(*rows.shape[:2], -1)

    def _width(self, max_bytes: int | None = None, cache_bytes: int = CACHE_BYTES) -> int:
        """Columns per block: their working memory was at most 1.5 times that of f's results."""
        if max_bytes is None:
            if self._chunk_size is not None:
                return self._chunk_size
            max_bytes = cache_bytes if self.device.type == "cpu" else DEVICE_BYTES
        return max(1, max_bytes // (2 * self._primal.activation_bytes + 1))

    def _check_state(self) -> None:
        if [tensor._version for tensor in self._state.values()] == self._versions:
            return
        pairs = zip(self._state.items(), self._versions, strict=True)
        name = next(name for (name, t), version in pairs if t._version != version)
        msg = (
            f"{name!r} of f was modified in place after the Jacobian was built (by an optimizer "
            "step, or by a layer that updates itself in training mode): build a new Jacobian, or "
            "call .eval()."
        )
        raise RuntimeError(msg)


class JacobianAdjoint:
    """Jᵀ, (*batch, n, N), a view of a `Jacobian`: ``J.mT @ U`` maps (..., N, m) to (..., n, m)."""

    def __init__(self, J: Jacobian):
        self.mT = J
        self.shape = torch.Size((*J.shape[:-2], J.shape[-1], J.shape[-2]))
        self.dtype, self.device = J.dtype, J.device

    def __repr__(self) -> str:
        return f"{self.mT!r}.mT"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Those of the Jacobian."""
        return self.mT.inputs

    def pull_back(self, left: Tensor, right: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of Σ leftᵀ Jᵀ right in the inputs."""
        return self.mT.pull_back(right, left)

    def __matmul__(self, U: Tensor) -> Tensor:
        return self.mT._multiply(U, adjoint=True)


def _blocks(columns: int, width: int) -> list[slice]:
    """Blocks of one width that cover the columns: the last may overlap the one before it."""
    count = -(-columns // width)
    width = -(-columns // max(1, count))
    starts = [min(i * width, columns - width) for i in range(count)]
    return [slice(start, start + width) for start in starts]
