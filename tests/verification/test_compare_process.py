"""The processes of `compare`: one that dies or hangs is told, and whatever is returned is read."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import pytest

from verification import compare
from verification.compare_cells import make_cells

CELLS = make_cells(20, spectra=("spike",), sizes=(8,), dtypes=("float64",))[:1]
RIGHT = "x = (X * (A @ X)).sum(-2)\n    return x.mean(-1)"


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Exit status, output and errors of a comparison of two functions given by their bodies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "make_cells", lambda _: CELLS)
    imports = "import os, subprocess, sys, time\nfrom types import SimpleNamespace\n"

    def compared(base: str, head: str, *arguments: str) -> tuple[int, str, str]:
        for name, body in (("base", base), ("head", head)):
            text = f"{imports}\ndef estimate(A, X):\n    {body}\n"
            (tmp_path / f"{name}_side.py").write_text(text)
        names = ["base_side:estimate", "head_side:estimate", "--estimand", "trace"]
        status = compare.main(options(*names, *arguments))
        return (status, *capsys.readouterr())

    return compared


@pytest.mark.parametrize("end", ["os._exit(0)", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_head_that_dies_is_not_taken_for_the_base(run, end):
    status, out, err = run(RIGHT, end)
    assert (status, out) == (2, "")
    assert "head_side:estimate" in err
    assert ("ended without results" in err) == (end == "os._exit(0)")


def test_a_base_that_dies_is_told(run):
    status, _, err = run("os._exit(0)", RIGHT)
    assert status == 2
    assert "base_side:estimate ended without results" in err


def test_leaving_by_sys_exit_is_a_failure_of_the_method(run):
    status, out, _ = run(RIGHT, "sys.exit(0)")
    assert status == 1
    assert "head, on 1 matrices" in out
    assert "SystemExit: 0" in out


def test_leaving_while_it_is_imported_is_told(run, tmp_path):
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)\n")
    target = "leaves:estimate"
    with pytest.raises(compare.UsageError, match="ended without results"):
        compare.run(options(target, target), cells=CELLS)


def test_a_hang_is_stopped_with_all_that_it_started(run, tmp_path):
    child = "child = subprocess.Popen(['sleep', '100'])\n    "
    keep = "open('pid', 'w').write(str(child.pid))\n    "
    begin = time.perf_counter()
    status, _, err = run(RIGHT, f"{child}{keep}time.sleep(100)", "--time-limit", "8")
    assert time.perf_counter() - begin < 60
    assert status == 2
    assert "head_side:estimate had no results after 8 s" in err
    assert not alive(int((tmp_path / "pid").read_text()))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its new parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of processes differ")
def test_output_of_a_process_that_outlives_the_worker_is_not_waited_for(tmp_path):
    script = "import subprocess, sys; subprocess.Popen(['sleep', '30']); sys.exit('b\\xe4d')"
    begin = time.perf_counter()
    found = compare.run_within(20, [sys.executable, "-c", script], env=dict(os.environ), cwd=None)
    assert found == (1, "b\xe4d")
    assert time.perf_counter() - begin < 15


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf"])
def test_a_time_limit_that_is_none_is_refused(run, limit):
    status, _, err = run(RIGHT, RIGHT, f"--time-limit={limit}")
    assert status == 2
    assert "positive number of seconds" in err


def test_numbers_and_pairs_are_compared(run):
    body = "return float((X * (A @ X)).sum()) / X.shape[-1]"
    status, out, _ = run(body, f"{body}, 1.0")
    assert status == 0
    assert "exception" not in out


def test_numbers_that_are_wrong_fail(run):
    assert run(RIGHT, "return 1.5 * float((X * (A @ X)).sum()) / X.shape[-1]")[0] == 1


def test_what_is_no_number_fails_and_is_quoted(run):
    status, out, _ = run("return '3.0'", "return None")
    assert status == 1
    for side, kind in (("base", "str"), ("head", "NoneType")):
        start = f"* `estimator`, {side}, on 1 matrices, first on {CELLS[0].id}: TypeError:"
        assert f"{start} the result is of type {kind}" in out


def test_a_report_that_cannot_be_written_is_refused_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "run", lambda _: pytest.fail("it was run"))
    for target in (tmp_path, Path("/proc/x.md"), tmp_path / "no" / "x.md"):
        assert run(RIGHT, RIGHT, "--markdown", str(target))[0] == 2
