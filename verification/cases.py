"""The problems of the verification grid: frozen ids, and how each is built in either precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from specbp import Jacobian, JacobianMetric, datasets, exact, generator_for, matrices
from verification import training

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SIZES = (2, 8, 32, 128, 512, 1024)
TIERS = ("smoke", "standard", "full")


@dataclass(frozen=True)
class View:
    """One operator as the estimators see it, with everything the oracle knows about that operator.

    The truth is that of the *stored* numbers: rounding a matrix to float32 changes its small
    eigenvalues, and an estimator must not be blamed for it.
    """

    operator: Any
    truth: exact.Truth
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray


@dataclass(frozen=True)
class Problem:
    """The views of one case in one precision, by what a method wants: "A", "J", "dense A"."""

    views: dict[str, View]


@dataclass(frozen=True)
class Case:
    """One problem of the grid.

    Attributes:
        id: Frozen, readable name; seeds are hashed from it.
        family: "spd", "kernel", "laplacian" or "jacobian".
        title: For people.
        n: Order of A.
        build: dtype -> Problem.
        tier: The smallest tier that contains the case.
        num_probes: Probes drawn for each method (a multiple of 64).
        spectrum: Name of the spectrum, shared by the sizes of one family.
    """

    id: str
    family: str
    title: str
    n: int
    build: Callable[[torch.dtype], Problem]
    tier: str
    num_probes: int
    spectrum: str


def _spectra() -> dict[str, tuple[str, str, Callable[[int], torch.Tensor]]]:
    """Name -> (title, basis, eigenvalues for n)."""
    mode = matrices.lapack_mode
    return {
        "geometric-c1e4": ("geometric, cond 1e4", "haar", lambda n: mode(3, n, 1e4)),
        "arithmetic-c1e2": ("arithmetic, cond 1e2", "householder", lambda n: mode(4, n, 1e2)),
        "one-small-c1e3": (
            "one small eigenvalue, cond 1e3",
            "householder",
            lambda n: mode(2, n, 1e3),
        ),
        "power-law-1.5": ("power law i^-1.5", "haar", lambda n: matrices.power_law(n, 1.5)),
        "clusters": ("three clusters, cond 1e4", "householder", _clusters),
        "marchenko-pastur": ("Marchenko–Pastur, ratio 1/2", "haar", _marchenko_pastur),
    }


def _clusters(n: int) -> torch.Tensor:
    centres = [100.0, 1.0, 0.01][: min(n, 3)]
    return matrices.clusters(n, centres, 0.05)


def _marchenko_pastur(n: int) -> torch.Tensor:
    return matrices.marchenko_pastur(n, 0.5)


def _spectral(case_id: str, eigenvalues: torch.Tensor, basis: str, dtype: torch.dtype) -> Problem:
    n = len(eigenvalues)
    generator = generator_for("case", case_id)
    # At n = 1024 the basis is implicit: products and certificate stay cheap.
    if basis == "haar" and n < 1024:
        return dense_spectral(eigenvalues, matrices.haar(n, generator=generator), dtype)
    reflectors = matrices.random_householder(n, min(n, 32), generator=generator)
    return _implicit_spectral(eigenvalues, reflectors, dtype)


def dense_spectral(eigenvalues: torch.Tensor, Q: torch.Tensor, dtype: torch.dtype) -> Problem:
    """Explicit A = QΛQᵀ and J = Λ^½ Qᵀ."""
    A = (Q * eigenvalues) @ Q.mT
    J = eigenvalues.sqrt().unsqueeze(-1) * Q.mT
    return Problem({**_dense_views(((A + A.mT) / 2).to(dtype)), "J": _factor_view(J.to(dtype))})


def _dense_views(A: torch.Tensor) -> dict[str, View]:
    lam, V = np.linalg.eigh(A.double().numpy())
    view = View(A, exact.truth_of_matrix(A), lam, V)
    return {"A": view, "dense A": view}


def _factor_view(J: torch.Tensor) -> View:
    return View(J, exact.truth_of_jacobian(J), *exact.jacobian_eigh(J))


def _implicit_spectral(eigenvalues: torch.Tensor, basis: Any, dtype: torch.dtype) -> Problem:
    """Reflectors stay orthogonal when rounded: the prescribed eigenvalues remain exact."""
    basis, lam, sigma = basis.to(dtype), eigenvalues.to(dtype), eigenvalues.sqrt().to(dtype)
    A = matrices.SpectralMatrix(lam, basis)
    J = matrices.SpectralFactor(sigma, basis, basis)
    V = basis.to(torch.float64).dense().numpy()
    factor_truth = exact.truth_of_jacobian(J.dense())
    of_A, of_J = lam.double().numpy(), sigma.double().numpy() ** 2
    matrix_truth = exact.truth_of_matrix(A.dense(), eigenvalues=of_A)
    return Problem({"A": View(A, matrix_truth, of_A, V), "J": View(J, factor_truth, of_J, V)})


def _explicit(make: Callable[[], torch.Tensor], dtype: torch.dtype) -> Problem:
    return Problem(_dense_views(make().to(dtype)))


def _network(name: str, state: training.State, dtype: torch.dtype) -> Problem:
    """Weights and points are float32 numbers, so both precisions share one truth."""
    model, z = training.build(name, state, torch.float64), training.points(name, 1)[0]
    z = z.float().double()
    J = exact.dense_jacobian(lambda point: model(point.unsqueeze(0)).squeeze(0), z)
    lam, V = exact.jacobian_eigh(J)
    truth = exact.truth_of_jacobian(J)
    operator = Jacobian(training.build(name, state, dtype), z.to(dtype), event_dim=z.ndim)
    return Problem(
        {
            "J": View(operator, truth, lam, V),
            "A": View(JacobianMetric(operator), truth, lam, V),
        }
    )


def _spd_cases() -> Iterable[Case]:
    for name, (title, basis, spectrum) in _spectra().items():
        for n in SIZES:
            case_id = f"spd/{name}/n{n}"
            smoke = n in (8, 32) and name in ("geometric-c1e4", "clusters")
            yield Case(
                id=case_id,
                family="spd",
                title=f"{title}, n = {n}",
                n=n,
                build=partial(_spectral, case_id, spectrum(n), basis),
                tier="smoke" if smoke else "standard",
                # The trace of a power law has heavy tails.
                num_probes=4096 if n <= 128 or name == "power-law-1.5" else 2048,
                spectrum=name,
            )


def _kernel_cases() -> Iterable[Case]:
    for dataset, noise, n, subset in (
        ("breast_cancer", "1e-2", 569, None),
        ("breast_cancer", "1e-4", 569, None),
        ("diabetes", "1e-2", 442, None),
        ("digits", "1e-2", 512, 512),
    ):
        name = f"{dataset}-rbf/noise{noise}"
        make = partial(datasets.rbf_kernel, dataset, noise=float(noise), subset=subset)
        yield _real("kernel", name, f"RBF kernel of {dataset}, noise {noise}", n, make)


def _laplacian_cases() -> Iterable[Case]:
    for dataset, n, subset in (("breast_cancer", 569, None), ("digits", 512, 512)):
        make = partial(datasets.knn_laplacian, dataset, neighbours=10, shift=1e-2, subset=subset)
        title = f"10-NN graph Laplacian of {dataset}, shift 1e-2"
        yield _real("laplacian", f"{dataset}-knn10", title, n, make)


def _real(family: str, name: str, title: str, n: int, make: Callable[[], torch.Tensor]) -> Case:
    return Case(
        id=f"{family}/{name}",
        family=family,
        title=title,
        n=n,
        build=partial(_explicit, make),
        tier="standard",
        num_probes=4096,  # heavy tails: fewer leave the variance of a trace undecided
        spectrum=name,
    )


# Convolutions cost most: fewer probes, or the full tier.
HEAVY = ("wideresnet-1x16x16", "dcgan-z128")


def _network_cases() -> Iterable[Case]:
    for name in training.MODELS:
        n = training.MODELS[name].num_inputs
        convolutional = not name.startswith("bottleneck")
        states: dict[training.State, str] = {
            "init": "at initialisation",
            "digits": "trained on digits",
        }
        for state, what in states.items():
            full = name in HEAVY or (n > 256 and state == "digits")
            yield Case(
                id=f"jacobian/{name}/{state}",
                family="jacobian",
                title=f"{name} {what}",
                n=n,
                build=partial(_network, name, state),
                tier="smoke" if n <= 2 else "full" if full else "standard",
                num_probes=4096 if n <= 2 else 256 if convolutional else 1024,
                spectrum=f"{name}/{state}",
            )


def all_cases() -> dict[str, Case]:
    """Every case by id, in the order of the report."""
    makers = (_spd_cases, _kernel_cases, _laplacian_cases, _network_cases)
    cases = [case for make in makers for case in make()]
    assert len({case.id for case in cases}) == len(cases)
    return {case.id: case for case in cases}


def of_tier(tier: str) -> list[Case]:
    """The cases of a tier and of the smaller ones.

    Raises:
        ValueError: If there is no such tier.
    """
    if tier not in TIERS:
        raise ValueError(f"tier is one of {', '.join(TIERS)}, got {tier!r}.")
    included = TIERS[: TIERS.index(tier) + 1]
    return [case for case in all_cases().values() if case.tier in included]
