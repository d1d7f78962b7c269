"""Probes of estimators that draw them inside: matrices that write down what they are multiplied by.

The first thing a stochastic trace or log-determinant does with its probes is to multiply A by them.
A matrix that logs the other factor of its products therefore reveals the probes of any estimator,
whoever wrote it, without a change to its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specbp.testing.blackbox import call_seeded


class Product(NamedTuple):
    """One product as it was asked for.

    Attributes:
        block: What A, or its transpose, was multiplied by, as columns (..., n, m).
        adjoint: Whether it was the transpose.
    """

    block: Tensor
    adjoint: bool


class RecordingOperator:
    r"""An operator that logs the input of every product and passes it on.

    .. math:: X \mapsto A X, \qquad X \text{ is appended to the record}

    It has `shape`, `dtype`, `device`, `ndim`, `size`, `dim`, `@` from both sides, `matmul`, `mT`
    and `T`, which is what estimators written for operators ask for. Adjoints write to the same
    record. Blocks are (..., n, m) of the operator's dtype; vectors (n,) are logged as (n, 1).

    Args:
        operator: Anything with `shape`, `dtype`, `device` and `@`; for products from the left and
            for `mT` it needs `mT` itself.

    Raises:
        TypeError: If `mT` is asked for and the operator has none.

    Source: the idea of a test double that records its calls, Meszaros (2007), xUnit Test Patterns,
    ISBN 978-0131495050.

    Example:
        >>> import torch
        >>> A = RecordingOperator(torch.eye(3))
        >>> _ = A @ torch.ones(3, 2)
        >>> [tuple(product.block.shape) for product in A.record]
        [(3, 2)]
    """

    def __init__(
        self, operator: Any, record: list[Product] | None = None, *, transposed: bool = False
    ):
        self.operator, self.transposed = operator, transposed
        self.record: list[Product] = [] if record is None else record

    shape = property(lambda self: self.operator.shape)
    dtype = property(lambda self: self.operator.dtype)
    device = property(lambda self: self.operator.device)
    ndim = property(lambda self: len(self.operator.shape))

    def size(self, dim: int | None = None) -> Any:
        """Shape, or one entry of it."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Number of dimensions."""
        return self.ndim

    @property
    def mT(self) -> RecordingOperator:
        """The adjoint, with the same record."""
        adjoint = getattr(self.operator, "mT", None)
        if adjoint is None:
            raise TypeError(f"{type(self.operator).__name__} has no adjoint `.mT`: give it one.")
        return RecordingOperator(adjoint, self.record, transposed=not self.transposed)

    T = mT

    def __matmul__(self, X: Tensor) -> Any:
        self.record.append(Product(_columns(X), self.transposed))
        return self.operator @ X

    matmul = __matmul__

    def __rmatmul__(self, X: Tensor) -> Any:
        return self.mT @ X if X.ndim == 1 else (self.mT @ X.mT).mT


class RecordingTensor(Tensor):
    r"""A tensor that logs what it is multiplied by, for libraries that accept nothing but tensors.

    Products are `@`, `matmul`, `mm`, `mv`, `bmm`, `linear` and `einsum`; their results are plain
    tensors. Transposes, copies, views and sums or multiples of it stay recording and share its
    record, so that A / s − I is followed too. What is computed in another way (A.diagonal(),
    factorisations, element-wise products with probes) is not seen.

    Attributes:
        record: `Product`s in the order in which they were asked for.
        transposed: Whether this is the transpose of the tensor that was wrapped.

    Source: the protocol `__torch_function__`, https://docs.pytorch.org/docs/stable/notes/extending.

    Example:
        >>> import torch
        >>> A = recording_tensor(torch.eye(3))
        >>> _ = torch.ones(2, 3) @ A.mT
        >>> A.record[0].block.shape, A.record[0].adjoint
        (torch.Size([3, 2]), False)
    """

    record: list[Product]
    transposed: bool

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Log products, and keep the record on what is A again."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _PRODUCTS:
                _log(func, (*args, *kwargs.values()))
            out = func(*args, **kwargs)
            source = next((a for a in args if _records(a)), None)
            if source is None or not _is_same_matrix(func, source, out):
                return out
            return _wrap(out, source.record, source.transposed ^ (func in _TRANSPOSING))


def recording_tensor(A: Tensor) -> RecordingTensor:
    """Wrap a tensor (..., n, n) with an empty record; it shares A's memory and graph."""
    return _wrap(A, [], transposed=False)


def recording(A: Any) -> Any:
    """The recorder that fits: `RecordingTensor` for a tensor, `RecordingOperator` otherwise."""
    return recording_tensor(A) if isinstance(A, Tensor) else RecordingOperator(A)


def first_block(record: Sequence[Product]) -> Tensor:
    """The first block that is not zero, (..., n, m): the probes, up to scaling, in their own dtype.

    Solvers begin with a product with their initial guess, zero: such blocks are left out. An
    estimator may normalise its probes before it multiplies; then the block is normalised too.

    Args:
        record: `record` of a `RecordingOperator` or `RecordingTensor`.

    Raises:
        ValueError: If no product with a block other than zero was recorded.

    Source: (c) of "probe access", that is, homogeneity est(cx) = c² est(x) of a quadratic form.

    Example:
        >>> import torch
        >>> A = RecordingOperator(torch.eye(2))
        >>> _ = A @ torch.zeros(2, 1), A @ torch.ones(2, 1)
        >>> first_block(A.record).flatten().tolist()
        [1.0, 1.0]
    """
    for product in record:
        if bool((product.block != 0).any()):
            return product.block if product.block.is_floating_point() else product.block.double()
    raise ValueError(
        f"No product with probes was recorded ({len(record)} in all, every block zero): the "
        "estimator does not multiply A by its probes with @, matmul, mm, mv, bmm, linear or einsum."
    )


def captured_probes(
    estimator: Callable[..., Any], A: Any, *, calls: int, key: Sequence[object]
) -> Tensor:
    """The probes of `calls` independent calls of a black box, (calls, ..., n, m).

    Call i gets `generator_for(*key, i)` if it takes a generator, and global generators seeded by
    that key otherwise (`specbp.testing.blackbox.call_seeded`). The dtype is that of the
    products: it says how exact a norm can be.

    Args:
        estimator: `estimator(A)` or `estimator(A, generator)`.
        A: Tensor or operator (..., n, n).
        calls: Number of calls.
        key: Key of the seeds.

    Raises:
        ValueError: If a call failed, recorded nothing, or the calls used blocks of unequal shape.

    Source: this package; compare Claessen and Hughes (2000), doi:10.1145/351240.351266, for random
    tests that are reproducible from their seed.

    Example:
        >>> import torch
        >>> from specbp import hutchinson_trace, rademacher
        >>> def own_draws(A, generator):
        ...     return hutchinson_trace(A, rademacher(4, 2, generator=generator))
        >>> captured_probes(own_draws, torch.eye(4).double(), calls=3, key=("doc",)).shape
        torch.Size([3, 4, 2])
    """
    blocks = []
    for i in range(calls):
        recorder = recording(A)
        outcome = call_seeded(estimator, recorder, (*key, i))
        if not recorder.record and outcome.reason is not None:
            raise ValueError(f"Call {i} of the estimator failed: {outcome.reason}")
        blocks.append(first_block(recorder.record))
    shapes = {tuple(block.shape) for block in blocks}
    if len(shapes) != 1:
        raise ValueError(f"Calls multiplied by blocks of unequal shapes {sorted(shapes)}.")
    return torch.stack(blocks)


def _columns(X: Tensor) -> Tensor:
    X = X.detach().clone()
    return X.unsqueeze(-1) if X.ndim == 1 else X


def _wrap(data: Tensor, record: list[Product], transposed: bool) -> RecordingTensor:
    with torch._C.DisableTorchFunctionSubclass():
        wrapped: RecordingTensor = data.as_subclass(RecordingTensor)
    wrapped.record, wrapped.transposed = record, transposed
    return wrapped


def _is_same_matrix(func: Callable[..., Any], source: Tensor, out: Any) -> bool:
    """Whether the result is A, its transpose, or a copy, view, sum or multiple of it."""
    if func not in _TRANSPOSING and getattr(func, "__name__", "") not in _KEEPING:
        return False
    square = tuple(source.shape[-2:])
    shapes = (square, square[::-1])
    return isinstance(out, Tensor) and out.ndim >= 2 and tuple(out.shape[-2:]) in shapes


def _records(x: Any) -> bool:
    # Copies that torch makes behind our back are of this class, but have no record.
    return isinstance(x, RecordingTensor) and "record" in x.__dict__


def _log(func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Append the partner of the recording factor to its record."""
    if func is torch.einsum:
        return _log_einsum(args)
    left, right = args[:2] if func is not Tensor.__rmatmul__ else args[1::-1]
    if _records(left) and not isinstance(right, RecordingTensor):
        # linear(A, W) is A Wᵀ.
        block = right.mT if func is F.linear and right.ndim > 1 else right
        left.record.append(Product(_columns(block), left.transposed))
    elif _records(right) and not isinstance(left, RecordingTensor):
        block = left.mT if left.ndim > 1 else left
        # linear(X, A) is X Aᵀ, a product with A itself; X A is one with its transpose.
        transposed = right.transposed if func is F.linear else not right.transposed
        right.record.append(Product(_columns(block), transposed))
    return None


def _log_einsum(args: tuple[Any, ...]) -> None:
    """Of the operands that share a summed index with A, the one on A's last index if there is."""
    if not isinstance(args[0], str) or "." in args[0]:
        return
    operands = args[1] if isinstance(args[1], list | tuple) else args[1:]
    inputs, arrow, output = args[0].replace(" ", "").partition("->")
    if not arrow:
        output = "".join(c for c in set(inputs) if inputs.count(c) == 1)
    names = inputs.split(",")
    where = next(i for i, operand in enumerate(operands) if _records(operand))
    A, index = operands[where], names[where]
    for axis in (-1, -2):
        for operand, letters in zip(operands, names, strict=True):
            letter = index[axis]
            # Two summed indices in common are no product: tr(AᵀB) has no probes.
            summed = (set(letters) & set(index)) - set(output)
            if operand is not A and summed == {letter}:
                block = operand.movedim(letters.index(letter), -min(2, operand.ndim))
                A.record.append(Product(_columns(block), A.transposed ^ (axis == -2)))
                return


_PRODUCTS = {
    torch.matmul,
    torch.mm,
    torch.mv,
    torch.bmm,
    torch.einsum,
    F.linear,
    Tensor.matmul,
    Tensor.mm,
    Tensor.mv,
    Tensor.bmm,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
}
_TRANSPOSING = {
    Tensor.mT.__get__,  # type: ignore[attr-defined]
    Tensor.mH.__get__,  # type: ignore[attr-defined]
    Tensor.T.__get__,  # type: ignore[attr-defined]
    Tensor.H.__get__,  # type: ignore[attr-defined]
    Tensor.t,
    Tensor.transpose,
    Tensor.swapaxes,
    Tensor.adjoint,
    torch.t,
    torch.transpose,
    torch.swapaxes,
    torch.adjoint,
}
# By name, since each has up to three functions: of the module, of the class, and an operator.
_KEEPING = {"detach", "clone", "contiguous", "to", "double", "float", "requires_grad_"}
_KEEPING |= {"unsqueeze", "squeeze", "expand", "expand_as", "view", "reshape", "__getitem__"}
_KEEPING |= {"add", "sub", "mul", "div", "true_divide", "rsub", "neg", "__neg__"}
_KEEPING |= {"__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__"}
