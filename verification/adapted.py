"""Functions `(operator, probes, ...)` of others as subjects, with what they claim by a trial."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbp import Estimate, generator_for
from specbp.estimate import EstimationError, from_samples
from specbp.operators import CountingOperator
from specbp.testing import blackbox
from verification.cases import View
from verification.checks.problems import problem
from verification.subjects import Subject

TRIALS = (2, 4, 8)  # numbers of probes: a bar may be there from some number on only


class Adapted:
    """A function `(operator, probes, ...)` as an estimator of the library.

    It may return an `Estimate`, or whatever `blackbox.as_outcome` reads: a number, a pair of value
    and standard error; then the estimate has NaN products. Batches are looped over unless it
    returns an `Estimate` that has them. It works on copies, which it must leave as they are.
    """

    def __init__(self, function: Callable[..., Any], *, tensors_only: bool = False):
        self.function, self.tensors_only = function, tensors_only
        self.takes_batches = True
        self.by_name = "probes" in parameters(function)

    def __call__(self, A: Any, probes: Tensor, **arguments: Any) -> Estimate:
        """Estimates of the batch of A and `probes`.

        Raises:
            EstimationError: If the function gives no number.
            ValueError: If it changed its matrix or its probes in place.
        """
        matrix, X = A.clone() if isinstance(A, Tensor) else A, probes.clone()
        found = self._estimate(matrix, X, arguments)
        for what, given, left in (("matrix", A, matrix), ("probes", probes, X)):
            if isinstance(given, Tensor) and not _same(given, left):
                raise ValueError(f"the estimator changed its {what} in place: give it a copy.")
        return found

    def _estimate(self, A: Any, probes: Tensor, arguments: dict[str, Any]) -> Estimate:
        if self.tensors_only and not isinstance(A, Tensor):
            A = A @ torch.eye(A.shape[-1], dtype=A.dtype)
        batch = torch.broadcast_shapes(A.shape[:-2], probes.shape[:-2])
        if not batch:
            return self._single(A, probes, arguments)
        whole = self._whole(A, probes, arguments) if self.takes_batches else None
        if whole is not None and whole.value.shape == batch:
            return whole
        self.takes_batches = False
        blocks = probes.expand(*batch, *probes.shape[-2:]).flatten(0, -3)
        matrices = A.expand(*batch, *A.shape[-2:]).flatten(0, -3) if len(A.shape) > 2 else None
        pairs = zip([A] * len(blocks) if matrices is None else matrices, blocks, strict=True)
        return _stacked([self._single(*pair, arguments) for pair in pairs], batch)

    def _called(self, A: Any, X: Tensor, arguments: dict[str, Any]) -> Any:
        if self.by_name:
            return self.function(A, probes=X, **arguments)
        return self.function(A, X, **arguments)

    def _whole(self, A: Any, probes: Tensor, arguments: dict[str, Any]) -> Estimate | None:
        try:
            found = self._called(A, probes, arguments)
        except Exception:  # it takes no batches; one at a time shows what else may be wrong
            return None
        return found if isinstance(found, Estimate) else None

    def _single(self, A: Any, X: Tensor, arguments: dict[str, Any]) -> Estimate:
        found = self._called(A, X, arguments)
        if isinstance(found, Estimate):
            return found
        outcome = blackbox.as_outcome(found)
        if outcome.value is None:
            raise EstimationError(outcome.reason)
        bar = float("nan") if outcome.standard_error is None else outcome.standard_error
        value = torch.tensor([outcome.value], dtype=torch.float64)
        return replace(
            from_samples(value, num_matvecs=float("nan")),
            standard_error=torch.tensor(bar, dtype=torch.float64),
            samples=value.new_empty((0,)),
        )


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters of a callable by name; none where it has no signature."""
    try:
        return dict(inspect.signature(function).parameters)
    except (ValueError, TypeError):  # built in, without a signature: an operator is all it gets
        return {}


def _same(given: Tensor, left: Tensor) -> bool:
    return np.array_equal(given.detach().numpy(), left.detach().numpy(), equal_nan=True)


def _stacked(items: list[Estimate], batch: torch.Size) -> Estimate:
    names = ("value", "standard_error", "lower", "upper", "status", "samples")
    parts = {name: torch.stack([getattr(item, name) for item in items]) for name in names}
    shaped = {name: part.reshape(*batch, *part.shape[1:]) for name, part in parts.items()}
    return Estimate(num_matvecs=items[0].num_matvecs, **shaped)


def as_tried(subject: Subject, function: Callable[..., Any]) -> Subject:
    """The subject, claiming error bars if a trial call had one, and reading what it can read.

    A finite error bar for any number of probes above one is a claim. Products are not claimed:
    the check of products compares those that an `Estimate` reports with those counted.
    """
    view = problem("cond 1e2", 8).views[subject.on]
    X = subject.draw(8, max(TRIALS), generator=generator_for("gate", "trial"))
    bars = [_bar(subject, view, X[:, :m]) for m in TRIALS]
    tried = [bar for bar in bars if bar is not None]
    if not tried:  # the checks call it again, and report what is wrong
        return subject
    calibrated = any(math.isfinite(bar) for bar in tried)
    subject = replace(subject, claims=replace(subject.claims, calibrated=calibrated))
    try:
        subject.call(replace(view, operator=CountingOperator(view.operator)), X)
    except Exception:  # it wants a tensor
        adapted = Adapted(function, tensors_only=True)
        on = subject.on if subject.on == "J" else "dense A"
        return replace(subject, estimate=adapted, on=on)
    return subject


def _bar(subject: Subject, view: View, X: Tensor) -> float | None:
    try:
        return float(subject.call(view, X).standard_error)
    except Exception:
        return None
