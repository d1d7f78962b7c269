"""D6 and D8 for gradients: autograd through the value against differences and closed forms.

The operator is M + θ dM, an explicit matrix, A itself or a factor J with A = JᵀJ; the gradient is
d/dθ at θ = 0, with the probes and the arguments (an interval) held fixed. One probe contributes
xᵀLx, where L is the Fréchet derivative of f for an estimator that differentiates xᵀf(A)x, that of
log in the Krylov space of x for a quadrature, and sym(f'(A) dA) for one that solves. Without probes
it is tr A⁻¹dA.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specbp import exact, generator_for
from specbp.testing import designs, outcome
from specbp.testing.outcome import Check
from verification.cases import View
from verification.checks import claims, gradient_forms
from verification.checks.claims import Claim, Gap, measured
from verification.checks.settings import Settings
from verification.subjects import SLACK, Subject

N, PROBES, M, TINY = 10, 6, 4, 5
SPECTRA = ("easy", "cond 1e2")
# |dA| = λ_min below, so four steps stay within the 1 % by which an interval is too wide.
STEP = 1e-3
ENDS = ("interval", "upper")  # arguments on which the value depends, with a derivative of its own
LAWS = ("rademacher", "gaussian", "sphere")  # whose moments are known


class Direction(NamedTuple):
    """Where a gradient is taken: a view, a change of its operator, and probes (n, P)."""

    where: str
    view: View
    change: Tensor
    X: Tensor


@measured("D6a differences", "autograd gives the derivative of the value, probes held fixed")
def differences(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    # The value of a truncated quadrature has another derivative, and one that found its interval
    # moves it.
    whole = subject.gradient != "frechet" or claims.is_complete(subject, N)
    if subject.gradient == "solve" or subject.found is not None or not whole:
        return
    for where, view, change, X in _directions(subject):
        found = gradients(subject, view, change, X)
        fine, coarse = (_five_points(subject, view, change, X, h) for h in (STEP, 2 * STEP))
        yield _against_differences(where, found, fine, coarse, subject.rounding(view) / STEP)


@measured("D6a form", "the gradient of each probe is the quadratic form of its contract")
def form(subject: Subject, settings: Settings) -> Iterator[Gap]:
    if subject.outcomes is not None:  # the form is that of a polynomial drawn for the probe
        return
    # Ten steps of an iterative method are exact at n = 10.
    for n in (N, settings.array_n):
        for direction in _directions(subject, n):
            yield _against_form(subject, *direction)


@measured("D6b basis", "the mean gradient over n orthogonal probes is the contract's")
def basis(subject: Subject, settings: Settings) -> Iterator[Gap]:
    if subject.outcomes is not None or subject.gradient == "exact":
        return
    n = settings.array_n
    X = designs.hadamard_basis(n).probes.squeeze(-1).mT
    for where, view, change, _ in _directions(subject, n):
        limit = gradient_forms.limit(subject, view, change, X)
        expected = gradient_forms.forms(subject, view, change, X).mean()
        # An interval is found once for each block of probes.
        block = X.unsqueeze(0) if subject.found else X.mT.unsqueeze(-1)
        if subject.found:
            expected = gradient_forms.mean(subject.held(view, X[:, 0]), view, change)
        yield Gap(where, abs(_of_mean(subject, view, change, block) - expected), limit)
        if subject.gradient == "frechet":
            # In complete spaces nothing is truncated, whatever the spectrum.
            whole = subject.with_steps(n)
            yield _against_truth(whole, f"{where}, {n} steps", view, change, block)


@measured("D6b complete", "joint probes in complete spaces have the mean gradient tr A⁻¹dA")
def complete(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if not _is_joint(subject) or subject.gradient != "frechet":
        return
    for where, view, change, X in _changes(subject, N, SPECTRA):
        yield _against_truth(subject.with_steps(N), where, view, change, X.unsqueeze(0))
    # Two steps complete the space of each probe, and two probes leave all to chance but that.
    for where, view, change, _ in _changes(subject, TINY, ("two",)):
        X = designs.sign_tuples(TINY, 2).probes
        yield _against_truth(subject.with_steps(2), f"{where}, all pairs", view, change, X)


def _against_truth(subject: Subject, where: str, view: View, change: Tensor, X: Tensor) -> Gap:
    """The gradient of the mean value of the blocks X against that of log det A."""
    error = _of_mean(subject, view, change, X) - gradient_forms.truth(subject, view, change)
    return Gap(where, abs(error), gradient_forms.limit(subject, view, change, X[0]))


@measured("D6c scale", "along A → (1 + θ) A each probe has the gradient of its contract")
def scale(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if subject.outcomes is not None:
        return
    for where, view, _, X in _directions(subject):
        yield _against_form(subject, where, view, view.operator, X)


@measured("D6d interval", "autograd gives the derivative of the value in the ends of its interval")
def interval(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if subject.gradient != "derivative" or subject.outcomes is not None or subject.found:
        return
    for where, view, _, X in _directions(subject):
        for name in ENDS:
            for i, end in enumerate(np.ravel(subject.arguments(view).get(name, ()))):
                yield _at_end(subject, f"{where}, {name}[{i}]", view, X, (name, i, float(end)))


def _at_end(
    subject: Subject, where: str, view: View, X: Tensor, which: tuple[str, int, float]
) -> Gap:
    """The derivative of the value of each probe in one end of the interval, autograd or not."""
    name, i, end = which
    estimate = _with_end(subject, view, name, i)
    x = torch.full((X.shape[-1],), end, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(estimate(x, X).sum(), x)
    h = SLACK / 20 * end
    fine, coarse = (_central(lambda t: estimate(x + t, X), step) for step in (h, 2 * h))
    return _against_differences(where, found.numpy(), fine, coarse, subject.rounding(view) / h)


def parts(subject: Subject, settings: Settings) -> Iterator[Check]:
    """How far the gradient is from that of log det A, by truncation and by chance, side by side."""
    if subject.gradient in (None, "exact") or subject.estimand != "logdet":
        return
    if subject.outcomes is not None or subject.found is not None or subject.law not in LAWS:
        return
    n = settings.array_n
    X = designs.hadamard_basis(n).probes.squeeze(-1).mT
    for where, view, change, _ in _directions(subject, n):
        truth = gradient_forms.truth(subject, view, change)
        truncation = abs(_of_mean(subject, view, change, X.mT.unsqueeze(-1)) - truth)
        L = gradient_forms.matrix(subject, view, change)
        sd = math.sqrt(exact.moments(L, subject.law).variance)
        reason = (
            f"truncation, the mean over {n} orthogonal probes against tr A⁻¹dA = {truth:.3g}; "
            f"sampling, exactly: sd {sd:.3g} of one probe; at {where}"
        )
        yield outcome.reported(PARTS, PARTS_TEXT, truncation, sd, reason)


PARTS, PARTS_TEXT = "D6e parts", "what parts the gradient from that of log det A"


@measured("D8 gradient", "the gradient of m probes is the mean of their gradients")
def mean(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if subject.gradient == "exact" or subject.found is not None:
        return
    for where, view, change, X in _directions(subject):
        together = _of_mean(subject, view, change, X[None, :, :M])
        alone = gradients(subject, view, change, X[:, :M]).mean()
        limit = gradient_forms.limit(subject, view, change, X)
        yield Gap(where, abs(together - alone), 2 * limit)


def _is_joint(subject: Subject) -> bool:
    """Whether nothing is known of the gradient of one probe."""
    return subject.claims.joint and subject.outcomes is None


def _directions(subject: Subject, n: int = N) -> Iterator[Direction]:
    """Where the gradients of single probes are taken."""
    if subject.gradient is not None and not _is_joint(subject):
        yield from _changes(subject, n, SPECTRA)


def _changes(subject: Subject, n: int, spectra: tuple[str, ...]) -> Iterator[Direction]:
    """Views with a random change of A of length λ_min, symmetric or by that of J, and 6 probes."""
    for where, view in claims.cells(subject, spectra, n):
        generator = generator_for("tier D", "direction", where)
        change = torch.randn(n, n, generator=generator, dtype=torch.float64)
        if subject.on != "J":
            change = change + change.mT
        length = np.linalg.norm(gradient_forms.of_gram(subject, view, change), ord=2)
        count = PROBES if subject.gradient != "exact" else 1
        X = claims.draw(view, count, "D6", where)
        yield Direction(where, view, change * float(view.eigenvalues.min() / length), X)


def gradients(subject: Subject, view: View, change: Tensor, X: Tensor) -> np.ndarray:
    """d/dθ of the value of each column of X (n, P), all in one call: (P,)."""
    theta = torch.zeros(X.shape[-1], dtype=torch.float64, requires_grad=True)
    moved = view.operator + theta[:, None, None] * change
    found = _values(subject, _with_operator(view, moved), X.mT.unsqueeze(-1))
    return torch.autograd.grad(found.sum(), theta)[0].numpy()


def _of_mean(subject: Subject, view: View, change: Tensor, X: Tensor) -> float:
    """d/dθ of the mean value of the blocks X (R, n, m)."""
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    found = _values(subject, _with_operator(view, view.operator + theta * change), X)
    return float(torch.autograd.grad(found.mean(), theta)[0])


def _values(subject: Subject, view: View, X: Tensor) -> Tensor:
    """The values of the blocks X (R, n, m), with their graph: (R,)."""
    exactly = subject.claims.expectation == "exact"
    found = subject.bound(view)(view.operator) if exactly else subject.call(view, X)
    claims.value_of(found, X.shape[:1])
    return found.value


def _five_points(subject: Subject, view: View, change: Tensor, X: Tensor, h: float) -> np.ndarray:
    """d/dθ of the value of each column of X by central differences of order 4."""

    def f(step: float) -> Tensor:
        moved = (view.operator + step * change).expand(X.shape[-1], *change.shape)
        return _values(subject, _with_operator(view, moved), X.mT.unsqueeze(-1))

    return _central(f, h)


def _central(f: Any, h: float) -> np.ndarray:
    weights = ((1, 8), (2, -1))
    total = sum(w * (f(k * h) - f(-k * h)) for k, w in weights)
    found: np.ndarray = (total / (12 * h)).detach().numpy()
    return found


def _with_operator(view: View, operator: Tensor) -> View:
    """The same arguments for another matrix."""
    return replace(view, operator=operator)


def _with_end(subject: Subject, view: View, name: str, i: int) -> Any:
    """Values (P,) of the columns of X, as a function of one end of the interval, (P,)."""
    arguments = subject.arguments(view)

    def estimate(end: Tensor, X: Tensor) -> Tensor:
        pair = list(np.ravel(arguments[name]))
        pair[i] = end
        moved = {**arguments, name: tuple(pair) if len(pair) > 1 else end}
        return _values(replace(subject, arguments=lambda _view: moved), view, X.mT.unsqueeze(-1))

    return estimate


def _against_differences(
    where: str, found: np.ndarray, fine: np.ndarray, coarse: np.ndarray, rounded: float
) -> Gap:
    # Halving the step divides the error of the formula by 16; 1.5 is the sum of its weights.
    return claims.furthest(where, found - fine, float(np.abs(fine - coarse).max()) + 1.5 * rounded)


def _against_form(subject: Subject, where: str, view: View, change: Tensor, X: Tensor) -> Gap:
    expected = gradient_forms.forms(subject, view, change, X)
    errors = gradients(subject, view, change, X) - expected
    return claims.furthest(where, errors, gradient_forms.limit(subject, view, change, X))


CHECKS = (
    differences,
    form,
    basis,
    complete,
    scale,
    interval,
    Claim(PARTS, PARTS_TEXT, parts),
    mean,
)
