"""Densities against known spectra: convergence, equal products, float32; a table and a figure."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from specbp import generator_for, matrices, sphere
from specbp.density import golub_kahan_density, kpm_density, slq_density
from specbp.density_distances import kolmogorov, wasserstein1
from specbp.density_estimate import DensityEstimate, DiscreteDensity
from specbp.testing.designs import hadamard_basis
from verification.provenance import ROOT
from verification.report.figures.style import Panel, finish, panel, title
from verification.report.files import replace_files
from verification.store import Record

N, PROBES, SEEDS = 256, 8, 20
STEPS = (4, 8, 16, 32, 64)
SHOWN, CONFIDENCE = 12, 0.95  # steps and band of the figure
SPECTRA: dict[str, Callable[[], Tensor]] = {
    "Marchenko–Pastur": lambda: matrices.marchenko_pastur(N, 0.5),
    "geometric, cond 1e4": lambda: matrices.lapack_mode(3, N, 1e4),
    "power law 1/i": lambda: matrices.power_law(N, 1.0),
    "clusters": lambda: matrices.clusters(
        N, (4.0, 2.0, 1.0), 1e-3, sizes=(N // 16, 5 * N // 16, 10 * N // 16)
    ),
}
DRAWN = ("Marchenko–Pastur", "clusters")
CONDITIONS = (1e3, 1e4, 1e5, 1e6)  # of J
SMALL = 8  # eigenvalues to be counted in float32

Density = Callable[[Tensor, Tensor, int], DensityEstimate]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m verification density`."""
    out = ROOT / "reports" / "density"
    parser.add_argument("--out", type=Path, default=out, help="folder of the table and the figure")


def main(options: argparse.Namespace) -> int:
    """Print the study and write it; exit status 1 if the certified band missed the spectrum."""
    text, missed = markdown()
    drawn = figure()
    options.out.mkdir(parents=True, exist_ok=True)
    page = options.out / "README.md"
    replace_files({page: text, options.out / "density.svg": drawn.svg})
    print(text)
    print(page)
    return int(missed > 0)


def convergence() -> Iterator[Record]:
    """W₁ by steps for a whole basis of probes: truncation alone, no Monte Carlo error."""
    for spectrum in DRAWN:
        values = SPECTRA[spectrum]()
        J, X = _factor(values), hadamard_basis(N).columns
        for steps in STEPS:
            row: Record = {"spectrum": spectrum, "steps": steps}
            for name, density in _methods(values).items():
                if name != "GKB":
                    row[name] = float(wasserstein1(density(J, X, steps), values)) / _range(values)
            yield row


def comparison() -> Iterator[Record]:
    """Mean W₁ and K over seeds at equal products, and that of exact quadrature (no truncation)."""
    for spectrum, make in SPECTRA.items():
        values = make()
        J, X = _factor(values), _probes(spectrum)
        for steps in STEPS:
            for name, density in _methods(values).items():
                found = density(J, X, steps).raise_for_status()
                assert found.num_matvecs == PROBES * steps
                yield _distances(found, values, spectrum, name, steps)
        yield _distances(_weighted(values, X), values, spectrum, "all steps", N)


def bands() -> Iterator[Record]:
    """How often the certified band holds the cdf of the spectrum everywhere, and its width."""
    for spectrum, make in SPECTRA.items():
        values = make()
        found = slq_density(_gram(_factor(values)), _probes(spectrum), num_steps=SHOWN)
        # Between its jumps the cdf is constant and the band is not: points on both sides of each.
        margin = 1e-9 * _range(values)
        x = torch.cat([values - margin, values + margin, found.nodes.flatten()]).sort().values
        lower, upper = found.band(x, confidence=CONFIDENCE)
        exact = (values <= x.unsqueeze(-1)).double().mean(-1)
        held = ((lower <= exact + 1e-9) & (exact <= upper + 1e-9)).all(-1)
        width = float((upper - lower).mean())
        yield {"spectrum": spectrum, "held": int(held.sum()), "width": width}


def precision() -> Iterator[Record]:
    """Eigenvalues below a limit counted in float32 with all steps and a basis of probes."""
    n = 64
    X = hadamard_basis(n).columns.float()
    for cond in CONDITIONS:
        sigma = matrices.lapack_mode(3, n, cond)
        J = _factor(sigma**2).float()
        exact = torch.linalg.svdvals(J.double()) ** 2
        limit = float((exact[-SMALL] * exact[-SMALL - 1]).sqrt())
        row: Record = {"cond": cond}
        for name, density in (
            ("GKB", golub_kahan_density(J, X, num_steps=n)),
            ("SLQ", slq_density(J.mT @ J, X, num_steps=n)),
        ):
            row[name] = float(density.count(0.0, limit).value)
            row[name + " smallest"] = float(density.quantile(0.5 / n)) / float(exact[-1])
        yield row


def markdown() -> tuple[str, int]:
    """The study as Markdown, and how many bands missed."""
    held = list(bands())
    parts = [
        "# Spectral density: accuracy at equal products",
        "`python -m verification density` writes this page. W₁ is the Wasserstein-1 distance to "
        "the exact spectrum over its range λ_max − λ_min, K the Kolmogorov distance. KPM (degree "
        "2k, given the exact interval), SLQ and GKB (k steps) cost k products for each probe. "
        f"n = {N}.",
        "![Distribution functions of two spectra and their estimates](density.svg)",
        "## Truncation alone: W₁ (k W₁) for a whole basis of probes\n",
        _convergence_table(list(convergence())),
        f"## W₁ (K) with {PROBES} probes from the sphere, mean over {SEEDS} seeds\n",
        _comparison_table(list(comparison())),
        "`all steps` is the exact weighted cdf of the same probes, their Monte Carlo error alone; "
        "a kernel that smooths can fall below it.",
        f"## The {CONFIDENCE:.0%} band of SLQ with {SHOWN} steps\n",
        _table(
            ("spectrum", "holds the cdf", "mean width"),
            [(r["spectrum"], f"{r['held']} of {SEEDS}", f"{r['width']:.3f}") for r in held],
        ),
        f"## float32: the {SMALL} smallest of 64 eigenvalues of JᵀJ, all steps\n",
        _table(
            ("cond J", "GKB counts", "λ_min / exact", "SLQ counts", "λ_min / exact"),
            [(f"{r['cond']:.0e}", *(f"{r[key]:.3g}" for key in list(r)[1:])) for r in precision()],
        ),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n", sum(
        SEEDS - r["held"] for r in held
    )


def figure() -> Panel:
    """Exact and estimated distribution functions of a smooth and of a clustered spectrum."""
    with panel((8.4, 3.3)) as (drawing, first):
        grid = drawing.add_gridspec(1, 2)
        first.set_subplotspec(grid[0])
        axes = (first, drawing.add_subplot(grid[1], sharey=first))
        for ax, name in zip(axes, DRAWN, strict=True):
            values = SPECTRA[name]()
            J, X = _factor(values), _probes(name)[0]
            x, pad = values.sort().values, 0.06 * _range(values)
            t = torch.linspace(float(x[0]) - pad, float(x[-1]) + pad, 1200, dtype=torch.float64)
            found = slq_density(_gram(J), X, num_steps=SHOWN)
            smooth = _methods(values)["KPM Jackson"](J, X, SHOWN)
            label = f"SLQ's certified {CONFIDENCE:.0%} band"
            ax.fill_between(t, *found.band(t, confidence=CONFIDENCE), color="#dbe7f3", label=label)
            exact = (x <= t.unsqueeze(-1)).double().mean(-1)
            ax.plot(t, exact, color="#111111", lw=2.2, label="exact")
            ax.plot(t, smooth.cdf(t).value, color="#d55e00", ls="--", label="KPM, Jackson")
            ax.plot(t, found.cdf(t).value, color="#0072b2", label="SLQ")
            title(ax, f"{name}: k = {SHOWN}, {PROBES} probes")
            ax.set_xlabel("x")
            ax.set_ylim(-0.03, 1.03)
        first.set_ylabel("share of eigenvalues ≤ x")
        axes[1].legend(loc="lower right", frameon=False)
        return finish(drawing, "Distribution functions: SLQ and KPM against the exact spectrum.")


def _methods(values: Tensor) -> dict[str, Density]:
    """Densities of JᵀJ at k products for each probe, as functions of (J, X, k)."""
    # A hair wider than the spectrum: its ends are rounded in JᵀJ.
    a, b = float(values.min()) * (1 - 1e-9), float(values.max()) * (1 + 1e-9)
    return {
        "KPM Jackson": lambda J, X, k: kpm_density(_gram(J), X, degree=2 * k, interval=(a, b)),
        "KPM Lorentz": lambda J, X, k: kpm_density(
            _gram(J), X, degree=2 * k, interval=(a, b), damping="lorentz"
        ),
        "SLQ": lambda J, X, k: slq_density(_gram(J), X, num_steps=k),
        "GKB": lambda J, X, k: golub_kahan_density(J, X, num_steps=k),
    }


def _factor(values: Tensor) -> Tensor:
    """J = diag(√λ) Qᵀ: JᵀJ has these eigenvalues, and Q for its eigenvectors."""
    n = len(values)
    return values.sqrt().unsqueeze(-1) * matrices.haar(n, generator=generator_for("density", n)).mT


def _gram(J: Tensor) -> Tensor:
    A = J.mT @ J
    return (A + A.mT) / 2


def _probes(spectrum: str) -> Tensor:
    return sphere(N, PROBES, generator=generator_for("density", spectrum), batch_shape=(SEEDS,))


def _weighted(values: Tensor, X: Tensor) -> DiscreteDensity:
    """What infinitely many steps would give: all eigenvalues with their weights."""
    Q = _factor(torch.ones_like(values)).mT
    weights, order = (X.mT @ Q).square() / N, values.argsort()
    return DiscreteDensity(
        N,
        PROBES * N,
        torch.zeros(weights.shape[:-1], dtype=torch.int64),
        values[order].expand(weights.shape),
        weights[..., order],
    )


def _distances(
    found: DensityEstimate, values: Tensor, spectrum: str, method: str, steps: int
) -> Record:
    tolerance = 1e-9 * _range(values)  # converged Ritz values are eigenvalues to rounding
    return {
        "spectrum": spectrum,
        "method": method,
        "steps": steps,
        "w1": float(wasserstein1(found, values).mean()) / _range(values),
        "kolmogorov": float(kolmogorov(found, values, tolerance=tolerance).mean()),
    }


def _range(values: Tensor) -> float:
    return float(values.max() - values.min())


def _convergence_table(rows: list[Record]) -> str:
    names = list(rows[0])[2:]
    body = [
        (
            r["spectrum"],
            str(r["steps"]),
            *(f"{r[name]:.2e} ({r['steps'] * r[name]:.3f})" for name in names),
        )
        for r in rows
    ]
    return _table(("spectrum", "k", *names), body)


def _comparison_table(rows: list[Record]) -> str:
    cells = {(r["spectrum"], r["method"], r["steps"]): r for r in rows}
    body = []
    for spectrum, method in dict.fromkeys((r["spectrum"], r["method"]) for r in rows):
        found = [cells.get((spectrum, method, k)) or cells[spectrum, "all steps", N] for k in STEPS]
        body.append((spectrum, method, *(f"{r['w1']:.4f} ({r['kolmogorov']:.3f})" for r in found)))
    return _table(("spectrum", "method", *(f"k = {k}" for k in STEPS)), body)


def _table(head: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(_parser)
    raise SystemExit(main(_parser.parse_args()))
