"""Training of the plane networks: every iteration is monitored, every run can be resumed."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specbp import generator_for
from specbp.estimate import EstimationError
from specbp.likelihood import ImplicitDensity, PullbackDensity, StandardNormal, relative_error
from specbp.models import BottleneckResNet
from specbp.models.energies import DATA, ENERGIES
from specbp.objectives import Objective, forward_kl, reverse_kl, spectral_norm
from verification.experiments.learn_2d_logdets import logdet_for
from verification.experiments.learn_2d_network import Pushed, value_and_jacobian
from verification.experiments.learn_2d_settings import Settings, temperature, tempering

CURVES = (
    "loss",  # what is minimised, with the regulariser
    "objective",
    "standard_error",
    "probe_error",
    "log_likelihood",  # as estimated, mean over the batch
    "exact_log_likelihood",
    "relative_error",  # mean over the batch of |estimate - exact| / max(1, |exact|)
    "largest_error",  # the largest of them
    "lambda_max",  # of JᵀJ, mean over the batch
    "smallest_singular_value",  # of J, least in the batch
)
EVERY = 500  # iterations between checkpoints
SHOWN = 600  # points that are mapped again and again, for the figures
SNAPSHOTS = (0.0, 0.05, 0.25, 1.0)  # when, as shares of the iterations
NORMAL = StandardNormal(2)


class PlaneMap:
    """A network with kinks of width t, which remembers J of the points that it mapped last."""

    def __init__(self, network: BottleneckResNet):
        self.network, self.t = network, 0.0
        self.points: Tensor | None = None
        self.pushed: Pushed | None = None

    def __call__(self, z: Tensor) -> Tensor:
        self.points, self.pushed = z, value_and_jacobian(self.network, z, self.t)
        return self.pushed.value

    def jacobian(self, z: Tensor) -> Tensor:
        """J (b, 2, 2) with its graph."""
        if self.pushed is None or self.points is None or not torch.equal(self.points, z):
            self(z)
        assert self.pushed is not None
        return self.pushed.jacobian


@dataclass
class State:
    """A run in progress: what a checkpoint holds."""

    settings: Settings
    network: BottleneckResNet
    optimizer: torch.optim.Adam
    generator: torch.Generator
    curves: Tensor  # (iterations done, len(CURVES)), float64
    shown: dict[int, Tensor]  # images of fixed points (SHOWN, 2), by iteration
    seconds: float = 0.0  # of processor time

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return len(self.curves)

    @property
    def finished(self) -> bool:
        """Whether nothing remains to be done."""
        return self.iteration >= self.settings.iterations

    def curve(self, name: str) -> Tensor:
        """One of `CURVES` (iterations,)."""
        return self.curves[:, CURVES.index(name)]


def start(settings: Settings) -> State:
    """The state before the first iteration; equal seeds give equal networks in all modes."""
    key = ("learn_2d", settings.target, settings.seed)
    network = BottleneckResNet(
        2,
        settings.hidden,
        settings.blocks,
        settings.slope,
        generator=generator_for(*key, "weights"),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    curves = torch.empty(0, len(CURVES), dtype=torch.float64)
    return State(settings, network, optimizer, generator_for(*key, "draws"), curves, {})


def train(
    state: State,
    path: Path | None = None,
    *,
    until: int | None = None,
    every: int = EVERY,
    progress: Callable[[State], None] = lambda _: None,
) -> State:
    """Go on to the last iteration, or to `until`, saving checkpoints to `path`.

    Raises:
        EstimationError: If log p or the loss is not finite; the last checkpoint is kept.
    """
    last = min(state.settings.iterations, until or state.settings.iterations)
    plane = PlaneMap(state.network)
    rows: list[list[float]] = []
    started = time.process_time()

    def keep() -> None:
        nonlocal started
        if rows:
            state.curves = torch.cat([state.curves, torch.tensor(rows, dtype=torch.float64)])
            rows.clear()
        state.seconds, started = state.seconds + time.process_time() - started, time.process_time()
        if path is not None:
            save(state, path)
        progress(state)

    while (iteration := state.iteration + len(rows)) < last:
        _show(state, plane, iteration)
        before = state.generator.get_state()
        try:
            rows.append(_checked(state, plane, iteration))
        except EstimationError:
            if _is_finite(state):  # nothing has been updated: the state before is at hand
                state.generator.set_state(before)
                keep()
            raise
        if len(rows) == every or iteration + 1 == last:
            _show(state, plane, iteration + 1)
            keep()
    return state


def _show(state: State, plane: PlaneMap, iteration: int) -> None:
    settings = state.settings
    if iteration not in [round(share * settings.iterations) for share in SNAPSHOTS]:
        return
    generator = generator_for("learn_2d", "shown")
    source = DATA[settings.target] if settings.forward else NORMAL
    points = source.sample(SHOWN, generator=generator, dtype=torch.float32)
    plane.t = temperature(settings, iteration)
    with torch.no_grad():
        state.shown[iteration] = plane(points)


def _checked(state: State, plane: PlaneMap, iteration: int) -> list[float]:
    try:
        row = _iterate(state, plane, iteration)
    except (EstimationError, ValueError) as error:  # ValueError: the bounds are not finite
        raise EstimationError(
            f"Run {state.settings.name} stopped at iteration {iteration}: {error} The last "
            "checkpoint is the state before."
        ) from error
    if not _is_finite(state):
        raise EstimationError(
            f"Run {state.settings.name} stopped at iteration {iteration}: a parameter is no longer "
            "finite. Lower the learning rate; the last checkpoint is the state before."
        )
    return row


def _is_finite(state: State) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in state.network.parameters())


def _iterate(state: State, plane: PlaneMap, iteration: int) -> list[float]:
    """One update; what it was computed from, as one row of the curves."""
    settings = state.settings
    plane.t = temperature(settings, iteration)
    for group in state.optimizer.param_groups:
        share = iteration / settings.iterations
        group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * share)) / 2
    found = _objective(settings, plane, state.generator, tempering(settings, iteration))
    assert plane.pushed is not None
    J = plane.pushed.jacobian
    loss = found.loss
    if settings.spectral_weight:
        loss = loss + settings.spectral_weight * _regulariser(J, state.generator)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    return [float(loss.detach()), *_monitored(settings, found, plane)]


def _objective(
    settings: Settings, plane: PlaneMap, generator: torch.Generator, factor: float
) -> Objective:
    options: dict[str, Any] = {"logdet": logdet_for(settings), "jacobian": plane.jacobian}
    f32 = torch.float32
    if settings.forward:
        x = DATA[settings.target].sample(settings.batch, generator=generator, dtype=f32)
        return forward_kl(PullbackDensity(NORMAL, plane, **options), x, generator=generator)
    z = NORMAL.sample(settings.batch, generator=generator, dtype=f32)
    density = ImplicitDensity(NORMAL, plane, **options)
    U = ENERGIES[settings.target]
    return reverse_kl(density, lambda x: factor * U(x), z, generator=generator)


def _regulariser(J: Tensor, generator: torch.Generator) -> Tensor:
    """E[λ_max(JᵀJ)] over the batch; two steps are exact in the plane."""
    start = torch.randn(2, generator=generator, dtype=torch.float64).to(J.dtype)
    return spectral_norm(J, start, 2).mean()


def _monitored(settings: Settings, found: Objective, plane: PlaneMap) -> list[float]:
    """The row of the curves after the loss; the exact log det is that of singular values."""
    assert plane.points is not None
    assert plane.pushed is not None
    value, J = (t.detach().double() for t in plane.pushed)
    sigma = torch.linalg.svdvals(J)
    half = sigma.log().sum(-1)
    exact = NORMAL.log_prob(value) + half
    if not settings.forward:
        exact = NORMAL.log_prob(plane.points) - half
    estimate = found.log_prob.value.detach()
    error = relative_error(estimate, exact)
    return [
        found.value,
        float(found.standard_error),
        float(found.probe_error),
        float(estimate.mean()),
        float(exact.mean()),
        float(error.mean()),
        float(error.max()),
        float(sigma[:, 0].square().mean()),
        float(sigma[:, -1].min()),
    ]


# Checkpoints --------------------------------------------------------------------------------------


def save(state: State, path: Path) -> None:
    """Write a checkpoint under a temporary name and rename it: it is never half written."""
    buffer = io.BytesIO()
    torch.save(
        {
            "settings": state.settings.plain(),
            "network": state.network.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "generator": state.generator.get_state(),
            "curves": state.curves,
            "shown": state.shown,
            "seconds": state.seconds,
        },
        buffer,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


def resume(settings: Settings, path: Path) -> State:
    """The state of a checkpoint, or the first one where there is none for these settings."""
    state = start(settings)
    if not path.is_file():
        return state
    held = torch.load(path, map_location="cpu", weights_only=True)
    if held["settings"] != settings.plain():
        return state
    state.network.load_state_dict(held["network"])
    state.optimizer.load_state_dict(held["optimizer"])
    state.generator.set_state(held["generator"])
    state.curves, state.shown, state.seconds = held["curves"], held["shown"], held["seconds"]
    return state
