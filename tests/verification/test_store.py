"""Results survive a kill, and are neither lost nor repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from verification.store import Store, strict


def test_a_record_comes_back_and_is_replaced(tmp_path):
    store = Store(tmp_path / "deep" / "results.sqlite")
    store.put({"kind": "cell", "id": "a", "value": 1.5})
    store.put({"kind": "cell", "id": "a", "value": 2.5})
    store.put({"kind": "certificate", "id": "a", "value": 0})
    assert [r["value"] for r in store.records("cell")] == [2.5]
    assert store.ids("cell") == {"a"}
    assert len(list(store.records())) == 2
    store.clear()
    assert not list(store.records())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_numbers_become_null_at_any_depth(bad):
    assert strict({"a": [bad, {"b": (bad, 1.0)}]}) == {"a": [None, {"b": [None, 1.0]}]}
    json.dumps(strict({"a": bad}), allow_nan=False)


def test_two_stores_on_one_file_see_each_other(tmp_path):
    one, two = Store(tmp_path / "r.sqlite"), Store(tmp_path / "r.sqlite")
    one.put({"kind": "cell", "id": "a"})
    two.put({"kind": "cell", "id": "b"})
    assert one.ids("cell") == two.ids("cell") == {"a", "b"}


WRITER = """
import sys
from pathlib import Path
from verification.store import Store
store = Store(Path(sys.argv[1]))
for i in range(10**6):
    store.put({"kind": "cell", "id": str(i), "payload": "x" * 2000, "last": i})
"""


def test_a_killed_writer_leaves_every_committed_record_whole(tmp_path):
    path = tmp_path / "r.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    try:
        while not path.exists() or len(Store(path).ids("cell")) < 20:
            assert writer.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    records = list(Store(path).records("cell"))
    ids = sorted(int(r["id"]) for r in records)
    assert ids == list(range(len(ids)))
    assert all(len(r["payload"]) == 2000 and r["last"] == int(r["id"]) for r in records)
