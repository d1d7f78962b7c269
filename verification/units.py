"""One unit of the grid: a method on a case in one precision, for all numbers of probes.

The replicates of a unit form one block of probes, so that they share block products. An additive
method (its estimate is the mean of per-probe values) is run once on the widest block, and the
smaller numbers of probes are cut from it; the cut is checked against direct calls. All tests use
all probes, the mean once; the z shown for each number of probes comes from a quarter of its own, so
that the four are independent. Other methods are run for each number of probes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbp import Estimate, exact, generator_for, rademacher
from specbp.methods import Method
from verification.cases import Case, View
from verification.store import Record
from verification.subjects import ScalarFunction, Subject, from_method, interval

PROBE_COUNTS = (1, 4, 16, 64)
WIDEST = max(PROBE_COUNTS)
LAW = "rademacher"
VACUOUS = 0.02  # nats for each dimension: a wider limit on rounding judges nothing
MARGINS = {"mean": 0.5, "variance": 0.5, "se": 0.5}


@dataclass(frozen=True)
class Oracle:
    """What is known exactly about the probes of one unit: f(A) in the estimator's place."""

    view: View
    probes: Tensor

    @cached_property
    def weights(self) -> np.ndarray:
        """(v_iᵀx_j)² for all eigenvectors and probes, (n, P)."""
        columns = self.probes.double().movedim(-2, 0).flatten(1).numpy()
        return (self.view.eigenvectors.T @ columns) ** 2

    def forms(self, f: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """x_jᵀ f(A) x_j, (P,)."""
        return f(self.view.eigenvalues) @ self.weights

    def moments(self, f: Callable[[np.ndarray], np.ndarray]) -> exact.Moments:
        """Moments of one xᵀ f(A) x."""
        B = exact.matrix_function(self.view.eigenvalues, self.view.eigenvectors, f)
        return exact.moments(B, LAW)

    @cached_property
    def of_log(self) -> tuple[np.ndarray, exact.Moments]:
        """Forms and moments of log A, which every method is compared with."""
        return self.forms(np.log), self.moments(np.log)


@dataclass(frozen=True)
class Unit:
    """A method with its configuration on one view of one case."""

    case: Case
    view: View
    method: Method
    dtype: str
    alpha: float

    @cached_property
    def subject(self) -> Subject:
        """The method as the checks see it."""
        return from_method(self.method)

    @property
    def interval(self) -> tuple[float, float]:
        """The spectral interval handed to methods that need one."""
        return interval(self.view)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Arguments that name the method in reports."""
        return self.subject.configured(self.case.n)

    @cached_property
    def estimate(self) -> Callable[..., Estimate]:
        """The estimator with all keyword arguments."""
        return self.subject.bound(self.view)

    @cached_property
    def contract(self) -> ScalarFunction:
        """f such that the estimate of one probe is xᵀf(A)x, exactly or up to quadrature."""
        return self.subject.contract(self.view)

    @cached_property
    def eps(self) -> float:
        """Spacing of the precision at 1: twice its unit roundoff."""
        return float(np.finfo(self.dtype).eps)

    @cached_property
    def rounding(self) -> float:
        """Largest rounding of the value of one probe, in nats: what D-tier checks allow."""
        return self.subject.rounding(self.view)

    @property
    def documented(self) -> str:
        """Why a failure here is a known limitation, or the empty string."""
        if not self.method.claims.gated:
            return "baseline kept as the paper prints it"
        # Where 2 % of a nat for each dimension is within rounding, nothing is left to judge.
        if self.method.on != "J" and self.rounding > VACUOUS * self.case.n:
            return f"{self.dtype} resolves the eigenvalues of A to eps λ_max only; work on J"
        return ""

    def record(self, probes: int) -> Record:
        """What identifies a cell."""
        settings = " ".join(
            f"{_SHORT.get(k, k)}={v}" for k, v in self.config.items() if k != "safe"
        )
        label = f"{self.method.name} {settings}".strip()
        short = label.replace(" ", "-").replace("=", "")
        return {
            "kind": "cell",
            "id": f"{self.case.id}|{short}|m{probes}|{self.dtype}",
            "case": self.case.id,
            "family": self.case.family,
            "title": self.case.title,
            "spectrum": self.case.spectrum,
            "n": self.case.n,
            "cond": self.view.truth.cond,
            "batch": 1,
            "method": self.method.name,
            "label": label,
            "config": self.config,
            "estimand": self.method.estimand,
            "probes": probes,
            "law": LAW if probes else None,
            "dtype": self.dtype,
            "device": "cpu",
        }


_SHORT = {"num_steps": "k", "degree": "d", "power_steps": "q"}


def cell_ids(unit: Unit) -> list[str]:
    """Ids of all cells of a unit."""
    counts = PROBE_COUNTS if unit.method.uses_probes else (0,)
    return [unit.record(m)["id"] for m in counts]


def draw(case: Case, dtype: torch.dtype, epoch: str) -> Tensor:
    """The probes of a case, (R, n, 64): the same signs in either precision."""
    generator = generator_for("probes", case.id, epoch)
    replicates = case.num_probes // WIDEST
    return rademacher(case.n, WIDEST, generator=generator, batch_shape=(replicates,), dtype=dtype)


def num_random_checks(method: Method) -> int:
    """Checks of all cells of a unit in which chance plays a part."""
    if not (method.uses_probes and method.claims.additive and method.claims.gated):
        return 0
    # The mean; where the variance is known exactly, also that, and error bars at m > 1.
    return 1 if method.claims.expectation == "quadrature" else 1 + len(PROBE_COUNTS)
