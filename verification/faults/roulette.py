"""log det by a Taylor series of random degree, as a control: unbiased although it stops early.

The degree N is random with P(N ≥ k) = q^(k−1) for k ≤ K, and term k is divided by P(N ≥ k), so
that the expectation is the series of degree K (Chen, Behrmann, Duvenaud & Jacobsen 2019,
arXiv:1906.02735). Here N is a hash of the signs of the probe: still a function of the probes, as a
subject has to be, and as good as drawn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specbp import Estimate, exact
from specbp.estimate import Status, from_samples
from specbp.methods import Claims
from specbp.operators import CountingOperator, as_operator
from verification.cases import View
from verification.subjects import ScalarFunction, Subject, interval

MAX_DEGREE, DECAY = 12, 0.75
Weight = Callable[[Tensor], Tensor]


def reached(k: Tensor) -> Tensor:
    """P(N ≥ k) for k = 1 … K."""
    return DECAY ** (k - 1)


def series(A: Any, X: Tensor, upper: float, weight: Weight) -> tuple[Tensor, Tensor]:
    """Values of every degree, (..., m, K), and growth max_k |(I − A/α)ᵏx|² / |x|², (..., m).

    The value of degree N is |x|² log α − Σ_{k ≤ N} xᵀ(I − A/α)ᵏx / (k weight(k)).
    """
    k = torch.arange(1, MAX_DEGREE + 1, dtype=torch.float64)
    powers = [X]
    for _ in range(MAX_DEGREE):
        powers.append(powers[-1] - A @ powers[-1] / upper)
    terms = torch.stack([(X * w).sum(-2).double() for w in powers[1:]], -1) / (k * weight(k))
    size = X.double().square().sum(-2)
    growth = torch.stack([w.double().square().sum(-2) for w in powers]).amax(0) / size
    return size.unsqueeze(-1) * math.log(upper) - terms.cumsum(-1), growth


def degrees_of(X: Tensor) -> Tensor:
    """Degree of every probe of X (..., n, m), (..., m): the same for x and −x."""
    signs = (X.mT * X.mT[..., :1] > 0).flatten(0, -2)
    hashed = [hashlib.sha256(bytes(row)).digest()[:7] for row in signs.tolist()]
    uniform = torch.tensor([(int.from_bytes(h, "big") + 0.5) / 2**56 for h in hashed])
    degrees = 1 + (uniform.double().log() / math.log(DECAY)).floor().long()
    return degrees.clamp(max=MAX_DEGREE).view(X.mT.shape[:-1])


def random_degree(A: Any, X: Tensor, *, upper: float, weight: Weight = reached) -> Estimate:
    """One value per probe, its series cut at the degree of the probe."""
    A = CountingOperator(as_operator(A))
    values, growth = series(A, X, upper, weight)
    chosen = values.gather(-1, (degrees_of(X) - 1).unsqueeze(-1)).squeeze(-1)
    status = (growth > 1.01) * int(Status.OUTSIDE_INTERVAL)
    return from_samples(chosen, num_matvecs=A.num_matvecs, status=status)


def outcomes(view: View, weight: Weight = reached) -> tuple[Tensor, Tensor]:
    """Values (R,) of all sign vectors and degrees of a small view, and their probabilities."""
    signs = torch.from_numpy(exact.all_signs(view.operator.shape[-1])).mT
    upper = interval(view)[1]
    values, _ = series(view.operator, signs.to(view.operator.dtype), upper, weight)
    k = torch.arange(1, MAX_DEGREE + 1, dtype=torch.float64)
    law = torch.cat([reached(k[:-1]) - reached(k[1:]), reached(k[-1:])])
    return values.flatten(), law.repeat(signs.shape[-1]) / signs.shape[-1]


def contract(view: View) -> ScalarFunction:
    """The series of the largest degree."""
    return exact.taylor_log(MAX_DEGREE, interval(view)[1])


CONTROL = Subject(
    name="random degree",
    estimate=random_degree,
    on="A",
    estimand="logdet",
    claims=Claims("tr p(A)", matvecs=lambda _n, m, _c: m * MAX_DEGREE, additive=False),
    arguments=lambda view: {"upper": interval(view)[1]},
    contract=contract,
    outcomes=outcomes,
)
