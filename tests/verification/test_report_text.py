"""The report as text: Markdown summary, table of the README, explanation of one cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.verification.report_fixture import cells_of, one_cell, small
from verification import report
from verification.report import markdown
from verification.report.records import sort_by_kind


def test_markdown_has_verdict_methods_worst_cells_and_provenance() -> None:
    records = small()
    text = markdown.render(sort_by_kind(records))
    assert "**✗ FAIL** 1 of " in text
    assert report.methods_table(records) in text
    failing = next(c for c in cells_of(records) if c["verdict"] == "FAIL")
    assert f"- ✗ FAIL `{failing['id']}`" in text
    assert "1 truth, 1 of them by two or more methods that agree to " in text
    assert "commit synthetic" in text


def test_methods_table_has_one_row_per_method_with_its_numbers() -> None:
    records = small(faulty=False)
    cells = [c for c in cells_of(records) if c["method"] == "chebyshev"]
    for cell in cells:
        cell.update(paired_bias=0.5 * cell["n"], var_ratio=1.21, matvecs=40)
        cell.update(coverage=0.9, coverage_expectation=0.95)
    lines = report.methods_table(records).splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == ["qr", "slq", "chebyshev"]
    expected = "| `chebyshev` | 0.5 (max 0.5) | 1.100 (1.10) | 0.950 / 0.900 | 40 "
    assert lines[-1] == f"{expected}| ✓ PASS ({len(cells)} cells) |"
    assert {line.count("|") for line in lines} == {7}


def test_documented_limitations_stay_out_of_the_measured_columns() -> None:
    records = small(faulty=False, methods=("chebyshev",))
    cells = [c for c in cells_of(records) if c["method"] == "chebyshev"]
    cells[0].update(paired_bias=1e9, verdict="REPORTED")
    others = [r for r in records if r is not cells[0]]
    with_it, without_it = (report.methods_table(r).splitlines()[-1] for r in (records, others))
    assert with_it.split("|")[:-2] == without_it.split("|")[:-2]
    assert f"i REPORTED (1 of {len(cells)})" in with_it


def test_readme_is_rewritten_between_its_markers_and_nowhere_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# a\r\n\n{markdown.BEGIN}\nold\n{markdown.END}\n\nrest ü\n", newline="")
    report.update_readme(readme, "| new |")
    expected = f"# a\r\n\n{markdown.BEGIN}\n| new |\n{markdown.END}\n\nrest ü\n"
    assert readme.read_bytes().decode() == expected
    report.update_readme(readme, "| new |")
    assert readme.read_bytes().decode() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "methods:begin --> exactly once, found 0"),
        (markdown.BEGIN, "methods:end --> exactly once, found 0"),
        (f"{markdown.BEGIN}{markdown.BEGIN}{markdown.END}", "exactly once, found 2"),
        (f"{markdown.END}\n{markdown.BEGIN}", "exchange the two markers"),
    ],
)
def test_a_readme_without_proper_markers_is_left_alone(
    text: str, message: str, tmp_path: Path
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=message):
        report.update_readme(readme, "| new |")
    assert readme.read_text() == text


def test_explain_tells_truth_decomposition_measurement_and_checks() -> None:
    cell = one_cell(small(faulty=False))
    cell.update(truth=123.456, u_truth=1e-11, bias_exact=0.03, sd_exact=0.4, probes=4)
    cell.update(mean=123.5, mean_ci=[123.4, 123.6], verdict="PASS")
    cell["checks"] = [{**cell["checks"][0], "p": 0.0321, "detectable": 0.111}]
    text = report.explain(cell)
    for part in (
        f"✓ PASS  {cell['id']}",
        "123.456",
        "1e-11",
        "exact truncation bias     +0.03",
        "exact sampling sd         0.4",
        "+0.044  [-0.056, 0.144] (99%)",
        "p = 0.0321, α = 1e-6",
        "smallest detectable effect: a bias of 0.111 standard deviations of one probe",
        cell["checks"][0]["message"],
    ):
        assert part in text


def test_explain_follows_the_shown_verdict_and_refuses_other_kinds() -> None:
    cell = one_cell(small(faulty=False))
    cell["checks"][0].update(detectable=9.0, margin=0.5)
    text = report.explain(cell)
    assert text.startswith("? INCONCLUSIVE")
    assert "recorded PASS, but the detectable effect exceeds the margin" in text
    with pytest.raises(ValueError, match="kind 'cell', got 'timing'"):
        report.explain({"kind": "timing"})
