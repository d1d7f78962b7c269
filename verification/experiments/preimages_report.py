"""Figures and page of the study of preimages; every number comes from its records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LogNorm
from torch import Tensor

from specbp.models.energies import Box
from verification.experiments.outputs import COLOURS, canvas, png, table
from verification.experiments.preimages_verdict import POINT, compared, score
from verification.provenance import ROOT
from verification.store import Record

COMMAND = "python -m verification.experiments.preimages"
DECADES = 4  # of density shown below the greatest
MOST = 9  # preimages told apart by colour
UNTRAINED = "Untrained networks"
SMALL = 1e-6  # nats: an error below is rounding

INTRODUCTION = """A generator f of the plane pushes the prior p_Z, a standard normal, to the density

    p(x) = Σ p_Z(z) / |det J_f(z)|   over ALL z with f(z) = x.

Ramesh & LeCun (2018, section 2.1) set the other preimages aside and keep the one z at hand. Here
all are found. The bottleneck residual network is affine on triangles that are computed layer by
layer, exactly up to rounding; a point has a preimage in each triangle whose image holds it. Other
maps are inverted by Newton's method from their interpolant on a fine grid.

The error of the formula at x = f(z) is log p(x) − log(p_Z(z) / |det J_f(z)|) ≥ 0, in nats. Its mean
over z is H(Z|X): by so much the loss of the direction Z → X lies below the true divergence."""

TRAINED = """Trained networks are those that `python -m verification.experiments.learn_2d` saves,
named target-way, at the end of their training or where it stopped. Their H(Z given X) against the
gap that that experiment reports, from draws and by preimages of its own:"""

NETWORKS = """Share of draws with more than one preimage, their mean number, and the error in nats;
{samples} draws of each network. *Scale*: factor on all parameters of an untrained network; mean
over networks (least to greatest)."""

CHECKS = """*recovered*: share of draws z that are found among the preimages of f(z). *winding*:
share of points x at which the signs of det J, summed over the preimages in the square
|z_i| ≤ {radius:g}, equal the winding number of the image of its edge. *Newton*: damped Newton from
{starts} starts; share of {points} points with the same number of preimages, and how many it missed
/ found beyond those located. *misfit*: greatest distance between f and its affine map at the
centroid of a triangle: rounding for a network, the error of the interpolant otherwise. Outside the
square lies a prior mass of {outside:.1e}."""

MASS = """Over the box that holds the central part of f(z): the prior mass that f sends there, by
quadrature in z, and the integral of the density over x with all preimages; then what the integral
with the likeliest preimage alone must be according to the draws, and is. ± is one standard error,
of the integrals from {repeats} repeats; unbounded densities, as at a smooth fold, make it a rough
one. *t*: integral less expectation, paired over the repeats and as many parts of the draws, in
standard errors: Student with {freedom} degrees of freedom. A bracketed row is not judged: at one
draw in a hundred, one point of the integral stands for more than {point:.0%} of the mass, so that
uniform points miss much of it."""

VERDICT = """{comparisons} comparisons of integrals with what is expected of them, here and in the
next section, from {repeats} repeats each: the largest |t| is {largest:.2f} ({worst}), the limit
{limit:.2f}, which is that of Student's t at a false-alarm rate of {level:g} over all of them
(Bonferroni). Not judged: {unresolved}. Checks of the preimages that fail: {unsound}."""

INVERSE = """The maximum-likelihood direction takes f from X to Z and p_Z(f(x)) |det J_f(x)| as the
density of x. Its mass over |x_i| ≤ {radius:g} is the mean number of preimages there of a draw of
the prior, not 1."""


def page(
    records: Sequence[Record], judged: Record, drawn: str, command: str, cpu_seconds: float
) -> str:
    """The page: networks, masses, checks."""
    known = [r for r in records if "known_count" in r]
    networks = [r for r in records if "known_count" not in r]
    integrated = [r for r in records if "mass" in r]
    first = records[0]
    sections = (
        "# Preimages of a generator",
        f"`{command}` writes this page, in {cpu_seconds / 60:.1f} minutes of CPU time on one "
        "thread.",
        INTRODUCTION,
        "## Networks",
        NETWORKS.format(samples=networks[0]["samples"]),
        _networks(networks),
        *_trained(networks),
        "![Error of the formula](errors.png)",
        f"The network with the greatest mean error, {drawn}:",
        "![Preimages and densities](map.png)",
        "## Does the density integrate to one?",
        MASS.format(repeats=judged["repeats"], freedom=judged["repeats"] - 1, point=POINT),
        _masses(integrated),
        _verdict(judged),
        "## The direction X → Z",
        INVERSE.format(radius=first["radius"]),
        _inverse(integrated),
        "## Checks",
        CHECKS.format(
            radius=first["radius"],
            starts=first["newton_starts"],
            points=first["newton_points"],
            outside=first["prior_outside"],
        ),
        _checks(records),
        "Maps with known preimages:",
        _known(known),
    )
    return "\n\n".join(sections) + "\n"


def _verdict(judged: Record) -> str:
    lists = {key: ", ".join(judged[key]) or "none" for key in ("unresolved", "unsound")}
    return VERDICT.format(**(judged | lists)) + (
        " **Passed.**" if judged["passed"] else " **FAILED.**"
    )


def _trained(records: Sequence[Record]) -> tuple[str, ...]:
    """H(Z|X) of trained networks here and there, where both are known."""
    there = {r["id"]: r for r in _learned() if "folding" in r}
    rows = [
        [
            r["name"],
            f"{r['error_mean']:.4f} ± {r['error_mean_se']:.4f}",
            f"{there[r['name']]['folding']:.4f}",
            f"{(r['error_mean'] - there[r['name']]['folding']) / r['error_mean_se']:+.1f}",
        ]
        for r in records
        if r["group"] == "checkpoint" and r["name"] in there and r["error_mean"] > SMALL
    ]
    if not rows:
        return ()
    head = ["network", "H(Z given X)", "gap of learn_2d", "difference / standard error"]
    return TRAINED, table(head, rows)


def _learned() -> list[Record]:
    """Records of the experiment that trains networks, if it was run."""
    file = ROOT / "reports" / "experiments" / "learn_2d" / "results.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def map_figure(name: str, box: Box, count: Tensor, one: Tensor, every: Tensor) -> bytes:
    """Four panels over x: number of preimages, error, density with the likeliest, with all."""
    top = float(every[every.isfinite()].max().exp())
    density = LogNorm(top * 10.0**-DECADES, top)
    most = min(MOST, int(count.max()))
    gap = torch.where(count > 0, every - one, torch.nan)
    panels: list[tuple[str, Tensor, dict[str, Any]]] = [
        (
            "Number of preimages" + (f" ({MOST}: or more)" if most == MOST else ""),
            count.clamp_max(MOST),
            {"norm": BoundaryNorm(np.arange(-0.5, most + 1.5), 256), "cmap": "cividis"},
        ),
        ("log p(x), all less likeliest preimage [nats]", gap, {"cmap": "magma", "vmin": 0}),
        ("Density, likeliest preimage alone", one.exp(), {"norm": density}),
        ("Density, all preimages", every.exp(), {"norm": density}),
    ]
    with canvas(2, 2, 9.0) as (figure, axes):
        for ax, (title, values, options) in zip(axes.flat, panels, strict=True):
            extent = (*box[0], *box[1])
            picture = ax.imshow(
                values.numpy().T, origin="lower", extent=extent, aspect="auto", **options
            )
            ax.set(title=title, xlabel="$x_1$", ylabel="$x_2$")
            ax.grid(visible=False)
            figure.colorbar(picture, ax=ax, ticks=range(most + 1) if ax is axes[0, 0] else None)
        figure.suptitle(f"Network: {name}")
        return png(figure)


def error_figure(drawn: Sequence[tuple[str, str, Tensor]]) -> bytes:
    """Share of draws whose error exceeds a value: a panel for each kind of map, a line for each."""
    kinds = list(dict.fromkeys(_kind(group) for _, group, _ in drawn))
    with canvas(1, len(kinds), 4.6, sharey=True) as (figure, axes):
        for ax, kind in zip(axes[0], kinds, strict=True):
            members = [line for line in drawn if _kind(line[1]) == kind]
            _error_lines(ax, members, together=kind == UNTRAINED)
            ax.set(
                title=kind, xlabel="error in log p(x) [nats]", xlim=(-0.05, None), ylim=(0, 1.02)
            )
            ax.legend()
        axes[0, 0].set_ylabel("share of draws above")
        return png(figure)


def _kind(group: str) -> str:
    kinds = {"known": "Known maps", "checkpoint": "Checkpoints"}
    return kinds.get(group, UNTRAINED)


def _error_lines(ax: Axes, members: Sequence[tuple[str, str, Tensor]], *, together: bool) -> None:
    """One colour for each map, or for each group of them."""
    keys = [group if together else name for name, group, _ in members]
    order = list(dict.fromkeys(keys))
    for i, (key, (_, _, error)) in enumerate(zip(keys, members, strict=True)):
        values = error.sort().values
        share = 1 - torch.arange(len(values)) / len(values)
        place = order.index(key)
        ax.step(
            values,
            share,
            where="post",
            color=COLOURS[place % len(COLOURS)],
            linestyle=("-", "--")[place % 2] if place < len(COLOURS) else ":",
            label=None if key in keys[:i] else key,
        )


def _networks(records: Sequence[Record]) -> str:
    """One row for each group of untrained networks, one for each checkpoint."""
    rows = []
    for name, members in _grouped(records):
        rows.append(
            [
                name,
                str(len(members)),
                _spread(members, "share_several", "{:.1%}"),
                _spread(members, "mean_count", "{:.2f}"),
                _spread(members, "error_mean", "{:.3f}"),
                _spread(members, "error_q0.99", "{:.2f}"),
                _spread(members, "error_q1", "{:.2f}"),
            ]
        )
    head = ["network", "number", "more than one", "mean count", "H(Z given X)", "99 %", "greatest"]
    return table(head, rows)


def _masses(records: Sequence[Record]) -> str:
    rows = [
        [
            r["name"],
            *(_with_error(r, key) for key in ("mass", "all")),
            _score(r, "all"),
            *(_with_error(r, key) for key in ("one_expected", "one")),
            _score(r, "one"),
        ]
        for r in records
    ]
    head = ["map", "mass sent", "all preimages", "t", "one: expected", "one: integral", "t"]
    return table(head, rows)


def _inverse(records: Sequence[Record]) -> str:
    rows = [
        [
            r["name"],
            *(_with_error(r, f"inverse_{k}") for k in ("mass", "count")),
            _score(r, "inverse"),
        ]
        for r in records
    ]
    return table(["map", "mass of the formula", "mean number of preimages", "t"], rows)


def _score(record: Record, key: str) -> str:
    value = f"{score(record, key):+.2f}"
    return value if key in compared(record) else f"({value})"


def _checks(records: Sequence[Record]) -> str:
    rows = []
    for name, members in _grouped(records):
        lost = [sum(r[f"newton_{k}"] for r in members) for k in ("missed", "extra")]
        rows.append(
            [
                name,
                _spread(members, "triangles", "{:.0f}"),
                _spread(members, "recovered", "{:.4f}"),
                _spread(members, "winding_agrees", "{:.4f}"),
                _spread(members, "newton_agrees", "{:.3f}"),
                f"{lost[0]} / {lost[1]}",
                f"{max(r['misfit'] for r in members):.0e}",
            ]
        )
    head = ["map", "triangles", "recovered", "winding", "Newton", "missed / extra", "misfit"]
    return table(head, rows)


def _known(records: Sequence[Record]) -> str:
    rows = [
        [r["name"], r["formula"], f"{r['known_count']:.4f}", f"{r['known_log_p']:.0e}"]
        for r in records
    ]
    return table(["map", "f(z)", "share with the right number", "greatest error of log p"], rows)


def _with_error(record: Record, key: str) -> str:
    return f"{record[key]:.4f} ± {record[key + '_se']:.4f}"


def _grouped(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Networks of one scale together, everything else by itself."""
    names = [r["group"] if r["group"].startswith("scale") else r["name"] for r in records]
    return [
        (name, [r for r, own in zip(records, names, strict=True) if own == name])
        for name in dict.fromkeys(names)
    ]


def _spread(records: Sequence[Record], key: str, form: str) -> str:
    """The mean, and the extremes where they differ."""
    values = [float(r[key]) for r in records]
    values = [0.0 if abs(v) < SMALL else v for v in values]
    mean, low, high = (form.format(v) for v in (fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"
