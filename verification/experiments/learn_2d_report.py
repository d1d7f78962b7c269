"""The page of the plane experiment, from its records alone."""

from __future__ import annotations

from collections.abc import Sequence

from verification.experiments.learn_2d_settings import (
    DATA_TARGETS,
    DESCRIPTIONS,
    OURS,
    SOURCES,
)
from verification.experiments.outputs import table
from verification.store import Record

GOAL = 0.05  # nats

OPENING = """# Learning densities on the plane

After Ramesh & LeCun (2018), section 3: a residual network learns four energies by KL(p‖q), where
only the energy is known, and two data sets by KL(q‖p), where only samples are. Regenerate with
`python -m verification.experiments.learn_2d --ablate`.

Each target is learned in three ways:

"""

KINKS = """## What limits the paper's network

log det JᵀJ of a LeakyReLU network is constant on pieces of the plane. Its mean depends on where the
pieces end, and no derivative at a point sees that: the gradient of the paper's objective lacks a
term for every kink, however exactly log det is computed. Below, for the untrained network on U1:
the slope of the objective along its own gradient, as automatic differentiation promises it, and as
the difference quotient of the mean over the same points measures it.

"""

FLOOR = """## What stops Algorithm 1

The lower end δ of the interval is a constant. Below it the polynomial levels off where log falls
without bound: log det of a nearly singular JᵀJ is estimated too large, its gradient too small, and
nothing keeps the map from collapsing the plane onto a curve, σ_min² far below δ. Where λ_max comes
down to δ as well, the interval closes and the polynomial explodes outside of it: the estimate runs
off, until it is no longer finite and the run stops. The plain form has no status for any of this;
the safe form refuses. Least σ_min² and mean λ_max over the last tenth of the iterations:

"""

FOLDS = """
Nothing stops such a network from folding the plane either: det J jumps from one sign to the other
without passing zero. Where it folds, the objective counts one preimage of each point and lies below
KL(p‖q) − log Z by the gap in the first table; it can fall below −log Z, where nothing that is
normalised could. Smooth kinks repair both: the gradient is that of the mean, and −log det grows
without bound in front of a fold. Sharpened slowly while training, they end in the paper's network.
"""


def text(records: Sequence[Record], pictures: Sequence[str]) -> str:
    """README.md."""
    runs = [r for r in records if r["kind"] == "run"]
    used = dict.fromkeys(r["mode"] for r in runs)
    parts = [OPENING + "\n".join(f"- **{mode}**: {DESCRIPTIONS[mode]}." for mode in used) + "\n"]
    parts.append(_energies([r for r in runs if r["target"] not in DATA_TARGETS]))
    parts.append(_data([r for r in runs if r["target"] in DATA_TARGETS]))
    parts.append(_monitors(runs))
    parts.append(_slopes([r for r in records if r["kind"] == "slope"]))
    parts.append(_floors([r for r in runs if r["mode"] == "algorithm1"]))
    parts.append(_ablations(records))
    parts += [f"## {name.removesuffix('.png')}\n\n![{name}]({name})\n" for name in pictures]
    parts.append(_settings(runs))
    return "\n".join(part for part in parts if part)


def _energies(runs: list[Record]) -> str:
    if not runs:
        return ""
    head = [
        "target",
        "way",
        "KL(p‖q), nats",
        "on a grid",
        "one preimage",
        "gap",
        "preimages",
        "det J < 0",
        f"≤ {GOAL}",
    ]
    rows = [
        [
            r["target"],
            r["mode"] + (" (stopped)" if r["stopped"] else ""),
            f"{r['kl']:.4f} ± {r['kl_error']:.4f}",
            f"{r['kl_grid']:.4f}",
            f"{r['kl_single']:.4f} ± {r['kl_single_error']:.4f}",
            f"{r['folding']:.4f}",
            f"{r['preimages']:.3f}",
            f"{100 * r['orientation_reversed']:.1f} %",
            "yes" if r["kl"] <= GOAL else "no",
        ]
        for r in runs
    ]
    return (
        "## Energies\n\nKL(p‖q) of the trained LeakyReLU network, with all preimages of each "
        "sample (exact: the plane is cut into the triangles on which the network is affine), by "
        "Monte Carlo and on a grid; with the preimage at hand alone, which is what the objective "
        "minimises; and the gap between the two, mean log of the share of the other preimages.\n\n"
        + table(head, rows)
        + "\n"
    )


def _data(runs: list[Record]) -> str:
    if not runs:
        return ""
    head = [
        "target",
        "way",
        "KL(q‖p), nats",
        "mass of p",
        "in the box",
        "KL of p / mass",
        "entropy of q",
    ]
    rows = [
        [
            r["target"],
            r["mode"] + (" (stopped)" if r["stopped"] else ""),
            f"{r['kl']:.4f}",
            f"{r['mass']:.4f} ± {r['mass_error']:.0e}",
            f"{r['mass_in_box']:.4f}",
            f"{r['kl_normalised']:.4f}",
            f"{r['entropy']:.4f}",
        ]
        for r in runs
    ]
    return (
        "## Data\n\np(x) = p_Z(f(x)) √det JᵀJ has the mass E[number of preimages of z under f]: 1 "
        "only if f is injective and reaches all of Z. With other masses KL(q‖p) may be negative; "
        "the mass beyond 1 lies where the data are not, or counts double where they are.\n\n"
        + table(head, rows)
        + "\n"
    )


def _monitors(runs: list[Record]) -> str:
    head = [
        "target",
        "way",
        "iterations",
        "objective",
        "relative error, median",
        "largest",
        "λ_max",
        "σ_min",
        "processor seconds",
    ]
    rows = [
        [
            r["target"],
            r["mode"],
            str(r["iterations"]),
            f"{r['tail']['objective']:.5g} ± {r['tail']['objective_error']:.1g}",
            f"{r['tail']['relative_error']:.1e}",
            f"{r['tail']['largest_error']:.1e}",
            f"{r['tail']['lambda_max']:.3g}",
            f"{r['tail']['smallest_singular_value']:.1e}",
            f"{r['seconds']:.0f}",
        ]
        for r in runs
    ]
    total = sum(r["seconds"] for r in runs)
    stops = "".join(f"\n- {r['stopped']}" for r in runs if r["stopped"])
    return (
        "## While training\n\nOver the last tenth of the iterations. The relative error of the "
        "estimated log-likelihood is |estimate − exact| / max(1, |exact|) for each item of the "
        "batch, exact being that of the singular values of J in float64; its mean over the batch "
        "is recorded at each iteration, and its largest. λ_max of JᵀJ is the mean, σ_min of J the "
        f"least.\n\n{table(head, rows)}\n\nTraining took {total / 60:.1f} minutes of one processor "
        f"in all.\n{stops}\n"
    )


def _slopes(found: list[Record]) -> str:
    head = ["width of the kink", "promised", "measured", "measured / promised"]
    rows = [
        [
            "0 (LeakyReLU)" if r["width"] == 0 else f"{r['width']:g}",
            f"{r['promised']:.4f}",
            f"{r['measured']:.4f} ± {r['measured_error']:.4f}",
            f"{r['measured'] / r['promised']:.3f}",
        ]
        for r in found
    ]
    return KINKS + table(head, rows) + "\n" + FOLDS


def _floors(runs: list[Record]) -> str:
    if not runs:
        return ""
    head = ["target", "ended", "δ", "σ_min²", "λ_max", "objective, estimated", "KL reached"]
    rows = [
        [
            r["target"],
            f"stopped at {r['iterations']}" if r["stopped"] else f"finished, {r['iterations']}",
            f"{r['settings']['lower']:g}",
            f"{r['tail']['smallest_singular_value'] ** 2:.1e}",
            f"{r['tail']['lambda_max']:.2g}",
            f"{r['tail']['objective']:.3g}",
            f"{r['kl']:.3f}",
        ]
        for r in runs
    ]
    return FLOOR + table(head, rows) + "\n"


def _ablations(records: Sequence[Record]) -> str:
    rows = [
        [
            r["kind"].removeprefix("ablation, "),
            r["id"],
            str(r["iterations"]),
            f"{r['seconds']:.1f}",
            f"{r['relative_error']:.1e}",
            f"{r['kl']:.3f} ± {r['kl_error']:.3f}" + (" (stopped)" if r["stopped"] else ""),
            f"{r['kl_single']:.3f}",
        ]
        for r in records
        if r["kind"].startswith("ablation")
    ]
    if not rows:
        return ""
    head = [
        "ablation",
        "setting",
        "iterations",
        "seconds",
        "relative error",
        "KL(p‖q), nats",
        "one preimage",
    ]
    return (
        "## Ablations\n\nU1 with annealed kinks, short runs: what degree, probes and lower end δ "
        "of Algorithm 1 do to the divergence reached, and estimators at equal processor time. J is "
        "an explicit 2 × 2 matrix here, so that time is overhead: nothing follows from it for "
        "large maps. Then how far the kinks may sharpen while training: KL below zero with one "
        "preimage shows folds. Median relative error over the last iterations, KL with all "
        "preimages.\n\n" + table(head, rows) + "\n"
    )


def _settings(runs: list[Record]) -> str:
    rows = []
    for name, (source, note) in SOURCES.items():
        shown = dict.fromkeys(str(r["settings"][name]) for r in runs)
        rows.append([name, "" if name in ("target", "mode") else " / ".join(shown), source, note])
    note = (
        f"“{OURS}” are choices that the paper's text does not give; several values differ by way "
        "or by target, in the order of the runs."
    )
    weights = {r["settings"]["spectral_weight"] for r in runs} - {0.0}
    if weights:
        note += f" The weight of (8) is {', '.join(map(str, sorted(weights)))} where it is used: "
        note += ", ".join(r["id"] for r in runs if r["settings"]["spectral_weight"]) + "."
    return f"## Settings\n\n{note}\n\n{table(['setting', 'value', 'source', 'note'], rows)}\n"
