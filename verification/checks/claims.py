"""Claims put to the test: what a check is, and how measured errors become one verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from specbp import Estimate, generator_for, rademacher, sphere
from specbp.testing import outcome
from specbp.testing.outcome import Check
from verification.cases import View
from verification.checks.problems import problem
from verification.checks.settings import Settings
from verification.subjects import Subject, interval
from verification.units import VACUOUS

BLOCK = 3  # probes of one estimate where they are used jointly


class Gap(NamedTuple):
    """One measured error: where, how large, and what rounding (or theory) allows there."""

    where: str
    error: float
    limit: float

    @property
    def severity(self) -> float:
        """Error in units of its limit; NaN is worse than anything."""
        if not math.isfinite(self.error):
            return math.inf
        return self.error / self.limit if self.limit > 0 else (math.inf if self.error > 0 else 0.0)


@dataclass(frozen=True)
class Claim:
    """One claim as a function `(subject, settings) -> checks`; no check where it does not apply.

    Attributes:
        name: Code and short name, "D1 probe".
        text: The sentence that is put to the test.
        checks: The function.
    """

    name: str
    text: str
    checks: Callable[[Subject, Settings], Iterable[Check]]

    def __call__(self, subject: Subject, settings: Settings) -> list[Check]:
        """Carry the test out; what the estimator raises counts as its failure."""
        try:
            return list(self.checks(subject, settings))
        except Exception as error:
            return [outcome.broken(self.name, self.text, f"raised {_described(error)}")]


Measure = Callable[[Subject, Settings], Iterable[Gap]]


def measured(name: str, text: str, unit: str = "nats") -> Callable[[Measure], Claim]:
    """Make a claim of a function that measures errors: it is judged by the worst of them."""

    def decorate(measure: Measure) -> Claim:
        def checks(subject: Subject, settings: Settings) -> Iterator[Check]:
            gaps = list(measure(subject, settings))
            if gaps:
                yield worst_of(name, text, gaps, unit)

        return Claim(name, text, checks)

    return decorate


def worst_of(name: str, text: str, gaps: list[Gap], unit: str = "nats") -> Check:
    """One check for many errors: the one that takes most of its limit is shown."""
    worst = max(gaps, key=lambda gap: gap.severity)
    found = outcome.within(name, text, worst.error, worst.limit, unit)
    message = f"{found.message}, at {worst.where} (worst of {len(gaps)})"
    return replace(found, message=message, size=len(gaps))


def _described(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


class Cell(NamedTuple):
    """A view a claim is tested on, and its name."""

    where: str
    view: View


def cells(
    subject: Subject, spectra: Iterable[str], n: int, dtype: str = "float64"
) -> Iterator[Cell]:
    """The views of some problems on which the limits of the subject say anything at all."""
    for spectrum in spectra:
        view = problem(spectrum, n, dtype).views[subject.on]
        if allowance(subject, view) <= VACUOUS * n:
            yield Cell(f"{spectrum}, n = {n}, {dtype}", view)


def allowance(subject: Subject, view: View) -> float:
    """Largest error of the value of one probe with |x|² = n: rounding, and truncation if adaptive.

    An adaptive polynomial lives on an interval up to 2 λ_max at the widest; there it stays within
    4 ρ^-d / ((d+1) (ρ−1)) of log for each |x|² (Trefethen 2013, theorem 8.2).
    """
    if subject.claims.expectation != "adaptive":
        return subject.rounding(view)
    degree, (a, b) = subject.config["degree"], interval(view)
    ratio = (2 * b / a) ** 0.5
    rho = (ratio + 1) / (ratio - 1)
    sup = 4 * rho**-degree / ((degree + 1) * (rho - 1))
    return subject.rounding(view) + view.operator.shape[-1] * sup


def is_complete(subject: Subject, n: int) -> bool:
    """Whether its Krylov spaces, if it has any, fill an n × n matrix: then nothing is hidden."""
    return all(subject.config.get(key, n) >= n for key in ("num_steps", "power_steps"))


def with_complete_spaces(subject: Subject, n: int, m: int, distinct: int) -> Subject:
    """The subject with n steps; with only as many as there are distinct eigenvalues if it is joint.

    Together the spaces of m probes must not fill all dimensions, which would leave nothing random.
    """
    promise, complete = subject.claims.exact_from, subject.with_steps(n)
    if promise is not None and promise(n, m, complete.config):
        return subject.with_steps(distinct)
    return complete


def draw(view: View, count: int, *key: object) -> Tensor:
    """Probes (n, count) in the dtype of the view, half of them signs and half on the sphere.

    The value is a function of the probe whatever law that comes from. Deterministic tests have
    deterministic probes: no epoch.
    """
    n, generator = view.operator.shape[-1], generator_for("tier D", *key)
    half = count // 2
    signs = rademacher(n, count - half, generator=generator)
    X = torch.cat([signs, sphere(n, half, generator=generator)], -1) if half else signs
    return X.to(view.operator.dtype)


def values(subject: Subject, view: View, X: Tensor) -> np.ndarray:
    """Value of one estimate for each block of X (R, n, m), in one batched call: (R,)."""
    return value_of(subject.call(view, X), X.shape[:1])


def singles(subject: Subject, view: View, X: Tensor) -> np.ndarray:
    """Value of each column of X (n, P) as an estimate of its own: (P,)."""
    return values(subject, view, X.mT.unsqueeze(-1))


def estimates(subject: Subject, view: View, X: Tensor) -> np.ndarray:
    """Estimates from the columns of X (n, P): of each column alone, or of blocks of a few of them.

    An estimator that uses its probes jointly promises nothing for one probe.
    """
    if not subject.claims.joint:
        return singles(subject, view, X)
    (n, count), m = X.shape, block_size(subject)
    blocks = X[:, : count // m * m].view(n, m, count // m)
    return values(subject, view, blocks.movedim(-1, 0))


def block_size(subject: Subject) -> int:
    """Probes of one of the `estimates`, each of which may be rounded."""
    return max(BLOCK, subject.claims.min_probes) if subject.claims.joint else 1


def value_of(found: Estimate, shape: tuple[int, ...]) -> np.ndarray:
    """The value as numpy.

    Raises:
        ValueError: If its shape is not the one required.
    """
    if tuple(found.value.shape) != tuple(shape):
        required = f"required {tuple(shape)}, one for each block of probes"
        raise ValueError(f"value has shape {tuple(found.value.shape)}, {required}.")
    return found.value.detach().double().numpy()


def furthest(where: str, errors: np.ndarray, limit: float, item: str = "probe") -> Gap:
    """The largest of some errors, named."""
    index = int(np.where(np.isnan(errors), np.inf, np.abs(errors)).argmax())
    return Gap(f"{where}, {item} {index}", abs(float(errors[index])), limit)
