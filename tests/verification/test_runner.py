"""A run covers its tier, resumes after a kill, repeats nothing and gives the same numbers twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from specbp.methods import METHODS
from verification import __main__ as cli
from verification import runner, units
from verification.cases import all_cases
from verification.store import Store

ONE = "spd/clusters/n8"


def results(path) -> dict[str, dict]:
    """Cells without what the clock says."""
    return {
        r["id"]: {k: v for k, v in r.items() if not k.startswith("seconds")}
        for r in Store(path).records("cell")
    }


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "first"
    runner.run("smoke", path, only=ONE, workers=1)
    return results(path)


def test_a_case_gives_all_its_cells_and_the_same_numbers_twice(tmp_path, first):
    runner.run("smoke", tmp_path / "again", only=ONE, workers=1)
    assert first == results(tmp_path / "again")
    implicit = [m for m in METHODS.values() if m.on != "dense A"]
    cells = sum(len(units.probe_counts(m, all_cases()[ONE])) for m in implicit)
    assert len(first) == 2 * cells


def test_processes_and_one_process_agree(tmp_path):
    runner.run("smoke", tmp_path / "one", only="spd/clusters", workers=1)
    runner.run("smoke", tmp_path / "two", only="spd/clusters", workers=2)
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_other_seeds_give_other_numbers(tmp_path, first):
    runner.run("smoke", tmp_path / "b", only=ONE, workers=1, epoch="another")
    other = results(tmp_path / "b")
    # What is exact once enough probes are there is the same number for all of them.
    drawn = [i for i, r in first.items() if r["probes"] and abs(r["mean"] - r["truth"]) > 1e-9]
    assert len(drawn) > 100
    assert all(first[i]["mean"] != other[i]["mean"] for i in drawn)


def test_a_killed_run_resumes_and_repeats_nothing(tmp_path):
    path = tmp_path / "r.sqlite"
    command = [
        sys.executable,
        "-m",
        "verification",
        "run",
        "--tier",
        "smoke",
        "--case",
        "spd/clusters",
    ]
    command += ["--workers", "1", "--store", str(path)]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not path.exists() or len(Store(path).ids("cell")) < 8:
            assert killed.poll() is None, "the run ended before it could be killed"
            time.sleep(0.02)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    before = {r["id"]: r for r in Store(path).records("cell")}
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    after = {r["id"]: r for r in Store(path).records("cell")}
    # A unit that was cut off is run again as a whole; every other record keeps its timings.
    kept = [i for i in before if before[i] == after[i]]
    assert len(before) - len(kept) < len(units.PROBE_COUNTS)
    runner.run("smoke", tmp_path / "whole", only="spd/clusters", workers=2)
    assert results(path) == results(tmp_path / "whole")
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert {r["id"]: r for r in Store(path).records("cell")} == after


def test_an_unknown_case_names_the_way_out(tmp_path):
    with pytest.raises(ValueError, match="No case of tier smoke has 'nowhere'"):
        runner.run("smoke", tmp_path / "r", only="nowhere")


def test_levels_share_the_suite_alpha():
    tests = sum(units.num_random_checks(m) for m in METHODS.values())
    total = runner.check_level("smoke") * tests * 2 * len(runner.of_tier("smoke"))
    assert total == pytest.approx(runner.CELLS_SHARE * runner.SUITE_ALPHA)


def test_results_of_other_code_are_forgotten(tmp_path):
    store = Store(tmp_path / "r")
    cli._forget_other_sources(store, "one", "e", fresh=False)
    store.put({"kind": "cell", "id": "a"})
    cli._forget_other_sources(store, "one", "e", fresh=False)
    assert store.ids("cell") == {"a"}
    cli._forget_other_sources(store, "two", "e", fresh=False)
    assert store.ids("cell") == set()
    store.put({"kind": "cell", "id": "a"})
    cli._forget_other_sources(store, "two", "f", fresh=False)
    assert store.ids("cell") == set()
