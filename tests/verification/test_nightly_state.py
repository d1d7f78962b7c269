"""The state of the nightly detector: types, dates and ids are those that are written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from specbp.testing.outcome import PASS, Check
from verification import nightly

DATE = "2026-11-01"


@pytest.fixture
def state(tmp_path) -> Path:
    """A file after one night with two families."""
    ids = ("control|S1 mean", "control|S2 variance")
    check = Check("S1 mean", "", PASS, 1.0, 0.0, "", p=0.3, z=1.0)
    families = {id: nightly._updated(id, None, check, DATE) for id in ids}
    path = tmp_path / "s.json"
    nightly._write(path, nightly.State(DATE, 1, families))
    return path


def refused(state: Path, content: dict) -> bool:
    text = json.dumps(content)
    state.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"s\.json is damaged.*restore"):
        nightly.run(state, "2026-11-02", subjects=[])
    return state.read_text(encoding="utf-8") == text


def test_what_is_written_is_read(state):
    records, alarm = nightly.run(state, DATE, subjects=[])
    assert (len(records), alarm) == (3, False)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["failed"], "abc"),
        (["failed"], {}),
        (["families"], []),
        (["families"], {}),
        (["families"], ["a"]),
        (["families", 1, "id"], "control|S1 mean"),
        (["families", 0, "id"], ""),
        (["families", 0, "id"], 3),
        (["families", 0, "kind"], "cell"),
        (["families", 0, "z"], "1.0"),
        (["families", 0, "z"], None),
        (["families", 0, "z"], True),
        (["families", 0, "z"], math.inf),
        (["families", 0, "p"], 1.5),
        (["families", 0, "e"], -1.0),
        (["families", 0, "M"], "7"),
        (["families", 0, "date"], "2026-11-02"),
        (["families", 0, "date"], "20261101"),
        (["families", 0, "more"], 1),
        (["date"], "20261101"),
        (["nights"], True),
    ],
)
def test_a_value_that_is_never_written_is_refused(state, path, value):
    content = inner = json.loads(state.read_text(encoding="utf-8"))
    *parents, last = path
    for key in parents:
        inner = inner[key]
    inner[last] = value
    assert refused(state, content)


@pytest.mark.parametrize("key", sorted(nightly.FIELDS))
def test_a_family_without_one_of_its_fields_is_refused(state, key):
    content = json.loads(state.read_text(encoding="utf-8"))
    del content["families"][0][key]
    assert refused(state, content)


def test_evidence_that_is_text_is_refused(state):
    content = json.loads(state.read_text(encoding="utf-8"))
    content["families"][0]["evidence"] = [str(v) for v in content["families"][0]["evidence"]]
    assert refused(state, content)
