r"""The gradient of the entropy of a generator: Stein's estimator against spectral backpropagation.

.. math:: \nabla_\theta \mathbb{E}[-\log p_X(f_\theta(z))]
          = -\mathbb{E} \bigl[ (\partial_\theta f)^\top \nabla_x \log p_X(f(z)) \bigr]
          = \nabla_\theta \, \mathbb{E} \tfrac12 \log\det J^\top J

The first form needs the score of p_X, which Stein's estimator takes from samples alone; the second
needs Jacobians, and no density.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from specbp import (
    Jacobian,
    JacobianMetric,
    algorithm1_logdet,
    generator_for,
    golub_kahan_logdet,
    qr_logdet,
    rademacher,
)
from verification.experiments import stein_problems, stein_report
from verification.experiments.outputs import save
from verification.experiments.stein_problems import Problem
from verification.experiments.stein_score import (
    entropy_gradient,
    flat_gradient,
    median_bandwidth,
    stein_score,
)
from verification.provenance import ROOT
from verification.store import Record

Gradient = Callable[[Problem, Tensor, torch.Generator], tuple[Tensor, float]]  # and its products
BANDWIDTHS = {"h² = med": False, "h² = med / 2 log(K+1)": True}  # of squared distances


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment."""

    seed: int = 0
    repeats: int = 10
    stein_samples: tuple[int, ...] = (50, 100, 200, 500, 1000, 2000)
    spectral_samples: tuple[int, ...] = (50, 200, 1000, 4000)
    etas: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    degrees: tuple[int, ...] = (10, 50)
    lower: float = 1e-2
    smooth_step: float = 0.1
    resnet_step: float = 0.04
    resnet_width: float = 0.04


QUICK = Settings(
    repeats=3,
    stein_samples=(50, 200),
    spectral_samples=(50, 200),
    etas=(1e-2, 1.0),
    resnet_step=0.1,
    resnet_width=0.1,
)


def problems(settings: Settings) -> list[Problem]:
    """The three generators with the gradients of their entropies."""
    return [
        stein_problems.linear(),
        stein_problems.smooth(settings.smooth_step),
        stein_problems.resnet(settings.resnet_step, settings.resnet_width),
    ]


def stein(eta: float, *, scaled: bool) -> Gradient:
    """Stein's estimator with a ridge and one of the two bandwidths."""

    def gradient(problem: Problem, z: Tensor, _: torch.Generator) -> tuple[Tensor, float]:
        with torch.no_grad():
            x = problem.f(z)
            score = stein_score(x, eta=eta, bandwidth=median_bandwidth(x, scaled=scaled))
        return entropy_gradient(problem.f, problem.parameters, z, score), 0.0

    return gradient


def exact(problem: Problem, z: Tensor, _: torch.Generator) -> tuple[Tensor, float]:
    """Spectral backpropagation without probes."""
    found = qr_logdet(Jacobian(problem.f, z, check=False))
    return flat_gradient(found.value.mean() / 2, problem.parameters), found.num_matvecs * len(z)


def golub_kahan(problem: Problem, z: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """Spectral backpropagation with one probe a point, two steps."""
    X = rademacher(2, 1, generator=generator, batch_shape=(len(z),), dtype=z.dtype)
    found = golub_kahan_logdet(Jacobian(problem.f, z, check=False), X, num_steps=2)
    return flat_gradient(found.value.mean() / 2, problem.parameters), found.num_matvecs * len(z)


def algorithm1(degree: int, lower: float) -> Gradient:
    """The paper's Algorithm 1 with one probe a point."""

    def gradient(problem: Problem, z: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
        X = rademacher(2, 1, generator=generator, batch_shape=(len(z),), dtype=z.dtype)
        A = JacobianMetric(Jacobian(problem.f, z, check=False))
        found = algorithm1_logdet(A, X, degree=degree, lower=lower)
        value = found.value.mean() / 2
        return flat_gradient(value, problem.parameters), found.num_matvecs * len(z)

    return gradient


def methods(settings: Settings) -> dict[str, tuple[Gradient, tuple[int, ...]]]:
    """Every method with its numbers of samples."""
    table: dict[str, tuple[Gradient, tuple[int, ...]]] = {
        f"Stein, η = {eta:g}, {name}": (stein(eta, scaled=scaled), settings.stein_samples)
        for name, scaled in BANDWIDTHS.items()
        for eta in settings.etas
    }
    counts = settings.spectral_samples
    return table | {
        "qr_logdet": (exact, counts),
        "golub_kahan_logdet": (golub_kahan, counts),
        **{
            f"algorithm1_logdet, degree {degree}": (algorithm1(degree, settings.lower), counts)
            for degree in settings.degrees
        },
    }


def run(settings: Settings, *, progress: bool = True) -> list[Record]:
    """All records of the experiment."""
    records = list(scores(settings))
    for problem in tqdm(problems(settings), desc="problems", disable=not progress):
        generator = generator_for("stein", settings.seed, problem.name, "check")
        z = torch.randn((64, 2), generator=generator, dtype=torch.float64)
        records.append(
            {
                "kind": "problem",
                "problem": problem.name,
                "parameters": len(problem.entropy),
                "norm": float(problem.entropy.norm()),
                "entropy_error": problem.entropy_error,
                "against_jacfwd": stein_problems.check_pathwise(problem, z),
                **problem.notes,
            }
        )
        for name, (gradient, counts) in tqdm(
            methods(settings).items(), desc=problem.name, leave=False, disable=not progress
        ):
            for count in counts:
                records.append(measure(problem, name, gradient, count, settings))
    return records


def measure(
    problem: Problem, name: str, gradient: Gradient, count: int, settings: Settings
) -> Record:
    """Errors of a method over repeats with samples of their own, and what one gradient costs."""
    found, seconds, products = [], [], 0.0
    for repeat in range(settings.repeats):
        generator = generator_for("stein", settings.seed, problem.name, count, repeat)
        z = torch.randn((count, 2), generator=generator, dtype=torch.float64)
        began = time.process_time()
        value, products = gradient(problem, z, generator)
        seconds.append(time.process_time() - began)
        found.append(value)
    gradients = torch.stack(found)
    return {
        "kind": "gradient",
        "problem": problem.name,
        "method": name,
        "samples": count,
        "products": products,
        "seconds": sorted(seconds)[len(seconds) // 2],
        **_errors(gradients, problem.entropy, "entropy"),
        **_errors(gradients, problem.pathwise, "pathwise"),
    }


def scores(settings: Settings) -> Iterator[Record]:
    """Error of the score itself on samples of a standard normal, where it is −x."""
    for count in settings.stein_samples:
        for eta in settings.etas:
            for name, scaled in BANDWIDTHS.items():
                errors = []
                for repeat in range(settings.repeats):
                    generator = generator_for("stein", settings.seed, "score", count, repeat)
                    x = torch.randn((count, 2), generator=generator, dtype=torch.float64)
                    h = median_bandwidth(x, scaled=scaled)
                    errors.append(
                        float((stein_score(x, eta=eta, bandwidth=h) + x).norm() / x.norm())
                    )
                mean = sum(errors) / len(errors)
                yield {"kind": "score", "samples": count, "eta": eta, "h": name, "error": mean}


def _errors(gradients: Tensor, truth: Tensor, name: str) -> Record:
    """Relative error, that of the mean over repeats, its noise, and cosine, with spreads.

    The noise is the root mean square of the mean's error if it had no bias, (Σ var / R)^½.
    """
    noise = (gradients.var(0).sum() / len(gradients)).sqrt()
    relative = (gradients - truth).norm(dim=-1) / truth.norm()
    cosine = torch.nn.functional.cosine_similarity(gradients, truth.unsqueeze(0), dim=-1)
    return {
        f"{name}_error": float(relative.mean()),
        f"{name}_error_sd": float(relative.std()),
        f"{name}_bias": float((gradients.mean(0) - truth).norm() / truth.norm()),
        f"{name}_noise": float(noise / truth.norm()),
        f"{name}_cosine": float(cosine.mean()),
        f"{name}_cosine_sd": float(cosine.std()),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run and write the report; exit status 1 if two exact gradients differ."""
    parser = argparse.ArgumentParser(
        prog="python -m verification.experiments.stein", description=__doc__.split("\n")[0]
    )
    out = ROOT / "reports" / "experiments" / "stein"
    parser.add_argument("--out", type=Path, default=out, help="folder of results (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds not minutes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    options = parser.parse_args(arguments)
    settings = replace(QUICK if options.quick else Settings(), seed=options.seed)
    began = time.process_time()
    records = run(settings)
    seconds = time.process_time() - began
    page = stein_report.page(records, asdict(settings), seconds)
    contents: dict[str, str | bytes] = {"README.md": page, **stein_report.figures(records)}
    save(options.out, records, contents, settings=asdict(settings), cpu_seconds=seconds)
    print(page)
    print(options.out / "README.md")
    return int(not stein_report.sound(records))


if __name__ == "__main__":
    raise SystemExit(main())
