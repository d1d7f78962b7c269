"""What the gate writes: every reader gets it, and foreign text stays text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, REPORTED, Check, broken
from verification import gate_report
from verification.gate import GateResult
from verification.gate_pool import Judged

NASTY = "raised X: <b>&amp; `a|b` \x00\x1b[31m @everyone ]]> \ud800"


def check(name, verdict=PASS, message="fine", **fields):
    return replace(Check(name, "it holds", verdict, 1.0, 0.0, message), **fields)


@pytest.fixture
def result():
    first = (
        check("D1 probe"),
        check("D2 sd"),
        check("D6a form"),
        check("D8 mean", INCONCLUSIVE, "cannot see"),
        check("S2 variance", p=0.5, alpha=1e-5, detectable=float("inf")),
        check("P1 law", REPORTED, "not seen"),
    )
    second = (check("S3 error bars", FAIL, NASTY), check("D9 products"))
    subjects = (
        Judged("good", first, 1.0),
        Judged("bad<&|>", second, 2.0),
        Judged("dead", (broken("D0 result", "it returns", "no result after 3 s"),), 3.0),
        Judged("shown", (check("S1 mean", FAIL, "off"),), 0.5, gated=False),
    )
    return GateResult(subjects, "pull-request", "2026-11", 12.3, 2)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("D1 probe", "bias"),
        ("D2 mean", "bias"),
        ("D2 sd", "variance"),
        ("D2 error bars", "error bars"),
        ("D6a form", "gradient"),
        ("D6 gradient", "gradient"),
        ("D8 mean", "bias"),
        ("D8 standard error", "error bars"),
        ("D8 gradient", "gradient"),
        ("D10 bracket", "promises"),
        ("P1 fourth moment", "promises"),
        ("P2 duplicates across calls", "reproducibility"),
        ("S6 gradient mean", "gradient"),
        ("S7 gradient variance", "gradient"),
        ("D0 result", None),
    ],
)
def test_every_check_has_its_column(name, column):
    assert gate_report.column(check(name)) == column


def test_columns_show_their_worst_verdict(result):
    good, bad, dead, shown = (gate_report.verdicts(s) for s in result.subjects)
    assert good == {
        "bias": INCONCLUSIVE,
        "variance": PASS,
        "gradient": PASS,
        "error bars": None,
        "reproducibility": None,
        "promises": REPORTED,
    }
    assert bad["error bars"] == FAIL
    assert set(dead.values()) == {FAIL}
    assert shown["bias"] == REPORTED


def test_text_has_a_row_for_each_and_every_open_question_in_full(result):
    text = gate_report.text(result)
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["bias", "variance"]
    assert [line.split()[0] for line in lines[1:5]] == ["good", "bad<&|>", "dead", "shown"]
    assert "? INCONCLUSIVE D8 mean: it holds: cannot see" in text
    assert "✗ FAIL D0 result: it returns: no result after 3 s" in text
    assert "off" not in text.split("good\n")[1]  # shown, not judged
    assert "false alarms at most 0.001" in text
    assert "epoch 2026-11, 12.3 s, 2 processes" in text


def test_junit_is_read_back_with_every_case(result):
    root = ElementTree.fromstring(gate_report.junit(result).encode())
    assert root.tag == "testsuites"
    totals = {key: int(root.get(key, -1)) for key in ("tests", "failures", "skipped", "errors")}
    assert totals == {"tests": 10, "failures": 2, "skipped": 1, "errors": 0}
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["good", "bad<&|>", "dead", "shown"]
    for key, total in totals.items():
        assert sum(int(suite.get(key, -1)) for suite in root) == total
    for suite in root:
        assert len(suite.findall("testcase")) == int(suite.get("tests", -1))
        assert len(suite.findall("testcase/failure")) == int(suite.get("failures", -1))
        assert len(suite.findall("testcase/skipped")) == int(suite.get("skipped", -1))
    (failure,) = suites["bad<&|>"].findall("testcase/failure")
    assert "<b>&amp; `a|b`" in str(failure.get("message"))
    (skipped,) = suites["good"].findall("testcase/skipped")
    assert "cannot see" in str(skipped.get("message"))
    out = [node.text or "" for node in suites["good"].findall("testcase/system-out")]
    assert any(text.startswith("REPORTED") and "not seen" in text for text in out)


def test_markdown_keeps_foreign_text_from_becoming_markup(result):
    markdown = gate_report.markdown(result)
    assert markdown.startswith("## Gate: 2 of 4 estimators FAIL")
    assert "<b>" not in markdown
    assert "@everyone" not in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4
    assert {line.replace("\\|", "").count("|") for line in table} == {9}


def test_markdown_of_success_says_so(result):
    passed = replace(result, subjects=result.subjects[3:])
    assert gate_report.markdown(passed).startswith("## Gate: passed")


def test_json_has_every_field_and_no_number_that_json_lacks(result):
    document = json.loads(gate_report.as_json(result), parse_constant=pytest.fail)
    good = document["subjects"][0]
    assert good["verdict"] == INCONCLUSIVE
    assert good["checks"][4]["detectable"] is None
    assert good["checks"][4]["alpha"] == 1e-5
    assert document["spent"] == 1e-5


def test_files_are_written_as_asked(result, tmp_path):
    junit, dump = tmp_path / "a.xml", tmp_path / "a.json"
    gate_report.write(result, junit, None, dump)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.xml"]
    ElementTree.parse(junit)


def test_a_folder_that_does_not_exist_is_found_first(tmp_path):
    with pytest.raises(ValueError, match="make it first"):
        gate_report.check_targets(None, tmp_path / "no" / "x.md")


@pytest.mark.parametrize("name", [".", "/proc/x.json", "/dev/null", "y" * 250, "file/x.json"])
def test_what_cannot_be_written_is_found_first(tmp_path, name):
    (tmp_path / "file").write_text("old")
    with pytest.raises(ValueError, match=r"name another|make it first"):
        gate_report.check_targets(tmp_path / "ok.xml", None, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_file_under_two_names_is_found_first(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for other in (tmp_path / "a", tmp_path / "." / "b" / ".." / "a", tmp_path / "link"):
        (tmp_path / "b").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="named twice"):
            gate_report.check_targets(tmp_path / "a", None, other)


def test_good_targets_are_left_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "old").write_text("old")
    monkeypatch.chdir(tmp_path)
    gate_report.check_targets(tmp_path / "old", Path("new"), None)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
