"""The log-determinants that plane networks are trained with, by the names in their settings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specbp.bounds import power_method
from specbp.direct import qr_logdet
from specbp.estimate import Estimate
from specbp.gradients import backprop_logdet
from specbp.jacobian import JacobianMetric
from specbp.logdets import algorithm1_logdet, golub_kahan_logdet
from specbp.probes import rademacher
from verification.experiments.learn_2d_settings import Settings

LogDet = Callable[..., Estimate]  # logdet(J, generator=generator)
FACTOR = 1.1  # on the power method's bound where the interval has to hold


def logdet_for(settings: Settings) -> LogDet:
    """The estimator of the settings, called with J (b, 2, 2) and a generator.

    Raises:
        ValueError: If there is none of that name.
    """
    if settings.logdet not in LOGDETS:
        msg = f"No log-determinant {settings.logdet!r}: use one of {', '.join(LOGDETS)}."
        raise ValueError(msg)
    return LOGDETS[settings.logdet](settings)


def _exact(_: Settings) -> LogDet:
    return lambda J, generator: qr_logdet(J)  # noqa: ARG005


def _golub_kahan(settings: Settings) -> LogDet:
    def golub_kahan(J: Tensor, generator: torch.Generator) -> Estimate:
        return golub_kahan_logdet(J, _probes(settings, J, generator), num_steps=2)

    return golub_kahan


def _algorithm1(settings: Settings) -> LogDet:
    def algorithm1(J: Tensor, generator: torch.Generator) -> Estimate:
        return algorithm1_logdet(
            JacobianMetric(J),
            _probes(settings, J, generator),
            degree=settings.degree,
            lower=settings.lower,
            power_steps=settings.power_steps,
            safe=settings.logdet.endswith("safe"),
        )

    return algorithm1


def _backprop(settings: Settings) -> LogDet:
    def backprop(J: Tensor, generator: torch.Generator) -> Estimate:
        X = _probes(settings, J, generator)
        with torch.no_grad():
            bound = FACTOR * power_method(JacobianMetric(J), X[..., 0], settings.power_steps)
        interval = (settings.lower, bound.clamp_min(2 * settings.lower))
        return backprop_logdet(JacobianMetric(J), X, degree=settings.degree, interval=interval)

    return backprop


def _probes(settings: Settings, J: Tensor, generator: torch.Generator) -> Tensor:
    """Rademacher probes (b, 2, m), each item its own."""
    shape = J.shape[:-2]
    return rademacher(2, settings.probes, generator=generator, batch_shape=shape, dtype=J.dtype)


LOGDETS: dict[str, Callable[[Settings], LogDet]] = {
    "exact": _exact,
    "golub_kahan": _golub_kahan,
    "algorithm1": _algorithm1,
    "algorithm1_safe": _algorithm1,
    "backprop": _backprop,
}
