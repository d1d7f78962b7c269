"""The gate: whatever an estimator does, it has a verdict in bounded time, and the others go on."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, broken, exactly
from verification import gate, gate_pool
from verification.checks.settings import Settings
from verification.gate import GateResult, run_gate
from verification.gate_pool import Judged, Pool, judge
from verification.resolve import Request, ResolveError

HERE = "tests.verification.wild"
LIMIT = 12.0


def wild(name, estimand="trace"):
    return Request(f"{HERE}:{name}", estimand)


def options(*arguments):
    parser = argparse.ArgumentParser()
    gate.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture(scope="module")
def bad():
    """One worker meets them all: each must leave the gate fit for the next."""
    names = ["hangs", "dies", "leaves", "raises", "right"]
    start = time.monotonic()
    seen = []
    result = run_gate(
        [wild(name) for name in names],
        tier="unit",
        time_limit=LIMIT,
        workers=1,
        progress=lambda done, total, name: seen.append((done, total, name)),
    )
    seconds = time.monotonic() - start
    return result, {s.name.partition(":")[2]: s for s in result.subjects}, seen, seconds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hangs", "no result after 12 s: --time-limit"),
        ("dies", "the process died: exit status 3"),
        ("leaves", "raised SystemExit"),
        ("raises", "raised RuntimeError: no convergence"),
    ],
)
def test_every_misbehaviour_is_a_failure_with_a_reason(bad, name, reason):
    _, by_name, _, _ = bad
    assert by_name[name].verdict == FAIL
    assert reason in by_name[name].checks[-1].message


@pytest.mark.slow
def test_the_others_are_judged_all_the_same_and_in_time(bad):
    result, by_name, seen, seconds = bad
    assert by_name["right"].verdict == PASS
    assert result.status() == 1
    assert [s.name.partition(":")[2] for s in result.subjects] == [*by_name]
    assert [(done, total) for done, total, _ in seen] == [(i, 5) for i in range(1, 6)]
    # One limit for the one that hangs, three starts of a process, and the work of the others.
    assert seconds < 5 * LIMIT + 60
    assert by_name["hangs"].seconds >= LIMIT


@pytest.mark.slow
def test_what_foreign_code_switches_is_not_switched_for_the_next():
    pool = Pool([wild("switches_torch"), Request("method:hutchinson")], "unit", Settings(), 120.0)
    pool.waiting.sort()  # the foreign one first
    found = dict(pool.results(1))
    assert [found[i].verdict for i in range(2)] == [PASS, PASS]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_gate(number):
    """Also one whose estimator lets no other thread run."""
    options = ["--tier", "unit", "--estimator", f"{HERE}:holds", "--estimand", "trace"]
    command = [sys.executable, "-m", "verification", "gate", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if line.startswith("worker "):
            break
    worker = int(line.split()[1])
    process.send_signal(number)
    process.wait(30)
    process.stderr.close()
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    end = time.monotonic() + 10
    while is_running(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_running(worker)


def is_running(pid):
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_worker_is_gone_when_the_gate_is_left():
    pool = Pool([wild("hangs")], "unit", Settings(), 0.5)
    (_, judged), *rest = pool.results(1)
    assert rest == []
    assert judged.verdict == FAIL
    assert pool.workers == []


@pytest.mark.slow
def test_a_name_that_cannot_be_resolved_stops_the_gate(capsys):
    assert gate.main(options("--estimator", f"{HERE}:rigth", "--estimand", "trace")) == 2
    assert "did you mean right" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_judges_writes_and_exits_with_0(tmp_path, capfd):
    junit, markdown, dump = (tmp_path / name for name in ("gate.xml", "gate.md", "gate.json"))
    arguments = ["--estimator", "method:hutchinson", "--estimator", "method:qr", "--workers", "1"]
    files = ["--junit", str(junit), "--markdown", str(markdown), "--json", str(dump)]
    assert gate.main(options(*arguments, *files, "--strict")) == 0
    out = capfd.readouterr().out
    assert "hutchinson" in out
    assert "✓ PASS" in out
    assert "epoch" in out
    assert int(ElementTree.parse(junit).getroot().get("tests", 0)) > 20
    assert "`hutchinson`" in markdown.read_text(encoding="utf-8")
    document = json.loads(dump.read_text(encoding="utf-8"))
    names = {c["name"].split()[0] for c in document["subjects"][0]["checks"]}
    assert {"D1", "P1", "S1", "S6"} <= names
    assert document["spent"] <= document["suite_alpha"]


def test_judging_in_this_process_finds_every_tier():
    found = [list(judge(Request("method:hutchinson"), tier, Settings())) for tier in gate.TIERS]
    unit, pull_request = ({c.name[0] for part in parts for c in part} for parts in found[:2])
    assert unit == {"D", "P"}
    assert pull_request == {"D", "P", "S"}


def test_the_level_of_the_suite_is_shared():
    """Every random check of every method together spends no more than the suite has."""
    requests = gate.default_requests()
    rows = [f"method:{name}" for name, row in METHODS.items() if row.claims.gated]
    assert [r.name for r in requests] == [*rows, "baseline"]
    alpha = gate.SUITE_ALPHA / (gate.RANDOM_CHECKS * len(requests))
    checks = [
        c
        for part in judge(Request("method:hutchinson"), "pull-request", Settings(alpha=alpha))
        for c in part
    ]
    random = [c for c in checks if c.p is not None]
    assert len(random) > 8
    assert sum(c.alpha or 0 for c in random) <= gate.SUITE_ALPHA / len(requests)


def result(*verdicts):
    makers = {
        PASS: exactly("D1 probe", "x", True, "fine"),
        FAIL: broken("S1 mean", "x", "no"),
        INCONCLUSIVE: exactly("S2 variance", "x", True, "blind"),
    }
    checks = [type(makers[v])(**{**vars(makers[v]), "verdict": v}) for v in verdicts]
    subjects = tuple(Judged(f"m{i}", (check,), 1.0) for i, check in enumerate(checks))
    return GateResult(subjects, "unit", "2026-11", 2.0, 2)


@pytest.mark.parametrize(
    ("verdicts", "plain", "strict"),
    [
        ((PASS, PASS), 0, 0),
        ((PASS, INCONCLUSIVE), 0, 1),
        ((INCONCLUSIVE, FAIL), 1, 1),
    ],
)
def test_exit_status(verdicts, plain, strict, monkeypatch):
    monkeypatch.setattr(gate, "run_gate", lambda *_, **__: result(*verdicts))
    assert gate.main(options()) == plain
    assert gate.main(options("--strict")) == strict


def test_a_method_that_is_shown_is_not_judged():
    shown = Judged("plain", (broken("S1 mean", "x", "no"),), gated=False)
    assert GateResult((shown,), "unit", "e", 0.0, 1).status(strict=True) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimator", "slq"], "method:NAME"),
        (["--estimator", "method:nothing"], "method is not 'nothing'"),
        (["--set", "degree"], "key=value"),
        (["--time-limit", "0"], "positive number of seconds"),
        (["--workers", "0"], "At least one worker"),
        (["--junit", "/nowhere/at/all.xml"], "There is no folder /nowhere/at"),
    ],
)
def test_usage_errors_are_found_before_anything_is_started(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(gate_pool, "get_context", lambda _: pytest.fail("a process was started"))
    assert gate.main(options(*arguments)) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_tier_is_refused():
    with pytest.raises(ValueError, match="tier is one of unit, pull-request, nightly"):
        run_gate(tier="weekly")


def test_a_worker_that_cannot_start_is_no_verdict_on_the_estimator(monkeypatch, capsys):
    monkeypatch.setattr(gate_pool, "_work", os.abort)  # wrong arguments: it dies at once
    assert gate.main(options("--estimator", "method:qr")) == 2
    assert "could not start" in capsys.readouterr().err


def test_unknown_requests_raise():
    with pytest.raises(ResolveError):
        run_gate([Request("method:none")])
