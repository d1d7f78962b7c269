"""Stochastic trace estimators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specbp.differentiable import Sensitivity, attach
from specbp.estimate import Estimate, from_samples, untruncated
from specbp.operators import CountingOperator, as_operator, check_probes, check_square, product


def hutchinson_trace(A: Any, probes: Tensor) -> Estimate:
    r"""Trace of A from one product for each probe.

    .. math:: \operatorname{tr} A = \mathbb{E}\, x^\top A x
              \approx \frac1m \sum_{i=1}^m x_i^\top A x_i, \qquad \mathbb{E}\, x x^\top = I

    Unbiased for any isotropic probe law; A need not be definite, nor symmetric.

    Args:
        A: Operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices do not fit.

    Source: Hutchinson (1990), Commun. Stat. Simul. 19, doi:10.1080/03610919008812866.

    Example:
        >>> import torch
        >>> signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        >>> print(hutchinson_trace(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), signs))
        5.0000 ± 2.0000
    """
    A = CountingOperator(as_operator(A))
    check_square(A)
    rows = check_probes(A, probes)
    with torch.no_grad():
        samples = torch.linalg.vecdot(rows, product(A, rows))

    def derivative() -> Sensitivity:
        return Sensitivity(torch.ones_like(samples.double()).unsqueeze(-1), rows.unsqueeze(-2))

    samples = attach(samples.double(), A, derivative)
    return untruncated(from_samples(samples, num_matvecs=A.num_matvecs))
