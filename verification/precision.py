"""What float32 leaves of a log-determinant as the condition number grows: J against JᵀJ."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from specbp import (
    Estimate,
    JacobianMetric,
    cholesky_logdet,
    exact,
    generator_for,
    golub_kahan_logdet,
    matrices,
    qr_logdet,
    rademacher,
    slq_logdet,
)
from verification.store import Record

N = 64
CONDITIONS = (1e2, 1e4, 1e6, 1e8, 1e10)
SEEDS = 10
METHODS: dict[str, Callable[[Tensor, Tensor], Estimate]] = {
    "golub_kahan": lambda J, X: golub_kahan_logdet(J, X, num_steps=N),
    "slq": lambda J, X: slq_logdet(JacobianMetric(J), X, num_steps=N),
    "qr": lambda J, _: qr_logdet(J),
    "cholesky": lambda J, _: cholesky_logdet(J.mT @ J),
}


def study() -> Iterator[Record]:
    """Largest error over seeds of each method in float32, with k = n: only rounding is left.

    The truth is that of the float32 matrix: for probes, the mean of their exact xᵀ log(JᵀJ) x.
    """
    for cond in CONDITIONS:
        errors: dict[str, list[float]] = {name: [] for name in METHODS}
        for seed in range(SEEDS):
            generator = generator_for("precision", cond, seed)
            Q, U = (matrices.haar(N, generator=generator) for _ in range(2))
            sigma = matrices.lapack_mode(3, N, cond**0.5)
            J = ((U * sigma) @ Q.mT).float()
            X = rademacher(N, 4, generator=generator, dtype=torch.float32)
            truth = exact.truth_of_jacobian(J).value
            lam, V = exact.jacobian_eigh(J)
            forms = exact.quadratic_forms(lam, V, np.log, X.double().numpy()).mean()
            for name, method in METHODS.items():
                target = truth if name in ("qr", "cholesky") else forms
                errors[name].append(abs(float(method(J, X).value) - target))
        for name in METHODS:
            yield _record(cond, name, float(np.max(errors[name])))


def limit(method: str, cond: float) -> float | None:
    """What the method promises in float32 at this condition number of JᵀJ, in nats."""
    if method == "golub_kahan":
        return 1e-3 if cond <= 1e8 else None
    if method == "qr":
        return 1e-4 if cond <= 1e6 else 1e-3 if cond <= 1e10 else None
    return None


def _record(cond: float, method: str, error: float) -> Record:
    promised = limit(method, cond)
    verdict = "REPORTED" if promised is None else "PASS" if error <= promised else "FAIL"
    return {
        "kind": "precision",
        "id": f"{method}|{cond:g}",
        "cond": cond,
        "n": N,
        "method": method,
        "error": error,
        "limit": promised,
        "verdict": verdict,
    }
