"""Mutation testing: what the tool left is read, reviewed reasons are matched, the score is fair."""

from __future__ import annotations

import json
import tomllib

import pytest

from verification import mutants, mutation
from verification.mutants import Mutant, MutationError, Review, Verdict

SOURCE = '''"""A module."""


@torch.no_grad()
def double(x):
    # twice
    return 2 * x


class Basis:
    def half(self, x):
        return x / 2
'''
MUTATED = """import mutmut

# above
def x_double__mutmut_orig(x):
    # twice
    return 2 * x
def x_double__mutmut_1(x):
    # twice
    return 3 * x
def x_double__mutmut_2(x):
    # twice
    return 2 / x
class Basis:
    def xǁBasisǁhalf__mutmut_orig(self, x):
        return x / 2
    def xǁBasisǁhalf__mutmut_1(self, x):
        return x / 3
"""
SPANS = {
    "x_double__mutmut_orig": [3, 6],
    "x_double__mutmut_1": [7, 9],
    "x_double__mutmut_2": [10, 12],
    "xǁBasisǁhalf__mutmut_orig": [14, 15],
    "xǁBasisǁhalf__mutmut_1": [16, 17],
}


def written(tmp_path, codes):
    """A folder as the tool leaves it, and one with the source."""
    folder = tmp_path / "mutants" / "specbp"
    folder.mkdir(parents=True)
    (folder / "m.py").write_text(MUTATED)
    (folder / "m.py.spans").write_text(json.dumps({"version": 1, "spans": SPANS}))
    (folder / "m.py.meta").write_text(json.dumps({"exit_code_by_key": codes}))
    (tmp_path / "m.py").write_text(SOURCE)
    return list(mutants.read_mutants(tmp_path, tmp_path, "m"))


def test_mutants_are_read_with_their_lines_in_the_source(tmp_path):
    codes = {
        "specbp.m.x_double__mutmut_1": 1,
        "specbp.m.x_double__mutmut_2": -24,
        "specbp.m.xǁBasisǁhalf__mutmut_1": 0,
    }
    assert written(tmp_path, codes) == [
        Mutant("m", "double", 7, "return 2 * x", "return 3 * x", "killed"),
        Mutant("m", "double", 7, "return 2 * x", "return 2 / x", "timeout"),
        Mutant("m", "Basis.half", 12, "return x / 2", "return x / 3", "survived"),
    ]


@pytest.mark.parametrize("code", [None, 2])
def test_a_mutant_without_result_is_an_error(tmp_path, code):
    with pytest.raises(MutationError, match="x_double__mutmut_1 has no result"):
        written(tmp_path, {"specbp.m.x_double__mutmut_1": code})


@pytest.mark.parametrize(
    ("code", "status"),
    [(0, "survived"), (33, "survived"), (5, "survived"), (1, "killed"), (3, "killed")]
    + [(-11, "killed"), (36, "timeout"), (-9, "timeout"), (-24, "timeout"), (152, "timeout")],
)
def test_status_is_what_ended_the_tests(code, status):
    assert mutants.status_of("name", code) == status


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("if a < b:", "if a <= b:", "operator"),
        ("x = a if not b else c", "x = a if b else c", "operator"),
        ("x[..., -1]", "x[..., +1]", "operator"),
        ("n**0.5", "n*0.5", "operator"),
        ("if a and b:", "if a or b:", "operator"),
        ("x[..., -1]", "x[..., -2]", "constant"),
        ("f(strict=True)", "f(strict=False)", "constant"),
        ("tail = 1e-3 * x", "tail = 1.001 * x", "constant"),
        ("x.fill(0)", "x.fill()", "expression"),
        ("f(a, b)", "f(a, None)", "expression"),
        ("x = f(a)", "x = None", "expression"),
        ('kind == "taylor"', 'kind == "TAYLOR"', "expression"),
        ("f(a,\nb)", "f(a,)", "expression"),
        ("return f(", "return g(", "expression"),
    ],
)
def test_kinds(old, new, expected):
    assert mutants.kind(old, new) == expected


def test_prepared_leaves_nothing_out_of_reach_of_the_tool():
    source = (
        "LIMIT, SHARE = 4, 1.25\nNAMES = {}\n\n@torch.no_grad()\ndef f(x):\n"
        "    return x < LIMIT * SHARE * NO_LIMIT\n"
    )
    assert mutation.prepared(source) == (
        "LIMIT, SHARE = 4, 1.25\nNAMES = {}\n\ndef f(x):\n"
        "    return x < 4 * 1.25 * NO_LIMIT\n\nf = torch.no_grad()(f)\n"
    )


@pytest.mark.parametrize("name", mutation.MODULES)
def test_no_module_hides_a_function_from_the_tool(name):
    """A decorator that stays, or a number at module level that nothing replaces, is not mutated."""
    path = mutation.provenance.ROOT / "specbp" / f"{name}.py"
    prepared = mutation.prepared(path.read_text(encoding="utf-8"))
    assert not [line for line in prepared.splitlines() if line.startswith("@")]
    compile(prepared, name, "exec")


def mutant(number, status, old="a + 1", module="m"):
    return Mutant(module, "f", 1, old, f"a + {number}", status)


def review(of, equivalent=True):
    return {of.key: Review(of.key, equivalent, "because")}


def test_score_leaves_out_the_equivalent_and_counts_timeouts_as_noticed():
    same, missed = mutant(2, "survived"), mutant(3, "survived")
    found = [same, missed, mutant(4, "killed"), mutant(5, "timeout", module="n")]
    verdict = Verdict(found, {**review(same), **review(missed, equivalent=False)})
    assert verdict.counts() == {
        "mutants": 4,
        "killed": 1,
        "timeout": 1,
        "survived": 1,
        "equivalent": 1,
        "score": 2 / 3,
    }
    assert verdict.counts(module="n")["score"] == 1.0
    assert verdict.survivors == [missed]
    assert not verdict.stale


@pytest.mark.parametrize(("missed", "passed"), [(4, True), (5, True), (6, False)])
def test_the_target_is_inclusive(missed, passed):
    found = [mutant(2 + i, "survived" if i < missed else "killed") for i in range(100)]
    assert Verdict(found, {}).passed is passed


def test_one_kind_cannot_make_up_for_another():
    found = [mutant(2 + i, "killed") for i in range(1000)]
    assert Verdict(found, {}).passed
    operator = Mutant("m", "f", 1, "a + b", "a - b", "survived")
    assert not Verdict([*found, operator], {}).passed


def test_nothing_found_does_not_pass():
    assert not Verdict([], {}).passed


@pytest.mark.parametrize("equivalent", [True, False])
def test_a_review_of_a_killed_or_vanished_mutant_is_stale_and_fails(equivalent):
    killed, gone = mutant(2, "killed"), mutant(3, "survived")
    found = [killed, *(mutant(i, "killed") for i in range(10, 100))]
    for of in (killed, gone):
        verdict = Verdict(found, review(of, equivalent))
        assert [r.key for r in verdict.stale] == [of.key]
        assert not verdict.passed


ENTRY = """
[[{table}]]
module = "m"
function = "f"
old = "a + 1"
new = {new}
reason = '''{reason}'''
"""


def reviews(tmp_path, *entries):
    path = tmp_path / "reviewed.toml"
    path.write_text("".join(entries))
    return mutants.read_reviews(path)


def test_reviews_share_a_reason(tmp_path):
    entry = ENTRY.format(table="equivalent", new=["a + 2", "a + 3"], reason="one\n  two")
    other = ENTRY.format(table="survivor", new=["a + 4"], reason="three")
    found = reviews(tmp_path, entry, other)
    assert [(key[3], r.equivalent, r.reason) for key, r in found.items()] == [
        ("a + 2", True, "one two"),
        ("a + 3", True, "one two"),
        ("a + 4", False, "three"),
    ]


def test_reviews_need_a_reason_and_are_not_repeated(tmp_path):
    entry = ENTRY.format(table="equivalent", new='"a + 2"', reason="one")
    with pytest.raises(ValueError, match="m / f / a \\+ 1 / a \\+ 2 needs one entry"):
        reviews(tmp_path, entry, entry)
    with pytest.raises(ValueError, match="needs one entry, a reason"):
        reviews(tmp_path, ENTRY.format(table="equivalent", new='"a + 2"', reason=" "))


def test_every_review_names_a_module_that_is_mutated():
    found = mutants.read_reviews(mutation.REVIEWED)
    assert {key[0] for key in found} <= set(mutation.MODULES)
    assert all(old != new for _, _, old, new in found)


def test_page_and_summary_show_every_survivor_and_its_reason():
    same, missed = mutant(2, "survived", "a | 1"), mutant(3, "survived")
    verdict = Verdict([same, missed, mutant(4, "killed")], review(same))
    text = mutation.page(verdict, "tool 1")
    assert "| `m.f`, line 1 | − `a \\| 1`<br>+ `a + 2` | because |" in text
    assert "| `m.f`, line 1 | − `a + 1`<br>+ `a + 3` | not reviewed |" in text
    assert text.index("a + 3") < text.index("## Equivalent mutants") < text.index("a + 2")
    assert "not reviewed: m.f, line 1: 'a + 1' -> 'a + 3'" in mutation.summary(verdict)
    assert "50.0 %" in mutation.summary(verdict)


def test_score_says_where_it_comes_from():
    found = mutation.score(Verdict([mutant(4, "killed", module="krylov")], {}), "tool 1")
    assert (found["tool"], found["passed"], found["modules"]["krylov"]["killed"]) == (
        "tool 1",
        True,
        1,
    )
    assert set(found["versions"]) == {"python", "torch"}
    json.dumps(found, allow_nan=False)


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "score.json"
    for text in ("old", "new"):
        mutation.write(path, text)
        assert [p.name for p in path.parent.iterdir()] == ["score.json"]
        assert path.read_text() == text


def test_a_share_is_never_rounded_up():
    assert mutation._percent(0.94999) == "94.9 %"
    assert mutation._percent(1.0) == "100.0 %"


def fake_run(monkeypatch, tmp_path, status):
    monkeypatch.setattr(mutation.metadata, "version", lambda name: "1")
    monkeypatch.setattr(mutation, "copy_repository", lambda copy: copy.mkdir())
    monkeypatch.setattr(mutation, "run_tool", lambda copy, jobs: None)
    monkeypatch.setattr(mutation, "read_reviews", lambda path: {})
    found = [mutant(2, status, module="krylov")]
    monkeypatch.setattr(
        mutation, "read_mutants", lambda *a: iter(found if a[-1] == "krylov" else [])
    )
    return mutation.main(["--out", str(tmp_path)])


@pytest.mark.parametrize(("status", "expected"), [("killed", 0), ("survived", 1)])
def test_command_writes_both_files_and_returns_the_verdict(monkeypatch, tmp_path, status, expected):
    assert fake_run(monkeypatch, tmp_path, status) == expected
    assert json.loads((tmp_path / "score.json").read_text())["passed"] is (expected == 0)
    assert "krylov.f" in (tmp_path / "survivors.md").read_text() or expected == 0


def test_kept_results_of_another_source_are_refused(tmp_path):
    copy = tmp_path / "copy"
    mutation.copy_repository(copy)
    mutation.check_copy(copy)
    for path in (copy / "tests" / "test_trace.py", copy / "specbp" / "krylov.py"):
        path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
        with pytest.raises(MutationError, match=f"{path.name} has changed since"):
            mutation.check_copy(copy)


def test_the_copy_is_configured_for_the_tool(tmp_path):
    copy = tmp_path / "copy"
    mutation.copy_repository(copy)
    config = tomllib.loads((copy / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    assert config["only_mutate"] == [f"specbp/{name}.py" for name in mutation.MODULES]
    for test in config["pytest_add_cli_args_test_selection"]:
        assert (copy / test).is_file()


def test_command_without_the_tool_says_what_to_install(monkeypatch, capsys):
    def missing(name):
        raise mutation.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(mutation.metadata, "version", missing)
    assert mutation.main([]) == 2
    assert "pip install" in capsys.readouterr().err
