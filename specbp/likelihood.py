r"""Densities that a differentiable map induces: no inverse, no structure of its Jacobian needed.

.. math:: \log p_X(f(z)) = \log p_Z(z) - \tfrac12 \log\det J_f(z)^\top J_f(z)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbp.estimate import FAILURES, Estimate, Status, poisoned
from specbp.jacobian import Jacobian, JacobianMetric
from specbp.planner import logdet as planned_logdet

LogDet = Callable[..., Estimate]  # logdet(J) or logdet(J, generator=generator)


class Draw(NamedTuple):
    """Points z (num, *event) of the base and their images x = f(z) (num, *out)."""

    z: Tensor
    x: Tensor


class StandardNormal:
    r"""The standard normal on R^n, or on arrays of any shape.

    .. math:: \log p(z) = -\tfrac12 \|z\|^2 - \tfrac n2 \log 2\pi

    In the manner of `torch.distributions`, but draws come from an explicit generator.

    Args:
        event_shape: n, or the shape of one event.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> import torch
        >>> base = StandardNormal(2)
        >>> base.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
        >>> base.sample(5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """

    def __init__(self, event_shape: int | Sequence[int]):
        sizes = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"An event has one size or more, all positive; got {event_shape}.")
        self.event_shape = torch.Size(sizes)

    def __repr__(self) -> str:
        return f"StandardNormal({tuple(self.event_shape)})"

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at ``z`` (*batch, *event), shape (*batch), float64 as every estimate is.

        Raises:
            ValueError: If the last dimensions of ``z`` are not an event.
        """
        event = len(self.event_shape)
        if z.shape[z.ndim - event :] != self.event_shape:
            msg = f"{self} needs points (*batch, {', '.join(map(str, self.event_shape))}), got "
            raise ValueError(msg + f"{tuple(z.shape)}.")
        squares = z.double().square().flatten(z.ndim - event).sum(-1)
        return -squares / 2 - self.event_shape.numel() / 2 * math.log(2 * math.pi)

    def sample(
        self,
        num: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw ``num`` points (num, *event), by the generator in float64, then converted and moved.

        The same generator gives the same points for every dtype and device.
        """
        shape = (num, *self.event_shape)
        drawn = torch.randn(
            shape, generator=generator, dtype=torch.float64, device=generator.device
        )
        return drawn.to(device=device, dtype=dtype)


class _Density:
    """A base density, a map and an estimator of log det JᵀJ."""

    def __init__(
        self,
        base: Any,
        f: Callable[..., Tensor],
        *,
        logdet: LogDet | None = None,
        jacobian: Callable[[Tensor], Any] | None = None,
        params: Any = None,
        check: bool = True,
    ):
        if not callable(getattr(base, "log_prob", None)):
            raise TypeError(f"base needs log_prob(z) -> (*batch), got {type(base).__name__}.")
        self.base, self.f, self.params, self.check = base, f, params, check
        self.logdet, self.form = logdet, jacobian

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r}, {self.f!r})"

    def image(self, z: Tensor, event_dim: int) -> Tensor:
        """f(z) with its graph: (*batch, *event) -> (*batch, *out)."""
        batch = z.shape[: z.ndim - event_dim]
        points = z.reshape(-1, *z.shape[z.ndim - event_dim :])
        y = self.f(points) if self.params is None else self.f(self.params, points)
        return y.reshape(*batch, *y.shape[1:])

    def jacobian(self, z: Tensor, event_dim: int) -> Any:
        """J of f at z (*batch, *event)."""
        if self.form is not None:
            return self.form(z)
        return Jacobian(self.f, z, event_dim=event_dim, check=self.check, params=self.params)

    def _combined(
        self, log_base: Tensor, J: Any, factor: float, generator: torch.Generator | None
    ) -> Estimate:
        """log_base + factor · log det JᵀJ, with every part of the error of the second term."""
        found = self._estimate(J, generator)
        if log_base.shape != found.value.shape:
            msg = (
                f"log_prob of the base must have the shape of the batch {tuple(found.value.shape)},"
                f" got {tuple(log_base.shape)}: for independent components use StandardNormal or "
                "torch.distributions.Independent."
            )
            raise ValueError(msg)
        return affine(found, log_base.double(), factor)

    def _estimate(self, J: Any, generator: torch.Generator | None) -> Estimate:
        if self.logdet is not None:
            chosen = {} if generator is None else {"generator": generator}
            return self.logdet(J, **chosen)
        if generator is None:
            msg = "specbp.logdet may draw probes: pass generator=, or logdet=specbp.qr_logdet."
            raise ValueError(msg)
        # The metric, since a square tensor would be taken for A.
        return planned_logdet(JacobianMetric(J), generator=generator)


class ImplicitDensity(_Density):
    r"""The density of x = f(z), z from a base: known at x = f(z) for the z at hand.

    .. math:: \log p_X(f(z)) = \log p_Z(z) - \tfrac12 \log\det J_f(z)^\top J_f(z)

    With respect to the n-dimensional measure on the image of f. It is the density where f is
    injective; elsewhere the other preimages of x add to it, and this is a lower bound of log p_X.
    No objective made of it notices: folding the plane lowers `reverse_kl` below the true value.

    Args:
        base: Density of z: `StandardNormal`, or anything with ``log_prob(z)`` of shape (*batch).
            `sample` needs ``base.sample(num, generator=, dtype=, device=)``. The shape of an event
            is ``base.event_shape``, or the last dimension where there is none.
        f: (b, *event) -> (b, *out), each item on its own; at least as many outputs as inputs.
        logdet: Jacobian -> `Estimate`, called as ``logdet(J)``, or ``logdet(J,
            generator=generator)`` if a generator was passed. By default `specbp.logdet`: exact
            where that is cheapest.
        jacobian: z -> J, where something cheaper than ``Jacobian(f, z)`` is known: with few inputs
            a tensor (*batch, N, n) that carries its graph, by hand or from `torch.func.jacrev`
            (forward mode has wrong derivatives for normalisation layers). ``logdet`` gets it as it
            is.
        params: Tensors that f takes as its first argument, f(params, z), as for `Jacobian`.
        check: Test f as `Jacobian` does; pass False inside training loops.

    Raises:
        TypeError: If the base has no ``log_prob``.

    Example:
        >>> import torch
        >>> from specbp import qr_logdet
        >>> density = ImplicitDensity(StandardNormal(2), lambda z: 2 * z, logdet=qr_logdet)
        >>> z = torch.zeros(2, dtype=torch.float64)
        >>> print(density.log_prob_at(z))  # -log 2π - 2 log 2
        -3.2242 ± 0.0000

    Source: Ramesh & LeCun (2018), arXiv:1806.00499, equations 1 and 2.
    """

    def log_prob_at(self, z: Tensor, *, generator: torch.Generator | None = None) -> Estimate:
        """Estimate of log p_X(f(z)) at ``z`` (*batch, *event), values (*batch), float64.

        Differentiable in z and in the parameters of f. The standard error, the bracket and the
        samples are those of log det JᵀJ, halved; statuses are its own. A singular J gives +inf
        with status `SINGULAR`.

        Raises:
            ValueError: If shapes do not fit, or no generator is passed to the default ``logdet``.
        """
        event_dim = _event_dim(self.base)
        J = self.jacobian(z, event_dim)
        return self._combined(self.base.log_prob(z), J, -0.5, generator)

    def sample(
        self,
        num: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Draw:
        """Draw ``num`` points z of the base, and x = f(z)."""
        z = self.base.sample(num, generator=generator, dtype=dtype, device=device)
        return Draw(z, self.image(z, z.ndim - 1))


class PullbackDensity(_Density):
    r"""The density that f: X -> Z pulls back from a base on Z, known at any x.

    .. math:: \log p_X(x) = \log p_Z(f(x)) + \tfrac12 \log\det J_f(x)^\top J_f(x)

    Unnormalised where f is not injective: its mass is the mean number of preimages,

    .. math:: \int p_X(x)\,dx = \mathbb E_{z \sim p_Z} \#f^{-1}(z),

    which is less than 1 where f does not reach all of Z. Maximum likelihood is ill-posed then: mass
    may appear where there are no data.

    Args:
        base: As for `ImplicitDensity`, on Z.
        f: (b, *event) -> (b, *out), one event of x to one of z.
        logdet: As for `ImplicitDensity`.
        jacobian: As for `ImplicitDensity`.
        params: As for `ImplicitDensity`.
        check: As for `ImplicitDensity`.
        event_dim: Number of dimensions of an event of x.

    Example:
        >>> import torch
        >>> from specbp import qr_logdet
        >>> density = PullbackDensity(StandardNormal(2), lambda x: x / 2, logdet=qr_logdet)
        >>> print(density.log_prob(torch.zeros(2, dtype=torch.float64)))
        -3.2242 ± 0.0000

    Source: Ramesh & LeCun (2018), arXiv:1806.00499, section 3.
    """

    def __init__(self, base: Any, f: Callable[..., Tensor], *, event_dim: int = 1, **options: Any):
        super().__init__(base, f, **options)
        self.event_dim = event_dim

    def log_prob(self, x: Tensor, *, generator: torch.Generator | None = None) -> Estimate:
        """Estimate of log p_X at ``x`` (*batch, *event), values (*batch), float64; differentiable.

        A singular J gives −inf with status `SINGULAR`.

        Raises:
            ValueError: If shapes do not fit, or no generator is passed to the default ``logdet``.
        """
        log_base = self.base.log_prob(self.image(x, self.event_dim))
        return self._combined(log_base, self.jacobian(x, self.event_dim), 0.5, generator)


def affine(found: Estimate, offset: Tensor, factor: float) -> Estimate:
    """offset + factor · estimate, with all parts of the error; NaN in the offset is a failure."""
    ends = [offset + factor * end for end in (found.lower, found.upper)]
    lower, upper = ends if factor > 0 else ends[::-1]
    status = found.status | torch.isnan(offset) * int(Status.NONFINITE)
    failed = (status & int(FAILURES)) != 0
    return replace(
        found,
        value=poisoned(offset + factor * found.value, failed, torch.nan),
        standard_error=abs(factor) * found.standard_error,
        lower=lower.masked_fill(failed, -torch.inf),
        upper=upper.masked_fill(failed, torch.inf),
        status=status,
        samples=offset.unsqueeze(-1) + factor * found.samples,
        truncation=None if found.truncation is None else abs(factor) * found.truncation,
    )


def relative_error(estimate: Tensor, truth: Tensor, floor: float = 1.0) -> Tensor:
    r"""Error of log-likelihoods relative to the truth, or absolute where that is near zero.

    .. math:: \frac{|\hat x - x|}{\max(\text{floor}, |x|)}

    A log-likelihood may be zero without being small in any sense, since its unit is arbitrary: the
    plain quotient explodes there. With ``floor`` = 1 the number is never larger than the error in
    nats, and relative to the truth where that exceeds 1 nat. Ramesh & LeCun (2018) take the
    quotient "provided that it is not too large", but their limit is not known; this is ours.

    Args:
        estimate: (...).
        truth: (...), finite.
        floor: Least denominator, positive.

    Raises:
        ValueError: If ``floor`` is not positive.

    Example:
        >>> import torch
        >>> relative_error(torch.tensor([10.5, 0.1]), torch.tensor([10.0, 0.0]))
        tensor([0.0500, 0.1000])
    """
    if not floor > 0:
        raise ValueError(f"floor must be positive, got {floor}.")
    return (estimate - truth).abs() / truth.abs().clamp_min(floor)


def _event_dim(base: Any) -> int:
    # Elementwise laws have events without a dimension: the shape of log_prob tells them apart.
    return max(1, len(getattr(base, "event_shape", ())))
