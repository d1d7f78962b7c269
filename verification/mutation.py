"""Mutation testing of the estimators: `python -m verification.mutation`.

In a copy of the repository, mutmut changes every operator, constant, comparison, argument and
assignment of six modules, one at a time, and runs the tests that reach the function. A change that
no test notices is a survivor: it is equivalent, for a reason that stands in a reviewed file, or it
counts against the score. Docstrings and formatted messages are left alone.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from verification import provenance
from verification.mutants import (
    TARGET,
    Mutant,
    MutationError,
    Verdict,
    read_mutants,
    read_reviews,
)
from verification.store import Record

MODULES = ("polynomials", "quadrature", "krylov", "probes", "logdets", "trace")
TESTS = (
    *(f"test_{name}.py" for name in MODULES),
    "test_krylov_closing.py",
    "test_logdets_limits.py",
    "test_bounds.py",
    "test_estimate.py",
    "test_bad_input.py",
    "test_methods.py",
    "verification/test_cells.py",
)
REVIEWED = Path(__file__).with_name("equivalent_mutants.toml")
REPORTS = provenance.ROOT / "reports" / "mutation"


def main(arguments: list[str] | None = None) -> int:
    """Run the tool, write score and survivors, and return 1 if too much goes unnoticed."""
    parser = argparse.ArgumentParser(prog="python -m verification.mutation", description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="tests at once")
    parser.add_argument("--keep", type=Path, help="work in this new folder, and leave it there")
    parser.add_argument("--judge", type=Path, help="no run: read a folder that was kept")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the two files")
    options = parser.parse_args(arguments)
    try:
        tool = f"mutmut {metadata.version('mutmut')}"
        reviews = read_reviews(REVIEWED)
        found = _found(options, tool)
    except metadata.PackageNotFoundError:
        print("error: mutmut is missing, `pip install -e .[dev]` brings it.", file=sys.stderr)
        return 2
    except (MutationError, ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    verdict = Verdict(found, reviews)
    write(options.out / "score.json", json.dumps(score(verdict, tool), indent=2) + "\n")
    write(options.out / "survivors.md", page(verdict, tool))
    print(summary(verdict))
    return 0 if verdict.passed else 1


def _found(options: argparse.Namespace, tool: str) -> list[Mutant]:
    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary:
        copy = options.judge or options.keep or Path(temporary) / "copy"
        if options.judge:
            check_copy(copy)
        else:
            copy_repository(copy)
            print(f"{tool} at work, its log is {copy / 'mutmut.log'}", flush=True)
            run_tool(copy, options.jobs)
        sources = provenance.ROOT / "specbp"
        return [m for name in MODULES for m in read_mutants(copy, sources, name)]


# Running the tool ---------------------------------------------------------------------------------


def prepared(source: str) -> str:
    """The same module in a form in which mutmut reaches all of it.

    It skips decorated functions and whatever stands outside of functions. So decorators are applied
    after the definition, and numbers with a name are written where they are used.
    """
    decorator = re.compile(r"^@([\w.]+\(\))\n(?=def (\w+))", re.MULTILINE)
    decorated = decorator.findall(source)
    lines = decorator.sub("", source).splitlines()
    for name, value, definition in list(_constants("\n".join(lines))):
        for i, line in enumerate(lines):
            if i + 1 != definition:
                lines[i] = re.sub(rf"\b{name}\b", value, line)
    lines += [f"\n{function} = {wrapper}({function})" for wrapper, function in decorated]
    return "\n".join(lines) + "\n"


def _constants(source: str) -> Iterator[tuple[str, str, int]]:
    """Name, value and line of the numbers that a module defines in capitals."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            values = value.elts if isinstance(value, ast.Tuple) else [value]
            for t, v in zip(targets, values, strict=False):
                number = isinstance(v, ast.Constant) and isinstance(v.value, int | float)
                if isinstance(t, ast.Name) and t.id.isupper() and number:
                    yield t.id, ast.unparse(v), node.lineno


def copy_repository(target: Path) -> None:
    """What the tests need, with the modules prepared and the tool configured."""
    ignore = shutil.ignore_patterns("__pycache__", "weights")
    for name in ("specbp", "tests", "verification"):
        shutil.copytree(provenance.ROOT / name, target / name, ignore=ignore)
    for name in MODULES:
        path = target / "specbp" / f"{name}.py"
        path.write_text(prepared(path.read_text(encoding="utf-8")), encoding="utf-8")
    settings = {
        "source_paths": ["specbp"],
        "only_mutate": [f"specbp/{name}.py" for name in MODULES],
        "also_copy": ["verification"],
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "pytest_add_cli_args_test_selection": [f"tests/{name}" for name in TESTS],
        "use_git_change_detection": False,
        "timeout_constant": 3.0,  # seconds; a busy machine is no infinite loop
    }
    text = (provenance.ROOT / "pyproject.toml").read_text(encoding="utf-8") + "\n[tool.mutmut]\n"
    text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    (target / "pyproject.toml").write_text(text, encoding="utf-8")


def check_copy(copy: Path) -> None:
    """Refuse the results of other modules or other tests than those that stand here now.

    Raises:
        MutationError: If one of them has changed since.
    """
    for name in MODULES:
        path = Path("specbp") / f"{name}.py"
        now = prepared((provenance.ROOT / path).read_text(encoding="utf-8"))
        if (copy / path).read_text(encoding="utf-8") != now:
            raise MutationError(f"{path} has changed since {copy} was made: run it again.")
    for path in (Path("tests") / name for name in TESTS):
        if (copy / path).read_bytes() != (provenance.ROOT / path).read_bytes():
            raise MutationError(f"{path} has changed since {copy} was made: run it again.")


def run_tool(copy: Path, jobs: int) -> None:
    """Let mutmut make and test all mutants in the copy; its output goes to a log beside them.

    Raises:
        MutationError: If it fails, for example because the tests fail without any mutation.
    """
    command = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run"]
    log = copy / "mutmut.log"
    with log.open("wb") as stream:
        status = subprocess.run(
            [*command, "--max-children", str(jobs)],
            cwd=copy,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        ).returncode
    if status != 0:
        tail = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")[-3000:]
        raise MutationError(f"mutmut ended with status {status}:\n{tail}")


# Writing ------------------------------------------------------------------------------------------


def score(verdict: Verdict, tool: str) -> Record:
    """The numbers of a run and where they come from."""
    origin = provenance.describe([])
    versions = {name: origin["versions"][name] for name in ("python", "torch")}
    return {
        "tool": tool,
        "versions": versions,
        "source": origin["commit"] if origin["clean"] else "working tree",
        "target": TARGET,
        "passed": verdict.passed,
        "total": verdict.counts(),
        "kinds": {k: verdict.counts(kind=k) for k in sorted({m.kind for m in verdict.mutants})},
        "modules": {name: verdict.counts(module=name) for name in MODULES},
        "stale": [list(review.key) for review in verdict.stale],
    }


def summary(verdict: Verdict) -> str:
    """What the command prints: the score, the survivors without a reason, the stale reasons."""
    total = verdict.counts()
    lines = [f"{total['mutants']} mutants, {_percent(total['score'])} of those that matter noticed"]
    lines += [
        f"not reviewed: {m.module}.{m.function}, line {m.line}: {m.old!r} -> {m.new!r}"
        for m in verdict.survivors
        if m.key not in verdict.reviews
    ]
    lines += [f"stale review: {' / '.join(review.key)}" for review in verdict.stale]
    return "\n".join(lines)


def page(verdict: Verdict, tool: str) -> str:
    """Every mutant that no test notices, with the reason, as Markdown."""
    equivalent = [m for m in verdict.mutants if verdict.equivalent(m)]
    parts = [
        "# Mutants that survive",
        f"Written by `python -m verification.mutation` with {tool}. It changes one operator, "
        "constant, comparison, argument or assignment of the product at a time; docstrings and "
        "formatted messages are left alone. Noticed means that a test failed or did not end.",
        _scores(verdict),
        "## Survivors",
        _table(verdict, verdict.survivors) if verdict.survivors else "None.",
        "## Equivalent mutants",
        "They change nothing that can be observed; they are left out of the score.",
        _table(verdict, equivalent) if equivalent else "None.",
    ]
    return "\n\n".join(parts) + "\n"


def _scores(verdict: Verdict) -> str:
    rows = [("all", verdict.counts())]
    rows += [(f"{k}s", verdict.counts(kind=k)) for k in sorted({m.kind for m in verdict.mutants})]
    rows += [(f"`{name}`", verdict.counts(module=name)) for name in MODULES]
    lines = ["| | mutants | killed | timeout | survived | equivalent | score |", "|---" * 7 + "|"]
    for name, n in rows:
        cells = [n[k] for k in ("mutants", "killed", "timeout", "survived", "equivalent")]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {_percent(n['score'])} |")
    return "\n".join(lines)


def _table(verdict: Verdict, mutants: Iterable[Mutant]) -> str:
    lines = ["| where | change | reason |", "|---|---|---|"]
    for m in mutants:
        change = "<br>".join(
            f"{sign} {_code(line)}"
            for sign, text in (("−", m.old), ("+", m.new))
            for line in text.split("\n")
        )
        review = verdict.reviews.get(m.key)
        reason = review.reason if review else "not reviewed"
        lines.append(f"| `{m.module}.{m.function}`, line {m.line} | {change} | {reason} |")
    return "\n".join(lines)


def _code(line: str) -> str:
    return "`" + line.replace("|", "\\|") + "`"


def _percent(share: float) -> str:
    # Rounded down: what is below the target must not look as if it met it.
    return f"{int(share * 1000) / 10:.1f} %"


def write(path: Path, text: str) -> None:
    """Replace a file at once: a killed run leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main())
