"""Input conversion shared by the oracle's modules: anything array-like in, numpy float64 out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)


def as_numpy(x: Any) -> npt.NDArray[Any]:
    """Convert an array-like or a tensor to a real numpy array, keeping its precision."""
    # Tensors are recognised by their methods, so that the oracle never imports their library.
    array = np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x)
    if array.dtype.kind not in "fiub":
        msg = f"a real numeric array is required, got dtype {array.dtype}"
        raise ValueError(msg)
    return array


def as_float64(x: Any, name: str) -> Array:
    """Convert to a finite float64 array; an infinite or undefined entry is an error."""
    array = as_numpy(x).astype(np.float64)
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        msg = f"{name} must be finite: {bad} of its {array.size} entries are not"
        raise ValueError(msg)
    return array


def as_square(x: Any, name: str) -> Array:
    """Convert to one finite float64 matrix of shape (n, n)."""
    array = as_float64(x, name)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        msg = f"{name} must be one square matrix (n, n), got shape {array.shape}"
        raise ValueError(msg)
    return array
