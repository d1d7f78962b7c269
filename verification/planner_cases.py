"""The operators on which `method="auto"` is judged, and what each is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specbp import (
    Jacobian,
    block_golub_kahan_logdet,
    block_slq_logdet,
    cholesky_logdet,
    datasets,
    eigenvalue_logdet,
    exact,
    generator_for,
    golub_kahan_logdet,
    matrices,
    qr_logdet,
    rademacher,
    slq_logdet,
)
from specbp.estimate import Estimate
from verification import training

PROBES, STEPS = (4, 8, 16, 32), (4, 8, 16, 32)
NETWORKS = ("bottleneck-d64", "bottleneck-d784", "dcgan-z64", "dcgan-z128", "wideresnet-1x16x16")
SPECTRA: dict[str, Callable[[], Tensor]] = {
    "geometric-c1e4/n64": lambda: matrices.lapack_mode(3, 64, 1e4),
    "marchenko-pastur/n256": lambda: matrices.marchenko_pastur(256, 0.5),
    "power-law-1.5/n512": lambda: matrices.power_law(512, 1.5),
    "log-uniform-c1e4/n1000": lambda: matrices.lapack_mode(
        5, 1000, 1e4, generator=generator_for("planner", "log-uniform")
    ),
    "marchenko-pastur/n2000": lambda: matrices.marchenko_pastur(2000, 0.5),
}
QUICK = ("dcgan-z64", "bottleneck-d64", "n256", "diabetes")


class Implicit:
    """A matrix of which only products are known."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    shape = property(lambda self: self.matrix.shape)
    dtype = property(lambda self: self.matrix.dtype)
    device = property(lambda self: self.matrix.device)

    def __matmul__(self, X: Tensor) -> Tensor:
        return self.matrix @ X


@dataclass(frozen=True)
class Problem:
    """One operator, its log det and Σ|log λ|, and the ways to find the former.

    Attributes:
        operator: As a user would pass it.
        truth: log det.
        size: Σ|log λ_i|: what an error relative to it is relative to.
        exact: The exact answer.
        methods: Estimators `(operator, probes, num_steps=…)`.
    """

    operator: Any
    truth: float
    size: float
    exact: Callable[[], Estimate]
    methods: dict[str, Callable[..., Estimate]]


@dataclass(frozen=True)
class Case:
    """A frozen name, from which seeds are hashed, and how the problem is made."""

    id: str
    n: int
    build: Callable[[], Problem]


def all_cases(*, quick: bool = False) -> list[Case]:
    """Every case in the order of the report, or the few of the short run."""
    cases = [*_networks(), *_matrices()]
    return [case for case in cases if not quick or any(part in case.id for part in QUICK)]


def _networks() -> Iterator[Case]:
    for dtype in (torch.float64, torch.float32):
        for name in NETWORKS:
            n = training.points(name, 1)[0].numel()
            case_id = f"jacobian/{name}/{str(dtype).removeprefix('torch.')}"
            yield Case(case_id, n, partial(_network, name, dtype))


def _network(name: str, dtype: torch.dtype) -> Problem:
    z = training.points(name, 1, dtype)[0]
    J = Jacobian(training.build(name, "init", dtype), z, event_dim=z.ndim)
    dense = J.dense().double()
    sigma = torch.linalg.svdvals(dense)
    methods = {"golub_kahan": golub_kahan_logdet, "block_golub_kahan": block_golub_kahan_logdet}
    truth = float(exact.truth_of_jacobian(dense).value)
    return Problem(J, truth, float(2 * sigma.log().abs().sum()), lambda: qr_logdet(J), methods)


def _matrices() -> Iterator[Case]:
    for dataset, n, noise in (("diabetes", 442, 1e-2), ("breast_cancer", 569, 1e-4)):
        make = partial(datasets.rbf_kernel, dataset, noise=noise)
        for view in ("dense", "products"):
            case_id = f"kernel/{dataset}-noise{noise:g}/{view}"
            yield Case(case_id, n, partial(_matrix, make, view))
    for name, values in SPECTRA.items():
        for view in ("dense", "products"):
            if name.endswith("n2000") and view == "products":
                continue  # seconds for each exact answer
            case_id = f"spd/{name}/{view}"
            yield Case(
                case_id, int(name.split("/n")[1]), partial(_matrix, partial(_spd, values), view)
            )


def _spd(values: Callable[[], Tensor]) -> Tensor:
    lam = values()
    Q = matrices.haar(len(lam), generator=generator_for("planner", "basis", len(lam)))
    A = (Q * lam) @ Q.mT
    return (A + A.mT) / 2


def _matrix(make: Callable[[], Tensor], view: str) -> Problem:
    A = make()
    logs = torch.linalg.eigvalsh(A).log()
    methods = {"slq": slq_logdet, "block_slq": block_slq_logdet}
    truth, size = float(logs.sum()), float(logs.abs().sum())
    if view == "dense":
        return Problem(A, truth, size, lambda: cholesky_logdet(A), methods)
    operator = Implicit(A)
    identity = torch.eye(len(A), dtype=A.dtype)
    return Problem(operator, truth, size, lambda: eigenvalue_logdet(operator @ identity), methods)


def draw(problem: Problem, probes: int, seeds: int, *key: object) -> Tensor:
    """Signs for `seeds` replicates of an estimate, (seeds, n, probes)."""
    return rademacher(
        problem.operator.shape[-1],
        probes,
        generator=generator_for("planner", *key),
        batch_shape=(seeds,),
        dtype=problem.operator.dtype,
    )
