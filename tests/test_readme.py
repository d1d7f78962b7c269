"""The documents at the root are executed: examples, make targets, links and generated tables."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "reports/README.md"]


def python_blocks(text: str) -> list[str]:
    """The ```python blocks of a document, moved to their own line numbers by leading newlines."""
    return [
        "\n" * text.count("\n", 0, match.start(1)) + match[1]
        for match in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    ]


def run_blocks(text: str, name: str) -> dict[str, object]:
    """Run all blocks in order in one namespace: sessions as doctests, the others as scripts."""
    namespace: dict[str, object] = {"__name__": name}
    for block in python_blocks(text):
        if ">>>" in block:
            flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
            test = doctest.DocTestParser().get_doctest(block, namespace, name, name, 0)
            result = doctest.DocTestRunner(optionflags=flags).run(test, clear_globs=False)
            assert result.failed == 0, f"{result.failed} examples of {name} failed, see the output"
            namespace |= test.globs
        else:
            exec(compile(block, name, "exec"), namespace)
    return namespace


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_readme_examples_run_and_print_what_is_shown(capsys):
    text = README.read_text("utf-8")
    run_blocks(text, "README.md")
    printed = capsys.readouterr().out
    shown = re.search(r"^```\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1]
    assert "±" in printed
    # Same draws everywhere; the arithmetic of another machine may move the last digits of float32.
    assert numbers(printed) == pytest.approx(numbers(shown), rel=0.01, abs=0.02)


def test_readme_has_one_place_for_the_table_of_methods():
    text = README.read_text("utf-8")
    assert text.count("<!-- methods:begin -->") == text.count("<!-- methods:end -->") == 1
    begin, end = text.index("<!-- methods:begin -->"), text.index("<!-- methods:end -->")
    assert begin < end
    assert re.search(r"\w", text[begin + len("<!-- methods:begin -->") : end])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_commands_exist(name):
    text = (ROOT / name).read_text("utf-8")
    commands = set(re.findall(r"`make ([a-z]+)", text)) | set(
        re.findall(r"^make ([a-z]+)", text, re.M)
    )
    assert commands - make_targets() == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_lead_somewhere(name):
    document = ROOT / name
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


# The helpers themselves ---------------------------------------------------------------------------


def test_blocks_share_one_namespace_and_run_in_order():
    blocks = ["a = 1", ">>> a + 1\n2\n>>> b = 3", "c = a + b"]
    text = "\n".join(f"```python\n{block}\n```\n" for block in blocks)
    assert run_blocks(text, "doc")["c"] == 4


def test_wrong_session_fails():
    with pytest.raises(AssertionError, match="1 examples of doc failed"):
        run_blocks("```python\n>>> 1 + 1\n3\n```\n", "doc")


def test_failing_script_names_the_line_of_the_document():
    with pytest.raises(ZeroDivisionError) as info:
        run_blocks("title\n\n```python\nx = 0\n1 / x\n```\n", "doc")
    assert info.traceback[-1].lineno == 4  # counted from 0
