"""What a row of the table of methods says of an estimator: how it is called, what it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from specbp.estimate import Estimate

Gradient = Literal["derivative", "frechet", "solve", "exact"]


@dataclass(frozen=True)
class Claims:
    """What a method promises; every field is checked, none is believed.

    Attributes:
        expectation: What the estimate is unbiased for: "tr p(A)" (a polynomial known in closed
            form), "quadrature" (the Gauss rule of each probe), "tr A", "exact" (no randomness),
            "adaptive" (a polynomial whose interval depends on the probes), "krylov" (log det A
            where every Krylov space that it uses is complete, as few distinct eigenvalues make
            it; elsewhere truncation is its only bias), or "model" (nothing that a test could hold
            it to: its bias is reported).
        matvecs: Products with A for m probes, as a function of (n, m, config); NaN if the number
            is random.
        bracket: Which ends of the truncation bracket hold for every probe, or for every block of
            probes where they are used jointly.
        bracket_of: What the bracket holds: "forms", the mean of xᵀlog(A)x; "truth", log det A;
            "complete", the value that the same probes have after n steps; or "inner", what only the
            estimator can see, so that its own tests must look.
        calibrated: The standard error is one: E[se²] = Var for independent probes.
        conservative: The standard error is none too small, if not calibrated: E[se²] ≥ 0.8 Var.
        additive: The estimate is the mean of per-probe values, so one block of probes can be cut
            into estimates of any smaller number of probes.
        min_probes: Probes without which there is no estimate.
        bar_probes: Probes without which there is no error bar.
        exact_from: Whether m probes in general position (any n of them, or any m − 1, independent)
            make the value exact, as a function of (n, m, config), on a matrix whose eigenvalues
            are well apart; None if no number does.
        gradient: What `torch.autograd` through the value gives, for each probe x and along dA:
            "derivative", that of the value, with the probes and the interval held fixed, be it
            given or found; "frechet", xᵀ L(A, dA) x with L the Fréchet derivative of log, in the
            Krylov space of x, or of all probes: exact after n steps, and truncated before, not as
            the value is;
            "solve", xᵀ A⁻¹ dA x up to the tolerance of the solver; "exact", tr A⁻¹ dA, where there
            are no probes; None if it is no promise.
        gated: False for a method kept as a baseline, whose failures are shown and not judged.
    """

    expectation: Literal["tr p(A)", "quadrature", "tr A", "exact", "adaptive", "krylov", "model"]
    matvecs: Callable[[int, int, dict[str, Any]], float]
    bracket: tuple[Literal["lower", "upper"], ...] = ()
    bracket_of: Literal["forms", "truth", "complete", "inner"] = "forms"
    calibrated: bool = True
    conservative: bool = False
    additive: bool = True
    min_probes: int = 1
    bar_probes: int = 2
    exact_from: Callable[[int, int, dict[str, Any]], bool] | None = None
    gradient: Gradient | None = None
    gated: bool = True

    @property
    def joint(self) -> bool:
        """Whether the probes of one estimate act together, in another way than by a bound."""
        return not self.additive and self.expectation not in ("adaptive", "exact")


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
        shaped: Keyword arguments as a function of (n, m, config and needs), where they depend on n
            and m, such as how many probes are spent on what.
        law: Law of the probes that the claims are about, a key of `specbp.probes.LAWS`.
        survival: For an estimator with a random degree N for each probe, which it takes as
            `degrees`: P(N ≥ j) for j = 0, 1, …, a function of the other keyword arguments.
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
    shaped: Callable[[int, int, dict[str, Any]], dict[str, Any]] | None = None
    law: str = "rademacher"
    survival: Callable[..., Tensor] | None = None

    @property
    def uses_probes(self) -> bool:
        """False for methods that draw nothing."""
        return self.claims.expectation != "exact"

    def keywords(self, n: int, m: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments for m probes of length n, from those of config and needs."""
        return arguments if self.shaped is None else self.shaped(n, m, arguments)
