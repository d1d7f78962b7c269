"""Stochastic spectral estimators for implicit matrices, with the proof that they are right."""

from __future__ import annotations

from specbp.bounds import certified_upper, lanczos_interval, power_method
from specbp.direct import cholesky_logdet, eigenvalue_logdet, qr_logdet
from specbp.estimate import Estimate, EstimationError, Status
from specbp.jacobian import Jacobian, JacobianMetric
from specbp.logdets import (
    algorithm1_logdet,
    chebyshev_logdet,
    golub_kahan_logdet,
    slq_logdet,
    taylor_logdet,
)
from specbp.operators import (
    CountingOperator,
    LinearOperator,
    RectangularOperator,
    ScaledOperator,
    ShiftedOperator,
)
from specbp.probes import gaussian, generator_for, orthogonal, rademacher, sphere
from specbp.trace import hutchinson_trace

__version__ = "0.1.0"

__all__ = [
    "CountingOperator",
    "Estimate",
    "EstimationError",
    "Jacobian",
    "JacobianMetric",
    "LinearOperator",
    "RectangularOperator",
    "ScaledOperator",
    "ShiftedOperator",
    "Status",
    "algorithm1_logdet",
    "certified_upper",
    "chebyshev_logdet",
    "cholesky_logdet",
    "eigenvalue_logdet",
    "gaussian",
    "generator_for",
    "golub_kahan_logdet",
    "hutchinson_trace",
    "lanczos_interval",
    "orthogonal",
    "power_method",
    "qr_logdet",
    "rademacher",
    "slq_logdet",
    "sphere",
    "taylor_logdet",
]
