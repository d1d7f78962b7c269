"""The report: a page that stands alone, from strict records, in files that never tear."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specbp.methods import METHODS
from tests.verification.report_fixture import cells_of, one_cell, small, synthetic_records
from verification import report
from verification.report import markdown, page, summary
from verification.report.figures.style import look
from verification.report.records import (
    METHOD_ORDER,
    Records,
    sort_by_kind,
    strict,
    to_json_lines,
)

Record = dict[str, Any]
NAMES = ["index.html", "records.jsonl", "report.md", "suite.html"]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return small()


@pytest.fixture(scope="module")
def html(records: list[Record]) -> str:
    return page.render(sort_by_kind(records))


class Outline(HTMLParser):
    """What a validator would look at: nesting, ids, links, images, headings."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "wbr", "input", "path"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.headings: list[int] = []
        self.tags: set[str] = set()
        self.lang: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.lang = values.get("lang") if tag == "html" else self.lang
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[key] or "" for key in ("href", "src") if key in values]
        self.images += [values] if tag == "img" else []
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


def finite(value: Any) -> Any:
    """Naive twin of `strict` for plain JSON types."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    bad = isinstance(value, float) and (math.isnan(value) or math.isinf(value))
    return None if bad else value


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=3))
def test_lines_are_strict_json_and_nothing_but_non_finite_numbers_changes(
    records: list[Record],
) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    # not splitlines(): a string may hold characters that Unicode calls line ends
    lines = to_json_lines(records).split("\n")
    assert lines.pop() == ""
    assert [json.loads(line, parse_constant=refuse) for line in lines] == finite(records)


def test_array_scalars_become_numbers_and_arrays_are_refused() -> None:
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    record = {"a": numpy.float32(0.5), "b": numpy.int64(3), "c": torch.tensor(2.0), "d": (1, 2)}
    assert strict(record) == {"a": 0.5, "b": 3, "c": 2.0, "d": [1, 2]}
    assert strict({"a": numpy.float64("nan"), "b": torch.tensor(math.inf)}) == {
        "a": None,
        "b": None,
    }
    with pytest.raises(TypeError, match="ndarray: convert it"):
        strict({"a": numpy.zeros(2)})
    with pytest.raises(TypeError, match="keys of a record must be strings, got 1"):
        strict({1: "a"})


def test_records_without_kind_or_verdict_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="record 0 has no 'kind'"):
        sort_by_kind([{"id": "x"}])
    cell = {k: v for k, v in one_cell(small()).items() if k != "verdict"}
    with pytest.raises(ValueError, match=r"cell .*chebyshev.* lacks verdict"):
        sort_by_kind([cell])


def test_kinds_without_a_section_are_counted_on_the_page() -> None:
    extra = [{"kind": "fault<b>", "id": str(i)} for i in range(3)]
    found = sort_by_kind(extra)
    assert len(found.others) == 3
    assert "fault&lt;b&gt; (3 records)" in page.render(found)


def test_page_is_well_formed_and_loads_nothing(html: str) -> None:
    assert html.startswith("<!DOCTYPE html>")
    found = Outline(html)
    assert found.open == []
    assert found.lang == "en"
    assert len(found.ids) == len(set(found.ids))
    assert found.tags.isdisjoint({"script", "iframe", "object", "video"})
    assert "@import" not in html
    assert "url(" not in html
    for target in found.links:
        if target.startswith("#"):
            assert target[1:] in found.ids
        else:
            assert target in NAMES or target.startswith("data:")


def test_headings_are_in_order_and_every_image_says_what_it_shows(html: str) -> None:
    found = Outline(html)
    assert found.headings[0] == 1
    assert found.headings.count(1) == 1
    steps = zip(found.headings, found.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps)
    assert len(found.images) > 5
    for image in found.images:
        assert len(image["alt"] or "") > 40
        assert (image["src"] or "").startswith("data:image/svg+xml;base64,")
    assert html.count("<figure") == html.count("<figcaption>")


def test_page_names_what_failed_and_what_could_not_decide(records: list[Record], html: str) -> None:
    for verdict in ("FAIL", "INCONCLUSIVE"):
        cell = next(c for c in cells_of(records) if c["verdict"] == verdict)
        index = cells_of(records).index(cell)
        assert f'<a href="#c{index}">' in html
        assert f'<tr id="c{index}">' in html
        assert next(c for c in cell["checks"] if c["verdict"] == verdict)["message"] in html
    assert "synthetic fixture: no measurement" in html


def test_markup_in_the_records_is_shown_and_not_obeyed() -> None:
    evil = "<script>alert('$1$')</script><b onclick=x>\"&"
    records = small(methods=("slq",), probes=(4,))
    for record in records:
        for key in ("id", "title", "label", "method", "problem", "commit", "platform"):
            if key in record:
                record[key] = f"{record[key]}{evil}"
        for check in record.get("checks", []):
            check.update(name=check["name"] + evil, message=evil)
    found = sort_by_kind(records)
    text = page.render(found)
    assert "<script" not in text
    assert "<b onclick" not in text
    assert "&lt;script&gt;" in text
    assert Outline(text).open == []
    assert "<script" not in markdown.render(found).replace("`", "\n`").split("## Methods")[0]


def test_the_same_records_give_the_same_bytes_and_nan_is_null(
    records: list[Record], html: str
) -> None:
    noisy = copy.deepcopy(records)
    for record in noisy:
        for key, value in record.items():
            if value is None:
                record[key] = float("nan")
    assert page.render(sort_by_kind(noisy)) == html


@pytest.mark.parametrize(
    "kinds",
    [(), ("provenance",), ("cell",), ("certificate",), ("timing",), ("precision",)],
    ids=lambda kinds: "+".join(kinds) or "nothing",
)
def test_missing_kinds_leave_a_section_that_says_so(
    kinds: tuple[str, ...], html: str, tmp_path: Path
) -> None:
    kept = [r for r in small(methods=("slq",), probes=(4,)) if r["kind"] in kinds]
    text = report.write(kept, tmp_path).read_text(encoding="utf-8")
    assert Outline(text).open == []
    assert text.count("<section") == html.count("<section")
    assert "Not measured in this run" in text
    assert "Not measured in this run" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_cells_with_nothing_but_identity_and_verdict_are_borne() -> None:
    bare = {"kind": "cell", "id": "a|b", "case": "a", "method": "b", "verdict": "PASS"}
    found = sort_by_kind([bare])
    assert "a|<wbr>b" in page.render(found)
    assert "| `b` | – | – | – | – | ✓ PASS (1 cell) |" in report.methods_table([bare])
    assert "none recorded" in report.explain(bare)


def test_a_modified_tree_is_said_loudly() -> None:
    run = {"commit": "0123456789abcdef", "clean": False}
    assert "commit 0123456789ab (MODIFIED tree)" in summary.provenance_line(run)
    assert "(clean tree)" in summary.provenance_line({**run, "clean": True})
    assert "cannot be traced" in summary.provenance_line({})


def test_two_thousand_cells_stay_small_and_quick(tmp_path: Path) -> None:
    records = synthetic_records()
    assert len(cells_of(records)) > 1900
    start = time.process_time()
    index = report.write(records, tmp_path)
    assert time.process_time() - start < 15
    assert index.stat().st_size < 6e6


@pytest.fixture
def old(tmp_path: Path) -> Path:
    report.write([], tmp_path)
    assert sorted(snapshot(tmp_path)) == NAMES
    return tmp_path


def test_write_makes_the_folder_and_returns_the_page(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    records = small(methods=("slq",), probes=(4,))
    index = report.write(records, out)
    assert index == out / "index.html"
    assert sorted(snapshot(out)) == NAMES
    lines = (out / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == strict(records)


def test_an_error_while_rendering_leaves_the_old_report(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(old)

    def broken(_records: Records) -> str:
        msg = "no ink"
        raise RuntimeError(msg)

    monkeypatch.setattr(page, "render", broken)
    with pytest.raises(RuntimeError, match="no ink"):
        report.write(small(), old)
    assert snapshot(old) == before


def test_a_full_disk_leaves_the_old_report_and_no_rubbish(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls, sync = snapshot(old), [], os.fsync

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            msg = "disk full"
            raise OSError(msg)
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        report.write([{"kind": "timing", "ratio": 1.0}], old)
    assert len(calls) == 2
    assert snapshot(old) == before


def test_an_unserialisable_record_leaves_the_old_report(old: Path) -> None:
    before = snapshot(old)
    with pytest.raises(TypeError, match="object: convert it"):
        report.write([{"kind": "timing", "ratio": object()}], old)
    assert snapshot(old) == before


def test_every_method_has_a_place_and_a_look_of_its_own():
    assert set(METHOD_ORDER) == set(METHODS)
    assert len({look(method, METHOD_ORDER) for method in METHOD_ORDER}) == len(METHOD_ORDER)
    assert look("new", [*METHOD_ORDER, "new"]) not in {look(m, METHOD_ORDER) for m in METHOD_ORDER}
