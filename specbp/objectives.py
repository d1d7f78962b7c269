r"""Objectives of learning with implicit densities, each with its error bar.

.. math:: \mathrm{KL}(p \| q) = \mathbb E_p[\log p(x) + U(x)] + \log Z, \qquad q = e^{-U} / Z
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specbp.differentiable import Sensitivity, attach
from specbp.estimate import Estimate, EstimationError, Status, any_flag
from specbp.krylov import golub_kahan
from specbp.likelihood import ImplicitDensity, PullbackDensity
from specbp.operators import as_operator, check_steps

SINGULAR = int(Status.SINGULAR)


@dataclass(frozen=True, eq=False)
class Objective:
    """The mean of an objective over a batch, to be minimised, and the parts that it is made of.

    Attributes:
        loss: Mean over the batch, a scalar, float64, differentiable.
        standard_error: Of the mean, from batch and probes together; with a single probe that all
            items share, from the batch alone.
        batch_error: Its part from the choice of the batch; NaN with a single probe for each item,
            which cannot tell the two apart.
        probe_error: Its part from the probes, whether items share them or have their own; 0 for an
            exact log det, NaN with a single probe.
        items: The objective of each item, (b,), detached.
        log_prob: Estimate of the log density of each item, (b,).
        energy: U of each item, (b,); None without an energy.
        num_skipped: Items left out because J is singular there.
    """

    loss: Tensor
    standard_error: Tensor
    batch_error: Tensor
    probe_error: Tensor
    items: Tensor
    log_prob: Estimate
    energy: Tensor | None = None
    num_skipped: int = 0

    @property
    def value(self) -> float:
        """The mean, for the log."""
        return float(self.loss.detach())

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {float(self.standard_error):.4f}"


def reverse_kl(
    density: ImplicitDensity,
    energy: Callable[[Tensor], Tensor],
    z: Tensor,
    *,
    generator: torch.Generator | None = None,
    on_singular: str = "raise",
) -> Objective:
    r"""KL(p‖q) up to log Z of the target q = exp(−U) / Z, over points z of the base.

    .. math:: \mathbb E_{z}\bigl[\log p(f(z)) + U(f(z))\bigr] = \mathrm{KL}(p \| q) - \log Z

    With p the single-preimage density of `ImplicitDensity`, it bounds KL(p‖q) − log Z from below:
    equal where f is injective. Two gaps to know of. Folding lowers it, below −log Z even. And where
    f is piecewise affine (LeakyReLU) log det J jumps between the pieces, and no derivative at a
    point sees how the jumps move with the parameters: the gradient is not that of the mean.

    Args:
        density: Of x = f(z).
        energy: U: x (b, *out) -> (b,), differentiable.
        z: Points (b, *event) drawn from the base.
        generator: Passed to the log-determinant of the density.
        on_singular: What to do where J is singular, log p = +inf: "raise", or "skip" to leave those
            items out, counted in `Objective.num_skipped`. Other failures always raise.

    Raises:
        EstimationError: If log p or U is not finite, naming the item and the remedy.
        ValueError: If ``on_singular`` is unknown or U has another shape.

    Example:
        >>> import torch
        >>> from specbp import qr_logdet
        >>> from specbp.likelihood import StandardNormal
        >>> base = StandardNormal(2)
        >>> density = ImplicitDensity(base, lambda z: 1 * z, logdet=qr_logdet)
        >>> z = base.sample(4, generator=torch.Generator().manual_seed(0))
        >>> print(reverse_kl(density, lambda x: x.square().sum(-1) / 2, z))  # -log 2π
        -1.8379 ± 0.0000
    """
    _check_policy(on_singular)
    x = density.image(z, z.ndim - 1)
    _check_finite(x.flatten(1).sum(-1), "f(z)")
    log_prob = density.log_prob_at(z, generator=generator)
    kept = _kept(log_prob, on_singular)
    if kept is not None:
        again = reverse_kl(density, energy, z[kept], generator=generator)
        return _with_skipped(again, len(z))
    potential = energy(x)
    if potential.shape != z.shape[:1]:
        msg = f"energy must map {tuple(x.shape)} to ({len(z)},), got {tuple(potential.shape)}."
        raise ValueError(msg)
    _check_finite(potential, "The energy")
    return _objective(log_prob, 1.0, potential.double())


def forward_kl(
    density: PullbackDensity,
    x: Tensor,
    *,
    generator: torch.Generator | None = None,
    on_singular: str = "raise",
) -> Objective:
    r"""KL(q‖p) up to the entropy of q: the negative log-likelihood of samples x of q.

    .. math:: -\mathbb E_{x \sim q}[\log p(x)] = \mathrm{KL}(q \| p) + H(q)

    p is unnormalised where f is not injective (`PullbackDensity`), and the identity then holds with
    the generalised divergence: mass elsewhere is not punished.

    Args:
        density: With ``log_prob(x)``.
        x: Samples (b, *event) of the data.
        generator: Passed to the log-determinant of the density.
        on_singular: As for `reverse_kl`; log p = −inf here.

    Raises:
        EstimationError: If log p is not finite, naming the item and the remedy.
        TypeError: If the density cannot be evaluated at given x.
        ValueError: If ``on_singular`` is unknown.
    """
    _check_policy(on_singular)
    if not hasattr(density, "log_prob"):
        msg = (
            "forward_kl needs a density that is known at any x, with log_prob(x), such as "
            f"PullbackDensity; {type(density).__name__} is known at x = f(z) only."
        )
        raise TypeError(msg)
    log_prob = density.log_prob(x, generator=generator)
    kept = _kept(log_prob, on_singular)
    if kept is not None:
        return _with_skipped(forward_kl(density, x[kept], generator=generator), len(x))
    return _objective(log_prob, -1.0, None)


def spectral_norm(J: Any, start: Tensor, num_steps: int) -> Tensor:
    r"""Differentiable estimate of λ_max(JᵀJ) = σ_max(J)², a lower bound.

    .. math:: \hat\lambda = |J u|^2 \le \lambda_{\max}, \qquad
              d\hat\lambda = u^\top d(J^\top J)\, u

    u is the top Ritz vector of a Golub–Kahan space, held fixed by the gradient: that is the
    derivative of λ_max once u has converged (Hellmann–Feynman), and for n steps it has. At least as
    close as the power method with as many products.

    Its mean over a batch, times a coefficient, is the regulariser with which Ramesh & LeCun (2018,
    equation 8) keep a density from spreading over an infinite support.

    Args:
        J: `Jacobian`, operator or tensor (..., N, n) with adjoint, N ≥ n.
        start: Vectors (..., n), not zero and not orthogonal to the top singular vector.
        num_steps: Products with J and with Jᵀ, 1 … n.

    Returns:
        λ̂ (...), float64.

    Raises:
        ValueError: If num_steps is not in 1 … n.

    Example:
        >>> import torch
        >>> J = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> round(float(spectral_norm(J, torch.ones(2), 2)), 4)
        9.0
    """
    J = as_operator(J)
    check_steps(num_steps, J.shape[-1])
    rows = start.detach().unsqueeze(-2).expand(*J.shape[:-2], 1, -1)
    B = golub_kahan(J, rows, num_steps)
    matrix = torch.diag_embed(B.diagonal) + torch.diag_embed(B.off_diagonal[..., :-1], offset=1)
    _, sigma, right = torch.linalg.svd(torch.nan_to_num(matrix))
    u = torch.einsum("...k,k...n->...n", right[..., 0, :].to(rows.dtype), B.basis)
    u = u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    value = torch.where(torch.isfinite(matrix).all((-2, -1)), sigma[..., 0] ** 2, torch.nan)
    return attach(value, J, lambda: _outer(u), factor=True).squeeze(-1)


def _outer(u: Tensor) -> Sensitivity:
    """G = u uᵀ, one vector for each sample."""
    return Sensitivity(torch.ones_like(u[..., :1], dtype=torch.float64), u.unsqueeze(-2))


def _objective(log_prob: Estimate, sign: float, energy: Tensor | None) -> Objective:
    items = sign * log_prob.value
    if energy is not None:
        items = items + energy
    total, batch, probes = _errors(items.detach(), log_prob)
    kept = None if energy is None else energy.detach()
    return Objective(items.mean(), total, batch, probes, items.detach(), log_prob, kept)


def _errors(items: Tensor, log_prob: Estimate) -> tuple[Tensor, Tensor, Tensor]:
    """Standard errors of the mean: all of it, its part from the batch, its part from the probes."""
    b, m = len(items), log_prob.samples.shape[-1]
    spread = items.var() / b if b > 1 else items.new_tensor(torch.nan)
    if m == 1:
        unknown = torch.full_like(spread, torch.nan)
        return spread.sqrt(), unknown, unknown
    if m == 0:
        return spread.sqrt(), spread.sqrt(), torch.zeros_like(spread)
    own, samples = log_prob.standard_error.detach().square().mean(), log_prob.samples.detach()
    # The mean over items first: right for probes that items share, and for those of their own.
    # Where errors are no plain means of samples, they say by how much those are correlated.
    shared = samples.mean(0).var() / m
    plain = samples.var(-1).mean() / m
    probes = shared * torch.where(plain > 0, own / plain, 1)
    batch = (spread - own / b).clamp_min(0)
    return (batch + probes).sqrt(), batch.sqrt(), probes.sqrt()


def _kept(log_prob: Estimate, on_singular: str) -> Tensor | None:
    """Indices that remain if singular items are skipped; None if there is nothing to skip."""
    singular = (log_prob.status & SINGULAR) != 0
    kept = (~singular).nonzero().squeeze(-1)
    if on_singular == "skip" and 0 < len(kept) < len(singular):
        return kept
    bad = ~log_prob.ok | ~torch.isfinite(log_prob.value.detach())
    if bool(bad.any()):
        flags = any_flag(log_prob.status[bad])
        remedy = flags.remedy if flags else "Check the base density at that point."
        if flags & Status.SINGULAR:
            remedy += ' Or leave such items out: on_singular="skip".'
        raise EstimationError(f"log p is {_first_bad(log_prob.value, bad)} ({flags!r}). {remedy}")
    return None


def _with_skipped(found: Objective, size: int) -> Objective:
    return Objective(**{**vars(found), "num_skipped": size - len(found.items)})


def _check_policy(on_singular: str) -> None:
    if on_singular not in ("raise", "skip"):
        raise ValueError(f'on_singular is "raise" or "skip", got {on_singular!r}.')


def _check_finite(values: Tensor, name: str) -> None:
    bad = ~torch.isfinite(values.detach())
    if bool(bad.any()):
        raise EstimationError(
            f"{name} is {_first_bad(values, bad)}. Go back to the last parameters that were "
            "finite, and lower the learning rate or clip the gradient."
        )


def _first_bad(values: Tensor, bad: Tensor) -> str:
    index = int(bad.nonzero()[0])
    others = int(bad.sum()) - 1
    more = f" and at {others} more" if others else ""
    value = float(values.detach()[index])
    return f"{value if not math.isnan(value) else 'NaN'} at item {index} of {len(values)}{more}"
