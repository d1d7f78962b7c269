"""The problems on which estimators are compared at equal measured products.

Cases of the verification grid keep their ids and their construction. A Jacobian is multiplied as
the dense matrix that it is in float64: the statistics do not depend on how products are made, and
their time is measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from specbp import datasets, exact, generator_for, matrices
from specbp.models import DCGANGenerator
from verification import cases

Shape = tuple[int, int]  # probes, steps: the product of the two is the budget
SHAPES: dict[int, tuple[Shape, ...]] = {
    200: ((5, 40), (8, 25), (10, 20), (14, 14), (20, 10), (40, 5)),
    100: ((4, 25), (5, 20), (7, 14), (10, 10), (20, 5)),
}
SAME: dict[int, Shape] = {200: (10, 20), 100: (5, 20)}


@dataclass(frozen=True)
class Target:
    """One problem in float64.

    Attributes:
        operators: "A", and "J" with A = JᵀJ where the problem has a factor.
        truth: log det A.
        interval: Smallest and largest eigenvalue of A, for methods that cannot do without.
        noise: Of a kernel matrix: what was added to its diagonal.
    """

    operators: dict[str, Any]
    truth: float
    interval: tuple[float, float]
    noise: float | None = None


@dataclass(frozen=True)
class BudgetCase:
    """One problem of the study.

    Attributes:
        id: Frozen name; seeds are hashed from it.
        group: Which acceptance lines it falls under.
        n: Order of A.
        budget: Products with A that an estimate may cost.
        build: Makes the target.
        quick: Part of the short run.
    """

    id: str
    group: str
    n: int
    budget: int
    build: Callable[[], Target]
    quick: bool = False

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Ways to spend the budget, probes × steps."""
        return SHAPES[self.budget]

    @property
    def same(self) -> Shape:
        """The shape in which methods are compared with each other."""
        return SAME[self.budget]

    @property
    def on(self) -> str:
        """What the methods under judgement work on: "J" for Jacobians."""
        return "J" if self.id.startswith("jacobian/") else "A"

    @property
    def exact(self) -> bool:
        """The budget fills the space."""
        return self.group == "exact"


def all_cases() -> dict[str, BudgetCase]:
    """Every case by id, in the order of the report."""
    makers = (_kernels, _spectra, _log_uniform, _jacobians, _small)
    found = [case for make in makers for case in make()]
    assert len({case.id for case in found}) == len(found)
    return {case.id: case for case in found}


def select(wanted: Iterable[str] = (), *, quick: bool = False) -> list[BudgetCase]:
    """Cases whose id contains one of the texts, by default all, or those of the short run.

    Raises:
        ValueError: If a text matches no case.
    """
    known, wanted = all_cases(), list(wanted)
    for text in wanted:
        if not any(text in case_id for case_id in known):
            raise ValueError(f"No case has {text!r} in its id: use parts of {', '.join(known)}.")
    if wanted:
        return [c for c in known.values() if any(text in c.id for text in wanted)]
    return [case for case in known.values() if case.quick or not quick]


def _kernels() -> Iterable[BudgetCase]:
    for dataset, n, subset in (
        ("breast_cancer", 569, None),
        ("diabetes", 442, None),
        ("digits", 512, 512),
    ):
        for noise in ("1e-2", "1e-4"):
            yield BudgetCase(
                id=f"kernel/{dataset}-rbf/noise{noise}",
                group=f"kernel {noise}",
                n=n,
                budget=200,
                build=partial(_kernel, dataset, float(noise), subset),
                quick=dataset == "diabetes",
            )


def _spectra() -> Iterable[BudgetCase]:
    for name, group in (
        ("power-law-1.5", "power law"),
        ("clusters", "clusters"),
        ("geometric-c1e4", "other"),
        ("marchenko-pastur", "other"),
    ):
        case_id = f"spd/{name}/n512"
        quick = group != "other"
        yield BudgetCase(case_id, group, 512, 200, partial(_of_grid, case_id), quick)
    case_id = "spd/outlier-clusters/n512"
    yield BudgetCase(case_id, "clusters", 512, 200, partial(_outlier_clusters, case_id), True)
    case_id = "laplacian/breast_cancer-knn10"
    yield BudgetCase(case_id, "other", 569, 200, partial(_of_grid, case_id))


def _log_uniform() -> Iterable[BudgetCase]:
    for n, cond in ((300, "1e4"), (1000, "1e2"), (1000, "1e4"), (1000, "1e6")):
        case_id = f"spd/log-uniform-c{cond}/n{n}"
        group = "planner" if (n, cond) == (1000, "1e4") else "other"
        build = partial(_of_log_uniform, case_id, n, float(cond))
        yield BudgetCase(case_id, group, n, 200, build, group == "planner")


def _jacobians() -> Iterable[BudgetCase]:
    for name, n, budget in (
        ("bottleneck-d784", 784, 200),
        ("bottleneck-d256", 256, 100),
        ("wideresnet-1x16x16", 256, 100),
    ):
        case_id = f"jacobian/{name}/init"
        build = partial(_of_grid, case_id)
        yield BudgetCase(case_id, "Jacobian", n, budget, build, name == "bottleneck-d256")
    yield BudgetCase("jacobian/dcgan-z256/init", "Jacobian", 256, 100, _dcgan)


def _small() -> Iterable[BudgetCase]:
    """Cases of at most as many dimensions as there are products."""
    for n, case_id in (
        (128, "spd/geometric-c1e4/n128"),
        (128, "spd/clusters/n128"),
        (64, "jacobian/bottleneck-d64/init"),
        (64, "jacobian/dcgan-z64/init"),
    ):
        quick = "clusters" in case_id or "bottleneck" in case_id
        yield BudgetCase(case_id, "exact", n, 200, partial(_of_grid, case_id), quick)
    case_id = "kernel/diabetes-rbf/noise1e-4/n196"
    yield BudgetCase(case_id, "exact", 196, 200, partial(_kernel, "diabetes", 1e-4, 196), True)


def _of_grid(case_id: str) -> Target:
    """A case of the verification grid."""
    views = cases.all_cases()[case_id].build(torch.float64).views
    if case_id.startswith("jacobian/"):
        operator = views["J"].operator
        identity = torch.eye(operator.shape[-1], dtype=torch.float64)
        return _of_factor(operator @ identity)
    view = views["A"]
    lam = view.eigenvalues
    return Target({"A": view.operator}, view.truth.value, (float(lam.min()), float(lam.max())))


def _kernel(dataset: str, noise: float, subset: int | None) -> Target:
    A = datasets.rbf_kernel(dataset, noise=noise, subset=subset)
    lam = torch.linalg.eigvalsh(A)
    interval = (float(lam[0]), float(lam[-1]))
    return Target({"A": A}, exact.truth_of_matrix(A).value, interval, noise)


def _of_factor(J: torch.Tensor) -> Target:
    """JᵀJ and the triangular factor of J: the same Krylov spaces as from J, fewer rows."""
    truth = exact.truth_of_jacobian(J).value
    R = torch.linalg.qr(J).R if J.shape[-2] > J.shape[-1] else J
    sigma = torch.linalg.svdvals(R)
    A = R.mT @ R
    operators = {"A": (A + A.mT) / 2, "J": R}
    return Target(operators, truth, (float(sigma[-1]) ** 2, float(sigma[0]) ** 2))


def _of_log_uniform(case_id: str, n: int, cond: float) -> Target:
    """Eigenvalues drawn log-uniformly."""
    generator = generator_for("case", case_id)
    return _in_haar_basis(matrices.lapack_mode(5, n, cond, generator=generator), generator)


def _outlier_clusters(case_id: str) -> Target:
    """A bulk and two small clusters: what a space of few dimensions can hold, unlike the grid's."""
    sizes = [20, 472, 20]
    lam = matrices.clusters(512, [100.0, 1.0, 0.01], 0.05, sizes=sizes)
    return _in_haar_basis(lam, generator_for("case", case_id))


def _in_haar_basis(lam: torch.Tensor, generator: torch.Generator) -> Target:
    Q = matrices.haar(len(lam), generator=generator)
    A = (Q * lam) @ Q.mT
    # Rounding moves eigenvalues by n eps λ_max at most, log det by far less than is judged here.
    return Target({"A": (A + A.mT) / 2}, float(lam.log().sum()), (float(lam[-1]), float(lam[0])))


def _dcgan() -> Target:
    """The generator of the paper with a longer code, as initialised, at a normal point."""
    generator = generator_for("case", "jacobian/dcgan-z256/init")
    f = DCGANGenerator(256, 8, 1, 64, generator=generator).double().eval()
    z = torch.randn(256, generator=generator, dtype=torch.float64)
    J = exact.dense_jacobian(lambda point: f(point.unsqueeze(0)).squeeze(0), z)
    return _of_factor(torch.as_tensor(J).reshape(-1, 256))
