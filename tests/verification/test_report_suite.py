"""The page on the suite itself: its verdict follows its records, and nothing is left out."""

from __future__ import annotations

import pytest

from tests.verification import suite_fixture as made
from tests.verification.report_fixture import small
from verification import report
from verification.report import page, suite
from verification.report.records import sort_by_kind


def rendered(records) -> str:
    return page.render_suite(sort_by_kind(records))


def verdict(records) -> str:
    return suite.context(sort_by_kind(records))["verdict"]


def test_all_is_well_when_every_fault_is_killed_and_nothing_right_is():
    assert verdict(made.suite_records()) == "PASS"
    html = rendered(made.suite_records())
    assert "2 of 2 planted faults are killed without sampling" in html
    assert "0 false alarms in 200 epochs at 0.05" in html
    assert "97.0%" in html


@pytest.mark.parametrize(
    ("record", "named"),
    [
        (made.fault("f9", kills=["S1"], by_S=True), "alive: f9"),
        ({**made.fault("right2", kills=["D1"], by_S=False), "role": "control"}, "right2"),
        (made.control(rejected=9, consistent=False), "9 false alarms"),
        (made.mutation(score=0.9), "90.0%"),
    ],
)
def test_what_is_wrong_is_named(record, named):
    records = [*made.suite_records(), record]
    assert verdict(records) == "FAIL"
    assert named in rendered(records)


def test_every_code_of_the_matrix_is_explained():
    table = suite.matrix_table(made.suite_records()[:2])
    assert table is not None
    codes = table.head[2:]
    assert codes == ["D1", "D2", "D6a", "D9", "P1", "S2"]
    assert {name.rstrip("abc") for name in codes} <= set(suite.CODES)
    marks = dict(zip(codes, table.rows[0][2:], strict=True))
    assert {name: mark for name, mark in marks.items() if mark} == {
        "D6a": "(✓)",
        "D9": "·",
        "P1": "✓",
        "S2": "✓",
    }


def test_nothing_measured_is_said_and_not_called_a_pass():
    assert verdict([]) == "INCONCLUSIVE"
    assert rendered([]).count("Not measured in this run.") == 3


def test_both_pages_are_written_and_link_to_each_other(tmp_path):
    index = report.write([*small(), *made.suite_records()], tmp_path)
    other = tmp_path / "suite.html"
    assert 'href="suite.html"' in index.read_text()
    assert 'href="index.html"' in other.read_text()
    assert "faults killed by D or P" in index.read_text()
    assert "Over the whole grid" in index.read_text()
