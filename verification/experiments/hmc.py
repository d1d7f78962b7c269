r"""Hamiltonian Monte Carlo for a posterior that is tempered from the prior.

.. math:: f(z) = N(z; 0, I) \, p(x \mid z)^{\beta}, \qquad
          H(z, v) = -\log f(z) + \tfrac12 |v|^2

Source: Duane et al. (1987), doi:10.1016/0370-2693(87)91197-X; Neal (2011), arXiv:1206.1901.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LogLikelihood = Callable[[Tensor], Tensor]  # z (P, C, n) -> log p(x | z), (P, C)

LEAPFROG_STEPS = 10
JITTER = 0.2  # of the step size: HMC of fixed length returns to its start on a normal target


class State(NamedTuple):
    """Positions (P, C, n) with log p(x | z), (P, C), and its gradient (P, C, n)."""

    z: Tensor
    value: Tensor
    slope: Tensor


def evaluate(log_likelihood: LogLikelihood, z: Tensor) -> State:
    """Positions with the log likelihood and its gradient there, all detached."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = log_likelihood(z)
        (slope,) = torch.autograd.grad(value.sum(), z)
    return State(z.detach(), value.detach(), slope)


def leapfrog(
    log_likelihood: LogLikelihood,
    state: State,
    momentum: Tensor,
    beta: Tensor,
    step: Tensor,
    num_steps: int = LEAPFROG_STEPS,
) -> tuple[State, Tensor]:
    r"""Leapfrog steps for the energy −log f_t(z) + |v|²/2: reversible, and volume is preserved.

    Args:
        log_likelihood: (P, C, n) -> (P, C).
        state: Where to start.
        momentum: v, (P, C, n).
        beta: β of the target, broadcasting with (P, C).
        step: Step size, broadcasting with (P, C).
        num_steps: Leapfrog steps, each one gradient.
    """
    beta, step = beta.unsqueeze(-1), step.unsqueeze(-1)
    momentum = momentum + step / 2 * (beta * state.slope - state.z)
    for left in reversed(range(num_steps)):
        state = evaluate(log_likelihood, state.z + step * momentum)
        momentum = momentum + step * (1.0 if left else 0.5) * (beta * state.slope - state.z)
    return state, momentum


def energy(state: State, momentum: Tensor, beta: Tensor) -> Tensor:
    """−log f_t(z) + |v|²/2 up to a constant, (P, C)."""
    return (state.z.square().sum(-1) + momentum.square().sum(-1)) / 2 - beta * state.value


def transition(
    log_likelihood: LogLikelihood,
    state: State,
    beta: Tensor,
    step: Tensor,
    *,
    generator: torch.Generator,
    leapfrog_steps: int = LEAPFROG_STEPS,
) -> tuple[State, Tensor]:
    r"""One Hamiltonian Monte Carlo move: it leaves f_t invariant and is reversible.

    .. math:: \Pr(\text{accept}) = \min\bigl(1, e^{H(z, v) - H(z', v')}\bigr), \quad v \sim N(0, I)

    The step size is jittered by a draw that does not look at the state. A proposal whose energy is
    not finite is rejected.

    Returns:
        The new state, and the acceptance probability (P, C).
    """
    z = state.z
    momentum = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    spread, coin = torch.rand((2, *z.shape[:-1]), generator=generator, dtype=z.dtype)
    size = step * (1 + JITTER * (2 * spread - 1))
    proposal, end = leapfrog(log_likelihood, state, momentum, beta, size, leapfrog_steps)
    gain = (energy(state, momentum, beta) - energy(proposal, end, beta)).nan_to_num(nan=-torch.inf)
    accepted = coin.log() < gain
    moved = State(
        torch.where(accepted.unsqueeze(-1), proposal.z, state.z),
        torch.where(accepted, proposal.value, state.value),
        torch.where(accepted.unsqueeze(-1), proposal.slope, state.slope),
    )
    return moved, gain.exp().clamp(max=1)
