"""Values of an estimator over a design or over replicates, and which design gives exact moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbp.probes import LAWS, generator_for
from specbp.testing import designs
from specbp.testing.blackbox import call, call_seeded
from specbp.testing.designs import Design

MAX_OUTCOMES = 2100  # evaluations: one probe of n ≤ 12, two of n ≤ 7, three of n ≤ 5
MAX_ARRAY = 64  # 4096 evaluations
# Rounding of a value: n additions in every dot product, up to a thousand recurrences.
RECURRENCES = 1000
# Sizes whose fourth powers, and those of their rounding, neither overflow nor underflow.
SMALLEST, LARGEST = 1e-30, 1e30


@dataclass(frozen=True)
class Evidence:
    """What an estimator gave, one entry per evaluation.

    Attributes:
        values: (R,), NaN where there is none.
        errors: Its own standard errors (R,), NaN where there is none.
        reason: First failure, or None.
    """

    values: np.ndarray
    errors: np.ndarray
    reason: str | None

    @property
    def failures(self) -> int:
        """Evaluations without a value."""
        return int(np.isnan(self.values).sum())


def over(estimator: Callable[..., Any], A: Any, probes: Tensor) -> Evidence:
    """Evaluate `estimator(A, X)` on blocks (R, n, m), one by one: a batch is not assumed."""
    blocks = probes.to(device=A.device, dtype=A.dtype)
    return _gather(call(partial(_with_probes, estimator, X), A) for X in blocks)


def replicates(
    estimator: Callable[..., Any], A: Any, R: int, law: str | None, m: int, key: Sequence[object]
) -> Evidence:
    """R independent values: probes of the law, or those that a black box draws (law None)."""
    if law is None:
        return _gather(call_seeded(estimator, A, (*key, r)) for r in range(R))
    n, generator = A.shape[-1], generator_for(*key)
    return over(estimator, A, sampler(law)(n, m, generator=generator, batch_shape=(R,)))


def sampler(law: str) -> Any:
    """The sampler of a law.

    Raises:
        ValueError: The law is unknown.
    """
    if law not in LAWS:
        raise ValueError(f"law must be one of {sorted(LAWS)}, or None for a black box; got {law!r}")
    return LAWS[law]


def exact_law(estimator: Callable[..., Any], A: Any, law: str | None, m: int) -> Design | None:
    """All outcomes of m Rademacher probes if they are few enough, else None.

    That est(x) = est(−x), which halves them for every probe, is tried out and not taken on faith.
    """
    n = A.shape[-1]
    K = 2 ** (n - 1)
    if law != "rademacher" or K > MAX_OUTCOMES:
        return None
    even = _same(estimator, A, m, _flip)
    if m == 1:
        design = designs.all_signs(n)
        return design if even else with_negatives(design)
    if even and K**m <= MAX_OUTCOMES:
        return designs.sign_tuples(n, m)
    if even and math.comb(K + m - 1, m) <= MAX_OUTCOMES and _same(estimator, A, m, _reverse):
        return designs.sign_multisets(n, m)
    return None


def basis(n: int, m: int, law: str, key: Sequence[object]) -> Design:
    """n blocks of m basis vectors, each in m of them: exact means of additive estimators."""
    if law == "rademacher" and n & (n - 1) == 0:
        columns = designs.hadamard_basis(n).columns
    else:
        columns = designs.haar_basis(n, generator=generator_for(*key, "basis")).columns
    index = (torch.arange(n).unsqueeze(1) + torch.arange(m)) % n
    blocks = columns[:, index].movedim(1, 0)
    return Design(blocks, torch.full((n,), 1 / n, dtype=torch.float64))


def noise(A: Any, values: np.ndarray, form: np.ndarray | None = None) -> float:
    r"""Rounding of one dot product of n terms, in the unit of the values.

    .. math:: \sqrt n \, \epsilon \, s, \qquad
              s = \max(\max_r |T_r|,\ \textstyle\sum_i |B_{ii}|,\ \|B\|_F)

    s is the size of the terms that are added, as far as values and form B show it; values that
    scatter by less do not vary at all.
    """
    size = float(np.nanmax(np.abs(values), initial=0.0))
    if form is not None:
        size = max(size, float(np.abs(np.diagonal(form)).sum()), float(np.linalg.norm(form)))
    return math.sqrt(A.shape[-1]) * torch.finfo(A.dtype).eps * size


def rounding(A: Any, values: np.ndarray, form: np.ndarray | None = None) -> float:
    r"""Rounding expected of one value after a thousand recurrences: √1000 times `noise`.

    Errors of K n operations that are independent of one another add up to √(K n) ε s, where the
    worst case K n ε s exceeds every float32 effect. An estimator whose rounding is amplified
    beyond that, as by an ill-conditioned matrix, needs a stated tolerance.

    Source: Higham and Mary (2019), doi:10.1137/18M1226312.
    """
    return math.sqrt(RECURRENCES) * noise(A, values, form)


def unit(*parts: Any) -> float:
    """A power of two to divide all parts by before any moment: 1 unless powers leave the range."""
    arrays = [np.abs(np.asarray(part, dtype=np.float64)).ravel() for part in parts]
    size = max((float(a[np.isfinite(a)].max(initial=0.0)) for a in arrays), default=0.0)
    if size == 0 or SMALLEST <= size <= LARGEST:
        return 1.0
    return math.ldexp(1.0, math.frexp(size)[1] - 1)


def _with_probes(estimator: Callable[..., Any], X: Tensor, A: Any) -> Any:
    return estimator(A, X)


def _gather(outcomes: Any) -> Evidence:
    found = list(outcomes)
    nan = math.nan
    return Evidence(
        np.array([nan if o.value is None else o.value for o in found]),
        np.array([nan if o.standard_error is None else o.standard_error for o in found]),
        next((o.reason for o in found if o.value is None), None),
    )


def with_negatives(design: Design) -> Design:
    """The design and its negative, half each."""
    return Design(
        torch.cat([design.probes, -design.probes]), torch.cat([design.weights, design.weights]) / 2
    )


def _flip(X: Tensor) -> Tensor:
    return torch.cat([-X[..., :1], X[..., 1:]], -1)


def _reverse(X: Tensor) -> Tensor:
    return X.flip(-1)


def _same(
    estimator: Callable[..., Any], A: Any, m: int, change: Callable[[Tensor], Tensor]
) -> bool:
    """Whether a change of the probes leaves the value alone, on four blocks."""
    X = LAWS["rademacher"](A.shape[-1], m, generator=generator_for("same", m), batch_shape=(4,))
    first, second = (over(estimator, A, probes).values for probes in (X, change(X)))
    limit = 2 * max(rounding(A, first), rounding(A, second))
    return bool(np.allclose(first, second, rtol=0, atol=limit, equal_nan=True))
