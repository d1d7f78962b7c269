"""Figures and text of the RealNVP experiment, from its JSON record alone."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from verification.report.files import replace_files
from verification.store import Record

TITLE = {"mle": "maximum likelihood", "wgan": "Wasserstein critic"}
COLOUR = {  # of the methods drawn; the tables hold the others, QR and both precisions of the same
    "Golub–Kahan, 8 steps": "#56b4e9",
    "Golub–Kahan, 16 steps": "#0072b2",
    "block Golub–Kahan, 4 steps": "#009e73",
    "Algorithm 1, safe": "#e69f00",
    "Algorithm 1, plain": "#d55e00",
    "SLQ, 16 steps, float32": "#7f3c8d",
}
DRAWN = ("Golub–Kahan, 16 steps", "block Golub–Kahan, 4 steps", "Algorithm 1, safe")
COMPARED, PLAIN = "Golub–Kahan, 16 steps", "Algorithm 1, plain"
ERRORS = (0.2, 2e3)  # nats shown; the plain form of Algorithm 1 may lie anywhere
ERROR_KEYS = ("mean_error", "mean_abs_error", "standard_error", "covered")
FAINT = "#9aa5b1"
WHERE = {"held-out": "held-out digits", "samples": "samples"}


def write(results: Record, out: Path) -> Path:
    """Write README.md and the figures into a folder; the path of the former."""
    figures = {
        "bits.png": bits_figure(results),
        "error.png": error_figure(results),
        "samples.png": samples_figure(results),
    }
    for name, figure in figures.items():
        _save(figure, out / name)
    page = out / "README.md"
    replace_files({page: text(results)})
    return page


# Figures ------------------------------------------------------------------------------------------


def bits_figure(results: Record) -> Figure:
    """Bits/dim along both trainings, exact and estimated, and the distance of the samples."""
    figure = Figure((12.8, 4.6), dpi=100, layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, (objective, run) in zip(axes[:2], results["runs"].items(), strict=True):
        _bits(ax, run, results["uniform_bits"])
        ax.set_title(f"Trained by {TITLE[objective]}", loc="left", fontweight="bold")
        ax.set_ylabel("bits per dimension")
        _step_axis(ax, run)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=8, frameon=False)
    _step_axis(axes[2], *results["runs"].values())
    for objective, run in results["runs"].items():
        axes[2].plot(_steps(run), _column(run, "wasserstein"), marker="o", label=TITLE[objective])
    axes[2].axhline(results["wasserstein_floor"], ls=":", color="#52606d", label="digits to digits")
    axes[2].set_title("W1 from samples to held-out digits", loc="left", fontweight="bold")
    axes[2].set_ylabel("Wasserstein-1 distance")
    axes[2].legend(fontsize=8, frameon=False)
    return figure


def _bits(ax: Axes, run: list[Record], uniform: float) -> None:
    steps = _steps(run)
    ax.plot(steps, _column(run, "bits", "held-out"), color=FAINT, label="exact, all held-out")
    ax.plot(steps, _column(run, "bits", "train"), color=FAINT, ls="--", label="exact, train")
    ax.plot(steps, _column(run, "bits", "samples"), color="#7f3c8d", ls="-.", label="its samples")
    count = "exact, the digits estimated"
    ax.plot(steps, _column(run, "held-out", "bits"), color="#111111", lw=1.8, label=count)
    for name in DRAWN:
        middle = _column(run, "held-out", "methods", name, "bits")
        bar = 2 * _column(run, "held-out", "methods", name, "bits_standard_error")
        style: dict[str, Any] = {"marker": "o", "ms": 4, "ls": "none", "capsize": 2}
        ax.errorbar(steps, middle, bar, color=COLOUR[name], label=name + " (±2 se)", **style)
    ax.axhline(uniform, ls=":", color="#52606d", label="uniform density")


def error_figure(results: Record) -> Figure:
    """Error of the stochastic methods at digits and samples, and condition numbers."""
    figure = Figure((12.8, 7.2), dpi=100, layout="constrained")
    axes = figure.subplots(2, 4)
    for row, (objective, run) in zip(axes, results["runs"].items(), strict=True):
        for ax, where in zip(row, WHERE, strict=False):
            _errors(ax, run, where, relative=False)
            ax.set_ylim(*ERRORS)
        _errors(row[2], run, "samples", relative=True)
        row[2].set_ylim(1e-3, 3)
        _conditions(row[3], run)
        row[0].set_ylabel(f"{TITLE[objective]}\nmean |error| of log det JᵀJ / nats")
        row[2].set_ylabel("mean |error| / mean Σ |log λ|")
        row[3].set_ylabel("cond J")
        for ax in row:
            ax.set_yscale("log")
            _step_axis(ax, run)
    titles = ("Held-out digits", "Samples", "Samples, relative", "Condition number")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, loc="left", fontweight="bold")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    axes[0, 3].legend(fontsize=8, frameon=False)
    return figure


def _errors(ax: Axes, run: list[Record], where: str, *, relative: bool) -> None:
    scale = _column(run, where, "log_sum") if relative else 1.0
    for name in [name for name in COLOUR if name in run[0][where]["methods"]]:
        error = _column(run, where, "methods", name, "mean_abs_error")
        ax.plot(_steps(run), error / scale, **_look(name))
    chance = _column(run, where, "methods", COMPARED, "standard_error")
    # The mean of |N(0, se²)| is sqrt(2 / π) se.
    label = f"chance alone, by the standard error of {COMPARED}"
    ax.plot(_steps(run), math.sqrt(2 / math.pi) * chance / scale, "--", color=FAINT, label=label)


def _look(name: str) -> dict[str, Any]:
    # Crosses, because float32 mostly lies upon the line of the same method in float64.
    single = name.endswith("float32")
    shape = {"ls": "none", "marker": "x", "ms": 7} if single else {"marker": "o", "ms": 3}
    return {"label": name, "color": COLOUR[name], **shape}


def _conditions(ax: Axes, run: list[Record]) -> None:
    for (where, label), colour in zip(WHERE.items(), ("#111111", "#7f3c8d"), strict=True):
        for kind, ls in (("median", "-"), ("max", ":")):
            values = _column(run, where, "condition", kind)
            ax.plot(_steps(run), values, color=colour, ls=ls, label=f"{label}, {kind}")


def samples_figure(results: Record) -> Figure:
    """Samples of both generators, from the same codes at every stage, beside the digits."""
    figure = Figure((12.8, 4.4), dpi=100, layout="constrained")
    axes = figure.subplots(2, 5)
    for row, (objective, run) in zip(axes, results["runs"].items(), strict=True):
        shown = sorted({round(i * (len(run) - 1) / 3) for i in range(4)})
        for ax in row[len(shown) : 4]:
            ax.set_visible(False)
        for ax, record in zip(row, [run[i] for i in shown], strict=False):
            _grid(ax, record["pictures"])
            ax.set_title(f"step {record['step']}", fontsize=9)
        _grid(row[4], results["data"])
        row[4].set_title("held-out digits", fontsize=9)
        row[0].set_ylabel(TITLE[objective])
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    return figure


def _grid(ax: Axes, pictures: list[str], columns: int = 6) -> None:
    pixels = np.array([list(bytes.fromhex(picture)) for picture in pictures])
    side = math.isqrt(pixels.shape[1])
    tiles = np.pad(pixels.reshape(-1, side, side), ((0, 0), (0, 1), (0, 1)))
    rows = [np.concatenate(list(tiles[i : i + columns]), 1) for i in range(0, len(tiles), columns)]
    ax.imshow(np.concatenate(rows), cmap="gray", vmin=0, vmax=100)


def _step_axis(ax: Axes, *runs: list[Record]) -> None:
    """Linear up to the first stage, so that step 0 has a place, logarithmic after."""
    first = min(run[1]["step"] for run in runs)
    last = max(run[-1]["step"] for run in runs)
    ax.set_xscale("symlog", linthresh=first, linscale=0.3)
    ax.set_xlim(-0.3 * first, 1.3 * last)
    tens = [10**k for k in range(math.ceil(math.log10(first + 1)), 1 + int(math.log10(last)))]
    ax.set_xticks([0, *tens], ["0", *(f"$10^{{{int(math.log10(ten))}}}$" for ten in tens)])
    ax.minorticks_off()
    ax.set_xlabel("updates of the generator")
    ax.grid(color="#e4e7eb", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _steps(run: list[Record]) -> list[int]:
    return [record["step"] for record in run]


def _column(run: list[Record], *keys: str) -> np.ndarray:
    """One number of every record; NaN where it is missing."""
    found = []
    for record in run:
        value: Any = record
        for key in keys:
            value = value[key]
        found.append(math.nan if value is None else value)
    return np.array(found, dtype=float)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


# Text ---------------------------------------------------------------------------------------------


def text(results: Record) -> str:
    """README.md: what was done and what came out, every number from the record."""
    settings, provenance = results["settings"], results["provenance"]
    parts = [
        "# RealNVP by maximum likelihood and by a Wasserstein critic",
        "Written by `python -m verification.experiments.realnvp` from results.json "
        f"(commit {provenance['commit'][:12]}, torch {provenance['versions']['torch']}, "
        f"seed {settings['seed']}, {provenance['threads']} thread, "
        f"{provenance['seconds'] / 60:.1f} minutes of processor time).",
        f"One generator, {settings['layers']} affine couplings and a logistic function per pixel, "
        "is trained twice from the same weights on scikit-learn's 8x8 digits with uniform noise: "
        "by exact maximum likelihood and by a critic with gradient penalty. Its log-determinant is "
        "known exactly, so that every estimate has an error that is known too. "
        f"Log-determinants are estimated at {settings['points']} held-out digits and at as many "
        f"samples, {settings['probes']} Rademacher probes each.",
        "![Bits per dimension and Wasserstein distance along training](bits.png)",
        _stages_table(results),
        "`samples` is the model's own density at its samples; `code` the root mean square of a "
        "coordinate of the codes of held-out digits, 1 under the prior; W1 the distance between as "
        "many samples and held-out digits, by optimal assignment. The comparison is that of "
        "Danihelka et al. (2017, arXiv:1705.05263) and of Grover, Dhar & Ermon (2018, "
        "arXiv:1705.08868).",
        "## Findings\n",
        "\n".join(f"- {line}" for line in findings(results)),
        "## Estimators at the end of training\n",
        "![Error of the estimators and condition numbers](error.png)",
        "Where a curve leaves its panel at the top, the error is larger than shown: the plain form "
        "of Algorithm 1 takes a lower bound of the largest eigenvalue for an upper one.",
        *(_methods_table(results, objective) for objective in results["runs"]),
        "Errors are of log det JᵀJ, in nats, mean over the points; `products` with JᵀJ are counted "
        "for one point; `failed` estimates say so and are left out of the means. The standard "
        "error (se) is that of one point's probes and knows nothing of truncation. Algorithm 1 has "
        "degree 32, 10 power steps and the lower bound δ = 1e-4. `covered` is the share of points "
        "whose 95 % interval holds the truth, where the interval has two ends: an open one says "
        "that truncation is not bounded on that side. QR is exact and, n being 64, affordable: it "
        "confirms the closed form; the estimates are for n where it is out of reach.",
        "![Samples of both generators at four stages](samples.png)",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def findings(results: Record) -> list[str]:
    """What the two trainings did to the density, and to the estimates of it."""
    lines = []
    for objective, run in results["runs"].items():
        held = _column(run, "bits", "held-out")
        best, last = int(held.argmin()), run[-1]
        over = held[-1] - results["uniform_bits"]
        lines.append(
            f"{TITLE[objective]}: held-out bits/dim {held[0]:.2f} at first, least {held[best]:.2f} "
            f"at step {run[best]['step']}, {held[-1]:.2f} at last, "
            f"{abs(over):.2f} {'above' if over > 0 else 'below'} the uniform density; "
            f"W1 {run[0]['wasserstein']:.2f} at first, {last['wasserstein']:.2f} at last "
            f"(digits to digits {results['wasserstein_floor']:.2f})."
        )
        lines += [
            f"{TITLE[objective]}, at {label}: {_errs(last[where], DRAWN[:2])}, of a mean "
            f"Σ |log λ| = {last[where]['log_sum']:.0f}, at a median cond J of "
            f"{last[where]['condition']['median']:.3g} (largest "
            f"{last[where]['condition']['max']:.3g})."
            for where, label in WHERE.items()
        ]
        worst = _column(run, "held-out", "methods", PLAIN, "mean_abs_error")
        lines.append(
            f"{TITLE[objective]}: the plain form of Algorithm 1 errs by up to "
            f"{np.nanmax(worst):.2g} nats along training, in the mean over the held-out digits."
        )
    return lines


def _errs(measured: Record, names: tuple[str, ...]) -> str:
    parts = []
    for name in names:
        found = measured["methods"][name]
        parts.append(
            f"{name} ({found['products']:.0f} products) errs by "
            f"{_number(found['mean_abs_error'])} nats (bias {_number(found['mean_error'])}, "
            f"standard error {_number(found['standard_error'])})"
        )
    return ", ".join(parts)


def _stages_table(results: Record) -> str:
    head = ("trained by", "step", "held-out", "train", "samples", "code", "W1", "critic", "cond J")
    body = [
        (
            TITLE[objective],
            str(r["step"]),
            *(_number(r["bits"][key]) for key in ("held-out", "train", "samples")),
            *(_number(r[key]) for key in ("code_norm", "wasserstein", "critic")),
            _number(r["held-out"]["condition"]["median"]),
        )
        for objective, run in results["runs"].items()
        for r in run
    ]
    return "Exact bits/dim and what goes with them:\n\n" + _table(head, body)


def _methods_table(results: Record, objective: str) -> str:
    last = results["runs"][objective][-1]
    head: tuple[str, ...] = ("method", "at", "products", "bits/dim", "exact")
    head += ("mean error", "mean abs error", "se", "covered", "failed")
    body = [
        (
            name,
            label,
            f"{found['products']:.0f}",
            f"{_number(found['bits'])} ± {_number(found['bits_standard_error'])}",
            _number(last[where]["bits"]),
            *(_number(found[key]) for key in ERROR_KEYS),
            str(found["failed"]),
        )
        for where, label in WHERE.items()
        for name, found in last[where]["methods"].items()
    ]
    return f"Trained by {TITLE[objective]}, step {last['step']}:\n\n" + _table(head, body)


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def _table(head: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
