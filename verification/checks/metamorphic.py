"""D5: what must change, or stay, when the matrix or the probes are changed in a known way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from specbp import exact
from verification.cases import View
from verification.checks import claims, problems
from verification.checks.claims import Gap, measured
from verification.checks.settings import Settings
from verification.subjects import Subject

N, PROBES = 10, 6
SPECTRA = ("easy", "cond 1e2", "spike")
# Factors of J, hence squares for A: powers of two, exact in floating point, two of them extreme.
ROOTS = (2.0, 2.0**-20, 2.0**20)


@measured("D5 scaling", "A → c A adds |x|² log c to a log-determinant and multiplies a trace by c")
def scaling(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    for where, view in claims.cells(subject, SPECTRA, N):
        X = claims.draw(view, PROBES, "D5", where)
        before = _values(subject, view, X)
        for root in ROOTS:
            after = problems.scaled(view, subject.on, root)
            c = root**2
            expected = c * before if subject.estimand == "trace" else before + N * np.log(c)
            unit = c if subject.estimand == "trace" else 1
            limit = unit * claims.allowance(subject, view) + claims.allowance(subject, after)
            limit *= claims.block_size(subject)
            errors = _values(subject, after, X) - expected
            yield claims.furthest(f"{where}, c = {c:.3g}", errors, limit)


@measured("D5 identity", "on A = c I every probe gives |x|² f(c)")
def identity(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if not (subject.claims.additive or subject.claims.expectation == "adaptive"):
        return
    views = {c: problems.multiple_of_identity(N, c).views[subject.on] for c in (1.0, 3.0, 0.01)}
    # log 1 = 0 need not be a sum of small terms: the limit is that of the largest value here.
    limit = max(claims.allowance(subject, view) for view in views.values())
    for c, view in views.items():
        X = claims.draw(view, PROBES, "D5", "identity")
        f = np.log if subject.claims.expectation == "adaptive" else subject.contract(view)
        errors = _values(subject, view, X) - N * float(f(np.array([c]))[0])
        yield claims.furthest(f"c = {c:g}", errors, limit)


@measured("D5 zero", "the trace of the zero operator is zero")
def zero(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if subject.estimand != "trace":
        return
    view = problems.problem("easy", N).views[subject.on]
    given = () if subject.claims.expectation == "exact" else (claims.draw(view, PROBES, "D5"),)
    found = subject.bound(view)(0 * view.operator, *given)
    yield Gap("A = 0", abs(float(claims.value_of(found, ()))), subject.rounding(view))


@measured("D5 evenness", "x and −x give the same value")
def evenness(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if subject.claims.expectation == "exact":
        return
    for where, view in claims.cells(subject, SPECTRA, N):
        X = claims.draw(view, PROBES, "D5", where)
        errors = claims.estimates(subject, view, X) - claims.estimates(subject, view, -X)
        limit = claims.block_size(subject) * subject.rounding(view)
        yield claims.furthest(where, errors, limit)


@measured("D5 homogeneity", "c x gives c² times the value of x")
def homogeneity(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if not _per_probe(subject):
        return
    for where, view in claims.cells(subject, SPECTRA, N):
        X = claims.draw(view, PROBES, "D5", where)
        before = claims.singles(subject, view, X)
        for c in (0.25, 3.0):
            errors = claims.singles(subject, view, c * X) - c**2 * before
            limit = 2 * c**2 * subject.rounding(view)
            yield claims.furthest(f"{where}, c = {c:g}", errors, limit)


@measured("D5 permutation", "the order of the probes does not matter")
def permutation(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if not _per_probe(subject):
        return
    for where, view in claims.cells(subject, SPECTRA, N):
        X = claims.draw(view, PROBES, "D5", where)
        there, back = (subject.call(view, Z) for Z in (X, X.flip(-1)))
        error = float(claims.value_of(there, ()) - claims.value_of(back, ()))
        yield Gap(where, abs(error), 2 * subject.rounding(view))


@measured("D5 blocks", "on diag(A₁, A₂) the values of the blocks add up")
def blocks(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    joint = not subject.claims.additive and subject.claims.expectation != "adaptive"
    if joint or not claims.is_complete(subject, N):
        return
    for spectra in (("easy", "cond 1e2"), ("spike", "easy")):
        parts = [problems.problem(s, N // 2).views[subject.on] for s in spectra]
        whole = problems.block_diagonal(parts, subject.on)
        X = claims.draw(whole, PROBES, "D5", spectra)
        halves = list(zip(parts, X.split(N // 2), strict=True))
        summed = sum(_values(subject, view, x) for view, x in halves)
        # Each block has an f of its own where f depends on the spectrum: that difference is known.
        known = sum(_difference(subject, whole, view, x) for view, x in halves)
        errors = _values(subject, whole, X) - summed - known
        # Half of a probe can have nearly all of its length: both have the limit of a whole one.
        limit = sum(claims.allowance(subject, v) * len(X) / n for v, n in _sizes(parts, whole))
        yield claims.furthest(" and ".join(spectra), errors, limit)


def _sizes(parts: list[View], whole: View) -> list[tuple[View, int]]:
    return [(view, len(view.eigenvalues)) for view in (*parts, whole)]


def _difference(subject: Subject, whole: View, part: View, x: Tensor) -> np.ndarray | float:
    """xᵀ(f − f_part)(A_part)x for the columns of x, f that of the whole matrix."""
    if subject.claims.expectation != "tr p(A)":
        return 0.0
    f, f_part = subject.contract(whole), subject.contract(part)
    lam, V = part.eigenvalues, part.eigenvectors
    return exact.quadratic_forms(lam, V, lambda t: f(t) - f_part(t), x.numpy())


def _per_probe(subject: Subject) -> bool:
    return subject.claims.additive and subject.claims.expectation != "exact"


def _values(subject: Subject, view: View, X: Tensor) -> np.ndarray:
    """One value per probe or block, or the only one of a method without probes."""
    if subject.claims.expectation == "exact":
        return claims.value_of(subject.bound(view)(view.operator), ()).reshape(1)
    return claims.estimates(subject, view, X)


CHECKS = (scaling, identity, zero, evenness, homogeneity, permutation, blocks)
