r"""The paper's density as the limit of a decoder with vanishing noise, seen by annealing.

.. math:: \log p_\sigma(f(z)) + \tfrac{N - n}{2} \log 2 \pi \sigma^2
          \;\to\; \log p_Z(z) - \tfrac12 \log\det J^\top J \qquad (\sigma \to 0)

for an injective f. The right-hand side is linear algebra; the left-hand side knows no Jacobian.
Annealed importance sampling estimates it for any f, a grid gives it exactly where n = 2, a closed
form where f is linear. For an f that is not injective the limit is the sum over all preimages.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
from verification.experiments import ais, noisy_report, noisy_verdict
from verification.experiments.noisy_models import MODELS, Fold, grid_log_evidence, log_prior
from verification.experiments.outputs import save
from verification.provenance import ROOT
from verification.store import Record

WIDEST = 10.0  # noise of the first temperature above the prior: wider than any image
LADDER_MODEL = "net 2→8"


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment."""

    seed: int = 0
    points: int = 3
    chains: int = 128
    temperatures: int = 4000
    leapfrog: int = 2
    sigmas: tuple[float, ...] = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001)
    certified_sigmas: tuple[float, ...] = (0.3, 0.03)
    certified_temperatures: int = 2000
    ladder_gradients: tuple[int, ...] = (400, 1600, 6400)
    ladder_leapfrogs: tuple[int, ...] = (10, 2)
    ladder_sigmas: tuple[float, ...] = (0.1, 0.01)
    probes: int = 8


QUICK = Settings(
    points=2,
    chains=24,
    temperatures=200,
    sigmas=(1.0, 0.1, 0.01),
    certified_sigmas=(0.3,),
    certified_temperatures=100,
    ladder_gradients=(200,),
    ladder_sigmas=(0.1,),
)


@dataclass(frozen=True)
class Case:
    """A generator, its points z (P, n) and their images x (P, N)."""

    name: str
    f: Any
    z: Tensor
    x: Tensor

    def normal_part(self, sigma: float) -> float:
        """Minus the log density of no noise normal to the image, ((N − n)/2) log 2πσ²."""
        return (self.f.N - self.f.n) / 2 * math.log(2 * math.pi * sigma**2)


def case(name: str, settings: Settings) -> Case:
    """A model with points drawn from the prior."""
    f = MODELS[name]().requires_grad_(False)
    generator = generator_for("noisy decoder", settings.seed, name, "points")
    z = torch.randn((settings.points, f.n), generator=generator, dtype=torch.float64)
    z = f.away(z) if isinstance(f, Fold) else z  # the limit comes later near a singular metric
    return Case(name, f, z, f(z).detach())


def run(settings: Settings, *, progress: bool = True) -> list[Record]:
    """All records of the experiment."""
    records: list[Record] = []
    for name in tqdm(MODELS, desc="models", disable=not progress):
        subject = case(name, settings)
        records += [
            *formula(subject, settings),
            *limit(subject, settings, progress=progress),
            *certificate(subject, settings, progress=progress),
        ]
    return [*records, *ladder(settings, progress=progress)]


def formula(subject: Case, settings: Settings) -> Iterator[Record]:
    """log p_Z − ½ log det JᵀJ, exact and by stochastic estimates, and its sum over preimages."""
    J, n = Jacobian(subject.f, subject.z), subject.f.n
    generator = generator_for("noisy decoder", settings.seed, subject.name, "probes")
    X = rademacher(n, settings.probes, generator=generator, batch_shape=(len(subject.z),))
    quadrature = golub_kahan_logdet(J, X, num_steps=n)
    plain = algorithm1_logdet(JacobianMetric(J), X, degree=20, lower=1e-2)
    exact, whole, prior = qr_logdet(J).value, _all_preimages(subject), log_prior(subject.z)
    for p in range(len(subject.z)):
        yield {
            "kind": "formula",
            "model": subject.name,
            "point": p,
            "formula": float(prior[p] - exact[p] / 2),
            "all_preimages": float(whole[p]),
            "golub_kahan": float(prior[p] - quadrature.value[p] / 2),
            "golub_kahan_error": float(quadrature.standard_error[p] / 2),
            "algorithm1": float(prior[p] - plain.value[p] / 2),
        }


def limit(subject: Case, settings: Settings, *, progress: bool) -> Iterator[Record]:
    """Noisy log densities at images of points, by one annealing run through all noises."""
    sigma = min(settings.sigmas)
    first = (sigma / WIDEST) ** 2
    betas = ais.geometric_schedule(settings.temperatures, first)
    found, seconds = _anneal(subject, sigma, betas, settings, "limit", progress=progress)
    noises = sigma / betas[1:, 0].sqrt()
    for wanted in settings.sigmas:
        t = int((noises - wanted).abs().argmin()) + 1
        noise = float(noises[t - 1])
        path = found.path[t] + _renoise(subject.f.N, sigma, float(betas[t, 0]))
        mean = ais.log_mean(path)
        shift = subject.normal_part(noise)
        truth = [_truth(subject, x, noise) for x in subject.x]
        for p, (exact, closed, error) in enumerate(truth):
            yield {
                "kind": "limit",
                "model": subject.name,
                "point": p,
                "sigma": noise,
                "ais": float(mean.value[p]) + shift,
                "ais_error": float(mean.standard_error[p]),
                "ess": float(mean.ess[p]),
                "grid": None if exact is None else exact + shift,
                "grid_error": error,
                "closed": None if closed is None else closed + shift,
                "acceptance": float(found.acceptance[:, p].mean()),
                "seconds": seconds,
            }


def certificate(subject: Case, settings: Settings, *, progress: bool) -> Iterator[Record]:
    """Lower and upper bounds for data simulated from the decoder, whose posterior draw is known."""
    generator = generator_for("noisy decoder", settings.seed, subject.name, "simulated")
    noise = torch.randn(subject.x.shape, generator=generator, dtype=torch.float64)
    for sigma in settings.certified_sigmas:
        simulated = Case(subject.name, subject.f, subject.z, subject.x + sigma * noise)
        betas = ais.geometric_schedule(settings.certified_temperatures, (sigma / WIDEST) ** 2)
        forward, _ = _anneal(simulated, sigma, betas, settings, "forward", progress=progress)
        start = subject.z.unsqueeze(1).expand(-1, settings.chains, -1)
        back, _ = _anneal(
            simulated, sigma, betas, settings, "reverse", start=start, progress=progress
        )
        lower, upper = ais.log_mean(forward.log_weights), ais.log_mean(-back.log_weights)
        laplace = _laplace(simulated, sigma)
        for p, x in enumerate(simulated.x):
            exact, closed, _ = _truth(simulated, x, sigma)
            yield {
                "kind": "certificate",
                "model": subject.name,
                "point": p,
                "sigma": sigma,
                "lower": float(lower.value[p]),
                "lower_error": float(lower.standard_error[p]),
                "upper": -float(upper.value[p]),
                "upper_error": float(upper.standard_error[p]),
                "truth": exact if closed is None else closed,
                "formula": float(laplace[p]),
            }


def ladder(settings: Settings, *, progress: bool) -> Iterator[Record]:
    """Schedules and lengths of a move at equal numbers of gradients, against the grid."""
    subject = case(LADDER_MODEL, settings)
    cells = [
        (sigma, gradients, schedule, leapfrog)
        for sigma in settings.ladder_sigmas
        for gradients in settings.ladder_gradients
        for schedule in ("sigmoidal", "geometric")
        for leapfrog in settings.ladder_leapfrogs
    ]
    for sigma, gradients, schedule, leapfrog in tqdm(cells, desc="ladder", disable=not progress):
        exact = [_truth(subject, x, sigma)[0] for x in subject.x]
        truth = torch.tensor(exact, dtype=torch.float64)
        betas = SCHEDULES[schedule](gradients // leapfrog, sigma)
        key = f"ladder {gradients} {schedule} {leapfrog}"
        found, seconds = _anneal(
            subject, sigma, betas, settings, key, leapfrog=leapfrog, progress=False
        )
        mean = ais.log_mean(found.log_weights)
        yield {
            "kind": "ladder",
            "sigma": sigma,
            "gradients": gradients,
            "schedule": schedule,
            "leapfrog": leapfrog,
            "rms_error": float((mean.value - truth).square().mean().sqrt()),
            "reported_error": float(mean.standard_error.square().mean().sqrt()),
            "variance": float(found.log_weights.var(-1).mean()),
            "ess": float(mean.ess.mean()) / settings.chains,
            "seconds": seconds,
        }


SCHEDULES: dict[str, Callable[[int, float], Tensor]] = {
    "sigmoidal": lambda steps, _: ais.sigmoidal_schedule(steps),
    "geometric": lambda steps, sigma: ais.geometric_schedule(steps, (sigma / WIDEST) ** 2),
}


def _anneal(
    subject: Case,
    sigma: float,
    betas: Tensor,
    settings: Settings,
    key: str,
    *,
    start: Tensor | None = None,
    leapfrog: int | None = None,
    progress: bool,
) -> tuple[ais.Annealed, float]:
    """Tune on chains of its own, then anneal from the prior, or in reverse from `start`."""
    seed = ("noisy decoder", settings.seed, subject.name, sigma, key)
    length = settings.leapfrog if leapfrog is None else leapfrog
    log_likelihood = ais.gaussian_log_likelihood(subject.f, subject.x, sigma)
    shape = (len(subject.x), settings.chains, subject.f.n)

    def wrap(steps: Any) -> Any:
        title = f"{subject.name} {key} σ={sigma:g}"
        return tqdm(steps, desc=title, leave=False, disable=not progress)

    began = time.process_time()
    pilot = generator_for(*seed, "pilot")
    draws = ais.prior_draws(shape[0], min(16, shape[1]), shape[2], generator=pilot)
    options: dict[str, Any] = {"leapfrog_steps": length, "wrap": wrap}
    steps = ais.tune(log_likelihood, betas, draws, generator=pilot, **options)
    generator = generator_for(*seed)
    if start is None:
        first = ais.prior_draws(*shape, generator=generator)
        found = ais.anneal(log_likelihood, betas, steps, first, generator=generator, **options)
    else:
        found = ais.anneal_reverse(
            log_likelihood, betas, steps, start, generator=generator, **options
        )
    return found, time.process_time() - began


def _renoise(N: int, sigma: float, beta: float) -> float:
    """log of N(x; f(z), σ²I/β) / N(x; f(z), σ²I)^β: a temperature is a noise."""
    return (
        N / 2 * (beta * math.log(2 * math.pi * sigma**2) - math.log(2 * math.pi * sigma**2 / beta))
    )


def _truth(
    subject: Case, x: Tensor, sigma: float
) -> tuple[float | None, float | None, float | None]:
    """log p_σ(x) by the grid and by the closed form, and what halving the cells changes."""
    if subject.f.n != 2:
        return None, None, None
    slope = subject.f.lipschitz()
    value = grid_log_evidence(subject.f, x, sigma, slope, fine=0.25)
    coarse = grid_log_evidence(subject.f, x, sigma, slope, fine=0.5)
    closed = getattr(subject.f, "log_evidence", None)
    known = None if closed is None else float(closed(x.unsqueeze(0), sigma))
    return value, known, abs(value - coarse)


def _all_preimages(subject: Case) -> Tensor:
    """log Σ p_Z(z') / √det JᵀJ(z') over the preimages z' of each image, (P,)."""
    every = subject.f.preimages(subject.z)
    return (log_prior(every) - qr_logdet(Jacobian(subject.f, every)).value / 2).logsumexp(-1)


def _laplace(subject: Case, sigma: float) -> Tensor:
    """log p_σ(x) by the formula at the point of the image nearest to x, found by Gauss–Newton."""
    z = subject.z
    for _ in range(20):
        J = Jacobian(subject.f, z, check=False)
        z = z + torch.linalg.lstsq(J.dense(), (subject.x - J.value).unsqueeze(-1)).solution[..., 0]
    near = Case(subject.name, subject.f, z, subject.x)
    residual = (subject.x - subject.f(z)).detach().square().sum(-1)
    return _all_preimages(near) - residual / (2 * sigma**2) - subject.normal_part(sigma)


def main(arguments: list[str] | None = None) -> int:
    """Run, write the report; exit status 1 if annealing contradicts what is known exactly."""
    parser = argparse.ArgumentParser(
        prog="python -m verification.experiments.noisy_decoder", description=__doc__.split("\n")[0]
    )
    out = ROOT / "reports" / "experiments" / "noisy_decoder"
    parser.add_argument("--out", type=Path, default=out, help="folder of results (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds not minutes")
    parser.add_argument("--seed", type=int, default=0, help="seed of points and chains")
    options = parser.parse_args(arguments)
    settings = replace(QUICK if options.quick else Settings(), seed=options.seed)
    began = time.process_time()
    records = run(settings)
    seconds = time.process_time() - began
    judged = noisy_verdict.judge(records, settings.chains)
    page = noisy_report.page(records, judged, asdict(settings), seconds)
    contents: dict[str, str | bytes] = {"README.md": page, **noisy_report.figures(records)}
    made = {"settings": asdict(settings), "cpu_seconds": seconds}
    save(options.out, [*records, judged], contents, **made)
    print(page)
    print(options.out / "README.md")
    return int(not judged["passed"])


if __name__ == "__main__":
    raise SystemExit(main())
