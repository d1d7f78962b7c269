"""A row of the methods table by its name: its probes drawn, its arguments filled in."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from specbp.claims import Method
from specbp.estimate import Estimate
from specbp.jacobian import Jacobian, JacobianMetric
from specbp.methods import METHODS
from specbp.operators import as_operator
from specbp.probes import LAWS

STEPS = ("num_steps", "block_steps", "power_steps")


def named(
    A: Any, method: str, num_probes: int, generator: torch.Generator, config: dict[str, Any]
) -> Estimate:
    """log det by one row of the table, with probes of its law.

    Raises:
        ValueError: If there is no such row, A is not what it is for, probes or arguments are
            missing, or no generator is given.
    """
    rows = [name for name, row in METHODS.items() if row.estimand == "logdet"]
    if method not in rows:
        raise ValueError(f'method is "auto" or one of {", ".join(rows)}; got {method!r}.')
    row = METHODS[method]
    A = _wanted(A, row)
    if not row.uses_probes:
        return row.estimate(A, **config)
    _check(row, num_probes, generator, config)
    op = as_operator(A)
    n = op.shape[-1]
    probes = LAWS[row.law](n, num_probes, generator=generator, dtype=op.dtype, device=op.device)
    # A default never asks for more steps than there are dimensions; what is passed is meant.
    default = {k: min(v, n) if k in STEPS else v for k, v in row.config.items()}
    return row.estimate(A, probes, **row.keywords(n, num_probes, {**default, **config}))


def refuse_unused(method: str, asked: dict[str, Any]) -> None:
    """Refuse what only the planner obeys.

    Raises:
        ValueError: If any of it was given.
    """
    ignored = [name for name, x in asked.items() if x is not None]
    if ignored:
        raise ValueError(
            f'{ignored} are for method "auto"; {method!r} takes num_probes and its own '
            "arguments, such as num_steps."
        )


def _wanted(A: Any, row: Method) -> Any:
    """A, or its factor, as the row takes it; nothing square is silently taken for a factor."""
    if row.on == "J":
        if not isinstance(A, Jacobian | JacobianMetric) and not _oblong(A):
            raise ValueError(
                f"{row.name} is for log det JᵀJ of a factor J, and a square operator is taken for "
                "A itself: pass JacobianMetric(J), or choose a method on A."
            )
        return A.J if isinstance(A, JacobianMetric) else A
    return JacobianMetric(A) if isinstance(A, Jacobian) else A


def _oblong(A: Any) -> bool:
    shape: tuple[int, ...] = tuple(getattr(A, "shape", ()))
    return len(shape) >= 2 and shape[-1] != shape[-2]


def _check(row: Method, num_probes: int, generator: Any, config: dict[str, Any]) -> None:
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"Pass a torch.Generator, the source of all probes, got {generator!r}.")
    if num_probes < row.claims.min_probes:
        raise ValueError(f"{row.name} needs {row.claims.min_probes} probes, got {num_probes}.")
    parameters = inspect.signature(row.estimate).parameters
    wanted: list[str] = [name for name in row.needs if not _optional(parameters.get(name))]
    wanted += ["degrees"] * (row.survival is not None)
    missing = [name for name in wanted if name not in config]
    if missing:
        raise ValueError(
            f"{row.name} needs {', '.join(missing)}, which the planner does not know: pass "
            "them by name, or call the estimator itself."
        )


def _optional(parameter: inspect.Parameter | None) -> bool:
    return parameter is not None and parameter.default is not inspect.Parameter.empty
