"""The ratchet turns one way: what is worse fails, what was tampered with is refused."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest
import torch

from specbp.estimate import from_samples
from specbp.methods import METHODS
from verification import baseline, baseline_rows
from verification.baseline_rows import BIAS, ERROR, LIMIT, PRODUCTS, VARIANCE, measure
from verification.subjects import from_method

HUTCHINSON = from_method(METHODS["hutchinson"])
SLQ = from_method(METHODS["slq"])


@pytest.fixture(scope="module")
def rows():
    return measure([HUTCHINSON, SLQ, from_method(METHODS["cholesky"])])


@pytest.fixture
def folder(rows, tmp_path, monkeypatch, capsys):
    """A reference recorded from the rows of this tree."""
    monkeypatch.setattr(baseline, "_failures", list)
    assert baseline.update(tmp_path, rows) == 0
    capsys.readouterr()
    return tmp_path


def failed(folder, rows) -> list[str]:
    return [c.name for c in baseline.check(folder, rows) if c.verdict == "FAIL"]


def changed(rows, name: str, **figures: float):
    """The rows, of which one has other figures."""
    assert any(row.id == name for row in rows)
    return [
        replace(row, figures={**row.figures, **figures}) if row.id == name else row for row in rows
    ]


def wrong(estimate, subject=HUTCHINSON):
    return measure([replace(subject, estimate=estimate)])


def document(folder):
    path = folder / f"{baseline.platform_key()}.json"
    return path, json.loads(path.read_text())


def test_the_reference_of_this_tree_is_met(folder, rows):
    found = baseline.check(folder, rows)
    assert len(found) == len(rows) == 36
    assert {c.verdict for c in found} == {"PASS"}


def test_every_figure_that_gets_worse_fails(folder, rows):
    name = "slq | cond 1e2 | 10 | float64"
    now = next(row for row in rows if row.id == name)
    worse = {
        ERROR: 4.1 * max(now.figures[ERROR], now.slack[ERROR]),
        LIMIT: 2 * now.figures[LIMIT],
        BIAS: 1.02 * now.figures[BIAS],
        VARIANCE: 1 - 1.02 * (1 - now.figures[VARIANCE]),
        PRODUCTS: now.figures[PRODUCTS] + 1,
    }
    assert worse.keys() == now.figures.keys()
    for key, value in worse.items():
        assert failed(folder, changed(rows, name, **{key: value})) == [f"baseline {name}"], key
    better = {ERROR: 0.0, LIMIT: now.figures[LIMIT] / 2, BIAS: 0.0, VARIANCE: 1.0, PRODUCTS: 1.0}
    assert failed(folder, changed(rows, name, **better)) == []
    assert failed(folder, changed(rows, name, **{ERROR: float("nan")})) == [f"baseline {name}"]


def test_rounding_of_another_processor_passes(folder, rows):
    name = "slq | cond 1e2 | 10 | float64"
    now = next(row for row in rows if row.id == name)
    tripled = {ERROR: 3 * now.figures[ERROR], BIAS: now.figures[BIAS] + 3 * now.slack[BIAS]}
    assert failed(folder, changed(rows, name, **tripled)) == []


def test_float32_in_the_float64_path_is_found(folder):
    def rounded(A, X):
        found = HUTCHINSON.estimate(A, X)
        return from_samples(found.samples.float(), num_matvecs=found.num_matvecs)

    assert any("float64" in name for name in failed(folder, wrong(rounded)))


def test_a_sum_in_float32_that_was_exact_in_float64_is_found(folder, rows):
    """An exact method that leaves float64: its errors in float32 were below any luck."""
    name = "hutchinson | cond 1e2 | 10 | float32"
    now = next(row for row in rows if row.id == name)
    assert now.figures[ERROR] < 1e-3 * now.slack[ERROR]
    once = {ERROR: now.slack[ERROR] / 10}
    assert failed(folder, changed(rows, name, **once)) == [f"baseline {name}"]


def test_a_bias_and_a_variance_are_found(folder):
    def biased(A, X):
        found = HUTCHINSON.estimate(A, X)
        return from_samples(1.0001 * found.samples, num_matvecs=found.num_matvecs)

    found = [c for c in baseline.check(folder, wrong(biased)) if c.verdict == "FAIL"]
    assert len([c for c in found if "hutchinson" in c.name]) == 12
    figures = wrong(biased)[1].figures
    assert figures[VARIANCE] == pytest.approx(1.0001**2, rel=1e-9)
    assert abs(figures[BIAS]) > 1e-6


def test_fewer_steps_are_found_and_so_are_other_arguments(folder):
    def shorter(A, X, num_steps, lower):
        return SLQ.estimate(A, X, num_steps=num_steps - 1, lower=lower)

    # Those on which 20 steps have not converged.
    names = failed(folder, wrong(shorter, SLQ))
    assert len([name for name in names if "slq | cond" in name]) == 8
    other = measure([replace(SLQ, config={"num_steps": 19})])
    names = {
        c.name: c.message for c in baseline.check(folder, other) if "slq | power law | 64" in c.name
    }
    assert all("arguments are not the recorded ones" in text for text in names.values())


def test_a_row_on_one_side_only_says_what_to_do(folder, rows):
    missing = [c for c in baseline.check(folder, rows[1:]) if c.verdict == "FAIL"]
    assert [c.name for c in missing] == [f"baseline {rows[0].id}"]
    assert "not measured" in missing[0].message
    assert baseline.COMMAND in missing[0].message
    new = [*rows, replace(rows[0], id="new | x | 1 | float32")]
    (added,) = [c for c in baseline.check(folder, new) if c.verdict == "FAIL"]
    assert "not recorded" in added.message
    assert baseline.COMMAND in added.message


def test_other_inputs_are_refused(folder, rows):
    other = [replace(rows[0], inputs="0" * 64), *rows[1:]]
    (found,) = [c for c in baseline.check(folder, other) if c.verdict == "FAIL"]
    assert "not the recorded ones" in found.message


def test_an_edited_file_is_refused(folder, rows):
    path, text = document(folder)
    next(iter(text["rows"].values()))["figures"][ERROR] = 100.0
    path.write_text(json.dumps(text))
    (found,) = baseline.check(folder, rows)
    assert found.verdict == "FAIL"
    assert "edited by hand" in found.message
    path.write_text("{")
    (found,) = baseline.check(folder, rows)
    assert "cannot be read" in found.message


def test_a_platform_without_reference_is_reported_with_the_remedy(tmp_path, rows):
    (found,) = baseline.check(tmp_path, rows)
    assert found.verdict == "REPORTED"
    assert baseline.COMMAND in found.message
    assert baseline.platform_key() in found.message


def test_update_refuses_a_tree_that_fails(folder, rows, capsys, monkeypatch):
    path, before = document(folder)
    bad = changed(rows, rows[0].id, **{ERROR: 1.5})
    assert baseline.update(folder, bad) == 1
    assert "error 1.5 × rounding" in capsys.readouterr().err
    assert baseline.update(folder, changed(rows, rows[0].id, **{PRODUCTS: 99.0})) == 1
    assert baseline.update(folder, changed(rows, rows[0].id, **{BIAS: float("nan")})) == 1
    monkeypatch.setattr(baseline, "_failures", lambda: ["slq: FAIL D1 probe"])
    assert baseline.update(folder, rows) == 1
    assert "D1 probe" in capsys.readouterr().err
    assert json.loads(path.read_text()) == before


def test_update_prints_what_changed(folder, rows, capsys):
    name = "slq | cond 1e2 | 10 | float64"
    assert baseline.update(folder, changed(rows, name, **{BIAS: 0.1})) == 0
    assert f"improved {name}: bias 0.18" in capsys.readouterr().out
    assert baseline.update(folder, rows) == 0
    assert f"worse    {name}: bias 0.1 →" in capsys.readouterr().out
    assert baseline.update(folder, rows) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert baseline.update(folder, rows[1:]) == 0
    assert f"gone     {rows[0].id}" in capsys.readouterr().out


def test_the_deterministic_checks_are_asked_before_recording(monkeypatch):
    asked = []

    def run(subject, tiers):
        asked.append((subject.name, tiers))
        return []

    monkeypatch.setattr(baseline.checks, "run", run)
    assert baseline._failures() == []
    assert asked == [(m.name, "D") for m in METHODS.values() if m.claims.gated]


def test_the_provenance_stands_in_the_file(folder):
    _, text = document(folder)
    assert {"commit", "clean", "versions", "recorded"} <= text["provenance"].keys()
    assert text["platform"] == baseline.platform_key()


def test_the_matrices_are_the_same_numbers_in_both_precisions():
    for spectrum in baseline_rows.SPECTRA:
        for on in ("A", "J"):
            single, double = (
                baseline_rows.view_of(spectrum, 64, dtype, on).operator
                for dtype in ("float32", "float64")
            )
            assert torch.equal(single.double(), double)
            assert torch.equal((double * 2**18).round(), double * 2**18)


def test_main_returns_1_for_what_is_worse(folder, rows, capsys, monkeypatch):
    options = argparse.ArgumentParser()
    baseline.add_arguments(options)
    parsed = options.parse_args(["--folder", str(folder)])
    monkeypatch.setattr(baseline, "measure", lambda: rows)
    assert baseline.main(parsed) == 0
    assert "36 rows" in capsys.readouterr().out
    monkeypatch.setattr(baseline, "measure", lambda: changed(rows, rows[0].id, **{PRODUCTS: 1e6}))
    assert baseline.main(parsed) == 1
    assert rows[0].id in capsys.readouterr().out
    parsed = options.parse_args(["--folder", str(folder), "--update"])
    assert baseline.main(parsed) == 1


def test_the_committed_reference_of_this_platform_is_met():
    """The figures of this tree against the file in the repository, where there is one."""
    found = [c for c in baseline.check() if c.verdict not in ("PASS", "REPORTED")]
    assert found == []
