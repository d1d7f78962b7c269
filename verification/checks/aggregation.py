"""D8, D9, D12: from probes to an estimate, what it costs, and that it looks at its input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from specbp.operators import CountingOperator
from verification.cases import View
from verification.checks import claims, problems
from verification.checks.claims import Cell, Gap, measured
from verification.checks.settings import Settings
from verification.subjects import Subject

N, M = 10, 4
SPECTRA = ("easy", "cond 1e2")
EPS = 2.0**-52


def _blocks(subject: Subject, count: int = 3, m: int = M) -> Iterator[tuple[Cell, Tensor]]:
    """Small views with `count` blocks of m probes (count, n, m); none for methods without."""
    if subject.claims.expectation == "exact":
        return
    for cell in claims.cells(subject, SPECTRA, N):
        X = claims.draw(cell.view, count * m, "D8", cell.where)
        # Cut so that every block has signs and directions on the sphere.
        yield cell, X.view(N, m, count).movedim(-1, 0)


@measured("D8 mean", "the estimate of m probes is the mean of their m estimates")
def mean(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if not subject.claims.additive:
        return
    for (where, view), X in _blocks(subject):
        one = np.stack([claims.singles(subject, view, x) for x in X])
        errors = claims.values(subject, view, X) - one.mean(-1)
        yield claims.furthest(where, errors, 2 * subject.rounding(view), "block")


@measured("D8 standard error", "the standard error is sd(ddof = 1) / √m, and NaN for one probe")
def standard_error(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    if not (subject.claims.additive and subject.claims.calibrated):
        return
    for (where, view), X in _blocks(subject):
        one = np.stack([claims.singles(subject, view, x) for x in X])
        expected = one.std(-1, ddof=1) / M**0.5
        # Values that err by r each have an sd(ddof = 1) / √m that errs by r / √(m − 1) at most.
        errors = subject.call(view, X).standard_error.numpy() - expected
        yield claims.furthest(where, errors, 2 * subject.rounding(view), "block")
        alone = subject.call(view, X[..., :1]).standard_error
        yield Gap(f"{where}, one probe", float((~torch.isnan(alone)).sum()), 0.0)


@measured("D8 samples", "value and standard error are those of the samples returned")
def samples(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    for (where, view), X in _blocks(subject):
        found = subject.call(view, X)
        y = found.samples.numpy()
        if y.shape != (len(X), M):
            return
        # Only the rounding of a mean of m numbers is between the two.
        limit = 4 * M * EPS * max(float(np.abs(y).max()), 1.0)
        gap = claims.value_of(found, (len(X),)) - y.mean(-1)
        yield claims.furthest(f"{where}, value", gap, limit, "block")
        if subject.claims.calibrated and not subject.claims.joint:
            gap = found.standard_error.numpy() - y.std(-1, ddof=1) / M**0.5
            yield claims.furthest(f"{where}, standard error", gap, limit, "block")


@measured("D8 batch", "a batch of matrices and probes gives what single calls give")
def batch(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    for where, view in claims.cells(subject, SPECTRA, N):
        operators = _same_spectrum(view, subject.on)
        estimate = subject.bound(view)
        limit = 2 * claims.block_size(subject) * claims.allowance(subject, view)
        if subject.claims.expectation == "exact":
            together = claims.value_of(estimate(operators), (3,))
            alone = [claims.value_of(estimate(A), ()) for A in operators]
        else:
            X = claims.draw(view, 3 * M, "D8", where).view(N, M, 3).movedim(-1, 0)
            together = claims.value_of(estimate(operators, X), (3,))
            alone = [claims.value_of(estimate(A, x), ()) for A, x in zip(operators, X, strict=True)]
        yield claims.furthest(where, together - np.array(alone), limit, "item")


def _same_spectrum(view: View, on: str) -> Tensor:
    """A, A with its coordinates reversed, and A again, so that one interval holds for all."""
    dimensions = (-1,) if on == "J" else (-2, -1)
    return torch.stack([view.operator, view.operator.flip(dimensions), view.operator])


@measured("D9 products", "products counted, reported and claimed are the same", "products")
def products(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    fewest = subject.claims.min_probes
    for (where, view), m in itertools.product(claims.cells(subject, SPECTRA, N), (fewest, M)):
        claimed = subject.claims.matvecs(N, m, subject.configured(N))
        if subject.claims.expectation == "exact":
            blocks: list[tuple[Tensor, ...]] = [()]
        else:
            blocks = [(claims.draw(view, m, "D9", where, i),) for i in range(3)]
        for index, block in enumerate(blocks):
            counter = CountingOperator(view.operator)
            operator = view.operator if subject.on == "dense A" else counter
            found = subject.bound(view)(operator, *block)
            place, reported = f"{where}, {m} probes, block {index}", float(found.num_matvecs)
            # Who claims no number is held to the one reported, if there is one.
            promised = reported if math.isnan(claimed) else claimed
            if math.isnan(promised):
                continue
            yield Gap(f"{place}, reported", abs(reported - promised), 0.0)
            if subject.on != "dense A":
                seen = counter.num_gram_matvecs if subject.on == "J" else counter.num_matvecs
                yield Gap(f"{place}, counted", abs(seen - promised), 0.0)


@measured("D12 probes", "the value depends on every probe", "unchanged values")
def depends_on_probes(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    subject = _undecided(subject)
    for (where, view), X in _blocks(subject, count=2):
        first, other = X
        # Item 0 is the block itself; in item j + 1 its probe j is a fresh one.
        changed = first.repeat(M + 1, 1, 1)
        for j in range(M):
            changed[j + 1, :, j] = other[:, j]
        found = claims.values(subject, view, changed)
        for j in range(M):
            moved = abs(found[j + 1] - found[0]) > subject.rounding(view)
            yield Gap(f"{where}, probe {j}", float(not moved), 0.0)


def _undecided(subject: Subject) -> Subject:
    """With few enough steps that M probes leave something to chance: else none would matter."""
    promise, steps = subject.claims.exact_from, subject.config.get("num_steps", 1)
    if promise is None:
        return subject
    for fewer in range(steps, 0, -1):
        config = {**subject.config, "num_steps": fewer} if steps > 1 else subject.config
        if not promise(N, M, config):
            return replace(subject, config=config)
    raise ValueError(f"{M} probes make it exact at n = {N}, however few the steps.")


@measured("D12 matrix", "the value depends on the matrix", "unchanged values")
def depends_on_matrix(subject: Subject, _settings: Settings) -> Iterator[Gap]:
    easy, other = (problems.problem(s, N).views[subject.on] for s in ("easy", "cond 1e2"))
    probes = () if subject.claims.expectation == "exact" else (claims.draw(easy, M, "D12"),)
    # Its arguments stay: an estimator that reads nothing but them is noticed.
    estimate = subject.bound(other)
    # Between the two in every direction, so that the interval of the wider one holds for it.
    found = [
        claims.value_of(estimate(operator, *probes), ())
        for operator in (other.operator, (easy.operator + other.operator) / 2)
    ]
    moved = abs(float(found[0] - found[1])) > subject.rounding(other)
    yield Gap("cond 1e2, and its mean with easy", float(not moved), 0.0)


CHECKS = (
    mean,
    standard_error,
    samples,
    batch,
    products,
    depends_on_probes,
    depends_on_matrix,
)
