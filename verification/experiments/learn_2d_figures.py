"""Figures of the plane experiment: densities, samples along training, curves."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from torch import Tensor

from specbp.models.energies import DATA, ENERGIES, Box
from verification.experiments import outputs
from verification.experiments.grid import grid_density
from verification.experiments.learn_2d_settings import DATA_TARGETS
from verification.experiments.learn_2d_train import State
from verification.store import Record

Run = tuple[Record, Tensor, State]

COLOURS = {
    "annealed": outputs.COLOURS[0],
    "exact": outputs.COLOURS[2],
    "algorithm1": outputs.COLOURS[1],
}
TITLES = {
    "annealed": "annealed kinks, exact",
    "exact": "LeakyReLU, exact",
    "algorithm1": "LeakyReLU, Algorithm 1",
}
CELLS = 240


def target_figure(target: str, runs: list[Run]) -> bytes:
    """Target and models, samples along training, objective, relative error: one PNG."""
    columns = max(4, 1 + len(runs))
    with outputs.canvas(1, 1, 10.2) as (figure, axes):
        axes[0, 0].remove()
        grid = figure.add_gridspec(3, 2 * columns)
        top = [figure.add_subplot(grid[0, 2 * k : 2 * k + 2]) for k in range(1 + len(runs))]
        _densities(target, runs, top)
        shown = _shown_of(runs)
        middle = [figure.add_subplot(grid[1, 2 * k : 2 * k + 2]) for k in range(len(shown))]
        _samples(target, shown, middle, runs[0][0]["mode"])
        _objective(figure.add_subplot(grid[2, :columns]), target, runs)
        _errors(figure.add_subplot(grid[2, columns:]), runs)
        return outputs.png(figure)


def _densities(target: str, runs: list[Run], axes: list[Axes]) -> None:
    box = _box(target)
    exact = grid_density(lambda x: _log_target(target, x), box, CELLS)
    brightest = float(exact.log_density.exp().max())
    _density(axes[0], exact.log_density, box, brightest, f"target {target}")
    for ax, (record, log_density, _) in zip(axes[1:], runs, strict=True):
        title = f"{TITLES[record['mode']]}\nKL = {record['kl']:.3f} nats"
        if "mass" in record:
            title += f", mass {record['mass']:.2f}"
        _density(ax, log_density, box, brightest, title)


def _density(ax: Axes, log_density: Tensor, box: Box, brightest: float, title: str) -> None:
    (left, right), (bottom, top) = box
    ax.imshow(
        log_density.exp().T.numpy(),
        origin="lower",
        extent=(left, right, bottom, top),
        vmin=0,
        vmax=brightest,
        cmap="magma",
        aspect="auto",
    )
    ax.set_title(title, fontsize=10)
    ax.grid(False)
    ax.set_xlabel("$x_1$", labelpad=0)
    ax.set_ylabel("$x_2$", labelpad=0)


def _shown_of(runs: list[Run]) -> dict[int, Tensor]:
    return dict(sorted(runs[0][2].shown.items()))


def _samples(target: str, shown: dict[int, Tensor], axes: list[Axes], mode: str) -> None:
    forward = target in DATA_TARGETS
    (left, right), (bottom, top) = ((-4, 4), (-4, 4)) if forward else _box(target)
    what = "data mapped to Z" if forward else "samples"
    for ax, (iteration, points) in zip(axes, shown.items(), strict=True):
        first, second = points.T.numpy()
        ax.scatter(first, second, s=3, color=COLOURS[mode], alpha=0.6, lw=0)
        ax.set(xlim=(left, right), ylim=(bottom, top))
        ax.set_title(f"{what}, iteration {iteration}", fontsize=10)
        ax.set_xlabel("$z_1$" if forward else "$x_1$", labelpad=0)
        ax.set_ylabel("$z_2$" if forward else "$x_2$", labelpad=0)


def _objective(ax: Axes, target: str, runs: list[Run]) -> None:
    for record, _, _ in runs:
        curves = record["curves"]
        ax.plot(
            curves["iteration"],
            curves["objective"],
            lw=1.4,
            color=COLOURS[record["mode"]],
            label=TITLES[record["mode"]],
        )
        if record["mode"] == "algorithm1":
            exact = _exact_objective(curves, forward=target in DATA_TARGETS)
            ax.plot(
                curves["iteration"],
                exact,
                ":",
                lw=1.4,
                color=COLOURS[record["mode"]],
                label="the same, exact log det",
            )
    record = runs[0][0]
    if target in DATA_TARGETS:
        level, label = record["entropy"], "entropy of the data"
        ax.set_ylabel(r"$-\mathbb{E}_q \log p(x)$, nats")
    else:
        level, label = -record["log_normaliser"], r"$-\log Z$: KL = 0"
        ax.set_ylabel(r"$\mathbb{E}_p[\log p(x) + U(x)]$, nats")
    ax.axhline(level, ls="--", lw=1.2, color="#111111", label=label)
    ax.set_ylim(level - 0.8, level + 2.5)
    ax.set_xlabel("iteration")
    tempered = any(r["settings"]["tempering"] != 1 for r, _, _ in runs)
    ax.set_title(
        "objective as estimated while training"
        + (", energy tempered in the first half" if tempered else ""),
        fontsize=10,
    )
    ax.legend()


def _exact_objective(curves: Record, *, forward: bool) -> list[float]:
    """The objective with exact log densities in place of the estimates."""
    sign = -1 if forward else 1
    columns = zip(
        curves["objective"], curves["log_likelihood"], curves["exact_log_likelihood"], strict=True
    )
    return [value + sign * (exact - estimate) for value, estimate, exact in columns]


def _errors(ax: Axes, runs: list[Run]) -> None:
    for record, _, _ in runs:
        curves, colour = record["curves"], COLOURS[record["mode"]]
        label = TITLES[record["mode"]]
        for name, style, kind in (
            ("relative_error", "-", "mean"),
            ("largest_error", ":", "largest"),
        ):
            values = _floored(curves[name])
            ax.plot(
                curves["iteration"], values, style, lw=1.3, color=colour, label=f"{label}, {kind}"
            )
    ax.set_yscale("log")
    ax.set_ylabel("relative error of log p")
    ax.set_xlabel("iteration")
    ax.set_title(r"$|\log\hat p - \log p|\,/\,\max(1, |\log p|)$ over the batch", fontsize=10)
    ax.legend(ncols=2, fontsize=8)


def _floored(values: Any) -> list[float]:
    return [max(float(v), 1e-17) if v is not None else float("nan") for v in values]


def _box(target: str) -> Box:
    return DATA[target].box if target in DATA_TARGETS else ENERGIES[target].box


def _log_target(target: str, x: Tensor) -> Tensor:
    if target in DATA_TARGETS:
        return DATA[target].log_prob(x)
    return -ENERGIES[target](x)
