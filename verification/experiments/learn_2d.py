"""Learning densities on the plane through log det JᵀJ, after Ramesh & LeCun (2018), section 3.

Four energies by KL(p‖q) and two data sets by KL(q‖p), with the paper's network, batch and optimiser
(`learn_2d_settings` marks every value as the paper's or ours), in three ways:

- annealed: kinks smoothed while training, sharpening to LeakyReLU; exact log det
- exact: the paper's network as it is, exact log det
- algorithm1: the paper's network, Algorithm 1 in its plain form

What is evaluated has LeakyReLUs in all three, with all preimages of every point.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from specbp.estimate import EstimationError
from verification.experiments import (
    grid,
    learn_2d_ablate,
    learn_2d_evaluate,
    learn_2d_evidence,
    learn_2d_figures,
    learn_2d_report,
    outputs,
    triangulation,
)
from verification.experiments.learn_2d_settings import (
    MODES,
    SHORT,
    TARGETS,
    Settings,
    settings_for,
)
from verification.experiments.learn_2d_train import CURVES, State, resume, train
from verification.provenance import ROOT
from verification.store import Record
from verification.terminable import terminable

WINDOWS = 100  # of each curve in the results
TAIL = 0.1  # last share of the iterations, over which the monitors are summarised
QUICK: dict[str, Any] = {"iterations": 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m verification.experiments.learn_2d`."""
    out = ROOT / "reports" / "experiments" / "learn_2d"
    parser.add_argument("--out", type=Path, default=out, help="folder of the report")
    parser.add_argument(
        "--state",
        type=Path,
        default=ROOT / ".results" / "learn_2d",
        help="folder of checkpoints; an interrupted command goes on from there",
    )
    names = [*SHORT, *TARGETS]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        metavar="TARGET",
        default=TARGETS,
        help=f"some of {', '.join(names)}",
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=list(MODES),
        default=list(MODES),
        help="some of the three ways",
    )
    parser.add_argument("--iterations", type=int, help="instead of the default of each mode")
    parser.add_argument("--ablate", action="store_true", help="the ablations too, minutes more")
    parser.add_argument("--quick", action="store_true", help="few iterations: does it run at all?")


def main(options: argparse.Namespace) -> int:
    """Train what is not trained yet, evaluate, write the report; 1 if a safe run failed."""
    torch.set_num_threads(1)  # another number changes the last bits
    changes = dict(QUICK) if options.quick else {}
    if options.iterations:
        changes["iterations"] = options.iterations
    records, pictures = [], {}
    targets = [SHORT.get(name, name) for name in options.only]
    for target in targets:
        runs = [
            _run(settings_for(target, mode, **changes), options.state) for mode in options.modes
        ]
        records += [record for record, _, _ in runs]
        pictures[f"{target}.png"] = learn_2d_figures.target_figure(target, runs)
    points = 2000 if options.quick else learn_2d_evidence.POINTS
    evidence = learn_2d_evidence.slopes(points)
    ablations = []
    if options.ablate:
        ablations = learn_2d_ablate.records(options.state, quick=options.quick)
    everything = [*records, *evidence, *ablations]
    page = learn_2d_report.text(everything, list(pictures))
    outputs.save(options.out, everything, {"README.md": page, **pictures})
    print(page)
    print(options.out / "README.md")
    return int(any(r["stopped"] and r["mode"] != "algorithm1" for r in records))


def _run(settings: Settings, folder: Path) -> tuple[Record, Tensor, State]:
    """Train one network, or take up where it was left, and evaluate it."""
    path = folder / f"{settings.name}.pt"
    state, stopped = resume(settings, path), ""
    bar = tqdm(total=settings.iterations, initial=state.iteration, desc=settings.name, leave=False)
    with bar:
        try:
            train(state, path, progress=lambda s: bar.update(s.iteration - bar.n))
        except EstimationError as error:
            state, stopped = resume(settings, path), str(error)
    found = _evaluated(state, folder)
    if not settings.forward:
        _replace(folder / "networks" / f"{settings.name}.pt", state.network.state_dict())
    record = {
        "kind": "run",
        "id": settings.name,
        "target": settings.target,
        "mode": settings.mode,
        "settings": settings.plain(),
        "stopped": stopped,
        "seconds": state.seconds,
        "iterations": state.iteration,
        "tail": _tail(state),
        "curves": _curves(state),
        **found.record,
    }
    return record, found.log_density, state


def _evaluated(state: State, folder: Path) -> learn_2d_evaluate.Evaluation:
    """The evaluation of a run, kept beside its checkpoint until its code or the run changes."""
    path = folder / f"{state.settings.name}.evaluation.pt"
    digest = hashlib.sha256()
    for module in (learn_2d_evaluate, grid, triangulation):
        digest.update(Path(str(module.__file__)).read_bytes())
    for parameter in state.network.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    key = digest.hexdigest()
    if path.is_file():
        held = torch.load(path, weights_only=True)
        if held["key"] == key:
            return learn_2d_evaluate.Evaluation(held["record"], held["log_density"])
    found = learn_2d_evaluate.evaluate(state.network, state.settings.target)
    _replace(path, {"key": key, **found._asdict()})
    return found


def _replace(path: Path, content: Any) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


def _tail(state: State) -> Record:
    """Monitors over the last iterations."""
    last = max(1, round(TAIL * state.iteration))
    rows = dict(zip(CURVES, state.curves[-last:].mT, strict=True))
    objective = rows["objective"]
    return {
        "objective": float(objective.mean()),
        "objective_error": float(objective.std() / len(objective) ** 0.5) if last > 1 else 0.0,
        "relative_error": float(rows["relative_error"].median()),
        "largest_error": float(rows["largest_error"].max()),
        "lambda_max": float(rows["lambda_max"].mean()),
        "smallest_singular_value": float(rows["smallest_singular_value"].min()),
    }


def _curves(state: State) -> Record:
    """Means of windows of every curve; the extremes of those that are extremes."""
    parts = state.curves.tensor_split(min(WINDOWS, max(1, state.iteration)))
    reduce = {"largest_error": Tensor.amax, "smallest_singular_value": Tensor.amin}
    found: Record = {"iteration": torch.tensor([len(p) for p in parts]).cumsum(0).tolist()}
    for column, name in enumerate(CURVES):
        take = reduce.get(name, Tensor.mean)
        found[name] = [float(f"{float(take(part[:, column])):.5g}") for part in parts]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m verification.experiments.learn_2d",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    with terminable():
        raise SystemExit(main(parser.parse_args()))
