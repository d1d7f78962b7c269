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

from specbp import Estimate, exact, generator_for
from specbp.methods import Method
from specbp.probes import LAWS
from verification.cases import Case, View
from verification.store import Record
from verification.subjects import ScalarFunction, Subject, from_method, interval

PROBE_COUNTS = (1, 4, 16, 64)
FEW = (4, 16)  # where a joint estimator costs much, and where its mean is judged
LARGE = 128  # order from which it does
HEAVY = 256  # probes of a case that is drawn so few because a product costs so much
UNBIASED = ("tr A", "tr p(A)")  # expectations known on every matrix
WIDEST = max(PROBE_COUNTS)
VACUOUS = 0.02  # nats for each dimension: a wider limit on rounding judges nothing
MARGINS = {"mean": 0.5, "variance": 0.5, "se": 0.5}


@dataclass(frozen=True)
class Oracle:
    """What is known exactly about the probes of one unit: f(A) in the estimator's place."""

    view: View
    probes: Tensor
    law: str = "rademacher"

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
        return exact.moments(B, self.law)

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
    epoch: str = ""

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
    def counts(self) -> tuple[int, ...]:
        """Numbers of probes of the cells of this unit; 0 for a method without probes."""
        return probe_counts(self.method, self.case)

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
            "law": self.method.law if probes else None,
            "dtype": self.dtype,
            "device": "cpu",
        }


_SHORT = {"num_steps": "k", "degree": "d", "power_steps": "q"}


def cell_ids(unit: Unit) -> list[str]:
    """Ids of all cells of a unit."""
    return [unit.record(m)["id"] for m in unit.counts]


def probe_counts(method: Method, case: Case) -> tuple[int, ...]:
    """Numbers of probes of the cells of a method on a case: those that it can do with.

    Estimators that use their probes jointly share no products between numbers of probes: on large
    problems and on networks they have few of them.
    """
    if not method.uses_probes:
        return (0,)
    joint = method.claims.joint
    few = joint and (case.n >= LARGE or case.family == "jacobian")
    most = case.n if method.law == "orthogonal" else WIDEST
    if few and case.num_probes <= HEAVY:
        most = FEW[0]
    return tuple(m for m in (FEW if few else PROBE_COUNTS) if method.claims.min_probes <= m <= most)


def draw(case: Case, dtype: torch.dtype, epoch: str, law: str = "rademacher") -> Tensor:
    """The probes of a case, (R, n, 64): the same numbers in either precision."""
    # Signs came first: the name of their seeds is without a law.
    key = ("probes", case.id, epoch) if law == "rademacher" else ("probes", case.id, epoch, law)
    shape = (case.num_probes // WIDEST,)
    return LAWS[law](case.n, WIDEST, generator=generator_for(*key), batch_shape=shape, dtype=dtype)


def num_random_checks(method: Method) -> int:
    """Checks of all cells of a unit in which chance plays a part, at the most."""
    claims = method.claims
    if not (method.uses_probes and claims.gated):
        return 0
    if claims.joint:
        return len(FEW) if claims.expectation in UNBIASED else 0
    if not claims.additive:
        return 0
    # The mean; where the variance is known exactly, also that, and error bars at m > 1.
    return 1 if claims.expectation == "quadrature" else 1 + len(PROBE_COUNTS)
