r"""Annealed importance sampling of a decoder's likelihood, forward and in reverse.

.. math:: \log p(x) = \log \int p(z)\, p(x \mid z)\, dz, \qquad
          f_t(z) = p(z)\, p(x \mid z)^{\beta_t}, \qquad 0 = \beta_0 < \dots < \beta_T = 1

with z standard normal. Chains have shape (P, C, n): P independent problems, C chains for each.

Source: Neal (2001), doi:10.1023/A:1008923215028; Wu, Burda, Salakhutdinov & Grosse (2016),
arXiv:1611.04273; Grosse, Ghahramani & Adams (2015), arXiv:1511.02543.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from verification.experiments.hmc import LEAPFROG_STEPS, LogLikelihood, State, evaluate, transition

Wrap = Callable[[Iterable[int]], Iterable[int]]  # such as tqdm: shows progress over temperatures

ACCEPTANCE = 0.65
KNOTS, MOVES = 64, 12  # temperatures at which `tune` adapts, and its moves at each
RATE = 0.2  # change of log(step size) per unit of excess acceptance


class Annealed(NamedTuple):
    """Log weights at every temperature (T+1, P, C), last positions, acceptance (T, P)."""

    path: Tensor
    z: Tensor
    acceptance: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Log weights of the whole path, (P, C)."""
        return self.path[-1]


class LogMean(NamedTuple):
    """Log of the mean weight, its jackknife standard error, effective sample size, each (...)."""

    value: Tensor
    standard_error: Tensor
    ess: Tensor


def sigmoidal_schedule(num_steps: int, *, slope: float = 4.0) -> Tensor:
    r"""Inverse temperatures of Wu et al., (T+1, 1): slow at both ends, exactly 0 first and 1 last.

    .. math:: \beta_t = \frac{s_t - s_0}{s_T - s_0}, \qquad
              s_t = \operatorname{sigmoid}\bigl(\text{slope} \, (2 t / T - 1)\bigr)

    Raises:
        ValueError: If num_steps < 1 or slope is not positive.
    """
    _check_steps(num_steps)
    if not slope > 0:
        raise ValueError(f"slope must be positive, got {slope}.")
    s = torch.sigmoid(torch.linspace(-slope, slope, num_steps + 1, dtype=torch.float64))
    return ((s - s[0]) / (s[-1] - s[0])).unsqueeze(-1)


def geometric_schedule(num_steps: int, first: Tensor | float) -> Tensor:
    r"""0, then equal ratios from `first` to exactly 1, (T+1, P) for `first` of shape (P,).

    .. math:: \beta_t = \beta_1^{(T - t) / (T - 1)}, \quad t \ge 1

    For p(x | z) = N(f(z), σ²I) it moves the noise from σ/√β₁ to σ by equal factors. If every move
    forgot its start, a log weight would have variance n log²(1/β₁) / (2T) for small σ; a schedule
    that does not know σ pays for 1/σ² in its first steps.

    Raises:
        ValueError: If num_steps < 2, or `first` is not between 0 and 1.
    """
    _check_steps(num_steps, least=2)
    start = torch.as_tensor(first, dtype=torch.float64).reshape(-1)
    if not bool(((start > 0) & (start < 1)).all()):
        raise ValueError(f"first must lie between 0 and 1, got {first}.")
    left = torch.linspace(1, 0, num_steps, dtype=torch.float64).unsqueeze(-1)
    return torch.cat([torch.zeros(1, len(start), dtype=torch.float64), (left * start.log()).exp()])


def gaussian_log_likelihood(
    f: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor | float
) -> LogLikelihood:
    r"""The decoder p(x | z) = N(f(z), σ²I) at observations x.

    .. math:: \log p(x \mid z) = -\tfrac{1}{2\sigma^2} |x - f(z)|^2 - \tfrac N2 \log 2\pi\sigma^2

    Args:
        f: Maps (b, n) to (b, N), each item on its own.
        x: Observations (P, N).
        sigma: Standard deviation of the noise (not its variance), scalar or (P,).

    Raises:
        ValueError: If sigma is not positive or x is not (P, N).
    """
    scale = torch.as_tensor(sigma, dtype=x.dtype)
    if x.ndim != 2:
        raise ValueError(f"x must have shape (P, N), got {tuple(x.shape)}.")
    if not bool((scale > 0).all()):
        raise ValueError(f"sigma must be positive, got {sigma}.")
    scale = scale.reshape(-1, 1)
    constant = x.shape[-1] / 2 * (2 * math.pi * scale**2).log()

    def log_likelihood(z: Tensor) -> Tensor:
        mean = f(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)
        return -(mean - x.unsqueeze(1)).square().sum(-1) / (2 * scale**2) - constant

    return log_likelihood


def tune(
    log_likelihood: LogLikelihood,
    betas: Tensor,
    z: Tensor,
    *,
    generator: torch.Generator,
    first: float = 0.5,
    leapfrog_steps: int = LEAPFROG_STEPS,
    wrap: Wrap = iter,
) -> Tensor:
    """Step sizes (T, P) for 65 % acceptance, from an annealing run that is thrown away.

    They are adapted at up to 64 temperatures and interpolated between them.
    The runs that count then use steps fixed in advance: each of their moves leaves its target
    invariant, which adaptation on the fly would break, and the weights stay unbiased.

    Args:
        log_likelihood: (P, C, n) -> (P, C).
        betas: (T+1, P) or (T+1, 1).
        z: Draws from the prior (P, C, n).
        generator: Source of the moves; not that of the runs that count.
        first: Step size to begin with.
        leapfrog_steps: Gradients of each move.
        wrap: Wraps the loop over temperatures, to show progress.
    """
    move = partial(transition, log_likelihood, generator=generator, leapfrog_steps=leapfrog_steps)
    state, count = evaluate(log_likelihood, z), len(betas) - 1
    knots = _knots(count)
    step = torch.full((len(z), 1), first, dtype=z.dtype)
    found: list[Tensor] = []
    for t in wrap(knots.tolist()):
        for _ in range(MOVES if found else 4 * MOVES):
            state, probability = move(state, betas[t].unsqueeze(-1), step)
            step = step * (RATE * (probability.mean(-1, keepdim=True) - ACCEPTANCE)).exp()
        found.append(step.squeeze(-1).log())
    columns = torch.stack(found, -1).numpy()
    every = np.arange(1, count + 1)
    return torch.as_tensor(np.stack([np.interp(every, knots, c) for c in columns], -1)).exp()


def _knots(count: int) -> Tensor:
    """Temperatures to adapt at: spread evenly, and by equal ratios for schedules that rush off."""
    number = min(max(count // 8, 8), KNOTS // 2)
    even = torch.linspace(1, count, number)
    ratios = torch.logspace(0, math.log10(count), number)
    return torch.cat([even, ratios]).round().long().clamp(1, count).unique()


def anneal(
    log_likelihood: LogLikelihood,
    betas: Tensor,
    steps: Tensor,
    z: Tensor,
    *,
    generator: torch.Generator,
    leapfrog_steps: int = LEAPFROG_STEPS,
    wrap: Wrap = iter,
) -> Annealed:
    r"""Forward chains from the prior; the mean weight is an unbiased estimate of p(x).

    .. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log p(x \mid z_{t-1}), \qquad
              \mathbb{E}\, w = p(x), \quad \mathbb{E} \log w \le \log p(x)

    `Annealed.path[t]` holds the weights for the target f_t: every temperature on the way has its
    own unbiased estimate of ∫ f_t.

    Args:
        log_likelihood: (P, C, n) -> (P, C).
        betas: (T+1, P) or (T+1, 1), from 0 to 1.
        steps: Step sizes (T, P), fixed in advance: from `tune`.
        z: Draws from the prior (P, C, n).
        generator: Source of the moves.
        leapfrog_steps: Gradients of each move. At equal gradients, few of them and many
            temperatures give weights of less variance.
        wrap: Wraps the loop over temperatures, to show progress.
    """
    move = partial(transition, log_likelihood, generator=generator, leapfrog_steps=leapfrog_steps)
    return _run(move, evaluate(log_likelihood, z), betas, steps, wrap, reverse=False)


def anneal_reverse(
    log_likelihood: LogLikelihood,
    betas: Tensor,
    steps: Tensor,
    z: Tensor,
    *,
    generator: torch.Generator,
    leapfrog_steps: int = LEAPFROG_STEPS,
    wrap: Wrap = iter,
) -> Annealed:
    r"""Chains from exact draws of the posterior back to the prior: an upper bound on average.

    .. math:: \mathbb{E}\, \frac1w = \frac{1}{p(x)}, \qquad \mathbb{E} \log w \ge \log p(x)

    The same weights as `anneal`, collected in reverse order. For data simulated from the model, the
    z that made x is an exact draw; repeated for all chains it leaves E 1/w as it is, but makes them
    dependent. By Markov's inequality forward − b and reverse + b fail to bracket log p(x) with
    probability at most 2 exp(−b).
    """
    move = partial(transition, log_likelihood, generator=generator, leapfrog_steps=leapfrog_steps)
    return _run(move, evaluate(log_likelihood, z), betas, steps, wrap, reverse=True)


def log_mean(log_weights: Tensor) -> LogMean:
    r"""Log of the mean of weights (..., C), with a jackknife over chains.

    .. math:: \ell = \log \tfrac1C \sum_i w_i, \qquad
              \mathrm{se}^2 = \tfrac{C-1}{C} \sum_i (\ell_{-i} - \bar\ell_{-\cdot})^2, \qquad
              \mathrm{ess} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2}

    The standard error is infinite where one weight is all of the sum, and optimistic where ess is a
    handful: heavy tails that were not drawn are not seen.

    Raises:
        ValueError: If there are fewer than two chains.

    Example:
        >>> import torch
        >>> found = log_mean(torch.zeros(4))
        >>> [float(part) for part in found]
        [0.0, 0.0, 4.0]
    """
    chains = log_weights.shape[-1]
    if chains < 2:
        raise ValueError(f"A jackknife needs at least 2 chains, got {chains}.")
    total = torch.logsumexp(log_weights, -1)
    share = (log_weights - total.unsqueeze(-1)).exp()
    left_out = torch.log1p(-share)
    spread = (left_out - left_out.mean(-1, keepdim=True)).square().mean(-1)
    error = ((chains - 1) * spread).sqrt().nan_to_num(nan=torch.inf)
    return LogMean(total - math.log(chains), error, 1 / share.square().sum(-1))


def prior_draws(problems: int, chains: int, n: int, *, generator: torch.Generator) -> Tensor:
    """Standard normal starts (P, C, n), float64."""
    return torch.randn((problems, chains, n), generator=generator, dtype=torch.float64)


def _run(
    move: Callable[[State, Tensor, Tensor], tuple[State, Tensor]],
    state: State,
    betas: Tensor,
    steps: Tensor,
    wrap: Wrap,
    *,
    reverse: bool,
) -> Annealed:
    _check_run(betas, steps, state.z)
    count = len(betas)
    path = torch.zeros(count, *state.value.shape, dtype=state.value.dtype)
    acceptance = torch.empty_like(steps)
    for i in wrap(range(1, count)):
        t = count - i if reverse else i
        before = state.value
        state, probability = move(state, betas[t].unsqueeze(-1), steps[t - 1].unsqueeze(-1))
        # Forward, the weight looks at the state before the move; the reverse undoes that order.
        value = state.value if reverse else before
        path[i] = path[i - 1] + (betas[t] - betas[t - 1]).unsqueeze(-1) * value
        acceptance[t - 1] = probability.mean(-1)
    return Annealed(path, state.z, acceptance)


def _check_run(betas: Tensor, steps: Tensor, z: Tensor) -> None:
    if z.ndim != 3:
        raise ValueError(f"z must have shape (P, C, n), got {tuple(z.shape)}.")
    if bool((betas[0] != 0).any() | (betas[-1] != 1).any() | (betas.diff(dim=0) < 0).any()):
        raise ValueError("betas must increase from exactly 0 to exactly 1: use a schedule above.")
    if tuple(steps.shape) != (len(betas) - 1, len(z)):
        need = (len(betas) - 1, len(z))
        raise ValueError(f"steps must have shape {need}, got {tuple(steps.shape)}: use tune.")


def _check_steps(num_steps: int, least: int = 1) -> None:
    if num_steps < least:
        raise ValueError(f"num_steps must be at least {least}, got {num_steps}.")
