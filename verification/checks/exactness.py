"""D1–D4, D7, D10: one probe's value, designs that carry a law exactly, quadrature, brackets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor

from specbp import exact
from specbp.testing import designs
from verification.cases import View
from verification.checks import claims, problems
from verification.checks.claims import Gap, measured
from verification.checks.settings import Settings
from verification.subjects import Subject

PROBES = 8
FEW_STEPS = 5  # a Gauss rule far from exact at n = 10
# A joint estimator of 3 probes sees all ordered triples of the 2^4 sign vectors of length 5.
JOINT_N, JOINT_M = 5, 3
# Two distinct eigenvalues complete the Krylov space of every probe in two steps; two probes then
# span four dimensions at most, fewer than the orders here.
COMPLETE_NS, COMPLETE_M = (6, 7), 2
ENOUGH = 4  # probes for each dimension: who is not exact from these on never is

# By the order of the matrix; "easy" is where an adaptive polynomial has converged to rounding.
# Ill-conditioned ones are where Krylov vectors lose their orthogonality first.
SPECTRA: dict[int, tuple[str, ...]] = {
    10: ("easy", "cond 1e2", "cond 1e4", "cond 1e6", "power law", "spike"),
    64: ("easy", "cond 1e2", "cond 1e6", "clusters", "spike", "few"),
}
LARGE = ("power law",)


@measured("D1 probe", "each probe's value is that of an independent algorithm, to rounding")
def probe(subject: Subject, settings: Settings) -> Iterator[Gap]:
    if subject.claims.expectation == "exact":
        return
    for cell in _all_cells(subject, settings):
        X = claims.draw(cell.view, PROBES, "D1", cell.where)
        target = _target(subject, cell.view, X)
        if target is None:
            return
        errors = claims.singles(subject, cell.view, X) - target
        yield claims.furthest(cell.where, errors, claims.allowance(subject, cell.view))


@measured("D1 value", "the value is exact, to rounding")
def value(subject: Subject, settings: Settings) -> Iterator[Gap]:
    if subject.claims.expectation != "exact":
        return
    for where, view in _all_cells(subject, settings):
        found = claims.value_of(subject.bound(view)(view.operator), ())
        truth = view.truth
        limit = max(10 * truth.u_truth, subject.rounding(view))
        yield Gap(where, abs(float(found) - truth.value), limit)


def _all_cells(subject: Subject, settings: Settings) -> Iterator[claims.Cell]:
    for n, dtype in itertools.product(settings.probe_ns, settings.dtypes):
        yield from claims.cells(subject, SPECTRA.get(n, LARGE), n, dtype)


def _target(subject: Subject, view: View, X: Tensor) -> np.ndarray | None:
    """What each probe should give: the contract, or xᵀlog(A)x where the polynomial adapts."""
    if subject.outcomes is not None:
        return None
    if subject.claims.expectation == "adaptive":
        return _log_forms(view, X)
    return subject.oracle(view, X)


def _log_forms(view: View, X: Tensor) -> np.ndarray:
    return exact.quadratic_forms(view.eigenvalues, view.eigenvectors, np.log, X.double().numpy())


@measured("D2 mean", "over all sign vectors the mean is the contract's expectation")
def enumerated_mean(subject: Subject, settings: Settings) -> Iterator[Gap]:
    for cell, found, target in _enumerated(subject, settings):
        error = float(found.mean() - target.mean())
        yield Gap(cell.where, abs(error), claims.allowance(subject, cell.view))


@measured("D2 sd", "over all sign vectors the standard deviation is that of independent signs")
def enumerated_sd(subject: Subject, settings: Settings) -> Iterator[Gap]:
    # Values that err by r at most have a standard deviation that errs by r at most.
    for cell, found, target in _enumerated(subject, settings):
        sd = float(target.std())
        if subject.claims.expectation in ("tr p(A)", "tr A"):
            sd = exact.moments(subject.form(cell.view), "rademacher").variance ** 0.5
        yield Gap(cell.where, abs(found.std() - sd), claims.allowance(subject, cell.view))


def _enumerated(
    subject: Subject, settings: Settings
) -> Iterator[tuple[claims.Cell, np.ndarray, np.ndarray]]:
    """Values and targets of all sign vectors; a quadrature is stopped where it is not yet exact."""
    if subject.claims.expectation == "exact":
        return
    if "num_steps" in subject.config:
        subject = replace(subject, config={**subject.config, "num_steps": FEW_STEPS})
    signs = designs.all_signs(settings.enumerate_n).columns
    for cell in claims.cells(subject, ("easy", "cond 1e2", "spike"), settings.enumerate_n):
        target = _target(subject, cell.view, signs)
        if target is not None:
            yield cell, claims.singles(subject, cell.view, signs), target


@measured("D2 joint", "over all triples of sign vectors the mean is the contract's expectation")
def joint(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    unbiased = subject.claims.expectation in ("tr A", "tr p(A)") and subject.outcomes is None
    if not unbiased or subject.claims.additive or subject.law != "rademacher":
        return
    # Probes may have roles, such as those of a sketch: tuples, not multisets.
    design = designs.sign_tuples(JOINT_N, JOINT_M)
    for where, view in claims.cells(subject, ("cond 1e2", "spike"), JOINT_N):
        error = design.mean(claims.values(subject, view, design.probes)) - subject.expected(view)
        # A block is computed with, not one vector: as many roundings as it has probes.
        yield Gap(where, abs(error), JOINT_M * claims.allowance(subject, view))


@measured("D2 complete", "over all pairs of sign vectors the mean is log det A, spaces complete")
def joint_complete(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if subject.claims.expectation != "krylov" or subject.law != "rademacher":
        return
    m = max(COMPLETE_M, subject.claims.min_probes)
    for n in COMPLETE_NS:
        subject = claims.with_complete_spaces(subject, n, m, distinct=2)
        design = designs.sign_tuples(n, m)
        for where, view in claims.cells(subject, ("two", "two, cond 1e4"), n):
            found = claims.values(subject, view, design.probes)
            error = design.mean(found) - subject.expected(view)
            yield Gap(where, abs(error), m * claims.allowance(subject, view))


@measured("D2 error bars", "over all triples of sign vectors E[se²] is the variance")
def error_bars(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    exact_law = subject.law == "rademacher" or subject.claims.additive
    random = subject.claims.expectation != "exact" and subject.outcomes is None
    if not (subject.claims.calibrated and random and exact_law):
        return
    m, spectra = max(JOINT_M, subject.claims.bar_probes), ("easy", "cond 1e2")
    if subject.claims.expectation == "krylov":
        # Truncation varies as well: none is left where there are two distinct eigenvalues.
        subject, spectra = subject.with_steps(JOINT_N), ("two", "two, cond 1e4")
    design = designs.sign_tuples(JOINT_N, m)
    for where, view in claims.cells(subject, spectra, JOINT_N):
        found = subject.call(view, design.probes)
        sd = design.variance(claims.value_of(found, (len(design.weights),))) ** 0.5
        bar = design.mean(found.standard_error.square()) ** 0.5
        # Values that err by r move either root mean square by r at most.
        yield Gap(where, abs(bar - sd), 2 * m * claims.allowance(subject, view))


@measured("D2 outcomes", "over all outcomes of its own draws the mean is the expectation")
def outcomes(subject: Subject, settings: Settings) -> Iterator[Gap]:
    if subject.outcomes is None:
        return
    for where, view in claims.cells(subject, ("easy", "cond 1e2"), settings.enumerate_n):
        found, weights = (t.double().numpy() for t in subject.outcomes(view))
        limit = claims.allowance(subject, view)
        yield Gap(f"{where}, weights", abs(weights.sum() - 1), len(weights) * 2.0**-52)
        # The weighted terms round like a sum of their sizes.
        size = float(np.abs(found * weights).sum()) * len(weights) * 2.0**-53
        yield Gap(where, abs(float(found @ weights) - subject.expected(view)), limit + size)


@measured("D3 basis", "the mean over n orthogonal probes of length √n is the contract's trace")
def basis(subject: Subject, settings: Settings) -> Iterator[Gap]:
    if not _is_quadratic(subject):
        return
    n = settings.array_n
    probes = {"Hadamard": designs.hadamard_basis(n), "identity": designs.identity_basis(n)}
    for where, view in claims.cells(subject, ("cond 1e2", "clusters"), n):
        for name, design in probes.items():
            found = claims.values(subject, view, design.probes)
            error = float(found.mean()) - subject.expected(view)
            yield Gap(f"{where}, {name}", abs(error), subject.rounding(view))


@measured("D4 array", "mean and standard deviation over a strength-5 array are those of the law")
def array(subject: Subject, settings: Settings) -> Iterator[Gap]:
    if not _is_quadratic(subject):
        return
    design = designs.orthogonal_array(settings.array_n)
    for where, view in claims.cells(subject, ("cond 1e2",), settings.array_n):
        found = claims.values(subject, view, design.probes)
        law, limit = exact.moments(subject.form(view), "rademacher"), subject.rounding(view)
        yield Gap(f"{where}, mean", abs(design.mean(found) - law.mean), limit)
        sd = design.variance(found) ** 0.5
        yield Gap(f"{where}, sd", abs(sd - law.variance**0.5), limit)


def _is_quadratic(subject: Subject) -> bool:
    fixed = subject.outcomes is None and subject.claims.additive
    return fixed and subject.claims.expectation in ("tr p(A)", "tr A")


@measured("D7 complete", "quadrature is exact with as many nodes as distinct eigenvalues")
def complete(subject: Subject, settings: Settings) -> Iterator[Gap]:
    if subject.claims.expectation != "quadrature":
        return
    steps = subject.config.get("num_steps", 10)
    places: list[tuple[int, tuple[str, ...]]] = [(min(steps, 10), ("cond 1e2", "cond 1e4"))]
    if steps >= problems.FEW:
        places.append((64, ("few",)))
    for (n, spectra), dtype in itertools.product(places, settings.dtypes):
        for where, view in claims.cells(subject, spectra, n, dtype):
            X = claims.draw(view, PROBES, "D7", where)
            errors = claims.singles(subject, view, X) - _log_forms(view, X)
            yield claims.furthest(where, errors, subject.rounding(view))


@measured("D7 exact", "the value is exact from the number of probes on that it says")
def exact_from(subject: Subject, settings: Settings) -> Iterator[Gap]:
    promise = subject.claims.exact_from
    if promise is None:
        return
    n = settings.enumerate_n
    config = subject.configured(n)
    counts = range(subject.claims.min_probes, ENOUGH * n + 1)
    m = next((m for m in counts if promise(n, m, config)), None)
    if m is None:
        raise ValueError(f"no number of probes up to {ENOUGH * n} makes it exact at n = {n}.")
    spectra = ("easy", "cond 1e2", "cond 1e4", "spike")
    for dtype in settings.dtypes:
        for where, view in claims.cells(subject, spectra, n, dtype):
            # Probes in general position, among which are no two signs alike.
            X = claims.draw(view, 3 * m, "D7 exact", where).view(n, m, 3).movedim(-1, 0)
            errors = claims.values(subject, view, X) - subject.expected(view)
            yield claims.furthest(where, errors, m * subject.rounding(view), "block")


@measured("D7 above", "a Gauss rule of log is never below xᵀlog(A)x")
def above(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if subject.claims.expectation != "quadrature":
        return
    for where, view in claims.cells(subject, SPECTRA[64], 64):
        X = claims.draw(view, PROBES, "D7", where)
        below = _log_forms(view, X) - claims.singles(subject, view, X)
        yield Gap(where, _excess(below), subject.rounding(view))


@measured("D10 bracket", "the truncation bracket holds for every probe, and its ends are finite")
def bracket(subject: Subject, settings: Settings) -> Iterator[Gap]:
    sides = subject.claims.bracket
    if not sides or subject.claims.bracket_of == "inner":
        return
    for dtype in settings.dtypes:
        for where, view in claims.cells(subject, SPECTRA[64], 64, dtype):
            X = claims.draw(view, PROBES, "D10", where)
            blocks = X.mT.unsqueeze(-1)
            if subject.claims.joint:  # half of a block are signs, half directions on the sphere
                blocks = X.view(64, PROBES // 2, 2).movedim(-1, 0)
            found, target = subject.call(view, blocks), _bracketed(subject, view, blocks)
            ends = {"lower": found.lower.numpy() - target, "upper": target - found.upper.numpy()}
            for side in sides:
                # An infinite end brackets nothing: what is claimed is known.
                known = np.where(np.isfinite(ends[side]), ends[side], np.nan)
                limit = blocks.shape[-1] * subject.rounding(view)
                yield Gap(f"{where}, {side} end", _excess(known), limit)


def _bracketed(subject: Subject, view: View, X: Tensor) -> np.ndarray:
    """What the bracket of each block of X (R, n, m) is claimed to hold, (R,)."""
    if subject.claims.bracket_of == "truth":
        return np.full(len(X), subject.expected(view))
    if subject.claims.bracket_of == "complete":
        return claims.values(subject.with_steps(X.shape[-2]), view, X)
    columns = X.movedim(-2, 0).flatten(1)
    return _log_forms(view, columns).reshape(len(X), -1).mean(-1)


def _excess(beyond: np.ndarray) -> float:
    """How far the worst value lies beyond its bound, 0 if none does; NaN if one is unknown."""
    return float(np.maximum(beyond, 0).max())


CHECKS = (
    probe,
    value,
    enumerated_mean,
    enumerated_sd,
    joint,
    joint_complete,
    error_bars,
    outcomes,
    basis,
    array,
    complete,
    exact_from,
    above,
    bracket,
)
