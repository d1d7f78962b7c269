"""Faults of Hutch++ and XTrace: sketches used twice, the wrong law, error bars, products."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specbp import Estimate
from verification.faults.fault import Fault, plant
from verification.faults.joint import HUTCH_PP, RESPHERED, XTRACE, blocks, hutch_pp, xtrace


def reused(X: Tensor) -> tuple[Tensor, Tensor]:
    """The residual is probed by the sketch itself."""
    S, G = blocks(X)
    return (S, S) if S.shape[-1] else (S, G)


def by_inverse(C: Tensor) -> Tensor:
    """A basis by C R⁻¹: nothing where the columns are dependent."""
    gram = C.mT @ C
    R, failed = torch.linalg.cholesky_ex(gram, upper=True)
    Q = torch.linalg.solve_triangular(R, C, upper=True, left=False)
    return torch.where((failed > 0)[..., None, None], torch.nan, Q)


def three_products(A: Any, X: Tensor) -> Estimate:
    """XTrace with one more product a probe than it says."""
    found = xtrace(A, X)
    _ = A @ X
    return found


FAULTS: tuple[Fault, ...] = (
    plant(
        HUTCH_PP,
        "f14",
        "Hutch++: the residual is probed by the sketch",
        "D2 S1",
        source="mutation table; Hutch++ with one sketch for both parts",
        estimate=partial(hutch_pp, split=reused),
    ),
    plant(
        RESPHERED,
        "f15",
        "XTrace: resphered sign probes",
        "D2",
        note="Resphering needs a law that rotations leave alone.",
        equivalent="S: the bias is far below the standard deviation at these sizes.",
        sampler=XTRACE.sampler,
        law="rademacher",
    ),
    plant(
        XTRACE,
        "xtrace-error-bar",
        "error bar sd/√m from leave-one-out values",
        "D2 S3",
        source="matfree, traceax and the authors' own code (which warns)",
        note="The values share probes: their spread understates the error.",
        estimate=partial(xtrace, calibrated=True),
        claims=replace(XTRACE.claims, calibrated=True),
    ),
    plant(
        XTRACE,
        "xtrace-inverse",
        "XTrace divides by a triangular factor that can be singular",
        "D2 D5",
        source="traceax (NaN) and curvlinops (an exception) on dependent probes",
        note="The same division makes NaN of the zero operator. S sees it where signs coincide.",
        estimate=partial(xtrace, basis=by_inverse),
    ),
    plant(
        XTRACE,
        "undeclared-products",
        "three products a probe where two are declared",
        "D9",
        source="primate, xtrace beyond the budget of the user",
        equivalent="S: sampling sees values, not costs.",
        estimate=three_products,
    ),
)
