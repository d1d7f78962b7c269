"""What is judged: an estimator with the law of its probes and its claims, or a black box.

A `Subject` is an estimator split as the checks need it: a deterministic functional of the probes
(`estimate`), the sampler that draws them, and what both promise. The rows of the methods table are
subjects; so is a wrong estimator that keeps the claims of the right one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from specbp import Estimate, bounds, exact, maxent, probes
from specbp.claims import Gradient
from specbp.methods import Claims, Method
from specbp.operators import as_operator
from specbp.probes import Sampler
from verification.cases import View

SLACK = 0.01  # a user's bound of the spectrum is never exact: ours are 1 % wide
ILL_POSED = 1e3  # times the rounding of a sum, where a density is fitted to moments
ScalarFunction = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """An estimator under test.

    Attributes:
        name: Short name.
        estimate: `(operator, probes, **config, **arguments(view)) -> Estimate`; without probes
            where `claims.expectation` is "exact".
        on: View of a problem it is applied to: "A", "J" or "dense A".
        estimand: "logdet" or "trace".
        claims: What it promises (`specbp.methods.Claims`).
        config: Arguments that do not depend on the matrix.
        arguments: Arguments that do, such as a spectral interval.
        contract: The f with E[estimate] = tr f(A) and, where `claims.additive`, one probe's value
            xᵀf(A)x: exactly for "tr p(A)" and "tr A", up to quadrature for "quadrature".
        sampler: Draws the probes.
        law: The law that the sampler promises, a key of `specbp.probes.LAWS`.
        gradient: Kind of its gradient (`specbp.claims.Claims`), f in the place of log: what
            "derivative" differentiates is xᵀf(A)x, whose matrix is the Fréchet derivative, and
            "solve" forms xᵀf'(A) dA x.
        slope: The f' of the contract; by differences of f where it is not given.
        found: For an interval found from the first probe of a block: the interval, a function of
            the view and that probe (n,). The f that is differentiated is the polynomial on it.
        outcomes: For estimators with further randomness (a random degree): all outcomes on a view,
            values (R,) and weights (R,), weights summing to 1.
    """

    name: str
    estimate: Callable[..., Estimate]
    on: Literal["A", "J", "dense A"]
    estimand: Literal["logdet", "trace"]
    claims: Claims
    config: dict[str, Any] = field(default_factory=dict)
    arguments: Callable[[View], dict[str, Any]] = lambda _view: {}
    contract: Callable[[View], ScalarFunction] = lambda _view: np.log
    sampler: Sampler = probes.rademacher
    law: str = "rademacher"
    gradient: Gradient | None = None
    slope: Callable[[View], ScalarFunction] | None = None
    found: Callable[[View, Tensor], tuple[float, float]] | None = None
    outcomes: Callable[[View], tuple[Tensor, Tensor]] | None = None

    def configured(self, n: int) -> dict[str, Any]:
        """`config`, with Krylov dimensions that an n × n matrix has."""
        steps = ("num_steps", "power_steps")
        return {k: min(v, n) if k in steps else v for k, v in self.config.items()}

    def bound(self, view: View) -> Callable[..., Estimate]:
        """The estimator as `(operator, probes) -> Estimate`, all arguments those of the view."""
        n = view.operator.shape[-1]
        return partial(self.estimate, **self.configured(n), **self.arguments(view))

    def with_steps(self, num_steps: int) -> Subject:
        """The same with another number of Krylov steps, if it is told one."""
        return (
            self
            if "num_steps" not in self.config
            else replace(self, config={**self.config, "num_steps": num_steps})
        )

    def call(self, view: View, X: Tensor) -> Estimate:
        """Estimate with the probes X (..., n, m), in the dtype of the view's operator."""
        return self.bound(view)(view.operator, X.to(view.operator.dtype))

    def draw(
        self, n: int, m: int, *, generator: torch.Generator, batch_shape: Sequence[int] = ()
    ) -> Tensor:
        """Probes (*batch_shape, n, m) from the sampler, float64."""
        return self.sampler(n, m, generator=generator, batch_shape=batch_shape)

    def oracle(self, view: View, X: Tensor) -> np.ndarray | None:
        """Value of every probe of X (n, P) by an independent algorithm, None where none is known.

        xᵀf(A)x from the eigendecomposition, or the k-point Gauss rule of its measure.
        """
        if not self.claims.additive or self.claims.expectation == "exact":
            return None
        columns = X.double().numpy()
        if self.claims.expectation == "quadrature":
            steps = self.configured(len(columns))["num_steps"]
            return exact.slq_value(view.eigenvalues, view.eigenvectors, columns, steps, np.log)
        weights = (view.eigenvectors.T @ columns) ** 2
        return self.contract(view)(view.eigenvalues) @ weights

    def form(self, view: View) -> np.ndarray:
        """The matrix B = f(A) of the contract, (n, n): one probe's value is xᵀBx."""
        return exact.matrix_function(view.eigenvalues, view.eigenvectors, self.contract(view))

    def expected(self, view: View) -> float:
        """tr f(A): the expectation of the estimate."""
        return float(self.contract(view)(view.eigenvalues).sum())

    def derivative(self, view: View) -> ScalarFunction:
        """The f' of the contract."""
        return self.slope(view) if self.slope else partial(_relative_steps, self.contract(view))

    def held(self, view: View, first: Tensor) -> Subject:
        """The subject with the interval that it finds from the first probe of a block."""
        if self.found is None:
            return self
        p = exact.chebyshev_log(self.config["degree"], self.found(view, first))
        return replace(self, contract=lambda _view: p, slope=lambda _view: p.deriv(), found=None)

    def rounding(self, view: View) -> float:
        """Largest rounding of the value of one probe, in nats: what deterministic checks allow."""
        eps = torch.finfo(view.operator.dtype).eps
        n, lam = view.operator.shape[-1], view.eigenvalues
        config, known = self.configured(n), self.arguments(view)
        ends = [float(v) for v in np.ravel(list(known.values())) if v is not None]
        size = float(np.abs(self.contract(view)(np.concatenate([lam, ends]))).max())
        if not self._is_polynomial(view, config):
            # Ritz values move by a few eps |A|, which log amplifies near the smallest one (on J the
            # same holds for singular values); k terms of the size of log are summed.
            terms = config.get("num_steps", 1) * size
            fitted = ILL_POSED if self.claims.expectation == "model" else 1
            rounded = 8 * fitted * eps * n * (self.amplification(view) + max(terms, 1.0))
            # A fit stops where no moment is off by more than its tolerance; log is a combination of
            # the moments with coefficients of its own size.
            unsolved = config.get("num_moments", 0) * maxent.TOLERANCE * max(size, 1.0)
            return rounded + n * unsolved
        return 50 * (config.get("degree", 1) + 1) * (eps / 2) * n * size

    def _is_polynomial(self, view: View, config: dict[str, Any]) -> bool:
        """Whether products and sums are all that it computes: the trace, or a known degree."""
        if self.claims.expectation in ("quadrature", "exact", "krylov", "model"):
            return False
        whole_log = self.claims.expectation == "tr p(A)" and self.estimand == "logdet"
        return not whole_log or ("degree" in config and self.contract(view) is not np.log)

    def amplification(self, view: View) -> float:
        """Condition number of what the method works on: J or A."""
        cond = view.truth.cond
        return cond**0.5 if self.on == "J" else cond


def interval(view: View) -> tuple[float, float]:
    """The spectral interval handed to methods that need one."""
    lam = view.eigenvalues
    return float(lam.min()) * (1 - SLACK), float(lam.max()) * (1 + SLACK)


def from_method(method: Method) -> Subject:
    """A row of the methods table as a subject."""
    return Subject(
        name=method.name,
        estimate=_as_function_of_probes(method),
        on=method.on,
        estimand=method.estimand,
        claims=method.claims,
        config=dict(method.config),
        arguments=partial(_known, method),
        contract=partial(_contract, method),
        sampler=probes.LAWS[method.law],
        law=method.law,
        gradient=method.claims.gradient,
        slope=partial(_slope, method),
        found=partial(_found, method) if method.claims.expectation == "adaptive" else None,
        outcomes=partial(_outcomes, method) if method.survival else None,
    )


def _as_function_of_probes(method: Method) -> Callable[..., Estimate]:
    if method.shaped is None and method.survival is None:
        return method.estimate
    return partial(_shaped, method)


def _shaped(method: Method, A: Any, X: Tensor, **arguments: Any) -> Estimate:
    """The estimate, with arguments for as many probes, and degrees that the probes stand for."""
    n, m = X.shape[-2:]
    arguments = method.keywords(n, m, arguments)
    if method.survival is not None:
        arguments["degrees"] = degrees_of(X, method.survival(**arguments))
    return method.estimate(A, X, **arguments)


def degrees_of(X: Tensor, survival: Tensor) -> Tensor:
    """A degree for every probe of X (..., n, m), (..., m), with P(N ≥ j) = survival[j]."""
    return torch.searchsorted(-survival[1:].contiguous(), -uniform_of(X))


def uniform_of(X: Tensor) -> Tensor:
    """A number in (0, 1) for every probe of X (..., n, m), (..., m): a hash of its entries.

    The same for x and −x and in either precision, still a function of the probes as the checks
    need it, and as good as drawn where no probe comes twice.
    """
    rows = X.detach().mT.float()
    flipped = torch.where(rows[..., :1] < 0, -rows, rows) + 0.0  # −0 is 0
    bits = flipped.flatten(0, -2).contiguous().numpy()
    hashed = [hashlib.sha256(row.tobytes()).digest()[:6] for row in bits]
    numbers = [(int.from_bytes(h, "big") + 0.5) / 2**48 for h in hashed]
    return torch.tensor(numbers, dtype=torch.float64).view(rows.shape[:-1])


def _outcomes(method: Method, view: View) -> tuple[Tensor, Tensor]:
    """Values of all sign vectors and degrees on a small view, and their probabilities."""
    n = view.operator.shape[-1]
    X = torch.from_numpy(exact.all_signs(n)).unsqueeze(-1).to(view.operator.dtype)
    arguments = method.keywords(n, 1, {**method.config, **_known(method, view)})
    assert method.survival is not None
    survival = method.survival(**arguments)
    weights = survival - torch.cat([survival[1:], torch.zeros(1, dtype=survival.dtype)])
    degrees = torch.arange(len(survival)).view(-1, 1, 1).expand(-1, len(X), -1)
    blocks = X.expand(len(survival), -1, -1, -1)
    found = method.estimate(view.operator, blocks, degrees=degrees, **arguments)
    return found.value.flatten(), weights.repeat_interleave(len(X)) / len(X)


def _known(method: Method, view: View) -> dict[str, Any]:
    a, b = interval(view)
    known = {"interval": (a, b), "lower": a, "upper": b}
    return {key: known[key] for key in method.needs}


def _found(method: Method, view: View, first: Tensor) -> tuple[float, float]:
    """The interval of Algorithm 1, whose upper end is that of the power method or of Lanczos."""
    A, steps = as_operator(view.operator), method.config["power_steps"]
    if method.config.get("safe", True):
        b = bounds.lanczos_interval(A, first, min(steps, len(first)))[1]
    else:
        b = bounds.power_method(A, first, min(steps, len(first)))
    return interval(view)[0], float(b)


def _contract(method: Method, view: View) -> ScalarFunction:
    a, b = interval(view)
    if method.name == "taylor":
        return exact.taylor_log(method.config["degree"], b)
    if method.claims.expectation == "tr p(A)" and method.survival is None:
        return exact.chebyshev_log(method.config["degree"], (a, b))
    return np.log if method.estimand == "logdet" else np.asarray


def _slope(method: Method, view: View) -> ScalarFunction:
    if method.name == "taylor":
        b, powers = interval(view)[1], np.arange(method.config["degree"])
        return lambda x: ((1 - np.asarray(x)[..., None] / b) ** powers).sum(-1) / b
    f = _contract(method, view)
    if method.claims.expectation == "tr p(A)" and method.survival is None:
        return f.deriv()  # type: ignore[attr-defined]
    return np.reciprocal if method.estimand == "logdet" else np.ones_like


# Relative step of differences of a contract: a polynomial of degree 40 bends within 1 / 40².
STEP = 3e-4


def _relative_steps(f: ScalarFunction, x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    return differentiate(lambda step: f(x + step), STEP * x)


def differentiate(f: Callable[[Any], np.ndarray], step: Any) -> np.ndarray:
    """f'(0) by central differences of order 6, from f at ±1, ±2 and ±3 steps."""
    weights = ((1, 45), (2, -9), (3, 1))
    total = sum(w * (f(k * step) - f(-k * step)) for k, w in weights)
    return np.asarray(total / (60 * step))
