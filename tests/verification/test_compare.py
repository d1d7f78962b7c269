"""Base against head: planted faults are found, nothing is left behind, bad input is explained."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from verification import compare, compare_report
from verification.compare_cells import Reference, make_cells
from verification.compare_judge import Results, judge
from verification.provenance import ROOT

CELLS = make_cells(64, spectra=("spike",), sizes=(8,), dtypes=("float64",))
SLQ = "specbp.methods:METHODS[slq]"


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return parser.parse_args(arguments)


# Judging values that are given ----------------------------------------------------------------


def fields(value, **changed) -> dict[str, np.ndarray]:
    value = np.asarray(value, float)
    found = {
        "value": value,
        "standard_error": np.full(len(value), np.nan),
        "ok": np.isfinite(value),
        "samples": value[:, None],
        "matvecs": np.array(8.0),
        "seconds": np.array(1.0),
    }
    return found | changed


def results(*cells: dict[str, np.ndarray], **changed) -> Results:
    about = {"on": "A", "estimand": "logdet", "config": {}, "gated": True, "calibrated": False}
    arrays = {f"x/{i}/{k}": v for i, cell in enumerate(cells) for k, v in cell.items()}
    return Results({"x": about | changed}, arrays)


def verdicts(base, head, cell=CELLS[0], **changed) -> dict[str, str]:
    """Verdict of every check, of one method on one cell."""
    report = judge(("b", "h"), [cell], results(base, **changed), results(head, **changed))
    text = compare_report.markdown(report)
    assert report.verdict in text
    assert ("## What got worse" in text) == (report.verdict == "FAIL")
    return {check.name: check.verdict for check in report.rows[0].checks}


@pytest.fixture(scope="module")
def form() -> np.ndarray:
    return Reference(CELLS[0].views["A"], "logdet", CELLS[0].probes).control


@pytest.fixture(scope="module")
def sd() -> float:
    return Reference(CELLS[0].views["A"], "logdet", CELLS[0].probes).sd


def test_equal_values_pass(form):
    assert set(verdicts(fields(form), fields(form.copy())).values()) == {"PASS"}


def test_a_bias_is_found_that_64_replicates_could_not_show_without_the_oracle(form, sd):
    bias = 0.05 * sd  # of one probe: the standard error of the mean of all 512 is 0.044
    noise = 1e-6 * np.random.default_rng(1).standard_normal(64)
    found = verdicts(fields(form + noise), fields(form + bias + noise))
    assert found["mean shift"] == "FAIL"
    assert found["RMSE ratio"] != "FAIL"
    assert verdicts(fields(form + bias + noise), fields(form + noise))["mean shift"] == "PASS"


def test_float32_in_the_float64_path_is_found(form):
    found = verdicts(fields(form), fields(form.astype(np.float32).astype(float)))
    assert found["precision"] == "FAIL"
    assert found["mean shift"] == "PASS"


def test_failures_of_the_head_alone_are_found(form):
    lost = form.copy()
    lost[3] = np.nan
    assert verdicts(fields(form), fields(lost))["failures"] == "FAIL"
    assert verdicts(fields(lost), fields(form))["failures"] == "PASS"
    flagged = np.ones(64, bool)
    assert verdicts(fields(form), fields(lost, ok=flagged))["status"] == "FAIL"


def test_error_bars_that_shrink_are_found(form, sd):
    se = np.full(64, sd / 8**0.5)
    sides = fields(form, standard_error=se), fields(form, standard_error=0.8 * se)
    assert verdicts(*sides, calibrated=True)["calibration"] == "FAIL"
    assert verdicts(sides[0], sides[0], calibrated=True)["calibration"] == "PASS"


def test_a_value_where_there_can_be_none_is_found():
    hopeless = [cell for cell in CELLS if cell.hopeless]
    assert len(hopeless) == 3
    nothing, some = fields(np.full(64, np.nan)), fields(np.r_[0.0, np.full(63, np.nan)])
    for cell in hopeless:
        assert verdicts(nothing, some, cell)["silent failure"] == "FAIL"
        assert verdicts(some, nothing, cell)["silent failure"] == "PASS"


def test_without_probes_the_error_may_grow_fourfold(form):
    truth = Reference(CELLS[0].views["A"], "logdet", CELLS[0].probes).truth
    base = fields([truth + 1e-9])
    assert verdicts(base, fields([truth - 3e-9]))["accuracy"] == "PASS"
    assert verdicts(base, fields([truth - 5e-9]))["accuracy"] == "FAIL"
    assert verdicts(base, fields([np.nan]))["accuracy"] == "FAIL"


def test_an_exception_of_the_head_alone_fails(form):
    error = {"error": np.array("ValueError: no")}
    assert verdicts(fields(form), error) == {"runs": "FAIL"}
    assert verdicts(error, fields(form)) == {"runs": "INCONCLUSIVE"}


def test_a_method_that_runs_on_no_matrix_of_the_head_fails_and_every_side_is_quoted(form):
    error = [{"error": np.array(f"ValueError: {i}\nno|{'x' * 400}")} for i in range(3)]
    hopeless = next(cell for cell in CELLS if cell.hopeless)
    cells = [CELLS[0], CELLS[0], hopeless]
    report = judge(("b", "h"), cells, results(fields(form), *error[1:]), results(*error))
    assert [row.verdict for row in report.rows] == ["FAIL", "FAIL", "PASS"]
    text = compare_report.markdown(report)
    assert f"* `x`, base, on 1 matrices, first on {CELLS[0].id}: ValueError: 1 no" in text
    assert f"* `x`, head, on 2 matrices, first on {CELLS[0].id}: ValueError: 0 no" in text
    assert "x" * 301 not in text.split("## What raised an exception")[1]
    rest = results(fields(form), error[0]), results(error[0], error[0])
    assert judge(("b", "h"), cells[:2], *rest[::-1]).rows[1].verdict == "INCONCLUSIVE"


def test_without_error_bars_on_either_side_they_are_not_judged(form):
    assert "calibration" not in verdicts(fields(form), fields(form), calibrated=True)


def test_a_baseline_method_is_shown_and_not_judged(form):
    report = judge(
        ("b", "h"),
        CELLS[:1],
        results(fields(form), gated=False),
        results(fields(form + 1), gated=False),
    )
    assert report.verdict == "REPORTED"


def test_other_arguments_and_lost_methods_are_told(form):
    base, head = results(fields(form), config={"k": 1}), results(fields(form), config={"k": 2})
    base.methods["old"] = head.methods["new"] = base.methods["x"]
    report = judge(("b", "h"), CELLS[:1], base, head)
    assert (report.added, report.removed, list(report.changed)) == (("new",), ("old",), ["x"])
    text = compare_report.markdown(report)
    assert "* `new`" in text
    assert "{'k': 2}" in text


# Estimators by import path --------------------------------------------------------------------


def test_a_longer_quadrature_is_no_regression():
    found = compare.run(options(SLQ, SLQ, "--base-config", '{"num_steps": 2}'), cells=CELLS[:1])
    assert found.verdict != "FAIL"
    assert found.rows[0].comparison.growth.high < 0
    assert list(found.changed) == ["estimator"]


def test_a_function_that_takes_one_block_at_a_time(tmp_path, monkeypatch):
    """Any module on the path of the caller, a bound of the spectrum given because it is asked."""
    (tmp_path / "mine.py").write_text(
        "from specbp import chebyshev_logdet\n"
        "def estimate(A, X, interval, degree=40):\n"
        "    assert X.ndim == 2 or X.shape[0] == 1 or degree == 40\n"
        "    return chebyshev_logdet(A, X[0] if X.ndim == 3 else X, degree=degree,"
        " interval=interval)\n"
    )
    monkeypatch.chdir(tmp_path)
    found = compare.run(options("mine:estimate", "mine:estimate"), cells=CELLS[:1])
    assert found.verdict == "PASS"
    assert found.rows[0].equal
    assert found.rows[0].comparison.size == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-revision", "HEAD"], "no revision"),
        (["HEAD", "verification"], "a folder is not one"),
        (["HEAD", SLQ], "one of each"),
        ([SLQ, "specbp.methods:METHODS[nothing]"], "has no METHODS"),
        ([SLQ, SLQ, "--head-config", "{"], "must be JSON"),
        ([SLQ, SLQ, "--replicates", "5"], "At least 20 replicates"),
        (["HEAD", "HEAD", "--base-config", '{"k": 1}'], "takes no configuration"),
    ],
)
def test_usage_errors_exit_with_2_and_say_why(arguments, message, capsys, monkeypatch, tmp_path):
    cells = CELLS[:1]
    monkeypatch.setattr(compare, "make_cells", lambda _: cells)
    assert compare.main(options(*arguments, "--markdown", str(tmp_path / "out.md"))) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# Two commits ----------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
    return subprocess.run(
        ["git", *identity, *arguments],
        cwd=folder,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """Two commits; the second computes every standard error with ddof = 0 and drops a method."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(
        ROOT / "specbp", folder / "specbp", ignore=shutil.ignore_patterns("__pycache__")
    )
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "right")
    git(folder, "tag", "right")
    estimate, methods = folder / "specbp" / "estimate.py", folder / "specbp" / "methods.py"
    for path, old, new in (
        (estimate, "y.detach().std(-1)", "y.detach().std(-1, correction=0)"),
        (methods, 'name="hutchinson"', 'name="girard"'),
    ):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    git(folder, "commit", "-qam", "wrong")
    return folder


def clean(folder: Path) -> bool:
    trees = git(folder, "worktree", "list", "--porcelain").count("worktree ")
    return trees == 1 and not git(folder, "status", "--porcelain")


def test_a_commit_that_shrinks_the_error_bars_fails(repository):
    report = compare.run(options("right", "HEAD"), root=repository, cells=CELLS)
    assert report.verdict == "FAIL"
    failed = {c.name for row in report.rows for c in row.checks if c.verdict == "FAIL"}
    assert failed == {"calibration"}
    assert (report.added, report.removed) == (("girard",), ("hutchinson",))
    assert clean(repository)


def test_a_commit_against_itself_and_the_working_tree_is_bit_equal(repository, capsys):
    report = compare.run(options("HEAD", "."), root=repository, cells=CELLS)
    assert report.verdict in ("PASS", "REPORTED")
    assert all(row.equal for row in report.rows)
    assert len(report.rows) == len(CELLS) * len({row.method for row in report.rows}) > 30
    assert all(row.products == 1 for row in report.rows)
    assert clean(repository)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_the_worktree_is_removed_whatever_happens(repository, error, monkeypatch):
    seen = []

    def interrupted(_side, path, *_):
        seen.append(path)
        assert (path / "specbp" / "methods.py").exists()
        raise error

    monkeypatch.setattr(compare, "run_worker", interrupted)
    with pytest.raises(error):
        compare.run(options("right", "HEAD"), root=repository, cells=CELLS[:1])
    assert not seen[0].exists()
    assert clean(repository)


def test_a_tree_that_cannot_be_imported_is_told_and_removed(repository, capsys, monkeypatch):
    git(repository, "checkout", "-q", "--detach", "right")
    (repository / "specbp" / "methods.py").write_text("METHOD = {}\n")
    git(repository, "commit", "-qam", "broken")
    git(repository, "tag", "broken")
    git(repository, "checkout", "-q", "main")
    with pytest.raises(compare.UsageError, match="no table specbp.methods.METHODS"):
        compare.run(options("right", "broken"), root=repository, cells=CELLS[:1])
    assert clean(repository)


def test_main_tells_a_regression_prints_the_report_and_writes_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "make_cells", lambda _: CELLS[:1])
    path = tmp_path / "out.md"
    short = ["--head-config", json.dumps({"num_steps": 2})]
    assert compare.main(options(SLQ, SLQ, *short, "--markdown", str(path))) == 1
    assert path.read_text() == capsys.readouterr().out.removesuffix("\n")
