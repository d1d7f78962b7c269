"""Checks of black boxes: callables of a matrix that draw for themselves and promise nothing.

Probes are read off the products: the first block that a call multiplies by is taken for them. If
its mean of xᵀf(A)x is what the call returns, up to a difference that was seen to be small, all that
is known of that mean is known of the black box, and sampling is judged against exact moments;
otherwise, by Student's t, against what the calls themselves show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbp import exact
from specbp.testing import laws, outcome
from specbp.testing.block_laws import BLOCK_LAWS, block_law_checks
from specbp.testing.outcome import Check, Level
from verification.cases import View
from verification.checks import sampling
from verification.checks.foreign_calls import ATTEMPTS, Calls, called
from verification.checks.problems import problem
from verification.checks.replicates import NEGLIGIBLE, Cell, Drawn, Reference
from verification.checks.sampling import JOINT
from verification.checks.scores import bars_of_unknown
from verification.checks.settings import Settings

CELLS = (("cond 1e2", 48), ("easy", 48), ("clusters", 48))
HARD = (("cond 1e4", 96), ("kernel", 96))  # where log-determinants that stop short are biased
PAIRED = 1e-6  # sd of one estimate: a difference that no sampling could see
BIAS = 0.2  # sd by which a log-determinant may be off: an interval of 95 % then covers 94.5 %
LAW_MARGIN = 0.5
UNSEEN = "no block of probes was seen"


@dataclass(frozen=True)
class BlackBox:
    """A callable of an operator, and of a generator if it wants one.

    Attributes:
        name: As it was named.
        estimate: `(A)` or `(A, generator)` -> number, (value, standard error), or an object.
        estimand: "trace" or "logdet".
        law: Law of its probes, None to recognise it.
    """

    name: str
    estimate: Callable[..., Any]
    estimand: str
    law: str | None = None

    @property
    def function(self) -> Callable[[np.ndarray], np.ndarray]:
        """The f with expectation tr f(A)."""
        return np.log if self.estimand == "logdet" else np.asarray


def run(box: BlackBox, settings: Settings) -> list[Check]:
    """All checks of a black box; one that gives no numbers has one check, which says why."""
    judge = _Judge(box, settings)
    found = [judge.result()]
    if found[0].verdict == outcome.FAIL:
        return found
    found += [judge.reproducible(), judge.attention()]
    if judge.deterministic:
        found += judge.frozen()
    else:
        found += [*judge.law(), judge.pairing(), judge.distinct(), *judge.statistics()]
    # Last, since they are about every call that was made.
    return [*found, *judge.bars_given(), judge.untouched()]


class _Judge:
    """The calls on the first matrix, which most checks share."""

    def __init__(self, box: BlackBox, settings: Settings):
        self.box, self.settings = box, settings
        self.views = {cell: problem(*cell).views["A"] for cell in (*CELLS, *HARD)}
        self.view = self.views[CELLS[0]]
        # Their probes are looked at, and their values are the first look of tier S.
        self.looks = tuple(sorted({max(JOINT, size) for size in settings.sizes}))
        self.kept: dict[tuple[tuple[str, int], int], Calls] = {}
        self.made: list[Calls] = []

    def recorded(self, cell: tuple[str, int]) -> Calls:
        """The calls of the first look at one matrix."""
        return self.look(cell, self.looks[0])

    def look(self, cell: tuple[str, int], R: int) -> Calls:
        """R calls for one matrix, made once; those of the first look are recorded."""
        if (cell, R) not in self.kept:
            made = self.call(self.views[cell], R, *cell, R, record=self.looks[0] == R)
            self.kept[cell, R] = made
        return self.kept[cell, R]

    @property
    def calls(self) -> Calls:
        """The recorded calls for the first matrix."""
        return self.recorded(CELLS[0])

    def call(self, view: View, R: int, *key: object, record: bool = False) -> Calls:
        """R calls, each with a seed of its own."""
        full = ("gate", self.box.name, self.settings.epoch, *key)
        self.made.append(called(self.box.estimate, view.operator, R, full, record=record))
        return self.made[-1]

    def result(self) -> Check:
        calls = self.calls
        why = f"{len(calls.failures)} of {len(calls.values)} calls failed, the first: "
        message = why + calls.failures[0] if calls.failures else f"{len(calls.values)} calls did"
        claim = "every call gives a finite number"
        return outcome.exactly("D0 result", claim, not calls.failures, message)

    @cached_property
    def deterministic(self) -> bool:
        """Whether all calls gave the same value, whatever their seeds."""
        return float(np.ptp(self.calls.values)) <= self.rounding(self.view)

    def rounding(self, view: View) -> float:
        size = float(np.abs(self.box.function(view.eigenvalues)).max())
        return 8 * float(np.finfo(float).eps) * len(view.eigenvalues) * (view.truth.cond + size)

    # D and P --------------------------------------------------------------------------------------

    def again(self, view: View) -> np.ndarray:
        """Values for the seeds of the first recorded calls."""
        return self.call(view, ATTEMPTS, *CELLS[0], self.looks[0]).values

    def reproducible(self) -> Check:
        """P3: the same seed, the same value."""
        gap = float(np.abs(self.again(self.view) - self.calls.values[:ATTEMPTS]).max())
        same = gap <= self.rounding(self.view)
        message = "equal" if same else f"values differ by {gap:.3g}: it draws from elsewhere"
        claim = "with the same seed, of its generator or global, the value is the same"
        return outcome.exactly("P3 same seed", claim, same, message)

    def attention(self) -> Check:
        """D12: with the same seeds, another matrix gives other values."""
        gaps = np.abs(self.again(self.views[CELLS[1]]) - self.calls.values[:ATTEMPTS])
        moved = bool((~(gaps <= self.rounding(self.view))).all())
        message = "it does" if moved else "two matrices give one value: A is ignored"
        return outcome.exactly("D12 matrix", "the value depends on A", moved, message)

    def untouched(self) -> Check:
        """D12: what else is computed from the matrix must not depend on who used it before."""
        changed, R = (sum(c.changed for c in self.made), sum(len(c.values) for c in self.made))
        message = f"A was changed in place by {changed} of {R} calls" if changed else "it does"
        claim = "every call leaves its matrix as it was"
        return outcome.exactly("D12 matrix in place", claim, not changed, message)

    def frozen(self) -> Iterator[Check]:
        """D1 and P3 of what does not vary with the seed: it is exact, or its probes are frozen."""
        expected = float(self.box.function(self.view.eigenvalues).sum())
        error = float(np.abs(self.calls.values - expected).max())
        claim = "a value that does not vary with the seed is exact, to rounding"
        check = outcome.within("D1 value", claim, error, self.rounding(self.view))
        yield check
        if check.verdict == outcome.FAIL:
            claim = "with another seed the value is another, unless it is exact"
            yield outcome.broken("P3 new seed", claim, f"{len(self.calls.values)} seeds, one value")

    @cached_property
    def blocks(self) -> Tensor | None:
        """Probes (R, n, m) for the first matrix."""
        return self.calls.probes

    @cached_property
    def orthogonal(self) -> bool:
        """Whether the probes of one call are orthogonal to each other."""
        if self.blocks is None or self.blocks.shape[-1] == 1:
            return False
        unit = self.blocks / torch.linalg.vector_norm(self.blocks, dim=1, keepdim=True)
        gram = unit.mT @ unit
        off = gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))
        return float(off.abs().max()) < 1e-8

    @cached_property
    def columns(self) -> Tensor | None:
        """Independent probes (P, n)."""
        if self.blocks is None:
            return None
        independent = self.blocks[..., :1] if self.orthogonal else self.blocks
        return independent.mT.flatten(0, 1)[: max(self.settings.law_probes, JOINT)]

    @cached_property
    def recognised(self) -> str | None:
        return None if self.columns is None else laws.recognise_law(self.columns)

    def law(self) -> list[Check]:
        """P1 and P2 of the first blocks, up to their scale."""
        claim = "the probes have their law"
        if self.columns is None or self.blocks is None:
            return [_shown("P1 law", claim, UNSEEN)]
        repeats = laws.duplicate_checks(self.blocks, alpha=self.settings.alpha)
        level = Level(self.settings.alpha, LAW_MARGIN)
        if self.box.law in BLOCK_LAWS:
            found = block_law_checks(self.blocks, self.box.law, level, up_to_scale=True)
            return [*found, *repeats]
        asked = self.box.law or self.recognised
        if asked is None:
            seen = f"the first block of {self.blocks.shape[-1]} vectors has no law that is known"
            return [_shown("P1 law", claim, seen), *repeats]
        return [*laws.law_checks(self.columns, asked, level, up_to_scale=True), *repeats]

    def gap(self, cell: tuple[str, int]) -> float:
        """Largest difference of a value from the mean xᵀf(A)x of its probes, in sd of a value.

        Probes that were normalised before the product are taken at the length √n.
        """
        calls = self.recorded(cell)
        X = calls.probes
        if X is None or calls.failures:
            return math.inf
        forms = torch.einsum("rim,ij,rjm->rm", X, torch.from_numpy(self.form(cell)), X)
        norms = X.square().sum(1)
        means = [y.mean(-1).numpy() for y in (forms, forms * cell[1] / norms)]
        differences = [float(np.abs(calls.values - mean).max()) for mean in means]
        return min(differences) / float(calls.values.std(ddof=1))

    @cached_property
    def gaps(self) -> dict[tuple[str, int], float]:
        return {cell: self.gap(cell) for cell in CELLS}

    def pairing(self) -> Check:
        """D1: value and probes belong together."""
        claim, largest = "the value is the mean of xᵀf(A)x over its probes", max(self.gaps.values())
        if largest <= PAIRED:
            return outcome.within("D1 probe", claim, largest, PAIRED, "sd")
        reason = f"it differs by up to {largest:.2g} sd"
        if largest <= NEGLIGIBLE:
            reason += ", which the checks of its mean and variance allow for"
        return _shown("D1 probe", claim, reason if math.isfinite(largest) else UNSEEN)

    # S --------------------------------------------------------------------------------------------

    def distinct(self) -> Check:
        """S5: calls with different seeds differ."""
        values = np.sort(self.calls.values)
        same = int(np.sum(np.diff(values) <= 1e-13 * np.abs(values).max()))
        message = f"{same} of {len(values)} outputs repeat another"
        return outcome.exactly("S5 duplicates", sampling.DISTINCT, same == 0, message)

    def statistics(self) -> Iterator[Check]:
        """S1; S2 where the law of an estimate is known; S3 where there is an error bar."""
        law = self.recognised if self.unknown is None else None
        refs = [self.reference(cell, law) for cell in CELLS]
        mean, variance, bars, _ = sampling.VALUES
        if law is None and self.box.estimand == "logdet":
            claim = f"the expectation is log det A to {BIAS:g} sd of one estimate"
            mean = replace(mean, claim=claim)
        questions = [mean] if law is None else [mean, variance]
        if not any(_without_bar(self.recorded(cell)) for cell in CELLS):
            known = law is not None and refs[0].cell.m > 1
            questions.append(bars if known else replace(bars, score=bars_of_unknown))
        asked = [(question, refs) for question in questions]
        if self.box.estimand == "logdet":
            claim = f"on ill-conditioned matrices too it is log det A to {BIAS:g} sd"
            hard = replace(mean, name="S1 mean, ill-conditioned", claim=claim)
            asked.append((hard, [self.reference(cell, None) for cell in HARD]))
        settings = replace(self.settings, sizes=self.looks)
        for question, where in asked:
            check = sampling.asked(question, where, self._draw, settings)
            if check is not None:
                yield check
        if law is None:
            yield _shown(variance.name, variance.claim, self.unknown or UNSEEN)

    @cached_property
    def unknown(self) -> str | None:
        """Why the variance of an estimate is not known, None where it is."""
        if self.columns is None:
            return UNSEEN
        if max(self.gaps.values()) > NEGLIGIBLE:
            return "the value is not the mean over the probes seen"
        if self.orthogonal:
            return "the probes of one call are orthogonal to each other"
        return "the probes have no law that is known" if self.recognised is None else None

    def bars_given(self) -> Iterator[Check]:
        """S3: error bars are given always or never, or what is judged is a selection."""
        R = sum(len(calls.values) for calls in self.made)
        without = sum(_without_bar(calls) for calls in self.made)
        if 0 < without < R:
            claim = "every call gives an error bar, or none does"
            reason = f"{without} of {R} calls gave no error bar"
            yield outcome.broken("S3 error bars given", claim, reason)

    def form(self, cell: tuple[str, int]) -> np.ndarray:
        view = self.views[cell]
        return exact.matrix_function(view.eigenvalues, view.eigenvectors, self.box.function)

    def reference(self, cell: tuple[str, int], law: str | None) -> Reference:
        """What is known of one estimate, with the truncation that was seen or is allowed."""
        sd = float(self.recorded(cell).values.std(ddof=1))
        allowed = BIAS if self.box.estimand == "logdet" else 0.0
        if law is not None:
            allowed = self.gaps[cell] if self.gaps[cell] > PAIRED else 0.0
        m = self.blocks.shape[-1] if self.blocks is not None else 1
        return Reference(Cell(*cell, m), self.views[cell], self.form(cell), law, allowed * sd)

    def _draw(self, ref: Reference, R: int) -> Drawn:
        calls = self.look((ref.cell.spectrum, ref.cell.n), R)
        if calls.failures:
            raise ValueError(f"{len(calls.failures)} of {R} calls failed: {calls.failures[0]}")
        return Drawn(calls.values, calls.errors)


def _without_bar(calls: Calls) -> int:
    return int(np.sum(~np.isfinite(calls.errors)))


def _shown(name: str, claim: str, reason: str) -> Check:
    return Check(name, claim, outcome.REPORTED, math.nan, math.nan, f"not judged: {reason}")
