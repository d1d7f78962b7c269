"""The oracle: exact values that judge the stochastic estimators.

numpy and scipy in float64 from explicit matrices; it shares no code with what it judges. Truth
certificates (`truth`), explicit Jacobians (`jacobians`), matrix functions and polynomials
(`functions`), derivatives of these (`gradients`), moments of quadratic forms (`probe_moments`),
variances of blocks of dependent probes (`block_moments`), quadrature rules (`rules`).
"""

from __future__ import annotations

from specbp.exact.block_moments import block_variance
from specbp.exact.functions import (
    chebyshev_log,
    matrix_function,
    polynomial_bias,
    quadratic_forms,
    taylor_log,
)
from specbp.exact.gradients import (
    divided_differences,
    frechet_derivative,
    gradient_bias,
    solve_form,
)
from specbp.exact.jacobians import dense_jacobian
from specbp.exact.probe_moments import Moments, all_signs, moments, orthogonal_variance
from specbp.exact.rules import gauss_rule, radau_rule, slq_value
from specbp.exact.truth import (
    Truth,
    check_tolerance,
    jacobian_eigh,
    truth_of_jacobian,
    truth_of_matrix,
)

__all__ = [
    "Moments",
    "Truth",
    "all_signs",
    "block_variance",
    "chebyshev_log",
    "check_tolerance",
    "dense_jacobian",
    "divided_differences",
    "frechet_derivative",
    "gauss_rule",
    "gradient_bias",
    "jacobian_eigh",
    "matrix_function",
    "moments",
    "orthogonal_variance",
    "polynomial_bias",
    "quadratic_forms",
    "radau_rule",
    "slq_value",
    "solve_form",
    "taylor_log",
    "truth_of_jacobian",
    "truth_of_matrix",
]
