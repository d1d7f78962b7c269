"""RealNVP on digits by maximum likelihood and by a Wasserstein critic: exact against estimated.

The generator has an exact log-likelihood, so that stochastic estimates of its log det JᵀJ can be
judged along training, also where a critic makes the Jacobian ill-conditioned. After Danihelka et
al. (2017, arXiv:1705.05263) and Grover, Dhar & Ermon (2018, arXiv:1705.08868).

A run that is stopped resumes from its last checkpoint, in the folder .results below --out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from verification.experiments import realnvp_report
from verification.experiments.realnvp_measure import measure, pictures, wasserstein
from verification.experiments.realnvp_training import (
    TRAINERS,
    UNIFORM_BITS,
    Settings,
    Trainer,
    held_out,
    trained_on,
)
from verification.provenance import ROOT, describe, fingerprint
from verification.report.files import replace_files
from verification.store import Record, strict

OUT = ROOT / "reports" / "experiments" / "realnvp"
STAGES = (0.0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85, 1.0)
QUICK = Settings(
    mle_steps=60,
    wgan_steps=25,
    layers=4,
    hidden=32,
    batch_size=64,
    critic_width=64,
    points=4,
    probes=4,
)
QUICK_STAGES = (0.0, 0.4, 1.0)


class TrainingError(RuntimeError):
    """Training stopped making sense; the last good checkpoint is kept."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, report; exit status 0, or 1 with the reason if training failed."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)  # the last bits depend on the number of threads
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.json"
    if options.redraw and not results.is_file():
        raise SystemExit(f"--redraw needs {results}: run without it first.")
    if not options.redraw:
        try:
            record = experiment(options)
        except TrainingError as error:
            raise SystemExit(str(error)) from error
        replace_files({results: json.dumps(strict(record), indent=1) + "\n"})
    print(realnvp_report.write(json.loads(results.read_text("utf-8")), options.out))
    return 0


def experiment(options: argparse.Namespace) -> Record:
    """Both trainings with their measurements, as one JSON record."""
    settings, stages = (QUICK, QUICK_STAGES) if options.quick else (Settings(), STAGES)
    settings = replace(settings, seed=options.seed)
    runs = {
        objective: train(objective, settings, stages, options.out / ".results")
        for objective in TRAINERS
    }
    records = [record for history in runs.values() for record in history]
    seconds = sum(history[-1]["seconds"] for history in runs.values())
    return {
        "settings": asdict(settings),
        "uniform_bits": UNIFORM_BITS,
        "wasserstein_floor": wasserstein(trained_on(), held_out()),
        "data": pictures(held_out()),
        "runs": runs,
        "provenance": describe(records, seconds=seconds),
    }


def train(
    objective: str, settings: Settings, stages: Sequence[float], folder: Path
) -> list[Record]:
    """Train under one objective and measure at the stages, from the last checkpoint if any.

    Args:
        objective: "mle" or "wgan".
        settings: What is trained.
        stages: Fractions of the training at which the flow is measured and saved, 0 and 1 included.
        folder: Where the checkpoint lies; see `checkpoint_path`.

    Raises:
        TrainingError: If the loss or a parameter is not finite, or the checkpoint is unreadable.
    """
    trainer, steps = TRAINERS[objective](settings), settings.steps(objective)
    started = time.process_time()
    measured_at = {round(stage * steps) for stage in stages}
    path = checkpoint_path(objective, settings, stages, folder)
    done, history = _load(path, trainer)
    before = history[-1]["seconds"] if history else 0.0
    loss: float | None = None
    for step in tqdm(range(done, steps + 1), desc=objective, initial=done, total=steps + 1):
        if step in measured_at and not any(record["step"] == step for record in history):
            _check_parameters(trainer, step, path)
            record = measure(trainer, step, loss)
            history.append(record | {"seconds": before + time.process_time() - started})
            _save(path, trainer, step, history)
        if step < steps:
            loss = trainer.update(step)
            _check_loss(loss, trainer, step, path)
    return history


def checkpoint_path(
    objective: str, settings: Settings, stages: Sequence[float], folder: Path
) -> Path:
    """File of the checkpoint, named by what determines the run: settings, stages and source."""
    own = [source.read_bytes() for source in sorted(Path(__file__).parent.glob("realnvp*.py"))]
    key = repr((objective, settings, tuple(stages), fingerprint(), own))
    return folder / f"{objective}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.pt"


def _check_loss(loss: float, trainer: Trainer, step: int, path: Path) -> None:
    if not math.isfinite(loss):
        name = type(trainer).__name__
        raise TrainingError(f"The loss of {name} at step {step} is {loss}; {_remedy(path)}")


def _check_parameters(trainer: Trainer, step: int, path: Path) -> None:
    # A step can spoil the weights after a finite loss: such weights must not become a checkpoint.
    for name, parameter in trainer.flow.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise TrainingError(f"Parameter {name} at step {step} is not finite; {_remedy(path)}")


def _remedy(path: Path) -> str:
    last = f"the last good checkpoint is {path}" if path.is_file() else "there is no checkpoint yet"
    return f"{last}. Lower the learning rate in Settings, or take another --seed."


def _save(path: Path, trainer: Trainer, step: int, history: list[Record]) -> None:
    state: dict[str, Any] = {name: part.state_dict() for name, part in trainer.parts.items()}
    state |= {"draws": trainer.draws.get_state(), "step": step, "history": json.dumps(history)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _load(path: Path, trainer: Trainer) -> tuple[int, list[Record]]:
    """Steps done and what was measured; the trainer continues as if it had never stopped."""
    if not path.is_file():
        return 0, []
    try:
        state = torch.load(path, weights_only=True)
        for name, part in trainer.parts.items():
            part.load_state_dict(state[name])
        trainer.draws.set_state(state["draws"])
        return state["step"], json.loads(state["history"])
    except Exception as error:
        msg = f"The checkpoint {path} cannot be read ({error}): delete it to start again."
        raise TrainingError(msg) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verification.experiments.realnvp",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the report")
    parser.add_argument("--seed", type=int, default=0, help="key of all generators")
    parser.add_argument("--quick", action="store_true", help="a small run, in seconds")
    parser.add_argument(
        "--redraw", action="store_true", help="figures and text again, from results.json"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
