"""Stochastic spectral estimators for implicit matrices, with the proof that they are right."""

from __future__ import annotations

from specbp.blockquad import block_golub_kahan_logdet, block_slq_logdet
from specbp.bounds import certified_upper, lanczos_interval, power_method
from specbp.deflated_chebyshev import deflated_chebyshev_logdet
from specbp.deflation import krylov_aware_golub_kahan_logdet, krylov_aware_logdet
from specbp.degree_laws import DegreeLaw, degree_law
from specbp.density import golub_kahan_density, kpm_density, slq_density
from specbp.density_distances import kolmogorov, wasserstein1
from specbp.density_estimate import DensityEstimate, DiscreteDensity
from specbp.density_kernel import KernelDensity
from specbp.direct import cholesky_logdet, eigenvalue_logdet, qr_logdet
from specbp.estimate import Estimate, EstimationError, Status
from specbp.functional import logdet_at
from specbp.gradients import backprop_logdet, solve_logdet
from specbp.jacobian import Jacobian, JacobianMetric
from specbp.likelihood import ImplicitDensity, PullbackDensity, StandardNormal, relative_error
from specbp.logdets import (
    algorithm1_logdet,
    chebyshev_logdet,
    golub_kahan_logdet,
    slq_logdet,
    taylor_logdet,
)
from specbp.lowrank_trace import hutchpp_trace, xnystrace, xtrace
from specbp.maxent import maxent_logdet
from specbp.multilevel import multilevel_golub_kahan_logdet, multilevel_logdet
from specbp.nystrom import nystrom_logdet
from specbp.objectives import Objective, forward_kl, reverse_kl, spectral_norm
from specbp.operators import (
    CountingOperator,
    LinearOperator,
    RectangularOperator,
    check_deterministic,
)
from specbp.planner import Plan, logdet
from specbp.probes import (
    antithetic,
    gaussian,
    generator_for,
    hadamard,
    mixed_unit,
    orthogonal,
    rademacher,
    sphere,
    unit_vector,
)
from specbp.roulette import randomised_chebyshev_logdet
from specbp.solvers import Solution, block_cg, cg
from specbp.surrogate import with_gradient_of
from specbp.trace import hutchinson_trace
from specbp.wrappers import RecordedOperator, ScaledOperator, ShiftedOperator

__version__ = "0.1.0"

__all__ = [
    "CountingOperator",
    "DegreeLaw",
    "DensityEstimate",
    "DiscreteDensity",
    "Estimate",
    "EstimationError",
    "ImplicitDensity",
    "Jacobian",
    "JacobianMetric",
    "KernelDensity",
    "LinearOperator",
    "Objective",
    "Plan",
    "PullbackDensity",
    "RecordedOperator",
    "RectangularOperator",
    "ScaledOperator",
    "ShiftedOperator",
    "Solution",
    "StandardNormal",
    "Status",
    "algorithm1_logdet",
    "antithetic",
    "backprop_logdet",
    "block_cg",
    "block_golub_kahan_logdet",
    "block_slq_logdet",
    "certified_upper",
    "cg",
    "chebyshev_logdet",
    "check_deterministic",
    "cholesky_logdet",
    "deflated_chebyshev_logdet",
    "degree_law",
    "eigenvalue_logdet",
    "forward_kl",
    "gaussian",
    "generator_for",
    "golub_kahan_density",
    "golub_kahan_logdet",
    "hadamard",
    "hutchinson_trace",
    "hutchpp_trace",
    "kolmogorov",
    "kpm_density",
    "krylov_aware_golub_kahan_logdet",
    "krylov_aware_logdet",
    "lanczos_interval",
    "logdet",
    "logdet_at",
    "maxent_logdet",
    "mixed_unit",
    "multilevel_golub_kahan_logdet",
    "multilevel_logdet",
    "nystrom_logdet",
    "orthogonal",
    "power_method",
    "qr_logdet",
    "rademacher",
    "randomised_chebyshev_logdet",
    "relative_error",
    "reverse_kl",
    "slq_density",
    "slq_logdet",
    "solve_logdet",
    "spectral_norm",
    "sphere",
    "taylor_logdet",
    "unit_vector",
    "wasserstein1",
    "with_gradient_of",
    "xnystrace",
    "xtrace",
]
