"""The nightly detector: valid evidence, each night once, and a state that is whole or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from specbp.testing import outcome
from specbp.testing.outcome import PASS, Check
from verification import control, nightly
from verification.checks import sampling
from verification.report import files
from verification.store import strict

SUBJECT = control.control_subject()


@pytest.fixture
def scores(monkeypatch):
    """Replace tier S by a script, which makes scores by name of the number of the night."""
    nights: list[str] = []

    def install(script: Callable[[int], dict[str, float]]) -> list[str]:
        def run(subject, settings):
            nights.append(settings.epoch)
            found = script(len(nights) - 1)
            return [check(name, z) for name, z in found.items()]

        monkeypatch.setattr(sampling, "run", run)
        return nights

    return install


def check(name: str, z: float) -> Check:
    return Check(name, "", PASS, z, 0.0, "", p=2 * stats.norm.sf(abs(z)), z=z)


def date(night: int) -> str:
    return f"2026-{11 + night // 28}-{1 + night % 28:02}"


def run_nights(state: Path, count: int) -> list[bool]:
    return [nightly.run(state, date(i), subjects=[SUBJECT])[1] for i in range(count)]


# Evidence -----------------------------------------------------------------------------------------


def test_every_alternative_has_expectation_one_while_nothing_is_wrong():
    def density(z: float, i: int) -> float:
        p = min(1.0, 2 * stats.norm.sf(abs(z)))
        return nightly.evidence(z, p)[i] * stats.norm.pdf(z)

    for i in range(nightly.ALTERNATIVES):
        total = integrate.quad(density, -20, 20, args=(i,), points=[-4, 0, 4], limit=200)[0]
        assert total == pytest.approx(1.0, abs=1e-6)


def test_evidence_decreases_in_p_so_that_conservative_p_values_stay_valid():
    p = np.linspace(1e-6, 1, 200)
    e = np.array([nightly.evidence(0.0, v) for v in p])[:, 2 * len(nightly.TILTS) :]
    assert (np.diff(e, axis=0) <= 0).all()


def test_no_score_gives_infinite_or_undefined_evidence():
    for z, p in ((40.0, 0.0), (-40.0, 0.0), (0.0, 1.0), (1e6, 0.0)):
        assert np.isfinite(nightly.evidence(z, p)).all()


def naive_evidence(z: np.ndarray) -> np.ndarray:
    """Evidence of every score, (..., ALTERNATIVES), its p-value two-sided."""
    s = np.array(nightly.TILTS)
    exponents = np.multiply.outer(z, s)
    parts = [np.exp(exponents), np.exp(-exponents), np.cosh(exponents)]
    return np.concatenate([part * np.exp(-(s**2) / 2) for part in parts], axis=-1)


@pytest.mark.parametrize("z", [-4.0, -0.3, 0.0, 2.5])
def test_evidence_is_that_of_the_definition(z):
    found = nightly.evidence(z, 2 * stats.norm.sf(abs(z)))
    np.testing.assert_allclose(found, naive_evidence(np.array(z)), rtol=1e-9)


def test_false_alarms_of_one_family_come_after_a_thousand_nights_on_average():
    rng, runs, nights = np.random.default_rng(20260905), 300, 3000
    M, first = np.zeros((runs, nightly.ALTERNATIVES)), np.full(runs, nights)
    for night in range(nights):
        M = (M + 1) * naive_evidence(rng.standard_normal(runs))
        alarm = M.mean(-1) >= nightly.THRESHOLD
        first = np.where(alarm & (first == nights), night, first)
    # Runs without alarm are cut off, so the true mean is larger still.
    assert first.mean() > 1000
    assert (first < nights).mean() > 0.2  # and it is no detector that never alarms


def test_a_small_shift_of_every_night_alarms_within_weeks(tmp_path, scores):
    rng = np.random.default_rng(20260906)
    z = rng.standard_normal(60) + 1.0
    scores(lambda night: {"S1 mean": z[night], "S2 variance": 0.0})
    alarms = run_nights(tmp_path / "state.json", 45)
    assert not any(alarms[:5])
    assert any(alarms)
    assert np.abs(z[:45]).max() < 4  # no night by itself would have alarmed


def test_one_family_is_not_lost_among_many(tmp_path, scores):
    quiet = {f"S{i}": 0.3 for i in range(40)}
    scores(lambda night: {**quiet, "S1 mean": 3.0})
    alarms = run_nights(tmp_path / "state.json", 8)
    assert alarms.index(True) < 6


def test_a_failure_without_chance_alarms_at_once_and_the_next_night_without_it_does_not(
    tmp_path, monkeypatch
):
    bad = outcome.broken("S1 mean", "", "raised ValueError: 3 of 64 estimates are not finite")
    monkeypatch.setattr(sampling, "run", lambda subject, settings: [bad, check("S2", 0.0)])
    records, alarm = nightly.run(tmp_path / "s.json", date(0), subjects=[SUBJECT])
    assert alarm
    assert records[0]["failed"] == ["control|S1 mean: " + bad.message]
    assert nightly.run(tmp_path / "s.json", date(0), subjects=[SUBJECT])[1]
    monkeypatch.setattr(sampling, "run", lambda subject, settings: [check("S2", 0.0)])
    assert not nightly.run(tmp_path / "s.json", date(1), subjects=[SUBJECT])[1]


# Nights -------------------------------------------------------------------------------------------


def test_records_say_what_was_found(tmp_path, scores):
    scores(lambda night: {"S1 mean": 1.0, "S2 variance": -3.0})
    records, alarm = nightly.run(tmp_path / "deep" / "s.json", date(0), subjects=[SUBJECT])
    suite, first, second = records
    assert (suite["id"], suite["nights"], suite["date"], alarm) == ("suite", 1, date(0), False)
    assert [first["id"], second["id"]] == ["control|S2 variance", "control|S1 mean"]
    assert suite["M"] == pytest.approx((first["M"] + second["M"]) / 2)
    e = nightly.evidence(-3.0, 2 * stats.norm.sf(3.0))
    assert first["e"] == first["M"] == pytest.approx(e.mean())
    assert {record["kind"] for record in records} == {"nightly"}
    assert strict(records) == json.loads(json.dumps(records))


def test_nights_add_up_as_the_detector_says(tmp_path, scores):
    z = [0.5, -1.2, 2.0]
    scores(lambda night: {"S1 mean": z[night]})
    run_nights(tmp_path / "s.json", 3)
    M = np.zeros(nightly.ALTERNATIVES)
    for v in z:
        M = (M + 1) * nightly.evidence(v, 2 * stats.norm.sf(abs(v)))
    [_, family], _ = nightly.run(tmp_path / "s.json", date(2), subjects=[SUBJECT])
    np.testing.assert_allclose(family["evidence"], M, rtol=1e-12)


def test_the_same_night_is_not_counted_twice(tmp_path, scores):
    nights = scores(lambda night: {"S1 mean": 2.0})
    first = nightly.run(tmp_path / "s.json", date(0), subjects=[SUBJECT])
    content = (tmp_path / "s.json").read_bytes()
    assert nightly.run(tmp_path / "s.json", date(0), subjects=[SUBJECT]) == first
    assert (tmp_path / "s.json").read_bytes() == content
    assert len(nights) == 1
    nightly.run(tmp_path / "s.json", date(1), subjects=[SUBJECT])
    assert len(set(nights)) == 2  # with seeds of its own


@pytest.mark.parametrize("other", ["20261101", "2026-W44-7"])
def test_another_spelling_of_the_date_is_the_same_night(tmp_path, scores, other):
    nights = scores(lambda night: {"S1 mean": 2.0})
    for given in (other, date(0), other):
        records, _ = nightly.run(tmp_path / "s.json", given, subjects=[SUBJECT])
    assert nights == ["nightly 2026-11-01"]
    assert (records[0]["nights"], records[0]["date"]) == (1, date(0))


def test_a_night_without_estimators_is_not_counted(tmp_path):
    with pytest.raises(ValueError, match="No estimator was judged"):
        nightly.run(tmp_path / "s.json", date(0), subjects=[])
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_cannot_be_written_is_refused_before_the_work(tmp_path, scores):
    nights = scores(lambda night: {"S1 mean": 2.0})
    (tmp_path / "file").touch()
    for target in (Path("/proc/s.json"), Path("/proc/new/s.json"), tmp_path / ("x" * 250)):
        with pytest.raises(ValueError, match="cannot be written"):
            nightly.run(target, date(0), subjects=[SUBJECT])
    with pytest.raises(ValueError, match="cannot be read"):
        nightly.run(tmp_path / "file" / "s.json", date(0), subjects=[SUBJECT])
    assert nights == []


def test_an_earlier_night_is_refused(tmp_path, scores):
    scores(lambda night: {"S1 mean": 0.0})
    nightly.run(tmp_path / "s.json", date(5), subjects=[SUBJECT])
    with pytest.raises(ValueError, match="counted in order"):
        nightly.run(tmp_path / "s.json", date(4), subjects=[SUBJECT])


@pytest.mark.parametrize("bad", ["", "yesterday", "2026-13-01", "11/04/2026"])
def test_what_is_no_date_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="YYYY-MM-DD"):
        nightly.run(tmp_path / "s.json", bad, subjects=[])
    assert list(tmp_path.iterdir()) == []


def test_a_family_that_is_no_longer_asked_keeps_its_share(tmp_path, scores):
    scores(lambda night: {"S1 mean": 3.0, "S2 variance": 0.0} if night == 0 else {"S1 mean": 3.0})
    nightly.run(tmp_path / "s.json", date(0), subjects=[SUBJECT])
    records, _ = nightly.run(tmp_path / "s.json", date(1), subjects=[SUBJECT])
    by_id = {record["id"]: record for record in records}
    assert by_id["control|S2 variance"]["date"] == date(0)
    assert by_id["suite"]["M"] == pytest.approx(np.mean([r["M"] for r in records[1:]]))


def test_the_subjects_are_the_gated_rows_that_draw():
    names = {subject.name for subject in nightly.gated_subjects()}
    assert {"slq", "golub_kahan", "hutchinson"} <= names
    assert not names & {"qr", "cholesky", "algorithm1_plain"}


def test_a_wrong_estimator_alarms_in_its_first_nights(tmp_path):
    def estimate(operator, probes):
        found = control.dense_estimate(operator, probes)
        return replace(found, value=1.05 * found.value)

    subject = replace(SUBJECT, estimate=estimate)
    assert nightly.run(tmp_path / "s.json", date(0), subjects=[subject])[1]
    assert not nightly.run(tmp_path / "right.json", date(0), subjects=[SUBJECT])[1]


# The file -----------------------------------------------------------------------------------------


def counted(state: Path, scores) -> dict:
    scores(lambda night: {"S1 mean": 1.0, "S2 variance": 0.5})
    nightly.run(state, date(0), subjects=[SUBJECT])
    return json.loads(state.read_text(encoding="utf-8"))


def edited(content: dict, path: list, value: object) -> str:
    *parents, last = path
    inner = content
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return json.dumps(content)


DAMAGE: list[tuple[list, object]] = [
    (["families", 0, "evidence", 0], math.nan),
    (["families", 0, "evidence", 0], -1.0),
    (["families", 0, "evidence", 0], "x"),
    (["families", 0, "evidence", 0], None),
    (["families", 0, "evidence"], [1.0]),
    (["families", 0, "M"], 7.0),
    (["families", 0], {"id": "a"}),
    (["families"], None),
    (["date"], "2026"),
    (["date"], 20261101),
    (["nights"], 0),
    (["nights"], "1"),
    (["failed"], [1]),
]


@pytest.mark.parametrize(("path", "value"), DAMAGE)
def test_a_damaged_state_is_refused_and_left_alone(tmp_path, scores, path, value):
    state = tmp_path / "s.json"
    whole = counted(state, scores)
    text = edited(whole, path, value)
    state.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"s\.json is damaged.*restore"):
        nightly.run(state, date(1), subjects=[SUBJECT])
    assert state.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("evidence", [[math.inf] * 15, [-1.0] * 15, [2.0], [[2.0] * 15]])
def test_evidence_that_is_none_is_refused_even_if_its_mean_is_right(tmp_path, scores, evidence):
    state = tmp_path / "s.json"
    content = counted(state, scores)
    content["families"][0] |= {"evidence": evidence, "M": float(np.mean(evidence))}
    state.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        nightly.run(state, date(1), subjects=[SUBJECT])


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"rules": {}, "date"'])
def test_what_is_no_state_is_refused(tmp_path, text):
    (tmp_path / "s.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        nightly.run(tmp_path / "s.json", date(0), subjects=[])


def test_every_truncation_is_refused(tmp_path, scores):
    state = tmp_path / "s.json"
    counted(state, scores)
    whole = state.read_text(encoding="utf-8")
    for length in range(0, len(whole.rstrip()), 97):
        state.write_text(whole[:length], encoding="utf-8")
        with pytest.raises(ValueError, match="is damaged"):
            nightly.run(state, date(1), subjects=[SUBJECT])


def test_binary_content_and_folders_are_refused(tmp_path):
    (tmp_path / "s.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder").mkdir()
    for name in ("s.json", "folder"):
        with pytest.raises(ValueError, match="cannot be read"):
            nightly.run(tmp_path / name, date(0), subjects=[])


@pytest.mark.parametrize("key", ["format", "threshold", "size", "tilts"])
def test_a_state_of_other_rules_is_refused(tmp_path, scores, key):
    state = tmp_path / "s.json"
    content = counted(state, scores)
    state.write_text(edited(content, ["rules", key], 2), encoding="utf-8")
    with pytest.raises(ValueError, match="another version"):
        nightly.run(state, date(1), subjects=[SUBJECT])


def test_an_interrupted_write_leaves_the_old_state(tmp_path, scores, monkeypatch):
    state = tmp_path / "s.json"
    counted(state, scores)
    before = state.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        nightly.run(state, date(1), subjects=[SUBJECT])
    assert state.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_huge_evidence_can_be_stored(tmp_path, scores):
    scores(lambda night: {"S1 mean": 1000.0})
    alarms = run_nights(tmp_path / "s.json", 3)
    assert alarms == [True] * 3
