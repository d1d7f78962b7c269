"""The study of auto, made small: files, lines of acceptance, and what must make them fail."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from specbp import eigenvalue_logdet, slq_logdet
from verification import planner_report, planner_study
from verification.planner_cases import Case, Implicit, Problem, all_cases


def small_problem():
    A = torch.diag(torch.linspace(1, 3, 80, dtype=torch.float64))
    logs = A.diagonal().log()
    identity, operator = torch.eye(80, dtype=torch.float64), Implicit(A)
    return Problem(
        operator,
        float(logs.sum()),
        float(logs.abs().sum()),
        lambda: eigenvalue_logdet(operator @ identity),
        {"slq": slq_logdet},
    )


@pytest.fixture
def small(monkeypatch):
    case = Case("spd/small/products", 80, small_problem)
    monkeypatch.setattr(planner_study, "all_cases", lambda *, quick=False: [case])
    monkeypatch.setattr(planner_study, "ASKS", (0.1, 0.01))
    monkeypatch.setattr(planner_study, "SEEDS", 2)
    monkeypatch.setattr(planner_study, "REPLICATES", 2)
    return case


def run(out):
    parser = argparse.ArgumentParser()
    planner_study.add_arguments(parser)
    return planner_study.main(parser.parse_args(["--quick", "--out", str(out)]))


def test_study_writes_a_page_and_its_records(small, tmp_path, capsys):
    run(tmp_path / "new")
    page = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    lines = (tmp_path / "new" / "planner.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["kind"] for row in rows] == ["planner"] * 2 + ["planner-budget"]
    assert all(row["met"] == row["seeds"] for row in rows[:2])
    assert page.count("| spd/small/products |") == 2
    assert "nan" not in page


def row(**changes):
    base = {
        "kind": "planner", "id": "x", "case": "x", "n": 9, "rtol": 0.1, "best": "exact",
        "ratio": 1.0, "met": 10, "seeds": 10, "exact": False, "chosen": "qr",
        "seconds": 1.0, "seconds_best": 1.0, "seconds_exact": 1.0,
    }  # fmt: skip
    return base | changes


BUDGET = {"kind": "planner-budget", "id": "b", "unsaid": 0, "beyond": 0, "seeds": 10}
SHAPE = {"kind": "planner-shape", "id": "s", "rmse": 30.0, "products": 200}


@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        ([row()], 0),
        ([row(ratio=1.3, best="slq 4×8")], 1),
        ([row(ratio=1.22)], 1),
        ([row(ratio=1.3)], 2),
        ([row(met=9)], 2),
        ([row(met=9, exact=True)], 1),
        ([row(), BUDGET, SHAPE], 0),
        ([row(), BUDGET | {"beyond": 1}], 1),
        ([row(), BUDGET | {"unsaid": 1}], 1),
        ([row(), SHAPE | {"rmse": 51.0}], 1),
        ([row(), SHAPE | {"products": 201}], 1),
        ([row(), SHAPE | {"rmse": float("nan")}], 1),
    ],
)
def test_lines_are_met_or_not(rows, missed):
    assert sum(not line.met for line in planner_report.acceptance(rows)) == missed


def test_an_estimator_that_is_wrong_misses(small, monkeypatch):
    real = planner_study.logdet

    def biased(A, **options):
        found = real(A, **options)
        found.value.add_(30.0)
        return found

    monkeypatch.setattr(planner_study, "logdet", biased)
    rows = list(planner_study.study("judge", quick=True))
    assert all(r["met"] == 0 for r in rows if r["kind"] == "planner")


def test_cases_have_frozen_names():
    ids = [case.id for case in all_cases()]
    assert len(set(ids)) == len(ids)
    assert {case.id for case in all_cases(quick=True)} < set(ids)
    assert {case.n for case in all_cases()} >= {64, 784, 1000, 2000}


def test_an_interval_of_a_share_is_that_of_clopper_and_pearson():
    low, high = planner_report.interval(0, 10)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert planner_report.interval(0, 0) == (0.0, 1.0)
