"""D11: what cannot be estimated is reported, never a number."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from specbp import Estimate, Status
from specbp.testing import outcome
from specbp.testing.outcome import Check
from verification.checks import claims, problems
from verification.checks.claims import Claim
from verification.checks.settings import Settings
from verification.subjects import Subject

N, M = 10, 4
NAMED = re.compile(r"\bnan\b|\binf|finite|definite|singular|positive|converge|rank", re.IGNORECASE)

Report = Callable[[Subject, Settings], Iterator[tuple[str, str]]]


def reporting(name: str, text: str) -> Callable[[Report], Claim]:
    """Make a claim of a function that yields (where, what was not reported) for each problem."""

    def decorate(report: Report) -> Claim:
        def checks(subject: Subject, settings: Settings) -> Iterator[Check]:
            found = list(report(subject, settings))
            if found:
                silent = [f"{where}: {why}" for where, why in found if why]
                message = silent[0] if silent else f"reported in all {len(found)} cases"
                yield outcome.exactly(name, text, not silent, message)

        return Claim(name, text, checks)

    return decorate


@reporting("D11 NaN", "a product that is NaN for one probe spoils the estimate, and it says so")
def spoiled(subject: Subject, _settings: Settings) -> Iterator[tuple[str, str]]:
    view = problems.problem("easy", N).views[subject.on]
    estimate = subject.bound(view)
    if subject.claims.expectation == "exact":
        broken = view.operator.clone()
        broken[0, 0] = torch.nan
        yield "one entry is NaN", _silence(estimate, broken)
        return
    X = claims.draw(view, M, "D11")
    for j in range(M):
        operator = NaNProducts(view.operator, X[:, j])
        why = _silence(estimate, operator, X)
        # An estimator may never multiply by that probe as it stands: then nothing was NaN.
        if operator.met:
            yield f"the product with probe {j} of {M} is NaN", why


@reporting(
    "D11 indefinite", "an indefinite matrix has no log-determinant, and the estimate says so"
)
def indefinite(subject: Subject, _settings: Settings) -> Iterator[tuple[str, str]]:
    if subject.estimand == "logdet" and subject.on != "J":
        yield from _degenerate(subject, "indefinite")


@reporting("D11 singular", "a singular matrix has log det = −inf, and the estimate says so")
def singular(subject: Subject, _settings: Settings) -> Iterator[tuple[str, str]]:
    # A polynomial that claims no lower end is finite at 0, and need not notice.
    sees = "lower" in subject.claims.bracket
    if subject.claims.expectation in ("exact", "quadrature", "adaptive", "krylov"):
        sees = claims.is_complete(subject, N)
    if subject.estimand == "logdet" and sees:
        yield from _degenerate(subject, "singular")


def _degenerate(subject: Subject, kind: Any) -> Iterator[tuple[str, str]]:
    for spectrum in ("easy", "cond 1e2"):
        # The arguments are those of the healthy matrix: nobody knows of the trouble.
        view = problems.problem(spectrum, N).views[subject.on]
        arguments: tuple[Any, ...] = (problems.degenerate(view, subject.on, kind),)
        if subject.claims.expectation != "exact":
            arguments += (claims.draw(view, M, "D11", spectrum),)
        # At zero an adaptive interval leaves a finite value, with a warning of its bias.
        accept = Status.FLOORED if kind == "singular" else Status.OK
        yield spectrum, _silence(subject.bound(view), *arguments, accept=accept)


def _silence(estimate: Callable[..., Estimate], *arguments: Any, accept: Status = Status.OK) -> str:
    """Why the failure went unreported, or the empty string; `accept`: warnings that will do."""
    try:
        found = estimate(*arguments)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        text = " ".join(str(error).split())
        return "" if NAMED.search(text) else f"raised {type(error).__name__}: {text[:200]}"
    value = float(claims.value_of(found, ()))
    if math.isnan(value) or value == -math.inf:
        return "" if not bool(found.ok) else f"value {value:g} with a status that is OK"
    return "" if Status(int(found.status)) & accept else f"value {value:.6g}"


class NaNProducts:
    """An operator whose product with one direction is NaN, and with every other is right."""

    def __init__(self, operator: Tensor, direction: Tensor):
        self.operator, self.direction = operator, direction
        self.met = False

    shape = property(lambda self: self.operator.shape)
    dtype = property(lambda self: self.operator.dtype)
    device = property(lambda self: self.operator.device)

    @property
    def mT(self) -> Tensor:
        """The adjoint, without NaN."""
        return self.operator.mT

    def __matmul__(self, X: Tensor) -> Tensor:
        cosine = torch.cosine_similarity(X, self.direction.unsqueeze(-1), dim=-2)
        hit = (cosine.abs() > 1 - 1e-6).unsqueeze(-2)
        self.met |= bool(hit.any())
        return (self.operator @ X).masked_fill(hit, torch.nan)


CHECKS = (spoiled, indefinite, singular)
