"""Gradients of log det JᵀJ: memory, time, noise and bias of every estimator against the truth.

python -m verification.experiments.gradients [--out DIR] [--quick] [--redraw]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from verification.experiments import gradients_report
from verification.experiments.gradients_cases import Case, Variables, case
from verification.experiments.gradients_cost import Task, memory, reach, times
from verification.experiments.gradients_derived import chosen
from verification.experiments.gradients_estimators import (
    COST,
    EXACT,
    FRECHET,
    NOISE,
    PAPER,
    PAPERS,
    Estimator,
)
from verification.experiments.gradients_noise import check, measure, solves
from verification.experiments.outputs import save
from verification.provenance import ROOT
from verification.store import Record
from verification.training import MODELS, State

OUT = ROOT / "reports" / "experiments" / "gradients"
LARGE = 200  # order of JᵀJ above which directions are few


@dataclass(frozen=True)
class Settings:
    """Extent of the study.

    Attributes:
        noise: Networks and states whose noise is measured.
        points: Those where it is measured in the point, too.
        cost: Networks and states whose memory and time are measured.
        probes: m of memory and time.
        ladder: Steps at which memory is measured, degree for the polynomials.
        timed: Steps at which time is measured.
        steps: Steps of each probe at which noise is measured.
        budgets: Products with JᵀJ.
        directions: Random directions over the variables, for small and large networks.
        work: Replicates of single probes times the order of JᵀJ.
        most: Replicates, at most.
        blocks: Replicates of probes that act together.
        repeats: Of each time.
    """

    noise: tuple[tuple[str, State], ...]
    points: tuple[tuple[str, State], ...]
    cost: tuple[tuple[str, State], ...]
    probes: int = 4
    ladder: tuple[int, ...] = (5, 10, 20, 40, 80)
    timed: tuple[int, ...] = (5, 20, 40)
    steps: tuple[int, ...] = (1, 2, 4, 5, 10, 20, 40)
    budgets: tuple[int, ...] = (40, 80, 160)
    directions: tuple[int, int] = (24, 12)
    work: int = 32_000
    most: int = 400
    blocks: int = 32
    repeats: int = 3


STATES: tuple[State, ...] = ("init", "digits")
NAMES = tuple(name for name in MODELS if name != "wideresnet-1x8x8")
DEFAULT = Settings(
    noise=(
        *((name, state) for name in NAMES[:-4] for state in STATES),
        ("wideresnet-1x16x16", "digits"),
        *((name, state) for name in NAMES[-3:] for state in STATES),
    ),
    points=(("dcgan-z64", "init"), ("dcgan-z64", "digits")),
    cost=tuple((name, "digits") for name in NAMES),
)
QUICK = Settings(
    noise=(("bottleneck-d2", "init"), ("dcgan-z16", "init")),
    points=(("dcgan-z16", "init"),),
    cost=(("bottleneck-d2", "init"), ("dcgan-z16", "init")),
    ladder=(5, 20),
    timed=(5,),
    steps=(1, 4, 20),
    budgets=(80,),
    directions=(8, 8),
    most=100,
    blocks=16,
    repeats=1,
)


def run(settings: Settings) -> list[Record]:
    """All records of the study, computed on one thread."""
    threads, start = torch.get_num_threads(), time.process_time()
    torch.set_num_threads(1)
    try:
        records = _costs(settings)
        for name, state in tqdm(settings.noise, desc="noise"):
            records += _noise(_case(name, state, "parameters", settings), settings)
        records += _reached(records, settings)
        for name, state in settings.points:
            records += _noise(_case(name, state, "point", settings), settings)
    finally:
        torch.set_num_threads(threads)
    seconds = time.process_time() - start
    return [{"kind": "run", "seconds": seconds, "budgets": settings.budgets}, *records]


def _costs(settings: Settings) -> list[Record]:
    records = []
    for name, state in tqdm(settings.cost, desc="memory and time"):
        task = Task.build(name, state, settings.probes)
        task.run(EXACT, 0)
        records += [memory(task, e, k) for e in COST for k in settings.ladder]
        records.append(memory(task, EXACT, 0))
        records += times(task, COST, settings.timed, settings.repeats)
    return records


def _reached(records: list[Record], settings: Settings) -> list[Record]:
    """Times at the probes that bring the noise down to the gradient itself."""
    found = []
    for name, state in tqdm(settings.cost, desc="probes for a relative std of 1"):
        for estimator in (e for e in NOISE if e.name in (PAPER, FRECHET)):
            keys = {"label": f"{name} {state}", "estimator": estimator.name}
            rows = chosen(records, "noise", **keys)
            own = [r for r in rows if r["steps"] <= PAPERS and math.isfinite(r["std"])]
            if own:
                r = max(own, key=lambda r: r["steps"])
                task = Task.build(name, state, math.ceil(r["std"] ** 2))
                noise = r["std"], r["bias"]
                found.append(reach(task, estimator, r["steps"], noise, settings.repeats))
    return found


def _case(name: str, state: State, variables: Variables, settings: Settings) -> Case:
    many, few = settings.directions
    return case(name, state, few if MODELS[name].num_inputs > LARGE else many, variables)


def _noise(of: Case, settings: Settings) -> list[Record]:
    n = len(of.R)
    single = min(settings.most, settings.work // n)
    records = []
    for estimator in (e for e in NOISE if n <= e.largest):
        replicates = single if estimator.independent else min(single, settings.blocks)
        for m, k in _shapes(estimator, n, settings):
            records.append(measure(of, estimator, m, k, replicates))
    if of.variables == "parameters":
        records.append(check(of))
        sizes = [m for m in (4, 16) if m <= n <= 256]
        records += [solves(of, m, rtol) for m in sizes for rtol in (1e-2, 1e-6)]
    return records


def _shapes(estimator: Estimator, n: int, settings: Settings) -> list[tuple[int, int]]:
    """Probes and steps to measure: single probes if they are independent."""
    if estimator.rtol is not None:
        return [(1, 0)]
    steps = [k for k in settings.steps if k <= n]
    if estimator.independent:
        return [(1, k) for k in steps]
    shapes = [(budget // k, k) for budget in settings.budgets for k in steps]
    return sorted({(m, k) for m, k in shapes if 1 < m <= n})


def redraw(out: Path) -> None:
    """Page and figures of the records in a folder, each written whole or not at all."""
    _, *records = json.loads((out / "results.json").read_text())
    for name, content in gradients_report.contents(records).items():
        data = content.encode() if isinstance(content, str) else content
        whole = out / f".{name}.tmp"
        whole.write_bytes(data)
        os.replace(whole, out / name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and write its report."""
    parser = argparse.ArgumentParser(prog="gradients", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the report")
    parser.add_argument("--quick", action="store_true", help="two small networks, in seconds")
    parser.add_argument("--redraw", action="store_true", help="page and figures of results.json")
    options = parser.parse_args(arguments)
    if not options.redraw:
        settings = QUICK if options.quick else DEFAULT
        save(options.out, run(settings), {}, settings=asdict(settings))
    redraw(options.out)


if __name__ == "__main__":
    main()
