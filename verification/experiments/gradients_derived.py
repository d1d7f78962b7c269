"""What follows from the records of gradient noise: shapes of one number of products compared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from verification.store import Record


@dataclass(frozen=True)
class Shape:
    """m probes with k steps each, for a given number of products.

    Attributes:
        estimator: Its name.
        probes: m; a fraction if one probe takes more products than there are.
        steps: k; 0 if a tolerance decides.
        std: Noise of the mean over the probes, relative to |g_exact|.
        bias: Relative bias, its standard error taken off in squares.
        bias_error: Standard error of the bias.
    """

    estimator: str
    probes: float
    steps: int
    std: float
    bias: float
    bias_error: float

    @property
    def rmse(self) -> float:
        """Noise and bias together."""
        return math.hypot(self.std, self.bias)

    @property
    def shape(self) -> str:
        """As m x k."""
        return f"{self.probes:.3g} x {self.steps}" if self.steps else f"{self.probes:.2g}"


def shapes(records: Iterable[Record], case: str, products: int) -> list[Shape]:
    """All shapes of so many products that are known of one case, but those that failed."""
    found = []
    for r in chosen(records, "noise", label=case):
        m = products / r["products"]
        usable = m >= 1 or r["rtol"] is not None
        finite = r["std"] is not None and math.isfinite(r["std"])
        if finite and (usable if r["independent"] else m == 1):
            found.append(shape_of(r, m))
    return found


def best(found: Iterable[Shape]) -> Shape:
    """The one of least RMSE."""
    return min(found, key=lambda s: s.rmse)


def shape_of(r: Record, copies: float) -> Shape:
    """So many independent copies of what one record measured."""
    return Shape(
        estimator=r["estimator"],
        probes=r["probes"] * copies,
        steps=r["steps"],
        std=r["std"] / math.sqrt(copies),
        bias=math.sqrt(max(0.0, r["bias"] ** 2 - r["bias_error"] ** 2)),
        bias_error=r["bias_error"],
    )


def chosen(records: Iterable[Record], kind: str, **keys: object) -> list[Record]:
    """Records of a kind with these entries."""
    return [r for r in records if r["kind"] == kind and all(r[k] == v for k, v in keys.items())]


def names(records: Iterable[Record], kind: str) -> list[str]:
    """The cases of a kind, in order."""
    key = "label" if kind == "noise" else "case"
    return list(dict.fromkeys(r[key] for r in chosen(records, kind)))


def budgets(records: Iterable[Record]) -> list[int]:
    """Numbers of products that are compared."""
    return list(chosen(records, "run")[0]["budgets"])


def of_cost(records: Iterable[Record], kind: str, case: str, estimator: str, steps: int) -> Record:
    """The record of memory or time of one estimator with so many steps."""
    return chosen(records, kind, case=case, estimator=estimator, steps=steps)[0]


def order(records: Iterable[Record], case: str) -> int:
    """n of a case whose noise was measured."""
    return int(chosen(records, "noise", label=case)[0]["n"])
