"""The study of densities, made small: files, tables, and the exit status of a missed spectrum."""

from __future__ import annotations

import argparse

import pytest

from verification import density_study


@pytest.fixture
def small(monkeypatch):
    for name, value in (("N", 32), ("SEEDS", 3), ("STEPS", (2, 4)), ("SHOWN", 4)):
        monkeypatch.setattr(density_study, name, value)
    monkeypatch.setattr(density_study, "CONDITIONS", (1e4,))


def run(out):
    parser = argparse.ArgumentParser()
    density_study.add_arguments(parser)
    return density_study.main(parser.parse_args(["--out", str(out)]))


def test_study_writes_a_page_and_a_figure(small, tmp_path, capsys):
    assert run(tmp_path / "new") == 0
    page = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert page.count("| clusters |") == 2 + 5 + 1
    assert "3 of 3" in page
    assert "nan" not in page
    assert (tmp_path / "new" / "density.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_band_that_misses_fails(small, tmp_path, monkeypatch):
    real = density_study.slq_density

    def shifted(A, X, *, num_steps):
        return real(20 * A, X, num_steps=num_steps)

    monkeypatch.setattr(density_study, "slq_density", shifted)
    assert run(tmp_path) == 1


def test_clusters_need_few_steps_of_lanczos_and_many_of_kernels(small):
    rows = {(r["spectrum"], r["method"], r["steps"]): r["w1"] for r in density_study.comparison()}
    floor = rows["clusters", "all steps", 32]
    assert rows["clusters", "SLQ", 4] < 1.2 * floor + 1e-3
    assert rows["clusters", "KPM Jackson", 4] > 1.5 * floor
    for spectrum in density_study.SPECTRA:
        assert rows[spectrum, "SLQ", 4] == pytest.approx(rows[spectrum, "GKB", 4], rel=1e-6)
