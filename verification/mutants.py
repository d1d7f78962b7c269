"""Mutants as mutmut leaves them, the reviewed reasons of those that survive, and the score."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TARGET = 0.95
# What mutmut stores for a mutant is the exit status of its tests, or the signal that ended them.
SURVIVED = {0: "survived", 5: "survived", 33: "survived"}  # the last two: no test reaches it
KILLED = {1: "killed", 3: "killed", -11: "killed"}
NUMBERS = {"True", "False"}
WORDS = {"and", "or", "not", "in", "is"}

Key = tuple[str, str, str, str]


class MutationError(RuntimeError):
    """The tool could not run, or left a mutant without a result."""


@dataclass(frozen=True)
class Mutant:
    """One change of one function, and what became of it: killed, timeout or survived."""

    module: str
    function: str
    line: int
    old: str
    new: str
    status: str

    @property
    def key(self) -> Key:
        """What it changes, wherever the line has moved."""
        return self.module, self.function, self.old, self.new

    @property
    def kind(self) -> str:
        """`operator` (comparisons too), `constant`, or `expression`: any other change."""
        return kind(self.old, self.new)


@dataclass(frozen=True)
class Review:
    """Why a survivor is equivalent, or why it may survive although it is not."""

    key: Key
    equivalent: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The mutants of a run against the reviewed file."""

    mutants: list[Mutant]
    reviews: dict[Key, Review]

    def equivalent(self, mutant: Mutant) -> bool:
        """Whether it survived and is known to change nothing."""
        review = self.reviews.get(mutant.key)
        return mutant.status == "survived" and review is not None and review.equivalent

    @property
    def survivors(self) -> list[Mutant]:
        """What no test noticed although something changed."""
        return [m for m in self.mutants if m.status == "survived" and not self.equivalent(m)]

    @property
    def stale(self) -> list[Review]:
        """Reviews of nothing: the line is gone, or a test notices the change by now."""
        survived = {m.key for m in self.mutants if m.status == "survived"}
        return [review for key, review in self.reviews.items() if key not in survived]

    def counts(self, **chosen: str) -> dict[str, float]:
        """Mutants of a module or kind by what became of them, and the score of the tests."""
        mutants = [m for m in self.mutants if all(getattr(m, k) == v for k, v in chosen.items())]
        found = Counter("equivalent" if self.equivalent(m) else m.status for m in mutants)
        noticed, judged = found["killed"] + found["timeout"], len(mutants) - found["equivalent"]
        names = ("killed", "timeout", "survived", "equivalent")
        numbers = {"mutants": len(mutants), **{name: found[name] for name in names}}
        return {**numbers, "score": noticed / judged if judged else 1.0}

    @property
    def passed(self) -> bool:
        """Whether enough changes are noticed, overall and of each kind, and no review is stale."""
        kinds = sorted({m.kind for m in self.mutants})
        scores = [self.counts()["score"], *(self.counts(kind=k)["score"] for k in kinds)]
        return bool(self.mutants) and min(scores) >= TARGET and not self.stale


def read_mutants(copy: Path, sources: Path, module: str) -> Iterator[Mutant]:
    """The mutants of one module, as lines that differ, with the line numbers of the sources."""
    path = copy / "mutants" / "specbp" / f"{module}.py"
    codes = json.loads(Path(f"{path}.meta").read_text(encoding="utf-8"))["exit_code_by_key"]
    spans = json.loads(Path(f"{path}.spans").read_text(encoding="utf-8"))["spans"]
    mutated = path.read_text(encoding="utf-8").split("\n")
    defined = _definitions((sources / f"{module}.py").read_text(encoding="utf-8"))

    def body(name: str) -> list[str]:
        first, last = spans[name]
        lines = [line.replace(name, "_") for line in mutated[first - 1 : last]]
        # Comments and blank lines above belong to the span, not to the function.
        return lines[next(i for i, x in enumerate(lines) if x.lstrip().startswith("def ")) :]

    for key, code in codes.items():
        name = key.rpartition(".")[2]
        mangled = name.rpartition("__mutmut_")[0]
        function = mangled.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
        offset, old, new = changed_lines(body(f"{mangled}__mutmut_orig"), body(name))
        yield Mutant(module, function, defined[function] + offset, old, new, status_of(key, code))


def status_of(name: str, code: int | None) -> str:
    """What became of a mutant.

    Raises:
        MutationError: If it has no result.
    """
    if code is None or code == 2:
        raise MutationError(f"{name} has no result: the run was interrupted.")
    # Whatever else ended the tests, a limit of time or memory, was not a normal end.
    return {**SURVIVED, **KILLED}.get(code, "timeout")


def changed_lines(before: list[str], after: list[str]) -> tuple[int, str, str]:
    """Index of the first line that differs, and the lines that differ in both, without indent."""
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    old, new = (
        "\n".join(x.strip() for x in lines[head : len(lines) - tail]) for lines in (before, after)
    )
    return head, old, new


def kind(old: str, new: str) -> str:
    """`operator`, `constant` or `expression`, from the tokens in which two fragments differ."""
    _, before, after = changed_lines(_tokens(old), _tokens(new))
    changed = [x for x in (before.split("\n") + after.split("\n")) if x]
    replaced = before and after
    if replaced and all(x in NUMBERS or re.fullmatch(r"[\d.][\w.+-]*", x) for x in changed):
        return "constant"
    if all(x in WORDS or re.fullmatch(r"[^\w\s\"'(),.:\[\]]+", x) for x in changed):
        return "operator"
    return "expression"


def _tokens(fragment: str) -> list[str]:
    found: list[str] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(fragment).readline):
            found.append(token.string)
    except tokenize.TokenError:
        pass  # a bracket closes on a line that did not change
    return [x for x in found if x.strip()]


def _definitions(source: str) -> dict[str, int]:
    """Lines of the functions and methods of a module."""
    found = {}
    for node in ast.parse(source).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found.update({prefix + x.name: x.lineno for x in inner if isinstance(x, ast.FunctionDef)})
    return found


def read_reviews(path: Path) -> dict[Key, Review]:
    """The reviewed file: `[[equivalent]]` and `[[survivor]]` tables, one or more `new` for `old`.

    Raises:
        ValueError: If an entry has no reason, or a change has two entries.
    """
    found: dict[Key, Review] = {}
    for name, entries in tomllib.loads(path.read_text(encoding="utf-8")).items():
        for entry in entries:
            changes = entry["new"] if isinstance(entry["new"], list) else [entry["new"]]
            for new in changes:
                key = (entry["module"], entry["function"], entry["old"], new)
                if not entry.get("reason", "").strip() or key in found:
                    raise ValueError(f"{path.name}: {' / '.join(key)} needs one entry, a reason.")
                found[key] = Review(key, name == "equivalent", " ".join(entry["reason"].split()))
    return found
