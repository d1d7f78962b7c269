"""Ablations that the paper lacks: degree, probes and lower end; estimators at equal time.

On U1, with kinks that are annealed, so that the estimator decides and not the kinks.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from specbp.estimate import EstimationError
from verification.experiments.learn_2d_evaluate import Pushforward, sampled
from verification.experiments.learn_2d_settings import Settings, settings_for
from verification.experiments.learn_2d_train import State, start, train
from verification.report.files import replace_files
from verification.store import Record, strict

TARGET = "u1"
ITERATIONS = 300
DEGREES, PROBES, LOWERS = (8, 32), (1, 8), (1e-1, 1e-2, 1e-3)
ENDS = (0.1, 0.03, 0.01)  # widths of the kinks at the end, without tempering
SECONDS = 6.0  # of processor time for each estimator
POINTS = 4000
WIDE = {"degree": 64, "lower": 1e-4}  # with δ = 1e-2 two of them refuse the untrained network
ESTIMATORS: dict[str, dict[str, Any]] = {
    "exact (QR)": {"logdet": "exact"},
    "Golub–Kahan, 2 steps, 1 probe": {"logdet": "golub_kahan", "probes": 1},
    "Chebyshev, adjoint, plain": {"logdet": "algorithm1", **WIDE},
    "Chebyshev, adjoint, safe": {"logdet": "algorithm1_safe", **WIDE},
    "Chebyshev, through the recurrence": {"logdet": "backprop", **WIDE},
}


def records(folder: Path, *, quick: bool = False) -> list[Record]:
    """All ablations, a record for each training run, kept in a folder until its key changes."""
    return [
        *_polynomials(folder, quick),
        *_estimators(folder, quick),
        *_widths(folder, quick),
    ]


def _polynomials(folder: Path, quick: bool) -> Iterator[Record]:
    grid = list(itertools.product(DEGREES, PROBES, LOWERS))
    iterations = 5 if quick else ITERATIONS
    for degree, probes, lower in tqdm(grid[:1] if quick else grid, desc="polynomials"):
        changes = {"degree": degree, "probes": probes, "lower": lower, "logdet": "algorithm1"}
        name = f"degree {degree}, {probes} probes, δ = {lower:g}"
        train_ = partial(_trained, _settings(iterations, **changes), name, "polynomial")
        yield _kept(folder, train_, name, _settings(iterations, **changes))


def _estimators(folder: Path, quick: bool) -> Iterator[Record]:
    seconds = 0.1 if quick else SECONDS
    for name, changes in tqdm(ESTIMATORS.items(), desc="estimators"):
        timed = partial(_timed, name, changes, seconds)
        yield _kept(folder, timed, name, seconds, _settings(0, **changes))


def _widths(folder: Path, quick: bool) -> Iterator[Record]:
    iterations = 5 if quick else settings_for(TARGET, "annealed").iterations
    for end in tqdm(ENDS[:1] if quick else ENDS, desc="widths"):
        settings = _settings(iterations, smoothing=(0.3, end), tempering=1.0)
        name = f"kinks sharpened to {end:g}"
        yield _kept(folder, partial(_trained, settings, name, "width"), name, settings)


def _timed(name: str, changes: dict[str, Any], seconds: float) -> Record:
    try:
        iterations = max(5, int(seconds / _seconds_per_iteration(changes)))
    except EstimationError:  # a record of its own will say so
        iterations = ITERATIONS
    return _trained(_settings(iterations, **changes), name, "equal time")


def _kept(folder: Path, compute: Callable[[], Record], *key: object) -> Record:
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    path = folder / "ablations" / f"{digest}.json"
    if path.is_file():
        found: Record = json.loads(path.read_text("utf-8"))
        return found
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_files({path: json.dumps(strict(found))})
    return found


def _seconds_per_iteration(changes: dict[str, Any], count: int = 20) -> float:
    state = train(start(_settings(100, **changes)), until=5)
    begun = time.process_time()
    train(state, until=5 + count)
    return (time.process_time() - begun) / count


def _settings(iterations: int, **changes: Any) -> Settings:
    # Tempered, as a short run may otherwise lose one of the two modes whatever the estimator.
    changes = {"tempering": 0.05, "iterations": iterations, **changes}
    return settings_for(TARGET, "annealed", **changes)


def _trained(settings: Settings, name: str, kind: str) -> Record:
    state, stopped = start(settings), ""
    try:
        train(state)
    except EstimationError as error:
        stopped = str(error)
    return {
        "kind": f"ablation, {kind}",
        "id": name,
        "settings": settings.plain(),
        "stopped": stopped,
        "iterations": settings.iterations,
        "seconds": state.seconds,
        **_final(state),
    }


def _final(state: State) -> Record:
    found = sampled(Pushforward(state.network), TARGET, POINTS)
    last = state.curve("relative_error")[-100:]
    error = float(last.median()) if len(last) else float("nan")
    kept = ("kl", "kl_error", "kl_single", "preimages")
    return {**{name: found[name] for name in kept}, "relative_error": error}
