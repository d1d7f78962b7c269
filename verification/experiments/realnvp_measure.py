"""What is measured of a trained flow: exact and estimated bits/dim, conditioning, distances."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from specbp import (
    Estimate,
    Jacobian,
    JacobianMetric,
    algorithm1_logdet,
    block_golub_kahan_logdet,
    generator_for,
    golub_kahan_logdet,
    qr_logdet,
    rademacher,
    slq_logdet,
)
from specbp.models import Flow
from verification.experiments.realnvp_training import (
    DIM,
    Settings,
    Trainer,
    bits_per_dim,
    held_out,
    trained_on,
)
from verification.store import Record

DELTA = 1e-4  # lower end of Algorithm 1's interval; the paper does not give its own
ROUNDING = 1e-8  # of float64 logarithms: what is exact has an interval of no width
SHOWN = 24  # samples kept as pictures

Method = Callable[[Jacobian, Tensor], Estimate]


def _quadrature(J: Jacobian, probes: Tensor, steps: int) -> Estimate:
    return golub_kahan_logdet(J, probes, num_steps=steps)


def _block(J: Jacobian, probes: Tensor, steps: int) -> Estimate:
    return block_golub_kahan_logdet(J, probes, num_steps=steps)


def _lanczos(J: Jacobian, probes: Tensor, steps: int) -> Estimate:
    return slq_logdet(JacobianMetric(J), probes, num_steps=steps)


def _algorithm1(J: Jacobian, probes: Tensor, *, safe: bool) -> Estimate:
    A = JacobianMetric(J)
    return algorithm1_logdet(A, probes, degree=32, lower=DELTA, power_steps=10, safe=safe)


METHODS: dict[str, tuple[torch.dtype, Method]] = {
    "QR": (torch.float64, lambda J, _: qr_logdet(J)),
    "Golub–Kahan, 8 steps": (torch.float64, partial(_quadrature, steps=8)),
    "Golub–Kahan, 16 steps": (torch.float64, partial(_quadrature, steps=16)),
    "block Golub–Kahan, 4 steps": (torch.float64, partial(_block, steps=4)),
    "SLQ, 16 steps": (torch.float64, partial(_lanczos, steps=16)),
    "Algorithm 1, plain": (torch.float64, partial(_algorithm1, safe=False)),
    "Algorithm 1, safe": (torch.float64, partial(_algorithm1, safe=True)),
    "Golub–Kahan, 16 steps, float32": (torch.float32, partial(_quadrature, steps=16)),
    "SLQ, 16 steps, float32": (torch.float32, partial(_lanczos, steps=16)),
}


def measure(trainer: Trainer, step: int, loss: float | None) -> Record:
    """Everything about the flow as it is after `step` updates, with the same draws every time."""
    settings = trainer.settings
    flow = copy.deepcopy(trainer.flow).double().requires_grad_(False)
    draws = generator_for("realnvp", "measure", settings.seed)
    test = held_out().double()
    codes = flow.inverse(test)
    normal = torch.randn(len(test), DIM, generator=draws, dtype=torch.float64)
    samples = flow(normal)
    return {
        "step": step,
        "loss": loss,
        "bits": {
            "held-out": _mean(bits_per_dim(flow.log_prob(test))),
            "train": _mean(bits_per_dim(flow.log_prob(trained_on().double()))),
            "samples": _mean(bits_per_dim(_log_prob(normal, flow.log_det(normal)))),
        },
        "code_norm": _mean(codes.square().mean(-1).sqrt()),
        "round_trip": float((flow(codes) - test).abs().max()),
        "wasserstein": wasserstein(samples, test),
        "critic": trainer.distance(samples),
        "held-out": estimates(flow, codes[: settings.points], settings),
        "samples": estimates(flow, normal[: settings.points], settings),
        "pictures": pictures(samples),
    }


def estimates(flow: Flow, z: Tensor, settings: Settings) -> Record:
    """Exact and estimated log-determinants at codes z (b, n), and how hard they are."""
    exact = flow.log_det(z)
    sigma = torch.linalg.svdvals(Jacobian(flow, z, check=False).dense())
    condition = sigma[:, 0] / sigma[:, -1]
    found = {name: _compare(flow, z, exact, settings, *METHODS[name]) for name in METHODS}
    return {
        "bits": _mean(bits_per_dim(_log_prob(z, exact))),
        "log_det": _mean(exact),
        "log_sum": _mean(2 * sigma.log().abs().sum(-1)),
        "condition": {"median": float(condition.median()), "max": float(condition.max())},
        "methods": found,
    }


def _compare(
    flow: Flow, z: Tensor, exact: Tensor, settings: Settings, dtype: torch.dtype, method: Method
) -> Record:
    """One method at all points, each with probes of its own; errors of log det JᵀJ in nats."""
    draws = generator_for("realnvp", "probes", settings.seed)
    probes = rademacher(DIM, settings.probes, generator=draws, batch_shape=z.shape[:1], dtype=dtype)
    f = copy.deepcopy(flow).to(dtype)
    found = method(Jacobian(f, z.to(dtype), check=False), probes)
    error = found.value - 2 * exact
    held = error[torch.isfinite(error)]
    lower, upper = found.interval(0.95)
    known = torch.isfinite(upper - lower)
    covered = (lower - ROUNDING <= 2 * exact) & (2 * exact <= upper + ROUNDING)
    bits = bits_per_dim(_log_prob(z, found.value / 2))
    # Points have probes of their own, so the errors of the mean add in squares.
    spread = found.standard_error.square().sum().sqrt() / (2 * len(z) * DIM * math.log(2))
    return {
        "bits": _mean(bits),
        "bits_standard_error": float(spread),
        "mean_error": _mean(held),
        "mean_abs_error": _mean(held.abs()),
        "standard_error": _mean(found.standard_error),
        "covered": _mean(covered[known].double()),
        "failed": int((~torch.isfinite(error)).sum()),
        "products": found.num_matvecs,
    }


def pictures(x: Tensor) -> list[str]:
    """The first pictures of x (b, 64), a byte 0 … 100 for each pixel, in hexadecimal."""
    percent = x[:SHOWN].clamp(0, 1).mul(100).round().int()
    return [bytes(row).hex() for row in percent.tolist()]


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 distance between two equally large sets of points, by optimal assignment."""
    distances = torch.cdist(a.double(), b.double())
    rows, columns = linear_sum_assignment(distances.numpy())
    return float(distances[rows, columns].mean())


def _log_prob(z: Tensor, log_det: Tensor) -> Tensor:
    """log p(f(z)), z standard normal, whatever log |det J| is given."""
    return -(z.square().sum(-1) + DIM * math.log(2 * math.pi)) / 2 - log_det


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
