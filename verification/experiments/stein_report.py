"""Figures, verdict and page of the comparison with Stein's estimator, all from its records."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from verification.experiments.outputs import COLOURS, canvas, png, table, unique_legend
from verification.store import Record

AGREEMENT = 1e-10  # relative, between the exact gradient of specbp and that of jacfwd
FLOOR = 1e-4  # lower end of the axes of errors


def chosen(records: list[Record], kind: str, **keys: object) -> list[Record]:
    """Records of a kind with these entries."""
    return [r for r in records if r["kind"] == kind and all(r[k] == v for k, v in keys.items())]


def sound(records: list[Record]) -> bool:
    """Whether the exact gradient agrees with that of jacfwd, and the entropy's is known well."""
    known = chosen(records, "problem")
    return all(r["against_jacfwd"] <= AGREEMENT and r["entropy_error"] < 0.05 for r in known)


def is_stein(method: str) -> bool:
    """Whether a method is Stein's estimator."""
    return method.startswith("Stein")


def spectral(records: list[Record]) -> list[str]:
    """Names of the methods of spectral backpropagation, in order."""
    found = dict.fromkeys(r["method"] for r in chosen(records, "gradient"))
    return [method for method in found if not is_stein(method)]


def names(records: list[Record]) -> list[str]:
    """Names of the problems, in order."""
    return [r["problem"] for r in chosen(records, "problem")]


def page(records: list[Record], settings: dict[str, Any], cpu_seconds: float) -> str:
    """The report as Markdown."""
    net = next(r for r in chosen(records, "problem") if "missing" in r)
    seen = min(best_stein(records, net["problem"]), key=lambda r: r["entropy_bias"])
    return "\n\n".join(
        [
            "# The gradient of the entropy: Stein's estimator and spectral backpropagation",
            "`python -m verification.experiments.stein` writes this page. "
            f"{settings['repeats']} repeats; seconds are CPU time of one thread, the median over "
            "repeats; products are those of the value with JᵀJ. Relative error: |g − ∇H| / |∇H| "
            "(mean ± standard deviation over repeats); bias: the same for the mean over repeats, "
            "which is not zero for an unbiased estimator; its noise is what it would then be as a "
            "root mean square, √(Σ var / repeats) / |∇H|. A bias not well above its noise is none "
            "that these repeats could see. "
            f"The whole took {cpu_seconds / 60:.1f} minutes of CPU time on one thread.",
            _problems(records),
            "Error of ∇H: none in closed form; on a grid the change when it is coarsened; for the "
            "ResNet the change when the kinks are rounded over twice the width. Against jacfwd: "
            "relative difference of the gradients of `qr_logdet` and of `slogdet(jacfwd)`. Stein's "
            "bandwidth: med is the median squared distance. Golub–Kahan: 2 steps; Algorithm 1: "
            f"δ = {settings['lower']:g}; both one Rademacher probe a point. "
            + ("**Sound.**" if sound(records) else "**FAILED.**"),
            "![Relative error against CPU time and samples](stein.png)",
            "## At the largest number of samples\n\n" + _largest(records),
            "## At equal CPU time\n\n" + _equal_time(records),
            "Stein's estimator with the ridge and bandwidth of least error at each K, chosen with "
            "knowledge of the answer, against the largest run of each spectral method that took no "
            "longer; – where even its smallest took longer.",
            "## What differentiating under the expectation misses\n\n"
            f"The ResNet is piecewise linear: log det JᵀJ jumps at its kinks, and the kinks move "
            f"with the parameters. Expected spectral gradient against ∇H: relative difference "
            f"{net['missing']:.3f}, cosine {net['missing_cosine']:.4f}, with ∇H itself known to "
            f"{net['entropy_error']:.3f}. An unbiased estimator of the derivative of log det at a "
            "point keeps this error however many samples it has; the smooth network has no such "
            "term. Stein's estimator never differentiates log det: its bias, of the runs chosen "
            f"above, falls to {seen['entropy_bias']:.3f} (noise {seen['entropy_noise']:.3f}). The "
            f"smallest det J on the grid is {net['smallest_det']:.2f}: the map is invertible.",
            "## The score itself, of a standard normal on the plane: relative rms error\n\n"
            + _scores(records),
            "![Cosine with the gradient of the entropy](cosine.png)",
        ]
    ) + "\n"  # fmt: skip


def figures(records: list[Record]) -> dict[str, bytes]:
    """PNG files by name."""
    return {"stein.png": _error_figure(records), "cosine.png": _cosine_figure(records)}


def _problems(records: list[Record]) -> str:
    return table(
        ["problem", "parameters", "\\|∇H\\|", "error of ∇H", "against jacfwd"],
        [
            [
                r["problem"],
                str(r["parameters"]),
                f"{r['norm']:.3f}",
                f"{r['entropy_error']:.1e}",
                f"{r['against_jacfwd']:.1e}",
            ]
            for r in chosen(records, "problem")
        ],
    )


def _largest(records: list[Record]) -> str:
    rows = []
    for name in names(records):
        found = chosen(records, "gradient", problem=name)
        for method in dict.fromkeys(r["method"] for r in found):
            r = max(chosen(found, "gradient", method=method), key=lambda r: r["samples"])
            rows.append(
                [
                    name,
                    method,
                    str(r["samples"]),
                    f"{r['entropy_error']:.2e} ± {r['entropy_error_sd']:.1e}",
                    f"{r['entropy_bias']:.2e}",
                    f"{r['entropy_noise']:.1e}",
                    f"{r['entropy_cosine']:.5f} ± {r['entropy_cosine_sd']:.1e}",
                    f"{1e3 * r['seconds']:.1f}",
                    f"{r['products']:g}",
                ]
            )
    head = ["problem", "method", "K", "relative error", "bias", "its noise", "cosine"]
    return table([*head, "CPU ms", "products"], rows)


def best_stein(records: list[Record], problem: str) -> list[Record]:
    """For every K the record of Stein's estimator with the least error."""
    found = [r for r in chosen(records, "gradient", problem=problem) if is_stein(r["method"])]
    counts = sorted({r["samples"] for r in found})
    return [
        min(chosen(found, "gradient", samples=k), key=lambda r: r["entropy_error"]) for k in counts
    ]


def within(records: list[Record], problem: str, method: str, seconds: float) -> Record | None:
    """The run of a method with most samples that took at most so long."""
    found = chosen(records, "gradient", problem=problem, method=method)
    quick = [r for r in found if r["seconds"] <= seconds]
    return max(quick, key=lambda r: r["samples"]) if quick else None


def _equal_time(records: list[Record]) -> str:
    rows = []
    for name in names(records):
        for best in best_stein(records, name):
            cells = []
            for method in spectral(records):
                r = within(records, name, method, best["seconds"])
                cells.append(f"{r['entropy_error']:.2e} (K = {r['samples']})" if r else "–")
            setting = best["method"].removeprefix("Stein, ")
            own = f"{best['entropy_error']:.2e} (K = {best['samples']}; {setting})"
            rows.append([name, f"{1e3 * best['seconds']:.1f}", own, *cells])
    return table(["problem", "CPU ms", "Stein", *spectral(records)], rows)


def _scores(records: list[Record]) -> str:
    found = chosen(records, "score")
    etas = list(dict.fromkeys(r["eta"] for r in found))
    rows = []
    for h in dict.fromkeys(r["h"] for r in found):
        for k in dict.fromkeys(r["samples"] for r in found):
            line = [chosen(found, "score", h=h, samples=k, eta=eta)[0]["error"] for eta in etas]
            rows.append([h, str(k), *(f"{error:.3f}" for error in line)])
    return table(["bandwidth", "K", *(f"η = {eta:g}" for eta in etas)], rows)


def _error_figure(records: list[Record]) -> bytes:
    problems = names(records)
    with canvas(2, len(problems), 8.4) as (figure, axes):
        for place, name in enumerate(problems):
            for row, x in enumerate(("seconds", "samples")):
                ax = axes[row, place]
                _lines(ax, records, name, x, "entropy_error")
                ax.set(xscale="log", yscale="log", ylim=(FLOOR, 2))
            axes[0, place].set(title=name, xlabel="CPU seconds per gradient")
            axes[1, place].set_xlabel("samples K")
        for ax in axes[:, 0]:
            ax.set_ylabel("relative error of the gradient of the entropy")
        note = f"errors below {FLOOR:g} are drawn there"
        axes[0, 0].text(0.03, 0.03, note, transform=axes[0, 0].transAxes, fontsize=9)
        unique_legend(figure, list(axes.flat), loc="outside lower center", ncols=3)
        return png(figure)


def _cosine_figure(records: list[Record]) -> bytes:
    problems = names(records)
    with canvas(1, len(problems), 5.4) as (figure, axes):
        for ax, name in zip(axes[0], problems, strict=True):
            _lines(ax, records, name, "samples", "entropy_cosine")
            ax.set(title=name, xscale="log", xlabel="samples K")
        axes[0, 0].set_ylabel("cosine with the gradient of the entropy")
        unique_legend(figure, list(axes.flat), loc="outside lower center", ncols=3)
        return png(figure)


def _lines(ax: Axes, records: list[Record], problem: str, x: str, y: str) -> None:
    found = chosen(records, "gradient", problem=problem)
    methods = list(dict.fromkeys(r["method"] for r in found))
    for method in methods:
        line = chosen(found, "gradient", method=method)
        at, value = np.array([r[x] for r in line]), np.array([r[y] for r in line])
        spread = np.array([r[f"{y}_sd"] for r in line])
        if y.endswith("error"):
            value = np.maximum(value, FLOOR)
            spread = np.minimum(spread, 0.9 * value)
        style = _style(method, methods)
        ax.errorbar(at, value, spread, label=method, **style)


def _style(method: str, methods: list[str]) -> dict[str, Any]:
    """Stein's: one colour a ridge, one line style a bandwidth; spectral: black, grey, reds."""
    same = [m for m in methods if is_stein(m) == is_stein(method)]
    place = same.index(method)
    if not is_stein(method):
        colour = ("#111111", "#6b7280", "#d55e00", "#e69f00", *COLOURS)[place]
        return {"color": colour, "marker": "sD^v"[place % 4], "ms": 5, "lw": 1.8}
    half = (len(same) + 1) // 2
    colour = ("#56b4e9", "#0072b2", "#009e73", "#7f3c8d", *COLOURS)[place % half]
    return {"color": colour, "ls": "-" if place < half else ":", "marker": "o", "ms": 3.5, "lw": 1}
