"""The kill matrix: what it runs, what it says, and that it fails when it should."""

from __future__ import annotations

import argparse
import json
import math

import pytest

from specbp.testing.outcome import Level as Judgement
from specbp.testing.outcome import broken, exactly, judged, within
from verification.checks.settings import Settings
from verification.faults import CONTROLS, FAULTS, matrix


def error(code, size):
    return within(f"{code} something", "claim", size, 1.0)


@pytest.fixture
def checks(monkeypatch):
    """Checks that reject what is planted, by the code of `rejected`, and note what was run."""
    rejected, seen = {}, []

    def run(subject, tiers, settings):
        seen.append((subject.name, tiers, settings.sizes))
        size = 100.0 if subject.name in FAULTS else 0.0
        codes = ("D1", "D2", "P1") if "D" in tiers else ("S1",)
        return [error(code, rejected.get((subject.name, code), size)) for code in codes]

    monkeypatch.setattr(matrix.checks, "run", run)
    return rejected, seen


def run(*arguments):
    parser = argparse.ArgumentParser()
    matrix.add_arguments(parser)
    return matrix.main(parser.parse_args(["--workers", "1", *arguments]))


@pytest.fixture
def committed(monkeypatch, tmp_path):
    path = tmp_path / "expected.json"
    monkeypatch.setattr(matrix, "committed_kills", lambda: matrix.json.loads(path.read_text()))
    path.write_text(json.dumps({id: ["D1"] for id in FAULTS}))
    return path


def test_every_fault_and_every_control_is_run_in_every_tier(checks):
    records = matrix.kill_matrix(workers=1)
    assert {r["id"] for r in records} == {*FAULTS, *CONTROLS}
    assert len(checks[1]) == 2 * (len(FAULTS) + len(CONTROLS))
    sizes = Settings().sizes
    assert {(tiers, s) for _, tiers, s in checks[1]} == {("DP", sizes), ("S", sizes[-1:])}


def test_one_fault_is_run_with_its_control(checks):
    records = matrix.kill_matrix("DP", "f9", workers=1)
    assert [(r["kind"], r["id"]) for r in records] == [("fault", "f9"), ("control", "chebyshev")]
    assert records[0]["kills"] == ["D1", "D2", "P1"]
    assert records[0]["expected"] == ["D8"]
    assert records[0]["missed"] == ["D8"]
    assert records[0]["killed_by_DP"]
    assert not records[0]["killed_by_S"]
    assert records[1]["kills"] == []


def test_progress_is_told(checks):
    told = []
    matrix.kill_matrix("S", "f9", lambda *what: told.append(what), workers=1)
    assert told == [(1, 2, "f9"), (2, 2, "chebyshev")]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="No fault 'f99'; there are f1,"):
        matrix.kill_matrix("DP", "f99")
    with pytest.raises(ValueError, match="made of D, P and S, got 'X'"):
        matrix.kill_matrix("X")


def test_command_passes_when_all_is_killed(checks, committed, capsys):
    assert run("--tiers", "DP") == 0
    printed = capsys.readouterr().out
    assert f"{len(FAULTS)} faults: {len(FAULTS)} killed by D and P" in printed
    assert "FAIL" not in printed


def test_surviving_fault_fails_the_command(checks, committed, capsys):
    checks[0].update({("f9", code): 0.0 for code in ("D1", "D2", "P1")})
    assert run("--tiers", "DPS", "--only", "f9") == 1
    assert (
        "FAIL f9: survives tiers D and P (standard error with ddof = 0)" in capsys.readouterr().out
    )


def test_lost_kill_fails_the_command(checks, committed, capsys):
    checks[0]["f9", "D1"] = 0.0
    assert run("--tiers", "DP") == 1
    assert "FAIL f9: no longer killed by D1 (" in capsys.readouterr().out
    committed.write_text("{}")
    assert run("--tiers", "DP") == 0


def test_kill_of_a_tier_that_did_not_run_is_not_lost(checks, committed):
    assert run("--tiers", "S") == 0


def test_rejected_control_fails_the_command(checks, committed, capsys):
    checks[0]["xtrace", "P1"] = 2.0
    assert run("--tiers", "DP") == 1
    assert "FAIL control xtrace: a right estimator is rejected by P1" in capsys.readouterr().out


def test_worst_verdict_of_a_code_counts():
    found = [error("D1", 0.5), error("D1", 2), error("D2", 20), error("D2", 2), error("D3", 1)]
    assert matrix.verdicts_of(found) == {"D1": "marginal", "D2": "clear", "D3": ""}


def test_clear_failures():
    assert matrix.is_clear(broken("D1", "claim", "raised"))
    assert matrix.is_clear(error("D1", math.nan))
    assert not matrix.is_clear(broken("S1", "claim", "raised"))
    assert matrix.is_clear(exactly("P2", "claim", False, "equal"))
    level = {"detectable": 0.1, "level": Judgement(1e-3, 0.2), "size": 9, "unit": "z"}
    assert matrix.is_clear(judged("S1", "claim", 9.0, 0.0, p=1e-9, **level))
    assert not matrix.is_clear(judged("S1", "claim", 3.5, 0.0, p=5e-4, **level))


def test_only_clear_kills_are_committed_and_other_tiers_stay(checks, tmp_path):
    path = tmp_path / "expected.json"
    path.write_text(json.dumps({"f9": ["D8", "S3"], "gone": ["D1"]}))
    checks[0]["f9", "P1"] = 2.0
    matrix.commit(matrix.kill_matrix("DP", "f9", workers=1), path)
    assert matrix.committed_kills(path) == {"f9": ["D1", "D2", "S3"]}
    assert list(tmp_path.iterdir()) == [path]


def test_codes_are_in_the_order_of_their_numbers():
    codes = ["S1", "D10", "P1", "D6b", "D2", "D6a"]
    assert sorted(codes, key=matrix._order) == ["D2", "D6a", "D6b", "D10", "P1", "S1"]


def test_markdown_is_one_table_with_reasons(checks):
    text = matrix.markdown(matrix.kill_matrix("DP", workers=1))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(FAULTS) + len(CONTROLS)
    assert {row.count("|") for row in rows} == {6}
    assert "* `f12` S: " in text
    assert "* `missing-conjugate` not planted, matfree #268" in text


def test_marks(checks):
    checks[0].update({("f9", "D1"): 2.0, ("f9", "D2"): 0.0})
    text = matrix.render(matrix.kill_matrix("DP", "f9", workers=1))
    assert text.splitlines()[1].split()[:4] == ["f9", "✓", "·", "✔"]


def test_committed_kills_are_those_of_the_faults():
    known = matrix.committed_kills()
    assert list(known) == list(FAULTS)
    assert all(any(code[0] in "DP" for code in codes) for codes in known.values())


@pytest.mark.slow  # two processes import torch
def test_workers_of_their_own_give_the_same():
    here, there = (matrix.kill_matrix("DP", "f14", workers=w) for w in (1, 2))
    assert [r["verdicts"] for r in here] == [r["verdicts"] for r in there]
    assert here[0]["kills"][0] == "D2"
