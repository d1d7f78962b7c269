"""Figures, verdict and page of the experiment on noisy decoders, all from its records."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from verification.experiments.noisy_verdict import (
    FOLD,
    ORDERS,
    ROUNDING,
    chosen,
    models,
    order,
)
from verification.experiments.outputs import COLOURS, canvas, png, table, unique_legend
from verification.store import Record

LOWEST = 1e-7  # nats, lower end of the axes of differences


def page(
    records: list[Record], judged: Record, settings: dict[str, Any], cpu_seconds: float
) -> str:
    """The report as Markdown."""
    return "\n\n".join(
        [
            "# The density of a generator as the limit of a noisy decoder",
            "`python -m verification.experiments.noisy_decoder` writes this page. "
            "log p_σ(f(z)) + ((N−n)/2) log 2πσ² by annealed importance sampling (AIS: "
            f"{settings['chains']} chains, {settings['temperatures']} temperatures, "
            f"{settings['leapfrog']} leapfrog steps a move) and, for n = 2, by an adaptive grid, "
            "against log p_Z(z) − ½ log det JᵀJ from `qr_logdet`. One run passes through all "
            "noises, so that the estimates of one point at different σ are correlated. The whole "
            f"took {cpu_seconds / 60:.1f} minutes of CPU time on one thread.",
            "## What was judged\n\n" + _verdict_table(judged),
            f"Deviations in standard errors, each over {settings['chains']} chains; the limit "
            f"{judged['limit']:.2f} is that of Student's t with {settings['chains'] - 1} degrees "
            f"of freedom at a false-alarm rate of {judged['level']:g} over all comparisons "
            "together (Bonferroni, so that correlated ones do no harm). Without a grid "
            "(net 8→16) AIS is judged against the limit where σ is smallest, and by the "
            "two bounds meeting. "
            + _exact(judged)
            + (" **Passed.**" if judged["passed"] else " **FAILED.**"),
            "![Absolute difference from the limit against the noise](limit.png)",
            "## Distance from the limit at the smallest noise, in nats\n\n" + _limit_table(records),
            "Error of AIS: its standard error. Order: slope of log |grid − limit| against log σ. "
            "Golub–Kahan: standard error of ½ log det with "
            f"{settings['probes']} Rademacher probes and n steps; Algorithm 1: its error with the "
            "same probes, degree 20, δ = 0.01. All are means over points.",
            "![Values against the noise](values.png)",
            "## A map that is not injective\n\n" + _fold_table(records),
            "Share: of the density at f(z) that comes from z itself. The formula of one preimage "
            "is off by −log share, the sum over preimages is the limit.",
            "## Lower and upper bounds for simulated data\n\n" + _certificate_table(records),
            "Forward chains bound log p_σ(x) from below on average, reverse chains from the exact "
            "posterior draw from above; means over points. Errors are standard errors of one "
            "point's bound over chains; all reverse chains of a point start at its one exact draw, "
            "which they forget, and that draw is not in the error. Formula: ½ log det at the "
            "point of the image nearest to x, which differs by O(σ²).",
            "![Bounds, and schedules at equal gradients](certificate.png)",
            "## Schedules and moves at equal numbers of gradients\n\n" + _ladder_table(records),
            "Sigmoidal with 10 leapfrog steps is the setting of Wu et al. (2016). Variance is that "
            "of one log weight; ESS as a share of the chains; CPU seconds include the pilot run "
            "that tunes step sizes.",
        ]
    ) + "\n"  # fmt: skip


def figures(records: list[Record]) -> dict[str, bytes]:
    """PNG files by name."""
    return {
        "limit.png": _limit_figure(records),
        "values.png": _value_figure(records),
        "certificate.png": _certificate_figure(records),
    }


def _verdict_table(judged: Record) -> str:
    rows = [
        [name, str(count), f"{judged['within_two'][name]:.0%}", f"{judged['largest'][name]:.2f}"]
        for name, count in judged["comparisons"].items()
    ]
    return table(["difference", "comparisons", "within two errors", "largest"], rows)


def _exact(judged: Record) -> str:
    orders = ", ".join(f"{value:.2f} ({model})" for model, value in judged["orders"].items())
    return (
        f"Without chance: |grid − limit| must fall with an order in σ within [{ORDERS[0]:g}, "
        f"{ORDERS[1]:g}] for injective maps: {orders}. Grid against the closed form of the linear "
        f"map: at most {judged['grid_against_closed_form']:.1e} nats (limit {ROUNDING:g}); halving "
        f"the cells changes at most {judged['grid_halved']:.1e} nats."
    )


def _limit_table(records: list[Record]) -> str:
    rows = []
    for model in models(records):
        known = chosen(records, "formula", model=model)
        found = chosen(records, "limit", model=model)
        last = chosen(found, "limit", sigma=min(r["sigma"] for r in found))
        truth = [k["all_preimages"] for k in known]
        pairs = list(zip(last, truth, strict=True))
        grid = [abs(r["grid"] - t) for r, t in pairs if r["grid"] is not None]
        rows.append(
            [
                model,
                f"{last[0]['sigma']:.4f}",
                f"{np.mean([r['ais'] - t for r, t in pairs]):+.3f}",
                f"{np.mean([r['ais_error'] for r in last]):.3f}",
                f"{np.mean([r['ess'] for r in last]):.0f}",
                f"{np.mean(grid):.1e}" if grid else "–",
                f"{order(records, model):.2f}" if grid else "–",
                f"{np.mean([k['golub_kahan_error'] for k in known]):.3f}",
                f"{np.mean([abs(k['algorithm1'] - k['formula']) for k in known]):.3f}",
            ]
        )
    head = ["model", "σ", "AIS − limit", "error of AIS", "ESS", "\\|grid − limit\\|", "order"]
    return table([*head, "Golub–Kahan", "Algorithm 1"], rows)


def _fold_table(records: list[Record]) -> str:
    rows = []
    for known in chosen(records, "formula", model=FOLD):
        found = chosen(records, "limit", model=FOLD, point=known["point"])
        last = min(found, key=lambda r: r["sigma"])
        gap = known["all_preimages"] - known["formula"]
        rows.append(
            [
                str(known["point"]),
                f"{math.exp(-gap):.3f}",
                f"{gap:.4f}",
                f"{last['grid'] - known['formula']:.4f}",
                f"{last['ais'] - known['formula']:.3f} ± {last['ais_error']:.3f}",
                f"{abs(last['grid'] - known['all_preimages']):.1e}",
            ]
        )
    head = ["point", "share", "−log share", "grid − formula", "AIS − formula", "\\|grid − sum\\|"]
    return table(head, rows)


def _certificate_table(records: list[Record]) -> str:
    rows = []
    sigmas = dict.fromkeys(r["sigma"] for r in chosen(records, "certificate"))
    for model, sigma in product(models(records), sigmas):
        found = chosen(records, "certificate", model=model, sigma=sigma)
        known = [r for r in found if r["truth"] is not None]

        def mean(first: str, second: str, found: list[Record] = known) -> str:
            return f"{np.mean([r[first] - r[second] for r in found]):+.3f}" if found else "–"

        rows.append(
            [
                model,
                f"{sigma:g}",
                mean("lower", "truth"),
                mean("upper", "truth"),
                mean("upper", "lower", found),
                f"{np.mean([r['lower_error'] for r in found]):.3f}",
                f"{np.mean([r['upper_error'] for r in found]):.3f}",
                f"{np.mean([r['formula'] - (r['upper'] + r['lower']) / 2 for r in found]):+.3f}",
                mean("formula", "truth"),
            ]
        )
    head = [
        "model",
        "σ",
        "lower − truth",
        "upper − truth",
        "gap",
        "error of lower",
        "error of upper",
    ]
    return table([*head, "formula − middle", "formula − truth"], rows)


def _ladder_table(records: list[Record]) -> str:
    return table(
        [
            "σ",
            "gradients",
            "schedule",
            "leapfrog",
            "rms error",
            "reported",
            "variance",
            "ESS",
            "CPU s",
        ],
        [
            [
                f"{r['sigma']:g}",
                str(r["gradients"]),
                r["schedule"],
                str(r["leapfrog"]),
                f"{r['rms_error']:.3f}",
                f"{r['reported_error']:.3f}",
                f"{r['variance']:.2f}",
                f"{r['ess']:.0%}",
                f"{r['seconds']:.1f}",
            ]
            for r in chosen(records, "ladder")
        ],
    )


def _limit_figure(records: list[Record]) -> bytes:
    names = models(records)
    with canvas(2, 3, 7.6) as (figure, axes):
        flat = list(axes.flat)
        for ax, model in zip(flat, names, strict=False):
            _differences(ax, records, model)
            ax.set(title=model, xscale="log", yscale="log", ylim=(LOWEST, 10))
        for ax in axes[:, 0]:
            ax.set_ylabel("|difference from the limit| (nats)")
        for ax in flat[2:5]:
            ax.set_xlabel("noise σ")
        for ax in flat[len(names) :]:
            ax.axis("off")
        unique_legend(flat[5], flat[:5], loc="center")
        return png(figure)


def _differences(ax: Axes, records: list[Record], model: str) -> None:
    for known in chosen(records, "formula", model=model):
        rows = chosen(records, "limit", model=model, point=known["point"])
        sigma, colour = np.array([r["sigma"] for r in rows]), COLOURS[known["point"]]
        truth = known["all_preimages"]
        away = np.maximum(np.abs([r["ais"] - truth for r in rows]), LOWEST)
        error = np.array([r["ais_error"] for r in rows])
        # On a log axis a bar that reaches zero runs off the lower edge.
        bars = np.array([np.minimum(error, away - LOWEST / 2), error])
        label = "AIS ± standard error, one colour a point"
        shifted = sigma * (1 + 0.08 * (known["point"] - 1))
        ax.errorbar(shifted, away, bars, fmt="o", ms=4, color=colour, lw=1, label=label)
        if rows[0]["grid"] is None:
            continue
        grid = np.abs([r["grid"] - truth for r in rows])
        ax.plot(sigma, grid, "-", marker=".", color=colour, label="grid (exact)")
        if model == FOLD:
            off = np.abs([r["grid"] - known["formula"] for r in rows])
            ax.plot(sigma, off, ":", color=colour, label="grid − formula of one preimage")
    points = chosen(records, "formula", model=model)
    quadrature = float(np.mean([k["golub_kahan_error"] for k in points]))
    plain = float(np.mean([abs(k["algorithm1"] - k["formula"]) for k in points]))
    _level(ax, quadrature, "#444444", "--", "golub_kahan_logdet, standard error of ½ log det")
    _level(ax, plain, "#999999", "-.", "algorithm1_logdet, error of ½ log det")


def _level(ax: Axes, value: float, colour: str, style: str, label: str) -> None:
    ax.axhline(value, color=colour, ls=style, lw=1.2, label=label)


def _value_figure(records: list[Record]) -> bytes:
    names = models(records)
    with canvas(2, 3, 7.0) as (figure, axes):
        flat = list(axes.flat)
        for ax, model in zip(flat, names, strict=False):
            known = chosen(records, "formula", model=model, point=0)[0]
            rows = chosen(records, "limit", model=model, point=0)
            sigma = [r["sigma"] for r in rows]
            low, error = known["golub_kahan"], known["golub_kahan_error"]
            band = "golub_kahan_logdet ± standard error"
            ax.axhspan(low - error, low + error, color="#dbe7f3", label=band)
            _level(ax, known["formula"], "#111111", "-", "qr_logdet: log p_Z − ½ log det JᵀJ")
            _level(ax, known["algorithm1"], "#999999", "-.", "algorithm1_logdet")
            if model == FOLD:
                total = known["all_preimages"]
                _level(ax, total, COLOURS[2], "-", "sum over both preimages")
            if rows[0]["grid"] is not None:
                exact = [r["grid"] for r in rows]
                ax.plot(sigma, exact, color=COLOURS[0], label="grid (exact)")
            value, bars = [r["ais"] for r in rows], [r["ais_error"] for r in rows]
            ax.errorbar(sigma, value, bars, fmt="o", ms=5, color=COLOURS[1], label="AIS")
            ax.set(title=f"{model}, point 0", xscale="log")
        for ax in axes[:, 0]:
            ax.set_ylabel("log p_σ + ((N−n)/2) log 2πσ² (nats)")
        for ax in flat[2:5]:
            ax.set_xlabel("noise σ")
        for ax in flat[len(names) :]:
            ax.axis("off")
        unique_legend(flat[5], flat[:5], loc="center")
        return png(figure)


def _certificate_figure(records: list[Record]) -> bytes:
    sigmas = list(dict.fromkeys(r["sigma"] for r in chosen(records, "ladder")))
    ratios = [1.3] + [1] * len(sigmas)
    with canvas(1, 1 + len(sigmas), 5.4, width_ratios=ratios) as (figure, axes):
        _bounds(axes[0, 0], records)
        for ax, sigma in zip(axes[0, 1:], sigmas, strict=True):
            rows = chosen(records, "ladder", sigma=sigma)
            _ladder(ax, rows)
            ax.set(title=f"AIS of the net 2→8 at σ = {sigma:g}", xscale="log", yscale="log")
            ticks = list(dict.fromkeys(r["gradients"] for r in rows))
            ax.set_xticks(ticks, [str(t) for t in ticks])
            ax.set_xticks([], minor=True)
            ax.set_xlabel("gradients per chain")
        axes[0, 1].set_ylabel("variance of a log weight (nats²)")
        unique_legend(figure, list(axes.flat), loc="outside lower center", ncols=3)
        return png(figure)


def _bounds(ax: Axes, records: list[Record]) -> None:
    ticks = []
    for place, (model, sigma) in enumerate(
        product(models(records), dict.fromkeys(r["sigma"] for r in chosen(records, "certificate")))
    ):
        ticks.append(f"{model}, σ={sigma:g}")
        for r in chosen(records, "certificate", model=model, sigma=sigma):
            known = r["truth"] is not None
            centre = r["truth"] if known else (r["lower"] + r["upper"]) / 2
            y = -place + 0.2 * (r["point"] - 1)
            for side, colour in (("lower", COLOURS[0]), ("upper", COLOURS[1])):
                bar = r[f"{side}_error"]
                label = "forward, lower bound" if side == "lower" else "reverse, upper bound"
                ax.errorbar(r[side] - centre, y, xerr=bar, fmt="o", ms=3, color=colour, label=label)
    ax.axvline(0, color="#111111", lw=1)
    ax.set_yticks([-i for i in range(len(ticks))], ticks, fontsize=8.5)
    ax.set(
        title="Bounds for simulated data",
        xlabel="bound − log p_σ(x), nats (n = 8: − middle of both)",
    )


def _ladder(ax: Axes, rows: list[Record]) -> None:
    styles = list(dict.fromkeys((r["schedule"], r["leapfrog"]) for r in rows))
    for colour, (schedule, leapfrog) in zip(COLOURS, styles, strict=False):
        line = chosen(rows, "ladder", schedule=schedule, leapfrog=leapfrog)
        x, y = [r["gradients"] for r in line], [r["variance"] for r in line]
        ax.plot(x, y, "o-", color=colour, label=f"{schedule}, {leapfrog} leapfrog steps")
