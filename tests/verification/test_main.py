"""The command line: what it prints, and that bad input is answered with the way out."""

from __future__ import annotations

import pytest

from verification import nightly, precision, timing
from verification.__main__ import main, speedup


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "smoke.sqlite"
    arguments = ["run", "--tier", "smoke", "--case", "clusters/n8", "--workers", "1"]
    assert main([*arguments, "--store", str(path)]) == 0
    return path


def test_list_names_every_case_of_the_tier(capsys):
    assert main(["list", "--tier", "smoke"]) == 0
    out = capsys.readouterr().out
    assert "spd/clusters/n32" in out
    assert "kernel/" not in out


def test_report_writes_the_page_and_prints_its_path(store, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- methods:begin -->\nold\n<!-- methods:end -->\nafter\n")
    out = tmp_path / "accuracy"
    arguments = ["report", "--tier", "smoke", "--store", str(store), "--out", str(out)]
    assert main([*arguments, "--readme", str(readme)]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == str(out / "index.html")
    assert {"index.html", "report.md", "records.jsonl"} <= {p.name for p in out.iterdir()}
    text = readme.read_text()
    assert "golub_kahan" in text
    assert "old" not in text
    assert text.startswith("before")


def test_explain_tells_a_cell_and_a_case(store, capsys):
    cell = "spd/clusters/n8|chebyshev-d40|m4|float64"
    arguments = ["explain", "--tier", "smoke", "--store", str(store)]
    assert main([*arguments, cell]) == 0
    one = capsys.readouterr().out
    assert cell in one
    assert main([*arguments, "spd/clusters/n8"]) == 0
    assert len(capsys.readouterr().out) > 10 * len(one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "spd/clusters/n9"], "did you mean"),
        (["run", "--case", "nowhere"], "No case of tier smoke has 'nowhere'"),
        (["train", "resnet-152"], "resnet-152"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(arguments, message, tmp_path, capsys):
    if arguments[0] != "train":
        arguments = [*arguments, "--tier", "smoke", "--store", str(tmp_path / "empty")]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_report_of_nothing_says_what_to_run(tmp_path, capsys):
    assert main(["report", "--tier", "smoke", "--store", str(tmp_path / "none")]) == 2
    assert "run --tier smoke" in capsys.readouterr().err


def test_speedup_is_a_ratio_of_sums():
    cells = [
        {"seconds": 1.0, "seconds_single": 10.0},
        {"seconds": 3.0, "seconds_single": 30.0},
        {"seconds": 5.0},
    ]
    assert speedup(cells) == 10.0


def test_float32_keeps_its_promises():
    """Golub–Kahan and QR within their limits; Lanczos on JᵀJ beyond them from cond 1e6 on."""
    records = {(r["method"], r["cond"]): r for r in precision.study()}
    assert not [r for r in records.values() if r["verdict"] == "FAIL"]
    for cond in (1e6, 1e8):
        slq = records["slq", cond]["error"]
        assert not slq <= 10 * precision.limit("golub_kahan", cond)


def test_interleaving_takes_turns_and_drops_the_warm_up():
    order = []
    seconds = timing.interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2
    )
    assert order == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_an_error_of_the_system_exits_with_2_and_says_why(tmp_path, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x.json")

    monkeypatch.setattr(nightly, "run", full)
    assert main(["nightly", "--state", str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'x.json'\n"
