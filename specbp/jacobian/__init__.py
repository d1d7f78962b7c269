"""Jacobians of torch callables as operators: products with J, Jᵀ and JᵀJ, and J itself."""

from specbp.jacobian.operator import Jacobian, JacobianAdjoint, JacobianMetric

__all__ = ["Jacobian", "JacobianAdjoint", "JacobianMetric"]
