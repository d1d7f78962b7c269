"""What is kept for the report comes back whole, with its origin, and damage is named."""

from __future__ import annotations

import json

import pytest

from tests.verification.suite_fixture import control, fault
from verification import evidence


def test_records_come_back_with_the_source_they_were_measured_on(tmp_path):
    made = [fault("f1", kills=["D1"], by_S=False), fault("f2", kills=[], by_S=False)]
    path = evidence.keep("faults", made, tmp_path)
    assert path == tmp_path / "faults.jsonl"
    evidence.keep("control", [{**control(), "p_values": [0.5, float("nan")]}], tmp_path)
    found = evidence.kept(tmp_path, tmp_path / "none.json")
    assert [record["id"] for record in found] == ["control", "f1", "f2"]
    assert found[0]["p_values"] == [0.5, None]
    assert all(len(record["fingerprint"]) == 64 and "commit" in record for record in found)
    assert found[1]["source"] == made[0]["source"]


def test_the_mutation_score_is_one_record(tmp_path):
    path = tmp_path / "score.json"
    path.write_text(json.dumps({"tool": "a tool", "total": {"score": 1.0}}))
    (found,) = evidence.kept(tmp_path / "nothing", path)
    assert (found["kind"], found["tool"]) == ("mutation", "a tool")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "faults.jsonl").write_text('{"kind": "fault"')
    with pytest.raises(ValueError, match=r"faults.jsonl is damaged .*measure it again"):
        evidence.kept(tmp_path, tmp_path / "none.json")
