"""Operators of other libraries, recognised by the classes they derive from and never imported.

| what is passed | products | adjoint |
|---|---|---|
| SciPy's `LinearOperator`, sparse matrices and arrays | by NumPy, on the CPU | `rmatvec`, `.T` |
| curvlinops operators | `A @ X` | `.adjoint()` |
| linear_operator's `LinearOperator` | its own, batches included | `.mT` |
| sparse tensors | `A @ X` | `.mT` |
| NumPy arrays | refused: `torch.from_numpy` makes a tensor of the same memory | |

NumPy's float32 and float64 become torch's; complex matrices are refused. Products by NumPy record
nothing for automatic differentiation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class ColumnOperator:
    """A matrix (N, n) of which a library multiplies one block (n, m) at a time, without a batch.

    A batch of blocks (..., n, m) becomes the columns of one.
    """

    shape: Any
    dtype: Any
    device: Any

    def __init__(self, source: Any):
        self.source = source

    def __matmul__(self, X: Tensor) -> Tensor:
        n, m = X.shape[-2:]
        Y = self.times(X.mT.reshape(-1, n).mT)
        return Y.mT.reshape(*X.shape[:-2], m, self.shape[-2]).mT

    def times(self, X: Tensor) -> Tensor:
        """(n, m) -> (N, m)."""
        return self.source @ X


class SparseTensor(ColumnOperator):
    """A sparse tensor (N, n), of any layout that torch multiplies dense blocks with."""

    shape = property(lambda self: self.source.shape)
    dtype = property(lambda self: self.source.dtype)
    device = property(lambda self: self.source.device)
    mT = property(lambda self: SparseTensor(self.source.transpose(0, 1)))


class ScipyOperator(ColumnOperator):
    """A real matrix of SciPy, sparse or a LinearOperator; results are plain tensors on the CPU.

    Raises:
        TypeError: If its dtype is complex, or not known.
    """

    device = torch.device("cpu")

    def __init__(self, source: Any, *, adjoint_of: ScipyOperator | None = None):
        super().__init__(source)
        self.shape = torch.Size(source.shape)
        self.dtype = adjoint_of.dtype if adjoint_of else _torch_dtype(source)
        self._adjoint = adjoint_of
        self._is_adjoint = adjoint_of is not None

    @property
    def mT(self) -> ScipyOperator:
        """The adjoint, by the `rmatvec` or `rmatmat` of a LinearOperator."""
        if self._adjoint is None:
            adjoint = self.source.T if hasattr(self.source, "tocsr") else self.source.adjoint()
            self._adjoint = ScipyOperator(adjoint, adjoint_of=self)
        return self._adjoint

    def times(self, X: Tensor) -> Tensor:
        """(n, m) -> (N, m), in the dtype that the operator declares.

        Raises:
            TypeError: If the product is complex, or the adjoint is not defined.
        """
        # `@` hands a block of one column to matvec, which an operator of blocks may not have.
        times = getattr(self.source, "matmat", self.source.__matmul__)
        try:
            Y = np.asarray(times(X.detach().numpy()))
        except (NotImplementedError, TypeError) as error:
            if not self._is_adjoint:
                raise
            raise TypeError(
                "The SciPy operator failed to multiply with its adjoint, which products with JᵀJ "
                "need: define rmatvec or rmatmat."
            ) from error
        if np.iscomplexobj(Y):
            raise TypeError(f"The SciPy operator declares {self.dtype} and returned {Y.dtype}.")
        return torch.from_numpy(np.require(Y, requirements=["C", "W"])).to(self.dtype)


class CurvlinopsOperator(ColumnOperator):
    """A `PyTorchLinearOperator` of curvlinops.

    Raises:
        TypeError: If its class defines no dtype or device.
    """

    def __init__(self, source: Any):
        super().__init__(source)
        self.shape = torch.Size(source.shape)
        try:
            self.dtype, self.device = source.dtype, source.device
        except NotImplementedError as error:
            name = type(source).__name__
            raise TypeError(f"{name} defines no dtype or device: add the properties.") from error

    mT = property(lambda self: CurvlinopsOperator(self.source.adjoint()))


class Placed:
    """An operator without device of its own, such as linear_operator's identity, on the default."""

    def __init__(self, source: Any):
        self.source, self.device = source, torch.get_default_device()

    shape = property(lambda self: self.source.shape)
    dtype = property(lambda self: self.source.dtype)
    mT = property(lambda self: Placed(self.source.mT))

    def __matmul__(self, X: Tensor) -> Tensor:
        return self.source @ X


def adapt(A: Any) -> Any:
    """A wrapper with `shape`, `dtype`, `device`, `@`, `mT` if A is of a known library, else A.

    Raises:
        TypeError: If A is a NumPy array, or complex.
    """
    if isinstance(A, Tensor):
        return A if A.layout == torch.strided else SparseTensor(A)
    if isinstance(A, np.ndarray):
        raise TypeError(
            f"{type(A).__name__} is not an operator: pass torch.from_numpy(A), a torch.Tensor that "
            "shares its memory."
        )
    known = {cls.__module__.partition(".")[0] for cls in type(A).__mro__}
    if "scipy" in known and hasattr(A, "shape"):
        return ScipyOperator(A)
    if "curvlinops" in known and hasattr(A, "adjoint"):
        return CurvlinopsOperator(A)
    if "linear_operator" in known and A.device is None:
        return Placed(A)
    return A


def _torch_dtype(A: Any) -> torch.dtype:
    """The torch dtype of a SciPy operator."""
    if A.dtype is None:
        raise TypeError(f"{type(A).__name__} has no dtype: set it to float32 or float64.")
    if A.dtype.kind == "c":
        raise TypeError(
            f"The estimators are for real matrices, {type(A).__name__} is {A.dtype}: pass the real "
            "matrix [[Re, -Im], [Im, Re]], with every eigenvalue of a Hermitian one twice."
        )
    if A.dtype not in (np.float32, np.float64):
        raise TypeError(f"{type(A).__name__} is {A.dtype}: convert it to float32 or float64.")
    return torch.from_numpy(np.empty(0, A.dtype)).dtype
