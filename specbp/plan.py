"""How much to spend: the error asked for, and the shape that is predicted to reach it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from scipy import special
from torch import Tensor

from specbp.plan_costs import Costs, Shape
from specbp.plan_runs import Found

WIDEST = 400  # dimensions of one shared Krylov space: beyond, its own algebra costs too much
LEAST = 6  # probes of a shared space, whose spread must be seen
SAFETY, SHARED_SAFETY = 1.03, 1.15  # on predicted standard deviations: computed, sampled
CAUTION = 0.75  # the truncation falls more slowly than its last differences say
STEPS = (4, 6, 8, 10, 12, 15, 18, 22, 28, 36, 46, 60, 80, 112, 160)


@dataclass(frozen=True)
class Ask:
    """The error that is asked for: one of three measures, with a confidence.

    Attributes:
        atol: Half-width of the interval in nats.
        per_dimension: In nats for each of the n dimensions.
        rtol: Relative to Σ|log λ_i|; relative to log det itself would mean nothing where that is
            near zero, as it is for residual maps.
        confidence: Probability that the interval covers.
    """

    atol: float | None = None
    per_dimension: float | None = None
    rtol: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        given = [x for x in (self.atol, self.per_dimension, self.rtol) if x is not None]
        if len(given) != 1 or not given[0] > 0:
            raise ValueError(
                "Ask for one error, positive: atol (nats), per_dimension (nats per dimension) or "
                f"rtol (relative to the sum of |log λ|); got atol = {self.atol}, per_dimension = "
                f"{self.per_dimension}, rtol = {self.rtol}."
            )
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}.")

    def nats(self, n: int, size: Tensor) -> Tensor:
        """Half-width in nats, given an estimate of Σ|log λ_i| (...)."""
        if self.rtol is not None:
            return self.rtol * size
        return torch.full_like(size, self.atol if self.atol is not None else self._mean * n)

    def probes(self, n: int) -> float:
        """Plain probes that the error takes if one value scatters by √(2/n) of Σ|log λ| ≈ n."""
        r = self.atol / n if self.atol is not None else self._mean
        return 2 * _normal(self.confidence) ** 2 / (n * r**2)

    @property
    def _mean(self) -> float:
        return self.per_dimension or self.rtol or math.nan


@dataclass(frozen=True)
class Plan:
    """What was chosen, why, and whether it reached the error asked for.

    Attributes:
        method: Row of the methods table that gave the value.
        shapes: Blocks, probes and steps of the pilot and of each round that followed.
        tolerance: Half-width asked for in nats, (...); NaN where an exact answer left it unknown.
        error: Half-width reached at the confidence asked for, (...).
        met: Whether error ≤ tolerance for every item.
        num_matvecs: Products with A spent in all, the pilot's included.
        reasons: One sentence for each decision.
    """

    method: str
    tolerance: Tensor
    error: Tensor
    met: bool
    num_matvecs: float
    shapes: tuple[Shape, ...] = ()
    reasons: tuple[str, ...] = field(default_factory=tuple)

    def __str__(self) -> str:
        asked, reached = float(self.tolerance.min()), float(self.error.max())
        text = f"±{reached:.3g} nats, asked ±{asked:.3g}: {'met' if self.met else 'NOT met'}"
        text = "exact" if reached == 0 else text
        return "\n".join((*self.reasons, f"{self.method}: {text}, {self.num_matvecs:g} products."))


class Outlook(NamedTuple):
    """What an estimate tells of larger ones, in units of the tolerance, of the worst item.

    Attributes:
        shape: Its shape.
        sd: Standard deviation of one probe's value.
        truncation: Error in doubt after its steps.
        rate: Factor by which that falls with each further step.
        freedom: Degrees of freedom of `sd` for each probe.
    """

    shape: Shape
    sd: float
    truncation: float
    rate: float
    freedom: float = math.inf

    @classmethod
    def of(cls, found: Found, shape: Shape, tolerance: Tensor) -> Outlook:
        """Read an estimate: the spread of its values, and how its truncation decays."""
        estimate = found.estimate
        assert estimate.truncation is not None
        sd = (estimate.standard_error * shape.probes**0.5 / tolerance).nan_to_num(nan=math.inf)
        left = (estimate.truncation / tolerance).nan_to_num(nan=math.inf)
        freedom = shape.probes - 1.0 if estimate.freedom is None else estimate.freedom
        each = float(torch.as_tensor(freedom).min()) / shape.probes
        return cls(shape, float(sd.max()), float(left.max()), float(found.rate.max()), each)

    def error(self, shape: Shape, confidence: float) -> float:
        """Half-width predicted for a shape, 1 where it is the tolerance."""
        chance = self._quantile(shape.probes, confidence) * self.sd / shape.probes**0.5
        return chance + self._left(shape.num_steps)

    def needed(self, num_steps: int, confidence: float) -> int | None:
        """Probes that reach the tolerance; None where truncation alone exceeds it."""
        left = 1 - self._left(num_steps)
        if left <= 0 or not math.isfinite(self.sd):
            return None
        probes = 10**7
        for _ in range(2):  # the fewer the probes, the wider the quantile
            q = self._quantile(probes, confidence)
            probes = min(max(1, math.ceil((q * self.sd / left) ** 2)), 10**7)
        return probes

    def _left(self, num_steps: int) -> float:
        return self.truncation * self.rate ** (CAUTION * (num_steps - self.shape.num_steps))

    def _quantile(self, probes: int, confidence: float) -> float:
        if not self.shape.shared:
            freedom = min(max(self.freedom * probes, 1), 1e9)
            return -SAFETY * float(special.stdtrit(freedom, (1 - confidence) / 2))
        freedom = max(probes, LEAST) - 1
        return -SHARED_SAFETY * float(special.stdtrit(freedom, (1 - confidence) / 2))


class Step(NamedTuple):
    """What comes next: a shape, and whether it goes on with the probes there are."""

    shape: Shape
    goes_on: bool


def cost(step: Step, done: Shape, costs: Costs) -> float:
    """Of the products that are new, and the algebra."""
    return costs.of(step.shape, done if step.goes_on else None)


def products(step: Step, done: Shape) -> int:
    """Products that are new."""
    return step.shape.products - (done.products if step.goes_on else 0)


def cheapest(outlook: Outlook, costs: Costs, confidence: float, left: float) -> Step | None:
    """The cheapest step predicted to reach the tolerance with `left` products; None if none is."""
    done = outlook.shape
    steps = [
        step
        for k in sorted({done.num_steps, *STEPS})
        if done.num_steps <= k <= costs.n
        for step in _reaching(outlook, k, costs.n, confidence)
        if products(step, done) <= left
    ]
    return min(steps, key=lambda step: cost(step, done, costs), default=None)


def _reaching(outlook: Outlook, k: int, n: int, confidence: float) -> Iterator[Step]:
    probes, done = outlook.needed(k, confidence), outlook.shape
    if probes is None:
        return
    blocks = max(done.num_blocks, -(-probes // done.num_probes))
    if done.shared:
        yield Step(done._replace(num_blocks=blocks, num_steps=k), goes_on=True)
        yield Step(shaped(probes, k, n), goes_on=False)
    else:
        yield Step(Shape(1, max(probes, done.num_probes), k), goes_on=True)


def shaped(probes: int, k: int, n: int) -> Shape:
    """Shared spaces of at most `WIDEST` dimensions, or one that is all of a small space."""
    if probes * k >= n and n <= WIDEST:
        return Shape(1, -(-n // k), k, shared=True)
    blocks = -(-probes // max(LEAST, WIDEST // k))
    return Shape(blocks, min(n, max(LEAST, -(-probes // blocks))), k, shared=True)


def best_within(outlook: Outlook, n: int, confidence: float, left: float) -> Step | None:
    """The step of least predicted error that `left` products allow; None if they allow none."""
    done = outlook.shape
    most = done.num_steps + int(left // done.probes)
    steps = [
        Step(_filling(done, k, left), goes_on=True)
        for k in range(done.num_steps, min(most, n, max(STEPS)) + 1)
    ]
    steps = [step for step in steps if step.shape != done]
    # Where nothing is known of the decay of the truncation, more steps are what can show it.
    return min(
        steps,
        key=lambda step: (outlook.error(step.shape, confidence), -step.shape.num_steps),
        default=None,
    )


def _filling(done: Shape, k: int, left: float) -> Shape:
    """`done` with k steps, and as many more probes as what then is left allows."""
    left -= done.probes * (k - done.num_steps)
    if done.shared:
        blocks = done.num_blocks + int(left // (done.num_probes * k))
        return done._replace(num_blocks=blocks, num_steps=k)
    return Shape(1, done.num_probes + int(left // k), k)


def _normal(confidence: float) -> float:
    return -float(special.ndtri((1 - confidence) / 2))
