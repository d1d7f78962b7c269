"""Jacobians of torch callables as operators: products with J, Jᵀ and JᵀJ, and J itself."""

from specbp.jacobian.metric import JacobianMetric
from specbp.jacobian.operator import Jacobian, JacobianAdjoint

__all__ = ["Jacobian", "JacobianAdjoint", "JacobianMetric"]
