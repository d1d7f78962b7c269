"""Is the gradient that of the value, and is its expectation the right one?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbp.probes import generator_for
from specbp.testing import designs, evidence, outcome
from specbp.testing.differences import directional_derivative
from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, Check
from specbp.testing.verdicts import settle

CLAIM = "the gradient by autograd is the derivative of the value, probes frozen"
MAX_ENUMERATED = 10


def assert_gradient(
    function: Callable[[Tensor, Tensor], Any],
    theta: Tensor,
    probes: Tensor,
    *,
    directions: int | Sequence[Tensor] = 3,
    expected: Any = None,
    margin: float = 1e-3,
    key: Sequence[object] = ("assert_gradient",),
    allow_inconclusive: bool = False,
) -> Check:
    r"""Assert that autograd differentiates the value, against differences with frozen probes.

    .. math:: \langle \nabla_\theta T(\theta, X), d \rangle
              = \frac{d}{dt} T(\theta + t d, X) \Big|_{t=0}

    Nothing is random here: the probes stay the same, and the tolerance is half of the margin plus
    the error that the extrapolated differences state of themselves. With `expected`, the mean of
    the gradient over designs of probes is compared too: over all sign vectors (one probe, n ≤ 10;
    one of x and −x where four of them are found to give the same gradient), which is exact for any
    estimator, or over n blocks of orthogonal probes, exact for means of xᵀB(θ)x. It has to agree to
    rounding, √(1000 n) ε times the largest gradient; rounding that hides the margin, relative to
    |E[gradient]|, leaves the claim open.

    Args:
        function: `(θ, probes) -> ` scalar tensor, or an object with one as `value`.
        theta: Parameters, any shape, float64 unless the function needs float32.
        probes: (n, m), used as they are.
        directions: Number of random directions, or tensors of theta's shape.
        expected: E[gradient], theta's shape.
        margin: Relative error of a directional derivative, or of `expected`, that must be seen.
        key: Key of directions and orthogonal probes.
        allow_inconclusive: Return a check that is too inaccurate to see the margin.

    Raises:
        AssertionError: The gradient is detached, wrong, or cannot be checked to the margin.

    Source: Griewank and Walther (2008), Evaluating Derivatives, doi:10.1137/1.9780898717761;
    Ridders (1982), doi:10.1016/S0141-1195(82)80057-0.

    Example:
        >>> import torch
        >>> def value(theta, x):
        ...     return (x * (theta.exp() * x)).sum()
        >>> theta = torch.zeros(4, dtype=torch.float64)
        >>> x = torch.ones(4, 1, dtype=torch.float64)
        >>> assert_gradient(lambda t, X: value(t, X[:, 0]), theta, x).verdict
        'PASS'
    """
    value, gradient, reason = _gradient(function, theta, probes)
    if gradient is None:
        return settle(outcome.broken("D6 gradient", CLAIM, reason), likely=_DETACHED)
    if value != _value(function, theta, probes):
        text = "the value changes between two calls with the same θ and the same probes"
        return settle(
            outcome.broken("D6 gradient", CLAIM, text),
            likely=["fresh probes inside the function, or state that a call changes"],
            remedy="draw nothing inside: use the probes that are passed",
        )
    checks = [
        _along(function, theta, probes, gradient, d, margin)
        for d in _directions(theta, directions, key)
    ]
    worst = max(checks, key=lambda check: (_RANK[check.verdict], abs(_error(check))))
    ratios = [check.statistic / check.reference for check in checks if check.reference]
    settle(
        worst,
        likely=_causes(ratios) if worst.verdict == FAIL else (),
        remedy=_REMEDY_POWER if worst.verdict == INCONCLUSIVE else _REMEDY,
        allow_inconclusive=allow_inconclusive,
    )
    if expected is None:
        return worst
    check, likely = _expectation(function, theta, probes, torch.as_tensor(expected), margin, key)
    return settle(
        check,
        likely=likely if check.verdict == FAIL else (),
        remedy=_REMEDY_ROUNDING if check.verdict == INCONCLUSIVE else _REMEDY_MEAN,
        allow_inconclusive=allow_inconclusive,
    )


def _along(
    function: Callable[..., Any],
    theta: Tensor,
    probes: Tensor,
    gradient: Tensor,
    direction: Tensor,
    margin: float,
) -> Check:
    d = direction / direction.norm()
    slope = float((gradient * d).sum())
    # A direction along which the value hardly changes is held to the size of the usual one.
    usual = float(gradient.norm()) / math.sqrt(gradient.numel())
    scale = max(abs(slope), usual)
    found, error = directional_derivative(
        lambda t: _value(function, t, probes), theta.detach(), d, target=margin * scale / 10
    )
    scale = max(scale, abs(found)) or 1.0
    # Half of the margin is left to what the differences do not know of their error.
    limit = error + margin * scale / 2
    seen = (limit + error) / scale
    verdict = PASS if seen <= margin else INCONCLUSIVE
    if abs(slope - found) > limit:
        verdict = FAIL
    message = f"autograd {slope:.10g}, differences {found:.10g} ± {error:.2g}"
    return Check(
        "D6 gradient",
        CLAIM,
        verdict,
        slope,
        found,
        message,
        detectable=seen,
        margin=margin,
    )


def _expectation(
    function: Callable[..., Any],
    theta: Tensor,
    probes: Tensor,
    expected: Tensor,
    margin: float,
    key: Sequence[object],
) -> tuple[Check, Sequence[str]]:
    n, m = probes.shape[-2:]
    few = m == 1 and n <= MAX_ENUMERATED
    design = evidence.basis(n, m, "rademacher", key)
    if few:
        design = _all_signs(function, theta, probes)
    claim = "the expectation of the gradient is the expected one"
    name, total, largest = (
        ("D2" if few else "D6") + " gradient mean",
        torch.zeros_like(theta).double(),
        0.0,
    )
    for X, weight in zip(design.probes.to(probes), design.weights, strict=True):
        _, gradient, reason = _gradient(function, theta, X)
        if gradient is None:
            return outcome.broken(name, claim, reason), _DETACHED
        total += float(weight) * gradient.double()
        largest = max(largest, float(gradient.double().norm()))
    want = expected.to(total).reshape(total.shape)
    limit = math.sqrt(evidence.RECURRENCES * n) * torch.finfo(theta.dtype).eps * largest
    error = float((total - want).norm())
    cosine = float((total * want).sum() / (total.norm() * want.norm()))
    size = float(total.norm() / want.norm())
    # An expectation of zero has no size but that of the gradients that cancel.
    effect = margin * (float(want.norm()) or largest)
    message = (
        f"exact over {len(design.weights)} blocks of probes: |E gradient − expected| = "
        f"{error:.3g}, limit {limit:.3g}; cosine {cosine:.8f}, ratio of norms {size:.8g}"
    )
    verdict = PASS if error <= limit else FAIL
    if verdict == PASS and limit > effect:
        verdict = INCONCLUSIVE
        message += f"; it hides errors of the margin, {effect:.3g}"
    check = Check(name, claim, verdict, size, 1.0, message, size=len(design.weights), margin=limit)
    likely = _causes([size] * 2) if cosine > 1 - 1e-9 else ["truncation, or a part left out"]
    return check, likely


def _all_signs(function: Callable[..., Any], theta: Tensor, probes: Tensor) -> designs.Design:
    """All sign vectors, or those up to sign where x and −x have the same gradient."""
    n = probes.shape[-2]
    design = designs.all_signs(n)
    for x in design.probes[:: max(len(design.probes) // 4, 1)].to(probes):
        up, down = (_gradient(function, theta, sign * x)[1] for sign in (1, -1))
        slack = 8 * math.sqrt(n) * torch.finfo(theta.dtype).eps
        if up is None or down is None or float((up - down).norm()) > slack * float(up.norm()):
            return evidence.with_negatives(design)
    return design


def _gradient(
    function: Callable[..., Any], theta: Tensor, probes: Tensor
) -> tuple[float, Tensor | None, str]:
    parameter = theta.detach().clone().requires_grad_(True)
    result = function(parameter, probes)
    value = getattr(result, "value", result)
    if not isinstance(value, Tensor) or value.numel() != 1:
        return math.nan, None, f"the value is no scalar tensor but {type(value).__name__}"
    if not value.requires_grad:
        return math.nan, None, "the value does not require grad: it is detached from θ"
    (gradient,) = torch.autograd.grad(value.reshape(()), parameter, allow_unused=True)
    if gradient is None:
        return math.nan, None, "the value has a graph, but θ is not in it"
    if not bool(torch.isfinite(gradient).all()):
        return math.nan, None, "the gradient contains NaN or inf"
    return float(value.detach()), gradient.detach(), ""


def _value(function: Callable[..., Any], theta: Tensor, probes: Tensor) -> float:
    # With a graph, as in the call that is judged: some code takes another path without.
    result = function(theta.detach().clone().requires_grad_(True), probes)
    return float(torch.as_tensor(getattr(result, "value", result)).detach())


def _directions(
    theta: Tensor, wanted: int | Sequence[Tensor], key: Sequence[object]
) -> list[Tensor]:
    if not isinstance(wanted, int):
        return [torch.as_tensor(d).to(theta) for d in wanted]
    generator = generator_for(*key, "directions")
    draws = torch.randn(wanted, *theta.shape, generator=generator, dtype=torch.float64)
    return list(draws.to(theta))


def _error(check: Check) -> float:
    return check.statistic - check.reference


def _causes(ratios: Sequence[float]) -> list[str]:
    if not ratios:
        return ["a derivative where there is none, or the other way round"]
    factor = float(np.mean(ratios))
    if max(ratios) - min(ratios) <= 1e-4 * abs(factor):
        extra = ": the sign is lost" if abs(factor + 1) < 1e-3 else ""
        return [f"the gradient is {factor:.6g} times the right one in every direction{extra}"]
    return [
        "part of the graph is detached (bounds of the spectrum, a scale, Ritz vectors), or a "
        "surrogate loss whose value is not the estimate"
    ]


_RANK = {PASS: 0, INCONCLUSIVE: 1, FAIL: 2}
_DETACHED = (
    "`.detach()`, `.item()`, `torch.no_grad()`, or an inner `autograd.grad` without "
    "`create_graph=True`: training with it is silently without this term",
)
_REMEDY = (
    "follow requires_grad from θ to the value; a surrogate that is 'gradient only' should say so"
)
_REMEDY_MEAN = (
    "the gradient of a truncated value is Σ p'(λ), not Σ f'(λ); "
    "specbp.exact has the Fréchet derivative of both"
)
_REMEDY_ROUNDING = "use float64, or a larger `margin`"
_REMEDY_POWER = (
    "use float64, directions that keep A positive definite, or a larger `margin`: the differences "
    "are too inaccurate"
)
