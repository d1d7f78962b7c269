"""The structural protocol of operators, its wrappers, and the checks of what users pass."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from specbp import interop


@runtime_checkable
class LinearOperator(Protocol):
    """A symmetric matrix (..., n, n) given by its products; a `torch.Tensor` satisfies it."""

    @property
    def shape(self) -> torch.Size:
        """(..., n, n)."""

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64."""

    @property
    def device(self) -> torch.device:
        """Where products are computed."""

    def __matmul__(self, X: Any) -> Any:
        """(..., n, n) @ (..., n, m) -> (..., n, m); leading dimensions broadcast as in matmul."""


@runtime_checkable
class RectangularOperator(LinearOperator, Protocol):
    """A matrix J (..., N, n) given by products with J and its adjoint; a tensor satisfies it."""

    @property
    def mT(self) -> Any:
        """The adjoint, (..., n, N), again with `@`."""


class Dense:
    """An explicit matrix whose block products use the faster layout.

    The library keeps blocks (..., n, m) as transposed views of contiguous rows (..., m, n), for
    which X.mT @ A.mT reads both factors along their rows. `python -m verification overhead` times
    this layout and A @ X, and takes the faster for its floor.
    """

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    shape = property(lambda self: self.matrix.shape)
    dtype = property(lambda self: self.matrix.dtype)
    device = property(lambda self: self.matrix.device)
    mT = property(lambda self: Dense(self.matrix.mT))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The matrix, if it requires a gradient."""
        return (self.matrix,) if self.matrix.requires_grad else ()

    def pull_back(self, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        """Gradient of Σ leftᵀ M right, rows (..., r, N) and (..., r, n), in the inputs."""
        return ((left.mT @ right).sum_to_size(self.matrix.shape),) if self.inputs else ()

    def __matmul__(self, X: Tensor) -> Tensor:
        return (X.mT @ self.matrix.mT).mT


class CountingOperator:
    """Counts the columns multiplied, per item of the batch: the budget unit, measured.

    Example:
        >>> import torch
        >>> A = CountingOperator(torch.eye(3))
        >>> _ = A @ torch.ones(5, 3, 2)  # 5 replicates of 2 probes each
        >>> A.num_matvecs
        2.0
    """

    def __init__(self, operator: LinearOperator):
        self.operator = operator
        self.columns = 0
        self._adjoint: CountingOperator | None = None

    shape = property(lambda self: self.operator.shape)
    dtype = property(lambda self: self.operator.dtype)
    device = property(lambda self: self.operator.device)

    @property
    def mT(self) -> CountingOperator:
        """The adjoint, counted too."""
        if self._adjoint is None:
            self._adjoint = CountingOperator(self.operator.mT)  # type: ignore[attr-defined]
        return self._adjoint

    @property
    def num_matvecs(self) -> float:
        """Products with A so far."""
        return float(self.columns)

    @property
    def num_gram_matvecs(self) -> float:
        """Products with JᵀJ so far: one with J or with its adjoint alone is a half."""
        return (self.columns + (self._adjoint.columns if self._adjoint else 0)) / 2

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Those of the operator."""
        return tuple(getattr(self.operator, "inputs", ()))

    def pull_back(self, left: Tensor, right: Tensor) -> tuple[Tensor | None, ...]:
        """The operator's, not counted: it belongs to the gradient."""
        return self.operator.pull_back(left, right)  # type: ignore[attr-defined]

    def __matmul__(self, X: Tensor) -> Tensor:
        self.columns += X.shape[-1]
        return self.operator @ X


def as_operator(A: Any) -> Any:
    """Wrap a tensor for fast products; pass what has `shape`, `dtype`, `device` and `@` through.

    Operators of SciPy, curvlinops and linear_operator are wrapped where they lack some of these:
    see `specbp.interop`.

    Raises:
        TypeError: If A is none of them, or its dtype is not float32 or float64.
        ValueError: If A has fewer than two dimensions or an empty one.
    """
    operator = interop.adapt(A)
    if isinstance(operator, Tensor):
        operator = Dense(operator)
    elif not (isinstance(operator, LinearOperator) and isinstance(operator.dtype, torch.dtype)):
        raise TypeError(
            "An operator needs `shape`, a torch `dtype`, `device` and `@` on blocks (..., n, m); "
            f"{type(A).__name__} lacks some of them. Pass a torch.Tensor or wrap your operator."
        )
    if operator.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"Operators are float32 or float64, got {operator.dtype}: convert it.")
    if len(operator.shape) < 2 or 0 in operator.shape:
        raise ValueError(f"An operator has shape (..., n, n), n ≥ 1, got {tuple(operator.shape)}.")
    return operator


def check_square(A: LinearOperator) -> int:
    """Order n of A.

    Raises:
        ValueError: If A is not square.
    """
    if A.shape[-1] != A.shape[-2]:
        raise ValueError(
            f"Expected a square operator (..., n, n), got {tuple(A.shape)}; for a Jacobian J pass "
            "JacobianMetric(J), or use golub_kahan_logdet(J, …), which works on J."
        )
    return A.shape[-1]


def check_tall(J: LinearOperator) -> int:
    """Number of columns n of J.

    Raises:
        ValueError: If J has fewer rows than columns, so that log det JᵀJ = −inf.
        TypeError: If J has no adjoint `.mT`.
    """
    if not isinstance(J, RectangularOperator):
        raise TypeError(f"{type(J).__name__} has no adjoint `.mT`, which products with JᵀJ need.")
    if J.shape[-2] < J.shape[-1]:
        raise ValueError(
            f"J has shape {tuple(J.shape)}: fewer rows than columns, so JᵀJ is singular and its "
            "log det is -inf. Use J.mT if the log det of J Jᵀ is meant."
        )
    return J.shape[-1]


def check_probes(A: LinearOperator, probes: Tensor) -> Tensor:
    """Probes as rows (..., m, n), broadcast against the batch of A.

    Raises:
        TypeError: If the dtypes differ.
        ValueError: If devices differ, shapes do not fit or there is no probe.
    """
    if not isinstance(probes, Tensor):
        raise TypeError(f"Probes are a torch.Tensor (..., n, m), got {type(probes).__name__}.")
    if probes.ndim < 2 or probes.shape[-2] != A.shape[-1]:
        raise ValueError(
            f"Probes have shape (..., n, m) with n = {A.shape[-1]}, got {tuple(probes.shape)}."
        )
    if probes.shape[-1] == 0:
        raise ValueError(f"At least one probe is required, got shape {tuple(probes.shape)}.")
    if probes.dtype != A.dtype:
        raise TypeError(f"The operator is {A.dtype}, the probes are {probes.dtype}: convert one.")
    if probes.device != A.device:
        raise ValueError(f"The operator is on {A.device}, the probes on {probes.device}: move one.")
    try:
        batch = torch.broadcast_shapes(probes.shape[:-2], A.shape[:-2])
    except RuntimeError as error:
        raise ValueError(
            f"The batch of the probes {tuple(probes.shape[:-2])} does not broadcast against the "
            f"batch {tuple(A.shape[:-2])} of the operator."
        ) from error
    return probes.mT.expand(*batch, *probes.mT.shape[-2:]).contiguous()


def check_steps(num_steps: int, n: int, name: str = "num_steps") -> None:
    """Refuse a Krylov dimension outside 1 … n.

    Raises:
        ValueError: If num_steps < 1 or num_steps > n.
    """
    if not 1 <= num_steps <= n:
        raise ValueError(
            f"{name} must be between 1 and n = {n}, got {num_steps}; a Krylov space of an n × n "
            "matrix has at most n dimensions, and the quadrature is exact there."
        )


def check_symmetric(A: Tensor) -> None:
    """Refuse an explicit matrix that is not symmetric to rounding.

    Raises:
        ValueError: If |A − Aᵀ| exceeds 8 n eps max|A| somewhere, or A is not finite.
    """
    if not bool(torch.isfinite(A).all()):
        raise ValueError("A contains NaN or inf.")
    gap = (A - A.mT).abs().amax((-2, -1))
    limit = 8 * A.shape[-1] * torch.finfo(A.dtype).eps * A.abs().amax((-2, -1))
    if not bool((gap <= limit).all()):
        worst = (gap - limit).argmax()
        raise ValueError(
            f"A is not symmetric: max|A - A.mT| = {float(gap.flatten()[worst]):.3g}, rounding "
            f"explains {float(limit.flatten()[worst]):.3g}. Pass (A + A.mT) / 2 if that is meant."
        )


def check_deterministic(A: Any, probes: Tensor) -> None:
    """Refuse an operator whose products change from call to call, at two products for each probe.

    Lanczos and the polynomials report such an operator as `NONSYMMETRIC`. Estimators that multiply
    each probe once or twice cannot see it: they return the trace of the average operator at best.
    For a factor J check J.mT too.

    Raises:
        TypeError: If A is no operator, or dtypes differ.
        ValueError: If two products differ by more than √eps of the largest entry, or shapes or
            devices do not fit.

    Example:
        >>> check_deterministic(torch.eye(3), torch.ones(3, 1))
    """
    A = as_operator(A)
    rows = check_probes(A, probes)
    first, again = product(A, rows), product(A, rows)
    gap, largest = float((first - again).abs().max()), float(first.abs().max())
    if gap > torch.finfo(A.dtype).eps ** 0.5 * largest:
        raise ValueError(
            f"The operator is random: multiplied by the same probes again, its product changed by "
            f"{gap:.3g}, its largest entry is {largest:.3g}. Call .eval() (dropout), fix the data "
            "(mini-batches), or fix the noise outside of the operator."
        )


def product(A: LinearOperator, rows: Tensor) -> Tensor:
    """A applied to row vectors: (..., m, n) -> (..., m, n)."""
    return (A @ rows.mT).mT
