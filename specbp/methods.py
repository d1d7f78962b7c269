"""The table of methods and of what each claims: tests, verification and README iterate over it.

One more estimator is one function `(operator, probes, **config) -> Estimate` and one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from specbp import direct, logdets, trace
from specbp.estimate import Estimate


@dataclass(frozen=True)
class Claims:
    """What a method promises; every field is checked, none is believed.

    Attributes:
        expectation: What the estimate is unbiased for: "tr p(A)" (a polynomial known in closed
            form), "quadrature" (the Gauss rule of each probe), "tr A", "exact" (no randomness), or
            "adaptive" (a polynomial whose interval depends on the probes).
        bracket: Which ends of the truncation bracket hold for every probe.
        calibrated: The standard error is one: E[se²] = Var for independent probes.
        additive: The estimate is the mean of per-probe values, so one block of probes can be cut
            into estimates of any smaller number of probes.
        matvecs: Products with A for m probes, as a function of (n, m, config).
        differentiable: `torch.autograd` through the value gives the derivative of the estimate, its
            probes and its interval held fixed.
        gated: False for a method kept as a baseline, whose failures are shown and not judged.
    """

    expectation: Literal["tr p(A)", "quadrature", "tr A", "exact", "adaptive"]
    matvecs: Callable[[int, int, dict[str, Any]], float]
    bracket: tuple[Literal["lower", "upper"], ...] = ()
    calibrated: bool = True
    additive: bool = True
    differentiable: bool = False
    gated: bool = True


@dataclass(frozen=True)
class Method:
    """One row: an estimator, what it is applied to, and its claims.

    Attributes:
        name: Key of the row.
        estimate: The function, `(operator, probes, **config)`, or `(operator, **config)` without
            probes.
        on: "A" for a symmetric operator, "J" for a factor with A = JᵀJ, "dense A" for a tensor.
        estimand: "logdet" or "trace".
        summary: One line for the README.
        source: Authors and year.
        claims: See `Claims`.
        config: Default keyword arguments.
        needs: Further keyword arguments that come from knowledge of the spectrum: "interval",
            "lower", "upper".
    """

    name: str
    estimate: Callable[..., Estimate]
    on: Literal["A", "J", "dense A"]
    estimand: Literal["logdet", "trace"]
    summary: str
    source: str
    claims: Claims
    config: dict[str, Any] = field(default_factory=dict)
    needs: tuple[Literal["interval", "lower", "upper"], ...] = ()

    @property
    def uses_probes(self) -> bool:
        """False for methods that draw nothing."""
        return self.claims.expectation != "exact"


def _half_degree(_: int, m: int, config: dict[str, Any]) -> float:
    return m * ((config["degree"] + 1) // 2)


def _steps(_: int, m: int, config: dict[str, Any]) -> float:
    return m * config["num_steps"]


def _algorithm1(n: int, m: int, config: dict[str, Any]) -> float:
    # Lanczos needs no more than n products for the bound; the power method never ends.
    steps = config["power_steps"] if config.get("safe") is False else min(config["power_steps"], n)
    return _half_degree(n, m, config) + steps


METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            name="qr",
            estimate=direct.qr_logdet,
            on="J",
            estimand="logdet",
            summary="exact: n batched JVPs and QR of J",
            source="Golub & Van Loan 2013, 5.2",
            claims=Claims("exact", matvecs=lambda n, _m, _c: n / 2),
        ),
        Method(
            name="cholesky",
            estimate=direct.cholesky_logdet,
            on="dense A",
            estimand="logdet",
            summary="exact, for an explicit matrix",
            source="Golub & Van Loan 2013, 4.2",
            claims=Claims("exact", matvecs=lambda _n, _m, _c: 0),
        ),
        Method(
            name="eigenvalues",
            estimate=direct.eigenvalue_logdet,
            on="dense A",
            estimand="logdet",
            summary="exact, for an explicit matrix; tells indefinite from singular",
            source="Golub & Van Loan 2013, 8",
            claims=Claims("exact", matvecs=lambda _n, _m, _c: 0),
        ),
        Method(
            name="golub_kahan",
            estimate=logdets.golub_kahan_logdet,
            on="J",
            estimand="logdet",
            summary="Golub–Kahan quadrature on J; the default for JᵀJ, sound in float32",
            source="Golub & Kahan 1965",
            claims=Claims("quadrature", matvecs=_steps, bracket=("lower", "upper")),
            config={"num_steps": 20},
            needs=("lower",),
        ),
        Method(
            name="slq",
            estimate=logdets.slq_logdet,
            on="A",
            estimand="logdet",
            summary="stochastic Lanczos quadrature, Gauss–Radau bracket",
            source="Ubaru, Chen & Saad 2017",
            claims=Claims("quadrature", matvecs=_steps, bracket=("lower", "upper")),
            config={"num_steps": 20},
            needs=("lower",),
        ),
        Method(
            name="chebyshev",
            estimate=logdets.chebyshev_logdet,
            on="A",
            estimand="logdet",
            summary="Chebyshev expansion on a known interval, two moments a product",
            source="Han, Malioutov & Shin 2015",
            claims=Claims(
                "tr p(A)",
                matvecs=_half_degree,
                bracket=("lower", "upper"),
                differentiable=True,
            ),
            config={"degree": 40},
            needs=("interval",),
        ),
        Method(
            name="taylor",
            estimate=logdets.taylor_logdet,
            on="A",
            estimand="logdet",
            summary="Taylor series at a known upper bound; over-estimates",
            source="Boutsidis et al. 2017",
            claims=Claims("tr p(A)", matvecs=_half_degree, bracket=("upper",), differentiable=True),
            config={"degree": 40},
            needs=("upper",),
        ),
        Method(
            name="algorithm1",
            estimate=logdets.algorithm1_logdet,
            on="A",
            estimand="logdet",
            summary="Algorithm 1 of the paper, safe form: proves its interval or raises it",
            source="Ramesh & LeCun 2018",
            claims=Claims("adaptive", matvecs=_algorithm1, additive=False),
            config={"degree": 40, "power_steps": 10},
            needs=("lower",),
        ),
        Method(
            name="algorithm1_plain",
            estimate=logdets.algorithm1_logdet,
            on="A",
            estimand="logdet",
            summary="Algorithm 1 as printed: explodes when the power method stops short",
            source="Ramesh & LeCun 2018",
            claims=Claims("adaptive", matvecs=_algorithm1, additive=False, gated=False),
            config={"degree": 40, "power_steps": 10, "safe": False},
            needs=("lower",),
        ),
        Method(
            name="hutchinson",
            estimate=trace.hutchinson_trace,
            on="A",
            estimand="trace",
            summary="tr A from one product a probe",
            source="Hutchinson 1990",
            claims=Claims("tr A", matvecs=lambda _n, m, _c: m, differentiable=True),
        ),
    )
}
