"""What every estimator returns, and the one place where a standard error is computed."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor


class Status(enum.IntFlag):
    """What happened during an estimate; flags combine, `OK` is their absence.

    `NONFINITE`, `NONSYMMETRIC`, `NEGATIVE_RITZ` and `OUTSIDE_INTERVAL` are failures: the value is
    NaN. `SINGULAR` means log det = −inf to working precision, and the value says so.
    `INVARIANT_SUBSPACE` is good news: the Krylov space closed early, so that more steps would add
    only rounding. `FLOORED` warns of bias: an eigenvalue lies below the interval of the
    polynomial, which counts it too large. `UNCONVERGED` warns of an iteration inside the method
    that stopped before its tolerance.
    """

    OK = 0
    INVARIANT_SUBSPACE = 1
    NONFINITE = 2
    NONSYMMETRIC = 4
    NEGATIVE_RITZ = 8
    OUTSIDE_INTERVAL = 16
    SINGULAR = 32
    FLOORED = 64
    UNCONVERGED = 128
    TOLERANCE_MISSED = 256

    @property
    def remedy(self) -> str:
        """What to do about the flags that are set, one sentence for each."""
        return " ".join(text for flag, text in REMEDIES.items() if flag & self) or "Nothing to do."


REMEDIES = {
    Status.INVARIANT_SUBSPACE: "The Krylov space closed early: more steps add only rounding.",
    Status.NONFINITE: "A product returned NaN or inf: check the operator on the probe that failed.",
    Status.NONSYMMETRIC: "The operator is not symmetric: pass (A + A.mT) / 2, or J itself.",
    Status.NEGATIVE_RITZ: (
        "A Ritz value is not positive, so A is not positive definite to working precision: "
        "use float64, or golub_kahan_logdet on a factor J with A = J.mT @ J."
    ),
    Status.OUTSIDE_INTERVAL: (
        "An eigenvalue lies outside the interval given: widen it, or use slq_logdet, "
        "which needs no interval."
    ),
    Status.SINGULAR: (
        "A is singular to working precision, log det = -inf: use float64 or add a shift."
    ),
    Status.FLOORED: (
        "An eigenvalue lies below `lower`, so the value is biased upwards: lower it and raise "
        "the degree."
    ),
    Status.UNCONVERGED: (
        "An iteration stopped before its tolerance, so the value is not what the method defines: "
        "ask for fewer moments, or use slq_logdet."
    ),
    Status.TOLERANCE_MISSED: (
        "The error asked for was not reached: raise budget or max_bytes, or ask for less."
    ),
}
FAILURES = Status.NONFINITE | Status.NONSYMMETRIC | Status.NEGATIVE_RITZ | Status.OUTSIDE_INTERVAL


class EstimationError(ArithmeticError):
    """Raised by `Estimate.raise_for_status` when an estimate failed."""


class Interval(NamedTuple):
    """Ends of a confidence interval, each of shape (...)."""

    lower: Tensor
    upper: Tensor


@dataclass(frozen=True, eq=False)
class Estimate:
    """A stochastic estimate with the parts of its error that are known, told apart.

    Attributes:
        value: Estimate, shape (...), float64 whatever the operator's dtype (at 1e4 nats the spacing
            of float32 is 1e-3 nats, more than the error that the methods promise). NaN where it
            failed. Where the operator depends on tensors that require a gradient, so does the
            value; the other attributes are constants, but for `samples`.
        standard_error: Monte Carlo error, sd(samples, ddof = 1) / √m, shape (...); NaN when m = 1.
            It says nothing of truncation, which `lower` and `upper` bracket.
        num_matvecs: Products with A that one estimate cost, *counted*; a JVP or a VJP alone is a
            half.
        lower: Lower end of the bracket, shape (...), of what the same probes would give without
            truncation, such as mean_i x_iᵀ log(A) x_i; −inf if unknown.
        upper: Upper end of the same bracket; +inf if unknown.
        status: `Status` flags as int64, shape (...).
        samples: One value per probe, shape (..., m); empty for methods without probes.
        truncation: An *estimate* of how far truncation may have moved the value, in nats, shape
            (...), where a bracket is missing or too wide; None if the method has none.
        freedom: Degrees of freedom of the standard error; m − 1 if None.
        plan: How method, probes and steps were chosen (`specbp.planner.Plan`), if they were.
    """

    value: Tensor
    standard_error: Tensor
    num_matvecs: float
    lower: Tensor
    upper: Tensor
    status: Tensor
    samples: Tensor
    truncation: Tensor | None = None
    freedom: float | Tensor | None = None
    plan: Any = None

    def interval(self, confidence: float = 0.95) -> Interval:
        r"""Interval for the truth, from Monte Carlo error and truncation together.

        .. math:: [\ell' - c\,\mathrm{se}, \; u' + c\,\mathrm{se}], \qquad
                  F(c + (u' - \ell') / \mathrm{se}) - F(-c) = \text{confidence}

        with the bracket ℓ' = max(ℓ, ŷ − τ), u' = min(u, ŷ + τ) of the value without truncation, τ
        an estimate of it if there is one, and F Student's distribution function. c is the quantile
        of two sides where there is no truncation, and that of one side where it is large: the truth
        cannot be missed at both ends. An end is infinite where neither ℓ (u) nor τ is known, NaN
        where no standard error is claimed.

        Args:
            confidence: Probability of covering, between 0 and 1; exact for normal samples and a
                bracket that is certain. τ is an estimate.

        Raises:
            ValueError: If confidence is not between 0 and 1.

        Source: Imbens & Manski (2004), doi:10.1111/j.1468-0262.2004.00555.x.

        Example:
            >>> import torch
            >>> found = from_samples(torch.tensor([1.0, 3.0, 2.0]), num_matvecs=3)
            >>> [float(end) for end in found.interval()]
            [-inf, inf]
            >>> y = torch.tensor([1.0, 3.0, 2.0])
            >>> found = from_samples(y, num_matvecs=3, lower=y, upper=y)
            >>> [round(float(end), 3) for end in found.interval()]
            [-0.484, 4.484]
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {confidence}.")
        below, above, value = self.lower, self.upper, self.value.detach()
        if self.truncation is not None:
            below = torch.maximum(below, value - self.truncation)
            above = torch.minimum(above, value + self.truncation)
        # A value beyond its own bracket (rounding) still belongs to the interval.
        below, above = torch.minimum(below, value), torch.maximum(above, value)
        half = self._quantile((above - below) / self.standard_error, confidence)
        half = half * self.standard_error
        return Interval(below - half, above + half)

    def _quantile(self, width: Tensor, confidence: float) -> Tensor:
        """The c of `interval` for a bracket of a width in standard errors, (...)."""
        freedom = self.freedom
        if freedom is None:
            freedom = float(max(self.samples.shape[-1] - 1, 1))
        nu = torch.as_tensor(freedom).cpu().numpy()
        w = width.nan_to_num(nan=0.0).cpu().numpy()
        low = np.broadcast_to(special.stdtrit(nu, confidence), w.shape)
        high = np.broadcast_to(special.stdtrit(nu, (1 + confidence) / 2), w.shape)
        for _ in range(40):
            c = (low + high) / 2
            short = special.stdtr(nu, c + w) - special.stdtr(nu, -c) < confidence
            low, high = np.where(short, c, low), np.where(short, high, c)
        return torch.as_tensor(high, dtype=torch.float64, device=self.value.device)

    @property
    def ok(self) -> Tensor:
        """True where the estimate did not fail and A is not singular, shape (...)."""
        return (self.status & int(FAILURES | Status.SINGULAR)) == 0

    def raise_for_status(self) -> Estimate:
        """Return self, or raise naming what failed, how often, and the remedy.

        Raises:
            EstimationError: If any item of the batch failed or is singular.
        """
        if bool(self.ok.all()):
            return self
        flags = any_flag(self.status.flatten())
        bad, all_ = int((~self.ok).sum()), self.ok.numel()
        raise EstimationError(f"{bad} of {all_} estimates failed ({flags!r}). {flags.remedy}")

    def __str__(self) -> str:
        if self.value.ndim:
            return (
                f"Estimate of shape {tuple(self.value.shape)}, {self.num_matvecs:g} products each"
            )
        error = float(self.standard_error)
        text = f"{float(self.value.detach()):.4f}" + (f" ± {error:.4f}" if error == error else "")
        flags = Status(int(self.status))
        return text + (f" [{flags!r}]" if flags & ~Status.INVARIANT_SUBSPACE else "")


def any_flag(status: Tensor) -> Status:
    """Union of the flags in a one-dimensional int64 tensor."""
    return Status(int(union(status)))


def union(status: Tensor) -> Tensor:
    """Union of flags over the last dimension: (..., m) int64 -> (...)."""
    flags = torch.tensor([int(f) for f in REMEDIES], device=status.device)
    present = ((status.unsqueeze(-1) & flags) != 0).any(-2)
    return (present * flags).sum(-1)


def from_samples(
    samples: Tensor,
    *,
    num_matvecs: float,
    lower: Tensor | None = None,
    upper: Tensor | None = None,
    status: Tensor | None = None,
) -> Estimate:
    r"""Mean of one value per probe with its standard error.

    .. math:: \bar y = \frac1m \sum_i y_i, \qquad
              \mathrm{se} = \sqrt{\frac{1}{m (m-1)} \sum_i (y_i - \bar y)^2}

    Args:
        samples: One value per probe, shape (..., m), m ≥ 1.
        num_matvecs: Counted products with A of one estimate.
        lower: Lower truncation bound per probe, shape (..., m).
        upper: Upper truncation bound per probe, shape (..., m).
        status: `Status` flags per probe, shape (..., m). A failed probe makes its estimate NaN: it
            is never left out of the mean.

    Example:
        >>> import torch
        >>> print(from_samples(torch.tensor([1.0, 3.0]), num_matvecs=2))
        2.0000 ± 1.0000
    """
    y = samples.double()
    if status is None:
        status = torch.zeros(y.shape, dtype=torch.int64, device=y.device)
    if not bool((status != 0).any() | ~torch.isfinite(y).all()):
        return _sound(y, status, num_matvecs, lower, upper)
    unexplained = ~torch.isfinite(y) & ((status & int(FAILURES | Status.SINGULAR)) == 0)
    status = status | unexplained * int(Status.NONFINITE)
    y = poisoned(y, (status & int(Status.SINGULAR)) != 0, -torch.inf)
    y = poisoned(y, (status & int(FAILURES)) != 0, torch.nan)
    found = _sound(y, union(status).unsqueeze(-1), num_matvecs, lower, upper)
    known = torch.isfinite(found.value)
    return replace(
        found,
        lower=torch.where(known, found.lower, -torch.inf),
        upper=torch.where(known, found.upper, torch.inf),
    )


def poisoned(y: Tensor, failed: Tensor, value: float) -> Tensor:
    """The value where a sample failed; its gradient there is NaN, where filling would make it 0."""
    filled: Tensor = _Poisoned.apply(y, failed, value)
    return filled


class _Poisoned(torch.autograd.Function):
    """Filled where failed. A failed sample that no loss uses, its gradient zero, spoils nothing."""

    @staticmethod
    def forward(y: Tensor, failed: Tensor, value: float) -> Tensor:
        return y.masked_fill(failed, value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.failed = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.masked_fill(ctx.failed & (grad != 0), torch.nan), None, None


def _sound(
    y: Tensor, status: Tensor, num_matvecs: float, lower: Tensor | None, upper: Tensor | None
) -> Estimate:
    """The estimate, with the status of its first probe for that of all."""
    value, m = y.mean(-1), y.shape[-1]
    spread = y.detach().std(-1) if m > 1 else torch.full_like(value.detach(), torch.nan)
    return Estimate(
        value=value,
        standard_error=spread / m**0.5,
        num_matvecs=num_matvecs,
        lower=_mean_bound(lower, value, -torch.inf),
        upper=_mean_bound(upper, value, torch.inf),
        status=status[..., 0],
        samples=y,
    )


def untruncated(found: Estimate) -> Estimate:
    """The same estimate of what is unbiased: chance is all of its error."""
    return replace(found, truncation=torch.zeros_like(found.value))


def without_probes(value: Tensor, *, num_matvecs: float, status: Tensor) -> Estimate:
    """Result of a method that draws nothing: no Monte Carlo error, no truncation."""
    value = poisoned(value.double(), (status & int(FAILURES)) != 0, torch.nan)
    known = value.detach()
    return Estimate(
        value=value,
        standard_error=torch.zeros_like(known),
        num_matvecs=num_matvecs,
        lower=known,
        upper=known,
        status=status,
        samples=known.new_empty((*known.shape, 0)),
    )


def _mean_bound(bound: Tensor | None, value: Tensor, unknown: float) -> Tensor:
    if bound is None:
        return torch.full_like(value.detach(), unknown)
    return bound.detach().double().mean(-1)
