"""linear_operator's stochastic log-determinant, as its users switch it on: named by import path."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor


def default_logdet(A: Any) -> Tensor:
    """As released, but for the size below which it would take Cholesky's exact way."""
    return _logdet(A, max_cholesky_size=0)


def careful_logdet(A: Any) -> Tensor:
    """With more quadrature steps, a tight tolerance, and no preconditioner."""
    return _logdet(
        A,
        max_cholesky_size=0,
        max_preconditioner_size=0,
        max_lanczos_quadrature_iterations=100,
        cg_tolerance=1e-4,
        num_trace_samples=10,
    )


def _logdet(A: Any, **settings: float) -> Tensor:
    import linear_operator

    with ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(getattr(linear_operator.settings, name)(value))
        return linear_operator.to_linear_operator(A).inv_quad_logdet(logdet=True)[1]
