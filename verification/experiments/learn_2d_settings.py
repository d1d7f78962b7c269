"""Settings of the plane experiment, each with its source: the paper's words, or ours."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

PAPER, OURS = "paper", "ours"


@dataclass(frozen=True)
class Settings:
    """What determines one run, bit for bit; `SOURCES` says where each value comes from."""

    target: str
    mode: str
    blocks: int = 4
    hidden: int = 32
    slope: float = 0.2
    batch: int = 64
    learning_rate: float = 5e-3
    schedule: str = "cosine"
    iterations: int = 4000
    smoothing: tuple[float, float] = (0.0, 0.0)
    hold: float = 0.1
    tempering: float = 1.0
    logdet: str = "exact"
    degree: int = 32
    probes: int = 8
    lower: float = 1e-2
    power_steps: int = 20
    spectral_weight: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """Key of the run in files and tables."""
        return f"{self.target}-{self.mode}"

    @property
    def forward(self) -> bool:
        """Whether the target is given by samples (X -> Z), not by its energy (Z -> X)."""
        return self.target in DATA_TARGETS

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "smoothing": list(self.smoothing)}


SOURCES: dict[str, tuple[str, str]] = {
    "target": (
        OURS,
        "The paper shows four energies and two data sets without naming them. Energies of "
        "Rezende & Mohamed (2015), U2 to U4 confined, since only U1 has a density otherwise.",
    ),
    "mode": (OURS, "Which of the three ways below."),
    "blocks": (PAPER, "Four residual blocks."),
    "hidden": (PAPER, "Hidden layer size 32 of the three-layer bottlenecks."),
    "slope": (OURS, "LeakyReLU is the paper's, its slope is not given."),
    "batch": (PAPER, "Batch size 64."),
    "learning_rate": (
        OURS,
        "Adam is the paper's, with its default parameters; the step size is "
        "not in the text at hand.",
    ),
    "schedule": (OURS, "Half a cosine, to zero at the last iteration."),
    "iterations": (OURS, "Not given."),
    "smoothing": (
        OURS,
        "Width t of the kink while training, from the first value to the second, geometrically; "
        "0 is LeakyReLU itself. What is evaluated always has LeakyReLUs. The width at the end, "
        "like tempering and iterations, was chosen by the divergence reached, with one seed.",
    ),
    "hold": (OURS, "Last share of the iterations, with the width at its end."),
    "tempering": (
        OURS,
        "Factor on the energy at first, growing linearly to 1 at half of the iterations; for U3 "
        "and U4, of which a branch is found late without it.",
    ),
    "logdet": (OURS, "Which estimator; Algorithm 1 is the paper's."),
    "degree": (OURS, "Degree of the Chebyshev polynomial: not in the text at hand."),
    "probes": (OURS, "Rademacher probes are the paper's, their number is not in the text at hand."),
    "lower": (OURS, "The paper fixes a small lower end of the interval, value not in the text."),
    "power_steps": (
        OURS,
        "The power method is the paper's; steps and safety factor not given. "
        "No factor here: the plain form.",
    ),
    "spectral_weight": (
        OURS,
        "The paper's regulariser (8) on the third and fourth energy; its form is read as weight · "
        "E[λ_max(JᵀJ)], its weight is not in the text at hand.",
    ),
    "seed": (OURS, "Of the initial weights, the batches and the probes."),
}
assert set(SOURCES) == {field.name for field in fields(Settings)}

ENERGY_TARGETS = ("u1", "u2_confined", "u3_confined", "u4_confined")
DATA_TARGETS = ("eight", "moons")
TARGETS = (*ENERGY_TARGETS, *DATA_TARGETS)
SHORT = {"u2": "u2_confined", "u3": "u3_confined", "u4": "u4_confined"}  # names on the command line
TEMPERED = ("u3_confined", "u4_confined")
REGULARISED = ("u3_confined", "u4_confined")

MODES: dict[str, dict[str, Any]] = {
    "annealed": {"smoothing": (0.3, 0.03)},
    "exact": {},
    "algorithm1": {"logdet": "algorithm1", "iterations": 1000},
}
DESCRIPTIONS = {
    "annealed": "the network with smoothed kinks that sharpen to LeakyReLU, exact log det",
    "exact": "the paper's network, exact log det",
    "algorithm1": "the paper's network, Algorithm 1 in its plain form",
}


def settings_for(target: str, mode: str, **changes: Any) -> Settings:
    """Default settings of a target in a mode, with changes.

    Raises:
        ValueError: If target or mode is unknown.
    """
    target = SHORT.get(target, target)
    if target not in TARGETS or mode not in MODES:
        raise ValueError(
            f"No run {target!r}, {mode!r}: targets are {', '.join(TARGETS)}; modes are "
            f"{', '.join(MODES)}."
        )
    settings = Settings(target, mode, **MODES[mode])
    if mode == "algorithm1" and target in REGULARISED:
        settings = replace(settings, spectral_weight=1e-2)
    if target in DATA_TARGETS:
        settings = replace(settings, learning_rate=1e-3)
    if mode != "algorithm1" and target in TEMPERED:
        settings = replace(settings, tempering=0.05, iterations=6000)
        if mode == "annealed":
            settings = replace(settings, smoothing=(0.3, 0.01))
    return replace(settings, **changes)


def temperature(settings: Settings, iteration: int) -> float:
    """Width of the kinks at an iteration."""
    start, end = settings.smoothing
    if start == 0:
        return 0.0
    share = min(1.0, iteration / ((1 - settings.hold) * settings.iterations))
    return start * (end / start) ** share


def tempering(settings: Settings, iteration: int) -> float:
    """Factor on the energy at an iteration."""
    share = min(1.0, 2 * iteration / settings.iterations)
    return settings.tempering + (1 - settings.tempering) * share
