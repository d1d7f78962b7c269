"""log det to an asked error: exact where that is cheapest, else as many products as it takes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from scipy import special
from torch import Tensor

from specbp.estimate import Estimate, Status, any_flag
from specbp.named import named, refuse_unused
from specbp.plan import (
    Ask,
    Outlook,
    Plan,
    Step,
    best_within,
    cheapest,
    cost,
    products,
)
from specbp.plan_costs import Shape
from specbp.plan_runs import Batch, Found, pooled
from specbp.plan_target import Target, target_of
from specbp.probes import sphere

PILOT_SHARE = 0.15  # of what the exact answer costs is the most that a pilot may take …
LOOSE_SHARE = 0.4  # … unless so little is asked that the pilot should be the answer
WORTH = 0.6  # of the same is the most that is worth risking on a prediction
PILOT_STEPS = (12, 8)
PILOT_PROBES = (4, 8)  # fewest and most where each probe has its own space
SHARED_PROBES = 10  # where they share it
SHARED_FROM = 1.2  # times the cost of separate spaces, which take more probes
MEMORY = 2**30  # bytes of Krylov bases at once, if no limit is given
# Shares of 1 − confidence for the pilot and each later look: looking early is paid for (union
# bound), whatever the order in which the looks succeed.
LOOKS = (0.2, 0.6, 0.15, 0.05)
LOOSE_LOOKS = (0.7, 0.2, 0.07, 0.03)  # where the pilot should be the answer
DEFAULT_RTOL = 0.01


def logdet(
    A: Any,
    *,
    generator: torch.Generator,
    method: str = "auto",
    atol: float | None = None,
    per_dimension: float | None = None,
    rtol: float | None = None,
    confidence: float = 0.95,
    budget: float | None = None,
    max_bytes: int | None = None,
    num_probes: int = 10,
    **config: Any,
) -> Estimate:
    r"""log det A, or log det JᵀJ of a factor J, to an asked error at an asked confidence.

    .. math:: P\bigl(|\text{value} - \log\det| \le \text{tolerance}\bigr) \ge \text{confidence}

    With `method="auto"` the cheapest exact answer is taken where it costs less than any estimate
    could: QR of J from n batched JVPs, or Cholesky of an explicit matrix. Otherwise a pilot
    measures spread and truncation, probes and steps follow from it, and more of both follow until
    the interval is short enough. Looking at it after every round is paid for by splitting 1 −
    confidence over the looks. `Estimate.plan` says what was chosen, and why.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n); or a factor J: a `Jacobian`,
            a `JacobianMetric`, or anything with an adjoint `.mT` and more rows than columns. A
            square tensor is A; for a square factor pass `JacobianMetric(J)`.
        generator: Source of all probes.
        method: "auto", or a log-determinant row of `specbp.methods.METHODS`, which is then called
            with `num_probes` probes of its law and `config`.
        atol: Error asked for, in nats.
        per_dimension: The same in nats per dimension.
        rtol: The same relative to Σ|log λ_i|; 0.01 if nothing is asked. It is not relative to log
            det, which may be near zero while every log λ is large.
        confidence: Of the interval, between 0 and 1.
        budget: Products with A that may be spent; without it, as many as needed.
        max_bytes: Memory for J, for one chunk of its columns, or for Krylov bases.
        num_probes: See `method`.
        config: See `method`.

    Raises:
        ValueError: If no error, several, or an impossible one is asked for; if the method is
            unknown; if the budget is less than the least estimate needs.

    Where budget or memory end before the error is reached, the value is the best there is, with
    status `TOLERANCE_MISSED` and `plan.met` False. Failures of the operator are statuses, as in
    every estimate; but no quadrature sees an eigenvalue that is zero and has a share 1/n of every
    probe: where A or J may be rank deficient, `method="qr"` or "cholesky" tells.

    Where A is differentiable, so is the value, and the plan counts what the gradient will cost: an
    exact answer has the exact gradient, an estimate that of its probes. The error asked for is that
    of the value. A gradient is noisier by far: from m probes its standard deviation is about √(n/m)
    times the derivative itself along a dA in which nothing is special, less for a spread spectrum.

    Example:
        >>> import torch
        >>> from specbp import generator_for
        >>> A = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
        >>> found = logdet(A, atol=0.1, generator=generator_for("doc"))
        >>> print(found.plan)
        No estimate is worth trying first: exact by cholesky.
        cholesky: exact, 0 products.
    """
    if method != "auto":
        asked = {"atol": atol, "per_dimension": per_dimension, "rtol": rtol}
        asked |= {"budget": budget, "max_bytes": max_bytes}
        refuse_unused(method, asked)
        return named(A, method, num_probes, generator, config)
    if config:
        raise ValueError(f'{sorted(config)} belong to a method; method is "auto".')
    if atol is None and per_dimension is None and rtol is None:
        rtol = DEFAULT_RTOL
    ask = Ask(atol, per_dimension, rtol, confidence)
    limit = math.inf if budget is None else float(budget)
    if math.isnan(limit) or not isinstance(generator, torch.Generator):
        raise ValueError(f"Pass a torch.Generator and a budget, got {generator!r} and {budget!r}.")
    return _Run(target_of(A, max_bytes, limit), ask, limit, generator).answer()


class _Run:
    """One planned estimate: a pilot, what follows from it, and what was decided on the way."""

    def __init__(self, target: Target, ask: Ask, budget: float, generator: torch.Generator):
        self.target, self.ask, self.budget, self.generator = target, ask, budget, generator
        self.costs = target.costs
        self.batches: list[Batch] = []
        self.reasons: list[str] = []
        self.shapes: list[Shape] = []
        self.dropped = 0.0  # products of batches that are no longer used

    @property
    def spent(self) -> float:
        """Products with A so far."""
        return self.dropped + sum(batch.products for batch in self.batches)

    def answer(self) -> Estimate:
        """The estimate that reaches the error asked for, or the best within the budget."""
        pilot = self._pilot()
        if pilot is None:
            return self._exact("No estimate is worth trying first")
        found = self._measure(Step(pilot, goes_on=False))
        looks = self._looks(pilot)
        for look, share in enumerate(looks):
            tolerance = self._tolerance(found)
            error = _half_width(found.estimate, self._level(share))
            if bool((error <= tolerance).all()):
                return self._done(found.estimate, error, tolerance)
            if not bool(found.estimate.ok.all()):
                self.reasons.append(f"Stopped: {_failed(found.estimate)}.")
                return self._missed(found.estimate, error, tolerance)
            if look + 1 == len(looks):
                break
            step = self._next(Outlook.of(found, self.shapes[-1], tolerance), looks[look + 1])
            if step is None:
                break
            if step.goes_on and step.shape == self.shapes[-1]:
                continue  # its larger share of 1 − confidence is all that the next look needs
            found = self._measure(step)
        if math.isfinite(self.costs.exact) and self._affords_exact():
            return self._exact(f"Going on would cost more than {self.target.exact_name}")
        return self._missed(found.estimate, error, tolerance)

    def _level(self, share: float) -> float:
        return 1 - share * (1 - self.ask.confidence)

    def _tolerance(self, found: Found) -> Tensor:
        n = self.costs.n
        # An error of rounding is not worth a product, though Σ|log λ| = 0 asks for none at all.
        return self.ask.nats(n, found.size).clamp_min(n * 1e-10)

    def _loose(self, num_probes: int) -> bool:
        """Whether so little is asked that this many probes should do."""
        return num_probes >= self.ask.probes(self.costs.n)

    def _looks(self, pilot: Shape) -> tuple[float, ...]:
        """Shares of 1 − confidence, all of it for a pilot that nothing can follow."""
        if not math.isfinite(self.costs.exact) and self.budget - self.spent < pilot.probes:
            return (1.0,)
        return LOOSE_LOOKS if self._loose(pilot.probes) else LOOKS

    def _affords_exact(self) -> bool:
        return self.spent + self.target.exact_products <= self.budget

    def _pilot(self) -> Shape | None:
        """A first look; None if no estimate can be cheaper than the exact answer."""
        n, exact = self.costs.n, self.costs.exact
        if not math.isfinite(exact):
            return self._frugal() if math.isfinite(self.budget) else self._first(PILOT_STEPS[0])
        fewest = max(2, math.ceil(min(self.ask.probes(n) / 9, 1e9)))
        if exact <= self.costs.of(Shape(1, fewest, min(PILOT_STEPS[-1], n))):
            return None
        for steps in PILOT_STEPS:
            shape = self._first(steps)
            share = LOOSE_SHARE if self._loose(shape.probes) else PILOT_SHARE
            if self.costs.of(shape) <= share * exact and (
                shape.products + self.target.exact_products <= self.budget
            ):
                return shape
        return None

    def _first(self, steps: int) -> Shape:
        """Shared spaces where products are dear: they need fewer, and their algebra is hidden."""
        n, (fewest, most) = self.costs.n, PILOT_PROBES
        steps = min(steps, n)
        own = Shape(1, min(n, most), steps)
        shared = own._replace(shared=True)
        if self.costs.of(shared) <= SHARED_FROM * self.costs.of(own):
            return shared
        wanted = math.ceil(min(self.ask.probes(n) / 2, most))
        return own._replace(num_probes=min(n, max(fewest, wanted)))

    def _frugal(self) -> Shape:
        """The start of one shared space that the budget will fill."""
        n, budget = self.costs.n, int(min(self.budget, 1e9))
        probes = min(SHARED_PROBES, n, max(5, budget // 8))
        steps = min(PILOT_STEPS[-1], budget // probes, n)
        if steps < min(3, n):
            raise ValueError(
                f"The budget of {self.budget:g} products allows neither the exact answer nor an "
                f"estimate with an error bar, which needs {min(3, n) * probes}: raise budget or "
                "max_bytes, or call an estimator directly."
            )
        return Shape(1, probes, steps, shared=True)

    def _next(self, outlook: Outlook, share: float) -> Step | None:
        left = self._left()
        step = cheapest(outlook, self.costs, self._level(share), left)
        if math.isfinite(self.costs.exact):
            if step is None or WORTH * self.costs.exact <= cost(step, outlook.shape, self.costs):
                return None
            rest = left - self.target.exact_products
            return step if products(step, outlook.shape) <= rest else None
        if step is not None:
            return step
        # Nothing known promises the error: what is spent is multiplied, and looked at again.
        left = min(left, 4 * self.spent)
        step = best_within(outlook, self.costs.n, self._level(share), left)
        if step is not None:
            self.reasons.append(f"No shape is seen to reach the error: {left:.0f} more products.")
        return step

    def _left(self) -> float:
        """Products that may still be new; those that memory has forgotten are paid for again."""
        forgotten = sum(batch.products for batch in self.batches if not batch.keep)
        return self.budget - self.spent - forgotten

    def _measure(self, step: Step) -> Found:
        """Take a step: fresh probes, more steps of those there are, or both."""
        shape, done = step
        if not step.goes_on:
            self.dropped, self.batches = self.spent, []
        before = self.shapes[-1] if step.goes_on else None
        self.batches += self._draw(shape, before)
        found = pooled([batch.run(shape.num_steps) for batch in self.batches], self.spent)
        found = found._replace(estimate=replace(found.estimate, num_matvecs=self.spent))
        self.shapes.append(shape)
        kind = "Pilot" if len(self.shapes) == 1 else f"Round {len(self.shapes) - 1}"
        self.reasons.append(
            f"{kind}: {shape}, {self.spent:g} products so far: "
            f"±{_brief(found.estimate.standard_error)} by chance, "
            f"±{_brief(found.estimate.truncation)} by truncation."
        )
        return found

    def _draw(self, shape: Shape, done: Shape | None) -> list[Batch]:
        """Batches of the probes that are new, as small as memory asks for."""
        op, limit = self.target.operator, self.target.max_bytes or MEMORY
        size = shape.num_steps * sum(op.shape[-2:]) * op.dtype.itemsize * op.shape[:-2].numel()
        keep = 4 * size * shape.probes <= limit
        each = shape.num_probes if shape.shared else 1
        new = (shape.probes - (done.probes if done else 0)) // each
        for batch in self.batches:
            batch.keep &= keep
        most = max(1, limit // (4 * size * each))
        counts = [min(most, new - start) for start in range(0, new, most)]
        return [self._batch(count, shape, keep) for count in counts]

    def _batch(self, count: int, shape: Shape, keep: bool) -> Batch:
        op = self.target.operator
        blocks, probes = (count, shape.num_probes) if shape.shared else (1, count)
        drawn = sphere(
            op.shape[-1],
            probes,
            generator=self.generator,
            batch_shape=(blocks, *op.shape[:-2]),
            dtype=op.dtype,
            device=op.device,
        )
        return Batch(
            op, drawn.mT.contiguous(), factor=self.target.factor, shared=shape.shared, keep=keep
        )

    def _exact(self, why: str) -> Estimate:
        self.reasons.append(f"{why}: exact by {self.target.exact_name}.")
        found = self.target.exact()
        self.dropped += found.num_matvecs
        # Relative to Σ|log λ|, nothing is known of the tolerance, and nothing needs to be.
        size = torch.full_like(found.value, math.nan)
        return self._done(found, torch.zeros_like(found.value), self.ask.nats(self.costs.n, size))

    def _done(self, found: Estimate, error: Tensor, tolerance: Tensor) -> Estimate:
        method = self.target.exact_name
        if found.samples.shape[-1]:
            method = self.target.estimator(shared=self.shapes[-1].shared)
        met = not bool((error > tolerance).any()) and bool(found.ok.all())
        plan = Plan(
            method, tolerance, error, met, self.spent, tuple(self.shapes), tuple(self.reasons)
        )
        return replace(found, plan=plan, num_matvecs=self.spent)

    def _missed(self, found: Estimate, error: Tensor, tolerance: Tensor) -> Estimate:
        beyond = ((error > tolerance) | ~torch.isfinite(error)) & found.ok
        found = replace(found, status=found.status | beyond * int(Status.TOLERANCE_MISSED))
        return self._done(found, error, tolerance)


def _half_width(found: Estimate, confidence: float) -> Tensor:
    """Truncation in doubt and Monte Carlo error, added; NaN where none is claimed.

    That is never less than `Estimate.interval`, whose quantile takes more time than a step.
    """
    assert found.truncation is not None
    value = found.value.detach()
    above = torch.minimum(found.upper - value, found.truncation).clamp_min(0)
    below = torch.minimum(value - found.lower, found.truncation).clamp_min(0)
    quantile = -float(special.stdtrit(found.freedom, (1 - confidence) / 2))
    return torch.maximum(above, below) + quantile * found.standard_error


def _failed(found: Estimate) -> str:
    bad = ~found.ok
    return f"{int(bad.sum())} of {bad.numel()} failed ({any_flag(found.status[bad])!r})"


def _brief(x: Tensor | None) -> str:
    return "?" if x is None else f"{float(x.max()):.3g}"
