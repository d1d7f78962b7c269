"""The kill matrix: which check rejects which fault, and that no right estimator is rejected.

A fault that no check of tiers D and P notices, a control that any check rejects, and a kill that an
earlier version had and this one has not: each of them fails the command.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from specbp.testing.outcome import FAIL, REPORTED, Check
from verification import checks, evidence
from verification.checks.settings import Settings
from verification.faults.controls import CONTROLS
from verification.faults.registry import FAULTS, NOT_APPLICABLE
from verification.report.files import replace_files

Record = dict[str, Any]
Progress = Callable[[int, int, str], None]

EXPECTED = Path(__file__).with_name("expected.json")
WORKERS = 2
CLEAR, MARGINAL, NONE = "clear", "marginal", ""
MARKS = {CLEAR: "✔", MARGINAL: "✓", NONE: "·"}


def kill_matrix(
    tiers: str = "DPS",
    only: str | None = None,
    progress: Progress | None = None,
    workers: int = WORKERS,
) -> list[Record]:
    """One record for each fault and each control.

    Args:
        tiers: "DP", "S" or "DPS"; tier S runs at its largest size alone.
        only: Id of one fault, which is run with its control.
        progress: Called with the number of tasks done, of all, and what was done last.
        workers: Processes; 1 stays in this one.

    Raises:
        ValueError: If the tiers or the id are unknown.
    """
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    tasks = _tasks(tiers, only)
    for done, (kind, id, verdicts, spent) in enumerate(_completed(tasks, workers), 1):
        found[kind, id] |= verdicts
        seconds[kind, id] += spent
        if progress:
            progress(done, len(tasks), id)
    names = dict.fromkeys((kind, id) for kind, id, _ in tasks)
    return [_record(*name, tiers, found[name], seconds[name]) for name in names]


def verdicts_of(found: Iterable[Check]) -> dict[str, str]:
    """CLEAR or MARGINAL for every code of which a check fails, NONE for others carried out."""
    verdicts: dict[str, str] = {}
    for check in found:
        if check.verdict == REPORTED:
            continue  # said, not judged
        code = check.name.split()[0]
        verdict = NONE if check.verdict != FAIL else CLEAR if is_clear(check) else MARGINAL
        verdicts[code] = max(verdict, verdicts.get(code, NONE), key=(NONE, MARGINAL, CLEAR).index)
    return verdicts


def is_clear(check: Check) -> bool:
    """Whether a failure is beyond what another processor or other seeds could turn into a pass."""
    if check.name.startswith("S") and math.isnan(check.statistic):
        return False  # raised on probes that happened to be drawn
    if check.p is not None and check.alpha is not None:
        return not check.p > check.alpha / 100
    return not check.margin or not check.statistic < 10 * check.margin


def _tasks(tiers: str, only: str | None) -> list[tuple[str, str, str]]:
    if not tiers or set(tiers) - set("DPS"):
        raise ValueError(f"tiers are made of D, P and S, got {tiers!r}.")
    if only is not None and only not in FAULTS:
        raise ValueError(f"No fault {only!r}; there are {', '.join(FAULTS)}.")
    parts = [part for part in (tiers.replace("S", ""), "S" if "S" in tiers else "") if part]
    faults = [only] if only else list(FAULTS)
    controls = [FAULTS[only].control] if only else list(CONTROLS)
    names = [("fault", id) for id in faults] + [("control", name) for name in controls]
    return [(kind, id, part) for kind, id in names for part in parts]


def _completed(
    tasks: list[tuple[str, str, str]], workers: int
) -> Iterator[tuple[str, str, dict[str, str], float]]:
    if workers == 1 or len(tasks) == 1:
        yield from (_run(*task) for task in tasks)
        return
    # Forked workers would inherit torch's thread pool in an undefined state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        pending = [pool.submit(_run_alone, *task) for task in tasks]
        try:
            for future in as_completed(pending):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_alone(kind: str, id: str, part: str) -> tuple[str, str, dict[str, str], float]:
    """One task in a process of its own, on one core."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        return _run(kind, id, part)


def _run(kind: str, id: str, part: str) -> tuple[str, str, dict[str, str], float]:
    # Ids travel between processes, not subjects: those hold closures.
    subject = FAULTS[id].subject if kind == "fault" else CONTROLS[id]
    settings = Settings()
    if part == "S":
        settings = replace(settings, sizes=settings.sizes[-1:])
    start = time.perf_counter()
    found = checks.run(subject, tiers=part, settings=settings)
    return kind, id, verdicts_of(found), time.perf_counter() - start


def _record(kind: str, id: str, tiers: str, verdicts: dict[str, str], seconds: float) -> Record:
    kills = sorted((code for code, verdict in verdicts.items() if verdict), key=_order)
    record: Record = {
        "kind": kind,
        "id": id,
        "tier": tiers,
        "verdicts": {code: verdicts[code] for code in sorted(verdicts, key=_order)},
        "kills": kills,
        "killed_by_DP": any(code[0] in "DP" for code in kills),
        "killed_by_S": any(code[0] == "S" for code in kills),
        "seconds": seconds,
    }
    if kind == "control":
        return record
    fault = FAULTS[id]
    expected = [code for code in fault.killers if code[0] in tiers]
    return record | {
        "title": fault.title,
        "source": fault.source,
        "control": fault.control,
        "expected": expected,
        "missed": [code for code in expected if code not in kills],
        "note": fault.note,
        "equivalent": fault.equivalent,
    }


def _order(code: str) -> tuple[str, int, str]:
    digits = "".join(c for c in code if c.isdigit())
    return code[0], int(digits or 0), code


# What fails -----------------------------------------------------------------------------------


def problems(records: list[Record], committed: dict[str, list[str]]) -> list[str]:
    """Every reason why the command fails, in words."""
    found = []
    for record in records:
        id, kills, tiers = record["id"], record["kills"], record["tier"]
        if record["kind"] == "control":
            if kills:
                found.append(f"control {id}: a right estimator is rejected by {', '.join(kills)}")
            continue
        if "D" in tiers and "P" in tiers and not record["killed_by_DP"]:
            found.append(f"{id}: survives tiers D and P ({record['title']})")
        lost = [c for c in committed.get(id, []) if c[0] in tiers and c not in kills]
        if lost:
            found.append(f"{id}: no longer killed by {', '.join(lost)} ({record['title']})")
    return found


def committed_kills(path: Path = EXPECTED) -> dict[str, list[str]]:
    """The kills of the last version, by fault."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def commit(records: list[Record], path: Path = EXPECTED) -> None:
    """Write the clear kills; codes of tiers that did not run stay as they were."""
    known = committed_kills(path)
    for record in records:
        if record["kind"] == "fault":
            kept = [c for c in known.get(record["id"], []) if c[0] not in record["tier"]]
            clear = [code for code, verdict in record["verdicts"].items() if verdict == CLEAR]
            known[record["id"]] = sorted({*kept, *clear}, key=_order)
    known = {id: known[id] for id in FAULTS if id in known}
    lines = ",\n".join(f"  {json.dumps(id)}: {json.dumps(codes)}" for id, codes in known.items())
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    temporary.rename(path)


# For people -----------------------------------------------------------------------------------


def columns(records: list[Record]) -> list[str]:
    """All codes that were carried out, in order."""
    return sorted({code for record in records for code in record["verdicts"]}, key=_order)


def mark(record: Record, code: str) -> str:
    """One cell of the matrix; blank where the check does not apply."""
    return MARKS[record["verdicts"][code]] if code in record["verdicts"] else " "


def score(records: list[Record]) -> str:
    """How many faults each tier kills, in one line."""
    faults = [r for r in records if r["kind"] == "fault"]
    rejected = sum(bool(r["kills"]) for r in records if r["kind"] == "control")
    return (
        f"{len(faults)} faults: {sum(r['killed_by_DP'] for r in faults)} killed by D and P, "
        f"{sum(r['killed_by_S'] for r in faults)} by S; "
        f"{len(records) - len(faults)} right estimators, {rejected} rejected"
    )


def render(records: list[Record]) -> str:
    """The matrix as text: ✔ killed, ✓ by little, · not killed, blank where nothing applies."""
    codes = columns(records)
    width = max(len(r["id"]) for r in records)
    lines = [" ".join([f"{'':{width}}", *codes])]
    for record in records:
        cells = (f"{mark(record, code):{len(code)}}" for code in codes)
        lines.append(" ".join([f"{record['id']:{width}}", *cells, record.get("title", "control")]))
    return "\n".join([*lines, score(records)])


def markdown(records: list[Record]) -> str:
    """The matrix as a table of Markdown, with sources and reasons."""
    codes = columns(records)
    head = ["Fault", "Seen in", *codes]
    lines = [_row(head), _row("---" for _ in head)]
    for record in records:
        name = f"`{record['id']}` {record.get('title', 'right estimator')}"
        marks = (mark(record, code) for code in codes)
        lines.append(_row([name, record.get("source", ""), *marks]))
    reasons = [f"* `{r['id']}` {r['equivalent']}" for r in records if r.get("equivalent")]
    reasons += [f"* `{id}` not planted, {why}" for id, why in NOT_APPLICABLE.items()]
    return "\n".join([*lines, "", f"{score(records)}.", "", *reasons, ""])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# Command line ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m verification faults`."""
    parser.add_argument("--only", metavar="ID", help="one fault and its control")
    parser.add_argument("--tiers", choices=("DP", "S", "DPS"), default="DPS", help="default: DPS")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the matrix here too")
    parser.add_argument("--update", action="store_true", help="commit the kills found")
    parser.add_argument("--keep", action="store_true", help="keep the matrix for the report")
    parser.add_argument("--workers", type=int, default=min(WORKERS, os.cpu_count() or 1))


def for_report(record: Record) -> Record:
    """Faults and controls as one kind, told apart by their role; seconds are of no interest."""
    kept = {key: value for key, value in record.items() if key != "seconds"}
    return {**kept, "kind": "fault", "role": record["kind"]}


def _with_progress(options: argparse.Namespace) -> list[Record]:
    with tqdm(unit="task", disable=None, leave=False) as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description_str(f"{what:24.24}")

        return kill_matrix(options.tiers, options.only, progress, options.workers)


def main(options: argparse.Namespace) -> int:
    """Print the matrix; 1 if a fault survives, a control is rejected, or a kill is lost."""
    if options.keep and (options.only or options.tiers != "DPS"):
        raise ValueError("The report wants the whole matrix: --keep goes without --only, --tiers.")
    records = _with_progress(options)
    print(render(records))
    if options.keep:
        print(evidence.keep("faults", map(for_report, records)))
    if options.markdown:
        replace_files({options.markdown: markdown(records)})
    if options.update:
        commit(records)
    found = problems(records, committed_kills())
    for problem in found:
        print(f"FAIL {problem}")
    return 1 if found else 0
