"""A tiny problem, a base, a method that knows the truth, and their cells."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specbp import generator_for, slq_logdet
from specbp.matrices import haar
from verification import (
    budgets_accept,
    budgets_cases,
    budgets_methods,
    budgets_report,
    budgets_run,
)
from verification.budgets_cases import BudgetCase, Target
from verification.budgets_methods import Candidate
from verification.budgets_run import Settings

N, BUDGET = 24, 12
SETTINGS = Settings(seeds=30, interval_seeds=30, epoch="test")


def target() -> Target:
    Q = haar(N, generator=generator_for("test_budgets"))
    lam = torch.logspace(-2, 0, N, dtype=torch.float64)
    A = (Q * lam) @ Q.mT
    operators = {"A": (A + A.mT) / 2, "J": lam.sqrt().unsqueeze(-1) * Q.mT}
    return Target(operators, float(lam.log().sum()), (0.01, 1.0))


CASE = BudgetCase("spd/tiny", "kernel 1e-2", N, BUDGET, target, quick=True)
SMALL = BudgetCase("spd/exact", "exact", N, BUDGET, target, quick=True)
JACOBIAN = BudgetCase("jacobian/tiny", "Jacobian", N, BUDGET, target, quick=True)


@pytest.fixture(autouse=True, name="tiny")
def tiny_cases(monkeypatch):
    monkeypatch.setitem(budgets_cases.SHAPES, BUDGET, ((3, 4), (4, 3), (6, 2)))
    monkeypatch.setitem(budgets_cases.SAME, BUDGET, (4, 3))
    cases = {case.id: case for case in (CASE, JACOBIAN)}
    for module in (budgets_cases, budgets_accept):
        monkeypatch.setattr(module, "all_cases", lambda: cases)
    return cases


def use(monkeypatch, *candidates):
    table = {candidate.name: candidate for candidate in candidates}
    monkeypatch.setattr(budgets_methods, "all_candidates", lambda: table)


def perfect(operator, probes, *, num_steps):
    """The truth for the price of SLQ."""
    found = slq_logdet(operator, probes, num_steps=num_steps)
    value = torch.full_like(found.value, target().truth)
    return replace(
        found, value=value, standard_error=torch.zeros_like(value), lower=value, upper=value
    )


BASE = Candidate("slq", slq_logdet, "A", budgets_methods.steps, role="base")
PERFECT = Candidate("perfect", perfect, "A", budgets_methods.steps, role="judged")


def measured(candidate, variant=None, settings=SETTINGS):
    variant = variant or budgets_methods.same_steps(CASE)[0]
    return budgets_run.measure(CASE, target(), candidate, variant, settings)


def by_name(cells, epoch="test", times=(), precision=()):
    return {line.name: line for line in budgets_accept.lines(cells, times, precision, epoch)}


def study(cells, **settings):
    lines = budgets_accept.lines(cells, [], [], "test")
    return budgets_report.Study(cells, [], [], lines, replace(SETTINGS, **settings), 1.0)
