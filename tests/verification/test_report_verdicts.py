"""Verdicts of the report, and the numbers it derives from the records."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.report_fixture import cells_of, one_cell, small, synthetic_records
from verification.report import derive, page, summary, verdicts
from verification.report.figures.heatmaps import LOG_RATIO, evidence, square
from verification.report.records import Records, sort_by_kind

Record = dict[str, Any]


def test_one_failing_cell_makes_the_method_and_the_run_fail() -> None:
    records = small(faulty=False)
    assert summary.headline(sort_by_kind(records)).verdict == "PASS"
    cell = one_cell(records)
    cell["verdict"] = "FAIL"
    _, rows = summary.grid(sort_by_kind(records))
    found = {row.method: row for row in rows}
    assert found["chebyshev"].overall.verdict == "FAIL"
    assert found["chebyshev"].overall.counts["FAIL"] == 1
    assert found["chebyshev"].worst["id"] == cell["id"]
    assert found["slq"].overall.verdict != "FAIL"
    head = summary.headline(sort_by_kind(records))
    assert head.verdict == "FAIL"
    assert head.sentence.startswith(f"1 of {len(cells_of(records))} cells failed (chebyshev: 1).")


@pytest.mark.parametrize(
    ("name", "column"),
    [(name, column) for column, names in verdicts.COLUMNS.items() for name in names],
)
def test_a_failing_check_turns_its_column_and_its_cell_red(name: str, column: str) -> None:
    cell = one_cell(small(faulty=False))
    others = [c for c in cell["checks"] if c["name"] != name]
    failing = {**cell["checks"][0], "name": name, "verdict": "FAIL"}
    found = Records(cells=[{**cell, "checks": [*others, failing]}])  # recorded as PASS
    columns, (row,) = summary.grid(found)
    tallies = dict(zip(columns, row.columns, strict=True))
    assert tallies[column].verdict == "FAIL"
    assert all(tally.verdict != "FAIL" for other, tally in tallies.items() if other != column)
    assert row.overall.verdict == "FAIL"


def test_a_check_nobody_gathers_gets_a_column_of_its_own() -> None:
    cell = one_cell(small(faulty=False))
    cell["checks"].append({"name": "novel", "verdict": "INCONCLUSIVE"})
    columns, (row,) = summary.grid(Records(cells=[cell]))
    assert columns[-1] == "other checks"
    assert row.columns[-1].verdict == "INCONCLUSIVE"


def test_a_pass_without_the_power_to_fail_is_never_green() -> None:
    cell = one_cell(small(faulty=False))
    assert verdicts.cell_verdict(cell) == "PASS"
    cell["checks"][0].update(detectable=0.6, margin=0.5)
    assert verdicts.check_verdict(cell["checks"][0], cell) == "INCONCLUSIVE"
    assert verdicts.cell_verdict(cell) == "INCONCLUSIVE"
    text = page.render(Records(cells=[cell]))
    assert "passed, but its detectable effect exceeds its margin" in text


def test_reported_does_not_gate_but_is_counted_and_listed() -> None:
    records = small(faulty=False)
    for cell in cells_of(records):
        if cell["method"] == "slq":
            cell["verdict"] = "REPORTED"
            cell["checks"][0].update(verdict="FAIL", message="a documented limitation")
    found = sort_by_kind(records)
    head = summary.headline(found)
    count = sum(c["method"] == "slq" for c in found.cells)
    assert head.verdict == "PASS"
    assert head.sentence.endswith(
        f"{count} cells with a documented limitation: reported, not gated."
    )
    text = page.render(found)
    assert "a documented limitation" in text
    assert 'class="v FAIL"' not in text.split('class="key"')[0]


def test_a_reported_check_in_a_gated_cell_is_listed_without_a_say() -> None:
    cell = one_cell(small(faulty=False))
    cell["checks"].append({"name": "probe", "verdict": "REPORTED", "message": "limit above n"})
    assert verdicts.cell_verdict(cell) == "PASS"
    assert "limit above n" in page.render(Records(cells=[cell]))


def test_a_run_of_nothing_but_limitations_is_not_a_pass() -> None:
    cell = {**one_cell(small(faulty=False)), "verdict": "REPORTED"}
    assert summary.headline(Records(cells=[cell])).verdict == "INCONCLUSIVE"
    assert summary.headline(Records()).verdict == "INCONCLUSIVE"


def test_an_unknown_verdict_is_refused() -> None:
    cell = {**one_cell(small()), "verdict": "pass"}
    with pytest.raises(ValueError, match="one of PASS, REPORTED, INCONCLUSIVE, FAIL; got 'pass'"):
        summary.headline(Records(cells=[cell]))


@pytest.mark.parametrize(
    ("kind", "change", "verdict"),
    [("timing", {"ratio": 9.0}, "PASS"), ("precision", {"error": 1.0}, "FAIL")],
)
def test_a_broken_limit_is_said_and_only_that_of_precision_fails_the_run(
    kind: str, change: Record, verdict: str
) -> None:
    records = small(faulty=False)
    next(r for r in records if r["kind"] == kind and r["limit"]).update(change)
    head = summary.headline(sort_by_kind(records))
    assert head.verdict == verdict
    assert "beyond the limit" in head.sentence


def test_worst_cell_prefers_the_verdict_then_the_smallest_p_then_the_nearest_limit() -> None:
    base = one_cell(small(faulty=False))

    def cell(name: str, verdict: str, **check: Any) -> Record:
        return {**base, "id": name, "checks": [{**base["checks"][0], "verdict": verdict, **check}]}

    calm, tense = cell("calm", "PASS", p=0.5), cell("tense", "PASS", p=1e-4)
    weak = cell("weak", "INCONCLUSIVE", p=0.9)
    near = cell("near", "PASS", p=None, statistic=0.9, margin=1.0)
    far = cell("far", "PASS", p=None, statistic=0.1, margin=1.0)
    assert verdicts.worst_cell([calm, tense, weak]) is weak
    assert verdicts.worst_cell([tense, calm, near]) is tense
    assert verdicts.worst_cell([far, near]) is near
    assert verdicts.worst_cell([]) is None


@given(
    st.floats(1e-3, 1e3), st.integers(1, 64), st.floats(1e-2, 1e2), st.sampled_from(["exact", "ci"])
)
def test_honest_m_is_the_largest_that_satisfies_its_definition(
    sd1: float, m: int, b: float, source: str
) -> None:
    cell = {"probes": m, "sd_exact": sd1 / math.sqrt(m), "truth": 1.0, "u_truth": 0.0}
    known = {"bias_exact": b} if source == "exact" else {"paired_bias": b, "paired_bias_se": 0.0}
    found = derive.honest_probes({**cell, **known})
    assert found is not None

    def holds(probes: float, slack: float) -> bool:
        return b <= derive.BIAS_SHARE * sd1 / math.sqrt(probes) * (1 + slack)

    assert found == 0 or holds(found, 1e-9)
    assert not holds(found + 1, -1e-9)


def test_honest_m_counts_the_uncertainty_of_a_measured_bias_and_knows_no_bias() -> None:
    cell = {"probes": 1, "sd_exact": 1.0, "truth": 1.0, "u_truth": 1e-12}
    exact = derive.honest_probes({**cell, "bias_exact": 0.01})
    measured = derive.honest_probes({**cell, "paired_bias": 0.01, "paired_bias_se": 0.001})
    assert exact == 400
    assert measured is not None
    assert measured < 400
    assert derive.honest_probes({**cell, "bias_exact": 1e-13}) == math.inf
    assert derive.honest_probes({**cell, "bias_exact": None}) is None


def test_predicted_error_combines_bias_and_variance() -> None:
    assert derive.predicted_rmse({"probes": 4, "sd_exact": 4.0, "bias_exact": 3.0}) == 5.0
    assert derive.predicted_rmse({"probes": 0, "sd_exact": None}) is None


def test_digits_that_agree_stop_at_those_of_float64_and_need_two_methods() -> None:
    assert derive.agreeing_digits({"svd": 1.0, "qr": 1.0}, 1.0) == pytest.approx(53 * math.log10(2))
    assert derive.agreeing_digits({"svd": 1.0}, 1.0) is None
    assert derive.agreeing_digits({"svd": 1.0, "qr": None}, 1.0) is None


def test_representative_cases_cover_every_family_and_both_ends_of_the_condition() -> None:
    cells = cells_of(synthetic_records(faulty=False))
    chosen = derive.representative_cases(cells)
    assert len(chosen) == 9
    found = [c for c in cells if c["case"] in chosen]
    assert {c["family"] for c in found} == {c["family"] for c in cells}
    spd = [c["cond"] for c in cells if c["family"] == "spd"]
    assert {min(spd), max(spd)} <= {c["cond"] for c in found if c["family"] == "spd"}


@given(st.floats(1e-12, 0.99), st.integers(1, 1000))
def test_the_colour_of_a_heat_map_allows_for_the_choice_among_cells(p: float, count: int) -> None:
    naive = 1 - (1 - p) ** count
    if 1e-4 < naive < 1 - 1e-9:
        assert evidence(p, count) == pytest.approx(-NormalDist().inv_cdf(naive / 2), rel=1e-6)
    assert evidence(p, count) <= evidence(p, 1) + 1e-12


def test_a_square_takes_the_most_significant_gated_cell_and_the_worst_verdict() -> None:
    base = one_cell(small(faulty=False))

    def cell(ratio: float, p: float, verdict: str = "PASS") -> Record:
        check = {"name": "variance", "verdict": verdict, "p": p}
        recorded = "REPORTED" if verdict == "REPORTED" else "PASS"
        return {**base, "var_ratio": ratio, "verdict": recorded, "checks": [check]}

    found = square([cell(1.1, 0.4), cell(0.5, 1e-5), cell(9.0, 1e-30, "REPORTED")], LOG_RATIO)
    assert found.value == pytest.approx(math.log(0.5))
    assert found.colour == pytest.approx(-evidence(1e-5, 2))
    assert found.verdict == "REPORTED"
    assert square([cell(9.0, 1e-30, "REPORTED")], LOG_RATIO).value == pytest.approx(math.log(9))


def test_blind_spots_follow_the_records() -> None:
    cell = one_cell(small(faulty=False))
    cell["checks"] = [{**cell["checks"][0], "detectable": 0.1234, "margin": 0.5}]
    before = " ".join(page.blind_spots(Records(cells=[cell])))
    assert "a bias of 0.123 standard deviations of one probe" in before
    assert cell["case"] in before
    cell["checks"][0]["detectable"] = 0.777
    after = " ".join(page.blind_spots(Records(cells=[cell])))
    assert "a bias of 0.777" in after
    assert "1 check has a detectable effect beyond the margin" in after
