"""Command line of the verification suite: `python -m verification --help`."""

from __future__ import annotations

import argparse
import difflib
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from verification import (
    baseline,
    budgets,
    compare,
    control,
    density_study,
    evidence,
    families,
    gate,
    nightly,
    planner_study,
    precision,
    provenance,
    report,
    runner,
    timing,
    training,
)
from verification.cases import TIERS, all_cases, of_tier
from verification.faults import matrix
from verification.store import Record, Store

STORES = provenance.ROOT / ".results"
REPORTS = provenance.ROOT / "reports" / "accuracy"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, KeyError, training.WeightsError) as error:
        print(f"error: {error.args[0] if error.args else error}", file=sys.stderr)
        return 2
    except OSError as error:  # whose first argument is a number
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; `run` goes on where it was.", file=sys.stderr)
        return 130


def list_cases(options: argparse.Namespace) -> int:
    """Print the cases of a tier."""
    for case in of_tier(options.tier):
        print(f"{case.id:44} n = {case.n:<5} {case.tier:9} {case.title}")
    return 0


def run(options: argparse.Namespace) -> int:
    """Run a tier, then the studies of float32 and of cost."""
    path = _store(options)
    store = Store(path)
    source = provenance.fingerprint()
    _forget_other_sources(store, source, options.epoch, fresh=options.fresh)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with tqdm(unit="task", smoothing=0.1, disable=None) as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description_str(f"{what:44.44}")

        begin = time.perf_counter()
        runner.run(
            options.tier,
            path,
            only=options.case,
            workers=options.workers,
            epoch=options.epoch,
            progress=progress,
        )
    if not options.case:
        _studies(store)
    for family in families.judge(store.records("cell"), runner.families_level()):
        store.put(family)
    seconds = time.perf_counter() - begin
    ratio = speedup(list(store.records("cell")))
    described = provenance.describe(
        store.records("cell"),
        tier=options.tier,
        epoch=options.epoch,
        source=source,
        started=started,
        wall_seconds=seconds,
        suite_alpha=runner.SUITE_ALPHA,
        check_alpha=runner.check_level(options.tier),
        batched_speedup=ratio,
    )
    store.put(described)
    counts = {v: n for v, n in verdicts(store).items() if n}
    print(f"{sum(counts.values())} cells in {seconds:.0f} s: {counts}")
    print(f"replicates batched: {ratio:.0f} times faster than one at a time")
    common = [f["id"] for f in store.records("family") if f["verdict"] == "FAIL"]
    if common:
        print(f"cells that deviate together: {', '.join(common)}")
    return 1 if counts.get("FAIL") or common else 0


def make_report(options: argparse.Namespace) -> int:
    """Write the report and the README's table, and print the path of the page."""
    records = list(Store(_store(options)).records())
    if not any(record["kind"] == "cell" for record in records):
        raise ValueError(
            f"Nothing to report: run `python -m verification run --tier {options.tier}`."
        )
    records = [record for record in records if record["kind"] != "task"]
    records += evidence.kept()
    page = report.write(records, options.out)
    if options.readme:
        report.update_readme(options.readme, report.methods_table(records))
    print(page)
    return 0


def explain(options: argparse.Namespace) -> int:
    """Explain the cells of a case, or one cell."""
    cells = list(Store(_store(options)).records("cell"))
    chosen = [cell for cell in cells if options.id in (cell["id"], cell["case"])]
    if not chosen:
        known = {cell["id"] for cell in cells} | set(all_cases())
        near = difflib.get_close_matches(options.id, known, n=3, cutoff=0.3)
        raise ValueError(
            f"No result of {options.id!r} in {_store(options)}; run it first, or did you mean "
            f"{', '.join(near) or 'a case of `list`'}?"
        )
    print("\n\n".join(report.explain(cell) for cell in chosen))
    return 0


def train(options: argparse.Namespace) -> int:
    """Train the networks of the grid again and write their weights."""
    training.train_all(options.names or None, progress=print)
    return 0


def night(options: argparse.Namespace) -> int:
    """Count one night of the e-detector and print its evidence."""
    date = options.date or datetime.now(UTC).date().isoformat()
    records, alarm = nightly.run(options.state, date)
    suite, *families_of_night = records
    print(
        f"{suite['nights']} nights, evidence {suite['M']:.3g}, alarm at {suite['threshold']:g}"
        + "".join(f"\nfailed without chance: {name}" for name in suite["failed"])
    )
    for family in families_of_night[:10]:
        print(f"{family['id']:40} z = {family['z']:+.2f}, evidence {family['M']:.3g}")
    return int(alarm)


def show_control(options: argparse.Namespace) -> int:
    """Put a right estimator through the gate's sampling tier, epoch after epoch."""
    found = [_control(options.epochs, level) for level in control.LEVELS]
    if options.keep:
        print(evidence.keep("control", found))
    return 0 if all(record["consistent"] for record in found) else 1


def _control(epochs: int, level: float) -> Record:
    with tqdm(total=epochs, unit="epoch", disable=None, leave=False) as bar:
        found = control.record(epochs, lambda done, _all: bar.update(done - bar.n), alpha=level)
    low, high = found["interval"]
    print(
        f"{found['rejected']} false alarms in {epochs} epochs at nominal {level:g}; "
        f"rate in [{low:.3g}, {high:.3g}] (95 %)"
    )
    for family in found["families"]:
        print(
            f"  {family['name']:24} z: mean {family['mean']:+.3f}, rms {family['rms']:.3f}, "
            f"p = {family['p']:.3g}"
        )
    return found


def show_overhead(options: argparse.Namespace) -> int:
    """Print the cost of every estimate beside its products."""
    worst = 0.0
    for record in timing.study(options.repeats):
        worst = max(worst, record["ratio"] / record["limit"])
        print(
            f"{record['problem']:20} {record['dtype']:8} {record['method']:36} "
            f"{record['ratio']:5.2f} × products (limit {record['limit']})"
        )
    return 1 if worst > 1 else 0


def show_products(options: argparse.Namespace) -> int:
    """Print what each way of multiplying with a Jacobian costs."""
    for record in timing.products(options.pairs):
        print(
            f"{record['network']:20} m = {record['m']:<3} {record['method']:8} "
            f"{record['milliseconds']:8.2f} ms per pair J x, Jᵀu"
        )
    return 0


def show_precision(_: argparse.Namespace) -> int:
    """Print what float32 leaves of log det JᵀJ."""
    failed = False
    for record in precision.study():
        failed |= record["verdict"] == "FAIL"
        limit = f"limit {record['limit']:g}" if record["limit"] else "no promise"
        print(
            f"cond {record['cond']:7.0e} {record['method']:12} {record['error']:9.2e} nats  {limit}"
        )
    return int(failed)


def speedup(cells: list[Record]) -> float:
    """Seconds of all replicates one at a time over their seconds in blocks."""
    timed = [cell for cell in cells if cell.get("seconds_single")]
    together = sum(cell["seconds"] for cell in timed)
    return sum(cell["seconds_single"] for cell in timed) / together if together else float("nan")


def verdicts(store: Store) -> dict[str, int]:
    """Number of cells by verdict."""
    counts = dict.fromkeys(("PASS", "FAIL", "INCONCLUSIVE", "REPORTED"), 0)
    for cell in store.records("cell"):
        counts[cell["verdict"]] += 1
    return counts


def _studies(store: Store) -> None:
    for name, study, ids in (
        ("float32 study", precision.study, store.ids("precision")),
        ("cost study", timing.study, store.ids("timing")),
    ):
        if not ids:
            for record in tqdm(study(), desc=name, unit="row", disable=None):
                store.put(record)


def _forget_other_sources(store: Store, source: str, epoch: str, *, fresh: bool) -> None:
    """Results of other code or of other seeds are not resumed."""
    known = [r for r in store.records("source") if (r["source"], r["epoch"]) == (source, epoch)]
    if fresh or not known:
        store.clear()
    store.put({"kind": "source", "id": "source", "source": source, "epoch": epoch})


def _store(options: argparse.Namespace) -> Path:
    return options.store or STORES / f"{options.tier}.sqlite"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verification",
        description="Compare the estimators with exact ground truth and report what was found.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, function: Callable[[argparse.Namespace], int], summary: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(command=function)
        return command

    def add_tier(command: argparse.ArgumentParser, *, store: bool = True) -> None:
        command.add_argument("--tier", choices=TIERS, default="standard", help="default: standard")
        if store:
            command.add_argument("--store", type=Path, help="SQLite file of the results")

    add_tier(add("list", list_cases, "list the cases of a tier"), store=False)
    command = add("run", run, "run a tier; a run that was stopped goes on where it was")
    add_tier(command)
    command.add_argument("--case", default="", help="only cases whose id contains this")
    command.add_argument("--workers", type=int, help="processes (default: one for each core)")
    command.add_argument("--epoch", default=runner.EPOCH, help="part of every seed")
    command.add_argument("--fresh", action="store_true", help="forget earlier results")
    command = add("report", make_report, "write the report of a run and print its path")
    add_tier(command)
    command.add_argument("--out", type=Path, default=REPORTS, help="folder of the report")
    command.add_argument("--readme", type=Path, help="file whose table of methods is updated")
    command = add("explain", explain, "explain the cells of a case, or one cell")
    add_tier(command)
    command.add_argument("id", help="id of a case or of a cell")
    for name, module, summary in (
        ("gate", gate, "judge estimators, ours or others by import path; exit status 1 on FAIL"),
        ("compare", compare, "compare the accuracy of two commits, or of two estimators"),
        ("baseline", baseline, "compare with the figures recorded for this platform, or record"),
        ("faults", matrix, "show which planted faults the checks catch"),
        ("budgets", budgets, "judge estimators at equal measured products; writes a report"),
        ("density", density_study, "measure spectral densities against known spectra; a report"),
        ("planner", planner_study, "judge auto against the best method in hindsight; a report"),
    ):
        module.add_arguments(add(name, module.main, summary))
    command = add("nightly", night, "add the evidence of one night to that of earlier ones")
    command.add_argument("--state", type=Path, required=True, help="JSON file of the evidence")
    command.add_argument("--date", help="YYYY-MM-DD, part of every seed (default: today, UTC)")
    command = add("control", show_control, "count the false alarms on a right estimator")
    command.add_argument("--epochs", type=int, default=control.EPOCHS, help="runs of the gate")
    command.add_argument("--keep", action="store_true", help="keep the record for the report")
    command = add("train", train, "train the networks of the grid and write their weights")
    command.add_argument("names", nargs="*", help="networks (default: all)")
    command = add("overhead", show_overhead, "time every estimate against its products alone")
    command.add_argument("--repeats", type=int, default=timing.REPEATS, help="interleaved rounds")
    command = add("products", show_products, "time the ways of multiplying with a Jacobian")
    command.add_argument("--pairs", type=int, default=20, help="pairs that share one set-up")
    add("precision", show_precision, "measure float32 against the condition number")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:  # whose exit status would be 1, that of a FAIL, and a page would be written
        traceback.print_exc()
        sys.exit(2)
