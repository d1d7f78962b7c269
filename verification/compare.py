"""Compare two commits, or two estimators, on the same matrices and the same probes.

Each side runs in a process of its own, in which `import specbp` is that side's. Matrices, probes
and truths are made here, once. The exit status tells whether accuracy got worse.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specbp.testing.outcome import FAIL
from verification import compare_report, gate_report, provenance
from verification.compare_cells import FUNCTIONS, REPLICATES, Cell, make_cells
from verification.compare_judge import Report, Results, judge
from verification.report.files import replace_files
from verification.terminable import terminable

FEWEST = 20  # replicates: fewer have no interval worth the name
TIME_LIMIT = 600.0  # s for all methods of one side
REPEATS = 2  # calls of which the faster is timed
WORKER = Path(__file__).with_name("compare_worker.py")
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.\[\]]*")


class UsageError(ValueError):
    """The command cannot be carried out as it was given."""


@dataclass(frozen=True)
class Side:
    """Base or head: a tree at `root` whose methods are run, or one estimator."""

    label: str
    root: Path | None = None
    commit: str | None = None
    target: str | None = None
    config: tuple[tuple[str, Any], ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m verification compare`."""
    what = 'git revision, "." for the working tree, or package.module:estimator'
    parser.add_argument("base", help=f"the reference: {what}")
    parser.add_argument("head", help=f"what is judged: {what}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the report here")
    parser.add_argument("--replicates", type=int, default=REPLICATES, help="default: %(default)s")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=TIME_LIMIT,
        metavar="S",
        help="seconds for each side (default: %(default)g)",
    )
    for side in ("base", "head"):
        parser.add_argument(
            f"--{side}-config",
            default="{}",
            metavar="JSON",
            help=f"arguments of the {side}'s estimator, such as '{{\"num_steps\": 15}}'",
        )
    parser.add_argument(
        "--on", choices=("A", "J", "dense A"), default="A", help="what a bare function takes"
    )
    parser.add_argument(
        "--estimand", choices=tuple(FUNCTIONS), default="logdet", help="what a function estimates"
    )


def main(options: argparse.Namespace) -> int:
    """Compare, print the report, and return 1 if accuracy got worse."""
    try:
        gate_report.check_targets(options.markdown)
        found = run(options)
        text = compare_report.markdown(found)
        if options.markdown:
            replace_files({options.markdown: text})
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return int(found.verdict == FAIL)


def run(
    options: argparse.Namespace,
    *,
    root: Path = provenance.ROOT,
    cells: Sequence[Cell] | None = None,
) -> Report:
    """Run both sides on every cell and judge the head.

    Raises:
        UsageError: If a revision or an estimator does not exist or cannot be run.
    """
    base = parse_side(options.base, root, options.base_config)
    head = parse_side(options.head, root, options.head_config)
    if (base.target is None) != (head.target is None):
        raise UsageError(
            "Compare two revisions or two estimators: "
            f"{options.base} and {options.head} are one of each."
        )
    if options.replicates < FEWEST:
        raise UsageError(f"At least {FEWEST} replicates are needed, got {options.replicates}.")
    if not 0 < options.time_limit < float("inf"):
        raise UsageError(
            f"The time limit is a positive number of seconds, got {options.time_limit}."
        )
    cells = make_cells(options.replicates) if cells is None else cells
    with tempfile.TemporaryDirectory(prefix="specbp-compare-") as folder:
        inputs = Path(folder) / "inputs.npz"
        write_inputs(inputs, cells)
        results = []
        for side in (base, head):
            with tree(side, root, Path(folder)) as path:
                results.append(run_worker(side, path, inputs, cells, options))
    print("judging", file=sys.stderr, flush=True)
    return judge((base.label, head.label), cells, results[0], results[1])


def parse_side(text: str, root: Path, config: str = "{}") -> Side:
    """A command-line argument as a side.

    Raises:
        UsageError: If it is neither a revision nor an import path.
    """
    if TARGET.fullmatch(text):
        return Side(text, target=text, config=tuple(_parsed(config).items()))
    if _parsed(config):
        raise UsageError(f"{text} is not one estimator: it takes no configuration.")
    if text == ".":
        return Side("the working tree", root=root)
    commit = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", text + "^{commit}")
    if commit is None:
        hint = "a folder is not one; check it out" if Path(text).exists() else "see `git log`"
        raise UsageError(
            f'{text!r} is no revision of {root} ({hint}), nor ".", nor package.module:estimator.'
        )
    return Side(f"{text} ({commit[:10]})", commit=commit)


def _parsed(config: str) -> dict[str, Any]:
    try:
        found = json.loads(config)
    except json.JSONDecodeError as error:
        raise UsageError(f"The configuration must be JSON, got {config!r}: {error}.") from error
    if not isinstance(found, dict):
        raise UsageError(f"The configuration must be a JSON object, got {config!r}.")
    return found


def git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, None if it failed."""
    try:
        found = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=120
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


@contextmanager
def tree(side: Side, root: Path, folder: Path) -> Iterator[Path | None]:
    """The folder with the side's sources; a commit is checked out and removed, come what may."""
    if side.commit is None:
        yield side.root
        return
    path = folder / side.commit
    with terminable():
        try:
            # Hooks belong to the owner's own work.
            add = ("-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", "--force")
            if git(root, *add, str(path), side.commit) is None:
                raise UsageError(f"git worktree add failed for {side.label} in {root}.")
            yield path
        finally:
            git(root, "worktree", "remove", "--force", "--force", str(path))
            git(root, "worktree", "prune")


def write_inputs(path: Path, cells: Sequence[Cell]) -> None:
    """Matrices and probes of all cells, as the workers read them."""
    arrays = {}
    for i, cell in enumerate(cells):
        for key in ("A", "J"):
            arrays[f"{i}/{key}"] = cell.views[key].operator.numpy()
        small = np.isfinite(cell.probes).all()  # signs, but for the NaN that is planted
        arrays[f"{i}/probes"] = cell.probes.astype(np.int8 if small else np.float32)
    np.savez(path, **arrays)


def run_worker(
    side: Side, path: Path | None, inputs: Path, cells: Sequence[Cell], options: argparse.Namespace
) -> Results:
    """Run one side in a process of its own.

    Raises:
        UsageError: If the process failed, took too long, or ended without results.
    """
    ends = [cell.ends() for cell in cells]
    request = {
        "label": side.label,
        "root": str(path) if path else None,
        "target": side.target,
        "config": dict(side.config),
        "on": options.on,
        "estimand": options.estimand,
        "repeats": REPEATS,
        "cells": [
            {"id": cell.id, "dtype": cell.dtype, "lower": a, "upper": b}
            for cell, (a, b) in zip(cells, ends, strict=True)
        ],
    }
    asked, answered = inputs.with_name("request.json"), inputs.with_name("results.npz")
    asked.write_text(json.dumps(request))
    answered.unlink(missing_ok=True)  # nothing of the other side may be taken for this one's
    here = [str(Path.cwd()), str(provenance.ROOT), os.environ.get("PYTHONPATH", "")]
    found = [str(path)] if path else [p for p in here if p]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1"}
    # -P: the folder of this file, which holds modules of common names, stays off the path.
    command = [sys.executable, "-P", str(WORKER), str(asked), str(inputs), str(answered)]
    status, words = run_within(options.time_limit, command, env=environment, cwd=path)
    if status is None:
        raise UsageError(
            f"{side.label} had no results after {options.time_limit:g} s: its progress above ends "
            "where it hangs, or raise --time-limit."
        )
    if status:
        raise UsageError(f"{side.label} cannot be run (exit status {status}): {words}")
    if not answered.exists():
        raise UsageError(f"{side.label} ended without results: its process left early: {words}")
    with np.load(answered) as results:
        return Results(
            json.loads(str(results["methods"])), {key: results[key] for key in results.files}
        )


def run_within(
    seconds: float, command: Sequence[str], *, env: dict[str, str], cwd: Path | None
) -> tuple[int | None, str]:
    """Exit status, None if it was stopped for taking too long, and the last words of a command.

    Its standard output goes to our standard error. Whatever it started ends with it.
    """
    # A file: a pipe would stay open as long as any process that the command started.
    with terminable(), tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdout=2, stderr=said, start_new_session=True
        )
        status = None
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        return status, "\n".join(said.read().strip().splitlines()[-5:]) or "it says nothing"
